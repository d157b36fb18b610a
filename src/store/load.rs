//! Loading: a source's images become images of the store.

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

use super::ingest::{self, Buffer, CHUNK, Here, IngestError, Ingested, Shared, Unpacker, Windows};
use super::{ImageRecord, Staging, Store, StoreError, Stretch, make_dir, merge_layers, scan_layers};
use crate::durable;
use crate::image::{Compression, Platform, digest_of};
use crate::layer::{Entry, Tree, erofs, merge};
use crate::names::{Digest, Reference};
use crate::report::Explain;
use crate::sys;
use crate::transport::{self, Source, SourceError, SourceImage, SourceLayer, registry};

#[derive(Debug, Clone)]
pub struct LoadOptions {
    /// Names besides those in the source, for a source of one image.
    pub names: Vec<Reference>,
    /// Which image of an index to take.
    pub platform: Platform,
    /// For sources in a registry.
    pub registry: registry::Options,
}

impl Default for LoadOptions {
    fn default() -> Self {
        Self { names: Vec::new(), platform: Platform::host(), registry: registry::Options::default() }
    }
}

/// An image that is in the store now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Loaded {
    pub id: Digest,
    pub names: Vec<Reference>,
    /// Layers that were in the store already.
    pub shared_layers: usize,
    pub layers: usize,
}

/// Who is told how a load goes. Called from several threads.
pub trait Progress: Sync {
    /// A pipe or a packed archive must be unpacked before its images are found: so many bytes more of it are.
    fn unpack(&self, _bytes: u64) {}
    /// What there is to read: the layers that are not in the store yet, with their packed bytes.
    fn start(&self, _layers: &[(Digest, u64)]) {}
    /// So many packed bytes more of one of them are read.
    fn advance(&self, _layer: usize, _bytes: u64) {}
    /// One of them is in.
    fn done(&self, _layer: usize) {}
    /// All layers are in; the rest is short.
    fn finish(&self) {}
}

/// Tells nobody.
impl Progress for () {}

/// A load that failed; the store is as it was.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    #[error("cannot {action} `{origin}`")]
    Source {
        action: &'static str,
        origin: String,
        #[source]
        cause: Box<SourceError>,
    },
    #[error("cannot unpack `{origin}`")]
    Spool {
        origin: String,
        #[source]
        cause: IngestError,
    },
    #[error("cannot load the layer `{layer}`")]
    Layer {
        layer: Digest,
        #[source]
        cause: IngestError,
    },
    #[error("cannot load the image `{image}`")]
    Image {
        image: String,
        #[source]
        cause: StoreError,
    },
    #[error("`{origin}` holds {images} images: one name cannot be given to all of them")]
    OneName { origin: String, images: usize },
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl Explain for LoadError {
    fn hint(&self) -> Option<String> {
        match self {
            Self::Source { cause, .. } => cause.hint(),
            Self::Layer { cause, .. } | Self::Spool { cause, .. } => match cause {
                IngestError::Unpack(error) if registry_error(error).is_some() => registry_error(error)?.hint(),
                IngestError::Unpack(_) | IngestError::Digest { .. } | IngestError::DiffId { .. } => {
                    Some("the image is damaged or was changed: save or copy it again".into())
                }
                _ => cause.room(),
            },
            Self::Image { cause, .. } | Self::Store(cause) => cause.hint(),
            Self::OneName { .. } => Some("load it without `--name`: its images keep the names they have".into()),
        }
    }
}

/// What a registry said, where a layer's bytes came from one.
fn registry_error(error: &io::Error) -> Option<&registry::RegistryError> {
    error.get_ref()?.downcast_ref()
}

/// Layers taken in at a time: each keeps two cores busy.
const PARALLEL: usize = 2;
/// The same where the network is what is waited for.
const PARALLEL_REMOTE: usize = 4;

/// What is smaller than the smallest of a layer's buffers may stay with malloc.
const LARGE: usize = 256 << 10;

/// A layer that the load needs.
struct Job<'a> {
    layer: &'a SourceLayer,
    /// Where its tar lies until the commit.
    path: PathBuf,
}

/// Layers that are there, with their pinned tars, and layers to take in.
type Planned<'a> = (Vec<(Digest, Stretch)>, Vec<Job<'a>>);

/// The layers of a load: sizes, and entries for the merge.
pub(super) type Layers = BTreeMap<Digest, (u64, Vec<Entry>)>;

