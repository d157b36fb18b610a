//! These tests use the kernel as the reference: they write an index, mount it in every way that this kernel supports,
//! and compare everything that is visible.

use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::io::Write;
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};

use super::xattrs;
use super::*;
use crate::layer::InodeId;
use crate::layer::{Data, Inode, Kind, Name, Segment};
use crate::names::Digest;
use crate::rootfs::images::{MountMode, mount_index};
use crate::rootfs::testing::{in_own_mounts, root_or_skip, unmount};
use crate::rootfs::{Overlay, overlay};
use crate::sys::mount;

/// Bytes without repetition, so that a wrong offset is detected.
fn noise(seed: u64, length: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    let mut bytes = Vec::with_capacity(length + 8);
    while bytes.len() < length {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend_from_slice(&state.to_le_bytes());
    }
    bytes.truncate(length);
    bytes
}

/// A tree under construction, with the bytes of its sources.
struct Build {
    tree: Tree,
    sources: Vec<Vec<u8>>,
}

impl Build {
    fn new(sources: usize, length: usize) -> Self {
        let bytes = (0..sources).map(|number| noise(number as u64 + 1, length)).collect();
        let digests = (0..sources).map(|number| Digest([number as u8; 32])).collect();
        let root = Inode {
            kind: Kind::Directory(BTreeMap::new()),
            mode: 0o755,
            uid: 0,
            gid: 0,
            mtime: (1_700_000_000, 1),
            xattrs: BTreeMap::new(),
        };
        Self { tree: Tree { inodes: vec![root], sources: digests }, sources: bytes }
    }

    fn inode(&mut self, kind: Kind) -> InodeId {
        let id = InodeId(self.tree.inodes.len() as u32);
        let number = id.0;
        self.tree.inodes.push(Inode {
            kind,
            mode: 0o644,
            uid: number,
            gid: number + 1,
            mtime: (1_600_000_000 + i64::from(number), number),
            xattrs: BTreeMap::new(),
        });
        id
    }

    fn name(&mut self, directory: InodeId, name: &[u8], id: InodeId) {
        let Kind::Directory(entries) = &mut self.tree.inodes[directory.0 as usize].kind else { panic!("a directory") };
        assert!(entries.insert(name.into(), id).is_none(), "twice: {:?}", String::from_utf8_lossy(name));
    }

    fn add(&mut self, directory: InodeId, name: &str, kind: Kind) -> InodeId {
        let id = self.inode(kind);
        self.name(directory, name.as_bytes(), id);
        id
    }

    fn directory(&mut self, parent: InodeId, name: &str) -> InodeId {
        let id = self.add(parent, name, Kind::Directory(BTreeMap::new()));
        self.at(id).mode = 0o755;
        id
    }

    fn file(&mut self, parent: InodeId, name: &str, source: u32, offset: u64, len: u64) -> InodeId {
        self.add(parent, name, Kind::File(run(source, offset, len)))
    }

    fn at(&mut self, id: InodeId) -> &mut Inode {
        &mut self.tree.inodes[id.0 as usize]
    }

    fn xattr(&mut self, id: InodeId, name: &str, value: &[u8]) {
        self.at(id).xattrs.insert(name.as_bytes().into(), value.into());
    }

    /// Writes the sources, the index and the side file into `dir`. Returns the paths to mount.
    fn write(&self, dir: &Path) -> (PathBuf, Vec<PathBuf>, Written) {
        std::fs::create_dir_all(dir).unwrap();
        let mut devices = Vec::new();
        for (number, bytes) in self.sources.iter().enumerate() {
            let path = dir.join(format!("{number}.tar"));
            std::fs::write(&path, bytes).unwrap();
            devices.push(path);
        }
        let files: Vec<File> = devices.iter().map(|path| File::open(path).unwrap()).collect();
        let (index, side) = (dir.join("index"), dir.join("side"));
        let side_file = File::create_new(&side).unwrap();
        let written = super::write(&self.tree, &files, File::create_new(&index).unwrap(), &side_file).unwrap();
        if written.side_bytes > 0 {
            devices.push(side);
        }
        assert_eq!(written.bytes, index.metadata().unwrap().len());
        assert_eq!(device_count(&File::open(&index).unwrap()).unwrap(), Some(devices.len() as u16));
        (index, devices, written)
    }

