//! seccomp: docker's default profile, and a compiler from profiles to the kernel's classic BPF.
//!
//! gpurun has its own compiler because compilation is the largest avoidable cost of starting a container: libseccomp
//! takes 10 ms of the 20 ms that a container engine needs. This compiler takes a fraction of a millisecond and emits a
//! binary search instead of a linear chain. Sources for the program format: seccomp(2) and
//! linux/Documentation/userspace-api/seccomp_filter.rst.

mod compile;
mod document;
#[cfg(test)]
mod error_tests;
mod numbers;
mod profile;
mod set_id;

pub use compile::Filter;
pub(crate) use compile::compile;
pub(crate) use document::ProfileDocument;
pub(crate) use profile::{Action, Compare, Profile};
