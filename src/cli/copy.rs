//! `gpurun cp`: copies files into, out of and between containers, with docker's rules for names.
//!
//! All data passes through a tar archive in an unnamed file. The files that are read on one side are checked like a
//! layer (no name escapes the root). They are then extracted on the other side entry by entry, through descriptors and
//! never through a link. Devices and FIFOs are not copied.

use std::fs::File;
use std::io::{self, BufWriter, IsTerminal, Seek};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path, PathBuf};

use clap::Args;
use nix::fcntl::{AtFlags, OFlag, readlinkat};
use nix::sys::stat::{Mode, SFlag, fstatat};

use super::{Context, print};
use crate::build;
use crate::launch;
use crate::layer::{Merger, Tree, diff, directory, tar};
use crate::names::Digest;
use crate::report::Report;
use crate::rootfs;
use crate::store::Store;
use crate::sys::mount::fd_path;

/// More consecutive links than this are treated as a loop (the kernel's limit).
const LINKS: usize = 40;

#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  gpurun cp notebook:/work/result.csv .\n  gpurun cp data/. notebook:/work/data\n  gpurun cp notebook:/etc - | tar -t\n\n\
        A source that ends in `/.` stands for its contents. A destination that is a directory keeps the source's name. The containers need not run. Copies on this host belong to the caller, and copies in the container to root, unless `--archive` keeps the owners."
)]
pub(super) struct CopyArgs {
    /// Keep owners and set-user-ID bits
    #[arg(short, long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_value_t = false, default_missing_value = "true", action = clap::ArgAction::Set)]
    archive: bool,
    /// Follow a symbolic link as the source
    #[arg(short = 'L', long)]
    follow_link: bool,
    /// Do not print what was copied
    #[arg(short, long)]
    quiet: bool,
    /// CONTAINER:PATH, a path of this host, or `-` for a tar archive on standard input
    #[arg(value_name = "SOURCE")]
    source: String,
    /// CONTAINER:PATH, a path of this host, or `-` for a tar archive on standard output
    #[arg(value_name = "DESTINATION")]
    destination: String,
}

/// One side of a copy.
#[derive(Debug, PartialEq, Eq)]
enum End<'a> {
    Container(&'a str, &'a str),
    Host(&'a str),
    Stream,
}

impl<'a> End<'a> {
    fn parse(text: &'a str) -> Self {
        if text == "-" {
            return Self::Stream;
        }
        match text.split_once(':') {
            // `./a:b` and `/a:b` are paths.
            Some((name, path)) if !name.is_empty() && !name.starts_with('.') && !name.contains('/') => {
                Self::Container(name, path)
            }
            _ => Self::Host(text),
        }
    }
}

/// Where a path is, for messages.
enum Side {
    Host,
    Container { name: String, runs: bool },
}

impl Side {
    /// A path as the command line names it.
    fn shown(&self, path: &str) -> String {
        match self {
            Self::Host => path.to_owned(),
            Self::Container { name, .. } => format!("{name}:{path}"),
        }
    }

    fn no_directory(&self, path: &str) -> Report {
        Report::new(format!("`{}` is not a directory", self.shown(path)))
    }

    /// A directory that the copy would be in does not exist.
    fn missing(&self, directory: &Path) -> Report {
        let path = directory.display().to_string();
        let report = Report::new(format!("the directory `{}` does not exist", self.shown(&path)));
        match self {
            Self::Host => report.with_hint(format!("create it first: `mkdir -p {}`", print::quoted(&path))),
            Self::Container { name, runs: true } => {
                report.with_hint(format!("create it first: `gpurun exec {name} mkdir -p {}`", print::quoted(&path)))
            }
            Self::Container { runs: false, .. } => report,
        }
    }
}

