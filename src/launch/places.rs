//! Decides where a container's mounts go, and merges them into one list.
//!
//! All mounts of a container come from one list, sorted by the depth of the destination, whatever their origin (the
//! user, the image's volumes, GPU and CDI files, gpurun's own files). So a shallower mount never hides a deeper one. At
//! the same destination the user's mount wins, and a notice says so.
//!
//! A mount point that is not below another mount is created in the container's root, where the image's links are
//! resolved. A mount point below another mount is not: at mount time the image's links are hidden, and libcontainer
//! resolves the path in the container's root. If the mount above is a directory of the host, the mount point must exist
//! there or is created there, as in docker.

use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use super::progress::{Progress, Tell};
use crate::report::Report;
use crate::request::{Mounted, check_destination, clean};
use crate::rootfs::{self, MountpointKind};
use crate::spec::Mount;

/// The runtime's file systems. libcontainer creates mount points below them in memory.
const RUNTIME: [&str; 3] = ["/dev", "/proc", "/sys"];

/// Resolves destinations against the image and the mounts that have been placed so far.
pub(super) struct Places<'a> {
    root: &'a OwnedFd,
    placed: Vec<Placed>,
}

struct Placed {
    mount: Mount,
    /// Whether the source is a directory or file of the host, and not a volume or a tmpfs.
    of_host: bool,
}

/// A destination in the container.
pub(super) struct Place {
    pub path: PathBuf,
    /// Whether the path, with all links resolved, is in the image itself and not below another mount.
    pub in_image: bool,
}

impl<'a> Places<'a> {
    pub(super) fn new(root: &'a OwnedFd) -> Self {
        Self { root, placed: Vec::new() }
    }

    pub(super) fn root(&self) -> &OwnedFd {
        self.root
    }

    /// Records a mount. The mounts of the user and of the image's volumes are recorded first, because later mounts may
    /// be below them.
    pub(super) fn place(&mut self, mount: &Mount, of_host: bool) {
        self.placed.push(Placed { mount: mount.clone(), of_host });
    }

    /// Applies the rule for destinations, and creates the mount point if it belongs in the container's root.
    pub(super) fn at(&self, destination: &Path, kind: MountpointKind, mounted: Mounted<'_>) -> Result<Place, Report> {
        let path = clean(destination);
        check_destination(&path, mounted)?;
        if self.is_covered(&path) {
            self.require(&path)?;
            return Ok(Place { path, in_image: false });
        }
        let resolved = rootfs::make_mountpoint_in_root(self.root, &path, kind)?;
        if resolved == path {
            return Ok(Place { path, in_image: true });
        }
        let through_link = |report: Report| {
            report.under(format!(
                "cannot mount on `{}`: a link in the image leads to `{}`",
                path.display(),
                resolved.display()
            ))
        };
        check_destination(&resolved, mounted).map_err(|error| through_link(error.into()))?;
        let covered = self.is_covered(&resolved);
        if covered {
            self.require(&resolved).map_err(through_link)?;
        }
        Ok(Place { path: resolved, in_image: !covered })
    }

    /// Like `at`, for a mount that gpurun adds: a link of the image must not make it create anything in a directory of
    /// the host or in another container's /dev/shm.
    pub(super) fn added(
        &self,
        destination: &Path,
        kind: MountpointKind,
        mounted: Mounted<'_>,
    ) -> Result<PathBuf, Report> {
        let path = self.at(destination, kind, mounted)?.path;
        self.check_added(&clean(destination), path, kind)
    }

    /// Like `added`, for gpurun's own files, which may use destinations that are not allowed for other mounts.
    pub(super) fn own(&self, destination: &Path, kind: MountpointKind) -> Result<PathBuf, Report> {
        if self.is_covered(destination) {
            self.require(destination)?;
            return Ok(destination.to_path_buf());
        }
        let resolved = rootfs::make_mountpoint_in_root(self.root, destination, kind)?;
        if resolved != destination {
            check_destination(&resolved, Mounted::Other)?;
            self.require(&resolved)?;
        }
        self.check_added(destination, resolved, kind)
    }

