//! `gpurun stats`: what containers use, read straight from their cgroups.

use std::collections::BTreeMap;
use std::io::IsTerminal;
use std::path::Path;
use std::time::{Duration, Instant};

use clap::Args;
use serde::Serialize;

use super::{Context, print};
use crate::cgroup::{Cgroup, Host, Stats};
use crate::gpu::usage::{self, Share};
use crate::gpu::{Inventory, gib};
use crate::launch;
use crate::record::{Entry, Phase, Records, short};
use crate::report::Report;
use crate::request::NetworkMode;
use crate::units::{UnitError, format_memory};

#[derive(Debug, Args)]
#[command(
    after_help = "CPU % is of one CPU: 150 % is one and a half. THROTTLED is the share of periods in which --cpus held the container back. PSI is the share\n\
    of the last ten seconds in which some process waited for CPU, memory or I/O (cgroup v2 alone). GPU shows, where a container has one, the\n\
    memory of its own processes on it, and how busy the GPU is with everybody's."
)]
pub struct StatsArgs {
    /// One sample, then end
    #[arg(long)]
    no_stream: bool,
    /// Seconds between samples
    #[arg(long, value_name = "SECONDS", default_value_t = 1.0, allow_negative_numbers = true, value_parser = interval)]
    interval: f64,
    /// JSON: with --no-stream an array, else a line for each container and sample
    #[arg(long)]
    json: bool,
    /// All running ones, if none is named
    #[arg(value_name = "CONTAINER")]
    containers: Vec<String>,
}

/// One container's sample, with the rates since the one before.
#[derive(Debug, Serialize)]
struct Sample {
    id: String,
    name: String,
    paused: bool,
    /// Per cent of one CPU; `null` in the first sample of a container.
    cpu_percent: Option<f64>,
    /// Per cent of the periods since the sample before.
    throttled_percent: Option<f64>,
    /// Per cent of the memory limit.
    memory_percent: Option<f64>,
    /// Bytes over the container's own network; `null` where it has none.
    net_received_bytes: Option<u64>,
    net_sent_bytes: Option<u64>,
    #[serde(flatten)]
    stats: Stats,
    /// The GPUs that it holds or computes on.
    gpus: Vec<Share>,
}

fn interval(text: &str) -> Result<f64, UnitError> {
    text.parse()
        .ok()
        .filter(|seconds| (0.1..=3600.0).contains(seconds))
        .ok_or_else(|| UnitError::Seconds(text.to_owned()))
}

pub fn run(args: &StatsArgs, context: &Context) -> Result<u8, Report> {
    let host = Host::probe(Path::new("/"))?;
    let records = context.records()?;
    let mut before: BTreeMap<String, (Instant, Stats)> = BTreeMap::new();
    // A rate needs two samples: the first one is only taken.
    let running = sample(&records, &host, &args.containers, &mut before)?;
    for name in &args.containers {
        let entry = records.find(name)?;
        if !running.iter().any(|sample| sample.id == entry.record.id) {
            print::say(&format!("gpurun: `{}` does not run: it uses nothing but its files", entry.record.name));
        }
    }
    let first = Duration::from_secs_f64(args.interval.min(if args.no_stream { 0.5 } else { args.interval }));
    let in_place = !args.json && !args.no_stream && std::io::stdout().is_terminal();
    let mut pause = first;
    loop {
        std::thread::sleep(pause);
        pause = Duration::from_secs_f64(args.interval);
        let samples = sample(&records, &host, &args.containers, &mut before)?;
        if args.json && args.no_stream {
            print::json(&samples)?;
        } else if args.json {
            for sample in &samples {
                let line = serde_json::to_string(sample)
                    .map_err(|error| Report::new("cannot print as JSON").with_cause(error))?;
                print::line(&line)?;
            }
        } else {
            let width =
                crate::sys::tty::window_size(std::io::stdout()).map_or(usize::MAX, |(_, columns)| columns.into());
            let text = table(&samples, width);
            print::line(if in_place { redrawn(&text) } else { text }.trim_end())?;
        }
        if args.no_stream || (!args.containers.is_empty() && samples.is_empty()) {
            return Ok(0);
        }
    }
}

/// From the terminal's first column on, each line and then the screen cleared behind what is new: nothing flickers, nothing of before is left.
fn redrawn(text: &str) -> String {
    format!("\x1b[H{}\x1b[J", text.replace('\n', "\x1b[K\n"))
}

