//! Images that run directly from an archive: the index points into the archive itself, and no layer is copied.
//!
//! ```text
//! <root>/archives/<id>/config.json, manifest.json, image.json    as in images/<id>
//! <root>/archives/<id>/place.json                                positions of the layers, and identity of their files
//! <root>/archives/<id>/<chain id>.erofs, .side                   the index
//! ```
//!
//! The uncompressed layers of a docker-archive are at multiples of 512 bytes, and those of an OCI layout are in
//! separate files, so an index can point into both. Such an image has no name and is not listed; containers refer to it
//! by its id. The archive's files are read once to verify their digests (unless the caller declines), and are
//! identified by inode, size and times after that. A file that has changed is not used. A path may refer to another
//! file at any moment, so every use opens it, checks the open file, and continues with that descriptor, up to the
//! kernel's mount. A process that writes to an archive while a container runs from it changes the container's files, as
//! with a bind mount.
//!
//! The mount and the rendered directory of such an image have names of their own ([`Store::mount_name`]), so that the
//! content of an unverified archive is not mistaken for the loaded image with the same layers.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io::{self, Read};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};

use sha2::{Digest as _, Sha256};

use super::files::make_dir;
use super::ingest::IngestError;
use super::limits::MAX_HEADERS;
use super::load::{LoadError, LoadOptions, write_documents, write_index};
use super::located::{InPlace, Stamp, Stretch};
use super::progress::Progress;
use super::scan::tree_of_layers;
use super::staging::Staging;
use super::{Image, Store, StoreError, names};
use crate::durable;
use crate::image::Compression;
use crate::layer::{Entry, merge, tar};
use crate::names::Digest;
use crate::sys::thread;
use crate::transport::{self, BlobReader, Source, SourceError, SourceImage};

impl Store {
    pub(super) fn archive_dir(&self, id: &Digest) -> PathBuf {
        self.root.join("archives").join(id.hex())
    }

    /// Returns the directory of an image's config, manifest and record.
    pub(super) fn documents_dir(&self, image: &Image) -> PathBuf {
        if image.in_place.is_some() { self.archive_dir(&image.id) } else { self.image_dir(&image.id) }
    }

    /// Returns the image of a container: one of the store, or one that runs from an archive.
    pub(crate) fn image_of(&self, id: Digest) -> Result<Image, super::ResolveError> {
        let name = id.to_string();
        match self.resolve(&name) {
            Err(super::ResolveError::NotFound { name, known }) => match self.image_in_place(id) {
                Ok(Some(image)) => Ok(image),
                Ok(None) => Err(super::ResolveError::NotFound { name, known }),
                Err(cause) => Err(super::ResolveError::Store { name, cause }),
            },
            resolved => resolved,
        }
    }

    pub(super) fn image_in_place(&self, id: Digest) -> Result<Option<Image>, StoreError> {
        let dir = self.archive_dir(&id);
        let Some(mut image) = self.image_in(&dir, id, &names::Names::default())? else { return Ok(None) };
        let path = dir.join("place.json");
        let Some(bytes) = super::files::read_optional(&path)? else { return Ok(None) };
        let located = InPlace::parse(&bytes, &path)?;
        if !located.unchanged() {
            return Err(StoreError::Archive { path: located.archive });
        }
        image.in_place = Some(located);
        Ok(Some(image))
    }

    /// Prepares an image to run directly from its source. Returns `None` if this is not possible and the image must be
    /// loaded: a compressed archive or layer, a pipe, a registry, or more than one image. With `check`, reads all
    /// layers to verify their digests, unless that was done before.
    pub(crate) fn open_in_place(
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
        let Some(mut located) = located(&archive, &image).map_err(unreadable)? else { return Ok(None) };
        if let Ok(Some(known)) = self.image_in_place(image.id)
            && let Some(known_place) = &known.in_place
            && (known_place.layers == located.layers && (known_place.checked || !check))
        {
            return Ok(Some(known));
        }
        located.checked = check;
        let entries = look(&image, &located, check, progress)?;
        self.keep_in_place(&image, &located, entries)
            .map_err(|cause| LoadError::Image { image: archive.display().to_string(), cause })?;
        Ok(self.image_in_place(image.id)?)
    }

