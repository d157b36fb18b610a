//! Finds the processes that the OOM killer has killed, and the limits that caused the kills, in the kernel's log.
//!
//! memory.events contains only counters. The kernel's log (mm/oom_kill.c, `dump_header` and `__oom_kill_process`) names
//! the process, its size, all candidates, and the cgroup whose limit was reached:
//!
//! ```text
//! [  pid  ]   uid  tgid total_vm      rss … name                     pages, one line per task
//! oom-kill:constraint=CONSTRAINT_MEMCG,…,oom_memcg=/gpurun/ID,task_memcg=/gpurun/ID,task=python,pid=193,uid=0
//! Memory cgroup out of memory: Killed process 193 (python) …, anon-rss:32368kB, file-rss:1348kB, shmem-rss:0kB, …
//! ```
//!
//! The log is a ring buffer, and the kernel limits the rate of its messages, so a kill may be missing. Only messages to
//! the user depend on this module.

use std::fs::OpenOptions;
use std::io::{self, Read};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

/// One process that the OOM killer has killed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct OomKill {
    /// Microseconds since boot.
    pub at_us: u64,
    pub process: String,
    /// The pid in the host's pid namespace.
    pub pid: i32,
    /// Resident memory in bytes.
    pub resident: Option<u64>,
    /// The cgroup whose limit was reached. `None` means that the whole host was out of memory.
    pub limit_of: Option<String>,
    /// The cgroup of the process.
    pub cgroup: String,
    /// The largest candidates, largest first: name and bytes.
    pub biggest: Vec<(String, u64)>,
}

/// The number of largest candidates to keep.
const BIGGEST: usize = 5;

