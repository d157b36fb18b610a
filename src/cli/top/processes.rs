//! `gpurun top CONTAINER [ps options]`: shows the processes of a container with this host's `ps`, as docker does.

use std::collections::BTreeSet;
use std::path::Path;
use std::process::{Command, Stdio};

use crate::cgroup::{Cgroup, Host};
use crate::cli::{Context, print};
use crate::record::Phase;
use crate::report::Report;

/// Prints the processes of the container `name`.
pub(super) fn show(name: &str, options: &[String], context: &Context) -> Result<u8, Report> {
    let entry = context.records()?.find(name)?;
    let (name, state) = (&entry.record.name, entry.state()?);
    let not_running = || {
        Report::new(format!("container `{name}` is not running"))
            .with_hint(format!("start it with `gpurun start {name}`"))
            .with_exit_code(1)
    };
    if state.phase != Phase::Running {
        return Err(not_running());
    }
    let host = Host::probe(Path::new("/"))?;
    let cgroup = Cgroup::open(&host, &entry.record.cgroup)?.ok_or_else(not_running)?;
    let pids: BTreeSet<i32> = cgroup.pids()?.into_iter().collect();
    let text = ps(options)?;
    let shown = select(&text, &pids).ok_or_else(|| {
        Report::usage("cannot find the container's processes: the output of `ps` has no column PID")
            .with_hint("add it: `gpurun top NAME -o pid,cmd`")
    })?;
    print::out(&shown)?;
    Ok(0)
}

/// Runs this host's `ps`.
fn ps(options: &[String]) -> Result<String, Report> {
    let default = ["-ef".to_owned()];
    let options = if options.is_empty() { &default[..] } else { options };
    let output = Command::new("ps").args(options).stdin(Stdio::null()).stderr(Stdio::piped()).output();
    let output = output.map_err(|error| {
        Report::new("cannot run `ps`").with_cause(error).with_hint("install it: `apt-get install procps`")
    })?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr).trim().to_owned();
        return Err(Report::usage(format!("`ps {}` failed", options.join(" ")))
            .with_cause(said)
            .with_hint("`man ps` lists the options"));
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Keeps the title and the lines of the processes. `None` if there is no column PID.
fn select(text: &str, pids: &BTreeSet<i32>) -> Option<String> {
    let mut lines = text.lines();
    let title = lines.next()?;
    let column = title.split_whitespace().position(|word| word == "PID")?;
    let is_own = |line: &&str| {
        let pid = line.split_whitespace().nth(column).and_then(|word| word.parse().ok());
        pid.is_some_and(|pid| pids.contains(&pid))
    };
    Some(std::iter::once(title).chain(lines.filter(is_own)).map(|line| format!("{line}\n")).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_lines_of_the_processes_are_kept() {
        let text = "UID          PID    PPID  CMD\nroot           1       0  init\nroot          42       1  sleep 1\n";
        let pids = [42, 7].into();
        assert_eq!(select(text, &pids).unwrap(), "UID          PID    PPID  CMD\nroot          42       1  sleep 1\n");
        assert_eq!(select("RSS CMD\n1 x\n", &pids), None);
    }
}
