//! The build context: a directory of the host, of which a build sees only what lies inside and is not ignored.
//!
//! Every path goes through `openat2` below the context's descriptor: links that lead out end inside (as in a chroot), and what changes
//! between two looks is an error, never another file. Only directories, regular files and links can be copied; a FIFO or device is
//! refused by name, and never opened.

use std::ffi::OsStr;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use nix::dir::Dir;
use nix::fcntl::{AtFlags, OFlag, OpenHow, ResolveFlag, openat2, readlinkat};
use nix::sys::stat::{FileStat, Mode, SFlag, fstat, fstatat};
use sha2::{Digest as _, Sha256};

use super::ignore::{self, Ignore, PatternError};
use crate::report::Explain;

/// As deep as a layer may be.
const MAX_DEPTH: usize = 500;
/// An ignore file that is longer is something else.
const MAX_IGNORE: u64 = 4 << 20;

/// Something of the context that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ContextError {
    #[error("cannot read `{path}` of the build context")]
    Read { path: String, source: io::Error },
    #[error("cannot read `{}`, which says what to leave out of the context", .path.display())]
    Ignore { path: PathBuf, source: io::Error },
    #[error("`{}` says what to leave out of the context, and is not understood", .path.display())]
    BadIgnore { path: PathBuf, source: PatternError },
    #[error("cannot open the build context `{}`", .path.display())]
    Open { path: PathBuf, source: io::Error },
    #[error("cannot make a copy of `{path}` of the build context")]
    Copy { path: String, source: io::Error },
    #[error("the build context has no `{0}`")]
    Missing(String),
    #[error("the build context has no `{0}` that is not ignored")]
    Ignored(String),
    #[error("`{path}` of the build context is {kind}: only files, directories and links can be copied")]
    Kind { path: String, kind: &'static str },
    #[error("`{0}` of the build context was changed while it was copied")]
    Changed(String),
    #[error(transparent)]
    Pattern(#[from] PatternError),
}

impl Explain for ContextError {
    fn hint(&self) -> Option<String> {
        match self {
            Self::Ignored(_) => Some("`.dockerignore` excludes it: take it back with a line `!PATH`".into()),
            Self::Missing(_) => Some(
                "paths of `COPY` and `ADD` are taken from the context directory, the last argument of `build`".into(),
            ),
            Self::Kind { .. } => Some("exclude it in `.dockerignore`".into()),
            _ => None,
        }
    }
}

/// One thing to copy.
#[derive(Debug, Clone)]
pub struct Found {
    /// Below the source: empty for the source itself.
    pub name: Vec<u8>,
    /// Below the context, without links.
    pub path: PathBuf,
    pub kind: FoundKind,
    pub mode: u16,
    pub mtime: i64,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum FoundKind {
    Directory,
    File { size: u64, digest: [u8; 32] },
    Symlink(Vec<u8>),
}

/// A source of a `COPY`: its own name, and everything in it.
#[derive(Debug)]
pub struct Source {
    pub name: Vec<u8>,
    pub found: Vec<Found>,
    /// Something in it is ignored.
    pub hides: bool,
}

/// An open context.
#[derive(Debug)]
pub struct Context {
    root: OwnedFd,
    path: PathBuf,
    ignore: Ignore,
}

impl Context {
    /// Opens a directory; the ignore file is the Containerfile's own, or the context's.
    pub fn open(path: &Path, containerfile: Option<&Path>) -> Result<Self, ContextError> {
        let failed = |source| ContextError::Open { path: path.into(), source };
        let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
        let root = nix::fcntl::open(path, flags, Mode::empty()).map_err(|errno| failed(errno.into()))?;
        // Its real path: bind mounts are made elsewhere, where a relative one means nothing.
        let path = std::fs::read_link(crate::sys::mount::fd_path(&root)).map_err(failed)?;
        let mut context = Self { root, path, ignore: Ignore::default() };
        for kind in ["containerignore", "dockerignore"] {
            let Some(file) = containerfile else { break };
            let mut own = file.as_os_str().to_owned();
            own.push(format!(".{kind}"));
            let failed = |source| ContextError::Ignore { path: PathBuf::from(&own), source };
            match File::open(&own).and_then(read_ignore) {
                Ok(text) => {
                    let bad = |source| ContextError::BadIgnore { path: PathBuf::from(&own), source };
                    context.ignore = Ignore::parse(&text).map_err(bad)?;
                    return Ok(context);
                }
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(failed(error)),
            }
        }
        for name in [".containerignore", ".dockerignore"] {
            let file = match context.open_file(Path::new(name)) {
                Ok(file) => file,
                Err(error) if error.kind() == io::ErrorKind::NotFound => match context.stat(Path::new(name)) {
                    Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                    // What it would keep out must not come in because it cannot be read.
                    _ => {
                        let source = io::Error::other("it is a link that leads to nothing inside the context");
                        return Err(ContextError::Read { path: name.into(), source });
                    }
                },
                Err(source) => return Err(ContextError::Read { path: name.into(), source }),
            };
            let text = read_ignore(file).map_err(|source| ContextError::Read { path: name.into(), source })?;
            let bad = |source| ContextError::BadIgnore { path: name.into(), source };
            context.ignore = Ignore::parse(&text).map_err(bad)?;
            break;
        }
        Ok(context)
    }

    /// Where it lies on the host.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// A regular file of the context, links followed inside it.
    pub fn open_file(&self, path: &Path) -> io::Result<File> {
        let how = OpenHow::new()
            .flags(OFlag::O_RDONLY | OFlag::O_NONBLOCK | OFlag::O_NOCTTY | OFlag::O_CLOEXEC)
            .resolve(ResolveFlag::RESOLVE_IN_ROOT | ResolveFlag::RESOLVE_NO_MAGICLINKS);
        // Looked at before it is opened: opening acts on a device, and on a FIFO's other end.
        let looked = self.look(path)?;
        if fstat(&looked)?.st_mode & SFlag::S_IFMT.bits() != SFlag::S_IFREG.bits() {
            return Err(io::Error::other("not a regular file"));
        }
        let file = File::from(openat2(&self.root, path, how)?);
        if file.metadata()?.is_file() { Ok(file) } else { Err(io::Error::other("not a regular file")) }
    }

    fn look(&self, path: &Path) -> io::Result<OwnedFd> {
        let how = OpenHow::new()
            .flags(OFlag::O_PATH | OFlag::O_CLOEXEC)
            .resolve(ResolveFlag::RESOLVE_IN_ROOT | ResolveFlag::RESOLVE_NO_MAGICLINKS);
        Ok(openat2(&self.root, if path.as_os_str().is_empty() { Path::new(".") } else { path }, how)?)
    }

    /// The real path of something in the context, below the context.
    fn real(&self, fd: &OwnedFd) -> io::Result<PathBuf> {
        let root = std::fs::read_link(crate::sys::mount::fd_path(&self.root))?;
        let real = std::fs::read_link(crate::sys::mount::fd_path(fd))?;
        let inside = real.strip_prefix(&root).map_err(|_| io::Error::other("it was moved while it was read"))?;
        Ok(inside.to_owned())
    }

    /// What a word of `COPY` names: one source, or all that match a pattern.
    pub fn select(&self, word: &str) -> Result<Vec<Source>, ContextError> {
        let names: Vec<&str> = word.split('/').filter(|name| !matches!(*name, "" | ".")).collect();
        let mut paths = vec![PathBuf::new()];
        for name in &names {
            if *name == ".." {
                // A context has nothing above it, as a root has not.
                for path in &mut paths {
                    path.pop();
                }
            } else if ignore::is_pattern(name) {
                let pattern = ignore::pattern(name, false)?;
                let mut next = Vec::new();
                for path in paths {
                    let matching = self.names(&path)?.into_iter().filter(|name| pattern.is_match(name));
                    next.extend(matching.map(|name| path.join(OsStr::from_bytes(&name))));
                }
                paths = next;
            } else {
                paths.iter_mut().for_each(|path| path.push(name));
            }
        }
        let literal = !ignore::is_pattern(word);
        let mut sources = Vec::new();
        for path in paths {
            let shown = || path.display().to_string();
            if self.ignore.excludes(path.as_os_str().as_bytes())
                && !path.as_os_str().is_empty()
                && !self.ignore.takes_back()
            {
                if literal {
                    return Err(ContextError::Ignored(shown()));
                }
                continue;
            }
            let fd = match self.look(&path) {
                Ok(fd) => fd,
                Err(error) if error.kind() == io::ErrorKind::NotFound && !literal => continue,
                Err(error) if error.kind() == io::ErrorKind::NotFound => return Err(ContextError::Missing(shown())),
                Err(source) => return Err(ContextError::Read { path: shown(), source }),
            };
            let real = self.real(&fd).map_err(|source| ContextError::Read { path: shown(), source })?;
            let name = path.file_name().map(|name| name.as_bytes().to_vec()).unwrap_or_default();
            let mut source = Source { name, found: Vec::new(), hides: false };
            self.walk(&real, &mut Vec::new(), &mut source, 0)?;
            if source.found.is_empty() && literal {
                return Err(ContextError::Ignored(shown()));
            }
            sources.push(source);
        }
        if sources.iter().all(|source| source.found.is_empty()) {
            return Err(ContextError::Missing(word.to_owned()));
        }
        Ok(sources)
    }

    /// The names in a directory of the context; nothing, if it is none.
    fn names(&self, path: &Path) -> Result<Vec<Vec<u8>>, ContextError> {
        let failed = |source| ContextError::Read { path: path.display().to_string(), source };
        let Ok(fd) = self.look(path) else { return Ok(Vec::new()) };
        let stat = fstat(&fd).map_err(|errno| failed(errno.into()))?;
        if stat.st_mode & SFlag::S_IFMT.bits() != SFlag::S_IFDIR.bits() {
            return Ok(Vec::new());
        }
        let mut dir =
            Dir::openat(fd.as_fd(), ".", OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC, Mode::empty())
                .map_err(|errno| failed(errno.into()))?;
        let mut names = Vec::new();
        for entry in dir.iter() {
            let name = entry.map_err(|errno| failed(errno.into()))?.file_name().to_bytes().to_vec();
            if name != b"." && name != b".." {
                names.push(name);
            }
        }
        names.sort_unstable();
        Ok(names)
    }

    /// Everything from `path` (real, below the context) down, in the order of the names.
    fn walk(&self, path: &Path, name: &mut Vec<u8>, out: &mut Source, depth: usize) -> Result<(), ContextError> {
        let shown = || path.display().to_string();
        let failed = |source: io::Error| ContextError::Read { path: shown(), source };
        let bytes = path.as_os_str().as_bytes();
        let excluded = !bytes.is_empty() && self.ignore.excludes(bytes);
        out.hides |= excluded;
        let stat = match self.stat(path) {
            Ok(stat) => stat,
            Err(_) if excluded => return Ok(()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Err(ContextError::Changed(shown())),
            Err(error) => return Err(failed(error)),
        };
        let is_directory = stat.st_mode & SFlag::S_IFMT.bits() == SFlag::S_IFDIR.bits();
        if excluded && !(is_directory && self.ignore.takes_back()) {
            return Ok(());
        }
        let at = out.found.len();
        out.found.push(Found {
            name: name.clone(),
            path: path.into(),
            kind: self.kind(path, &stat)?,
            mode: (stat.st_mode & 0o7777) as u16,
            mtime: stat.st_mtime,
        });
        if !is_directory {
            return Ok(());
        }
        if depth > MAX_DEPTH {
            return Err(failed(io::Error::from_raw_os_error(libc::ENAMETOOLONG)));
        }
        let length = name.len();
        for child in self.names(path)? {
            if length > 0 {
                name.push(b'/');
            }
            name.extend_from_slice(&child);
            self.walk(&path.join(OsStr::from_bytes(&child)), name, out, depth + 1)?;
            name.truncate(length);
        }
        if excluded && out.found.len() == at + 1 {
            // Nothing in it was taken back.
            out.found.pop();
        }
        Ok(())
    }

    fn stat(&self, path: &Path) -> io::Result<FileStat> {
        let Some(name) = path.file_name() else { return Ok(fstat(&self.root)?) };
        let parent = self.beneath(path.parent().unwrap_or(Path::new("")), OFlag::O_PATH | OFlag::O_DIRECTORY)?;
        Ok(fstatat(&parent, name, AtFlags::AT_SYMLINK_NOFOLLOW)?)
    }

    /// Opens a path that was real a moment ago: a link in it now means that somebody changed it.
    fn beneath(&self, path: &Path, flags: OFlag) -> io::Result<OwnedFd> {
        let how = OpenHow::new()
            .flags(flags | OFlag::O_CLOEXEC)
            .resolve(ResolveFlag::RESOLVE_BENEATH | ResolveFlag::RESOLVE_NO_SYMLINKS);
        Ok(openat2(&self.root, if path.as_os_str().is_empty() { Path::new(".") } else { path }, how)?)
    }

    fn kind(&self, path: &Path, stat: &FileStat) -> Result<FoundKind, ContextError> {
        let shown = || path.display().to_string();
        let failed = |source: io::Error| ContextError::Read { path: shown(), source };
        match SFlag::from_bits_truncate(stat.st_mode & SFlag::S_IFMT.bits()) {
            SFlag::S_IFDIR => Ok(FoundKind::Directory),
            SFlag::S_IFREG => {
                let file = self.reopen(path).map_err(failed)?;
                let mut hash = Sha256::new();
                let size = copy(&file, |bytes| {
                    hash.update(bytes);
                    Ok(())
                })
                .map_err(failed)?;
                Ok(FoundKind::File { size, digest: hash.finalize().into() })
            }
            SFlag::S_IFLNK => {
                let parent = self
                    .beneath(path.parent().unwrap_or(Path::new("")), OFlag::O_PATH | OFlag::O_DIRECTORY)
                    .map_err(failed)?;
                let target =
                    readlinkat(&parent, path.file_name().unwrap_or_default()).map_err(|errno| failed(errno.into()))?;
                Ok(FoundKind::Symlink(target.as_bytes().to_vec()))
            }
            other => {
                let kind = match other {
                    SFlag::S_IFIFO => "a FIFO",
                    SFlag::S_IFSOCK => "a socket",
                    _ => "a device",
                };
                Err(ContextError::Kind { path: shown(), kind })
            }
        }
    }

    fn reopen(&self, path: &Path) -> io::Result<File> {
        let file = File::from(self.beneath(path, OFlag::O_RDONLY | OFlag::O_NONBLOCK | OFlag::O_NOCTTY)?);
        if file.metadata()?.is_file() { Ok(file) } else { Err(io::Error::other("it is no regular file any more")) }
    }

    /// Writes what [`Context::select`] found at `to`, which does not exist, in a directory of this process's own.
    pub fn copy_out(&self, source: &Source, to: &Path) -> Result<(), ContextError> {
        use std::os::unix::fs::{OpenOptionsExt, PermissionsExt, symlink};
        // Joined with nothing, a file's path would end with a slash.
        let place = |found: &Found| match found.name.as_slice() {
            b"" => to.to_owned(),
            name => to.join(OsStr::from_bytes(name)),
        };
        for found in &source.found {
            let path = place(found);
            let failed = |source| ContextError::Copy { path: found.path.display().to_string(), source };
            match &found.kind {
                FoundKind::Directory => std::fs::create_dir(&path).map_err(failed)?,
                FoundKind::Symlink(target) => symlink(OsStr::from_bytes(target), &path).map_err(failed)?,
                FoundKind::File { .. } => {
                    let mut options = std::fs::OpenOptions::new();
                    let mut file = options.write(true).create_new(true).mode(0o600).open(&path).map_err(failed)?;
                    self.read(found, |bytes| io::Write::write_all(&mut file, bytes))?.map_err(failed)?;
                    file.set_permissions(PermissionsExt::from_mode(found.mode.into())).map_err(failed)?;
                    let time = u64::try_from(found.mtime).unwrap_or(0);
                    let time = std::time::SystemTime::UNIX_EPOCH + std::time::Duration::from_secs(time);
                    file.set_modified(time).map_err(failed)?;
                }
            }
        }
        // Last, and from the inside out: a directory may not let its owner write.
        for found in source.found.iter().rev().filter(|found| found.kind == FoundKind::Directory) {
            let failed = |source| ContextError::Copy { path: found.path.display().to_string(), source };
            std::fs::set_permissions(place(found), PermissionsExt::from_mode(found.mode.into())).map_err(failed)?;
        }
        Ok(())
    }

    /// Reads a file that [`Context::select`] found; another content than it had then is an error.
    pub fn read(
        &self,
        found: &Found,
        mut sink: impl FnMut(&[u8]) -> io::Result<()>,
    ) -> Result<io::Result<()>, ContextError> {
        let shown = || found.path.display().to_string();
        let FoundKind::File { size, digest } = &found.kind else { return Ok(Ok(())) };
        let file = self.reopen(&found.path).map_err(|_| ContextError::Changed(shown()))?;
        let (mut hash, mut left, mut written) = (Sha256::new(), *size, Ok(()));
        let read = copy(&file, |bytes| {
            left = left.checked_sub(bytes.len() as u64).ok_or(io::ErrorKind::InvalidData)?;
            hash.update(bytes);
            written = sink(bytes);
            if written.is_err() { Err(io::ErrorKind::Other.into()) } else { Ok(()) }
        });
        if written.is_err() {
            return Ok(written);
        }
        let same = read.is_ok() && left == 0 && <[u8; 32]>::from(hash.finalize()) == *digest;
        if same { Ok(Ok(())) } else { Err(ContextError::Changed(shown())) }
    }
}

/// All of an ignore file, or an error: half of one would let in what it was to keep out.
fn read_ignore(file: File) -> io::Result<String> {
    let mut text = String::new();
    io::Read::read_to_string(&mut io::Read::take(file, MAX_IGNORE + 1), &mut text)?;
    if text.len() as u64 > MAX_IGNORE { Err(io::ErrorKind::FileTooLarge.into()) } else { Ok(text) }
}

fn copy(mut file: &File, mut sink: impl FnMut(&[u8]) -> io::Result<()>) -> io::Result<u64> {
    let mut buffer = vec![0; 128 << 10];
    let mut total = 0;
    loop {
        match io::Read::read(&mut file, &mut buffer) {
            Ok(0) => return Ok(total),
            Ok(got) => {
                total += got as u64;
                sink(&buffer[..got])?;
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    fn context(ignore: &str) -> (tempfile::TempDir, Context) {
        let base = tempfile::tempdir().expect("a directory");
        let root = base.path().join("context");
        for dir in ["src/deep", "empty"] {
            std::fs::create_dir_all(root.join(dir)).expect("made");
        }
        std::fs::write(base.path().join("secret"), "outside").expect("written");
        for file in ["a.txt", "b.txt", "src/x.py", "src/deep/y.py", "secret.key"] {
            std::fs::write(root.join(file), file).expect("written");
        }
        std::fs::write(root.join(".dockerignore"), ignore).expect("written");
        symlink("../secret", root.join("up")).expect("linked");
        symlink(base.path().join("secret"), root.join("absolute")).expect("linked");
        symlink("src", root.join("alias")).expect("linked");
        let context = Context::open(&root, None).expect("opened");
        (base, context)
    }

    fn names(context: &Context, word: &str) -> Vec<String> {
        let sources = context.select(word).expect(word);
        let all = sources.iter().flat_map(|source| source.found.iter());
        all.map(|found| found.path.display().to_string()).collect()
    }

    #[test]
    fn words_and_patterns_select() {
        let (_base, context) = context("");
        assert_eq!(names(&context, "a.txt"), ["a.txt"]);
        assert_eq!(names(&context, "*.txt"), ["a.txt", "b.txt"]);
        assert_eq!(names(&context, "s*c/d??p"), ["src/deep", "src/deep/y.py"]);
        assert_eq!(names(&context, "/src/../a.txt"), ["a.txt"]);
        assert_eq!(names(&context, "../../a.txt"), ["a.txt"], "there is nothing above a context");
        assert_eq!(names(&context, "alias/x.py"), ["src/x.py"], "a link that is named is followed");
        assert!(names(&context, ".").contains(&"up".to_owned()));
        for word in ["none", "*.none"] {
            assert!(matches!(context.select(word), Err(ContextError::Missing(_))), "{word}");
        }
    }

    #[test]
    fn links_that_lead_out_end_inside() {
        let (_base, context) = context("");
        for word in ["up", "absolute"] {
            let error = context.select(word).expect_err(word);
            assert!(matches!(error, ContextError::Missing(_)), "{word}: {error}");
        }
    }

    #[test]
    fn what_is_ignored_is_not_there() {
        let (_base, context) = context("*.key\nsrc\n!src/deep/y.py\nempty\n");
        assert!(matches!(context.select("secret.key"), Err(ContextError::Ignored(_))));
        assert_eq!(names(&context, "src"), ["src", "src/deep", "src/deep/y.py"]);
        assert!(!names(&context, ".").iter().any(|name| name.contains("key") || name.contains("empty")));
    }

    #[test]
    fn an_ignore_file_that_is_not_understood_lets_nothing_in() {
        let (base, context) = context("a\n");
        let root = base.path().join("context");
        let ignore = root.join(".dockerignore");
        let refused = || Context::open(&root, None).expect_err("refused");
        std::fs::write(&ignore, "[\n").expect("written");
        assert!(matches!(refused(), ContextError::BadIgnore { .. }), "{}", refused());
        std::fs::remove_file(&ignore).expect("removed");
        symlink("../secret", &ignore).expect("linked");
        assert!(matches!(refused(), ContextError::Read { .. }), "{}", refused());
        std::fs::remove_file(&ignore).expect("removed");
        symlink("b.txt", &ignore).expect("linked");
        std::fs::write(root.join("b.txt"), "a.txt\n").expect("written");
        let inside = Context::open(&root, None).expect("a link that stays inside");
        assert!(matches!(inside.select("a.txt"), Err(ContextError::Ignored(_))));
        drop(context);
    }

    #[test]
    fn fifos_are_refused_and_changes_noticed() {
        let (base, context) = context("");
        let root = base.path().join("context");
        nix::unistd::mkfifo(&root.join("empty/fifo"), Mode::from_bits_truncate(0o600)).expect("made");
        let error = context.select("empty").expect_err("refused").to_string();
        assert!(error.contains("`empty/fifo`") && error.contains("a FIFO"), "{error}");
        let found = context.select("a.txt").expect("found").remove(0).found.remove(0);
        let read = |found: &Found| context.read(found, |_| Ok(()));
        assert!(matches!(read(&found), Ok(Ok(()))));
        for text in ["a.tx_", "longer than before", ""] {
            std::fs::write(root.join("a.txt"), text).expect("written");
            assert!(matches!(read(&found), Err(ContextError::Changed(_))), "{text}");
        }
        std::fs::remove_file(root.join("a.txt")).expect("removed");
        symlink("b.txt", root.join("a.txt")).expect("linked");
        assert!(matches!(read(&found), Err(ContextError::Changed(_))), "a link took its place");
    }
}
