//! Provides a stored image as a lower directory, in the way that this kernel supports.
//!
//! If the kernel cannot mount the index, the merged tree is rendered once per image into `dirs/<chain ID>` of the
//! store, where it stays until the image is removed (the store's garbage collection handles it). It is made in a
//! temporary directory of the store (`tmp/<random>`, which is in use while its `lock` is held), synced and renamed. So
//! a directory that exists is complete.

use std::collections::BTreeMap;
use std::fs::{DirBuilder, File};
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use super::images::{self, Lower, MountError};
use crate::durable::{self, FileLock};
use crate::layer::{Entry, Merger, Tree, directory};
use crate::names::Digest;
use crate::report::{Explain, Report};
use crate::store::{Image, Store, StoreError, Stretch};

#[derive(Debug, thiserror::Error)]
pub(crate) enum RenderImageError {
    #[error("cannot create `{}`", .path.display())]
    Make { path: PathBuf, source: io::Error },
    #[error("cannot read the layer `{}`", .path.display())]
    Layer { path: PathBuf, source: Box<dyn std::error::Error + Send + Sync> },
    #[error("cannot unpack the image to `{}`", .path.display())]
    Render { path: PathBuf, source: directory::RenderError },
}

impl Explain for RenderImageError {
    fn hint(&self) -> Option<String> {
        match self {
            Self::Layer { .. } => Some("load the image again with `gpurun image load`; the store is damaged".into()),
            Self::Render { source, .. } => source.hint(),
            Self::Make { .. } => None,
        }
    }
}

/// Returns a leased lower directory with the tree of `image`: the shared mount of its index below `images` or, on
/// kernels that cannot mount it, the directory that was rendered from the same tree. Call it in the host's mount
/// namespace. It starts no thread.
pub(crate) fn lower(images: &Path, store: &Store, image: &Image) -> Result<Lower, MountError> {
    let devices = store.index_devices(image).map_err(|source| MountError::Files { source })?;
    let request =
        images::Image { images, chain: &store.mount_name(image), index: &store.index_of(image), devices: &devices };
    images::mount(&request, || render(store, image).map_err(Report::from))
}

/// Returns the directory with the image's tree, and renders it if it does not exist yet.
pub(crate) fn render(store: &Store, image: &Image) -> Result<PathBuf, RenderImageError> {
    let target = store.rendered_path(image);
    let make = |path: &Path| {
        let path = path.to_owned();
        move |source| RenderImageError::Make { path, source }
    };
    if target.try_exists().map_err(make(&target))? {
        return Ok(target);
    }
    let workplace = Workplace::new(store)?;
    let tree_dir = workplace.dir.join("tree");
    DirBuilder::new().mode(0o700).create(&tree_dir).map_err(make(&tree_dir))?;
    let root = File::open(&tree_dir).map_err(make(&tree_dir))?;
    let (tree, sources) = scan(store, image)?;
    directory::render(&tree, &sources, root.as_fd())
        .map_err(|source| RenderImageError::Render { path: target.clone(), source })?;
    nix::unistd::syncfs(&root).map_err(|errno| make(&tree_dir)(errno.into()))?;
    match std::fs::rename(&tree_dir, &target) {
        // Another process has rendered the same tree first.
        Err(error) if matches!(error.raw_os_error(), Some(libc::EEXIST | libc::ENOTEMPTY)) => {}
        other => other.map_err(make(&target))?,
    }
    let parent = target.parent().unwrap_or(Path::new("/"));
    durable::sync_dir(parent).map_err(make(parent))?;
    Ok(target)
}

