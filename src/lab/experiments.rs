//! The experiments. Each makes its groups, shows the numbers, and judges them by what the kernel's documents promise.

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

/// 32 MiB and so much swap on top; none where the host does not account for it.
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

pub fn memory(bench: &mut Bench<'_>) -> Result<Verdict, Report> {
    let limits = small(bench, 0);
    let group = bench.group(&limits, &[])?;
    bench.numbers("before", &group, &[MAX, SWAP_MAX, CURRENT, OOM]);
    bench.say("a process takes 64 MiB, a MiB at a time");
    let ended = bench.watch(&group, &["hog", "64", "200"], &[CURRENT])?;
    bench.numbers("after", &group, &[CURRENT, OOM]);
    let stats = group.stats();
    say_who(bench, &group);
    let (peak, kills) = (stats.memory_peak.unwrap_or(0), stats.events.oom_kill.unwrap_or(0));
    Ok(judge(
        killed(&ended) && kills >= 1 && peak <= 32 * MIB,
        format!("ended by {}; OOM kills: {kills}; never more than {} MiB in use", ended.status, peak / MIB),
    ))
}

/// What the kernel's log says of a group's kills.
fn say_who(bench: &mut Bench<'_>, group: &Group) {
    let kills = crate::cgroup::oom_kills_of(std::path::Path::new("/"), group.name()).unwrap_or_default();
    for kill in kills {
        let of = kill.limit_of.map_or_else(|| "the host ran out".into(), |of| format!("the limit was that of {of}"));
        bench.say(format!("the kernel's log: killed `{}` (pid {}); {of}", kill.process, kill.pid));
    }
}

pub fn swap(bench: &mut Bench<'_>) -> Result<Verdict, Report> {
    let total: u64 = fs::read_to_string("/proc/meminfo")
        .unwrap_or_default()
        .lines()
        .find_map(|line| line.strip_prefix("SwapTotal:")?.trim().strip_suffix(" kB")?.parse().ok())
        .unwrap_or(0);
    if total < 64 << 10 || !bench.host.has_swap_accounting() {
        return Ok(Verdict::Impossible(
            "this host has no swap, or does not account for it: a limit of swap is moot here".into(),
        ));
    }
    let mut lives = Vec::new();
    for swap in [0, 64 * MIB] {
        let limits = small(bench, swap);
        let group = bench.group(&limits, &[])?;
        bench.numbers("before", &group, &[MAX, SWAP_MAX]);
        bench.say(format!("a process takes 48 MiB with 32 MiB of memory and {} MiB of swap", swap / MIB));
        let ended = bench.watch(&group, &["hog", "48", "300"], &[CURRENT, SWAP])?;
        bench.numbers("after", &group, &[OOM]);
        bench.say(format!("it ended by {}", ended.status));
        lives.push(!killed(&ended));
    }
    Ok(judge(lives == [false, true], "without swap it was killed, with swap it lived".into()))
}

pub fn pressure(bench: &mut Bench<'_>) -> Result<Verdict, Report> {
    if !bench.is_v2() {
        return Ok(Verdict::Impossible(
            "memory.high and pressure files need cgroup v2; this host has the controllers of v1".into(),
        ));
    }
    let limits = Limits { memory: Some(96 * MIB), memory_high: Some(24 * MIB), ..Limits::default() };
    let group = bench.group(&limits, &[])?;
    let files = [("memory", "", "memory.high"), CURRENT, MEMORY_PRESSURE];
    bench.numbers("before", &group, &files);
    bench.say("a process takes 30 MiB where it should not have more than 24");
    // Where nothing can be swapped out, the brake may hold a process for very long: what counts was counted by then.
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
        format!("the brake was used {high} times and cost {waited} ms of waiting; nobody was killed"),
    ))
}

pub fn throttle(bench: &mut Bench<'_>) -> Result<Verdict, Report> {
    let limits = Limits { cpu_quota_us: Some(30_000), cpu_period_us: Some(100_000), ..Limits::default() };
    let group = bench.group(&limits, &[])?;
    bench.numbers("before", &group, &[CPU_MAX, CPU_STAT]);
    bench.say("one thread is busy for two seconds, of which it may use 0.6");
    bench.watch(&group, &["burn", "1", "2000"], &[CPU_STAT])?;
    bench.numbers("after", &group, &[CPU_STAT]);
    let stats = group.stats();
    let share = stats.cpu_usage_us.unwrap_or(0) as f64 / 2e6;
    let throttled = stats.cpu_throttled_periods.unwrap_or(0);
    Ok(judge(
        share < 0.4 && throttled > 0,
        format!("it got {:.0} % of one CPU and was stopped in {throttled} periods", share * 100.0),
    ))
}

