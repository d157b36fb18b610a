//! Limits on what an image or an archive may cost.

use crate::layer::merge;

/// Maximum memory, in bytes, for the entries of all layers of an image or a load.
pub(super) const MAX_HEADERS: usize = 768 << 20;

/// Maximum number of steps for all merges of one load, because an archive may list many images.
pub(super) const MAX_STEPS: u64 = 4 * merge::MAX_STEPS;
