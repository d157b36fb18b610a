//! `gpurun attach`, and the relay between a person and a container that `run` and `start` share.

use std::io::{self, IsTerminal};

use clap::Args;
use nix::sys::signal::Signal;

use super::detach::DetachKeys;
use super::session::{Event, Keys, Session, pass_on, take_signals};
use super::{Context, print};
use crate::record::Entry;
use crate::report::Report;
use crate::supervise::protocol::{Connection, FromSupervisor, ToSupervisor};

#[derive(Debug, Args)]
pub struct AttachArgs {
    /// Do not pass standard input on
    #[arg(long)]
    no_stdin: bool,
    /// Keys that leave the container to itself
    #[arg(long, value_name = "KEYS", env = "GPURUN_DETACH_KEYS", default_value = "ctrl-p,ctrl-q")]
    detach_keys: String,
    /// The container: name, id, or an unambiguous beginning of one
    container: String,
}

/// What ctrl-c (and a signal sent to the command) does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Interrupt {
    /// It goes to the container's process.
    Forward,
    /// The container's terminal has the keys; signals sent from outside are forwarded all the same.
    Ignore,
    /// It stops the container in good order.
    Stop,
}

pub fn run(args: &AttachArgs, context: &Context) -> Result<u8, Report> {
    let entry = context.records()?.find(&args.container)?;
    let request = &entry.record.request;
    let tty = request.tty;
    let keys = if request.interactive && !args.no_stdin { Keys::Typed { tty } } else { Keys::Ignored };
    if keys == (Keys::Typed { tty: true }) {
        need_terminal()?;
    }
    let mut session = Session::new(connect(&entry)?, take_signals()?, keys, DetachKeys::parse(&args.detach_keys)?);
    session.attach(tty)?;
    session.begin_keys();
    relay(&mut session, if tty { Interrupt::Ignore } else { Interrupt::Forward })
}

/// Connects to the supervisor of a running container.
pub fn connect(entry: &Entry) -> Result<Connection, Report> {
    Connection::connect(&entry.control_socket()).map_err(|error| {
        let name = &entry.record.name;
        match error.kind() {
            io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => {
                Report::new(format!("container `{name}` is not running"))
                    .with_hint(format!("start it with `gpurun start {name}`"))
            }
            _ => Report::new(format!("cannot reach the supervisor of container `{name}`")).with_cause(error),
        }
    })
}

/// The name of a container, by its id.
pub fn name_of(context: &Context, id: &str) -> Result<String, Report> {
    let records = crate::record::Records::open(&context.root, &context.run_dir)?;
    Ok(records.get(id)?.map_or_else(|| crate::record::short(id).to_owned(), |entry| entry.record.name))
}

/// `-it` without a terminal cannot work: say so before anything starts, as docker does.
pub fn need_terminal() -> Result<(), Report> {
    if io::stdin().is_terminal() {
        return Ok(());
    }
    Err(Report::usage("`-t` needs a terminal, but standard input is none")
        .with_hint("leave `-t` out where the input is a pipe or a file"))
}

/// What becomes of a container whose output cannot be shown any more.
const LEFT: &str = "the container goes on; `gpurun ps` shows it, `gpurun stop` ends it";
/// The kernel keeps signals from a pid 1 that has no handler for them: ctrl-c then does nothing at all, and nothing says so.
const DEAF: &str = "\ngpurun: the container's process does not end by ctrl-c; `gpurun stop` ends it, and with `--init` it hears signals";

/// Passes everything to and fro until the container ends or the person leaves; the exit code is the container's.
pub fn relay(session: &mut Session, interrupt: Interrupt) -> Result<u8, Report> {
    let mut interrupts = 0;
    loop {
        match session.next(None, None)? {
            Event::Message(message @ (FromSupervisor::Stdout(_) | FromSupervisor::Stderr(_))) => {
                if let Err(error) = pass_on(&message) {
                    session.end_keys();
                    if error.kind() != io::ErrorKind::BrokenPipe {
                        return Err(Report::new("cannot write the container's output")
                            .with_cause(error)
                            .with_hint(LEFT));
                    }
                    // Our own reader went away: end as a program in a pipe does.
                    print::say(&format!("gpurun: nobody reads the container's output any more: {LEFT}"));
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
                session.outlive();
                return Err(report);
            }
            // In raw mode a line feed alone goes straight down.
            Event::Message(FromSupervisor::Notice(line)) => {
                print::tell(&format!("gpurun: {line}{}", session.line_end()))
            }
            Event::Message(FromSupervisor::Restarting { code }) => {
                print::tell(&format!("gpurun: ended with status {code}, starting again{}", session.line_end()));
            }
            Event::Message(_) | Event::Extra | Event::TimedOut => {}
            Event::Detach => {
                session.end_keys();
                print::say("\ngpurun: left running");
                return Ok(0);
            }
            // The person's terminal is gone, not the person's wish: the container goes on.
            Event::Signal(Signal::SIGHUP) if interrupt != Interrupt::Forward => return Ok(0),
            Event::Signal(signal) => match interrupt {
                Interrupt::Stop => {
                    interrupts += 1;
                    // The second ctrl-c means now.
                    session.send(&ToSupervisor::Stop { timeout: (interrupts > 1).then_some(0) })?;
                }
                Interrupt::Forward | Interrupt::Ignore => {
                    interrupts += i32::from(signal == Signal::SIGINT);
                    if interrupts == 2 {
                        print::say(DEAF);
                    }
                    session.send(&ToSupervisor::Signal { number: signal as i32, stops: false })?;
                }
            },
            Event::HungUp => {
                session.end_keys();
                return Err(Report::new("the container's supervisor was killed, and the container with it")
                    .with_hint("what it left is cleared away by the next gpurun command"));
            }
        }
    }
}
