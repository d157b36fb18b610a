//! The container's writable root: one overlay of the image (lower directory) and the container's own directory (upper
//! directory).
//!
//! The mount options and their reasons:
//! - `redirect_dir=nofollow`, `metacopy=off`, `index=off`: an upper directory contains only plain files, which a user,
//!   `build` and a later kernel can read, and no `trusted.overlay.*` attribute of an image is ever followed.
//!   `redirect_dir=off` is not enough: kernels built with `REDIRECT_ALWAYS_FOLLOW` treat it as "follow".
//! - `xino=off`: the image is a file system of its own, so `auto` (the default of some distributions) would mark it in
//!   the highest bits of inode numbers (9223372036854775859, for example). JavaScript rounds such numbers, so that
//!   different files appear to be one, and old 32-bit programs fail with EOVERFLOW. The disadvantage is that files of
//!   the image have another device number than files that were written, which `tar --one-file-system` respects.
//!   Directories are not affected, and so neither are `find -xdev` and `du -x`.
//! - `volatile` (on request, for `--rm`): no fsync reaches the disk, because the files are deleted at the end anyway.
//!   It is not the default: a user who restarts or copies from a stopped container after a power failure expects the
//!   data that were synced.
//!
//! nodev and nosuid are not set. Images contain setuid programs, and the device program controls access to device
//! nodes.

use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};

use nix::sys::statfs::{self, FsType};
use nix::sys::time::TimeSpec;

use crate::report::Explain;
use crate::sys::mount::{self, Attr, FsContext, FsError};
use crate::sys::{xattr, xattr_read};

/// The overlay to mount. `upper`, `work` and `merged` are created if missing. `upper` and `work` must be on one file
/// system.
#[derive(Debug, Clone, Copy)]
pub struct Overlay<'a> {
    pub lower: &'a Path,
    /// A layer above `lower`.
    pub above: Option<&'a Path>,
    pub upper: &'a Path,
    pub work: &'a Path,
    pub merged: &'a Path,
    /// Do not let an fsync in the container wait for the disk. Set this if the upper directory is deleted when the
    /// container ends.
    pub volatile: bool,
}

