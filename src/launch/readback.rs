//! The limits that are no files of a cgroup, read back from the container's first process before it executes anything; and what is said of
//! limits that an ancestor's keeps from being reached.

use std::fs;
use std::path::{Path, PathBuf};

use crate::record::LimitRow;
use crate::report::Report;
use crate::request::{Request, Ulimit};
use crate::sys::rlimit;

/// The rows of the read-back table for `--ulimit`, `--oom-score-adj` and `--shm-size`, where they were asked for; an error where one does not
/// hold.
pub(super) fn process(pid: i32, request: &Request) -> Result<Vec<LimitRow>, Report> {
    let mut rows = Vec::new();
    let proc = PathBuf::from(format!("/proc/{pid}"));
    for ulimit in &request.ulimits {
        let file = proc.join("limits");
        let (soft, hard) = rlimit::of(pid, &format!("RLIMIT_{}", ulimit.name.to_ascii_uppercase()))
            .map_err(|error| unreadable("--ulimit", &file, &error))?;
        rows.push(row(
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
        rows.push(row("--oom-score-adj", "process.oomScoreAdj", &file, score.to_string(), kernel.trim().to_owned())?);
    }
    if let Some(size) = request.shm_size {
        let file = proc.join("root/dev/shm");
        let stat = nix::sys::statvfs::statvfs(&file).map_err(|errno| unreadable("--shm-size", &file, &errno.into()))?;
        // A tmpfs counts in pages, rounded up.
        let asked = size.next_multiple_of(stat.fragment_size());
        let kernel = stat.blocks() * stat.fragment_size();
        rows.push(row("--shm-size", "mounts", &file, asked.to_string(), kernel.to_string())?);
    }
    Ok(rows)
}

fn pair(ulimit: &Ulimit, soft: u64, hard: u64) -> String {
    let number = |limit: u64| if limit == u64::MAX { "-1".to_owned() } else { limit.to_string() };
    format!("{}={}:{}", ulimit.name, number(soft), number(hard))
}

fn row(flag: &str, oci: &str, file: &Path, asked: String, kernel: String) -> Result<LimitRow, Report> {
    if asked != kernel {
        let file = file.display();
        return Err(Report::new(format!(
            "`{flag}` is not in force: `{asked}` was asked for, but `{file}` says `{kernel}`"
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

/// What a person is told of a limit that an ancestor's keeps from being reached.
pub(super) fn tighter(row: &LimitRow) -> Option<String> {
    row.note.as_ref().map(|note| format!("`{} {}` is more than the container can get: {note}", row.flag, row.asked))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_limit_that_does_not_hold_is_refused_by_its_flag_and_file() {
        let file = Path::new("/proc/7/oom_score_adj");
        let refused = row("--oom-score-adj", "process.oomScoreAdj", file, "500".into(), "0".into()).unwrap_err();
        assert_eq!(
            refused.message,
            "`--oom-score-adj` is not in force: `500` was asked for, but `/proc/7/oom_score_adj` says `0`"
        );
        let held = row("--oom-score-adj", "process.oomScoreAdj", file, "500".into(), "500".into()).unwrap();
        assert_eq!((held.effective.as_str(), tighter(&held)), ("500", None));
    }

    #[test]
    fn no_limit_is_written_as_it_is_asked_for() {
        let ulimit = Ulimit { name: "memlock".into(), soft: u64::MAX, hard: u64::MAX };
        assert_eq!(pair(&ulimit, 5, u64::MAX), "memlock=5:-1");
    }
}
