//! Images that run straight from an archive: the index points into the archive itself, and no layer is copied.
//!
//! ```text
//! <root>/archives/<id>/config.json, manifest.json, image.json    as in images/<id>
//! <root>/archives/<id>/place.json                                where in which files the layers lie, and how those files looked
//! <root>/archives/<id>/<chain id>.erofs, .side                   the index
//! ```
//!
//! A docker-archive's uncompressed layers lie at multiples of 512, an OCI layout's in files of their own: what an index can point into.
//! Such an image has no name and is in nobody's list; containers know it by its id. Its files are read once, for their digests (unless that
//! is declined), and recognised by inode, size and times after that; a file that looks otherwise is not used. A path may mean another file
//! from one moment to the next, so every use opens it, looks at what it opened, and goes on with that descriptor, down to the kernel's
//! mount. Somebody who writes into an archive while a container runs from it changes what the container reads: as with a bind mount.
//!
//! Its mount and its drawn directory have names of their own ([`Store::mount_name`]): what an unchecked archive holds must not be taken for
//! the loaded image of the same layers.

use std::fs::{self, File};
use std::io::{self, Read};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use super::ingest::IngestError;
use super::load::{LoadError, LoadOptions, Progress, write_documents, write_index};
use super::{Image, Staging, Store, StoreError, make_dir, merge_layers, names};
use crate::durable;
use crate::image::{Compression, digest_of};
use crate::layer::{Entry, merge, tar};
use crate::names::Digest;
use crate::transport::{self, Source, SourceError, SourceImage};

/// Where a layer's tar stream lies.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stretch {
    pub path: PathBuf,
    pub start: u64,
    pub len: u64,
}

/// `place.json`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct InPlace {
    /// Where it was run from, as a person would find it.
    pub archive: PathBuf,
    /// Per layer, lowest first.
    pub layers: Vec<Stretch>,
    files: Vec<Stamp>,
    /// Whether the layers had the digests that the image says.
    checked: bool,
    /// The digest of it all without it: what is damaged here is no change of the archive. (One without it comes from an older gpurun.)
    #[serde(default, skip_serializing_if = "Option::is_none")]
    check: Option<String>,
}

/// How a file looked.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Stamp {
    path: PathBuf,
    device: u64,
    inode: u64,
    len: u64,
    /// Seconds and nanoseconds of the last change, of its data and of anything.
    times: [i64; 4],
}

impl Stamp {
    fn of(path: &Path, file: &File) -> io::Result<Self> {
        Ok(Self::from(path, &file.metadata()?))
    }

    fn from(path: &Path, meta: &fs::Metadata) -> Self {
        Self {
            path: path.into(),
            device: meta.dev(),
            inode: meta.ino(),
            len: meta.len(),
            times: [meta.mtime(), meta.mtime_nsec(), meta.ctime(), meta.ctime_nsec()],
        }
    }
}

impl InPlace {
    /// As it is written to `path`.
    fn to_bytes(&self, path: &Path) -> Result<Vec<u8>, StoreError> {
        let place = Self { check: Some(self.check(path)?), ..self.clone() };
        serde_json::to_vec_pretty(&place).map_err(|cause| StoreError::Json { path: path.into(), cause })
    }

    fn parse(bytes: &[u8], path: &Path) -> Result<Self, StoreError> {
        let mut place: Self =
            serde_json::from_slice(bytes).map_err(|cause| StoreError::Json { path: path.into(), cause })?;
        match place.check.take() {
            Some(check) if check != place.check(path)? => Err(StoreError::Altered { path: path.into() }),
            _ => Ok(place),
        }
    }

    fn check(&self, path: &Path) -> Result<String, StoreError> {
        let plain = Self { check: None, ..self.clone() };
        let bytes = serde_json::to_vec(&plain).map_err(|cause| StoreError::Json { path: path.into(), cause })?;
        Ok(digest_of(&bytes).to_string())
    }

    /// Distinguishes this archive, as it is now, from others with the same image.
    fn key(&self) -> String {
        let hash = Sha256::digest(format!("{:?}{:?}{}", self.layers, self.files, self.checked));
        hex::encode(&hash[..8])
    }

    fn unchanged(&self) -> bool {
        self.files.iter().all(|stamp| stamp.path.metadata().is_ok_and(|now| Stamp::from(&stamp.path, &now) == *stamp))
    }

    /// Whether an open file is the one that was looked at, and as it was then.
    fn knows(&self, path: &Path, file: &File) -> io::Result<bool> {
        Ok(self.files.contains(&Stamp::of(path, file)?))
    }

    /// Opens one of its files, if that still is the one that was looked at.
    pub(super) fn open(&self, path: &Path) -> Result<File, StoreError> {
        let file = super::open(path)?;
        match self.knows(path, &file).map_err(StoreError::io("read", path))? {
            true => Ok(file),
            false => Err(StoreError::Archive { path: self.archive.clone() }),
        }
    }
}