#[derive(Debug, thiserror::Error)]
pub enum OverlayError {
    #[error("cannot store a container's writable layer in `{}`: it is on {kind}", .path.display())]
    UnfitUpper { path: PathBuf, kind: &'static str },
    #[error("cannot create the directory `{}`", .path.display())]
    Directory { path: PathBuf, source: io::Error },
    #[error("cannot access the directory `{}`", .path.display())]
    Look { path: PathBuf, source: io::Error },
    #[error("this kernel cannot mount overlayfs")]
    NoOverlay(#[source] io::Error),
    #[error("cannot mount the container's root on `{}`", .merged.display())]
    Mount { merged: PathBuf, source: FsError },
}

impl Explain for OverlayError {
    fn hint(&self) -> Option<String> {
        match self {
            Self::UnfitUpper { .. } => Some(
                "keep gpurun's data on a local disk (ext4, xfs, btrfs or tmpfs) with `--root /local/disk/gpurun` or \
                 `GPURUN_ROOT`"
                    .into(),
            ),
            Self::NoOverlay(_) => Some("load it with `modprobe overlay`".into()),
            Self::Directory { .. } | Self::Look { .. } | Self::Mount { .. } => None,
        }
    }
}

/// Mounts the overlay in the calling process's mount namespace.
pub fn overlay(request: &Overlay<'_>) -> Result<(), OverlayError> {
    // If the lower directory is missing, the mount reports it.
    let is_new = !is_present(request.upper)? && is_present(request.lower)?;
    for path in [request.upper, request.work, request.merged] {
        make_directory(path)?;
    }
    for path in [request.upper, request.work] {
        check_upper(path)?;
    }
    if is_new {
        be_like(request.lower, request.upper)
            .map_err(|source| OverlayError::Directory { path: request.upper.to_owned(), source })?;
    }
    forget_volatile(request.work)?;
    let failed = |source| OverlayError::Mount { merged: request.merged.to_owned(), source };
    let plain = |errno: io::Error| failed(FsError { source_errno: errno, messages: Vec::new() });

    let context = FsContext::open(c"overlay").map_err(|error| match error.raw_os_error() {
        Some(libc::ENODEV) => OverlayError::NoOverlay(error),
        _ => plain(error),
    })?;
    let mut names = Names(Vec::new());
    let mut lowers = names.name(request.lower, MAX_OPTION).map_err(plain)?.into_os_string();
    if let Some(above) = request.above {
        // Both are in one option.
        lowers = names.name(above, MAX_OPTION / 2).map_err(plain)?.into_os_string();
        lowers.push(":");
        lowers.push(names.name(request.lower, MAX_OPTION / 2).map_err(plain)?);
    }
    let upper = names.name(request.upper, MAX_OPTION).map_err(plain)?;
    let work = names.name(request.work, MAX_OPTION).map_err(plain)?;
    for (key, value) in [(c"lowerdir", &*lowers), (c"upperdir", upper.as_os_str()), (c"workdir", work.as_os_str())] {
        context.string(key, value.as_bytes()).map_err(failed)?;
    }
    for (key, value) in [
        (c"source", "overlay"),
        (c"redirect_dir", "nofollow"),
        (c"metacopy", "off"),
        (c"index", "off"),
        (c"xino", "off"),
    ] {
        context.string(key, value.as_bytes()).map_err(failed)?;
    }
    // This option does not exist before 5.10, where fsync keeps its usual cost. (The old option parser would report an
    // error only at `mount`.)
    if request.volatile && kernel_at_least(5, 10) {
        context.flag(c"volatile").map_err(failed)?;
    }
    let mounted = context.mount(Attr::NONE).map_err(failed)?;
    let target = File::open(request.merged).map_err(plain)?;
    mount::attach(mounted.as_fd(), target.as_fd()).map_err(plain)
}

/// `fsconfig(2)` accepts at most 255 bytes.
const MAX_OPTION: usize = 255;

/// Names of directories in mount options. It keeps the descriptors of unusual paths open until the superblock is created.
struct Names(Vec<File>);

impl Names {
    /// Returns a path that the option parser reads as it is, of at most `most` bytes.
    fn name(&mut self, path: &Path, most: usize) -> io::Result<PathBuf> {
        if mount::is_plain(path) && path.as_os_str().len() <= most {
            return Ok(path.to_owned());
        }
        let dir = File::open(path)?;
        let name = mount::fd_path(&dir);
        self.0.push(dir);
        Ok(name)
    }
}

/// Copies the owner, mode, times and attributes of an image's directory to a new directory above it, because the merged
/// directory shows those of the uppermost one.
pub(super) fn be_like(lower: &Path, upper: &Path) -> io::Result<()> {
    let image = lower.metadata()?;
    let own = File::open(upper)?;
    std::os::unix::fs::fchown(&own, Some(image.uid()), Some(image.gid()))?;
    own.set_permissions(image.permissions())?;
    for (name, value) in xattr_read::all(lower)? {
        match xattr::set(&own, &name, &value) {
            // A file system that does not support attributes of this kind shows none on any file.
            Err(error) if error.raw_os_error() != Some(libc::EOPNOTSUPP) => return Err(error),
            _ => {}
        }
    }
    let at = TimeSpec::new(image.mtime(), image.mtime_nsec());
    Ok(nix::sys::stat::futimens(&own, &at, &at)?)
}

/// Removes what the kernel usually leaves in a work directory: a few nested directories, whose names are known. Errors
/// are ignored, because the caller removes the whole tree next, with more calls.
pub(crate) fn remove_work(work: &Path) {
    let mark = work.join("work/incompat/volatile");
    if std::fs::remove_file(mark.join("dirty")).is_ok() {
        let levels = mark.ancestors().take_while(|level| *level != work);
        for level in levels.chain([work]) {
            let _ = std::fs::remove_dir(level);
        }
    }
}

/// Removes the mark that a volatile mount leaves in its work directory. The mark prevents other mounts, because the
/// kernel cannot know whether there was a crash in between. A caller that requested `volatile` accepted that risk, so a
/// restart must not fail because of it.
fn forget_volatile(work: &Path) -> Result<(), OverlayError> {
    let mark = work.join("work/incompat/volatile");
    match crate::sys::tree::remove(&mark) {
        Err(source) if source.kind() != io::ErrorKind::NotFound => Err(OverlayError::Directory { path: mark, source }),
        _ => Ok(()),
    }
}

fn kernel_at_least(major: u32, minor: u32) -> bool {
    let Ok(name) = nix::sys::utsname::uname() else { return false };
    let release = name.release().to_string_lossy().into_owned();
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).filter_map(|part| part.parse::<u32>().ok());
    (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0)) >= (major, minor)
}

