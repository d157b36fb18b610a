//! `gpurun top`: a live screen over all running containers. With a container, it shows the container's processes, as
//! docker does (`processes`).
//!
//! `model` holds what the screen shows and what each key does; `view` draws it. Both are pure. `workers` take the samples
//! and change containers in threads of their own, so that neither a slow driver nor a slow container blocks the screen.
//! `terminal` owns the modes of the terminal, and `screen` connects all of them.

mod keys;
mod line;
mod model;
mod processes;
mod screen;
mod snapshot;
mod sort;
mod terminal;
#[cfg(test)]
mod tests;
mod text;
mod view;
mod workers;

use std::io::IsTerminal;
use std::time::Duration;

use clap::Args;

use super::stats::interval;
use super::{Context, print};
use crate::report::Report;

#[derive(Debug, Args)]
#[command(
    after_help = "Without CONTAINER: a live screen over all running containers, below a summary of this host. CPU% counts one CPU as 100 %. THR is the percentage of periods in which --cpus throttled the container. PSI is the percentage of the last ten seconds in which a process waited for memory (cgroup v2 only). GPU% is the utilization of the container's GPUs by all processes, GPUMEM the GPU memory of its own. Keys: arrows select, k stops, p pauses or resumes, u changes limits, s and r sort, / filters, ? shows all keys, q quits.\n\n\
    With CONTAINER: its processes, by this host's ps. The PIDs are those of this host. The options are those of ps(1) [default: -ef]; they must show the column PID.\n\n\
    Examples:\n  gpurun top\n  gpurun top --interval 5\n  gpurun top --once --json\n  gpurun top lab\n  gpurun top lab -o pid,rss,cmd"
)]
pub(super) struct TopArgs {
    /// Print one sample and exit
    #[arg(long, conflicts_with = "container")]
    once: bool,
    /// Print the sample as JSON; bytes, percentages and microseconds
    #[arg(long, requires = "once", conflicts_with = "container")]
    json: bool,
    /// Seconds between samples
    #[arg(long, value_name = "SECONDS", default_value_t = 2.0, allow_negative_numbers = true, value_parser = interval, conflicts_with = "container")]
    interval: f64,
    /// Name or ID of the container
    #[arg(value_name = "CONTAINER")]
    container: Option<String>,
    /// Options of ps(1)
    #[arg(value_name = "PS OPTIONS")]
    options: Vec<String>,
}

pub(super) fn run(args: &TopArgs, context: &Context) -> Result<u8, Report> {
    if let Some(name) = &args.container {
        return processes::show(name, &args.options, context);
    }
    let interval = Duration::from_secs_f64(args.interval);
    if args.once {
        let snapshot = snapshot::once(context, interval)?;
        if args.json {
            print::json(&snapshot)?;
        } else {
            print::out(&view::printed(&snapshot, print::width()))?;
        }
        return Ok(0);
    }
    if !std::io::stdin().is_terminal() || !std::io::stdout().is_terminal() {
        return Err(Report::usage("cannot show a live screen: standard input and output must be a terminal")
            .with_hint("print one sample with `gpurun top --once`, or `gpurun top --once --json` for programs"));
    }
    screen::run(context, interval)
}
