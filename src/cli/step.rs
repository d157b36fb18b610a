//! Launches in a Slurm step: what differs from a launch elsewhere.
//!
//! The container stays in the step: in its cgroups, with its GPUs, in its network and with its variables. What would
//! leave the step is refused with the reason.

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use super::flags::ContainerFlags;
use crate::cgroup;
use crate::cluster::{self, Step};
use crate::launch;
use crate::record::Entry;
use crate::report::Report;
use crate::request::{IpcMode, MountRequest, MountSource, NetworkMode, Request, RestartPolicy};
use crate::sys::process;

/// The beginnings of the names of the variables that a step's processes need.
const PREFIXES: [&str; 5] = ["SLURM_", "SLURMD_", "PMI_", "PMI2_", "PMIX_"];
/// A variable with such a name that is a secret of the caller.
const TOKEN: &str = "SLURM_JWT";
/// The descriptor of the socket on which a task speaks PMI with Slurm.
const PMI_FD: &str = "PMI_FD";
/// The directory with the files through which a task finds the PMIx server.
const PMIX_DIR: &str = "PMIX_SERVER_TMPDIR";
/// NVIDIA's variable, with which a caller may refuse the step's GPUs.
const VISIBLE: &str = "NVIDIA_VISIBLE_DEVICES";

/// Completes the request of a new container with what a step's containers have, if this is a step.
pub(super) fn complete(flags: &ContainerFlags, request: &mut Request) -> Result<(), Report> {
    let caller = super::resources::caller_env();
    let lookup = |name: &str| caller.iter().find(|(known, _)| known == name).map(|(_, value)| value.clone());
    if flags.torchrun_env {
        add(request, cluster::torchrun(lookup)?);
    }
    let Some(step) = Step::current() else { return Ok(()) };
    check_flags(flags, request, &step)?;
    let host = cgroup::Host::probe(Path::new("/"))?;
    cluster::check_limits(&step.place(""), &host, &request.limits.resolve(&host.facts()?)?)?;
    let network = &flags.network;
    if network.network.is_empty() && network.network_alias.is_empty() && network.ip.is_none() {
        request.network = NetworkMode::Host;
    }
    share_memory(flags, request, lookup);
    // As PID 1, a program without a handler for SIGTERM would ignore the signal of scancel.
    request.init = true;
    let passed = |name: &String| PREFIXES.iter().any(|prefix| name.starts_with(prefix)) && name != TOKEN;
    add(request, caller.iter().filter(|(name, _)| passed(name)).cloned().collect());
    let pmi = lookup(PMI_FD).and_then(|fd| fd.parse().ok());
    request.passed_fds.extend(pmi.filter(|fd| process::is_inherited_socket(*fd)));
    if let Some(dir) = lookup(PMIX_DIR).map(PathBuf::from).filter(|dir| dir.is_absolute() && dir.is_dir()) {
        mount(request, dir);
    }
    if let Some(dir) = pmix_job_dir(lookup) {
        mount(request, dir);
    }
    let refused = request.env.iter().any(|(name, value)| name == VISIBLE && ["", "none", "void"].contains(&&**value));
    if request.gpus.is_none() && request.devices.is_empty() && !refused {
        let has_variable =
            ["SLURM_STEP_GPUS", "SLURM_JOB_GPUS", "SLURM_GPUS_ON_NODE"].iter().any(|name| lookup(name).is_some());
        request.gpus = launch::step_gpus(has_variable);
    }
    Ok(())
}

/// Lets the tasks of an MPI program share the node's memory. An MPI library finds the tasks of its node through Slurm,
/// whatever their namespaces are. It exchanges data with them through files in /dev/shm, and by reading the memory of a
/// task whose PID it was given (CMA). In another PID namespace, that PID is another process, perhaps the reader itself.
fn share_memory(flags: &ContainerFlags, request: &mut Request, lookup: impl Fn(&str) -> Option<String>) {
    let tasks = lookup("SLURM_STEP_NUM_TASKS").and_then(|number| number.parse::<u32>().ok());
    let speaks_pmi = ["PMI_RANK", "PMIX_RANK"].iter().any(|name| lookup(name).is_some());
    if tasks.is_some_and(|tasks| tasks > 1)
        && speaks_pmi
        && flags.security.ipc.is_none()
        && flags.limits.shm_size.is_none()
    {
        request.ipc = IpcMode::Host;
    }
    if request.ipc == IpcMode::Host && flags.security.pid.is_none() {
        request.pid_host = true;
    }
}

