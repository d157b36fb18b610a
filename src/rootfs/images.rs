//! Image mounts: one per image and host, shared by the image's containers and leased with `flock`.
//!
//! Two mounts of one index would be two superblocks with two page caches. So an image is mounted once, in the host's
//! namespace, and is the lower directory of every container's overlay. The mount is nosuid and nodev, in a directory
//! that only root can enter, so that no user of the host can run a setuid program of an image. An overlay does not
//! inherit these flags.
//!
//! A lease is a shared lock on `<chain>.lease`. It is held for as long as its descriptor is open (init inherits the
//! descriptor, and dies with its supervisor). A process that gets this lock exclusively may unmount the image. All
//! mounts are made and removed under `.lock`, which takes a millisecond. The lease file contains the path of the index:
//! a mount whose index is gone is stale.
//!
//! An image is made available in the first of these ways that works:
//! 1. a mount of the index directly from the files (Linux 6.12 with `EROFS_FS_BACKED_BY_FILE`; the files must be on a
//!    disk, not a tmpfs);
//! 2. a mount of the index on loop devices (Linux 6.4);
//! 3. a plain directory, which the caller renders from the same tree.
//!
//! Trying is not enough for the first way, so it also requires a kernel version with two fixes. Before 6.12.80,
//! 6.18.21, 6.19.11 and 7.0, a reader that is killed during a read (by the OOM killer, for example) can leave zeros
//! instead of file data in the page cache that all containers of the image share ("erofs: set fileio bio failed in
//! short read case"). And `directio` can use freed memory (CVE-2026-23224, fixed a little earlier). Loop devices have
//! neither bug.
//!
//! Double caching: a file-backed mount reads the tars through their own page cache and then keeps pages of its own.
//! Reading 200 MB then uses 400 MB of the reader's memory limit. The mount option `directio` bypasses the page cache of
//! the tars. It requires the disk to support an alignment of 512 bytes, so this is first tried on the tars themselves:
//! on a disk with sectors of 4096 bytes, double caching is better than an I/O error.

use std::fs::{DirBuilder, File, OpenOptions};
use std::io;
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{DirBuilderExt, FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use nix::errno::Errno;

use crate::durable::FileLock;
use crate::layer::erofs;
use crate::report::{Explain, Report};
use crate::store::StoreError;
use crate::sys::lock::{Flock, FlockArg};
use crate::sys::loopdev;
use crate::sys::mount::{self, Attr, FsContext, FsError};

/// An image to mount.
pub(crate) struct Image<'a> {
    /// The directory for mounts and leases (`/run/gpurun/images`).
    pub images: &'a Path,
    /// The 64 hex digits of the chain ID, which are the name of the mount.
    pub chain: &'a str,
    /// The index that [`erofs::write`] wrote.
    pub index: &'a Path,
    /// The tars in the order of the tree's sources, then the side file if there is one. They are open, so that the
    /// files that were checked are the ones that are mounted.
    pub devices: &'a [File],
}

/// How an image's files are made available.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Backing {
    /// EROFS on files. `direct` bypasses the page cache of the tars.
    Files { direct: bool },
    /// EROFS on loop devices.
    Loop,
    /// A rendered directory.
    Directory,
    /// An existing mount, of either kind.
    Shared,
}

/// A lower directory for an overlay. Keep this value for as long as the container lives.
#[derive(Debug)]
pub(crate) struct Lower {
    pub dir: PathBuf,
    #[cfg_attr(not(test), expect(dead_code, reason = "the tests distinguish the kinds of mounts"))]
    pub backing: Backing,
    #[expect(dead_code, reason = "its lock is released when the value is dropped")]
    pub lease: Lease,
}

/// Keeps an image's mount, or its rendered directory, in place.
#[derive(Debug)]
pub(crate) struct Lease {
    file: Flock,
}

