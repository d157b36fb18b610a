//! Explains the limits of `run` that are not files of the container's cgroup.

use super::explained::entry;
use super::{Explained, File};
use crate::cgroup::Version;
use crate::request::Ulimit;

/// The requested limits. The default has none.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct ProcessLimits {
    /// In bytes.
    pub shm_size: Option<u64>,
    pub ulimits: Vec<Ulimit>,
    pub oom_score_adj: Option<i32>,
    /// The absolute path of a cgroup.
    pub cgroup_parent: Option<String>,
}

/// Explains the limits of the container `id`.
#[must_use]
pub(crate) fn explain_process(asked: &ProcessLimits, here: Version, id: &str) -> Vec<Explained> {
    let mut all = Vec::new();
    if let Some(parent) = &asked.cgroup_parent {
        let one = entry(&mut all, "--cgroup-parent");
        one.oci.push("linux.cgroupsPath".into());
        one.files.push(file("v2", format!("{parent}/{id}"), "a directory"));
        one.files.push(file("v1", format!("CONTROLLER{parent}/{id}"), "one directory each"));
        one.by_hand.push(match here {
            Version::V2 => format!("mkdir -p /sys/fs/cgroup{parent}/{id}"),
            Version::V1 => format!("for c in /sys/fs/cgroup/*; do mkdir -p $c{parent}/{id}; done"),
        });
    }
    if let Some(size) = asked.shm_size {
        let one = entry(&mut all, "--shm-size");
        one.oci.push(format!("mounts: /dev/shm, tmpfs, size={size}"));
        one.files.push(file("any", "/dev/shm".into(), &size.to_string()));
        one.by_hand.push(format!("mount -t tmpfs -o size={size} shm /dev/shm"));
    }
    for Ulimit { name, soft, hard } in &asked.ulimits {
        let number = |limit: u64| if limit == u64::MAX { "unlimited".to_owned() } else { limit.to_string() };
        let (soft, hard) = (number(*soft), number(*hard));
        let one = entry(&mut all, "--ulimit");
        one.oci.push(format!("process.rlimits: RLIMIT_{}", name.to_ascii_uppercase()));
        one.files.push(file("any", "/proc/PID/limits".into(), &format!("{name} {soft} (hard limit {hard})")));
        one.by_hand.push(format!("prlimit --{name}={soft}:{hard} COMMAND"));
    }
    if let Some(score) = asked.oom_score_adj {
        let one = entry(&mut all, "--oom-score-adj");
        one.oci.push("process.oomScoreAdj".into());
        one.files.push(file("any", "/proc/PID/oom_score_adj".into(), &score.to_string()));
        one.by_hand.push(format!("echo {score} > /proc/PID/oom_score_adj"));
    }
    all
}

fn file(version: &'static str, file: String, value: &str) -> File {
    File { version, file, value: value.to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_has_field_file_line_and_reason() {
        let asked = ProcessLimits {
            shm_size: Some(1 << 30),
            ulimits: vec![Ulimit { name: "nofile".into(), soft: 512, hard: u64::MAX }],
            oom_score_adj: Some(500),
            cgroup_parent: Some("/lab".into()),
        };
        let all = explain_process(&asked, Version::V2, "ID");
        assert_eq!(all.len(), 4);
        for one in &all {
            assert!(!one.oci.is_empty() && !one.files.is_empty() && !one.by_hand.is_empty(), "{}", one.flag);
            assert!(!one.why.is_empty() && !one.source.is_empty(), "{}", one.flag);
        }
        assert_eq!(all[2].by_hand, ["prlimit --nofile=512:unlimited COMMAND"]);
        assert_eq!(explain_process(&ProcessLimits::default(), Version::V2, "ID"), []);
    }
}
