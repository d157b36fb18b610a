//! Runs one `RUN` step in a container of gpurun's own runtime. The container's upper directory becomes a layer.
//!
//! ```text
//! /var/lib/gpurun/containers/ID/upper/   files that the command writes
//! /run/gpurun/ID/step.json               record of the step; it is in no list of containers
//! /run/gpurun/ID/build/                  secrets, certificates, here-documents, sockets, bound into the container
//! ```
//!
//! The container is launched like any other: limits are read back, and seccomp and the guards apply.
//!
//! Clean-up: the supervisor stops the container when the build dies. As soon as no process runs the container,
//! reconcile removes all of the above.
//!
//! Locks: the build holds the `launching` lock until it has read the upper directory. Until then it must not query the
//! locks of the records: `launching` is a POSIX record lock, and closing any descriptor of the lock file would release
//! it.

use std::fs;
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signalfd::SignalFd;

use super::agent::{AgentSocket, Forward};
use super::hostca::HostFile;
use crate::cluster;
use crate::control::{FromSupervisor, ToSupervisor};
use crate::durable::FileLock;
use crate::launch::{self, Scaffold};
use crate::layer::{Tree, diff, directory};
use crate::names;
use crate::names::Digest;
use crate::record::{Entry, Owner, Record, Records, State};
use crate::report::Report;
use crate::request::{
    HostEntry, LimitsRequest, MountRequest, MountSource, NetworkMode, Payload, Request, Ulimit, UserSpec,
};
use crate::spec::CapabilityName;
use crate::store::{Draft, StoreError};

/// The capabilities to drop from a step on this network.
pub(crate) fn dropped(network: NetworkMode) -> Vec<CapabilityName> {
    if network == NetworkMode::Host { vec![CapabilityName::NET_RAW] } else { Vec::new() }
}

/// Milliseconds without output from the command after which the caller is notified.
const QUIET: u8 = 200;

/// A command to run and its environment.
#[derive(Debug)]
pub(super) struct Run {
    /// The image with the files of the previous steps.
    pub image_id: Digest,
    /// Keeps that image from being removed until the step's record refers to it.
    pub hold: FileLock,
    pub words: Vec<String>,
    pub env: Vec<(String, String)>,
    pub user: String,
    pub workdir: PathBuf,
    pub network: NetworkMode,
    pub limits: LimitsRequest,
    pub add_hosts: Vec<HostEntry>,
    pub mounts: Vec<MountRequest>,
    /// Files that are visible in the container but are in no layer.
    pub files: Vec<HostFile>,
    pub agents: Vec<AgentSocket>,
    pub shm_size: Option<u64>,
    pub ulimits: Vec<Ulimit>,
}

/// The container of a finished step.
pub(super) struct Step<'a> {
    records: &'a Records,
    entry: Entry,
    /// Holds the `launching` lock until the files are read. See the module's documentation.
    _spawned: launch::Spawned,
    pub state: State,
}

