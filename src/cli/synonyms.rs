//! docker's other names for commands. A name stands for a command and its first flags, and has no implementation of its
//! own: `gpurun images` is `gpurun image ls`.

use std::ffi::OsString;

use clap::Command;

use super::command_line;

/// A name, and what it stands for.
pub(super) const SYNONYMS: &[(&str, &str)] = &[
    ("images", "image ls"),
    ("rmi", "image rm"),
    ("pull", "image pull"),
    ("push", "image push"),
    ("load", "image load"),
    ("save", "image save"),
    ("tag", "image tag"),
    ("history", "image history"),
    ("import", "image import"),
    ("image build", "build"),
    ("builder build", "build"),
    ("buildx build", "build"),
    ("buildx b", "build"),
    ("buildx du", "builder du"),
    ("buildx prune", "builder prune"),
    ("up", "compose up"),
    ("down", "compose down"),
    ("container attach", "attach"),
    ("container commit", "commit"),
    ("container cp", "cp"),
    ("container create", "create"),
    ("container diff", "diff"),
    ("container exec", "exec"),
    ("container export", "export"),
    ("container inspect", "inspect --type container"),
    ("container kill", "kill"),
    ("container logs", "logs"),
    ("container ls", "ps"),
    ("container list", "ps"),
    ("container ps", "ps"),
    ("container pause", "pause"),
    ("container port", "port"),
    ("container rename", "rename"),
    ("container restart", "restart"),
    ("container rm", "rm"),
    ("container remove", "rm"),
    ("container run", "run"),
    ("container start", "start"),
    ("container stats", "stats"),
    ("container stop", "stop"),
    ("container top", "top"),
    ("container unpause", "resume"),
    ("container update", "update"),
    ("container wait", "wait"),
    ("system events", "events"),
    ("system info", "info"),
];

fn target(name: &str) -> Option<&'static str> {
    SYNONYMS.iter().find(|(known, _)| *known == name).map(|(_, target)| *target)
}

/// Replaces a synonym in the arguments (without the program name) with what it stands for.
#[must_use]
pub(super) fn resolve(root: &Command, mut args: Vec<OsString>) -> Vec<OsString> {
    let Some(mut first) = command_line::operand(&[root], &args, 0) else { return args };
    if args[first] == "help" {
        let Some(next) = command_line::operand(&[root], &args, first + 1) else { return args };
        first = next;
    }
    let word = |at: usize| args[at].to_str().unwrap_or_default();
    if let Some(target) = target(word(first)) {
        args.splice(first..=first, target.split(' ').map(OsString::from));
        return args;
    }
    let Some(second) = command_line::operand(&[root], &args, first + 1) else { return args };
    if let Some(target) = target(&format!("{} {}", word(first), word(second))) {
        args.splice(second..=second, target.split(' ').map(OsString::from));
        args.remove(first);
    }
    args
}

/// Adds the synonyms to the command line's definition, for `--help`. They have no arguments, because [`resolve`] has
/// replaced them when the command line is parsed.
#[must_use]
pub(super) fn named(root: Command) -> Command {
    add(root, &|name, target| Command::new(name).about(format!("The same as `gpurun {target}`")))
}

/// Adds the synonyms with the arguments of what they stand for, for completions, man pages and tests.
#[must_use]
pub(super) fn complete(root: Command) -> Command {
    let known = root.clone();
    add(root, &|name, target| {
        let mut words = target.split(' ').take_while(|word| !word.starts_with('-'));
        let found = words.try_fold(&known, |command, word| command.find_subcommand(word));
        found.map_or_else(
            || Command::new(name),
            |found| found.clone().name(name).display_name(name).visible_alias(None).alias(None),
        )
    })
}

fn add(root: Command, make: &dyn Fn(&'static str, &'static str) -> Command) -> Command {
    SYNONYMS.iter().fold(root, |root, (name, target)| match name.split_once(' ') {
        None => root.subcommand(make(name, target)),
        Some((group, name)) => root.mut_subcommand(group, |group| group.subcommand(make(name, target))),
    })
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    fn resolved(text: &str) -> String {
        let args = text.split_whitespace().map(OsString::from).collect();
        command_line::texts(&resolve(&super::super::Cli::command(), args)).join(" ")
    }

    #[test]
    fn a_synonym_is_replaced_wherever_it_stands() {
        for (text, want) in [
            ("images -a", "image ls -a"),
            ("--root /x images --json", "--root /x image ls --json"),
            ("--root images ps", "--root images ps"),
            ("container ls -a", "ps -a"),
            ("container --verbose ls -a", "--verbose ps -a"),
            ("--root /x container inspect lab", "--root /x inspect --type container lab"),
            ("container run --rm box container ls", "run --rm box container ls"),
            ("container", "container"),
            ("container --help", "container --help"),
            ("container prune", "container prune"),
            ("help images", "help image ls"),
            ("run box images", "run box images"),
            ("--image images", "--image images"),
            ("system info", "info"),
            ("system df", "system df"),
            ("", ""),
        ] {
            assert_eq!(resolved(text), want, "{text}");
        }
    }

    #[test]
    fn every_synonym_stands_for_a_command() {
        let root = super::super::Cli::command();
        for (name, target) in SYNONYMS {
            let mut words = target.split(' ').take_while(|word| !word.starts_with('-'));
            let found = words.try_fold(&root, |command, word| command.find_subcommand(word));
            assert!(found.is_some(), "{name}: {target}");
            let own = name.split(' ').try_fold(&root, |command, word| command.find_subcommand(word));
            assert!(own.is_none(), "{name} is a command of its own");
        }
    }
}
