//! Layers' entries, lowest layer first → the merged tree.
//!
//! The rules, each with its source:
//! - Names are cleaned as Go's `path.Clean` does; one that still climbs above the root is refused (moby: "breakout").
//! - Parent directories are resolved IN the tree, links followed as a chroot would (containerd: `fs.RootPath`); missing ones are made
//!   (0755, root, the epoch). The last component is never followed: it is replaced.
//! - A directory listed over a directory keeps the children, its metadata win; anything else replaces, whole subtrees included.
//! - Whiteouts hide only what LOWER layers brought, wherever they stand in their layer (OCI image spec, layer.md): so every name
//!   remembers the layer that listed it.
//! - `trusted.overlay.*` xattrs are our overlay's own words, an image may not speak them: dropped.

use std::collections::BTreeMap;

use super::tar::{Entry, EntryKind};
use super::tree::{Data, Inode, InodeId, Kind, Name, Tree};
use crate::names::Digest;

const WHITEOUT: &[u8] = b".wh.";
const OPAQUE: &[u8] = b".wh..wh..opq";
/// aufs' own bookkeeping in very old images: `.wh..wh.plnk`, `.wh..wh.orph`, `.wh..wh.aufs`.
const AUFS: &[u8] = b".wh..wh.";

/// Linux: NAME_MAX, PATH_MAX.
const NAME_MAX: usize = 255;
const PATH_MAX: usize = 4096;
/// Deeper than any real image; keeps recursions and open directory descriptors of the renderers bounded.
const MAX_DEPTH: usize = 512;
/// Linux follows 40 links in one path.
const MAX_LINKS: usize = 40;
/// Inodes of one image: several times the largest known ones, and some 2 GiB of memory at the worst.
const MAX_INODES: usize = 3_000_000;
/// Steps of all names of one image through links; a few hundred links of 4 KiB, followed by every entry, would take days.
const MAX_LINK_STEPS: usize = 50_000_000;
/// Sources of one image: the device slots of an index.
const MAX_LAYERS: usize = 1000;

/// An entry that a layer may not hold.
#[derive(Debug, thiserror::Error)]
#[error("layer `{layer}` has an entry `{path}` that cannot be applied: {problem}")]
pub struct MergeError {
    pub layer: Digest,
    pub path: String,
    pub problem: Problem,
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Problem {
    #[error("its name climbs above the root")]
    Escapes,
    #[error("its name is empty")]
    EmptyName,
    #[error("a component of its name is longer than 255 bytes")]
    NameTooLong,
    #[error("its name is longer than 4096 bytes")]
    PathTooLong,
    #[error("it lies more than {MAX_DEPTH} directories deep")]
    TooDeep,
    #[error("the root must be a directory")]
    RootNotDirectory,
    #[error("`{0}` on its way is not a directory")]
    ParentNotDirectory(String),
    #[error("more than {MAX_LINKS} symbolic links on its way")]
    Loop,
    #[error("its whiteout name is not one")]
    Whiteout,
    #[error("its link target is empty, too long or holds a NUL byte")]
    LinkTarget,
    #[error("it is a hard link to `{0}`, which does not exist")]
    LinkMissing(String),
    #[error("it is a hard link to the directory `{0}`")]
    LinkToDirectory(String),
    #[error("the image has more than {MAX_LAYERS} layers")]
    TooManyLayers,
    #[error("the image has more than {MAX_INODES} files")]
    TooManyFiles,
    #[error("the image's symbolic links take too long to follow")]
    TooManySteps,
}

#[derive(Debug, Clone, Copy)]
struct Slot {
    id: u32,
    /// The layer (counted from 1) that listed this name last; 0 for the root of nothing.
    layer: u32,
}

#[derive(Debug)]
enum Node {
    Directory(BTreeMap<Name, Slot>),
    Leaf(Kind),
}

#[derive(Debug)]
struct Item {
    node: Node,
    mode: u16,
    uid: u32,
    gid: u32,
    mtime: (i64, u32),
    xattrs: BTreeMap<Box<[u8]>, Box<[u8]>>,
}

/// The tree as far as it has grown; [`Merger::apply`] one layer after the other, then [`Merger::finish`].
#[derive(Debug)]
pub struct Merger {
    items: Vec<Item>,
    sources: Vec<Digest>,
    layer: u32,
    link_steps: usize,
    /// [`MAX_INODES`]; a test that made so many would need their memory.
    max_inodes: usize,
    /// Where the last entry went: most entries share their parent with the one before. Dropped by whatever may move the ground.
    last_parent: Option<(Vec<u8>, u32)>,
}

impl Default for Merger {
    fn default() -> Self {
        Self::new()
    }
}

impl Merger {
    pub fn new() -> Self {
        Self {
            items: vec![implicit_directory()],
            sources: Vec::new(),
            layer: 0,
            link_steps: 0,
            max_inodes: MAX_INODES,
            last_parent: None,
        }
    }

