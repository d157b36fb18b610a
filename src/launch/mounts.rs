//! Turns `-v`, `--mount`, `--tmpfs` and an image's VOLUMEs into mounts, and creates their mount points in the
//! container's root.

use std::fs;
use std::io::ErrorKind;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};

use super::filling::fill_volume;
use super::image_mounts;
use super::nested;
use super::places::{Origins, Place, Places};
use super::progress::{Progress, Tell};
use super::shared;
use super::shared::Writer;
use crate::record::{Entry, Records, short};
use crate::report::Report;
use crate::request::{MountRequest, MountSource, Mounted, check_destination};
use crate::rootfs::{self, MountpointKind};
use crate::spec::Mount;

/// Checks the requested mounts. A missing host path is an error: docker would create an empty directory, which hides
/// typing errors.
pub(super) fn check(requests: &[MountRequest]) -> Result<(), Report> {
    for request in requests {
        check_destination(&request.destination, Mounted::of(request))?;
        check_chown(request)?;
        if let MountSource::Bind { path, .. } = &request.source
            && let Err(error) = fs::metadata(path)
        {
            let what = format!("cannot mount `{}` on `{}`", path.display(), request.destination.display());
            return Err(match error.kind() {
                ErrorKind::NotFound => Report::new(format!("{what}: it does not exist")).with_hint(format!(
                    "create it with `mkdir -p {}`, or name a volume: `-v NAME:{}`",
                    path.display(),
                    request.destination.display()
                )),
                _ => Report::new(what).with_cause(error),
            });
        }
    }
    Ok(())
}

/// The mounts that the user and the image request, in the order in which they must be made.
pub(super) fn plan(
    store_root: &Path,
    entry: &Entry,
    places: &mut Places<'_>,
    image_volumes: &[String],
    user: (u32, u32),
    writer: Option<&Writer>,
    tell: Tell<'_>,
) -> Result<Origins, Report> {
    let mut origins = Origins::default();
    for (number, asked) in requests(entry, image_volumes).iter().enumerate() {
        let request = &asked.request;
        let place = match places.at(&request.destination, mountpoint_kind(request)?, Mounted::of(request)) {
            Ok(place) => place,
            Err(report) if asked.by_image => {
                tell(Progress::Notice(format!("a volume of the image is left out: {}", report.message)));
                continue;
            }
            Err(report) => return Err(report),
        };
        if asked.by_image && places.is_chosen_by_image(&request.destination, &place.path) {
            let (on, place) = (request.destination.display(), place.path.display());
            tell(Progress::Notice(format!(
                "a volume of the image is left out: `{on}` would be made as `{place}`, in a mounted directory"
            )));
            continue;
        }
        let source = filled(store_root, entry, number, request, places, &place)?;
        let source = match &request.source {
            MountSource::Image { .. } => Some(image_mounts::point(entry, &request.destination)),
            _ => source,
        };
        let source = inner(entry, number, request, source)?;
        let mut mount = one(request, source, place.path)?;
        if request.chown {
            give(&mount.source, user)?;
        }
        let is_bind = matches!(request.source, MountSource::Bind { .. });
        places.place(&mount, is_bind);
        if let Some(writer) = writer.filter(|_| mount.kind == "bind" && !request.read_only) {
            shared::share(entry, number, writer, is_bind, &mut mount, tell);
        }
        if asked.by_image { &mut origins.image_volumes } else { &mut origins.user }.push(mount);
    }
    Ok(origins)
}

/// A mount that the user or the image requests.
struct Asked {
    request: MountRequest,
    by_image: bool,
}

/// All requested mounts, the outer ones first. The position of an anonymous volume is the name of its directory, so it
/// must not change between starts.
fn requests(entry: &Entry, image_volumes: &[String]) -> Vec<Asked> {
    let mut all: Vec<Asked> = Vec::new();
    all.extend(entry.record.request.mounts.iter().cloned().map(|request| Asked { request, by_image: false }));
    for destination in image_volumes {
        let destination = PathBuf::from("/").join(destination);
        // The user's mount wins over the image's volume at the same destination.
        if !all.iter().any(|other| other.request.destination == destination) && destination != Path::new("/") {
            let source = MountSource::Volume { name: None, nocopy: false, subpath: None };
            let request = MountRequest { source, destination, read_only: false, chown: false };
            all.push(Asked { request, by_image: true });
        }
    }
    all.sort_by_key(|asked| asked.request.destination.components().count());
    all
}