    fn check_added(&self, asked: &Path, resolved: PathBuf, kind: MountpointKind) -> Result<PathBuf, Report> {
        let Some(above) = self.above(&resolved).filter(|_| asked != resolved && self.lacks(&resolved)) else {
            return Ok(resolved);
        };
        let missing = host_side(&above.mount, &resolved);
        let make = match (kind, missing.parent()) {
            (MountpointKind::File, Some(parent)) => {
                format!("mkdir -p {} && touch {}", parent.display(), missing.display())
            }
            _ => format!("mkdir -p {}", missing.display()),
        };
        Err(Report::new(format!(
            "cannot mount on `{}`: a link in the image leads to `{}`, in a mounted directory that has no such mount point",
            asked.display(),
            resolved.display()
        ))
        .with_hint(format!("use another image, or make the mount point first: `{make}`")))
    }

    /// Whether the image alone chooses a mount point in a directory of the host: by a link, or in a shared /dev/shm.
    pub(super) fn is_chosen_by_image(&self, destination: &Path, resolved: &Path) -> bool {
        let is_chosen = clean(destination) != resolved || below(resolved, Path::new("/dev/shm"));
        is_chosen && self.above(resolved).is_some_and(|above| above.of_host)
    }

    /// Whether a mount that has been placed hides this path, or is on it.
    pub(super) fn hides(&self, path: &Path) -> bool {
        self.placed.iter().any(|placed| path.starts_with(&placed.mount.destination))
    }

    /// Whether a mount on this destination would need a new mount point in a directory of the host.
    pub(super) fn lacks(&self, destination: &Path) -> bool {
        self.above(destination).is_some_and(|above| above.of_host && !has(&above.mount, destination))
    }

    fn is_covered(&self, path: &Path) -> bool {
        RUNTIME.iter().any(|top| below(path, Path::new(top))) || self.above(path).is_some()
    }

    /// The innermost mount that contains the destination.
    fn above(&self, path: &Path) -> Option<&Placed> {
        let above = self.placed.iter().filter(|placed| below(path, &placed.mount.destination));
        above.max_by_key(|placed| depth(&placed.mount.destination))
    }

    /// Returns an error if the mount point cannot be created or used: below a read-only directory of the host, or
    /// behind a link.
    fn require(&self, path: &Path) -> Result<(), Report> {
        let Some(Placed { mount: above, .. }) = self.above(path) else { return Ok(()) };
        let fixed = above.kind == "bind" && (is_read_only(above) || !above.source.is_dir());
        if let Some(link) = link_on_the_way(above, path) {
            return Err(Report::new(format!(
                "cannot mount on `{}`: `{}`, in a directory that is mounted above it, is a link",
                path.display(),
                link.display()
            ))
            .with_hint(format!(
                "replace it by a directory, or mount on what it leads to: `ls -l {}`",
                link.display()
            )));
        }
        if !fixed || has(above, path) {
            return Ok(());
        }
        let missing = host_side(above, path);
        let (on, source) = (above.destination.display(), above.source.display());
        if !above.source.is_dir() {
            return Err(Report::new(format!("cannot mount on `{}`: `{on}` is the file `{source}`", path.display())));
        }
        Err(Report::new(format!(
            "cannot mount on `{}`: `{on}` is `{source}`, mounted read-only, and has no such mount point",
            path.display(),
        ))
        .with_hint(format!("make the mount point first: `mkdir -p {}`", missing.display())))
    }
}

pub(super) fn below(path: &Path, top: &Path) -> bool {
    path != top && path.starts_with(top)
}

