//! The tasks of the step on this node: their processes and their cgroups.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Seek, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::Pid;

use crate::cgroup::{Hierarchy, Host};
use crate::cluster::Step;
use crate::gpu;
use crate::report::{EXIT_GPURUN, Report};
use crate::spec::Limits;
use crate::sys::file::read_text;
use crate::sys::process::{self, Fork};

/// The cgroup of gpurun's processes that end after a step.
const OUTSIDE: &str = "/gpurun/supervisors";
/// How long killed processes have to end.
const END: Duration = Duration::from_secs(10);

#[derive(Debug, Default)]
pub(super) struct Tasks {
    pids: Vec<i32>,
    processes: Vec<OwnedFd>,
    /// The list of each task's cgroups (cgroups(7)).
    cgroups: Vec<String>,
}

impl Tasks {
    pub(super) fn len(&self) -> usize {
        self.pids.len()
    }

    pub(super) fn add(&mut self, pid: i32) -> Result<(), Report> {
        let failed =
            |error: io::Error| Report::new(format!("cannot find the task with the pid {pid}")).with_cause(error);
        self.pids.push(pid);
        // A task that has ended needs nothing.
        match process::open_pidfd(pid) {
            Ok(fd) => self.processes.push(fd),
            Err(error) if error.raw_os_error() == Some(libc::ESRCH) => return Ok(()),
            Err(error) => return Err(failed(error)),
        }
        self.cgroups.push(read_text(format!("/proc/{pid}/cgroup")).map_err(failed)?);
        Ok(())
    }

    /// Waits for a child and returns its exit status, or 125 if a signal has ended it. Kills it when all tasks have ended
    /// before: Slurm waits for this process, and the user may have stopped a child with the user's credentials.
    pub(super) fn wait_for(&self, pid: i32) -> Result<i32, Report> {
        let failed = |error: io::Error| Report::new("cannot wait for a process of gpurun").with_cause(error);
        let child = process::open_pidfd(pid).map_err(failed)?;
        let mut others: Vec<&OwnedFd> = self.processes.iter().collect();
        let is_cancelled = loop {
            if others.is_empty() {
                let _ = process::signal(&child, libc::SIGKILL);
                break true;
            }
            let fds = std::iter::once(&child).chain(others.iter().copied());
            let mut fds: Vec<PollFd<'_>> = fds.map(|fd| PollFd::new(fd.as_fd(), PollFlags::POLLIN)).collect();
            match poll(&mut fds, PollTimeout::NONE) {
                Err(Errno::EINTR) => continue,
                Err(errno) => return Err(failed(errno.into())),
                Ok(_) => {}
            }
            if fds[0].any().unwrap_or(true) {
                break false;
            }
            let ended: Vec<bool> = fds[1..].iter().map(|fd| fd.any().unwrap_or(true)).collect();
            let mut ended = ended.iter();
            others.retain(|_| !ended.next().copied().unwrap_or_default());
        };
        if is_cancelled {
            end_killed(&child, pid);
            return Err(Report::new("the step has ended before its container was ready"));
        }
        Ok(end_of(Pid::from_raw(pid)))
    }

    /// Whether all tasks have ended.
    pub(super) fn have_ended(&self) -> bool {
        self.processes.iter().all(|process| process::wait_pidfd(process, Duration::ZERO))
    }

    /// Opens the files with which a process enters the cgroups of the step. Under version 1, those of the step are above
    /// the tasks', and allow the devices of all of them. Under version 2, only the tasks' have a device filter.
    pub(super) fn entrance(&self) -> Result<Vec<File>, Report> {
        let dirs = self.directories()?;
        let open = |dir: &PathBuf| OpenOptions::new().write(true).open(dir.join("cgroup.procs"));
        dirs.iter()
            .map(open)
            .collect::<io::Result<Vec<_>>>()
            .map_err(|error| Report::new("cannot enter the cgroups of the Slurm step").with_cause(error))
    }

    fn first_cgroups(&self) -> &str {
        self.cgroups.first().map_or("", String::as_str)
    }

    /// Returns the nodes that tasks after the first one may open, given all nodes of GPUs. Under version 1, the
    /// container is in a cgroup whose filter allows the devices of all tasks.
    pub(super) fn nodes_of_others(&self, nodes: &[(String, PathBuf)]) -> Result<Vec<String>, Report> {
        let failed = |error: io::Error| Report::new("cannot find the GPUs of the tasks").with_cause(error);
        let host = Host::probe(Path::new("/"))?;
        let Hierarchy::V2 { mount } = &host.hierarchy else { return Ok(Vec::new()) };
        let mut found = vec![false; nodes.len()];
        for cgroups in self.cgroups.iter().skip(1) {
            let Some(path) = cgroups.lines().find_map(|line| line.strip_prefix("0::/")) else { continue };
            // Slurm removes the cgroup of a task that has ended.
            let Ok(cgroup) = File::open(mount.join(path)) else { continue };
            for (at, node) in self.allowed_in(&cgroup, nodes).map_err(failed)?.into_iter().enumerate() {
                found[at] |= node;
            }
        }
        Ok(nodes.iter().zip(found).filter(|(_, found)| *found).map(|((name, _), _)| name.clone()).collect())
    }

