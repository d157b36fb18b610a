//! Makes the mounts of a container that need none of its namespaces, before libcontainer creates it.
//!
//! For each mount, libcontainer checks procfs again, which takes about seventy system calls. The mounts made here take
//! ten each. They are made in the supervisor's mount namespace, on the container's root directory. The namespace of the
//! container begins as a copy of it, and [`Made`] removes them from the supervisor's once the container has its copy.
//!
//! A mount is left to libcontainer if it needs a namespace of the container (proc, sysfs, mqueue, cgroup), if it is
//! below such a mount or below a symbolic link, if it has an option that is not known here, and if anything fails. So
//! older kernels work as before, and errors are reported in one place. `config.json` lists all mounts, for hooks. A
//! process that is in the container's network and IPC namespaces also makes sysfs and mqueue (`creator`).
//!
//! The root directory is untrusted. Destinations are resolved inside it by the kernel (`rootfs`), and a mount is only
//! made where the result has the path that the spec names.

use std::ffi::CString;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use crate::rootfs;
use crate::sys::mount::{self, Attr, FsContext};

/// Where a container, and libcontainer, find the cgroups.
pub(super) const CGROUPS: &str = "/sys/fs/cgroup";

/// The mounts, until this is dropped.
#[derive(Debug, Default)]
pub(super) struct Made {
    /// Mounts in the root directory, without those below them.
    mounts: Vec<OwnedFd>,
    /// The directory with the container's own cgroups.
    cgroups: Option<PathBuf>,
}

impl Drop for Made {
    fn drop(&mut self) {
        // Errors are ignored: the mounts end with the supervisor, and so does its namespace.
        for mount in self.mounts.iter().rev() {
            let _ = mount::detach_open(mount.as_fd());
        }
        if let Some(dir) = &self.cgroups {
            let _ = mount::detach(dir);
            let _ = std::fs::remove_dir(dir);
        }
    }
}

/// File systems that show the namespaces of the process that mounts them.
const OF_NAMESPACES: [&str; 2] = ["sysfs", "mqueue"];

/// Makes mounts of `spec`, and removes them from it. The mounts of version 1's cgroups are replaced with one mount of
/// the directory `cgroups`, which is created.
pub(super) fn make(spec: &mut Value, cgroups: &Path) -> Made {
    let gathered = gather_cgroups(spec, cgroups);
    let mut made = make_kinds(spec, &["bind", "tmpfs", "devpts"]);
    made.cgroups = gathered;
    made
}

/// Makes the mounts that are left, in the container's network and IPC namespaces.
pub(super) fn make_in_namespaces(spec: &mut Value) -> Made {
    make_kinds(spec, &[&OF_NAMESPACES[..], &["bind"]].concat())
}

fn make_kinds(spec: &mut Value, kinds: &[&str]) -> Made {
    let mut made = Made::default();
    let Some(path) = spec["root"]["path"].as_str().map(PathBuf::from) else { return made };
    let Some(mounts) = spec["mounts"].as_array_mut() else { return made };
    let Ok(root) = rootfs::open_root(&path) else { return made };
    let Ok(base) = std::fs::read_link(mount::fd_path(&root)) else { return made };
    let (mut done, mut left): (Vec<PathBuf>, Vec<PathBuf>) = Default::default();
    mounts.retain(|mount| {
        let destination = PathBuf::from(mount["destination"].as_str().unwrap_or_default());
        let is_below = |above: &[PathBuf]| above.iter().any(|above| destination.starts_with(above));
        let made_now =
            if is_below(&left) { None } else { Request::parse(mount, kinds).and_then(|one| one.make(&root, &base)) };
        let Some(tree) = made_now else {
            left.push(destination);
            return true;
        };
        if !is_below(&done) {
            made.mounts.push(tree);
        }
        done.push(destination);
        false
    });
    made
}

/// A mount that can be made here.
#[derive(Debug, PartialEq)]
struct Request<'a> {
    destination: &'a Path,
    source: Source<'a>,
    attr: Attr,
    /// Attributes of this mount and of those below it.
    all: Attr,
}

#[derive(Debug, PartialEq)]
enum Source<'a> {
    Bind {
        path: &'a Path,
        recursive: bool,
    },
    /// A new file system, with its options.
    New {
        kind: &'a str,
        /// The name that the mount table shows.
        name: &'a str,
        options: Vec<(&'a str, Option<&'a str>)>,
    },
}

