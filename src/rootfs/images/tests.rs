use nix::mount::MsFlags;
use nix::sched::CloneFlags;

use super::*;
use crate::layer::{Inode, InodeId, Kind, Tree};
use crate::rootfs::testing::{eventually, in_own_mounts, root_or_skip, tmpfs, unmount};
use crate::rootfs::{Overlay, overlay, private_namespace};

/// An image with one file and no layer, and so with metadata only.
fn index(dir: &Path) -> PathBuf {
    let inode = |kind, mode| Inode { kind, mode, uid: 0, gid: 0, mtime: (1, 0), xattrs: Default::default() };
    let root = Kind::Directory([(b"marker"[..].into(), InodeId(1))].into());
    let tree = Tree { inodes: vec![inode(root, 0o755), inode(Kind::File(Default::default()), 0o644)], sources: vec![] };
    let path = dir.join("index");
    let side = File::create(dir.join("side")).unwrap();
    erofs::write(&tree, &[], File::create(&path).unwrap(), &side).unwrap();
    path
}

fn no_render() -> Result<PathBuf, Report> {
    panic!("this kernel needs no rendering")
}

/// Whether the image is leased.
fn is_leased(images: &Path, chain: &str) -> bool {
    lease_exclusively(images, chain).unwrap().is_none()
}

/// Sweeps until all of `chains` are gone.
fn swept(images: &Path, chains: &[&str]) {
    let mut gone = Vec::new();
    eventually("a full sweep", || {
        gone.extend(sweep(images, Duration::ZERO).unwrap());
        gone.sort_unstable();
        (gone == chains).then_some(())
    });
}

struct Fixture {
    base: tempfile::TempDir,
    images: PathBuf,
    index: PathBuf,
}

impl Fixture {
    fn new() -> Self {
        let base = tempfile::tempdir().unwrap();
        let images = base.path().join("run/images");
        let index = index(base.path());
        Self { base, images, index }
    }

    fn image<'a>(&'a self, chain: &'a str) -> Image<'a> {
        Image { images: &self.images, chain, index: &self.index, devices: &[] }
    }
}

fn erofs_here() -> bool {
    root_or_skip("image mounts") && FsContext::open(c"erofs").is_ok()
}

#[test]
fn one_mount_is_shared_and_goes_with_its_last_lease() {
    if !erofs_here() {
        return;
    }
    in_own_mounts(|| {
        let fixture = Fixture::new();
        let first = mount(&fixture.image("aa"), no_render).unwrap();
        let second = mount(&fixture.image("aa"), no_render).unwrap();
        assert_ne!(first.backing, Backing::Shared);
        assert_eq!(second.backing, Backing::Shared);
        assert_eq!(mount::points_below(&fixture.images).unwrap(), [fixture.images.join("aa")]);
        assert!(second.dir.join("marker").exists());

        assert!(is_leased(&fixture.images, "aa"));
        assert!(sweep(&fixture.images, Duration::ZERO).unwrap().is_empty(), "two leases");
        drop(first);
        assert!(sweep(&fixture.images, Duration::ZERO).unwrap().is_empty(), "one lease");
        drop(second);
        eventually("the end of the lease", || (!is_leased(&fixture.images, "aa")).then_some(()));
        assert!(sweep(&fixture.images, Duration::from_secs(3600)).unwrap().is_empty(), "used a moment ago");
        swept(&fixture.images, &["aa"]);
        assert!(mount::points_below(&fixture.images).unwrap().is_empty());
        assert!(!fixture.images.join("aa").exists() && !fixture.images.join("aa.lease").exists());
        assert!(sweep(&fixture.images, Duration::ZERO).unwrap().is_empty(), "a second sweep finds nothing");
    });
}

#[test]
fn a_sweep_of_nothing_is_no_error() {
    assert!(sweep(Path::new("/nonexistent/gpurun/images"), Duration::ZERO).unwrap().is_empty());
}

#[test]
fn what_a_killed_process_leaves_is_swept_or_mounted_over() {
    if !erofs_here() {
        return;
    }
    in_own_mounts(|| {
        let fixture = Fixture::new();
        // The states after a kill before the mount, after mkdir, and between unmount and unlink.
        std::fs::create_dir_all(fixture.images.join("after-mkdir")).unwrap();
        for chain in ["before", "after-mkdir"] {
            std::fs::write(fixture.images.join(format!("{chain}.lease")), "").unwrap();
        }
        let lower = mount(&fixture.image("after-mkdir"), no_render).unwrap();
        assert!(lower.dir.join("marker").exists());
        drop(lower);
        swept(&fixture.images, &["after-mkdir", "before"]);
        let left: Vec<_> =
            std::fs::read_dir(&fixture.images).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        assert_eq!(left, [".lock"]);
    });
}