    /// Applies the next layer.
    pub fn apply(&mut self, diff_id: Digest, entries: Vec<Entry>) -> Result<(), MergeError> {
        // The same layer twice (empty ones, mostly) is one source.
        let source = self.sources.iter().position(|known| *known == diff_id).unwrap_or_else(|| {
            self.sources.push(diff_id);
            self.sources.len() - 1
        });
        let refuse =
            |path: &[u8], problem| MergeError { layer: diff_id, path: path.escape_ascii().to_string(), problem };
        if source >= MAX_LAYERS {
            return Err(refuse(b"", Problem::TooManyLayers));
        }
        self.layer += 1;
        self.last_parent = None;
        for mut entry in entries {
            let path = std::mem::take(&mut entry.path);
            self.entry(&path, entry, source as u32).map_err(|problem| refuse(&path, problem))?;
        }
        Ok(())
    }

    /// The merged tree, its inodes numbered from the root in the order of their names.
    pub fn finish(mut self) -> Tree {
        let mut order: Vec<u32> = vec![0];
        let mut number: Vec<Option<u32>> = vec![None; self.items.len()];
        number[0] = Some(0);
        let mut at = 0;
        while at < order.len() {
            if let Node::Directory(children) = &self.items[order[at] as usize].node {
                for slot in children.values() {
                    let seen = &mut number[slot.id as usize];
                    if seen.is_none() {
                        *seen = Some(order.len() as u32);
                        order.push(slot.id);
                    }
                }
            }
            at += 1;
        }
        let inodes = order
            .iter()
            .map(|id| {
                let item = std::mem::replace(&mut self.items[*id as usize], implicit_directory());
                let kind = match item.node {
                    Node::Leaf(kind) => kind,
                    Node::Directory(children) => Kind::Directory(
                        children
                            .into_iter()
                            .filter_map(|(name, slot)| Some((name, InodeId(number[slot.id as usize]?))))
                            .collect(),
                    ),
                };
                Inode { kind, mode: item.mode, uid: item.uid, gid: item.gid, mtime: item.mtime, xattrs: item.xattrs }
            })
            .collect();
        Tree { inodes, sources: self.sources }
    }

    fn entry(&mut self, path: &[u8], entry: Entry, source: u32) -> Result<(), Problem> {
        let mut components = clean(path)?;
        // A name makes at most its depth of directories and itself.
        if self.items.len() + components.len() > self.max_inodes {
            return Err(Problem::TooManyFiles);
        }
        let Some(name) = components.pop() else {
            return self.root(path, entry);
        };
        if components.iter().any(|component| component.starts_with(AUFS)) || (name.starts_with(AUFS) && name != OPAQUE)
        {
            return Ok(());
        }
        if components.iter().any(|component| component.starts_with(WHITEOUT)) {
            return Err(Problem::Whiteout);
        }
        if name == OPAQUE {
            if let Some(parent) = self.find_directory(&components)? {
                self.last_parent = None;
                self.prune(parent);
            }
            return Ok(());
        }
        if let Some(hidden) = name.strip_prefix(WHITEOUT) {
            return self.whiteout(&components, hidden);
        }
        match entry.kind {
            EntryKind::HardLink(ref target) => self.hard_link(&components, name, target),
            _ => self.put(&components, name, entry, source),
        }
    }

    fn root(&mut self, path: &[u8], entry: Entry) -> Result<(), Problem> {
        match entry.kind {
            EntryKind::Directory => {
                self.items[0] = Item {
                    node: std::mem::replace(&mut self.items[0].node, Node::Leaf(Kind::Fifo)),
                    ..metadata(entry)
                };
                Ok(())
            }
            _ if path.is_empty() => Err(Problem::EmptyName),
            _ => Err(Problem::RootNotDirectory),
        }
    }

