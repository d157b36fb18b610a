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
pub(super) struct LabArgs {
    #[command(subcommand)]
    command: LabCommand,
}

impl LabArgs {
    /// Returns whether the command only lists the experiments.
    #[must_use]
    pub(super) fn lists(&self) -> bool {
        matches!(self.command, LabCommand::List { .. })
    }
}

#[derive(Debug, Subcommand)]
enum LabCommand {
    /// List the experiments
    List {
        /// Print as JSON
        #[arg(long)]
        json: bool,
    },
    /// Run one or more experiments, or `all`
    Run {
        /// Print a JSON object per line
        #[arg(long)]
        json: bool,
        /// Names of experiments (see `gpurun lab list`), or `all`
        #[arg(required = true, value_name = "NAME")]
        names: Vec<String>,
    },
}

#[derive(Debug, Args)]
pub(super) struct PayloadArgs {
    #[arg(long)]
    enter: Vec<PathBuf>,
    #[arg(last = true)]
    arguments: Vec<String>,
}

pub(super) fn payload(args: &PayloadArgs) -> u8 {
    lab::payload::main(&args.enter, &args.arguments)
}

/// Cleans up after killed labs.
pub(super) fn sweep() -> Result<(), Report> {
    lab::sweep(&Host::probe(Path::new("/"))?)
}

pub(super) fn run(args: &LabArgs) -> Result<u8, Report> {
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
        Report::usage(format!("there is no experiment `{name}`")).with_hint(format!("use one of: {}", names.join(", ")))
    })
}

/// The texts of a lab, with the file names of this host's cgroup version.
struct Texts {
    title: String,
    about: String,
    notice: String,
}

impl Texts {
    fn new(lab: &Lab) -> Result<Self, Report> {
        let version = Host::probe(Path::new("/"))?.limits_version();
        let text = |text| lab::for_version(text, version);
        Ok(Self { title: text(lab.title), about: text(lab.about), notice: text(lab.notice) })
    }

    fn json(&self, lab: &Lab) -> serde_json::Value {
        serde_json::json!({
            "kind": "lab", "name": lab.name, "title": self.title, "about": self.about, "flags": lab.flags, "notice": self.notice,
        })
    }
}

fn list(json: bool) -> Result<u8, Report> {
    let texts = LABS.iter().map(Texts::new).collect::<Result<Vec<_>, _>>()?;
    if json {
        let all: Vec<_> = LABS.iter().zip(&texts).map(|(lab, texts)| texts.json(lab)).collect();
        print::json(&all)?;
        return Ok(0);
    }
    let rows: Vec<Vec<String>> =
        LABS.iter().zip(texts).map(|(lab, texts)| vec![lab.name.to_owned(), texts.title]).collect();
    print::show_table(&["NAME", "TITLE"], &rows)?;
    Ok(0)
}

const WIDTH: usize = 80;

fn run_one(lab: &Lab, json: bool, stopped: &dyn Fn() -> bool) -> Result<u8, Report> {
    let line = |value: &serde_json::Value| print::json_line(value);
    let mut screen = Screen::default();
    let texts = Texts::new(lab)?;
    if json {
        let about = texts.json(lab);
        line(&about)?;
    } else {
        let about = print::wrapped(&texts.about, "  ", WIDTH);
        let flags = print::wrapped(&format!("The same for a container: {}", lab.flags), "  ", WIDTH);
        print::styled(&format!("{}\n{about}\n{flags}", screen.bold(&texts.title)))?;
    }
    let mut failed = None;
    let show = &mut |shown: Line| {
        let done = if json { line(&serde_json::json!(shown)) } else { print::styled(&screen.text(&shown)) };
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
        let (arguments, notice) = match &verdict {
            Verdict::Expected(text) => (format!("as the kernel documents it: {text}"), true),
            Verdict::Unexpected(text) => (format!("NOT as the kernel documents it: {text}"), false),
            Verdict::Impossible(text) => (format!("not possible on this host: {text}"), true),
        };
        let notice = if notice { print::wrapped(&texts.notice, "   ", WIDTH) } else { String::new() };
        print::styled(&format!("\n{}{notice}\n", screen.bold(&print::wrapped(&format!("=> {arguments}"), "", WIDTH))))?;
    }
    Ok(u8::from(matches!(verdict, Verdict::Unexpected(_))))
}

