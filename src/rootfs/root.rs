//! Reads and creates files inside an image's root, with that root as `/`.
//!
//! Reading uses `openat2(RESOLVE_IN_ROOT | RESOLVE_NO_MAGICLINKS)`: links, including absolute ones, stay inside.
//! Creating walks the path component by component with a stack of directory descriptors, and the kernel never follows a
//! link. The walk must know its position when a component is missing, which `openat2` does not report. With the stack,
//! `..` is the descriptor below the top.

use std::collections::VecDeque;
use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Component, Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag, OpenHow, ResolveFlag};
use nix::sys::stat::{FchmodatFlags, FileStat, Mode, SFlag};

use crate::report::Explain;
use crate::sys::mount::fd_path;

/// The kernel follows the same number of links (MAXSYMLINKS).
const MAX_LINKS: u32 = 40;

#[derive(Debug, thiserror::Error)]
pub(crate) enum RootError {
    #[error("cannot open the container's root `{}`", .path.display())]
    Open { path: PathBuf, source: io::Error },
    #[error("cannot resolve `{}` in the image", .path.display())]
    Resolve { path: PathBuf, source: io::Error },
    #[error("cannot read `{}` in the image", .path.display())]
    Read { path: PathBuf, source: io::Error },
    #[error("`{}` in the image is {kind}, not a regular file", .path.display())]
    NotAFile { path: PathBuf, kind: &'static str },
    #[error("`{}` in the image is larger than {max} bytes", .path.display())]
    TooLarge { path: PathBuf, max: usize },
    #[error("cannot create `{}` in the container", .path.display())]
    Make { path: PathBuf, source: io::Error },
    #[error("`{}` in the container is {found}, but must be {wanted}", .path.display())]
    Mismatch { path: PathBuf, found: &'static str, wanted: &'static str },
    #[error("cannot mount over `{}`: it is the container's root", .path.display())]
    IsRoot { path: PathBuf },
}

impl Explain for RootError {}

/// The kind of a mount point.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum MountpointKind {
    Directory,
    File,
}

/// Opens a root directory for the functions of this module.
pub(crate) fn open_root(path: &Path) -> Result<OwnedFd, RootError> {
    nix::fcntl::open(path, OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC, Mode::empty())
        .map_err(|errno| RootError::Open { path: path.to_owned(), source: errno.into() })
}

/// Returns an `O_PATH` descriptor of `path` in `root`, with links followed inside the root, or `None` if it does not
/// exist.
pub(crate) fn resolve_in_root(root: impl AsFd, path: &Path) -> Result<Option<OwnedFd>, RootError> {
    let how = OpenHow::new()
        .flags(OFlag::O_PATH | OFlag::O_CLOEXEC)
        .resolve(ResolveFlag::RESOLVE_IN_ROOT | ResolveFlag::RESOLVE_NO_MAGICLINKS);
    // A rename anywhere on the host can make a walk over `..` fail with EAGAIN (openat2(2)).
    for _ in 0..64 {
        match nix::fcntl::openat2(root.as_fd(), path, how) {
            Ok(fd) => return Ok(Some(fd)),
            Err(Errno::ENOENT | Errno::ENOTDIR) => return Ok(None),
            Err(Errno::EAGAIN) => {}
            Err(errno) => return Err(RootError::Resolve { path: path.to_owned(), source: errno.into() }),
        }
    }
    Err(RootError::Resolve { path: path.to_owned(), source: Errno::EAGAIN.into() })
}

/// Returns the status of `path` in `root`, with links followed inside the root, or `None` if it does not exist.
pub(crate) fn stat_in_root(root: impl AsFd, path: &Path) -> Result<Option<FileStat>, RootError> {
    let Some(fd) = resolve_in_root(root, path)? else { return Ok(None) };
    let stat = nix::sys::stat::fstat(&fd);
    stat.map(Some).map_err(|errno| RootError::Resolve { path: path.to_owned(), source: errno.into() })
}