pub(super) fn run(args: &CopyArgs, context: &Context) -> Result<u8, Report> {
    let ends = (End::parse(&args.source), End::parse(&args.destination));
    if let (End::Container(from, path), End::Container(to, target)) = &ends {
        return between(args, context, (from, path), (to, target));
    }
    let name = match &ends {
        (End::Container(name, _), _) | (_, End::Container(name, _)) => *name,
        _ => {
            return Err(Report::usage("neither the source nor the destination is in a container")
                .with_hint("write `CONTAINER:PATH` for one of them"));
        }
    };
    let store = context.store()?;
    let records = context.records()?;
    let entry = records.find(name)?;
    let mounted = super::volume_use::mount_all(&context.root, &entry)?;
    let inside = launch::inside(&context.root, &records, &entry)?;
    // The container's own lock keeps them mounted from here on.
    drop(mounted);
    let at = &Side::Container { name: name.to_owned(), runs: entry.supervisor()?.is_some() };
    match ends {
        (End::Container(_, path), End::Stream) => out_to_stream(args, &store, &inside, at, path),
        (End::Container(_, path), End::Host(host)) if is_stream(host) => {
            let source = Source::find(&inside, Path::new("/"), path, at, args.follow_link)?;
            source.write_to(host)
        }
        (End::Host(host), End::Container(..)) if is_stream(host) => {
            Err(Report::usage(format!("cannot copy from `{host}`: it is neither a regular file nor a directory"))
                .with_hint("pipe a tar archive in, and name the source `-`"))
        }
        (End::Container(_, path), End::Host(host)) => {
            let host_root = open_dir(Path::new("/"))?;
            let source = Source::find(&inside, Path::new("/"), path, at, args.follow_link)?;
            let target = Target::find(&host_root, &absolute(host)?, host, &Side::Host, &source, LINKS)?;
            let owner = (!args.archive).then(|| (nix::unistd::geteuid().as_raw(), nix::unistd::getegid().as_raw()));
            transfer(&store, &source, &target, host, owner)
        }
        (End::Host(host), End::Container(_, path)) => {
            let host_root = open_dir(Path::new("/"))?;
            let source = Source::find(&host_root, &absolute(host)?, host, &Side::Host, args.follow_link)?;
            let target = Target::find(&inside, &Path::new("/").join(path), path, at, &source, LINKS)?;
            transfer(&store, &source, &target, &args.destination, (!args.archive).then_some((0, 0)))
        }
        (End::Stream, End::Container(_, path)) => in_from_stream(&store, &inside, at, path),
        _ => Ok(()),
    }?;
    let to_stream = args.destination == "-" || is_stream(&args.destination);
    if !args.quiet && !to_stream && io::stderr().is_terminal() {
        print::say(&format!("copied to {}", args.destination));
    }
    Ok(0)
}

/// Copies from one container to another, or within one. The copies belong to root, unless the owners are kept.
fn between(args: &CopyArgs, context: &Context, from: (&str, &str), to: (&str, &str)) -> Result<u8, Report> {
    let store = context.store()?;
    let records = context.records()?;
    let open = |name: &str| -> Result<(launch::Inside, Side), Report> {
        let entry = records.find(name)?;
        let mounted = super::volume_use::mount_all(&context.root, &entry)?;
        let inside = launch::inside(&context.root, &records, &entry)?;
        drop(mounted);
        Ok((inside, Side::Container { name: name.to_owned(), runs: entry.supervisor()?.is_some() }))
    };
    let (inside, side) = open(from.0)?;
    let source = Source::find(&inside, Path::new("/"), from.1, &side, args.follow_link)?;
    let (other, other_side) = open(to.0)?;
    let target = Target::find(&other, &Path::new("/").join(to.1), to.1, &other_side, &source, LINKS)?;
    transfer(&store, &source, &target, &args.destination, (!args.archive).then_some((0, 0)))?;
    if !args.quiet && io::stderr().is_terminal() {
        print::say(&format!("copied to {}", args.destination));
    }
    Ok(0)
}

/// Returns whether a host path is a device, a pipe or a socket, such as /dev/stdout. Data is then written to it
/// directly.
fn is_stream(path: &str) -> bool {
    std::fs::metadata(path).is_ok_and(|metadata| !metadata.is_dir() && !metadata.is_file()) || {
        // /dev/stdout may be a regular file. Its path leads through /proc, which a lookup relative to a descriptor of
        // `/` cannot follow.
        std::fs::read_link(path).is_ok_and(|target| target.starts_with("/proc/self/fd"))
    }
}

fn open_dir(path: &Path) -> Result<OwnedFd, Report> {
    Ok(rootfs::open_root(path)?)
}

fn absolute(path: &str) -> Result<PathBuf, Report> {
    let cwd =
        std::env::current_dir().map_err(|error| Report::new("cannot read the current directory").with_cause(error))?;
    Ok(cwd.join(path))
}

