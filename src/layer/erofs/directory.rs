//! The entries of a directory, and their size in blocks.

use std::collections::BTreeMap;

use super::BLOCK;
use crate::layer::{InodeId, Name};

pub(super) const DIRENT: u64 = 12;

#[derive(Debug, Clone, Copy)]
pub(super) enum Entry {
    Itself,
    Parent,
    Child(InodeId),
}

/// The names of a directory in byte order, including `.` and `..` at their sorted positions (`-x` sorts before both,
/// `.-x` between them).
pub(super) fn with_dots(entries: &BTreeMap<Name, InodeId>) -> Vec<(&[u8], Entry)> {
    let mut all: Vec<(&[u8], Entry)> = Vec::with_capacity(entries.len() + 2);
    all.push((b".", Entry::Itself));
    all.push((b"..", Entry::Parent));
    all.extend(entries.iter().map(|(name, id)| (&**name, Entry::Child(*id))));
    all.sort_unstable_by_key(|(name, _)| *name);
    all
}

/// Returns how many of `names` fit into the next block, and how many bytes of it they use.
pub(super) fn fill<'a>(names: impl Iterator<Item = &'a [u8]>) -> (usize, u64) {
    let mut count = 0;
    let mut used = 0;
    for name in names {
        let with = used + DIRENT + name.len() as u64;
        if with > BLOCK {
            break;
        }
        used = with;
        count += 1;
    }
    (count, used)
}

/// The size of a directory in bytes: full blocks, then the used part of the last one.
pub(crate) fn directory_size(entries: &BTreeMap<Name, InodeId>) -> u64 {
    let all = with_dots(entries);
    let mut rest = &all[..];
    let mut size = 0;
    loop {
        let (count, used) = fill(rest.iter().map(|(name, _)| *name));
        rest = &rest[count..];
        if rest.is_empty() {
            return size + used;
        }
        size += BLOCK;
    }
}
