//! The members of an archive, by name.

use std::collections::BTreeMap;
use std::fs::File;
use std::path::Path;
use std::sync::Arc;

use super::{Blob, SourceError};
use crate::layer::{EntryKind, tar};

/// `docker save` wrote repeated layers as links to each other, with chains of one link.
pub(super) const MAX_LINKS: usize = 8;

/// Maximum memory, in bytes, for the names of an archive's members.
pub(super) const MAX_HEADERS: usize = 64 << 20;

#[derive(Debug)]
pub(crate) struct Members {
    pub(super) file: Arc<File>,
    pub(super) members: BTreeMap<String, Member>,
}

#[derive(Debug)]
pub(super) enum Member {
    Regular {
        offset: u64,
        len: u64,
    },
    /// The normalized name of the link's target.
    Link(String),
    Other,
}

impl Members {
    pub(crate) fn scan(file: File, path: &Path) -> Result<Self, SourceError> {
        let len = file.metadata().map_err(|cause| SourceError::Read { path: path.into(), cause })?.len();
        let (entries, _) = tar::scan_file_within(&file, 0, len, MAX_HEADERS)
            .map_err(|cause| SourceError::Tar { path: path.into(), cause })?;
        let mut members = BTreeMap::new();
        for entry in entries {
            let Ok(name) = std::str::from_utf8(&entry.path) else { continue };
            let Some(name) = clean("", name) else { continue };
            let parent = name.rsplit_once('/').map_or("", |(parent, _)| parent);
            let member = match &entry.kind {
                EntryKind::File(data) => match data.segments.as_slice() {
                    [] if data.size == 0 => Member::Regular { offset: 0, len: 0 },
                    [one] if one.len == data.size => Member::Regular { offset: one.offset, len: one.len },
                    _ => Member::Other,
                },
                EntryKind::Symlink(target) => link(parent, target),
                EntryKind::HardLink(target) => link("", target),
                EntryKind::Directory => continue,
                _ => Member::Other,
            };
            members.insert(name, member);
        }
        Ok(Self { file: Arc::new(file), members })
    }

    pub(crate) fn find(&self, member: &str) -> Result<Blob, SourceError> {
        let mut name = clean("", member).ok_or_else(|| SourceError::Missing { member: member.into() })?;
        for _ in 0..MAX_LINKS {
            match self.members.get(&name) {
                Some(Member::Regular { offset, len }) => return Ok(Blob::range(self.file.clone(), *offset, *len)),
                Some(Member::Link(target)) => name = target.clone(),
                Some(Member::Other) => break,
                None => return Err(SourceError::Missing { member: member.into() }),
            }
        }
        Err(SourceError::NotRegular { member: member.into() })
    }
}

pub(super) fn link(parent: &str, target: &[u8]) -> Member {
    std::str::from_utf8(target).ok().and_then(|target| clean(parent, target)).map_or(Member::Other, Member::Link)
}

/// Normalizes a member's name for use as a key. Resolves `.` and `..` textually. `None` if the name leaves the archive.
pub(super) fn clean(parent: &str, name: &str) -> Option<String> {
    let mut components: Vec<&str> = Vec::new();
    let parent = if name.starts_with('/') { "" } else { parent };
    for component in parent.split('/').chain(name.split('/')) {
        match component {
            "" | "." => {}
            ".." => drop(components.pop()?),
            _ => components.push(component),
        }
    }
    (!components.is_empty()).then(|| components.join("/"))
}
