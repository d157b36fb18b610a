//! The image store: layers as the exact tars they were, and images as small files that point to them.
//!
//! ```text
//! <root>/format                    which layout this is, see [`FORMAT`]
//! <root>/lock                      flock: alone to commit, remove and sweep; shared while somebody relies on an image staying
//! <root>/names.json                full reference → image id
//! <root>/layers/<diff id>.tar      a layer's tar stream, byte for byte: its sha256 IS its name
//! <root>/images/<id>/config.json   verbatim; its sha256 is the image's id
//! <root>/images/<id>/manifest.json verbatim, when the source had one
//! <root>/images/<id>/image.json    what this store knows besides: chain id, layer sizes, when it came
//! <root>/images/<chain id>.erofs   the merged tree's metadata, file data pointing into the layers (see `layer::erofs`)
//! <root>/images/<chain id>.side    what of an image's file data is no aligned run of a layer's tar (rare)
//! <root>/archives/<id>/             images that run straight from an archive (see `in_place`)
//! <root>/dirs/<chain id>/          the merged tree as plain files, where the index cannot be mounted (made by `rootfs`)
//! <root>/tmp/<random>/             a loader's or a build's workplace; `lock` in it is held by a flock while its owner lives
//! <root>/tmp/removed.<id>/         an image on its way out, until its layers and names are gone too
//! <root>/tmp/names.<pid>           a list of names being written
//! ```
//!
//! Clean-up rule: everything is made in a workplace, synced, and renamed into place under the lock: layers first, then the index, the image
//! directory, the names. So an image that is listed is whole, whenever the power went. What a killed process leaves is its workplace
//! (its lock is free, which proves the death) and perhaps layers that no image names; [`Store::open`] finds the first and then clears
//! both. A loader pins a layer that is already there by a hard link in its workplace, and a build all that it reads, so a removal beside them
//! costs nothing.

mod draft;
mod error;
mod find;
mod in_place;
mod ingest;
mod load;
mod names;
mod pins;
mod push;
mod record;
mod remove;
mod save;
mod staging;
#[cfg(test)]
mod testing;
#[cfg(test)]
mod tests;
mod usage;
mod verify;

use std::fs::{self, DirBuilder, File};
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

pub use crate::transport::Source;
pub use draft::{Draft, LayerFile};
pub use error::{ResolveError, StoreError};
pub use in_place::{InPlace, Stretch};
pub use ingest::IngestError;
pub use load::{LoadError, LoadOptions, Loaded, Progress};
pub use pins::Pins;
pub use push::PushError;
pub use remove::{RemoveError, Removed, User};
pub use save::{Format, SaveError, Sink, ToSave};
pub use usage::Usage;
pub use verify::{Cure, Fault, Verified};

use crate::durable::{self, FileLock};
use crate::image::{Config, digest_of};
use crate::layer::merge::Merger;
use crate::layer::{Entry, Tree};
use crate::names::{Digest, Reference};
use find::{Found, parse_hex};
use record::ImageRecord;
use staging::Staging;

/// The line of this layout. A later layout's line has a check word behind its number, [`format_line`]: without one, a digit that flips in this line
/// would be another version. So every line but this one that has no right word is a damaged one.
const FORMAT: &str = "gpurun store 1\n";

/// An open store.
#[derive(Debug, Clone)]
pub struct Store {
    root: PathBuf,
}

/// An image of the store.
#[derive(Debug, Clone)]
pub struct Image {
    /// The digest of the config.
    pub id: Digest,
    pub names: Vec<Reference>,
    /// What to run, and how.
    pub config: Config,
    pub architecture: String,
    pub os: String,
    /// RFC 3339, as the image says; may be empty.
    pub created: String,
    pub chain_id: Digest,
    /// Lowest layer first.
    pub diff_ids: Vec<Digest>,
    /// Bytes of all its layers' tars.
    pub size: u64,
    /// Of each layer's tar, lowest first.
    pub layer_sizes: Vec<u64>,
    /// Seconds since 1970.
    pub loaded_at: u64,
    /// The digest of the manifest it came with.
    pub manifest_digest: Option<Digest>,
    /// A step of a build: in nobody's list.
    pub intermediate: bool,
    /// Set for one whose layers lie in an archive that it runs from.
    pub in_place: Option<InPlace>,
}