/// A file to copy: an entry of an open directory.
struct Source {
    parent: OwnedFd,
    /// The name of the entry. `.` stands for the contents of the parent.
    name: Vec<u8>,
    /// The name of the copy.
    base: Vec<u8>,
    is_directory: bool,
    /// Whether only the contents are copied (`/.`).
    contents: bool,
}

impl Source {
    /// Looks up `path` in `root`. `typed` is the path as the caller wrote it, with any trailing `/` or `/.`.
    fn find(root: impl AsFd, path: &Path, typed: &str, at: &Side, follow: bool) -> Result<Self, Report> {
        let path = cleaned(&if path == Path::new("/") { Path::new("/").join(typed) } else { path.to_owned() });
        let missing = || Report::new(format!("`{}` does not exist", at.shown(typed)));
        let contents = typed == "." || typed.ends_with("/.");
        let follow = follow || contents || typed.ends_with('/');
        let base = path.file_name().map(|name| name.as_bytes().to_vec()).unwrap_or_default();
        if follow || base.is_empty() {
            // Continue with the resolved path. The original name no longer matters.
            let fd = rootfs::resolve_in_root(&root, &path)?.ok_or_else(missing)?;
            let is_directory = kind_of(&fd)? == SFlag::S_IFDIR;
            if is_directory {
                return Ok(Self { parent: fd, name: b".".to_vec(), base, is_directory, contents });
            }
            let real = std::fs::read_link(fd_path(&fd)).map_err(|error| missing().with_cause(error))?;
            let real_root = std::fs::read_link(fd_path(&root)).map_err(|error| missing().with_cause(error))?;
            let inside = Path::new("/").join(real.strip_prefix(&real_root).unwrap_or(&real));
            let found = Self::find(root, &inside, &inside.to_string_lossy(), at, false)?;
            return Ok(Self { base, ..found });
        }
        let parent = rootfs::resolve_in_root(&root, path.parent().unwrap_or(Path::new("/")))?.ok_or_else(missing)?;
        let stat = fstatat(&parent, base.as_slice(), AtFlags::AT_SYMLINK_NOFOLLOW).map_err(|_| missing())?;
        let is_directory = stat.st_mode & SFlag::S_IFMT.bits() == SFlag::S_IFDIR.bits();
        Ok(Self { parent, name: base.clone(), base, is_directory, contents: false })
    }

    /// Creates a tar archive in which the source has the name `shown`. If `shown` is empty, its contents are at the top
    /// level.
    fn archive(&self, store: &Store, shown: &[u8]) -> Result<File, Report> {
        let lower = Tree::empty();
        let options = diff::Options { lower: &lower, clamp: None, keep: &|_, _| diff::Keep::Yes };
        let out = BufWriter::with_capacity(1 << 20, store.nameless_file()?);
        let (out, summary) = if shown.is_empty() {
            diff::write(self.directory()?.as_fd(), &options, out)?
        } else if self.name == b"." {
            diff::write_entry(self.directory()?.as_fd(), b".", shown, &options, out)?
        } else {
            diff::write_entry(self.parent.as_fd(), &self.name, shown, &options, out)?
        };
        if summary.sockets > 0 {
            print::say(&format!("gpurun: {} sockets were not copied", summary.sockets));
        }
        let mut file = out.into_inner().map_err(|error| Report::new("cannot write the copy").with_cause(error))?;
        file.rewind().map_err(|error| Report::new("cannot read the copy").with_cause(error))?;
        Ok(file)
    }

