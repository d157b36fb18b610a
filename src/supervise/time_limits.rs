//! The limits that the supervisor itself enforces: the time of a container, how long it may be idle, and its GPU memory.
//!
//! A container without such a limit has no timers here. With one, the supervisor samples the cgroup at intervals. Only
//! if the container does nothing by these samples does it start a short-lived process that asks Jupyter and the driver
//! (see `probe`). What cannot be found out counts as work.

use std::time::{Duration, Instant};

use super::Supervisor;
use super::probe::{Answer, Probe};
use crate::control::FromSupervisor;
use crate::launch::Container;
use crate::record::{StopLimit, StopReason};
use crate::request::{GpuMemWatch, Payload, Span};
use crate::units::{age, format_memory};

/// The longest interval between two samples for `--idle-timeout`, and the shortest.
const SAMPLES: (Duration, Duration) = (Duration::from_millis(200), Duration::from_secs(60));
/// The interval of `--gpu-mem-watch`. Each sample asks the driver.
const GPU_MEMORY: Duration = Duration::from_secs(5);
/// A warning precedes the end by this time, or by a quarter of the limit.
const WARNING: Duration = Duration::from_secs(300);

fn lead(limit: Duration) -> Duration {
    WARNING.min(limit / 4)
}

fn interval(limit: Duration) -> Duration {
    (limit / 6).clamp(SAMPLES.0, SAMPLES.1)
}

impl Supervisor {
    fn timeout(&self) -> Option<Span> {
        self.entry.record.request.time_limits.timeout
    }

    fn idle_timeout(&self) -> Option<Span> {
        self.entry.record.request.time_limits.idle_timeout
    }

    fn gpu_mem_watch(&self) -> Option<GpuMemWatch> {
        self.entry.record.request.gpu_mem_watch
    }

    /// When the limits want to be checked next. `None` if there are none, so that the container costs no wake-up.
    pub(super) fn watch_due(&self) -> Option<Instant> {
        if self.stopping {
            return None;
        }
        let (watch, now) = (&self.watch, Instant::now());
        let end = self.timeout().and_then(|limit| {
            let early = if watch.warned_of_end { Duration::ZERO } else { lead(limit.0) };
            watch.began.checked_add(limit.0)?.checked_sub(early)
        });
        let look = self.idle_timeout().map(|_| watch.look.unwrap_or(now));
        let ask = self.gpu_mem_watch().map(|_| watch.ask.unwrap_or(now));
        let probe = watch.probe.as_ref().map(Probe::deadline);
        [end, look, ask, probe].into_iter().flatten().min()
    }

    /// Checks the limits that are due.
    pub(super) fn check_watch(&mut self, container: &mut Container) {
        let now = Instant::now();
        if self.stopping {
            self.watch.probe = None;
            return;
        }
        if let Some(limit) = self.timeout() {
            self.check_timeout(limit, now, container);
        }
        if self.watch.probe.as_ref().is_some_and(|probe| probe.deadline() <= now) {
            self.watch.probe = None;
            self.hear_answer(Answer { unknown: Some("no answer in time".into()), ..Answer::default() }, container);
        }
        if self.gpu_mem_watch().is_some() && self.watch.ask.is_none_or(|at| at <= now) {
            self.watch.ask = Some(now + GPU_MEMORY);
            self.ask();
        }
        if let Some(limit) = self.idle_timeout()
            && self.watch.look.is_none_or(|at| at <= now)
        {
            let end = self.watch.active.checked_add(limit.0).unwrap_or(now + SAMPLES.1);
            self.watch.look = Some((now + interval(limit.0)).min(end.max(now + SAMPLES.0)));
            self.look(limit, container);
        }
    }

    fn check_timeout(&mut self, limit: Span, now: Instant, container: &mut Container) {
        let ran = now.saturating_duration_since(self.watch.began);
        if ran >= limit.0 {
            let detail = format!("it has run for {limit} (`--timeout {limit}`)");
            self.stop_for(StopLimit::Timeout, detail, container);
        } else if ran >= limit.0.saturating_sub(lead(limit.0)) && !self.watch.warned_of_end {
            self.watch.warned_of_end = true;
            let left = words(limit.0.saturating_sub(ran));
            let more = Span(limit.0 * 2);
            self.say(format!(
                "this container will be stopped in {left} (`--timeout {limit}`); extend it with `gpurun update {} --timeout {more}`",
                self.entry.record.name
            ));
        }
    }

