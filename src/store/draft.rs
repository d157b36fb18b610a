//! Images created on this host: new layers written as tars, a config for them, and a commit to the store as for a load.

use std::fs::{self, File};
use std::io::{self, BufWriter, Read, Write};
use std::path::PathBuf;
use std::rc::Rc;

use nix::fcntl::OFlag;
use nix::sys::stat::Mode;
use sha2::{Digest as _, Sha256};

use super::files::exists;
use super::load::{Layers, create};
use super::scan::scan_layers;
use super::scan::tree;
use super::staging::Staging;
use super::{IngestError, Pins, Stretch, ingest};
use super::{Store, StoreError};
use crate::image::{DocumentError, ImageConfig, ImageDocument, digest_of};
use crate::layer::{Tree, merge};
use crate::names::{Digest, Reference};
use crate::transport::SourceImage;

/// How many bytes are passed to the disk at a time while the rest is still being written.
const WRITEBACK: u64 = 16 << 20;

/// An image under construction. Unless it is committed, everything it wrote is removed with it.
#[derive(Debug)]
pub(crate) struct Draft<'a> {
    store: &'a Store,
    staging: Staging,
    files: u32,
    pins: Option<Rc<Pins<'a>>>,
}

/// The tar stream of a new layer, while it is written to disk.
#[derive(Debug)]
pub(crate) struct LayerFile {
    out: BufWriter<Hashed>,
    path: PathBuf,
}

#[derive(Debug)]
struct Hashed {
    file: File,
    hash: Sha256,
    size: u64,
    written_back: u64,
}

impl Write for Hashed {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.file.write(bytes)?;
        self.hash.update(&bytes[..written]);
        self.size += written as u64;
        if self.size - self.written_back >= WRITEBACK {
            crate::sys::file::start_writeback(&self.file, self.written_back, self.size - self.written_back);
            self.written_back = self.size;
        }
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

impl Write for LayerFile {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.out.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}

impl Store {
    /// Creates a draft of an image.
    pub(crate) fn draft(&self) -> Result<Draft<'_>, StoreError> {
        Draft::new(self, None)
    }
}

impl<'a> Pins<'a> {
    /// Creates a draft of an image on top of the pinned layers. The draft's layers are pinned too.
    pub(crate) fn draft(self: &Rc<Self>) -> Result<Draft<'a>, StoreError> {
        Draft::new(self.store, Some(self.clone()))
    }
}

impl<'a> Draft<'a> {
    fn new(store: &'a Store, pins: Option<Rc<Pins<'a>>>) -> Result<Self, StoreError> {
        Ok(Self { store, staging: Staging::new(store)?, files: 0, pins })
    }

    /// Creates a file for the tar of a new layer.
    pub(crate) fn layer(&mut self) -> Result<LayerFile, StoreError> {
        let path = self.staging.path().join(format!("layer.{}", self.files));
        self.files += 1;
        let file = create(&path).map_err(StoreError::io("create", &path))?;
        let hashed = Hashed { file, hash: Sha256::new(), size: 0, written_back: 0 };
        Ok(LayerFile { out: BufWriter::with_capacity(256 << 10, hashed), path })
    }

    /// Completes a layer, and returns its diff ID.
    pub(crate) fn seal(&mut self, layer: LayerFile) -> Result<Digest, StoreError> {
        let failed = |cause| StoreError::io("write", &layer.path)(cause);
        let hashed = layer.out.into_inner().map_err(|error| failed(error.into_error()))?;
        hashed.file.sync_all().map_err(failed)?;
        let diff_id = Digest(hashed.hash.finalize().into());
        let to = self.tar(&diff_id);
        fs::rename(&layer.path, &to).map_err(StoreError::io("create", &to))?;
        if let Some(pins) = &self.pins {
            pins.add(&diff_id, &to)?;
        }
        Ok(diff_id)
    }

    /// Commits the image to the store: all of it, or nothing. Each of its layers is either from this draft or already
    /// in the store.
    ///
    /// An `intermediate` image is not listed. It is a step of a build, kept for the next build.
    pub(crate) fn commit(
        &mut self,
        document: &ImageDocument,
        names: &[Reference],
        intermediate: bool,
    ) -> Result<Digest, StoreError> {
        let config_bytes = document.bytes();
        let id = digest_of(&config_bytes);
        let damaged = |cause: DocumentError| StoreError::Damaged { id: id.to_string(), cause };
        let image = SourceImage {
            tags: Vec::new(),
            id,
            names: names.to_vec(),
            config: ImageConfig::parse(&config_bytes).map_err(damaged)?,
            config_bytes,
            manifest_bytes: None,
            layers: Vec::new(),
            repo_digests: Vec::new(),
        };
        let mut layers = self.layers(&document.diff_ids)?;
        self.store.prepare(&image, &mut layers, true, intermediate, &self.staging)?;
        self.store.commit(&[image], &self.staging)?;
        Ok(id)
    }

