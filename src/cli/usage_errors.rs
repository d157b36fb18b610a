//! Better messages for command lines that clap rejects with an unhelpful error.

use std::ffi::OsString;

use clap::error::{ContextKind, ContextValue, ErrorKind};

use super::docker_hints;
use crate::jupyter::HashError;
use crate::names::{NameError, distance};
use crate::report::{Explain, Report};
use crate::transport::SourceNameError;
use crate::units::UnitError;

/// Returns a better message for a rejected command line of `root`, or `None` to keep clap's message.
pub(super) fn explain(error: &clap::Error, args: &[OsString], root: &clap::Command) -> Option<Report> {
    let args = &super::synonyms::resolve(root, args.to_vec());
    let path = super::command_line::path(root, args);
    let args = &super::command_line::texts(args)[..];
    match error.kind() {
        ErrorKind::MissingRequiredArgument if args.is_empty() => Some(
            Report::usage("no image and no command was specified")
                .with_hint("start Jupyter with `gpurun --image IMAGE`, or any command with `gpurun run IMAGE COMMAND`"),
        ),
        ErrorKind::MissingRequiredArgument => {
            let Some(ContextValue::Strings(missing)) = error.get(ContextKind::InvalidArg) else { return None };
            let missing: Vec<String> = missing.iter().map(|arg| format!("`{arg}`")).collect();
            Some(
                Report::usage(format!("`{}` requires {}", name(&path), missing.join(" and ")))
                    .with_hint(format!("list the arguments with `{} --help`", name(&path))),
            )
        }
        ErrorKind::MissingSubcommand | ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand => Some(
            Report::usage(format!("`{}` requires a command", name(&path)))
                .with_hint(format!("list the commands with `{} --help`", name(&path))),
        ),
        ErrorKind::InvalidSubcommand => {
            let Some(ContextValue::String(typed)) = error.get(ContextKind::InvalidSubcommand) else { return None };
            // clap lists the most similar command last.
            let similar = match error.get(ContextKind::SuggestedSubcommand) {
                Some(ContextValue::Strings(similar)) => similar.last().map(String::as_str),
                _ => None,
            };
            unknown_command(typed, &path, args, similar)
        }
        ErrorKind::UnknownArgument => {
            let Some(ContextValue::String(flag)) = error.get(ContextKind::InvalidArg) else { return None };
            let flag = flag.split('=').next().unwrap_or(flag);
            if !flag.starts_with('-') {
                return Some(
                    Report::usage(format!("`{}` takes no argument `{flag}`", name(&path)))
                        .with_hint(format!("list the arguments with `{} --help`", name(&path))),
                );
            }
            let hint = match (docker_hints::flag(&path.join(" "), flag), error.get(ContextKind::SuggestedArg)) {
                (Some(instead), _) => instead.to_owned(),
                (None, Some(ContextValue::String(similar))) if is_typo(flag, similar) => {
                    format!("did you mean `{similar}`?")
                }
                (None, _) => flag_of_another_command(flag, &path, root)
                    .unwrap_or_else(|| format!("list the flags with `{} --help`", name(&path))),
            };
            Some(Report::usage(format!("`{}` has no flag `{flag}`", name(&path))).with_hint(hint))
        }
        ErrorKind::ArgumentConflict => {
            let Some(ContextValue::String(one)) = error.get(ContextKind::InvalidArg) else { return None };
            let others = match error.get(ContextKind::PriorArg) {
                Some(ContextValue::String(other)) => format!("`{other}`"),
                Some(ContextValue::Strings(others)) if !others.is_empty() => {
                    others.iter().map(|other| format!("`{other}`")).collect::<Vec<_>>().join(" or ")
                }
                // Without another argument, the flag was given twice.
                _ => return Some(Report::usage(format!("`{one}` was given more than once")).with_hint("give it once")),
            };
            Some(
                Report::usage(format!("`{one}` cannot be combined with {others}"))
                    .with_hint(format!("omit one of them; `{} --help` describes both", name(&path))),
            )
        }
        ErrorKind::InvalidValue | ErrorKind::ValueValidation => value(error),
        ErrorKind::TooManyValues if boolean(error).is_some() => boolean(error),
        ErrorKind::TooManyValues if args.iter().any(|arg| arg.starts_with("--password=")) => Some(password()),
        _ => None,
    }
}

