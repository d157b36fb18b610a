//! What a person is told when the kernel has killed a process of the container for memory.

use std::time::{Duration, Instant};

use super::Supervisor;
use super::protocol::FromSupervisor;
use crate::launch::Container;
use crate::record::OomRow;
use crate::units::format_memory;

/// How often, and how long apart, kills are counted after the kernel told of an OOM: it tells before it has killed.
const LOOKS: u32 = 40;
const PAUSE: Duration = Duration::from_millis(50);
/// How long the kernel may take to write its log after it has counted.
const LOG_LOOKS: u32 = 5;
/// Kills that are remembered of one run.
const KEPT: usize = 8;

impl Supervisor {
    /// An event of the cgroup says that it is out of memory.
    pub(super) fn hear_oom(&mut self, container: &Container) {
        self.count_oom_kills(container, LOOKS);
    }

    /// Counts the kernel's kills; where there is none yet, looks again soon, so many times.
    pub(super) fn count_oom_kills(&mut self, container: &Container, times: u32) {
        let kills = container.oom_kills();
        if kills <= self.ooms_told {
            if times > 0 {
                self.oom_look = Some((Instant::now() + PAUSE, times - 1));
            }
            return;
        }
        let ooms = self.ooms_since_start(container);
        let whole = ooms.len() as u64 >= kills && ooms.last().is_some_and(|oom| oom.resident.is_some());
        if !whole && times > 0 {
            self.oom_look = Some((Instant::now() + PAUSE, times.min(LOG_LOOKS) - 1));
            return;
        }
        self.tell_of(ooms, kills);
    }

    /// The last look, when the container has ended.
    pub(super) fn last_oom_look(&mut self, container: &Container) {
        let kills = container.oom_kills();
        if kills > self.ooms_told {
            let ooms = self.ooms_since_start(container);
            self.tell_of(ooms, kills);
        }
    }

    /// Whatever the kernel's log tells of an earlier run of this container is old news.
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

    fn tell_of(&mut self, ooms: Vec<OomRow>, kills: u64) {
        // The log is a ring, and limited: what is missing there was killed nevertheless.
        let news = usize::try_from(kills - self.ooms_told).unwrap_or(usize::MAX).min(ooms.len());
        let own = self.state.cgroup.clone().unwrap_or_default();
        let mut lines: Vec<String> =
            ooms[ooms.len() - news..].iter().flat_map(|oom| words(oom, &own, self.memory_limit())).collect();
        if lines.is_empty() {
            lines.push(
                "the kernel killed a process of this container for memory (OOM); its log does not say which".into(),
            );
        }
        if let Some(limit) = self.memory_limit() {
            let more = format_memory(limit.saturating_mul(2)).replace(' ', "");
            let name = &self.entry.record.name;
            let more = more.trim_end_matches("iB").to_lowercase();
            lines.push(format!(
                "hint: give it more with `gpurun update {name} --memory {more}`, or start it with a higher `--memory`"
            ));
        }
        for line in lines {
            if let Err(error) = self.log.write(super::log::Stream::Stderr, format!("gpurun: {line}\n").as_bytes()) {
                tracing::error!("cannot write the container's log: {error}");
            }
            self.clients.tell(&FromSupervisor::Notice(line));
        }
        self.ooms_told = kills;
        let first = ooms.len().saturating_sub(KEPT);
        self.state.ooms = ooms[first..].to_vec();
        self.state.oom_killed = true;
        self.save();
    }

    fn memory_limit(&self) -> Option<u64> {
        self.state.limits.iter().find(|row| row.flag == "--memory").and_then(|row| row.kernel.parse().ok())
    }
}

/// One kill in words: who, how big, whose limit, who else was big.
fn words(oom: &OomRow, own: &str, limit: Option<u64>) -> Vec<String> {
    let size = oom.resident.map(|bytes| format!(", {} resident", format_memory(bytes))).unwrap_or_default();
    let why = match &oom.limit_of {
        None => "the host itself was out of memory, no limit of this container's was reached".to_owned(),
        Some(of) if of.ends_with(own) => match limit {
            Some(limit) => format!("the container's memory limit of {} was reached", format_memory(limit)),
            None => "the container's memory limit was reached".to_owned(),
        },
        Some(of) => format!("the memory limit of `{of}`, above this container's cgroup, was reached"),
    };
    let mut lines =
        vec![format!("the kernel killed `{}` (pid {}{size}) for memory (OOM): {why}", oom.process, oom.pid)];
    if oom.biggest.len() > 1 {
        let list: Vec<String> =
            oom.biggest.iter().map(|(name, bytes)| format!("{name} {}", format_memory(*bytes))).collect();
        lines.push(format!("the biggest before: {}", list.join(", ")));
    }
    lines
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
            biggest: vec![("python".into(), 3 << 29), ("bash".into(), 4 << 20)],
        }
    }

    #[test]
    fn a_kill_names_process_size_limit_and_the_others() {
        let own = words(&oom(Some("/docker/x/gpurun/ID")), "/gpurun/ID", Some(2 << 30));
        assert_eq!(
            own,
            [
                "the kernel killed `python` (pid 42, 1.50 GiB resident) for memory (OOM): the container's memory limit of 2 GiB was reached",
                "the biggest before: python 1.50 GiB, bash 4 MiB"
            ]
        );
        let above = words(&oom(Some("/lab")), "/lab/ID", None);
        assert!(
            above[0].ends_with("the memory limit of `/lab`, above this container's cgroup, was reached"),
            "{above:?}"
        );
        assert!(words(&oom(None), "/gpurun/ID", None)[0].contains("the host itself was out of memory"));
    }
}
