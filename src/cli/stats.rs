//! `gpurun stats`: shows the resource usage of containers, read directly from their cgroups.

use std::io::IsTerminal;
use std::time::Duration;

use clap::Args;

use super::format::{self, Format, Titles};
use super::{Context, print};
use crate::gpu::gib;
use crate::gpu::usage::Share;
use crate::record::short;
use crate::report::Report;
use crate::sampler::{self, Sample, Sampler};
use crate::template::Value;
use crate::units::{UnitError, format_memory};

#[derive(Debug, Args)]
#[command(
    after_help = "CPU % counts one CPU as 100 %: 150 % is one and a half. THROTTLED is the share of periods in which --cpus throttled the container. PSI is the share of the last ten seconds in which a process waited for CPU, memory or I/O (cgroup v2 only). GPU shows the GPU memory of the container's own processes, and the utilization of the GPU by all processes."
)]
pub(super) struct StatsArgs {
    /// Print one sample and exit
    #[arg(long)]
    no_stream: bool,
    /// Seconds between samples
    #[arg(long, value_name = "SECONDS", default_value_t = 1.0, allow_negative_numbers = true, value_parser = interval)]
    interval: f64,
    /// Print a table of chosen fields (`table {{.Name}}\t{{.CPUPerc}}`), JSON lines (`json`), or a Go template for each container
    #[arg(long, value_name = "FORMAT", conflicts_with = "json")]
    format: Option<String>,
    /// Do not truncate IDs
    #[arg(long)]
    no_trunc: bool,
    /// Print JSON: an array with --no-stream, else an object per container and sample
    #[arg(long)]
    json: bool,
    /// Names or IDs of containers (default: all running ones)
    #[arg(value_name = "CONTAINER")]
    containers: Vec<String>,
}

/// Parses the seconds between two samples.
pub(super) fn interval(text: &str) -> Result<f64, UnitError> {
    text.parse()
        .ok()
        .filter(|seconds| (0.1..=3600.0).contains(seconds))
        .ok_or_else(|| UnitError::Seconds(text.to_owned()))
}

const TITLES: &Titles = &[
    ("ID", "CONTAINER ID"),
    ("Container", "CONTAINER"),
    ("Name", "NAME"),
    ("CPUPerc", "CPU %"),
    ("MemUsage", "MEM USAGE / LIMIT"),
    ("MemPerc", "MEM %"),
    ("NetIO", "NET I/O"),
    ("BlockIO", "BLOCK I/O"),
    ("PIDs", "PIDS"),
    ("Gpus", "GPU"),
    ("User", "USER"),
];

/// The fields of a sample for `--format`, with docker's names. Where a container has no limit, docker shows the host's
/// memory.
fn fields(sample: &Sample, whole: bool, host_memory: Option<u64>) -> Value {
    let percent = |value: Option<f64>| format!("{:.2}%", value.unwrap_or(0.0));
    let size = |bytes: Option<u64>| format_memory(bytes.unwrap_or(0)).replace(' ', "");
    let io = |bytes: Option<u64>| super::image::size(bytes.unwrap_or(0));
    let stats = &sample.stats;
    let limit = stats.memory_limit.or(host_memory);
    let part = |(used, limit): (u64, u64)| 100.0 * used as f64 / limit.max(1) as f64;
    let memory_percent = sample.memory_percent.or_else(|| stats.memory_used.zip(limit).map(part));
    let id = if whole { sample.id.as_str() } else { short(&sample.id) };
    format::row([
        ("ID", id.into()),
        ("Container", id.into()),
        ("Name", sample.name.as_str().into()),
        ("CPUPerc", percent(sample.cpu_percent).into()),
        ("MemUsage", format!("{} / {}", size(stats.memory_used), size(limit)).into()),
        ("MemPerc", percent(memory_percent).into()),
        ("NetIO", format!("{} / {}", io(sample.net_received_bytes), io(sample.net_sent_bytes)).into()),
        ("BlockIO", format!("{} / {}", io(stats.io_read_bytes), io(stats.io_write_bytes)).into()),
        ("PIDs", stats.pids_current.unwrap_or(0).to_string().into()),
        ("Gpus", gpus(&sample.gpus).into()),
        ("User", sample.owner.as_str().into()),
    ])
}

