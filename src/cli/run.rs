//! `gpurun run [flags] IMAGE [COMMAND…]`: runs a command in a new container, like docker.

use clap::Args;
use nix::sys::signalfd::SignalFd;

use super::Context;
use super::attach::{self, Interrupt};
use super::detach::DetachKeys;
use super::launching::Launch;
use super::new_container::{NewContainer, Prepared};
use super::prepare::{self, CidFile};
use super::session::{Keys, Session, attachment, take_signals};
use crate::cluster::Step;
use crate::control::ToSupervisor;
use crate::launch::Spawned;
use crate::names::{self, Digest};
use crate::record::{Entry, Launching, Owner, Record, RecordError, Records, Secrets};
use crate::report::Report;
use crate::request::Request;

#[derive(Debug, Args)]
pub(super) struct RunArgs {
    #[command(flatten)]
    new: NewContainer,
}

impl RunArgs {
    /// Checks the flags, and returns the request that they make.
    pub(super) fn check(&self) -> Result<Request, Report> {
        self.new.check()
    }
}

pub(super) fn run(args: &RunArgs, context: &Context, remove: prepare::Remove) -> Result<u8, Report> {
    let flags = &args.new.flags;
    let request = args.new.check()?;
    let attached = request.attached;
    let detach_keys = DetachKeys::parse(&flags.detach_keys)?;
    if request.tty && request.interactive && attached.stdin && !flags.detach {
        attach::need_terminal()?;
    }
    let Prepared { request, image, hold, mut cidfile } = args.new.prepare(request, context, remove)?;
    let signals = take_signals()?;
    let tty = flags.tty;
    let keys = if flags.interactive && attached.stdin { Keys::Typed { tty } } else { Keys::Ignored };
    // With `-a stdin`, the command shows the container's ID, and ends with its input.
    let is_silent = !attached.stdout && !attached.stderr;
    let is_detached = flags.detach || (is_silent && keys == Keys::Ignored);
    let first = if is_detached { Vec::new() } else { attachment(keys, tty) };
    let name = super::step::task_name(flags.name.as_deref());
    let new = New { name: name.as_deref(), image, request, secrets: None, first: &first };
    let (spawned, launch) = start_new(context, new, hold, &signals)?;
    let id = spawned.id.clone();
    if let Some(cidfile) = &mut cidfile {
        cidfile.write(&id)?;
    }
    if is_detached {
        let mut session = Session::new(spawned, signals, Keys::Ignored, detach_keys);
        launch.wait_running(&mut session)?;
        cidfile.into_iter().for_each(CidFile::keep);
        super::print::out(&format!("{id}\n"))?;
        return Ok(0);
    }
    let mut session = Session::new(spawned, signals, keys, detach_keys);
    session.show(attached.stdout, attached.stderr);
    launch.wait_running(&mut session)?;
    cidfile.into_iter().for_each(CidFile::keep);
    if is_silent {
        super::print::out(&format!("{id}\n"))?;
    }
    session.begin_keys();
    attach::relay(&mut session, Interrupt::of(tty, flags.sig_proxy))
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
/// which prevents the removal of the image, when the record exists.
pub(super) fn start_new<'a, T>(
    context: &'a Context,
    new: New<'a>,
    hold: T,
    signals: &SignalFd,
) -> Result<(Spawned, Launch<'a>), Report> {
    let records = context.records()?;
    let (entry, launching) = record(&records, new.name, new.image, new.request, new.secrets)?;
    drop(hold);
    let mut launch = Launch::new(context, records, entry, new.first, true);
    Ok((launch.begin(launching, signals)?, launch))
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
    if let Some(step) = Step::current() {
        record.cgroup = step.place(&record.id);
    }
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
