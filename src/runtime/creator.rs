//! A short-lived process that enters the container's cgroup and creates the container from there.
//!
//! libcontainer's own way into the cgroup scans the mount table for each controller, and then waits for a grace period
//! of the kernel (see `cgroup::Entrance`). A process inherits the cgroup of the one that creates it. So this
//! process enters first, and libcontainer, which it runs, finds a cgroup file that does nothing: in a mount namespace
//! of this process, `/sys/fs/cgroup` is a mount of version 2 whose `cgroup.procs` is the null device. On a host with
//! version 2 only, the process is created in the cgroup, and only that file is replaced.
//!
//! It also enters those of the container's namespaces that sysfs and mqueue depend on, and makes these mounts with far
//! fewer system calls than libcontainer.
//!
//! Both processes that libcontainer creates are children of the supervisor (CLONE_PARENT), so this one is never the
//! parent of the container. It dies with the supervisor (PDEATHSIG).
//!
//! Hooks would run in the container's cgroup, and see the changed mounts. A container with hooks is created by the
//! supervisor itself. So is one with a mount that libcontainer makes from a directory of the host, and any container
//! where the host refuses the mounts over `/sys/fs/cgroup`, as a nested container may.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::AsFd;
use std::path::Path;

use nix::mount::MsFlags;
use nix::sched::CloneFlags;
use nix::sys::statfs::CGROUP2_SUPER_MAGIC;
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::Pid;
use serde::{Deserialize, Serialize};

use super::early::CGROUPS;
use super::error::{Cause, Relayed};
use super::inner::Inner;
use super::late::Late;
use super::{RuntimeError, pipes};
use crate::cgroup::OpenEntrance;
use crate::spec::Process;
use crate::sys::process::{self, Fork};

/// Where a host with the controllers of version 1 has mounted version 2, if at all.
const UNIFIED: &str = "/sys/fs/cgroup/unified";

/// The step that a host may refuse. libcontainer then puts the container into its cgroup.
const HIDE: &str = "prepare the cgroup mounts that the runtime sees";

/// What the process reports.
#[derive(Debug, Serialize, Deserialize)]
enum Report {
    /// The pid of the container's first process.
    Created(i32),
    /// libcontainer's error, with its causes.
    Failed(Vec<String>),
    /// The mounts over the cgroups are refused. Nothing was done.
    Refused,
    /// A step before libcontainer.
    Step(String, i32),
}

/// Why no container was created.
#[derive(Debug)]
pub(super) enum Failed {
    Runtime(Cause),
    Own(RuntimeError),
}

/// Runs `work`, which creates the container and returns its pid, in a process of the cgroup. Returns `None` where the
/// host refuses the mounts that this needs; nothing has been done then. The caller must be single-threaded.
pub(super) fn create(
    inner: &mut Inner,
    process: &Process,
    work: impl FnOnce(&Inner, Option<Late>) -> Result<i32, Cause>,
) -> Result<Option<i32>, Failed> {
    let sys = |what: &'static str| move |error: io::Error| Failed::Own(RuntimeError::Sys(what, error));
    // As libcontainer does to the process in which it runs: no process of the container can read the supervisor's
    // memory.
    process::set_undumpable().map_err(sys("hide gpurun's own process"))?;
    let (mut reader, writer) = pipes::pipe().map_err(Failed::Own)?;
    let supervisor = nix::unistd::getpid();
    let dir = inner.open_entrance_dir().map_err(sys("open the container's cgroup"))?;
    let forked = match &dir {
        // Where the kernel cannot create a process in a cgroup, libcontainer moves one.
        Some(dir) => process::fork_into(dir.as_fd(), false).ok(),
        None => Some(process::fork(false).map_err(sys("start the process that creates the container"))?),
    };
    // No process of the container may inherit it.
    drop(dir);
    let Some(forked) = forked else { return Ok(None) };
    match forked {
        Fork::Child => {
            let report = match prepare(inner, process, supervisor) {
                Ok(late) => work(inner, late).map_or_else(|error| Report::Failed(chain(&*error)), Report::Created),
                Err((HIDE, _)) => Report::Refused,
                Err((step, error)) => Report::Step(step.into(), error.raw_os_error().unwrap_or(libc::EIO)),
            };
            let written = serde_json::to_vec(&report).map(|bytes| File::from(writer).write_all(&bytes));
            process::exit_now(i32::from(!matches!(written, Ok(Ok(())))))
        }
        Fork::Parent(pid) => {
            drop(writer);
            let ended = waitpid(Pid::from_raw(pid), None);
            // The container's first process holds the pipe open, too. The report is in it, or there is none.
            process::set_nonblocking(&reader).map_err(sys("read from a pipe"))?;
            let mut bytes = Vec::new();
            let _ = reader.read_to_end(&mut bytes);
            match serde_json::from_slice(&bytes) {
                Ok(Report::Created(pid)) => Ok(Some(pid)),
                Ok(Report::Refused) => Ok(None),
                Ok(Report::Failed(chain)) => Err(Failed::Runtime(Relayed::new(chain).into())),
                Ok(Report::Step(step, errno)) => {
                    Err(Failed::Own(RuntimeError::Enter { step, source: io::Error::from_raw_os_error(errno) }))
                }
                Err(_) => Err(Failed::Runtime(Relayed::new(vec![early_end(ended)]).into())),
            }
        }
    }
}

