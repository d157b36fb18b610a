//! The meaning of each limit and a reference to the kernel's documentation. There is one entry per flag.

/// The documentation of one flag.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Topic {
    pub flag: &'static str,
    /// The explanation, in one paragraph.
    pub why: &'static str,
    /// The kernel's document and section. `…` stands for Documentation/admin-guide in the kernel's source.
    pub source: &'static str,
}

pub(crate) const TOPICS: &[Topic] = &[
    Topic {
        flag: "--memory",
        why: "The hard limit of everything charged to the container: its processes' memory, tmpfs files (/dev/shm \
              too), page cache and kernel memory. At the limit, the kernel first reclaims memory: it drops clean \
              page cache and swaps. If that is not sufficient, the OOM killer kills a process of this cgroup. Usage \
              near the limit is therefore not alarming by itself: it may be page cache.",
        source: "…/cgroup-v2.rst, \"memory.max\"; …/cgroup-v1/memory.rst, section 2",
    },
    Topic {
        flag: "--memory-swap",
        why: "As in docker, the number is memory and swap together. Version 1 has a file for the sum; version 2 \
              limits swap alone, so gpurun writes the difference. The default is twice the memory. The same number \
              as --memory means no swap: gpurun writes 0 and checks it.",
        source: "…/cgroup-v2.rst, \"memory.swap.max\"; …/cgroup-v1/memory.rst, section 2.4",
    },
    Topic {
        flag: "--memory-reservation",
        why: "A protection, not a limit: as long as the container uses less, the kernel reclaims memory from other \
              cgroups first. In version 1 it is the soft limit, down to which the kernel reclaims when the host is \
              short of memory.",
        source: "…/cgroup-v2.rst, \"memory.low\"; …/cgroup-v1/memory.rst, section 7",
    },
    Topic {
        flag: "--memory-high",
        why: "A soft limit below --memory: above it, the processes of the container must reclaim memory and are \
              slowed down, and no process is killed. memory.pressure shows the time that they lose.",
        source: "…/cgroup-v2.rst, \"memory.high\"",
    },
    Topic {
        flag: "--memory-min",
        why: "The amount of memory that the kernel never reclaims from the container, even if it must kill other \
              processes.",
        source: "…/cgroup-v2.rst, \"memory.min\"",
    },
    Topic {
        flag: "--memory-swappiness",
        why: "The kernel's preference for swapping anonymous memory out over dropping page cache. 0 swaps only if \
              nothing else can be reclaimed.",
        source: "…/cgroup-v1/memory.rst, section 5.3",
    },
    Topic {
        flag: "--oom-kill-disable",
        why: "At the limit, processes sleep until memory is freed. Without --memory, this can stop the whole host.",
        source: "…/cgroup-v1/memory.rst, section 10",
    },
    Topic {
        flag: "--cpus",
        why: "CPU time per period: with 1.5, for example, 150 ms in each 100 ms, shared by all threads on all CPUs. \
              Threads that use it up early wait for the rest of the period. This is throttling, and it increases \
              latency. Programs that count CPUs see all of them; use --cpuset-cpus for a program that derives its \
              number of threads from nproc.",
        source: "…/cgroup-v2.rst, \"cpu.max\"; Documentation/scheduler/sched-bwc.rst",
    },
    Topic {
        flag: "--cpu-quota",
        why: "The CPU limit in the kernel's unit: microseconds of CPU time in each --cpu-period.",
        source: "…/cgroup-v2.rst, \"cpu.max\"; Documentation/scheduler/sched-bwc.rst",
    },
    Topic {
        flag: "--cpu-period",
        why: "The time after which the kernel assigns CPU time again. Shorter periods throttle for shorter times \
              and have more overhead.",
        source: "…/cgroup-v2.rst, \"cpu.max\"; Documentation/scheduler/sched-bwc.rst",
    },
    Topic {
        flag: "--cpu-shares",
        why: "A weight, not a limit: it has an effect only while other cgroups compete for the CPU. The default is \
              1024. Version 2 has weights from 1 to 10000 with the default 100, so gpurun converts docker's number.",
        source: "…/cgroup-v2.rst, \"cpu.weight\"; Documentation/scheduler/sched-design-CFS.rst",
    },
    Topic {
        flag: "--cpuset-cpus",
        why: "The CPUs that threads may run on. nproc, and every library that asks the scheduler, shows only these \
              CPUs; /proc/cpuinfo shows all. CPU time is not limited: containers on the same CPUs share them.",
        source: "…/cgroup-v2.rst, \"cpuset.cpus\"; …/cgroup-v1/cpusets.rst",
    },
    Topic {
        flag: "--cpuset-mems",
        why: "The NUMA nodes that memory may come from. If they are full, the container is out of memory even if \
              another node has free memory.",
        source: "…/cgroup-v2.rst, \"cpuset.mems\"; …/cgroup-v1/cpusets.rst",
    },
    Topic {
        flag: "--pids-limit",
        why: "The maximum number of processes and threads. At the limit, fork and clone fail with EAGAIN. This \
              stops fork bombs, which a memory limit stops too late.",
        source: "…/cgroup-v2.rst, \"pids.max\"; …/cgroup-v1/pids.rst",
    },
    Topic {
        flag: "--shm-size",
        why: "The size of the tmpfs on /dev/shm, which processes use to share memory, as PyTorch's data loaders do. \
              It is a maximum and reserves no memory: its files count against --memory. Writing to a full one fails \
              with ENOSPC, or with SIGBUS in a mapping.",
        source: "Documentation/filesystems/tmpfs.rst; …/cgroup-v2.rst, \"Memory\"",
    },
    Topic {
        flag: "--ulimit",
        why: "The resource limits of a process: a soft limit, which the process may raise up to the hard limit. \
              Children inherit them, and most are counted for each process separately. A cgroup counts all its \
              processes together: therefore use --pids-limit instead of `ulimit -u`, which counts all processes of \
              a user.",
        source: "getrlimit(2)",
    },
    Topic {
        flag: "--oom-score-adj",
        why: "The priority in the OOM killer's choice. It kills the process with the largest memory usage, after it \
              has added this many thousandths of all memory to the usage. A process with 1000 is killed first, one \
              with -1000 never. The choice is among the processes of the cgroup whose limit was reached, or of the \
              host.",
        source: "Documentation/filesystems/proc.rst, section 3.1",
    },
    Topic {
        flag: "--cgroup-parent",
        why: "The parent of the container's cgroup. Limits of the parent apply to all its children together: the \
              lowest limit of all ancestors is in effect. A group of containers can thus share one budget.",
        source: "…/cgroup-v2.rst, \"Top-down Constraint\"",
    },
    Topic {
        flag: "--blkio-weight",
        why: "A share of a disk's time while other cgroups compete for it. It has an effect only if the disk's \
              scheduler is bfq or io.cost is configured.",
        source: "…/cgroup-v2.rst, \"io.weight\"; Documentation/block/bfq-iosched.rst",
    },
    Topic {
        flag: "--blkio-weight-device",
        why: "The share of the time of one disk, instead of --blkio-weight. The kernel has it only for disks whose \
              scheduler is bfq.",
        source: "Documentation/block/bfq-iosched.rst",
    },
    Topic {
        flag: "--device-read-bps",
        why: "Bytes per second read from one disk, which is named by the major and minor number of the whole disk. \
              Reads from the page cache are not counted.",
        source: "…/cgroup-v2.rst, \"io.max\"; …/cgroup-v1/blkio-controller.rst",
    },
    Topic {
        flag: "--device-write-bps",
        why: "Bytes per second written to one disk. Version 1 counts only direct writes, because it assigns the \
              write-back of buffered writes to no cgroup. Version 2 counts both if the file system supports it \
              (ext4, btrfs, xfs).",
        source: "…/cgroup-v2.rst, \"io.max\" and \"Writeback\"; …/cgroup-v1/blkio-controller.rst",
    },
    Topic {
        flag: "--device-read-iops",
        why: "Read operations per second on one disk.",
        source: "…/cgroup-v2.rst, \"io.max\"; …/cgroup-v1/blkio-controller.rst",
    },
    Topic {
        flag: "--device-write-iops",
        why: "Write operations per second on one disk.",
        source: "…/cgroup-v2.rst, \"io.max\"; …/cgroup-v1/blkio-controller.rst",
    },
    Topic {
        flag: "--cgroup-conf",
        why: "Any other file of the container's cgroup. The value is written unchanged and read back.",
        source: "…/cgroup-v2.rst",
    },
    Topic {
        flag: "--gpus",
        why: "A GPU consists of device nodes and of the driver's libraries, whose version must match the loaded \
              kernel module; an image therefore cannot contain them. NVIDIA's prestart hook, a CDI file or gpurun \
              itself injects them, and the device filter denies all other nodes. `--gpus N` reserves N idle GPUs \
              for this container; `all` and `device=` share them. Requests in the image itself are ignored.",
        source: "docs/gpus.md; …/cgroup-v2.rst, \"Device controller\"; …/cgroup-v1/devices.rst",
    },
];

