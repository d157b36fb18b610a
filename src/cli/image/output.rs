//! An output file that is replaced atomically: it is either complete or unchanged, even if gpurun is killed.
//!
//! The data is written to an unnamed file (`O_TMPFILE`) that gets its name only when it is complete, so a killed
//! process leaves nothing behind. On a file system without such files, a named temporary file is used. The next save to
//! the same path removes leftovers.

use std::fs::{self, File};
use std::io;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};

use nix::fcntl::{AT_FDCWD, AtFlags, OFlag};
use nix::sys::stat::Mode;

use crate::durable;
use crate::sys::lock::{Flock, FlockArg};
use crate::sys::process::CallerUmask;

pub(super) struct Output {
    file: Flock,
    path: PathBuf,
    /// The temporary name until the file is complete, if it has one.
    partial: Option<PathBuf>,
}

/// Returns whether the path must be written to directly: a pipe, a device, or a descriptor of this process.
pub(super) fn is_stream(path: &Path) -> bool {
    let is_descriptor = path.starts_with("/dev") || path.starts_with("/proc");
    path.metadata().is_ok_and(|metadata| is_descriptor || !metadata.is_file())
}

impl Output {
    /// Starts to write the file. If `path` is a link, its target is replaced and not the link.
    pub(super) fn begin(path: &Path) -> io::Result<Self> {
        let path = match path.symlink_metadata() {
            Ok(metadata) if metadata.is_symlink() => path.canonicalize()?,
            _ => path.to_owned(),
        };
        let name = path.file_name().ok_or_else(|| io::Error::from(io::ErrorKind::IsADirectory))?.to_string_lossy();
        let dir = match path.parent() {
            Some(dir) if dir != Path::new("") => dir,
            _ => Path::new("."),
        };
        sweep(dir, &name)?;
        let _umask = CallerUmask::enter();
        let flags = OFlag::O_TMPFILE | OFlag::O_RDWR | OFlag::O_CLOEXEC;
        let (file, partial) = match nix::fcntl::open(dir, flags, Mode::from_bits_truncate(0o666)) {
            Ok(fd) => (File::from(fd), None),
            Err(nix::Error::EOPNOTSUPP | nix::Error::EISDIR | nix::Error::EINVAL) => {
                let partial = dir.join(format!(".{name}.{}{SUFFIX}", std::process::id()));
                (File::options().read(true).write(true).create_new(true).open(&partial)?, Some(partial))
            }
            Err(errno) => return Err(errno.into()),
        };
        let file = Flock::lock(file, FlockArg::ExclusiveNonblock)?;
        Ok(Self { file, path, partial })
    }

    pub(super) fn file(&mut self) -> &mut File {
        &mut self.file
    }

    /// Gives the complete file its name.
    pub(super) fn rename_into_place(mut self) -> io::Result<()> {
        self.file.sync_all()?;
        let dir = self.path.parent().filter(|dir| *dir != Path::new("")).unwrap_or(Path::new("."));
        let from = match self.partial.clone() {
            Some(partial) => partial,
            None => {
                let link = |to: &Path| {
                    let own = format!("/proc/self/fd/{}", self.file.as_raw_fd());
                    nix::unistd::linkat(AT_FDCWD, own.as_str(), AT_FDCWD, to, AtFlags::AT_SYMLINK_FOLLOW)
                };
                match link(&self.path) {
                    Ok(()) => return durable::sync_dir(dir),
                    // No system call replaces an existing name with an unnamed file.
                    Err(nix::Error::EEXIST) => {}
                    Err(errno) => return Err(errno.into()),
                }
                let name = self.path.file_name().unwrap_or_default().to_string_lossy();
                let partial = dir.join(format!(".{name}.{}{SUFFIX}", std::process::id()));
                link(&partial)?;
                partial
            }
        };
        // From here on, a failure must remove the temporary file.
        self.partial = Some(from.clone());
        fs::rename(&from, &self.path)?;
        self.partial = None;
        durable::sync_dir(dir)
    }
}

const SUFFIX: &str = ".partial";

/// Removes the leftovers of killed saves to the same path. A leftover is recognized by its free lock.
fn sweep(dir: &Path, name: &str) -> io::Result<()> {
    for entry in fs::read_dir(dir)? {
        let path = entry?.path();
        let file_name = path.file_name().unwrap_or_default().to_string_lossy();
        let pid = file_name.strip_prefix(&format!(".{name}.")).and_then(|rest| rest.strip_suffix(SUFFIX));
        if pid.is_some_and(|pid| pid.parse::<u32>().is_ok())
            && let Ok(file) = File::open(&path)
            && Flock::lock(file, FlockArg::ExclusiveNonblock).is_ok()
        {
            // Another process may have removed it first.
            let _ = fs::remove_file(&path);
        }
    }
    Ok(())
}

impl Drop for Output {
    fn drop(&mut self) {
        if let Some(partial) = &self.partial {
            let _ = fs::remove_file(partial);
        }
    }
}
