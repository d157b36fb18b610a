//! `gpurun attach`, and the relay between the caller and a container that `run` and `start` also use.

use std::io::{self, IsTerminal};

use clap::Args;
use nix::sys::signal::Signal;

use super::detach::DetachKeys;
use super::session::{Event, Keys, Session, pass_on, take_signals};
use super::{Context, print};
use crate::control::{Announcement, Connection, FromSupervisor, ToSupervisor};
use crate::record::Entry;
use crate::report::{Report, printable_line};
use crate::sys::process;

#[derive(Debug, Args)]
pub(super) struct AttachArgs {
    /// Do not attach standard input
    #[arg(long)]
    no_stdin: bool,
    /// Forward signals to the container; `false` leaves the container running
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_value_t = true, default_missing_value = "true", action = clap::ArgAction::Set)]
    sig_proxy: bool,
    /// Keys that detach from the container and leave it running
    #[arg(long, value_name = "KEYS", env = "GPURUN_DETACH_KEYS", default_value = "ctrl-p,ctrl-q")]
    detach_keys: String,
    /// Name or ID of the container; the beginning is enough where it is unambiguous
    #[arg(value_name = "CONTAINER")]
    container: String,
}

/// The effect of ctrl-c and of signals sent to the command.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Interrupt {
    /// The signal is sent to the container's process.
    Forward,
    /// The container's terminal receives the keys. Signals from outside are still forwarded.
    Ignore,
    /// The container is stopped gracefully.
    Stop,
    /// This command ends, and the container keeps running.
    Leave,
}

impl Interrupt {
    /// The effect for a container with or without a terminal, and with `--sig-proxy` or without it.
    #[must_use]
    pub(super) fn of(tty: bool, sig_proxy: bool) -> Self {
        match (sig_proxy, tty) {
            (false, _) => Self::Leave,
            (true, true) => Self::Ignore,
            (true, false) => Self::Forward,
        }
    }
}

pub(super) fn run(args: &AttachArgs, context: &Context) -> Result<u8, Report> {
    let entry = context.records()?.find(&args.container)?;
    let request = &entry.record.request;
    let tty = request.tty;
    let keys = if request.interactive && !args.no_stdin { Keys::Typed { tty } } else { Keys::Ignored };
    if keys == (Keys::Typed { tty: true }) {
        need_terminal()?;
    }
    let mut session = Session::new(
        (connect(&entry, &ToSupervisor::Attach { stdin: false })?, &entry),
        take_signals()?,
        keys,
        DetachKeys::parse(&args.detach_keys)?,
    );
    session.attach(tty)?;
    session.begin_keys();
    relay(&mut session, Interrupt::of(tty, args.sig_proxy))
}

/// Connects to the supervisor of a running container, to send it such a message first.
pub(super) fn connect(entry: &Entry, message: &ToSupervisor) -> Result<Connection, Report> {
    connect_if_running(entry, message)?.ok_or_else(|| {
        let name = &entry.record.name;
        Report::new(format!("container `{name}` is not running"))
            .with_hint(format!("start it with `gpurun start {name}`"))
    })
}

/// Does the same. Without a supervisor that listens, the result is `None`.
pub(super) fn connect_if_running(entry: &Entry, message: &ToSupervisor) -> Result<Option<Connection>, Report> {
    check_version(entry, message)?;
    wake(entry)?;
    match Connection::connect(&entry.control_socket()) {
        Ok(connection) => Ok(Some(connection)),
        Err(error) if [io::ErrorKind::NotFound, io::ErrorKind::ConnectionRefused].contains(&error.kind()) => Ok(None),
        Err(error) => {
            let name = &entry.record.name;
            Err(Report::new(format!("cannot reach the supervisor of container `{name}`")).with_cause(error))
        }
    }
}

/// Refuses a message that the container's supervisor does not understand, because it is of another release.
fn check_version(entry: &Entry, message: &ToSupervisor) -> Result<(), Report> {
    let name = &entry.record.name;
    let peer = Announcement::read(&entry.run_dir).map_err(|error| {
        Report::new(format!("cannot read the version of the supervisor of `{name}`")).with_cause(error)
    })?;
    if peer.understands(message) {
        return Ok(());
    }
    let (theirs, own) = (peer.release, Announcement::own().release);
    Err(Report::new(format!(
        "cannot do this with container `{name}`: it was started by gpurun {theirs}, and this is gpurun {own}"
    ))
    .with_hint(format!("restart the container: `gpurun restart {name}`")))
}

/// Resumes a supervisor that was stopped by SIGSTOP. A stopped supervisor would neither answer a command nor react to a
/// request to stop.
fn wake(entry: &Entry) -> Result<(), Report> {
    if let Some(pid) = entry.supervisor()?
        && let Ok(pidfd) = process::open_pidfd(pid)
        && process::is_stopped(pid)
        && process::signal(&pidfd, Signal::SIGCONT as i32).is_ok()
    {
        print::say(&format!(
            "gpurun: the supervisor of `{}` (pid {pid}) was stopped; continuing it",
            entry.record.name
        ));
    }
    Ok(())
}