    fn put(&mut self, parents: &[&[u8]], name: &[u8], entry: Entry, source: u32) -> Result<(), Problem> {
        let parent = self.parent(parents)?;
        let kind = match &entry.kind {
            EntryKind::Directory => None,
            EntryKind::File(data) => Some(Kind::File(from_source(data, source))),
            EntryKind::Symlink(target) => Some(Kind::Symlink(link_target(target)?)),
            EntryKind::CharDevice { major, minor } => Some(Kind::CharDevice { major: *major, minor: *minor }),
            EntryKind::BlockDevice { major, minor } => Some(Kind::BlockDevice { major: *major, minor: *minor }),
            EntryKind::Fifo => Some(Kind::Fifo),
            EntryKind::HardLink(_) => return Ok(()),
        };
        let layer = self.layer;
        let old = self.children(parent).get(name).map(|slot| slot.id);
        let mut item = metadata(entry);
        if let Some(kind) = kind {
            item.node = Node::Leaf(kind);
        } else if let Some(old) = old
            && let Node::Directory(_) = self.items[old as usize].node
        {
            item.node = std::mem::replace(&mut self.items[old as usize].node, Node::Leaf(Kind::Fifo));
            self.items[old as usize] = item;
            self.children_mut(parent).insert(name.into(), Slot { id: old, layer });
            return Ok(());
        }
        let id = self.items.len() as u32;
        self.items.push(item);
        self.name(parent, name, Slot { id, layer });
        Ok(())
    }

    fn hard_link(&mut self, parents: &[&[u8]], name: &[u8], target: &[u8]) -> Result<(), Problem> {
        let shown = || target.escape_ascii().to_string();
        let mut components = clean(target)?;
        let last = components.pop().ok_or_else(|| Problem::LinkToDirectory(shown()))?;
        let holder = self.find_directory(&components)?.ok_or_else(|| Problem::LinkMissing(shown()))?;
        let id = self.children(holder).get(last).ok_or_else(|| Problem::LinkMissing(shown()))?.id;
        if let Node::Directory(_) = self.items[id as usize].node {
            return Err(Problem::LinkToDirectory(shown()));
        }
        let parent = self.parent(parents)?;
        let layer = self.layer;
        self.name(parent, name, Slot { id, layer });
        Ok(())
    }

    fn whiteout(&mut self, parents: &[&[u8]], hidden: &[u8]) -> Result<(), Problem> {
        if matches!(hidden, b"" | b"." | b"..") {
            return Err(Problem::Whiteout);
        }
        let Some(parent) = self.find_directory(parents)? else {
            return Ok(());
        };
        let Some(slot) = self.children(parent).get(hidden).copied() else {
            return Ok(());
        };
        self.last_parent = None;
        let keep = match self.items[slot.id as usize].node {
            Node::Directory(_) => self.prune(slot.id) || slot.layer == self.layer,
            Node::Leaf(_) => slot.layer == self.layer,
        };
        if !keep {
            self.children_mut(parent).remove(hidden);
        }
        Ok(())
    }

    /// Takes everything of lower layers out of a directory; true when something of this layer is left in it.
    fn prune(&mut self, directory: u32) -> bool {
        let children = std::mem::take(self.children_mut(directory));
        let layer = self.layer;
        let kept: BTreeMap<Name, Slot> = children
            .into_iter()
            .filter(|(_, slot)| match self.items[slot.id as usize].node {
                // A lower directory stays when this layer put something into it.
                Node::Directory(_) => self.prune(slot.id) || slot.layer == layer,
                Node::Leaf(_) => slot.layer == layer,
            })
            .collect();
        let left = !kept.is_empty();
        *self.children_mut(directory) = kept;
        left
    }

    fn name(&mut self, parent: u32, name: &[u8], slot: Slot) {
        // A directory or link that goes away may have been on the way to the remembered parent; a new link may be on a later one.
        if self.children_mut(parent).insert(name.into(), slot).is_some() {
            self.last_parent = None;
        }
    }

    /// The directory that an entry goes into, made where it is missing.
    fn parent(&mut self, components: &[&[u8]]) -> Result<u32, Problem> {
        let key = components.join(&b'/');
        if let Some((last, id)) = &self.last_parent
            && *last == key
        {
            return Ok(*id);
        }
        let id = self.walk(components, true)?.ok_or(Problem::EmptyName)?;
        self.last_parent = Some((key, id));
        Ok(id)
    }

    fn find_directory(&mut self, components: &[&[u8]]) -> Result<Option<u32>, Problem> {
        self.walk(components, false)
    }

