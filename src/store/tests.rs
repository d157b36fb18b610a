//! Tests of the store as a whole: lookup and removal, concurrent processes, crashes, broken disks and other versions.

use std::fs;
use std::io::{self, Write};
use std::path::Path;

use super::root::format_line;
use super::staging::Staging;
use super::testing::*;
use super::*;
use crate::image::digest_of;
use crate::names::Digest;

#[test]
fn names_ids_and_prefixes_resolve() {
    let (_dir, store) = store();
    load_tar(&store, &docker(&["a:1"], &[base()]).tar()).expect("loads");
    load_tar(&store, &Oci::new().image("localhost/b:latest", &[(top(), Packing::None)]).files().tar()).expect("loads");
    let a = store.resolve("a:1").expect("by name").id;
    for name in
        ["docker.io/library/a:1", &a.to_string(), &a.hex(), &a.hex()[..12], &format!("sha256:{}", &a.hex()[..9])]
    {
        assert_eq!(store.resolve(name).expect(name).id, a);
    }
    assert_eq!(store.resolve("b").expect("a local build by its short name").label(), "localhost/b:latest");
    for name in ["a", "c", "ffffffffffff", "localhost/a:1"] {
        let error = message_of(store.resolve(name).expect_err(name));
        assert!(error.contains(&format!("no image `{name}`")) && error.contains("`a:1`"), "{error}");
    }
    assert!(matches!(store.resolve("").expect_err("nothing"), ResolveError::BadName(_)));
    assert!(matches!(store.resolve("../x").expect_err("a path"), ResolveError::BadName(_)));
    assert_eq!(store.list().expect("listed").len(), 2);
    // The name moves to the next image that claims it. The old image stays without a name.
    load_tar(&store, &docker(&["a:1"], &[base(), top()]).tar()).expect("loads");
    assert_ne!(store.resolve("a:1").expect("by name").id, a);
    assert_eq!(store.resolve(&a.hex()).expect("by id").names, []);
}

#[test]
fn layers_are_shared_and_go_with_their_last_image() {
    let (_dir, store) = store();
    load_tar(&store, &docker(&["a"], &[base()]).tar()).expect("loads");
    let loaded = load_tar(&store, &docker(&["b", "c"], &[base(), top()]).tar()).expect("loads");
    assert_eq!((loaded[0].shared_layers, loaded[0].layers), (1, 2));
    assert_eq!(ls(&store.root().join("layers")).len(), 2);
    let b = store.resolve("b").expect("b");
    let error = store.remove(&b.id.to_string(), false, &|_| None).expect_err("two names");
    assert!(matches!(error, remove::RemoveError::SeveralNames { .. }));
    assert_eq!(store.remove("c", false, &|_| Some(User::Container("x".into()))).expect("a name only").deleted, None);
    let error = message_of(
        store.remove("b", true, &|id| (*id == b.id).then(|| User::Container("train".into()))).expect_err("in use"),
    );
    assert!(error.contains("container `train`") && error.contains("gpurun rm -f train"), "{error}");
    assert!(store.resolve("b").is_ok());
    let removed = store.remove("b", false, &|_| None).expect("removed");
    assert_eq!((removed.deleted, removed.untagged.len()), (Some(b.id), 1));
    assert!(removed.freed >= top().len() as u64);
    assert_eq!(ls(&store.root().join("layers")), [format!("{}.tar", digest_of(&base()).hex())]);
    store.remove("a", false, &|_| None).expect("removed");
    assert_untouched(&store);
    assert!(matches!(
        store.remove("a", false, &|_| None),
        Err(remove::RemoveError::Resolve(ResolveError::NotFound { .. }))
    ));
}

#[test]
fn what_a_dead_loader_left_is_swept() {
    let (_dir, store) = store();
    load_tar(&store, &docker(&["a"], &[base()]).tar()).expect("loads");
    // As after SIGKILL: a staging directory without a held lock, and a layer that was renamed before the image was.
    let dead = store.root().join("tmp/0123456789abcdef");
    fs::create_dir(&dead).expect("made");
    fs::write(dead.join("lock"), "").expect("written");
    fs::write(dead.join("archive"), "half").expect("written");
    fs::write(store.layer_path(&digest_of(b"orphan")), "half").expect("written");
    fs::write(store.root().join("tmp/stray"), "").expect("written");
    // A directory in use next to it.
    let living = Staging::new(&store).expect("a workplace");
    let store = Store::open(store.root()).expect("opened again");
    assert!(!dead.exists() && living.path().exists() && !store.root().join("tmp/stray").exists());
    assert_eq!(ls(&store.root().join("layers")).len(), 1);
    drop(living);
    assert!(ls(&store.root().join("tmp")).is_empty());
    assert!(store.tree(&store.resolve("a").expect("a")).is_ok());
}