/// Returns the name of a container, given its id.
pub(super) fn name_of(context: &Context, id: &str) -> Result<String, Report> {
    let records = crate::record::Records::open(&context.root, &context.run_dir)?;
    Ok(records.get(id)?.map_or_else(|| crate::record::short(id).to_owned(), |entry| entry.record.name))
}

/// Refuses `-it` without a terminal before anything starts, as docker does.
pub(super) fn need_terminal() -> Result<(), Report> {
    if io::stdin().is_terminal() {
        return Ok(());
    }
    Err(Report::new("`-t` needs a terminal, and standard input is not one")
        .with_hint("omit `-t` if the input is a pipe or a file"))
}

/// The note for the caller when the container's output can no longer be written.
const KEEPS_RUNNING: &str = "the container keeps running: `gpurun ps` lists it, `gpurun stop NAME` stops it";
/// The kernel does not deliver a signal to pid 1 if pid 1 has no handler for it. Ctrl-c then has no effect, and nothing
/// explains why.
const IGNORES_CTRL_C: &str =
    "\ngpurun: the container's process ignores ctrl-c; stop it with `gpurun stop NAME`, or start it with `--init`";

/// Relays data in both directions until the container exits or the caller detaches. Returns the container's exit code.
pub(super) fn relay(session: &mut Session, interrupt: Interrupt) -> Result<u8, Report> {
    let (mut interrupts, mut is_fed) = (0, false);
    loop {
        if is_fed && session.has_sent_all() {
            session.end_keys();
            return Ok(0);
        }
        match session.next(None, None)? {
            Event::InputEnded => is_fed = true,
            Event::Message(message @ (FromSupervisor::Stdout(_) | FromSupervisor::Stderr(_)))
                if !session.shows(&message) => {}
            Event::Message(message @ (FromSupervisor::Stdout(_) | FromSupervisor::Stderr(_))) => {
                if let Err(error) = pass_on(&message) {
                    session.end_keys();
                    if error.kind() != io::ErrorKind::BrokenPipe {
                        return Err(Report::new("cannot write the container's output")
                            .with_cause(error)
                            .with_hint(KEEPS_RUNNING));
                    }
                    // The reader of standard output has closed it. Exit like a program in a pipe.
                    print::say(&format!("gpurun: standard output was closed; {KEEPS_RUNNING}"));
                    return Ok(128 + Signal::SIGPIPE as u8);
                }
            }
            Event::Message(FromSupervisor::Exited(state)) => {
                session.end_keys();
                if let Some(report) = &state.error {
                    print::say(&report.to_string());
                }
                return Ok(state.exit_code.unwrap_or(0));
            }
            Event::Message(FromSupervisor::Failed(report)) => {
                session.end_keys();
                session.discard();
                return Err(report);
            }
            // In raw mode, a line feed alone does not return to the first column.
            Event::Message(FromSupervisor::Notice(line)) => {
                print::write_stderr(&format!("gpurun: {}{}", printable_line(&line), session.line_end()))
            }
            Event::Message(FromSupervisor::Restarting { code }) => {
                print::write_stderr(&format!(
                    "gpurun: the container ended with status {code} and is restarted{}",
                    session.line_end()
                ));
            }
            Event::Message(_) | Event::Extra | Event::TimedOut => {}
            Event::Detach => {
                session.end_keys();
                print::say("\ngpurun: left running");
                return Ok(0);
            }
            // The caller's terminal has closed, but the caller has not asked to stop the container, so it keeps
            // running.
            Event::Signal(Signal::SIGHUP) if [Interrupt::Ignore, Interrupt::Stop].contains(&interrupt) => return Ok(0),
            Event::Signal(signal) => match interrupt {
                Interrupt::Leave => {
                    session.end_keys();
                    print::say("\ngpurun: left running");
                    return Ok(128 + signal as u8);
                }
                Interrupt::Stop => {
                    interrupts += 1;
                    // A second ctrl-c stops the container immediately.
                    session.send(&ToSupervisor::Stop { timeout: (interrupts > 1).then_some(0) })?;
                }
                Interrupt::Forward | Interrupt::Ignore => {
                    interrupts += i32::from(signal == Signal::SIGINT);
                    if interrupts == 2 {
                        print::say(IGNORES_CTRL_C);
                    }
                    session.send(&ToSupervisor::Signal { number: signal as i32, stops: false })?;
                }
            },
            Event::HungUp => {
                session.end_keys();
                return Err(session.killed(
                    "the container's supervisor was killed, and the kernel killed the \
                                           container",
                ));
            }
        }
    }
}
