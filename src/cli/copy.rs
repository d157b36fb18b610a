//! `gpurun cp`: files into and out of a container, docker's rules for names.
//!
//! Everything passes through a tar in a file without a name: what is read on one side is checked as a layer is (no name climbs out), and
//! then put down on the other, entry by entry, by descriptors, never through a link. Devices and FIFOs are left out.

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

/// So many links in a row are a circle (the kernel's limit).
const LINKS: usize = 40;

#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  gpurun cp lab:/work/result.csv .\n  gpurun cp data/. lab:/work/data\n  gpurun cp lab:/etc - | tar -t\n\n\
        As docker cp: a source that ends in `/.` means what is in it; a destination that is a directory keeps the source's name. The container \
        need not run. What is copied out belongs to you, what is copied in to root, unless `--archive` keeps owners."
)]
pub struct CopyArgs {
    /// Keep owners and set-user-id bits
    #[arg(short, long)]
    archive: bool,
    /// Follow a link that is the source itself
    #[arg(short = 'L', long)]
    follow_link: bool,
    /// No word about what was copied
    #[arg(short, long)]
    quiet: bool,
    /// CONTAINER:PATH, a path of this host, or `-` for a tar on standard input
    #[arg(value_name = "SOURCE")]
    source: String,
    /// CONTAINER:PATH, a path of this host, or `-` for a tar on standard output
    #[arg(value_name = "DESTINATION")]
    destination: String,
}

/// One end of a copy.
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

pub fn run(args: &CopyArgs, context: &Context) -> Result<u8, Report> {
    let ends = (End::parse(&args.source), End::parse(&args.destination));
    let name = match &ends {
        (End::Container(..), End::Container(..)) => {
            return Err(Report::usage("one of the two must be a path of this host")
                .with_hint("copy in two steps: `gpurun cp A:/x . && gpurun cp x B:/x`"));
        }
        (End::Container(name, _), _) | (_, End::Container(name, _)) => *name,
        _ => {
            return Err(Report::usage("neither the source nor the destination names a container")
                .with_hint("write `CONTAINER:PATH` for one of them"));
        }
    };
    let store = context.store()?;
    let records = context.records()?;
    let entry = records.find(name)?;
    let inside = launch::inside(&context.root, &records, &entry)?;
    match ends {
        (End::Container(_, path), End::Stream) => out_to_stream(args, &store, &inside, path),
        (End::Container(_, path), End::Host(host)) => {
            let host_root = open_dir(Path::new("/"))?;
            let source = Source::find(&inside, Path::new("/"), path, args.follow_link)?;
            let place = Place::find(&host_root, &absolute(host)?, host, &source, LINKS)?;
            let owner = (!args.archive).then(|| (nix::unistd::geteuid().as_raw(), nix::unistd::getegid().as_raw()));
            transfer(&store, &source, &place, owner)
        }
        (End::Host(host), End::Container(_, path)) => {
            let host_root = open_dir(Path::new("/"))?;
            let source = Source::find(&host_root, &absolute(host)?, host, args.follow_link)?;
            let place = Place::find(&inside, &Path::new("/").join(path), path, &source, LINKS)?;
            transfer(&store, &source, &place, (!args.archive).then_some((0, 0)))
        }
        (End::Stream, End::Container(_, path)) => in_from_stream(&store, &inside, path),
        _ => Ok(()),
    }?;
    if !args.quiet && args.destination != "-" && io::stderr().is_terminal() {
        print::say(&format!("copied to {}", args.destination));
    }
    Ok(0)
}

fn open_dir(path: &Path) -> Result<OwnedFd, Report> {
    Ok(rootfs::open_root(path)?)
}

fn absolute(path: &str) -> Result<PathBuf, Report> {
    let cwd =
        std::env::current_dir().map_err(|error| Report::new("cannot tell the current directory").with_cause(error))?;
    Ok(cwd.join(path))
}

