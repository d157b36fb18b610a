//! The tasks of the step on this node: their processes and their cgroups.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::cgroup::{Hierarchy, Host};
use crate::cluster::Step;
use crate::report::Report;
use crate::spec::Limits;
use crate::sys::file::read_text;
use crate::sys::process;

/// The cgroup of gpurun's processes that end after a step.
const OUTSIDE: &str = "/gpurun/supervisors";
/// How long killed processes have to end.
const END: Duration = Duration::from_secs(10);

#[derive(Debug, Default)]
pub(super) struct Tasks {
    pids: Vec<i32>,
    processes: Vec<OwnedFd>,
    /// The list of the first task's cgroups (cgroups(7)).
    cgroups: String,
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
        if self.cgroups.is_empty() {
            self.cgroups = read_text(format!("/proc/{pid}/cgroup")).map_err(failed)?;
        }
        Ok(())
    }

    /// The processes, for a wait that their end ends.
    pub(super) fn processes(&self) -> &[OwnedFd] {
        &self.processes
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

    fn directories(&self) -> Result<Vec<PathBuf>, Report> {
        let host = Host::probe(Path::new("/"))?;
        let mut dirs = Vec::new();
        for line in self.cgroups.lines() {
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

    /// Kills the tasks and all other processes of the step. When slurmstepd was killed, nothing else ends them.
    pub(super) fn kill(&self) {
        for process in &self.processes {
            let _ = process::signal(process, libc::SIGKILL);
        }
        for dir in self.step_directories() {
            kill_below(&dir);
        }
        for process in &self.processes {
            process::wait_pidfd(process, END);
        }
    }

    /// Removes the empty cgroups of the step, whose daemon was killed. This process leaves them first.
    pub(super) fn remove_step(&self) {
        let (Some(step), Ok(host)) = (Step::parse(&self.cgroups), Host::probe(Path::new("/"))) else { return };
        if let Ok(outside) = host.make(OUTSIDE, &Limits::default()) {
            for file in outside.entry_files() {
                let _ = fs::write(file, "0");
            }
        }
        host.remove_step(&step.place("none"));
    }

    /// The cgroups of the step, in all hierarchies in which it has one.
    fn step_directories(&self) -> Vec<PathBuf> {
        let is_step = |dir: &Path| dir.file_name().is_some_and(|name| name.to_string_lossy().starts_with("step_"));
        let dirs = self.directories().unwrap_or_default();
        dirs.iter().filter_map(|dir| dir.ancestors().find(|above| is_step(above)).map(Path::to_owned)).collect()
    }
}

/// Kills all processes in a cgroup and below it, except this one.
fn kill_below(dir: &Path) {
    let own = std::process::id() as i32;
    for pid in read_text(dir.join("cgroup.procs")).unwrap_or_default().lines().filter_map(|line| line.parse().ok()) {
        if pid != own
            && let Ok(process) = process::open_pidfd(pid)
        {
            let _ = process::signal(&process, libc::SIGKILL);
        }
    }
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            kill_below(&entry.path());
        }
    }
}
