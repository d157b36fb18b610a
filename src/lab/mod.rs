//! Safe, guided experiments with the kernel's limits: each a few seconds, each with the kernel's numbers before, during and after.
//!
//! ```text
//! experiments    what is tried, and what must come out
//! bench          a cgroup of the experiment's own, its processes, the numbers
//! payload        what runs inside: gpurun itself, as `gpurun lab-payload …`; no image is needed
//! ```
//!
//! Rules. A lab's cgroup is `/gpurun/lab-PID-N`, so that [`sweep`] knows whose it was after a SIGKILL; its processes die with the lab. Nothing
//! outside that cgroup is touched, no limit is large enough to hurt; ctrl-c ends it early and leaves as little. A lab that does not come out as the kernel documents it says so and fails.

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
    /// The flags of `gpurun run` that do the same to a container, in words.
    pub flags: &'static str,
    /// What a class should take home.
    pub notice: &'static str,
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

/// Runs one lab; everything that it shows goes to `show`. Once `stopped` says so (a person pressed ctrl-c) it ends early, and cleans up.
pub fn run(lab: &Lab, show: &mut dyn FnMut(Line), stopped: &dyn Fn() -> bool) -> Result<Verdict, Report> {
    let mut bench = Bench::new(show, stopped)?;
    (lab.run)(&mut bench)
}

pub const LABS: [Lab; 9] = [
    Lab {
        name: "memory",
        title: "The wall: memory.max",
        about: "A process takes more and more memory in a cgroup that may hold 32 MiB and no swap. Usage grows to the limit and not \
                one page further: there the kernel looks for something to give up, finds nothing, and its OOM killer ends the process \
                with SIGKILL. Nobody else on the host notices.",
        flags: "`--memory 32m --memory-swap 32m`",
        notice: "The process was never told: no malloc failed. A shell shows status 137, which is 128 + 9, as after any SIGKILL; that \
                it was for memory is known from memory.events and the kernel's log alone.",
        run: experiments::memory,
    },
    Lab {
        name: "swap",
        title: "A softer wall: memory.swap.max",
        about: "The same process twice, with the same memory limit. Without swap it is killed at the limit; with swap its oldest pages \
                move out, and it lives.",
        flags: "`--memory 32m --memory-swap 32m`, then `--memory-swap 96m`",
        notice: "memory.current stops at 32 MiB both times; the rest stands in memory.swap.current. docker's --memory-swap is the sum \
                of both, and twice the memory where it is not given: a container \"with 32 MiB\" may hold 64.",
        run: experiments::swap,
    },
    Lab {
        name: "pressure",
        title: "The brake: memory.high",
        about: "Above memory.high nobody is killed. The process itself is sent to look for pages to give up before it gets another \
                one, and so it slows down. memory.pressure (PSI) counts how long it waited for memory.",
        flags: "`--memory 96m --memory-high 24m`",
        notice: "memory.events counts each time the brake was used, memory.pressure the time that was lost to it. Who watches these \
                sees trouble long before memory.max kills. Version 1 of cgroups has neither.",
        run: experiments::pressure,
    },
    Lab {
        name: "throttle",
        title: "Run and stand still: cpu.max",
        about: "One busy loop in a cgroup that may use 30 ms of CPU time in each 100 ms. It runs for 30, stands still for 70, and runs \
                again; cpu.stat counts the periods in which it was stopped, and for how long.",
        flags: "`--cpus 0.3`",
        notice: "On average that is 30 % of a CPU, and so says top. But a request that comes at the wrong moment waits 70 ms: a quota \
                limits throughput by adding latency.",
        run: experiments::throttle,
    },
    Lab {
        name: "cpuset",
        title: "A quota or a place: eight threads, half of the CPUs",
        about: "Eight busy threads are given the same CPU time in two ways. As a quota, they run on all CPUs at once, use their time \
                up early in each period and all stand still together. As a place, they have few CPUs and take turns there.",
        flags: "`--cpus 1`, then `--cpuset-cpus 0`",
        notice: "By place nobody is throttled, and the program counts its CPUs right (nproc asks for the place, never for the quota). \
                So a numerical library starts as many threads as can run, instead of as many as the host has CPUs.",
        run: experiments::cpuset,
    },
    Lab {
        name: "pids",
        title: "A fork bomb: pids.max",
        about: "A process starts copies of itself, which start copies of themselves. At pids.max fork fails with EAGAIN, and there the \
                bomb ends.",
        flags: "`--pids-limit 20`",
        notice: "EAGAIN is \"Resource temporarily unavailable\": that is what a shell says there. Threads count as well as processes; a \
                memory limit alone would stop a bomb only after the host's pids were gone.",
        run: experiments::pids,
    },
    Lab {
        name: "device",
        title: "A device that is denied",
        about: "Root in a container can make any device node, and that does not help: whether it may be opened is decided by the \
                cgroup, by a list in version 1 (devices.allow), by a BPF program in version 2. The same process opens the same node \
                under two cgroups.",
        flags: "any, then one with `--device /dev/kmsg`",
        notice: "File permissions, root and capabilities said yes both times. That is how one GPU is given to a container, and the next \
                one is not.",
        run: experiments::device,
    },
    Lab {
        name: "overlay",
        title: "An overlay from both sides",
        about: "A container's root is an overlay: the image below, read-only and shared by all, and a directory of its own above. Seen \
                from inside there is one tree; from outside the two sides can be told apart.",
        flags: "any; `gpurun diff NAME` shows its upper side",
        notice: "Writing copied a file up, removing left a whiteout (a device 0:0) that hides the one below, and the image is as it \
                was. A commit is nothing but the upper side as a new layer.",
        run: experiments::overlay,
    },
    Lab {
        name: "zombies",
        title: "Pid 1 and its zombies",
        about: "A dead process stays in the table until its parent asks how it ended. Who loses its parent is given to pid 1. A \
                program that never expected to be pid 1 does not ask: the dead stay, and each one counts against pids.max.",
        flags: "any, then one with `--init`",
        notice: "A zombie holds no memory, only its number, and cannot be killed: it is dead. `--init` puts a pid 1 there that asks; \
                gpurun's Jupyter launches always have one.",
        run: experiments::zombies,
    },
];

#[must_use]
pub fn find(name: &str) -> Option<&'static Lab> {
    static ALL: [Lab; 9] = LABS;
    ALL.iter().find(|lab| lab.name == name)
}