/// Reads the regular file `path` in `root`. Returns `None` if it does not exist. A FIFO, device or directory is an
/// error and is never opened (opening a tape would rewind it), and so is a file of more than `max` bytes.
pub(crate) fn read_file_in_root(root: impl AsFd, path: &Path, max: usize) -> Result<Option<Vec<u8>>, RootError> {
    let Some(found) = resolve_in_root(root, path)? else { return Ok(None) };
    let failed = |source| RootError::Read { path: path.to_owned(), source };
    let stat = nix::sys::stat::fstat(&found).map_err(|errno| failed(errno.into()))?;
    if file_type(&stat) != SFlag::S_IFREG {
        return Err(RootError::NotAFile { path: path.to_owned(), kind: describe(&stat) });
    }
    if usize::try_from(stat.st_size).map_or(true, |size| size > max) {
        return Err(RootError::TooLarge { path: path.to_owned(), max });
    }
    let flags = OFlag::O_RDONLY | OFlag::O_NONBLOCK | OFlag::O_NOCTTY | OFlag::O_CLOEXEC;
    let file = nix::fcntl::open(&fd_path(&found), flags, Mode::empty()).map_err(|errno| failed(errno.into()))?;
    let mut bytes = Vec::new();
    File::from(file).take(max as u64 + 1).read_to_end(&mut bytes).map_err(failed)?;
    if bytes.len() > max {
        return Err(RootError::TooLarge { path: path.to_owned(), max });
    }
    Ok(Some(bytes))
}

/// Creates `destination` in `root` as a mount point for a file or a directory, unless it exists. Missing components are
/// created (directories with mode 0755, empty files with mode 0644, owned by root). Returns the absolute path with all
/// links resolved. Mount there, because that path contains no links that could be followed out of the root. As in
/// docker, `..` in `destination` is resolved lexically, and links are resolved inside the root.
pub(crate) fn make_mountpoint_in_root(
    root: impl AsFd,
    destination: &Path,
    kind: MountpointKind,
) -> Result<PathBuf, RootError> {
    let mut walk = Walk { root: root.as_fd(), destination, stack: Vec::new(), links: 0 };
    let mut todo: VecDeque<OsString> = normal(destination);
    while let Some(name) = todo.pop_front() {
        if name == ".." {
            walk.stack.pop();
        } else if name != "." && !name.is_empty() {
            let last = todo.iter().all(|later| later == "." || later.is_empty());
            walk.step(&name, &mut todo, if last { kind } else { MountpointKind::Directory })?;
        }
    }
    if walk.stack.is_empty() {
        return Err(RootError::IsRoot { path: destination.to_owned() });
    }
    Ok(walk.stack.iter().fold(PathBuf::from("/"), |path, (name, _)| path.join(name)))
}

/// Opens the mount point `path` below `dir`, and creates its missing components as [`make_mountpoint_in_root`] does.
/// Follows no link, and fails with ELOOP on one: another process may be able to write to `dir`, and must not be able to
/// redirect the mount.
pub(crate) fn open_mountpoint_below(dir: impl AsFd, path: &Path, kind: MountpointKind) -> Result<OwnedFd, RootError> {
    let mut walk = Walk { root: dir.as_fd(), destination: path, stack: Vec::new(), links: MAX_LINKS };
    let mut todo = normal(path);
    while let Some(name) = todo.pop_front() {
        let wanted = if todo.is_empty() { kind } else { MountpointKind::Directory };
        walk.step(&name, &mut todo, wanted)?;
    }
    walk.stack.pop().map(|(_, fd)| fd).ok_or_else(|| RootError::IsRoot { path: path.to_owned() })
}

/// Creates a directory and its parents in `root`, for `WORKDIR`. Returns the path with all links resolved.
pub(crate) fn create_dir_in_root(root: impl AsFd, path: &Path) -> Result<PathBuf, RootError> {
    if normal(path).is_empty() {
        return Ok(PathBuf::from("/"));
    }
    match make_mountpoint_in_root(root, path, MountpointKind::Directory) {
        // The path is a link to `/`.
        Err(RootError::IsRoot { .. }) => Ok(PathBuf::from("/")),
        other => other,
    }
}

/// Creates a symbolic link at `path` in `root`. It replaces an existing file or link.
pub(crate) fn link_in_root(root: impl AsFd, path: &Path, target: &str) -> Result<(), RootError> {
    put_in_root(root, path, |dir, name| nix::unistd::symlinkat(target, dir, name))
}

/// Writes a file at `path` in `root`. It replaces an existing file or link. The target of a link is not changed.
pub(crate) fn replace_file_in_root(root: impl AsFd, path: &Path, bytes: &[u8]) -> Result<(), RootError> {
    put_in_root(root, path, |dir, name| {
        let flags = OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        let mode = Mode::from_bits_truncate(0o644);
        let fd = nix::fcntl::openat(dir, name, flags, mode)?;
        nix::sys::stat::fchmod(&fd, mode)?;
        let written = io::Write::write_all(&mut File::from(fd), bytes);
        written.map_err(|error| error.raw_os_error().map_or(Errno::EIO, Errno::from_raw))
    })
}