/// Returns the kills of processes in `cgroup` (the last component of a path, a container's id) that are still in the
/// kernel's log below `root`, oldest first. Returns an error if the log cannot be read.
pub(crate) fn oom_kills_of(root: &Path, cgroup: &str) -> io::Result<Vec<OomKill>> {
    let path = root.join("dev/kmsg");
    let mut log = OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK | libc::O_CLOEXEC).open(path)?;
    let mut scanner = Scanner::default();
    let mut record = [0; 8192];
    loop {
        // One read returns one record.
        match log.read(&mut record) {
            Ok(0) => break,
            Ok(length) => scanner.take(&String::from_utf8_lossy(&record[..length])),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
            // The record was overwritten before it was read. The next read continues with the oldest record.
            Err(error) if error.raw_os_error() == Some(libc::EPIPE) => {}
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    let of = |kill: &OomKill| kill.cgroup.split('/').any(|part| part == cgroup);
    Ok(scanner.kills.into_iter().filter(of).collect())
}

#[derive(Default)]
struct Scanner {
    kills: Vec<OomKill>,
    tasks: Vec<(String, u64)>,
    /// The column of `rss` in the table of tasks, while the scanner is inside a table.
    rss_column: Option<usize>,
}

impl Scanner {
    /// Processes one record: `6,1234,567890,-;text`, followed by lines of properties that begin with a space.
    fn take(&mut self, record: &str) {
        let Some((head, text)) = record.split_once(';') else { return };
        let text = text.lines().next().unwrap_or_default();
        let at_us = head.split(',').nth(2).and_then(|time| time.parse().ok()).unwrap_or(0);
        if let Some(columns) = text.strip_prefix("[  pid  ]") {
            self.rss_column = columns.split_whitespace().position(|column| column == "rss");
            self.tasks.clear();
        } else if let Some(fields) = text.strip_prefix("oom-kill:") {
            self.kill(at_us, fields);
        } else if let Some((_, killed)) = text.split_once("Killed process ") {
            self.size(killed);
        } else if let Some(column) = self.rss_column {
            self.task(text, column);
        }
    }

    /// Parses a line of the table of tasks: `[  17761]     0 17761     4735     4396 … name`.
    fn task(&mut self, text: &str, rss: usize) {
        let Some((pid, rest)) = text.strip_prefix('[').and_then(|text| text.split_once(']')) else { return };
        if pid.trim().parse::<i32>().is_err() {
            return;
        }
        let fields: Vec<&str> = rest.split_whitespace().collect();
        if let (Some(pages), Some(name)) = (fields.get(rss).and_then(|pages| pages.parse::<u64>().ok()), fields.last())
        {
            self.tasks.push(((*name).to_owned(), pages * super::apply::page_size()));
        }
    }

    fn kill(&mut self, at_us: u64, fields: &str) {
        self.rss_column = None;
        let field = |key: &str| {
            fields.split(',').find_map(|field| field.strip_prefix(key)?.strip_prefix('=')).map(str::to_owned)
        };
        let mut biggest = std::mem::take(&mut self.tasks);
        biggest.sort_by_key(|(_, bytes)| std::cmp::Reverse(*bytes));
        biggest.truncate(BIGGEST);
        let pid = field("pid").and_then(|pid| pid.parse().ok()).unwrap_or(0);
        self.kills.push(OomKill {
            at_us,
            process: field("task").unwrap_or_default(),
            pid,
            resident: None,
            limit_of: field("oom_memcg"),
            cgroup: field("task_memcg").unwrap_or_default(),
            biggest,
        });
    }

    /// Parses the sizes: `193 (tail) total-vm:34632kB, anon-rss:32368kB, file-rss:1348kB, shmem-rss:0kB, …`.
    fn size(&mut self, text: &str) {
        let pid = text.split(' ').next().and_then(|pid| pid.parse::<i32>().ok());
        let Some(kill) = self.kills.last_mut().filter(|kill| Some(kill.pid) == pid) else { return };
        let kilobytes: u64 = ["anon-rss:", "file-rss:", "shmem-rss:"]
            .into_iter()
            .filter_map(|key| text.split_once(key)?.1.split_once("kB")?.0.parse::<u64>().ok())
            .sum();
        kill.resident = Some(kilobytes * 1024);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LOG: [&str; 8] = [
        "6,100,5000,-;tail invoked oom-killer: gfp_mask=0xcc0(GFP_KERNEL), order=0, oom_score_adj=0",
        "6,101,5001,-;Tasks state (memory values in pages):",
        "6,102,5002,-;[  pid  ]   uid  tgid total_vm      rss rss_anon rss_file rss_shmem pgtables_bytes swapents oom_score_adj name",
        "6,103,5003,-;[  17758]     0 17758      648      387        0      387         0    40960        0             0 sh",
        "6,104,5004,-;[  17761]     0 17761     4735     4396     4000      396         0    86016        0             0 tail\n SUBSYSTEM=x",
        "6,105,5005,-;oom-kill:constraint=CONSTRAINT_MEMCG,nodemask=(null),cpuset=abc,mems_allowed=0,oom_memcg=/gpurun,task_memcg=/gpurun/abc,task=tail,pid=17761,uid=0",
        "3,106,5006,-;Memory cgroup out of memory: Killed process 17761 (tail) total-vm:34632kB, anon-rss:32368kB, file-rss:1348kB, shmem-rss:4kB, UID:0 pgtables:100kB oom_score_adj:0",
        "6,107,5007,-;[ drm ] something else",
    ];

    #[test]
    fn a_kill_with_its_sizes_and_the_limit_that_fired() {
        let mut scanner = Scanner::default();
        LOG.iter().for_each(|record| scanner.take(record));
        let page = super::super::apply::page_size();
        let expected = OomKill {
            at_us: 5005,
            process: "tail".into(),
            pid: 17761,
            resident: Some((32368 + 1348 + 4) * 1024),
            limit_of: Some("/gpurun".into()),
            cgroup: "/gpurun/abc".into(),
            biggest: vec![("tail".into(), 4396 * page), ("sh".into(), 387 * page)],
        };
        assert_eq!(scanner.kills, [expected]);
    }

    #[test]
    fn a_host_out_of_memory_has_no_limit() {
        let mut scanner = Scanner::default();
        scanner.take("6,1,9,-;oom-kill:constraint=CONSTRAINT_NONE,nodemask=(null),cpuset=abc,mems_allowed=0,global_oom,task_memcg=/gpurun/abc,task=python,pid=7,uid=0");
        assert_eq!((scanner.kills[0].limit_of.as_deref(), scanner.kills[0].cgroup.as_str()), (None, "/gpurun/abc"));
    }

    proptest::proptest! {
        #[test]
        fn no_record_is_too_strange(records in proptest::collection::vec("[ -~]{0,80}", 0..20)) {
            let mut scanner = Scanner::default();
            records.iter().for_each(|record| scanner.take(&format!("6,1,2,-;{record}")));
        }
    }
}