impl Store {
    pub(super) fn archive_dir(&self, id: &Digest) -> PathBuf {
        self.root.join("archives").join(id.hex())
    }

    /// Where an image's config, manifest and record lie.
    pub(super) fn documents_dir(&self, image: &Image) -> PathBuf {
        if image.in_place.is_some() { self.archive_dir(&image.id) } else { self.image_dir(&image.id) }
    }

    /// The image of a container: of the store, or one that runs from an archive.
    pub fn image_of(&self, id: &str) -> Result<Image, super::ResolveError> {
        let failed = |cause| super::ResolveError::Store { name: id.into(), cause };
        match (self.resolve(id), id.parse::<Digest>()) {
            (Err(super::ResolveError::NotFound { name, known }), Ok(digest)) => {
                match self.image_in_place(digest).map_err(failed)? {
                    Some(image) => Ok(image),
                    None => Err(super::ResolveError::NotFound { name, known }),
                }
            }
            (resolved, _) => resolved,
        }
    }

    pub(super) fn image_in_place(&self, id: Digest) -> Result<Option<Image>, StoreError> {
        let dir = self.archive_dir(&id);
        let Some(mut image) = self.image_in(&dir, id, &names::Names::default())? else { return Ok(None) };
        let path = dir.join("place.json");
        let Some(bytes) = super::read_if_there(&path)? else { return Ok(None) };
        let place = InPlace::parse(&bytes, &path)?;
        if !place.unchanged() {
            return Err(StoreError::Archive { path: place.archive });
        }
        image.in_place = Some(place);
        Ok(Some(image))
    }

    /// Makes an image ready to run straight from where it lies; `None` where that cannot be (a packed archive or layer, a pipe, a registry,
    /// more than one image): then it must be loaded. `check`: read it all for its digests, unless that was done.
    pub fn open_in_place(
        &self,
        source: &Source,
        options: &LoadOptions,
        check: bool,
        progress: &dyn Progress,
    ) -> Result<Option<Image>, LoadError> {
        let Source::Path { path, pick } = source else { return Ok(None) };
        let failed = |cause| LoadError::Source { action: "run", origin: source.to_string(), cause: Box::new(cause) };
        let unreadable = |cause| failed(SourceError::Read { path: path.clone(), cause });
        let archive = path.canonicalize().map_err(unreadable)?;
        let Some(image) = find(&archive, pick.as_deref(), options).map_err(failed)? else { return Ok(None) };
        if let Some(loaded) = self.image(image.id, &self.names()?)?
            && self.has_layers(&loaded)?
        {
            return Ok(Some(loaded));
        }
        let Some(mut place) = place(&archive, &image).map_err(unreadable)? else { return Ok(None) };
        if let Ok(Some(known)) = self.image_in_place(image.id)
            && let Some(known_place) = &known.in_place
            && (known_place.layers == place.layers && (known_place.checked || !check))
        {
            return Ok(Some(known));
        }
        place.checked = check;
        let entries = look(&image, &place, check, progress)?;
        self.keep_in_place(&image, &place, entries)
            .map_err(|cause| LoadError::Image { image: archive.display().to_string(), cause })?;
        Ok(self.image_in_place(image.id)?)
    }