impl Store {
    /// Loads all images of a source; either all of them are in the store afterwards, or the store is as it was.
    pub fn load(
        &self,
        source: &Source,
        options: &LoadOptions,
        progress: &dyn Progress,
    ) -> Result<Vec<Loaded>, LoadError> {
        let staging = Staging::new(self)?;
        let mut images = find_images(source, options, &staging, progress)?;
        if !options.names.is_empty() {
            let [image] = images.as_mut_slice() else {
                return Err(LoadError::OneName { origin: source.to_string(), images: images.len() });
            };
            image.names.extend(options.names.iter().cloned());
        }
        self.load_images(&images, &staging, progress)
    }

    /// Takes in images that a transport has found.
    fn load_images(
        &self,
        images: &[SourceImage],
        staging: &Staging,
        progress: &dyn Progress,
    ) -> Result<Vec<Loaded>, LoadError> {
        let (present, jobs) = self.plan(images, staging)?;
        progress.start(&jobs.iter().map(|job| (job.layer.diff_id, job.layer.blob.len)).collect::<Vec<_>>());
        let ingested = ingest_all(&jobs, progress)?;
        progress.finish();
        let mut layers: Layers =
            jobs.iter().zip(ingested).map(|(job, done)| (job.layer.diff_id, (done.size, done.entries))).collect();
        // Layers that are there are read again only for an index that is to be drawn.
        let mut drawn = true;
        for image in images {
            let chain_id = merge::chain_id(&image.config.diff_ids);
            drawn &= length(&index_in(staging, &chain_id))?.is_some() || self.pin_index(&chain_id, staging)?;
        }
        let entries = if drawn { vec![Vec::new(); present.len()] } else { scan_layers(&present, Stretch::open)? };
        for ((diff_id, stretch), entries) in present.iter().zip(entries) {
            layers.insert(*diff_id, (stretch.len, entries));
        }
        for (at, image) in images.iter().enumerate() {
            let failed = |cause| LoadError::Image { image: label(image), cause };
            let last = at + 1 == images.len();
            self.prepare(image, &mut layers, last, false, staging).map_err(failed)?;
        }
        self.commit(images, staging)?;
        let shared = |image: &SourceImage| {
            image.layers.iter().filter(|layer| present.iter().any(|(diff_id, _)| *diff_id == layer.diff_id)).count()
        };
        let loaded = |image: &SourceImage| Loaded {
            id: image.id,
            names: image.names.clone(),
            shared_layers: shared(image),
            layers: image.layers.len(),
        };
        Ok(images.iter().map(loaded).collect())
    }

