//! `gpurun run [flags] IMAGE [COMMAND…]`: runs a command in a new container, like docker.

use clap::Args;
use nix::sys::signalfd::SignalFd;

use super::attach::{self, Interrupt};
use super::detach::DetachKeys;
use super::flags::ContainerFlags;
use super::prepare::{self, CidFile};
use super::session::{Event, Keys, Session, attachment, take_signals};
use super::waiting::Waiting;
use super::{Context, gpu_queue, print};
use crate::control::{FromSupervisor, ToSupervisor};
use crate::gpu::queue::Ticket;
use crate::launch::{self, Spawned};
use crate::names::{self, Digest};
use crate::record::{Entry, Launching, LimitRow, Owner, Record, RecordError, Records, Secrets, State};
use crate::report::Report;
use crate::request::{Attached, Payload, Request};

#[derive(Debug, Args)]
#[command(disable_help_flag = true)]
pub(super) struct RunArgs {
    /// Print help
    #[arg(long, action = clap::ArgAction::Help)]
    help: Option<bool>,
    #[command(flatten)]
    flags: ContainerFlags,
    /// Image: a name, an ID, or `./FILE.tar`, a docker-archive or OCI layout that is run in place without a copy in the store
    #[arg(value_name = "IMAGE")]
    image: String,
    /// Command and its arguments; everything after IMAGE belongs to it (default: the image's command)
    command: Vec<String>,
}

impl RunArgs {
    /// Returns the request. All errors in the flags are reported here, before an image is pulled.
    pub(super) fn check(&self) -> Result<Request, Report> {
        let payload = Payload::Command(self.command.clone());
        let request = super::request::build(&self.flags, &self.image, payload)?;
        Attached::parse(&self.flags.attach, request.interactive)?;
        launch::check(&request)?;
        check_name(self.flags.name.as_deref())?;
        Ok(request)
    }
}

pub(super) fn run(args: &RunArgs, context: &Context, remove: prepare::Remove) -> Result<u8, Report> {
    let flags = &args.flags;
    let mut request = args.check()?;
    super::boot_unit::notice(request.restart);
    let attached = Attached::parse(&flags.attach, request.interactive)?;
    let detach_keys = DetachKeys::parse(&flags.detach_keys)?;
    if request.tty && request.interactive && attached.stdin && !flags.detach {
        attach::need_terminal()?;
    }
    super::network_ids::resolve(&mut request, context)?;
    prepare::resolve_others(flags, &mut request, context)?;
    let mut cidfile = CidFile::create(request.cidfile.as_deref())?;
    let store = context.store()?;
    // Held until the record of the container exists. Until then, the lock prevents the removal of the image.
    let (hold, image) = flags.image.provide(&store, &args.image, flags.quiet)?;
    prepare::select_gpus(&mut request, &image.config)?;
    prepare::resolve_images(&mut request, &store)?;
    prepare::replace(flags, context, remove)?;
    let signals = take_signals()?;
    let tty = flags.tty;
    let keys = if flags.interactive && attached.stdin { Keys::Typed { tty } } else { Keys::Ignored };
    // With `-a stdin`, the command shows the container's ID, and ends with its input.
    let is_silent = !attached.stdout && !attached.stderr;
    let is_detached = flags.detach || (is_silent && keys == Keys::Ignored);
    let first = if is_detached { Vec::new() } else { attachment(keys, tty) };
    let new = New { name: flags.name.as_deref(), image: image.id, request, secrets: None, first: &first };
    let (spawned, ticket) = start_new(context, new, hold, &signals)?;
    let id = spawned.id.clone();
    if let Some(cidfile) = &mut cidfile {
        cidfile.write(&id)?;
    }
    if is_detached {
        let mut session = Session::new(spawned, signals, Keys::Ignored, detach_keys);
        wait_running(&mut session, context.verbose)?;
        drop(ticket);
        cidfile.into_iter().for_each(CidFile::keep);
        super::print::out(&format!("{id}\n"))?;
        return Ok(0);
    }
    let mut session = Session::new(spawned, signals, keys, detach_keys);
    session.show(attached.stdout, attached.stderr);
    wait_running(&mut session, context.verbose)?;
    drop(ticket);
    cidfile.into_iter().for_each(CidFile::keep);
    if is_silent {
        super::print::out(&format!("{id}\n"))?;
    }
    session.begin_keys();
    attach::relay(&mut session, Interrupt::of(tty, flags.sig_proxy))
}

