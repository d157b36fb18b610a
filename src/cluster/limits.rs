//! Checks a container's limits against those of its step.

use std::path::PathBuf;

use crate::cgroup::{Host, Place};
use crate::report::{EXIT_USAGE, Explain};
use crate::spec::Limits;
use crate::units::format_memory;

/// A limit that is looser than the step's.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("cannot set `{flag} {asked}`: the {step} has {has} (`{}`)", file.display())]
pub(crate) struct LooserLimit {
    flag: &'static str,
    asked: String,
    step: String,
    /// `200 MiB`, `the CPUs 0-1`
    has: String,
    file: PathBuf,
}

impl Explain for LooserLimit {
    fn hint(&self) -> Option<String> {
        let option = if self.flag == "--memory" { "--mem" } else { "--cpus-per-task" };
        Some(format!("omit `{}`, or request more from Slurm: `srun {option}=…`", self.flag))
    }
    fn exit_code(&self) -> u8 {
        EXIT_USAGE
    }
}

/// Refuses limits of a container in a step that are looser than the step's. A tighter one is set in the container's own
/// cgroup.
pub(crate) fn check_limits(place: &Place, host: &Host, limits: &Limits) -> Result<(), LooserLimit> {
    let Some(step) = &place.step else { return Ok(()) };
    let ceilings = host.ceilings(place);
    let looser = |flag, asked, has, file: &PathBuf| {
        Err(LooserLimit { flag, asked, step: step.clone(), has, file: file.clone() })
    };
    if let (Some(asked), Some(bound)) = (limits.memory, &ceilings.memory)
        && asked > bound.value
    {
        return looser("--memory", format_memory(asked), format_memory(bound.value), &bound.file);
    }
    let Some(bound) = &ceilings.cpus else { return Ok(()) };
    if let Some(asked) = limits.cpuset_cpus.as_ref().filter(|asked| !asked.0.is_subset(&bound.value.0)) {
        return looser("--cpuset-cpus", asked.to_string(), format!("the CPUs {}", bound.value), &bound.file);
    }
    let count = bound.value.0.len() as u64;
    if let (Some(quota), Some(period)) = (limits.cpu_quota_us, limits.cpu_period_us)
        && quota > count * period
    {
        let asked = quota as f64 / period as f64;
        let has = if count == 1 { "1 CPU".to_owned() } else { format!("{count} CPUs") };
        return looser("--cpus", asked.to_string(), has, &bound.file);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cluster::Step;

    #[test]
    fn looser_limits_are_refused_with_both_values() {
        let step = Step::parse("4:memory:/slurm/uid_0/job_7/step_0\n").unwrap();
        let root = crate::fixture::files(&[
            (
                "proc/self/mountinfo",
                "26 25 0:23 / /cg/memory rw - cgroup cgroup rw,memory\n27 25 0:24 / /cg/cpuset rw - cgroup cgroup rw,cpuset\n",
            ),
            ("cg/memory/slurm/uid_0/job_7/step_0/memory.limit_in_bytes", "209715200\n"),
            ("cg/cpuset/gpurun/cpuset.effective_cpus", "0-1\n"),
        ]);
        let host = Host::probe(root.path()).unwrap();
        let check = |limits: Limits| check_limits(&step.place("ID"), &host, &limits).map_err(|error| error.to_string());
        let cpus = |text: &str| Limits { cpuset_cpus: Some(text.parse().unwrap()), ..Limits::default() };
        let quota = |quota| Limits { cpu_quota_us: Some(quota), cpu_period_us: Some(100_000), ..Limits::default() };
        let memory = |bytes| Limits { memory: Some(bytes), ..Limits::default() };
        for good in [Limits::default(), memory(200 << 20), cpus("1"), cpus("0-1"), quota(200_000)] {
            assert_eq!(check(good), Ok(()));
        }
        for (wrong, parts) in [
            (memory(201 << 20), ["`--memory 201 MiB`", "Slurm step 7.0 has 200 MiB", "memory.limit_in_bytes"]),
            (cpus("1-2"), ["`--cpuset-cpus 1-2`", "has the CPUs 0-1", "cpuset.effective_cpus"]),
            (quota(250_000), ["`--cpus 2.5`", "has 2 CPUs", "cpuset.effective_cpus"]),
        ] {
            let error = check(wrong).unwrap_err();
            assert!(parts.iter().all(|part| error.contains(part)), "{error}");
        }
    }
}
