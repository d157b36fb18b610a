//! seccomp: docker's default profile, and a compiler from profiles to the kernel's classic BPF.
//!
//! The compiler is our own because compiling is the one big avoidable cost of a start (10 ms of a container engine's 20 in libseccomp):
//! this one takes a fraction of a millisecond and makes a binary search instead of a chain. Source of the program's form: seccomp(2) and
//! linux/Documentation/userspace-api/seccomp_filter.rst.

mod compile;
mod numbers;
mod profile;

pub use compile::{CompileError, Filter, Instruction, compile};
pub use profile::{Action, Compare, Condition, Profile, ProfileError, Rule};