    fn bytes(&self, data: &Data) -> Vec<u8> {
        let mut bytes = vec![0; data.size as usize];
        for segment in &data.segments {
            let from = segment.offset as usize;
            let piece = &self.sources[segment.source as usize][from..from + segment.len as usize];
            bytes[segment.at as usize..][..segment.len as usize].copy_from_slice(piece);
        }
        bytes
    }
}

fn run(source: u32, offset: u64, len: u64) -> Data {
    let segments = if len == 0 { vec![] } else { vec![Segment { at: 0, source, offset, len }] };
    Data { size: len, segments }
}

const ROOT: InodeId = InodeId(0);

fn open(paths: &[PathBuf]) -> Vec<File> {
    paths.iter().map(|path| File::open(path).unwrap()).collect()
}

/// Mounts the index in one of `mount_modes`, in a mount namespace of the test's own, and runs `test` there.
fn mounted(build: Build, mount_modes: &'static [MountMode], test: impl FnOnce(&Build, &Path) + Send + 'static) {
    in_own_mounts(move || {
        let base = tempfile::tempdir().unwrap();
        let (index, devices, _) = build.write(base.path());
        let (fd, _) = mount_index(&index, &open(&devices), mount_modes)
            .unwrap()
            .unwrap_or_else(|error| panic!("{mount_modes:?}: {error}"));
        let target = base.path().join("mnt");
        std::fs::create_dir(&target).unwrap();
        mount::attach(fd.as_fd(), File::open(&target).unwrap().as_fd()).unwrap();
        drop(fd);
        test(&build, &target);
        unmount(&target);
    });
}

/// Compares everything below `at` with the tree. Returns the number of entries.
fn compare(build: &Build, at: &Path) -> usize {
    let mut numbers = HashMap::new();
    let mut links = HashMap::<InodeId, u64>::new();
    count_links(&build.tree, ROOT, &mut links);
    compare_entry(build, ROOT, at, &mut numbers, &links)
}

fn shown_mode(inode: &Inode) -> u32 {
    if matches!(inode.kind, Kind::Symlink(_)) { 0o777 } else { inode.mode.into() }
}

fn count_links(tree: &Tree, id: InodeId, links: &mut HashMap<InodeId, u64>) {
    let Kind::Directory(entries) = &tree.inodes[id.0 as usize].kind else { return };
    *links.entry(id).or_default() += 2;
    for child in entries.values() {
        if matches!(tree.inodes[child.0 as usize].kind, Kind::Directory(_)) {
            *links.entry(id).or_default() += 1;
            count_links(tree, *child, links);
        } else {
            *links.entry(*child).or_default() += 1;
        }
    }
}

