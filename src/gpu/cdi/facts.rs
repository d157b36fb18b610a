//! What gpurun knows about the CDI files of one vendor.

use std::path::Path;

/// Facts about a vendor's files. They improve hints and find stale files. A file of an unknown vendor works without.
#[derive(Debug)]
pub(in crate::gpu) struct Facts {
    /// The kind of the vendor's GPUs: `nvidia.com/gpu`.
    pub kind: &'static str,
    /// A part of the names of the vendor's files. It identifies a file that cannot be parsed.
    pub file_name: &'static str,
    /// The file that the vendor's own service maintains.
    pub service_file: &'static str,
    /// Returns the shell command that writes a file, in backticks.
    pub generate: fn(&Path) -> String,
    /// Returns the version of the loaded driver of the host below a root directory.
    pub loaded_driver: fn(&Path) -> Option<String>,
    /// Returns the version of the driver that a library with this path belongs to.
    pub driver_of: fn(&Path) -> Option<&str>,
}
