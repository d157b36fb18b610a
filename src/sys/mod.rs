//! The only `unsafe` of the project: system calls as safe functions, one file per subject.

pub mod loopdev;
pub mod mount;
pub mod xattr_read;