    /// Returns the sizes and entries of the layers. Pins those of the store with a link.
    fn layers(&self, diff_ids: &[Digest]) -> Result<Layers, StoreError> {
        let mut paths: Vec<(Digest, Stretch)> = Vec::new();
        for diff_id in diff_ids {
            if paths.iter().any(|(known, _)| known == diff_id) {
                continue;
            }
            let path = self.tar(diff_id);
            if !exists(&path)? {
                let pinned = self.pins.as_ref().map(|pins| pins.find(diff_id)).transpose()?.flatten();
                let stored = pinned.unwrap_or_else(|| self.store.layer_path(diff_id));
                fs::hard_link(&stored, &path).map_err(StoreError::io("link", &stored))?;
            }
            paths.push((*diff_id, Stretch::whole(path)?));
        }
        let mut layers = Layers::new(scan_layers(&paths, Stretch::open)?);
        layers.sizes.extend(paths.iter().map(|(diff_id, stretch)| (*diff_id, stretch.len)));
        Ok(layers)
    }

    fn tar(&self, diff_id: &Digest) -> PathBuf {
        self.staging.path().join(format!("{}.tar", diff_id.hex()))
    }
}

impl Draft<'_> {
    /// Creates a directory for temporary files. It is removed with the draft.
    pub(crate) fn scratch(&mut self) -> Result<PathBuf, StoreError> {
        let path = self.staging.path().join(format!("scratch.{}", self.files));
        self.files += 1;
        super::files::make_dir(&path, 0o755)?;
        Ok(path)
    }
}

impl Store {
    /// Returns the merged tree of a stack of layers, and the tars that it points into.
    pub(crate) fn tree_of(&self, diff_ids: &[Digest]) -> Result<(Tree, Vec<File>), StoreError> {
        tree(diff_ids, &|diff_id| self.layer_path(diff_id))
    }

    /// Whether this stack of layers is complete: the tars, and the index that an image of the chain requires.
    pub(crate) fn has_chain(&self, diff_ids: &[Digest]) -> Result<bool, StoreError> {
        Ok(self.are_stored(diff_ids)? && exists(&self.index_path(&merge::chain_id(diff_ids)))?)
    }

    /// Creates an unnamed file, for data that a build fetches or unpacks.
    pub(crate) fn nameless_file(&self) -> Result<File, StoreError> {
        let tmp = self.root.join("tmp");
        let flags = OFlag::O_TMPFILE | OFlag::O_RDWR | OFlag::O_CLOEXEC;
        let fd = nix::fcntl::open(&tmp, flags, Mode::from_bits_truncate(0o600));
        fd.map(File::from).map_err(|errno| StoreError::io("create a file in", &tmp)(errno.into()))
    }

    /// Copies a stream to such a file while the disk has enough free space, which is checked as for a layer. `passing`
    /// receives the bytes.
    pub(crate) fn pour(&self, mut input: impl Read, mut passing: impl FnMut(&[u8])) -> Result<File, IngestError> {
        let mut file = self.nameless_file().map_err(|error| IngestError::Write(io::Error::other(error)))?;
        let mut buffer = vec![0; 256 << 10];
        let mut unchecked = ingest::SPACE_CHECK;
        loop {
            let got = match input.read(&mut buffer) {
                Ok(0) => return Ok(file),
                Ok(got) => got,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(IngestError::Unpack(error)),
            };
            if unchecked >= ingest::SPACE_CHECK {
                ingest::check_space(&file)?;
                unchecked = 0;
            }
            unchecked += got as u64;
            passing(&buffer[..got]);
            file.write_all(&buffer[..got]).map_err(IngestError::Write)?;
        }
    }

    /// Adds a name to an image. The name no longer refers to any other image.
    pub(crate) fn tag(&self, id: &Digest, name: &Reference) -> Result<(), StoreError> {
        let _lock = self.lock()?;
        // The image may have been removed since it was found.
        let dir = self.image_dir(id);
        dir.metadata().map_err(StoreError::io("find", &dir))?;
        let mut names = self.names()?;
        names.set(name, id);
        self.write_names(&names)
    }

    /// Removes names, and keeps the images.
    pub(crate) fn untag(&self, references: &[Reference]) -> Result<(), StoreError> {
        let _lock = self.lock()?;
        let mut names = self.names()?;
        references.iter().for_each(|reference| names.remove(reference));
        self.write_names(&names)
    }
}