pub(super) fn run(args: &StatsArgs, context: &Context) -> Result<u8, Report> {
    let format = Format::of(args.format.as_deref())?;
    let records = context.records()?;
    let mut sampler = Sampler::new(&records)?;
    // Rates need two samples, so the first one is not shown.
    let running = sampler.containers(&args.containers)?;
    for name in &args.containers {
        let entry = records.find(name)?;
        if !running.iter().any(|sample| sample.id == entry.record.id) {
            print::say(&format!("gpurun: `{}` is not running", entry.record.name));
        }
    }
    let first = Duration::from_secs_f64(args.interval.min(if args.no_stream { 0.5 } else { args.interval }));
    let in_place = !args.json && !args.no_stream && std::io::stdout().is_terminal();
    let mut pause = first;
    loop {
        std::thread::sleep(pause);
        pause = Duration::from_secs_f64(args.interval);
        let mut samples = sampler.containers(&args.containers)?;
        if samples.iter().any(|sample| sample.has_gpus) {
            sampler::share_gpus(&mut samples, &sampler.gpus()?);
        }
        if args.json && args.no_stream {
            print::json(&samples)?;
        } else if args.json {
            for sample in &samples {
                print::json_line(sample)?;
            }
        } else if !matches!(format, Format::Table) {
            let memory = super::info::memory_total();
            let rows: Vec<Value> = samples.iter().map(|sample| fields(sample, args.no_trunc, memory)).collect();
            format.print(TITLES, &rows, false)?;
        } else {
            let width =
                crate::sys::tty::window_size(std::io::stdout()).map_or(usize::MAX, |(_, columns)| columns.into());
            let text = crate::report::printable(&table(&samples, width)).into_owned();
            print::raw_line(if in_place { redrawn(&text) } else { text }.trim_end())?;
        }
        if args.no_stream || (!args.containers.is_empty() && samples.is_empty()) {
            return Ok(0);
        }
    }
}

/// Redraws the screen from the first column, and clears the rest of each line and then the rest of the screen. This
/// avoids flicker and leaves no old text.
fn redrawn(text: &str) -> String {
    format!("\x1b[H{}\x1b[J", text.replace('\n', "\x1b[K\n"))
}

/// Formats GPU usage as `0: 11.0 GiB, 93%`.
fn gpus(shares: &[Share]) -> String {
    let one = |share: &Share| {
        let busy = share.utilization.map(|percent| format!(", {percent}%")).unwrap_or_default();
        format!("{}: {}{busy}", share.index, gib(share.memory))
    };
    if shares.is_empty() { "-".into() } else { shares.iter().map(one).collect::<Vec<_>>().join("; ") }
}

/// Columns to omit on a narrow terminal, in this order.
const DISPENSABLE: [&str; 8] = ["ID", "NET IN / OUT", "READ / WRITTEN", "MEM %", "SWAP", "PEAK", "PSI C/M/I", "USER"];

/// Formats the table, if possible with at most `width` characters per line.
fn table(samples: &[Sample], width: usize) -> String {
    let with_gpus = samples.iter().any(|sample| !sample.gpus.is_empty());
    let with_users = samples.iter().any(|sample| sample.owner != "root");
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
    if with_users {
        titles.insert(2, "USER");
    }
    titles.extend(with_gpus.then_some("GPU"));
    let mut rows: Vec<Vec<String>> = samples.iter().map(|sample| cells(sample, with_users, with_gpus)).collect();
    let mut dispensable = DISPENSABLE.iter();
    loop {
        let text = print::compact_table(&titles, &rows);
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

fn cells(sample: &Sample, with_users: bool, with_gpus: bool) -> Vec<String> {
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
    if with_users {
        cells.insert(2, sample.owner.clone());
    }
    cells.extend(with_gpus.then(|| gpus(&sample.gpus)));
    cells
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cgroup::Stats;

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
            owner: "alice".into(),
            cpu_percent: Some(12.34),
            memory_percent: Some(1.5),
            stats,
            ..Sample::default()
        };
        let wide = table(std::slice::from_ref(&sample), usize::MAX);
        assert!(wide.contains("0123456789ab") && wide.contains("NET IN / OUT"), "{wide}");
        let narrow = table(std::slice::from_ref(&sample), 80);
        assert!(narrow.lines().all(|line| line.chars().count() <= 80), "{narrow}");
        assert!(narrow.contains("CPU %") && narrow.contains("1 MiB / 64 MiB") && narrow.contains("PIDS"), "{narrow}");
        assert_eq!(redrawn("a\nb\n"), "\x1b[Ha\x1b[K\nb\x1b[K\n\x1b[J");
    }
}