/// Creates a new entry under a temporary name beside `path` and renames it to `path`. Parent directories are created,
/// and links are resolved inside the root.
fn put_in_root(
    root: impl AsFd,
    path: &Path,
    make: impl FnOnce(BorrowedFd<'_>, &OsStr) -> nix::Result<()>,
) -> Result<(), RootError> {
    let failed = |errno: Errno| RootError::Make { path: path.to_owned(), source: errno.into() };
    let name = path.file_name().ok_or_else(|| failed(Errno::EINVAL))?;
    let dir = create_dir_in_root(&root, path.parent().unwrap_or(Path::new("/")))?;
    let dir = resolve_in_root(&root, &dir)?.ok_or_else(|| failed(Errno::ENOENT))?;
    let mut temp = OsString::from(".gpurun-");
    temp.push(name);
    match nix::unistd::unlinkat(&dir, temp.as_os_str(), nix::unistd::UnlinkatFlags::NoRemoveDir) {
        Ok(()) | Err(Errno::ENOENT) => {}
        Err(errno) => return Err(failed(errno)),
    }
    make(dir.as_fd(), &temp)
        .and_then(|()| {
            nix::unistd::fchownat(&dir, temp.as_os_str(), Some(0.into()), Some(0.into()), AtFlags::AT_SYMLINK_NOFOLLOW)
        })
        .and_then(|()| nix::fcntl::renameat(&dir, temp.as_os_str(), &dir, name))
        .map_err(failed)
}

struct Walk<'a> {
    root: BorrowedFd<'a>,
    destination: &'a Path,
    /// The directories that the walk has entered. The last one may be a file.
    stack: Vec<(OsString, OwnedFd)>,
    links: u32,
}

impl Walk<'_> {
    fn here(&self) -> BorrowedFd<'_> {
        self.stack.last().map_or(self.root, |(_, fd)| fd.as_fd())
    }

    fn failed(&self, errno: Errno) -> RootError {
        RootError::Make { path: self.destination.to_owned(), source: errno.into() }
    }

    fn step(&mut self, name: &OsStr, todo: &mut VecDeque<OsString>, wanted: MountpointKind) -> Result<(), RootError> {
        let fd = match self.peek(name) {
            Err(Errno::ENOENT) => {
                self.create(name, wanted).map_err(|errno| self.failed(errno))?;
                self.peek(name)
            }
            other => other,
        }
        .map_err(|errno| self.failed(errno))?;
        let stat = nix::sys::stat::fstat(&fd).map_err(|errno| self.failed(errno))?;
        match (file_type(&stat), wanted) {
            (SFlag::S_IFLNK, _) => {
                self.links += 1;
                if self.links > MAX_LINKS {
                    return Err(self.failed(Errno::ELOOP));
                }
                let target = nix::fcntl::readlinkat(&fd, "").map_err(|errno| self.failed(errno))?;
                let target = Path::new(&target);
                if target.is_absolute() {
                    self.stack.clear();
                }
                for component in target.components().rev() {
                    match component {
                        Component::Normal(name) => todo.push_front(name.to_owned()),
                        Component::ParentDir => todo.push_front("..".into()),
                        Component::RootDir | Component::CurDir | Component::Prefix(_) => {}
                    }
                }
                return Ok(());
            }
            (SFlag::S_IFDIR, MountpointKind::Directory) => {}
            (kind, MountpointKind::File) if kind != SFlag::S_IFDIR => {}
            _ => {
                let wanted = match wanted {
                    MountpointKind::Directory => "a directory",
                    MountpointKind::File => "a file",
                };
                let path = self.destination.to_owned();
                return Err(RootError::Mismatch { path, found: describe(&stat), wanted });
            }
        }
        self.stack.push((name.to_owned(), fd));
        Ok(())
    }

    fn peek(&self, name: &OsStr) -> nix::Result<OwnedFd> {
        let flags = OFlag::O_PATH | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        nix::fcntl::openat(self.here(), name, flags, Mode::empty())
    }

    fn create(&self, name: &OsStr, wanted: MountpointKind) -> nix::Result<()> {
        let here = self.here();
        let (made, mode) = match wanted {
            MountpointKind::Directory => {
                nix::sys::stat::mkdirat(here, name, Mode::from_bits_truncate(0o755))?;
                let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
                (nix::fcntl::openat(here, name, flags, Mode::empty())?, 0o755)
            }
            MountpointKind::File => {
                let flags = OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
                (nix::fcntl::openat(here, name, flags, Mode::from_bits_truncate(0o644))?, 0o644)
            }
        };
        // The umask and a setgid parent directory must not affect the new entry. If other users can write to the parent
        // directory, which may be one of the host, they may have replaced a new directory by now. Nothing there is
        // changed, and the mode that `mkdirat` gave it stays.
        if wanted == MountpointKind::Directory && !is_private(&nix::sys::stat::fstat(here)?) {
            return Ok(());
        }
        let stat = nix::sys::stat::fstat(&made)?;
        if (stat.st_uid, stat.st_gid) != (0, 0) {
            nix::unistd::fchownat(&made, "", Some(0.into()), Some(0.into()), AtFlags::AT_EMPTY_PATH)?;
        }
        if stat.st_mode & 0o7777 != mode {
            // The path leads to the open file, whatever has its name now.
            let (path, mode) = (fd_path(&made), Mode::from_bits_truncate(mode));
            nix::sys::stat::fchmodat(nix::fcntl::AT_FDCWD, &path, mode, FchmodatFlags::FollowSymlink)?;
        }
        Ok(())
    }
}