    /// Which layers are there (pinned by a link, so that they stay) and which are to be taken in, each once, the largest first.
    fn plan<'a>(&self, images: &'a [SourceImage], staging: &Staging) -> Result<Planned<'a>, LoadError> {
        let (mut present, mut jobs) = (Vec::new(), Vec::new());
        let recorded = self.recorded_sizes()?;
        let mut seen = std::collections::BTreeSet::new();
        for layer in images.iter().flat_map(|image| &image.layers) {
            if !seen.insert(layer.diff_id) {
                continue;
            }
            let path = staging.path().join(format!("{}.tar", layer.diff_id.hex()));
            match fs::hard_link(self.layer_path(&layer.diff_id), &path) {
                Ok(()) if is_cut(&path, recorded.get(&layer.diff_id)) => {
                    fs::remove_file(&path).map_err(StoreError::io("remove", &path))?;
                    jobs.push(Job { layer, path });
                }
                Ok(()) => present.push((layer.diff_id, Stretch::whole(path)?)),
                Err(error) if error.kind() == io::ErrorKind::NotFound => jobs.push(Job { layer, path }),
                Err(cause) => return Err(StoreError::io("link", &path)(cause).into()),
            }
        }
        jobs.sort_by_key(|job| std::cmp::Reverse(job.layer.blob.len));
        Ok((present, jobs))
    }

    /// Makes an image's small files in the workplace. An index that is there was drawn from the same layers: they have been merged before,
    /// and nothing in them was refused.
    pub(super) fn prepare(
        &self,
        image: &SourceImage,
        layers: &mut Layers,
        last: bool,
        intermediate: bool,
        staging: &Staging,
    ) -> Result<(), StoreError> {
        let diff_ids = &image.config.diff_ids;
        let chain_id = merge::chain_id(diff_ids);
        let sizes = diff_ids.iter().filter_map(|diff_id| layers.get(diff_id).map(|(size, _)| *size)).collect();
        if length(&index_in(staging, &chain_id))?.is_none() && !self.pin_index(&chain_id, staging)? {
            let mut stack = Vec::new();
            for (at, diff_id) in diff_ids.iter().enumerate() {
                let Some((_, entries)) = layers.get_mut(diff_id) else { continue };
                let needed_again = !last || diff_ids[at + 1..].contains(diff_id);
                stack.push((*diff_id, if needed_again { entries.clone() } else { std::mem::take(entries) }));
            }
            write_index(&merge_layers(stack.into_iter())?, &chain_id, staged(staging), staging)?;
        }
        if length(&staging.path().join(image.id.hex()))?.is_some() {
            // The source lists it twice.
            return Ok(());
        }
        let dir = write_documents(image, sizes, intermediate, staging)?;
        durable::sync_dir(&dir).map_err(StoreError::io("sync", &dir))
    }

    /// Holds an index that is there by links in the workplace, as layers are: an image that shares it may be removed meanwhile.
    fn pin_index(&self, chain_id: &Digest, staging: &Staging) -> Result<bool, StoreError> {
        // A removal takes both of its files, or none.
        let _hold = self.hold()?;
        let to = index_in(staging, chain_id);
        for (from, to) in
            [(self.index_path(chain_id), to.clone()), (self.side_path(chain_id), to.with_extension("side"))]
        {
            match fs::hard_link(&from, &to) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    return Err(StoreError::io("link", &to)(error));
                }
                _ => {}
            }
        }
        Ok(length(&to)?.is_some())
    }

    /// Renames everything into place, under the lock: what is named only after what it names. A commit that fails takes back what it did.
    pub(super) fn commit(&self, images: &[SourceImage], staging: &Staging) -> Result<(), StoreError> {
        let _lock = self.lock()?;
        let mut adopted = Vec::new();
        self.place(images, staging, &mut adopted).inspect_err(|_| self.take_back(&adopted, staging))
    }

    fn take_back(&self, adopted: &[Digest], staging: &Staging) {
        let taken = self.names().and_then(|names| {
            // A name that is written already means a whole image: that stays.
            for id in adopted.iter().filter(|id| names.of(id).is_empty()) {
                let dir = self.image_dir(id);
                fs::rename(&dir, staging.path().join(id.hex())).map_err(StoreError::io("remove", &dir))?;
            }
            self.collect_garbage()
        });
        if taken.is_err() {
            // On a disk as broken as that, the next command tries.
            staging.abandon();
        }
    }

    fn place(&self, images: &[SourceImage], staging: &Staging, adopted: &mut Vec<Digest>) -> Result<(), StoreError> {
        for diff_id in images.iter().flat_map(|image| &image.config.diff_ids) {
            let name = format!("{}.tar", diff_id.hex());
            adopt_layer(&staging.path().join(name), &self.layer_path(diff_id))?;
        }
        self.sync("layers")?;
        let mut names = self.names()?;
        for image in images {
            self.adopt_index(staging, &merge::chain_id(&image.config.diff_ids))?;
            if !matches!(self.image(image.id, &names), Ok(Some(_))) {
                // Damaged, or not there: what was just checked takes its place.
                let (dir, damaged) = (self.image_dir(&image.id), format!("damaged.{}", image.id.hex()));
                match fs::rename(&dir, staging.path().join(damaged)) {
                    Err(error) if error.kind() != io::ErrorKind::NotFound => {
                        return Err(StoreError::io("remove", &dir)(error));
                    }
                    _ => {}
                }
            }
            if adopt(&staging.path().join(image.id.hex()), &self.image_dir(&image.id))? {
                adopted.push(image.id);
            }
            for name in &image.names {
                names.set(name, &image.id);
            }
        }
        self.sync("images")?;
        self.write_names(&names)
    }

    pub(super) fn adopt_index(&self, staging: &Staging, chain_id: &Digest) -> Result<(), StoreError> {
        let index = index_in(staging, chain_id);
        // The side file first: where an index is, its devices are.
        adopt(&index.with_extension("side"), &self.side_path(chain_id))?;
        adopt(&index, &self.index_path(chain_id)).map(drop)
    }

    pub(super) fn sync(&self, directory: &str) -> Result<(), StoreError> {
        let path = self.root.join(directory);
        durable::sync_dir(&path).map_err(StoreError::io("sync", &path))
    }
}

/// Whether a layer has not the size that it had when it came. (Its digest is `verify`'s business: reading gigabytes takes seconds.)
fn is_cut(path: &Path, recorded: Option<&u64>) -> bool {
    recorded.is_some_and(|size| path.metadata().is_ok_and(|metadata| metadata.len() != *size))
}

/// Renames `from` to `to`, unless that is there already: equal names are equal contents here. Answers whether it did.
fn adopt(from: &Path, to: &Path) -> Result<bool, StoreError> {
    if length(to)?.is_some() || length(from)?.is_none() {
        return Ok(false);
    }
    fs::rename(from, to).map_err(StoreError::io("create", to))?;
    Ok(true)
}

