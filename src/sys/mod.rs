//! The only `unsafe` of the project: system calls as safe functions, one file per subject.

pub mod bpf;
pub mod caps;
pub mod exe;
pub mod file;
pub mod idmap;
pub mod loopdev;
pub mod memory;
pub mod mount;
pub mod netns;
pub mod nvml;
pub mod process;
pub mod pty;
pub mod rlimit;
pub mod seccomp;
pub mod tty;
pub mod xattr;
pub mod xattr_read;
