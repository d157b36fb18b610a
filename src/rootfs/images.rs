//! Image mounts: one per image and host, shared by its containers, leased by `flock`.
//!
//! Two mounts of one index would be two superblocks with two page caches, so an image is mounted once, in the host's namespace, and
//! every container's overlay stands on it. The lease is a shared lock on `<chain>.lease`, held for as long as its descriptor lives
//! (init inherits it and dies with its supervisor); whoever gets that lock alone may unmount. All making and unmaking happens under
//! `.lock`, for the millisecond it takes. In the lease stands where the index lies: a mount whose index is gone is nobody's. The mount is nosuid and nodev, in a directory that only root can enter: nobody on the host runs
//! a setuid program of an image. An overlay does not inherit that.
//!
//! Ways to mount, found out by trying in this order:
//! 1. straight from the files (Linux 6.12 with `EROFS_FS_BACKED_BY_FILE`; the files must be on a disk, not a tmpfs);
//! 2. over loop devices (Linux 6.4);
//! 3. the caller's rendering of the same tree as a plain directory.
//!
//! One thing cannot be found out by trying, so the first way also asks for the kernel's version: until 6.12.80, 6.18.21, 6.19.11 and
//! 7.0, a reader that is killed in the middle (an OOM kill will do) can leave zeros for file data in the page cache that all
//! containers of the image share ("erofs: set fileio bio failed in short read case"), and `directio` can use freed memory
//! (CVE-2026-23224, fixed a little earlier). Loop devices have neither bug.
//!
//! Double caching: a file-backed mount reads the tars through their own page cache and then keeps pages of its own: 200 MB read cost 400 MB
//! of the reader's memory limit. The mount option `directio` reads past the tars' cache. It needs an alignment of 512 from the disk
//! under the tars, so it is tried on the tars themselves first: where a disk has sectors of 4096 bytes, reading twice is better than
//! an I/O error.

use std::fs::{DirBuilder, File, OpenOptions};
use std::io;
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{DirBuilderExt, FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};

use crate::durable::FileLock;
use crate::layer::erofs;
use crate::report::{Explain, Report};
use crate::store::StoreError;
use crate::sys::loopdev;
use crate::sys::mount::{self, Attr, FsContext, FsError};

/// An image to mount.
pub struct Image<'a> {
    /// Where mounts and leases stand (`/run/gpurun/images`).
    pub images: &'a Path,
    /// The chain id's 64 hex digits: the name of the mount.
    pub chain: &'a str,
    /// What [`erofs::write`] wrote.
    pub index: &'a Path,
    /// The tars in the order of the tree's sources, then the side file if there is one. Open: what was looked at is what is mounted.
    pub devices: &'a [File],
}

/// How an image's files come to be seen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Backing {
    /// EROFS on files; `direct`: past the tars' page cache.
    Files { direct: bool },
    /// EROFS on loop devices.
    Loop,
    /// A rendered directory.
    Directory,
    /// It stood already, by whatever way.
    Shared,
}

/// A lower directory for an overlay. Keep it for as long as the container lives.
#[derive(Debug)]
pub struct Lower {
    pub dir: PathBuf,
    pub backing: Backing,
    pub lease: Lease,
}

/// The right to find an image's mount in its place.
#[derive(Debug)]
pub struct Lease {
    file: Flock<File>,
}

impl Lease {
    /// Writes down which index is mounted.
    fn name(&self, index: &Path) -> io::Result<()> {
        self.file.set_len(0)?;
        self.file.write_all_at(index.as_os_str().as_bytes(), 0)
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        // The time of the last use, for `sweep`'s idle time: a wish, not a promise.
        let _ = self.file.set_modified(SystemTime::now());
    }
}

#[derive(Debug, thiserror::Error)]
pub enum MountError {
    #[error("cannot prepare `{}` for image mounts", .path.display())]
    Prepare { path: PathBuf, source: io::Error },
    #[error("the image's file `{}` cannot be opened", .path.display())]
    Missing { path: PathBuf, source: io::Error },
    #[error("the image's files cannot be opened")]
    Files { source: StoreError },
    #[error("the index `{}` does not fit its image: it wants {wants} files, there are {given}", .index.display())]
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
                Some("the store is damaged: load the image again with `gpurun image load`".into())
            }
            Self::Files { source: StoreError::Io { cause, .. } } if cause.kind() == io::ErrorKind::NotFound => {
                Some("the store is damaged: load the image again with `gpurun image load`".into())
            }
            Self::Files { source } => source.hint(),
            Self::Render { render, .. } => render.hint.clone(),
            Self::Prepare { .. } | Self::Attach { .. } => None,
        }
    }
}