impl Lease {
    /// Records which index is mounted.
    fn name(&self, index: &Path) -> io::Result<()> {
        self.file.set_len(0)?;
        self.file.write_all_at(index.as_os_str().as_bytes(), 0)
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        // The mtime is the time of the last use, from which `sweep` computes the idle time. An error only affects that
        // time.
        let _ = self.file.set_modified(SystemTime::now());
    }
}

#[derive(Debug, thiserror::Error)]
pub(crate) enum MountError {
    #[error("cannot prepare `{}` for image mounts", .path.display())]
    Prepare { path: PathBuf, source: io::Error },
    #[error("cannot open the image's file `{}`", .path.display())]
    Missing { path: PathBuf, source: io::Error },
    #[error("cannot open the image's files")]
    Files { source: StoreError },
    #[error("the index `{}` does not match its image: it needs {wants} files, and there are {given}", .index.display())]
    Mismatch { index: PathBuf, wants: u16, given: usize },
    #[error("`{}` is not an image's index", .index.display())]
    NotAnIndex { index: PathBuf },
    #[error("this kernel cannot mount the image `{}`, and it could not be unpacked instead: {}", .chain, .render.message)]
    Render { chain: String, source: FsError, render: Box<Report> },
    #[error("cannot mount the image on `{}`", .target.display())]
    Attach { target: PathBuf, source: io::Error },
}

impl Explain for MountError {
    fn hint(&self) -> Option<String> {
        match self {
            Self::Missing { .. } | Self::Mismatch { .. } | Self::NotAnIndex { .. } => {
                Some("load the image again with `gpurun image load`; the store is damaged".into())
            }
            Self::Files { source: StoreError::Io { cause, .. } } if cause.kind() == io::ErrorKind::NotFound => {
                Some("load the image again with `gpurun image load`; the store is damaged".into())
            }
            Self::Files { source } => source.hint(),
            Self::Render { render, .. } => render.hint.clone(),
            Self::Prepare { .. } | Self::Attach { .. } => None,
        }
    }
}

/// Mounts an image, or uses the existing mount, and leases it. Call it in the host's mount namespace. `render` returns
/// a directory with the same tree, for kernels that cannot mount an index. While it runs, only the lease is held.
pub(crate) fn mount(image: &Image<'_>, render: impl FnOnce() -> Result<PathBuf, Report>) -> Result<Lower, MountError> {
    let prepare = |source| MountError::Prepare { path: image.images.to_owned(), source };
    DirBuilder::new().recursive(true).mode(0o700).create(image.images).map_err(prepare)?;
    let lock = FileLock::exclusive(&image.images.join(".lock")).map_err(prepare)?;
    // This never waits: the exclusive lock is held only under `.lock`.
    let lease = Lease { file: open_lease(image.images, image.chain, FlockArg::Shared).map_err(prepare)? };
    let target = image.images.join(image.chain);
    if is_mounted(&target) {
        return Ok(Lower { dir: target, backing: Backing::Shared, lease });
    }
    let source = match mount_index(image.index, image.devices, MountMode::ALL)? {
        Ok((mounted, backing)) => {
            let attach = |source| MountError::Attach { target: target.clone(), source };
            DirBuilder::new().recursive(true).mode(0o700).create(&target).map_err(attach)?;
            let point = File::open(&target).map_err(attach)?;
            // Record the index before the mount, so that every mount that another process finds has a recorded index.
            lease.name(image.index).map_err(prepare)?;
            mount::attach(mounted.as_fd(), point.as_fd()).map_err(attach)?;
            return Ok(Lower { dir: target, backing, lease });
        }
        Err(refusal) => refusal,
    };
    drop(lock);
    let dir = render().map_err(|render| MountError::Render {
        chain: image.chain.to_owned(),
        source,
        render: Box::new(render),
    })?;
    Ok(Lower { dir, backing: Backing::Directory, lease })
}

/// Exclusive access to an image: the image is not in use, and no process can start to use it. Hold it while the
/// rendered directory is removed.
#[derive(Debug)]
pub(crate) struct ExclusiveLease {
    // The lease is dropped first, because a process that holds `.lock` must never find the lease locked exclusively.
    _lease: Flock,
    _lock: FileLock,
}