/// Returns the merged tree and its open tars. [`Store::tree`] is not used because it starts threads, and this code runs
/// in the supervisor.
fn scan(store: &Store, image: &Image) -> Result<(Tree, Vec<File>), RenderImageError> {
    let failed = |path: &Path, source: Box<dyn std::error::Error + Send + Sync>| RenderImageError::Layer {
        path: path.to_owned(),
        source,
    };
    let unreadable = |error| match error {
        StoreError::Io { path, cause, .. } => failed(&path, cause.into()),
        other => failed(store.root(), other.into()),
    };
    let stretches = store.stretches(image).map_err(unreadable)?;
    let mut merger = Merger::new();
    // A layer that is listed more than once is read once.
    let mut kept: BTreeMap<Digest, Vec<Entry>> = BTreeMap::new();
    for (at, (diff_id, stretch)) in stretches.iter().enumerate() {
        let entries = match kept.remove(diff_id) {
            Some(entries) => entries,
            None => {
                let file = store.open_stretch(image, stretch).map_err(unreadable)?;
                stretch.scan(&file).map_err(|error| failed(&stretch.path, error.into()))?
            }
        };
        let applied = if stretches[at + 1..].iter().any(|(later, _)| later == diff_id) {
            let applied = merger.apply(*diff_id, entries.iter().cloned());
            kept.insert(*diff_id, entries);
            applied
        } else {
            merger.apply(*diff_id, entries)
        };
        applied.map_err(|error| failed(&stretch.path, error.into()))?;
    }
    let tree = merger.finish();
    let find_stretch = |wanted: &Digest| stretches.iter().find(|(diff_id, _)| diff_id == wanted);
    let open = |(_, stretch): &(Digest, Stretch)| store.open_stretch(image, stretch).map_err(unreadable);
    let sources = tree.sources.iter().filter_map(find_stretch).map(open).collect::<Result<_, _>>()?;
    Ok((tree, sources))
}

/// A temporary directory like the store's own: the store's sweep removes the ones that dead processes have left.
struct Workplace {
    dir: PathBuf,
    _lock: FileLock,
}

impl Workplace {
    fn new(store: &Store) -> Result<Self, RenderImageError> {
        let mut random = [0; 8];
        let tmp = store.root().join("tmp");
        let make = |path: &Path, source| RenderImageError::Make { path: path.to_owned(), source };
        getrandom::fill(&mut random).map_err(|error| make(&tmp, io::Error::other(error)))?;
        let dir = tmp.join(hex::encode(random));
        // No sweep may run between mkdir and flock. It needs this lock exclusively.
        let _hold = store.hold().map_err(|error| make(&dir, io::Error::other(error)))?;
        DirBuilder::new().mode(0o700).create(&dir).map_err(|error| make(&dir, error))?;
        let lock = FileLock::exclusive(&dir.join("lock")).map_err(|error| make(&dir, error))?;
        Ok(Self { dir, _lock: lock })
    }
}

impl Drop for Workplace {
    fn drop(&mut self) {
        // If the removal fails, the store's sweep removes the directory later.
        let _ = crate::sys::tree::remove(&self.dir);
    }
}

#[cfg(test)]
mod tests {
    use sha2::{Digest as _, Sha256};

    use super::*;
    use crate::layer::testing::Layer;
    use crate::rootfs::images::Backing;
    use crate::rootfs::testing::{in_own_mounts, root_or_skip, unmount};
    use crate::store::{LoadOptions, Source};

    fn blob(layout: &Path, bytes: &[u8]) -> serde_json::Value {
        let hex = hex::encode(Sha256::digest(bytes));
        std::fs::create_dir_all(layout.join("blobs/sha256")).unwrap();
        std::fs::write(layout.join("blobs/sha256").join(&hex), bytes).unwrap();
        serde_json::json!({ "digest": format!("sha256:{hex}"), "size": bytes.len() })
    }

    fn typed(mut descriptor: serde_json::Value, kind: &str) -> serde_json::Value {
        descriptor["mediaType"] = format!("application/vnd.oci.image.{kind}").into();
        descriptor
    }

