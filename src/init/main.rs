//! gpurun's init, the container's pid 1: a static program without any library, so that it runs in every image.
//!
//! - Without arguments (a bare launch), it keeps the pid namespace alive, reaps orphans, and ends on SIGTERM or SIGINT.
//! - As `init PROGRAM ARG…` (`--init`), it starts the program in a new process group, forwards signals to it, reaps
//!   orphans, and ends with the program's status (128 plus the signal's number if a signal killed it).
//! - Under the name `gpurun-keeper` (on the host, beside a supervisor), it waits for the supervisor's death and then
//!   ends the container. Its arguments are the numbers of descriptors, or `-`: the supervisor's pidfd, pid 1's pidfd,
//!   and three files of the container's cgroup: `cgroup.kill`, version 1's `freezer.state`, and `cgroup.procs`.
//!
//! build.rs builds it for the host's architecture and embeds it in gpurun.

#![no_std]
#![no_main]

use core::arch::{asm, global_asm};

#[cfg(target_arch = "x86_64")]
mod nr {
    pub const RT_SIGPROCMASK: usize = 14;
    pub const IOCTL: usize = 16;
    pub const CLONE: usize = 56;
    pub const EXECVE: usize = 59;
    pub const EXIT_GROUP: usize = 231;
    pub const WAIT4: usize = 61;
    pub const KILL: usize = 62;
    pub const SETPGID: usize = 109;
    pub const RT_SIGTIMEDWAIT: usize = 128;
    pub const RT_SIGACTION: usize = 13;
    pub const WRITE: usize = 1;
    pub const PREAD: usize = 17;
    pub const NANOSLEEP: usize = 35;
    pub const PRCTL: usize = 157;
    pub const PPOLL: usize = 271;
    pub const PIDFD_SEND_SIGNAL: usize = 424;
}

#[cfg(target_arch = "aarch64")]
mod nr {
    pub const RT_SIGPROCMASK: usize = 135;
    pub const IOCTL: usize = 29;
    pub const CLONE: usize = 220;
    pub const EXECVE: usize = 221;
    pub const EXIT_GROUP: usize = 94;
    pub const WAIT4: usize = 260;
    pub const KILL: usize = 129;
    pub const SETPGID: usize = 154;
    pub const RT_SIGTIMEDWAIT: usize = 137;
    pub const RT_SIGACTION: usize = 134;
    pub const WRITE: usize = 64;
    pub const PREAD: usize = 67;
    pub const NANOSLEEP: usize = 101;
    pub const PRCTL: usize = 167;
    pub const PPOLL: usize = 73;
    pub const PIDFD_SEND_SIGNAL: usize = 424;
}

#[cfg(target_arch = "x86_64")]
global_asm!(".globl _start", "_start:", "xor rbp, rbp", "mov rdi, rsp", "and rsp, -16", "call {start}", start = sym start);
#[cfg(target_arch = "aarch64")]
global_asm!(".globl _start", "_start:", "mov x29, xzr", "mov x0, sp", "bl {start}", start = sym start);

#[cfg(target_arch = "x86_64")]
fn call(number: usize, a: usize, b: usize, c: usize, d: usize, e: usize) -> isize {
    let result;
    // SAFETY: a system call changes only the memory that its arguments point to. Every caller below passes addresses of
    // its own live variables or of the argument block that the kernel laid out. The instruction clobbers rcx and r11.
    unsafe {
        asm!("syscall", inlateout("rax") number as isize => result, in("rdi") a, in("rsi") b, in("rdx") c, in("r10") d, in("r8") e,
            lateout("rcx") _, lateout("r11") _, options(nostack));
    }
    result
}

#[cfg(target_arch = "aarch64")]
fn call(number: usize, a: usize, b: usize, c: usize, d: usize, e: usize) -> isize {
    let result;
    // SAFETY: as for x86-64.
    unsafe {
        asm!("svc 0", in("x8") number, inlateout("x0") a as isize => result, in("x1") b, in("x2") c, in("x3") d, in("x4") e,
            options(nostack));
    }
    result
}

const SIGINT: usize = 2;
const SIGTERM: usize = 15;
const SIGCHLD: usize = 17;
const SIGTSTP: usize = 20;
const SIGTTIN: usize = 21;
const SIGTTOU: usize = 22;
const SIG_SETMASK: usize = 2;
const WNOHANG: usize = 1;
const TIOCSPGRP: usize = 0x5410;
const ECHILD: isize = -10;
const EACCES: isize = -13;

fn exit(code: usize) -> ! {
    loop {
        call(nr::EXIT_GROUP, code, 0, 0, 0, 0);
    }
}

fn set_mask(mask: u64) {
    call(nr::RT_SIGPROCMASK, SIG_SETMASK, &raw const mask as usize, 0, 8, 0);
}