    /// Writes the record and documents of such an image, atomically.
    fn keep_in_place(
        &self,
        image: &SourceImage,
        located: &InPlace,
        entries: BTreeMap<Digest, Vec<Entry>>,
    ) -> Result<(), StoreError> {
        let staging = Staging::new(self)?;
        let tree = tree_of_layers(&image.config.diff_ids, entries)?;
        let chain_id = merge::chain_id(&image.config.diff_ids);
        let open = |diff_id: &Digest| {
            let at = image.config.diff_ids.iter().position(|one| one == diff_id).unwrap_or(0);
            located.open(&located.layers[at].path)
        };
        write_index(&tree, &chain_id, open, &staging)?;
        let sizes = located.layers.iter().map(|stretch| stretch.len).collect();
        let dir = write_documents(image, sizes, false, &staging)?;
        let path = dir.join("place.json");
        let bytes = located.to_bytes(&path)?;
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
        // The previous directory is removed with the staging directory. Processes that have its index mounted keep
        // their mount.
        match fs::rename(&target, staging.path().join("before")) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(StoreError::io("replace", &target)(error));
            }
            _ => {}
        }
        fs::rename(&dir, &target).map_err(StoreError::io("create", &target))?;
        self.sync("archives")
    }

    /// Returns the ids of all archives in the store.
    pub(super) fn archive_ids(&self) -> Result<Vec<Digest>, StoreError> {
        let dir = self.root.join("archives");
        let entries = match fs::read_dir(&dir) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            entries => entries.map_err(StoreError::io("read", &dir))?,
        };
        let mut ids = Vec::new();
        for entry in entries {
            let entry = entry.map_err(StoreError::io("read", &dir))?;
            ids.extend(entry.file_name().to_str().and_then(super::find::parse_hex));
        }
        ids.sort();
        Ok(ids)
    }

    /// Removes the records of archives that no container runs from. Requires the exclusive lock.
    pub(super) fn forget_archives(&self, in_use: &dyn Fn(&Digest) -> bool) -> Result<(), StoreError> {
        let (mut kept, mut all_known) = (Vec::new(), true);
        for id in self.archive_ids()? {
            let path = self.archive_dir(&id);
            if !in_use(&id) {
                crate::sys::tree::remove(&path).map_err(StoreError::io("remove", &path))?;
                continue;
            }
            match self.image_in(&path, id, &names::Names::default()) {
                Ok(Some(image)) => kept.push(image.chain_id),
                // `verify` reports it.
                _ => all_known = false,
            }
        }
        if all_known { self.remove_rendered_archives(&kept) } else { Ok(()) }
    }

    /// Removes the rendered trees of all archives except those with these chain IDs. If an archive changed, a container
    /// may still run from the tree that was rendered before.
    fn remove_rendered_archives(&self, kept: &[Digest]) -> Result<(), StoreError> {
        let dir = self.root.join("dirs");
        for entry in fs::read_dir(&dir).map_err(StoreError::io("read", &dir))? {
            let path = entry.map_err(StoreError::io("read", &dir))?.path();
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            let chain = name.split_once('-').and_then(|(chain, _)| super::find::parse_hex(chain));
            if chain.is_some_and(|chain| !kept.contains(&chain)) {
                super::staging::remove(&path)?;
            }
        }
        Ok(())
    }

    /// Returns the name of an image's mount and of its rendered directory.
    pub(crate) fn mount_name(&self, image: &Image) -> String {
        let chain = image.chain_id.hex();
        image.in_place.as_ref().map_or(chain.clone(), |located| format!("{chain}-{}", located.key()))
    }

    /// Returns the path of an image's tree as plain files, whether or not it exists.
    pub(crate) fn rendered_path(&self, image: &Image) -> PathBuf {
        self.root.join("dirs").join(self.mount_name(image))
    }

    /// Returns the path of an image's index.
    pub(crate) fn index_of(&self, image: &Image) -> PathBuf {
        match image.in_place {
            Some(_) => self.archive_dir(&image.id).join(format!("{}.erofs", image.chain_id.hex())),
            None => self.index_path(&image.chain_id),
        }
    }

    /// Returns the positions of an image's layers, lowest first.
    pub(crate) fn stretches(&self, image: &Image) -> Result<Vec<(Digest, Stretch)>, StoreError> {
        if let Some(located) = &image.in_place {
            return Ok(image.diff_ids.iter().copied().zip(located.layers.iter().cloned()).collect());
        }
        let stretch = |diff_id: &Digest| Ok((*diff_id, Stretch::whole(self.layer_path(diff_id))?));
        image.diff_ids.iter().map(stretch).collect()
    }
}

/// Returns the only image of a file or directory, if it can be used in place.
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