pub fn cpuset(bench: &mut Bench<'_>) -> Result<Verdict, Report> {
    let cpus = bench.host.facts()?.cpus;
    if cpus.0.len() < 2 {
        return Ok(Verdict::Impossible("with one CPU there is no difference to see".into()));
    }
    // Two where the host has at least four, so that there is a place to spread to.
    let share = (cpus.0.len() / 2).min(2);
    let few = CpuSet(cpus.0.iter().copied().take(share).collect());
    let names = [format!("--cpus {share}"), format!("--cpuset-cpus {few}")];
    let quota =
        Limits { cpu_quota_us: Some(share as u64 * 100_000), cpu_period_us: Some(100_000), ..Limits::default() };
    let place = Limits { cpuset_cpus: Some(few), ..Limits::default() };
    // Other work on the host may leave less than one CPU to be had: then there is nothing to throttle, and it is tried again.
    for _ in 0..3 {
        let seen = eight_threads(bench, [(&names[0], &quota), (&names[1], &place)])?;
        let [(_, by_quota, used, allowed), (nproc, by_place, ..)] = seen;
        if by_quota > 0 || used >= allowed {
            let good = by_quota > 0 && by_place == 0 && nproc == share;
            return Ok(judge(good, format!("by quota stopped in {by_quota} periods, by place in {by_place}")));
        }
        bench.say(format!("other work left the eight threads only {used} ms: once more"));
    }
    Ok(Verdict::Impossible("other work keeps this host's CPUs busy: no quota is ever used up".into()))
}

/// What a program counted as CPUs, in how many periods it was throttled, the milliseconds that it used, and those that its quota gave it in the
/// periods that passed.
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
        bench.say(format!("CPUs counted: {nproc}; CPU time: {used} ms; stopped in {throttled} periods"));
        let allowed = stats.cpu_periods.unwrap_or(0) * limits.cpu_quota_us.unwrap_or(0) / 1000;
        *slot = (nproc, throttled, used, allowed);
    }
    Ok(seen)
}

pub fn pids(bench: &mut Bench<'_>) -> Result<Verdict, Report> {
    let group = bench.group(&Limits { pids: Some(Some(20)), memory: Some(256 * MIB), ..Limits::default() }, &[])?;
    bench.numbers("before", &group, &[PIDS_MAX, PIDS]);
    bench.say("the bomb goes off");
    bench.watch(&group, &["bomb"], &[PIDS, PIDS_EVENTS])?;
    bench.numbers("after", &group, &[PIDS, PIDS_EVENTS]);
    let refused = group.stats().events.pids_max.unwrap_or(0);
    Ok(judge(refused > 0, format!("never more than 20 processes; fork was refused {refused} times")))
}

pub fn device(bench: &mut Bench<'_>) -> Result<Verdict, Report> {
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
    Ok(judge(good, "the same program, as root, on the same node: the cgroup decided".into()))
}

pub fn overlay(bench: &mut Bench<'_>) -> Result<Verdict, Report> {
    let dir = std::env::temp_dir().join(format!("gpurun-lab-{}", std::process::id()));
    let group = bench.group(&Limits::default(), &[])?;
    let ended = group.start(&["overlay", &dir.to_string_lossy()]).and_then(|running| bench.wait(running));
    // The mounts went with the payload's namespace; the empty directory that they stood on is left.
    let _ = fs::remove_dir(&dir);
    let output = ended?.output;
    output.lines().for_each(|line| bench.say(line));
    let line = |name: &str| output.lines().find(|line| line.starts_with(name)).unwrap_or_default();
    let good = line("before, above").trim_end().ends_with("above:")
        && line("after, above").contains("removed (whiteout")
        && line("after, above").contains("changed (container)")
        && !line("after, above").contains("kept")
        && line("after, below").contains("removed (image)");
    Ok(judge(good, "what the container did lies above, the image below is as it was".into()))
}

pub fn zombies(bench: &mut Bench<'_>) -> Result<Verdict, Report> {
    let mut left = Vec::new();
    for kind in ["lazy", "careful"] {
        let group = bench.group(&Limits { pids: Some(Some(100)), ..Limits::default() }, &[])?;
        bench.say(format!(
            "a {kind} pid 1 has five children, and each leaves it an orphan; all ten end at once; it {}",
            if kind == "lazy" { "never asks how" } else { "asks how, each time" }
        ));
        let running = group.start(&["namespace", "pid1", kind])?;
        let zombies = settled(bench, running.pid(), kind == "careful")?;
        bench.numbers("during", &group, &[PIDS]);
        bench.say(format!(
            "zombies: {}{}",
            zombies.len(),
            if zombies.is_empty() { "" } else { ", in state Z: their memory is gone, their numbers are not" }
        ));
        left.push(zombies.len());
    }
    Ok(judge(
        left[0] >= 5 && left[1] == 0,
        format!("{} zombies under the lazy one, {} under the careful one", left[0], left[1]),
    ))
}

/// The zombies of the pid 1 below a payload: once all ten are there (each orphan and its parent), or once the careful one has none left.
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
