//! The supervisor's own mount namespace.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};

use nix::sched::CloneFlags;

use crate::report::Explain;
use crate::sys::mount;

/// A handle for returning to the host's mounts.
#[derive(Debug)]
pub(crate) struct HostNamespace {
    namespace: File,
    /// The root directory that this process had. setns(2) sets it to the root of the namespace, which is different in a
    /// chroot.
    root: File,
}

#[derive(Debug, thiserror::Error)]
pub(crate) enum NamespaceError {
    #[error("cannot create a mount namespace for the container")]
    Unshare(#[source] io::Error),
    #[error("cannot open `{path}`")]
    Open { path: &'static str, source: io::Error },
    #[error("cannot return to the host's mount namespace")]
    Return(#[source] io::Error),
    #[error("cannot read the mount table")]
    Table(#[source] io::Error),
    #[error("cannot detach the mount `{}`", .path.display())]
    Detach { path: PathBuf, source: io::Error },
}

impl Explain for NamespaceError {
    fn hint(&self) -> Option<String> {
        match self {
            Self::Unshare(error) if error.raw_os_error() == Some(libc::EPERM) => {
                Some("run gpurun with `sudo`: mount namespaces need root".into())
            }
            _ => None,
        }
    }
}

/// Moves the calling process, which must be single-threaded, into a mount namespace of its own. Mounts that are made on
/// the host later appear in it. Mounts that are made in it appear nowhere else, and disappear with its last process.
///
/// The new namespace is a copy, and a copy pins every image mount of the host. So this function detaches all of them
/// under `images` except `keep`. Once the overlay is mounted, `keep` can be detached too ([`HostNamespace::forget`]):
/// overlayfs holds a private clone of its layers.
pub(crate) fn private_namespace(images: &Path, keep: &[&Path]) -> Result<HostNamespace, NamespaceError> {
    let open = |path| File::open(path).map_err(|source| NamespaceError::Open { path, source });
    let host = HostNamespace { namespace: open("/proc/thread-self/ns/mnt")?, root: open("/")? };
    mount::unshare_slave().map_err(NamespaceError::Unshare)?;
    forget(images, keep)?;
    Ok(host)
}

impl HostNamespace {
    /// Detaches the image mounts under `images` in the calling process's namespace.
    pub(crate) fn forget(&self, images: &Path) -> Result<(), NamespaceError> {
        forget(images, &[])
    }

    /// Returns to the host's namespace and root directory. The private namespace ends if this was its last process.
    pub(crate) fn enter(&self) -> Result<(), NamespaceError> {
        nix::sched::setns(&self.namespace, CloneFlags::CLONE_NEWNS)
            .and_then(|()| nix::unistd::fchdir(&self.root))
            .and_then(|()| nix::unistd::chroot("."))
            .map_err(|errno| NamespaceError::Return(errno.into()))
    }
}

fn forget(images: &Path, keep: &[&Path]) -> Result<(), NamespaceError> {
    // The mount table contains resolved paths: `/var/run` is `/run` there.
    let real = images.canonicalize().unwrap_or_else(|_| images.to_owned());
    // The mounts to keep are entries of that directory.
    let keep: Vec<PathBuf> = keep.iter().filter_map(|path| Some(real.join(path.file_name()?))).collect();
    let points = mount::points_below(&real).map_err(NamespaceError::Table)?;
    // The newest come first, so that a mount on top of another one is detached before it.
    for path in points.into_iter().rev().filter(|point| !keep.contains(point)) {
        mount::detach(&path).map_err(|source| NamespaceError::Detach { path, source })?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rootfs::testing::{in_own_mounts, root_or_skip, tmpfs};

    #[test]
    fn lets_go_of_all_image_mounts_but_one_and_comes_back() {
        if !root_or_skip("private namespace") {
            return;
        }
        in_own_mounts(|| {
            let base = tempfile::tempdir().unwrap();
            let images = base.path().join("images");
            tmpfs(&images.join("a"));
            tmpfs(&images.join("b"));
            let kept = images.join("a");
            let link = base.path().join("link");
            std::os::unix::fs::symlink(&images, &link).unwrap();
            let host = private_namespace(&link, &[&link.join("a")]).unwrap();
            assert_eq!(mount::points_below(&images).unwrap(), [kept]);
            host.forget(&images).unwrap();
            assert!(mount::points_below(&images).unwrap().is_empty());
            host.enter().unwrap();
            assert_eq!(mount::points_below(&images).unwrap().len(), 2, "the first namespace kept its mounts");
            host.forget(&images).unwrap();
        });
    }

    #[test]
    fn comes_back_to_the_root_directory_it_left() {
        if !root_or_skip("private namespace in a chroot") {
            return;
        }
        in_own_mounts(|| {
            let base = tempfile::tempdir().unwrap();
            let path = base.path().to_owned();
            tmpfs(&path);
            std::fs::write(path.join("mark"), "").unwrap();
            std::fs::create_dir(path.join("proc")).unwrap();
            assert!(
                std::process::Command::new("mount")
                    .args(["--rbind", "/proc"])
                    .arg(path.join("proc"))
                    .status()
                    .unwrap()
                    .success()
            );
            nix::unistd::chroot(&path).unwrap();
            nix::unistd::chdir("/").unwrap();
            let host = private_namespace(Path::new("/images"), &[]).unwrap();
            host.enter().unwrap();
            assert!(Path::new("/mark").exists(), "the root directory is another one");
        });
    }
}
