//! Verifies the limits that are not cgroup files: it reads them back from the container's first process before that
//! process executes anything. It also writes the notice about a limit that cannot be reached because an ancestor's is
//! lower.

use std::fs;
use std::path::{Path, PathBuf};

use crate::cgroup::{Cgroup, Host, Verified};
use crate::record::LimitRow;
use crate::report::Report;
use crate::request::{IpcMode, Request, Ulimit};

/// Converts a row of the read-back table to the form that the record stores.
#[must_use]
pub(super) fn row(verified: Verified) -> LimitRow {
    LimitRow {
        flag: verified.flag.to_owned(),
        oci: verified.oci.to_owned(),
        file: verified.file.display().to_string(),
        asked: verified.asked,
        kernel: verified.kernel,
        effective: verified.effective,
        note: verified.note,
    }
}

/// Returns rows for the limits that the container has from a cluster's step alone. `rows` are its own limits.
pub(super) fn of_step(cgroup: &Cgroup, host: &Host, rows: &[LimitRow]) -> Vec<LimitRow> {
    let given: Vec<&str> = rows.iter().map(|row| row.flag.as_str()).collect();
    cgroup.step_rows(host, &given).into_iter().map(row).collect()
}

/// Returns the read-back table's rows for `--ulimit`, `--oom-score-adj` and `--shm-size`, where they were requested.
/// Returns an error if one is not in effect.
pub(super) fn process(pid: i32, request: &Request) -> Result<Vec<LimitRow>, Report> {
    let mut rows = Vec::new();
    let proc = PathBuf::from(format!("/proc/{pid}"));
    for ulimit in &request.ulimits {
        let file = proc.join("limits");
        let text = fs::read_to_string(&file).map_err(|error| unreadable("--ulimit", &file, &error))?;
        // prlimit(2) would need CAP_SYS_RESOURCE for a process of another user.
        let (soft, hard) = crate::sys::rlimit::in_table(&text, &ulimit.name)
            .ok_or_else(|| unreadable("--ulimit", &file, &std::io::ErrorKind::InvalidData.into()))?;
        rows.push(verified(
            "--ulimit",
            "process.rlimits",
            &file,
            pair(ulimit, ulimit.soft, ulimit.hard),
            pair(ulimit, soft, hard),
        )?);
    }
    if let Some(score) = request.oom_score_adj {
        let file = proc.join("oom_score_adj");
        let kernel = fs::read_to_string(&file).map_err(|error| unreadable("--oom-score-adj", &file, &error))?;
        rows.push(verified(
            "--oom-score-adj",
            "process.oomScoreAdj",
            &file,
            score.to_string(),
            kernel.trim().to_owned(),
        )?);
    }
    let own_shm = matches!(request.ipc, IpcMode::Private | IpcMode::Shareable);
    if let Some(size) = request.shm_size.filter(|_| own_shm) {
        let file = proc.join("root/dev/shm");
        let stat = nix::sys::statvfs::statvfs(&file).map_err(|errno| unreadable("--shm-size", &file, &errno.into()))?;
        // A tmpfs rounds its size up to whole pages.
        let asked = size.next_multiple_of(stat.fragment_size());
        let kernel = stat.blocks() * stat.fragment_size();
        rows.push(verified("--shm-size", "mounts", &file, asked.to_string(), kernel.to_string())?);
    }
    Ok(rows)
}

fn pair(ulimit: &Ulimit, soft: u64, hard: u64) -> String {
    let number = |limit: u64| if limit == u64::MAX { "-1".to_owned() } else { limit.to_string() };
    format!("{}={}:{}", ulimit.name, number(soft), number(hard))
}

fn verified(flag: &str, oci: &str, file: &Path, asked: String, kernel: String) -> Result<LimitRow, Report> {
    if asked != kernel {
        let file = file.display();
        return Err(Report::new(format!(
            "cannot enforce `{flag}`: `{asked}` was requested, but `{file}` reports `{kernel}`"
        )));
    }
    Ok(LimitRow {
        flag: flag.to_owned(),
        oci: oci.to_owned(),
        file: file.display().to_string(),
        effective: kernel.clone(),
        asked,
        kernel,
        note: None,
    })
}

fn unreadable(flag: &str, file: &Path, error: &std::io::Error) -> Report {
    Report::new(format!("`{flag}` cannot be read back from `{}`", file.display())).with_cause(error)
}

/// The notice about a limit that cannot be reached because an ancestor's limit is lower.
pub(super) fn tighter(row: &LimitRow) -> Option<String> {
    row.note.as_ref().map(|note| format!("`{} {}` is more than the container can get: {note}", row.flag, row.asked))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_limit_that_does_not_hold_is_refused_by_its_flag_and_file() {
        let file = Path::new("/proc/7/oom_score_adj");
        let refused = verified("--oom-score-adj", "process.oomScoreAdj", file, "500".into(), "0".into()).unwrap_err();
        assert_eq!(
            refused.message,
            "cannot enforce `--oom-score-adj`: `500` was requested, but `/proc/7/oom_score_adj` reports `0`"
        );
        let held = verified("--oom-score-adj", "process.oomScoreAdj", file, "500".into(), "500".into()).unwrap();
        assert_eq!((held.effective.as_str(), tighter(&held)), ("500", None));
    }

    #[test]
    fn no_limit_is_written_as_it_is_asked_for() {
        let ulimit = Ulimit { name: "memlock".into(), soft: u64::MAX, hard: u64::MAX };
        assert_eq!(pair(&ulimit, 5, u64::MAX), "memlock=5:-1");
    }
}
