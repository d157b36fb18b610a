//! Layers with a GPU driver's files: directories that lie above an image in a container's overlay.
//!
//! ```text
//! /var/lib/gpurun/drivers/.lock         flock, held while a layer is made, leased or removed
//!                        /files/HASH    copies of the driver's files that could not be hard-linked
//!                        /new           a layer that is being made
//!                        /KEY/tree      the layer: directories, links, and hard links to the driver's files
//!                            /about     what it contains (JSON)
//!                            /lease     flock, shared by every container that uses the layer
//! ```
//!
//! A layer is for one image and one set of files, because an image decides where its linker looks (a link `/usr/lib64`,
//! for example) and what is in its `ld.so.cache`. The key covers the image, the files (device, inode, size, time of
//! change), their destinations and the boot. So a layer never changes, and one that was being written when the power
//! failed is not found again.
//!
//! A file of the driver is a hard link to the host's file if both are on one file system. It needs no space then, and
//! its pages are in memory once for the host and all containers. Otherwise it is copied once per boot.
//!
//! A layer that is made removes the layers that no container uses and whose files are not the host's any more.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{DirBuilder, File, OpenOptions};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use nix::fcntl::{AT_FDCWD, AtFlags};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::overlay::be_like;
use super::root::{open_root, resolve_in_root};
use crate::durable::FileLock;
use crate::sys::lock::{Flock, FlockArg};
use crate::sys::mount::fd_path;
use crate::sys::{process, tree, xattr};

/// A file of the host, as it was when a layer was made.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Source {
    path: PathBuf,
    device: u64,
    inode: u64,
    size: u64,
    modified: (i64, i64),
    mode: u32,
}

impl Source {
    /// `None` if it is not a regular file, or one with a setuid bit: an overlay is not mounted nosuid.
    fn of(path: &Path) -> Option<Self> {
        let about = path.metadata().ok().filter(std::fs::Metadata::is_file)?;
        (about.mode() & (libc::S_ISUID | libc::S_ISGID) == 0).then(|| Self::new(path, &about))
    }

    fn new(path: &Path, about: &std::fs::Metadata) -> Self {
        Self {
            path: path.to_owned(),
            device: about.dev(),
            inode: about.ino(),
            size: about.size(),
            modified: (about.mtime(), about.mtime_nsec()),
            mode: about.mode(),
        }
    }

    fn is_unchanged(&self) -> bool {
        self.path.metadata().is_ok_and(|about| Self::new(&self.path, &about) == *self)
    }
}

/// Files of the host that belong together, with links to the first of them: a library, or a single other file.
#[derive(Debug, Clone)]
pub(crate) struct Part {
    pub source: PathBuf,
    /// Absolute path in the container. Links of the image are followed.
    pub destination: PathBuf,
    /// Links beside it, with their targets.
    pub links: Vec<(String, String)>,
}

/// What a layer is made for.
pub(crate) struct Wanted<'a> {
    /// `/var/lib/gpurun/drivers`
    pub drivers: &'a Path,
    /// The image's tree, and its name.
    pub image: &'a Path,
    pub name: &'a str,
    pub parts: &'a [Part],
}

/// The contents of a layer: the entries of each part, as paths in the container without links in them.
#[derive(Debug, Default, Serialize, Deserialize)]
struct About {
    boot: Option<String>,
    sources: Vec<Source>,
    parts: BTreeMap<PathBuf, Vec<PathBuf>>,
    /// A file that gpurun wrote.
    written: Option<PathBuf>,
}

/// A layer in use.
#[derive(Debug)]
pub(crate) struct DriverLayer {
    /// The directory for the overlay.
    pub dir: PathBuf,
    about: About,
    _lease: Flock,
}

impl DriverLayer {
    /// The number of parts in it.
    pub(crate) fn len(&self) -> usize {
        self.about.parts.len()
    }

    /// The entries of the part whose file has this source, the file first. `None` if the layer does not have it.
    pub(crate) fn entries(&self, source: &Path) -> Option<&[PathBuf]> {
        self.about.parts.get(source).map(Vec::as_slice)
    }