/// Such a mount does not have to be idle first, because the space of its files is freed only by the unmount.
#[test]
fn a_mount_whose_index_is_gone_goes_with_its_last_lease() {
    if !erofs_here() {
        return;
    }
    in_own_mounts(|| {
        let fixture = Fixture::new();
        let hour = Duration::from_secs(3600);
        let lower = mount(&fixture.image("aa"), no_render).unwrap();
        let shared = mount(&fixture.image("aa"), no_render).unwrap();
        drop(lower);
        assert!(sweep(&fixture.images, hour).unwrap().is_empty(), "the index is there");
        std::fs::rename(&fixture.index, fixture.base.path().join("removed")).unwrap();
        assert!(sweep(&fixture.images, hour).unwrap().is_empty(), "somebody leases it");
        drop(shared);
        // A lease without content, made by an older gpurun, is removed only when it is idle.
        std::fs::write(fixture.images.join("bb.lease"), "").unwrap();
        // A lease that cannot be swept does not prevent the sweep of others.
        std::fs::create_dir_all(fixture.images.join("00/full")).unwrap();
        std::fs::write(fixture.images.join("00.lease"), "/nowhere/index").unwrap();
        eventually("the sweep", || sweep(&fixture.images, hour).is_err().then_some(()));
        assert!(!fixture.images.join("aa").exists() && !fixture.images.join("aa.lease").exists());
        assert!(fixture.images.join("bb.lease").exists());
        std::fs::remove_dir(fixture.images.join("00/full")).unwrap();
        assert_eq!(sweep(&fixture.images, hour).unwrap(), ["00"]);
        // The clock was set back in the meantime.
        let future = SystemTime::now() + hour * 24;
        File::options().write(true).open(fixture.images.join("bb.lease")).unwrap().set_modified(future).unwrap();
        assert_eq!(sweep(&fixture.images, hour).unwrap(), ["bb"]);
    });
}

#[test]
fn a_busy_mount_waits_for_the_next_sweep() {
    if !erofs_here() {
        return;
    }
    in_own_mounts(|| {
        let fixture = Fixture::new();
        drop(mount(&fixture.image("aa"), no_render).unwrap());
        let visitor = File::open(fixture.images.join("aa/marker")).unwrap();
        assert!(sweep(&fixture.images, Duration::ZERO).unwrap().is_empty());
        drop(visitor);
        swept(&fixture.images, &["aa"]);
    });
}

#[test]
fn setuid_programs_of_an_image_do_not_run_on_the_host() {
    use std::os::unix::fs::PermissionsExt;
    if !erofs_here() {
        return;
    }
    in_own_mounts(|| {
        let fixture = Fixture::new();
        let lower = mount(&fixture.image("aa"), no_render).unwrap();
        assert_eq!(fixture.images.metadata().unwrap().permissions().mode() & 0o777, 0o700);
        let flags = nix::sys::statvfs::statvfs(&lower.dir).unwrap().flags();
        use nix::sys::statvfs::FsFlags;
        assert!(flags.contains(FsFlags::ST_RDONLY | FsFlags::ST_NOSUID | FsFlags::ST_NODEV), "{flags:?}");
        drop(lower);
        swept(&fixture.images, &["aa"]);
    });
}

/// systemd makes all mounts of a host shared. Elsewhere they are private.
#[test]
fn the_overlay_outlives_the_namespaces_copy_of_the_image_mount() {
    if !erofs_here() {
        return;
    }
    for kind in [MsFlags::MS_SHARED, MsFlags::MS_PRIVATE] {
        in_own_mounts(move || {
            let mut fixture = Fixture::new();
            let shared = fixture.base.path().join("shared");
            tmpfs(&shared);
            nix::mount::mount(None::<&Path>, &shared, None::<&Path>, kind, None::<&Path>).unwrap();
            fixture.images = shared.join("images");
            let lower = mount(&fixture.image("aa"), no_render).unwrap();
            let other = mount(&fixture.image("bb"), no_render).unwrap();
            let host = private_namespace(&fixture.images, &[&lower.dir]).unwrap();
            let [upper, work, merged] = ["upper", "work", "merged"].map(|name| fixture.base.path().join(name));
            overlay(&Overlay {
                lower: &lower.dir,
                above: None,
                upper: &upper,
                work: &work,
                merged: &merged,
                volatile: true,
            })
            .unwrap();
            host.forget(&fixture.images).unwrap();
            assert!(mount::points_below(&fixture.images).unwrap().is_empty());
            assert!(merged.join("marker").exists(), "the overlay has the layer for itself");

            // In the meantime on the host, another process mounts a third image, and the mount of the first one is
            // removed.
            let container = File::open("/proc/thread-self/ns/mnt").unwrap();
            host.enter().unwrap();
            assert!(!merged.join("marker").exists(), "nothing of the container stands on the host");
            let third = mount(&fixture.image("cc"), no_render).unwrap();
            drop((lower, other, third));
            // Nothing pins the image mounts.
            swept(&fixture.images, &["aa", "bb", "cc"]);
            nix::sched::setns(&container, CloneFlags::CLONE_NEWNS).unwrap();
            assert!(
                mount::points_below(&fixture.images).unwrap().is_empty(),
                "nor do they stay in the container's namespace"
            );
            assert!(merged.join("marker").exists(), "an open overlay needs no mount of its image");
            unmount(&merged);
            host.enter().unwrap();
            unmount(&shared);
        });
    }
}

