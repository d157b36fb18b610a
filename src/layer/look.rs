//! Looking things up in a merged tree: names, links followed inside it, and the bytes of small files.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use super::tree::{Data, Inode, InodeId, Kind, Name, Tree};

/// Linux follows 40 links in one path.
const MAX_LINKS: usize = 40;

/// Where a path leads.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    /// Its names from the root, no link among those that exist.
    pub path: Vec<Name>,
    /// What stands there; nothing, if the last names are not in the tree.
    pub inode: Option<InodeId>,
}

impl Place {
    /// The path as a tar names it: no leading `/`; the root is empty.
    #[must_use]
    pub fn name(&self) -> Vec<u8> {
        self.path.join(&b'/')
    }
}

/// A path that leads nowhere.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum LookError {
    #[error("more than {MAX_LINKS} symbolic links on its way")]
    Loop,
    #[error("something on its way is not a directory")]
    NotDirectory,
}

impl Tree {
    /// A tree of nothing but its root.
    #[must_use]
    pub fn empty() -> Self {
        super::Merger::new().finish()
    }

    #[must_use]
    pub fn inode(&self, id: InodeId) -> &Inode {
        &self.inodes[id.0 as usize]
    }

    /// The entries of a directory; nothing has none.
    #[must_use]
    pub fn children(&self, id: InodeId) -> Option<&std::collections::BTreeMap<Name, InodeId>> {
        match &self.inode(id).kind {
            Kind::Directory(children) => Some(children),
            _ => None,
        }
    }

    /// What stands at exactly this path: links are not followed, `.` and `..` mean nothing.
    #[must_use]
    pub fn get(&self, path: &[u8]) -> Option<InodeId> {
        let mut at = InodeId(0);
        for name in path.split(|byte| *byte == b'/').filter(|name| !name.is_empty()) {
            at = *self.children(at)?.get(name)?;
        }
        Some(at)
    }

    /// Where a path leads, links followed as a chroot would; the last one only with `follow`. Names that are missing are kept as
    /// they are: that is where a copy would make them.
    pub fn resolve(&self, path: &[u8], follow: bool) -> Result<Place, LookError> {
        let mut stack: Vec<(Name, Option<InodeId>)> = Vec::new();
        let mut todo: Vec<Name> = path.split(|byte| *byte == b'/').rev().map(Name::from).collect();
        let mut links = 0;
        while let Some(name) = todo.pop() {
            match &*name {
                b"" | b"." => continue,
                b".." => {
                    stack.pop();
                    continue;
                }
                _ => {}
            }
            let here = stack.last().map_or(Some(InodeId(0)), |(_, id)| *id);
            let next = match here {
                None => None,
                Some(here) => self.children(here).ok_or(LookError::NotDirectory)?.get(&name).copied(),
            };
            let last = todo.iter().all(|name| matches!(&**name, b"" | b"."));
            if let Some(id) = next
                && let Kind::Symlink(target) = &self.inode(id).kind
                && (follow || !last)
            {
                links += 1;
                if links > MAX_LINKS {
                    return Err(LookError::Loop);
                }
                if target.starts_with(b"/") {
                    stack.clear();
                }
                todo.extend(target.split(|byte| *byte == b'/').rev().map(Name::from));
                continue;
            }
            stack.push((name, next));
        }
        let inode = stack.last().map_or(Some(InodeId(0)), |(_, id)| *id);
        Ok(Place { path: stack.into_iter().map(|(name, _)| name).collect(), inode })
    }

    /// The tree as it is seen from `id`: a directory becomes the root, anything else the root's only child, `file`.
    #[must_use]
    pub fn below(&self, id: InodeId) -> Self {
        let mut tree = self.clone();
        tree.inodes[0] = match &self.inode(id).kind {
            Kind::Directory(_) => self.inode(id).clone(),
            _ => {
                let mut root = Self::empty().inodes.remove(0);
                root.kind = Kind::Directory([(Name::from(&b"file"[..]), id)].into());
                root
            }
        };
        tree
    }

    /// The tree as it may leave a container, or enter one: without devices and FIFOs. With an owner everything is that one's, and no program
    /// runs as somebody else for it.
    #[must_use]
    pub fn portable(mut self, owner: Option<(u32, u32)>) -> Self {
        let is_node = |kind: &Kind| !matches!(kind, Kind::Directory(_) | Kind::File(_) | Kind::Symlink(_));
        let nodes: Vec<bool> = self.inodes.iter().map(|inode| is_node(&inode.kind)).collect();
        for inode in &mut self.inodes {
            if let Kind::Directory(children) = &mut inode.kind {
                children.retain(|_, id| !nodes[id.0 as usize]);
            }
            if let Some((uid, gid)) = owner {
                (inode.uid, inode.gid) = (uid, gid);
                inode.mode &= 0o1777;
                inode.xattrs.retain(|name, _| &**name != b"security.capability");
            }
        }
        self
    }

    /// The bytes of the regular file at `path`, links followed; none if there is no such file or it has more than `max` bytes.
    pub fn read_small(&self, sources: &[File], path: &[u8], max: u64) -> io::Result<Option<Vec<u8>>> {
        let Ok(Place { inode: Some(id), .. }) = self.resolve(path, true) else { return Ok(None) };
        match &self.inode(id).kind {
            Kind::File(data) if data.size <= max => read(data, sources).map(Some),
            _ => Ok(None),
        }
    }
}

fn read(data: &Data, sources: &[File]) -> io::Result<Vec<u8>> {
    let mut bytes = vec![0; data.size as usize];
    for segment in &data.segments {
        let (at, len) = (segment.at as usize, segment.len as usize);
        sources[segment.source as usize].read_exact_at(&mut bytes[at..at + len], segment.offset)?;
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::super::testing::Layer;
    use super::super::{Merger, Scanner};
    use super::*;
    use crate::names::Digest;

    fn tree() -> Tree {
        let layer = Layer::new()
            .dir("usr/bin")
            .file("usr/bin/sh", "x")
            .link("bin", "usr/bin")
            .link("up", "../../usr/./bin/")
            .link("abs", "/usr/new/deep")
            .link("loop", "loop");
        let mut scanner = Scanner::new();
        scanner.feed(&layer.end()).expect("scanned");
        let mut merger = Merger::new();
        merger.apply(Digest([0; 32]), scanner.finish().expect("whole")).expect("merged");
        merger.finish()
    }

    #[test]
    fn links_lead_inside_and_missing_names_are_kept() {
        let tree = tree();
        for (path, follow, want, there) in [
            ("/", true, "", true),
            ("bin/sh", true, "usr/bin/sh", true),
            ("/bin", true, "usr/bin", true),
            ("/bin", false, "bin", true),
            ("up/sh", true, "usr/bin/sh", true),
            ("../../bin/./sh", true, "usr/bin/sh", true),
            ("abs/x", true, "usr/new/deep/x", false),
            ("none/../bin/sh", true, "usr/bin/sh", true),
        ] {
            let place = tree.resolve(path.as_bytes(), follow).expect(path);
            assert_eq!((place.name(), place.inode.is_some()), (want.as_bytes().to_vec(), there), "{path}");
        }
        assert_eq!(tree.resolve(b"loop/x", true), Err(LookError::Loop));
        assert_eq!(tree.resolve(b"bin/sh/x", true), Err(LookError::NotDirectory));
        assert!(tree.get(b"usr/bin/sh").is_some() && tree.get(b"bin/sh").is_none());
    }
}