fn compare_entry(
    build: &Build,
    id: InodeId,
    path: &Path,
    numbers: &mut HashMap<u64, InodeId>,
    links: &HashMap<InodeId, u64>,
) -> usize {
    let inode = &build.tree.inodes[id.0 as usize];
    let meta = path.symlink_metadata().unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    let seen = (meta.mode() & 0o7777, meta.uid(), meta.gid(), meta.mtime(), meta.mtime_nsec(), meta.nlink());
    let wanted = (shown_mode(inode), inode.uid, inode.gid, inode.mtime.0, i64::from(inode.mtime.1), links[&id]);
    assert_eq!(seen, wanted, "{}", path.display());
    assert_eq!(*numbers.entry(meta.ino()).or_insert(id), id, "{}: one inode, one number", path.display());
    let xattrs = crate::sys::xattr_read::all(path).unwrap();
    let rendered = inode.xattrs.iter().filter(|(name, value)| xattrs::xattr_prefix(name, value).is_some());
    assert_eq!(xattrs, rendered.map(|(name, value)| (name.clone(), value.clone())).collect(), "{}", path.display());

    let kind = meta.mode() & libc::S_IFMT;
    let device = (nix::sys::stat::major(meta.rdev()) as u32, nix::sys::stat::minor(meta.rdev()) as u32);
    match &inode.kind {
        Kind::Directory(entries) => {
            assert_eq!(kind, libc::S_IFDIR, "{}", path.display());
            let mut listed: Vec<Name> =
                std::fs::read_dir(path).unwrap().map(|entry| entry.unwrap().file_name().as_bytes().into()).collect();
            listed.sort_unstable();
            assert!(listed.iter().eq(entries.keys()), "{}: the listing differs", path.display());
            1 + entries
                .iter()
                .map(|(name, child)| {
                    let path = path.join(std::ffi::OsStr::from_bytes(name));
                    compare_entry(build, *child, &path, numbers, links)
                })
                .sum::<usize>()
        }
        Kind::File(data) => {
            assert_eq!((kind, meta.len()), (libc::S_IFREG, data.size), "{}", path.display());
            if data.size < 1 << 30 {
                assert!(std::fs::read(path).unwrap() == build.bytes(data), "{}: the bytes differ", path.display());
            }
            1
        }
        Kind::Symlink(target) => {
            assert_eq!(kind, libc::S_IFLNK);
            assert_eq!(std::fs::read_link(path).unwrap().as_os_str().as_bytes(), &**target, "{}", path.display());
            1
        }
        Kind::CharDevice { .. } => {
            assert_eq!(
                (kind, device),
                (libc::S_IFCHR, layout::shown_device(&inode.kind).unwrap()),
                "{}",
                path.display()
            );
            1
        }
        Kind::BlockDevice { .. } => {
            assert_eq!(
                (kind, device),
                (libc::S_IFBLK, layout::shown_device(&inode.kind).unwrap()),
                "{}",
                path.display()
            );
            1
        }
        Kind::Fifo => {
            assert_eq!(kind, libc::S_IFIFO);
            1
        }
    }
}

/// A tree with an entry of every kind.
fn zoo() -> Build {
    let mut build = Build::new(3, 300 * 1024);
    let etc = build.directory(ROOT, "etc");
    for (number, len) in [0, 1, 511, 512, 513, 4095, 4096, 4097, 8192, 65_537, 100_000].into_iter().enumerate() {
        let id = build.file(etc, &format!("file{len}"), number as u32 % 3, 512 * (3 * number as u64 + 1), len);
        build.at(id).mode = [0o644, 0o4755, 0o2755, 0o1777, 0][number % 5];
    }
    let last = build.file(etc, "to-the-end", 1, 300 * 1024 - 512, 512);
    build.at(last).uid = 3_000_000_000;
    build.at(last).gid = u32::MAX - 1;
    for (name, mtime) in [
        ("before-1970", (-1, 999_999_999)),
        ("long-ago", (-6_000_000_000, 5)),
        ("epoch", (0, 0)),
        ("far", (40_000_000_000, 123_456_789)),
    ] {
        let id = build.file(etc, name, 0, 0, 10);
        build.at(id).mtime = mtime;
    }
    for length in [1, 100, 319, 320, 321, 440, 511, 512, 513, 1000, 4095] {
        build.add(etc, &format!("link{length}"), Kind::Symlink(vec![b'l'; length].into()));
    }
    let dev = build.directory(ROOT, "nodes");
    build.add(dev, "null", Kind::CharDevice { major: 1, minor: 3 });
    build.add(dev, "wide", Kind::CharDevice { major: 0xfff, minor: 0xf_ffff });
    build.add(dev, "disk", Kind::BlockDevice { major: 259, minor: 70_000 });
    build.add(dev, "zero-block", Kind::BlockDevice { major: 0, minor: 0 });
    build.add(dev, "whiteout", Kind::CharDevice { major: 0, minor: 0 });
    build.add(dev, "impossible", Kind::CharDevice { major: 1 << 20, minor: 0 });
    build.add(dev, "fifo", Kind::Fifo);
    let one = build.file(ROOT, "hard1", 2, 1024, 3000);
    build.name(etc, b"hard2", one);
    build.name(dev, b"hard3", one);
    let fifo = build.add(ROOT, "fifo1", Kind::Fifo);
    build.name(etc, b"fifo2", fifo);
    let names = build.directory(ROOT, "names");
    for name in ["-", "--", ".-", ".a", "..a", "...", "!", "~", "a\nb", "\u{e4}", &"n".repeat(255), &"m".repeat(254)] {
        build.file(names, name, 0, 0, 3);
    }
    let raw = build.inode(Kind::Fifo);
    build.name(names, b"\xff\x80\x01", raw);
    let mut deep = ROOT;
    for level in 0..60 {
        deep = build.directory(deep, &format!("deep{level}"));
    }
    build.directory(ROOT, "empty");
    build
}