fn sample(
    records: &Records,
    host: &Host,
    names: &[String],
    before: &mut BTreeMap<String, (Instant, Stats)>,
) -> Result<Vec<Sample>, Report> {
    let entries: Vec<Entry> = if names.is_empty() {
        // `ps` tells of those that cannot be read, once and not with every sample.
        records.list_all()?.0
    } else {
        names.iter().map(|name| records.find(name)).collect::<Result<_, _>>()?
    };
    let (mut samples, mut with_gpus) = (Vec::new(), false);
    for entry in entries {
        let state = entry.state_shown()?;
        if state.phase != Phase::Running {
            continue;
        }
        let id = entry.record.id.clone();
        let path = launch::cgroup_path(entry.record.request.cgroup_parent.as_deref(), &id);
        let Some(cgroup) = Cgroup::open(host, &path)? else { continue };
        let (now, stats) = (Instant::now(), cgroup.stats());
        let earlier = before.insert(id.clone(), (now, stats.clone()));
        with_gpus |= !state.gpus.is_empty();
        let mut sample = rates(&entry, state.paused, now, stats, earlier.as_ref(), id);
        if entry.record.request.network == NetworkMode::Bridge {
            (sample.net_received_bytes, sample.net_sent_bytes) = state.pid.and_then(traffic).unzip();
        }
        samples.push(sample);
    }
    if with_gpus {
        // NVML is asked only where somebody has a GPU; without it there is no such column, and everything else.
        let inventory = Inventory::read(&launch::driver_root()).ok();
        let all = inventory.map(|inventory| super::gpus::look(&inventory, records)).transpose()?.unwrap_or_default();
        samples.iter_mut().for_each(|sample| sample.gpus = usage::shares(&all, &sample.id));
    }
    Ok(samples)
}

fn rates(
    entry: &Entry,
    paused: bool,
    now: Instant,
    stats: Stats,
    earlier: Option<&(Instant, Stats)>,
    id: String,
) -> Sample {
    let grown =
        |of: fn(&Stats) -> Option<u64>| -> Option<f64> { Some(of(&stats)?.checked_sub(of(&earlier?.1)?)? as f64) };
    let elapsed = earlier.map(|(then, _)| (now - *then).as_secs_f64() * 1e6);
    let cpu_percent = grown(|stats| stats.cpu_usage_us).zip(elapsed).map(|(used, elapsed)| 100.0 * used / elapsed);
    let throttled_percent = grown(|stats| stats.cpu_throttled_periods)
        .zip(grown(|stats| stats.cpu_periods))
        .map(|(throttled, periods)| if periods > 0.0 { 100.0 * throttled / periods } else { 0.0 });
    let memory_percent =
        stats.memory_used.zip(stats.memory_limit).map(|(used, limit)| 100.0 * used as f64 / limit as f64);
    Sample {
        id,
        name: entry.record.name.clone(),
        paused,
        cpu_percent,
        throttled_percent,
        memory_percent,
        net_received_bytes: None,
        net_sent_bytes: None,
        stats,
        gpus: Vec::new(),
    }
}

/// Bytes received and sent in a process's network namespace (proc_pid_net(5), `dev`), loopback aside.
fn traffic(pid: i32) -> Option<(u64, u64)> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/net/dev")).ok()?;
    Some(parse_traffic(&text))
}

/// Two lines of titles, then `eth0: RECEIVED packets errs drop fifo frame compressed multicast SENT …`.
fn parse_traffic(text: &str) -> (u64, u64) {
    let interfaces = text.lines().filter_map(|line| line.split_once(':')).filter(|(name, _)| name.trim() != "lo");
    interfaces.fold((0, 0), |(received, sent), (_, numbers)| {
        let field =
            |index: usize| numbers.split_whitespace().nth(index).and_then(|word| word.parse::<u64>().ok()).unwrap_or(0);
        (received + field(0), sent + field(8))
    })
}

/// `0: 11.0 GiB, 93%`
fn gpus(shares: &[Share]) -> String {
    let one = |share: &Share| {
        let busy = share.utilization.map(|percent| format!(", {percent}%")).unwrap_or_default();
        format!("{}: {}{busy}", share.index, gib(share.memory))
    };
    if shares.is_empty() { "-".into() } else { shares.iter().map(one).collect::<Vec<_>>().join("; ") }
}

/// Columns that a narrow terminal does without, the first one first.
const DISPENSABLE: [&str; 7] = ["ID", "NET IN / OUT", "READ / WRITTEN", "MEM %", "SWAP", "PEAK", "PSI C/M/I"];

