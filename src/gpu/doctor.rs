//! The findings of an examination of the host's GPU setup.

use serde::Serialize;

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Level {
    Fine,
    /// GPUs work, but a small change would improve the setup.
    Advice,
    /// Some or all containers with GPUs do not work.
    Problem,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct Finding {
    pub level: Level,
    /// One sentence, without a final period.
    pub what: String,
    /// A hint that works when pasted, if there is one.
    pub hint: Option<String>,
}