    /// Writes all that is to know of it, whole or not at all.
    fn keep_in_place(&self, image: &SourceImage, place: &InPlace, entries: Vec<Vec<Entry>>) -> Result<(), StoreError> {
        let staging = Staging::new(self)?;
        let tree = merge_layers(image.config.diff_ids.iter().copied().zip(entries))?;
        let chain_id = merge::chain_id(&image.config.diff_ids);
        let open = |diff_id: &Digest| {
            let at = image.config.diff_ids.iter().position(|one| one == diff_id).unwrap_or(0);
            place.open(&place.layers[at].path)
        };
        write_index(&tree, &chain_id, open, &staging)?;
        let sizes = place.layers.iter().map(|stretch| stretch.len).collect();
        let dir = write_documents(image, sizes, false, &staging)?;
        let path = dir.join("place.json");
        let bytes = place.to_bytes(&path)?;
        super::load::write_synced(&path, &bytes).map_err(StoreError::io("write", &path))?;
        for suffix in ["erofs", "side"] {
            let name = format!("{}.{suffix}", chain_id.hex());
            match fs::rename(staging.path().join(&name), dir.join(&name)) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    return Err(StoreError::io("create", &dir.join(&name))(error));
                }
                _ => {}
            }
        }
        durable::sync_dir(&dir).map_err(StoreError::io("sync", &dir))?;
        let _lock = self.lock()?;
        make_dir(&self.root.join("archives"), 0o700)?;
        let target = self.archive_dir(&image.id);
        // One that was there goes with the workplace; who has it mounted keeps it.
        match fs::rename(&target, staging.path().join("before")) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(StoreError::io("replace", &target)(error));
            }
            _ => {}
        }
        fs::rename(&dir, &target).map_err(StoreError::io("create", &target))?;
        self.sync("archives")
    }

    /// Of all archives that something ran from and that were not forgotten since.
    pub(super) fn archive_ids(&self) -> Result<Vec<Digest>, StoreError> {
        let dir = self.root.join("archives");
        let entries = match fs::read_dir(&dir) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            entries => entries.map_err(StoreError::io("read", &dir))?,
        };
        let mut ids = Vec::new();
        for entry in entries {
            let entry = entry.map_err(StoreError::io("read", &dir))?;
            ids.extend(entry.file_name().to_str().and_then(super::parse_hex));
        }
        ids.sort();
        Ok(ids)
    }

    /// Forgets the archives that no container runs from; under the lock, taken alone.
    pub(super) fn forget_archives(&self, in_use: &dyn Fn(&Digest) -> bool) -> Result<(), StoreError> {
        let (mut kept, mut all_known) = (Vec::new(), true);
        for id in self.archive_ids()? {
            let path = self.archive_dir(&id);
            if !in_use(&id) {
                fs::remove_dir_all(&path).map_err(StoreError::io("remove", &path))?;
                continue;
            }
            match self.image_in(&path, id, &names::Names::default()) {
                Ok(Some(image)) => kept.push(image.chain_id),
                // For `verify` to tell.
                _ => all_known = false,
            }
        }
        if all_known { self.undraw_archives(&kept) } else { Ok(()) }
    }

    /// Removes the drawn trees of all archives but those with these chains: of an archive that was changed since, a container may still run
    /// from the tree that was drawn before.
    fn undraw_archives(&self, kept: &[Digest]) -> Result<(), StoreError> {
        let dir = self.root.join("dirs");
        for entry in fs::read_dir(&dir).map_err(StoreError::io("read", &dir))? {
            let path = entry.map_err(StoreError::io("read", &dir))?.path();
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            let chain = name.split_once('-').and_then(|(chain, _)| super::parse_hex(chain));
            if chain.is_some_and(|chain| !kept.contains(&chain)) {
                super::staging::remove(&path)?;
            }
        }
        Ok(())
    }

    /// What to call an image's mount and its drawn directory.
    pub fn mount_name(&self, image: &Image) -> String {
        let chain = image.chain_id.hex();
        image.in_place.as_ref().map_or(chain.clone(), |place| format!("{chain}-{}", place.key()))
    }

    /// Where an image's tree is drawn as plain files (whether or not it is there).
    pub fn drawn_path(&self, image: &Image) -> PathBuf {
        self.root.join("dirs").join(self.mount_name(image))
    }

    /// Where an image's index lies.
    pub fn index_of(&self, image: &Image) -> PathBuf {
        match image.in_place {
            Some(_) => self.archive_dir(&image.id).join(format!("{}.erofs", image.chain_id.hex())),
            None => self.index_path(&image.chain_id),
        }
    }

    /// Where an image's layers lie, lowest first.
    pub fn stretches(&self, image: &Image) -> Result<Vec<(Digest, Stretch)>, StoreError> {
        if let Some(place) = &image.in_place {
            return Ok(image.diff_ids.iter().copied().zip(place.layers.iter().cloned()).collect());
        }
        let stretch = |diff_id: &Digest| Ok((*diff_id, Stretch::whole(self.layer_path(diff_id))?));
        image.diff_ids.iter().map(stretch).collect()
    }
}

impl Stretch {
    pub(super) fn open(&self) -> Result<File, StoreError> {
        super::open(&self.path)
    }

    /// All of a file.
    pub(super) fn whole(path: PathBuf) -> Result<Self, StoreError> {
        let len = path.metadata().map_err(StoreError::io("read", &path))?.len();
        Ok(Self { path, start: 0, len })
    }

    /// The entries of the layer, with the places of their data in the file.
    pub fn scan(&self, file: &File) -> Result<Vec<Entry>, tar::ScanError> {
        let mut entries = tar::scan_file(file, self.start, self.len)?;
        entries.iter_mut().for_each(|entry| entry.shift(self.start));
        Ok(entries)
    }
}

