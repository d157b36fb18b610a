//! Preprocesses the command line before clap parses it, to mark the end of gpurun's own flags.
//!
//! Everything after IMAGE (`run`) or CONTAINER (`exec`) belongs to the command in the container, even if it begins with
//! `-`. This is docker's rule. clap does not support it for two positional arguments, so a `--` is inserted after the
//! first one.

use std::ffi::{OsStr, OsString};

use clap::{Arg, ArgAction, Command};

/// The subcommands whose last argument is a command line for the container.
const TAKE_A_COMMAND: [&str; 4] = ["run", "create", "exec", "top"];

/// The kind of an argument on the command line.
enum Token {
    /// A flag of gpurun, with the value that follows it if the flag takes one.
    Flag { length: usize },
    /// The first argument that is not a flag.
    Operand,
    /// `--`, an unknown flag, or the end of the arguments. clap decides.
    Unclear,
}

/// Returns the arguments (without the program name) in the form that clap expects.
#[must_use]
pub(super) fn prepare(root: &Command, mut args: Vec<OsString>) -> Vec<OsString> {
    switches(root, &mut args);
    let Some(at) = operand(&[root], &args, 0) else { return args };
    let Some(command) = root.find_subcommand(&args[at]) else { return args };
    if !TAKE_A_COMMAND.contains(&command.get_name()) {
        return args;
    }
    if matches!(command.get_name(), "run" | "create") {
        short_h(&[command, root], &mut args, at + 1);
    }
    if let Some(operand) = operand(&[command, root], &args, at + 1) {
        args.insert(operand + 1, "--".into());
    }
    args
}

/// Returns the names of the command and its subcommands (such as `image`, `rm`), for messages about it.
#[must_use]
pub(super) fn path(root: &Command, args: &[OsString]) -> Vec<String> {
    let (mut commands, mut from, mut names) = (vec![root], 0, Vec::new());
    while let Some(at) = operand(&commands, args, from) {
        let Some(next) = commands[0].find_subcommand(&args[at]) else { break };
        names.push(next.get_name().to_owned());
        commands.insert(0, next);
        from = at + 1;
    }
    names
}

/// Go's names of the two boolean values (strconv.ParseBool).
fn boolean(text: &str) -> Option<bool> {
    match text {
        "1" | "t" | "T" | "true" | "TRUE" | "True" => Some(true),
        "0" | "f" | "F" | "false" | "FALSE" | "False" => Some(false),
        _ => None,
    }
}

/// Gives every boolean flag docker's forms `--rm=true` and `--rm=false`, of which the last one counts. clap's flags for
/// this purpose have no values.
fn switches(root: &Command, args: &mut Vec<OsString>) {
    let (mut commands, mut at) = (vec![root], 0);
    // The position of each flag that is on, by its long name or its letter.
    let mut on: Vec<(String, usize)> = Vec::new();
    while at < args.len() {
        let text = args[at].to_string_lossy().into_owned();
        let is_switch = |arg: &Arg| matches!(arg.get_action(), ArgAction::SetTrue);
        let (name, value) = match (text.strip_prefix("--"), text.strip_prefix('-')) {
            (Some(long), _) => long.split_once('=').map_or((long, None), |(name, value)| (name, Some(value))),
            (None, Some(short)) => short.split_once('=').map_or((short, None), |(name, value)| (name, Some(value))),
            (None, None) => ("", None),
        };
        let key = match text.starts_with("--") {
            true => find(&commands, |arg| is_long(arg, name)).filter(|arg| is_switch(arg)),
            false => {
                let letter = name.chars().last();
                find(&commands, |arg| letter.is_some() && arg.get_short() == letter).filter(|arg| is_switch(arg))
            }
        };
        let key = key.map(|arg| arg.get_id().to_string());
        match (key, value.and_then(boolean)) {
            (Some(key), Some(false)) => {
                // An earlier form of the flag does not count either.
                let earlier: Vec<usize> = on.iter().filter(|(known, _)| *known == key).map(|(_, at)| *at).collect();
                on.retain(|(known, _)| *known != key);
                // Letters before the last one of a group stay.
                match text.starts_with("--") || name.chars().count() == 1 {
                    true => drop(args.remove(at)),
                    false => {
                        let kept: String = name.chars().take(name.chars().count() - 1).collect();
                        args[at] = format!("-{kept}").into();
                        at += 1;
                    }
                }
                for position in earlier.into_iter().rev() {
                    args.remove(position);
                    at -= 1;
                    on.iter_mut().filter(|(_, at)| *at > position).for_each(|(_, at)| *at -= 1);
                }
                continue;
            }
            (Some(key), Some(true)) if on.iter().any(|(known, _)| *known == key) => {
                // It is on already, and clap takes a flag once.
                args.remove(at);
                continue;
            }
            (key, Some(true)) if key.is_some() => {
                let dashes = if text.starts_with("--") { "--" } else { "-" };
                args[at] = format!("{dashes}{name}").into();
                on.extend(key.filter(|_| dashes == "--" || name.chars().count() == 1).map(|key| (key, at)));
                at += 1;
                continue;
            }
            (Some(key), None) if value.is_none() && (text.starts_with("--") || name.chars().count() == 1) => {
                on.push((key, at));
            }
            _ => {}
        }
        match token(&commands, args, at) {
            Token::Flag { length } => at += length,
            Token::Unclear => return,
            Token::Operand => {
                if let Some(next) = commands[0].find_subcommand(&args[at]) {
                    commands.insert(0, next);
                } else if commands.len() > 1 && TAKE_A_COMMAND.contains(&commands[0].get_name()) {
                    return;
                }
                at += 1;
            }
        }
    }
}

