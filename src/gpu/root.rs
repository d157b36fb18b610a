//! Paths below the driver's root directory: `/`, or the tree of another driver or of a test.

use std::path::{Path, PathBuf};

use crate::rootfs;

/// Joins an absolute path of the host to its root directory.
pub(super) fn inside(root: &Path, path: &Path) -> PathBuf {
    root.join(path.strip_prefix("/").unwrap_or(path))
}

/// Resolves a path inside `root`, following symbolic links. Returns `None` if there is no such file.
pub(super) fn real(root: &Path, path: &Path) -> Option<PathBuf> {
    let root = rootfs::open_root(root).ok()?;
    let found = rootfs::resolve_in_root(&root, path).ok()??;
    let real = std::fs::read_link(crate::sys::mount::fd_path(&found)).ok()?;
    real.is_file().then_some(real)
}