/// The hint for a flag that belongs to the Jupyter launch or to `gpurun run`, and was given to another command.
fn flag_of_another_command(flag: &str, path: &[String], root: &clap::Command) -> Option<String> {
    let path: Vec<&str> = path.iter().map(String::as_str).collect();
    match path[..] {
        ["run" | "create"] if flag == "--image" => Some(format!(
            "name the image without a flag: `gpurun {} IMAGE COMMAND`; start Jupyter with `gpurun --image IMAGE`",
            path[0]
        )),
        ["run" | "create"] if has_flag(root, flag) => {
            Some(format!("it belongs to the Jupyter launch: `gpurun --image IMAGE {flag}`"))
        }
        ["start" | "restart" | "exec" | "attach" | "update"] if has_flag(root.find_subcommand("run")?, flag) => {
            Some(format!("set it when you create the container: `gpurun run {flag}`"))
        }
        _ => None,
    }
}

/// Whether a command has a flag that the user typed as `-x` or `--word`.
fn has_flag(command: &clap::Command, flag: &str) -> bool {
    command.get_arguments().any(|argument| match flag.strip_prefix("--") {
        Some(long) => argument.get_long_and_visible_aliases().is_some_and(|names| names.contains(&long)),
        None => argument.get_short().is_some_and(|short| flag.strip_prefix('-') == Some(&short.to_string())),
    })
}

/// The message for a boolean flag whose value is no boolean: `--rm=maybe`.
fn boolean(error: &clap::Error) -> Option<Report> {
    let Some(ContextValue::String(flag)) = error.get(ContextKind::InvalidArg) else { return None };
    let Some(ContextValue::String(value)) = error.get(ContextKind::InvalidValue) else { return None };
    let flag = flag.split([' ', '[', '=']).next().filter(|flag| *flag != "--password")?;
    Some(
        Report::usage(format!("`{flag}={value}` is neither true nor false"))
            .with_hint(format!("use `{flag}`, `{flag}=true` or `{flag}=false`")),
    )
}

/// Handles an argument in the position of a command that is not a command of gpurun.
fn unknown_command(typed: &str, path: &[String], args: &[String], similar: Option<&str>) -> Option<Report> {
    let at = args.iter().position(|arg| arg == typed)?;
    if at > 0 && args[at - 1] == "--password" {
        return Some(password());
    }
    if let Some(image) = path.is_empty().then(|| image(&args[..at])).flatten() {
        return Some(
            Report::usage(format!(
                "`{typed}` is not a command of gpurun, and a Jupyter launch takes no command for the image"
            ))
            .with_hint(format!("run it with `gpurun run {image} {}`", args[at..].join(" "))),
        );
    }
    let command_path: Vec<&str> =
        path.iter().chain(&args[at..]).map(String::as_str).filter(|typed| !typed.starts_with('-')).collect();
    let (command, hint) = match (docker_hints::command(&command_path), similar) {
        (Some((known, instead)), _) => (known, instead.to_owned()),
        (None, Some(similar)) if is_typo(typed, similar) => {
            (path.join(" ") + " " + typed, format!("did you mean `{similar}`?"))
        }
        (None, _) => (path.join(" ") + " " + typed, format!("list the commands with `{} --help`", name(path))),
    };
    Some(Report::usage(format!("gpurun has no command `{}`", command.trim())).with_hint(hint))
}

/// Whether one name may be a typing error for another: two letters are exchanged, one is missing, too many or wrong, or
/// two are, in a longer name. clap's own measure takes `pods` for `ps`.
fn is_typo(typed: &str, name: &str) -> bool {
    let most = if name.chars().count() > 4 { 2 } else { 1 };
    distance(typed, name) <= most || has_exchanged(typed, name)
}

/// Whether two neighboring letters are exchanged, and nothing else differs.
fn has_exchanged(typed: &str, name: &str) -> bool {
    let (typed, name): (Vec<char>, Vec<char>) = (typed.chars().collect(), name.chars().collect());
    let Some(at) = typed.iter().zip(&name).position(|(letter, other)| letter != other) else { return false };
    let mut typed = typed;
    if at + 1 < typed.len() {
        typed.swap(at, at + 1);
    }
    typed == name
}

