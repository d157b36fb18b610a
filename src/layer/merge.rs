//! Merges the entries of the layers, lowest layer first, into one tree.
//!
//! The rules and their sources:
//! - Names are cleaned as Go's `path.Clean` does. A name that still climbs above the root is rejected (moby:
//!   "breakout").
//! - Parent directories are resolved IN the tree, and links are followed as a chroot would (containerd: `fs.RootPath`).
//!   Missing directories are created (0755, root, the epoch). The last component is never followed but replaced.
//! - A directory entry for an existing directory replaces its metadata and keeps its children. Any other entry replaces
//!   what exists, whole subtrees included.
//! - A whiteout hides only the entries of LOWER layers, wherever it occurs in its own layer (OCI image spec, layer.md).
//!   So every name records the layer that listed it.
//! - `trusted.overlay.*` xattrs are reserved for our own overlay and are dropped from images.

use std::collections::BTreeMap;

use super::tar::{Entry, EntryKind};
use super::tree::{Data, Inode, InodeId, Kind, Name, Tree};
use crate::names::Digest;

const WHITEOUT: &[u8] = b".wh.";
const OPAQUE: &[u8] = b".wh..wh..opq";
/// Internal files of aufs in very old images: `.wh..wh.plnk`, `.wh..wh.orph`, `.wh..wh.aufs`.
const AUFS: &[u8] = b".wh..wh.";

/// Linux: NAME_MAX, PATH_MAX.
const NAME_MAX: usize = 255;
const PATH_MAX: usize = 4096;
/// Deeper than any real image. It bounds the recursion and the open directory descriptors of the renderers.
const MAX_DEPTH: usize = 512;
/// Linux follows at most 40 links in one path.
const MAX_LINKS: usize = 40;
/// The maximum number of inodes of one image, several times that of the largest known ones.
const MAX_INODES: usize = 3_000_000;
/// The maximum memory of one merged tree, as [`weight`] and [`name_weight`] estimate it. It is several times that of
/// the largest known images.
const MAX_MEMORY: usize = 1 << 30;
/// The maximum number of steps for merging one image. Every entry, every component of a path that is walked (also of
/// link targets), and every name that a whiteout visits is one step. Without this limit, a few hundred links of 4 KiB
/// that every entry follows would take days.
pub(crate) const MAX_STEPS: u64 = 100_000_000;
/// The maximum number of sources of one image, limited by the device slots of an index.
const MAX_LAYERS: usize = 1000;

/// The error of an entry that a layer may not contain.
#[derive(Debug, thiserror::Error)]
#[error("layer `{layer}` has an entry `{path}` that cannot be applied: {problem}")]
pub struct MergeError {
    pub layer: Digest,
    pub path: String,
    pub problem: Problem,
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Problem {
    #[error("its name leads above the root")]
    Escapes,
    #[error("its name is empty")]
    EmptyName,
    #[error("a component of its name is longer than 255 bytes")]
    NameTooLong,
    #[error("its name is longer than 4096 bytes")]
    PathTooLong,
    #[error("it is more than {MAX_DEPTH} directories deep")]
    TooDeep,
    #[error("the root must be a directory")]
    RootNotDirectory,
    #[error("`{0}` in its path is not a directory")]
    ParentNotDirectory(String),
    #[error("its path leads through more than {MAX_LINKS} symbolic links")]
    Loop,
    #[error("its whiteout name is invalid")]
    Whiteout,
    #[error("its link target is empty, too long or contains a NUL byte")]
    LinkTarget,
    #[error("it is a hard link to `{0}`, which does not exist")]
    LinkMissing(String),
    #[error("it is a hard link to the directory `{0}`")]
    LinkToDirectory(String),
    #[error("the image has more than {MAX_LAYERS} layers")]
    TooManyLayers,
    #[error("the image has more than {MAX_INODES} files")]
    TooManyFiles,
    #[error("merging the layers takes too many steps")]
    TooManySteps,
    #[error("the merged tree needs more than {} MiB of memory", MAX_MEMORY >> 20)]
    TooMuchMemory,
}

#[derive(Debug, Clone, Copy)]
struct Slot {
    id: u32,
    /// The layer (counted from 1) that last listed this name, or 0 for the initial root.
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
    /// The number of names of this item. An item is freed when it loses its last name, so that layers that replace each
    /// other's files cost no memory.
    links: u32,
    /// For a directory, the last layer in which it was created or pruned. From then on it contains nothing of lower
    /// layers, so pruning it again in the same layer costs nothing.
    clean: u32,
    mode: u16,
    uid: u32,
    gid: u32,
    mtime: (i64, u32),
    xattrs: BTreeMap<Box<[u8]>, Box<[u8]>>,
}

/// The tree so far. Call [`Merger::apply`] for each layer, then [`Merger::finish`].
#[derive(Debug)]
pub struct Merger {
    items: Vec<Item>,
    sources: Vec<Digest>,
    layer: u32,
    /// The indices of `items` that can be reused.
    free: Vec<u32>,
    memory: usize,
    steps_left: u64,
    /// [`MAX_INODES`], except in tests: creating that many inodes would take too much memory.
    max_inodes: usize,
    /// [`MAX_MEMORY`], except in tests.
    max_memory: usize,
    /// The parent of the last entry, as a cache: most entries have the same parent as the entry before. It is cleared
    /// by every change that may make it stale.
    last_parent: Option<(Vec<u8>, u32)>,
}

impl Default for Merger {
    fn default() -> Self {
        Self::new()
    }
}

impl Merger {
    pub fn new() -> Self {
        Self::with_steps(MAX_STEPS)
    }