/// In `run` and `create`, `-h` is docker's short form of `--hostname`. As the last argument, it can only be a request for help.
fn short_h(commands: &[&Command], args: &mut [OsString], from: usize) {
    let mut at = from;
    while let Some(arg) = args.get(at) {
        if arg == "-h" {
            args[at] = if at + 1 == args.len() { "--help".into() } else { "--hostname".into() };
        } else if let Some(name) = arg.to_str().and_then(|arg| arg.strip_prefix("-h")) {
            args[at] = format!("--hostname={}", name.strip_prefix('=').unwrap_or(name)).into();
        }
        match token(commands, args, at) {
            Token::Flag { length } => at += length,
            Token::Operand | Token::Unclear => return,
        }
    }
}

/// Returns the index of the first operand.
pub(super) fn operand(commands: &[&Command], args: &[OsString], from: usize) -> Option<usize> {
    let mut at = from;
    loop {
        match token(commands, args, at) {
            Token::Flag { length } => at += length,
            Token::Operand => return Some(at),
            Token::Unclear => return None,
        }
    }
}

fn token(commands: &[&Command], args: &[OsString], at: usize) -> Token {
    let Some(text) = args.get(at).map(|arg| arg.to_string_lossy()) else { return Token::Unclear };
    // A flag with its value in the next argument is two arguments long.
    let length = |arg: &Arg, has_value: bool| {
        let takes_next = arg.get_action().takes_values() && !arg.is_require_equals_set() && !has_value;
        Token::Flag { length: 1 + usize::from(takes_next) }
    };
    if let Some(long) = text.strip_prefix("--") {
        let name = long.split('=').next().unwrap_or_default();
        return match find(commands, |arg| is_long(arg, name)) {
            Some(arg) => length(arg, long.contains('=')),
            None => Token::Unclear,
        };
    }
    let Some(cluster) = text.strip_prefix('-').filter(|cluster| !cluster.is_empty()) else { return Token::Operand };
    for (index, letter) in cluster.char_indices() {
        // The value of a boolean flag: `-d=true`.
        if letter == '=' && index > 0 {
            return Token::Flag { length: 1 };
        }
        let Some(arg) = find(commands, |arg| arg.get_short() == Some(letter)) else { return Token::Unclear };
        if arg.get_action().takes_values() {
            return length(arg, index + letter.len_utf8() < cluster.len());
        }
    }
    Token::Flag { length: 1 }
}

/// Finds a flag of the command or a global flag of its parents.
fn find<'a>(commands: &[&'a Command], wanted: impl Fn(&Arg) -> bool) -> Option<&'a Arg> {
    let own = commands[0].get_arguments().find(|arg| wanted(arg));
    own.or_else(|| {
        commands[1..].iter().flat_map(|parent| parent.get_arguments()).find(|arg| arg.is_global_set() && wanted(arg))
    })
}

