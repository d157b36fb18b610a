//! Runs other gpurun commands for `compose`, each in a process of its own.
//!
//! A container of a service is started by the same command line as any other: `run -d …`. The arguments reach the new
//! process through a pipe and not through its command line, because every user of the host can read the latter, and the
//! values of variables are often secrets. Separate processes also start containers in parallel without sharing locks.

use std::ffi::OsString;
use std::io::{Read, Seek, Write};
use std::process::{Child, Command, Stdio};

use super::super::Context;
use crate::report::{EXIT_GPURUN, Report};

/// The name of the internal command. Its arguments are a JSON list on standard input.
pub(in crate::cli) const NAME: &str = "compose-child";
/// Longest list of arguments that is read.
const MAX: u64 = 64 << 20;

/// Returns the arguments that a process with the internal command was given: from the descriptor that its argument names,
/// or from standard input.
pub(in crate::cli) fn arguments() -> Result<Vec<OsString>, Report> {
    let failed =
        |error: &dyn std::fmt::Display| Report::new("cannot read the arguments of a service").with_cause(error);
    let mut text = String::new();
    let number = std::env::args().nth(2).and_then(|text| text.parse().ok());
    match number.and_then(crate::sys::process::take_inherited_fd) {
        Some(fd) => std::fs::File::from(fd).take(MAX).read_to_string(&mut text),
        None => std::io::stdin().take(MAX).read_to_string(&mut text),
    }
    .map_err(|error| failed(&error))?;
    let list: Vec<String> = serde_json::from_str(&text).map_err(|error| failed(&error))?;
    Ok(list.into_iter().map(OsString::from).collect())
}

/// What a command printed, and how it ended.
#[derive(Debug)]
pub(super) struct Done {
    pub(super) code: u8,
    pub(super) out: String,
    pub(super) err: String,
}

impl Done {
    /// Returns the output, or the command's error as a report.
    pub(super) fn check(self) -> Result<Self, Report> {
        if self.code == 0 { Ok(self) } else { Err(report(&self.err, self.code)) }
    }
}

/// Runs a command and collects its output.
pub(super) fn run(context: &Context, arguments: &[String]) -> Result<Done, Report> {
    let mut child = start(Stdio::piped(), Stdio::piped())?;
    let failed = |error: std::io::Error| Report::new("cannot run gpurun for a service").with_cause(error);
    feed(&mut child, context, arguments).map_err(failed)?;
    let output = child.wait_with_output().map_err(failed)?;
    Ok(Done {
        code: code(output.status),
        out: String::from_utf8_lossy(&output.stdout).into_owned(),
        err: String::from_utf8_lossy(&output.stderr).into_owned(),
    })
}