/// Describes a CPU limit of `quota_us` in each `period_us`.
pub(super) fn cpu_time(quota_us: u64, period_us: u64) -> String {
    let ms = |us: f64| {
        let text = format!("{:.2}", us / 1000.0);
        text.trim_end_matches('0').trim_end_matches('.').to_owned()
    };
    let (quota, period) = (quota_us as f64, period_us as f64);
    // Use twice as many threads as the limit has CPUs, and at least eight.
    let threads = (2 * quota_us.div_ceil(period_us.max(1))).max(8);
    let busy = quota / threads as f64;
    format!(
        "CPU time per period: {} CPUs are {} ms in each {} ms, shared by all threads on all CPUs. {threads} busy \
         threads on {threads} CPUs use that up in {} ms and then wait for {} ms. This is throttling, and it \
         increases latency.",
        ms(1000.0 * quota / period),
        ms(quota),
        ms(period),
        ms(busy),
        ms(period - busy),
    )
}

pub(super) const CPUS_REST: &str = "Programs that count CPUs see all of them; use --cpuset-cpus for a program that \
                                    derives its number of threads from nproc.";

/// The topic of a flag.
#[must_use]
pub(crate) fn topic(flag: &str) -> Option<&'static Topic> {
    TOPICS.iter().find(|topic| topic.flag == flag)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_flag_has_one_topic() {
        let mut flags: Vec<_> = TOPICS.iter().map(|topic| topic.flag).collect();
        let count = flags.len();
        flags.sort_unstable();
        flags.dedup();
        assert_eq!(flags.len(), count);
    }
}
