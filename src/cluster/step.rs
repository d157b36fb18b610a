//! The step of a process, from its list of cgroups.

use std::collections::BTreeMap;
use std::path::Path;

use crate::cgroup::Place;
use crate::sys::file::read_text;

/// What a step is called in messages and records.
const NAME: &str = "Slurm step";
/// The process that runs a step's tasks, as the kernel names it.
const DAEMON: &str = "slurmstepd";
/// The number of parents that are searched for it. A task may start gpurun through scripts, `make` or Python.
const GENERATIONS: usize = 64;

/// The Slurm step that a process runs in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Step {
    pub job: u32,
    /// `0`, `batch` or `interactive`.
    pub step: String,
    /// The number of the task on this node, if the cgroup names one.
    pub task: Option<u32>,
    /// The cgroup of the process for each controller of version 1 that Slurm uses, and for version 2 with "".
    pub cgroups: BTreeMap<String, String>,
}

impl Step {
    /// Returns the step that this process runs in.
    #[must_use]
    pub(crate) fn current() -> Option<Self> {
        Self::parse(&read_text("/proc/self/cgroup").ok()?)
    }

    /// Parses the list of a process's cgroups (cgroups(7)). `None` if none of them is a step's.
    #[must_use]
    pub(crate) fn parse(list: &str) -> Option<Self> {
        let mut found: Option<Self> = None;
        for line in list.lines() {
            let Some((controllers, path)) = line.split_once(':').and_then(|(_, rest)| rest.split_once(':')) else {
                continue;
            };
            let Some((job, step, task)) = names(path) else { continue };
            let known = found.get_or_insert_with(|| Self { job, step, task, cgroups: BTreeMap::new() });
            known.task = known.task.or(task);
            known.cgroups.extend(controllers.split(',').map(|name| (name.to_owned(), path.to_owned())));
        }
        found
    }

    /// Returns whether a step belongs to the same job, given its name.
    #[must_use]
    pub(crate) fn is_of_job(&self, other: &str) -> bool {
        other.strip_prefix(&format!("{NAME} {}.", self.job)).is_some()
    }

    /// Returns where the cgroup of a container in this step is.
    #[must_use]
    pub(crate) fn place(&self, id: &str) -> Place {
        let step = Some(self.to_string());
        // A hybrid host has version 2 without controllers beside version 1.
        if let (Some(path), 1) = (self.cgroups.get(""), self.cgroups.len()) {
            let user = match path.split_once("/task_") {
                Some((user, _)) => user,
                None => path,
            };
            return Place { path: format!("{user}/{id}"), step, ..Place::default() };
        }
        let apart = self.cgroups.iter().filter(|(name, _)| !name.is_empty());
        let apart = apart.map(|(name, path)| (name.clone(), format!("{path}/{id}"))).collect();
        Place { path: format!("/gpurun/{id}"), apart, step }
    }

    /// Returns the pid of the process of Slurm that runs this step, the closest one among the parents of this process.
    #[must_use]
    pub(crate) fn daemon() -> Option<i32> {
        daemon_above(Path::new("/proc"), std::process::id() as i32)
    }
}

/// `Slurm step 12.0`
impl std::fmt::Display for Step {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{NAME} {}.{}", self.job, self.step)
    }
}

/// Returns the job, the step and the task in the path of a cgroup. Only a directory of Slurm's own counts: another
/// program may use these names as well.
fn names(path: &str) -> Option<(u32, String, Option<u32>)> {
    let mut parts = path.split('/').skip_while(|part| !part.contains("slurm"));
    let job = parts.find_map(|part| part.strip_prefix("job_"))?.parse().ok()?;
    let step = parts.next()?.strip_prefix("step_")?;
    let task = parts.find_map(|part| part.strip_prefix("task_")).and_then(|task| task.parse().ok());
    // The processes of `extern` are those that log in beside the job. They have its limits, too.
    (!step.is_empty()).then(|| (job, step.to_owned(), task))
}

fn daemon_above(proc: &Path, pid: i32) -> Option<i32> {
    let mut pid = pid;
    for _ in 0..GENERATIONS {
        let stat = read_text(proc.join(pid.to_string()).join("stat")).ok()?;
        // The name in parentheses may contain any character.
        let (name, rest) = stat.split_once('(')?.1.rsplit_once(") ")?;
        if name == DAEMON {
            return Some(pid);
        }
        pid = rest.split(' ').nth(1)?.parse().ok().filter(|parent| *parent > 0)?;
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    const V1: &str = "9:name=systemd:/\n8:pids:/\n6:freezer:/slurm_n1/uid_0/job_7/step_0\n\
        5:devices:/slurm_n1/uid_0/job_7/step_0/task_3\n4:memory:/slurm_n1/uid_0/job_7/step_0/task_3\n\
        3:cpuset:/slurm_n1/uid_0/job_7/step_0\n2:cpuacct:/\n1:cpu:/\n0::/\n";

    #[test]
    fn a_step_of_version_1_is_apart_in_the_hierarchies_that_slurm_uses() {
        let step = Step::parse(V1).unwrap();
        assert_eq!((step.job, step.step.as_str(), step.task), (7, "0", Some(3)));
        assert_eq!(step.cgroups.keys().collect::<Vec<_>>(), ["cpuset", "devices", "freezer", "memory"]);
        let place = step.place("ID");
        assert_eq!(place.of("memory"), "/slurm_n1/uid_0/job_7/step_0/task_3/ID");
        assert_eq!(place.of("freezer"), "/slurm_n1/uid_0/job_7/step_0/ID");
        assert_eq!((place.of("cpu"), place.of("")), ("/gpurun/ID", "/gpurun/ID"));
        assert_eq!(place.step.as_deref(), Some("Slurm step 7.0"));
        assert!(step.is_of_job("Slurm step 7.batch") && !step.is_of_job("Slurm step 70.0"));
    }

    #[test]
    fn a_step_of_version_2_holds_the_container_beside_its_tasks() {
        for (path, task, expected) in [
            ("/system.slice/slurmstepd.scope/job_4/step_batch/user/task_0", Some(0), "/step_batch/user/ID"),
            ("/system.slice/n1_slurmstepd.scope/job_4/step_12/user/task_special", None, "/step_12/user/ID"),
        ] {
            let step = Step::parse(&format!("0::{path}\n")).unwrap();
            assert_eq!((step.job, step.task), (4, task));
            let place = step.place("ID");
            assert!(place.path.ends_with(expected) && place.apart.is_empty(), "{place:?}");
        }
    }

    #[test]
    fn other_cgroups_are_no_step() {
        for path in [
            "/",
            "/user.slice/user-0.slice/session-3.scope",
            "/job_1/step_0/task_0",
            "/slurm_n1/system",
            "/system.slice/slurmd.service",
            "/slurm/uid_0/job_x/step_0",
            "/slurm/uid_0/job_1",
        ] {
            assert_eq!(Step::parse(&format!("4:memory:{path}\n0::{path}\n")), None, "{path}");
        }
    }

    #[test]
    fn the_closest_daemon_above_is_found() {
        let dir = crate::fixture::files(&[
            ("9/stat", "9 (a) b (c)) S 8 9 9 0\n"),
            ("8/stat", "8 (slurmstepd) S 7 8 8 0\n"),
            ("7/stat", "7 (slurmstepd) S 1 8 8 0\n"),
            ("6/stat", "6 (sh) S 1 8 8 0\n"),
            ("1/stat", "1 (init) S 0 1 1 0\n"),
        ]);
        assert_eq!(daemon_above(dir.path(), 9), Some(8));
        assert_eq!(daemon_above(dir.path(), 6), None);
    }
}