/// Runs a command that passes on what a container prints, and returns the beginning of its output. A hostile container may
/// print without end.
pub(super) fn run_bounded(context: &Context, arguments: &[String], limit: u64) -> Result<String, Report> {
    let failed = |error: std::io::Error| Report::new("cannot run gpurun for a service").with_cause(error);
    let mut child = start(Stdio::piped(), Stdio::null())?;
    feed(&mut child, context, arguments).map_err(failed)?;
    let mut bytes = Vec::new();
    if let Some(stdout) = child.stdout.take() {
        stdout.take(limit).read_to_end(&mut bytes).map_err(failed)?;
    }
    // The reading end is closed now, so that a command that prints more ends. One that waits is ended.
    let _ = child.kill();
    child.wait().map_err(failed)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// Runs a command whose messages and progress the caller sees. It gets the terminal's ctrl-c, like this process.
pub(super) fn run_shown(context: &Context, arguments: &[String]) -> Result<u8, Report> {
    let mut child = spawn(&mut command(Stdio::null(), Stdio::inherit()))?;
    let failed = |error: std::io::Error| Report::new("cannot run gpurun for a service").with_cause(error);
    feed(&mut child, context, arguments).map_err(failed)?;
    Ok(code(child.wait().map_err(failed)?))
}

/// Starts a command whose output the caller reads. It is in a process group of its own, so that ctrl-c reaches only
/// this command, which ends it.
pub(super) fn follow(context: &Context, arguments: &[String]) -> Result<Child, Report> {
    let mut child = start(Stdio::piped(), Stdio::piped())?;
    feed(&mut child, context, arguments)
        .map_err(|error| Report::new("cannot run gpurun for a service").with_cause(error))?;
    Ok(child)
}

/// Replaces this process by a command that takes the caller's terminal.
pub(super) fn replace(context: &Context, arguments: &[String]) -> Report {
    use std::os::unix::process::CommandExt;
    let mut command = Command::new("/proc/self/exe");
    command.args(globals(context)).args(arguments);
    Report::new("cannot run gpurun for a service").with_cause(command.exec())
}

/// Does the same, without showing the arguments to other users of the host.
pub(super) fn replace_hidden(context: &Context, arguments: &[String]) -> Report {
    use std::os::fd::AsRawFd;
    use std::os::unix::process::CommandExt;
    let failed = |error: std::io::Error| Report::new("cannot run gpurun for a service").with_cause(error);
    let prepare = || -> std::io::Result<std::fs::File> {
        // The new process inherits this descriptor, so it is not closed on exec.
        let mut file =
            std::fs::File::from(nix::sys::memfd::memfd_create(c"arguments", nix::sys::memfd::MFdFlags::empty())?);
        file.write_all(&serde_json::to_vec(&with_globals(context, arguments))?)?;
        file.seek(std::io::SeekFrom::Start(0))?;
        Ok(file)
    };
    match prepare() {
        Ok(file) => failed(Command::new("/proc/self/exe").arg(NAME).arg(file.as_raw_fd().to_string()).exec()),
        Err(error) => failed(error),
    }
}

fn with_globals(context: &Context, arguments: &[String]) -> Vec<String> {
    let globals = globals(context).into_iter().map(|text| text.to_string_lossy().into_owned());
    globals.chain(arguments.iter().cloned()).collect()
}

fn globals(context: &Context) -> Vec<OsString> {
    let mut all: Vec<OsString> = vec!["--root".into(), context.root.clone().into()];
    all.extend(["--run-dir".into(), context.run_dir.clone().into()]);
    if context.verbose {
        all.push("--verbose".into());
    }
    all
}

/// Starts a command in a process group of its own, which the terminal's ctrl-c does not reach.
fn start(out: Stdio, err: Stdio) -> Result<Child, Report> {
    use std::os::unix::process::CommandExt;
    spawn(command(out, err).process_group(0))
}

fn command(out: Stdio, err: Stdio) -> Command {
    let mut command = Command::new("/proc/self/exe");
    command.arg(NAME).stdin(Stdio::piped()).stdout(out).stderr(err);
    command
}

fn spawn(command: &mut Command) -> Result<Child, Report> {
    command.spawn().map_err(|error| Report::new("cannot run gpurun for a service").with_cause(error))
}

fn feed(child: &mut Child, context: &Context, arguments: &[String]) -> std::io::Result<()> {
    let Some(mut stdin) = child.stdin.take() else { return Ok(()) };
    stdin.write_all(&serde_json::to_vec(&with_globals(context, arguments))?)
}

fn code(status: std::process::ExitStatus) -> u8 {
    use std::os::unix::process::ExitStatusExt;
    let code = status.code().or_else(|| status.signal().map(|signal| 128 + signal));
    code.and_then(|code| u8::try_from(code).ok()).unwrap_or(EXIT_GPURUN)
}

/// Reads back a report that a command printed.
fn report(text: &str, code: u8) -> Report {
    let (mut found, mut notices) = (None::<Report>, Vec::new());
    for line in text.lines() {
        if let Some(message) = line.strip_prefix("error: ") {
            found = Some(Report::new(message).with_exit_code(code));
        } else if let Some(report) = &mut found {
            if let Some(cause) = line.strip_prefix("  caused by: ") {
                report.causes.push(cause.to_owned());
            } else if let Some(later) = line.strip_prefix("  while cleaning up: ") {
                report.afterwards.push(later.to_owned());
            } else if let Some(hint) = line.strip_prefix("hint: ") {
                report.hint = Some(hint.to_owned());
            } else if let (Some(last), false) = (report.causes.last_mut(), line.trim().is_empty()) {
                last.push('\n');
                last.push_str(line.trim());
            }
        } else {
            notices.push(line);
        }
    }
    found.unwrap_or_else(|| {
        let last = notices.iter().rev().find(|line| !line.trim().is_empty());
        Report::new(last.map_or_else(|| format!("the command ended with status {code}"), |line| (*line).to_owned()))
            .with_exit_code(code)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_printed_report_is_read_back() {
        let report_before = Report::new("cannot start `x`").with_cause("a\nb").with_cause("c").with_hint("try `y`");
        let text = format!("gpurun: a notice\n{report_before}\n");
        assert_eq!(report(&text, 125), report_before);
        assert_eq!(report("Killed\n", 137).message, "Killed");
        assert_eq!(report("", 137).message, "the command ended with status 137");
    }
}
