//! `COPY`, `ADD` and `WORKDIR`: what goes where in the image, as entries of one new layer.
//!
//! Decided against the merged tree of the image so far, in memory: nothing is mounted, no path of the image becomes one of the host. The
//! plan knows a digest of everything in it, which is the step's key in the cache; only where there is no such step are the files read
//! again, and written.

use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::io::{self, Write};
use std::os::unix::fs::FileExt;
use std::rc::Rc;

use sha2::{Digest as _, Sha256};

use super::cache::Key;
use super::context::{Context, ContextError, Found, FoundKind, Source};
use super::ignore;
use crate::layer::tar::Writer;
use crate::layer::{Data, Entry, EntryKind, InodeId, Kind, LookError, Segment, Tree};
use crate::report::Explain;

/// A copy that cannot be made.
#[derive(Debug, thiserror::Error)]
pub enum CopyError {
    #[error(transparent)]
    Context(#[from] ContextError),
    #[error("`{path}` in the image cannot be copied to")]
    Destination { path: String, source: LookError },
    #[error("`{path}` in the image is {found}, and cannot become {wanted}")]
    Mismatch { path: String, found: &'static str, wanted: &'static str },
    #[error("`{path}` comes from two sources: as {first}, and as {then}")]
    Twice { path: String, first: &'static str, then: &'static str },
    #[error("`{path}` is not in {place}")]
    NotThere { path: String, place: String },
    #[error("cannot read `{path}`")]
    Read { path: String, source: io::Error },
    #[error("cannot write the layer")]
    Write(#[source] io::Error),
}

impl Explain for CopyError {
    fn hint(&self) -> Option<String> {
        match self {
            Self::Context(error) => error.hint(),
            _ => None,
        }
    }
}

/// Something to copy: a file, a link, or a directory with all that is in it.
#[derive(Debug)]
pub struct Thing {
    /// Its last name, for a destination that is a directory.
    pub name: Vec<u8>,
    /// The thing itself (its name is empty), then what is in it; directories before their contents.
    pub items: Vec<Item>,
}

#[derive(Debug)]
pub struct Item {
    pub name: Vec<u8>,
    pub kind: EntryKind,
    pub mode: u16,
    pub owner: (u32, u32),
    pub mtime: i64,
    pub xattrs: BTreeMap<Box<[u8]>, Box<[u8]>>,
    pub content: Content,
    /// Says what a file's bytes are.
    pub identity: Vec<u8>,
}

/// Where a file's bytes come from.
#[derive(Debug, Clone)]
pub enum Content {
    None,
    Context(Box<Found>),
    Bytes(Rc<Vec<u8>>),
    /// The segments of the item's kind, in these files.
    Files(Rc<Vec<File>>),
}

/// Where things go.
#[derive(Debug, Clone, Copy)]
pub struct Target<'a> {
    pub tree: &'a Tree,
    /// Absolute; a final `/` says that it is a directory.
    pub destination: &'a str,
    /// There is more than one thing: then it is a directory, too.
    pub several: bool,
    pub owner: Option<(u32, u32)>,
    pub mode: Option<u16>,
    /// No time is later than this.
    pub clamp: Option<i64>,
}

/// A layer that is to be written: entries by path.
#[derive(Debug, Default)]
pub struct Plan {
    entries: BTreeMap<Vec<u8>, (Entry, Content)>,
}

impl Thing {
    /// What it is, times left aside: a touched file is the same file.
    pub fn add_to(&self, key: &mut Key) {
        key.add(&self.name);
        for item in &self.items {
            let kind = match &item.kind {
                EntryKind::File(data) => format!("file {}", data.size),
                other => format!("{other:?}"),
            };
            key.add(&item.name)
                .add(kind)
                .add(format!("{:?}", (item.mode, item.owner, &item.xattrs)))
                .add(&item.identity);
        }
    }