/// The display of a lab: numbers in readable units with a bar that ends at the limit, legible from the back of a
/// classroom.
#[derive(Debug, Default)]
struct Screen {
    /// The limit that corresponds to a full bar, for each first component of a file name (`memory`, `pids`).
    limits: BTreeMap<String, u64>,
    phase: &'static str,
}

/// The phase for texts between the numbers.
const TEXT_PHASE: &str = "said";
/// Width of a full bar in columns.
const BAR: u64 = 24;

impl Screen {
    /// Makes text bold, but only on a terminal.
    fn bold(&self, text: &str) -> String {
        let coloured = std::io::stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none();
        if coloured { print::bold(text.trim_end()) + &text[text.trim_end().len()..] } else { text.to_owned() }
    }

    fn text(&mut self, line: &Line) -> String {
        match line {
            Line::Say { text } => {
                let gap = if std::mem::replace(&mut self.phase, TEXT_PHASE) == TEXT_PHASE { "" } else { "\n" };
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
        let formatted = match number {
            _ if file == "cpu.cfs_quota_us" => readable(file, value),
            Some(bytes) if group == "memory" => format!("{:<11} {bar}", format_memory(bytes)),
            Some(number) => format!("{number:<11} {bar}"),
            None => readable(file, value),
        };
        format!("  {phase:<7} {file:<29} {formatted}").trim_end().to_owned() + "\n"
    }
}

/// Formats a file with many counters as one line with the relevant ones.
fn readable(file: &str, value: &str) -> String {
    let count =
        |key: &str| value.split(", ").find_map(|pair| pair.strip_prefix(key)?.strip_prefix(' ')?.parse::<u64>().ok());
    match file {
        "cpu.stat" => {
            let micros = count("throttled_usec").or_else(|| count("throttled_time").map(|nanos| nanos / 1000));
            format!(
                "throttled in {} of {} periods, {} ms",
                count("nr_throttled").unwrap_or(0),
                count("nr_periods").unwrap_or(0),
                micros.unwrap_or(0) / 1000
            )
        }
        "memory.pressure" => {
            let waited =
                value.split_once("total=").and_then(|(_, rest)| rest.split([',', ' ']).next()?.parse::<u64>().ok());
            format!("waited {} ms in total", waited.unwrap_or(0) / 1000)
        }
        "cpu.cfs_quota_us" if value == "-1" => "no limit".into(),
        "cpu.cfs_quota_us" => format!("{value} µs in each period"),
        "cpu.max" => match value.split_once(' ') {
            Some(("max", _)) => "no limit".into(),
            Some((quota, period)) => format!("{quota} µs in each {period} µs"),
            None => value.to_owned(),
        },
        _ if value.contains(", ") || file.ends_with(".events") => {
            let formatted: Vec<&str> = value.split(", ").filter(|pair| !pair.ends_with(" 0")).collect();
            if formatted.is_empty() { "all 0".into() } else { formatted.join(", ") }
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
    fn counters_are_formatted_for_people() {
        for (file, value, formatted) in [
            (
                "cpu.stat",
                "usage_usec 9, nr_periods 20, nr_throttled 19, throttled_usec 1403803",
                "throttled in 19 of 20 periods, 1403 ms",
            ),
            (
                "cpu.stat",
                "nr_periods 5, nr_throttled 5, throttled_time 250919471",
                "throttled in 5 of 5 periods, 250 ms",
            ),
            ("memory.events", "low 0, high 0, max 35, oom 1, oom_kill 1", "max 35, oom 1, oom_kill 1"),
            ("memory.events", "low 0, high 0", "all 0"),
            (
                "memory.pressure",
                "some avg10=0.72 avg60=0.13 avg300=0.02 total=81510, full avg10=0.72",
                "waited 81 ms in total",
            ),
            ("cpu.max", "30000 100000", "30000 µs in each 100000 µs"),
            ("cpu.cfs_quota_us", "-1", "no limit"),
            ("cpuset.cpus", "", "(all)"),
            ("cpuset.cpus", "0-1", "0-1"),
        ] {
            assert_eq!(readable(file, value), formatted, "{file}");
        }
    }

    #[test]
    fn usage_bars_fit_80_columns() {
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
