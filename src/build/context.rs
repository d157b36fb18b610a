//! The build context: a directory of the host. A build sees only the files that are inside it and not ignored.
//!
//! Every path is opened with `openat2` below the context's descriptor. A link that points outside resolves inside the
//! context, as in a chroot. A path that changes between two accesses is an error, and never gives access to another
//! file. Only directories, regular files and symbolic links can be copied. A FIFO or a device is reported by name and
//! never opened.

use std::ffi::OsStr;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use nix::dir::Dir;
use nix::fcntl::{AtFlags, OFlag, OpenHow, ResolveFlag, openat2, readlinkat};
use nix::sys::stat::{FileStat, Mode, SFlag, fstat, fstatat};
use sha2::{Digest as _, Sha256};

use super::ignore::{self, Filter, Ignore, PatternError};
use crate::report::Explain;
use crate::report::Report;
use crate::sys::xattr_read::{self, Xattrs};

pub(crate) fn no_context() -> Report {
    Report::new("there is no build context").with_hint("pass the context directory: `gpurun build DIR`")
}

/// The location of a Containerfile.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Place {
    StandardInput,
    /// Relative to the context.
    Inside(PathBuf),
    Outside(PathBuf),
}

/// The extended attributes that a file brings into an image. Others are settings of this host: labels, ACLs, overlays.
const XATTRS: [&[u8]; 2] = [b"user.", b"security.capability"];
/// The same depth limit as for layers.
const MAX_DEPTH: usize = 500;
/// The size limit of an ignore file, in bytes. A longer file is not an ignore file.
const MAX_IGNORE: u64 = 4 << 20;

