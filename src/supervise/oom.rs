//! The notices about processes of the container that the kernel has killed for memory.

use std::time::{Duration, Instant};

use super::Supervisor;
use super::timers::Timer;
use crate::control::FromSupervisor;
use crate::launch::Container;
use crate::record::{OomRow, Record};
use crate::request::SwapSize;
use crate::units::{flag_size, format_memory};

/// How many times, and at which interval, kills are counted after an OOM event: the kernel sends the event before it
/// kills.
const LOOKS: u32 = 40;
const PAUSE: Duration = Duration::from_millis(50);
/// How many times to look for the kernel's log entry after the counter has increased.
const LOG_LOOKS: u32 = 5;
/// If the container ends within this time after a kill, the end counts as a consequence of it, whatever the exit status
/// is.
const RECENT: Duration = Duration::from_secs(10);
/// How many kills of one run are kept.
const KEPT: usize = 8;

impl Supervisor {
    /// Handles an event of the cgroup that it is out of memory.
    pub(super) fn hear_oom(&mut self, container: &Container) {
        self.count_oom_kills(container, LOOKS);
    }

    /// Counts the kernel's kills. If there is no new kill yet, looks again soon, up to `times` times.
    pub(super) fn count_oom_kills(&mut self, container: &Container, times: u32) {
        let kills = container.oom_kills();
        if kills <= self.ooms_told {
            if times > 0 {
                self.look_again(times - 1);
            }
            return;
        }
        let ooms = self.ooms_since_start(container);
        let whole = ooms.len() as u64 >= kills && ooms.last().is_some_and(|oom| oom.resident.is_some());
        if !whole && times > 0 {
            self.look_again(times.min(LOG_LOOKS) - 1);
            return;
        }
        self.tell_of(container, ooms, kills);
    }

    fn look_again(&mut self, times: u32) {
        self.oom_looks = times;
        self.timers.set(Timer::Oom, Some(Instant::now() + PAUSE));
    }

    /// The last check, after the container has ended. Returns the number of kills.
    pub(super) fn last_oom_look(&mut self, container: &Container) -> u64 {
        let kills = container.oom_kills();
        if kills > self.ooms_told {
            let ooms = self.ooms_since_start(container);
            self.tell_of(container, ooms, kills);
        }
        kills
    }

    /// Whether the container ended because the kernel killed one of its processes for memory. A stop, or a failure long
    /// after the kill, does not count. (A shell passes on the status of a killed child; a build tool has a status of
    /// its own.)
    pub(super) fn ended_by_oom(&self, code: u8, kills: u64) -> bool {
        let recent = || {
            let last = self.state.ooms.last().map_or(0, |oom| oom.at_us);
            since_boot_us().saturating_sub(last) < RECENT.as_micros() as u64
        };
        kills > 0 && !self.stopping && code != 0 && (code == 128 + libc::SIGKILL as u8 || recent())
    }

    /// Skips the entries in the kernel's log that belong to earlier runs of this container.
    pub(super) fn forget_old_ooms(&mut self, container: &Container, first_run: bool) {
        self.ooms_told = 0;
        self.state.ooms.clear();
        if !first_run {
            self.ooms_until_us = container.ooms().last().map_or(0, |oom| oom.at_us);
        }
    }

    fn ooms_since_start(&self, container: &Container) -> Vec<OomRow> {
        let old = self.ooms_until_us;
        container.ooms().into_iter().filter(|oom| oom.at_us > old).collect()
    }

    fn tell_of(&mut self, container: &Container, mut ooms: Vec<OomRow>, kills: u64) {
        let news = usize::try_from(kills - self.ooms_told).unwrap_or(usize::MAX).min(ooms.len());
        let mut news = ooms.split_off(ooms.len() - news);
        if news.is_empty() {
            // The kernel's log is a ring buffer with a rate limit and may be unreadable. A kill that is missing there
            // still counts.
            news.push(OomRow { at_us: since_boot_us(), ..OomRow::default() });
        }
        let news: Vec<OomRow> = news.into_iter().map(|oom| container.complete(oom)).collect();
        for line in lines(&news, &Victim::new(&self.entry.record)) {
            if let Err(error) = self.log.write(super::log::Stream::Stderr, format!("gpurun: {line}\n").as_bytes()) {
                tracing::error!("cannot write the container's log: {error}");
            }
            self.clients.tell(&FromSupervisor::Notice(line));
        }
        self.ooms_told = kills;
        self.state.ooms.extend(news);
        let old = self.state.ooms.len().saturating_sub(KEPT);
        self.state.ooms.drain(..old);
        self.state.oom_killed = true;
        self.save();
    }
}