/// Runs the command until it exits, with any exit status.
pub(super) fn run<'a>(
    root: &Path,
    records: &'a Records,
    run: Run,
    signals: Option<&SignalFd>,
    output: &mut dyn FnMut(Heard<'_>),
) -> Result<Step<'a>, Report> {
    let id = names::new_container_id();
    let (_, run_dir) = records.paths(&id);
    let private = run_dir.join("build");
    let files = run.files;
    let mut mounts = run.mounts;
    for (number, file) in files.iter().enumerate() {
        mounts.push(MountRequest {
            source: MountSource::Bind { path: private.join(number.to_string()), recursive: false, propagation: None },
            destination: file.target.clone(),
            read_only: true,
            chown: false,
        });
    }
    for (number, agent) in run.agents.iter().enumerate() {
        let path = private.join(agent_name(number));
        mounts.push(MountRequest {
            source: MountSource::Bind { path, recursive: false, propagation: None },
            destination: agent.target.clone(),
            read_only: false,
            chown: false,
        });
    }
    let request = request(run.image_id, run.words, run.env, mounts);
    let request = Request {
        user: (!run.user.is_empty()).then(|| UserSpec::of(&run.user)),
        workdir: Some(run.workdir),
        network: run.network,
        cap_drop: dropped(run.network),
        limits: run.limits,
        shm_size: run.shm_size,
        ulimits: run.ulimits,
        add_hosts: run.add_hosts,
        ..request
    };
    let (name, now) = (format!("build-{}", &id[..12]), crate::clock::now());
    let mut record = Record { step: true, ..Record::new(id, name, now, run.image_id, Owner::caller(), request) };
    if let Some(step) = cluster::Step::current() {
        record.cgroup = step.place(&record.id);
    }
    let (entry, launching) = records.create(&record, None)?;
    drop(run.hold);
    super::point::point("build-recorded");
    let mut forwards = Vec::new();
    let laid_out = lay_out(&private, &files).and_then(|()| {
        for (number, agent) in run.agents.iter().enumerate() {
            let forward = Forward::start(&private, &agent_name(number), agent);
            forwards.push(forward.map_err(|error| Report::new("cannot forward the SSH agent").with_cause(error))?);
        }
        Ok(())
    });
    let started = laid_out.and_then(|()| launch::check(&entry.record.request)).and_then(|()| {
        launch::spawn(root, records.run_dir(), &entry, launching, &[ToSupervisor::Attach { stdin: false }])
    });
    let spawned = match started {
        Ok(spawned) => spawned,
        Err(mut report) => {
            report.afterwards.extend(launch::remove(records, &entry).err().map(|error| error.message));
            return Err(report);
        }
    };
    super::point::point("build-spawned");
    let ended = listen(&spawned, signals, output);
    super::point::point("build-ended");
    drop(forwards);
    match ended {
        Ok(state) => Ok(Step { records, entry, _spawned: spawned, state }),
        Err(mut report) => {
            // Wait for the supervisor to die. Files that it still writes would make the removal fail.
            spawned.outlive();
            report.afterwards.extend(launch::remove(records, &entry).err().map(|error| error.message));
            Err(report)
        }
    }
}

/// A message from a running step.
#[derive(Debug)]
pub(super) enum Heard<'a> {
    Output(&'a [u8]),
    Notice(&'a str),
    /// The step has been silent for a while. The caller may update a clock.
    Nothing,
}

fn agent_name(number: usize) -> String {
    format!("agent-{number}")
}

fn lay_out(dir: &Path, files: &[HostFile]) -> Result<(), Report> {
    let failed = |error: io::Error| Report::new("cannot write the files of the step").with_cause(error);
    fs::DirBuilder::new().recursive(true).mode(0o700).create(dir).map_err(failed)?;
    for (number, file) in files.iter().enumerate() {
        let path = dir.join(number.to_string());
        let mut out = fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path).map_err(failed)?;
        io::Write::write_all(&mut out, &file.bytes).map_err(failed)?;
        std::os::unix::fs::fchown(&out, Some(file.owner.0), Some(file.owner.1)).map_err(failed)?;
        out.set_permissions(fs::Permissions::from_mode(file.mode)).map_err(failed)?;
    }
    Ok(())
}

/// The request for a step's container. It has root's usual capabilities, and set-user-ID programs work, because many
/// Containerfiles use the image's `sudo`. docker does not set no-new-privileges either. A step that runs as root gains
/// nothing from such a program, and a step under `USER` becomes at most root in its own container.
fn request(image_id: Digest, words: Vec<String>, env: Vec<(String, String)>, mounts: Vec<MountRequest>) -> Request {
    Request {
        entrypoint: Some(Vec::new()),
        env,
        auto_remove: true,
        mounts,
        network: NetworkMode::Host,
        no_new_privileges: false,
        ..Request::bare(image_id.to_string(), Payload::Command(words))
    }
}