/// Something to copy: an entry of an open directory.
struct Source {
    parent: OwnedFd,
    /// `.`: all that is in the parent.
    name: Vec<u8>,
    /// The name to keep.
    base: Vec<u8>,
    is_directory: bool,
    /// Its contents alone are meant (`/.`).
    contents: bool,
}

impl Source {
    /// `path` in `root`; `typed` is what the person wrote, which tells `/` and `/.` at the end.
    fn find(root: impl AsFd, path: &Path, typed: &str, follow: bool) -> Result<Self, Report> {
        let path = cleaned(&if path == Path::new("/") { Path::new("/").join(typed) } else { path.to_owned() });
        let missing = || Report::new(format!("there is no `{typed}`")).with_exit_code(1);
        let contents = typed == "." || typed.ends_with("/.");
        let follow = follow || contents || typed.ends_with('/');
        let base = path.file_name().map(|name| name.as_bytes().to_vec()).unwrap_or_default();
        if follow || base.is_empty() {
            // Wherever it is: its name does not matter any more.
            let fd = rootfs::resolve_in_root(&root, &path)?.ok_or_else(missing)?;
            let is_directory = kind_of(&fd)? == SFlag::S_IFDIR;
            if is_directory {
                return Ok(Self { parent: fd, name: b".".to_vec(), base, is_directory, contents });
            }
            let real = std::fs::read_link(fd_path(&fd)).map_err(|error| missing().with_cause(error))?;
            let real_root = std::fs::read_link(fd_path(&root)).map_err(|error| missing().with_cause(error))?;
            let inside = Path::new("/").join(real.strip_prefix(&real_root).unwrap_or(&real));
            let found = Self::find(root, &inside, &inside.to_string_lossy(), false)?;
            return Ok(Self { base, ..found });
        }
        let parent = rootfs::resolve_in_root(&root, path.parent().unwrap_or(Path::new("/")))?.ok_or_else(missing)?;
        let stat = fstatat(&parent, base.as_slice(), AtFlags::AT_SYMLINK_NOFOLLOW).map_err(|_| missing())?;
        let is_directory = stat.st_mode & SFlag::S_IFMT.bits() == SFlag::S_IFDIR.bits();
        Ok(Self { parent, name: base.clone(), base, is_directory, contents: false })
    }

    /// Its tar, in which it is called `shown`; empty: what is in it stands at the top.
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
            print::say(&format!("gpurun: {} sockets are left out", summary.sockets));
        }
        let mut file = out.into_inner().map_err(|error| Report::new("cannot write the copy").with_cause(error))?;
        file.rewind().map_err(|error| Report::new("cannot read the copy").with_cause(error))?;
        Ok(file)
    }

    fn directory(&self) -> Result<OwnedFd, Report> {
        let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        nix::fcntl::openat(&self.parent, self.name.as_slice(), flags, Mode::empty())
            .map_err(|errno| Report::new("cannot open the source's directory").with_cause(errno))
    }
}

/// The path by its letters: `..` takes a name away, whatever it is (docker's reading).
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
    let stat = nix::sys::stat::fstat(fd).map_err(|errno| Report::new("cannot look at a file").with_cause(errno))?;
    Ok(SFlag::from_bits_truncate(stat.st_mode & SFlag::S_IFMT.bits()))
}

/// Where a copy goes: a directory, and the name in it (empty: into the directory itself).
struct Place {
    directory: OwnedFd,
    name: Vec<u8>,
}