/// Mounts an image, or joins the mount that stands, and leases it. Call it in the host's mount namespace. `render` answers a directory
/// with the same tree, for kernels that cannot mount an index; it is called without any lock but the lease.
pub fn mount(image: &Image<'_>, render: impl FnOnce() -> Result<PathBuf, Report>) -> Result<Lower, MountError> {
    let prepare = |source| MountError::Prepare { path: image.images.to_owned(), source };
    DirBuilder::new().recursive(true).mode(0o700).create(image.images).map_err(prepare)?;
    let lock = FileLock::exclusive(&image.images.join(".lock")).map_err(prepare)?;
    // Never waits: alone it is only ever held under `.lock`.
    let lease = Lease { file: open_lease(image.images, image.chain, FlockArg::LockShared).map_err(prepare)? };
    let target = image.images.join(image.chain);
    if is_mounted(&target) {
        return Ok(Lower { dir: target, backing: Backing::Shared, lease });
    }
    let source = match mount_index(image.index, image.devices, Way::ALL)? {
        Ok((mounted, backing)) => {
            let attach = |source| MountError::Attach { target: target.clone(), source };
            DirBuilder::new().recursive(true).mode(0o700).create(&target).map_err(attach)?;
            let point = File::open(&target).map_err(attach)?;
            // Before the mount: whoever finds that can ask whether its image is still there.
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

/// An image that nobody uses, and that nobody can begin to use meanwhile: for the moment in which its drawn directory goes.
#[derive(Debug)]
pub struct Alone {
    // Dropped first: without `.lock` nobody may find the lease taken.
    _lease: Flock<File>,
    _lock: FileLock,
}

/// Takes the lease of `chain` alone; nothing where somebody leases or keeps it.
pub fn alone(images: &Path, chain: &str) -> io::Result<Option<Alone>> {
    DirBuilder::new().recursive(true).mode(0o700).create(images)?;
    let lock = FileLock::exclusive(&images.join(".lock"))?;
    match open_lease(images, chain, FlockArg::LockExclusiveNonblock) {
        Ok(_) if is_kept(images, chain) => Ok(None),
        Ok(lease) => Ok(Some(Alone { _lease: lease, _lock: lock })),
        Err(error) if error.raw_os_error() == Some(libc::EWOULDBLOCK) => Ok(None),
        Err(error) => Err(error),
    }
}

/// Keeps an image's mount although no process leases it (`gpurun image mount`), until [`release`]. Call it with a lease in hand.
pub fn keep(images: &Path, chain: &str) -> io::Result<()> {
    File::create(images.join(format!("{chain}.kept"))).map(drop)
}

/// Takes [`keep`] back; false when the image was not kept.
pub fn release(images: &Path, chain: &str) -> io::Result<bool> {
    match std::fs::remove_file(images.join(format!("{chain}.kept"))) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error),
    }
}

/// Whether somebody keeps an image's mount; where that cannot be told, somebody does.
pub fn is_kept(images: &Path, chain: &str) -> bool {
    images.join(format!("{chain}.kept")).try_exists().unwrap_or(true)
}

/// Unmounts every image that nobody leases or keeps and nobody used for `idle`, or whose index is gone: then the image is, and its files'
/// space is free only without the mount. (The removal takes the mount away itself; but it may be killed before, and it cannot where a
/// build's step leases it.) Answers their chain ids. Call it in the host's namespace. A mount that somebody on the host stands in is
/// left for the next sweep. Costs a look at each lease.
pub fn sweep(images: &Path, idle: Duration) -> io::Result<Vec<String>> {
    let leases = match leases(images) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        other => other?,
    };
    let (mut gone, mut failed) = (Vec::new(), None);
    for chain in leases {
        match sweep_idle(images, &chain, idle) {
            Ok(true) => gone.push(chain),
            Ok(false) => {}
            // The others are none the worse for it.
            Err(error) => failed = failed.or(Some(error)),
        }
    }
    failed.map_or(Ok(gone), Err)
}

fn sweep_idle(images: &Path, chain: &str, idle: Duration) -> io::Result<bool> {
    let path = images.join(format!("{chain}.lease"));
    let is_idle = || -> io::Result<bool> {
        // A lease from the future says nothing: the clock was set back.
        let age = SystemTime::now().duration_since(path.metadata()?.modified()?).unwrap_or(idle);
        Ok(age >= idle || is_index_gone(&path))
    };
    // Swept by somebody else in between: nothing to do.
    if !is_idle().unwrap_or(false) {
        return Ok(false);
    }
    let _lock = FileLock::exclusive(&images.join(".lock"))?;
    let lease = match open_lease(images, chain, FlockArg::LockExclusiveNonblock) {
        Err(error) if error.raw_os_error() == Some(libc::EWOULDBLOCK) => return Ok(false),
        other => other?,
    };
    if is_kept(images, chain) || !is_idle()? || !unmount_leased(images, chain)? {
        return Ok(false);
    }
    drop(lease);
    Ok(true)
}