    /// A source of the context. Its files belong to root.
    #[must_use]
    pub fn from_context(source: Source) -> Self {
        let items = source.found.into_iter().map(|found| {
            let (kind, identity) = match &found.kind {
                FoundKind::Directory => (EntryKind::Directory, Vec::new()),
                FoundKind::File { size, digest } => (EntryKind::File(whole(*size)), digest.to_vec()),
                FoundKind::Symlink(target) => (EntryKind::Symlink(target.as_slice().into()), Vec::new()),
            };
            Item {
                name: found.name.clone(),
                kind,
                mode: if matches!(found.kind, FoundKind::Symlink(_)) { 0o777 } else { found.mode },
                owner: (0, 0),
                mtime: found.mtime,
                xattrs: BTreeMap::new(),
                content: Content::Context(Box::new(found)),
                identity,
            }
        });
        Self { name: source.name, items: items.collect() }
    }

    /// The file, if it is one of the context, and the digest that it had: what may be an archive. A fetched archive stays packed, as docker has it.
    pub fn file(&self, context: Option<&Context>) -> Result<Option<(File, [u8; 32])>, CopyError> {
        let ([Item { content: Content::Context(found), .. }], Some(context)) = (self.items.as_slice(), context) else {
            return Ok(None);
        };
        let FoundKind::File { digest, .. } = found.kind else { return Ok(None) };
        let failed = |source| CopyError::Read { path: String::from_utf8_lossy(&self.name).into_owned(), source };
        Ok(Some((context.open_file(&found.path).map_err(failed)?, digest)))
    }

    /// A file with these bytes.
    #[must_use]
    pub fn from_bytes(name: &str, bytes: Vec<u8>, mtime: i64) -> Self {
        let item = Item {
            name: Vec::new(),
            kind: EntryKind::File(whole(bytes.len() as u64)),
            mode: 0o644,
            owner: (0, 0),
            mtime,
            xattrs: BTreeMap::new(),
            identity: Sha256::digest(&bytes).to_vec(),
            content: Content::Bytes(Rc::new(bytes)),
        };
        Self { name: name.as_bytes().to_vec(), items: vec![item] }
    }

    /// What stands at `path` of a tree, links followed. Its files have no identity: a key must name the tree.
    pub fn from_tree(tree: &Tree, sources: &Rc<Vec<File>>, path: &str, place: &str) -> Result<Self, CopyError> {
        let missing = || CopyError::NotThere { path: path.to_owned(), place: place.to_owned() };
        let found = tree.resolve(path.as_bytes(), true).map_err(|_| missing())?;
        let id = found.inode.ok_or_else(missing)?;
        let mut items = Vec::new();
        collect(tree, sources, id, &mut Vec::new(), &mut items);
        // The name that was written, wherever a link leads.
        let name = path.trim_end_matches('/').rsplit('/').next().unwrap_or_default();
        Ok(Self { name: name.as_bytes().to_vec(), items })
    }
}

/// The paths of a tree that a word with patterns names, in order; a plain word names itself.
pub fn matching(tree: &Tree, word: &str) -> Result<Vec<String>, CopyError> {
    let mut paths = vec![String::new()];
    for name in word.split('/').filter(|name| !name.is_empty()) {
        if !ignore::is_pattern(name) {
            paths.iter_mut().for_each(|path| path.push_str(&format!("/{name}")));
            continue;
        }
        let pattern = ignore::pattern(name, false).map_err(ContextError::from)?;
        let mut next = Vec::new();
        for path in paths {
            let id = tree.resolve(path.as_bytes(), true).ok().and_then(|place| place.inode);
            let names = id.and_then(|id| tree.children(id)).into_iter().flat_map(|children| children.keys());
            let matching =
                names.filter(|name| pattern.is_match(name)).filter_map(|name| std::str::from_utf8(name).ok());
            next.extend(matching.map(|name| format!("{path}/{name}")));
        }
        paths = next;
    }
    Ok(paths)
}

fn whole(size: u64) -> Data {
    let segments = if size == 0 { Vec::new() } else { vec![Segment { at: 0, source: 0, offset: 0, len: size }] };
    Data { size, segments }
}

fn collect(tree: &Tree, sources: &Rc<Vec<File>>, id: InodeId, name: &mut Vec<u8>, items: &mut Vec<Item>) {
    let inode = tree.inode(id);
    let kind = match &inode.kind {
        Kind::Directory(_) => EntryKind::Directory,
        Kind::File(data) => EntryKind::File(data.clone()),
        Kind::Symlink(target) => EntryKind::Symlink(target.clone()),
        Kind::CharDevice { major, minor } => EntryKind::CharDevice { major: *major, minor: *minor },
        Kind::BlockDevice { major, minor } => EntryKind::BlockDevice { major: *major, minor: *minor },
        Kind::Fifo => EntryKind::Fifo,
    };
    items.push(Item {
        name: name.clone(),
        kind,
        mode: inode.mode,
        owner: (inode.uid, inode.gid),
        mtime: inode.mtime.0,
        xattrs: inode.xattrs.clone(),
        content: Content::Files(sources.clone()),
        identity: Vec::new(),
    });
    let length = name.len();
    for (child, id) in tree.children(id).into_iter().flatten() {
        if length > 0 {
            name.push(b'/');
        }
        name.extend_from_slice(child);
        collect(tree, sources, *id, name, items);
        name.truncate(length);
    }
}

impl Plan {
    /// Puts things where they belong: BuildKit's rules.
    pub fn add(&mut self, things: Vec<Thing>, target: &Target<'_>) -> Result<(), CopyError> {
        let tree = target.tree;
        let place = resolve(tree, target.destination.as_bytes())?;
        let exists = place.1.is_some_and(|id| tree.children(id).is_some());
        let is_directory = target.destination.ends_with('/') || exists || target.several;
        for thing in things {
            let Some(first) = thing.items.first() else { continue };
            let at = match first.kind {
                EntryKind::Directory => place.0.clone(),
                _ if is_directory => join(&place.0, &thing.name),
                _ => place.0.clone(),
            };
            self.thing(thing, at, target)?;
        }
        Ok(())
    }

