//! What an experiment reports.

use serde::Serialize;

/// The result of an experiment.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(tag = "verdict", content = "text", rename_all = "lowercase")]
pub(crate) enum Verdict {
    /// The result agrees with the kernel's documentation.
    Expected(String),
    /// The result does not agree. The fault is in this kernel or in gpurun.
    Unexpected(String),
    /// This host cannot run the experiment.
    Impossible(String),
}

/// A line of output from a running lab.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(tag = "kind", rename_all = "lowercase")]
pub(crate) enum Line {
    Say {
        text: String,
    },
    /// A shell command with the same effect.
    Command {
        text: String,
    },
    /// Values from the kernel.
    Numbers {
        phase: &'static str,
        files: Vec<(String, String)>,
    },
}
