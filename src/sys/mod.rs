//! The only `unsafe` of the project: system calls as safe functions, one file per subject.

pub mod file;
pub mod idmap;
pub mod loopdev;
pub mod mount;
pub mod xattr;
pub mod xattr_read;
pub mod bpf;