    /// Makes a directory and those above it.
    pub fn directory(&mut self, target: &Target<'_>) -> Result<(), CopyError> {
        let place = resolve(target.tree, target.destination.as_bytes())?;
        match place.1 {
            Some(id) if target.tree.children(id).is_some() => Ok(()),
            Some(id) => Err(mismatch(&place.0, &target.tree.inode(id).kind, "a directory")),
            None => {
                self.parents(&join(&place.0, b"x"), target);
                Ok(())
            }
        }
    }

    fn thing(&mut self, thing: Thing, at: Vec<u8>, target: &Target<'_>) -> Result<(), CopyError> {
        let tree = target.tree;
        // Directories of the source, and where they lie in the image: there a link may stand for them.
        let mut places: HashMap<Vec<u8>, Vec<u8>> = HashMap::new();
        for item in thing.items {
            let path = match item.name.iter().rposition(|byte| *byte == b'/') {
                _ if item.name.is_empty() => at.clone(),
                Some(slash) => join(places.get(&item.name[..slash]).unwrap_or(&at), &item.name[slash + 1..]),
                None => join(&at, &item.name),
            };
            let item_is_directory = item.kind == EntryKind::Directory;
            if item_is_directory {
                let (path, found) = resolve(tree, &path)?;
                if let Some(id) = found
                    && tree.children(id).is_none()
                {
                    return Err(mismatch(&path, &tree.inode(id).kind, "a directory"));
                }
                self.check(&path, true)?;
                places.insert(item.name.clone(), path.clone());
                // What the source's contents go into stays as it is.
                if item.name.is_empty() && (found.is_some() || path.is_empty()) {
                    continue;
                }
                self.put(path, item, target);
                continue;
            }
            if tree.get(&path).is_some_and(|id| tree.children(id).is_some()) {
                return Err(mismatch(&path, &Kind::Directory(BTreeMap::new()), "a file"));
            }
            self.check(&path, false)?;
            self.put(path, item, target);
        }
        Ok(())
    }

    /// What an earlier source brought stays what it is: a directory, or none.
    fn check(&self, path: &[u8], directory: bool) -> Result<(), CopyError> {
        let Some((entry, _)) = self.entries.get(path) else { return Ok(()) };
        let is_directory = entry.kind == EntryKind::Directory;
        if is_directory == directory {
            return Ok(());
        }
        let words = ["a file", "a directory"];
        Err(CopyError::Twice {
            path: format!("/{}", path.escape_ascii()),
            first: words[usize::from(is_directory)],
            then: words[usize::from(directory)],
        })
    }