impl Image {
    /// What to call it: its first name, else its short id.
    pub fn label(&self) -> String {
        self.names.first().map_or_else(|| self.short_id(), Reference::familiar)
    }

    pub fn short_id(&self) -> String {
        self.id.hex()[..12].to_string()
    }
}

impl Store {
    /// Opens the store below `root`, making it where there is none, and clears what dead loaders left.
    pub fn open(root: &Path) -> Result<Self, StoreError> {
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

    fn create(&self, format: &Path) -> Result<(), StoreError> {
        // The root can be passed through (volumes and logs live there too), the store's own directories are root's alone.
        make_dir(&self.root, 0o711)?;
        for name in ["layers", "images", "tmp", "dirs"] {
            make_dir(&self.root.join(name), 0o700)?;
        }
        // Under the lock: nobody sweeps the temporary file of a store that begins.
        let _lock = self.lock()?;
        let temp = self.root.join("tmp").join(format!("format.{}", std::process::id()));
        durable::write_atomic_by(&temp, format, FORMAT.as_bytes()).map_err(StoreError::io("write", format))
    }

    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Where a layer's tar lies (whether or not it is there).
    pub fn layer_path(&self, diff_id: &Digest) -> PathBuf {
        self.root.join("layers").join(format!("{}.tar", diff_id.hex()))
    }

    /// Where the index of a chain of layers lies (whether or not it is there).
    pub fn index_path(&self, chain_id: &Digest) -> PathBuf {
        self.root.join("images").join(format!("{}.erofs", chain_id.hex()))
    }

    /// Where a chain's merged tree is drawn as plain files (whether or not it is there).
    pub fn directory_path(&self, chain_id: &Digest) -> PathBuf {
        self.root.join("dirs").join(chain_id.hex())
    }

    /// Where the file data of an index lie that are no aligned run of a tar (there for few images).
    pub fn side_path(&self, chain_id: &Digest) -> PathBuf {
        self.index_path(chain_id).with_extension("side")
    }

    /// The files that an image's index points into, in the order of its devices: each layer's tar once, then the side file if any.
    pub fn index_devices(&self, image: &Image) -> Result<Vec<File>, StoreError> {
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
        if is_there(&side)? {
            devices.push(open(&side)?);
        }
        Ok(devices)
    }

    /// Opens a file in which a layer of the image lies.
    pub fn open_stretch(&self, image: &Image, stretch: &Stretch) -> Result<File, StoreError> {
        match &image.in_place {
            Some(place) => place.open(&stretch.path),
            None => open(&stretch.path),
        }
    }

    fn image_dir(&self, id: &Digest) -> PathBuf {
        self.root.join("images").join(id.hex())
    }

    /// While the guard lives no image is removed: held from resolving an image until its user is on record.
    pub fn hold(&self) -> Result<FileLock, StoreError> {
        let path = self.lock_path();
        FileLock::shared(&path).map_err(StoreError::io("lock", &path))
    }

    fn lock_path(&self) -> PathBuf {
        self.root.join("lock")
    }

    fn lock(&self) -> Result<FileLock, StoreError> {
        let path = self.lock_path();
        FileLock::exclusive(&path).map_err(StoreError::io("lock", &path))
    }

    /// Whether all its layers are in the store, too, if it runs from an archive.
    pub fn has_layers(&self, image: &Image) -> Result<bool, StoreError> {
        self.are_there(&image.diff_ids)
    }

    fn are_there(&self, diff_ids: &[Digest]) -> Result<bool, StoreError> {
        for diff_id in diff_ids {
            if !is_there(&self.layer_path(diff_id))? {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// The image's config and manifest, verbatim.
    pub fn documents(&self, image: &Image) -> Result<(Vec<u8>, Option<Vec<u8>>), StoreError> {
        let dir = self.documents_dir(image);
        let path = dir.join("config.json");
        let config = fs::read(&path).map_err(StoreError::io("read", &path))?;
        Ok((config, read_if_there(&dir.join("manifest.json"))?))
    }

    /// The merged tree of an image, read from its layers' headers.
    pub fn tree(&self, image: &Image) -> Result<Tree, StoreError> {
        let layers = scan_layers(&self.stretches(image)?, |stretch| self.open_stretch(image, stretch))?;
        merge_layers(image.diff_ids.iter().copied().zip(layers))
    }

    /// The same with the files that it points into, in its order.
    pub fn tree_and_sources(&self, image: &Image) -> Result<(Tree, Vec<File>), StoreError> {
        let tree = self.tree(image)?;
        let stretches = self.stretches(image)?;
        let place = |wanted: &Digest| stretches.iter().find(|(diff_id, _)| diff_id == wanted);
        let open = |(_, stretch): &(Digest, Stretch)| self.open_stretch(image, stretch);
        let sources = tree.sources.iter().filter_map(place).map(open).collect::<Result<_, _>>()?;
        Ok((tree, sources))
    }

    /// Opens the tars that a tree points into, in its order: what [`crate::layer::directory::render`] wants.
    pub fn open_sources(&self, tree: &Tree) -> Result<Vec<File>, StoreError> {
        tree.sources.iter().map(|diff_id| open(&self.layer_path(diff_id))).collect()
    }
}

/// Whether it is the line of a gpurun with another layout; else the file is damaged.
fn is_other_format(text: &str) -> bool {
    let number = text.split(' ').nth(2).and_then(|number| number.parse().ok());
    number.is_some_and(|number: u32| format!("gpurun store {number}\n") != FORMAT && text == format_line(number))
}

/// The line of the layout `number`, from 2 on: with the first digits of its own digest.
fn format_line(number: u32) -> String {
    let line = format!("gpurun store {number}");
    format!("{line} {}\n", &digest_of(line.as_bytes()).hex()[..8])
}

fn merge_layers(layers: impl Iterator<Item = (Digest, Vec<Entry>)>) -> Result<Tree, StoreError> {
    let mut merger = Merger::new();
    for (diff_id, entries) in layers {
        merger.apply(diff_id, entries).map_err(StoreError::Merge)?;
    }
    Ok(merger.finish())
}

/// The entries of some tars, two at a time.
fn scan_layers(
    layers: &[(Digest, Stretch)],
    open: impl Fn(&Stretch) -> Result<File, StoreError> + Sync,
) -> Result<Vec<Vec<Entry>>, StoreError> {
    let scan = |(layer, stretch): &(Digest, Stretch)| {
        stretch.scan(&open(stretch)?).map_err(|cause| StoreError::Scan { layer: *layer, cause })
    };
    // Every other layer: neighbours differ in size more than halves do.
    std::thread::scope(|scope| {
        let other = scope.spawn(|| layers.iter().skip(1).step_by(2).map(scan).collect::<Result<Vec<_>, _>>());
        let even = layers.iter().step_by(2).map(scan).collect::<Result<Vec<_>, _>>()?;
        let mut odd = match other.join() {
            Ok(odd) => odd?.into_iter(),
            Err(panic) => std::panic::resume_unwind(panic),
        };
        let mut all = Vec::with_capacity(layers.len());
        for entries in even {
            all.push(entries);
            all.extend(odd.next());
        }
        Ok(all)
    })
}

fn open(path: &Path) -> Result<File, StoreError> {
    File::open(path).map_err(StoreError::io("open", path))
}

fn read_if_there(path: &Path) -> Result<Option<Vec<u8>>, StoreError> {
    match fs::read(path) {
        Ok(bytes) => Ok(Some(bytes)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(cause) => Err(StoreError::io("read", path)(cause)),
    }
}

/// Whether something lies at `path`. A disk that cannot tell is no proof that nothing does: what is taken for absent is made or loaded
/// again, or has its names and layers removed.
fn is_there(path: &Path) -> Result<bool, StoreError> {
    Ok(load::length(path)?.is_some())
}

fn make_dir(path: &Path, mode: u32) -> Result<(), StoreError> {
    DirBuilder::new().recursive(true).mode(mode).create(path).map_err(StoreError::io("create", path))
}
