//! Plans the layer of a `COPY`, `ADD` or `WORKDIR`: the destination of each file, directory and link in the image.
//!
//! The plan is made in memory, against the merged tree of the image so far. Nothing is mounted, and a path of the image
//! is never used as a path of the host. The files of the context are read once to compute their digests, which are part
//! of the step's cache key. They are read again, and written, only if the cache has no such step.

use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::io::Write;
use std::os::unix::fs::FileExt;

use super::context::Context;
use super::copy_source::CopyError;
use super::copy_source::{Content, CopySource, Item, Link};
use crate::layer::tar::Writer;
use crate::layer::{Data, Entry, EntryKind, InodeId, Kind, Tree};

/// The destination of a copy and the attributes of the copied files.
#[derive(Debug, Clone, Copy)]
pub(super) struct Target<'a> {
    pub tree: &'a Tree,
    /// An absolute path. A trailing `/` means that it is a directory.
    pub destination: &'a str,
    /// There are several sources, so the destination must be a directory.
    pub several: bool,
    pub owner: Option<(u32, u32)>,
    pub mode: Option<u16>,
    /// No time in the layer is later than this.
    pub clamp: Option<i64>,
}

/// A layer to write: its entries by path.
#[derive(Debug, Default)]
pub(super) struct Plan {
    entries: BTreeMap<Vec<u8>, Planned>,
}

#[derive(Debug)]
struct Planned {
    entry: Entry,
    content: Content,
    link: Option<Link>,
}

impl Plan {
    /// Adds the sources at their destinations, by BuildKit's rules, and returns how many of them a later source has
    /// replaced. The files that a wildcard matches replace each other if their destination is not a directory, as
    /// people rely on: `COPY target/*.jar /app.jar`.
    pub(super) fn add(&mut self, sources: Vec<CopySource>, target: &Target<'_>) -> Result<usize, CopyError> {
        let tree = target.tree;
        let place = resolve(tree, target.destination.as_bytes())?;
        let exists = place.1.is_some_and(|id| tree.children(id).is_some());
        let is_directory = target.destination.ends_with('/') || exists || target.several;
        let mut replaced = 0;
        for source in sources {
            let Some(first) = source.items.first() else { continue };
            let planned = self.entries.get(&place.0).map(|planned| &planned.entry.kind);
            let at = match first.kind {
                EntryKind::Directory => place.0.clone(),
                _ if is_directory || planned == Some(&EntryKind::Directory) => join(&place.0, &source.name),
                _ => {
                    replaced += usize::from(planned.is_some());
                    place.0.clone()
                }
            };
            self.source(source, at, target)?;
        }
        Ok(replaced)
    }