    /// Writes the contents of a regular file to a device or a pipe of this host.
    fn write_to(&self, path: &str) -> Result<(), Report> {
        let flags = OFlag::O_RDONLY | OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK | OFlag::O_CLOEXEC;
        let failed = |error: io::Error| Report::new(format!("cannot copy to `{path}`")).with_cause(error);
        let name = self.name.as_slice();
        let stat = fstatat(&self.parent, name, AtFlags::AT_SYMLINK_NOFOLLOW).map_err(|errno| failed(errno.into()))?;
        if stat.st_mode & SFlag::S_IFMT.bits() != SFlag::S_IFREG.bits() {
            return Err(Report::usage(format!("cannot copy to `{path}`: only a regular file can be written to it"))
                .with_hint("name the destination `-` for a tar archive on standard output"));
        }
        let source =
            nix::fcntl::openat(&self.parent, name, flags, Mode::empty()).map_err(|errno| failed(errno.into()))?;
        // Standard output is used through the existing descriptor. Opening it again would write from the beginning of
        // the file.
        let own = std::fs::read_link(path).is_ok_and(|target| target == Path::new("/proc/self/fd/1"));
        let mut out: Box<dyn io::Write> = match own {
            true => Box::new(io::stdout().lock()),
            false => Box::new(std::fs::OpenOptions::new().write(true).open(path).map_err(failed)?),
        };
        match io::copy(&mut File::from(source), &mut out).and_then(|_| out.flush()) {
            Err(error) if error.kind() != io::ErrorKind::BrokenPipe => Err(failed(error)),
            _ => Ok(()),
        }
    }

    fn directory(&self) -> Result<OwnedFd, Report> {
        let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        nix::fcntl::openat(&self.parent, self.name.as_slice(), flags, Mode::empty())
            .map_err(|errno| Report::new("cannot open the source's directory").with_cause(errno))
    }
}

/// Cleans a path lexically: `..` removes the preceding component, whatever that is (as in docker).
fn cleaned(path: &Path) -> PathBuf {
    let mut clean = PathBuf::from("/");
    for part in path.components() {
        match part {
            Component::Normal(name) => clean.push(name),
            Component::ParentDir => drop(clean.pop()),
            _ => {}
        }
    }
    clean
}

fn kind_of(fd: &OwnedFd) -> Result<SFlag, Report> {
    let stat = nix::sys::stat::fstat(fd).map_err(|errno| Report::new("cannot examine a file").with_cause(errno))?;
    Ok(SFlag::from_bits_truncate(stat.st_mode & SFlag::S_IFMT.bits()))
}

/// The destination of a copy: a directory, and the name in it. An empty name stands for the directory itself.
struct Target {
    directory: OwnedFd,
    name: Vec<u8>,
}

impl Target {
    /// Looks up the destination. A link in the last component is followed, as in docker and at most `links` times, so
    /// that its target is written and not the link.
    fn find(
        root: impl AsFd,
        path: &Path,
        typed: &str,
        at: &Side,
        source: &Source,
        links: usize,
    ) -> Result<Self, Report> {
        let path = &cleaned(path);
        let named = |fd: Option<OwnedFd>| fd.map(|fd| kind_of(&fd).map(|kind| (fd, kind))).transpose();
        match named(rootfs::resolve_in_root(&root, path)?)? {
            Some((fd, kind)) if kind == SFlag::S_IFDIR => {
                let name = if source.contents || source.base.is_empty() { Vec::new() } else { source.base.clone() };
                return Ok(Self { directory: reopen(&fd)?, name });
            }
            Some(_) if source.is_directory || typed.ends_with('/') => {
                return Err(at.no_directory(typed));
            }
            None if typed.ends_with('/') && !source.is_directory => {
                return Err(at.missing(Path::new(typed)));
            }
            _ => {}
        }
        let parent = path.parent().unwrap_or(Path::new("/"));
        let missing = || at.missing(parent);
        let (fd, kind) = named(rootfs::resolve_in_root(&root, parent)?)?.ok_or_else(missing)?;
        if kind != SFlag::S_IFDIR {
            return Err(at.no_directory(&parent.display().to_string()));
        }
        let name = path.file_name().map(|name| name.as_bytes().to_vec()).unwrap_or_default();
        let Ok(target) = readlinkat(&fd, name.as_slice()) else { return Ok(Self { directory: reopen(&fd)?, name }) };
        if links == 0 {
            return Err(Report::new(format!("too many levels of symbolic links in `{}`", at.shown(typed))));
        }
        let real = |fd: &dyn AsFd| std::fs::read_link(fd_path(fd.as_fd())).map_err(|error| missing().with_cause(error));
        let (parent, top) = (real(&fd)?, real(&root)?);
        let next = Path::new("/").join(parent.strip_prefix(&top).unwrap_or(&parent)).join(target);
        Self::find(root, &next, typed, at, source, links - 1)
    }
}

/// Reopens the directory for reading.
fn reopen(fd: &OwnedFd) -> Result<OwnedFd, Report> {
    let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
    nix::fcntl::open(&fd_path(fd), flags, Mode::empty())
        .map_err(|errno| Report::new("cannot open the destination").with_cause(errno))
}

