//! Safe, guided experiments with the kernel's limits: each a few seconds, each with the kernel's numbers before, during and after.
//!
//! ```text
//! experiments    what is tried, and what must come out
//! bench          a cgroup of the experiment's own, its processes, the numbers
//! payload        what runs inside: gpurun itself, as `gpurun lab-payload …`; no image is needed
//! ```
//!
//! Rules. A lab's cgroup is `/gpurun/lab-PID-N`, so that [`sweep`] knows whose it was after a SIGKILL; its processes die with the lab. Nothing
//! outside that cgroup is touched, no limit is large enough to hurt. A lab that does not come out as the kernel documents it says so and fails.

mod bench;
mod experiments;
pub mod payload;

use serde::Serialize;

pub use bench::{Bench, sweep};

use crate::report::Report;

/// One experiment.
#[derive(Debug, Clone, Copy)]
pub struct Lab {
    pub name: &'static str,
    pub title: &'static str,
    /// What it is about: one paragraph.
    pub about: &'static str,
    run: fn(&mut Bench<'_>) -> Result<Verdict, Report>,
}

/// What came out.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(tag = "verdict", content = "text", rename_all = "lowercase")]
pub enum Verdict {
    /// As the kernel's documents say.
    Expected(String),
    /// Otherwise: this kernel, or gpurun, is not what it should be.
    Unexpected(String),
    /// This host cannot do it.
    Impossible(String),
}

/// What a lab shows while it runs.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(tag = "kind", rename_all = "lowercase")]
pub enum Line {
    Say {
        text: String,
    },
    /// What a person would type to the same effect.
    Command {
        text: String,
    },
    /// The kernel's numbers.
    Numbers {
        phase: &'static str,
        files: Vec<(String, String)>,
    },
}

/// Runs one lab; everything that it shows goes to `show`.
pub fn run(lab: &Lab, show: &mut dyn FnMut(Line)) -> Result<Verdict, Report> {
    let mut bench = Bench::new(show)?;
    (lab.run)(&mut bench)
}

pub const LABS: [Lab; 9] = [
    Lab {
        name: "memory",
        title: "The wall: memory.max",
        about: "A process takes more and more memory in a cgroup with a limit. At the limit the kernel finds nothing to reclaim, and its OOM \
                killer ends the process with SIGKILL: status 137, and nothing else on the host notices.",
        run: experiments::memory,
    },
    Lab {
        name: "swap",
        title: "With and without swap: memory.swap.max",
        about: "The same process twice, with the same memory limit: without swap it is killed, with swap it lives and is slower. That is the \
                difference between `--memory-swap` equal to `--memory` and docker's default of twice as much.",
        run: experiments::swap,
    },
    Lab {
        name: "pressure",
        title: "The brake: memory.high and pressure",
        about: "Above memory.high nobody is killed: the process itself has to reclaim memory and is slowed down. memory.pressure shows how long \
                it waited. Version 2 alone.",
        run: experiments::pressure,
    },
    Lab {
        name: "throttle",
        title: "Throttled: cpu.max",
        about: "A busy loop may use 30 ms of each 100 ms. It runs, stands still, runs again: cpu.stat counts the periods in which it was stopped.",
        run: experiments::throttle,
    },
    Lab {
        name: "cpuset",
        title: "Quota against cpuset: eight threads, one CPU's worth",
        about: "One CPU's worth of time can be given as a quota (--cpus 1) or as a place (--cpuset-cpus 0). By quota, threads on several CPUs use \
                the time up early and are all stopped; by place they take turns and are never throttled, and nproc tells the program the truth.",
        run: experiments::cpuset,
    },
    Lab {
        name: "pids",
        title: "A fork bomb: pids.max",
        about: "A process starts copies of itself, which start copies of themselves. At pids.max fork fails with EAGAIN, and the host never \
                notices.",
        run: experiments::pids,
    },
    Lab {
        name: "device",
        title: "A device that is denied",
        about: "To open a device node, root is not enough in a container: a filter of its cgroup decides (version 1: devices.allow; version 2: a \
                BPF program). The same process opens /dev/kmsg with EPERM, and without, where the filter lets it.",
        run: experiments::device,
    },
    Lab {
        name: "overlay",
        title: "An overlay's two sides",
        about: "A container's root is an overlay: the image below, read-only and shared, a directory of its own above. Writing copies a file up, \
                removing leaves a whiteout, and the image never changes.",
        run: experiments::overlay,
    },
    Lab {
        name: "zombies",
        title: "Pid 1 and its zombies",
        about: "Who is pid 1 inherits every orphan, and must wait for it: else dead processes stay in the table for ever and count against \
                pids.max. That is what `--init` is for.",
        run: experiments::zombies,
    },
];

#[must_use]
pub fn find(name: &str) -> Option<&'static Lab> {
    static ALL: [Lab; 9] = LABS;
    ALL.iter().find(|lab| lab.name == name)
}
