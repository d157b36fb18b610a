//! One process of a container: PID 1, a command of `exec`, Jupyter, or a step of a build.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::capabilities::{Capabilities, CapabilityName};
use super::seccomp::Filter;

/// A resource limit of a process.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rlimit {
    /// The name of the limit, such as `RLIMIT_NOFILE`.
    #[serde(rename = "type")]
    pub name: String,
    pub soft: u64,
    pub hard: u64,
}

/// What a process runs, as which user, and under which restrictions. The user ids are those inside the container.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Process {
    pub args: Vec<String>,
    pub env: Vec<String>,
    pub cwd: PathBuf,
    pub uid: u32,
    pub gid: u32,
    pub groups: Vec<u32>,
    /// The bounding set. See [`Self::held`].
    pub capabilities: Capabilities,
    pub rlimits: Vec<Rlimit>,
    pub no_new_privileges: bool,
    /// `None` means unconfined.
    pub seccomp: Option<Filter>,
    pub oom_score_adj: Option<i32>,
    /// `None` means docker's, 022.
    #[serde(default)]
    pub umask: Option<u32>,
}

impl Process {
    /// The effective and permitted capabilities. As in docker, a process of a non-root user starts with the bounding
    /// set only and holds no capabilities.
    #[must_use]
    pub(crate) fn held(&self) -> Capabilities {
        if self.uid == 0 { self.capabilities } else { Capabilities(0) }
    }

    /// Renders the `process` of an OCI spec. The spec contains the seccomp filter elsewhere.
    pub(super) fn oci(&self, terminal: bool) -> Value {
        let (bounding, held) = (self.capabilities.names(), self.held().names());
        let mut process = json!({
            "terminal": terminal,
            "user": { "uid": self.uid, "gid": self.gid, "additionalGids": self.groups },
            "args": self.args,
            "env": self.env,
            "cwd": self.cwd,
            "capabilities": {
                "bounding": bounding, "effective": held, "permitted": held, "inheritable": [], "ambient": [],
            },
            "rlimits": self.rlimits,
        });
        if self.no_new_privileges {
            process["noNewPrivileges"] = json!(true);
        }
        if let Some(umask) = self.umask {
            process["user"]["umask"] = json!(umask);
        }
        if let Some(score) = self.oom_score_adj {
            process["oomScoreAdj"] = json!(score);
        }
        process
    }

    /// Reads the process of a `config.json`, which has no seccomp filter in the form that a process loads.
    pub fn of_spec(text: &[u8], seccomp: Option<Filter>) -> Result<Self, serde_json::Error> {
        let OciSpec { process } = serde_json::from_slice(text)?;
        let numbers = process.capabilities.bounding.iter().filter_map(|name| match name.parse() {
            Ok(CapabilityName::One(number)) => Some(number),
            _ => None,
        });
        Ok(Self {
            args: process.args,
            env: process.env,
            cwd: process.cwd,
            uid: process.user.uid,
            gid: process.user.gid,
            groups: process.user.additional_gids,
            capabilities: Capabilities(numbers.fold(0, |bits, number| bits | 1 << number)),
            rlimits: process.rlimits,
            no_new_privileges: process.no_new_privileges,
            seccomp,
            oom_score_adj: process.oom_score_adj,
            umask: process.user.umask,
        })
    }
}

/// The part of an OCI spec that describes PID 1.
#[derive(Deserialize)]
struct OciSpec {
    process: OciProcess,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct OciProcess {
    args: Vec<String>,
    #[serde(default)]
    env: Vec<String>,
    cwd: PathBuf,
    user: OciUser,
    #[serde(default)]
    capabilities: OciCapabilities,
    #[serde(default)]
    rlimits: Vec<Rlimit>,
    #[serde(default)]
    no_new_privileges: bool,
    oom_score_adj: Option<i32>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct OciUser {
    uid: u32,
    gid: u32,
    #[serde(default)]
    additional_gids: Vec<u32>,
    umask: Option<u32>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct OciCapabilities {
    bounding: Vec<String>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_is_read_back_from_its_spec() {
        let mut process = Process {
            args: vec!["sh".into(), "-c".into(), "id".into()],
            env: vec!["PATH=/bin".into()],
            cwd: "/work".into(),
            uid: 1000,
            gid: 100,
            groups: vec![100, 7],
            capabilities: Capabilities::default(),
            rlimits: vec![Rlimit { name: "RLIMIT_NOFILE".into(), soft: 100, hard: u64::MAX }],
            no_new_privileges: true,
            seccomp: None,
            oom_score_adj: Some(-5),
            umask: Some(0o27),
        };
        for (uid, no_new_privileges, score) in [(1000, true, Some(-5)), (0, false, None)] {
            (process.uid, process.no_new_privileges, process.oom_score_adj) = (uid, no_new_privileges, score);
            let spec = json!({ "process": process.oci(true) }).to_string();
            assert_eq!(Process::of_spec(spec.as_bytes(), None).unwrap(), process);
        }
        assert_eq!((process.held(), Process { uid: 1, ..process }.held().0), (Capabilities::default(), 0));
        assert!(Process::of_spec(b"{}", None).is_err());
    }
}
