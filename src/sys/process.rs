//! Processes: descriptors that are passed on, pidfds, forks of a single-threaded process, what a fresh program starts with.

use std::ffi::CString;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::process::CommandExt;
use std::process::Command;
use std::time::Duration;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

/// Takes a descriptor that this process was started with; `None` where it is not open. To be called once for a number.
#[must_use]
pub fn take_inherited_fd(fd: RawFd) -> Option<OwnedFd> {
    // SAFETY: fcntl(2) only looks at the number; F_GETFD answers EBADF for one that is not open.
    let flags = unsafe { libc::fcntl(fd, libc::F_GETFD) };
    if flags < 0 {
        return None;
    }
    // SAFETY: the descriptor is open, it came with exec, and nothing in this process knows it yet: callers name each number once.
    let owned = unsafe { OwnedFd::from_raw_fd(fd) };
    // SAFETY: as above; sets a flag of our own descriptor.
    unsafe { libc::fcntl(fd, libc::F_SETFD, libc::FD_CLOEXEC) };
    Some(owned)
}

/// Makes the command's process find `fd` under the number `to`.
pub fn pass_fd(command: &mut Command, fd: RawFd, to: RawFd) {
    let pass = move || {
        // SAFETY: dup2 and fcntl are async-signal-safe; `fd` is open in the child as it is in the parent. dup2 onto itself would keep
        // close-on-exec, which is cleared then.
        let result = unsafe { if fd == to { libc::fcntl(fd, libc::F_SETFD, 0) } else { libc::dup2(fd, to) } };
        if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
    };
    // SAFETY: the closure makes async-signal-safe calls only and touches no memory but its two numbers.
    unsafe { command.pre_exec(pass) };
}

/// Sends a signal to the process behind a pidfd: never to another that got its number.
pub fn signal(pidfd: impl AsFd, number: i32) -> io::Result<()> {
    // SAFETY: pidfd_send_signal(2) takes a descriptor, a number, no siginfo and no flags.
    let result = unsafe {
        libc::syscall(
            libc::SYS_pidfd_send_signal,
            pidfd.as_fd().as_raw_fd(),
            number,
            std::ptr::null::<libc::siginfo_t>(),
            0,
        )
    };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// A descriptor of a process.
pub fn open_pidfd(pid: i32) -> io::Result<OwnedFd> {
    // SAFETY: pidfd_open(2) takes two numbers.
    let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel has just given us this descriptor (pidfds are close-on-exec from birth).
    Ok(unsafe { OwnedFd::from_raw_fd(fd as i32) })
}

/// Waits until the process behind a pidfd has ended; `false`: it has not within the time.
pub fn wait_pidfd(pidfd: impl AsFd, time: Duration) -> bool {
    let mut fds = [PollFd::new(pidfd.as_fd(), PollFlags::POLLIN)];
    let timeout = PollTimeout::try_from(time.as_millis()).unwrap_or(PollTimeout::MAX);
    loop {
        match poll(&mut fds, timeout) {
            Err(nix::Error::EINTR) => {}
            result => return result.is_ok_and(|ready| ready > 0),
        }
    }
}

/// Waits until a process (any, not only a child) has ended, for so long at most.
pub fn wait_pid_gone(pid: i32, time: Duration) {
    if let Ok(pidfd) = open_pidfd(pid) {
        wait_pidfd(pidfd, time);
    }
}

/// A process's start time in clock ticks since boot: with the pid, that process and no other (proc_pid_stat(5), field 22).
#[must_use]
pub fn start_time(pid: i32) -> Option<u64> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name in parentheses may hold anything, blanks and parentheses too: count from the last one.
    stat.rsplit_once(')')?.1.split_whitespace().nth(19)?.parse().ok()
}

/// Which side of a fork this is.
#[derive(Debug)]
pub enum Fork {
    Parent(i32),
    Child,
}

/// Forks. Only for a single-threaded process (checked): there, the child may do anything that the parent may.
///
/// With `sibling`, the child's parent is this process's own parent (CLONE_PARENT). That is for a process which is itself the child of such a
/// fork, and so has one thread; it is not checked again, because such a helper may stand in a container's mount namespace without being
/// in its pid namespace, where /proc has no `self` for it.
pub fn fork(sibling: bool) -> io::Result<Fork> {
    if !sibling && thread_count() != 1 {
        return Err(io::Error::other("a process with threads cannot be forked"));
    }
    let flags = libc::SIGCHLD | if sibling { libc::CLONE_PARENT } else { 0 };
    // SAFETY: clone(2) without CLONE_VM and with no stack of its own is fork(2): the child gets a copy of everything. There is no other
    // thread whose locks the copy could hold: checked above, or by the fork that made this process.
    let pid = unsafe { libc::syscall(libc::SYS_clone, flags, 0, 0, 0, 0) };
    match pid {
        0 => Ok(Fork::Child),
        pid if pid > 0 => Ok(Fork::Parent(pid as i32)),
        _ => Err(io::Error::last_os_error()),
    }
}

