//! A file for a person: there whole, or as it was before, whoever is killed meanwhile.
//!
//! The bytes go to a file without a name (`O_TMPFILE`), which gets one only when it is whole; what is killed before leaves nothing. A file
//! system that knows no such files gets a named one, which the next save to the same place takes away.

use std::fs::{self, File};
use std::io;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};

use nix::fcntl::{AT_FDCWD, AtFlags, Flock, FlockArg, OFlag};
use nix::sys::stat::Mode;

use crate::durable;

pub struct Output {
    file: Flock<File>,
    path: PathBuf,
    /// Its name until it is whole, where it has one.
    partial: Option<PathBuf>,
}

/// Whether something is there that must be written as it is: a pipe, a device, a descriptor of this process.
pub fn is_stream(path: &Path) -> bool {
    let is_descriptor = path.starts_with("/dev") || path.starts_with("/proc");
    path.metadata().is_ok_and(|metadata| is_descriptor || !metadata.is_file())
}

impl Output {
    /// Begins to write what `path` is to be; a link's target is replaced, not the link.
    pub fn begin(path: &Path) -> io::Result<Self> {
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
        let flags = OFlag::O_TMPFILE | OFlag::O_RDWR | OFlag::O_CLOEXEC;
        let (file, partial) = match nix::fcntl::open(dir, flags, Mode::from_bits_truncate(0o666)) {
            Ok(fd) => (File::from(fd), None),
            Err(nix::Error::EOPNOTSUPP | nix::Error::EISDIR | nix::Error::EINVAL) => {
                let partial = dir.join(format!(".{name}.{}{SUFFIX}", std::process::id()));
                (File::options().read(true).write(true).create_new(true).open(&partial)?, Some(partial))
            }
            Err(errno) => return Err(errno.into()),
        };
        let file = Flock::lock(file, FlockArg::LockExclusiveNonblock).map_err(|(_, errno)| errno)?;
        Ok(Self { file, path, partial })
    }

    pub fn file(&mut self) -> &mut File {
        &mut self.file
    }

    /// It is whole: now it gets its name.
    pub fn place(mut self) -> io::Result<()> {
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
                    // No call replaces a name by a file that has none.
                    Err(nix::Error::EEXIST) => {}
                    Err(errno) => return Err(errno.into()),
                }
                let name = self.path.file_name().unwrap_or_default().to_string_lossy();
                let partial = dir.join(format!(".{name}.{}{SUFFIX}", std::process::id()));
                link(&partial)?;
                partial
            }
        };
        // From here on a failure has something to take away.
        self.partial = Some(from.clone());
        fs::rename(&from, &self.path)?;
        self.partial = None;
        durable::sync_dir(dir)
    }
}

const SUFFIX: &str = ".partial";

/// Takes away what killed saves to the same place left: nobody holds it.
fn sweep(dir: &Path, name: &str) -> io::Result<()> {
    for entry in fs::read_dir(dir)? {
        let path = entry?.path();
        let file_name = path.file_name().unwrap_or_default().to_string_lossy();
        let pid = file_name.strip_prefix(&format!(".{name}.")).and_then(|rest| rest.strip_suffix(SUFFIX));
        if pid.is_some_and(|pid| pid.parse::<u32>().is_ok())
            && let Ok(file) = File::open(&path)
            && Flock::lock(file, FlockArg::LockExclusiveNonblock).is_ok()
        {
            // Somebody else may have been quicker.
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
