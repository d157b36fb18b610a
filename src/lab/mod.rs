//! Safe, guided experiments with the kernel's limits. Each one takes a few seconds and shows the kernel's numbers
//! before, during and after.
//!
//! ```text
//! experiments    the experiments and their expected results
//! bench          the cgroups of an experiment, its processes and their numbers
//! payload        the program in the cgroup: gpurun itself, as `gpurun lab-payload …`, so that no image is needed
//! ```
//!
//! Clean-up: the cgroup of a lab is `/gpurun/lab-PID-N`. [`sweep`] recognizes the cgroup of a killed lab by the PID in
//! its name and removes it. The processes die with the lab.
//!
//! Safety: a lab changes nothing outside its cgroup, except that `overlay` makes a temporary directory. No limit is
//! large enough to hurt the host. Ctrl-C ends it early and leaves nothing behind. A lab fails if the result differs
//! from the kernel's documentation.

mod bench;
mod experiments;
mod line;
pub(crate) mod payload;

pub(crate) use bench::{Bench, sweep};
pub(crate) use line::{Line, Verdict};

use crate::cgroup::Version;
use crate::report::Report;

/// One experiment.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Lab {
    pub name: &'static str,
    pub title: &'static str,
    /// A description in one paragraph.
    pub about: &'static str,
    /// The flags of `gpurun run` that set the same limits for a container.
    pub flags: &'static str,
    /// The lesson of the experiment, for a class.
    pub notice: &'static str,
    run: fn(&mut Bench<'_>) -> Result<Verdict, Report>,
}

/// Runs one lab and passes its output to `show`. If `stopped` returns true (after Ctrl-C), the lab cleans up and ends
/// early.
pub(crate) fn run(lab: &Lab, show: &mut dyn FnMut(Line), stopped: &dyn Fn() -> bool) -> Result<Verdict, Report> {
    let mut bench = Bench::new(show, stopped)?;
    (lab.run)(&mut bench)
}

