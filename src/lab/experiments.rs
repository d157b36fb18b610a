//! The experiments. Each one makes its groups, shows the kernel's values, and compares them with the kernel's
//! documentation.

use std::fs;
use std::os::unix::process::ExitStatusExt;
use std::time::{Duration, Instant};

use super::bench::{Ended, Group, Named};
use super::{Bench, Verdict};
use crate::report::Report;
use crate::spec::{Device, Limits, Swap};
use crate::units::CpuSet;

const MIB: u64 = 1 << 20;

const CURRENT: Named = ("memory", "memory.usage_in_bytes", "memory.current");
const MAX: Named = ("memory", "memory.limit_in_bytes", "memory.max");
const SWAP: Named = ("memory", "memory.memsw.usage_in_bytes", "memory.swap.current");
const SWAP_MAX: Named = ("memory", "memory.memsw.limit_in_bytes", "memory.swap.max");
const OOM: Named = ("memory", "memory.oom_control", "memory.events");
const MEMORY_PRESSURE: Named = ("memory", "memory.pressure_level", "memory.pressure");
const CPU_STAT: Named = ("cpu", "cpu.stat", "cpu.stat");
const CPU_MAX: Named = ("cpu", "cpu.cfs_quota_us", "cpu.max");
const CPUS: Named = ("cpuset", "cpuset.cpus", "cpuset.cpus");
const PIDS: Named = ("pids", "pids.current", "pids.current");
const PIDS_MAX: Named = ("pids", "pids.max", "pids.max");
const PIDS_EVENTS: Named = ("pids", "pids.events", "pids.events");

fn judge(good: bool, text: String) -> Verdict {
    if good { Verdict::Expected(text) } else { Verdict::Unexpected(text) }
}

/// Limits of 32 MiB of memory plus `swap` bytes of swap. The host may not account for swap, and then there is no swap
/// limit.
fn small(bench: &Bench<'_>, swap: u64) -> Limits {
    let memory = 32 * MIB;
    let mut limits = Limits { memory: Some(memory), swap: Some(Swap::Total(memory + swap)), ..Limits::default() };
    if !bench.host.has_swap_accounting() {
        limits.swap = None;
    }
    limits
}

fn killed(ended: &Ended) -> bool {
    ended.status.signal() == Some(libc::SIGKILL)
}

pub(super) fn memory(bench: &mut Bench<'_>) -> Result<Verdict, Report> {
    let limits = small(bench, 0);
    let group = bench.group(&limits, &[])?;
    bench.numbers("before", &group, &[MAX, SWAP_MAX, CURRENT, OOM]);
    bench.say("a process allocates 64 MiB in steps of 1 MiB");
    let ended = bench.watch(&group, &["hog", "64", "200"], &[CURRENT])?;
    bench.numbers("after", &group, &[CURRENT, OOM]);
    let stats = group.stats();
    report_oom_kills(bench, &group);
    let (peak, kills) = (stats.memory_peak.unwrap_or(0), stats.events.oom_kill.unwrap_or(0));
    Ok(judge(
        killed(&ended) && kills >= 1 && peak <= 32 * MIB,
        format!("ended with {}; OOM kills: {kills}; peak usage {} MiB", ended.status, peak / MIB),
    ))
}

/// Shows the OOM kills of a group from the kernel's log.
fn report_oom_kills(bench: &mut Bench<'_>, group: &Group) {
    let kills = crate::cgroup::oom_kills_of(std::path::Path::new("/"), group.name()).unwrap_or_default();
    for kill in kills {
        let of = kill.limit_of.map_or_else(
            || "the host ran out of memory of memory of memory".into(),
            |of| {
                format!(
                    "the limit of {of} \
                                                                                                 was reached"
                )
            },
        );
        bench.say(format!("the kernel's log: killed `{}` (pid {}); {of}", kill.process, kill.pid));
    }
}

pub(super) fn swap(bench: &mut Bench<'_>) -> Result<Verdict, Report> {
    let total = bench.host.swap_total();
    if total < 64 * MIB || !bench.host.has_swap_accounting() {
        return Ok(Verdict::Impossible(too_little_swap(total, bench.host.has_swap_accounting())));
    }
    let mut lives = Vec::new();
    for swap in [0, 64 * MIB] {
        let limits = small(bench, swap);
        let group = bench.group(&limits, &[])?;
        bench.numbers("before", &group, &[MAX, SWAP_MAX]);
        bench.say(format!("a process allocates 48 MiB with 32 MiB of memory and {} MiB of swap", swap / MIB));
        let ended = bench.watch(&group, &["hog", "48", "300"], &[CURRENT, SWAP])?;
        bench.numbers("after", &group, &[OOM]);
        bench.say(format!("it ended with {}", ended.status));
        lives.push(!killed(&ended));
    }
    Ok(judge(lives == [false, true], "without swap the process was killed; with swap it finished".into()))
}