    /// The path of the file that gpurun wrote.
    pub(crate) fn written(&self) -> Option<&Path> {
        self.about.written.as_deref()
    }

    /// Whether a container's root shows this entry of the layer. `upper` is the container's own directory: it may have an
    /// entry of its own there, or anywhere on the way.
    pub(crate) fn is_shown(&self, path: &Path, root: impl AsFd, upper: impl AsFd) -> bool {
        let identity = |root: &dyn AsFd| {
            let parent = resolve_in_root(root.as_fd(), path.parent()?).ok()??;
            let stat =
                nix::sys::stat::fstatat(&parent, path.file_name()?, nix::fcntl::AtFlags::AT_SYMLINK_NOFOLLOW).ok()?;
            Some((stat.st_ino, stat.st_mode, stat.st_size, stat.st_mtime, stat.st_mtime_nsec))
        };
        let Ok(own) = open_root(&self.dir) else { return false };
        let shown = identity(&root.as_fd());
        shown.is_some() && shown == identity(&own.as_fd()) && identity(&upper.as_fd()).is_none()
    }
}

/// Returns the layer with these parts, which is made if there is none yet. `write` returns the path and the contents of
/// a further file, from the image's root and the parts in the layer. Returns `None` if the layer would be empty.
pub(crate) fn provide(
    wanted: &Wanted<'_>,
    write: impl FnOnce(&OwnedFd, &BTreeMap<PathBuf, Vec<PathBuf>>) -> Option<(PathBuf, Vec<u8>)>,
) -> io::Result<Option<DriverLayer>> {
    let parts: Vec<(&Part, Source)> =
        wanted.parts.iter().filter_map(|part| Some((part, Source::of(&part.source)?))).collect();
    if parts.is_empty() {
        return Ok(None);
    }
    let boot = process::boot_id();
    let dir = wanted.drivers.join(key(boot.as_deref(), wanted.name, &parts)?);
    DirBuilder::new().recursive(true).mode(0o700).create(wanted.drivers)?;
    let _lock = FileLock::exclusive(&wanted.drivers.join(".lock"))?;
    if !dir.try_exists()? {
        // No container can use the layers of an earlier boot, and those of files that have changed. An error only leaves
        // them on the disk.
        let is_old = |about: &About| about.boot != boot || !about.sources.iter().all(Source::is_unchanged);
        let _ = sweep(wanted.drivers, is_old);
        let new = wanted.drivers.join("new");
        remove_if_there(&new)?;
        DirBuilder::new().mode(0o700).create(&new)?;
        let mut maker = Maker::new(wanted, &new.join("tree"))?;
        for (part, source) in &parts {
            maker.part(part, source)?;
        }
        if let Some((path, bytes)) = write(&maker.image, &maker.about.parts) {
            maker.write(&path, &bytes)?;
        }
        maker.dress()?;
        maker.about.boot = boot;
        std::fs::write(new.join("about"), serde_json::to_vec(&maker.about)?)?;
        File::create(new.join("lease"))?;
        std::fs::rename(&new, &dir)?;
    }
    let about: About = serde_json::from_slice(&std::fs::read(dir.join("about"))?)?;
    if about.parts.is_empty() {
        return Ok(None);
    }
    // This never waits: the exclusive lock is held only under `.lock`.
    let lease = Flock::lock(File::open(dir.join("lease"))?, FlockArg::Shared)?;
    Ok(Some(DriverLayer { dir: dir.join("tree"), about, _lease: lease }))
}

fn key(boot: Option<&str>, image: &str, parts: &[(&Part, Source)]) -> io::Result<String> {
    let parts: Vec<_> = parts.iter().map(|(part, source)| (&part.destination, &part.links, source)).collect();
    let text = serde_json::to_vec(&(boot, image, parts))?;
    Ok(hex::encode(&Sha256::digest(&text)[..16]))
}

/// Removes all layers that no container uses.
pub(crate) fn prune(drivers: &Path) -> io::Result<()> {
    if !drivers.try_exists()? {
        return Ok(());
    }
    let _lock = FileLock::exclusive(&drivers.join(".lock"))?;
    sweep(drivers, |_| true)
}

