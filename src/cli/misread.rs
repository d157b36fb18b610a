//! Command lines that clap refuses in its own words, where the person needs others.

use clap::error::{ContextKind, ContextValue, ErrorKind};

use crate::report::Report;

/// What to say instead, for the mistakes that people make with a Jupyter launch.
pub fn explain(error: &clap::Error, args: &[String]) -> Option<Report> {
    match error.kind() {
        ErrorKind::MissingRequiredArgument if args.is_empty() => Some(
            Report::usage("no image and no command was named")
                .with_hint("`gpurun --image IMAGE` starts Jupyter in it, `gpurun run IMAGE COMMAND` anything else; `gpurun --help`"),
        ),
        ErrorKind::InvalidSubcommand => {
            let Some(ContextValue::String(word)) = error.get(ContextKind::InvalidSubcommand) else { return None };
            let at = args.iter().position(|arg| arg == word)?;
            if at > 0 && args[at - 1] == "--password" {
                return Some(password());
            }
            let image = image(&args[..at])?;
            Some(
                Report::usage(format!("`{word}` is no command of gpurun, and a Jupyter launch takes none for the image"))
                    .with_hint(format!("`gpurun run {image} {}` runs it there", args[at..].join(" "))),
            )
        }
        ErrorKind::UnknownArgument => {
            let Some(ContextValue::String(flag)) = error.get(ContextKind::InvalidArg) else { return None };
            let (_, instead) = DOCKERS.iter().find(|(name, _)| name == flag)?;
            Some(Report::usage(format!("gpurun has no `{flag}`, which docker has")).with_hint(*instead))
        }
        ErrorKind::TooManyValues if args.iter().any(|arg| arg.starts_with("--password=")) => Some(password()),
        _ => None,
    }
}

/// Flags of `docker run` that a pasted command line may hold, and what to write here instead.
const DOCKERS: &[(&str, &str)] = &[
    (
        "--privileged",
        "give it what it needs: `--cap-add SYS_ADMIN`, `--device /dev/NODE`, `--security-opt seccomp=unconfined`",
    ),
    ("--runtime", "leave it out: `--gpus all` alone brings the GPUs, whatever way the host has"),
    ("--ipc", "for PyTorch's data loaders, `--shm-size 8g`; with `--gpus` it is half of the memory anyway"),
    ("--userns", "leave it out; `--user UID:GID` says who runs in the container"),
    ("--cidfile", "`-d` prints the id: `gpurun run -d … >FILE`"),
    ("--volumes-from", "name the volumes again: `-v NAME:/DIR`"),
    ("--link", "`--add-host NAME:IP`, or `--network host` for both"),
    ("--log-driver", "leave it out: the log is a file, rotated; `gpurun logs NAME` shows it"),
    ("--log-opt", "leave it out: the log is a file, rotated; `gpurun logs NAME` shows it"),
    ("--publish-all", "name the ports: `-p 8888:8888`"),
    ("-P", "name the ports: `-p 8888:8888`"),
    ("--expose", "leave it out, and publish the port: `-p 8888:8888`"),
    ("--attach", "leave it out: `gpurun run` shows the output unless `-d` is given"),
];

/// The word itself is not repeated: it may be somebody's password.
fn password() -> Report {
    Report::usage("`--password` takes no value: it asks for the password").with_hint(
        "leave the word out; a script gives the password by `--password-stdin`, `--password-file FILE` or `--password-hash HASH`",
    )
}

fn image(args: &[String]) -> Option<&str> {
    let at = args.iter().rposition(|arg| arg == "--image" || arg.starts_with("--image="))?;
    args[at].strip_prefix("--image=").or_else(|| args.get(at + 1).map(String::as_str))
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    fn said(line: &str) -> Option<String> {
        let args: Vec<String> = line.split_whitespace().map(str::to_owned).collect();
        let error =
            super::super::Cli::try_parse_from(std::iter::once("gpurun".to_owned()).chain(args.clone())).err()?;
        explain(&error, &args).map(|report| report.to_string())
    }

    #[test]
    fn a_password_on_the_command_line_is_refused_and_not_repeated() {
        for line in ["--image x --password hunter2", "--image x --password=hunter2", "--image x --password hunter2 -d"]
        {
            let said = said(line).expect(line);
            assert!(said.contains("`--password` takes no value") && !said.contains("hunter2"), "{line}: {said}");
        }
    }

    #[test]
    fn a_command_behind_a_jupyter_launch_is_pointed_to_run() {
        insta::assert_snapshot!(said("--image jupyter --mem 2g bash -l").unwrap(), @r"
        error: `bash` is no command of gpurun, and a Jupyter launch takes none for the image

        hint: `gpurun run jupyter bash -l` runs it there
        ");
        assert!(said("--image=jupyter bash").unwrap().contains("`gpurun run jupyter bash`"));
    }

    #[test]
    fn dockers_flags_are_known_with_what_to_write_instead() {
        insta::assert_snapshot!(said("run --rm --ipc=host --gpus all torch python").unwrap(), @r"
        error: gpurun has no `--ipc`, which docker has

        hint: for PyTorch's data loaders, `--shm-size 8g`; with `--gpus` it is half of the memory anyway
        ");
        for (flag, _) in DOCKERS {
            let said = said(&format!("run {flag} x y")).unwrap_or_else(|| panic!("{flag} is known here by now"));
            assert!(said.contains(&format!("has no `{flag}`")), "{said}");
        }
    }

    #[test]
    fn nothing_at_all_names_both_ways() {
        assert!(said("").unwrap().contains("gpurun run IMAGE COMMAND"));
    }

    #[test]
    fn everything_else_is_left_to_clap() {
        for line in ["--image x -p", "run", "frobnicate", "run --bogus x", "--image x"] {
            assert_eq!(said(line), None, "{line}");
        }
    }
}