#[test]
fn an_io_error_is_not_an_absence() {
    let (_root, store) = store();
    load_tar(&store, &docker(&["t"], &[base()]).tar()).expect("loaded");
    let image = store.resolve("t").expect("there");
    // An error that root gets too: a symbolic link to itself.
    let break_and = |name: &str, message_of: &mut dyn FnMut()| {
        let (dir, aside) = (store.root().join(name), store.root().join("aside"));
        fs::rename(&dir, &aside).expect("moved");
        std::os::unix::fs::symlink(&dir, &dir).expect("linked");
        message_of();
        fs::remove_file(&dir).expect("removed");
        fs::rename(&aside, &dir).expect("moved back");
    };
    break_and("layers", &mut || {
        store.has_layers(&image).expect_err("who knows");
        store.has_chain(&image.diff_ids).expect_err("who knows");
    });
    break_and("images", &mut || {
        store.contains("t").expect_err("who knows");
        let message_of = store.identify("t").expect_err("who knows").to_string();
        assert!(message_of.contains("cannot look up"), "{message_of}");
        let message_of = store.remove("t", true, &|_| None).expect_err("who knows").to_string();
        assert!(message_of.contains("cannot remove"), "{message_of}");
        store.verify(None, &|_| ()).expect_err("who knows");
        store.index_devices(&image).expect_err("who knows");
    });
    assert!(store.has_layers(&image).expect("told") && store.contains("t").expect("told"));
    // A staging directory whose lock cannot be checked may be in use.
    let workplace = store.root().join("tmp/somebody's");
    fs::create_dir(&workplace).expect("made");
    std::os::unix::fs::symlink(workplace.join("lock"), workplace.join("lock")).expect("linked");
    Store::open(store.root()).expect("opened");
    assert!(workplace.exists());
    fs::remove_file(workplace.join("lock")).expect("removed");
    Store::open(store.root()).expect("opened");
    assert!(!workplace.exists());
}

#[test]
fn a_removal_beside_a_load_costs_nothing() {
    let (_dir, store) = store();
    load_tar(&store, &docker(&["a"], &[base()]).tar()).expect("loads");
    /// Removes the image whose layer the load has just found in the store.
    struct Remover<'a>(&'a Store);
    impl Progress for Remover<'_> {
        fn start(&self, layers: &[(Digest, u64)]) {
            assert_eq!(layers.len(), 1, "the base is shared");
            self.0.remove("a", false, &|_| None).expect("removed");
            assert!(!self.0.layer_path(&digest_of(&base())).exists());
        }
    }
    let mut file = tempfile::NamedTempFile::new().expect("a file");
    file.write_all(&docker(&["b"], &[base(), top()]).tar()).expect("written");
    store.load(&Source::path(file.path()), &LoadOptions::default(), &Remover(&store)).expect("loads");
    let image = store.resolve("b").expect("b");
    assert_eq!(fs::read(store.layer_path(&image.diff_ids[0])).expect("the pinned layer"), base());
}

#[test]
fn loads_and_removals_at_once() {
    let (_dir, store) = store();
    let archive = docker(&["shared"], &[base(), top()]).tar();
    std::thread::scope(|scope| {
        for worker in 0..4 {
            let (store, archive) = (&store, &archive);
            scope.spawn(move || {
                for _ in 0..10 {
                    load_tar(store, archive).expect("loads");
                    if worker % 2 == 0 {
                        match store.remove("shared", true, &|_| None) {
                            Ok(_) | Err(remove::RemoveError::Resolve(ResolveError::NotFound { .. })) => {}
                            Err(error) => panic!("{}", message_of(error)),
                        }
                    }
                    let _ = Store::open(store.root()).expect("opens");
                    for image in store.list().expect("listed") {
                        // At worst, another thread removed it between the listing and the read.
                        match store.tree(&image) {
                            Ok(tree) => assert_eq!(names_in(&tree), 3),
                            Err(StoreError::Io { cause, .. }) => assert_eq!(cause.kind(), io::ErrorKind::NotFound),
                            Err(error) => panic!("{}", message_of(error)),
                        }
                    }
                }
            });
        }
    });
    load_tar(&store, &archive).expect("loads");
    assert_eq!(names_in(&store.tree(&store.resolve("shared").expect("there")).expect("a tree")), 3);
    store.remove("shared", true, &|_| None).expect("removed");
    assert_untouched(&store);
}