/// Returns the command in the form in which the user types it.
fn name(path: &[String]) -> String {
    ["gpurun"].into_iter().chain(path.iter().map(String::as_str)).collect::<Vec<_>>().join(" ")
}

/// Handles an empty or a non-numeric value of a flag.
fn value(error: &clap::Error) -> Option<Report> {
    let text = |kind| match error.get(kind) {
        Some(ContextValue::String(text)) => Some(text.as_str()),
        _ => None,
    };
    if let Some(source) = std::error::Error::source(error) {
        let names = source.downcast_ref::<NameError>().map(|error| (error.to_string(), error.hint()));
        let sources = source.downcast_ref::<SourceNameError>().map(|error| (error.to_string(), error.hint()));
        let hashes = source.downcast_ref::<HashError>().map(|error| (error.to_string(), error.hint()));
        if let Some((message, hint)) = names.or(sources).or(hashes) {
            return Some(Report { hint, ..Report::usage(message) });
        }
    }
    // clap's form is `--memory <SIZE>` or `--tls-verify[=<BOOL>]`.
    let typed = text(ContextKind::InvalidArg)?.split([' ', '[', '=']).next()?;
    let value = text(ContextKind::InvalidValue)?;
    if let Some(ContextValue::Strings(values)) = error.get(ContextKind::ValidValue)
        && !values.is_empty()
        && typed.starts_with('<')
    {
        return Some(
            Report::usage(format!("`{value}` is not one of the possible values"))
                .with_hint(format!("use one of: {}", values.join(", "))),
        );
    }
    let flag = Some(typed).filter(|typed| typed.starts_with('-'))?;
    if value.is_empty() {
        let values = match error.get(ContextKind::ValidValue) {
            Some(ContextValue::Strings(values)) if !values.is_empty() => format!(" ({})", values.join(", ")),
            _ => String::new(),
        };
        return Some(Report::usage(format!("`{flag}` has no value")).with_hint(format!(
            "write a value{values}, or omit `{flag}`; an unset shell variable also has this effect"
        )));
    }
    if let Some(ContextValue::Strings(values)) = error.get(ContextKind::ValidValue)
        && !values.is_empty()
    {
        return Some(
            Report::usage(format!("`{flag} {value}` is not one of the possible values"))
                .with_hint(format!("use one of: {}", values.join(", "))),
        );
    }
    let source = std::error::Error::source(error)?.downcast_ref::<UnitError>()?;
    let message = source.to_string().replacen(&format!("`{value}`"), &format!("`{flag} {value}`"), 1);
    Some(Report { hint: source.hint(), ..Report::usage(message) })
}

/// The message does not repeat the argument because it may be a password.
fn password() -> Report {
    Report::usage("`--password` takes no value: it prompts for the password").with_hint(
        "omit the value; in a script, use `--password-stdin`, `--password-file FILE` or `--password-hash HASH`",
    )
}