fn early_end(ended: nix::Result<WaitStatus>) -> String {
    let how = match ended {
        Ok(WaitStatus::Signaled(_, signal, _)) => format!("was ended by {signal}"),
        _ => "ended early".to_owned(),
    };
    format!("the process that creates the container {how}")
}

fn chain(error: &dyn std::error::Error) -> Vec<String> {
    // The clean-up fails, because libcontainer cannot remove the cgroup that it sees.
    let text = |error: &dyn std::error::Error| {
        let text = error.to_string();
        text.split(". error during cleanup: ").next().unwrap_or_default().to_owned()
    };
    std::iter::successors(Some(error), |error| error.source()).map(text).collect()
}

/// The steps of the new process before libcontainer. Returns the steps that the container's first process does late, or
/// the one that failed.
fn prepare(inner: &mut Inner, container: &Process, supervisor: Pid) -> Result<Option<Late>, (&'static str, io::Error)> {
    let step = |step: &'static str| move |error: io::Error| (step, error);
    let tie = || {
        process::set_parent_death_signal(libc::SIGKILL)?;
        // A supervisor that died before this sends no signal.
        if nix::unistd::getppid() == supervisor { Ok(()) } else { Err(io::Error::from_raw_os_error(libc::ESRCH)) }
    };
    tie().map_err(step("tie the process that creates the container to its supervisor"))?;
    if !inner.has_sets() {
        return Err((HIDE, io::ErrorKind::Unsupported.into()));
    }
    let entrance = inner.open_entrance().map_err(step("open the container's cgroup"))?;
    inner.begin().map_err(step("enter the container's namespaces"))?;
    hide_cgroups().map_err(step(HIDE))?;
    inner.mount();
    let late = inner.take_late(container).map_err(step("prepare the steps of the container's first process"))?;
    inner.write().map_err(step("write the spec for the runtime"))?;
    // Last, because the container's limits apply from here on.
    entrance.map_or(Ok(()), OpenEntrance::enter).map_err(step("enter the container's cgroup"))?;
    Ok(late)
}

/// Makes libcontainer find a cgroup of version 2 in which it can put a process without any effect.
fn hide_cgroups() -> io::Result<()> {
    // The supervisor's mounts are slaves of the host's, and so are their copies: nothing propagates to other
    // namespaces.
    nix::sched::unshare(CloneFlags::CLONE_NEWNS)?;
    let none = None::<&Path>;
    let is_v2 =
        |path: &str| nix::sys::statfs::statfs(path).is_ok_and(|about| about.filesystem_type() == CGROUP2_SUPER_MAGIC);
    // A new mount waits until removed cgroups are gone (10 to 30 ms measured); one of the host's mount does not.
    if is_v2(CGROUPS) {
        // The host has only version 2.
    } else if is_v2(UNIFIED) {
        nix::mount::mount(Some(UNIFIED), CGROUPS, none, MsFlags::MS_BIND, none)?;
    } else {
        let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
        nix::mount::mount(Some("none"), CGROUPS, Some("cgroup2"), flags, none)?;
    }
    let null = |file: &str| {
        let file = Path::new(CGROUPS).join(file);
        nix::mount::mount(Some("/dev/null"), &file, none, MsFlags::MS_BIND, none)
    };
    null("cgroup.procs")?;
    // After an error, libcontainer kills what it finds in the cgroup. In a cgroup namespace, the root has this file.
    match null("cgroup.kill") {
        Err(errno) if errno != nix::Error::ENOENT => Err(errno.into()),
        _ => Ok(()),
    }
}