    /// Returns which nodes a process in a cgroup of version 2 may open.
    fn allowed_in(&self, cgroup: &File, nodes: &[(String, PathBuf)]) -> io::Result<Vec<bool>> {
        let answer = process::memory_file(c"nodes", b"")?;
        match process::fork_into(cgroup.as_fd(), false)? {
            Fork::Child => {
                let bytes: Vec<u8> = nodes.iter().map(|(_, path)| u8::from(gpu::step::may_open(path))).collect();
                process::exit_now(i32::from(File::from(answer).write_all(&bytes).is_err()))
            }
            Fork::Parent(pid) => {
                self.wait_for(pid).map_err(|report| io::Error::other(report.message))?;
                let mut bytes = Vec::new();
                let mut answer = File::from(answer);
                answer.rewind()?;
                answer.read_to_end(&mut bytes)?;
                Ok(bytes.into_iter().map(|byte| byte == 1).collect())
            }
        }
    }

    fn directories(&self) -> Result<Vec<PathBuf>, Report> {
        let host = Host::probe(Path::new("/"))?;
        let mut dirs = Vec::new();
        for line in self.first_cgroups().lines() {
            let Some((names, path)) = line.split_once(':').and_then(|(_, rest)| rest.split_once(':')) else { continue };
            let (mount, is_v1) = match &host.hierarchy {
                Hierarchy::V1 { controllers, .. } if !names.is_empty() => {
                    (names.split(',').find_map(|name| controllers.get(name)), true)
                }
                Hierarchy::V1 { unified, .. } => (unified.as_ref(), true),
                Hierarchy::V2 { mount } => (names.is_empty().then_some(mount), false),
            };
            let Some(mount) = mount else { continue };
            let path = if is_v1 { path.split_once("/task_").map_or(path, |(step, _)| step) } else { path };
            dirs.push(mount.join(path.trim_start_matches('/')));
        }
        Ok(dirs)
    }

    /// Kills the tasks. When slurmstepd was killed, nothing else ends them.
    pub(super) fn kill(&self) {
        for process in &self.processes {
            let _ = process::signal(process, libc::SIGKILL);
        }
    }

    /// Kills all other processes of the step, whose daemon was killed, and removes its cgroups. This process leaves them
    /// first.
    pub(super) fn end_step(&self) {
        let (Some(step), Ok(host)) = (Step::parse(self.first_cgroups()), Host::probe(Path::new("/"))) else { return };
        if let Ok(outside) = host.make(OUTSIDE, &Limits::default()) {
            for file in outside.entry_files() {
                let _ = fs::write(file, "0");
            }
        }
        host.end_step(&step.place("none"), END);
        host.remove_job(&step.place("none"), END);
    }
}

/// Waits for a child that was killed. A file system of the user may keep it for any time (fuse), so this does not.
pub(super) fn end_killed(child: &OwnedFd, pid: i32) {
    if process::wait_pidfd(child, END) {
        end_of(Pid::from_raw(pid));
    }
}

/// Waits for a child, and returns its exit status, or 125.
pub(super) fn end_of(child: Pid) -> i32 {
    loop {
        match waitpid(child, None) {
            Err(Errno::EINTR) => {}
            Ok(WaitStatus::Exited(_, code)) => return code,
            Ok(_) | Err(_) => return i32::from(EXIT_GPURUN),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    #[test]
    fn a_stopped_child_is_not_waited_for_after_the_tasks() {
        let spawn = |line: &str| Command::new("sh").args(["-c", line]).spawn().unwrap();
        let mut task = spawn("sleep 0.1");
        let tasks = Tasks { processes: vec![process::open_pidfd(task.id() as i32).unwrap()], ..Tasks::default() };
        assert_eq!(tasks.wait_for(spawn("exit 7").id() as i32).unwrap(), 7);
        let report = tasks.wait_for(spawn("kill -STOP $$").id() as i32).unwrap_err();
        assert!(report.message.contains("the step has ended"), "{}", report.message);
        task.wait().unwrap();
        assert!(Tasks::default().wait_for(spawn("sleep 1000").id() as i32).is_err());
    }
}