/// The reason why this host cannot show swap, in the text that a launch and `doctor` also use.
fn too_little_swap(total: u64, accounted: bool) -> String {
    match (total, accounted) {
        (0, _) => crate::cgroup::NO_SWAP.into(),
        (_, false) => "the kernel does not account for swap: boot with `swapaccount=1`".into(),
        _ => format!("this host has {} MiB of swap, and the experiment needs 64", total / MIB),
    }
}

pub(super) fn pressure(bench: &mut Bench<'_>) -> Result<Verdict, Report> {
    if !bench.is_v2() {
        return Ok(Verdict::Impossible(
            "memory.high and pressure files need cgroup v2; this host has the controllers of v1".into(),
        ));
    }
    let limits = Limits { memory: Some(96 * MIB), memory_high: Some(24 * MIB), ..Limits::default() };
    let group = bench.group(&limits, &[])?;
    let files = [("memory", "", "memory.high"), CURRENT, MEMORY_PRESSURE];
    bench.numbers("before", &group, &files);
    bench.say("a process allocates 30 MiB with a soft limit of 24 MiB");
    // If nothing can be swapped out, memory.high may stall the process for a very long time. The counters have the
    // result after 2.4 s.
    let mut running = Some(group.start(&["hog", "30", "100"])?);
    for _ in 0..6 {
        bench.pause(Duration::from_millis(400))?;
        bench.numbers("during", &group, &[CURRENT, MEMORY_PRESSURE]);
    }
    drop(running.take());
    bench.numbers("after", &group, &[OOM]);
    let stats = group.stats();
    let (high, kills) = (stats.events.memory_high.unwrap_or(0), stats.events.oom_kill.unwrap_or(0));
    let waited = stats.memory_pressure.map_or(0, |pressure| pressure.some_total_us) / 1000;
    Ok(judge(
        high > 0 && kills == 0,
        format!("memory.high was exceeded {high} times, which cost {waited} ms of waiting; no process was killed"),
    ))
}

pub(super) fn throttle(bench: &mut Bench<'_>) -> Result<Verdict, Report> {
    const QUOTA_US: u64 = 30_000;
    let limits = Limits { cpu_quota_us: Some(QUOTA_US), cpu_period_us: Some(100_000), ..Limits::default() };
    for _ in 0..TRIES {
        let group = bench.group(&limits, &[])?;
        bench.numbers("before", &group, &[CPU_MAX, CPU_STAT]);
        bench.say("one thread is busy for two seconds and may use 0.6 seconds of CPU time");
        let began = Instant::now();
        bench.watch(&group, &["burn", "1", "2000"], &[CPU_STAT])?;
        let elapsed = began.elapsed().as_secs_f64();
        bench.numbers("after", &group, &[CPU_STAT]);
        let stats = group.stats();
        let (used, periods) = (stats.cpu_usage_us.unwrap_or(0), stats.cpu_periods.unwrap_or(0));
        let throttled = stats.cpu_throttled_periods.unwrap_or(0);
        if starved(throttled, used, periods * QUOTA_US) {
            bench.say(format!("other work on this host left the thread only {} ms: trying again", used / 1000));
            continue;
        }
        let share = used as f64 / 1e6 / elapsed;
        return Ok(judge(
            share < 0.4 && throttled > 0,
            format!("it got {:.0} % of one CPU and was throttled in {throttled} periods", share * 100.0),
        ));
    }
    Ok(Verdict::Impossible(BUSY.into()))
}

/// The number of attempts of an experiment with CPU time on a busy host.
const TRIES: usize = 3;
const BUSY: &str = "other work keeps this host's CPUs busy, so that the quota is never used up";

/// Whether a group was not throttled only because other work on the host left it less CPU time than its quota. Such a
/// run shows nothing about the quota.
fn starved(throttled: u64, used: u64, allowed: u64) -> bool {
    throttled == 0 && used < allowed
}

