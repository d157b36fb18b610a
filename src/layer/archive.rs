//! Writes a merged tree as one plain tar, for `export`. The entries are sorted by name. The first of several hard links
//! is written as the file, the others as links to it.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, Write};
use std::os::unix::fs::FileExt;

use super::tar::{Entry, EntryKind, Writer};
use super::tree::{InodeId, Kind, Tree};

/// Writes the tree to `out`. `sources[n]` is the tar that [`Tree::sources`]`[n]` names.
pub(crate) fn write<W: Write>(tree: &Tree, sources: &[File], out: W) -> io::Result<W> {
    let mut archive =
        Archive { tree, sources, tar: Writer::new(out), linked: HashMap::new(), buffer: vec![0; 256 << 10] };
    archive.entry(InodeId(0), &mut Vec::new())?;
    archive.tar.finish()
}

struct Archive<'a, W> {
    tree: &'a Tree,
    sources: &'a [File],
    tar: Writer<W>,
    linked: HashMap<u32, Vec<u8>>,
    buffer: Vec<u8>,
}

impl<W: Write> Archive<'_, W> {
    fn entry(&mut self, id: InodeId, path: &mut Vec<u8>) -> io::Result<()> {
        let inode = self.tree.inode(id);
        let kind = EntryKind::from(&inode.kind);
        let linked = self.linked.get(&id.0).map(|first| EntryKind::HardLink(first.as_slice().into()));
        let data = match (&linked, &inode.kind) {
            (None, Kind::File(data)) => Some(data),
            _ => None,
        };
        let entry = Entry {
            path: if path.is_empty() { (*b"./").into() } else { path.as_slice().into() },
            kind: linked.unwrap_or(kind),
            mode: inode.mode,
            uid: inode.uid,
            gid: inode.gid,
            mtime: inode.mtime,
            xattrs: inode.xattrs.clone(),
        };
        self.tar.entry(&entry)?;
        for segment in data.iter().flat_map(|data| &data.segments) {
            let (mut at, end) = (segment.offset, segment.offset + segment.len);
            while at < end {
                let want = self.buffer.len().min((end - at) as usize);
                self.sources[segment.source as usize].read_exact_at(&mut self.buffer[..want], at)?;
                self.tar.data(&self.buffer[..want])?;
                at += want as u64;
            }
        }
        let Some(children) = self.tree.children(id) else {
            self.linked.entry(id.0).or_insert_with(|| path.clone());
            return Ok(());
        };
        let length = path.len();
        for (name, child) in children {
            if length > 0 {
                path.push(b'/');
            }
            path.extend_from_slice(name);
            self.entry(*child, path)?;
            path.truncate(length);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::Layer;
    use super::super::{Merger, tar};
    use super::*;
    use crate::names::Digest;

    #[test]
    fn the_archive_of_a_tree_is_the_tree() {
        let layer = Layer::new()
            .dir("d")
            .file("d/file", "data")
            .hard("hard", "d/file")
            .link("link", "/x")
            .fifo("fifo")
            .pax(&[("SCHILY.xattr.user.a", b"b"), ("mtime", b"12.5")])
            .file("last", "")
            .end();
        let file = |bytes: &[u8]| {
            let file = tempfile::tempfile().expect("a file");
            file.write_all_at(bytes, 0).expect("written");
            file
        };
        let tree = |file: &File, length: usize| {
            let mut merger = Merger::new();
            let entries = tar::scan_file(file, 0, length as u64).expect("scanned");
            merger.apply(Digest([0; 32]), entries).expect("merged");
            merger.finish()
        };
        let source = file(&layer);
        let first = tree(&source, layer.len());
        let bytes = write(&first, std::slice::from_ref(&source), Vec::new()).expect("written");
        let copy = file(&bytes);
        let second = tree(&copy, bytes.len());
        let again = write(&second, std::slice::from_ref(&copy), Vec::new()).expect("written");
        assert_eq!(bytes, again);
        assert_eq!(first.inodes.len(), second.inodes.len());
        assert_eq!(second.get(b"hard"), second.get(b"d/file"));
        let read = second.read_small(std::slice::from_ref(&copy), b"d/file", 100).expect("read");
        assert_eq!(read.as_deref(), Some(&b"data"[..]));
        let last = second.inode(second.get(b"last").expect("there"));
        assert_eq!((last.mtime, last.xattrs.len()), ((12, 500_000_000), 1));
    }
}