fn since_boot_us() -> u64 {
    nix::time::clock_gettime(nix::time::ClockId::CLOCK_MONOTONIC)
        .map(Duration::from)
        .map_or(0, |time| u64::try_from(time.as_micros()).unwrap_or(u64::MAX))
}

/// The container whose process was killed.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Victim<'a> {
    name: &'a str,
    /// The path of its cgroup below the mount.
    cgroup: &'a str,
    /// `--memory-swap` as given on the command line.
    memory_swap: Option<&'a SwapSize>,
    auto_remove: bool,
    /// The cluster's step that it is in.
    step: Option<&'a str>,
}

impl<'a> Victim<'a> {
    #[must_use]
    pub(crate) fn new(record: &'a Record) -> Self {
        Self {
            name: &record.name,
            cgroup: record.cgroup.of("memory"),
            memory_swap: record.request.limits.memory_swap.as_ref(),
            auto_remove: record.request.auto_remove,
            step: record.cgroup.step.as_deref(),
        }
    }
}

/// The notices for the kills, with a hint for the cause of the last one.
#[must_use]
pub(crate) fn lines(ooms: &[OomRow], victim: &Victim<'_>) -> Vec<String> {
    let mut lines: Vec<String> = ooms.iter().flat_map(|oom| words(oom, victim.cgroup)).collect();
    lines.extend(ooms.last().map(|oom| format!("hint: {}", hint(oom, victim))));
    lines
}

fn is_own(limit_of: &str, own: &str) -> bool {
    // The paths in the log may start above the hierarchy's root that is mounted here.
    limit_of.ends_with(own)
}

/// Describes one kill: the process, its size, whose limit was reached, the counters, and the other large processes.
fn words(oom: &OomRow, own: &str) -> Vec<String> {
    let size = oom.resident.map(|bytes| format!(", {} resident", format_memory(bytes))).unwrap_or_default();
    let who = match (&*oom.process, oom.pid) {
        ("", _) => "a process of this container".to_owned(),
        (name, pid) => format!("`{name}` (pid {pid}{size})"),
    };
    let limit = oom.limit.map(format_memory);
    let why = match (&oom.limit_of, limit) {
        (None, _) => "the host was out of memory; no limit of this container was reached".to_owned(),
        (Some(of), Some(limit)) if is_own(of, own) => format!("the container's memory limit of {limit} was reached"),
        (Some(of), None) if is_own(of, own) => "the container's memory limit was reached".to_owned(),
        (Some(of), limit) => {
            let limit = limit.map(|limit| format!(" of {limit}")).unwrap_or_default();
            format!("the memory limit{limit} of `{of}`, above this container's cgroup, was reached")
        }
    };
    let mut lines = vec![format!("the kernel killed {who} for memory (OOM): {why}")];
    if oom.process.is_empty() {
        lines.push(
            "the kernel's log (/dev/kmsg) does not name the process; the other facts come from the cgroup's counters"
                .into(),
        );
    }
    let mut counts: Vec<String> = oom.peak.map(|peak| format!("peak {}", format_memory(peak))).into_iter().collect();
    counts.extend(oom.events.iter().filter(|(_, count)| **count > 0).map(|(event, count)| format!("{event} {count}")));
    if !counts.is_empty() {
        lines.push(format!("the container's memory until then: {}", counts.join(", ")));
    }
    if oom.biggest.len() > 1 {
        let list: Vec<String> =
            oom.biggest.iter().map(|(name, bytes)| format!("{name} {}", format_memory(*bytes))).collect();
        lines.push(format!("the biggest before: {}", list.join(", ")));
    }
    lines
}

