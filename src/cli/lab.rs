//! `gpurun lab`: guided experiments.

use std::collections::BTreeMap;
use std::io::IsTerminal;
use std::path::{Path, PathBuf};

use clap::{Args, Subcommand};

use super::print;
use crate::cgroup::Host;
use crate::lab::{self, LABS, Lab, Line, Verdict};
use crate::report::Report;
use crate::units::format_memory;

#[derive(Debug, Args)]
pub struct LabArgs {
    #[command(subcommand)]
    command: LabCommand,
}

impl LabArgs {
    /// Whether nothing is run.
    #[must_use]
    pub fn lists(&self) -> bool {
        matches!(self.command, LabCommand::List { .. })
    }
}

#[derive(Debug, Subcommand)]
enum LabCommand {
    /// The experiments, a line each
    List {
        /// JSON
        #[arg(long)]
        json: bool,
    },
    /// Run experiments; `all` runs every one
    Run {
        /// JSON, a line for each thing shown
        #[arg(long)]
        json: bool,
        #[arg(required = true, value_name = "NAME")]
        names: Vec<String>,
    },
}

#[derive(Debug, Args)]
pub struct PayloadArgs {
    #[arg(long)]
    enter: Vec<PathBuf>,
    #[arg(last = true)]
    words: Vec<String>,
}

pub fn payload(args: &PayloadArgs) -> u8 {
    lab::payload::main(&args.enter, &args.words)
}

/// Clears away what killed labs left.
pub fn sweep() -> Result<(), Report> {
    lab::sweep(&Host::probe(Path::new("/"))?)
}

pub fn run(args: &LabArgs) -> Result<u8, Report> {
    match &args.command {
        LabCommand::List { json } => list(*json),
        LabCommand::Run { json, names } => {
            let labs: Vec<&Lab> = if names.iter().any(|name| name == "all") {
                LABS.iter().collect()
            } else {
                names.iter().map(|name| known(name)).collect::<Result<_, _>>()?
            };
            let signals = super::session::take_signals()?;
            let ends = [libc::SIGINT, libc::SIGTERM, libc::SIGHUP, libc::SIGQUIT];
            let stopped = || {
                let taken = std::iter::from_fn(|| signals.read_signal().ok().flatten());
                taken.into_iter().any(|info| ends.contains(&(info.ssi_signo as i32)))
            };
            let mut code = 0;
            for lab in labs {
                code = code.max(run_one(lab, *json, &stopped)?);
            }
            Ok(code)
        }
    }
}

fn known(name: &str) -> Result<&'static Lab, Report> {
    lab::find(name).ok_or_else(|| {
        let names: Vec<_> = LABS.iter().map(|lab| lab.name).collect();
        Report::usage(format!("there is no lab `{name}`")).with_hint(format!("there are {}", names.join(", ")))
    })
}

fn list(json: bool) -> Result<u8, Report> {
    if json {
        let all: Vec<_> = LABS
            .iter()
            .map(|lab| serde_json::json!({ "name": lab.name, "title": lab.title, "about": lab.about, "flags": lab.flags, "notice": lab.notice }))
            .collect();
        print::json(&all)?;
        return Ok(0);
    }
    let rows: Vec<Vec<String>> = LABS.iter().map(|lab| vec![lab.name.to_owned(), lab.title.to_owned()]).collect();
    print::out(&print::table(&["NAME", "WHAT IT SHOWS"], &rows))?;
    Ok(0)
}

const WIDTH: usize = 80;

fn run_one(lab: &Lab, json: bool, stopped: &dyn Fn() -> bool) -> Result<u8, Report> {
    let line = |value: &serde_json::Value| print::line(&value.to_string());
    let mut screen = Screen::default();
    if json {
        let about = serde_json::json!({
            "kind": "lab", "name": lab.name, "title": lab.title, "about": lab.about, "flags": lab.flags, "notice": lab.notice,
        });
        line(&about)?;
    } else {
        let about = print::wrapped(lab.about, "  ", WIDTH);
        let flags = print::wrapped(&format!("A container like that: {}", lab.flags), "  ", WIDTH);
        print::out(&format!("{}\n{about}\n{flags}", screen.bold(lab.title)))?;
    }
    let mut failed = None;
    let show = &mut |shown: Line| {
        let done = if json { line(&serde_json::json!(shown)) } else { print::out(&screen.text(&shown)) };
        if let Err(report) = done {
            failed = Some(report);
        }
    };
    let verdict = lab::run(lab, show, stopped)?;
    if let Some(report) = failed {
        return Err(report);
    }
    if json {
        line(&serde_json::json!(verdict))?;
    } else {
        let (words, notice) = match &verdict {
            Verdict::Expected(text) => (format!("as the kernel promises: {text}"), true),
            Verdict::Unexpected(text) => (format!("NOT as the kernel promises: {text}"), false),
            Verdict::Impossible(text) => (format!("not on this host: {text}"), true),
        };
        let notice = if notice { print::wrapped(lab.notice, "   ", WIDTH) } else { String::new() };
        print::out(&format!("\n{}{notice}\n", screen.bold(&print::wrapped(&format!("=> {words}"), "", WIDTH))))?;
    }
    Ok(u8::from(matches!(verdict, Verdict::Unexpected(_))))
}

/// What is shown of a lab, to be read from the last row of a room: numbers as a person says them, with a bar up to the limit.
#[derive(Debug, Default)]
struct Screen {
    /// The limit that a bar is drawn up to, by the file's first word (`memory`, `pids`).
    limits: BTreeMap<String, u64>,
    phase: &'static str,
}

/// The phase of what is said between the numbers.
const SAID: &str = "said";
/// Columns of a full bar.
const BAR: u64 = 24;

