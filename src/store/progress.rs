//! Receivers of the progress of a load.

use crate::names::Digest;

/// Receives the progress of a load. Called from several threads.
pub(crate) trait Progress: Sync {
    /// A pipe or compressed archive must be unpacked before its images can be found. Reports further bytes that were
    /// unpacked.
    fn unpack(&self, _bytes: u64) {}
    /// Reports the layers that are not in the store yet, with their compressed sizes.
    fn start(&self, _layers: &[(Digest, u64)]) {}
    /// Reports further compressed bytes that were read of a layer.
    fn advance(&self, _layer: usize, _bytes: u64) {}
    /// Reports that a layer is complete.
    fn done(&self, _layer: usize) {}
    /// Reports that all layers are complete. The rest takes little time.
    fn finish(&self) {}
}

/// Ignores the progress.
impl Progress for () {}
