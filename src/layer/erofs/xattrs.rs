//! The extended attributes of an inode, and their size.

use std::collections::BTreeMap;

pub(super) const XATTR_HEADER: u32 = 12;

/// The size in bytes of an inode's attributes with their header, or 0 if it has none.
pub(crate) fn xattr_size(xattrs: &BTreeMap<Box<[u8]>, Box<[u8]>>) -> u32 {
    let sum: usize =
        storable_xattrs(xattrs).map(|(_, name, value)| (4 + name.len() + value.len()).next_multiple_of(4)).sum();
    if sum == 0 { 0 } else { XATTR_HEADER + sum as u32 }
}

pub(super) fn is_overlay_xattr(name: &[u8]) -> bool {
    name.starts_with(b"trusted.overlay.")
}

/// Splits the name of an attribute that EROFS can represent into the index of its prefix and the rest.
pub(crate) fn xattr_prefix<'a>(name: &'a [u8], value: &[u8]) -> Option<(u8, &'a [u8])> {
    const PREFIXES: [(&[u8], u8); 3] = [(b"user.", 1), (b"trusted.", 4), (b"security.", 6)];
    if is_overlay_xattr(name) || value.len() > usize::from(u16::MAX) {
        return None;
    }
    match name {
        b"system.posix_acl_access" => return Some((2, b"")),
        b"system.posix_acl_default" => return Some((3, b"")),
        _ => {}
    }
    let (prefix, index) = PREFIXES.into_iter().find(|(prefix, _)| name.starts_with(prefix))?;
    let rest = &name[prefix.len()..];
    // XATTR_NAME_MAX applies to the whole name, prefix included.
    (!rest.is_empty() && name.len() <= 255 && !rest.contains(&0)).then_some((index, rest))
}

/// The attributes that the image gets, in order, while their total size fits (`i_xattr_icount` is 16 bits and counts
/// units of 4 bytes).
pub(crate) fn storable_xattrs(xattrs: &BTreeMap<Box<[u8]>, Box<[u8]>>) -> impl Iterator<Item = (u8, &[u8], &[u8])> {
    let mut room = 65_000 * 4_usize;
    xattrs.iter().filter_map(move |(name, value)| {
        let (index, rest) = xattr_prefix(name, value)?;
        room = room.checked_sub((4 + rest.len() + value.len()).next_multiple_of(4))?;
        Some((index, rest, &**value))
    })
}
