//! Access to a container's files for `cp`, by descriptor and as the container sees them, whether it runs or not.
//!
//! The root of a running container is `/proc/PID/root`, with its volumes. For a stopped container, the overlay and its
//! volumes are mounted temporarily in a mount namespace private to this command. Meanwhile the `launching` lock
//! prevents other commands from starting the container.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use crate::image::ImageDocument;
use crate::record::{Entry, Launching, Phase, Records};
use crate::report::Report;
use crate::rootfs::{self, HostNamespace};
use crate::store::Store;
use crate::sys::process;

/// A container's open root.
pub(crate) struct Inside {
    root: OwnedFd,
    mounted: Option<Mounted>,
}

struct Mounted {
    merged: PathBuf,
    host: HostNamespace,
    entry: Entry,
    /// The image stays mounted for as long as the overlay needs it.
    _lower: rootfs::images::Lower,
    _launching: Launching,
}

/// Opens a container's root. The calling process must be single-threaded.
pub(crate) fn inside(root: &Path, records: &Records, entry: &Entry) -> Result<Inside, Report> {
    let state = entry.state()?;
    if matches!(state.phase, Phase::Running)
        && let Some(pid) = state.pid
        && process::start_time(pid).is_some_and(|start| Some(start) == state.pid_start)
    {
        let root = rootfs::open_root(Path::new(&format!("/proc/{pid}/root")))?;
        return Ok(Inside { root, mounted: None });
    }
    at_rest(root, records, entry)
}

fn at_rest(root: &Path, records: &Records, entry: &Entry) -> Result<Inside, Report> {
    std::fs::create_dir_all(&entry.run_dir)
        .map_err(|error| Report::new(format!("cannot create `{}`", entry.run_dir.display())).with_cause(error))?;
    let launching = entry.launching()?;
    let store = Store::open(root)?;
    let image = store.image_of(entry.record.image)?;
    let images = records.run_dir().join("images");
    let lower = rootfs::stored::lower(&images, &store, &image)?;
    let host = rootfs::private_namespace(&images, &[&lower.dir])?;
    let merged = entry.run_dir.join("rootfs");
    rootfs::overlay(&rootfs::Overlay {
        lower: &lower.dir,
        above: None,
        upper: &entry.dir.join("upper"),
        work: &entry.dir.join("work"),
        merged: &merged,
        volatile: false,
    })?;
    let fd = rootfs::open_root(&merged)?;
    let (config, _) = store.documents(&image)?;
    let document = ImageDocument::parse(&config)
        .map_err(|error| Report::from(error).under(format!("cannot use the image of `{}`", entry.record.name)))?;
    super::mounts::at_rest(root, entry, &fd, &document.config.volumes)?;
    let mounted = Mounted { merged, host, entry: entry.clone(), _lower: lower, _launching: launching };
    Ok(Inside { root: fd, mounted: Some(mounted) })
}

impl AsFd for Inside {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.root.as_fd()
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        // A mount that cannot be removed disappears with this process's mount namespace. The next command removes a
        // remaining directory in /run.
        let _ = crate::sys::mount::detach(&self.merged);
        let _ = self.host.enter();
        let _ = super::clear_run_dir(&self.entry);
    }
}

impl Drop for Inside {
    fn drop(&mut self) {
        self.mounted = None;
    }
}
