//! Processes: passing descriptors, pidfds, forks of a single-threaded process, and the initial state of a new program.

use std::ffi::CString;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::process::CommandExt;
use std::process::Command;
use std::time::Duration;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

/// Takes ownership of a descriptor that this process has inherited, or returns `None` if it is not open. Call it only
/// once for each number.
#[must_use]
pub(crate) fn take_inherited_fd(fd: RawFd) -> Option<OwnedFd> {
    // SAFETY: fcntl(2) only checks the number. F_GETFD returns EBADF if it is not open.
    let flags = unsafe { libc::fcntl(fd, libc::F_GETFD) };
    if flags < 0 {
        return None;
    }
    // SAFETY: the descriptor is open, it was inherited through exec, and no other code in this process owns it, because
    // callers use each number once.
    let owned = unsafe { OwnedFd::from_raw_fd(fd) };
    // SAFETY: as above. This sets a flag of our own descriptor.
    unsafe { libc::fcntl(fd, libc::F_SETFD, libc::FD_CLOEXEC) };
    Some(owned)
}

/// Makes the command's process inherit these descriptors, with the same numbers, and no others except for its standard
/// streams. The caller of this process may have left descriptors open that must not be passed on.
pub(crate) fn pass_only(command: &mut Command, fds: &[RawFd]) {
    let fds = fds.to_vec();
    let pass = move || {
        close_on_exec_from(3)?;
        for &fd in &fds {
            // SAFETY: fcntl is async-signal-safe. It clears a flag of a descriptor that is open in the child as it is
            // in the parent.
            if unsafe { libc::fcntl(fd, libc::F_SETFD, 0) } < 0 {
                return Err(io::Error::last_os_error());
            }
        }
        Ok(())
    };
    // SAFETY: the closure only makes async-signal-safe calls and only reads memory that it owns.
    unsafe { command.pre_exec(pass) };
}

/// Makes the command's process enter a cgroup before it executes its program, through these open files.
pub(crate) fn enter_cgroup(command: &mut Command, files: Vec<std::fs::File>) {
    let enter = move || {
        for file in &files {
            // SAFETY: write(2) is async-signal-safe. It reads one byte of a constant.
            if unsafe { libc::write(file.as_raw_fd(), c"0".as_ptr().cast(), 1) } != 1 {
                return Err(io::Error::last_os_error());
            }
        }
        Ok(())
    };
    // SAFETY: the closure only makes async-signal-safe calls and only reads memory that it owns.
    unsafe { command.pre_exec(enter) };
}

/// Whether a descriptor is a socket that this process has inherited. gpurun's own descriptors have close-on-exec set.
#[must_use]
pub(crate) fn is_inherited_socket(fd: RawFd) -> bool {
    // SAFETY: fcntl(2) only checks the number. F_GETFD returns EBADF if it is not open.
    let flags = unsafe { libc::fcntl(fd, libc::F_GETFD) };
    if fd < 3 || flags < 0 || flags & libc::FD_CLOEXEC != 0 {
        return false;
    }
    // SAFETY: the descriptor is open, and it is borrowed only for this call.
    let fd = unsafe { BorrowedFd::borrow_raw(fd) };
    nix::sys::stat::fstat(fd).is_ok_and(|stat| stat.st_mode & libc::S_IFMT == libc::S_IFSOCK)
}

