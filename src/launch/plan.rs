//! Plans a container: a pure function of what was requested, what was acquired, and the host's properties.
//!
//! Nothing here reads or changes the host. `acquire` has done both, and `create` carries the plan out.

use super::acquire::Acquired;
use super::command::Command;
use super::facts::HostFacts;
use super::progress::Progress;
use super::{guard, health, hooks, rlimits};
use crate::gpu::Given;
use crate::hook;
use crate::report::Report;
use crate::request::{HealthConfig, IpcMode, NetworkMode, Request, Seccomp, parse_signal};
use crate::spec::seccomp::{self, Profile};
use crate::spec::{self, Capabilities, Limits, Process, SeenLine};

/// docker's size of /dev/shm.
const SHM_SIZE: u64 = 64 << 20;

/// The complete plan of one container.
#[derive(Debug, Clone)]
pub(super) struct Plan {
    pub container: spec::Plan,
    /// The program whose absence is an error. If PID 1 is gpurun's init, this is the program that the init starts.
    pub program: String,
    /// Jupyter, which a bare launch starts beside PID 1.
    pub jupyter: Option<Process>,
    pub health: Option<health::Prepared>,
    pub stop_signal: i32,
    pub gpus: Gpus,
    /// Lines of the kernel's files that the container sees with another value.
    pub lines: Vec<SeenLine>,
    pub notices: Vec<Progress>,
}

/// The container's GPUs, for display.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Gpus {
    pub given: Vec<Given>,
    /// Which mode injects them, and why.
    pub by: Option<String>,
}

/// Plans the container.
pub(super) fn plan(request: &Request, acquired: &Acquired, host: &HostFacts) -> Result<Plan, Report> {
    let Acquired { image, gpus, .. } = acquired;
    let capabilities = guard::capabilities(request).known_up_to(host.last_capability);
    let capabilities = match request.privileged {
        true => Capabilities(capabilities.0 & host.capabilities.0),
        false => capabilities,
    };
    let profile = match &request.seccomp {
        Seccomp::Unconfined => None,
        Seccomp::Default => Some(Profile::docker_default(&capabilities)),
        Seccomp::Profile(document) => Some(document.profile(&capabilities)),
    };
    let profile = profile.map(|profile| guard::profile(profile, request));
    let (rlimits, lowered) = rlimits::resolve(&request.ulimits, &gpus.rlimits, &host.rlimits)?;
    let Command { args, program } = acquired.command.clone();
    let process = Process {
        args,
        env: acquired.env.clone(),
        cwd: acquired.cwd.clone(),
        uid: acquired.user.uid,
        gid: acquired.user.gid,
        groups: groups(acquired),
        capabilities,
        rlimits,
        no_new_privileges: request.no_new_privileges,
        seccomp: profile.as_ref().map(seccomp::compile).transpose()?,
        oom_score_adj: request.oom_score_adj,
        umask: request.umask,
    };
    let jupyter = acquired.jupyter.as_ref().map(|jupyter| Process {
        args: jupyter.args.clone(),
        env: jupyter.env.clone(),
        cwd: jupyter.cwd.clone(),
        ..process.clone()
    });
    let health = request.health.clone().unwrap_or_default().over(HealthConfig::of_image(image.healthcheck.as_ref()));
    let health = health.check(&image.shell).map(|check| {
        let process = Process { args: check.args.clone(), ..process.clone() };
        health::Prepared { check, process }
    });
    let container = spec::Plan {
        process,
        hostname: (!request.uts_host && (request.network != NetworkMode::Host || request.hostname.is_some()))
            .then(|| acquired.hostname.clone()),
        domainname: request.domainname.clone(),
        rootfs: acquired.rootfs.clone(),
        readonly_root: request.read_only,
        tty: request.tty,
        limits: acquired.limits.clone(),
        devices: gpus.devices.clone(),
        allowed: gpus.allowed.clone(),
        rules: request.device_rules.iter().map(|rule| rule.0.clone()).collect(),
        mounts: acquired.mounts.clone(),
        shm_size: (request.ipc != IpcMode::None).then(|| shm_size(request, &acquired.limits, host)),
        network: acquired.network.clone(),
        pid: acquired.pid.clone(),
        ipc: acquired.ipc.clone(),
        uts_host: request.uts_host,
        cgroup_host: request.cgroup_host,
        privileged: request.privileged,
        unmasked: request.privileged || request.unmasked,
        v1_cgroups: host.v1_cgroups.clone(),
        cgroup_path: acquired.cgroup.path.clone(),
        hooks: spec_hooks(acquired),
        sysctls: request.sysctls.clone(),
        annotations: hooks::annotations(request, gpus),
        masked_paths: gpus.masked.iter().chain(&host.masked).cloned().collect(),
        seccomp: profile,
    };
    // An invalid stop signal in an image counts as none.
    let stop_signal = request.stop_signal.or_else(|| parse_signal(&image.stop_signal).ok()).unwrap_or(libc::SIGTERM);
    let notices = lowered.into_iter().map(Progress::Detail).collect();
    let lines = gpus.lines.clone();
    let gpus = Gpus { given: gpus.given.clone(), by: gpus.summary.clone() };
    Ok(Plan { container, program, jupyter, health, stop_signal, gpus, lines, notices })
}

/// The hooks of hooks.d that apply and, with a GPU request, the vendor's hooks. Each runs behind gpurun's shim.
fn spec_hooks(acquired: &Acquired) -> Vec<(spec::Stage, spec::HookEntry)> {
    let chosen = acquired.gpus.combine(acquired.hooks.clone());
    hook::spec_entries(&chosen, "/proc/self/exe".as_ref(), &acquired.hook_reports)
}

/// The groups of the container's user, then those of `--group-add` and of the GPU devices.
fn groups(acquired: &Acquired) -> Vec<u32> {
    let mut groups = acquired.user.groups.clone();
    for group in &acquired.added_groups {
        if !groups.contains(group) {
            groups.push(*group);
        }
    }
    groups
}

/// The size of /dev/shm. With GPUs, it is half of the memory that the container may use (its limit, or all of the
/// host's), because /dev/shm counts toward that memory. docker's 64 MiB are too small for any DataLoader with workers.
fn shm_size(request: &Request, limits: &Limits, host: &HostFacts) -> u64 {
    request.shm_size.unwrap_or_else(|| match request.gpus {
        Some(_) => limits.memory.or(host.memory).map_or(0, |memory| memory / 2).max(SHM_SIZE),
        None => SHM_SIZE,
    })
}

#[cfg(test)]
mod tests;
