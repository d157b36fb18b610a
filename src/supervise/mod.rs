//! The supervisor, `gpurun supervise ID`: one small single-threaded process for each container.
//!
//! It creates the container (through `launch`), holds its pty or pipes, writes its log, answers on its control socket,
//! counts OOM kills, enforces limits of time, restarts it according to its policy, records how it ended, and cleans up.
//! The container lives as long as this process: pid 1 has PDEATHSIG KILL, and a keeper ends the container where that signal is not enough
//! (`launch::keeper`). After a SIGKILL of the supervisor, the next command cleans up the rest (`launch::reconcile`).
//!
//! ```text
//! /run/gpurun/ID/alive      record lock: held as long as this process lives
//! /run/gpurun/ID/forks      flock: held as long as this process or one that it has forked lives (see `record`)
//! /run/gpurun/ID/control    SOCK_SEQPACKET socket: see `control`
//! /run/gpurun/ID/supervisor.json    the version of this process and of its protocol
//! /var/lib/gpurun/containers/ID/{state.json,log}
//! ```
//!
//! This process never spawns a thread, because libcontainer's clone3 deadlocks in a threaded process.

mod change;
mod checks;
mod clients;
pub(crate) mod diagnostics;
mod health;
pub(crate) mod log;
mod messages;
pub(crate) mod oom;
pub(crate) mod probe;
mod supervisor;
mod time_limits;
mod timers;
mod turn;
mod watch;

use std::os::fd::OwnedFd;
use std::path::Path;
use std::time::{Duration, Instant};

use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};

use crate::control::{Announcement, Connection, FromSupervisor, Listener};
use crate::durable::ProcessLock;
use crate::gpu::lease;
use crate::launch::{self, Container, Ending, Progress};
use crate::record::{Phase, Records, State, history};
use crate::report::Report;
use clients::Clients;
use log::Log;
pub(crate) use supervisor::Supervisor;
use timers::Timers;
use watch::Watch;

/// How long a container must have run before its restart delay is reset (docker's rule).
const SETTLED: Duration = Duration::from_secs(10);
const FIRST_DELAY: Duration = Duration::from_millis(100);
const LONGEST_DELAY: Duration = Duration::from_secs(60);
/// How long the last messages may take to reach clients that do not read.
const LAST_WORDS: Duration = Duration::from_secs(30);

/// Supervises the container `id` until it has ended for good. `client` is the socket of the command that started it.
pub(crate) fn main(root: &Path, run_dir: &Path, id: &str, client: Option<OwnedFd>) -> Result<(), Report> {
    let client = client.map(Connection::from_fd);
    let mut supervisor = match Supervisor::new(root, run_dir, id) {
        Ok(supervisor) => supervisor,
        Err(report) => {
            if let Some(client) = client {
                // Only the waiting command can show this error.
                let _ = client.send(&FromSupervisor::Failed(report.clone()));
            }
            return Err(report);
        }
    };
    if let Some(client) = client {
        supervisor.clients.add(client);
    }
    supervisor.live();
    Ok(())
}

impl Supervisor {
    fn new(root: &Path, run_dir: &Path, id: &str) -> Result<Self, Report> {
        let failed = |what: &str| {
            let what = what.to_owned();
            move |error: std::io::Error| Report::new(format!("cannot {what}")).with_cause(error)
        };
        let records = Records::open(root, run_dir)?;
        let known = || records.get(id)?.ok_or_else(|| Report::new(format!("there is no record of the container {id}")));
        let (entry, alive) = {
            // Under this lock, no command removes the container between the two steps.
            let _lock = records.lock()?;
            let entry = known()?;
            std::fs::create_dir_all(&entry.run_dir).map_err(failed("create the container's directory in /run"))?;
            let alive = ProcessLock::try_take(&entry.run_dir.join("alive"))
                .map_err(failed("take the supervisor's lock"))?
                .ok_or_else(|| Report::new(format!("container `{}` is running already", entry.record.name)))?;
            (entry, alive)
        };
        let forks = entry.hold_forks()?.ok_or_else(|| {
            Report::new(format!(
                "processes of an earlier launch of container `{}` have not ended yet",
                entry.record.name
            ))
            .with_hint("try again in a moment")
        })?;
        let in_use = entry.in_use()?;
        let mut handled = SigSet::empty();
        for signal in [Signal::SIGCHLD, Signal::SIGTERM, Signal::SIGINT] {
            handled.add(signal);
        }
        handled.thread_block().map_err(|errno| Report::new("cannot block signals").with_cause(errno))?;
        let signals = SignalFd::with_flags(&handled, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK)
            .map_err(|errno| Report::new("cannot create a signalfd").with_cause(errno))?;
        Announcement::own().write(&entry.run_dir).map_err(failed("announce the supervisor"))?;
        let listener = Listener::bind(&entry.control_socket()).map_err(failed("bind the control socket"))?;
        // Read the record again under its lock: a command that found no supervisor a moment ago may still be writing
        // it. Later commands find the lock above and the socket.
        let entry = match entry.record.step {
            true => entry,
            false => {
                let _lock = entry.record_lock()?;
                known()?
            }
        };
        let log =
            Log::open(&entry.log(), entry.record.request.log.clone()).map_err(failed("open the container's log"))?;
        let last = entry.state()?;
        let (ran, kept) = (last.has_run(), last.kept);
        Ok(Self {
            records,
            root: root.to_path_buf(),
            state: before_run(last),
            clients: Clients::default(),
            listener,
            signals,
            log,
            stopping: false,
            by_host: false,
            paused: false,
            timers: Timers::default(),
            oom_looks: 0,
            unhealthy: false,
            late_check: None,
            again: false,
            checks: None,
            watch: Watch::begin(),
            ooms_told: 0,
            ooms_until_us: 0,
            first_run: !ran,
            ran: ran || kept,
            lived: false,
            clean: true,
            remove: entry.record.request.auto_remove,
            entry,
            _alive: alive,
            _forks: forks,
            _in_use: in_use,
        })
    }