/// The same for a layer, whose file may have been cut short since: then the new one takes its place.
fn adopt_layer(from: &Path, to: &Path) -> Result<(), StoreError> {
    // An image has a layer twice at times: then it is in its place.
    let Some(len) = length(from)? else { return Ok(()) };
    if length(to)? == Some(len) {
        return Ok(());
    }
    fs::rename(from, to).map_err(StoreError::io("create", to))
}

/// How long a file is that is there. A disk that cannot tell is no proof that it is not.
pub(super) fn length(path: &Path) -> Result<Option<u64>, StoreError> {
    match path.symlink_metadata() {
        Ok(metadata) => Ok(Some(metadata.len())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(cause) => Err(StoreError::io("read", path)(cause)),
    }
}

/// Where an index is drawn.
pub(super) fn index_in(staging: &Staging, chain_id: &Digest) -> PathBuf {
    staging.path().join(format!("{}.erofs", chain_id.hex()))
}

/// Writes an image's small files to a directory of the workplace, which it answers.
pub(super) fn write_documents(
    image: &SourceImage,
    layer_sizes: Vec<u64>,
    intermediate: bool,
    staging: &Staging,
) -> Result<PathBuf, StoreError> {
    let dir = staging.path().join(image.id.hex());
    make_dir(&dir, 0o700)?;
    let record = ImageRecord {
        chain_id: merge::chain_id(&image.config.diff_ids).to_string(),
        manifest_digest: image.manifest_bytes.as_deref().map(|bytes| digest_of(bytes).to_string()),
        layer_sizes,
        intermediate,
        check: None,
        loaded_at: SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |now| now.as_secs()),
    };
    let record = record.to_bytes(&dir.join("image.json"))?;
    let files = [
        ("config.json", Some(&image.config_bytes)),
        ("manifest.json", image.manifest_bytes.as_ref()),
        ("image.json", Some(&record)),
    ];
    for (name, bytes) in files {
        let Some(bytes) = bytes else { continue };
        let path = dir.join(name);
        write_synced(&path, bytes).map_err(StoreError::io("write", &path))?;
    }
    Ok(dir)
}

/// Opens the tars that lie in a workplace.
pub(super) fn staged(staging: &Staging) -> impl Fn(&Digest) -> Result<File, StoreError> {
    |diff_id| {
        let path = staging.path().join(format!("{}.tar", diff_id.hex()));
        File::open(&path).map_err(StoreError::io("open", &path))
    }
}

/// Draws the index of a merged tree into the workplace; `open` opens what it points into.
pub(super) fn write_index(
    tree: &Tree,
    chain_id: &Digest,
    open: impl Fn(&Digest) -> Result<File, StoreError>,
    staging: &Staging,
) -> Result<(), StoreError> {
    let sources = tree.sources.iter().map(open).collect::<Result<Vec<_>, _>>()?;
    let index_path = index_in(staging, chain_id);
    let side_path = index_path.with_extension("side");
    let index = create(&index_path).map_err(StoreError::io("create", &index_path))?;
    let side = create(&side_path).map_err(StoreError::io("create", &side_path))?;
    let written =
        erofs::write(tree, &sources, &index, &side).map_err(|cause| StoreError::Index { cause: Box::new(cause) })?;
    for note in &written.notes {
        tracing::warn!("{note}");
    }
    index.sync_all().map_err(StoreError::io("sync", &index_path))?;
    if written.side_bytes == 0 {
        return fs::remove_file(&side_path).map_err(StoreError::io("remove", &side_path));
    }
    side.sync_all().map_err(StoreError::io("sync", &side_path))
}

pub(super) fn write_synced(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut file = create(path)?;
    file.write_all(bytes)?;
    file.sync_all()
}

pub(super) fn create(path: &Path) -> io::Result<File> {
    OpenOptions::new().read(true).write(true).create_new(true).mode(0o600).open(path)
}