/// Lets the next program of this process inherit a descriptor.
pub(crate) fn keep_on_exec(fd: RawFd) -> io::Result<()> {
    // SAFETY: fcntl(2) changes a flag of a descriptor. For a number that is not open, it returns EBADF.
    if unsafe { libc::fcntl(fd, libc::F_SETFD, 0) } < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Makes reads and writes of this descriptor non-blocking.
pub(crate) fn set_nonblocking(fd: impl AsFd) -> io::Result<()> {
    use nix::fcntl::{FcntlArg, OFlag, fcntl};
    let flags = OFlag::from_bits_truncate(fcntl(fd.as_fd(), FcntlArg::F_GETFL)?);
    fcntl(fd.as_fd(), FcntlArg::F_SETFL(flags | OFlag::O_NONBLOCK))?;
    Ok(())
}

/// Creates an in-memory file with these bytes, positioned at its beginning.
pub(crate) fn memory_file(name: &std::ffi::CStr, bytes: &[u8]) -> io::Result<OwnedFd> {
    use nix::sys::memfd::{MFdFlags, memfd_create};
    let mut file = std::fs::File::from(memfd_create(name, MFdFlags::MFD_CLOEXEC)?);
    io::Write::write_all(&mut file, bytes)?;
    io::Seek::rewind(&mut file)?;
    Ok(file.into())
}

/// Sends a signal to the process behind a pidfd. Another process that has reused its pid is never hit.
pub(crate) fn signal(pidfd: impl AsFd, number: i32) -> io::Result<()> {
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

/// Opens a pidfd of a process.
pub fn open_pidfd(pid: i32) -> io::Result<OwnedFd> {
    // SAFETY: pidfd_open(2) takes two numbers.
    let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel has just created this descriptor (pidfds always have close-on-exec set).
    Ok(unsafe { OwnedFd::from_raw_fd(fd as i32) })
}

/// Waits until the process behind a pidfd has ended. Returns `false` if it has not ended within `time`.
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

/// Whether the process behind a pidfd is a child of this process.
pub(crate) fn is_child(pidfd: impl AsFd) -> bool {
    use nix::sys::wait::{Id, WaitPidFlag, waitid};
    let flags = WaitPidFlag::WEXITED | WaitPidFlag::WNOHANG | WaitPidFlag::WNOWAIT;
    waitid(Id::PIDFd(pidfd.as_fd()), flags).is_ok()
}

/// How a child has ended, if it has or does so within `time`. The child is not reaped.
pub(crate) fn end_of_child(pidfd: impl AsFd, time: Duration) -> Option<nix::sys::wait::WaitStatus> {
    use nix::sys::wait::{Id, WaitPidFlag, WaitStatus, waitid};
    wait_pidfd(&pidfd, time);
    let flags = WaitPidFlag::WEXITED | WaitPidFlag::WNOHANG | WaitPidFlag::WNOWAIT;
    waitid(Id::PIDFd(pidfd.as_fd()), flags).ok().filter(|end| *end != WaitStatus::StillAlive)
}

/// Waits until a process (which need not be a child) has ended, but at most for `time`.
pub fn wait_pid_gone(pid: i32, time: Duration) {
    if let Ok(pidfd) = open_pidfd(pid) {
        wait_pidfd(pidfd, time);
    }
}

/// The start time of a process in clock ticks since boot (proc_pid_stat(5), field 22). Together with the pid, it
/// identifies the process.
#[must_use]
pub(crate) fn start_time(pid: i32) -> Option<u64> {
    let stat = super::file::read_control(format!("/proc/{pid}/stat")).ok()?;
    // The name in parentheses may contain any character, including blanks and parentheses, so the fields are counted
    // from the last `)`.
    stat.rsplit_once(')')?.1.split_whitespace().nth(19)?.parse().ok()
}

/// Identifies the current boot of the host.
#[must_use]
pub(crate) fn boot_id() -> Option<String> {
    static BOOT: std::sync::OnceLock<Option<String>> = std::sync::OnceLock::new();
    let read = || super::file::read_control("/proc/sys/kernel/random/boot_id").ok().map(|id| id.trim().to_owned());
    BOOT.get_or_init(read).clone()
}

/// Whether a process is stopped (by SIGSTOP, for example).
#[must_use]
pub(crate) fn is_stopped(pid: i32) -> bool {
    let stat = super::file::read_control(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit_once(") ").is_some_and(|(_, rest)| rest.starts_with('T'))
}

/// The parent of a process.
#[must_use]
pub(crate) fn parent(pid: i32) -> Option<i32> {
    let stat = super::file::read_control(format!("/proc/{pid}/stat")).ok()?;
    stat.rsplit_once(')')?.1.split_whitespace().nth(1)?.parse().ok()
}

/// The side of a fork on which the caller is.
#[derive(Debug)]
pub enum Fork {
    Parent(i32),
    Child,
}

/// Forks. The process must be single-threaded (checked), so that the child may do anything that the parent may.
///
/// With `sibling`, the child's parent is this process's own parent (CLONE_PARENT). This is for a process that was
/// itself created by such a fork, and so has one thread. That is not checked again, because such a helper may be in a
/// container's mount namespace without being in its pid namespace, where /proc has no `self` for it.
pub fn fork(sibling: bool) -> io::Result<Fork> {
    if !sibling && thread_count() != 1 {
        return Err(io::Error::other("a process with threads cannot be forked"));
    }
    let flags = libc::SIGCHLD | if sibling { libc::CLONE_PARENT } else { 0 };
    // SAFETY: clone(2) without CLONE_VM and without a stack is fork(2): the child gets a copy of everything. No other
    // thread exists whose locks the copy could hold. That was checked above, or by the fork that created this process.
    let pid = unsafe { libc::syscall(libc::SYS_clone, flags, 0, 0, 0, 0) };
    match pid {
        0 => Ok(Fork::Child),
        pid if pid > 0 => Ok(Fork::Parent(pid as i32)),
        _ => Err(io::Error::last_os_error()),
    }
}

/// clone3(2) takes this flag only.
const CLONE_INTO_CGROUP: u64 = 0x2_0000_0000;

/// Forks like [`fork`], with the child in the cgroup of version 2 whose directory is open as `cgroup`. The process must
/// be single-threaded (checked), also with `sibling`.
pub(crate) fn fork_into(cgroup: BorrowedFd<'_>, sibling: bool) -> io::Result<Fork> {
    if thread_count() != 1 {
        return Err(io::Error::other("a process with threads cannot be forked"));
    }
    // SAFETY: the structure consists of numbers, for which zero is valid.
    let mut args: libc::clone_args = unsafe { std::mem::zeroed() };
    args.flags = CLONE_INTO_CGROUP;
    if sibling {
        // The signal is that of this process.
        args.flags |= libc::CLONE_PARENT as u64;
    } else {
        args.exit_signal = libc::SIGCHLD as u64;
    }
    args.cgroup = u64::from(cgroup.as_raw_fd().cast_unsigned());
    // SAFETY: as in `fork`. The kernel reads the structure, whose size is passed. The descriptor is open.
    let pid = unsafe { libc::syscall(libc::SYS_clone3, &raw const args, size_of::<libc::clone_args>()) };
    match pid {
        0 => Ok(Fork::Child),
        pid if pid > 0 => Ok(Fork::Parent(pid as i32)),
        _ => Err(io::Error::last_os_error()),
    }
}

/// The number of threads of this process. Its directory of threads has one link for each, besides two of its own.
#[must_use]
pub(crate) fn thread_count() -> usize {
    use std::os::unix::fs::MetadataExt;
    std::fs::metadata("/proc/self/task").map_or(0, |metadata| metadata.nlink().saturating_sub(2) as usize)
}

/// The children of this process's only thread. Without CONFIG_PROC_CHILDREN in the kernel, the list is empty.
#[must_use]
pub fn children() -> Vec<i32> {
    let list = super::file::read_control("/proc/thread-self/children").unwrap_or_default();
    list.split_whitespace().filter_map(|pid| pid.parse().ok()).collect()
}

/// Makes this process the parent of its descendants whose own parents end (prctl(2), PR_SET_CHILD_SUBREAPER).
pub(crate) fn adopt_orphans() -> io::Result<()> {
    // SAFETY: this prctl(2) option takes a number.
    let done = unsafe { libc::prctl(libc::PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) };
    if done == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Kills and reaps all children of this process's only thread, within `time`. After [`adopt_orphans`], these are in the
/// end all of its descendants.
pub(crate) fn kill_children(time: Duration) {
    let end = std::time::Instant::now() + time;
    loop {
        let children = children();
        if children.is_empty() || std::time::Instant::now() > end {
            return;
        }
        for child in children.into_iter().map(nix::unistd::Pid::from_raw) {
            let _ = nix::sys::signal::kill(child, nix::sys::signal::Signal::SIGKILL);
            let _ = nix::sys::wait::waitpid(child, Some(nix::sys::wait::WaitPidFlag::WNOHANG));
        }
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// Sets the umask that docker's containers have, instead of that of the login session that starts them. Returns the old
/// one.
pub(crate) fn usual_umask() -> nix::sys::stat::Mode {
    nix::sys::stat::umask(nix::sys::stat::Mode::from_bits_truncate(0o022))
}

/// Sets the umask of a container's process. `None` means the usual one.
pub(crate) fn set_umask(mask: Option<u32>) {
    nix::sys::stat::umask(nix::sys::stat::Mode::from_bits_truncate(mask.unwrap_or(0o022)));
}

/// The umask of this program's caller, or `NOT_CHOSEN` if [`choose_umask`] was not called.
static CALLER_UMASK: std::sync::atomic::AtomicU32 = std::sync::atomic::AtomicU32::new(NOT_CHOSEN);
const NOT_CHOSEN: u32 = u32::MAX;

/// Makes the modes of gpurun's files independent of the caller's umask. Call it once, before any file is created. With
/// the caller's `umask 077`, a container's users could not read its /etc/hosts.
pub(crate) fn choose_umask() {
    CALLER_UMASK.store(usual_umask().bits(), std::sync::atomic::Ordering::Relaxed);
}

/// Restores the caller's umask for as long as this value lives, for files that the caller owns (an exported archive,
/// for example).
#[derive(Debug)]
pub(crate) struct CallerUmask(Option<nix::sys::stat::Mode>);

impl CallerUmask {
    #[must_use]
    pub(crate) fn enter() -> Self {
        let caller = match CALLER_UMASK.load(std::sync::atomic::Ordering::Relaxed) {
            NOT_CHOSEN => return Self(None),
            bits => nix::sys::stat::Mode::from_bits_truncate(bits),
        };
        Self(Some(nix::sys::stat::umask(caller)))
    }
}

impl Drop for CallerUmask {
    fn drop(&mut self) {
        if let Some(before) = self.0 {
            nix::sys::stat::umask(before);
        }
    }
}

/// Ends this process immediately, without running exit handlers.
pub fn exit_now(code: i32) -> ! {
    // SAFETY: _exit(2) does not return and runs no destructors.
    unsafe { libc::_exit(code) }
}

/// Sets the signal state that a new program expects: no blocked signals, and no ignored ones, including SIGPIPE.
/// execve(2) resets the handlers.
pub fn default_signals() {
    // The kernel's struct sigaction: SIG_DFL, no flags, no restorer, an empty mask.
    let default = [0u64; 4];
    // Where /proc does not show this process, every signal may be ignored.
    let ignored = ignored_signals().unwrap_or(u64::MAX);
    for number in (1..=64).filter(|number| ignored >> (number - 1) & 1 == 1) {
        // The raw system call is used because the C library refuses 32 and 33, its own signals, which the caller may
        // have ignored as well.
        // SAFETY: rt_sigaction(2) reads one zeroed structure (of at most 32 bytes), with a signal set of 8 bytes.
        // SIG_DFL refers to no code of ours. The kernel refuses KILL and STOP.
        unsafe { libc::syscall(libc::SYS_rt_sigaction, number, default.as_ptr(), std::ptr::null::<u64>(), 8) };
    }
    let none = nix::sys::signal::SigSet::empty();
    let _ = none.thread_set_mask();
}

/// The signals that this process ignores: bit 0 is signal 1.
fn ignored_signals() -> Option<u64> {
    let status = super::file::read_control("/proc/self/status").ok()?;
    let digits = status.lines().find_map(|line| line.strip_prefix("SigIgn:"))?;
    u64::from_str_radix(digits.trim(), 16).ok()
}

/// Ignores a signal.
pub fn ignore_signal(number: i32) {
    // SAFETY: SIG_IGN refers to no code of ours.
    unsafe { libc::signal(number, libc::SIG_IGN) };
}

/// Sets the dispositions that every gpurun process needs, whatever it has inherited. The exit status of children must
/// be available (an ignored SIGCHLD discards it), and a write beyond RLIMIT_FSIZE must be an error (SIGXFSZ would kill
/// the process). Root also lifts that limit, because it is meant for the caller's files and not for gpurun's.
pub(crate) fn choose_dispositions() {
    // SAFETY: SIG_DFL refers to no code of ours.
    unsafe { libc::signal(libc::SIGCHLD, libc::SIG_DFL) };
    ignore_signal(libc::SIGXFSZ);
    super::rlimit::lift_file_size();
}

/// Sets the signal that this process gets when the thread that created it ends.
pub(crate) fn set_parent_death_signal(number: i32) -> io::Result<()> {
    // SAFETY: PR_SET_PDEATHSIG takes a number.
    let result = unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, number, 0, 0, 0) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Makes the kernel kill the command's process when the calling thread ends, also if that happens before the process
/// executes its program.
pub(crate) fn end_with_parent(command: &mut Command) {
    let parent = std::process::id() as i32;
    let bind = move || {
        set_parent_death_signal(libc::SIGKILL)?;
        if nix::unistd::getppid().as_raw() == parent { Ok(()) } else { Err(io::Error::from_raw_os_error(libc::ESRCH)) }
    };
    // SAFETY: prctl(2) and getppid(2) are async-signal-safe, and the closure owns its memory.
    unsafe { command.pre_exec(bind) };
}

/// Prevents other processes from tracing this process and from accessing its descriptors, until the next exec.
pub(crate) fn set_undumpable() -> io::Result<()> {
    // SAFETY: PR_SET_DUMPABLE takes a number.
    let result = unsafe { libc::prctl(libc::PR_SET_DUMPABLE, 0, 0, 0, 0) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Sets close-on-exec for every descriptor from `first` on.
pub(crate) fn close_on_exec_from(first: u32) -> io::Result<()> {
    // SAFETY: close_range(2) with CLOSE_RANGE_CLOEXEC closes nothing now. It only sets flags.
    let result = unsafe { libc::syscall(libc::SYS_close_range, first, u32::MAX, libc::CLOSE_RANGE_CLOEXEC) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Replaces this process's program. Returns only if that fails.
pub(crate) fn execve(path: &CString, args: &[CString], env: &[CString]) -> nix::Error {
    match nix::unistd::execve(path, args, env) {
        Ok(never) => match never {},
        Err(errno) => errno,
    }
}

/// Sends a descriptor over a unix socket.
pub(crate) fn send_fd(socket: BorrowedFd<'_>, fd: BorrowedFd<'_>) -> io::Result<()> {
    use nix::sys::socket::{ControlMessage, MsgFlags, sendmsg};
    let fds = [fd.as_raw_fd()];
    let bytes = [io::IoSlice::new(b"f")];
    sendmsg::<()>(socket.as_raw_fd(), &bytes, &[ControlMessage::ScmRights(&fds)], MsgFlags::MSG_NOSIGNAL, None)?;
    Ok(())
}

/// Receives one descriptor from a unix socket.
pub(crate) fn receive_fd(socket: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    use nix::sys::socket::{ControlMessageOwned, MsgFlags, recvmsg};
    let mut byte = [0; 4096];
    let mut bytes = [io::IoSliceMut::new(&mut byte)];
    let mut space = nix::cmsg_space!([RawFd; 1]);
    let message = recvmsg::<()>(socket.as_raw_fd(), &mut bytes, Some(&mut space), MsgFlags::MSG_CMSG_CLOEXEC)?;
    for control in message.cmsgs()? {
        if let ControlMessageOwned::ScmRights(fds) = control
            && let Some(&fd) = fds.first()
        {
            // SAFETY: the kernel has just created this descriptor for this message, and no other code has read it.
            return Ok(unsafe { OwnedFd::from_raw_fd(fd) });
        }
    }
    Err(io::ErrorKind::UnexpectedEof.into())
}
