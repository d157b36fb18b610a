//! The container's own pid 1: a static program without any library, so that it runs in every image.
//!
//! - without arguments (a bare launch): keeps the pid namespace alive, reaps what becomes orphaned, ends at SIGTERM or SIGINT;
//! - `init PROGRAM ARG…` (`--init`): starts the program in a process group of its own, passes signals on to it, reaps orphans, and ends with
//!   the program's status (128 + the signal's number where one killed it).
//!
//! Built by build.rs for the host's architecture and embedded in gpurun.

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
}

#[cfg(target_arch = "x86_64")]
global_asm!(".globl _start", "_start:", "xor rbp, rbp", "mov rdi, rsp", "and rsp, -16", "call {start}", start = sym start);
#[cfg(target_arch = "aarch64")]
global_asm!(".globl _start", "_start:", "mov x29, xzr", "mov x0, sp", "bl {start}", start = sym start);

#[cfg(target_arch = "x86_64")]
fn call(number: usize, a: usize, b: usize, c: usize, d: usize, e: usize) -> isize {
    let result;
    // SAFETY: a system call changes no memory but what its arguments point to; every caller below passes addresses of its own live
    // variables or of the argument block that the kernel laid out. rcx and r11 are clobbered by the instruction.
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
    // SAFETY: as above: envp begins behind argv's null.
    let envp = unsafe { argv.add(argc + 1) };
    // Blocked signals reach pid 1 all the same, by sigtimedwait below: nothing is lost while it is busy.
    set_mask(!0);
    let child = if argc > 1 {
        // SAFETY: argv has argc entries before its null.
        let program = unsafe { argv.add(1) };
        begin(program, envp)
    } else {
        0
    };
    watch(child)
}

/// Starts the program; its pid.
fn begin(argv: *const usize, envp: *const usize) -> usize {
    let pid = call(nr::CLONE, SIGCHLD, 0, 0, 0, 0);
    if pid < 0 {
        exit(125);
    }
    if pid > 0 {
        return pid as usize;
    }
    call(nr::SETPGID, 0, 0, 0, 0, 0);
    // On a terminal the program becomes the foreground group; SIGTTOU is blocked here, so that this does not stop us.
    let group: i32 = call_getpid_as_group();
    call(nr::IOCTL, 0, TIOCSPGRP, &raw const group as usize, 0, 0);
    for signal in [SIGTTIN, SIGTTOU, SIGTSTP] {
        let default = [0usize; 4];
        call(nr::RT_SIGACTION, signal, default.as_ptr() as usize, 0, 8, 0);
    }
    set_mask(0);
    execute(argv, envp)
}

/// The child leads its own group, so its group's number is its pid: wait for nobody, ask getpid(2).
fn call_getpid_as_group() -> i32 {
    #[cfg(target_arch = "x86_64")]
    const GETPID: usize = 39;
    #[cfg(target_arch = "aarch64")]
    const GETPID: usize = 172;
    call(GETPID, 0, 0, 0, 0, 0) as i32
}

/// execve(2) with a search along PATH.
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

fn byte(text: *const u8, at: usize) -> u8 {
    // SAFETY: every text is ended by a NUL, and nobody reads behind it: callers stop at the first 0.
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

/// What stands behind `PATH=`, or null.
fn find_path(envp: *const usize) -> *const u8 {
    let mut at = 0;
    loop {
        // SAFETY: envp is ended by a null, at which this stops.
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

/// Writes the directory at `search` (up to `:`), a slash and the name; answers where the search goes on, or null.
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
        // SAFETY: the text goes on behind the colon, with at least its NUL.
        unsafe { search.add(at + 1) }
    }
}

/// Waits for signals for ever: reaps, passes on, and ends with the program.
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

/// The compiler calls this for large variables; there is no C library to have it from.
///
/// # Safety
/// As memset(3): `to` must be valid for `count` bytes.
#[unsafe(no_mangle)]
unsafe extern "C" fn memset(to: *mut u8, value: i32, count: usize) -> *mut u8 {
    let mut at = 0;
    while at < count {
        // SAFETY: the caller promises `count` bytes; volatile, so that the loop is not turned into a call of itself.
        unsafe { to.add(at).write_volatile(value as u8) };
        at += 1;
    }
    to
}

/// Named by the prebuilt core library, never called: panics abort.
#[unsafe(no_mangle)]
extern "C" fn rust_eh_personality() {}
