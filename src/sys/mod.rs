//! System calls as safe functions, one file per subject. Apart from `src/init`, `unsafe` appears only here.

pub(crate) mod access;
pub(crate) mod bpf;
pub(crate) mod caps;
pub(crate) mod exe;
pub(crate) mod file;
pub(crate) mod idmap;
pub(crate) mod keyring;
pub(crate) mod lock;
pub(crate) mod loopdev;
pub(crate) mod memory;
pub(crate) mod mount;
pub(crate) mod netns;
pub(crate) mod nvml;
pub(crate) mod process;
pub(crate) mod pty;
pub(crate) mod rlimit;
pub(crate) mod seccomp;
pub(crate) mod thread;
pub(crate) mod tree;
pub(crate) mod tty;
pub(crate) mod xattr;
pub(crate) mod xattr_read;
