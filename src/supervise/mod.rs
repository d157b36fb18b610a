//! One small single-threaded process per container: `gpurun supervise ID`.
//!
//! It makes the container (through `launch`), holds its pty or pipes, writes its log, answers on its control socket, counts OOM kills, starts it
//! again where its policy says so, writes the exit report and removes what was made. The container lives as long as this process: pid 1 has
//! PDEATHSIG KILL, and what a SIGKILLed supervisor leaves is cleared by the next command (`launch::reconcile`).
//!
//! ```text
//! /run/gpurun/ID/alive      record lock: held as long as this process lives
//! /run/gpurun/ID/control    SOCK_SEQPACKET socket: see `protocol`
//! /var/lib/gpurun/containers/ID/{state.json,log}
//! ```
//!
//! No thread is ever spawned here: libcontainer's clone3 deadlocks in a threaded process.

mod change;
mod clients;
pub mod log;
pub mod oom;
pub mod protocol;
mod turn;

use std::os::fd::OwnedFd;
use std::path::Path;
use std::time::{Duration, Instant};

use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};

use crate::durable::ProcessLock;
use crate::launch::{self, Container, Ending, Progress};
use crate::record::{Entry, Phase, Records, State};
use crate::report::Report;
use clients::Clients;
use log::Log;
use protocol::{Connection, FromSupervisor, Listener};

/// How long a container must have run for its restart delay to start over (docker's rule).
const SETTLED: Duration = Duration::from_secs(10);
const FIRST_DELAY: Duration = Duration::from_millis(100);
const LONGEST_DELAY: Duration = Duration::from_secs(60);
/// How long the last words may take to reach clients that do not read.
const LAST_WORDS: Duration = Duration::from_secs(30);

/// What outlives a single run of the container.
#[derive(Debug)]
pub struct Supervisor {
    entry: Entry,
    records: Records,
    root: std::path::PathBuf,
    state: State,
    clients: Clients,
    listener: Listener,
    signals: SignalFd,
    log: Log,
    /// A person asked for the end: the restart policy is off.
    stopping: bool,
    /// When to count OOM kills again, and how often still: the kernel tells of an OOM before it has killed.
    oom_look: Option<(Instant, u32)>,
    /// How many kills of this run a person has been told of.
    ooms_told: u64,
    /// The last kill of an earlier run that the kernel's log tells of, in microseconds since boot.
    ooms_until_us: u64,
    /// Whether the container never ran before.
    first_run: bool,
    /// Whether it ever ran, in this supervisor's life or before.
    ran: bool,
    /// Whether nothing of it shall be left at the end.
    remove: bool,
    /// When patience ends and SIGKILL follows.
    kill_at: Option<Instant>,
    _alive: ProcessLock,
}