fn transfer(
    store: &Store,
    source: &Source,
    target: &Target,
    typed: &str,
    owner: Option<(u32, u32)>,
) -> Result<(), Report> {
    let file = source.archive(store, &target.name)?;
    render_at(file, &target.directory, typed, owner)
}

/// Extracts a tar archive into a directory, which an error names as the user `typed` it.
fn render_at(file: File, directory: &OwnedFd, typed: &str, owner: Option<(u32, u32)>) -> Result<(), Report> {
    let failed = |cause: &dyn std::fmt::Display| Report::new("cannot use the archive").with_cause(cause);
    let length = file.metadata().map_err(|error| failed(&error))?.len();
    let entries = tar::scan_file(&file, 0, length).map_err(|error| failed(&error))?;
    let mut merger = Merger::new();
    merger.apply(Digest([0; 32]), entries).map_err(|error| failed(&error.problem))?;
    let tree = merger.finish().portable(owner);
    directory::render_over(&tree, &[file], directory.as_fd())
        .map_err(|error| Report::from(error).under(format!("cannot copy to `{typed}`")))
}

fn out_to_stream(args: &CopyArgs, store: &Store, inside: &launch::Inside, at: &Side, path: &str) -> Result<(), Report> {
    if io::stdout().is_terminal() {
        return Err(Report::usage("cannot write a tar archive to a terminal")
            .with_hint(format!("write it to a file: `gpurun cp {} - >files.tar`", args.source)));
    }
    let source = Source::find(inside, Path::new("/"), path, at, args.follow_link)?;
    let shown = if source.contents { Vec::new() } else { source.base.clone() };
    let mut file = source.archive(store, &shown)?;
    match io::copy(&mut file, &mut io::stdout().lock()) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
            Err(Report::new("cannot write to standard output").with_cause(error))
        }
        _ => Ok(()),
    }
}

fn in_from_stream(store: &Store, inside: &launch::Inside, at: &Side, path: &str) -> Result<(), Report> {
    let path = Path::new("/").join(path);
    let missing = || at.missing(&path);
    let fd = rootfs::resolve_in_root(inside, &path)?.ok_or_else(missing)?;
    if kind_of(&fd)? != SFlag::S_IFDIR {
        return Err(at.no_directory(&path.display().to_string()));
    }
    let file = build::inflated(store, io::stdin().lock(), "the archive")?;
    render_at(file, &reopen(&fd)?, &path.display().to_string(), None)
}

/// Writes the files of a directory as a tar archive.
pub(super) fn write_files(store: &Store, dir: &Path, out: &mut dyn io::Write) -> Result<(), Report> {
    let directory = open_dir(dir)?;
    let source =
        Source { parent: directory, name: b".".to_vec(), base: Vec::new(), is_directory: true, contents: true };
    let mut file = source.archive(store, b"")?;
    match io::copy(&mut file, out) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
            Err(Report::new("cannot write the archive").with_cause(error))
        }
        _ => Ok(()),
    }
}

/// Extracts a tar archive into a directory.
pub(super) fn extract_files(store: &Store, dir: &Path, archive: impl io::Read) -> Result<(), Report> {
    let file = build::inflated(store, archive, "the archive")?;
    render_at(file, &reopen(&open_dir(dir)?)?, &dir.display().to_string(), None)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_cleaned_by_their_letters() {
        for (path, want) in [("/a/./b/../c/", "/a/c"), ("/..", "/"), ("/a/..", "/"), ("/a/../../b", "/b")] {
            assert_eq!(cleaned(Path::new(path)), Path::new(want), "{path}");
        }
    }

    #[test]
    fn ends_are_told_apart_as_docker_does() {
        for (text, want) in [
            ("lab:/x", End::Container("lab", "/x")),
            ("lab:x", End::Container("lab", "x")),
            ("lab:", End::Container("lab", "")),
            ("-", End::Stream),
            ("./a:b", End::Host("./a:b")),
            ("/a:b", End::Host("/a:b")),
            ("dir/a:b", End::Host("dir/a:b")),
            ("plain", End::Host("plain")),
        ] {
            assert_eq!(End::parse(text), want, "{text}");
        }
    }
}
