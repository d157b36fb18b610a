//! Looking and building inside an image's root, with that root as `/`.
//!
//! Reading goes through `openat2(RESOLVE_IN_ROOT | RESOLVE_NO_MAGICLINKS)`: links, absolute ones too, end inside. Building walks
//! component by component with a stack of directory descriptors, never following a link in the kernel: it has to know where it is when
//! something is missing, which `openat2` does not tell, and `..` is then simply the descriptor below.

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

/// As many links as the kernel follows (MAXSYMLINKS).
const MAX_LINKS: u32 = 40;

#[derive(Debug, thiserror::Error)]
pub enum RootError {
    #[error("cannot open the container's root `{}`", .path.display())]
    Open { path: PathBuf, source: io::Error },
    #[error("cannot look at `{}` in the image", .path.display())]
    Resolve { path: PathBuf, source: io::Error },
    #[error("cannot read `{}` in the image", .path.display())]
    Read { path: PathBuf, source: io::Error },
    #[error("`{}` in the image is {kind}, not a regular file", .path.display())]
    NotAFile { path: PathBuf, kind: &'static str },
    #[error("`{}` in the image is larger than {max} bytes", .path.display())]
    TooLarge { path: PathBuf, max: usize },
    #[error("cannot make `{}` in the container", .path.display())]
    Make { path: PathBuf, source: io::Error },
    #[error("`{}` in the container is {found}, but {wanted} has to be there", .path.display())]
    Mismatch { path: PathBuf, found: &'static str, wanted: &'static str },
    #[error("`{}` cannot be mounted over: it is the container's root", .path.display())]
    IsRoot { path: PathBuf },
}

impl Explain for RootError {}

/// What will be mounted on a mount point.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MountpointKind {
    Directory,
    File,
}

/// A descriptor of a root directory, for the functions of this room.
pub fn open_root(path: &Path) -> Result<OwnedFd, RootError> {
    nix::fcntl::open(path, OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC, Mode::empty())
        .map_err(|errno| RootError::Open { path: path.to_owned(), source: errno.into() })
}

/// An `O_PATH` descriptor of whatever `path` names in `root` (links followed inside it); none if nothing is there.
pub fn resolve_in_root(root: impl AsFd, path: &Path) -> Result<Option<OwnedFd>, RootError> {
    let how = OpenHow::new()
        .flags(OFlag::O_PATH | OFlag::O_CLOEXEC)
        .resolve(ResolveFlag::RESOLVE_IN_ROOT | ResolveFlag::RESOLVE_NO_MAGICLINKS);
    // A rename anywhere on the machine can spoil a walk over `..` with EAGAIN (openat2(2)).
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

/// What `path` in `root` is (links followed inside it); none if nothing is there.
pub fn stat_in_root(root: impl AsFd, path: &Path) -> Result<Option<FileStat>, RootError> {
    let Some(fd) = resolve_in_root(root, path)? else { return Ok(None) };
    let stat = nix::sys::stat::fstat(&fd);
    stat.map(Some).map_err(|errno| RootError::Resolve { path: path.to_owned(), source: errno.into() })
}

/// The bytes of the regular file `path` in `root`, none if nothing is there. A FIFO, device or directory is an error and never opened
/// (not even a tape rewinds), and so is a file of more than `max` bytes.
pub fn read_file_in_root(root: impl AsFd, path: &Path, max: usize) -> Result<Option<Vec<u8>>, RootError> {
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

/// Makes sure that `destination` exists in `root` as something that a file or a directory can be mounted on, making what is missing
/// (directories 0755, files 0644 and empty, owned by root). Answers the absolute path with all links resolved: mount there, and no
/// later join can be led astray. As docker does, `..` in the request is taken literally and links lead inside the root.
pub fn make_mountpoint_in_root(
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

/// Makes a directory and its parents in `root`, as `WORKDIR` asks for; answers the path with all links resolved.
pub fn create_dir_in_root(root: impl AsFd, path: &Path) -> Result<PathBuf, RootError> {
    if normal(path).is_empty() {
        return Ok(PathBuf::from("/"));
    }
    match make_mountpoint_in_root(root, path, MountpointKind::Directory) {
        // A link to `/`.
        Err(RootError::IsRoot { .. }) => Ok(PathBuf::from("/")),
        other => other,
    }
}

/// Puts a symbolic link at `path` in `root`, in the place of whatever file or link was there.
pub fn link_in_root(root: impl AsFd, path: &Path, target: &str) -> Result<(), RootError> {
    put_in_root(root, path, |dir, name| nix::unistd::symlinkat(target, dir, name))
}

/// Puts a file at `path` in `root`, in the place of whatever file or link was there: what is linked to stays as it is.
pub fn replace_file_in_root(root: impl AsFd, path: &Path, bytes: &[u8]) -> Result<(), RootError> {
    put_in_root(root, path, |dir, name| {
        let flags = OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        let mode = Mode::from_bits_truncate(0o644);
        let fd = nix::fcntl::openat(dir, name, flags, mode)?;
        nix::sys::stat::fchmod(&fd, mode)?;
        let written = io::Write::write_all(&mut File::from(fd), bytes);
        written.map_err(|error| error.raw_os_error().map_or(Errno::EIO, Errno::from_raw))
    })
}

/// Makes a new entry under a name of ours beside `path` (its directory is made, and links lead inside), and renames it over.
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
    /// The directories (at the end perhaps a file) gone down so far.
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
        let mode = match wanted {
            MountpointKind::Directory => {
                nix::sys::stat::mkdirat(here, name, Mode::from_bits_truncate(0o755))?;
                0o755
            }
            MountpointKind::File => {
                let flags = OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
                drop(nix::fcntl::openat(here, name, flags, Mode::from_bits_truncate(0o644))?);
                0o644
            }
        };
        // The umask and a setgid parent must not show in what the container sees; nobody else can be at the fresh entry yet.
        nix::sys::stat::fchmodat(here, name, Mode::from_bits_truncate(mode), FchmodatFlags::FollowSymlink)?;
        nix::unistd::fchownat(here, name, Some(0.into()), Some(0.into()), AtFlags::AT_SYMLINK_NOFOLLOW)
    }
}

/// The path's names with `.` and `..` taken literally, as Go's `filepath.Clean` does to docker's destinations.
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
        for (path, word) in [
            ("/fifo", "a FIFO"),
            ("/etc", "a directory"),
            ("/etc/file", "larger than 5 bytes"),
            ("/loop1", "cannot look"),
        ] {
            let error = read_file_in_root(&root, Path::new(path), 5).unwrap_err();
            assert!(error.to_string().contains(word), "{path}: {error}");
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
        for (destination, kind, word) in [
            ("/etc/file", Directory, "is a regular file, but a directory"),
            ("/etc", File, "is a directory, but a file"),
            ("/etc/file/below", Directory, "is a regular file"),
            ("/loop1/x", Directory, "cannot make"),
            ("/", Directory, "container's root"),
            ("/..", Directory, "container's root"),
            ("/slash", Directory, "container's root"),
        ] {
            let error = make_mountpoint_in_root(&root, Path::new(destination), kind).unwrap_err();
            assert!(error.to_string().contains(word), "{destination}: {error}");
        }
        assert_eq!(create_dir_in_root(&root, Path::new("/slash")).unwrap(), Path::new("/"));
    }
}