    /// Runs the container, restarts it according to its policy, and cleans up everything except the record.
    fn live(&mut self) {
        let mut delay = FIRST_DELAY;
        loop {
            let began = Instant::now();
            let ending = match self.run_once() {
                Ok(ending) => ending,
                Err(report) if self.is_tried_again(&report) => {
                    tracing::info!("{report}");
                    // The record and the directory in /run stay for the next supervisor.
                    let _ = std::fs::remove_file(self.entry.control_socket());
                    self.last_message(&FromSupervisor::Failed(report));
                    break;
                }
                Err(report) => {
                    // A container that has never run has no files and no history, so it is removed, and its name is
                    // free for the next attempt. A container that has run is kept.
                    self.remove = self.remove || (!self.ran && !self.entry.record.step);
                    self.clean &= report.afterwards.is_empty();
                    self.state.exit_code = Some(report.exit_code);
                    self.state.error = Some(report.clone());
                    tracing::error!("{report}");
                    self.finish();
                    self.last_message(&FromSupervisor::Failed(report));
                    break;
                }
            };
            let policy = self.entry.record.request.restart;
            let again = std::mem::take(&mut self.again) || policy.restarts(ending.code, self.state.restarts);
            if self.stopping || !again {
                self.finish();
                self.last_message(&FromSupervisor::Exited(Box::new(self.state.clone())));
                break;
            }
            if began.elapsed() >= SETTLED {
                delay = FIRST_DELAY;
            }
            self.state.phase = Phase::Restarting;
            self.save();
            self.clients.tell(&FromSupervisor::Restarting { code: ending.code });
            if !self.wait_for(delay) {
                self.finish();
                self.last_message(&FromSupervisor::Exited(Box::new(self.state.clone())));
                break;
            }
            self.state.restarts += 1;
            delay = (delay * 2).min(LONGEST_DELAY);
        }
        self.clients.drain(LAST_WORDS);
    }

    /// Whether the command that started this supervisor goes back to the queue for GPUs (`--wait`) and starts another
    /// one. It holds the container's `launching` lock until then.
    fn is_tried_again(&self, report: &Report) -> bool {
        let waits = self.entry.record.request.gpu_wait.is_some();
        waits && report.is_transient && report.afterwards.is_empty() && !self.lived && !self.stopping
    }

    /// Sends the last message, including to clients whose connection has not been accepted yet. The socket's name is
    /// already removed, so no more clients can connect.
    fn last_message(&mut self, message: &FromSupervisor) {
        while let Ok(Some(connection)) = self.listener.accept() {
            self.clients.add(connection);
        }
        self.tell_late_check();
        self.clients.tell(message);
    }

    /// One run of the container, from the first mount to the last undo action.
    fn run_once(&mut self) -> Result<Ending, Report> {
        self.timers = Timers::default();
        let clients = &mut self.clients;
        let mut created = launch::create(&self.root, &self.records, &self.entry, &mut |progress| {
            clients.tell(&match progress {
                Progress::Notice(line) => FromSupervisor::Notice(line),
                Progress::Detail(line) => FromSupervisor::Detail(line),
                Progress::Step(what) => FromSupervisor::Step(what.to_owned()),
                Progress::Limits(rows) => FromSupervisor::Limits(rows),
            });
        })?;
        let first_run = std::mem::take(&mut self.first_run);
        self.forget_old_ooms(created.container(), first_run);
        // The waiting command sends its terminal's size and "attach" right away. Both must take effect before the first
        // byte of output.
        self.hear_everybody(created.container());
        let (started, finished) = (self.state.started, self.state.finished);
        self.note_start();
        let mut container = created.start(&self.entry.record.request).inspect_err(|_| {
            (self.state.started, self.state.finished) = (started, finished);
        })?;
        self.begin_health(&container);
        self.announce(&container);
        launch::step("running");
        let ending = self.watch(&mut container);
        self.end_health();
        let oom_kills = self.last_oom_look(&container);
        self.state.oom_kills += oom_kills;
        self.state.oom_killed = self.ended_by_oom(ending.code, oom_kills);
        self.state.usage = Some(container.usage());
        self.paused = false;
        self.clients.end_holds();
        self.state.paused = false;
        self.state.exit_code = Some(ending.code);
        let leftovers = container.clear();
        self.clean = leftovers.is_empty();
        if !leftovers.is_empty() {
            let mut report = Report::new("the container ended, but its clean-up is incomplete");
            report.afterwards = leftovers;
            tracing::error!("{report}");
            self.state.error = Some(report.with_hint("the next gpurun command tries again"));
        }
        Ok(ending)
    }

