//! The threads behind the screen: one takes samples, one asks the driver of the GPUs, and one per change of a container.
//!
//! A driver may take seconds to answer, so its answer joins the next sample. It also costs more CPU time than all other
//! samples, in a process of its own. After each answer the thread pauses until that cost is below [`SHARE`] of one CPU.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use nix::sys::eventfd::{EfdFlags, EventFd};
use nix::sys::resource::{UsageWho, getrusage};

use super::model::{Action, Change};
use super::snapshot::{Snapshot, Source};
use crate::cli::Context;
use crate::cli::change::{Changes, pause_one};
use crate::cli::containers::stop_one;
use crate::gpu::usage::Usage;
use crate::record::Records;
use crate::report::Report;
use crate::sampler;

/// The part of one CPU that the driver's answers may cost.
const SHARE: f64 = 0.005;
/// The longest pause between two of the driver's answers, and the pause on a host without GPUs.
const LONGEST: Duration = Duration::from_secs(30);
/// The pause after the first sample, which has no rates.
const FIRST: Duration = Duration::from_millis(500);

/// What a thread has to say.
pub(super) enum Message {
    Sample(Snapshot),
    /// A sample could not be taken. The next one may succeed.
    Failed(Report),
    /// An action on a container has ended.
    Done {
        id: String,
        result: Result<String, Report>,
    },
    /// A thread has panicked, and the hook has printed why.
    Panicked,
}

/// The sending end of the messages.
#[derive(Clone)]
struct Outbox {
    sender: Sender<Message>,
    wake: Arc<EventFd>,
}

impl Outbox {
    fn send(&self, message: Message) {
        // The screen may have been closed.
        let _ = self.sender.send(message);
        let _ = self.wake.write(1);
    }
}

pub(super) struct Workers {
    outbox: Outbox,
    inbox: Receiver<Message>,
    context: Context,
}

impl Workers {
    /// Starts the threads that take samples.
    pub(super) fn start(context: &Context, interval: Duration) -> Result<Self, Report> {
        let wake = EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)
            .map_err(|errno| Report::new("cannot create an eventfd").with_cause(errno))?;
        let (sender, inbox) = channel();
        let outbox = Outbox { sender, wake: Arc::new(wake) };
        let workers = Self { outbox, inbox, context: context.clone() };
        let gpus = Arc::new(Mutex::new(Vec::new()));
        let (context, outbox, shared) = (context.clone(), workers.outbox.clone(), Arc::clone(&gpus));
        workers.spawn(move || ask_driver(&context, interval, &shared))?;
        let context = workers.context.clone();
        workers.spawn(move || take_samples(&context, interval, &gpus, &outbox))?;
        Ok(workers)
    }

    /// The descriptor that is readable when there are messages.
    pub(super) fn wake(&self) -> &EventFd {
        &self.outbox.wake
    }

    /// Returns the messages that have arrived.
    pub(super) fn messages(&self) -> Vec<Message> {
        let _ = self.outbox.wake.read();
        self.inbox.try_iter().collect()
    }

    /// Performs an action on a container.
    pub(super) fn perform(&self, action: Action) -> Result<(), Report> {
        let (context, outbox) = (self.context.clone(), self.outbox.clone());
        self.spawn(move || {
            let result = perform(&action, &context);
            outbox.send(Message::Done { id: action.id, result });
        })
    }

    /// Starts a thread. Its panic ends the screen.
    fn spawn(&self, body: impl FnOnce() + Send + 'static) -> Result<(), Report> {
        let outbox = self.outbox.clone();
        let guarded = move || {
            if catch_unwind(AssertUnwindSafe(body)).is_err() {
                outbox.send(Message::Panicked);
            }
        };
        let started = std::thread::Builder::new().spawn(guarded).map(drop);
        started.map_err(|error| Report::new("cannot start a thread").with_cause(error))
    }
}

/// Sends a sample after each interval.
fn take_samples(context: &Context, interval: Duration, gpus: &Mutex<Vec<Usage>>, outbox: &Outbox) {
    #[cfg(debug_assertions)]
    assert!(std::env::var_os("GPURUN_TOP_PANIC").is_none(), "a test requested this panic");
    let records = match Records::open(&context.root, &context.run_dir) {
        Ok(records) => records,
        Err(error) => return outbox.send(Message::Failed(error.into())),
    };
    let mut source = match Source::new(&records) {
        Ok(source) => source,
        Err(report) => return outbox.send(Message::Failed(report)),
    };
    let mut pause = interval.min(FIRST);
    loop {
        let sample = source.take(&gpus.lock().unwrap_or_else(PoisonError::into_inner));
        outbox.send(sample.map_or_else(Message::Failed, Message::Sample));
        std::thread::sleep(pause);
        pause = interval;
    }
}

/// Asks the driver for the usage of the GPUs, again and again.
fn ask_driver(context: &Context, interval: Duration, gpus: &Mutex<Vec<Usage>>) {
    let records = Records::look_at(&context.root, &context.run_dir);
    loop {
        let before = cost_of_children();
        // The GPUs of a driver that fails are unknown, as in `stats`. `gpurun gpus` reports why.
        let usage = sampler::gpus(&records).unwrap_or_default();
        let pause = if usage.is_empty() {
            LONGEST
        } else {
            cost_of_children().saturating_sub(before).div_f64(SHARE).clamp(interval.min(LONGEST), LONGEST)
        };
        *gpus.lock().unwrap_or_else(PoisonError::into_inner) = usage;
        std::thread::sleep(pause);
    }
}

/// The CPU time of the processes that query the driver, so far.
fn cost_of_children() -> Duration {
    let Ok(usage) = getrusage(UsageWho::RUSAGE_CHILDREN) else { return Duration::ZERO };
    let time = |value: nix::sys::time::TimeVal| {
        Duration::new(value.tv_sec().unsigned_abs(), value.tv_usec().unsigned_abs() as u32 * 1000)
    };
    time(usage.user_time()) + time(usage.system_time())
}

/// Changes a container as the command of the same name does. Returns the message for the user.
fn perform(action: &Action, context: &Context) -> Result<String, Report> {
    let records = Records::open(&context.root, &context.run_dir)?;
    let changes = match &action.change {
        Change::Update(flags) => {
            let flags: Vec<&str> = flags.split_whitespace().collect();
            Some(Changes::parse(&flags, &action.id)?)
        }
        _ => None,
    };
    let entry = records.find_whole(&action.id)?;
    let name = &entry.record.name;
    Ok(match (&action.change, changes) {
        (Change::Update(_), Some(changes)) => {
            changes.apply(&records, &entry)?;
            format!("updated `{name}`")
        }
        (Change::Pause, _) => {
            pause_one(&entry, true)?;
            format!("paused `{name}`")
        }
        (Change::Resume, _) => {
            pause_one(&entry, false)?;
            format!("resumed `{name}`")
        }
        _ => {
            // It is not an error to stop a container that has just ended.
            if entry.supervisor()?.is_some() {
                stop_one(&entry, None)?;
            }
            format!("stopped `{name}`")
        }
    })
}
