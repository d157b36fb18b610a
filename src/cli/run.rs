//! `gpurun run [flags] IMAGE [COMMAND…]`: any command in a new container, docker's way.

use clap::Args;

use super::attach::{self, Interrupt};
use super::detach::DetachKeys;
use super::flags::ContainerFlags;
use super::session::{Event, Keys, Session, take_signals};
use super::{Context, print};
use crate::durable::ProcessLock;
use crate::launch::{self, Spawned};
use crate::names;
use crate::record::{Entry, LimitRow, Record, RecordError, Records, Secrets, State};
use crate::report::Report;
use crate::request::{Payload, Request};
use crate::supervise::log;
use crate::supervise::protocol::{FromSupervisor, ToSupervisor};

#[derive(Debug, Args)]
#[command(disable_help_flag = true)]
pub struct RunArgs {
    /// Print help
    #[arg(long, action = clap::ArgAction::Help)]
    help: Option<bool>,
    #[command(flatten)]
    flags: ContainerFlags,
    /// The image: a name, a name with tag, an id, an unambiguous beginning of one; or `./FILE.tar`, a docker-archive or OCI layout that
    /// is run from where it lies, without a copy in the store
    image: String,
    /// The command and its arguments (default: the image's own)
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    command: Vec<String>,
}

pub fn run(args: &RunArgs, context: &Context) -> Result<u8, Report> {
    let payload = Payload::Command(args.command.clone());
    let mut request = super::request::build(&args.flags, &args.image, payload)?;
    // What is wrong with the flags is said before an image is pulled for them.
    launch::check(&request)?;
    let store = context.store()?;
    // Held until the container is on record: then nobody removes its image.
    let (hold, image) = args.flags.image.provide(&store, &args.image)?;
    request.image_id = image.id.to_string();
    if request.tty && request.interactive && !args.flags.detach {
        attach::need_terminal()?;
    }
    let detach_keys = DetachKeys::parse(&args.flags.detach_keys)?;
    let signals = take_signals()?;
    let spawned = start_new(context, args.flags.name.as_deref(), request, None)?;
    drop(hold);
    let id = spawned.id.clone();
    let (tty, interactive) = (args.flags.tty, args.flags.interactive);
    if args.flags.detach {
        let mut session = Session::new(spawned, signals, Keys::Ignored, detach_keys);
        wait_running(&mut session, context.verbose)?;
        super::print::out(&format!("{id}\n"))?;
        return Ok(0);
    }
    let keys = if interactive { Keys::Typed { tty } } else { Keys::Ignored };
    let mut session = Session::new(spawned, signals, keys, detach_keys);
    session.attach(tty)?;
    wait_running(&mut session, context.verbose)?;
    session.begin_keys();
    attach::relay(&mut session, if tty { Interrupt::Ignore } else { Interrupt::Forward })
}

/// Writes the record of a new container and starts its supervisor.
pub fn start_new(
    context: &Context,
    name: Option<&str>,
    request: Request,
    secrets: Option<&Secrets>,
) -> Result<Spawned, Report> {
    let records = context.records()?;
    let (entry, launching) = record(&records, name, request, secrets)?;
    match launch::spawn(&context.root, &context.run_dir, &entry, launching) {
        Ok(spawned) => Ok(spawned),
        Err(report) => {
            // Nothing runs: the record that was written for it goes again.
            let _ = launch::remove(&records, &entry);
            Err(report)
        }
    }
}

/// Writes the record under the name that was asked for, or under one that nobody has.
fn record(
    records: &Records,
    name: Option<&str>,
    request: Request,
    secrets: Option<&Secrets>,
) -> Result<(Entry, ProcessLock), Report> {
    let asked = name.map(str::parse::<names::ContainerName>).transpose()?.map(|name| name.to_string());
    let made_up = asked.is_none();
    let mut record =
        Record::new(names::new_container_id(), asked.unwrap_or_else(names::random_name), log::now(), request);
    for attempt in 1.. {
        match records.create(&record, secrets) {
            // Two commands may make up the same name at once; where most of the thousand are taken, a number helps.
            Err(RecordError::NameTaken { .. }) if made_up => {
                record.name = names::random_name();
                if attempt > 8 {
                    record.name.push_str(&format!("_{attempt}"));
                }
            }
            created => return Ok(created?),
        }
    }
    unreachable!("the loop ends with a name")
}

/// Waits for the end of the launch, showing its notices; the limits' table too where more was asked for.
pub fn wait_running(session: &mut Session, verbose: bool) -> Result<State, Report> {
    loop {
        match session.next(None, None)? {
            Event::Message(FromSupervisor::Running(state)) => return Ok(*state),
            Event::Message(FromSupervisor::Failed(report)) => {
                session.outlive();
                return Err(report);
            }
            Event::Message(FromSupervisor::Notice(line)) => print::say(&format!("gpurun: {line}")),
            Event::Message(FromSupervisor::Detail(line)) if verbose => print::say(&format!("gpurun: {line}")),
            Event::Message(FromSupervisor::Limits(rows)) if verbose => print::tell(&limits_text(&rows)),
            // A process that ended at once may have been heard of before the launch was.
            Event::Message(FromSupervisor::Exited(state)) => return Ok(*state),
            Event::Message(_) | Event::Extra | Event::TimedOut | Event::Detach => {}
            Event::Signal(_) => session.send(&ToSupervisor::Stop { timeout: Some(0) })?,
            Event::HungUp => {
                return Err(Report::new("the container's supervisor ended during the launch").with_hint(
                    "what it left is cleared away by the next gpurun command; `GPURUN_LOG=debug` shows more",
                ));
            }
        }
    }
}

/// One line a limit: flag → file → value.
pub fn limits_text(rows: &[LimitRow]) -> String {
    let mut text = String::new();
    for row in rows {
        let note = row.note.as_ref().map(|note| format!("  ({note})")).unwrap_or_default();
        let effective =
            if row.effective == row.kernel { String::new() } else { format!("  effective {}", row.effective) };
        // Some files have a line a device, or a key.
        let kernel = row.kernel.replace('\n', ", ");
        text.push_str(&format!("{} {} → {} = {kernel}{effective}{note}\n", row.flag, row.asked, row.file));
    }
    text
}
