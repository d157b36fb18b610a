//! Tests that apply to the `--help` of every command, including commands that are added later.

use std::collections::{BTreeMap, BTreeSet};

use clap::error::ErrorKind;
use clap::{Args, Command};

use super::{command, flags, image, jupyter, parse};

/// Returns every command with its full name, starting with the bare launch.
fn all() -> Vec<(String, Command)> {
    let mut root = command().term_width(80);
    root.build();
    let mut open = vec![(String::new(), root)];
    let mut all = Vec::new();
    while let Some((path, command)) = open.pop() {
        for sub in command.get_subcommands().filter(|sub| sub.get_name() != "help") {
            open.push((format!("{path} {}", sub.get_name()).trim().to_owned(), sub.clone()));
        }
        all.push((path, command));
    }
    all.reverse();
    assert!(all.len() > 45, "{}", all.len());
    all
}

/// One long help text gives all flags of a command three lines each.
#[test]
fn every_help_has_the_short_layout() {
    for (path, command) in all() {
        for arg in command.get_arguments() {
            let explained = arg.get_possible_values().iter().any(|value| value.get_help().is_some());
            assert!(!explained && arg.get_long_help().is_none(), "gpurun {path} {}", arg.get_id());
        }
    }
}

#[test]
fn every_argument_and_command_has_plain_help() {
    const DIALECT: [&str; 16] = [
        "somebody",
        "nobody",
        " told",
        " lies",
        " stands",
        "way out",
        "by hand",
        "in good order",
        " ids",
        " id ",
        "anew",
        "take away",
        "takes away",
        "person",
        "in force",
        " word ",
    ];
    let check = |what: String, text: Option<String>| {
        let text = text.unwrap_or_else(|| panic!("{what} has no help"));
        assert!(!text.ends_with('.'), "{what}: a final period: {text}");
        let first = text.chars().next().unwrap();
        assert!(first.is_uppercase() || first == '`', "{what}: {text}");
        for word in DIALECT {
            assert!(!text.contains(word), "{what}: `{word}` in: {text}");
        }
    };
    for (path, command) in all() {
        check(format!("gpurun {path}"), command.get_about().map(ToString::to_string));
        for arg in command.get_arguments().filter(|arg| !arg.is_hide_set()) {
            check(format!("gpurun {path} {}", arg.get_id()), arg.get_help().map(ToString::to_string));
        }
    }
}

#[test]
fn positional_arguments_have_upper_case_names() {
    for (path, command) in all() {
        for arg in command.get_positionals() {
            let names = arg.get_value_names().unwrap_or_default();
            let good = |name: &str| {
                name.chars().any(char::is_uppercase) && name != "COMMAND"
                    || ["run", "create", "exec", "compose run", "compose exec"].contains(&path.as_str())
            };
            assert!(names.iter().all(|name| good(name)), "gpurun {path} {}: {names:?}", arg.get_id());
        }
    }
}

/// A heading contains only the flags of its own group, and no flag that happens to be declared after it.
#[test]
fn headings_hold_their_own_flags_alone() {
    let mut groups: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    let empty = || Command::new("x");
    for group in [
        flags::ContainerFlags::augment_args(empty()),
        jupyter::JupyterArgs::augment_args(empty()),
        image::RegistryFlags::augment_args(empty()),
        super::Globals::augment_args(empty()),
    ] {
        for arg in group.get_arguments() {
            if let Some(heading) = arg.get_help_heading() {
                groups.entry(heading.to_owned()).or_default().insert(arg.get_id().to_string());
            }
        }
    }
    for (path, command) in all() {
        for arg in command.get_arguments() {
            let Some(heading) = arg.get_help_heading() else { continue };
            assert!(!arg.is_positional(), "gpurun {path}: {} under `{heading}`", arg.get_id());
            assert!(
                groups[heading].contains(arg.get_id().as_str()),
                "gpurun {path}: {} under `{heading}`",
                arg.get_id()
            );
        }
    }
}

#[test]
fn help_fits_80_columns() {
    for (path, mut command) in all() {
        for text in [command.render_help(), command.render_long_help()].map(|text| text.to_string()) {
            for line in text.lines() {
                assert!(line.chars().count() <= 80, "gpurun {path}: {line}");
            }
        }
    }
}

/// A paragraph is one source line, which clap wraps. An example is one line that needs no wrapping.
#[test]
fn what_follows_the_help_has_no_line_breaks_of_its_own() {
    for (path, mut command) in all() {
        let rendered = command.render_help().to_string();
        let text = command.get_after_help().map(ToString::to_string).unwrap_or_default();
        for (line, next) in text.lines().zip(text.lines().skip(1).chain([""])) {
            assert!(!line.starts_with("  ") || rendered.contains(line), "gpurun {path}: wrapped: {line}");
            let breaks = !line.is_empty() && !line.ends_with(':') && !line.starts_with(' ') && !next.is_empty();
            assert!(!breaks, "gpurun {path}: broken after: {line}");
        }
    }
}

#[test]
fn short_and_long_help_work_everywhere() {
    for (path, _) in all() {
        for flag in ["-h", "--help"] {
            let args = path.split_whitespace().chain([flag]).map(Into::into).collect();
            let error = parse(&crate::config::Config::default(), args).expect_err("help is an error to clap");
            assert_eq!(error.kind(), ErrorKind::DisplayHelp, "gpurun {path} {flag}: {error}");
        }
    }
}

#[test]
fn a_configured_total_of_swap_belongs_to_the_configured_memory() {
    let config = crate::config::Config::parse("[limits]\nmemory = \"1g\"\nmemory-swap = \"2g\"").unwrap();
    let parsed = |args: &[&str]| {
        let args = args.iter().map(std::ffi::OsString::from).collect();
        let command = parse(&config, args).unwrap().command;
        let Some(super::Command::Run(run)) = command else { panic!("not a run") };
        run.check().unwrap().limits
    };
    let bytes = |limits: &crate::request::LimitsRequest| limits.memory.as_ref().map(|size| size.bytes);
    let configured = parsed(&["run", "box"]);
    assert_eq!((bytes(&configured), configured.memory_swap.is_some()), (Some(1 << 30), true));
    let given = parsed(&["run", "--memory", "8g", "box"]);
    assert_eq!((bytes(&given), given.memory_swap), (Some(8 << 30), None));
    let both = parsed(&["run", "--memory", "8g", "--memory-swap", "9g", "box"]);
    assert_eq!((bytes(&both), both.memory_swap.is_some()), (Some(8 << 30), true));
}
