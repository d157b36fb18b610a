//! What became of a hook: written by the shim, read by whoever has to explain a failed launch.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::nvidia;
use crate::report::Explain;

/// How a hook ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Outcome {
    Exit(i32),
    Signal(i32),
    /// After this many milliseconds, with its whole process group.
    TimedOut(u64),
    /// Whoever had it run ended first: it was killed, with its whole process group.
    Abandoned,
    CannotStart(String),
}

/// One hook's run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HookReport {
    pub hook: String,
    pub stage: String,
    pub path: PathBuf,
    pub outcome: Outcome,
    /// The end of what it wrote to stderr, at most [`super::shim::KEPT_STDERR`] bytes.
    pub stderr: String,
}

impl HookReport {
    /// The last line that says something.
    #[must_use]
    pub fn last_line(&self) -> &str {
        self.stderr.lines().rev().map(str::trim).find(|line| !line.is_empty()).unwrap_or_default()
    }

    /// The error, unless it went well.
    #[must_use]
    pub fn failure(self) -> Option<HookFailure> {
        (self.outcome != Outcome::Exit(0)).then(|| {
            let cause = nvidia::explain(&self.stderr);
            HookFailure { report: self, cause }
        })
    }
}

/// A hook that failed, and with it the container.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HookFailure {
    pub report: HookReport,
    cause: Option<&'static nvidia::PlainWords>,
}

impl std::fmt::Display for HookFailure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let HookReport { hook, stage, path, outcome, .. } = &self.report;
        write!(f, "the {stage} hook `{hook}` (`{}`) ", path.display())?;
        match outcome {
            Outcome::Exit(code) => write!(f, "failed with exit status {code}")?,
            Outcome::Signal(number) => write!(f, "was killed by signal {number}")?,
            Outcome::TimedOut(millis) => {
                write!(
                    f,
                    "did not end within {} s and was killed",
                    std::time::Duration::from_millis(*millis).as_secs_f64()
                )?;
            }
            Outcome::Abandoned => f.write_str("was killed, since what it ran for had ended")?,
            Outcome::CannotStart(why) => write!(f, "could not be started: {why}")?,
        }
        match self.report.last_line() {
            "" => Ok(()),
            line => write!(f, ": {line}"),
        }
    }
}

impl std::error::Error for HookFailure {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.cause.map(|words| words as _)
    }
}

impl Explain for HookFailure {
    fn hint(&self) -> Option<String> {
        if let Some(words) = self.cause {
            return Some(words.hint.into());
        }
        Some(match self.report.outcome {
            Outcome::TimedOut(_) => {
                "raise `timeout` (seconds) in the hook's definition if it really needs longer".into()
            }
            Outcome::CannotStart(_) => format!("see that `{}` is there and executable", self.report.path.display()),
            _ => format!("run `{}` by hand to see more, or take its definition away", self.report.path.display()),
        })
    }
}

/// The hooks of a container that failed, in the order in which they ran.
#[must_use]
pub fn failures(report_dir: &Path) -> Vec<HookFailure> {
    let Ok(entries) = std::fs::read_dir(report_dir) else { return Vec::new() };
    let mut files: Vec<PathBuf> = entries.filter_map(|entry| Some(entry.ok()?.path())).collect();
    files.retain(|path| path.extension().is_some_and(|extension| extension == "json"));
    files.sort_by_key(|path| path.file_name().map(|name| order(&name.to_string_lossy())));
    files
        .iter()
        .filter_map(|path| serde_json::from_slice::<HookReport>(&std::fs::read(path).ok()?).ok()?.failure())
        .collect()
}

/// `<stage>-<NN>-<name>.json`: the number counts through all stages.
fn order(name: &str) -> u32 {
    name.split('-').nth(1).and_then(|number| number.parse().ok()).unwrap_or(u32::MAX)
}
