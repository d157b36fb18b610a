//! The files of a GPU's driver in the container's root: as a layer above the image, or as mounts.
//!
//! A layer (`rootfs::driver_layer`) takes the files that are mounted in the usual way, read-only and without special
//! options. All others are mounted: directories, sockets, files that would replace one of gpurun's own, and files that
//! the container would not see otherwise, because the user or the image mounts a directory above them, or because the
//! container has an entry of its own there from an earlier run.

use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::rc::Rc;

use super::context::Launch;
use super::places::{Origins, Places};
use crate::gpu::{Edits, FileMount, Library, ldcache};
use crate::report::Report;
use crate::request::{Mounted, clean};
use crate::rootfs::driver_layer::{self, DriverLayer, Part, Wanted};
use crate::rootfs::images::Lower;
use crate::rootfs::{self, MountpointKind};
use crate::spec::Mount;

/// The default search path of a container's linker, the most specific directory first. The second list is for 32-bit
/// programs.
const LIBRARY_DIRS: [&str; 3] = [
    if cfg!(target_arch = "aarch64") { "/usr/lib/aarch64-linux-gnu" } else { "/usr/lib/x86_64-linux-gnu" },
    "/usr/lib64",
    "/usr/lib",
];
const LIBRARY_DIRS_32: [&str; 3] = ["/usr/lib/i386-linux-gnu", "/usr/lib32", "/usr/lib"];
/// The size limit for reading an image's ld.so.cache. Real caches are smaller.
const MAX_CACHE: usize = 32 << 20;
const CACHE: &str = "/etc/ld.so.cache";

/// Returns the layer with the driver's files for this image, which is made if there is none yet. Returns `None` if there
/// is nothing for it, or if it cannot be made: everything is mounted then.
pub(super) fn prepare(launch: Launch<'_>, image: &Lower, name: &str, edits: &mut Edits) -> Option<Rc<DriverLayer>> {
    if edits.libraries.is_empty() && edits.mounts.is_empty() {
        return None;
    }
    let dirs = Dirs::of(&rootfs::open_root(&image.dir).ok()?).ok()?;
    let mut parts: Vec<Part> = edits.libraries.iter().map(|library| dirs.part(library)).collect();
    parts.extend(edits.mounts.iter().filter(|mount| mount.is_layered()).map(|mount| Part {
        source: mount.source.clone(),
        destination: clean(&mount.destination),
        links: Vec::new(),
    }));
    let wanted = Wanted { drivers: &launch.root.join("drivers"), image: &image.dir, name, parts: &parts };
    let layer = driver_layer::provide(&wanted, |image, there| {
        let libraries = edits.libraries.iter().filter(|library| there.contains_key(&library.source));
        let entries: Vec<_> = libraries.flat_map(|library| dirs.entries(library)).collect();
        (!entries.is_empty()).then(|| (CACHE.into(), ldcache::with(&cache(image), &entries)))
    });
    let layer = match layer {
        Ok(layer) => layer?,
        Err(error) => {
            tracing::debug!(%error, "cannot create a layer of the driver's files");
            return None;
        }
    };
    let files = if layer.len() == 1 { "file" } else { "files" };
    if let Some(summary) = &mut edits.summary {
        summary.push_str(&format!("; {} {files} of the driver in a layer of the container's root", layer.len()));
    }
    Some(Rc::new(layer))
}

/// What a container shows of the layer.
pub(super) struct Shown<'a> {
    layer: Option<&'a DriverLayer>,
    root: &'a OwnedFd,
    /// The container's own directory, if the container has run before.
    upper: Option<OwnedFd>,
}

impl<'a> Shown<'a> {
    pub(super) fn new(layer: Option<&'a DriverLayer>, root: &'a OwnedFd, upper: Option<OwnedFd>) -> Self {
        Self { layer, root, upper }
    }

    fn entry(&self, path: &Path) -> bool {
        let Some(layer) = self.layer else { return false };
        // A new directory of the container has mount points only.
        self.upper.as_ref().is_none_or(|upper| layer.is_shown(path, self.root, upper))
    }

    /// Whether the container sees this file of the host, with all its links, from the layer.
    fn part(&self, source: &Path, places: &Places<'_>) -> bool {
        let Some(entries) = self.layer.and_then(|layer| layer.entries(source)) else { return false };
        entries.iter().all(|path| !places.hides(path) && self.entry(path))
    }

    /// Whether the container sees the layer's ld.so.cache.
    fn cache(&self, places: &Places<'_>) -> bool {
        let written = self.layer.and_then(DriverLayer::written);
        written.is_some_and(|path| !places.hides(path) && self.entry(path))
    }
}

/// Creates the mount points in the container's root, and returns the mounts.
pub(super) fn mounts(edits: &Edits, places: &Places<'_>, shown: &Shown<'_>) -> Result<Vec<Mount>, Report> {
    let mut mounts = Vec::new();
    for mount in edits.mounts.iter().filter(|mount| !(mount.is_layered() && shown.part(&mount.source, places))) {
        mounts.push(one(mount, places)?);
    }
    if !edits.libraries.is_empty() {
        mounts.extend(libraries(&edits.libraries, shown, places)?);
    }
    Ok(mounts)
}