impl<'a> Request<'a> {
    /// `None`: libcontainer is to make this mount.
    fn parse(mount: &'a Value, kinds: &[&str]) -> Option<Self> {
        let destination = Path::new(mount["destination"].as_str()?);
        let kind = mount["type"].as_str()?;
        if !kinds.contains(&kind) || destination.parent().is_none() {
            return None;
        }
        let (mut attr, mut all, mut recursive, mut options) = (Attr::NONE, Attr::NONE, false, Vec::new());
        for option in mount["options"].as_array()? {
            match option.as_str()? {
                // The mounts of the container are private in any case (`rootfsPropagation`).
                "bind" | "rw" | "private" | "rprivate" => {}
                "rbind" => recursive = true,
                "ro" => attr = attr.and(Attr::RDONLY),
                "rro" => all = all.and(Attr::RDONLY),
                "nosuid" => attr = attr.and(Attr::NOSUID),
                "nodev" => attr = attr.and(Attr::NODEV),
                "noexec" => attr = attr.and(Attr::NOEXEC),
                "strictatime" if kind == "tmpfs" => attr = attr.and(Attr::STRICTATIME),
                "newinstance" if kind == "devpts" => options.push(("newinstance", None)),
                other => {
                    let (key, value) = other.split_once('=')?;
                    let known = match kind {
                        "tmpfs" => ["size", "mode", "uid", "gid", "nr_inodes"].contains(&key),
                        "devpts" => ["ptmxmode", "mode", "gid"].contains(&key),
                        _ => false,
                    };
                    known.then(|| options.push((key, Some(value))))?;
                }
            }
        }
        let name = mount["source"].as_str()?;
        let source = match kind {
            "bind" => Source::Bind { path: Path::new(name), recursive },
            _ => Source::New { kind, name, options },
        };
        Some(Self { destination, source, attr, all })
    }

    /// Makes the mount in the directory `root`, whose path is `base`.
    fn make(&self, root: &OwnedFd, base: &Path) -> Option<OwnedFd> {
        let target = match rootfs::resolve_in_root(root, self.destination).ok()? {
            Some(target) => target,
            None if matches!(self.source, Source::New { .. }) => {
                make_dir(root, self.destination)?;
                rootfs::resolve_in_root(root, self.destination).ok()??
            }
            None => return None,
        };
        // Below a link, the mount could be hidden by one that is made later.
        let inside = self.destination.strip_prefix("/").ok()?;
        if std::fs::read_link(mount::fd_path(&target)).ok()? != base.join(inside) {
            return None;
        }
        let tree = self.source.open(self.attr)?;
        if self.all != Attr::NONE {
            mount::set(&tree, self.all, true).ok()?;
        }
        mount::attach(tree.as_fd(), target.as_fd()).ok()?;
        Some(tree)
    }
}

/// Creates a directory in `root`, and its missing parents. If the parents exist, one call is enough.
fn make_dir(root: &OwnedFd, path: &Path) -> Option<()> {
    if let (Some(parent), Some(name)) = (path.parent(), path.file_name())
        && let Ok(Some(parent)) = rootfs::resolve_in_root(root, parent)
        && nix::sys::stat::mkdirat(&parent, name, nix::sys::stat::Mode::from_bits_truncate(0o755)).is_ok()
    {
        return Some(());
    }
    rootfs::create_dir_in_root(root, path).ok().map(|_| ())
}

impl Source<'_> {
    /// Returns a detached mount.
    fn open(&self, attr: Attr) -> Option<OwnedFd> {
        match self {
            Self::Bind { path, recursive } => {
                let tree = mount::clone(path, *recursive).ok()?;
                if attr != Attr::NONE {
                    mount::set(&tree, attr, false).ok()?;
                }
                Some(tree)
            }
            Self::New { kind, name, options } => {
                let context = FsContext::open(&CString::new(*kind).ok()?).ok()?;
                context.string(c"source", name.as_bytes()).ok()?;
                for (key, value) in options {
                    let key = CString::new(*key).ok()?;
                    match value {
                        Some(value) => context.string(&key, value.as_bytes()).ok()?,
                        None => context.flag(&key).ok()?,
                    }
                }
                context.mount(attr).ok()
            }
        }
    }
}

