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
        ErrorKind::TooManyValues if args.iter().any(|arg| arg.starts_with("--password=")) => Some(password()),
        _ => None,
    }
}

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
