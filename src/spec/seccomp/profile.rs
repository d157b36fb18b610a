//! Seccomp profiles, and docker's default profile as a built-in table.

use crate::spec::Capabilities;

/// The action for a system call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Action {
    Allow,
    Errno(u16),
    KillThread,
    KillProcess,
    Trap,
    Log,
}

/// A comparison of all 64 bits of one argument.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Compare {
    Equal(u64),
    NotEqual(u64),
    Less(u64),
    LessOrEqual(u64),
    Greater(u64),
    GreaterOrEqual(u64),
    /// `(argument & mask) == value`.
    Masked {
        mask: u64,
        value: u64,
    },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Condition {
    /// Index of the argument, 0 to 5.
    pub argument: u8,
    pub compare: Compare,
}

/// An action for a set of system calls. It applies if all conditions hold.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Rule {
    pub names: Vec<String>,
    pub action: Action,
    pub conditions: Vec<Condition>,
}

/// A profile for one set of capabilities and one architecture.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Profile {
    pub default: Action,
    pub rules: Vec<Rule>,
}

/// System calls that every container may make (the unconditional list of moby/profiles, default.json of 2026).
const ALLOWED: &str = include_str!("allowed.txt");

/// System calls that a capability enables.
const BY_CAPABILITY: [(&str, &str); 13] = [
    ("CAP_DAC_READ_SEARCH", "open_by_handle_at"),
    (
        "CAP_SYS_ADMIN",
        "bpf clone clone3 fanotify_init fsconfig fsmount fsopen fspick lookup_dcookie lsm_get_self_attr lsm_list_modules lsm_set_self_attr \
         mount mount_setattr move_mount open_tree perf_event_open quotactl quotactl_fd setdomainname sethostname setns syslog umount umount2 \
         unshare",
    ),
    ("CAP_SYS_BOOT", "reboot"),
    ("CAP_SYS_CHROOT", "chroot"),
    ("CAP_SYS_MODULE", "delete_module init_module finit_module"),
    ("CAP_SYS_PACCT", "acct"),
    ("CAP_SYS_PTRACE", "kcmp pidfd_getfd process_madvise"),
    ("CAP_SYS_RAWIO", "iopl ioperm"),
    ("CAP_SYS_TIME", "settimeofday stime clock_settime clock_settime64"),
    ("CAP_SYS_TTY_CONFIG", "vhangup"),
    ("CAP_SYSLOG", "syslog"),
    ("CAP_BPF", "bpf"),
    ("CAP_PERFMON", "perf_event_open"),
];

/// System calls for the NUMA policies of a process's own memory. docker allows them only with CAP_SYS_NICE, so NCCL,
/// numactl and PyTorch's worker binding warn or fail. gpurun allows them: the kernel restricts every policy to the
/// memory nodes of the cpuset, which gpurun sets and reads back, and it requires CAP_SYS_NICE itself to move pages that
/// other processes use (MPOL_MF_MOVE_ALL).
const MEMORY_POLICY: &str = "get_mempolicy mbind set_mempolicy set_mempolicy_home_node";

/// Namespace flags of clone(2). Without CAP_SYS_ADMIN, none of them may be set.
const CLONE_NEW_FLAGS: u64 = 0x7E02_0000;

/// Harmless values of personality(2): PER_LINUX, PER_LINUX32, UNAME26, the latter two combined, and 0xffffffff, which
/// only queries the value.
const PERSONALITIES: [u64; 5] = [0, 8, 0x2_0000, 0x2_0008, 0xffff_ffff];

/// Socket families as inclusive ranges. Excluded: DECnet (12), econet and ATM SVCs (19, 20), IrDA and other
/// unmaintained families (23, 25, 34, 37), the kernel's crypto API (38), and vsock (40), which reaches outside the
/// virtual machine.
const SOCKET_FAMILIES: [(u64, u64); 9] =
    [(0, 11), (13, 18), (21, 22), (24, 24), (26, 33), (35, 36), (39, 39), (41, 41), (42, 45)];

/// socketcall(2) of the 32-bit conventions passes the family in memory, where a filter cannot see it. Its operations
/// SOCKET (1) and SOCKETPAIR (8) would give access to the families that [`SOCKET_FAMILIES`] excludes. Both have been
/// separate system calls since Linux 4.3. The other operations work on open sockets.
const SOCKETCALL_SOCKET: u64 = 1;
const SOCKETCALL_SOCKETPAIR: u64 = 8;

fn words(text: &str) -> Vec<String> {
    text.split_whitespace().map(str::to_owned).collect()
}

impl Profile {
    /// Returns docker's default profile for a container with these capabilities, for kernel 4.8 or later. gpurun
    /// requires such a kernel anyway.
    #[must_use]
    pub(crate) fn docker_default(capabilities: &Capabilities) -> Self {
        let allow = |names: Vec<String>| Rule { names, action: Action::Allow, conditions: Vec::new() };
        let when = |name: &str, conditions: Vec<Condition>| Rule {
            names: vec![name.to_owned()],
            action: Action::Allow,
            conditions,
        };
        let first = |compare| Condition { argument: 0, compare };
        let mut rules = vec![
            allow(words(ALLOWED)),
            allow(words("process_vm_readv process_vm_writev ptrace arch_prctl modify_ldt")),
            allow(words(MEMORY_POLICY)),
        ];
        for (from, to) in SOCKET_FAMILIES {
            let conditions = match (from, to) {
                (0, to) => vec![first(Compare::LessOrEqual(to))],
                (from, to) if from == to => vec![first(Compare::Equal(from))],
                (from, to) => vec![first(Compare::GreaterOrEqual(from)), first(Compare::LessOrEqual(to))],
            };
            // socketpair(2) also creates sockets of any family before it finds that most families do not support pairs.
            rules.push(Rule { names: words("socket socketpair"), action: Action::Allow, conditions });
        }
        rules.push(when(
            "socketcall",
            vec![first(Compare::NotEqual(SOCKETCALL_SOCKET)), first(Compare::NotEqual(SOCKETCALL_SOCKETPAIR))],
        ));
        for value in PERSONALITIES {
            rules.push(when("personality", vec![first(Compare::Equal(value))]));
        }
        if cfg!(target_arch = "aarch64") {
            rules.push(allow(words(
                "arm_fadvise64_64 arm_sync_file_range sync_file_range2 breakpoint cacheflush set_tls",
            )));
        }
        for (capability, names) in BY_CAPABILITY {
            if capabilities.has(capability) {
                rules.push(allow(words(names)));
            }
        }
        if !capabilities.has("CAP_SYS_ADMIN") {
            rules.push(when("clone", vec![first(Compare::Masked { mask: CLONE_NEW_FLAGS, value: 0 })]));
            // ENOSYS makes the C library fall back to clone(2), whose flags the filter can see.
            rules.push(Rule {
                names: words("clone3"),
                action: Action::Errno(libc::ENOSYS as u16),
                conditions: Vec::new(),
            });
        }
        Self { default: Action::Errno(libc::EPERM as u16), rules }
    }
}
