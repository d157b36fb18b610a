//! The container of a step: one `gpurun run`, whose process only waits.

use std::fs::{self, File};
use std::os::fd::OwnedFd;
use std::process::Stdio;
use std::time::Duration;

use super::command::{gpurun, run};
use super::dirs::Dirs;
use super::image::Provided;
use super::request::StepRequest;
use super::talk::Sockets;
use super::tasks::Tasks;
use crate::record::Records;
use crate::report::Report;
use crate::sys::file::read;
use crate::sys::process;

/// gpurun's init in the container. Without arguments, it waits for a signal.
const WAIT: &str = "/dev/gpurun-init";
/// How often to look whether the entrypoint has become the waiting process.
const LOOK: Duration = Duration::from_millis(10);
/// How long a supervisor has to end.
const END: Duration = Duration::from_secs(5);
/// The variables that say whether the step has GPUs.
const GPU_VARIABLES: [&str; 3] = ["SLURM_STEP_GPUS", "SLURM_JOB_GPUS", "SLURM_GPUS_ON_NODE"];
/// The variable with which a user refuses the step's GPUs.
const VISIBLE: &str = "NVIDIA_VISIBLE_DEVICES";

#[derive(Debug)]
pub(super) struct Container {
    pub id: String,
    /// The waiting process.
    pid: i32,
}

impl Container {
    /// Creates the container in the cgroups of the step, and waits until its process waits.
    pub(super) fn start(
        dirs: &Dirs,
        request: &StepRequest,
        image: &Provided,
        tasks: &Tasks,
        sockets: &Sockets,
    ) -> Result<Self, Report> {
        let mut command = gpurun(dirs)?;
        command.args(arguments(request, image));
        command.envs(request.env.iter().filter(|(name, _)| GPU_VARIABLES.contains(&name.as_str())).cloned());
        process::enter_cgroup(&mut command, tasks.entrance()?);
        let ran = run(command, tasks)?;
        if ran.code != 0 {
            return Err(ran.report("cannot create the container of the step".into()));
        }
        if !ran.err.is_empty() {
            sockets.say(&ran.err);
        }
        let id = ran.out.trim().to_owned();
        let mut container = Self { id, pid: 0 };
        match container.wait(dirs, request, image, tasks) {
            Ok(pid) => container.pid = pid,
            Err(report) => {
                container.remove(dirs);
                return Err(report);
            }
        }
        Ok(container)
    }

    /// Waits until the container's process is the waiting one: an entrypoint does its work before.
    fn wait(&self, dirs: &Dirs, request: &StepRequest, image: &Provided, tasks: &Tasks) -> Result<i32, Report> {
        let records = Records::look_at(&dirs.root, &dirs.run_dir);
        let ended = || {
            let report = Report::new("the container ended before the tasks joined it");
            match request.options.entrypoint {
                true => {
                    report.with_hint("the image's entrypoint must run its arguments; try `--no-container-entrypoint`")
                }
                false => report,
            }
        };
        loop {
            let entry = records.get(&self.id)?.ok_or_else(ended)?;
            if entry.record.image != image.image.id {
                return Err(Report::new("the image was replaced while the container was created"));
            }
            let first = entry.state()?.pid.ok_or_else(ended)?;
            if let Some(pid) = waiting_below(first) {
                return Ok(pid);
            }
            if process::open_pidfd(first).is_err() {
                return Err(ended());
            }
            if tasks.have_ended() {
                return Err(Report::new("the step has ended before its container was ready"));
            }
            std::thread::sleep(LOOK);
        }
    }

    /// Opens the mount namespace.
    pub(super) fn namespace(&self) -> Result<OwnedFd, Report> {
        File::open(format!("/proc/{}/ns/mnt", self.pid))
            .map(OwnedFd::from)
            .map_err(|error| Report::new("cannot open the container's mount namespace").with_cause(error))
    }

    /// Returns the environment of the waiting process: that of the image, and what its entrypoint has changed.
    pub(super) fn environment(&self) -> Result<Vec<(String, String)>, Report> {
        let bytes = read(format!("/proc/{}/environ", self.pid))
            .map_err(|error| Report::new("cannot read the container's environment").with_cause(error))?;
        let entries = bytes.split(|byte| *byte == 0).map(String::from_utf8_lossy);
        Ok(entries.filter_map(|entry| entry.split_once('=').map(|(name, value)| (name.into(), value.into()))).collect())
    }

    /// Ends and removes the container, and waits for the end of its supervisor: Slurm waits for a second or more for a
    /// process that is still in the step when the last task has ended.
    pub(super) fn remove(&self, dirs: &Dirs) {
        let records = Records::look_at(&dirs.root, &dirs.run_dir);
        let pid = records.get(&self.id).ok().flatten().and_then(|entry| entry.supervisor().ok().flatten());
        let supervisor = pid.and_then(|pid| process::open_pidfd(pid).ok());
        let removed = gpurun(dirs).and_then(|mut command| {
            command.args(["rm", "--force"]).arg(&self.id);
            command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
            command.status().map_err(|error| Report::new("cannot remove the container").with_cause(error))
        });
        match removed {
            Ok(status) if status.success() => {}
            Ok(status) => tracing::warn!("cannot remove the container: {status}"),
            Err(report) => tracing::warn!("{report}"),
        }
        if let Some(supervisor) = supervisor {
            process::wait_pidfd(supervisor, END);
        }
    }
}

/// The arguments of `gpurun run`. None of them is text of the user, except for the image, which was parsed.
fn arguments(request: &StepRequest, image: &Provided) -> Vec<String> {
    let caller = &request.caller;
    let name = format!("slurm-{}.{}-{}", request.job, request.step_name(), std::process::id());
    let user = format!("{}:{}", caller.uid, caller.gid);
    let mut args: Vec<String> = ["run", "--rm", "--attach", "stdin", "--pid", "host", "--ipc", "host", "--uts", "host"]
        .into_iter()
        .chain(["--cgroupns", "host", "--name", &name, "--user", &user])
        .map(str::to_owned)
        .collect();
    for group in caller.groups.iter().filter(|group| **group != caller.gid) {
        args.extend(["--group-add".into(), group.to_string()]);
    }
    if request.variable(VISIBLE).is_some_and(|value| ["", "none", "void"].contains(&value)) {
        args.extend(["--env".into(), format!("{VISIBLE}=void")]);
    }
    if request.options.entrypoint {
        for name in &request.options.env {
            args.extend(request.variable(name).map(|value| format!("--env={name}={value}")));
        }
        args.extend([image.argument.clone(), WAIT.into()]);
    } else {
        args.extend(["--entrypoint".into(), WAIT.into(), image.argument.clone()]);
    }
    args
}

/// Finds the waiting process, which has no arguments, among a process and its descendants.
fn waiting_below(pid: i32) -> Option<i32> {
    let line = read(format!("/proc/{pid}/cmdline")).ok()?;
    if line == [WAIT.as_bytes(), b"\0"].concat() {
        return Some(pid);
    }
    let children = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).ok()?;
    children.split_whitespace().filter_map(|pid| pid.parse().ok()).find_map(waiting_below)
}