/// Takes the lease of `chain` exclusively. Returns `None` if the image is leased or kept.
pub(crate) fn lease_exclusively(images: &Path, chain: &str) -> io::Result<Option<ExclusiveLease>> {
    DirBuilder::new().recursive(true).mode(0o700).create(images)?;
    let lock = FileLock::exclusive(&images.join(".lock"))?;
    match open_lease(images, chain, FlockArg::ExclusiveNonblock) {
        Ok(_) if is_kept(images, chain) => Ok(None),
        Ok(lease) => Ok(Some(ExclusiveLease { _lease: lease, _lock: lock })),
        Err(error) if error.raw_os_error() == Some(libc::EWOULDBLOCK) => Ok(None),
        Err(error) => Err(error),
    }
}

/// Keeps an image's mount without a lease (for `gpurun image mount`), until [`release`]. Call it while holding a lease.
pub(crate) fn keep(images: &Path, chain: &str) -> io::Result<()> {
    File::create(images.join(format!("{chain}.kept"))).map(drop)
}

/// Reverts [`keep`]. Returns false if the image was not kept.
pub(crate) fn release(images: &Path, chain: &str) -> io::Result<bool> {
    match std::fs::remove_file(images.join(format!("{chain}.kept"))) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error),
    }
}

/// Whether an image's mount is kept. If that cannot be determined, it counts as kept.
pub(crate) fn is_kept(images: &Path, chain: &str) -> bool {
    images.join(format!("{chain}.kept")).try_exists().unwrap_or(true)
}

/// Unmounts every image that is neither leased nor kept and that was not used for `idle`, or whose index is gone. An
/// index that is gone means that the image was removed, and the space of its files is freed only by the unmount. (The
/// removal itself unmounts the image, but it may be killed before, and it cannot unmount an image that a step of a
/// build leases.) Returns the chain IDs of the unmounted images. Call it in the host's namespace. A mount that a
/// process on the host uses is left for the next sweep. The cost is one check per lease.
pub(crate) fn sweep(images: &Path, idle: Duration) -> io::Result<Vec<String>> {
    let leases = match leases(images) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        other => other?,
    };
    let (mut gone, mut failed) = (Vec::new(), None);
    for chain in leases {
        match sweep_idle(images, &chain, idle) {
            Ok(true) => gone.push(chain),
            Ok(false) => {}
            // An error does not affect the other images.
            Err(error) => failed = failed.or(Some(error)),
        }
    }
    failed.map_or(Ok(gone), Err)
}

fn sweep_idle(images: &Path, chain: &str, idle: Duration) -> io::Result<bool> {
    let path = images.join(format!("{chain}.lease"));
    let is_idle = || -> io::Result<bool> {
        // If the mtime is in the future, the clock was set back, and the mount counts as idle.
        let age = SystemTime::now().duration_since(path.metadata()?.modified()?).unwrap_or(idle);
        Ok(age >= idle || is_index_gone(&path))
    };
    // On an error, another process has swept the image in the meantime.
    if !is_idle().unwrap_or(false) {
        return Ok(false);
    }
    let _lock = FileLock::exclusive(&images.join(".lock"))?;
    let lease = match open_lease(images, chain, FlockArg::ExclusiveNonblock) {
        Err(error) if error.raw_os_error() == Some(libc::EWOULDBLOCK) => return Ok(false),
        other => other?,
    };
    if is_kept(images, chain) || !is_idle()? || !unmount_leased(images, chain)? {
        return Ok(false);
    }
    drop(lease);
    Ok(true)
}

/// Whether the index that a lease names is gone. If that cannot be determined, or if an older gpurun made the lease, it
/// counts as present.
fn is_index_gone(lease: &Path) -> bool {
    let Ok(named) = std::fs::read(lease) else { return false };
    let index = Path::new(std::ffi::OsStr::from_bytes(&named));
    index.is_absolute() && matches!(index.try_exists(), Ok(false))
}