/// The requested mounts of a container with their sources on this host, for commands that show them. A tmpfs has none.
pub(crate) fn listed_mounts(
    store_root: &Path,
    entry: &Entry,
    image_volumes: &[String],
) -> Vec<(MountRequest, Option<PathBuf>)> {
    let asked = requests(entry, image_volumes).into_iter().enumerate();
    let source = |(number, Asked { request, .. }): (usize, Asked)| {
        let source = match &request.source {
            MountSource::Bind { path, .. } => Some(path.clone()),
            _ => volume(store_root, entry, number, &request),
        };
        (request, source)
    };
    asked.map(source).collect()
}

/// Mounts the volumes and host directories of a stopped container, so that its files can be accessed. The destinations
/// follow the rules of a launch. Sources that no longer exist are skipped, and so are tmpfs mounts and images. The
/// mounts are made in this process's private mount namespace.
pub(super) fn at_rest(
    store_root: &Path,
    entry: &Entry,
    root: &OwnedFd,
    image_volumes: &[String],
) -> Result<(), Report> {
    let mut places = Places::new(root);
    let mut mounts = Vec::new();
    // All links of the image are resolved before the first mount is made, as in a launch.
    for (number, Asked { request, by_image }) in requests(entry, image_volumes).iter().enumerate() {
        if !is_at_rest(store_root, entry, number, request) {
            continue;
        }
        let place = match places.at(&request.destination, mountpoint_kind(request)?, Mounted::of(request)) {
            Ok(place) => place,
            Err(_) if *by_image => continue,
            Err(report) => return Err(report),
        };
        if *by_image && places.is_chosen_by_image(&request.destination, &place.path) {
            continue;
        }
        let source = filled(store_root, entry, number, request, &places, &place)?;
        let mount = one(request, inner(entry, number, request, source)?, place.path)?;
        places.place(&mount, matches!(request.source, MountSource::Bind { .. }));
        mounts.push(mount);
    }
    mounts.sort_by_key(|mount| mount.destination.components().count());
    nested::attach_all(root, &mounts)
}

/// Whether a mount is made for a look at a stopped container.
fn is_at_rest(store_root: &Path, entry: &Entry, number: usize, request: &MountRequest) -> bool {
    match &request.source {
        MountSource::Tmpfs { .. } | MountSource::Image { .. } => false,
        MountSource::Bind { path, .. } => path.exists(),
        MountSource::VolumeOf { .. } => {
            volume(store_root, entry, number, request).is_some_and(|volume| volume.is_dir())
        }
        MountSource::Volume { .. } => true,
    }
}

/// Creates a working directory below a mount, if the container could create it itself. docker also creates it after the
/// mounts.
pub(super) fn make_workdir(cwd: &Path, mounts: &[Mount]) -> Result<(), Report> {
    let above = mounts.iter().filter(|mount| cwd.starts_with(&mount.destination));
    let Some(mount) = above.max_by_key(|mount| mount.destination.components().count()) else { return Ok(()) };
    let inside = cwd.strip_prefix(&mount.destination).unwrap_or(cwd);
    let writable = mount.kind == "bind" && !mount.options.iter().any(|option| option == "ro");
    if writable && !inside.as_os_str().is_empty() && mount.source.is_dir() {
        rootfs::create_dir_in_root(&rootfs::open_root(&mount.source)?, inside)?;
    }
    Ok(())
}

fn mountpoint_kind(request: &MountRequest) -> Result<MountpointKind, Report> {
    let MountSource::Bind { path, .. } = &request.source else { return Ok(MountpointKind::Directory) };
    let is_dir = fs::metadata(path)
        .map_err(|error| Report::new(format!("cannot mount `{}`", path.display())).with_cause(error))?
        .is_dir();
    Ok(if is_dir { MountpointKind::Directory } else { MountpointKind::File })
}

/// The directory of a volume, or `None` for any other mount.
fn volume(store_root: &Path, entry: &Entry, number: usize, request: &MountRequest) -> Option<PathBuf> {
    match &request.source {
        MountSource::Volume { name: Some(name), .. } => Some(store_root.join("volumes").join(name)),
        MountSource::Volume { name: None, .. } => Some(entry.dir.join("volumes").join(number.to_string())),
        MountSource::VolumeOf { container, number } => {
            Some(store_root.join("containers").join(container).join("volumes").join(number.to_string()))
        }
        MountSource::Bind { .. } | MountSource::Image { .. } | MountSource::Tmpfs { .. } => None,
    }
}