    /// A merger that may take at most `steps` steps (and never more than [`MAX_STEPS`]).
    pub fn with_steps(steps: u64) -> Self {
        Self {
            items: vec![implicit_directory()],
            sources: Vec::new(),
            layer: 0,
            free: Vec::new(),
            memory: 0,
            steps_left: steps.min(MAX_STEPS),
            max_inodes: MAX_INODES,
            max_memory: MAX_MEMORY,
            last_parent: None,
        }
    }

    pub fn steps_left(&self) -> u64 {
        self.steps_left
    }

    /// Applies the next layer.
    pub fn apply(&mut self, diff_id: Digest, entries: impl IntoIterator<Item = Entry>) -> Result<(), MergeError> {
        // A layer that occurs twice (mostly an empty one) is one source.
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

    /// Returns the merged tree, with inodes numbered from the root in the order of their names.
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
        self.step(1)?;
        // An entry creates at most one directory per component, and itself.
        if self.items.len() - self.free.len() + components.len() > self.max_inodes {
            return Err(Problem::TooManyFiles);
        }
        if self.memory > self.max_memory {
            return Err(Problem::TooMuchMemory);
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
                self.prune(parent)?;
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
                self.replace_metadata(0, metadata(entry));
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
            self.replace_metadata(old, item);
            self.children_mut(parent).insert(name.into(), Slot { id: old, layer });
            return Ok(());
        }
        let id = self.add(item);
        self.name(parent, name.into(), Slot { id, layer });
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
        // Count the new name first: `name` may replace the last existing name of the same item.
        self.items[id as usize].links += 1;
        self.name(parent, name.into(), Slot { id, layer });
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
            Node::Directory(_) => self.prune(slot.id)? || slot.layer == self.layer,
            Node::Leaf(_) => slot.layer == self.layer,
        };
        if !keep && let Some((name, slot)) = self.children_mut(parent).remove_entry(hidden) {
            self.memory = self.memory.saturating_sub(name_weight(&name));
            self.release(slot.id);
        }
        Ok(())
    }

    /// Removes everything of lower layers from a directory. Returns true if something of this layer remains in it. A
    /// layer visits each directory only once, however many whiteouts it has: after the first visit, only its own
    /// entries are left.
    fn prune(&mut self, directory: u32) -> Result<bool, Problem> {
        let layer = self.layer;
        if self.items[directory as usize].clean == layer {
            return Ok(!self.children(directory).is_empty());
        }
        self.items[directory as usize].clean = layer;
        let children = std::mem::take(self.children_mut(directory));
        self.step(children.len() as u64)?;
        let mut kept = BTreeMap::new();
        for (name, slot) in children {
            let keep = match self.items[slot.id as usize].node {
                // A directory of a lower layer stays if this layer added something to it.
                Node::Directory(_) => self.prune(slot.id)? || slot.layer == layer,
                Node::Leaf(_) => slot.layer == layer,
            };
            if keep {
                kept.insert(name, slot);
            } else {
                self.memory = self.memory.saturating_sub(name_weight(&name));
                self.release(slot.id);
            }
        }
        let left = !kept.is_empty();
        *self.children_mut(directory) = kept;
        Ok(left)
    }

    fn step(&mut self, count: u64) -> Result<(), Problem> {
        self.steps_left = self.steps_left.checked_sub(count).ok_or(Problem::TooManySteps)?;
        Ok(())
    }