fn with_xattrs(mut build: Build) -> Build {
    let dir = build.directory(ROOT, "xattrs");
    let cap = build.file(dir, "capability", 0, 512, 100);
    build.xattr(cap, "security.capability", &[1, 0, 0, 2, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
    for (number, length) in [0, 1, 2, 3, 4, 100, 500, 511, 512, 513, 2000, 60_000].into_iter().enumerate() {
        let id = build.file(dir, &format!("value{length}"), 1, 512, 700 * number as u64);
        build.xattr(id, "user.value", &noise(9, length));
        build.xattr(id, "user.another", b"x");
        build.xattr(id, "trusted.some", &noise(8, number));
    }
    let many = build.directory(dir, "many");
    for number in 0..200 {
        build.xattr(many, &format!("user.number{number}"), format!("{number}").as_bytes());
    }
    let long = build.file(dir, "long-name", 0, 0, 0);
    build.xattr(long, &format!("user.{}", "n".repeat(250)), b"value");
    let link = build.add(dir, "link", Kind::Symlink((*b"target").into()));
    build.xattr(link, "security.label", b"on a link");
    let fifo = build.add(dir, "fifo", Kind::Fifo);
    build.xattr(fifo, "trusted.on-a-fifo", b"v");
    let odd = build.file(dir, "odd", 0, 0, 1);
    for name in
        ["com.apple.provenance", "user.", "system.nonsense", "trusted.overlay.opaque", "trusted.overlay.whiteout"]
    {
        build.xattr(odd, name, b"y");
    }
    let acl = build.file(dir, "acl", 0, 0, 1);
    // ACL version 2; user::rw-, user:1000:r--, group::r--, mask::r--, other::---.
    let mut value = 2_u32.to_le_bytes().to_vec();
    for (tag, bits, id) in
        [(1_u16, 6_u16, u32::MAX), (2, 4, 1000), (4, 4, u32::MAX), (16, 4, u32::MAX), (32, 0, u32::MAX)]
    {
        value.extend_from_slice(&tag.to_le_bytes());
        value.extend_from_slice(&bits.to_le_bytes());
        value.extend_from_slice(&id.to_le_bytes());
    }
    build.xattr(acl, "system.posix_acl_access", &value);
    build.at(acl).mode = 0o640;
    build
}

fn with_side(mut build: Build) -> Build {
    let dir = build.directory(ROOT, "side");
    let segment = |at, offset, len| Segment { at, source: 0, offset, len };
    build.file(dir, "unaligned", 0, 513, 5000);
    build.file(dir, "one-byte-off", 2, 1, 1);
    for (name, size, segments) in [
        ("all-hole", 10_000_000, vec![]),
        ("head", 1_000_000, vec![segment(0, 512, 10)]),
        ("tail", 1_000_001, vec![segment(1_000_000, 1024, 1)]),
        ("stripes", 200_000, vec![segment(0, 0, 4096), segment(8192, 4096, 4096), segment(100_000, 9999, 77_777)]),
        ("touching", 9000, vec![segment(0, 0, 4000), segment(4000, 50_000, 5000)]),
        ("short", 5000, vec![segment(0, 512, 100)]),
        ("terabytes", 9 << 40, vec![segment(5 << 40, 512, 1000)]),
    ] {
        build.add(dir, name, Kind::File(Data { size, segments }));
    }
    // The last tar ends inside a block, like a stream without padding.
    let length = build.sources[2].len() - 100;
    build.sources[2].truncate(length);
    let start = (length / 512 * 512) as u64;
    build.file(dir, "cut", 2, start, length as u64 - start);
    build
}

/// The ways of mounting that this kernel and this disk support. The list is empty only where EROFS is missing.
fn mount_modes() -> Vec<&'static [MountMode]> {
    [&[MountMode::Direct][..], &[MountMode::Buffered], &[MountMode::Loop]]
        .into_iter()
        .filter(|mount_modes| works(mount_modes))
        .collect()
}

fn works(mount_modes: &'static [MountMode]) -> bool {
    let base = tempfile::tempdir().unwrap();
    let (index, devices, _) = Build::new(1, 8192).write(base.path());
    match mount_index(&index, &open(&devices), mount_modes).unwrap() {
        Ok(_) => true,
        Err(error) => {
            eprintln!("skipped, this kernel does not mount that way: {mount_modes:?}: {error}");
            false
        }
    }
}

#[test]
fn the_kernel_sees_the_tree_in_every_mount_mode() {
    if !root_or_skip("EROFS mounts") {
        return;
    }
    let mount_modes = mount_modes();
    assert!(!mount_modes.is_empty() || std::env::var_os("GPURUN_REQUIRE").is_none(), "no way to mount EROFS");
    for mount_mode in mount_modes {
        mounted(with_side(with_xattrs(zoo())), mount_mode, |build, at| {
            assert!(compare(build, at) > 140);
        });
    }
}

#[test]
fn losses_are_counted_and_named() {
    let base = tempfile::tempdir().unwrap();
    let (_, _, written) = with_xattrs(zoo()).write(base.path());
    assert_eq!(written.notes.len(), 4, "{:?}", written.notes);
    assert!(written.notes[0].starts_with("2 `trusted.overlay.*`"), "{:?}", written.notes);
    assert!(written.notes[1].starts_with("3 extended"), "{:?}", written.notes);
    assert!(written.notes[2].starts_with("1 character device"), "{:?}", written.notes);
    assert_eq!(written.side_bytes, 0, "aligned runs need no side file");
}

#[test]
fn holes_cost_nothing_in_the_side_file() {
    let base = tempfile::tempdir().unwrap();
    let (_, devices, written) = with_side(zoo()).write(base.path());
    assert!(written.side_bytes > 0);
    let side = devices.last().unwrap().metadata().unwrap();
    assert!(side.blocks() * 512 < 1 << 20, "{} blocks", side.blocks());
}

#[test]
fn the_same_tree_gives_the_same_bytes() {
    let base = tempfile::tempdir().unwrap();
    let build = with_side(with_xattrs(zoo()));
    let (first, ..) = build.write(&base.path().join("1"));
    let (second, ..) = build.write(&base.path().join("2"));
    assert!(std::fs::read(first).unwrap() == std::fs::read(second).unwrap());
}

#[test]
fn big_directories_and_many_layers() {
    if !root_or_skip("EROFS mounts") {
        return;
    }
    mounted(
        {
            let mut build = Build::new(127, 4096);
            let big = build.directory(ROOT, "big");
            for number in 0..30_000_u32 {
                build.file(big, &format!("entry{number}{}", "x".repeat(number as usize % 60)), number % 127, 512, 100);
            }
            for count in 0..80 {
                let dir = build.directory(ROOT, &format!("with{count}"));
                for number in 0..count {
                    build.directory(dir, &format!("{number:0width$}", width = 1 + count % 30));
                }
            }
            build
        },
        MountMode::ALL,
        |build, at| {
            assert!(compare(build, at) > 33_000);
            assert!(!at.join("big/entry30000").exists());
            assert!(!at.join("big/a").exists() && !at.join("big/z").exists());
        },
    );
}

#[test]
fn under_an_overlay_nothing_of_the_image_is_taken_for_a_whiteout() {
    if !root_or_skip("EROFS mounts") {
        return;
    }
    let mut build = with_xattrs(zoo());
    let opaque = build.directory(ROOT, "opaque");
    build.xattr(opaque, "trusted.overlay.opaque", b"x");
    let marked = build.file(opaque, "marked", 0, 0, 0);
    build.xattr(marked, "trusted.overlay.whiteout", b"y");
    let redirected = build.directory(ROOT, "redirected");
    build.xattr(redirected, "trusted.overlay.redirect", b"/etc");
    let metacopy = build.file(ROOT, "metacopy", 0, 0, 100);
    build.xattr(metacopy, "trusted.overlay.metacopy", b"");
    mounted(build, MountMode::ALL, |build, at| {
        let base = tempfile::tempdir().unwrap();
        let [upper, work, merged] = ["upper", "work", "merged"].map(|name| base.path().join(name));
        overlay(&Overlay { lower: at, above: None, upper: &upper, work: &work, merged: &merged, volatile: false })
            .unwrap();
        // On an overlay, every directory has a link count of 1. Everything else must match the tree.
        compare_names(build, ROOT, &merged);
        // Files that come from the image can be changed as usual.
        std::fs::write(merged.join("etc/file1"), "changed").unwrap();
        std::fs::remove_file(merged.join("nodes/whiteout")).unwrap();
        assert!(!merged.join("nodes/whiteout").exists());
        std::fs::remove_dir_all(merged.join("opaque")).unwrap();
        std::fs::create_dir(merged.join("opaque")).unwrap();
        assert_eq!(std::fs::read_dir(merged.join("opaque")).unwrap().count(), 0);
        assert_eq!(std::fs::read(at.join("etc/file1")).unwrap().len(), 1);
        unmount(&merged);
    });
}

fn compare_names(build: &Build, id: InodeId, path: &Path) {
    let inode = &build.tree.inodes[id.0 as usize];
    let meta = path.symlink_metadata().unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    assert_eq!((meta.mode() & 0o7777, meta.uid()), (shown_mode(inode), inode.uid), "{}", path.display());
    assert!(meta.ino() < 1 << 53, "{}: {} is more than JavaScript can count", path.display(), meta.ino());
    match &inode.kind {
        Kind::Directory(entries) => {
            let listed = std::fs::read_dir(path).unwrap().count();
            assert_eq!(listed, entries.len(), "{}", path.display());
            for (name, child) in entries {
                compare_names(build, *child, &path.join(std::ffi::OsStr::from_bytes(name)));
            }
        }
        Kind::File(data) => assert!(std::fs::read(path).unwrap() == build.bytes(data), "{}", path.display()),
        _ => {}
    }
}

#[test]
fn a_random_tree_survives() {
    if !root_or_skip("EROFS mounts") {
        return;
    }
    for seed in 1..=4_u64 {
        let mut build = Build::new(4, 1 << 20);
        let random = noise(seed + 100, 400_000);
        let mut numbers = random.chunks_exact(4).map(|four| u32::from_le_bytes(four.try_into().unwrap()));
        let mut next = || numbers.next().unwrap();
        let mut directories = vec![ROOT];
        for count in 0..3000 {
            let parent = directories[next() as usize % directories.len()];
            let name = format!("{count}{}", "abcdefghij".repeat(next() as usize % 12));
            let id = match next() % 10 {
                0 | 1 => {
                    let id = build.directory(parent, &name);
                    directories.push(id);
                    id
                }
                2 => build.add(parent, &name, Kind::Symlink(vec![b't'; 1 + next() as usize % 700].into())),
                _ => build.file(parent, &name, next() % 4, 512 * u64::from(next() % 1800), u64::from(next() % 60_000)),
            };
            for attribute in 0..(next() % 8).saturating_sub(5) {
                let value = noise(u64::from(next()), next() as usize % 900);
                build.xattr(id, &format!("security.a{attribute}"), &value);
            }
        }
        mounted(build, MountMode::ALL, |build, at| assert_eq!(compare(build, at), 3001));
    }
}

#[test]
fn malformed_trees_are_refused() {
    let side = tempfile::tempfile().unwrap();
    let written = |build: &Build| super::write(&build.tree, &[], std::io::sink(), &side).map(|_| ());
    let mut twice = Build::new(0, 0);
    let dir = twice.directory(ROOT, "a");
    twice.name(ROOT, b"b", dir);
    assert!(matches!(written(&twice), Err(WriteError::Malformed { .. })));
    let mut ring = Build::new(0, 0);
    let dir = ring.directory(ROOT, "a");
    ring.name(dir, b"a", dir);
    assert!(matches!(written(&ring), Err(WriteError::Malformed { .. })));
    let mut absent = Build::new(0, 0);
    absent.name(ROOT, b"a", InodeId(77));
    assert!(matches!(written(&absent), Err(WriteError::Malformed { .. })));
    let mut long = Build::new(0, 0);
    long.file(ROOT, &"n".repeat(256), 0, 0, 0);
    assert!(matches!(written(&long), Err(WriteError::NameTooLong { .. })));
    let mut huge = Build::new(0, 0);
    huge.add(ROOT, "f", Kind::File(Data { size: u64::MAX, segments: vec![] }));
    assert!(matches!(written(&huge), Err(WriteError::TooLarge { .. })));
    let mut wild = Build::new(0, 0);
    wild.add(ROOT, "f", Kind::File(run(9, 512, 512)));
    assert!(matches!(written(&wild), Err(WriteError::Copy { .. })));
}

/// Measures how much of the reader's memory limit a file costs, relative to its size. 1.0 means that it is cached once.
#[test]
fn a_file_is_charged_once_to_the_readers_memory_limit() {
    const SIZE: usize = 32 << 20;
    if !root_or_skip("EROFS mounts") {
        return;
    }
    for mount_modes in
        [&[MountMode::Direct][..], &[MountMode::Loop]].into_iter().filter(|mount_modes| works(mount_modes))
    {
        let Some(group) = Group::new() else {
            eprintln!("skipped: no memory cgroup to measure with");
            return;
        };
        let mut build = Build::new(1, SIZE + 1024);
        build.file(ROOT, "data", 0, 512, SIZE as u64);
        mounted(build, mount_modes, move |_, at| {
            // Drop the pages that writing the tar left in the page cache. They would hide the second copy.
            let tar = File::open(at.parent().unwrap().join("0.tar")).unwrap();
            tar.sync_all().unwrap();
            nix::fcntl::posix_fadvise(&tar, 0, 0, nix::fcntl::PosixFadviseAdvice::POSIX_FADV_DONTNEED).unwrap();
            let charged = group.charge_of_reading(&at.join("data"));
            let ratio = charged as f64 / SIZE as f64;
            eprintln!("{mount_modes:?}: charged {charged} bytes for {SIZE}: {ratio:.3}");
            assert!((0.9..1.05).contains(&ratio), "{mount_modes:?}: {ratio}");
        });
    }
}

/// A memory cgroup of the test's own.
struct Group(PathBuf);

impl Group {
    fn new() -> Option<Self> {
        for root in ["/sys/fs/cgroup/memory", "/sys/fs/cgroup"] {
            let path = Path::new(root).join(format!("test-gpurun-erofs-{}", std::process::id()));
            if std::fs::create_dir(&path).is_ok() {
                let group = Self(path);
                if group.0.join("memory.stat").exists() {
                    return Some(group);
                }
            }
        }
        None
    }

    fn charge_of_reading(&self, file: &Path) -> u64 {
        let script =
            format!("echo $$ > {0}/cgroup.procs && exec cat '{1}' > /dev/null", self.0.display(), file.display());
        assert!(std::process::Command::new("sh").args(["-c", &script]).status().unwrap().success());
        let stat = std::fs::read_to_string(self.0.join("memory.stat")).unwrap();
        // The field is `cache` on cgroup v1 and `file` on v2.
        let line = stat.lines().find_map(|line| line.strip_prefix("cache ").or_else(|| line.strip_prefix("file ")));
        line.unwrap().parse().unwrap()
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir(&self.0);
    }
}

#[test]
fn an_index_is_known_by_its_superblock() {
    let mut file = tempfile::tempfile().unwrap();
    assert_eq!(device_count(&file).unwrap(), None);
    file.write_all(&[0; 4096]).unwrap();
    assert_eq!(device_count(&file).unwrap(), None);
    file.write_all_at(&MAGIC.to_le_bytes(), SUPERBLOCK_AT).unwrap();
    assert_eq!(device_count(&file).unwrap(), None, "another block size is not ours");
}