/// A path of the context cannot be used.
#[derive(Debug, thiserror::Error)]
pub(super) enum ContextError {
    #[error("cannot read `{path}` of the build context")]
    Read { path: String, source: io::Error },
    #[error("cannot read the ignore file `{}`", .path.display())]
    Ignore { path: PathBuf, source: io::Error },
    #[error("cannot parse the ignore file `{}`", .path.display())]
    BadIgnore { path: PathBuf, source: PatternError },
    #[error("cannot open the build context `{}`", .path.display())]
    Open { path: PathBuf, source: io::Error },
    #[error("cannot copy `{path}` of the build context")]
    Copy { path: String, source: io::Error },
    #[error("the build context has no `{0}`")]
    Missing(String),
    #[error(
        "cannot follow `{path}` of the build context: it is a link to `{target}`, which does not exist inside the context"
    )]
    Link { path: String, target: String },
    #[error("`{path}` of the build context is excluded by `{ignore}`")]
    Ignored { path: String, ignore: String },
    #[error("cannot copy `{path}` of the build context: it is {kind}, and not a file, directory or link")]
    Kind { path: String, kind: &'static str, ignore: String },
    #[error("cannot copy `{0}` of the build context: it changed during the build")]
    Changed(String),
    #[error(transparent)]
    Pattern(#[from] PatternError),
}

impl Explain for ContextError {
    fn hint(&self) -> Option<String> {
        match self {
            Self::Ignored { path, ignore } => {
                Some(format!("add the line `!{path}` at the end of `{ignore}` to copy it"))
            }
            Self::Link { .. } => Some(
                "copy the target of the link into the context: a build cannot read files outside its context".into(),
            ),
            Self::Missing(_) => Some(
                "use a path relative to the context directory, which is the last argument of `gpurun build`".into(),
            ),
            Self::Kind { path, ignore, .. } => Some(format!("add the line `{path}` to `{ignore}` to exclude it")),
            _ => None,
        }
    }
}

/// A file, directory or link to copy.
#[derive(Debug, Clone)]
pub(super) struct Found {
    /// Relative to the source. Empty for the source itself.
    pub name: Vec<u8>,
    /// Relative to the context. None of its parent directories is a link.
    pub path: PathBuf,
    pub kind: FoundKind,
    pub mode: u16,
    pub mtime: i64,
    pub xattrs: Xattrs,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum FoundKind {
    Directory,
    /// `inode` holds the device and inode of a file with several hard links.
    File {
        size: u64,
        digest: [u8; 32],
        inode: Option<(u64, u64)>,
    },
    Symlink(Vec<u8>),
}

/// A source of a `COPY`: its name and everything in it.
#[derive(Debug, Clone)]
pub(super) struct Source {
    pub name: Vec<u8>,
    pub found: Vec<Found>,
}

/// An open build context.
#[derive(Debug)]
pub(super) struct Context {
    root: OwnedFd,
    ignore: Ignore,
    /// The file that `ignore` was read from, or the default if there is none.
    ignore_file: String,
}

impl Context {
    /// Opens a directory and reads its ignore file: the one beside the Containerfile (`FILE.dockerignore`), or the
    /// context's own.
    pub(super) fn open(path: &Path, containerfile: &Place) -> Result<Self, ContextError> {
        let mut context = Self::bare(path)?;
        let own = |kind: &str| {
            let (Place::Inside(path) | Place::Outside(path)) = containerfile else { return None };
            let mut name = path.as_os_str().to_owned();
            name.push(format!(".{kind}"));
            Some(PathBuf::from(name))
        };
        let inside = |path: PathBuf| match containerfile {
            Place::Outside(_) => (path, false),
            _ => (path, true),
        };
        let kinds = ["containerignore", "dockerignore"];
        let candidates = kinds.iter().filter_map(|kind| own(kind)).map(inside);
        let shared = kinds.iter().map(|kind| (PathBuf::from(format!(".{kind}")), true));
        for (path, inside) in candidates.chain(shared) {
            let Some(text) = context.ignore_text(&path, inside)? else { continue };
            let bad = |source| ContextError::BadIgnore { path: path.clone(), source };
            context.ignore = Ignore::parse(&text).map_err(bad)?;
            context.ignore_file = path.display().to_string();
            break;
        }
        Ok(context)
    }

    /// Opens a directory with this ignore file, wherever it is.
    pub(super) fn ignoring(path: &Path, ignore: &Path) -> Result<Self, ContextError> {
        let mut context = Self::bare(path)?;
        let failed = |source| ContextError::Ignore { path: ignore.into(), source };
        let text = match context.ignore_text(ignore, false)? {
            Some(text) => text,
            None => return Err(failed(io::ErrorKind::NotFound.into())),
        };
        context.ignore =
            Ignore::parse(&text).map_err(|source| ContextError::BadIgnore { path: ignore.into(), source })?;
        context.ignore_file = ignore.display().to_string();
        Ok(context)
    }

    /// Opens a directory without an ignore file.
    pub(super) fn bare(path: &Path) -> Result<Self, ContextError> {
        let failed = |source| ContextError::Open { path: path.into(), source };
        let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
        let root = nix::fcntl::open(path, flags, Mode::empty()).map_err(|errno| failed(errno.into()))?;
        Ok(Self { root, ignore: Ignore::default(), ignore_file: ".dockerignore".into() })
    }

    /// The text of an ignore file, if it exists. A file that cannot be read is an error, because the paths that it
    /// excludes must not be copied.
    fn ignore_text(&self, path: &Path, inside: bool) -> Result<Option<String>, ContextError> {
        let failed = |source| ContextError::Ignore { path: path.to_owned(), source };
        let file = match inside {
            true => self.file(path),
            false => File::open(path).map_err(failed),
        };
        match file {
            Err(ContextError::Missing(_)) => Ok(None),
            Err(ContextError::Ignore { source, .. }) if source.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
            Ok(file) => read_ignore(file).map(Some).map_err(failed),
        }
    }

    /// Opens a regular file for gpurun's own use, regardless of the ignore file.
    pub(super) fn file(&self, path: &Path) -> Result<File, ContextError> {
        self.open_file(path).map_err(|error| match error.kind() {
            io::ErrorKind::NotFound => self.missing(path),
            _ => ContextError::Read { path: path.display().to_string(), source: error },
        })
    }

    /// Opens a regular file. Links are followed inside the context.
    pub(super) fn open_file(&self, path: &Path) -> io::Result<File> {
        let how = OpenHow::new()
            .flags(OFlag::O_RDONLY | OFlag::O_NONBLOCK | OFlag::O_NOCTTY | OFlag::O_CLOEXEC)
            .resolve(ResolveFlag::RESOLVE_IN_ROOT | ResolveFlag::RESOLVE_NO_MAGICLINKS);
        // Check the type before the open: opening a device has effects, and so has opening a FIFO for the process at
        // its other end.
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

    /// The resolved path of an open file, relative to the context.
    fn real(&self, fd: &OwnedFd) -> io::Result<PathBuf> {
        let root = std::fs::read_link(crate::sys::mount::fd_path(&self.root))?;
        let real = std::fs::read_link(crate::sys::mount::fd_path(fd))?;
        let inside = real.strip_prefix(&root).map_err(|_| io::Error::other("it was moved during the build"))?;
        Ok(inside.to_owned())
    }

    /// The paths that an argument of `COPY` stands for: one path, or all paths that match a pattern.
    fn paths(&self, word: &str) -> Result<Vec<PathBuf>, ContextError> {
        let names: Vec<&str> = word.split('/').filter(|name| !matches!(*name, "" | ".")).collect();
        let mut paths = vec![PathBuf::new()];
        for name in &names {
            if *name == ".." {
                // `..` at the root of the context stays at the root, as in a file system.
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
        Ok(paths)
    }

    /// Opens a path that an argument names. `None` means that the argument is a pattern, and the path is not copied.
    fn open_named(&self, path: &Path, literal: bool) -> Result<Option<OwnedFd>, ContextError> {
        let name = path.as_os_str();
        if self.ignore.excludes(name.as_bytes()) && !name.is_empty() && !self.ignore.takes_back() {
            return if literal { Err(self.ignored(path)) } else { Ok(None) };
        }
        match self.look(path) {
            Ok(fd) => Ok(Some(fd)),
            Err(error) if is_nowhere(&error) && !literal => Ok(None),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Err(self.missing(path)),
            Err(source) => Err(ContextError::Read { path: path.display().to_string(), source }),
        }
    }

    /// Checks that the path exists which an argument of `COPY` names. A pattern need not match anything.
    pub(super) fn check(&self, word: &str) -> Result<(), ContextError> {
        if ignore::is_pattern(word) {
            return Ok(());
        }
        self.paths(word)?.iter().try_for_each(|path| self.open_named(path, true).map(drop))
    }

    /// Finds the sources that an argument of `COPY` names. The filter selects a part of each of them.
    pub(super) fn select(&self, word: &str, filter: &Filter) -> Result<Vec<Source>, ContextError> {
        let literal = !ignore::is_pattern(word);
        let mut sources = Vec::new();
        for path in self.paths(word)? {
            let shown = || path.display().to_string();
            let Some(fd) = self.open_named(&path, literal)? else { continue };
            let real = self.real(&fd).map_err(|source| ContextError::Read { path: shown(), source })?;
            let name = path.file_name().map(|name| name.as_bytes().to_vec()).unwrap_or_default();
            let mut source = Source { name, found: Vec::new() };
            self.walk(&real, &mut Vec::new(), &mut source, filter, 0)?;
            if source.found.is_empty() && literal {
                return Err(self.ignored(&path));
            }
            let is_file = source.found.first().is_some_and(|first| first.kind != FoundKind::Directory);
            if is_file && filter.leaves_out(&source.name) {
                source.found.clear();
            }
            sources.push(source);
        }
        // A pattern that matches nothing is not an error: `COPY requirements.txt environment.yml* /app/`.
        sources.retain(|source| !source.found.is_empty());
        Ok(sources)
    }

    fn ignored(&self, path: &Path) -> ContextError {
        ContextError::Ignored { path: path.display().to_string(), ignore: self.ignore_file.clone() }
    }

    /// The reason why a path cannot be resolved: it does not exist, or a link on the way has no target inside the
    /// context.
    fn missing(&self, path: &Path) -> ContextError {
        let prefixes: Vec<&Path> = path.ancestors().filter(|prefix| !prefix.as_os_str().is_empty()).collect();
        let how = OpenHow::new()
            .flags(OFlag::O_PATH | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC)
            .resolve(ResolveFlag::RESOLVE_IN_ROOT | ResolveFlag::RESOLVE_NO_MAGICLINKS);
        if let Some(prefix) = prefixes.into_iter().rev().find(|prefix| self.look(prefix).is_err())
            && let Ok(target) = openat2(&self.root, prefix, how).and_then(|link| readlinkat(&link, ""))
        {
            return ContextError::Link { path: prefix.display().to_string(), target: target.display().to_string() };
        }
        ContextError::Missing(path.display().to_string())
    }

    /// The sorted names in a directory of the context, or an empty list if the path is not a directory.
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

    /// Collects `path` and everything below it, sorted by name. `path` is relative to the context and contains no
    /// links.
    fn walk(
        &self,
        path: &Path,
        name: &mut Vec<u8>,
        out: &mut Source,
        filter: &Filter,
        depth: usize,
    ) -> Result<(), ContextError> {
        let shown = || path.display().to_string();
        let failed = |source: io::Error| ContextError::Read { path: shown(), source };
        let bytes = path.as_os_str().as_bytes();
        let ignored = !bytes.is_empty() && self.ignore.excludes(bytes);
        let filtered = !name.is_empty() && !filter.keeps(name);
        let excluded = ignored || filtered;
        let stat = match self.stat(path) {
            Ok(stat) => stat,
            Err(_) if excluded => return Ok(()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Err(ContextError::Changed(shown())),
            Err(error) => return Err(failed(error)),
        };
        let is_directory = stat.st_mode & SFlag::S_IFMT.bits() == SFlag::S_IFDIR.bits();
        let searched = (!ignored || self.ignore.takes_back()) && (!filtered || filter.searches(name));
        if excluded && !(is_directory && searched) {
            return Ok(());
        }
        let at = out.found.len();
        out.found.push(Found {
            name: name.clone(),
            path: path.into(),
            kind: self.kind(path, &stat)?,
            mode: (stat.st_mode & 0o7777) as u16,
            mtime: stat.st_mtime,
            xattrs: self.xattrs(path).map_err(failed)?,
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
            self.walk(&path.join(OsStr::from_bytes(&child)), name, out, filter, depth + 1)?;
            name.truncate(length);
        }
        if excluded && out.found.len() == at + 1 {
            // Nothing in this excluded directory is copied.
            out.found.pop();
        }
        Ok(())
    }

    fn xattrs(&self, path: &Path) -> io::Result<Xattrs> {
        let mut all = match path.file_name() {
            None => xattr_read::of_open(self.root.as_fd())?,
            Some(name) => {
                let parent =
                    self.beneath(path.parent().unwrap_or(Path::new("")), OFlag::O_PATH | OFlag::O_DIRECTORY)?;
                xattr_read::at(parent.as_fd(), name.as_bytes())?
            }
        };
        all.retain(|name, _| XATTRS.iter().any(|prefix| name.starts_with(prefix)));
        Ok(all)
    }

    fn stat(&self, path: &Path) -> io::Result<FileStat> {
        let Some(name) = path.file_name() else { return Ok(fstat(&self.root)?) };
        let parent = self.beneath(path.parent().unwrap_or(Path::new("")), OFlag::O_PATH | OFlag::O_DIRECTORY)?;
        Ok(fstatat(&parent, name, AtFlags::AT_SYMLINK_NOFOLLOW)?)
    }

    /// Opens a path that was resolved before. A link in it now means that the context was changed in between.
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
                let meta = file.metadata().map_err(failed)?;
                let inode = (meta.nlink() > 1).then(|| (meta.dev(), meta.ino()));
                let mut hash = Sha256::new();
                let size = copy(&file, |bytes| {
                    hash.update(bytes);
                    Ok(())
                })
                .map_err(failed)?;
                Ok(FoundKind::File { size, digest: hash.finalize().into(), inode })
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
                Err(ContextError::Kind { path: shown(), kind, ignore: self.ignore_file.clone() })
            }
        }
    }

    fn reopen(&self, path: &Path) -> io::Result<File> {
        let file = File::from(self.beneath(path, OFlag::O_RDONLY | OFlag::O_NONBLOCK | OFlag::O_NOCTTY)?);
        if file.metadata()?.is_file() { Ok(file) } else { Err(io::Error::other("it is no longer a regular file")) }
    }

    /// Reads a file that [`Context::select`] found. It is an error if the content has changed since then.
    pub(super) fn read(
        &self,
        found: &Found,
        mut sink: impl FnMut(&[u8]) -> io::Result<()>,
    ) -> Result<io::Result<()>, ContextError> {
        let shown = || found.path.display().to_string();
        let FoundKind::File { size, digest, .. } = &found.kind else { return Ok(Ok(())) };
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

/// Whether the error means that a path does not exist. Not every match of a wildcard has the rest of the path.
fn is_nowhere(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory)
}

/// Reads a whole ignore file. A truncated one would let excluded files into the build, so a file over the limit is an
/// error.
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
        let context = Context::open(&root, &Place::StandardInput).expect("opened");
        (base, context)
    }

    fn names(context: &Context, word: &str) -> Vec<String> {
        let sources = context.select(word, &Filter::default()).expect(word);
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
        assert!(matches!(context.select("none", &Filter::default()), Err(ContextError::Missing(_))));
        for word in ["*.none", "non[e]/x", "*/none"] {
            assert!(context.select(word, &Filter::default()).expect(word).is_empty(), "{word}");
        }
    }

    #[test]
    fn links_that_lead_out_end_inside() {
        let (_base, context) = context("");
        for word in ["up", "absolute", "up/below"] {
            let error = context.select(word, &Filter::default()).expect_err(word).to_string();
            assert!(error.contains("is a link to") && error.contains("secret`"), "{word}: {error}");
        }
    }

    #[test]
    fn what_is_ignored_is_not_there() {
        let (_base, context) = context("*.key\nsrc\n!src/deep/y.py\nempty\n");
        assert!(matches!(context.select("secret.key", &Filter::default()), Err(ContextError::Ignored { .. })));
        assert_eq!(names(&context, "src"), ["src", "src/deep", "src/deep/y.py"]);
        assert!(!names(&context, ".").iter().any(|name| name.contains("key") || name.contains("empty")));
    }

    #[test]
    fn an_ignore_file_that_is_not_understood_lets_nothing_in() {
        let (base, context) = context("a\n");
        let root = base.path().join("context");
        let ignore = root.join(".dockerignore");
        let refused = || Context::open(&root, &Place::StandardInput).expect_err("refused");
        std::fs::write(&ignore, "[\n").expect("written");
        assert!(matches!(refused(), ContextError::BadIgnore { .. }), "{}", refused());
        std::fs::remove_file(&ignore).expect("removed");
        symlink("../secret", &ignore).expect("linked");
        assert!(matches!(refused(), ContextError::Link { .. }), "{}", refused());
        std::fs::remove_file(&ignore).expect("removed");
        symlink("b.txt", &ignore).expect("linked");
        std::fs::write(root.join("b.txt"), "a.txt\n").expect("written");
        let inside = Context::open(&root, &Place::StandardInput).expect("a link that stays inside");
        assert!(matches!(inside.select("a.txt", &Filter::default()), Err(ContextError::Ignored { .. })));
        drop(context);
    }

    #[test]
    fn fifos_are_refused_and_changes_noticed() {
        let (base, context) = context("");
        let root = base.path().join("context");
        nix::unistd::mkfifo(&root.join("empty/fifo"), Mode::from_bits_truncate(0o600)).expect("made");
        let error = context.select("empty", &Filter::default()).expect_err("refused").to_string();
        assert!(error.contains("`empty/fifo`") && error.contains("a FIFO"), "{error}");
        let found = context.select("a.txt", &Filter::default()).expect("found").remove(0).found.remove(0);
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
