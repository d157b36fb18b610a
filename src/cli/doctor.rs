//! `gpurun doctor`: examines this host and prints findings with hints.

use std::path::Path;

use clap::Args;

use super::{Context, print};
use crate::config::Config;
use crate::doctor::{Finding, examine};
use crate::gpu::doctor::Level;
use crate::report::Report;

#[derive(Debug, Args)]
#[command(after_help = "The exit status is 1 if something does not work. A host without a GPU is fine.")]
pub(super) struct DoctorArgs {
    /// Print a JSON array
    #[arg(long)]
    json: bool,
}

pub(super) fn run(args: &DoctorArgs, context: &Context) -> Result<u8, Report> {
    let mut findings = vec![crate::doctor::configuration(&Config::load()?)];
    findings.extend(examine(Path::new("/"), &context.root, &context.run_dir, &crate::launch::driver_root()));
    findings.extend(crate::doctor::supervisors(&context.root, &context.run_dir));
    if args.json {
        print::json(&findings)?;
    } else {
        print::out(&text(&findings))?;
    }
    Ok(u8::from(findings.iter().any(|finding| finding.level == Level::Problem)))
}

fn text(findings: &[Finding]) -> String {
    let mut text = String::new();
    for finding in findings {
        let mark = match finding.level {
            Level::Fine => "ok",
            Level::Advice => "advice",
            Level::Problem => "PROBLEM",
        };
        let head = format!("{mark:<8} {:<10} ", finding.area);
        let lines = print::wrapped(&finding.what, &" ".repeat(head.len()), 80);
        text.push_str(&head);
        text.push_str(lines.trim_start_matches(' '));
        if let Some(hint) = &finding.hint {
            text.push_str(&print::wrapped(&format!("hint: {hint}"), "                    ", 80));
        }
    }
    let count = |level: Level| findings.iter().filter(|finding| finding.level == level).count();
    match (count(Level::Problem), count(Level::Advice)) {
        (0, 0) => text.push_str("\nnothing to do\n"),
        (problems, advice) => {
            let plural =
                |count: usize, one: &str, many: &str| format!("{count} {}", if count == 1 { one } else { many });
            let problems = plural(problems, "problem", "problems");
            text.push_str(&format!("\n{problems}, {}\n", plural(advice, "piece of advice", "pieces of advice")));
        }
    }
    text
}