    /// Samples the container, and asks further if it does nothing by the sample.
    fn look(&mut self, limit: Span, container: &mut Container) {
        let sample = container.activity();
        let earlier = self.watch.sample.replace(sample);
        let works = match (&earlier, &self.watch.sample) {
            (Some(earlier), Some(sample)) => sample.is_work_since(earlier),
            _ => true,
        };
        // A user has paused the container on purpose.
        if works || self.state.paused || self.clients.is_attached() || container.has_exec_session() {
            self.be_active(Instant::now());
            return;
        }
        let request = &self.entry.record.request;
        if matches!(request.payload, Payload::Jupyter(_)) || !self.state.gpus.is_empty() {
            self.ask();
        } else {
            self.check_idleness(limit, container);
        }
    }

    fn be_active(&mut self, at: Instant) {
        if at > self.watch.active {
            self.watch.active = at;
            self.watch.warned_of_idleness = false;
        }
    }

    /// Starts the process that asks, unless one is already asking.
    fn ask(&mut self) {
        if self.watch.probe.is_some() {
            return;
        }
        match Probe::start(&self.root, self.records.run_dir(), &self.entry.record.id) {
            Ok(probe) => self.watch.probe = Some(probe),
            Err(error) => {
                tracing::error!("cannot start the process that asks Jupyter and the driver: {error}");
                self.be_active(Instant::now());
            }
        }
    }

    /// Reads from the process that asks.
    pub(super) fn hear_probe(&mut self, container: &mut Container) {
        if let Some(answer) = self.watch.probe.as_mut().and_then(Probe::read) {
            self.watch.probe = None;
            self.hear_answer(answer, container);
        }
    }

    fn hear_answer(&mut self, answer: Answer, container: &mut Container) {
        let now = Instant::now();
        if let Some(why) = &answer.unknown {
            tracing::warn!("{why}");
            // While Jupyter starts, it does not answer.
            if self.idle_timeout().is_some()
                && !self.watch.told_unknown
                && now.saturating_duration_since(self.watch.began) > WARNING
            {
                self.watch.told_unknown = true;
                self.say(format!("`--idle-timeout` has no effect for now: {why}"));
            }
        }
        if let (Some(watch), Some(used)) = (self.gpu_mem_watch(), answer.gpu_memory) {
            self.check_gpu_memory(watch, used, container);
        }
        if answer.working || answer.unknown.is_some() {
            self.be_active(now);
        } else if let Some(at) = answer.idle_for.and_then(|nanos| now.checked_sub(Duration::from_nanos(nanos))) {
            self.be_active(at);
        }
        if let Some(limit) = self.idle_timeout() {
            self.check_idleness(limit, container);
        }
    }

    fn check_idleness(&mut self, limit: Span, container: &mut Container) {
        let idle = self.watch.active.elapsed();
        if idle >= limit.0 {
            let detail = format!("it has been idle for {limit} (`--idle-timeout {limit}`)");
            self.stop_for(StopLimit::IdleTimeout, detail, container);
        } else if idle >= limit.0.saturating_sub(lead(limit.0)) && !self.watch.warned_of_idleness {
            self.watch.warned_of_idleness = true;
            let left = words(limit.0.saturating_sub(idle));
            let more = Span(limit.0 * 2);
            self.say(format!(
                "this container is idle and will be stopped in {left} (`--idle-timeout {limit}`); use it, or extend the limit with `gpurun update {} --idle-timeout {more}`",
                self.entry.record.name
            ));
        }
    }

    fn check_gpu_memory(&mut self, watch: GpuMemWatch, used: u64, container: &mut Container) {
        if used <= watch.bytes {
            self.watch.warned_of_memory = false;
            return;
        }
        let detail = format!("it uses {} of GPU memory (`--gpu-mem-watch {watch}`)", format_memory(used));
        if watch.stop {
            self.stop_for(StopLimit::GpuMemory, detail, container);
        } else if !self.watch.warned_of_memory {
            self.watch.warned_of_memory = true;
            self.say(format!("this container uses too much GPU memory: {detail}"));
        }
    }

    /// Stops the container as `gpurun stop` does, and records why.
    fn stop_for(&mut self, limit: StopLimit, detail: String, container: &mut Container) {
        if self.stopping {
            return;
        }
        self.say(format!("this container is being stopped: {detail}"));
        self.state.stop_reason = Some(StopReason { limit, detail });
        self.save();
        self.stop(container, None);
    }

    /// Writes a line to the log, and shows it to the connected commands.
    pub(super) fn say(&mut self, line: String) {
        if let Err(error) = self.log.write(super::log::Stream::Stderr, format!("gpurun: {line}\n").as_bytes()) {
            tracing::error!("cannot write the container's log: {error}");
        }
        self.clients.tell(&FromSupervisor::Notice(line));
    }
}

/// `10 minutes`
fn words(time: Duration) -> String {
    // Rounded up to whole seconds, because the time was measured a moment after it was due.
    let nanos = u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
    age(nanos.saturating_add(999_999_999))
}