/// Whether `path` exists. If that cannot be determined, it is an error: a directory that is wrongly taken for new would
/// get the attributes of the image's root again.
fn is_present(path: &Path) -> Result<bool, OverlayError> {
    path.try_exists().map_err(|source| OverlayError::Look { path: path.to_owned(), source })
}

fn make_directory(path: &Path) -> Result<(), OverlayError> {
    let made = std::fs::DirBuilder::new().recursive(true).mode(0o755).create(path);
    made.map_err(|source| OverlayError::Directory { path: path.to_owned(), source })
}

/// Rejects file systems that either refuse to be an upper directory with a plain EINVAL, or accept it and fail later.
fn check_upper(path: &Path) -> Result<(), OverlayError> {
    let stat = statfs::statfs(path)
        .map_err(|errno| OverlayError::Directory { path: path.to_owned(), source: errno.into() })?;
    match unfit(stat.filesystem_type()) {
        Some(kind) => Err(OverlayError::UnfitUpper { path: path.to_owned(), kind }),
        None => Ok(()),
    }
}

fn unfit(kind: FsType) -> Option<&'static str> {
    // The numbers are from linux/magic.h and the file systems' own headers. overlayfs requires trusted xattrs, d_type
    // and RENAME_WHITEOUT of an upper directory.
    const UNFIT: &[(u32, &str)] = &[
        (0x794c_7630, "overlayfs"),
        (0x6969, "NFS"),
        (0xff53_4d42, "CIFS"),
        (0xfe53_4d42, "SMB"),
        (0x517b, "SMB"),
        (0x0102_1997, "9p"),
        (0x0bd0_0bd0, "Lustre"),
        (0x4d44, "FAT"),
        (0x2011_bab0, "exFAT"),
        (0xf15f, "eCryptfs"),
        (0x0064_0736, "AFS"),
        (0x5346_414f, "AFS"),
    ];
    // The magic number has 32 bits, whatever the width of the field.
    let magic = kind.0 as u32;
    UNFIT.iter().find(|(unfit, _)| *unfit == magic).map(|(_, name)| *name)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rootfs::testing::{in_own_mounts, root_or_skip, tmpfs, unmount};

    fn fixture(base: &Path) -> [PathBuf; 4] {
        let dirs = ["lower", "c/upper", "c/work", "merged"].map(|name| base.join(name));
        tmpfs(base);
        std::fs::create_dir_all(&dirs[0]).unwrap();
        std::fs::write(dirs[0].join("file"), "image").unwrap();
        dirs
    }

    fn request(dirs: &[PathBuf; 4]) -> Overlay<'_> {
        let [lower, upper, work, merged] = dirs;
        Overlay { lower, above: None, upper, work, merged, volatile: false }
    }

    #[test]
    fn writes_go_to_the_upper_directory_only() {
        if !root_or_skip("overlay") {
            return;
        }
        for odd in ["plain", "with:colon,comma \\and \"quotes\""] {
            in_own_mounts(move || {
                let base = tempfile::tempdir().unwrap();
                let dirs = fixture(&base.path().join(odd));
                overlay(&request(&dirs)).unwrap();
                let [lower, upper, _, merged] = &dirs;
                std::fs::write(merged.join("file"), "container").unwrap();
                assert_eq!(std::fs::read_to_string(lower.join("file")).unwrap(), "image");
                assert_eq!(std::fs::read_to_string(upper.join("file")).unwrap(), "container");
                unmount(merged);
                unmount(&base.path().join(odd));
            });
        }
    }

    #[test]
    fn the_root_is_the_images_and_then_the_containers() {
        if !root_or_skip("overlay") {
            return;
        }
        in_own_mounts(|| {
            let base = tempfile::tempdir().unwrap();
            let dirs = fixture(base.path());
            let [lower, _, _, merged] = &dirs;
            let attributes = |path: &Path| {
                let meta = path.metadata().unwrap();
                let label = xattr_read::all(path).unwrap().get(&b"trusted.label"[..]).cloned();
                (meta.mode() & 0o7777, meta.uid(), meta.gid(), meta.mtime(), label)
            };
            let root = File::open(lower).unwrap();
            xattr::set(&root, b"trusted.label", b"x").unwrap();
            std::os::unix::fs::fchown(&root, Some(7), Some(8)).unwrap();
            std::fs::set_permissions(lower, std::os::unix::fs::PermissionsExt::from_mode(0o1711)).unwrap();
            let at = TimeSpec::new(1_600_000_000, 5);
            nix::sys::stat::futimens(&root, &at, &at).unwrap();
            let image = (0o1711, 7, 8, 1_600_000_000, Some((*b"x").into()));
            overlay(&request(&dirs)).unwrap();
            assert_eq!(attributes(merged), image);
            // The container's own changes stay.
            std::fs::set_permissions(merged, std::os::unix::fs::PermissionsExt::from_mode(0o700)).unwrap();
            unmount(merged);
            overlay(&request(&dirs)).unwrap();
            assert_eq!(attributes(merged).0, 0o700);
            unmount(merged);
        });
    }

    #[test]
    fn mounts_again_on_a_used_upper_and_volatile_is_asked_for() {
        if !root_or_skip("overlay") {
            return;
        }
        in_own_mounts(|| {
            let base = tempfile::tempdir().unwrap();
            let dirs = fixture(&base.path().join("o"));
            for round in 0..2 {
                overlay(&request(&dirs)).unwrap();
                std::fs::write(dirs[3].join(format!("round{round}")), "").unwrap();
                unmount(&dirs[3]);
            }
            for _ in 0..2 {
                overlay(&Overlay { volatile: true, ..request(&dirs) }).unwrap();
                unmount(&dirs[3]);
            }
            overlay(&Overlay { volatile: true, ..request(&dirs) }).unwrap();
            assert!(dirs[3].join("round0").exists() && dirs[3].join("round1").exists());
            let table = std::fs::read_to_string("/proc/thread-self/mountinfo").unwrap();
            let line = table.lines().find(|line| line.contains("lowerdir=") && line.contains("/o/merged")).unwrap();
            for option in ["redirect_dir=nofollow", "volatile"] {
                assert!(line.contains(option), "{line}");
            }
            for option in ["metacopy=on", "index=on", "xino="] {
                assert!(!line.contains(option), "{line}");
            }
            unmount(&dirs[3]);
            unmount(&base.path().join("o"));
        });
    }

    #[test]
    fn an_upper_directory_on_an_overlay_is_refused() {
        if !root_or_skip("overlay") {
            return;
        }
        in_own_mounts(|| {
            let base = tempfile::tempdir().unwrap();
            let dirs = fixture(&base.path().join("o"));
            overlay(&request(&dirs)).unwrap();
            let inner = dirs[3].join("inner");
            let nested = ["lower", "upper", "work", "merged"].map(|name| inner.join(name));
            std::fs::create_dir_all(&nested[0]).unwrap();
            let error = overlay(&request(&nested)).unwrap_err();
            assert!(matches!(error, OverlayError::UnfitUpper { kind: "overlayfs", .. }), "{error}");
            assert!(error.hint().unwrap().contains("GPURUN_ROOT"));
            unmount(&dirs[3]);
            unmount(&base.path().join("o"));
        });
    }

    #[test]
    fn network_file_systems_are_known_by_their_magic() {
        for (magic, expected) in [
            (0x6969, Some("NFS")),
            (0xff53_4d42_u32, Some("CIFS")),
            (0xef53, None),
            (0x5846_5342, None),
            (0x0102_1994, None),
        ] {
            assert_eq!(unfit(FsType(magic as _)), expected, "{magic:x}");
        }
    }

    #[test]
    fn a_refusal_names_the_directory_and_the_kernels_error() {
        if !root_or_skip("overlay") {
            return;
        }
        in_own_mounts(|| {
            let base = tempfile::tempdir().unwrap();
            let mut dirs = fixture(&base.path().join("o"));
            dirs[0] = base.path().join("absent");
            let report = crate::report::Report::from(overlay(&request(&dirs)).unwrap_err());
            assert!(report.message.contains("merged"), "{report}");
            assert!(!report.causes.is_empty(), "{report}");
            unmount(&base.path().join("o"));
        });
    }
}
