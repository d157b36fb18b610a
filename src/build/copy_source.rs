//! The sources of `COPY` and `ADD`: files, links and directories of the build context, of a stage or image, of an
//! archive, or of the Containerfile itself.
//!
//! A [`CopySource`] has a digest of all its contents, which becomes a part of the step's cache key. Files are copied only
//! when the layer is written.

use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::io;
use std::rc::Rc;

use sha2::{Digest as _, Sha256};

use super::cache::Key;
use super::context::{Context, ContextError, Found, FoundKind, Source};
use super::ignore::{self, Filter, PatternError};
use crate::layer::LookupError;
use crate::layer::{Data, EntryKind, InodeId, Kind, Segment, Tree};
use crate::report::Explain;

/// A copy that cannot be made.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CopyError {
    #[error(transparent)]
    Context(#[from] ContextError),
    #[error("cannot copy to `{path}` in the image")]
    Destination { path: String, source: LookupError },
    #[error("cannot copy {wanted} to `{path}` in the image: it is {found}")]
    Mismatch { path: String, found: &'static str, wanted: &'static str },
    #[error("cannot copy two sources to `{path}`: the first is {first}, and the second is {then}")]
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
            Self::Mismatch { path, found: "a link", wanted: "a directory" } => Some(format!(
                "use a separate `COPY` for its contents, with the directory that `{path}` points to as the destination"
            )),
            _ => None,
        }
    }
}

/// A source to copy: a file, a link, or a directory with everything in it.
#[derive(Debug)]
pub(super) struct CopySource {
    /// The last component of its path, used if the destination is a directory.
    pub name: Vec<u8>,
    /// The source itself (with an empty name), then its contents. A directory comes before its contents.
    pub items: Vec<Item>,
}

#[derive(Debug)]
pub(super) struct Item {
    pub name: Vec<u8>,
    pub kind: EntryKind,
    pub mode: u16,
    pub owner: (u32, u32),
    pub mtime: i64,
    pub xattrs: BTreeMap<Box<[u8]>, Box<[u8]>>,
    pub content: Content,
    /// Identifies the contents of a file.
    pub identity: Vec<u8>,
    /// The inode of a file that may have several names.
    pub link: Option<Link>,
    /// The archive has no entry for this directory. It is implied by an entry below it.
    pub implied: bool,
}

/// An inode of a source. Files with the same inode are hard links, and remain hard links within one `COPY`.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) enum Link {
    /// The device, inode and digest of a file in the context.
    Host(u64, u64, [u8; 32]),
    /// An inode of a tree. The tree is identified by the address of its sources, which the item keeps alive.
    Tree(usize, InodeId),
}

/// Where to read the contents of a file.
#[derive(Debug, Clone)]
pub(super) enum Content {
    None,
    Context(Box<Found>),
    Bytes(Rc<Vec<u8>>),
    /// The segments of the item's `kind` refer to these files.
    Files(Rc<Vec<File>>),
}

impl CopySource {
    /// Adds the sources to the key of a step. Times are left out, so that a touched file is still the same file.
    pub(super) fn add_to(sources: &[Self], key: &mut Key) {
        let mut links: HashMap<&Link, usize> = HashMap::new();
        for (number, (source, item)) in
            sources.iter().flat_map(|source| source.items.iter().map(move |item| (source, item))).enumerate()
        {
            if item.name.is_empty() {
                key.add(&source.name);
            }
            let kind = match &item.kind {
                EntryKind::File(data) => format!("file {}", data.size),
                other => format!("{other:?}"),
            };
            key.add(&item.name)
                .add(kind)
                .add(format!("{:?}", (item.mode, item.owner, &item.xattrs)))
                .add(&item.identity);
            // Inode numbers differ between hosts, so only the grouping of names counts. A file with a single name adds
            // nothing.
            if let Some(first) = item.link.as_ref().and_then(|link| links.insert(link, number)) {
                key.add(format!("link {}", number - first));
            }
        }
    }

    /// Converts a source of the context. Its files belong to root.
    #[must_use]
    pub(super) fn from_context(source: Source) -> Self {
        let items = source.found.into_iter().map(|found| {
            let (kind, identity, link) = match &found.kind {
                FoundKind::Directory => (EntryKind::Directory, Vec::new(), None),
                FoundKind::File { size, digest, inode } => {
                    let link = inode.map(|(device, inode)| Link::Host(device, inode, *digest));
                    (EntryKind::File(whole(*size)), digest.to_vec(), link)
                }
                FoundKind::Symlink(target) => (EntryKind::Symlink(target.as_slice().into()), Vec::new(), None),
            };
            Item {
                name: found.name.clone(),
                kind,
                mode: if matches!(found.kind, FoundKind::Symlink(_)) { 0o777 } else { found.mode },
                owner: (0, 0),
                mtime: found.mtime,
                xattrs: found.xattrs.clone(),
                content: Content::Context(Box::new(found)),
                identity,
                link,
                implied: false,
            }
        });
        Self { name: source.name, items: items.collect() }
    }

    /// The open file and its digest if the source is a single file of the context, and so may be an archive to unpack.
    /// A downloaded archive is not unpacked, as in docker.
    pub(super) fn file(&self, context: Option<&Context>) -> Result<Option<(File, [u8; 32])>, CopyError> {
        let ([Item { content: Content::Context(found), .. }], Some(context)) = (self.items.as_slice(), context) else {
            return Ok(None);
        };
        let FoundKind::File { digest, .. } = found.kind else { return Ok(None) };
        let failed = |source| CopyError::Read { path: String::from_utf8_lossy(&self.name).into_owned(), source };
        Ok(Some((context.open_file(&found.path).map_err(failed)?, digest)))
    }

