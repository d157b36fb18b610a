//! Sizes, CPUs and CPU sets: parse and print, no I/O.

use std::collections::BTreeSet;

/// A set of CPU or NUMA node numbers, printed as the kernel's list format (`0-3,7`).
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct CpuSet(pub BTreeSet<u32>);