pub(super) fn cpuset(bench: &mut Bench<'_>) -> Result<Verdict, Report> {
    let cpus = bench.host.facts()?.cpus;
    if cpus.0.len() < 2 {
        return Ok(Verdict::Impossible("this host has one CPU, with which the two limits do not differ".into()));
    }
    // Two CPUs if the host has at least four, so that the threads can spread over several CPUs.
    let share = (cpus.0.len() / 2).min(2);
    let few = CpuSet(cpus.0.iter().copied().take(share).collect());
    let names = [format!("--cpus {share}"), format!("--cpuset-cpus {few}")];
    let quota =
        Limits { cpu_quota_us: Some(share as u64 * 100_000), cpu_period_us: Some(100_000), ..Limits::default() };
    let cpu_set = Limits { cpuset_cpus: Some(few), ..Limits::default() };
    for _ in 0..TRIES {
        let seen = eight_threads(bench, [(&names[0], &quota), (&names[1], &cpu_set)])?;
        let [(_, by_quota, used, allowed), (nproc, by_place, ..)] = seen;
        if !starved(by_quota, used, allowed) {
            let good = by_quota > 0 && by_place == 0 && nproc == share;
            return Ok(judge(
                good,
                format!("throttled in {by_quota} periods by the quota, in {by_place} by the CPU set"),
            ));
        }
        bench.say(format!("other work left the eight threads only {used} ms: trying again"));
    }
    Ok(Verdict::Impossible(BUSY.into()))
}

/// The number of CPUs that a program counts, the number of periods in which it was throttled, the milliseconds of CPU
/// time that it used, and the milliseconds that its quota allowed in the elapsed periods.
type Seen = (usize, u64, u64, u64);

fn eight_threads(bench: &mut Bench<'_>, cases: [(&str, &Limits); 2]) -> Result<[Seen; 2], Report> {
    let mut seen = [(0, 0, 0, 0); 2];
    for (slot, (name, limits)) in seen.iter_mut().zip(cases) {
        let group = bench.group(limits, &[])?;
        bench.numbers("before", &group, &[CPU_MAX, CPUS]);
        bench.say(format!("eight threads are busy for a second with {name}"));
        let ended = bench.watch(&group, &["burn", "8", "1000"], &[CPU_STAT])?;
        bench.numbers("after", &group, &[CPU_STAT]);
        let stats = group.stats();
        let nproc: usize = ended.output.trim().parse().unwrap_or(0);
        let throttled = stats.cpu_throttled_periods.unwrap_or(0);
        let used = stats.cpu_usage_us.unwrap_or(0) / 1000;
        bench.say(format!("CPUs counted: {nproc}; CPU time: {used} ms; throttled in {throttled} periods"));
        let allowed = stats.cpu_periods.unwrap_or(0) * limits.cpu_quota_us.unwrap_or(0) / 1000;
        *slot = (nproc, throttled, used, allowed);
    }
    Ok(seen)
}

pub(super) fn pids(bench: &mut Bench<'_>) -> Result<Verdict, Report> {
    let group = bench.group(&Limits { pids: Some(Some(20)), memory: Some(256 * MIB), ..Limits::default() }, &[])?;
    bench.numbers("before", &group, &[PIDS_MAX, PIDS]);
    bench.say("the fork bomb starts");
    bench.watch(&group, &["bomb"], &[PIDS, PIDS_EVENTS])?;
    bench.numbers("after", &group, &[PIDS, PIDS_EVENTS]);
    let refused = group.stats().events.pids_max.unwrap_or(0);
    Ok(judge(refused > 0, format!("at most 20 processes; fork was refused {refused} times")))
}

pub(super) fn device(bench: &mut Bench<'_>) -> Result<Verdict, Report> {
    let kmsg = Device {
        path: "/dev/kmsg".into(),
        kind: 'c',
        major: 1,
        minor: 11,
        mode: 0o644,
        uid: 0,
        gid: 0,
        access: "rw".into(),
    };
    let mut answers = Vec::new();
    for (what, devices) in
        [("a container's usual devices", vec![]), ("/dev/kmsg (character device 1:11) as well", vec![kmsg])]
    {
        let group = bench.group(&Limits::default(), &devices)?;
        bench.say(format!("a cgroup that allows {what}"));
        for path in ["/dev/null", "/dev/kmsg"] {
            let answer = bench.wait(group.start(&["open", path])?)?.output.trim().to_owned();
            bench.say(format!("open {path}: {answer}"));
            answers.push(answer);
        }
    }
    let denied = answers[1].contains("Operation not permitted");
    let good = answers[0] == "opened" && denied && answers[2] == "opened" && answers[3] == "opened";
    Ok(judge(
        good,
        "the same program ran as root and opened the same node: only the cgroup's device list differs".into(),
    ))
}

