//! Creates a planned container: its bundle, its cgroup with the limits, its process. Everything is read back before the
//! process may start.

use std::fs;
use std::os::fd::OwnedFd;
use std::time::Duration;

use super::acquire::Handles;
use super::container::{Container, Created};
use super::context::Launch;
use super::opens::{self, Opening};
use super::plan::Plan;
use super::progress::{Progress, Tell, step};
use super::streams::{Stream, Streams};
use super::undo::{KILL, Undo};
use super::{mounted, propagation, readback, rlimits, scaffold};
use crate::cgroup::{Cgroup, Entrance, Host, Place};
use crate::hook;
use crate::net;
use crate::record::{Entry, LimitRow, PublishedPort};
use crate::report::Report;
use crate::request::Ulimit;
use crate::runtime::{self, CreateRequest, RuntimeError, Stdio};
use crate::spec::{self, Limits, oci_spec};
use crate::sys::process;

/// Creates the cgroup, writes the bundle, runs libcontainer, and verifies the limits. `undo` is left empty: from then
/// on, the container undoes what was acquired.
pub(super) fn create(
    launch: Launch<'_>,
    plan: Plan,
    handles: Handles,
    tell: Tell<'_>,
    undo: &mut Undo,
) -> Result<Created, Report> {
    let (entry, request) = (launch.entry, launch.request());
    let Plan { container: plan, program, jupyter, health, stop_signal, notices, gpus, lines } = plan;
    // The namespace of another container is joined once the container is created.
    let Handles { host, network, joined: _joined, opening, before, mounts } = handles;
    notices.into_iter().for_each(&mut *tell);
    // Everything that does not need the cgroup comes first, because creating the cgroup waits for the kernel
    // (`Host::prime_moves`).
    write_bundle(entry, &plan)?;
    let (stdio, mut streams) = streams(entry)?;
    let state_root = entry.run_dir.join("libcontainer");
    let wanted = CreateRequest {
        id: &entry.record.id,
        bundle: &entry.run_dir,
        state_root: &state_root,
        stdio,
        process: &plan.process,
        program: &program,
        passed_fds: &request.passed_fds,
        lines: &lines,
        devices: opening.as_ref().map(Opening::check).transpose()?,
    };
    let prepared = runtime::prepare(wanted, entrance(&host, &plan, &entry.record.cgroup))?;
    step("bundle");
    let (rules, while_created) = (plan.device_rules(), plan.creation_rules());
    let (cgroup, _) = host.create(&entry.record.cgroup, &plan.limits, while_created.as_deref().unwrap_or(&rules))?;
    let place = &entry.record.cgroup;
    if !place.apart.is_empty() && prepared.needs_cgroup_path() {
        // libcontainer creates the container there, and the device filter must be in effect for the check of its GPUs.
        host.create(&place.path, &Limits::default(), while_created.as_deref().unwrap_or(&rules))?;
    }
    let ours = cgroup.clone();
    undo.push(KILL, move || Ok(ours.kill_all()?));
    step("cgroup");
    tell(Progress::Step("creating the container"));
    let mut created = prepared.create().map_err(|error| create_failed(entry, opening.as_ref(), error))?;
    opening.iter().for_each(Opening::clean);
    opens::tell_warnings(entry, tell);
    step("created");
    if while_created.is_some() {
        cgroup.narrow_devices(&rules)?;
    }
    if place.step.is_some() {
        cgroup.adopt(created.pid)?;
    }
    verify_cgroup(&cgroup, created.pid)
        .and_then(|()| mounted::verify(created.pid, &mounts))
        .and_then(|()| propagation::attach(created.pid, &mounts))
        .map_err(|report| explain_end(report, &created.pidfd, &request.ulimits))?;
    scaffold::note(entry, before.as_ref())?;
    let pidfd = created
        .pidfd
        .try_clone()
        .map_err(|error| Report::new("cannot keep hold of the container's process").with_cause(error))?;
    if let Some(master) = created.pty.take() {
        streams
            .with_pty(master, request.interactive)
            .map_err(|error| Report::new("cannot use the container's terminal").with_cause(error))?;
    }
    let mut limits: Vec<LimitRow> = cgroup.verify(&plan.limits)?.into_iter().map(readback::row).collect();
    limits.iter().filter_map(readback::tighter).for_each(|line| tell(Progress::Notice(line)));
    let mut process_limits = readback::process(created.pid, request)
        .map_err(|report| explain_end(report, &created.pidfd, &request.ulimits))?;
    process_limits.extend(readback::of_step(&cgroup, &host, &limits));
    limits.extend(process_limits.iter().cloned());
    step("verified");
    tell(Progress::Limits(limits.clone()));
    let container = Container {
        oom: cgroup.oom_watch(),
        cgroup,
        streams,
        keeper: None,
        jupyter: None,
        health,
        limits,
        process_limits,
        gpus,
        ip: network.ip.map(|ip| ip.to_string()),
        ports: network.ports.iter().map(published).collect(),
        network,
        cgroup_path: plan.cgroup_path,
        stop_signal,
        ending: None,
        payload_ending: None,
        undo: std::mem::take(undo),
        pid: created.pid,
        start_time: created.start_time,
        pidfd,
        runtime: created,
    };
    Ok(Created { container, jupyter })
}