    fn put(&mut self, path: Vec<u8>, item: Item, target: &Target<'_>) {
        self.parents(&path, target);
        let (uid, gid) = target.owner.unwrap_or(item.owner);
        let is_link = matches!(item.kind, EntryKind::Symlink(_));
        let entry = Entry {
            path: path.as_slice().into(),
            kind: item.kind,
            mode: if is_link { item.mode } else { target.mode.unwrap_or(item.mode) },
            uid,
            gid,
            mtime: (clamped(item.mtime, target), 0),
            xattrs: item.xattrs,
        };
        self.entries.insert(path, (entry, item.content));
    }

    /// The directories above `path` that are not there.
    fn parents(&mut self, path: &[u8], target: &Target<'_>) {
        let ends = path.iter().enumerate().filter(|(_, byte)| **byte == b'/').map(|(at, _)| at);
        for parent in ends.map(|end| &path[..end]) {
            if target.tree.get(parent).is_some() || self.entries.contains_key(parent) {
                continue;
            }
            let (uid, gid) = target.owner.unwrap_or((0, 0));
            let entry = Entry {
                path: parent.into(),
                kind: EntryKind::Directory,
                mode: 0o755,
                uid,
                gid,
                mtime: (clamped(now(), target), 0),
                xattrs: BTreeMap::new(),
            };
            self.entries.insert(parent.to_vec(), (entry, Content::None));
        }
    }

    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Writes the layer.
    pub fn write<W: Write>(self, context: Option<&Context>, out: W) -> Result<W, CopyError> {
        let mut tar = Writer::new(out);
        for (path, (entry, content)) in self.entries {
            tar.entry(&entry).map_err(CopyError::Write)?;
            let EntryKind::File(data) = &entry.kind else { continue };
            match content {
                Content::None => {}
                Content::Bytes(bytes) => tar.data(&bytes).map_err(CopyError::Write)?,
                Content::Context(found) => {
                    let Some(context) = context else { continue };
                    context.read(&found, |bytes| tar.data(bytes))?.map_err(CopyError::Write)?;
                }
                Content::Files(files) => segments(&files, data, &path, &mut tar)?,
            }
        }
        tar.finish().map_err(CopyError::Write)
    }
}

fn segments<W: Write>(files: &[File], data: &Data, path: &[u8], tar: &mut Writer<W>) -> Result<(), CopyError> {
    let mut buffer = vec![0; 256 << 10];
    for segment in &data.segments {
        let (mut at, end) = (segment.offset, segment.offset + segment.len);
        while at < end {
            let want = buffer.len().min((end - at) as usize);
            let failed = |source| CopyError::Read { path: path.escape_ascii().to_string(), source };
            files[segment.source as usize].read_exact_at(&mut buffer[..want], at).map_err(failed)?;
            tar.data(&buffer[..want]).map_err(CopyError::Write)?;
            at += want as u64;
        }
    }
    Ok(())
}

fn resolve(tree: &Tree, path: &[u8]) -> Result<(Vec<u8>, Option<InodeId>), CopyError> {
    let failed = |source| CopyError::Destination { path: path.escape_ascii().to_string(), source };
    let place = tree.resolve(path, true).map_err(failed)?;
    Ok((place.name(), place.inode))
}

fn join(directory: &[u8], name: &[u8]) -> Vec<u8> {
    if directory.is_empty() { name.to_vec() } else { [directory, b"/", name].concat() }
}

fn mismatch(path: &[u8], found: &Kind, wanted: &'static str) -> CopyError {
    let found = match found {
        Kind::Directory(_) => "a directory",
        Kind::File(_) => "a file",
        Kind::Symlink(_) => "a link",
        _ => "a device or FIFO",
    };
    CopyError::Mismatch { path: format!("/{}", path.escape_ascii()), found, wanted }
}

fn clamped(time: i64, target: &Target<'_>) -> i64 {
    target.clamp.map_or(time, |clamp| time.min(clamp))
}

pub(super) fn now() -> i64 {
    std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).map_or(0, |now| now.as_secs() as i64)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::layer::Merger;
    use crate::layer::tar::scan_file;
    use crate::layer::testing::Layer;
    use crate::names::Digest;

