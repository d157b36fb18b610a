//! The container of a step: one `gpurun run`, whose process only waits.

use std::fs::{self, File};
use std::os::fd::OwnedFd;
use std::process::Stdio;
use std::time::Duration;

use super::command::{gpurun, run};
use super::dirs::Dirs;
use super::grammar;
use super::image::Provided;
use super::request::StepRequest;
use super::talk::Sockets;
use super::tasks::Tasks;
use crate::gpu;
use crate::launch;
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
/// The variable with which a user selects some of the step's GPUs, or none.
const VISIBLE: &str = "NVIDIA_VISIBLE_DEVICES";

#[derive(Debug)]
pub(super) struct Container {
    pub id: String,
    pub namespace: OwnedFd,
    /// The environment of the waiting process: that of the image, and what its entrypoint has changed.
    pub environment: Vec<(String, String)>,
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
        command.args(arguments(request, image)?);
        command.envs(request.env.iter().filter(|(name, _)| GPU_VARIABLES.contains(&name.as_str())).cloned());
        if tasks.len() > 1 {
            let nodes = tasks.nodes_of_others(&gpu::step::nodes(&launch::driver_root()))?;
            command.env(gpu::step::NODES, nodes.join(":"));
        }
        process::enter_cgroup(&mut command, tasks.entrance()?);
        let ran = run(command, tasks)?;
        if ran.code != 0 {
            return Err(ran.report("cannot create the container of the step".into()));
        }
        if !ran.err.is_empty() {
            sockets.say(&ran.err);
        }
        let id = ran.out.trim().to_owned();
        wait(dirs, &id, request, image, tasks).inspect_err(|_| remove(dirs, &id))
    }

    /// Shows what the entrypoint has written.
    pub(super) fn show_log(&self, dirs: &Dirs, tasks: &Tasks, sockets: &Sockets) -> Result<(), Report> {
        let mut command = gpurun(dirs)?;
        command.args(["logs", &self.id]);
        let ran = run(command, tasks)?;
        sockets.say(&(ran.out + &ran.err));
        Ok(())
    }

    /// Ends and removes the container.
    pub(super) fn remove(&self, dirs: &Dirs) {
        remove(dirs, &self.id);
    }
}

/// Waits until the container's process is the waiting one: an entrypoint does its work before.
///
/// These processes are the user's, who can end them at any time, and their pids may then be those of other processes. So a
/// pid counts only while the pidfd that was opened before says that its process lives.
fn wait(dirs: &Dirs, id: &str, request: &StepRequest, image: &Provided, tasks: &Tasks) -> Result<Container, Report> {
    let records = Records::look_at(&dirs.root, &dirs.run_dir);
    let ended = || {
        let report = Report::new("the container ended before the tasks joined it");
        match request.options.entrypoint {
            true => report.with_hint("the image's entrypoint must run its arguments; try `--no-container-entrypoint`"),
            false => report,
        }
    };
    let entry = records.get(id)?.ok_or_else(ended)?;
    if entry.record.image != image.image.id {
        return Err(Report::new("the image was replaced while the container was created"));
    }
    let state = entry.state()?;
    let first = state.pid.ok_or_else(ended)?;
    let process = process::open_pidfd(first).map_err(|_| ended())?;
    let namespace = OwnedFd::from(File::open(format!("/proc/{first}/ns/mnt")).map_err(|_| ended())?);
    // The process is that of the record, and it lives, so the namespace is its own.
    if process::start_time(first) != state.pid_start || state.pid_start.is_none() || has_ended(&process) {
        return Err(ended());
    }
    let number = inode(&namespace);
    loop {
        if let Some(environment) = waiting_below(first, number) {
            return Ok(Container { id: id.to_owned(), namespace, environment });
        }
        if has_ended(&process) {
            return Err(ended());
        }
        if tasks.have_ended() {
            return Err(Report::new("the step has ended before its container was ready"));
        }
        std::thread::sleep(LOOK);
    }
}

fn has_ended(process: &OwnedFd) -> bool {
    process::wait_pidfd(process, Duration::ZERO)
}

/// The number of a namespace.
fn inode(namespace: &OwnedFd) -> Option<u64> {
    nix::sys::stat::fstat(namespace).ok().map(|stat| stat.st_ino)
}

/// Finds the waiting process, which has no arguments, among a process and its descendants, and returns its environment. It is
/// in the container's mount namespace, as no process outside of the container is.
fn waiting_below(pid: i32, namespace: Option<u64>) -> Option<Vec<(String, String)>> {
    let process = process::open_pidfd(pid).ok()?;
    let own = OwnedFd::from(File::open(format!("/proc/{pid}/ns/mnt")).ok()?);
    if namespace.is_none() || inode(&own) != namespace {
        return None;
    }
    if read(format!("/proc/{pid}/cmdline")).ok()? == [WAIT.as_bytes(), b"\0"].concat() {
        let bytes = read(format!("/proc/{pid}/environ")).ok().filter(|_| !has_ended(&process))?;
        let entries = bytes.split(|byte| *byte == 0).map(String::from_utf8_lossy);
        return Some(
            entries
                .filter_map(|entry| entry.split_once('=').map(|(name, value)| (name.into(), value.into())))
                .collect(),
        );
    }
    let children = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).ok()?;
    children.split_whitespace().filter_map(|pid| pid.parse().ok()).find_map(|pid| waiting_below(pid, namespace))
}

/// Ends and removes a container, and waits for the end of its supervisor: Slurm waits for a second or more for a process
/// that is still in the step when the last task has ended.
fn remove(dirs: &Dirs, id: &str) {
    let records = Records::look_at(&dirs.root, &dirs.run_dir);
    let pid = records.get(id).ok().flatten().and_then(|entry| entry.supervisor().ok().flatten());
    let supervisor = pid.and_then(|pid| process::open_pidfd(pid).ok());
    let removed = gpurun(dirs).and_then(|mut command| {
        command.args(["rm", "--force"]).arg(id);
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

/// The arguments of `gpurun run`. None of them is text of the user, except for the image, which was parsed, and values of
/// variables.
fn arguments(request: &StepRequest, image: &Provided) -> Result<Vec<String>, Report> {
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
    let has_gpus = GPU_VARIABLES.iter().any(|name| request.variable(name).is_some());
    match request.variable(VISIBLE) {
        None | Some("all") => {}
        Some("" | "none" | "void") => args.extend(["--env".into(), format!("{VISIBLE}=void")]),
        Some(list) if has_gpus => args.extend(["--gpus".into(), grammar::gpus(VISIBLE, list)?]),
        Some(_) => {}
    }
    if request.options.entrypoint {
        for name in &request.options.env {
            args.extend(request.variable(name).map(|value| format!("--env={name}={value}")));
        }
        args.extend([image.argument.clone(), WAIT.into()]);
    } else {
        args.extend(["--entrypoint".into(), WAIT.into(), image.argument.clone()]);
    }
    Ok(args)
}
