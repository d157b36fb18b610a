//! Notices of a command that waits for a supervisor. A wait of some seconds without a line looks like a hang, so the
//! command prints what the supervisor is doing, and how long that may take.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use super::print;
use crate::hook;

/// How long a supervisor may be silent before the command prints a notice.
const QUIET: Duration = Duration::from_secs(5);

/// One wait.
pub(super) struct Waiting {
    /// Where the container's hooks announce themselves.
    hooks: PathBuf,
    /// The step of the launch that was announced last.
    step: Option<String>,
    /// When to look again.
    look: Instant,
    printed: Option<String>,
}

impl Waiting {
    /// `run_dir` is the container's directory in /run.
    pub(super) fn new(run_dir: &Path) -> Self {
        Self { hooks: run_dir.join("hooks"), step: None, look: Instant::now() + QUIET, printed: None }
    }

    /// When [`Self::notice`] wants to be called, unless the supervisor says something before.
    pub(super) fn until(&self) -> Instant {
        self.look
    }

    /// Call this when the supervisor begins a step that may take long.
    pub(super) fn begins(&mut self, step: String) {
        self.step = Some(step);
        self.look = Instant::now() + QUIET;
    }

    /// Prints why the supervisor is silent, once for each reason.
    pub(super) fn notice(&mut self) {
        let now = Instant::now();
        if now < self.look {
            return;
        }
        // A hook may begin while a step is already slow.
        self.look = now + QUIET / 5;
        let reason = match (hook::running(&self.hooks), &self.step) {
            (Some(running), _) => running.to_string(),
            (None, Some(step)) => format!("still waiting: {step}"),
            (None, None) => return,
        };
        if self.printed.as_ref() != Some(&reason) {
            print::say(&format!("gpurun: {reason}"));
            self.printed = Some(reason);
        }
    }

    /// The hook that is running now. It ends by itself or at its time limit.
    pub(super) fn hook(&self) -> Option<hook::Running> {
        hook::running(&self.hooks)
    }
}