    fn tree() -> Tree {
        let layer =
            Layer::new().dir("usr/lib").link("lib", "usr/lib").file("etc/passwd", "x").dir("opt").dir("opt/sub").end();
        let file = tempfile::tempfile().expect("a file");
        file.write_all_at(&layer, 0).expect("written");
        let mut merger = Merger::new();
        merger.apply(Digest([0; 32]), scan_file(&file, 0, layer.len() as u64).expect("scanned")).expect("merged");
        merger.finish()
    }

    fn directory(name: &str, files: &[&str]) -> Thing {
        let item = |name: &str, kind| Item {
            name: name.as_bytes().to_vec(),
            kind,
            mode: 0o700,
            owner: (0, 0),
            mtime: 5,
            xattrs: BTreeMap::new(),
            content: Content::None,
            identity: Vec::new(),
        };
        let mut items = vec![item("", EntryKind::Directory)];
        for file in files {
            let kind = if file.ends_with('/') { EntryKind::Directory } else { EntryKind::Fifo };
            items.push(item(file.trim_end_matches('/'), kind));
        }
        Thing { name: name.into(), items }
    }

    /// Paths of what a copy makes.
    fn copied(things: Vec<Thing>, destination: &str) -> Result<Vec<String>, String> {
        let tree = tree();
        let several = things.len() > 1;
        let target = Target { tree: &tree, destination, several, owner: Some((7, 8)), mode: None, clamp: None };
        let mut plan = Plan::default();
        plan.add(things, &target).map_err(|error| error.to_string())?;
        Ok(plan
            .entries
            .into_iter()
            .map(|(path, (entry, ..))| format!("{} {:o} {}", String::from_utf8_lossy(&path), entry.mode, entry.uid))
            .collect())
    }

    #[test]
    fn files_and_directories_go_where_docker_puts_them() {
        let file = || Thing::from_bytes("f", b"x".to_vec(), 0);
        for (things, destination, want) in [
            (vec![file()], "/new/name", vec!["new 755 7", "new/name 644 7"]),
            (vec![file()], "/new/dir/", vec!["new 755 7", "new/dir 755 7", "new/dir/f 644 7"]),
            (vec![file()], "/opt", vec!["opt/f 644 7"]),
            (vec![file()], "/lib/x", vec!["usr/lib/x 644 7"]),
            (vec![file(), Thing::from_bytes("g", vec![], 0)], "/two", vec!["two 755 7", "two/f 644 7", "two/g 644 7"]),
            (
                vec![directory("d", &["a", "sub/", "sub/b"])],
                "/opt",
                vec!["opt/a 700 7", "opt/sub 700 7", "opt/sub/b 700 7"],
            ),
            (vec![directory("d", &["a"])], "/fresh", vec!["fresh 700 7", "fresh/a 700 7"]),
            (vec![directory("d", &["lib/", "lib/b"])], "/", vec!["usr/lib 700 7", "usr/lib/b 700 7"]),
        ] {
            assert_eq!(copied(things, destination).expect(destination), want, "{destination}");
        }
        for (things, destination, want) in [
            (vec![file()], "/etc/passwd/x", "cannot be copied to"),
            (vec![directory("d", &["a"])], "/etc/passwd", "is a file, and cannot become a directory"),
            (vec![directory("d", &["sub"])], "/opt", "is a directory, and cannot become a file"),
            (
                vec![directory("d", &["x/", "x/y"]), directory("e", &["x"])],
                "/new",
                "`/new/x` comes from two sources: as a directory, and as a file",
            ),
            (vec![directory("e", &["x"]), directory("d", &["x/", "x/y"])], "/new", "as a file, and as a directory"),
        ] {
            let error = copied(things, destination).expect_err(destination);
            assert!(error.contains(want), "{destination}: {error}");
        }
    }

    #[test]
    fn the_key_knows_contents_and_not_times() {
        let key = |thing: Thing| {
            let mut key = Key::new("COPY");
            thing.add_to(&mut key);
            key.digest()
        };
        let file = |bytes: &[u8], mtime| Thing::from_bytes("f", bytes.to_vec(), mtime);
        assert_eq!(key(file(b"a", 1)), key(file(b"a", 2)));
        assert_ne!(key(file(b"a", 1)), key(file(b"b", 1)));
        let mut other = file(b"a", 1);
        other.items[0].mode = 0o755;
        assert_ne!(key(file(b"a", 1)), key(other));
    }
}