    /// Records the start before the container's process executes its first instruction. So the container counts as one
    /// that has run even if this supervisor is killed next.
    fn note_start(&mut self) {
        self.state.started = Some(crate::clock::now());
        self.state.finished = None;
        if !self.entry.record.step {
            self.save();
        }
    }

    fn announce(&mut self, container: &Container) {
        self.ran = true;
        self.lived = true;
        self.state.phase = Phase::Running;
        self.state.exit_code = None;
        self.state.usage = None;
        self.state.error = None;
        self.state.stopped_by_user = false;
        self.state.stop_reason = None;
        self.watch = Watch::begin();
        self.state.url = None;
        container.describe(&mut self.state);
        self.save();
        self.tell_late_check();
        self.clients.tell(&FromSupervisor::Running(Box::new(self.state.clone())));
    }

    /// Records the end, and removes the directory in /run, whose absence means that nothing is left to clean up.
    fn finish(&mut self) {
        self.state.phase = Phase::Exited;
        // A failed start does not change when the last run ended.
        if self.lived || self.state.finished.is_none() {
            self.state.finished = Some(crate::clock::now());
        }
        self.state.stopped_by_user = self.stopping && !self.by_host && self.state.stop_reason.is_none();
        self.state.pid = None;
        self.state.pid_start = None;
        self.state.url = None;
        if self.entry.record.step || !self.remove {
            self.save();
        }
        if self.entry.record.step {
            // The builder reads the written files and then removes the step.
            return;
        }
        if let Err(error) = lease::release(&self.records.run_dir().join("gpus"), &self.entry.record.id) {
            tracing::warn!("{error}");
        }
        if self.remove {
            history::note_removal(self.records.run_dir(), &self.entry.record, &self.state);
        }
        let removed = match (self.remove, self.clean) {
            (true, clean) => launch::remove_own(&self.records, &self.entry, clean),
            (false, true) => launch::clear_run_dir(&self.entry),
            // Keep the directory: it makes the next command clean up the rest.
            (false, false) => Ok(()),
        };
        let with_image = self.remove && self.lived && self.entry.record.request.remove_image;
        let removed = removed.and_then(|()| match with_image {
            true => launch::remove_image(&self.root, self.records.run_dir(), &self.entry),
            false => Ok(()),
        });
        if let Err(report) = removed {
            tracing::warn!("{report}");
        }
        if self.remove && self.state.error.is_none() && self.state.exit_code == Some(0) {
            diagnostics::remove(&self.entry.diagnostics());
        }
    }

    fn save(&self) {
        if let Err(error) = self.entry.write_state(&self.state) {
            tracing::error!("{}", Report::from(error));
        }
    }
}

/// The initial state of a supervisor. It keeps the results of the last run, so that a failed start does not lose them.
fn before_run(last: State) -> State {
    State {
        phase: if last.has_run() { Phase::Exited } else { Phase::Created },
        boot_id: crate::sys::process::boot_id(),
        pid: None,
        pid_start: None,
        paused: false,
        oom_killed: false,
        oom_kills: 0,
        error: None,
        restarts: 0,
        url: None,
        ..last
    }
}

/// Detaches this process from the terminal: a new session, and standard streams on /dev/null.
pub(crate) fn detach_from_terminal() -> Result<(), Report> {
    // This fails only if the process already leads a group, and then it only lacks the new session.
    let _ = nix::unistd::setsid();
    let null = std::fs::OpenOptions::new()
        .read(true)
        .write(true)
        .open("/dev/null")
        .map_err(|error| Report::new("cannot open `/dev/null`").with_cause(error))?;
    for result in [nix::unistd::dup2_stdin(&null), nix::unistd::dup2_stdout(&null), nix::unistd::dup2_stderr(&null)] {
        result.map_err(|errno| Report::new("cannot put the streams on `/dev/null`").with_cause(errno))?;
    }
    Ok(())
}
