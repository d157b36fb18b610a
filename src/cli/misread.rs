//! Command lines that clap refuses in its own words, where the person needs others.

use clap::error::{ContextKind, ContextValue, ErrorKind};

use crate::report::{Explain, Report};
use crate::units::UnitError;

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
        ErrorKind::InvalidValue | ErrorKind::ValueValidation => value(error),
        ErrorKind::TooManyValues if args.iter().any(|arg| arg.starts_with("--password=")) => Some(password()),
        _ => None,
    }
}

/// A flag's value that is none, or is no number.
fn value(error: &clap::Error) -> Option<Report> {
    let text = |kind| match error.get(kind) {
        Some(ContextValue::String(text)) => Some(text.as_str()),
        _ => None,
    };
    // `--memory <SIZE>` or `--tls-verify[=<BOOL>]`, as clap has it.
    let flag = text(ContextKind::InvalidArg)?.split([' ', '[', '=']).next().filter(|word| word.starts_with('-'))?;
    let value = text(ContextKind::InvalidValue)?;
    if value.is_empty() {
        let values = match error.get(ContextKind::ValidValue) {
            Some(ContextValue::Strings(values)) if !values.is_empty() => format!(" ({})", values.join(", ")),
            _ => String::new(),
        };
        return Some(Report::usage(format!("`{flag}` has no value")).with_hint(format!(
            "give it one{values}, or leave `{flag}` out; a shell variable that is not set looks so, too"
        )));
    }
    let source = std::error::Error::source(error)?.downcast_ref::<UnitError>()?;
    let said = source.to_string().replacen(&format!("`{value}`"), &format!("`{flag} {value}`"), 1);
    Some(Report { hint: source.hint(), ..Report::usage(said) })
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
    fn a_flag_without_a_value_is_named() {
        insta::assert_snapshot!(said("update lab --cpuset-cpus=").unwrap(), @r"
        error: `--cpuset-cpus` has no value

        hint: give it one, or leave `--cpuset-cpus` out; a shell variable that is not set looks so, too
        ");
        insta::assert_snapshot!(said("run --pull= box").unwrap(), @r"
        error: `--pull` has no value

        hint: give it one (missing, always, never), or leave `--pull` out; a shell variable that is not set looks so, too
        ");
        insta::assert_snapshot!(said("update lab --blkio-weight 1e3").unwrap(), @r"
        error: `--blkio-weight 1e3` is not a whole number

        hint: write a number from 10 to 1000, in digits
        ");
        for line in ["--image x -p", "run --label= x", "run --memory", "run --pids-limit= x", "run --workdir= x"] {
            let said = said(line).expect(line);
            assert!(said.contains("has no value"), "{line}: {said}");
        }
    }

    /// All flags that take a value, with the words of their commands.
    fn flags() -> Vec<(Vec<String>, clap::Arg)> {
        let mut all = Vec::new();
        let mut commands = vec![(Vec::new(), <super::super::Cli as clap::CommandFactory>::command())];
        while let Some((words, command)) = commands.pop() {
            let args =
                command.get_arguments().filter(|arg| arg.get_long().is_some() && arg.get_action().takes_values());
            all.extend(args.map(|arg| (words.clone(), arg.clone())));
            for command in command.get_subcommands() {
                commands.push(([words.clone(), vec![command.get_name().to_owned()]].concat(), command.clone()));
            }
        }
        all
    }

    fn said_of(words: &[String], flag: &str, value: &str) -> String {
        let args = [words, &[format!("--{flag}={value}")]].concat();
        let error = super::super::Cli::try_parse_from(std::iter::once("gpurun".to_owned()).chain(args.clone()))
            .expect_err(flag);
        explain(&error, &args).unwrap_or_else(|| panic!("{args:?} is left to clap: {error}")).to_string()
    }

    #[test]
    fn every_number_says_what_it_takes() {
        use std::any::TypeId;
        let whole = [TypeId::of::<i64>(), TypeId::of::<u64>(), TypeId::of::<i32>(), TypeId::of::<u32>()];
        let other = [TypeId::of::<u8>(), TypeId::of::<u16>(), TypeId::of::<usize>(), TypeId::of::<f32>()];
        let mut count = 0;
        for (words, arg) in flags() {
            let (flag, kind) = (arg.get_long().unwrap(), arg.get_value_parser().type_id());
            assert!(other.iter().all(|other| kind != *other), "--{flag} is of a type that this test does not know");
            let words_for = if kind == TypeId::of::<f64>() {
                "is not a number of seconds from "
            } else if whole.iter().any(|whole| kind == *whole) {
                "is not a whole number"
            } else {
                continue;
            };
            count += 1;
            for value in ["x", "1e3", "0x10", "12ki", "٣"] {
                if value == "1e3" && kind == TypeId::of::<f64>() {
                    continue;
                }
                let said = said_of(&words, flag, value);
                assert!(said.starts_with(&format!("error: `--{flag} {value}` {words_for}")), "{said}");
                assert!(said.contains("hint: write a "), "{said}");
            }
            let said = said_of(&words, flag, "99999999999999999999");
            assert!(said.contains("is outside of ") || said.contains("seconds from "), "{said}");
        }
        assert!(count > 20, "{count}");
    }

    #[test]
    fn no_limit_is_the_empty_text() {
        let limits = flags().into_iter().filter(|(words, arg)| {
            words.first().is_some_and(|word| word == "update")
                || arg.get_help_heading().is_some_and(|of| of.starts_with("Limits"))
        });
        let mut count = 0;
        for (words, arg) in limits.filter(|(_, arg)| !["root", "run-dir"].contains(&arg.get_long().unwrap())) {
            count += 1;
            let flag = arg.get_long().unwrap();
            let said = said_of(&words, flag, "");
            assert!(said.starts_with(&format!("error: `--{flag}` has no value\n")), "{words:?}: {said}");
        }
        assert!(count > 60, "{count}");
    }

    #[test]
    fn nothing_at_all_names_both_ways() {
        assert!(said("").unwrap().contains("gpurun run IMAGE COMMAND"));
    }

    #[test]
    fn everything_else_is_left_to_clap() {
        for line in ["run", "frobnicate", "run --bogus x", "--image x", "run --pull sometimes x"] {
            assert_eq!(said(line), None, "{line}");
        }
    }
}