impl Place {
    /// A link at the end is followed (as docker does, and no further than `links`): its target is written, not the link.
    fn find(root: impl AsFd, path: &Path, typed: &str, source: &Source, links: usize) -> Result<Self, Report> {
        let path = &cleaned(path);
        let named = |fd: Option<OwnedFd>| fd.map(|fd| kind_of(&fd).map(|kind| (fd, kind))).transpose();
        match named(rootfs::resolve_in_root(&root, path)?)? {
            Some((fd, kind)) if kind == SFlag::S_IFDIR => {
                let name = if source.contents || source.base.is_empty() { Vec::new() } else { source.base.clone() };
                return Ok(Self { directory: reopen(&fd)?, name });
            }
            Some(_) if source.is_directory || typed.ends_with('/') => {
                return Err(Report::new(format!("`{typed}` is no directory")).with_exit_code(1));
            }
            None if typed.ends_with('/') && !source.is_directory => {
                return Err(Report::new(format!("there is no directory `{typed}`")).with_exit_code(1));
            }
            _ => {}
        }
        let parent = path.parent().unwrap_or(Path::new("/"));
        let missing = || Report::new(format!("there is no directory `{}`", parent.display())).with_exit_code(1);
        let (fd, kind) = named(rootfs::resolve_in_root(&root, parent)?)?.ok_or_else(missing)?;
        if kind != SFlag::S_IFDIR {
            return Err(missing());
        }
        let name = path.file_name().map(|name| name.as_bytes().to_vec()).unwrap_or_default();
        let Ok(target) = readlinkat(&fd, name.as_slice()) else { return Ok(Self { directory: reopen(&fd)?, name }) };
        if links == 0 {
            return Err(Report::new(format!("`{typed}` leads through too many links")).with_exit_code(1));
        }
        let real = |fd: &dyn AsFd| std::fs::read_link(fd_path(fd.as_fd())).map_err(|error| missing().with_cause(error));
        let (parent, top) = (real(&fd)?, real(&root)?);
        let next = Path::new("/").join(parent.strip_prefix(&top).unwrap_or(&parent)).join(target);
        Self::find(root, &next, typed, source, links - 1)
    }
}

/// The same directory, to work in.
fn reopen(fd: &OwnedFd) -> Result<OwnedFd, Report> {
    let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
    nix::fcntl::open(&fd_path(fd), flags, Mode::empty())
        .map_err(|errno| Report::new("cannot open the destination").with_cause(errno))
}

fn transfer(store: &Store, source: &Source, place: &Place, owner: Option<(u32, u32)>) -> Result<(), Report> {
    let file = source.archive(store, &place.name)?;
    put_down(file, &place.directory, owner)
}

/// Puts what is in a tar into a directory.
fn put_down(file: File, directory: &OwnedFd, owner: Option<(u32, u32)>) -> Result<(), Report> {
    let failed = |cause: &dyn std::fmt::Display| Report::new("cannot use the archive").with_cause(cause);
    let length = file.metadata().map_err(|error| failed(&error))?.len();
    let entries = tar::scan_file(&file, 0, length).map_err(|error| failed(&error))?;
    let mut merger = Merger::new();
    merger.apply(Digest([0; 32]), entries).map_err(|error| failed(&error.problem))?;
    let tree = merger.finish().portable(owner);
    directory::place(&tree, &[file], directory.as_fd())?;
    Ok(())
}

fn out_to_stream(args: &CopyArgs, store: &Store, inside: &launch::Inside, path: &str) -> Result<(), Report> {
    if io::stdout().is_terminal() {
        return Err(Report::usage("a tar is not for a terminal").with_hint("`gpurun cp CONTAINER:PATH - >files.tar`"));
    }
    let source = Source::find(inside, Path::new("/"), path, args.follow_link)?;
    let shown = if source.contents { Vec::new() } else { source.base.clone() };
    let mut file = source.archive(store, &shown)?;
    match io::copy(&mut file, &mut io::stdout().lock()) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
            Err(Report::new("cannot write to standard output").with_cause(error))
        }
        _ => Ok(()),
    }
}

fn in_from_stream(store: &Store, inside: &launch::Inside, path: &str) -> Result<(), Report> {
    let path = Path::new("/").join(path);
    let missing =
        || Report::new(format!("there is no directory `{}` in the container", path.display())).with_exit_code(1);
    let fd = rootfs::resolve_in_root(inside, &path)?.ok_or_else(missing)?;
    if kind_of(&fd)? != SFlag::S_IFDIR {
        return Err(missing());
    }
    let file = build::inflated(store, io::stdin().lock(), "the archive")?;
    put_down(file, &reopen(&fd)?, None)
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
