//! Images that are made here: new layers written as tars, a config around them, and everything into the store as a load does it.

use std::fs::{self, File};
use std::io::{self, BufWriter, Read, Write};
use std::path::PathBuf;
use std::rc::Rc;

use nix::fcntl::OFlag;
use nix::sys::stat::Mode;
use sha2::{Digest as _, Sha256};

use super::load::{Layers, create};
use super::{IngestError, Pins, Stretch, ingest};
use super::{Staging, Store, StoreError, is_there, merge_layers, scan_layers};
use crate::image::{DocumentError, ImageConfig, ImageDocument, digest_of};
use crate::layer::{Tree, merge};
use crate::names::{Digest, Reference};
use crate::transport::SourceImage;

/// How much is handed to the disk at a time while the rest is still being written.
const WRITEBACK: u64 = 16 << 20;

/// An image under construction; what it wrote is gone with it, unless it was committed.
#[derive(Debug)]
pub struct Draft<'a> {
    store: &'a Store,
    staging: Staging,
    files: u32,
    pins: Option<Rc<Pins<'a>>>,
}

/// A new layer's tar stream on its way to the disk.
#[derive(Debug)]
pub struct LayerFile {
    out: BufWriter<Hashed>,
    path: PathBuf,
}

#[derive(Debug)]
struct Hashed {
    file: File,
    hash: Sha256,
    size: u64,
    told: u64,
}

impl Write for Hashed {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.file.write(bytes)?;
        self.hash.update(&bytes[..written]);
        self.size += written as u64;
        if self.size - self.told >= WRITEBACK {
            crate::sys::file::start_writeback(&self.file, self.told, self.size - self.told);
            self.told = self.size;
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
    /// A place to make an image in.
    pub fn draft(&self) -> Result<Draft<'_>, StoreError> {
        Draft::new(self, None)
    }
}

impl<'a> Draft<'a> {
    pub(super) fn new(store: &'a Store, pins: Option<Rc<Pins<'a>>>) -> Result<Self, StoreError> {
        Ok(Self { store, staging: Staging::new(store)?, files: 0, pins })
    }

    /// A file for a new layer's tar.
    pub fn layer(&mut self) -> Result<LayerFile, StoreError> {
        let path = self.staging.path().join(format!("layer.{}", self.files));
        self.files += 1;
        let file = create(&path).map_err(StoreError::io("create", &path))?;
        let hashed = Hashed { file, hash: Sha256::new(), size: 0, told: 0 };
        Ok(LayerFile { out: BufWriter::with_capacity(256 << 10, hashed), path })
    }

    /// The layer is written: its diff id.
    pub fn seal(&mut self, layer: LayerFile) -> Result<Digest, StoreError> {
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

    /// Puts the image into the store: all of it, or nothing. Its layers are this draft's, or the store's already.
    ///
    /// An `intermediate` image stands in nobody's list: a step of a build, kept for the next one.
    pub fn commit(
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
        };
        let mut layers = self.layers(&document.diff_ids)?;
        self.store.prepare(&image, &mut layers, true, intermediate, &self.staging)?;
        self.store.commit(&[image], &self.staging)?;
        Ok(id)
    }

    /// Sizes and entries of the layers, those of the store pinned by a link.
    fn layers(&self, diff_ids: &[Digest]) -> Result<Layers, StoreError> {
        let mut paths: Vec<(Digest, Stretch)> = Vec::new();
        for diff_id in diff_ids {
            if paths.iter().any(|(known, _)| known == diff_id) {
                continue;
            }
            let path = self.tar(diff_id);
            if !is_there(&path)? {
                let pinned = self.pins.as_ref().map(|pins| pins.find(diff_id)).transpose()?.flatten();
                let stored = pinned.unwrap_or_else(|| self.store.layer_path(diff_id));
                fs::hard_link(&stored, &path).map_err(StoreError::io("link", &stored))?;
            }
            paths.push((*diff_id, Stretch::whole(path)?));
        }
        let mut layers = Layers::new();
        for ((diff_id, stretch), entries) in paths.iter().zip(scan_layers(&paths, Stretch::open)?) {
            layers.insert(*diff_id, (stretch.len, entries));
        }
        Ok(layers)
    }

    fn tar(&self, diff_id: &Digest) -> PathBuf {
        self.staging.path().join(format!("{}.tar", diff_id.hex()))
    }
}

impl Draft<'_> {
    /// A directory for whatever is needed on the way; gone with the draft.
    pub fn scratch(&mut self) -> Result<PathBuf, StoreError> {
        let path = self.staging.path().join(format!("scratch.{}", self.files));
        self.files += 1;
        super::make_dir(&path, 0o755)?;
        Ok(path)
    }
}

/// The merged tree of layers that lie where `path` says.
pub(super) fn tree(diff_ids: &[Digest], path: &dyn Fn(&Digest) -> PathBuf) -> Result<(Tree, Vec<File>), StoreError> {
    let stretch = |diff_id: &Digest| Ok((*diff_id, Stretch::whole(path(diff_id))?));
    let stretches = diff_ids.iter().map(stretch).collect::<Result<Vec<_>, StoreError>>()?;
    let layers = scan_layers(&stretches, Stretch::open)?;
    let tree = merge_layers(diff_ids.iter().copied().zip(layers))?;
    let sources = tree.sources.iter().map(|diff_id| super::open(&path(diff_id))).collect::<Result<_, _>>()?;
    Ok((tree, sources))
}

impl Store {
    /// The merged tree of a stack of layers, and the tars that it points into.
    pub fn tree_of(&self, diff_ids: &[Digest]) -> Result<(Tree, Vec<File>), StoreError> {
        tree(diff_ids, &|diff_id| self.layer_path(diff_id))
    }

    /// Whether a layer on top of these is whole and there: its tar, and the index that some image of the chain needs.
    pub fn has_chain(&self, diff_ids: &[Digest]) -> Result<bool, StoreError> {
        Ok(self.are_there(diff_ids)? && is_there(&self.index_path(&merge::chain_id(diff_ids)))?)
    }

    /// A file without a name, for what a build fetches or unpacks.
    pub fn nameless_file(&self) -> Result<File, StoreError> {
        let tmp = self.root.join("tmp");
        let flags = OFlag::O_TMPFILE | OFlag::O_RDWR | OFlag::O_CLOEXEC;
        let fd = nix::fcntl::open(&tmp, flags, Mode::from_bits_truncate(0o600));
        fd.map(File::from).map_err(|errno| StoreError::io("create a file in", &tmp)(errno.into()))
    }

    /// All of a stream in such a file, as long as the disk has room: a bomb ends as a layer's does. Who asked sees the bytes pass.
    pub fn pour(&self, mut input: impl Read, mut passing: impl FnMut(&[u8])) -> Result<File, IngestError> {
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

    /// Gives an image one more name, which then means nothing else.
    pub fn tag(&self, id: &Digest, name: &Reference) -> Result<(), StoreError> {
        let _lock = self.lock()?;
        // Removed since it was found.
        let dir = self.image_dir(id);
        dir.metadata().map_err(StoreError::io("find", &dir))?;
        let mut names = self.names()?;
        names.set(name, id);
        self.write_names(&names)
    }
}
