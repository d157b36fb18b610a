//! The limits that the cgroups above a container's set. In a cluster's step, these are the limits of the job.

use std::path::{Path, PathBuf};

use super::access::read;
use super::apply::Verified;
use super::{Cgroup, Hierarchy, Host, Place, files};
use crate::units::CpuSet;

/// A limit, and the file that sets it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Bound<T> {
    pub value: T,
    pub file: PathBuf,
}

/// The tightest limits above a cgroup. `None` means unlimited.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Ceilings {
    /// Bytes.
    pub memory: Option<Bound<u64>>,
    pub cpus: Option<Bound<CpuSet>>,
}

impl Host {
    /// Reads the limits above the cgroup of a place, which need not exist.
    #[must_use]
    pub(crate) fn ceilings(&self, place: &Place) -> Ceilings {
        let (memory, cpus) = match self.hierarchy {
            Hierarchy::V1 { .. } => ("memory.limit_in_bytes", "cpuset.effective_cpus"),
            Hierarchy::V2 { .. } => ("memory.max", "cpuset.cpus.effective"),
        };
        let bytes = |file: &Path| files::bytes(&read(file).ok()?);
        let memory = self.above(place, "memory").into_iter().filter_map(|dir| {
            let file = dir.join(memory);
            Some(Bound { value: bytes(&file)?, file })
        });
        let set = |file: &Path| read(file).ok()?.parse::<CpuSet>().ok().filter(|set| !set.0.is_empty());
        // The sets of the ancestors contain each other, so the closest one is the tightest.
        let cpus = self.above(place, "cpuset").into_iter().find_map(|dir| {
            let file = dir.join(cpus);
            Some(Bound { value: set(&file)?, file })
        });
        // Of equal limits, that of the closest ancestor is shown.
        Ceilings { memory: memory.reduce(|best, other| if other.value < best.value { other } else { best }), cpus }
    }

    /// Returns the ancestors of a place's cgroup for a controller, the closest first, without the root.
    fn above(&self, place: &Place, controller: &str) -> Vec<PathBuf> {
        let mount = match &self.hierarchy {
            Hierarchy::V1 { controllers, .. } => controllers.get(controller),
            Hierarchy::V2 { mount } => Some(mount),
        };
        let Some(mount) = mount else { return Vec::new() };
        let dir = mount.join(place.of(controller).trim_start_matches('/'));
        dir.ancestors().skip(1).take_while(|above| *above != mount).map(Path::to_path_buf).collect()
    }
}

impl Cgroup {
    /// Returns the limits that a cluster's step sets, as rows of the table of limits. `given` are the flags that have a
    /// row of their own.
    #[must_use]
    pub(crate) fn step_rows(&self, host: &Host, given: &[&str]) -> Vec<Verified> {
        let Some(step) = &self.place.step else { return Vec::new() };
        let Ceilings { memory, cpus } = host.ceilings(&self.place);
        let memory_file = if self.is_v2 { "memory.max" } else { "memory.limit_in_bytes" };
        let cpus_file = if self.is_v2 { "cpuset.cpus" } else { "cpuset.effective_cpus" };
        let memory = memory.map(|bound| ("--memory", "memory", memory_file, bound.value.to_string(), bound.file));
        let cpus = cpus.map(|bound| ("--cpuset-cpus", "cpuset", cpus_file, bound.value.to_string(), bound.file));
        let found = memory.into_iter().chain(cpus).filter(|(flag, ..)| !given.contains(flag));
        let row = |(flag, controller, name, effective, binding): (&'static str, &str, &str, String, PathBuf)| {
            let file = self.dir(controller)?.join(name);
            Some(Verified {
                flag,
                oci: "",
                kernel: read(&file).ok()?,
                file,
                asked: format!("({step})"),
                note: Some(format!("the limit of the {step}: {} = {effective}", binding.display())),
                effective,
                binding: Some(binding),
                holds: true,
            })
        };
        found.filter_map(row).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_tightest_ancestor_is_found_in_each_hierarchy() {
        let mountinfo = "26 25 0:23 / /cg/memory rw - cgroup cgroup rw,memory\n\
            27 25 0:24 / /cg/cpuset rw - cgroup cgroup rw,cpuset\n";
        let root = crate::fixture::files(&[
            ("proc/self/mountinfo", mountinfo),
            ("cg/memory/memory.limit_in_bytes", "9223372036854771712\n"),
            ("cg/memory/slurm/memory.limit_in_bytes", "9223372036854771712\n"),
            ("cg/memory/slurm/job_1/memory.limit_in_bytes", "1000\n"),
            ("cg/memory/slurm/job_1/step_0/memory.limit_in_bytes", "1000\n"),
            ("cg/memory/slurm/job_1/step_0/task_0/memory.limit_in_bytes", "9223372036854771712\n"),
            ("cg/cpuset/slurm/job_1/step_0/cpuset.effective_cpus", "1,3\n"),
            ("cg/cpuset/slurm/cpuset.effective_cpus", "0-3\n"),
        ]);
        let host = Host::probe(root.path()).unwrap();
        let apart = [("memory", "/slurm/job_1/step_0/task_0/ID"), ("cpuset", "/slurm/job_1/step_0/ID")];
        let apart = apart.map(|(name, path)| (name.to_owned(), path.to_owned())).into();
        let found = host.ceilings(&Place { path: "/gpurun/ID".into(), apart, step: None });
        let memory = found.memory.unwrap();
        assert_eq!(memory.value, 1000);
        assert!(memory.file.ends_with("job_1/step_0/memory.limit_in_bytes"), "{}", memory.file.display());
        assert_eq!(found.cpus.unwrap().value.to_string(), "1,3");
        assert_eq!(host.ceilings(&"/gpurun/ID".into()), Ceilings::default());
    }
}
