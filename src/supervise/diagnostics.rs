//! A supervisor's own diagnostics: the output of tracing, in one file for each container.
//!
//! ```text
//! /var/lib/gpurun/logs/ID.log      mode 0600; created with its first line, so that most containers have none
//! /var/lib/gpurun/logs/ID.log.1    the previous file, after a rotation
//! ```
//!
//! `GPURUN_LOG` of the command that starts the container sets the level. The default is `warn`. `gpurun rm` removes the
//! file, and so does the successful end of a `--rm` container. When a `--rm` container fails, its file is kept. Of the
//! files whose container is gone, the newest [`KEPT`] are kept. There is no lock, because a file has only one writer:
//! the running supervisor.

use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, OnceLock, PoisonError};

/// How many files of removed containers are kept.
const KEPT: usize = 20;
/// The size in bytes at which a file is rotated.
const MOST: u64 = 1 << 20;

static DIAGNOSTICS: OnceLock<Mutex<Diagnostics>> = OnceLock::new();

#[derive(Debug)]
struct Diagnostics {
    path: PathBuf,
    file: Option<(File, u64)>,
}

/// Sends this process's diagnostics, including panics, to its container's file from now on.
pub(crate) fn begin(path: PathBuf) {
    let _ = DIAGNOSTICS.set(Mutex::new(Diagnostics { path, file: None }));
    std::panic::set_hook(Box::new(|panic| tracing::error!("{panic}")));
}

/// The output of tracing: the container's file in a supervisor, standard error otherwise.
#[must_use]
pub(crate) fn writer() -> Writer {
    Writer
}

#[derive(Debug)]
pub(crate) struct Writer;

impl Write for Writer {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match DIAGNOSTICS.get() {
            Some(diagnostics) => diagnostics.lock().unwrap_or_else(PoisonError::into_inner).write(bytes),
            None => io::stderr().write(bytes),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Diagnostics {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.file.as_ref().is_some_and(|(_, size)| *size >= MOST) {
            self.file = None;
            std::fs::rename(&self.path, older(&self.path))?;
        }
        let (file, size) = match &mut self.file {
            Some(file) => file,
            none => none.insert(open(&self.path)?),
        };
        let count = file.write(bytes)?;
        *size += count as u64;
        Ok(count)
    }
}

fn open(path: &Path) -> io::Result<(File, u64)> {
    if let Some(dir) = path.parent() {
        DirBuilder::new().recursive(true).mode(0o700).create(dir)?;
        prune(dir);
    }
    let file = OpenOptions::new().append(true).create(true).mode(0o600).open(path)?;
    let size = file.metadata()?.len();
    Ok((file, size))
}

fn older(path: &Path) -> PathBuf {
    path.with_extension("log.1")
}

/// Removes a container's diagnostics.
pub(crate) fn remove(path: &Path) {
    for path in [path, &older(path)] {
        let _ = std::fs::remove_file(path);
    }
}

/// Removes the oldest files of removed containers. Errors are ignored.
fn prune(dir: &Path) {
    let containers = dir.with_file_name("containers");
    let mut gone = Vec::new();
    for item in std::fs::read_dir(dir).into_iter().flatten().flatten() {
        let path = item.path();
        let name = item.file_name().to_string_lossy().into_owned();
        let id = name.split('.').next().unwrap_or_default();
        if !containers.join(id).exists()
            && let Ok(time) = item.metadata().and_then(|metadata| metadata.modified())
        {
            gone.push((time, path));
        }
    }
    gone.sort();
    let over = gone.len().saturating_sub(KEPT);
    gone.into_iter().take(over).for_each(|(_, path)| drop(std::fs::remove_file(path)));
}

/// A hint that points to a container's diagnostics.
#[must_use]
pub(crate) fn hint(path: &Path) -> String {
    if path.exists() {
        format!("read the supervisor's diagnostics: `cat {}`", path.display())
    } else {
        format!("try again with `GPURUN_LOG=debug`, which writes the supervisor's diagnostics to `{}`", path.display())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_made_with_its_first_line_rotated_and_pruned() {
        let base = tempfile::tempdir().unwrap();
        let (dir, containers) = (base.path().join("logs"), base.path().join("containers"));
        std::fs::create_dir_all(containers.join("living")).unwrap();
        for id in ["living".to_owned()].into_iter().chain((0..30).map(|number| format!("gone{number}"))) {
            let mut diagnostics = Diagnostics { path: dir.join(format!("{id}.log")), file: None };
            assert!(!diagnostics.path.exists());
            diagnostics.write(b"line\n").unwrap();
        }
        let names: Vec<_> = std::fs::read_dir(&dir).unwrap().map(|item| item.unwrap().file_name()).collect();
        assert!(names.iter().any(|name| name == "living.log") && names.iter().any(|name| name == "gone29.log"));
        assert_eq!(names.len(), KEPT + 2, "the living one, and the new one: {names:?}");
        let mut diagnostics = Diagnostics { path: dir.join("living.log"), file: None };
        for _ in 0..3 {
            diagnostics.write(&vec![b'x'; MOST as usize]).unwrap();
        }
        let size = |path: &Path| path.metadata().unwrap().len();
        assert!(size(&diagnostics.path) <= MOST && size(&older(&diagnostics.path)) <= 2 * MOST);
        remove(&diagnostics.path);
        assert!(!diagnostics.path.exists() && !older(&diagnostics.path).exists());
    }
}