/// The one image of a file or directory that can be used as it lies.
fn find(archive: &Path, pick: Option<&str>, options: &LoadOptions) -> Result<Option<SourceImage>, SourceError> {
    let unreadable = |cause| SourceError::Read { path: archive.into(), cause };
    let images = if archive.metadata().map_err(unreadable)?.is_dir() {
        transport::open_directory(archive, &options.platform)?
    } else {
        let file = File::open(archive).map_err(unreadable)?;
        let mut first = [0; 4];
        if !file.metadata().map_err(unreadable)?.is_file() {
            return Ok(None);
        }
        let got = file.read_at(&mut first, 0).map_err(unreadable)?;
        if Compression::sniff(&first[..got]) != Compression::None {
            return Ok(None);
        }
        transport::open_archive(file, archive, &options.platform)?
    };
    let mut images = match pick {
        Some(pick) => transport::pick(images, pick, archive)?,
        None => images,
    };
    Ok(if images.len() == 1 { images.pop() } else { None })
}

/// Where the layers lie, if all of them lie plain.
fn place(archive: &Path, image: &SourceImage) -> io::Result<Option<InPlace>> {
    let (mut layers, mut files) = (Vec::new(), Vec::new());
    for layer in &image.layers {
        let Some((path, start)) = layer.blob.stretch(archive) else { return Ok(None) };
        let mut first = [0; 4];
        let mut got = 0;
        let mut reader = layer.blob.open()?;
        if !files.iter().any(|stamp: &Stamp| stamp.path == path) {
            let Some(file) = reader.file() else { return Ok(None) };
            files.push(Stamp::of(&path, file)?);
        }
        while got < first.len().min(layer.blob.len as usize) {
            got += reader.read(&mut first[got..])?;
        }
        if start % 512 != 0 || Compression::sniff(&first[..got]) != Compression::None {
            return Ok(None);
        }
        layers.push(Stretch { path, start, len: layer.blob.len });
    }
    Ok(Some(InPlace { archive: archive.into(), layers, files, checked: false, check: None }))
}

/// The entries of all layers, two layers at a time; with `check`, their digests are what the image says.
fn look(
    image: &SourceImage,
    place: &InPlace,
    check: bool,
    progress: &dyn Progress,
) -> Result<Vec<Vec<Entry>>, LoadError> {
    let told = |at: usize| (image.layers[at].diff_id, image.layers[at].blob.len);
    if check {
        progress.start(&(0..image.layers.len()).map(told).collect::<Vec<_>>());
    }
    let next = AtomicUsize::new(0);
    let stop = AtomicBool::new(false);
    let found = Mutex::new(vec![None; image.layers.len()]);
    let first_error = Mutex::new(None);
    let work = || {
        loop {
            let at = next.fetch_add(1, Ordering::Relaxed);
            if at >= image.layers.len() || stop.load(Ordering::Relaxed) {
                return;
            }
            match look_at(at, image, place, check, progress) {
                Ok(entries) => found.lock().unwrap_or_else(PoisonError::into_inner)[at] = Some(entries),
                Err(cause) => {
                    stop.store(true, Ordering::Relaxed);
                    let error = LoadError::Layer { layer: image.layers[at].diff_id, cause };
                    first_error.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(error);
                }
            }
            progress.done(at);
        }
    };
    std::thread::scope(|scope| {
        scope.spawn(work);
        work();
    });
    progress.finish();
    match first_error.into_inner().unwrap_or_else(PoisonError::into_inner) {
        Some(error) => Err(error),
        None => Ok(found.into_inner().unwrap_or_else(PoisonError::into_inner).into_iter().flatten().collect()),
    }
}

fn look_at(
    at: usize,
    image: &SourceImage,
    place: &InPlace,
    check: bool,
    progress: &dyn Progress,
) -> Result<Vec<Entry>, IngestError> {
    let (stretch, expected) = (&place.layers[at], image.layers[at].diff_id);
    let mut reader = image.layers[at].blob.open().map_err(IngestError::Unpack)?;
    if check {
        let mut buffer = vec![0; 1 << 20];
        let mut hash = Sha256::new();
        loop {
            let got = reader.read(&mut buffer).map_err(IngestError::Unpack)?;
            if got == 0 {
                break;
            }
            hash.update(&buffer[..got]);
            progress.advance(at, got as u64);
        }
        let found = Digest(hash.finalize().into());
        if found != expected {
            return Err(IngestError::DiffId { expected, found });
        }
    }
    let changed = || IngestError::Unpack(io::Error::other("it was changed while it was read"));
    let file = reader.file().ok_or_else(changed)?;
    let entries = stretch.scan(file).map_err(|error| match error {
        tar::ScanError::Read(cause) => IngestError::Unpack(cause),
        tar::ScanError::Tar(cause) => IngestError::Tar(cause),
    })?;
    // Afterwards: what was hashed and scanned is what the stamp, from before, means.
    match place.knows(&stretch.path, file).map_err(IngestError::Unpack)? {
        true => Ok(entries),
        false => Err(changed()),
    }
}

#[cfg(test)]
mod tests;