/// Whether only root can create, rename and remove entries of a directory.
fn is_private(directory: &FileStat) -> bool {
    directory.st_uid == 0 && directory.st_mode & 0o022 == 0
}

/// The components of the path after `.` and `..` are resolved lexically, as docker does for destinations with Go's
/// `filepath.Clean`.
fn normal(path: &Path) -> VecDeque<OsString> {
    let mut names = VecDeque::new();
    for component in path.components() {
        match component {
            Component::Normal(name) => names.push_back(name.to_owned()),
            Component::ParentDir => drop(names.pop_back()),
            Component::RootDir | Component::CurDir | Component::Prefix(_) => {}
        }
    }
    names
}

fn file_type(stat: &FileStat) -> SFlag {
    SFlag::from_bits_truncate(stat.st_mode & SFlag::S_IFMT.bits())
}

fn describe(stat: &FileStat) -> &'static str {
    match file_type(stat) {
        SFlag::S_IFREG => "a regular file",
        SFlag::S_IFDIR => "a directory",
        SFlag::S_IFLNK => "a link",
        SFlag::S_IFIFO => "a FIFO",
        SFlag::S_IFSOCK => "a socket",
        _ => "a device",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::{PermissionsExt, symlink};

    use nix::unistd::mkfifo;

    /// A root with links of every kind, beside a directory that must never be reached.
    fn fixture() -> (tempfile::TempDir, OwnedFd) {
        let base = tempfile::tempdir().unwrap();
        let root = base.path().join("root");
        std::fs::create_dir_all(root.join("etc")).unwrap();
        std::fs::create_dir_all(root.join("real/dir")).unwrap();
        std::fs::create_dir_all(base.path().join("outside")).unwrap();
        std::fs::write(base.path().join("outside/secret"), "outside").unwrap();
        std::fs::write(root.join("etc/file"), "inside").unwrap();
        symlink("/etc/file", root.join("absolute")).unwrap();
        symlink("../../../../../etc/file", root.join("real/up")).unwrap();
        symlink("../outside", root.join("escape")).unwrap();
        symlink(base.path().join("outside"), root.join("host")).unwrap();
        symlink("loop2", root.join("loop1")).unwrap();
        symlink("loop1", root.join("loop2")).unwrap();
        symlink("/not/yet", root.join("dangling")).unwrap();
        symlink("/", root.join("slash")).unwrap();
        mkfifo(&root.join("fifo"), Mode::from_bits_truncate(0o600)).unwrap();
        let fd = open_root(&root).unwrap();
        (base, fd)
    }

    #[test]
    fn reads_through_links_but_never_outside() {
        let (_base, root) = fixture();
        let inside = Some(b"inside".to_vec());
        for (path, expected) in [
            ("/etc/file", &inside),
            ("etc/file", &inside),
            ("/absolute", &inside),
            ("/real/up", &inside),
            ("/../../etc/file", &inside),
            ("/escape/secret", &None),
            ("/host/secret", &None),
            ("/nothing", &None),
            ("/etc/file/below", &None),
        ] {
            assert_eq!(&read_file_in_root(&root, Path::new(path), 100).unwrap(), expected, "{path}");
        }
    }

    #[test]
    fn what_is_put_stays_inside_and_spares_what_is_linked_to() {
        let (base, root) = fixture();
        symlink(base.path().join("outside/secret"), base.path().join("root/etc/trap")).unwrap();
        for path in ["/etc/trap", "/escape/new", "/host/new", "/fresh/dir/new"] {
            replace_file_in_root(&root, Path::new(path), b"ours").unwrap();
            assert_eq!(read_file_in_root(&root, Path::new(path), 10).unwrap(), Some(b"ours".to_vec()), "{path}");
        }
        link_in_root(&root, Path::new("/etc/file"), "/absolute").unwrap();
        link_in_root(&root, Path::new("/etc/file"), "trap").unwrap();
        assert_eq!(std::fs::read_link(base.path().join("root/etc/file")).unwrap(), Path::new("trap"));
        assert_eq!(std::fs::read_to_string(base.path().join("outside/secret")).unwrap(), "outside");
        assert_eq!(std::fs::read_dir(base.path().join("outside")).unwrap().count(), 1);
        assert!(link_in_root(&root, Path::new("/real/dir"), "x").is_err(), "a directory is not replaced");
    }

    #[test]
    fn refuses_what_is_not_a_bounded_regular_file() {
        let (_base, root) = fixture();
        for (path, snippet) in [
            ("/fifo", "a FIFO"),
            ("/etc", "a directory"),
            ("/etc/file", "larger than 5 bytes"),
            ("/loop1", "cannot resolve"),
        ] {
            let error = read_file_in_root(&root, Path::new(path), 5).unwrap_err();
            assert!(error.to_string().contains(snippet), "{path}: {error}");
        }
    }

    #[test]
    fn makes_mount_points_where_links_lead_inside_the_root() {
        use MountpointKind::{Directory, File};
        let (base, root) = fixture();
        for (destination, kind, expected) in [
            ("/new/deep/dir", Directory, "/new/deep/dir"),
            ("/new/file", File, "/new/file"),
            ("/etc/file", File, "/etc/file"),
            ("/fifo", File, "/fifo"),
            ("/absolute", File, "/etc/file"),
            ("/dangling/here", Directory, "/not/yet/here"),
            ("/escape/inside", Directory, "/outside/inside"),
            ("/slash/real", Directory, "/real"),
            ("/absent/../real/./dir/", Directory, "/real/dir"),
            ("relative", Directory, "/relative"),
        ] {
            let made = make_mountpoint_in_root(&root, Path::new(destination), kind).unwrap();
            assert_eq!(made, Path::new(expected), "{destination}");
            let stat = base.path().join("root").join(expected.trim_start_matches('/')).symlink_metadata().unwrap();
            assert_eq!(stat.is_dir(), kind == Directory, "{destination}");
        }
        assert!(!base.path().join("root/absent").exists(), "`..` is literal, as docker cleans a path");
        let outside: Vec<_> = std::fs::read_dir(base.path().join("outside")).unwrap().collect();
        assert_eq!(outside.len(), 1, "nothing new outside");
        let mode = base.path().join("root/new/deep").metadata().unwrap().permissions().mode();
        assert_eq!(mode & 0o7777, 0o755);
    }

    #[test]
    fn a_link_to_the_host_is_rebuilt_inside() {
        let (base, root) = fixture();
        let made = make_mountpoint_in_root(&root, Path::new("/host/x"), MountpointKind::Directory).unwrap();
        assert_eq!(made, base.path().join("outside/x"), "the same path, but inside the root");
        assert!(!base.path().join("outside/x").exists());
    }

    #[test]
    fn refuses_impossible_mount_points() {
        use MountpointKind::{Directory, File};
        let (_base, root) = fixture();
        for (destination, kind, snippet) in [
            ("/etc/file", Directory, "is a regular file, but must be a directory"),
            ("/etc", File, "is a directory, but must be a file"),
            ("/etc/file/below", Directory, "is a regular file"),
            ("/loop1/x", Directory, "cannot create"),
            ("/", Directory, "container's root"),
            ("/..", Directory, "container's root"),
            ("/slash", Directory, "container's root"),
        ] {
            let error = make_mountpoint_in_root(&root, Path::new(destination), kind).unwrap_err();
            assert!(error.to_string().contains(snippet), "{destination}: {error}");
        }
        assert_eq!(create_dir_in_root(&root, Path::new("/slash")).unwrap(), Path::new("/"));
    }
}