/// Returns the positions of the layers, if all of them are uncompressed.
fn located(archive: &Path, image: &SourceImage) -> io::Result<Option<InPlace>> {
    let (mut layers, mut files) = (Vec::new(), Vec::new());
    let mut known: BTreeMap<Digest, Stretch> = BTreeMap::new();
    for layer in &image.layers {
        if let Some(stretch) = known.get(&layer.diff_id) {
            layers.push(stretch.clone());
            continue;
        }
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
        let stretch = Stretch { path, start, len: layer.blob.len };
        known.insert(layer.diff_id, stretch.clone());
        layers.push(stretch);
    }
    Ok(Some(InPlace { archive: archive.into(), layers, files, checked: false, check: None }))
}

/// Returns the entries of all layers, and reads two layers at a time. With `check`, verifies their digests against the
/// image. A layer that is listed more than once is read once, because [`located`] assigns it the same position every
/// time.
fn look(
    image: &SourceImage,
    located: &InPlace,
    check: bool,
    progress: &dyn Progress,
) -> Result<BTreeMap<Digest, Vec<Entry>>, LoadError> {
    let mut seen = BTreeSet::new();
    let jobs: Vec<usize> = (0..image.layers.len()).filter(|at| seen.insert(image.layers[*at].diff_id)).collect();
    let size_of = |at: &usize| (image.layers[*at].diff_id, located.layers[*at].len);
    if check {
        progress.start(&jobs.iter().map(size_of).collect::<Vec<_>>());
    }
    let looking = Looking { image, located, check, progress, headers: AtomicUsize::new(0) };
    let next = AtomicUsize::new(0);
    let stop = AtomicBool::new(false);
    let found = Mutex::new(BTreeMap::new());
    let first_error = Mutex::new(None);
    let work = || {
        loop {
            let job = next.fetch_add(1, Ordering::Relaxed);
            let Some(at) = jobs.get(job).filter(|_| !stop.load(Ordering::Relaxed)) else { return };
            let layer = image.layers[*at].diff_id;
            match looking.layer(job, *at) {
                Ok(entries) => drop(found.lock().unwrap_or_else(PoisonError::into_inner).insert(layer, entries)),
                Err(cause) => {
                    stop.store(true, Ordering::Relaxed);
                    let error = LoadError::Layer { layer, cause };
                    first_error.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(error);
                }
            }
            progress.done(job);
        }
    };
    std::thread::scope(|scope| {
        // Without a second thread, the first does all the work.
        let _ = thread::scoped(scope, work);
        work();
    });
    progress.finish();
    match first_error.into_inner().unwrap_or_else(PoisonError::into_inner) {
        Some(error) => Err(error),
        None => Ok(found.into_inner().unwrap_or_else(PoisonError::into_inner)),
    }
}

/// State shared by the threads that read an archive's layers.
struct Looking<'a> {
    image: &'a SourceImage,
    located: &'a InPlace,
    check: bool,
    progress: &'a dyn Progress,
    /// Memory of the entries so far.
    headers: AtomicUsize,
}

impl Looking<'_> {
    fn layer(&self, job: usize, at: usize) -> Result<Vec<Entry>, IngestError> {
        let (stretch, expected) = (&self.located.layers[at], self.image.layers[at].diff_id);
        let mut reader = self.image.layers[at].blob.open().map_err(IngestError::Unpack)?;
        if self.check {
            let found = self.digest(&mut reader, job).map_err(IngestError::Unpack)?;
            if found != expected {
                return Err(IngestError::DiffId { expected, found });
            }
        }
        let changed = || IngestError::Unpack(io::Error::other("it was changed while it was read"));
        let file = reader.file().ok_or_else(changed)?;
        let left = MAX_HEADERS.saturating_sub(self.headers.load(Ordering::Relaxed)).min(tar::MAX_HEADER_MEMORY);
        let (entries, memory) = stretch.scan_within(file, left).map_err(|error| match error {
            tar::ScanError::Read(cause) => IngestError::Unpack(cause),
            tar::ScanError::Tar(cause) => IngestError::Tar(cause),
        })?;
        if self.headers.fetch_add(memory, Ordering::Relaxed) + memory > MAX_HEADERS {
            return Err(IngestError::Headers);
        }
        // Check after the read: this proves that the hashed and scanned file is the one that was recorded before.
        match self.located.knows(&stretch.path, file).map_err(IngestError::Unpack)? {
            true => Ok(entries),
            false => Err(changed()),
        }
    }

    fn digest(&self, reader: &mut BlobReader, job: usize) -> io::Result<Digest> {
        let mut buffer = vec![0; 1 << 20];
        let mut hash = Sha256::new();
        loop {
            match reader.read(&mut buffer)? {
                0 => return Ok(Digest(hash.finalize().into())),
                got => {
                    hash.update(&buffer[..got]);
                    self.progress.advance(job, got as u64);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests;
