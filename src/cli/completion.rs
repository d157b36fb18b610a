//! `gpurun completion SHELL`, and `gpurun man DIR` for packagers. Both are generated from the definitions that `--help`
//! uses.

use std::path::PathBuf;

use clap::Args;
use clap_complete::Shell;

use super::print;
use crate::report::Report;

#[derive(Debug, Args)]
#[command(after_help = "Install the output where the shell looks for it, for example:\n  \
    gpurun completion bash > /etc/bash_completion.d/gpurun\n  \
    gpurun completion zsh > /usr/local/share/zsh/site-functions/_gpurun\n  \
    gpurun completion fish > /etc/fish/completions/gpurun.fish")]
pub(super) struct CompletionArgs {
    /// Shell to write the completion script for
    #[arg(value_name = "SHELL")]
    shell: Shell,
}

/// Prints the script for the complete command line.
pub(super) fn run(args: &CompletionArgs, command: &mut clap::Command) -> Result<u8, Report> {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, command, "gpurun", &mut script);
    print::out(&String::from_utf8_lossy(&script))?;
    Ok(0)
}

#[derive(Debug, Args)]
pub(super) struct ManArgs {
    /// Existing directory to write the pages to: `gpurun.1` and one page per command
    #[arg(value_name = "DIR")]
    dir: PathBuf,
}

pub(super) fn man(args: &ManArgs, command: clap::Command) -> Result<u8, Report> {
    clap_mangen::generate_to(command.disable_help_subcommand(true), &args.dir).map_err(|error| {
        Report::new(format!("cannot write the man pages to `{}`", args.dir.display())).with_cause(error)
    })?;
    Ok(0)
}

#[cfg(test)]
mod tests {
    use super::super::command;
    use super::*;

    #[test]
    fn every_command_has_a_man_page_with_its_flags() {
        let dir = tempfile::tempdir().unwrap();
        man(&ManArgs { dir: dir.path().to_owned() }, command()).unwrap();
        let page = |name: &str| std::fs::read_to_string(dir.path().join(name)).unwrap();
        for command in command().get_subcommands().filter(|command| !command.is_hide_set()) {
            let text = page(&format!("gpurun-{}.1", command.get_name()));
            assert!(text.contains(".SH SYNOPSIS"), "{text}");
        }
        assert!(page("gpurun-run.1").contains("cpuset\\-cpus"));
        assert!(page("gpurun-image-pull.1").contains("tls\\-verify"));
        assert!(man(&ManArgs { dir: dir.path().join("missing") }, command()).is_err());
    }

    #[test]
    fn each_shells_script_names_the_commands() {
        for shell in [Shell::Bash, Shell::Zsh, Shell::Fish] {
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut command(), "gpurun", &mut script);
            let script = String::from_utf8(script).unwrap();
            for word in ["doctor", "--cpuset-cpus", "inspect"] {
                assert!(script.contains(word.trim_start_matches('-')), "{shell}: {word}");
            }
        }
    }
}
