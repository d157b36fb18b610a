//! Copies a directory tree with all metadata.

use std::io;
use std::path::Path;
use std::process::Command;

/// Copies the contents of `from` (with modes, owners, times, xattrs, links as links, and holes) into the existing
/// directory `to`, which also gets the mode and the owner of `from`. It runs cp(1), which every host has and which
/// handles all of these cases.
pub(crate) fn copy_tree(from: &Path, to: &Path) -> io::Result<()> {
    let output = Command::new("cp")
        .args(["--archive", "--no-target-directory", "--reflink=auto", "--sparse=auto", "--"])
        .arg(from)
        .arg(to)
        .env("PATH", "/usr/local/bin:/usr/bin:/bin")
        .output()?;
    if output.status.success() {
        return Ok(());
    }
    Err(io::Error::other(String::from_utf8_lossy(&output.stderr).trim().to_owned()))
}
