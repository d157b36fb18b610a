//! Whom the files belong to that a notebook writes into a directory of the host.

use crate::sys::idmap::Owner;

/// The two owners to be exchanged in a bind mount (`sys::idmap::exchanged_clone`): the person behind sudo outside, the container's user inside.
///
/// The alternative, to run Jupyter as that person's uid, was weighed and left: most images expect their own user (root, jovyan) to own
/// `$HOME` and the Python environment, and `pip install` and `apt` in a terminal would fail. The exchange leaves the image alone, covers
/// every process of the container, and a setuid program written by the container's root belongs to the person, not to the host's root.
/// Where a file system refuses it (NFS, FUSE), the plain bind is the fallback, with a line that says whose the files will be.
///
/// `None`: nothing to exchange (run by root itself, or the two are the same).
#[must_use]
pub fn exchange(container: (u32, u32), invoker: Option<(u32, u32)>) -> Option<(Owner, Owner)> {
    let (uid, gid) = invoker.filter(|(uid, _)| *uid != 0)?;
    let outside = Owner { uid, gid };
    let inside = Owner { uid: container.0, gid: container.1 };
    (outside.uid != inside.uid).then_some((outside, inside))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_person_who_is_somebody_else_is_exchanged() {
        let owner = |uid, gid| Owner { uid, gid };
        assert_eq!(exchange((0, 0), Some((1001, 100))), Some((owner(1001, 100), owner(0, 0))));
        assert_eq!(exchange((1000, 100), Some((1001, 1001))), Some((owner(1001, 1001), owner(1000, 100))));
        assert_eq!(exchange((1000, 100), Some((1000, 1000))), None);
        assert_eq!(exchange((1000, 100), Some((0, 0))), None);
        assert_eq!(exchange((0, 0), None), None);
    }
}
