//! The only `unsafe` of the project: system calls as safe functions, one file per subject.

pub mod mount;