    /// Adds a directory and its missing parents.
    pub(super) fn directory(&mut self, target: &Target<'_>) -> Result<(), CopyError> {
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

    /// Unpacks an archive into the destination, as tar does: an entry replaces the one at its path, unless both are
    /// directories.
    pub(super) fn unpack(&mut self, archive: CopySource, target: &Target<'_>) -> Result<(), CopyError> {
        let tree = target.tree;
        // The destination is a directory, whatever type the archive gives its own root.
        self.directory(target)?;
        let (at, _) = resolve(tree, target.destination.as_bytes())?;
        // The directories of the archive and their paths in the image. Where the archive has no entry for a directory,
        // the image may have a link at that path.
        let mut places: HashMap<Vec<u8>, Vec<u8>> = HashMap::from([(Vec::new(), at)]);
        for item in archive.items.into_iter().skip(1) {
            let (parent, name) = match item.name.iter().rposition(|byte| *byte == b'/') {
                Some(slash) => (&item.name[..slash], &item.name[slash + 1..]),
                None => (&b""[..], &item.name[..]),
            };
            let Some(parent) = places.get(parent) else { continue };
            let path = join(parent, name);
            if item.kind != EntryKind::Directory {
                // Remove everything that an earlier archive added below this path.
                self.forget_below(&path);
                self.put(path, item, target);
            } else if item.implied && self.entries.contains_key(&path) {
                self.check(&path, true)?;
                places.insert(item.name, path);
            } else if item.implied {
                let (path, found) = resolve(tree, &path)?;
                match found {
                    Some(id) if tree.children(id).is_none() => {
                        return Err(mismatch(&path, &tree.inode(id).kind, "a directory"));
                    }
                    Some(_) => {}
                    None => self.parents(&join(&path, b"x"), target),
                }
                places.insert(item.name, path);
            } else {
                places.insert(item.name.clone(), path.clone());
                self.hide_lower(&path, tree);
                self.put(path, item, target);
            }
        }
        Ok(())
    }

    fn source(&mut self, source: CopySource, at: Vec<u8>, target: &Target<'_>) -> Result<(), CopyError> {
        let tree = target.tree;
        for item in source.items {
            let path = if item.name.is_empty() { at.clone() } else { join(&at, &item.name) };
            let is_directory = item.kind == EntryKind::Directory;
            let found = tree.get(&path);
            match found {
                // A link is not followed, because the files below it would be written to another directory.
                Some(id) if is_directory && tree.children(id).is_none() => {
                    return Err(mismatch(&path, &tree.inode(id).kind, "a directory"));
                }
                Some(id) if !is_directory && tree.children(id).is_some() => {
                    return Err(mismatch(&path, &tree.inode(id).kind, "a file"));
                }
                _ => {}
            }
            self.check(&path, is_directory)?;
            if is_directory && item.name.is_empty() {
                // An existing destination directory keeps its mode and owner. A new one gets those of an implicit parent,
                // not the source's: BuildKit creates it with MkdirAll(0755) before it copies the contents.
                if found.is_none() && !path.is_empty() && !self.entries.contains_key(&path) {
                    self.put(path, Item { mode: 0o755, owner: (0, 0), xattrs: BTreeMap::new(), ..item }, target);
                }
                continue;
            }
            self.put(path, item, target);
        }
        Ok(())
    }

    /// Hides a lower directory that an earlier archive replaced with a file and this one replaces with a directory.
    /// Otherwise its contents would reappear.
    fn hide_lower(&mut self, path: &[u8], tree: &Tree) {
        let replaced = self.entries.get(path).is_some_and(|planned| planned.entry.kind != EntryKind::Directory);
        if replaced && tree.get(path).is_some_and(|id| tree.children(id).is_some()) {
            let path = join(path, b".wh..wh..opq");
            let entry = Entry {
                path: path.as_slice().into(),
                kind: EntryKind::File(Data::default()),
                mode: 0,
                uid: 0,
                gid: 0,
                mtime: (0, 0),
                xattrs: BTreeMap::new(),
            };
            self.entries.insert(path, Planned { entry, content: Content::None, link: None });
        }
    }

    /// Removes the planned entries below a path.
    fn forget_below(&mut self, path: &[u8]) {
        let below = [path, b"/"].concat();
        let planned = self.entries.range(below.clone()..).map(|(path, _)| path);
        let gone: Vec<Vec<u8>> = planned.take_while(|path| path.starts_with(&below)).cloned().collect();
        for path in gone {
            self.entries.remove(&path);
        }
    }

    /// Checks a path against earlier sources, which decide whether it is a directory.
    fn check(&self, path: &[u8], directory: bool) -> Result<(), CopyError> {
        let Some(Planned { entry, .. }) = self.entries.get(path) else { return Ok(()) };
        let is_directory = entry.kind == EntryKind::Directory;
        if is_directory == directory {
            return Ok(());
        }
        let kinds = ["a file", "a directory"];
        Err(CopyError::Twice {
            path: format!("/{}", path.escape_ascii()),
            first: kinds[usize::from(is_directory)],
            then: kinds[usize::from(directory)],
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
        self.entries.insert(path, Planned { entry, content: item.content, link: item.link });
    }

    /// Adds the missing directories above `path`.
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
            self.entries.insert(parent.to_vec(), Planned { entry, content: Content::None, link: None });
        }
    }

    #[must_use]
    pub(super) fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Writes the layer. For a file with several names, the first name becomes the file and the others become hard
    /// links to it.
    pub(super) fn write<W: Write>(self, context: Option<&Context>, out: W) -> Result<W, CopyError> {
        let mut tar = Writer::new(out);
        let mut linked: HashMap<Link, Vec<u8>> = HashMap::new();
        for (path, Planned { mut entry, content, link }) in self.entries {
            if let Some(link) = link {
                if let Some(first) = linked.get(&link) {
                    entry.kind = EntryKind::HardLink(first.as_slice().into());
                    entry.xattrs.clear();
                    tar.entry(&entry).map_err(CopyError::Write)?;
                    continue;
                }
                linked.insert(link, path.clone());
            }
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
    use super::super::cache::Key;
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

    fn directory(name: &str, files: &[&str]) -> CopySource {
        let item = |name: &str, kind| Item {
            name: name.as_bytes().to_vec(),
            kind,
            mode: 0o700,
            owner: (0, 0),
            mtime: 5,
            xattrs: BTreeMap::new(),
            content: Content::None,
            identity: Vec::new(),
            link: None,
            implied: false,
        };
        let mut items = vec![item("", EntryKind::Directory)];
        for file in files {
            let kind = if file.ends_with('/') { EntryKind::Directory } else { EntryKind::Fifo };
            items.push(item(file.trim_end_matches('/'), kind));
        }
        CopySource { name: name.into(), items }
    }

    /// The paths, modes and owners that a copy creates.
    fn copied(sources: Vec<CopySource>, destination: &str) -> Result<Vec<String>, String> {
        let tree = tree();
        let several = sources.len() > 1;
        let target = Target { tree: &tree, destination, several, owner: Some((7, 8)), mode: None, clamp: None };
        let mut plan = Plan::default();
        plan.add(sources, &target).map_err(|error| error.to_string())?;
        Ok(plan
            .entries
            .into_iter()
            .map(|(path, planned)| {
                format!("{} {:o} {}", String::from_utf8_lossy(&path), planned.entry.mode, planned.entry.uid)
            })
            .collect())
    }

    #[test]
    fn files_and_directories_go_where_docker_puts_them() {
        let file = || CopySource::from_bytes("f", b"x".to_vec(), 0);
        for (sources, destination, want) in [
            (vec![file()], "/new/name", vec!["new 755 7", "new/name 644 7"]),
            (vec![file()], "/new/dir/", vec!["new 755 7", "new/dir 755 7", "new/dir/f 644 7"]),
            (vec![file()], "/opt", vec!["opt/f 644 7"]),
            (vec![file()], "/lib/x", vec!["usr/lib/x 644 7"]),
            (
                vec![file(), CopySource::from_bytes("g", vec![], 0)],
                "/two",
                vec!["two 755 7", "two/f 644 7", "two/g 644 7"],
            ),
            (
                vec![directory("d", &["a", "sub/", "sub/b"])],
                "/opt",
                vec!["opt/a 700 7", "opt/sub 700 7", "opt/sub/b 700 7"],
            ),
            (vec![directory("d", &["a"])], "/fresh", vec!["fresh 755 7", "fresh/a 700 7"]),
            (vec![directory("d", &["b"])], "/lib", vec!["usr/lib/b 700 7"]),
        ] {
            assert_eq!(copied(sources, destination).expect(destination), want, "{destination}");
        }
        let tree = tree();
        let target = Target { tree: &tree, destination: "/q", several: false, owner: None, mode: None, clamp: None };
        let mut plan = Plan::default();
        let matches = vec![file(), CopySource::from_bytes("g", b"last".to_vec(), 0)];
        assert_eq!(plan.add(matches, &target).expect("planned"), 1, "the second match replaces the first");
        assert!(matches!(&plan.entries[&b"q"[..]].content, Content::Bytes(bytes) if ***bytes == *b"last"));
        for (sources, destination, want) in [
            (vec![file()], "/etc/passwd/x", "cannot copy to `"),
            (
                vec![directory("d", &["a"])],
                "/etc/passwd",
                "cannot copy a directory to `/etc/passwd` in the image: it is a file",
            ),
            (
                vec![directory("d", &["sub"])],
                "/opt",
                "cannot copy a file to `/opt/sub` in the image: it is a directory",
            ),
            (
                vec![directory("d", &["lib/", "lib/b"])],
                "/",
                "cannot copy a directory to `/lib` in the image: it is a link",
            ),
            (
                vec![directory("d", &["x/", "x/y"]), directory("e", &["x"])],
                "/new",
                "cannot copy two sources to `/new/x`: the first is a directory, and the second is a file",
            ),
            (
                vec![directory("e", &["x"]), directory("d", &["x/", "x/y"])],
                "/new",
                "the first is a file, and the second is a directory",
            ),
        ] {
            let error = copied(sources, destination).expect_err(destination);
            assert!(error.contains(want), "{destination}: {error}");
        }
    }

    #[test]
    fn the_key_knows_contents_and_not_times() {
        let key = |source: CopySource| {
            let mut key = Key::new("COPY");
            CopySource::add_to(&[source], &mut key);
            key.digest()
        };
        let file = |bytes: &[u8], mtime| CopySource::from_bytes("f", bytes.to_vec(), mtime);
        assert_eq!(key(file(b"a", 1)), key(file(b"a", 2)));
        assert_ne!(key(file(b"a", 1)), key(file(b"b", 1)));
        let mut other = file(b"a", 1);
        other.items[0].mode = 0o755;
        assert_ne!(key(file(b"a", 1)), key(other));
    }
}