/// The table, at most so many columns wide where that can be.
fn table(samples: &[Sample], width: usize) -> String {
    let with_gpus = samples.iter().any(|sample| !sample.gpus.is_empty());
    let mut titles = vec![
        "ID",
        "NAME",
        "CPU %",
        "THROTTLED",
        "MEMORY / LIMIT",
        "MEM %",
        "PEAK",
        "SWAP",
        "PIDS",
        "READ / WRITTEN",
        "NET IN / OUT",
        "PSI C/M/I",
    ];
    titles.extend(with_gpus.then_some("GPU"));
    let mut rows: Vec<Vec<String>> = samples.iter().map(|sample| cells(sample, with_gpus)).collect();
    let mut dispensable = DISPENSABLE.iter();
    loop {
        let text = print::table(&titles, &rows);
        let widest = text.lines().map(|line| line.chars().count()).max().unwrap_or(0);
        match dispensable.next() {
            Some(title) if widest > width => {
                if let Some(column) = titles.iter().position(|other| other == title) {
                    titles.remove(column);
                    rows.iter_mut().for_each(|row| drop(row.remove(column)));
                }
            }
            _ => return text,
        }
    }
}

fn cells(sample: &Sample, with_gpus: bool) -> Vec<String> {
    let percent = |value: Option<f64>| value.map_or_else(|| "-".into(), |value| format!("{value:.1}%"));
    let size = |bytes: Option<u64>| bytes.map_or_else(|| "-".into(), format_memory);
    let stats = &sample.stats;
    let pressure = match (stats.cpu_pressure, stats.memory_pressure, stats.io_pressure) {
        (Some(cpu), Some(memory), Some(io)) => {
            format!("{:.0}/{:.0}/{:.0}", cpu.some_avg10, memory.some_avg10, io.some_avg10)
        }
        _ => "-".into(),
    };
    let mut cells = vec![
        short(&sample.id).to_owned(),
        sample.name.clone(),
        percent(sample.cpu_percent),
        percent(sample.throttled_percent),
        format!("{} / {}", size(stats.memory_used), size(stats.memory_limit)),
        percent(sample.memory_percent),
        size(stats.memory_peak),
        size(stats.swap_current),
        match (stats.pids_current, stats.pids_limit) {
            (Some(now), Some(most)) => format!("{now} / {most}"),
            (Some(now), None) => now.to_string(),
            _ => "-".into(),
        },
        format!("{} / {}", size(stats.io_read_bytes), size(stats.io_write_bytes)),
        format!("{} / {}", size(sample.net_received_bytes), size(sample.net_sent_bytes)),
        pressure,
    ];
    cells.extend(with_gpus.then(|| gpus(&sample.gpus)));
    cells
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_narrow_terminal_gets_the_columns_that_matter_most() {
        let stats = Stats {
            memory_used: Some(1 << 20),
            memory_limit: Some(64 << 20),
            pids_current: Some(3),
            ..Stats::default()
        };
        let sample = Sample {
            id: "0123456789abcdef".into(),
            name: "lab".into(),
            paused: false,
            cpu_percent: Some(12.34),
            throttled_percent: None,
            memory_percent: Some(1.5),
            net_received_bytes: None,
            net_sent_bytes: None,
            stats,
            gpus: Vec::new(),
        };
        let wide = table(std::slice::from_ref(&sample), usize::MAX);
        assert!(wide.contains("0123456789ab") && wide.contains("NET IN / OUT"), "{wide}");
        let narrow = table(std::slice::from_ref(&sample), 80);
        assert!(narrow.lines().all(|line| line.chars().count() <= 80), "{narrow}");
        assert!(narrow.contains("CPU %") && narrow.contains("1 MiB / 64 MiB") && narrow.contains("PIDS"), "{narrow}");
        assert_eq!(redrawn("a\nb\n"), "\x1b[Ha\x1b[K\nb\x1b[K\n\x1b[J");
    }

    #[test]
    fn traffic_without_loopback() {
        let text = "Inter-|   Receive                                                |  Transmit\n face |bytes    packets errs drop fifo frame compressed multicast|bytes    packets errs drop fifo colls carrier compressed\n    lo:     999       1    0    0    0     0          0         0      999       1    0    0    0     0       0          0\n  eth0:    1200      10    0    0    0     0          0         0      340       4    0    0    0     0       0          0\n";
        assert_eq!(parse_traffic(text), (1200, 340));
    }
}