pub(crate) const LABS: [Lab; 9] = [
    Lab {
        name: "memory",
        title: "The hard limit: {memory.max|memory.limit_in_bytes}",
        about: "A process allocates more and more memory in a cgroup that may hold 32 MiB and no swap. Its usage \
                grows up to the limit. There the kernel looks for memory to reclaim, finds none, and its OOM killer \
                ends the process with SIGKILL. Other processes of the host are not affected.",
        flags: "`--memory 32m --memory-swap 32m`",
        notice: "No malloc failed: the process got no warning. A shell shows status 137, which is 128 + 9, as after \
                 any SIGKILL. Only {memory.events|memory.oom_control} and the kernel's log show that memory was the \
                 reason.",
        run: experiments::memory,
    },
    Lab {
        name: "swap",
        title: "Memory and swap: {memory.swap.max|memory.memsw.limit_in_bytes}",
        about: "The same process runs twice, with the same memory limit. Without swap it is killed at the limit. \
                With swap its oldest pages are moved out, and it survives.",
        flags: "`--memory 32m --memory-swap 32m`, then `--memory-swap 96m`",
        notice: "{memory.current|memory.usage_in_bytes} stops at 32 MiB both times. {The rest is in memory.swap.current.|Memory and swap \
                together are in memory.memsw.usage_in_bytes.} docker's --memory-swap is the sum of both, and twice the memory where it \
                is not given: a container \"with 32 MiB\" may hold 64.",
        run: experiments::swap,
    },
    Lab {
        name: "pressure",
        title: "The soft limit: memory.high",
        about: "Above memory.high no process is killed. A process that needs another page must first reclaim some, \
                which slows it down. memory.pressure (PSI) counts how long it waited for memory.",
        flags: "`--memory 96m --memory-high 24m`",
        notice: "memory.events counts how often memory.high was exceeded, and memory.pressure counts the lost time. \
                 A monitor of these files notices trouble long before memory.max kills. Version 1 of cgroups has \
                 neither.",
        run: experiments::pressure,
    },
    Lab {
        name: "throttle",
        title: "Throttling: {cpu.max|cpu.cfs_quota_us}",
        about: "One busy loop runs in a cgroup that may use 30 ms of CPU time in each 100 ms. It runs for 30 ms, waits for 70 ms, and \
                runs again. cpu.stat counts the periods in which it was throttled, and for how long.",
        flags: "`--cpus 0.3`",
        notice: "On average that is 30 % of a CPU, and top shows that. But a request that comes at the wrong moment waits 70 ms: a quota \
                limits throughput by adding latency.",
        run: experiments::throttle,
    },
    Lab {
        name: "cpuset",
        title: "A quota or a CPU set: eight threads, half of the CPUs",
        about: "Eight busy threads get the same CPU time with two kinds of limit. With a quota, they run on all \
                CPUs at once, use up their time early in each period, and then all wait together. With a CPU set, \
                they have few CPUs and take turns on them.",
        flags: "`--cpus 1`, then `--cpuset-cpus 0`",
        notice: "With a CPU set nothing is throttled, and a program counts its CPUs correctly (nproc reads the CPU set, never the quota). \
                So a numerical library starts as many threads as can run, instead of as many as the host has CPUs.",
        run: experiments::cpuset,
    },
    Lab {
        name: "pids",
        title: "A fork bomb: pids.max",
        about: "A process starts copies of itself, which start copies of themselves. At pids.max, fork fails with \
                EAGAIN, and the bomb stops.",
        flags: "`--pids-limit 20`",
        notice: "EAGAIN is \"Resource temporarily unavailable\", and a shell prints that message. Threads count as \
                 well as processes. A memory limit alone would stop a bomb only after it has used all process IDs \
                 of the host.",
        run: experiments::pids,
    },
    Lab {
        name: "device",
        title: "A denied device: {a BPF program|devices.allow}",
        about: "Root in a container can create any device node, and that does not help. The cgroup decides whether it may be opened: by \
                {a BPF program|a list, devices.allow}. The same process opens the same node in two cgroups.",
        flags: "any, then one with `--device /dev/kmsg`",
        notice: "File permissions, root and capabilities allowed it both times. That is how one GPU is given to a container, and the next \
                one is not.",
        run: experiments::device,
    },
    Lab {
        name: "overlay",
        title: "An overlay from both sides",
        about: "A container's root is an overlay: the image is the lower directory, read-only and shared by all \
                containers, and each container has its own upper directory. The container sees one tree; the host \
                sees both directories.",
        flags: "any; `gpurun diff NAME` shows its upper directory",
        notice: "Writing copied a file up. Removing left a whiteout (a device 0:0) that hides the file below. The \
                 image is unchanged. A commit makes the upper directory a new layer.",
        run: experiments::overlay,
    },
    Lab {
        name: "zombies",
        title: "PID 1 and its zombies",
        about: "A dead process stays in the process table until its parent asks for its exit status. A process that \
                loses its parent becomes a child of PID 1. A program that does not expect to be PID 1 does not ask: \
                the dead processes stay, and each one counts against pids.max.",
        flags: "any, then one with `--init`",
        notice: "A zombie uses no memory, only its process ID, and cannot be killed: it is dead. `--init` runs a \
                 PID 1 that waits for its children. gpurun's Jupyter launches always have one.",
        run: experiments::zombies,
    },
];

/// Fills in the file names of a cgroup version. The text has them as `{version 2|version 1}`.
#[must_use]
pub(crate) fn for_version(text: &str, version: Version) -> String {
    let (mut out, mut rest) = (String::new(), text);
    while let Some((before, after)) = rest.split_once('{') {
        let (choice, next) = after.split_once('}').unwrap_or((after, ""));
        let (v2, v1) = choice.split_once('|').unwrap_or((choice, choice));
        out.push_str(before);
        out.push_str(if version == Version::V2 { v2 } else { v1 });
        rest = next;
    }
    out + rest
}

#[must_use]
pub(crate) fn find(name: &str) -> Option<&'static Lab> {
    static ALL: [Lab; 9] = LABS;
    ALL.iter().find(|lab| lab.name == name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_name_the_files_of_the_host_s_version() {
        const ONLY_V2: [&str; 5] = ["memory.max", "memory.swap.", "memory.current", "memory.events", "cpu.max"];
        const ONLY_V1: [&str; 5] = ["in_bytes", "oom_control", "cfs_quota", "memsw", "devices.allow"];
        for lab in &LABS {
            for text in [lab.title, lab.about, lab.notice] {
                let (v2, v1) = (for_version(text, Version::V2), for_version(text, Version::V1));
                assert!(ONLY_V1.iter().all(|file| !v2.contains(file)), "{}: {v2}", lab.name);
                // The lab `pressure` names files that version 1 does not have.
                assert!(lab.name == "pressure" || ONLY_V2.iter().all(|file| !v1.contains(file)), "{}: {v1}", lab.name);
                assert!(!v2.contains(['{', '}', '|']) && !v1.contains(['{', '}', '|']), "{}: {text}", lab.name);
            }
        }
        assert_eq!(for_version("a {b|c} d {e|f}", Version::V1), "a c d f");
    }
}