/// Finds a link in the mount's source on the path to the destination. libcontainer would follow it in the container's
/// root, even into /dev or /proc. A container may have written to the mounted directory, so its links are not trusted.
fn link_on_the_way(mount: &Mount, path: &Path) -> Option<PathBuf> {
    if mount.kind != "bind" {
        return None;
    }
    let mut at = mount.source.clone();
    for name in path.strip_prefix(&mount.destination).ok()?.components() {
        at.push(name);
        match at.symlink_metadata() {
            Ok(metadata) if metadata.is_symlink() => return Some(at),
            Ok(_) => {}
            Err(_) => return None,
        }
    }
    None
}

fn is_read_only(mount: &Mount) -> bool {
    mount.options.iter().any(|option| option == "ro")
}

fn host_side(mount: &Mount, path: &Path) -> PathBuf {
    mount.source.join(path.strip_prefix(&mount.destination).unwrap_or(path))
}

/// Whether the path exists in the mount's source.
fn has(mount: &Mount, path: &Path) -> bool {
    if mount.kind != "bind" {
        return false;
    }
    let Ok(root) = rootfs::open_root(&mount.source) else { return false };
    let inside = path.strip_prefix(&mount.destination).unwrap_or(path);
    rootfs::stat_in_root(&root, inside).is_ok_and(|found| found.is_some())
}

fn depth(path: &Path) -> usize {
    path.components().count()
}

/// The mounts of one container, by origin.
#[derive(Default)]
pub(super) struct Origins {
    /// Mounts from `-v`, `--mount`, `--tmpfs`, and `RUN --mount`.
    pub user: Vec<Mount>,
    pub image_volumes: Vec<Mount>,
    /// Files of GPU drivers and CDI devices.
    pub gpus: Vec<Mount>,
    /// gpurun's own files.
    pub own: Vec<Mount>,
}

impl Origins {
    /// All mounts, in no particular order.
    pub(super) fn all(&self) -> impl Iterator<Item = &Mount> {
        [&self.user, &self.image_volumes, &self.gpus, &self.own].into_iter().flatten()
    }
}