/// Rejects a name that no container can have.
pub(super) fn check_name(name: Option<&str>) -> Result<(), Report> {
    name.map(str::parse::<names::ContainerName>).transpose()?;
    Ok(())
}

/// A container to start.
pub(super) struct New<'a> {
    pub name: Option<&'a str>,
    pub image: Digest,
    pub request: Request,
    pub secrets: Option<&'a Secrets>,
    /// The messages that are already waiting in the supervisor's socket.
    pub first: &'a [ToSupervisor],
}

/// Writes the record of a new container, waits for its GPUs if it is to wait, and starts its supervisor. Drops `hold`,
/// which prevents the removal of the image, when the record exists. The caller holds the ticket until the container runs.
pub(super) fn start_new<T>(
    context: &Context,
    new: New<'_>,
    hold: T,
    signals: &SignalFd,
) -> Result<(Spawned, Option<Ticket>), Report> {
    let records = context.records()?;
    let (entry, launching) = record(&records, new.name, new.image, new.request, new.secrets)?;
    drop(hold);
    let started = gpu_queue::wait(&entry, &context.run_dir, signals)
        .and_then(|ticket| Ok((launch::spawn(&context.root, &context.run_dir, &entry, launching, new.first)?, ticket)));
    match started {
        Ok(started) => Ok(started),
        Err(report) => {
            // No process is running, so the record is removed again.
            let _ = launch::remove(&records, &entry);
            Err(report)
        }
    }
}

/// Writes the record under the requested name, or under an unused random name.
pub(super) fn record(
    records: &Records,
    name: Option<&str>,
    image: Digest,
    request: Request,
    secrets: Option<&Secrets>,
) -> Result<(Entry, Launching), Report> {
    let asked = name.map(str::parse::<names::ContainerName>).transpose()?.map(|name| name.to_string());
    let made_up = asked.is_none();
    let (id, now) = (names::new_container_id(), crate::clock::now());
    let name = asked.unwrap_or_else(names::random_name);
    let mut record = Record::new(id, name, now, image, Owner::caller(), request);
    for attempt in 1.. {
        match records.create(&record, secrets) {
            // Two commands may generate the same name at the same time. If most of the thousand names are taken, a
            // number is appended.
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

/// Waits for the end of the launch and prints its notices. With `verbose`, prints the table of limits too.
pub(super) fn wait_running(session: &mut Session, verbose: bool) -> Result<State, Report> {
    let mut waiting = Waiting::new(session.run_dir());
    loop {
        match session.next(Some(waiting.until()), None)? {
            Event::TimedOut => waiting.notice(),
            Event::Message(FromSupervisor::Step(what)) => waiting.begins(what),
            Event::Message(FromSupervisor::Running(state)) => return Ok(*state),
            Event::Message(FromSupervisor::Failed(report)) => {
                session.discard();
                return Err(report);
            }
            Event::Message(FromSupervisor::Notice(line)) => print::say(&format!("gpurun: {line}")),
            Event::Message(FromSupervisor::Detail(line)) if verbose => print::say(&format!("gpurun: {line}")),
            Event::Message(FromSupervisor::Limits(rows)) if verbose => print::write_stderr(&limits_text(&rows)),
            // The exit of a short-lived process may be reported before the launch is.
            Event::Message(FromSupervisor::Exited(state)) => return Ok(*state),
            Event::Message(_) | Event::Extra | Event::InputEnded | Event::Detach => {}
            Event::Signal(_) => session.send(&ToSupervisor::Stop { timeout: Some(0) })?,
            Event::HungUp => return Err(session.killed("the container's supervisor ended during the launch")),
        }
    }
}

/// Formats one line per limit: flag → file → value.
pub(super) fn limits_text(rows: &[LimitRow]) -> String {
    let mut text = String::new();
    for row in rows {
        let note = row.note.as_ref().map(|note| format!("  ({note})")).unwrap_or_default();
        let effective =
            if row.effective == row.kernel { String::new() } else { format!("  effective {}", row.effective) };
        // Some files have one line per device or per key.
        let kernel = row.kernel.replace('\n', ", ");
        text.push_str(&format!("{} {} → {} = {kernel}{effective}{note}\n", row.flag, row.asked, row.file));
    }
    text
}