pub(super) fn overlay(bench: &mut Bench<'_>) -> Result<Verdict, Report> {
    let dir = std::env::temp_dir();
    let group = bench.group(&Limits::default(), &[])?;
    let ended = group.start(&["overlay", &dir.to_string_lossy()]).and_then(|running| bench.wait(running));
    let output = ended?.output;
    output.lines().for_each(|line| bench.say(line));
    let line = |name: &str| output.lines().find(|line| line.starts_with(name)).unwrap_or_default();
    let good = line("before, above").trim_end().ends_with("above:")
        && line("after, above").contains("removed (whiteout")
        && line("after, above").contains("changed (container)")
        && !line("after, above").contains("kept")
        && line("after, below").contains("removed (image)");
    Ok(judge(good, "the container's changes are in the upper directory; the image is unchanged".into()))
}

pub(super) fn zombies(bench: &mut Bench<'_>) -> Result<Verdict, Report> {
    let mut left = Vec::new();
    for kind in ["lazy", "careful"] {
        let group = bench.group(&Limits { pids: Some(Some(100)), ..Limits::default() }, &[])?;
        bench.say(format!(
            "a {kind} PID 1 has five children, and each of them leaves it an orphan; all ten exit at once; PID 1 {}",
            if kind == "lazy" { "never waits for them" } else { "waits for each of them" }
        ));
        let running = group.start(&["namespace", "pid1", kind])?;
        let zombies = settled(bench, running.pid(), kind == "careful")?;
        bench.numbers("during", &group, &[PIDS]);
        bench.say(format!(
            "zombies: {}{}",
            zombies.len(),
            if zombies.is_empty() { "" } else { ", in state Z: their memory is free, their process IDs are not" }
        ));
        left.push(zombies.len());
    }
    Ok(judge(
        left[0] >= 5 && left[1] == 0,
        format!("{} zombies under the lazy PID 1, {} under the careful one", left[0], left[1]),
    ))
}

/// Waits for the zombies of the PID 1 below a payload and returns them. The wait ends when all ten exist (each orphan
/// and its parent), or when the careful PID 1 has no children left.
fn settled(bench: &Bench<'_>, payload: u32, careful: bool) -> Result<Vec<u32>, Report> {
    let deadline = Instant::now() + Duration::from_secs(10);
    let mut any = false;
    loop {
        let (now, zombies) = pid1_of(payload).map_or_else(Default::default, |pid| (children(pid), zombies_of(pid)));
        any |= !now.is_empty();
        let done = if careful { any && now.is_empty() } else { zombies.len() >= 10 };
        if done || Instant::now() > deadline {
            return Ok(zombies);
        }
        bench.pause(Duration::from_millis(20))?;
    }
}

fn children(pid: u32) -> Vec<u32> {
    let text = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap_or_default();
    text.split_whitespace().filter_map(|word| word.parse().ok()).collect()
}

fn pid1_of(payload: u32) -> Option<u32> {
    children(payload).first().copied()
}

fn zombies_of(pid: u32) -> Vec<u32> {
    let is_zombie = |pid: &u32| {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        stat.rsplit_once(") ").is_some_and(|(_, rest)| rest.starts_with('Z'))
    };
    children(pid).into_iter().filter(is_zombie).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_busy_host_is_no_broken_promise() {
        // Not throttled, and less time used than allowed: other work had the CPU.
        assert!(starved(0, 250, 600));
        // Throttled, or all of the time used without throttling: the verdict must decide.
        assert!(!starved(1, 250, 600) && !starved(0, 600, 600) && !starved(0, 900, 600));
    }

    #[test]
    fn swap_texts_match_the_launch() {
        assert_eq!(too_little_swap(0, true), crate::cgroup::NO_SWAP);
        assert_eq!(too_little_swap(0, false), crate::cgroup::NO_SWAP);
        assert!(too_little_swap(128 * MIB, false).contains("swapaccount=1"));
        assert!(too_little_swap(MIB, true).contains("1 MiB of swap"));
    }
}
