//! One `RUN`: a container of our own runtime, whose upper directory becomes a layer.
//!
//! ```text
//! /var/lib/gpurun/containers/ID/upper/   what the command writes
//! /run/gpurun/ID/step.json              a record that nobody lists: as soon as nobody runs it, reconcile clears everything away
//! /run/gpurun/ID/build/                 secrets, the host's certificates, here-documents: bound into the container, in no layer
//! ```
//!
//! The container goes through the same launch as any other (limits read back, seccomp, guards). Its supervisor ends it when the build is
//! gone; the builder holds the `launching` lock until it has read what was written. A build must not look at the records' locks
//! meanwhile: closing a descriptor of the lock file would let go of it.

use std::fs;
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signalfd::SignalFd;

use crate::durable::FileLock;
use crate::launch::{self, Scaffold};
use crate::layer::{Tree, diff, directory};
use crate::names;
use crate::names::Digest;
use crate::record::{Entry, Record, Records, State};
use crate::report::Report;
use crate::request::{MountRequest, MountSource, NetworkMode, Payload, Request};
use crate::spec::AskedLimits;
use crate::store::{Draft, StoreError};
use crate::supervise::log;
use crate::supervise::protocol::{FromSupervisor, ToSupervisor};

/// So many milliseconds a command may be quiet before whoever shows it is told.
const QUIET: u8 = 200;

/// What to run.
#[derive(Debug)]
pub struct Run {
    /// The image that holds the files so far.
    pub image_id: Digest,
    /// Keeps that image until its user is on record.
    pub hold: FileLock,
    pub words: Vec<String>,
    pub env: Vec<(String, String)>,
    pub user: String,
    pub workdir: PathBuf,
    pub network: NetworkMode,
    pub limits: AskedLimits,
    pub add_hosts: Vec<String>,
    pub mounts: Vec<MountRequest>,
    /// Files that the container sees and no layer holds.
    pub files: Vec<HostFile>,
}

/// A file that exists for one step alone.
#[derive(Debug, Clone)]
pub struct HostFile {
    pub target: PathBuf,
    pub bytes: Vec<u8>,
    pub mode: u32,
    pub owner: (u32, u32),
}

/// A step's container.
pub struct Step<'a> {
    records: &'a Records,
    entry: Entry,
    /// Held until the files are read: see the module.
    _spawned: launch::Spawned,
    pub state: State,
}

/// Runs it to its end, whatever its exit status.
pub fn run<'a>(
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
        });
    }
    let request = request(run.image_id, run.words, run.env, mounts);
    let request = Request {
        user: (!run.user.is_empty()).then_some(run.user),
        workdir: Some(run.workdir),
        network: run.network,
        limits: run.limits,
        add_hosts: run.add_hosts,
        ..request
    };
    let record = Record { step: true, ..Record::new(id.clone(), format!("build-{}", &id[..12]), log::now(), request) };
    let (entry, launching) = records.create(&record, None)?;
    drop(run.hold);
    let started = lay_out(&private, &files)
        .and_then(|()| launch::check(&entry.record.request))
        .and_then(|()| launch::spawn(root, records.run_dir(), &entry, launching));
    let spawned = match started {
        Ok(spawned) => spawned,
        Err(mut report) => {
            report.afterwards.extend(launch::remove(records, &entry).err().map(|error| error.message));
            return Err(report);
        }
    };
    match listen(&spawned, signals, output) {
        Ok(state) => Ok(Step { records, entry, _spawned: spawned, state }),
        Err(mut report) => {
            // What it still writes would be in the way of the removal.
            spawned.outlive();
            report.afterwards.extend(launch::remove(records, &entry).err().map(|error| error.message));
            Err(report)
        }
    }
}

/// What a step says.
#[derive(Debug)]
pub enum Heard<'a> {
    Output(&'a [u8]),
    Notice(&'a str),
    /// It has been quiet for a while: a clock may go on.
    Nothing,
}

fn lay_out(dir: &Path, files: &[HostFile]) -> Result<(), Report> {
    let failed = |error: io::Error| Report::new("cannot lay out the files of the step").with_cause(error);
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

/// A container as a build wants it: root's usual capabilities, and set-uid programs that work (an image's `sudo` is part of many recipes).
fn request(image_id: Digest, words: Vec<String>, env: Vec<(String, String)>, mounts: Vec<MountRequest>) -> Request {
    let image = image_id.to_string();
    Request {
        entrypoint: Some(Vec::new()),
        env,
        auto_remove: true,
        mounts,
        network: NetworkMode::Host,
        no_new_privileges: false,
        ..Request::bare(image.clone(), image, Payload::Command(words))
    }
}

fn listen(
    spawned: &launch::Spawned,
    signals: Option<&SignalFd>,
    output: &mut dyn FnMut(Heard<'_>),
) -> Result<State, Report> {
    let lost = |error: io::Error| Report::new("cannot talk to the supervisor of the step").with_cause(error);
    let connection = &spawned.connection;
    connection.send(&ToSupervisor::Attach { stdin: false }).map_err(lost)?;
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
            connection.send(&ToSupervisor::Stop { timeout: Some(0) }).map_err(lost)?;
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
            None => return Err(Report::new("the supervisor of the step was killed")),
        }
    }
}

/// Whether a person wants the build to end.
pub fn take_interrupt(signals: &SignalFd) -> bool {
    let mut interrupted = false;
    while let Ok(Some(info)) = signals.read_signal() {
        interrupted |= info.ssi_signo != nix::sys::signal::Signal::SIGWINCH as u32;
    }
    interrupted
}

/// Lets time go by, unless a person wants the build to end meanwhile.
pub fn pause(signals: Option<&SignalFd>, time: Duration) -> Result<(), Report> {
    let Some(signals) = signals else {
        std::thread::sleep(time);
        return Ok(());
    };
    let end = Instant::now() + time;
    loop {
        // What ends it early is looked at here, in whatever way it ends.
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

/// How an interrupted build ends.
pub fn interruption() -> Report {
    Report::new("the build was interrupted").with_exit_code(130)
}

impl Step<'_> {
    /// What it wrote, as a layer of the draft; nothing, if it wrote nothing.
    pub fn layer(&self, draft: &mut Draft<'_>, lower: &Tree, clamp: Option<i64>) -> Result<Option<Digest>, Report> {
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
    pub fn remove(self) -> Result<(), Report> {
        launch::remove(self.records, &self.entry)
    }
}
