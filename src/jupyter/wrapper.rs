//! Wrappers in an image's ENTRYPOINT. An entrypoint that only prepares the environment and then runs its arguments
//! (`tini --`, `start.sh`, `/docker-entrypoint.sh`) is kept in front of Jupyter. One that is a program of its own is
//! dropped.

use super::facts::{FileKind, Files, MAX_SCRIPT, find_program};

/// Small init programs, with their options that take a value.
const INITS: [(&str, &[&str]); 5] = [
    ("tini", &["-p", "-e"]),
    ("tini-static", &["-p", "-e"]),
    ("docker-init", &["-p", "-e"]),
    ("dumb-init", &["-r", "--rewrite"]),
    ("catatonit", &[]),
];
const SHELLS: [&str; 5] = ["sh", "bash", "dash", "ash", "busybox"];

/// Returns the arguments of the entrypoint that go in front of the command. Empty if no part of it is a wrapper.
#[must_use]
pub(crate) fn wrapper(entrypoint: &[String], files: &dyn Files, path: &str) -> Vec<String> {
    let Some((program, rest)) = entrypoint.split_first() else { return Vec::new() };
    let name = base(program);
    if let Some((_, valued)) = INITS.iter().find(|(init, _)| *init == name) {
        let options = init_options(rest, valued);
        let (own, inner) = rest.split_at(options);
        let mut args = vec![program.clone()];
        args.extend_from_slice(own);
        // Without `--`, the init would read the command's options as its own.
        if own.last().is_none_or(|last| last != "--") {
            args.push("--".into());
        }
        args.extend(wrapper(inner, files, path));
        return args;
    }
    if SHELLS.contains(&name) {
        return match rest {
            [script] if !script.starts_with('-') && hands_on(script, files, path) => entrypoint.to_vec(),
            _ => Vec::new(),
        };
    }
    // Arguments after the script would come before the command in its `$@`. The entrypoint is then a program with
    // arguments, not a wrapper.
    if rest.is_empty() && hands_on(program, files, path) { entrypoint.to_vec() } else { Vec::new() }
}

/// Whether the wrapper has an init that prints a warning if it is not process 1.
pub(super) fn has_tini(wrapper: &[String]) -> bool {
    wrapper.iter().any(|arg| ["tini", "tini-static", "docker-init"].contains(&base(arg)))
}

fn base(arg: &str) -> &str {
    arg.rsplit('/').next().unwrap_or(arg)
}

/// The number of leading arguments that are the init's options, including `--`.
fn init_options(args: &[String], valued: &[&str]) -> usize {
    let mut count = 0;
    while let Some(arg) = args.get(count) {
        if arg == "--" {
            return count + 1;
        }
        if !arg.starts_with('-') {
            break;
        }
        count += if valued.contains(&arg.as_str()) { 2 } else { 1 };
    }
    count.min(args.len())
}

/// Whether a file is a shell script that runs its arguments, without starting Jupyter itself.
fn hands_on(script: &str, files: &dyn Files, path: &str) -> bool {
    let found = if script.starts_with('/') {
        files.kind(script).filter(|kind| *kind != FileKind::Directory).map(|_| script.to_owned())
    } else {
        find_program(files, path, script)
    };
    let Some(bytes) = found.and_then(|found| files.head(&found, MAX_SCRIPT)) else { return false };
    let text = String::from_utf8_lossy(&bytes);
    let first = text.lines().next().unwrap_or_default();
    let is_shell =
        first.strip_prefix("#!").is_some_and(|line| line.split_whitespace().any(|arg| SHELLS.contains(&base(arg))));
    let hands = |line: &str| ["$@", "${@", "$*"].iter().any(|args| line.contains(args));
    let mut lines = text.lines().map(str::trim).filter(|line| !line.starts_with('#') && hands(line)).peekable();
    is_shell && lines.peek().is_some() && !lines.any(|line| line.contains("jupyter") && !line.contains("=="))
}

#[cfg(test)]
mod tests {
    use super::super::facts::tests::Fake;
    use super::*;

    #[test]
    fn wrappers_are_kept_and_programs_are_not() {
        let files = Fake::new(&[
            ("/usr/local/bin/start.sh", "#!/bin/bash\nset -e\ncmd=( \"$@\" )\nexec \"${cmd[@]}\"\n"),
            ("/docker-entrypoint.sh", "#!/bin/sh\n# runs \"$@\"\nexec \"$@\"\n"),
            ("/own.sh", "#!/usr/bin/env bash\nexec jupyter lab \"$@\"\n"),
            ("/deaf.sh", "#!/bin/sh\n# \"$@\" is not used\nexec sleep 5\n"),
            ("/app/bin/serve", "\u{7f}ELF $@"),
        ]);
        let cases: [(&[&str], &[&str]); 16] = [
            (&[], &[]),
            (&["tini", "-g", "--", "start.sh"], &["tini", "-g", "--", "start.sh"]),
            (&["/usr/bin/tini", "--"], &["/usr/bin/tini", "--"]),
            (
                &["/tini", "-p", "SIGTERM", "/docker-entrypoint.sh"],
                &["/tini", "-p", "SIGTERM", "--", "/docker-entrypoint.sh"],
            ),
            (&["tini", "--", "jupyter", "lab"], &["tini", "--"]),
            (&["dumb-init", "-r", "15:2"], &["dumb-init", "-r", "15:2", "--"]),
            (&["/docker-entrypoint.sh"], &["/docker-entrypoint.sh"]),
            (&["/bin/bash", "/docker-entrypoint.sh"], &["/bin/bash", "/docker-entrypoint.sh"]),
            (&["/docker-entrypoint.sh", "serve"], &[]),
            (&["/bin/sh", "-c", "exec jupyter lab"], &[]),
            (&["/bin/bash"], &[]),
            (&["/own.sh"], &[]),
            (&["/deaf.sh"], &[]),
            (&["/missing.sh"], &[]),
            (&["/app/bin/serve"], &[]),
            (&["jupyter", "lab", "--ip=0.0.0.0"], &[]),
        ];
        for (entrypoint, expected) in cases {
            let entrypoint: Vec<String> = entrypoint.iter().map(|&arg| arg.to_owned()).collect();
            assert_eq!(wrapper(&entrypoint, &files, "/usr/local/bin:/usr/bin"), expected, "{entrypoint:?}");
        }
    }
}