/// Unmounts one image now, unless it is leased, kept or in use.
pub(crate) fn sweep_one(images: &Path, chain: &str) -> io::Result<bool> {
    if !images.join(format!("{chain}.lease")).try_exists().unwrap_or(true) {
        return Ok(false);
    }
    let _lock = FileLock::exclusive(&images.join(".lock"))?;
    match open_lease(images, chain, FlockArg::ExclusiveNonblock) {
        Err(error) if error.raw_os_error() == Some(libc::EWOULDBLOCK) => Ok(false),
        Err(error) => Err(error),
        Ok(_lease) if is_kept(images, chain) => Ok(false),
        Ok(_lease) => unmount_leased(images, chain),
    }
}

/// The chain IDs that have a lease file.
fn leases(images: &Path) -> io::Result<Vec<String>> {
    let mut chains = Vec::new();
    for entry in std::fs::read_dir(images)? {
        let name = entry?.file_name();
        chains.extend(name.to_str().and_then(|name| name.strip_suffix(".lease")).map(str::to_owned));
    }
    Ok(chains)
}

/// Removes the mount and the lease file. Returns false if the mount is in use. The caller holds the lease exclusively,
/// and `.lock`.
fn unmount_leased(images: &Path, chain: &str) -> io::Result<bool> {
    let target = images.join(chain);
    match mount::unmount(&target) {
        Ok(()) => {}
        Err(error) if error.raw_os_error() == Some(libc::EBUSY) => return Ok(false),
        // Not mounted any more, or never mounted, like an image that was rendered.
        Err(error) if matches!(error.raw_os_error(), Some(libc::EINVAL | libc::ENOENT)) => {}
        Err(error) => return Err(error),
    }
    match std::fs::remove_dir(&target) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    std::fs::remove_file(images.join(format!("{chain}.lease")))?;
    Ok(true)
}

fn open_lease(images: &Path, chain: &str, how: FlockArg) -> io::Result<Flock> {
    let path = images.join(format!("{chain}.lease"));
    let file = OpenOptions::new().read(true).write(true).create(true).truncate(false).mode(0o600).open(path)?;
    Flock::lock(file, how)
}

fn is_mounted(target: &Path) -> bool {
    nix::sys::statfs::statfs(target).is_ok_and(|stat| stat.filesystem_type().0 as u32 == erofs::MAGIC)
}

/// A way to mount an index.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum MountMode {
    Direct,
    Buffered,
    Loop,
}

impl MountMode {
    pub(crate) const ALL: &'static [Self] = &[Self::Direct, Self::Buffered, Self::Loop];
}

type Mounted = (std::os::fd::OwnedFd, Backing);

/// Creates a mount of the index that is not attached yet, in the first of `mount_modes` that works. The inner error is the
/// kernel's last refusal.
pub(crate) fn mount_index(
    index: &Path,
    devices: &[File],
    mount_modes: &[MountMode],
) -> Result<Result<Mounted, FsError>, MountError> {
    let open = |path: &Path| File::open(path).map_err(|source| MountError::Missing { path: path.to_owned(), source });
    let index_file = open(index)?;
    let wants = erofs::device_count(&index_file)
        .map_err(|source| MountError::Missing { path: index.to_owned(), source })?
        .ok_or_else(|| MountError::NotAnIndex { index: index.to_owned() })?;
    if usize::from(wants) != devices.len() {
        return Err(MountError::Mismatch { index: index.to_owned(), wants, given: devices.len() });
    }
    let mut refusal = FsError { source_errno: Errno::EOPNOTSUPP.into(), messages: Vec::new() };
    let sound = reads_files_soundly(&kernel_release());
    for mount_mode in mount_modes {
        let tried = match mount_mode {
            MountMode::Direct | MountMode::Buffered if !sound => continue,
            MountMode::Direct if !devices.iter().all(takes_direct_reads) => continue,
            MountMode::Direct => mount_files((index, &index_file), devices, true),
            MountMode::Buffered => mount_files((index, &index_file), devices, false),
            MountMode::Loop => mount_loops(&index_file, devices),
        };
        match tried {
            Ok(mounted) => {
                let backing = match mount_mode {
                    MountMode::Direct => Backing::Files { direct: true },
                    MountMode::Buffered => Backing::Files { direct: false },
                    MountMode::Loop => Backing::Loop,
                };
                return Ok(Ok((mounted, backing)));
            }
            Err(error) => {
                tracing::debug!(%error, ?mount_mode, "the kernel refuses this mount of the index");
                refusal = error;
            }
        }
    }
    Ok(Err(refusal))
}