/// Returns the mounts of the files that a mount of gpurun's own would hide.
pub(super) fn hidden(
    edits: &Edits,
    origins: &Origins,
    places: &Places<'_>,
    shown: &Shown<'_>,
) -> Result<Vec<Mount>, Report> {
    let Some(layer) = shown.layer else { return Ok(Vec::new()) };
    let is_hidden = |source: &Path| {
        let entries = layer.entries(source).filter(|_| shown.part(source, places)).unwrap_or_default();
        let hides = |mount: &Mount| entries.iter().any(|path| path.starts_with(&mount.destination));
        origins.own.iter().any(hides)
    };
    let mounts = edits.mounts.iter().filter(|mount| is_hidden(&mount.source)).map(|mount| one(mount, places));
    let libraries = edits.libraries.iter().filter(|library| is_hidden(&library.source));
    let libraries = libraries.map(|library| library_mount(library, &dirs_of(places)?, places));
    mounts.chain(libraries).collect()
}

fn one(mount: &FileMount, places: &Places<'_>) -> Result<Mount, Report> {
    let kind = match mount.kind == "bind" && mount.source.is_file() {
        true => MountpointKind::File,
        // A socket or a device node is also bound onto a file.
        false if mount.kind == "bind" && !mount.source.is_dir() => MountpointKind::File,
        false => MountpointKind::Directory,
    };
    let mounted = match mount.kind == "bind" {
        true => Mounted::Bind { source: &mount.source, read_only: mount.options.iter().any(|option| option == "ro") },
        false => Mounted::Other,
    };
    Ok(Mount {
        destination: places.added(&mount.destination, kind, mounted)?,
        kind: mount.kind.clone(),
        source: mount.source.clone(),
        options: mount.options.clone(),
    })
}

/// Mounts the libraries that the layer does not show where the container's linker finds them, with the links to them.
/// Writes the entries in ld.so.cache if the container does not see the layer's, or if that lacks some of them.
fn libraries(libraries: &[Library], shown: &Shown<'_>, places: &Places<'_>) -> Result<Vec<Mount>, Report> {
    let missing: Vec<&Library> = libraries.iter().filter(|library| !shown.part(&library.source, places)).collect();
    if missing.is_empty() && shown.cache(places) {
        return Ok(Vec::new());
    }
    let root = places.root();
    let dirs = dirs_of(places)?;
    let mut mounts = Vec::new();
    for library in &missing {
        mounts.push(library_mount(library, &dirs, places)?);
        let part = dirs.part(library);
        for (name, target) in &part.links {
            rootfs::link_in_root(root, &dirs.dir(library).join(name), target)?;
        }
    }
    let entries: Vec<_> = libraries.iter().flat_map(|library| dirs.entries(library)).collect();
    rootfs::replace_file_in_root(root, Path::new(CACHE), &ldcache::with(&cache(root), &entries))?;
    Ok(mounts)
}

fn dirs_of(places: &Places<'_>) -> Result<Dirs, Report> {
    Dirs::of(places.root())
}

fn library_mount(library: &Library, dirs: &Dirs, places: &Places<'_>) -> Result<Mount, Report> {
    let place = dirs.dir(library).join(&library.file);
    Ok(Mount {
        destination: places.added(&place, MountpointKind::File, Mounted::Other)?,
        kind: "bind".into(),
        source: library.source.clone(),
        options: ["ro", "nosuid", "nodev", "bind", "rprivate"].map(str::to_owned).into(),
    })
}

/// The image's ld.so.cache. The result is empty if it has none.
fn cache(root: &OwnedFd) -> Vec<u8> {
    rootfs::read_file_in_root(root, Path::new(CACHE), MAX_CACHE).ok().flatten().unwrap_or_default()
}

/// Where the container's linker looks for libraries.
struct Dirs {
    native: PathBuf,
    i386: PathBuf,
}

impl Dirs {
    fn of(root: &OwnedFd) -> Result<Self, Report> {
        Ok(Self { native: library_dir(root, &LIBRARY_DIRS)?, i386: library_dir(root, &LIBRARY_DIRS_32)? })
    }

    fn dir(&self, library: &Library) -> &Path {
        if library.flags == ldcache::NATIVE { &self.native } else { &self.i386 }
    }

    /// The file and its links. As in an installed driver, `libcuda.so` links to `libcuda.so.1` if that exists, and
    /// `libcuda.so.1` links to the file.
    fn part(&self, library: &Library) -> Part {
        let target = |name: &String| {
            let soname = library.names.iter().find(|other| other.starts_with(&format!("{name}.")));
            soname.unwrap_or(&library.file).clone()
        };
        Part {
            source: library.source.clone(),
            destination: self.dir(library).join(&library.file),
            links: library.names.iter().map(|name| (name.clone(), target(name))).collect(),
        }
    }

    fn entries(&self, library: &Library) -> Vec<ldcache::Entry> {
        let names = library.names.iter().chain([&library.file]).map(|name| (name.as_str(), library.flags));
        ldcache::entries(names, self.dir(library))
    }
}

/// The first of these directories that exists in the image. If none does, the last one, which is then created.
fn library_dir(root: &OwnedFd, dirs: &[&str]) -> Result<PathBuf, Report> {
    for dir in dirs.iter().map(Path::new) {
        let found = rootfs::stat_in_root(root, dir)?;
        if found.is_some_and(|stat| stat.st_mode & libc::S_IFMT == libc::S_IFDIR) {
            return Ok(dir.to_path_buf());
        }
    }
    Ok(dirs.last().map_or_else(|| PathBuf::from("/usr/lib"), PathBuf::from))
}