    /// Makes a file with the given contents.
    #[must_use]
    pub(super) fn from_bytes(name: &str, bytes: Vec<u8>, mtime: i64) -> Self {
        let item = Item {
            name: Vec::new(),
            kind: EntryKind::File(whole(bytes.len() as u64)),
            mode: 0o644,
            owner: (0, 0),
            mtime,
            xattrs: BTreeMap::new(),
            identity: Sha256::digest(&bytes).to_vec(),
            content: Content::Bytes(Rc::new(bytes)),
            link: None,
            implied: false,
        };
        Self { name: name.as_bytes().to_vec(), items: vec![item] }
    }

    /// Reads the file or directory at `path` of a tree, as far as the filter selects it. Links are followed. The files
    /// have no identity, so the key must include the tree.
    pub(super) fn from_tree(
        tree: &Tree,
        sources: &Rc<Vec<File>>,
        path: &str,
        filter: &Filter,
        place: &str,
    ) -> Result<Self, CopyError> {
        let missing = || CopyError::NotThere { path: path.to_owned(), place: place.to_owned() };
        let found = tree.resolve(path.as_bytes(), true).map_err(|_| missing())?;
        let id = found.inode.ok_or_else(missing)?;
        let mut items = Vec::new();
        collect(tree, sources, id, &mut Vec::new(), filter, &mut items);
        // The name as written, regardless of the target of a link.
        let name = path.trim_end_matches('/').rsplit('/').next().unwrap_or_default();
        if tree.children(id).is_none() && filter.leaves_out(name.as_bytes()) {
            items.clear();
        }
        Ok(Self { name: name.as_bytes().to_vec(), items })
    }
}

/// An argument of `COPY`, as a path or pattern and a selection of what is below it.
#[derive(Debug)]
pub(super) struct Selection<'a> {
    pub base: &'a str,
    pub filter: Filter,
    /// The path below `base` that `--parents` requires, because it has no wildcards.
    required: Option<String>,
}

impl<'a> Selection<'a> {
    /// Splits an argument for `--parents`, where `/./` ends the part that is not copied.
    pub(super) fn new(argument: &'a str, parents: bool, exclude: &[String]) -> Result<Self, PatternError> {
        if !parents {
            return Ok(Self { base: argument, filter: Filter::new(None, exclude)?, required: None });
        }
        let (base, below) = argument.split_once("/./").unwrap_or(("/", argument));
        let below = ignore::clean(below);
        let filter = Filter::new(Some(&below), exclude)?;
        let required = (!ignore::is_pattern(argument) && !below.is_empty()).then_some(below);
        Ok(Self { base: if base.is_empty() { "/" } else { base }, filter, required })
    }

    /// The name of a required path that is not among the sources.
    pub(super) fn missing(&self, sources: &[CopySource]) -> Option<&str> {
        let required = self.required.as_deref()?;
        let found = sources.iter().flat_map(|source| &source.items).any(|item| item.name == required.as_bytes());
        (!found).then_some(required)
    }
}

/// The existing paths of a tree that match a source with wildcards, sorted. A source without wildcards is returned
/// unchanged.
pub(super) fn matching(tree: &Tree, word: &str) -> Result<Vec<String>, CopyError> {
    let mut paths = vec![String::new()];
    let exists = |path: &str| tree.resolve(path.as_bytes(), true).is_ok_and(|place| place.inode.is_some());
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
    // The path after a wildcard must exist too.
    if ignore::is_pattern(word) {
        paths.retain(|path| exists(path));
    }
    Ok(paths)
}

fn whole(size: u64) -> Data {
    let segments = if size == 0 { Vec::new() } else { vec![Segment { at: 0, source: 0, offset: 0, len: size }] };
    Data { size, segments }
}

fn collect(
    tree: &Tree,
    sources: &Rc<Vec<File>>,
    id: InodeId,
    name: &mut Vec<u8>,
    filter: &Filter,
    items: &mut Vec<Item>,
) {
    let excluded = !name.is_empty() && !filter.keeps(name);
    if excluded && !(tree.children(id).is_some() && filter.searches(name)) {
        return;
    }
    let at = items.len();
    let inode = tree.inode(id);
    let is_file = matches!(inode.kind, Kind::File(_));
    let kind = EntryKind::from(&inode.kind);
    items.push(Item {
        name: name.clone(),
        kind,
        mode: inode.mode,
        owner: (inode.uid, inode.gid),
        mtime: inode.mtime.0,
        xattrs: inode.xattrs.clone(),
        content: Content::Files(sources.clone()),
        identity: Vec::new(),
        link: is_file.then_some(Link::Tree(Rc::as_ptr(sources) as usize, id)),
        implied: false,
    });
    let length = name.len();
    for (child, id) in tree.children(id).into_iter().flatten() {
        if length > 0 {
            name.push(b'/');
        }
        name.extend_from_slice(child);
        collect(tree, sources, *id, name, filter, items);
        name.truncate(length);
    }
    if excluded && items.len() == at + 1 {
        // Nothing in this excluded directory is copied.
        items.pop();
    }
}