extern "C" fn start(stack: *const usize) -> ! {
    // SAFETY: the kernel lays out argc, then argv with a null at its end, then envp likewise.
    let (argc, argv) = unsafe { (*stack, stack.add(1)) };
    // SAFETY: as above; envp begins after argv's null.
    let envp = unsafe { argv.add(argc + 1) };
    // Signals stay blocked, and sigtimedwait below receives them. So no signal is lost while pid 1 is busy.
    set_mask(!0);
    // SAFETY: argv[0] exists if argc is not 0.
    if argc > 0 && is_named(unsafe { *argv } as *const u8, b"gpurun-keeper\0") {
        keep(argc, argv)
    }
    let child = if argc > 1 {
        // SAFETY: argv has argc entries before its null.
        let program = unsafe { argv.add(1) };
        begin(program, envp)
    } else {
        0
    };
    watch(child)
}

/// Starts the program, and returns its pid.
fn begin(argv: *const usize, envp: *const usize) -> usize {
    let pid = call(nr::CLONE, SIGCHLD, 0, 0, 0, 0);
    if pid < 0 {
        exit(125);
    }
    if pid > 0 {
        return pid as usize;
    }
    call(nr::SETPGID, 0, 0, 0, 0, 0);
    // On a terminal, the program becomes the foreground group. SIGTTOU is blocked here, so that this call does not stop
    // the process.
    let group: i32 = call_getpid_as_group();
    call(nr::IOCTL, 0, TIOCSPGRP, &raw const group as usize, 0, 0);
    for signal in [SIGTTIN, SIGTTOU, SIGTSTP] {
        let default = [0usize; 4];
        call(nr::RT_SIGACTION, signal, default.as_ptr() as usize, 0, 8, 0);
    }
    set_mask(0);
    execute(argv, envp)
}

/// Returns the pid, which is also the number of the group, because the child leads its own group.
fn call_getpid_as_group() -> i32 {
    #[cfg(target_arch = "x86_64")]
    const GETPID: usize = 39;
    #[cfg(target_arch = "aarch64")]
    const GETPID: usize = 172;
    call(GETPID, 0, 0, 0, 0, 0) as i32
}

/// Calls execve(2), with a search in PATH.
fn execute(argv: *const usize, envp: *const usize) -> ! {
    // SAFETY: argv has at least one entry.
    let name = unsafe { *argv } as *const u8;
    let mut error = 0;
    let mut path = [0u8; 4096];
    if has_slash(name) {
        error = call(nr::EXECVE, name as usize, argv as usize, envp as usize, 0, 0);
    } else {
        let mut search = find_path(envp);
        while !search.is_null() {
            let next = join(&mut path, search, name);
            let tried = call(nr::EXECVE, path.as_ptr() as usize, argv as usize, envp as usize, 0, 0);
            if tried == EACCES || error == 0 {
                error = tried;
            }
            search = next;
        }
    }
    exit(if error == EACCES { 126 } else { 127 })
}

fn is_named(text: *const u8, name: &[u8]) -> bool {
    name.iter().enumerate().all(|(at, wanted)| byte(text, at) == *wanted)
}

const SIGKILL: usize = 9;
const EINTR: isize = -4;
const POLLIN: u64 = 1;
const PR_SET_NAME: usize = 15;

/// Parses an argument as a descriptor's number.
fn descriptor(argc: usize, argv: *const usize, at: usize) -> Option<usize> {
    if at >= argc {
        return None;
    }
    // SAFETY: argv has argc entries.
    let text = unsafe { *argv.add(at) } as *const u8;
    let (mut number, mut next) = (0, 0);
    while byte(text, next) != 0 {
        if !byte(text, next).is_ascii_digit() {
            return None;
        }
        number = number * 10 + usize::from(byte(text, next) - b'0');
        next += 1;
    }
    (next > 0).then_some(number)
}

fn write(descriptor: Option<usize>, text: &[u8]) {
    if let Some(descriptor) = descriptor {
        call(nr::WRITE, descriptor, text.as_ptr() as usize, text.len(), 0, 0);
    }
}

/// Waits until the supervisor is dead, then ends the container.
fn keep(argc: usize, argv: *const usize) -> ! {
    call(nr::PRCTL, PR_SET_NAME, c"gpurun-keeper".as_ptr() as usize, 0, 0, 0);
    let [supervisor, pid_1, kill, freezer, processes] = [1, 2, 3, 4, 5].map(|at| descriptor(argc, argv, at));
    let Some(supervisor) = supervisor else { exit(125) };
    loop {
        // struct pollfd: the descriptor, the requested events, and the returned events.
        let poll = supervisor as u64 | POLLIN << 32;
        let ready = call(nr::PPOLL, &raw const poll as usize, 1, 0, 0, 8);
        if ready > 0 {
            break;
        }
        if ready != EINTR {
            exit(125);
        }
    }
    write(kill, b"1");
    if let Some(pid_1) = pid_1 {
        call(nr::PIDFD_SEND_SIGNAL, pid_1, SIGKILL, 0, 0, 0);
    }
    // Under version 1, frozen processes die only when they are thawed.
    write(freezer, b"THAWED");
    let Some(processes) = processes else { exit(0) };
    // Without its own pid namespace, processes other than pid 1 survive. Everything in the cgroup belongs to the
    // container.
    let mut rounds = 0;
    while kill_listed(processes) && rounds < 500 {
        let pause = [0u64, 10_000_000];
        call(nr::NANOSLEEP, pause.as_ptr() as usize, 0, 0, 0, 0);
        rounds += 1;
    }
    exit(0)
}

