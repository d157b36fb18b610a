//! An open store: its directory, its paths and its lock.

use std::fs;
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};

use super::error::StoreError;
use super::files::{exists, make_dir, open, read_optional};
use super::image::Image;
use super::located::Stretch;
use super::scan::{scan_layers, tree_of_layers};
use crate::durable;
use crate::durable::FileLock;
use crate::image::digest_of;
use crate::layer::Tree;
use crate::names::Digest;

/// The `format` line of this layout. The line of a later layout has a check digest after its number ([`format_line`]);
/// without one, a flipped bit in the digit of this line would look like another version. Any other line without a
/// correct digest is damaged.
pub(super) const FORMAT: &str = "gpurun store 1\n";

/// An open store.
#[derive(Debug, Clone)]
pub(crate) struct Store {
    pub(super) root: PathBuf,
}

impl Store {
    /// Opens the store below `root`, creates it if necessary, and removes leftovers of dead processes.
    pub(crate) fn open(root: &Path) -> Result<Self, StoreError> {
        let store = Self { root: root.to_path_buf() };
        let format = root.join("format");
        match fs::read_to_string(&format) {
            Ok(found) if found == FORMAT => {}
            Ok(found) if !is_other_format(&found) => return Err(StoreError::NoFormat { path: format }),
            Ok(found) => {
                let found = found.trim_end().chars().take(40).collect();
                return Err(StoreError::Format { root: root.into(), found });
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => store.create(&format)?,
            Err(error) if error.kind() == io::ErrorKind::InvalidData => {
                return Err(StoreError::NoFormat { path: format });
            }
            Err(cause) => return Err(StoreError::io("read", &format)(cause)),
        }
        store.sweep_if_free()?;
        Ok(store)
    }

    pub(super) fn create(&self, format: &Path) -> Result<(), StoreError> {
        // Other users may traverse the root, because volumes and logs are below it too. The store's own directories are
        // only for root.
        make_dir(&self.root, 0o711)?;
        for name in ["layers", "images", "tmp", "dirs"] {
            make_dir(&self.root.join(name), 0o700)?;
        }
        // Take the lock, so that no sweep removes the temporary file of a new store.
        let _lock = self.lock()?;
        let temp = self.root.join("tmp").join(format!("format.{}", std::process::id()));
        durable::write_atomic_by(&temp, format, FORMAT.as_bytes()).map_err(StoreError::io("write", format))
    }

    pub(crate) fn root(&self) -> &Path {
        &self.root
    }

    /// Returns the path of a layer's tar, whether or not it exists.
    pub(crate) fn layer_path(&self, diff_id: &Digest) -> PathBuf {
        self.root.join("layers").join(format!("{}.tar", diff_id.hex()))
    }

    /// Returns the path of the index of a chain of layers, whether or not it exists.
    pub(crate) fn index_path(&self, chain_id: &Digest) -> PathBuf {
        self.root.join("images").join(format!("{}.erofs", chain_id.hex()))
    }

    /// Returns the path of a chain's merged tree as plain files, whether or not it exists.
    pub(crate) fn directory_path(&self, chain_id: &Digest) -> PathBuf {
        self.root.join("dirs").join(chain_id.hex())
    }

    /// Returns the path of an index's file data that is not an aligned run of a tar. Few images have such a file.
    pub(crate) fn side_path(&self, chain_id: &Digest) -> PathBuf {
        self.index_path(chain_id).with_extension("side")
    }

    /// Returns the files that an image's index points into, in the order of its devices: each layer's tar once, then
    /// the side file if there is one.
    pub(crate) fn index_devices(&self, image: &Image) -> Result<Vec<File>, StoreError> {
        let mut devices = Vec::new();
        for (at, diff_id) in image.diff_ids.iter().enumerate() {
            if !image.diff_ids[..at].contains(diff_id) {
                devices.push(match &image.in_place {
                    Some(place) => place.open(&place.layers[at].path)?,
                    None => open(&self.layer_path(diff_id))?,
                });
            }
        }
        let side = self.index_of(image).with_extension("side");
        if exists(&side)? {
            devices.push(open(&side)?);
        }
        Ok(devices)
    }

    /// Opens a file that contains a layer of the image.
    pub(crate) fn open_stretch(&self, image: &Image, stretch: &Stretch) -> Result<File, StoreError> {
        match &image.in_place {
            Some(place) => place.open(&stretch.path),
            None => open(&stretch.path),
        }
    }

    pub(super) fn image_dir(&self, id: &Digest) -> PathBuf {
        self.root.join("images").join(id.hex())
    }

    /// While the guard exists, no image is removed. Hold it from resolving an image until its user is recorded.
    pub(crate) fn hold(&self) -> Result<FileLock, StoreError> {
        let path = self.lock_path();
        FileLock::shared(&path).map_err(StoreError::io("lock", &path))
    }

    pub(super) fn lock_path(&self) -> PathBuf {
        self.root.join("lock")
    }

    pub(super) fn lock(&self) -> Result<FileLock, StoreError> {
        let path = self.lock_path();
        FileLock::exclusive(&path).map_err(StoreError::io("lock", &path))
    }

    /// Whether all layers of the image are in the store, even if it runs from an archive.
    pub(crate) fn has_layers(&self, image: &Image) -> Result<bool, StoreError> {
        self.are_stored(&image.diff_ids)
    }

    pub(super) fn are_stored(&self, diff_ids: &[Digest]) -> Result<bool, StoreError> {
        for diff_id in diff_ids {
            if !exists(&self.layer_path(diff_id))? {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Returns the image's config and manifest, verbatim.
    pub(crate) fn documents(&self, image: &Image) -> Result<(Vec<u8>, Option<Vec<u8>>), StoreError> {
        let dir = self.documents_dir(image);
        let path = dir.join("config.json");
        let config = fs::read(&path).map_err(StoreError::io("read", &path))?;
        Ok((config, read_optional(&dir.join("manifest.json"))?))
    }

    /// Returns the merged tree of an image, read from its layers' headers.
    pub(crate) fn tree(&self, image: &Image) -> Result<Tree, StoreError> {
        let layers = scan_layers(&self.stretches(image)?, |stretch| self.open_stretch(image, stretch))?;
        tree_of_layers(&image.diff_ids, layers)
    }

    /// Returns the merged tree, and the files that it points into, in its order.
    pub(crate) fn tree_and_sources(&self, image: &Image) -> Result<(Tree, Vec<File>), StoreError> {
        let tree = self.tree(image)?;
        let stretches = self.stretches(image)?;
        let place = |wanted: &Digest| stretches.iter().find(|(diff_id, _)| diff_id == wanted);
        let open = |(_, stretch): &(Digest, Stretch)| self.open_stretch(image, stretch);
        let sources = tree.sources.iter().filter_map(place).map(open).collect::<Result<_, _>>()?;
        Ok((tree, sources))
    }

    /// Opens the tars that a tree points into, in its order, as [`crate::layer::directory::render`] requires.
    pub(crate) fn open_sources(&self, tree: &Tree) -> Result<Vec<File>, StoreError> {
        tree.sources.iter().map(|diff_id| open(&self.layer_path(diff_id))).collect()
    }
}

/// Whether this is the line of another layout. Otherwise the file is damaged.
pub(super) fn is_other_format(text: &str) -> bool {
    let number = text.split(' ').nth(2).and_then(|number| number.parse().ok());
    number.is_some_and(|number: u32| format!("gpurun store {number}\n") != FORMAT && text == format_line(number))
}

/// Returns the line of the layout `number`, for 2 and higher. It contains the first digits of its own digest.
pub(super) fn format_line(number: u32) -> String {
    let line = format!("gpurun store {number}");
    format!("{line} {}\n", &digest_of(line.as_bytes()).hex()[..8])
}