impl Screen {
    /// Colour on a terminal alone.
    fn bold(&self, text: &str) -> String {
        let coloured = std::io::stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none();
        if coloured {
            format!("\x1b[1m{}\x1b[0m{}", text.trim_end(), &text[text.trim_end().len()..])
        } else {
            text.to_owned()
        }
    }

    fn text(&mut self, line: &Line) -> String {
        match line {
            Line::Say { text } => {
                let gap = if std::mem::replace(&mut self.phase, SAID) == SAID { "" } else { "\n" };
                let wrapped = print::wrapped(text, "  ", WIDTH);
                format!("{gap}- {}", wrapped.trim_start())
            }
            Line::Command { text } => {
                let long = text.chars().count() + 3 > WIDTH;
                format!("  $ {}\n", text.replace(" > ", if long { " \\\n      >" } else { " >" }))
            }
            Line::Numbers { phase, files } => {
                files.iter().map(|(file, value)| self.number(phase, file, value)).collect()
            }
        }
    }

    fn number(&mut self, phase: &'static str, file: &str, value: &str) -> String {
        let group = file.split('.').next().unwrap_or_default().to_owned();
        let number = value.parse::<u64>().ok();
        if let Some(limit) = number.filter(|_| ["memory.max", "memory.limit_in_bytes", "pids.max"].contains(&file)) {
            self.limits.insert(group.clone(), limit);
        }
        let phase = if std::mem::replace(&mut self.phase, phase) == phase { "" } else { phase };
        let current = file.ends_with(".current") || file.ends_with(".usage_in_bytes");
        let bar = match (number, self.limits.get(&group)) {
            (Some(number), Some(limit)) if current && *limit > 0 => {
                "█".repeat((number.min(*limit) * BAR / limit) as usize)
            }
            _ => String::new(),
        };
        let told = match number {
            _ if file == "cpu.cfs_quota_us" => for_eyes(file, value),
            Some(bytes) if group == "memory" => format!("{:<11} {bar}", format_memory(bytes)),
            Some(number) => format!("{number:<11} {bar}"),
            None => for_eyes(file, value),
        };
        format!("  {phase:<7} {file:<29} {told}").trim_end().to_owned() + "\n"
    }
}

/// A file of many counters, on one line: those that say something.
fn for_eyes(file: &str, value: &str) -> String {
    let count =
        |key: &str| value.split(", ").find_map(|pair| pair.strip_prefix(key)?.strip_prefix(' ')?.parse::<u64>().ok());
    match file {
        "cpu.stat" => {
            let micros = count("throttled_usec").or_else(|| count("throttled_time").map(|nanos| nanos / 1000));
            format!(
                "stopped in {} of {} periods, {} ms",
                count("nr_throttled").unwrap_or(0),
                count("nr_periods").unwrap_or(0),
                micros.unwrap_or(0) / 1000
            )
        }
        "memory.pressure" => {
            let waited =
                value.split_once("total=").and_then(|(_, rest)| rest.split([',', ' ']).next()?.parse::<u64>().ok());
            format!("waited {} ms in all", waited.unwrap_or(0) / 1000)
        }
        "cpu.cfs_quota_us" if value == "-1" => "no limit".into(),
        "cpu.cfs_quota_us" => format!("{value} µs in each period"),
        "cpu.max" => match value.split_once(' ') {
            Some(("max", _)) => "no limit".into(),
            Some((quota, period)) => format!("{quota} µs in each {period} µs"),
            None => value.to_owned(),
        },
        _ if value.contains(", ") || file.ends_with(".events") => {
            let told: Vec<&str> = value.split(", ").filter(|pair| !pair.ends_with(" 0")).collect();
            if told.is_empty() { "all 0".into() } else { told.join(", ") }
        }
        "" => String::new(),
        _ if value.is_empty() => "(all)".into(),
        _ => value.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counters_are_told_as_a_person_would() {
        for (file, value, told) in [
            (
                "cpu.stat",
                "usage_usec 9, nr_periods 20, nr_throttled 19, throttled_usec 1403803",
                "stopped in 19 of 20 periods, 1403 ms",
            ),
            ("cpu.stat", "nr_periods 5, nr_throttled 5, throttled_time 250919471", "stopped in 5 of 5 periods, 250 ms"),
            ("memory.events", "low 0, high 0, max 35, oom 1, oom_kill 1", "max 35, oom 1, oom_kill 1"),
            ("memory.events", "low 0, high 0", "all 0"),
            (
                "memory.pressure",
                "some avg10=0.72 avg60=0.13 avg300=0.02 total=81510, full avg10=0.72",
                "waited 81 ms in all",
            ),
            ("cpu.max", "30000 100000", "30000 µs in each 100000 µs"),
            ("cpu.cfs_quota_us", "-1", "no limit"),
            ("cpuset.cpus", "", "(all)"),
            ("cpuset.cpus", "0-1", "0-1"),
        ] {
            assert_eq!(for_eyes(file, value), told, "{file}");
        }
    }

    #[test]
    fn usage_is_drawn_up_to_its_limit_within_80_columns() {
        let mut screen = Screen::default();
        assert_eq!(
            screen.number("before", "memory.limit_in_bytes", "33554432"),
            "  before  memory.limit_in_bytes         32 MiB\n"
        );
        let half = screen.number("during", "memory.usage_in_bytes", "16777216");
        assert!(half.ends_with(&format!("16 MiB      {}\n", "█".repeat(12))), "{half}");
        let full = screen.number("during", "memory.usage_in_bytes", "33550336");
        assert!(full.starts_with("          memory.usage") && full.chars().count() <= WIDTH, "{full}");
    }
}