/// Kills every process that the start of `cgroup.procs` lists. Returns whether there was one.
fn kill_listed(processes: usize) -> bool {
    let mut text = [0u8; 2048];
    let length = call(nr::PREAD, processes, text.as_mut_ptr() as usize, text.len(), 0, 0);
    let (mut any, mut pid) = (false, 0);
    let mut at = 0;
    while (at as isize) < length {
        if text[at].is_ascii_digit() {
            pid = pid * 10 + usize::from(text[at] - b'0');
        } else {
            // The last number may be truncated, so only a complete line is a pid. (0 is a process of another pid
            // namespace.)
            if pid > 1 {
                call(nr::KILL, pid, SIGKILL, 0, 0, 0);
                any = true;
            }
            pid = 0;
        }
        at += 1;
    }
    any
}

fn byte(text: *const u8, at: usize) -> u8 {
    // SAFETY: every text ends with a NUL, and callers stop at the first 0, so they never read past it.
    unsafe { *text.add(at) }
}

fn has_slash(text: *const u8) -> bool {
    let mut at = 0;
    while byte(text, at) != 0 {
        if byte(text, at) == b'/' {
            return true;
        }
        at += 1;
    }
    false
}

/// Returns the text after `PATH=`, or null.
fn find_path(envp: *const usize) -> *const u8 {
    let mut at = 0;
    loop {
        // SAFETY: envp ends with a null, at which this loop stops.
        let entry = unsafe { *envp.add(at) } as *const u8;
        if entry.is_null() {
            return core::ptr::null();
        }
        let key = b"PATH=";
        let mut same = 0;
        while same < key.len() && byte(entry, same) == key[same] {
            same += 1;
        }
        if same == key.len() {
            // SAFETY: the entry is at least as long as the key.
            return unsafe { entry.add(same) };
        }
        at += 1;
    }
}

/// Writes the directory at `search` (up to `:`), a slash, and the name. Returns where the search continues, or null.
fn join(path: &mut [u8; 4096], search: *const u8, name: *const u8) -> *const u8 {
    let (mut at, mut length) = (0, 0);
    while byte(search, at) != 0 && byte(search, at) != b':' {
        if length < 4000 {
            path[length] = byte(search, at);
            length += 1;
        }
        at += 1;
    }
    path[length] = b'/';
    length += 1;
    let mut from = 0;
    while byte(name, from) != 0 && length < 4095 {
        path[length] = byte(name, from);
        length += 1;
        from += 1;
    }
    path[length] = 0;
    if byte(search, at) == 0 {
        core::ptr::null()
    } else {
        // SAFETY: after the colon, the text has at least its NUL.
        unsafe { search.add(at + 1) }
    }
}

/// Waits for signals forever: reaps orphans, forwards signals, and ends with the program.
fn watch(child: usize) -> ! {
    let all: u64 = !0;
    loop {
        let signal = call(nr::RT_SIGTIMEDWAIT, &raw const all as usize, 0, 0, 8, 0);
        match signal as usize {
            SIGCHLD => reap(child),
            SIGTERM | SIGINT if child == 0 => exit(128 + signal as usize),
            number if signal > 0 && child > 0 => {
                call(nr::KILL, child, number, 0, 0, 0);
            }
            _ => {}
        }
    }
}

fn reap(child: usize) {
    loop {
        let mut status: i32 = 0;
        let pid = call(nr::WAIT4, usize::MAX, &raw mut status as usize, WNOHANG, 0, 0);
        if pid == 0 || pid == ECHILD {
            return;
        }
        if pid as usize == child && child > 0 {
            let signal = status & 0x7f;
            exit(if signal == 0 { (status >> 8 & 0xff) as usize } else { 128 + signal as usize });
        }
    }
}

#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    exit(125)
}

/// The compiler calls memset for large variables, and there is no C library that provides it.
///
/// # Safety As for memset(3), `to` must be valid for `count` bytes.
#[unsafe(no_mangle)]
unsafe extern "C" fn memset(to: *mut u8, value: i32, count: usize) -> *mut u8 {
    let mut at = 0;
    while at < count {
        // SAFETY: the caller guarantees `count` bytes. The write is volatile, so that the compiler does not turn the
        // loop into a call to memset itself.
        unsafe { to.add(at).write_volatile(value as u8) };
        at += 1;
    }
    to
}

/// The prebuilt core library references this symbol. It is never called, because panics abort.
#[unsafe(no_mangle)]
extern "C" fn rust_eh_personality() {}
