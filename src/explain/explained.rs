//! The explanation of one limit.

use serde::Serialize;

use super::topics::topic;

/// A file that a flag is written to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct File {
    /// `v1` or `v2`, or `any` for a file that is not in a cgroup.
    pub version: &'static str,
    /// The path below the container's cgroup. In version 1 it starts with the name of the controller.
    pub file: String,
    pub value: String,
}

/// A limit of a running container as the kernel reports it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct Kernel {
    pub path: String,
    pub value: String,
    pub effective: String,
    /// The file of an ancestor with a tighter limit, if there is one.
    pub binding: Option<String>,
    /// Whether the value is the requested one. If not, another program has changed it.
    pub holds: bool,
}

/// The explanation of one flag.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(crate) struct Explained {
    pub flag: &'static str,
    /// Fields of the OCI runtime specification and their values.
    pub oci: Vec<String>,
    /// The files in each cgroup version that supports the flag.
    pub files: Vec<File>,
    /// The kernel's values for a running container.
    pub kernel: Vec<Kernel>,
    /// The current effect, as sentences.
    pub now: Vec<String>,
    /// Shell commands with the same effect, for this host's cgroup version.
    pub by_hand: Vec<String>,
    /// The reason why this host does not support the flag, if it does not.
    pub refused: Option<String>,
    pub why: String,
    pub source: &'static str,
}

impl Explained {
    /// Takes `why` and `source` from the flag's topic.
    pub(super) fn new(flag: &'static str) -> Self {
        let (why, source) = topic(flag).map_or(("", ""), |topic| (topic.why, topic.source));
        Self {
            flag,
            oci: Vec::new(),
            files: Vec::new(),
            kernel: Vec::new(),
            now: Vec::new(),
            by_hand: Vec::new(),
            refused: None,
            why: why.to_owned(),
            source,
        }
    }
}

pub(super) fn entry<'a>(all: &'a mut Vec<Explained>, flag: &'static str) -> &'a mut Explained {
    let index = all.iter().position(|one| one.flag == flag).unwrap_or_else(|| {
        all.push(Explained::new(flag));
        all.len() - 1
    });
    &mut all[index]
}
