//! The result of a hook. The shim writes it, and gpurun reads it to explain a failed launch.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::nvidia;
use crate::report::Explain;

/// How a hook ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) enum Outcome {
    Exit(i32),
    Signal(i32),
    /// The hook exceeded this many milliseconds, and its process group was killed.
    TimedOut(u64),
    /// The hook's parent ended first, and its process group was killed.
    Abandoned,
    CannotStart(String),
}

/// The run of one hook.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct HookReport {
    pub hook: String,
    pub stage: String,
    pub path: PathBuf,
    pub outcome: Outcome,
    /// The end of its stderr output, at most [`super::shim::KEPT_STDERR`] bytes.
    pub stderr: String,
}

impl HookReport {
    /// Returns the last line that is not blank.
    #[must_use]
    pub(crate) fn last_line(&self) -> &str {
        self.stderr.lines().rev().map(str::trim).find(|line| !line.is_empty()).unwrap_or_default()
    }

    /// Returns the failure, unless the hook succeeded.
    #[must_use]
    pub(crate) fn failure(self) -> Option<HookFailure> {
        (self.outcome != Outcome::Exit(0)).then(|| {
            let cause = nvidia::explain(&self.path, &self.stderr);
            HookFailure { report: self, cause }
        })
    }
}

/// A hook that is running now.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Running {
    pub hook: String,
    pub stage: String,
    pub path: PathBuf,
    /// Its time limit in seconds.
    pub timeout: u64,
}

impl std::fmt::Display for Running {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { hook, stage, path, timeout } = self;
        write!(
            f,
            "the {stage} hook `{hook}` (`{}`) has not ended yet; gpurun waits for it for up to {timeout} s",
            path.display()
        )
    }
}

/// The path of the file that names a running hook, beside the hook's report.
pub(super) fn running_file(report: &Path) -> PathBuf {
    report.with_extension("running")
}

/// The hook of a container that is running now.
pub(crate) fn running(report_dir: &Path) -> Option<Running> {
    let files = std::fs::read_dir(report_dir).ok()?.flatten().map(|entry| entry.path());
    let mut files = files.filter(|path| path.extension().is_some_and(|extension| extension == "running"));
    serde_json::from_slice(&std::fs::read(files.next()?).ok()?).ok()
}

/// A hook that failed, so that the container's start failed too.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct HookFailure {
    pub report: HookReport,
    cause: Option<&'static nvidia::KnownFailure>,
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
            Outcome::Abandoned => f.write_str("was killed because its parent process had ended")?,
            Outcome::CannotStart(why) => write!(f, "could not be started: {why}")?,
        }
        match self.report.last_line() {
            "" => Ok(()),
            line => write!(f, ": {}", shorten(line)),
        }
    }
}

impl std::error::Error for HookFailure {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.cause.map(|known| known as _)
    }
}

impl Explain for HookFailure {
    fn hint(&self) -> Option<String> {
        if let Some(known) = self.cause {
            return Some(known.hint.into());
        }
        Some(match self.report.outcome {
            Outcome::TimedOut(_) => {
                "raise `timeout` (seconds) in the hook's definition if the hook needs more time".into()
            }
            Outcome::CannotStart(_) => format!("check that `{}` exists and is executable", self.report.path.display()),
            _ => format!("run `{}` in a shell for details, or remove its definition", self.report.path.display()),
        })
    }
}

/// Maximum number of characters that a message quotes of a hook's output line. A line can have any length, and a
/// message must fit on a screen.
const QUOTED: usize = 1000;

/// Shortens a long text by omitting its middle, because the beginning and the end are the most informative parts.
#[must_use]
pub(crate) fn shorten(text: &str) -> String {
    let count = text.chars().count();
    if count <= QUOTED {
        return text.to_owned();
    }
    let head: String = text.chars().take(QUOTED / 2).collect();
    let tail: String = text.chars().skip(count - QUOTED / 2).collect();
    format!("{head} […{} characters…] {tail}", count - QUOTED)
}

/// Returns the failed hooks of a container, in execution order.
#[must_use]
pub(crate) fn failures(report_dir: &Path) -> Vec<HookFailure> {
    reports(report_dir).into_iter().filter_map(HookReport::failure).collect()
}

/// Returns the reports of hooks that failed or wrote to stderr, in execution order.
#[must_use]
pub(crate) fn reports(report_dir: &Path) -> Vec<HookReport> {
    let Ok(entries) = std::fs::read_dir(report_dir) else { return Vec::new() };
    let mut files: Vec<PathBuf> = entries.filter_map(|entry| Some(entry.ok()?.path())).collect();
    files.retain(|path| path.extension().is_some_and(|extension| extension == "json"));
    files.sort_by_key(|path| path.file_name().map(|name| order(&name.to_string_lossy())));
    files.iter().filter_map(|path| serde_json::from_slice::<HookReport>(&std::fs::read(path).ok()?).ok()).collect()
}

/// Returns the number in `<stage>-<NN>-<name>.json`, which counts hooks across all stages.
fn order(name: &str) -> u32 {
    name.split('-').nth(1).and_then(|number| number.parse().ok()).unwrap_or(u32::MAX)
}