/// Whether the index that a lease names is no more. Where that cannot be told (or an older gpurun has made the lease), it is there.
fn is_index_gone(lease: &Path) -> bool {
    let Ok(named) = std::fs::read(lease) else { return false };
    let index = Path::new(std::ffi::OsStr::from_bytes(&named));
    index.is_absolute() && matches!(index.try_exists(), Ok(false))
}

/// Unmounts one image now, unless somebody leases, keeps or stands in it.
pub fn sweep_one(images: &Path, chain: &str) -> io::Result<bool> {
    if !images.join(format!("{chain}.lease")).try_exists().unwrap_or(true) {
        return Ok(false);
    }
    let _lock = FileLock::exclusive(&images.join(".lock"))?;
    match open_lease(images, chain, FlockArg::LockExclusiveNonblock) {
        Err(error) if error.raw_os_error() == Some(libc::EWOULDBLOCK) => Ok(false),
        Err(error) => Err(error),
        Ok(_lease) if is_kept(images, chain) => Ok(false),
        Ok(_lease) => unmount_leased(images, chain),
    }
}

/// Chain ids that have a lease file.
fn leases(images: &Path) -> io::Result<Vec<String>> {
    let mut chains = Vec::new();
    for entry in std::fs::read_dir(images)? {
        let name = entry?.file_name();
        chains.extend(name.to_str().and_then(|name| name.strip_suffix(".lease")).map(str::to_owned));
    }
    Ok(chains)
}

/// With the lease alone, under `.lock`: takes the mount and the lease's file away; false when somebody stands in it.
fn unmount_leased(images: &Path, chain: &str) -> io::Result<bool> {
    let target = images.join(chain);
    match mount::unmount(&target) {
        Ok(()) => {}
        Err(error) if error.raw_os_error() == Some(libc::EBUSY) => return Ok(false),
        // Not mounted (any more), or never: an image that was rendered.
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

fn open_lease(images: &Path, chain: &str, how: FlockArg) -> io::Result<Flock<File>> {
    let path = images.join(format!("{chain}.lease"));
    let file = OpenOptions::new().read(true).write(true).create(true).truncate(false).mode(0o600).open(path)?;
    Flock::lock(file, how).map_err(|(_, errno)| errno.into())
}

fn is_mounted(target: &Path) -> bool {
    nix::sys::statfs::statfs(target).is_ok_and(|stat| stat.filesystem_type().0 as u32 == erofs::MAGIC)
}

/// A way to mount an index.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way {
    Direct,
    Buffered,
    Loop,
}

impl Way {
    pub const ALL: &'static [Self] = &[Self::Direct, Self::Buffered, Self::Loop];
}

type Mounted = (std::os::fd::OwnedFd, Backing);

/// A mount of the index that stands nowhere yet, by the first of `ways` that works; the inner error is the kernel's last refusal.
pub fn mount_index(index: &Path, devices: &[File], ways: &[Way]) -> Result<Result<Mounted, FsError>, MountError> {
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
    for way in ways {
        let tried = match way {
            Way::Direct | Way::Buffered if !sound => continue,
            Way::Direct if !devices.iter().all(takes_direct_reads) => continue,
            Way::Direct => mount_files((index, &index_file), devices, true),
            Way::Buffered => mount_files((index, &index_file), devices, false),
            Way::Loop => mount_loops(&index_file, devices),
        };
        match tried {
            Ok(mounted) => {
                let backing = match way {
                    Way::Direct => Backing::Files { direct: true },
                    Way::Buffered => Backing::Files { direct: false },
                    Way::Loop => Backing::Loop,
                };
                return Ok(Ok((mounted, backing)));
            }
            Err(error) => {
                tracing::debug!(%error, ?way, "the kernel does not mount the index this way");
                refusal = error;
            }
        }
    }
    Ok(Err(refusal))
}

fn kernel_release() -> String {
    nix::sys::utsname::uname().map(|name| name.release().to_string_lossy().into_owned()).unwrap_or_default()
}

/// Whether a kernel of this release has the two fixes that the room's header names. A distribution's kernel may have them under an
/// older number; it loses nothing but a little speed.
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
    // The index's real name where it can be had: it shows in the mount table. Of the devices nothing shows there; by their descriptors the
    // kernel gets the very files that were looked at, whatever their paths mean now.
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
    // The index is small and read in odd pieces: its cache is welcome.
    let index = attach(index, false)?;
    let devices = devices.iter().map(|file| attach(file, true)).collect::<Result<Vec<_>, _>>()?;
    let context = erofs_context()?;
    context.flag(c"ro")?;
    context.string(c"source", index.path.as_os_str().as_bytes())?;
    for device in &devices {
        context.string(c"device", device.path.as_os_str().as_bytes())?;
    }
    // From here on the mount keeps the devices; they free themselves with it.
    context.mount(Attr::RDONLY.and(Attr::NOSUID).and(Attr::NODEV))
}

/// Whether the file can be read at multiples of 512 past the page cache: tried, because no call answers it on every kernel.
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