/// How the process that creates the container enters its cgroup. That is one process more than libcontainer needs, so
/// the smallest limits have libcontainer's way.
fn entrance(host: &Host, plan: &spec::Plan, place: &Place) -> Option<Entrance> {
    let is_tight = plan.limits.pids.flatten().is_some_and(|most| most < LEAST_PROCESSES)
        || plan.limits.memory.is_some_and(|most| most < LEAST_MEMORY);
    if is_tight { None } else { host.entrance(place) }
}

/// The processes in the cgroup while a container is created, and the memory that they need at most.
const LEAST_PROCESSES: u64 = 3;
const LEAST_MEMORY: u64 = 16 << 20;

/// Checks that the container's first process is in its cgroup, in every hierarchy.
fn verify_cgroup(cgroup: &Cgroup, pid: i32) -> Result<(), Report> {
    let outside = cgroup
        .outside(pid)
        .map_err(|error| Report::new("cannot read the cgroups of the container's process").with_cause(error))?;
    let Some(dir) = outside else { return Ok(()) };
    Err(Report::new(format!("cannot create the container: its process is not in its cgroup `{}`", dir.display())))
}

/// Says so if the process that could not be examined has ended.
fn explain_end(report: Report, pidfd: &OwnedFd, ulimits: &[Ulimit]) -> Report {
    // A process that is ending already fails the checks, and can be waited for a moment later.
    match process::end_of_child(pidfd, END) {
        Some(_) => rlimits::descriptors(
            Report::new("cannot create the container: its process ended before it started the program"),
            ulimits,
        ),
        None => report,
    }
}

/// How long a process that fails the checks may take to end.
const END: Duration = Duration::from_secs(1);

/// Prefers a hook's own message, which says more than the runtime's.
fn create_failed(entry: &Entry, opening: Option<&Opening>, error: RuntimeError) -> Report {
    if let (RuntimeError::Device(fault), Some(opening)) = (&error, opening) {
        return opening.failed(fault);
    }
    match hook::failures(&entry.run_dir.join("hooks")).into_iter().next() {
        Some(failure) => Report::from(failure),
        None => rlimits::descriptors(Report::from(error), &entry.record.request.ulimits),
    }
}

fn published(port: &net::Published) -> PublishedPort {
    PublishedPort {
        host_ip: port.host_ip.to_string(),
        host_port: port.host_port,
        container_port: port.container_port,
        protocol: port.protocol.to_string(),
    }
}

/// Writes `config.json` for hooks and `exec`, and the compiled filter for `exec`.
fn write_bundle(entry: &Entry, plan: &spec::Plan) -> Result<(), Report> {
    let write = |name: &str, bytes: &[u8]| {
        let path = entry.run_dir.join(name);
        fs::write(&path, bytes)
            .map_err(|error| Report::new(format!("cannot write `{}`", path.display())).with_cause(error))
    };
    let text = serde_json::to_vec_pretty(&oci_spec(plan)?)
        .map_err(|error| Report::new("cannot write the OCI spec").with_cause(error))?;
    write("config.json", &text)?;
    if let Some(filter) = &plan.process.seccomp {
        write("seccomp.bpf", &filter.to_bytes())?;
    }
    Ok(())
}

/// Creates the container's standard streams and gpurun's ends of them.
fn streams(entry: &Entry) -> Result<(Stdio, Streams), Report> {
    let failed =
        |error: std::io::Error| Report::new("cannot create the container's standard streams").with_cause(error);
    let mut streams = Streams::default();
    if entry.record.request.tty {
        return Ok((Stdio::Pty { size: None }, streams));
    }
    let pipe = || nix::unistd::pipe2(nix::fcntl::OFlag::O_CLOEXEC).map_err(|errno| failed(errno.into()));
    let stdin: OwnedFd = if entry.record.request.wants_stdin() {
        let (read, write) = pipe()?;
        streams.with_input(write).map_err(failed)?;
        read
    } else {
        fs::File::open("/dev/null").map_err(failed)?.into()
    };
    let (out_read, stdout) = pipe()?;
    let (error_read, stderr) = pipe()?;
    streams.with_output(out_read, Stream::Stdout).map_err(failed)?;
    streams.with_output(error_read, Stream::Stderr).map_err(failed)?;
    Ok((Stdio::Fds { stdin, stdout, stderr }, streams))
}
