//! The rights of a resolver: none but those to use its descriptors, to open sockets, and to allocate memory.

use std::io;

use crate::spec::Capabilities;
use crate::spec::seccomp::{ProfileDocument, compile};
use crate::sys::{caps, process, rlimit, seccomp};

/// The user and the group that own no files.
const UNPRIVILEGED: u32 = 65_534;
/// More than the sockets of all clients and exchanges.
const MOST_DESCRIPTORS: u64 = 512;
/// Bytes of memory.
const MOST_DATA: u64 = 64 << 20;

/// The system calls of a process that only answers. Others fail with EPERM, so that a library that makes one can go on.
const PROFILE: &str = r#"{
    "defaultAction": "SCMP_ACT_ERRNO",
    "syscalls": [
        { "action": "SCMP_ACT_ALLOW", "names": [
            "accept4", "bind", "brk", "clock_gettime", "close", "connect", "exit", "exit_group", "fcntl", "fstat",
            "futex", "getpid", "getppid", "getrandom", "getsockname", "getsockopt", "gettid", "madvise", "mremap",
            "munmap", "newfstatat", "poll", "ppoll", "pread64", "read", "recvfrom", "recvmsg", "restart_syscall",
            "rt_sigaction", "rt_sigprocmask", "rt_sigreturn", "sched_yield", "sendmsg", "sendto", "setsockopt",
            "shutdown", "sigaltstack", "statx", "write"
        ] },
        { "action": "SCMP_ACT_ALLOW", "names": ["socket"], "args": [{ "index": 0, "value": 2, "op": "SCMP_CMP_EQ" }] },
        { "action": "SCMP_ACT_ALLOW", "names": ["socket"], "args": [{ "index": 0, "value": 10, "op": "SCMP_CMP_EQ" }] },
        { "action": "SCMP_ACT_ALLOW", "names": ["mmap", "mprotect"], "args": [
            { "index": 2, "value": 4, "valueTwo": 0, "op": "SCMP_CMP_MASKED_EQ" }
        ] }
    ]
}"#;

/// Gives up all other rights of this process for good.
pub(super) fn enter() -> io::Result<()> {
    caps::bound(0)?;
    nix::unistd::setgroups(&[])?;
    let (group, user) = (nix::unistd::Gid::from_raw(UNPRIVILEGED), nix::unistd::Uid::from_raw(UNPRIVILEGED));
    nix::unistd::setresgid(group, group, group)?;
    nix::unistd::setresuid(user, user, user)?;
    // The kernel has dropped the signal of `end_with_parent` with the credentials.
    process::set_parent_death_signal(libc::SIGKILL)?;
    caps::set(0)?;
    caps::set_no_new_privileges()?;
    process::set_undumpable()?;
    let limits = [
        ("RLIMIT_NOFILE", MOST_DESCRIPTORS),
        ("RLIMIT_DATA", MOST_DATA),
        ("RLIMIT_FSIZE", 0),
        ("RLIMIT_CORE", 0),
        ("RLIMIT_NPROC", 0),
    ];
    limits.into_iter().try_for_each(|(name, most)| rlimit::set(name, most, most))?;
    let profile: ProfileDocument = PROFILE.parse().map_err(io::Error::other)?;
    let filter = compile(&profile.profile(&Capabilities(0))).map_err(io::Error::other)?;
    seccomp::load(&filter.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_filter_is_a_valid_program() {
        let profile: ProfileDocument = PROFILE.parse().unwrap();
        assert!(compile(&profile.profile(&Capabilities(0))).is_ok());
    }
}
