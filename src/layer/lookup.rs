//! Lookups in a merged tree: resolves names and symbolic links inside the tree, and reads small files.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use super::tree::{Data, Inode, InodeId, Kind, Name, Tree};

/// Linux follows at most 40 links in one path.
const MAX_LINKS: usize = 40;

/// The result of resolving a path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Resolved {
    /// The components from the root. None of the existing ones is a link.
    pub path: Vec<Name>,
    /// The inode at the path, or `None` if the last components do not exist in the tree.
    pub inode: Option<InodeId>,
}

impl Resolved {
    /// The path as a tar names it: without a leading `/`, and empty for the root.
    #[must_use]
    pub fn name(&self) -> Vec<u8> {
        self.path.join(&b'/')
    }
}

/// The error of a path that cannot be resolved.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum LookupError {
    #[error("its path leads through more than {MAX_LINKS} symbolic links")]
    Loop,
    #[error("a component of its path is not a directory")]
    NotDirectory,
}

impl Tree {
    /// A tree that consists of an empty root directory.
    #[must_use]
    pub fn empty() -> Self {
        super::Merger::new().finish()
    }

    #[must_use]
    pub fn inode(&self, id: InodeId) -> &Inode {
        &self.inodes[id.0 as usize]
    }

    /// The entries of a directory, or `None` if the inode is not a directory.
    #[must_use]
    pub fn children(&self, id: InodeId) -> Option<&std::collections::BTreeMap<Name, InodeId>> {
        match &self.inode(id).kind {
            Kind::Directory(children) => Some(children),
            _ => None,
        }
    }

    /// The inode at exactly this path: links are not followed, and `.` and `..` have no special meaning.
    #[must_use]
    pub fn get(&self, path: &[u8]) -> Option<InodeId> {
        let mut at = InodeId(0);
        for name in path.split(|byte| *byte == b'/').filter(|name| !name.is_empty()) {
            at = *self.children(at)?.get(name)?;
        }
        Some(at)
    }

    /// Resolves a path and follows links as a chroot would, the last one only with `follow`. Missing components are
    /// kept as they are, because a copy would create them there.
    pub fn resolve(&self, path: &[u8], follow: bool) -> Result<Resolved, LookupError> {
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
                Some(here) => self.children(here).ok_or(LookupError::NotDirectory)?.get(&name).copied(),
            };
            let last = todo.iter().all(|name| matches!(&**name, b"" | b"."));
            if let Some(id) = next
                && let Kind::Symlink(target) = &self.inode(id).kind
                && (follow || !last)
            {
                links += 1;
                if links > MAX_LINKS {
                    return Err(LookupError::Loop);
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
        Ok(Resolved { path: stack.into_iter().map(|(name, _)| name).collect(), inode })
    }

    /// The tree with `id` as its root. If `id` is not a directory, it becomes the only child of the root, with the name
    /// `file`.
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

    /// The tree in the form that may leave or enter a container: without devices and FIFOs. With `owner`, every inode
    /// gets that owner and loses its setuid bits, setgid bits and capabilities, so that no program gains another user's
    /// rights.
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

    /// Reads the regular file at `path`, following links. Returns `None` if there is no such file or if it has more
    /// than `max` bytes.
    pub fn read_small(&self, sources: &[File], path: &[u8], max: u64) -> io::Result<Option<Vec<u8>>> {
        let Ok(Resolved { inode: Some(id), .. }) = self.resolve(path, true) else { return Ok(None) };
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
            let resolved = tree.resolve(path.as_bytes(), follow).expect(path);
            assert_eq!((resolved.name(), resolved.inode.is_some()), (want.as_bytes().to_vec(), there), "{path}");
        }
        assert_eq!(tree.resolve(b"loop/x", true), Err(LookupError::Loop));
        assert_eq!(tree.resolve(b"bin/sh/x", true), Err(LookupError::NotDirectory));
        assert!(tree.get(b"usr/bin/sh").is_some() && tree.get(b"bin/sh").is_none());
    }
}