    /// Follows `components` from the root as a chroot would; missing directories are made when asked for.
    fn walk(&mut self, components: &[&[u8]], make: bool) -> Result<Option<u32>, Problem> {
        let mut stack = vec![0u32];
        let mut todo: Vec<Name> = components.iter().rev().map(|component| Name::from(*component)).collect();
        let mut links = 0;
        while let Some(component) = todo.pop() {
            let here = stack[stack.len() - 1];
            match component.as_ref() {
                b"" | b"." => continue,
                b".." => {
                    if stack.len() > 1 {
                        stack.pop();
                    }
                    continue;
                }
                _ => {}
            }
            if stack.len() >= MAX_DEPTH {
                return Err(Problem::TooDeep);
            }
            let Some(slot) = self.children(here).get(&component).copied() else {
                if !make {
                    return Ok(None);
                }
                if component.len() > NAME_MAX {
                    return Err(Problem::NameTooLong);
                }
                // By way of a link's target: no tree of ours has such a name.
                if component.starts_with(WHITEOUT) {
                    return Err(Problem::Whiteout);
                }
                let id = self.items.len() as u32;
                self.items.push(implicit_directory());
                let layer = self.layer;
                self.children_mut(here).insert(component, Slot { id, layer });
                stack.push(id);
                continue;
            };
            match &self.items[slot.id as usize].node {
                Node::Directory(_) => stack.push(slot.id),
                Node::Leaf(Kind::Symlink(target)) => {
                    links += 1;
                    if links > MAX_LINKS {
                        return Err(Problem::Loop);
                    }
                    self.link_steps += target.len();
                    if self.link_steps > MAX_LINK_STEPS {
                        return Err(Problem::TooManySteps);
                    }
                    if target.starts_with(b"/") {
                        stack.truncate(1);
                    }
                    todo.extend(target.split(|byte| *byte == b'/').rev().map(Name::from));
                }
                Node::Leaf(_) if !make => return Ok(None),
                Node::Leaf(_) => return Err(Problem::ParentNotDirectory(component.escape_ascii().to_string())),
            }
        }
        Ok(stack.last().copied())
    }

    fn children(&self, directory: u32) -> &BTreeMap<Name, Slot> {
        static NONE: BTreeMap<Name, Slot> = BTreeMap::new();
        match &self.items[directory as usize].node {
            Node::Directory(children) => children,
            Node::Leaf(_) => &NONE,
        }
    }

    fn children_mut(&mut self, directory: u32) -> &mut BTreeMap<Name, Slot> {
        match &mut self.items[directory as usize].node {
            Node::Directory(children) => children,
            Node::Leaf(_) => unreachable!("ids of directories come from `walk` and `prune` only"),
        }
    }
}

fn implicit_directory() -> Item {
    Item { node: Node::Directory(BTreeMap::new()), mode: 0o755, uid: 0, gid: 0, mtime: (0, 0), xattrs: BTreeMap::new() }
}

/// An entry's metadata on an empty directory.
fn metadata(entry: Entry) -> Item {
    let mut xattrs = entry.xattrs;
    xattrs.retain(|name, _| !name.starts_with(b"trusted.overlay."));
    Item { mode: entry.mode, uid: entry.uid, gid: entry.gid, mtime: entry.mtime, xattrs, ..implicit_directory() }
}

fn from_source(data: &Data, source: u32) -> Data {
    let mut data = data.clone();
    for segment in &mut data.segments {
        segment.source = source;
    }
    data
}

fn link_target(target: &[u8]) -> Result<Box<[u8]>, Problem> {
    if target.is_empty() || target.len() >= PATH_MAX || target.contains(&0) {
        return Err(Problem::LinkTarget);
    }
    Ok(target.into())
}

/// The components of a name, cleaned by its letters alone; leading `/` are dropped.
fn clean(path: &[u8]) -> Result<Vec<&[u8]>, Problem> {
    if path.len() > PATH_MAX {
        return Err(Problem::PathTooLong);
    }
    let mut components = Vec::new();
    for component in path.split(|byte| *byte == b'/') {
        match component {
            b"" | b"." => {}
            b".." => {
                components.pop().ok_or(Problem::Escapes)?;
            }
            _ if component.len() > NAME_MAX => return Err(Problem::NameTooLong),
            _ => components.push(component),
        }
    }
    if components.len() >= MAX_DEPTH { Err(Problem::TooDeep) } else { Ok(components) }
}

/// Chain id of a stack of diff ids (OCI image spec, config.md); of no layer at all, the digest of nothing.
pub fn chain_id(diff_ids: &[Digest]) -> Digest {
    use sha2::{Digest as _, Sha256};
    let mut ids = diff_ids.iter();
    let Some(first) = ids.next() else {
        return Digest(Sha256::digest(b"").into());
    };
    ids.fold(*first, |chain, next| Digest(Sha256::digest(format!("{chain} {next}").as_bytes()).into()))
}

#[cfg(test)]
mod tests;
