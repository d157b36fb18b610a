//! What each limit means, and where the kernel says so. One entry a file-backed flag.

/// One flag's place in the world.
#[derive(Debug, Clone, Copy)]
pub struct Topic {
    pub flag: &'static str,
    /// Why it is as it is: one paragraph.
    pub why: &'static str,
    /// The kernel's document and section; `…` lies below Documentation/admin-guide in the kernel's source.
    pub source: &'static str,
}

pub const TOPICS: &[Topic] = &[
    Topic {
        flag: "--memory",
        why: "The hard limit of everything charged to the container: its processes' memory, tmpfs files (/dev/shm too), page cache and kernel \
              memory. At the limit the kernel first reclaims: it drops clean page cache and swaps. Only when that is not enough does the OOM \
              killer end a process of this cgroup. So usage near the limit is no alarm by itself: it may be page cache.",
        source: "…/cgroup-v2.rst, \"memory.max\"; …/cgroup-v1/memory.rst, section 2",
    },
    Topic {
        flag: "--memory-swap",
        why: "docker's number is memory and swap together; version 1 has that file, version 2 limits swap alone, so it is told the difference. \
              Not given, it is twice the memory. The same as --memory means no swap at all: version 2 is told 0, and gpurun checks that it is.",
        source: "…/cgroup-v2.rst, \"memory.swap.max\"; …/cgroup-v1/memory.rst, section 2.4",
    },
    Topic {
        flag: "--memory-reservation",
        why: "A promise, not a limit: as long as the container uses less, the kernel takes memory from others first. Under version 1 it is the \
              soft limit, to which the container is pushed back when the host runs short.",
        source: "…/cgroup-v2.rst, \"memory.low\"; …/cgroup-v1/memory.rst, section 7",
    },
    Topic {
        flag: "--memory-high",
        why: "The brake before the wall: above it, processes of the container are made to reclaim and are slowed down, and nothing is killed. \
              Whoever watches memory.pressure sees trouble coming there.",
        source: "…/cgroup-v2.rst, \"memory.high\"",
    },
    Topic {
        flag: "--memory-min",
        why: "Memory that the kernel never reclaims from the container, even if it must kill elsewhere.",
        source: "…/cgroup-v2.rst, \"memory.min\"",
    },
    Topic {
        flag: "--memory-swappiness",
        why: "How readily anonymous memory is swapped out compared to dropping page cache; 0 swaps only when nothing else is left.",
        source: "…/cgroup-v1/memory.rst, section 5.3",
    },
    Topic {
        flag: "--oom-kill-disable",
        why: "At the limit processes sleep until memory is freed. Without --memory this can stop the whole host.",
        source: "…/cgroup-v1/memory.rst, section 10",
    },
    Topic {
        flag: "--cpus",
        why: "CPU time a period: 1.5 CPUs are 150 ms in each 100 ms, shared by all threads on whatever CPUs they run. Eight busy threads on eight CPUs \
              use that up in 19 ms and then stand still for 81: that is throttling, and it hurts latency. Programs that count CPUs see all of \
              them; use --cpuset-cpus where a number of threads is chosen by what nproc says.",
        source: "…/cgroup-v2.rst, \"cpu.max\"; Documentation/scheduler/sched-bwc.rst",
    },
    Topic {
        flag: "--cpu-quota",
        why: "The CPU limit in the kernel's own numbers: so many microseconds of CPU time in each --cpu-period.",
        source: "…/cgroup-v2.rst, \"cpu.max\"; Documentation/scheduler/sched-bwc.rst",
    },
    Topic {
        flag: "--cpu-period",
        why: "How long the kernel looks at before it hands out CPU time again; shorter periods throttle in smaller pieces and cost more.",
        source: "…/cgroup-v2.rst, \"cpu.max\"; Documentation/scheduler/sched-bwc.rst",
    },
    Topic {
        flag: "--cpu-shares",
        why: "A weight, not a limit: it counts only while others want the CPU too. 1024 is usual; version 2 has weights from 1 to 10000 with \
              100 as usual, so docker's number is converted.",
        source: "…/cgroup-v2.rst, \"cpu.weight\"; Documentation/scheduler/sched-design-CFS.rst",
    },
    Topic {
        flag: "--cpuset-cpus",
        why: "The CPUs that threads may run on. nproc, and every library that asks the scheduler, follows it; /proc/cpuinfo does not. No time is \
              limited: two containers on one set share it.",
        source: "…/cgroup-v2.rst, \"cpuset.cpus\"; …/cgroup-v1/cpusets.rst",
    },
    Topic {
        flag: "--cpuset-mems",
        why: "The NUMA nodes that memory may come from. A full node is out of memory for this container even if another node has plenty.",
        source: "…/cgroup-v2.rst, \"cpuset.mems\"; …/cgroup-v1/cpusets.rst",
    },
    Topic {
        flag: "--pids-limit",
        why: "Processes and threads at most; beyond, fork and clone answer EAGAIN. The fence against fork bombs, which memory limits stop too late.",
        source: "…/cgroup-v2.rst, \"pids.max\"; …/cgroup-v1/pids.rst",
    },
    Topic {
        flag: "--shm-size",
        why: "The size of the tmpfs on /dev/shm, by which processes share memory: PyTorch's data loaders do. It is a ceiling, not memory set aside: \
              what lies there counts against --memory, and a full one answers ENOSPC, or SIGBUS to who has mapped it.",
        source: "Documentation/filesystems/tmpfs.rst; …/cgroup-v2.rst, \"Memory\"",
    },
    Topic {
        flag: "--ulimit",
        why: "The old limits of one process (its soft limit, which it may raise up to the hard one), inherited by its children and counted for each \
              by itself. A cgroup counts all of them together: that is why --pids-limit holds where `ulimit -u`, counted for a user, does not.",
        source: "getrlimit(2)",
    },
    Topic {
        flag: "--oom-score-adj",
        why: "Whom the kernel kills first when memory is out: it takes the process with the most, after adding this many thousandths of all memory \
              to each. 1000 is killed first, -1000 never. It chooses among the processes of the cgroup whose limit was reached, or of the host.",
        source: "Documentation/filesystems/proc.rst, section 3.1",
    },
    Topic {
        flag: "--cgroup-parent",
        why: "Where in the tree the container's cgroup lies. Whatever the parent may not use, its children may not either: the least of all \
              ancestors' limits is the one that counts. So a group of containers can be given one budget.",
        source: "…/cgroup-v2.rst, \"Top-down Constraint\"",
    },
    Topic {
        flag: "--blkio-weight",
        why: "A share of a disk's time while others want it too. It does something only where the disk's scheduler is bfq, or io.cost is set up.",
        source: "…/cgroup-v2.rst, \"io.weight\"; Documentation/block/bfq-iosched.rst",
    },
    Topic {
        flag: "--device-read-bps",
        why: "Bytes a second from one disk, by major and minor number of the whole disk. What comes from the page cache is not counted.",
        source: "…/cgroup-v2.rst, \"io.max\"; …/cgroup-v1/blkio-controller.rst",
    },
    Topic {
        flag: "--device-write-bps",
        why: "Bytes a second to one disk. Version 1 counts direct writes alone: buffered ones are written back by nobody's cgroup. Version 2 \
              counts both, where the file system takes part (ext4, btrfs, xfs).",
        source: "…/cgroup-v2.rst, \"io.max\" and \"Writeback\"; …/cgroup-v1/blkio-controller.rst",
    },
    Topic {
        flag: "--device-read-iops",
        why: "Read operations a second from one disk.",
        source: "…/cgroup-v2.rst, \"io.max\"; …/cgroup-v1/blkio-controller.rst",
    },
    Topic {
        flag: "--device-write-iops",
        why: "Write operations a second to one disk.",
        source: "…/cgroup-v2.rst, \"io.max\"; …/cgroup-v1/blkio-controller.rst",
    },
    Topic {
        flag: "--cgroup-conf",
        why: "Any other file of the container's cgroup, written as it is given and read back.",
        source: "…/cgroup-v2.rst",
    },
    Topic {
        flag: "--gpus",
        why: "A GPU is a few device nodes and the driver's own libraries, of exactly the version that the kernel has loaded: an image cannot bring \
              them. They come by NVIDIA's prestart hook, by a CDI file, or from the driver's files; the device filter keeps every other node shut. \
              N takes idle ones for this container alone, `all` and `device=` share. What an image asks for itself counts for nothing.",
        source: "docs/gpus.md; …/cgroup-v2.rst, \"Device controller\"; …/cgroup-v1/devices.rst",
    },
];

/// What is told about a flag.
#[must_use]
pub fn topic(flag: &str) -> Option<&'static Topic> {
    TOPICS.iter().find(|topic| topic.flag == flag)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_flag_is_told_once() {
        let mut flags: Vec<_> = TOPICS.iter().map(|topic| topic.flag).collect();
        let count = flags.len();
        flags.sort_unstable();
        flags.dedup();
        assert_eq!(flags.len(), count);
    }
}