/// Runs the container `id` until it has ended for good. `client` is the socket of the command that started it.
pub fn main(root: &Path, run_dir: &Path, id: &str, client: Option<OwnedFd>) -> Result<(), Report> {
    let client = client.map(Connection::from_fd);
    let mut supervisor = match Supervisor::new(root, run_dir, id) {
        Ok(supervisor) => supervisor,
        Err(report) => {
            if let Some(client) = client {
                // The command that waits there is the only one who can show it.
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

/// The descriptor on which a supervisor finds the socket of the command that started it.
pub const CLIENT_FD: i32 = 3;

/// Takes ownership of [`CLIENT_FD`], if it is open.
#[must_use]
pub fn inherited_client() -> Option<OwnedFd> {
    crate::sys::process::take_inherited_fd(CLIENT_FD)
}

impl Supervisor {
    fn new(root: &Path, run_dir: &Path, id: &str) -> Result<Self, Report> {
        let failed = |what: &str| {
            let what = what.to_owned();
            move |error: std::io::Error| Report::new(format!("cannot {what}")).with_cause(error)
        };
        let records = Records::open(root, run_dir)?;
        let known = || records.get(id)?.ok_or_else(|| Report::new(format!("there is no record of the container {id}")));
        let entry = known()?;
        std::fs::create_dir_all(&entry.run_dir).map_err(failed("make the container's directory in /run"))?;
        let alive = ProcessLock::try_take(&entry.run_dir.join("alive"))
            .map_err(failed("take the supervisor's lock"))?
            .ok_or_else(|| Report::new(format!("container `{}` is running already", entry.record.name)))?;
        let mut handled = SigSet::empty();
        for signal in [Signal::SIGCHLD, Signal::SIGTERM, Signal::SIGINT] {
            handled.add(signal);
        }
        handled.thread_block().map_err(|errno| Report::new("cannot block signals").with_cause(errno))?;
        let signals = SignalFd::with_flags(&handled, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK)
            .map_err(|errno| Report::new("cannot make a signalfd").with_cause(errno))?;
        let listener = Listener::bind(&entry.control_socket()).map_err(failed("bind the control socket"))?;
        // Once more: a command that took nobody for alive, a moment ago, may just write it. Who comes later finds the lock above and the socket.
        let entry = match entry.record.step {
            true => entry,
            false => {
                let _lock = entry.record_lock()?;
                known()?
            }
        };
        let log = Log::open(&entry.log()).map_err(failed("open the container's log"))?;
        let ran = entry.state()?.started.is_some();
        Ok(Self {
            records,
            root: root.to_path_buf(),
            state: State { boot_id: launch::boot_id(), ..State::default() },
            clients: Clients::default(),
            listener,
            signals,
            log,
            stopping: false,
            kill_at: None,
            oom_look: None,
            ooms_told: 0,
            ooms_until_us: 0,
            first_run: !ran,
            ran,
            remove: entry.record.request.auto_remove,
            entry,
            _alive: alive,
        })
    }

    /// Runs, and runs again as the policy says; then leaves nothing behind but the record.
    fn live(&mut self) {
        let mut delay = FIRST_DELAY;
        loop {
            let began = Instant::now();
            let ending = match self.run_once() {
                Ok(ending) => ending,
                Err(report) => {
                    // What never ran has nothing to look at: its name is free for the next attempt.
                    self.remove = self.remove || (!self.ran && !self.entry.record.step);
                    self.state.exit_code = Some(report.exit_code);
                    self.state.error = Some(report.clone());
                    self.finish();
                    self.clients.tell(&FromSupervisor::Failed(report));
                    break;
                }
            };
            let policy = self.entry.record.request.restart;
            if self.stopping || !policy.restarts(ending.code, self.state.restarts) {
                self.finish();
                self.clients.tell(&FromSupervisor::Exited(Box::new(self.state.clone())));
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
                self.clients.tell(&FromSupervisor::Exited(Box::new(self.state.clone())));
                break;
            }
            self.state.restarts += 1;
            delay = (delay * 2).min(LONGEST_DELAY);
        }
        self.clients.drain(LAST_WORDS);
    }

    /// One run of the container, from the first mount to the last undone step.
    fn run_once(&mut self) -> Result<Ending, Report> {
        self.kill_at = None;
        self.oom_look = None;
        let clients = &mut self.clients;
        let mut container = launch::create(&self.root, &self.records, &self.entry, &mut |progress| {
            clients.tell(&match progress {
                Progress::Notice(line) => FromSupervisor::Notice(line),
                Progress::Detail(line) => FromSupervisor::Detail(line),
                Progress::Limits(rows) => FromSupervisor::Limits(rows),
            });
        })?;
        let first_run = std::mem::take(&mut self.first_run);
        self.forget_old_ooms(&container, first_run);
        // The command that waits sends its terminal's size and "attach" right away: both must hold before the first byte of output.
        self.hear_everybody(&mut container);
        if let Err(report) = container.start(&self.entry) {
            return Err(container.give_up(report));
        }
        self.announce(&container);
        launch::step("running");
        let ending = self.watch(&mut container);
        self.last_oom_look(&container);
        self.state.oom_kills += container.oom_kills();
        self.state.oom_killed = self.state.oom_kills > 0;
        self.state.usage = Some(container.usage());
        self.state.paused = false;
        self.state.exit_code = Some(ending.code);
        let leftovers = container.clear();
        if !leftovers.is_empty() {
            let mut report = Report::new("the container ended, but not everything of it could be cleared away");
            report.afterwards = leftovers;
            self.state.error = Some(report.with_hint("the next gpurun command tries again"));
        }
        Ok(ending)
    }

    fn announce(&mut self, container: &Container) {
        self.ran = true;
        self.state.phase = Phase::Running;
        self.state.started = Some(log::now());
        self.state.finished = None;
        self.state.exit_code = None;
        self.state.error = None;
        self.state.stopped_by_user = false;
        self.state.url = None;
        container.describe(&mut self.state);
        self.save();
        self.clients.tell(&FromSupervisor::Running(Box::new(self.state.clone())));
    }

    /// The exit report, and the directory in /run, which says that there is nothing left to clear.
    fn finish(&mut self) {
        self.state.phase = Phase::Exited;
        self.state.finished = Some(log::now());
        self.state.stopped_by_user = self.stopping;
        self.state.pid = None;
        self.state.pid_start = None;
        self.state.url = None;
        if self.entry.record.step || !self.remove {
            self.save();
        }
        if self.entry.record.step {
            // The builder reads what was written, and then removes it.
            return;
        }
        let removed =
            if self.remove { launch::remove(&self.records, &self.entry) } else { launch::clear_run_dir(&self.entry) };
        if let Err(report) = removed {
            tracing::warn!("{report}");
        }
    }

    fn save(&self) {
        if let Err(error) = self.entry.write_state(&self.state) {
            tracing::error!("{}", Report::from(error));
        }
    }
}

/// Makes a fresh process of this one: its own session, no terminal, streams on /dev/null.
pub fn detach_from_terminal() -> Result<(), Report> {
    // Fails only where this process leads a group already: then it has what setsid gives but the session.
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