/// The directory of a volume, as [`volume`] returns it. A new one is filled with the image's files, unless another mount
/// covers the destination or the request has `nocopy`.
fn filled(
    store_root: &Path,
    entry: &Entry,
    number: usize,
    request: &MountRequest,
    places: &Places<'_>,
    place: &Place,
) -> Result<Option<PathBuf>, Report> {
    let source = volume(store_root, entry, number, request);
    if let MountSource::VolumeOf { container, .. } = &request.source {
        check_volume_of(source.as_deref(), container, &request.destination)?;
    } else if let Some(volume) = &source {
        let copies = place.in_image && !matches!(request.source, MountSource::Volume { nocopy: true, .. });
        let image_side = if copies { rootfs::resolve_in_root(places.root(), &place.path)? } else { None };
        fill_volume(volume, image_side.as_ref())?;
    }
    Ok(source)
}

/// Returns the directory in a volume that `volume-subpath` names. The container may have written links to the volume, so
/// the directory is opened without leaving the volume, and is mounted by its descriptor.
fn inner(
    entry: &Entry,
    number: usize,
    request: &MountRequest,
    volume: Option<PathBuf>,
) -> Result<Option<PathBuf>, Report> {
    let (subpath, name, kind) = match &request.source {
        MountSource::Volume { subpath: Some(subpath), name: Some(name), .. } => (subpath, name, "volume"),
        MountSource::Image { subpath: Some(subpath), name, .. } => (subpath, name, "image"),
        _ => return Ok(volume),
    };
    let Some(volume) = &volume else { return Ok(None) };
    let found = rootfs::resolve_in_root(&rootfs::open_root(volume)?, subpath)?;
    let found = found.ok_or_else(|| {
        let hint = match kind {
            "volume" => format!("create it: `gpurun run --rm -v {name}:/v IMAGE mkdir -p /v/{}`", subpath.display()),
            _ => format!("list the files with `gpurun run --rm {name} ls /`"),
        };
        Report::new(format!("the {kind} `{name}` has no `{}`", subpath.display())).with_hint(hint)
    })?;
    let point = entry.run_dir.join("subpaths").join(number.to_string());
    let mounted = || -> std::io::Result<()> {
        let copied = crate::sys::mount::clone(&crate::sys::mount::fd_path(&found), false)?;
        let is_dir = nix::sys::stat::fstat(&found)?.st_mode & libc::S_IFMT == libc::S_IFDIR;
        fs::create_dir_all(if is_dir { &point } else { point.parent().unwrap_or(&point) })?;
        if !is_dir {
            fs::write(&point, "")?;
        }
        crate::sys::mount::attach(copied.as_fd(), super::shared::open_path(&point)?.as_fd())
    };
    mounted().map_err(|error| {
        Report::new(format!("cannot mount `{}` of the {kind} `{name}`", subpath.display())).with_cause(error)
    })?;
    Ok(Some(point))
}

/// Refuses to give a directory of the system to a container's user.
fn check_chown(request: &MountRequest) -> Result<(), Report> {
    const SYSTEM: [&str; 20] = [
        "/", "/bin", "/boot", "/dev", "/etc", "/home", "/lib", "/lib64", "/media", "/mnt", "/opt", "/proc", "/root",
        "/run", "/sbin", "/srv", "/sys", "/tmp", "/usr", "/var",
    ];
    let MountSource::Bind { path, .. } = &request.source else { return Ok(()) };
    let real = fs::canonicalize(path).unwrap_or_else(|_| path.clone());
    if request.chown && SYSTEM.iter().any(|dir| real == Path::new(dir)) {
        return Err(Report::usage(format!(
            "cannot give `{}` to the container's user: it belongs to the system",
            real.display()
        ))
        .with_hint("omit `U`, or mount a directory below it"));
    }
    Ok(())
}

