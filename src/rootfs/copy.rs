//! A copy of a directory tree with all that belongs to it.

use std::io;
use std::path::Path;
use std::process::Command;

/// Copies what is in `from` (modes, owners, times, xattrs, links as links, holes) into the existing directory `to`, which takes over `from`'s own
/// mode and owner. By cp(1), which every host has and which knows all of that better than we would.
pub fn copy_tree(from: &Path, to: &Path) -> io::Result<()> {
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