#[test]
fn another_format_is_distinguished_from_damage() {
    let (dir, store) = store();
    let open = |line: &[u8]| {
        fs::write(store.root().join("format"), line).expect("written");
        Store::open(&dir.path().join("root")).map(drop).map_err(message_of)
    };
    let whole = b"gpurun store 1\n";
    assert_eq!(fs::read(store.root().join("format")).expect("read"), whole);
    let error = open(format_line(2).as_bytes()).expect_err("newer");
    assert!(
        error.contains("has the format `gpurun store 2 ")
            && error.contains("use the version of gpurun that created it"),
        "{error}"
    );
    // Any flipped bit of this line or of a later one's, and any line that is longer or shorter, is damage, whatever its
    // number.
    let flipped = |line: &[u8], at: usize| {
        let mut line = line.to_vec();
        line[at / 8] ^= 1 << (at % 8);
        line
    };
    let later = format_line(23);
    let mut lines: Vec<Vec<u8>> = (0..whole.len() * 8).map(|at| flipped(whole, at)).collect();
    lines.extend((0..later.len() * 8).map(|at| flipped(later.as_bytes(), at)));
    let others =
        [&b"gpurun store 1"[..], b"", b"gpurun store 3\n", b"gpurun store 1 00000000\n", b"gpurun store 02 \n"];
    lines.extend(others.map(<[u8]>::to_vec));
    for line in lines {
        let error = open(&line).expect_err("damaged");
        let shown = String::from_utf8_lossy(&line);
        assert!(error.contains("is damaged") && error.contains("echo gpurun store 1 | sudo tee"), "{shown}: {error}");
    }
    open(whole).expect("as the hint says");
}

/// Runs in a separate process, which kills itself with SIGKILL at the stage that the environment names.
#[test]
fn killed_loader() {
    let (Ok(root), Ok(archive), Ok(stage)) =
        (std::env::var("KILLED_ROOT"), std::env::var("KILLED_ARCHIVE"), std::env::var("KILLED_STAGE"))
    else {
        return;
    };
    struct Killer(String);
    impl Killer {
        fn at(&self, stage: &str) {
            if self.0 == stage {
                let _ = nix::sys::signal::raise(nix::sys::signal::Signal::SIGKILL);
            }
        }
    }
    impl Progress for Killer {
        fn start(&self, _layers: &[(Digest, u64)]) {
            self.at("start");
        }
        fn advance(&self, _layer: usize, _bytes: u64) {
            self.at("advance");
        }
        fn finish(&self) {
            self.at("finish");
        }
    }
    let store = Store::open(Path::new(&root)).expect("opened");
    store.load(&Source::path(archive), &LoadOptions::default(), &Killer(stage)).expect("loads");
}

#[test]
fn a_sigkill_at_any_stage_leaves_nothing() {
    let (_dir, store) = store();
    let mut archive = tempfile::NamedTempFile::new().expect("a file");
    archive.write_all(&docker(&["k"], &[base(), top()]).tar()).expect("written");
    for stage in ["start", "advance", "finish"] {
        let status = std::process::Command::new(std::env::current_exe().expect("this test"))
            .args(["--exact", "store::tests::killed_loader", "--nocapture"])
            .env("KILLED_ROOT", store.root())
            .env("KILLED_ARCHIVE", archive.path())
            .env("KILLED_STAGE", stage)
            .stdout(std::process::Stdio::null())
            .status()
            .expect("ran");
        assert_eq!(std::os::unix::process::ExitStatusExt::signal(&status), Some(9), "{stage}");
        assert_eq!(ls(&store.root().join("tmp")).len(), 1, "{stage}: it had a workplace");
        Store::open(store.root()).expect("opened again");
        assert_untouched(&store);
    }
    load(&store, archive.path()).expect("the store works");
}
