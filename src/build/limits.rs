//! Limits on the resources of one build. A Containerfile may come from an untrusted source, and gpurun runs as root.
//!
//! The limits are far above the needs of real images. The largest official image has about 100 instructions and a
//! config of 20 KB.

/// Instructions in a Containerfile, and instructions that a build executes, including the `ONBUILD` triggers of base
/// images.
pub(super) const INSTRUCTIONS: usize = 10_000;
pub(super) const STAGES: usize = 1_000;
/// Bytes of one expanded argument. The kernel refuses arguments of more than 128 KiB (MAX_ARG_STRLEN).
pub(super) const EXPANDED: usize = 1 << 20;
/// Bytes of one expanded here-document.
pub(super) const DOCUMENT: usize = 16 << 20;
/// Character comparisons for one argument in `${name#pattern}` and similar substitutions.
pub(super) const COMPARISONS: u64 = 20_000_000;
/// Patterns in an ignore file.
pub(super) const PATTERNS: usize = 5_000;
