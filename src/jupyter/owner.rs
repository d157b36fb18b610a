//! The owner on the host of the files that a notebook writes to a host directory.

use crate::sys::idmap::Owner;

/// Debian's `nogroup`. It takes the place of root's group on the host.
const NOGROUP: u32 = 65534;

/// Returns the two owners to exchange in a bind mount (`sys::idmap::exchanged_clone`): the host's user outside, and the
/// container's user inside. The host's user is the caller of sudo, or, if root itself is the caller, the owner of the
/// mounted directory.
///
/// The alternative is to run Jupyter with the host's uid. It was rejected because most images expect their own user
/// (root, jovyan) to own `$HOME` and the Python environment, so that `pip install` and `apt` in a terminal would fail.
/// The exchange leaves the image unchanged and applies to every process of the container. In the mount, no id of the
/// container maps to the host's root. If a file system does not support it (NFS, FUSE), a plain bind mount is the
/// fallback, with a notice that names the owner.
///
/// `None`: a plain bind mount. Root shares a directory that belongs to root, and the container can only write as the
/// host's root if its user is root.
#[must_use]
pub(crate) fn exchange(
    container: (u32, u32),
    invoker: Option<(u32, u32)>,
    directory: (u32, u32),
) -> Option<(Owner, Owner)> {
    let not_root = |(uid, _): &(u32, u32)| *uid != 0;
    let (uid, gid) = invoker.filter(not_root).or_else(|| Some(directory).filter(not_root))?;
    // Root's group is not mapped either.
    let gid = [gid, directory.1].into_iter().find(|gid| *gid != 0).unwrap_or(NOGROUP);
    Some((Owner { uid, gid }, Owner { uid: container.0, gid: container.1 }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_callers_files_or_the_directorys_and_never_roots() {
        let owner = |uid, gid| Owner { uid, gid };
        let root = (0, 0);
        let cases = [
            // With sudo: the caller of sudo, regardless of the directory's owner.
            ((0, 0), Some((1001, 100)), root, Some((owner(1001, 100), owner(0, 0)))),
            ((1000, 100), Some((1001, 1001)), (1002, 1002), Some((owner(1001, 1001), owner(1000, 100)))),
            // The same id on both sides is mapped as well, so that root is excluded.
            ((1000, 100), Some((1000, 1000)), (1000, 1000), Some((owner(1000, 1000), owner(1000, 100)))),
            // Root itself: the directory's owner.
            ((1000, 100), None, (1234, 1235), Some((owner(1234, 1235), owner(1000, 100)))),
            ((1000, 100), Some(root), (1234, 1235), Some((owner(1234, 1235), owner(1000, 100)))),
            ((0, 0), None, (1234, 1235), Some((owner(1234, 1235), owner(0, 0)))),
            ((1000, 100), None, root, None),
            ((0, 0), None, (0, 50), None),
            // Root's group is never mapped.
            ((1001, 0), None, (1234, 0), Some((owner(1234, NOGROUP), owner(1001, 0)))),
            ((1001, 0), Some((1234, 0)), (5, 50), Some((owner(1234, 50), owner(1001, 0)))),
        ];
        for (container, invoker, directory, expected) in cases {
            assert_eq!(exchange(container, invoker, directory), expected, "{container:?} {invoker:?} {directory:?}");
        }
    }
}