/// The directory in which Slurm's PMIx server and the tasks share memory, which no variable names. Others may create
/// files in `/tmp`, so only a directory of this user counts.
fn pmix_job_dir(lookup: impl Fn(&str) -> Option<String>) -> Option<PathBuf> {
    let tmp = PathBuf::from(lookup("PMIX_SYSTEM_TMPDIR")?);
    let (user, job, step) = (lookup("SLURM_JOB_UID")?, lookup("SLURM_JOB_ID")?, lookup("SLURM_STEP_ID")?);
    let is_ours = |dir: &PathBuf| {
        let found = std::fs::symlink_metadata(dir);
        found.is_ok_and(|found| found.is_dir() && found.uid() == nix::unistd::geteuid().as_raw())
    };
    [format!("spmix_appdir_{user}_{job}.{step}"), format!("spmix_appdir_{job}.{step}")]
        .into_iter()
        .filter(|name| !name.contains('/'))
        .map(|name| tmp.join(name))
        .filter(|dir| dir.is_absolute())
        .find(is_ours)
}

/// Returns the name of this task's container. All tasks of a step run the same command line, and a name is unique, so each
/// of several tasks adds its rank.
pub(super) fn task_name(name: Option<&str>) -> Option<String> {
    let name = name?;
    let number = |variable: &str| std::env::var(variable).ok()?.parse::<u32>().ok();
    match (number("SLURM_NTASKS"), number("SLURM_PROCID")) {
        (Some(2..), Some(rank)) if Step::current().is_some() => Some(format!("{name}-{rank}")),
        _ => Some(name.to_owned()),
    }
}

/// Adds variables that the caller has not set with a flag.
fn add(request: &mut Request, variables: Vec<(String, String)>) {
    let given = |name: &str| request.env.iter().any(|(known, _)| known == name);
    let new: Vec<_> = variables.into_iter().filter(|(name, _)| !given(name)).collect();
    request.env.splice(..0, new);
}

fn mount(request: &mut Request, dir: PathBuf) {
    if request.mounts.iter().any(|known| known.destination == dir) {
        return;
    }
    request.mounts.push(MountRequest {
        source: MountSource::Bind { path: dir.clone(), recursive: true, propagation: None },
        destination: dir,
        read_only: false,
        chown: false,
    });
}

/// Refuses flags with which the container would leave the step or outlive it.
fn check_flags(flags: &ContainerFlags, request: &Request, step: &Step) -> Result<(), Report> {
    let refused = |flag: &str, why: &str, hint: &str| {
        Err(Report::usage(format!("cannot use `{flag}` in the {step}: {why}")).with_hint(hint))
    };
    if flags.detach {
        return refused(
            "--detach",
            "the container must end with the step",
            "omit `-d`; `sbatch` runs a job in the background",
        );
    }
    if request.restart != RestartPolicy::No {
        return refused(
            "--restart",
            "the container must end with the step",
            "omit it; `sbatch --requeue` repeats a job",
        );
    }
    if request.cgroup_parent.is_some() {
        return refused("--cgroup-parent", "the container stays in the step's cgroup", "omit it");
    }
    // The step's filter holds below it under version 1. Under version 2, only gpurun's own does.
    let is_v2 = step.cgroups.keys().all(String::is_empty);
    if is_v2 && (request.privileged || !request.device_rules.is_empty()) {
        let flag = if request.privileged { "--privileged" } else { "--device-cgroup-rule" };
        return refused(flag, "it would open the devices of other jobs", "name the devices: `--device /dev/NAME`");
    }
    Ok(())
}

/// Refuses a container for later in a step.
pub(super) fn refuse_create() -> Result<(), Report> {
    match Step::current() {
        Some(step) => {
            Err(Report::usage(format!("cannot create a container for later in the {step}: it must end with the step"))
                .with_hint("run it at once: `gpurun run …`"))
        }
        None => Ok(()),
    }
}

/// Refuses to run a command in a container of another job, or in one outside of the step: it would leave the job.
pub(super) fn check_exec(entry: &Entry) -> Result<(), Report> {
    let Some(step) = Step::current() else { return Ok(()) };
    if entry.record.cgroup.step.as_deref().is_some_and(|other| step.is_of_job(other)) {
        return Ok(());
    }
    let name = &entry.record.name;
    let what = format!("cannot execute a command in container `{name}`: it does not belong to the job of the {step}");
    Err(Report::usage(what).with_hint(format!("run the command outside of the job: `gpurun exec {name} …`")))
}

/// Refuses to start an existing container in a step, or one that belongs to a step.
pub(super) fn check_start(entry: &Entry) -> Result<(), Report> {
    let name = &entry.record.name;
    let what = match (Step::current(), &entry.record.cgroup.step) {
        (None, None) => return Ok(()),
        (Some(step), None) => {
            format!("cannot start container `{name}` in the {step}: its cgroup is outside of the step")
        }
        (_, Some(step)) => format!("cannot start container `{name}`: it belongs to the {step}"),
    };
    Err(Report::usage(what).with_hint("run a new container: `gpurun run …`"))
}