    /// Adds an item that belongs to this layer.
    fn add(&mut self, item: Item) -> u32 {
        self.memory += weight(&item);
        let item = Item { links: 1, clean: self.layer, ..item };
        match self.free.pop() {
            Some(id) => {
                self.items[id as usize] = item;
                id
            }
            None => {
                self.items.push(item);
                (self.items.len() - 1) as u32
            }
        }
    }

    /// Replaces the metadata of a directory with those of `item` and keeps its children.
    fn replace_metadata(&mut self, directory: u32, item: Item) {
        let old = &mut self.items[directory as usize];
        let node = std::mem::replace(&mut old.node, Node::Leaf(Kind::Fifo));
        self.memory = self.memory.saturating_sub(weight(old)) + weight(&item);
        *old = Item { node, links: old.links, clean: old.clean, ..item };
    }

    /// Removes one name from an item. If it was the last, the item and everything below it are freed.
    fn release(&mut self, id: u32) {
        let mut todo = vec![id];
        while let Some(id) = todo.pop() {
            let item = &mut self.items[id as usize];
            item.links = item.links.saturating_sub(1);
            if item.links > 0 {
                continue;
            }
            self.memory = self.memory.saturating_sub(weight(item));
            if let Node::Directory(children) = std::mem::replace(item, implicit_directory()).node {
                for (name, slot) in children {
                    self.memory = self.memory.saturating_sub(name_weight(&name));
                    todo.push(slot.id);
                }
            }
            self.free.push(id);
        }
    }

    fn name(&mut self, parent: u32, name: Name, slot: Slot) {
        let weight = name_weight(&name);
        // A replaced directory or link may have been part of the path to the cached parent.
        match self.children_mut(parent).insert(name, slot) {
            Some(old) => {
                self.last_parent = None;
                self.release(old.id);
            }
            None => self.memory += weight,
        }
    }

    /// Returns the parent directory of an entry, and creates missing directories.
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

    /// Follows `components` from the root as a chroot would, and creates missing directories if `make` is set.
    fn walk(&mut self, components: &[&[u8]], make: bool) -> Result<Option<u32>, Problem> {
        let mut stack = vec![0u32];
        let mut todo: Vec<Name> = components.iter().rev().map(|component| Name::from(*component)).collect();
        let mut links = 0;
        while let Some(component) = todo.pop() {
            self.step(1)?;
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
                // Only the target of a link can contain such a name here. It is rejected, because a tree must not
                // contain whiteout names.
                if component.starts_with(WHITEOUT) {
                    return Err(Problem::Whiteout);
                }
                let id = self.add(implicit_directory());
                let layer = self.layer;
                self.name(here, component, Slot { id, layer });
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
    Item {
        node: Node::Directory(BTreeMap::new()),
        links: 1,
        clean: 0,
        mode: 0o755,
        uid: 0,
        gid: 0,
        mtime: (0, 0),
        xattrs: BTreeMap::new(),
    }
}

/// Estimates the memory of an item in bytes, without the names in a directory.
fn weight(item: &Item) -> usize {
    let own = match &item.node {
        Node::Leaf(Kind::File(data)) => data.segments.len() * size_of::<super::tree::Segment>(),
        Node::Leaf(Kind::Symlink(target)) => target.len(),
        _ => 0,
    };
    // A map that is not empty allocates space for eleven entries.
    let map = if item.xattrs.is_empty() { 0 } else { 400 };
    size_of::<Item>() + own + map + item.xattrs.iter().map(|(name, value)| 64 + name.len() + value.len()).sum::<usize>()
}

/// Estimates the memory of a name in a directory, in bytes.
fn name_weight(name: &[u8]) -> usize {
    80 + name.len()
}

/// The metadata of an entry, as an empty directory.
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

/// Splits a path into components and cleans it lexically. Leading `/` are dropped.
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

/// The chain ID of a list of diff IDs (OCI image spec, config.md). Without any layer, it is the digest of the empty
/// string.
pub(crate) fn chain_id(diff_ids: &[Digest]) -> Digest {
    use sha2::{Digest as _, Sha256};
    let mut ids = diff_ids.iter();
    let Some(first) = ids.next() else {
        return Digest(Sha256::digest(b"").into());
    };
    ids.fold(*first, |chain, next| Digest(Sha256::digest(format!("{chain} {next}").as_bytes()).into()))
}

#[cfg(test)]
mod tests;