fn is_long(arg: &Arg, name: &str) -> bool {
    arg.get_long() == Some(name) || arg.get_all_aliases().is_some_and(|all| all.contains(&name))
}

/// Returns the arguments as text, for messages.
#[must_use]
pub(super) fn texts(args: &[OsString]) -> Vec<String> {
    args.iter().map(|arg| AsRef::<OsStr>::as_ref(arg).to_string_lossy().into_owned()).collect()
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    fn prepared(line: &str) -> String {
        let args = line.split_whitespace().map(OsString::from).collect();
        texts(&prepare(&super::super::Cli::command(), args)).join(" ")
    }

    #[test]
    fn all_that_follows_the_image_or_the_container_is_the_commands() {
        for (line, want) in [
            ("run --rm served --name bob", "run --rm served -- --name bob"),
            ("run served --help", "run served -- --help"),
            ("run -it -p 1:1 -e A=B served -p 80", "run -it -p 1:1 -e A=B served -- -p 80"),
            ("run -ip80:80 --name=x --mem 2g served -h", "run -ip80:80 --name=x --mem 2g served -- -h"),
            (
                "--root /x --verbose run --run-dir /y served --root z",
                "--root /x --verbose run --run-dir /y served -- --root z",
            ),
            ("run --oom-kill-disable served -x", "run --oom-kill-disable served -- -x"),
            ("run served -- x", "run served -- -- x"),
            ("run -- served -x", "run -- served -x"),
            ("run --net none served", "run --net none served --"),
            ("run --bogus served --help", "run --bogus served --help"),
            ("run --name", "run --name"),
            ("exec -it lab --bogus -u x", "exec -it lab -- --bogus -u x"),
            ("exec -u root -w /x lab ls -la", "exec -u root -w /x lab -- ls -la"),
            ("stop --time 3 lab", "stop --time 3 lab"),
            ("--image x --name run", "--image x --name run"),
        ] {
            assert_eq!(prepared(line), want);
        }
    }

    #[test]
    fn short_h_is_the_host_name_and_as_the_last_argument_help() {
        for (line, want) in [
            ("run -h", "run --help"),
            ("run --rm -h", "run --rm --help"),
            ("run -h lab box", "run --hostname lab box --"),
            ("run --name -h box", "run --name -h box --"),
            ("run -hlab -h=lab box -hx", "run --hostname=lab --hostname=lab box -- -hx"),
            ("exec -h", "exec -h"),
        ] {
            assert_eq!(prepared(line), want);
        }
    }

    #[test]
    fn switches_have_dockers_values() {
        for (line, want) in [
            ("run --rm=true -d=1 box --x=false", "run --rm -d box -- --x=false"),
            ("run --rm=false --init=0 box", "run box --"),
            ("run --rm -it --rm=false box", "run -it box --"),
            ("run --rm=false --rm box", "run --rm box --"),
            ("run --rm --rm=true -d -d=1 box", "run --rm -d box --"),
            ("run -it=false box", "run -i box --"),
            ("run -it=true box", "run -it box --"),
            ("run --name a --rm --detach --rm=F -e A=B box", "run --name a --detach -e A=B box --"),
            ("run --rm=maybe box", "run --rm=maybe box --"),
            ("run --sig-proxy=false --name=false box", "run --sig-proxy=false --name=false box --"),
            ("run -e --rm=false box", "run -e --rm=false box --"),
            ("exec -it=true lab ls --all=false", "exec -it lab -- ls --all=false"),
            ("ps --all=true --quiet=false", "ps --all"),
            ("image ls -q=true", "image ls -q"),
            ("rm lab --force=true", "rm lab --force"),
            ("--verbose=true ps", "--verbose ps"),
        ] {
            assert_eq!(prepared(line), want);
        }
    }

    #[test]
    fn commands_are_found_by_name() {
        let path = |line: &str| {
            let args: Vec<OsString> = line.split_whitespace().map(OsString::from).collect();
            path(&super::super::Cli::command(), &args).join(" ")
        };
        assert_eq!(path("--root /x image --verbose rm -f y"), "image rm");
        assert_eq!(path("run --ipc=host x"), "run");
        assert_eq!(path("--image run --bogus"), "");
    }
}