fn image(args: &[String]) -> Option<&str> {
    let at = args.iter().rposition(|arg| arg == "--image" || arg.starts_with("--image="))?;
    args[at].strip_prefix("--image=").or_else(|| args.get(at + 1).map(String::as_str))
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    fn message(line: &str) -> Option<String> {
        let args: Vec<OsString> = line.split_whitespace().map(OsString::from).collect();
        let error = super::super::parse(&crate::config::Config::default(), args.clone()).err()?;
        explain(&error, &args, &super::super::Cli::command()).map(|report| report.to_string())
    }

    #[test]
    fn a_password_on_the_command_line_is_refused_and_not_repeated() {
        for line in ["--image x --password hunter2", "--image x --password=hunter2", "--image x --password hunter2 -d"]
        {
            let message = message(line).expect(line);
            assert!(
                message.contains("`--password` takes no value") && !message.contains("hunter2"),
                "{line}: {message}"
            );
        }
    }

    #[test]
    fn a_command_behind_a_jupyter_launch_is_pointed_to_run() {
        insta::assert_snapshot!(message("--image jupyter --mem 2g bash -l").unwrap(), @r"
        error: `bash` is not a command of gpurun, and a Jupyter launch takes no command for the image

        hint: run it with `gpurun run jupyter bash -l`
        ");
        assert!(message("--image=jupyter bash").unwrap().contains("`gpurun run jupyter bash`"));
    }

    #[test]
    fn a_flag_of_another_command_is_pointed_to_that_command() {
        insta::assert_snapshot!(message("run --image jupyter bash").unwrap(), @r"
        error: `gpurun run` has no flag `--image`

        hint: name the image without a flag: `gpurun run IMAGE COMMAND`; start Jupyter with `gpurun --image IMAGE`
        ");
        insta::assert_snapshot!(message("create --password-file x jupyter").unwrap(), @r"
        error: `gpurun create` has no flag `--password-file`

        hint: it belongs to the Jupyter launch: `gpurun --image IMAGE --password-file`
        ");
        insta::assert_snapshot!(message("exec --gpus all lab nvidia-smi").unwrap(), @r"
        error: `gpurun exec` has no flag `--gpus`

        hint: set it when you create the container: `gpurun run --gpus`
        ");
        assert!(message("start -p 80:80 lab").unwrap().ends_with("`gpurun run -p`"));
        assert!(message("start --password-file x lab").unwrap().ends_with("list the flags with `gpurun start --help`"));
    }

    #[test]
    fn dockers_flags_are_known_with_what_to_write_instead() {
        insta::assert_snapshot!(message("run --rm --storage-opt=size=9g --gpus all torch python").unwrap(), @r"
        error: `gpurun run` has no flag `--storage-opt`

        hint: omit it: layers are directories of this host; a quota of its file system limits them
        ");
        insta::assert_snapshot!(message("--image x --link db").unwrap(), @r"
        error: `gpurun` has no flag `--link`

        hint: create a network: `gpurun network create NAME`, and run both containers with `--network NAME`
        ");
        insta::assert_snapshot!(message("run --rm=maybe box").unwrap(), @r"
        error: `--rm=maybe` is neither true nor false

        hint: use `--rm`, `--rm=true` or `--rm=false`
        ");
        insta::assert_snapshot!(message("image ls --tree").unwrap(), @r"
        error: `gpurun image ls` has no flag `--tree`

        hint: omit it: an image here is for one platform
        ");
    }

    #[test]
    fn dockers_commands_are_known_with_what_to_use_instead() {
        insta::assert_snapshot!(message("--verbose swarm init").unwrap(), @r"
        error: gpurun has no command `swarm`

        hint: gpurun manages the containers of one host: start each one with `gpurun run -d IMAGE`
        ");
        insta::assert_snapshot!(message("image search x").unwrap(), @r"
        error: gpurun has no command `image search`

        hint: use `gpurun search TERM`
        ");
        insta::assert_snapshot!(message("networks").unwrap(), @r"
        error: gpurun has no command `networks`

        hint: use `gpurun network ls`
        ");
        assert!(message("exce lab sh").unwrap().ends_with("hint: did you mean `exec`?"));
        assert!(message("imagse").unwrap().ends_with("gpurun has no command `imagse`\n\nhint: did you mean `image`?"));
        assert!(message("frobnicate").unwrap().ends_with("hint: list the commands with `gpurun --help`"));
        assert!(message("image frobnicate").unwrap().starts_with("error: gpurun has no command `image frobnicate`"));
        assert!(message("run --labl=x y").unwrap().ends_with("hint: did you mean `--label`?"));
        assert!(message("run --zzz x").unwrap().ends_with("hint: list the flags with `gpurun run --help`"));
    }

    #[test]
    fn a_flag_without_a_value_is_named() {
        insta::assert_snapshot!(message("update lab --cpuset-cpus=").unwrap(), @r"
        error: `--cpuset-cpus` has no value

        hint: write a value, or omit `--cpuset-cpus`; an unset shell variable also has this effect
        ");
        insta::assert_snapshot!(message("run --pull= box").unwrap(), @r"
        error: `--pull` has no value

        hint: write a value (missing, always, never), or omit `--pull`; an unset shell variable also has this effect
        ");
        insta::assert_snapshot!(message("update lab --blkio-weight 1e3").unwrap(), @r"
        error: `--blkio-weight 1e3` is not a whole number

        hint: write a number from 10 to 1000
        ");
        for line in ["--image x -p", "run --label= x", "run --memory", "run --pids-limit= x", "run --workdir= x"] {
            let message = message(line).expect(line);
            assert!(message.contains("has no value"), "{line}: {message}");
        }
    }

    /// Returns all flags that take a value, with the path of their command.
    fn flags() -> Vec<(Vec<String>, clap::Arg)> {
        let mut all = Vec::new();
        let mut commands = vec![(Vec::new(), super::super::Cli::command())];
        while let Some((command_path, command)) = commands.pop() {
            let args =
                command.get_arguments().filter(|arg| arg.get_long().is_some() && arg.get_action().takes_values());
            all.extend(args.map(|arg| (command_path.clone(), arg.clone())));
            for command in command.get_subcommands() {
                commands.push(([command_path.clone(), vec![command.get_name().to_owned()]].concat(), command.clone()));
            }
        }
        all
    }

    fn said_of(command_path: &[String], flag: &str, value: &str) -> String {
        let args: Vec<OsString> =
            [command_path, &[format!("--{flag}={value}")]].concat().into_iter().map(OsString::from).collect();
        let error = super::super::parse(&crate::config::Config::default(), args.clone()).expect_err(flag);
        explain(&error, &args, &super::super::Cli::command())
            .unwrap_or_else(|| panic!("{args:?} is left to clap: {error}"))
            .to_string()
    }

    #[test]
    fn every_number_says_what_it_takes() {
        use std::any::TypeId;
        let whole = [TypeId::of::<i64>(), TypeId::of::<u64>(), TypeId::of::<i32>(), TypeId::of::<u32>()];
        let other = [TypeId::of::<u8>(), TypeId::of::<u16>(), TypeId::of::<usize>(), TypeId::of::<f32>()];
        let mut count = 0;
        for (command_path, arg) in flags() {
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
                let message = said_of(&command_path, flag, value);
                assert!(message.starts_with(&format!("error: `--{flag} {value}` {words_for}")), "{message}");
                assert!(message.contains("hint: write a "), "{message}");
            }
            let message = said_of(&command_path, flag, "99999999999999999999");
            assert!(message.contains("is outside of ") || message.contains("seconds from "), "{message}");
        }
        assert!(count > 20, "{count}");
    }

    #[test]
    fn no_limit_is_the_empty_text() {
        let limits = flags().into_iter().filter(|(command_path, arg)| {
            command_path.first().is_some_and(|typed| typed == "update")
                || arg.get_help_heading().is_some_and(|of| of.starts_with("Limits"))
        });
        let mut count = 0;
        for (command_path, arg) in limits.filter(|(_, arg)| !["root", "run-dir"].contains(&arg.get_long().unwrap())) {
            count += 1;
            let flag = arg.get_long().unwrap();
            let message = said_of(&command_path, flag, "");
            assert!(message.starts_with(&format!("error: `--{flag}` has no value\n")), "{command_path:?}: {message}");
        }
        assert!(count > 60, "{count}");
    }

    #[test]
    fn nothing_at_all_names_both_ways() {
        assert!(message("").unwrap().contains("gpurun run IMAGE COMMAND"));
    }

    #[test]
    fn tips_are_for_typing_errors_alone() {
        for (typed, name, want) in [
            ("imagse", "images", true),
            ("imges", "images", true),
            ("pss", "ps", true),
            ("pods", "ps", false),
            ("top", "token", false),
            ("--labl", "--label", true),
            ("--volume-driver", "--volume", false),
            ("", "ps", false),
        ] {
            assert_eq!(is_typo(typed, name), want, "{typed} {name}");
        }
        assert!(message("pods").unwrap().ends_with("hint: list the commands with `gpurun --help`"));
    }

    #[test]
    fn arguments_that_are_missing_superfluous_or_not_possible_are_named() {
        for (line, first) in [
            ("run", "error: `gpurun run` requires `<IMAGE>`"),
            ("image", "error: `gpurun image` requires a command"),
            ("ps x", "error: `gpurun ps` takes no argument `x`"),
            ("run --pull sometimes x", "error: `--pull sometimes` is not one of the possible values"),
        ] {
            let message = message(line).expect(line);
            assert!(message.lines().next() == Some(first) && message.contains("\nhint: "), "{line}: {message}");
        }
        assert_eq!(message("--image x"), None);
    }
}