/// Mounts the container's own cgroups of version 1 below the new directory `dir`, read-only, and replaces their mounts
/// in `spec` with one. `None` if they are not mounted this way or not read-only, or if that fails; `spec` is then
/// unchanged.
fn gather_cgroups(spec: &mut Value, dir: &Path) -> Option<PathBuf> {
    // A privileged container may write to its cgroups.
    let read_only = spec["linux"]["readonlyPaths"].as_array()?;
    if !read_only.iter().any(|path| path == CGROUPS) {
        return None;
    }
    let mounts = spec["mounts"].as_array()?;
    let at = |mount: &Value, path: &str| mount["destination"].as_str() == Some(path);
    let first = mounts.iter().position(|mount| at(mount, CGROUPS) && mount["type"] == "tmpfs")?;
    let is_below = |mount: &Value| {
        let destination = mount["destination"].as_str().map(Path::new);
        destination.is_some_and(|destination| destination.starts_with(CGROUPS) && destination != Path::new(CGROUPS))
    };
    let mut made = Made::default();
    let options = &Request::parse(&mounts[first], &["tmpfs"])?;
    let tmpfs = options.source.open(options.attr)?;
    std::fs::create_dir(dir).ok()?;
    let target = rootfs::open_root(dir).ok()?;
    mount::attach(tmpfs.as_fd(), target.as_fd()).ok()?;
    made.cgroups = Some(dir.to_owned());
    for mount in mounts.iter().filter(|mount| is_below(mount)) {
        let destination = mount["destination"].as_str()?;
        let name = Path::new(destination.strip_prefix(CGROUPS)?.strip_prefix('/')?);
        let is_read_only = mount["options"].as_array().is_some_and(|options| options.iter().any(|one| one == "ro"));
        if name.components().count() != 1 || mount["type"] != "bind" || !is_read_only {
            return None;
        }
        let mode = nix::sys::stat::Mode::from_bits_truncate(0o755);
        nix::sys::stat::mkdirat(&tmpfs, name, mode).ok()?;
        let tree = mount::clone(Path::new(mount["source"].as_str()?), true).ok()?;
        let name = CString::new(name.as_os_str().as_encoded_bytes()).ok()?;
        mount::attach_at(tree.as_fd(), tmpfs.as_fd(), &name).ok()?;
    }
    let attr = Attr::NOSUID.and(Attr::NODEV).and(Attr::NOEXEC).and(Attr::RDONLY);
    mount::set(&tmpfs, attr, true).ok()?;
    let one = json!({ "destination": CGROUPS, "type": "bind", "source": dir, "options": ["rbind"] });
    let mounts = spec["mounts"].as_array_mut()?;
    mounts[first] = one;
    mounts.retain(|mount| !is_below(mount));
    if let Some(read_only) = spec["linux"]["readonlyPaths"].as_array_mut() {
        read_only.retain(|path| path != CGROUPS);
    }
    made.cgroups.take()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mounts_that_are_made_early() {
        let mount = |kind: &str, options: &[&str]| json!({ "destination": "/a/b", "type": kind, "source": "/s", "options": options });
        let early = ["bind", "tmpfs", "devpts"];
        let cases: [(&str, &[&str], bool); 14] = [
            ("bind", &["rbind", "ro", "rro", "rprivate"], true),
            ("bind", &["bind", "rw", "nosuid", "nodev", "noexec"], true),
            ("bind", &["bind", "rshared"], false),
            ("bind", &["bind", "slave"], false),
            ("bind", &["bind", "relatime"], false),
            ("bind", &["bind", "size=1k"], false),
            ("tmpfs", &["nosuid", "strictatime", "mode=755", "size=65536k"], true),
            ("tmpfs", &["mpol=local"], false),
            ("tmpfs", &["newinstance"], false),
            ("devpts", &["newinstance", "ptmxmode=0666", "mode=0620", "gid=5"], true),
            ("proc", &["nosuid"], false),
            ("sysfs", &["ro"], false),
            ("mqueue", &[], false),
            ("cgroup", &["ro"], false),
        ];
        for (kind, options, is_early) in cases {
            assert_eq!(Request::parse(&mount(kind, options), &early).is_some(), is_early, "{kind} {options:?}");
        }
        for (kind, options, in_namespaces) in
            [("sysfs", ["ro"], true), ("mqueue", ["nodev"], true), ("proc", ["ro"], false)]
        {
            let mount = mount(kind, &options);
            assert_eq!(Request::parse(&mount, &OF_NAMESPACES).is_some(), in_namespaces, "{kind}");
        }
        let mount = mount("bind", &["rbind", "ro", "rro"]);
        let want = Source::Bind { path: Path::new("/s"), recursive: true };
        let Request { source, attr, all, .. } = Request::parse(&mount, &early).expect("early");
        assert_eq!((source, attr, all), (want, Attr::RDONLY, Attr::RDONLY));
        let root = json!({ "destination": "/", "type": "bind", "source": "/s", "options": [] });
        assert_eq!(Request::parse(&root, &early), None);
    }
}