fn listen(
    spawned: &launch::Spawned,
    signals: Option<&SignalFd>,
    output: &mut dyn FnMut(Heard<'_>),
) -> Result<State, Report> {
    let lost = |error: io::Error| Report::new("cannot reach the supervisor of the step").with_cause(error);
    let connection = &spawned.connection;
    let mut interrupted = false;
    loop {
        let mut fds = vec![PollFd::new(connection.as_fd(), PollFlags::POLLIN)];
        fds.extend(signals.map(|signals| PollFd::new(signals.as_fd(), PollFlags::POLLIN)));
        match poll(&mut fds, PollTimeout::from(QUIET)) {
            Err(nix::Error::EINTR) => continue,
            Ok(0) => output(Heard::Nothing),
            other => drop(other.map_err(|errno| lost(errno.into()))?),
        }
        let heard = fds[0].any().unwrap_or(false);
        if let Some(signals) = signals
            && take_interrupt(signals)
        {
            interrupted = true;
            // The send fails if the step has just ended. Its last message then reports how it ended.
            let _ = connection.send(&ToSupervisor::Stop { timeout: Some(0) });
        }
        if !heard {
            continue;
        }
        match connection.receive::<FromSupervisor>().map_err(lost)? {
            Some(FromSupervisor::Stdout(bytes) | FromSupervisor::Stderr(bytes)) => output(Heard::Output(&bytes)),
            Some(FromSupervisor::Notice(line)) => output(Heard::Notice(&line)),
            Some(FromSupervisor::Failed(report)) => return Err(report),
            Some(FromSupervisor::Exited(_)) if interrupted => return Err(interruption()),
            Some(FromSupervisor::Exited(state)) => return Ok(*state),
            Some(_) => {}
            None => {
                return Err(Report::new("the supervisor of the step was killed")
                    .with_hint(crate::supervise::diagnostics::hint(&spawned.diagnostics)));
            }
        }
    }
}

/// Whether a signal asks the build to stop. SIGWINCH does not.
pub(super) fn take_interrupt(signals: &SignalFd) -> bool {
    let mut interrupted = false;
    while let Ok(Some(info)) = signals.read_signal() {
        interrupted |= info.ssi_signo != nix::sys::signal::Signal::SIGWINCH as u32;
    }
    interrupted
}

/// Sleeps for the given time, or until a signal asks the build to stop.
pub(super) fn pause(signals: Option<&SignalFd>, time: Duration) -> Result<(), Report> {
    let Some(signals) = signals else {
        std::thread::sleep(time);
        return Ok(());
    };
    let end = Instant::now() + time;
    loop {
        // Ignore the result of the poll, because the signals and the clock are checked below in any case.
        let left = end.saturating_duration_since(Instant::now());
        let milliseconds = PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX);
        let _ = poll(&mut [PollFd::new(signals.as_fd(), PollFlags::POLLIN)], milliseconds);
        if take_interrupt(signals) {
            return Err(interruption());
        }
        if Instant::now() >= end {
            return Ok(());
        }
    }
}

/// The error of an interrupted build.
pub(super) fn interruption() -> Report {
    Report::new("the build was interrupted").with_exit_code(130)
}

impl Step<'_> {
    /// Writes the files of the step as a layer of the draft. Returns `None` if the step changed no file.
    pub(super) fn layer(
        &self,
        draft: &mut Draft<'_>,
        lower: &Tree,
        clamp: Option<i64>,
    ) -> Result<Option<Digest>, Report> {
        let scaffold = Scaffold::of(&self.entry)?;
        let upper = self.entry.dir.join("upper");
        let fd = directory::open_root(&upper)
            .map_err(|error| Report::new(format!("cannot open `{}`", upper.display())).with_cause(error))?;
        let keep = |path: &[u8], stat: &nix::sys::stat::FileStat| scaffold.keep(path, stat);
        let options = diff::Options { lower, clamp, keep: &keep };
        let (out, summary) = diff::write(fd.as_fd(), &options, draft.layer()?)?;
        if summary.members == 0 {
            return Ok(None);
        }
        Ok(Some(draft.seal(out).map_err(|error: StoreError| Report::from(error))?))
    }

    /// Removes the container's files.
    pub(super) fn remove(self) -> Result<(), Report> {
        launch::remove(self.records, &self.entry)
    }
}