#[test]
fn what_cannot_be_mounted_is_rendered() {
    if !root_or_skip("image mounts") {
        return;
    }
    let fixture = Fixture::new();
    // An index in a format that no kernel accepts.
    let mut bytes = std::fs::read(&fixture.index).unwrap();
    bytes[1024 + 83] = 0x80;
    std::fs::write(&fixture.index, bytes).unwrap();
    let rendered = fixture.base.path().join("rendered");
    let lower = mount(&fixture.image("aa"), || Ok(rendered.clone())).unwrap();
    assert_eq!((lower.backing, &lower.dir), (Backing::Directory, &rendered));
    assert!(is_leased(&fixture.images, "aa"), "a rendered directory is leased too");
    drop(lower);
    let free = || lease_exclusively(&fixture.images, "aa").unwrap();
    keep(&fixture.images, "aa").unwrap();
    assert!(free().is_none(), "`image mount` wants to find it");
    assert!(release(&fixture.images, "aa").unwrap());
    // Exclusive access makes a starting container wait before it looks for the directory.
    let lease_exclusively = eventually("the end of the lease", free);
    std::fs::create_dir(&rendered).unwrap();
    std::thread::scope(|scope| {
        let (fixture, rendered) = (&fixture, &rendered);
        let (sender, receiver) = std::sync::mpsc::channel();
        let starting = scope.spawn(move || {
            sender.send(()).unwrap();
            mount(&fixture.image("aa"), || {
                assert!(!rendered.exists(), "it was taken away first");
                Ok(rendered.clone())
            })
            .unwrap()
        });
        receiver.recv().unwrap();
        std::fs::remove_dir(rendered).unwrap();
        drop(lease_exclusively);
        assert_eq!(starting.join().unwrap().backing, Backing::Directory);
    });
    swept(&fixture.images, &["aa"]);

    let error = mount(&fixture.image("aa"), || Err(Report::new("no space").with_hint("make room"))).unwrap_err();
    let report = Report::from(error);
    assert!(report.message.ends_with("unpacked instead: no space"), "{report}");
    assert_eq!(report.hint.as_deref(), Some("make room"));
}

#[test]
fn a_damaged_store_is_named() {
    if !root_or_skip("image mounts") {
        return;
    }
    let fixture = Fixture::new();
    let extra = [File::open(&fixture.index).unwrap()];
    let error = mount(&Image { devices: &extra, ..fixture.image("aa") }, no_render).unwrap_err();
    assert!(matches!(error, MountError::Mismatch { wants: 0, given: 1, .. }), "{error}");
    std::fs::write(&fixture.index, "garbage").unwrap();
    let error = mount(&fixture.image("aa"), no_render).unwrap_err();
    assert!(matches!(error, MountError::NotAnIndex { .. }), "{error}");
    std::fs::remove_file(&fixture.index).unwrap();
    let error = mount(&fixture.image("aa"), no_render).unwrap_err();
    assert!(matches!(error, MountError::Missing { .. }), "{error}");
    assert!(error.hint().unwrap().contains("gpurun image load"));
}

#[test]
fn kernels_that_read_files_wrongly_are_known() {
    for (release, sound) in [
        ("6.12.79", false),
        ("6.12.80-amd64", true),
        ("6.14.0-37-generic", false),
        ("6.18.44-fc", true),
        ("6.18.9+deb13", false),
        ("6.19.11", true),
        ("7.0.0-rc7", true),
        ("7.1.2", true),
        ("6.1.0-30-amd64", false),
        ("", false),
    ] {
        assert_eq!(reads_files_soundly(release), sound, "{release}");
    }
}