/// Takes the layers in, a few at a time; the first failure stops the others.
fn ingest_all(jobs: &[Job<'_>], progress: &dyn Progress) -> Result<Vec<Ingested>, LoadError> {
    sys::memory::give_back_blocks_of(LARGE);
    let shared = Shared::new(progress);
    let next = AtomicUsize::new(0);
    let results: Mutex<Vec<Option<Result<Ingested, LoadError>>>> = Mutex::new(jobs.iter().map(|_| None).collect());
    let work = || {
        loop {
            let at = next.fetch_add(1, Ordering::Relaxed);
            let Some(job) = jobs.get(at) else { return };
            let done = if shared.is_stopped() { Err(IngestError::Stopped) } else { ingest_one(at, job, &shared) };
            match done {
                Ok(_) => progress.done(at),
                Err(_) => shared.stop(),
            }
            let done = done.map_err(|cause| LoadError::Layer { layer: job.layer.diff_id, cause });
            results.lock().unwrap_or_else(std::sync::PoisonError::into_inner)[at] = Some(done);
        }
    };
    std::thread::scope(|scope| {
        let most = if jobs.iter().any(|job| job.layer.blob.is_remote()) { PARALLEL_REMOTE } else { PARALLEL };
        for _ in 1..most.min(jobs.len()) {
            scope.spawn(work);
        }
        work();
    });
    let results = results.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner);
    let (mut done, mut stopped) = (Vec::new(), None);
    for result in results.into_iter().flatten() {
        match result {
            Ok(ingested) => done.push(ingested),
            // Not the cause: that stands with another layer.
            Err(error @ LoadError::Layer { cause: IngestError::Stopped, .. }) => stopped = Some(error),
            Err(error) => return Err(error),
        }
    }
    stopped.map_or(Ok(done), Err)
}

fn ingest_one(at: usize, job: &Job<'_>, shared: &Shared<'_>) -> Result<Ingested, IngestError> {
    let out = create(&job.path).map_err(IngestError::Write)?;
    ingest::ingest(at, job.layer, &out, shared)
}

fn label(image: &SourceImage) -> String {
    image.names.first().map_or_else(|| image.id.to_string(), Reference::familiar)
}

fn find_images(
    source: &Source,
    options: &LoadOptions,
    staging: &Staging,
    progress: &dyn Progress,
) -> Result<Vec<SourceImage>, LoadError> {
    let platform = &options.platform;
    let failed = |action, cause| LoadError::Source { action, origin: source.to_string(), cause: Box::new(cause) };
    let (path, pick) = match source {
        Source::Registry(reference) => {
            let image =
                registry::find(reference, platform, &options.registry).map_err(|cause| failed("pull", cause))?;
            return Ok(vec![image]);
        }
        Source::Stdin => {
            let file = spool(io::stdin().lock(), staging, progress)
                .map_err(|cause| LoadError::Spool { origin: source.to_string(), cause })?;
            return transport::open_archive(file, Path::new("-"), platform).map_err(|cause| failed("load", cause));
        }
        Source::Path { path, pick } => (path, pick),
    };
    let unreadable = |cause| failed("load", SourceError::Read { path: path.clone(), cause });
    let images = if path.metadata().map_err(unreadable)?.is_dir() {
        transport::open_directory(path, platform)
    } else {
        let mut file = File::open(path).map_err(unreadable)?;
        let seekable = file.metadata().map_err(unreadable)?.is_file();
        let mut first = Vec::new();
        if seekable {
            (&mut file).take(4).read_to_end(&mut first).map_err(unreadable)?;
            io::Seek::rewind(&mut file).map_err(unreadable)?;
        }
        if !seekable || Compression::sniff(&first) != Compression::None {
            // A pipe, or a packed archive: its members can be found only after it is unpacked.
            file = spool(file, staging, progress)
                .map_err(|cause| LoadError::Spool { origin: source.to_string(), cause })?;
        }
        transport::open_archive(file, path, platform)
    };
    let images = images.and_then(|images| match pick {
        Some(pick) => transport::pick(images, pick, path),
        None => Ok(images),
    });
    images.map_err(|cause| failed("load", cause))
}

/// Unpacks a whole stream into a file of the workplace.
fn spool(input: impl Read, staging: &Staging, progress: &dyn Progress) -> Result<File, IngestError> {
    let mut file = create(&staging.path().join("archive")).map_err(IngestError::Write)?;
    let windows = Windows::new();
    let mut unpacker = Unpacker::new(input, &windows, |rest, _| Here(rest)).map_err(IngestError::Unpack)?;
    let mut buffer = Buffer::new(CHUNK);
    let mut checked = 0u64;
    loop {
        let filled = unpacker.fill(&mut buffer).map_err(IngestError::Unpack)?;
        file.write_all(&buffer.bytes()[..filled]).map_err(IngestError::Write)?;
        progress.unpack(filled as u64);
        if filled < CHUNK {
            return Ok(file);
        }
        checked += filled as u64;
        if checked > ingest::SPACE_CHECK {
            ingest::check_space(&file)?;
            checked = 0;
        }
    }
}

#[cfg(test)]
mod tests;