fn kernel_release() -> String {
    nix::sys::utsname::uname().map(|name| name.release().to_string_lossy().into_owned()).unwrap_or_default()
}

/// Whether a kernel release has the two fixes that the module's header describes. A distribution's kernel may have them
/// under an older version number. It then only loses some speed.
fn reads_files_soundly(release: &str) -> bool {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map(|part| part.parse::<u32>().unwrap_or(0));
    let mut next = || numbers.next().unwrap_or(0);
    match (next(), next(), next()) {
        (6, 12, patch) => patch >= 80,
        (6, 18, patch) => patch >= 21,
        (6, 19, patch) => patch >= 11,
        (major, ..) => major >= 7,
    }
}

fn erofs_context() -> Result<FsContext, FsError> {
    FsContext::open(c"erofs").map_err(|source_errno| FsError { source_errno, messages: Vec::new() })
}

fn mount_files(index: (&Path, &File), devices: &[File], direct: bool) -> Result<std::os::fd::OwnedFd, FsError> {
    // Use the index's real path if possible, because the mount table shows it. The devices do not appear there. They
    // are passed by descriptor, so that the kernel uses the files that were checked, whatever their paths refer to now.
    let source = if mount::is_plain(index.0) { index.0.to_owned() } else { mount::fd_path(index.1) };
    let context = erofs_context()?;
    context.flag(c"ro")?;
    context.string(c"source", source.as_os_str().as_bytes())?;
    for file in devices {
        context.string(c"device", mount::fd_path(file).as_os_str().as_bytes())?;
    }
    if direct {
        context.flag(c"directio")?;
    }
    context.mount(Attr::RDONLY.and(Attr::NOSUID).and(Attr::NODEV))
}

fn mount_loops(index: &File, devices: &[File]) -> Result<std::os::fd::OwnedFd, FsError> {
    let attach = |file: &File, direct: bool| {
        loopdev::attach(file, direct).map_err(|source_errno| FsError { source_errno, messages: Vec::new() })
    };
    // The index is small and read in small unaligned pieces, so it benefits from the page cache.
    let index = attach(index, false)?;
    let devices = devices.iter().map(|file| attach(file, true)).collect::<Result<Vec<_>, _>>()?;
    let context = erofs_context()?;
    context.flag(c"ro")?;
    context.string(c"source", index.path.as_os_str().as_bytes())?;
    for device in &devices {
        context.string(c"device", device.path.as_os_str().as_bytes())?;
    }
    // The mount now keeps the devices open. They are freed when it goes.
    context.mount(Attr::RDONLY.and(Attr::NOSUID).and(Attr::NODEV))
}

/// Whether the file can be read at multiples of 512 bytes with O_DIRECT. A read is tried, because no system call
/// reports this on every kernel.
fn takes_direct_reads(file: &File) -> bool {
    const ALIGN: usize = 4096;
    let again = OpenOptions::new().read(true).custom_flags(libc::O_DIRECT).open(mount::fd_path(file));
    let Ok(file) = again else { return false };
    if file.metadata().is_ok_and(|meta| meta.len() < 1024) {
        return true;
    }
    let mut buffer = vec![0_u8; 2 * ALIGN];
    let start = buffer.as_ptr().align_offset(ALIGN);
    buffer.get_mut(start..start + 512).is_some_and(|aligned| file.read_at(aligned, 512).is_ok_and(|count| count > 0))
}

#[cfg(test)]
mod tests;