/// The remedy, which depends on whose limit was reached.
fn hint(oom: &OomRow, victim: &Victim<'_>) -> String {
    let own = victim.cgroup;
    let double = |limit: u64| limit.saturating_mul(2);
    match (&oom.limit_of, oom.limit) {
        (None, _) => {
            "this host needs more memory, or less work; `--memory` keeps one container from taking it all".into()
        }
        (Some(of), Some(limit)) if is_own(of, own) => {
            let (more, name) = (double(limit), victim.name);
            // `--memory-swap` is a total that includes the memory, so it must grow with the memory limit.
            let total = victim.memory_swap.and_then(|swap| match swap {
                SwapSize::Total(size) => Some(size.bytes),
                SwapSize::Unlimited => None,
            });
            let swap = total
                .filter(|total| (1..more).contains(total))
                .map(|total| format!(" --memory-swap {}", flag_size(more.saturating_add(total.saturating_sub(limit)))));
            let swap = swap.unwrap_or_default();
            let more = flag_size(more);
            if victim.auto_remove {
                format!("start it with more: `--memory {more}{swap}`")
            } else {
                format!("give it more: `gpurun update {name} --memory {more}{swap}`, or start it with that")
            }
        }
        (Some(_), Some(limit)) if victim.step.is_some() => {
            let (step, more) = (victim.step.unwrap_or_default(), flag_size(double(limit)));
            format!("`--memory` does not help, more memory for the {step} does: `srun --mem={}`", more.to_uppercase())
        }
        (Some(of), Some(limit)) if oom.limit_file.is_some() => {
            let file = oom.limit_file.as_deref().unwrap_or_default();
            format!("`--memory` does not help, the limit of `{of}` does: `echo {} >{file}`", double(limit))
        }
        (Some(of), _) => format!("`--memory` does not help here, a higher limit of `{of}` does"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn oom(limit_of: Option<&str>) -> OomRow {
        OomRow {
            at_us: 1,
            process: "python".into(),
            pid: 42,
            resident: Some(3 << 29),
            limit_of: limit_of.map(str::to_owned),
            limit: limit_of.map(|_| 2 << 30),
            limit_file: limit_of.map(|of| format!("/sys/fs/cgroup{of}/memory.max")),
            biggest: vec![("python".into(), 3 << 29), ("bash".into(), 4 << 20)],
            peak: Some(2 << 30),
            events: [("max".to_owned(), 35), ("oom_kill".to_owned(), 1), ("low".to_owned(), 0)].into(),
        }
    }

    fn told(oom: OomRow, cgroup: &str, memory_swap: Option<&SwapSize>) -> Vec<String> {
        lines(&[oom], &Victim { name: "lab", cgroup, memory_swap, auto_remove: false, step: None })
    }

    #[test]
    fn a_kill_names_process_size_limit_counters_and_the_others() {
        assert_eq!(
            told(oom(Some("/docker/x/gpurun/ID")), "/gpurun/ID", None),
            [
                "the kernel killed `python` (pid 42, 1.50 GiB resident) for memory (OOM): the container's memory limit of 2 GiB was reached",
                "the container's memory until then: peak 2 GiB, max 35, oom_kill 1",
                "the biggest before: python 1.50 GiB, bash 4 MiB",
                "hint: give it more: `gpurun update lab --memory 4g`, or start it with that",
            ]
        );
    }

    #[test]
    fn the_way_out_depends_on_whose_limit_it_was() {
        let last = |oom: OomRow, own: &str, swap: Option<&str>| {
            let swap: Option<SwapSize> = swap.map(|text| text.parse().unwrap());
            told(oom, own, swap.as_ref()).pop().unwrap()
        };
        let above = oom(Some("/lab"));
        assert!(
            words(&above, "/lab/ID")[0]
                .ends_with("the memory limit of 2 GiB of `/lab`, above this container's cgroup, was reached")
        );
        assert_eq!(
            last(above, "/lab/ID", None),
            "hint: `--memory` does not help, the limit of `/lab` does: `echo 4294967296 >/sys/fs/cgroup/lab/memory.max`"
        );
        let job = oom(Some("/slurm_n1/uid_0/job_7"));
        let cgroup = "/slurm_n1/uid_0/job_7/step_0/ID";
        let in_step =
            Victim { name: "lab", cgroup, memory_swap: None, auto_remove: true, step: Some("Slurm step 7.0") };
        assert_eq!(
            lines(&[job], &in_step).pop().unwrap(),
            "hint: `--memory` does not help, more memory for the Slurm step 7.0 does: `srun --mem=4G`"
        );
        let own = oom(Some("/gpurun/ID"));
        assert!(
            last(own.clone(), "/gpurun/ID", Some("2g")).contains("`gpurun update lab --memory 4g --memory-swap 4g`")
        );
        assert!(last(own.clone(), "/gpurun/ID", Some("3g")).contains("--memory 4g --memory-swap 5g`"));
        assert!(!last(own, "/gpurun/ID", Some("-1")).contains("--memory-swap"));
        assert!(words(&oom(None), "/gpurun/ID")[0].contains("the host was out of memory"));
        assert!(last(oom(None), "/gpurun/ID", None).contains("this host needs more memory"));
    }

    #[test]
    fn without_the_log_a_kill_is_told_of_nevertheless() {
        let silent =
            OomRow { process: String::new(), pid: 0, resident: None, biggest: vec![], ..oom(Some("/gpurun/ID")) };
        let told = words(&silent, "/gpurun/ID");
        assert!(told[0].starts_with(
            "the kernel killed a process of this container for memory (OOM): the container's memory limit of 2 GiB"
        ));
        assert!(told[1].contains("/dev/kmsg") && told[2].contains("oom_kill 1"), "{told:?}");
    }
}