/// Removes those of these layers that no container uses, and the copies that no layer contains any more.
fn sweep(drivers: &Path, is_old: impl Fn(&About) -> bool) -> io::Result<()> {
    for entry in std::fs::read_dir(drivers)? {
        let dir = entry?.path();
        let Ok(lease) = File::open(dir.join("lease")) else { continue };
        let about = std::fs::read(dir.join("about")).ok();
        let about = about.and_then(|bytes| serde_json::from_slice::<About>(&bytes).ok()).unwrap_or_default();
        if is_old(&about)
            && let Ok(_lease) = Flock::lock(lease, FlockArg::ExclusiveNonblock)
        {
            tree::remove(&dir)?;
        }
    }
    for entry in std::fs::read_dir(drivers.join("files")).into_iter().flatten() {
        let path = entry?.path();
        if path.symlink_metadata()?.nlink() == 1 {
            std::fs::remove_file(&path)?;
        }
    }
    Ok(())
}

fn remove_if_there(path: &Path) -> io::Result<()> {
    match tree::remove(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// Makes one layer. All paths in it are paths of the image without links in them, so that none of its directories
/// replaces a link of the image.
struct Maker<'a> {
    image: OwnedFd,
    image_dir: &'a Path,
    drivers: &'a Path,
    tree: PathBuf,
    directories: BTreeSet<PathBuf>,
    entries: BTreeSet<PathBuf>,
    about: About,
}

impl<'a> Maker<'a> {
    fn new(wanted: &Wanted<'a>, tree: &Path) -> io::Result<Self> {
        DirBuilder::new().mode(0o755).create(tree)?;
        Ok(Self {
            image: open_root(wanted.image).map_err(io::Error::other)?,
            image_dir: wanted.image,
            drivers: wanted.drivers,
            tree: tree.to_owned(),
            directories: BTreeSet::from([PathBuf::from("/")]),
            entries: BTreeSet::new(),
            about: About::default(),
        })
    }

    /// Adds a part. One that has no simple place in this image is left out, as a whole: it is mounted instead, which
    /// reports errors.
    fn part(&mut self, part: &Part, source: &Source) -> io::Result<()> {
        let Some(file) = self.place(&part.destination, true) else { return Ok(()) };
        let beside = part.destination.parent().unwrap_or(Path::new("/"));
        let links: Option<Vec<(PathBuf, &String)>> =
            part.links.iter().map(|(name, target)| Some((self.place(&beside.join(name), false)?, target))).collect();
        let Some(links) = links else { return Ok(()) };
        let all: BTreeSet<&PathBuf> = std::iter::once(&file).chain(links.iter().map(|(path, _)| path)).collect();
        if all.len() != links.len() + 1 || self.about.parts.contains_key(&part.source) {
            return Ok(());
        }
        let open = File::open(&source.path)?;
        if Source::new(&source.path, &open.metadata()?) != *source {
            return Err(io::Error::other(format!("`{}` changed meanwhile", source.path.display())));
        }
        if xattr::get(&open, b"security.capability")?.is_some() {
            return Ok(());
        }
        let path = self.make_room(&file)?;
        self.put(source, &open, &path)?;
        for (link, target) in &links {
            symlink(target, self.make_room(link)?)?;
        }
        self.about.sources.push(source.clone());
        let entries = std::iter::once(file).chain(links.into_iter().map(|(path, _)| path)).collect();
        self.about.parts.insert(part.source.clone(), entries);
        Ok(())
    }

    /// Adds a file with these contents, if it has a simple place. A link of the image there is replaced.
    fn write(&mut self, path: &Path, bytes: &[u8]) -> io::Result<()> {
        if let Some(place) = self.place(path, false) {
            let path = self.make_room(&place)?;
            std::fs::write(&path, bytes)?;
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o644))?;
            self.about.written = Some(place);
        }
        Ok(())
    }

    /// Where an entry goes, with the image's links resolved inside the image. With `follow`, a link there is followed,
    /// and otherwise replaced. `None`: there is something else than a file, a link leads nowhere, or the layer has
    /// something there.
    fn place(&self, path: &Path, follow: bool) -> Option<PathBuf> {
        let name = path.file_name()?;
        let mut missing = Vec::new();
        let mut above = path.parent()?;
        let there = loop {
            match resolve_in_root(&self.image, above).ok()? {
                Some(there) => break there,
                None => missing.push(above.file_name()?),
            }
            above = above.parent()?;
        };
        let mut place = self.path_of(&there)?;
        let next = missing.last().copied().unwrap_or(name);
        match nix::sys::stat::fstatat(&there, next, AtFlags::AT_SYMLINK_NOFOLLOW) {
            Err(nix::Error::ENOENT) => {
                place.extend(missing.iter().rev());
                place.push(name);
            }
            Ok(stat) if missing.is_empty() => match stat.st_mode & libc::S_IFMT {
                libc::S_IFREG => place.push(name),
                libc::S_IFLNK if !follow => place.push(name),
                libc::S_IFLNK => {
                    let target = resolve_in_root(&self.image, path).ok()??;
                    let stat = nix::sys::stat::fstat(&target).ok()?;
                    place = (stat.st_mode & libc::S_IFMT == libc::S_IFREG).then(|| self.path_of(&target))??;
                }
                _ => return None,
            },
            _ => return None,
        }
        let is_free = !self.entries.contains(&place)
            && !self.directories.contains(&place)
            && !place.ancestors().skip(1).any(|above| self.entries.contains(above));
        is_free.then_some(place)
    }

    /// The path of an open file of the image, with the image's root as `/`.
    fn path_of(&self, open: &OwnedFd) -> Option<PathBuf> {
        let base = std::fs::read_link(fd_path(&self.image)).ok()?;
        let path = std::fs::read_link(fd_path(open)).ok()?;
        Some(Path::new("/").join(path.strip_prefix(base).ok()?))
    }

    /// Makes the directories above an entry. Returns the entry's path in the layer's directory.
    fn make_room(&mut self, place: &Path) -> io::Result<PathBuf> {
        let inside = place.strip_prefix("/").unwrap_or(place);
        let above = place.parent().unwrap_or(Path::new("/"));
        let missing: Vec<&Path> = above.ancestors().take_while(|dir| !self.directories.contains(*dir)).collect();
        for dir in missing.into_iter().rev() {
            DirBuilder::new().mode(0o755).create(self.tree.join(dir.strip_prefix("/").unwrap_or(dir)))?;
            self.directories.insert(dir.to_owned());
        }
        self.entries.insert(place.to_owned());
        Ok(self.tree.join(inside))
    }

    /// Puts an open file of the host at `path`.
    fn put(&self, source: &Source, open: &File, path: &Path) -> io::Result<()> {
        // The link of the descriptor is followed: the file that was examined gets another name.
        let link = |from: &Path| nix::unistd::linkat(AT_FDCWD, from, AT_FDCWD, path, AtFlags::AT_SYMLINK_FOLLOW);
        if link(&fd_path(open)).is_ok() {
            return Ok(());
        }
        let files = self.drivers.join("files");
        DirBuilder::new().recursive(true).mode(0o700).create(&files)?;
        let copy = files.join(hex::encode(&Sha256::digest(serde_json::to_vec(source)?)[..16]));
        if !copy.try_exists()? {
            let new = files.join("new");
            let _ = std::fs::remove_file(&new);
            let mut to = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&new)?;
            io::copy(&mut &*open, &mut to)?;
            let about = open.metadata()?;
            std::os::unix::fs::fchown(&to, Some(about.uid()), Some(about.gid()))?;
            to.set_permissions(about.permissions())?;
            to.set_modified(about.modified()?)?;
            std::fs::rename(&new, &copy)?;
        }
        Ok(link(&copy)?)
    }

    /// Gives the layer's directories the attributes of the image's, because a container sees those of the layer.
    fn dress(&self) -> io::Result<()> {
        for dir in self.directories.iter().rev() {
            let inside = dir.strip_prefix("/").unwrap_or(dir);
            let of_image = self.image_dir.join(inside);
            if of_image.symlink_metadata().is_ok() {
                be_like(&of_image, &self.tree.join(inside))?;
            }
        }
        Ok(())
    }
}