/// Gives a mount's source, with everything in it, to the container's user. Links are not followed.
fn give(source: &Path, (uid, gid): (u32, u32)) -> Result<(), Report> {
    let failed = |cause: &dyn std::fmt::Display| {
        Report::new(format!("cannot give `{}` to the container's user", source.display())).with_cause(cause)
    };
    let open = super::shared::open_path(source).map_err(|error| failed(&error))?;
    // The path uses this process's pid because /proc/self in chown(1) is chown itself.
    let path = format!("/proc/{}/fd/{}", std::process::id(), open.as_raw_fd());
    let path = if source.is_dir() { format!("{path}/.") } else { path };
    let mut command = std::process::Command::new("chown");
    // A file is changed through its descriptor's link; below a directory, links are changed themselves.
    if source.is_dir() {
        command.args(["-R", "-P", "-h"]);
    }
    let output = command
        .args(["--", &format!("{uid}:{gid}"), &path])
        .env("PATH", "/usr/local/bin:/usr/bin:/bin")
        .output()
        .map_err(|error| failed(&error))?;
    if output.status.success() { Ok(()) } else { Err(failed(&String::from_utf8_lossy(&output.stderr).trim())) }
}

/// Returns the name of another container that uses an anonymous volume of this one.
pub(crate) fn user_of_volumes(records: &Records, entry: &Entry) -> Result<Option<String>, Report> {
    if !entry.dir.join("volumes").exists() {
        return Ok(None);
    }
    let id = &entry.record.id;
    let uses =
        |mount: &MountRequest| matches!(&mount.source, MountSource::VolumeOf { container, .. } if container == id);
    let mut users = records
        .list()?
        .into_iter()
        .filter(|entry| entry.record.id != *id && entry.record.request.mounts.iter().any(uses));
    Ok(users.next().map(|entry| entry.record.name))
}

/// Checks that another container's volume is still there.
fn check_volume_of(source: Option<&Path>, container: &str, destination: &Path) -> Result<(), Report> {
    if source.is_some_and(Path::is_dir) {
        return Ok(());
    }
    let (container, destination) = (short(container), destination.display());
    Err(Report::new(format!("cannot mount the volume of container {container} on `{destination}`: it does not exist"))
        .with_hint(format!(
            "start container {container} once, which fills its volumes; if it is gone, create this container again"
        )))
}

fn one(request: &MountRequest, volume: Option<PathBuf>, destination: PathBuf) -> Result<Mount, Report> {
    let mode = if request.read_only { "ro" } else { "rw" };
    match &request.source {
        MountSource::Bind { path, recursive, propagation } => {
            let source = fs::canonicalize(path)
                .map_err(|error| Report::new(format!("cannot mount `{}`", path.display())).with_cause(error))?;
            let mut options = vec![if *recursive { "rbind" } else { "bind" }.to_owned(), mode.to_owned()];
            if request.read_only && *recursive {
                // `ro` alone leaves the mounts below the source writable.
                options.push("rro".to_owned());
            }
            options.push(propagation.clone().unwrap_or_else(|| "rprivate".into()));
            Ok(Mount { destination, kind: "bind".into(), source, options })
        }
        MountSource::Volume { .. } | MountSource::VolumeOf { .. } | MountSource::Image { .. } => {
            let options = vec!["rbind".to_owned(), mode.to_owned(), "rprivate".to_owned()];
            Ok(Mount { destination, kind: "bind".into(), source: volume.unwrap_or_default(), options })
        }
        MountSource::Tmpfs { size, mode, options } => {
            let options = tmpfs_options(*size, *mode, options, request.read_only);
            Ok(Mount { destination, kind: "tmpfs".into(), source: "tmpfs".into(), options })
        }
    }
}

/// docker's default options, unless the request has the opposite ones.
fn tmpfs_options(size: Option<u64>, mode: Option<u32>, asked: &[String], read_only: bool) -> Vec<String> {
    let mut options: Vec<String> = Vec::new();
    for (default, opposite) in [("nosuid", "suid"), ("nodev", "dev"), ("noexec", "exec")] {
        if !asked.iter().any(|option| option == opposite) {
            options.push(default.to_owned());
        }
    }
    let switches = ["suid", "dev", "exec", "nosuid", "nodev", "noexec"];
    options.extend(asked.iter().filter(|option| !switches.contains(&option.as_str())).cloned());
    options.extend(size.map(|size| format!("size={size}")));
    options.push(format!("mode={:o}", mode.unwrap_or(0o1777)));
    if read_only {
        options.push("ro".into());
    }
    options
}