    /// A store with one image of these layers.
    fn store_with(base: &Path, layers: &[Vec<u8>]) -> (Store, Image) {
        let layout = base.join("layout");
        let blobs: Vec<_> = layers.iter().map(|layer| blob(&layout, layer)).collect();
        let diff_ids: Vec<_> = blobs.iter().map(|blob| blob["digest"].clone()).collect();
        let config = serde_json::json!({
            "architecture": "amd64", "os": "linux", "config": {}, "rootfs": { "type": "layers", "diff_ids": diff_ids },
        });
        let config = typed(blob(&layout, config.to_string().as_bytes()), "config.v1+json");
        let layers: Vec<_> = blobs.into_iter().map(|blob| typed(blob, "layer.v1.tar")).collect();
        let manifest = serde_json::json!({
            "schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json", "config": config, "layers": layers,
        });
        let manifest = typed(blob(&layout, manifest.to_string().as_bytes()), "manifest.v1+json");
        let index = serde_json::json!({ "schemaVersion": 2, "manifests": [manifest] });
        std::fs::write(layout.join("index.json"), index.to_string()).unwrap();
        std::fs::write(layout.join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#).unwrap();
        let store = Store::open(&base.join("root")).unwrap();
        let loaded = store.load(&Source::path(layout), &LoadOptions::default(), &()).unwrap();
        let image = store.resolve(&loaded[0].id.to_string()).unwrap();
        (store, image)
    }

    fn layers() -> Vec<Vec<u8>> {
        vec![
            Layer::new()
                .dir("etc")
                .file("etc/passwd", "root:x:0:0::/root:/bin/sh\n")
                .file("etc/gone", "x")
                .dir("opaque")
                .file("opaque/old", "old")
                .file("big", &"0123456789abcdef".repeat(5000))
                .end(),
            Layer::new()
                .file("etc/.wh.gone", "")
                .dir("opaque")
                .file("opaque/.wh..wh..opq", "")
                .file("opaque/new", "new")
                .link("link", "etc/passwd")
                .hard("hard", "big")
                .fifo("fifo")
                .device(b'3', "null", 1, 3)
                .device(b'3', "zero-zero", 0, 0)
                .pax(&[("SCHILY.xattr.user.k", b"v"), ("mtime", b"-5.25")])
                .file("with-xattr", "x")
                .end(),
        ]
    }

    /// Lists everything that is visible below `dir`, as text.
    fn listing(dir: &Path) -> Vec<String> {
        use std::os::unix::fs::MetadataExt;
        let mut lines = Vec::new();
        let mut todo = vec![PathBuf::new()];
        while let Some(at) = todo.pop() {
            let path = dir.join(&at);
            let meta = path.symlink_metadata().unwrap();
            let data =
                if meta.is_file() { hex::encode(Sha256::digest(std::fs::read(&path).unwrap())) } else { String::new() };
            let links = if meta.is_dir() { 0 } else { meta.nlink() };
            lines.push(format!(
                "{} {:o} {}:{} {}.{:09} {} {links} {:?} {:?} {data}",
                at.display(),
                meta.mode(),
                meta.uid(),
                meta.gid(),
                meta.mtime(),
                meta.mtime_nsec(),
                meta.rdev(),
                std::fs::read_link(&path).ok(),
                crate::sys::xattr_read::all(&path).unwrap(),
            ));
            if meta.is_dir() {
                todo.extend(std::fs::read_dir(&path).unwrap().map(|entry| at.join(entry.unwrap().file_name())));
            }
        }
        lines.sort_unstable();
        lines
    }

    #[test]
    fn the_index_and_the_directory_show_the_same_image() {
        if !root_or_skip("an image from the store") {
            return;
        }
        in_own_mounts(|| {
            let base = tempfile::tempdir().unwrap();
            let (store, image) = store_with(base.path(), &layers());
            let images = base.path().join("images");
            let lower = lower(&images, &store, &image).unwrap();
            let rendered = render(&store, &image).unwrap();
            assert_eq!(render(&store, &image).unwrap(), rendered, "drawn once");
            let seen = listing(&rendered);
            assert!(
                seen.iter().any(|line| line.starts_with("with-xattr") && line.contains("-6.750000000")),
                "{seen:#?}"
            );
            assert!(!seen.iter().any(|line| line.contains("gone") || line.contains("opaque/old")), "{seen:#?}");
            for (index, directory) in listing(&lower.dir).iter().zip(&seen) {
                assert_eq!(index, directory);
            }
            assert_eq!(listing(&lower.dir).len(), seen.len());
            assert_eq!(std::fs::read_dir(base.path().join("root/tmp")).unwrap().count(), 0, "no workplace is left");
            if lower.backing != Backing::Directory {
                drop(lower);
                unmount(&images.join(image.chain_id.hex()));
            }
        });
    }

    #[test]
    fn a_changed_rendered_directory_is_found_and_rendered_again() {
        use std::os::unix::fs::{FileExt, PermissionsExt, symlink};
        if !root_or_skip("an image from the store") {
            return;
        }
        let base = tempfile::tempdir().unwrap();
        let (store, image) = store_with(base.path(), &layers());
        let dir = render(&store, &image).unwrap();
        let at = |name: &str| dir.join(name);
        let flip = |name: &str| {
            let file = File::options().read(true).write(true).open(at(name)).unwrap();
            let mut byte = [0];
            file.read_exact_at(&mut byte, 0).unwrap();
            file.write_all_at(&[byte[0] ^ 1], 0).unwrap();
        };
        let xattr = |name: &str, key: &[u8], value: &[u8]| {
            crate::sys::xattr::set(File::open(at(name)).unwrap(), key, value).unwrap();
        };
        // Restores the time, like an attacker who hides a change.
        let touch = |name: &str, seconds: i64, nanos: i64| {
            use nix::sys::stat::{UtimensatFlags, utimensat};
            let time = nix::sys::time::TimeSpec::new(seconds, nanos);
            utimensat(nix::fcntl::AT_FDCWD, &at(name), &time, &time, UtimensatFlags::NoFollowSymlink).unwrap();
        };
        let damages: [(&str, &dyn Fn()); 15] = [
            ("`/opaque/new`: its contents", &|| flip("opaque/new")),
            ("`/opaque/new`: its size differs", &|| std::fs::write(at("opaque/new"), "newer").unwrap()),
            ("`/opaque/new`: it is missing", &|| std::fs::remove_file(at("opaque/new")).unwrap()),
            ("`/opaque`: it contains entries", &|| std::fs::write(at("opaque/more"), "").unwrap()),
            ("`/opaque/new`: its mode differs", &|| {
                std::fs::set_permissions(at("opaque/new"), std::fs::Permissions::from_mode(0o4755)).unwrap();
            }),
            ("`/opaque`: its owner differs", &|| std::os::unix::fs::chown(at("opaque"), Some(5), None).unwrap()),
            ("`/link`: its target differs", &|| {
                std::fs::remove_file(at("link")).unwrap();
                symlink("etc/shadow", at("link")).unwrap();
            }),
            ("`/fifo`: its type differs", &|| {
                std::fs::remove_file(at("fifo")).unwrap();
                std::fs::write(at("fifo"), "").unwrap();
            }),
            ("`/hard`: it is not the same file as its hard link", &|| {
                std::fs::copy(at("hard"), at("copy")).unwrap();
                std::fs::rename(at("copy"), at("hard")).unwrap();
            }),
            ("`/with-xattr`: its modification time differs", &|| touch("with-xattr", -6, 750_000_001)),
            ("`/link`: its modification time differs", &|| touch("link", 5, 0)),
            ("`/`: its modification time differs", &|| touch("", 5, 0)),
            ("`/with-xattr`: its extended attribute `user.k` differs", &|| xattr("with-xattr", b"user.k", b"w")),
            ("`/etc/passwd`: it has the extended attribute `user.more`", &|| xattr("etc/passwd", b"user.more", b"1")),
            ("`/with-xattr`: its extended attribute `user.k` is missing", &|| {
                std::fs::copy(at("with-xattr"), at("copy")).unwrap();
                std::fs::rename(at("copy"), at("with-xattr")).unwrap();
                touch("with-xattr", -6, 750_000_000);
            }),
        ];
        for (why, damage) in damages {
            assert_eq!(store.verify(None, &|_| ()).unwrap().faults, [], "before {why}");
            damage();
            let faults = store.verify(None, &|_| ()).unwrap().faults;
            assert!(faults.len() == 1 && faults[0].path == dir && faults[0].why.starts_with(why), "{why}: {faults:?}");
            // A directory that a running container uses is kept.
            let hex = image.chain_id.hex();
            let taken = |name: &str| (name != hex).then_some(());
            assert_eq!(store.repair(&faults, &taken).unwrap(), std::slice::from_ref(&dir));
            assert!(dir.exists(), "{why}");
            assert!(store.repair(&faults, &|_| Some(())).unwrap().is_empty());
            assert!(!dir.exists(), "{why}");
            assert_eq!(render(&store, &image).unwrap(), dir);
        }
        assert_eq!(std::fs::read_dir(base.path().join("root/tmp")).unwrap().count(), 0, "no workplace is left");
    }

    /// The rendered tree of an archive's image is verified too, and it is removed when the archive has changed.
    #[test]
    fn the_rendered_tree_of_an_archive_is_verified_and_removed_with_it() {
        if !root_or_skip("an image from an archive") {
            return;
        }
        let base = tempfile::tempdir().unwrap();
        let (other, _) = store_with(&base.path().join("other"), &layers());
        let layout = base.path().join("other/layout");
        let store = Store::open(&base.path().join("root")).unwrap();
        let open = || store.open_in_place(&Source::path(&layout), &LoadOptions::default(), true, &()).unwrap().unwrap();
        let image = open();
        let dir = render(&store, &image).unwrap();
        let looked = store.verify(None, &|_| ()).unwrap();
        assert_eq!((looked.images, looked.faults), (1, vec![]));
        std::fs::write(dir.join("opaque/new"), "NEW").unwrap();
        let asked = store.identify(&image.id.to_string()).unwrap();
        let faults = store.verify(Some(&[asked]), &|_| ()).unwrap().faults;
        assert!(faults.len() == 1 && faults[0].path == dir, "{faults:?}");
        assert!(faults[0].why.starts_with("`/opaque/new`: its contents"), "{faults:?}");
        let name = store.mount_name(&image);
        assert_eq!(store.repair(&faults, &|asked| (asked != name).then_some(())).unwrap(), std::slice::from_ref(&dir));
        assert!(store.repair(&faults, &|_| Some(())).unwrap().is_empty());
        assert!(!dir.exists());
        assert_eq!(store.verify(None, &|_| ()).unwrap().faults, []);

        // The documents and the index that the store made from the archive: damaged ones are removed, and made again
        // from the archive.
        for name in ["config.json", "image.json", "place.json", &format!("{}.erofs", image.chain_id.hex())] {
            let path = base.path().join("root/archives").join(image.id.hex()).join(name);
            let mut bytes = std::fs::read(&path).unwrap();
            let at = bytes.len() / 3;
            bytes[at] ^= 1;
            std::fs::write(&path, bytes).unwrap();
            let faults = store.verify(None, &|_| ()).unwrap().faults;
            assert!(faults.len() == 1 && faults[0].path == path, "{name}: {faults:?}");
            store.repair(&faults, &|_| Some(())).unwrap();
            assert_eq!(store.verify(None, &|_| ()).unwrap().images, 0, "{name}");
            assert_eq!(open().id, image.id);
            assert_eq!(store.verify(None, &|_| ()).unwrap().faults, [], "{name}");
        }

        // After the archive has changed, the tree that was rendered from it stays until the image is no longer in use.
        let dir = render(&store, &open()).unwrap();
        let blob = layout.join("blobs/sha256").join(image.diff_ids[0].hex());
        std::fs::copy(&blob, base.path().join("copy")).unwrap();
        std::fs::rename(base.path().join("copy"), &blob).unwrap();
        let looked = store.verify(None, &|_| ()).unwrap();
        assert_eq!((looked.images, looked.faults), (1, vec![]));
        let again = render(&store, &open()).unwrap();
        assert_ne!(again, dir);
        store.prune(&crate::store::Image::is_dangling, &|_| Some(crate::store::User::Container("x".into()))).unwrap();
        assert!(dir.exists() && again.exists());
        store.prune(&crate::store::Image::is_dangling, &|_| None).unwrap();
        assert!(!dir.exists() && !again.exists(), "nobody can use them any more");
        drop(other);
    }

    #[test]
    fn a_damaged_layer_is_named() {
        if !root_or_skip("an image from the store") {
            return;
        }
        let base = tempfile::tempdir().unwrap();
        let (store, image) = store_with(base.path(), &layers());
        let path = store.layer_path(&image.diff_ids[1]);
        std::fs::remove_file(&path).unwrap();
        let report = Report::from(render(&store, &image).unwrap_err());
        assert!(report.message.contains(&image.diff_ids[1].hex()), "{report}");
        assert!(report.hint.unwrap().contains("gpurun image load"));
        assert!(!store.directory_path(&image.chain_id).exists());
        assert_eq!(std::fs::read_dir(base.path().join("root/tmp")).unwrap().count(), 0, "no workplace is left");
    }
}