/// How many threads this process has.
#[must_use]
pub fn thread_count() -> usize {
    std::fs::read_dir("/proc/self/task").map_or(0, Iterator::count)
}

/// The children of this process's only thread (CONFIG_PROC_CHILDREN; where a kernel lacks it, none are known).
#[must_use]
pub fn children() -> Vec<i32> {
    let list = std::fs::read_to_string("/proc/thread-self/children").unwrap_or_default();
    list.split_whitespace().filter_map(|pid| pid.parse().ok()).collect()
}

/// Sets the umask that docker's containers have, not that of the login which happened to start them; answers with the old one.
pub fn usual_umask() -> nix::sys::stat::Mode {
    nix::sys::stat::umask(nix::sys::stat::Mode::from_bits_truncate(0o022))
}

/// Ends this process at once, without running anything that is registered for its end.
pub fn exit_now(code: i32) -> ! {
    // SAFETY: _exit(2) does not return and runs no destructors.
    unsafe { libc::_exit(code) }
}

/// Gives a fresh program what programs expect: no blocked signals, SIGPIPE and all others at their defaults.
pub fn default_signals() {
    // struct sigaction of the kernel: SIG_DFL, no flags, no restorer, an empty mask.
    let default = [0u64; 4];
    for number in 1..=64 {
        // By the system call: the C library refuses 32 and 33, its own, which may be ignored all the same by whoever started us.
        // SAFETY: rt_sigaction(2) reads one zeroed structure (of at most 32 bytes), with a signal set of 8 bytes; SIG_DFL needs no code of
        // ours to live on. KILL and STOP are refused.
        unsafe { libc::syscall(libc::SYS_rt_sigaction, number, default.as_ptr(), std::ptr::null::<u64>(), 8) };
    }
    let none = nix::sys::signal::SigSet::empty();
    let _ = none.thread_set_mask();
}

/// The signal this process gets when the thread that made it ends.
pub fn set_parent_death_signal(number: i32) -> io::Result<()> {
    // SAFETY: PR_SET_PDEATHSIG takes a number.
    let result = unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, number, 0, 0, 0) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Nobody may trace this process or look into its descriptors; exec ends that.
pub fn set_undumpable() -> io::Result<()> {
    // SAFETY: PR_SET_DUMPABLE takes a number.
    let result = unsafe { libc::prctl(libc::PR_SET_DUMPABLE, 0, 0, 0, 0) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Lets every descriptor from `first` on be closed by exec.
pub fn close_on_exec_from(first: u32) -> io::Result<()> {
    // SAFETY: close_range(2) with CLOSE_RANGE_CLOEXEC closes nothing now, it sets flags.
    let result = unsafe { libc::syscall(libc::SYS_close_range, first, u32::MAX, libc::CLOSE_RANGE_CLOEXEC) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Replaces this process's program; returns only if that fails.
pub fn execve(path: &CString, args: &[CString], env: &[CString]) -> nix::Error {
    match nix::unistd::execve(path, args, env) {
        Ok(never) => match never {},
        Err(errno) => errno,
    }
}

/// Sends a descriptor over a unix socket.
pub fn send_fd(socket: BorrowedFd<'_>, fd: BorrowedFd<'_>) -> io::Result<()> {
    use nix::sys::socket::{ControlMessage, MsgFlags, sendmsg};
    let fds = [fd.as_raw_fd()];
    let bytes = [io::IoSlice::new(b"f")];
    sendmsg::<()>(socket.as_raw_fd(), &bytes, &[ControlMessage::ScmRights(&fds)], MsgFlags::MSG_NOSIGNAL, None)?;
    Ok(())
}

/// Receives one descriptor from a unix socket.
pub fn receive_fd(socket: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    use nix::sys::socket::{ControlMessageOwned, MsgFlags, recvmsg};
    let mut byte = [0; 4096];
    let mut bytes = [io::IoSliceMut::new(&mut byte)];
    let mut space = nix::cmsg_space!([RawFd; 1]);
    let message = recvmsg::<()>(socket.as_raw_fd(), &mut bytes, Some(&mut space), MsgFlags::MSG_CMSG_CLOEXEC)?;
    for control in message.cmsgs()? {
        if let ControlMessageOwned::ScmRights(fds) = control
            && let Some(&fd) = fds.first()
        {
            // SAFETY: the kernel has just installed this descriptor for this message, and nobody else has read it.
            return Ok(unsafe { OwnedFd::from_raw_fd(fd) });
        }
    }
    Err(io::ErrorKind::UnexpectedEof.into())
}
