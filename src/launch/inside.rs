//! A container's files as the container sees them, for `cp`: by descriptor, whether it runs or not.
//!
//! Of a running one it is `/proc/PID/root`, volumes and all. Of one at rest the overlay and its volumes are mounted for the while, in a mount
//! namespace of this command alone; the `launching` lock keeps everybody from starting it meanwhile.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use crate::durable::ProcessLock;
use crate::image::ImageDocument;
use crate::record::{Entry, Phase, Records};
use crate::report::Report;
use crate::rootfs::{self, HostNamespace};
use crate::store::Store;
use crate::sys::process;

/// The open root.
pub struct Inside {
    root: OwnedFd,
    mounted: Option<Mounted>,
}

struct Mounted {
    merged: PathBuf,
    host: HostNamespace,
    entry: Entry,
    /// The image stays mounted for as long as the overlay needs it.
    _lower: rootfs::images::Lower,
    _launching: ProcessLock,
}

/// Opens a container's root. The calling process must be single-threaded.
pub fn inside(root: &Path, records: &Records, entry: &Entry) -> Result<Inside, Report> {
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
        .map_err(|error| Report::new(format!("cannot make `{}`", entry.run_dir.display())).with_cause(error))?;
    let launching = entry.launching()?;
    let store = Store::open(root)?;
    let image = store.image_of(&entry.record.request.image_id)?;
    let images = records.run_dir().join("images");
    let lower = rootfs::stored::lower(&images, &store, &image)?;
    let host = rootfs::private_namespace(&images, Some(&lower.dir))?;
    let merged = entry.run_dir.join("rootfs");
    rootfs::overlay(&rootfs::Overlay {
        lower: &lower.dir,
        upper: &entry.dir.join("upper"),
        work: &entry.dir.join("work"),
        merged: &merged,
        volatile: false,
    })?;
    let fd = rootfs::open_root(&merged)?;
    let (config, _) = store.documents(&image)?;
    let document = ImageDocument::parse(&config)
        .map_err(|error| Report::from(error).under(format!("cannot use the image of `{}`", entry.record.name)))?;
    super::mounts::at_rest(root, entry, &fd, &merged, &document.config.volumes)?;
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
        // What stays is in this process's own namespace, and goes with it; the directory in /run is cleared by the next command.
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