/// Merges the mounts of all origins into one list.
pub(super) fn combine(origins: Origins, tell: Tell<'_>) -> Vec<Mount> {
    let Origins { user, image_volumes, gpus, own } = origins;
    let taken = |list: &[Mount], mount: &Mount| list.iter().any(|other| other.destination == mount.destination);
    let mut mounts = user;
    for (origin, what) in
        [(image_volumes, None), (gpus, Some("the GPU's or CDI device's file")), (own, Some("gpurun's own file"))]
    {
        let mut kept = Vec::new();
        for mount in origin {
            if !taken(&mounts, &mount) {
                kept.push(mount);
            } else if let Some(what) = what {
                tell(Progress::Notice(format!("the mount on `{}` replaces {what} there", mount.destination.display())));
            }
        }
        mounts.extend(kept);
    }
    mounts.sort_by_key(|mount| depth(&mount.destination));
    mounts
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bind(source: &Path, destination: &str, mode: &str) -> Mount {
        Mount {
            destination: destination.into(),
            kind: "bind".into(),
            source: source.into(),
            options: vec!["rbind".into(), mode.into()],
        }
    }

    #[test]
    fn one_list_by_depth_and_the_user_wins() {
        let origins = Origins {
            user: vec![bind("/u".as_ref(), "/opt", "rw"), bind("/u2".as_ref(), "/usr/lib/libcuda.so.1", "ro")],
            image_volumes: vec![bind("/v".as_ref(), "/opt", "rw"), bind("/v2".as_ref(), "/data", "rw")],
            gpus: vec![
                bind("/g".as_ref(), "/opt/driver/lib", "ro"),
                bind("/g2".as_ref(), "/usr/lib/libcuda.so.1", "ro"),
            ],
            own: vec![bind("/h".as_ref(), "/etc/hosts", "rw")],
        };
        let mut notices = Vec::new();
        let list = combine(origins, &mut |progress| match progress {
            Progress::Notice(text) => notices.push(text),
            _ => panic!("a notice"),
        });
        let list: Vec<_> =
            list.iter().map(|mount| (mount.destination.to_str().unwrap(), mount.source.to_str().unwrap())).collect();
        assert_eq!(
            list,
            [
                ("/opt", "/u"),
                ("/data", "/v2"),
                ("/etc/hosts", "/h"),
                ("/usr/lib/libcuda.so.1", "/u2"),
                ("/opt/driver/lib", "/g"),
            ]
        );
        assert_eq!(notices.len(), 1, "{notices:?}");
        assert!(notices[0].contains("/usr/lib/libcuda.so.1"), "{notices:?}");
    }

    #[test]
    fn places_follow_the_images_links_and_never_into_the_runtimes_file_systems() {
        use std::os::unix::fs::symlink;
        if !nix::unistd::geteuid().is_root() {
            return;
        }
        let image = tempfile::tempdir().unwrap();
        for (target, link) in [("/proc", "data"), ("/dev/pts", "pts"), ("/srv", "www"), ("/etc", "opt/sub")] {
            std::fs::create_dir_all(image.path().join("opt")).unwrap();
            symlink(target, image.path().join(link)).unwrap();
        }
        let host = tempfile::tempdir().unwrap();
        std::fs::create_dir(host.path().join("there")).unwrap();
        let root = rootfs::open_root(image.path()).unwrap();
        let mut places = Places::new(&root);
        let other = Mounted::Other;
        let at = |places: &Places<'_>, path: &str| {
            places.at(Path::new(path), MountpointKind::Directory, other).map(|place| (place.path, place.in_image))
        };
        assert_eq!(at(&places, "/www/x").unwrap(), ("/srv/x".into(), true));
        assert_eq!(at(&places, "/dev/shm").unwrap(), ("/dev/shm".into(), false));
        assert!(!image.path().join("dev").exists(), "nothing is made below the runtime's own mounts");
        for wrong in ["/data", "/data/sys", "/pts", "/proc", "/srv/../dev"] {
            let report = at(&places, wrong).unwrap_err();
            assert!(report.to_string().contains("cannot mount on"), "{wrong}: {report}");
        }
        // Below a directory of the host, the image's links are hidden.
        places.place(&bind(host.path(), "/opt", "rw"), true);
        assert_eq!(at(&places, "/opt/sub").unwrap(), ("/opt/sub".into(), false));
        places.place(&bind(host.path(), "/ro", "ro"), true);
        assert_eq!(at(&places, "/ro/there").unwrap(), ("/ro/there".into(), false));
        let report = at(&places, "/ro/missing").unwrap_err();
        let hint = report.hint.unwrap_or_default();
        assert!(hint.contains(&format!("mkdir -p {}/missing", host.path().display())), "{hint}");
        assert!(places.lacks(Path::new("/opt/sub")) && !places.lacks(Path::new("/ro/there")));
        // A link of the image leads below a shared directory: only the user's own mounts are made there.
        for (target, link) in [("/dev/shm", "run"), ("/opt", "usr")] {
            symlink(target, image.path().join(link)).unwrap();
        }
        places.place(&bind(host.path(), "/dev/shm", "rw"), true);
        for (wrong, resolved) in [("/run/file", "/dev/shm/file"), ("/usr/lib/file", "/opt/lib/file")] {
            let (path, kind) = (Path::new(wrong), MountpointKind::File);
            for got in [places.added(path, kind, other), places.own(path, kind)] {
                let report = got.unwrap_err();
                assert!(report.message.contains(resolved) && report.hint.unwrap().contains("touch"), "{wrong}");
            }
            assert!(places.at(path, kind, other).is_ok() && places.is_chosen_by_image(path, Path::new(resolved)));
        }
        assert_eq!(
            places.own(Path::new("/run/there"), MountpointKind::Directory).unwrap(),
            Path::new("/dev/shm/there")
        );
        assert!(places.added(Path::new("/opt/lib/file"), MountpointKind::File, other).is_ok());
        assert!(!places.is_chosen_by_image(Path::new("/opt/lib"), Path::new("/opt/lib")));
        assert_eq!(std::fs::read_dir(host.path()).unwrap().count(), 1, "nothing is made on the host");
    }
}
