//! Loads the images of a source into the store.

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

use super::files::length;
use super::files::make_dir;
use super::ingest::{self, Buffer, CHUNK, IngestError, Ingested, Inline, Shared, Unpacker, Windows};
use super::limits::MAX_STEPS;
use super::progress::Progress;
use super::record::ImageRecord;
use super::scan::{merge_layers, scan_layers};
use super::staging::Staging;
use super::{Store, StoreError, Stretch};
use crate::durable;
use crate::image::{Compression, Platform, digest_of};
use crate::layer::{Entry, Tree, erofs, merge};
use crate::names::{Digest, Reference};
use crate::report::Explain;
use crate::sys::{self, thread};
use crate::transport::{self, Source, SourceError, SourceImage, SourceLayer, registry};

#[derive(Debug, Clone)]
pub(crate) struct LoadOptions {
    /// Additional names, for a source with one image.
    pub names: Vec<Reference>,
    /// Whether the names that the source gives its images are ignored.
    pub renames: bool,
    /// The platform to choose from an index.
    pub platform: Platform,
    /// Options for sources in a registry.
    pub registry: registry::Options,
}

impl Default for LoadOptions {
    fn default() -> Self {
        Self { names: Vec::new(), renames: false, platform: Platform::host(), registry: registry::Options::default() }
    }
}

/// An image that was loaded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Loaded {
    pub id: Digest,
    pub names: Vec<Reference>,
    /// Number of layers that were already in the store.
    pub shared_layers: usize,
    pub layers: usize,
}

/// A load that failed. The store is unchanged.
#[derive(Debug, thiserror::Error)]
pub(crate) enum LoadError {
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
    #[error("cannot give one name to all images of `{origin}`: it contains {images} images")]
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
                IngestError::Damaged { .. } => Some(
                    "try another mirror, or ask the operator of the registry; the registry, or a proxy before it, \
                     is broken"
                        .into(),
                ),
                cause if cause.is_damage() => Some("save or copy the image again; it is damaged or was changed".into()),
                _ => cause.space_hint(),
            },
            Self::Image { cause, .. } | Self::Store(cause) => cause.hint(),
            Self::OneName { .. } => Some("load it without `--name`; its images then keep their names".into()),
        }
    }
}

/// Returns the registry's error, if the layer came from a registry.
fn registry_error(error: &io::Error) -> Option<&registry::RegistryError> {
    error.get_ref()?.downcast_ref()
}

/// Number of layers that are ingested in parallel. Each keeps two cores busy.
const PARALLEL: usize = 2;
/// The same for layers from the network, which is then the bottleneck.
const PARALLEL_REMOTE: usize = 4;

/// Allocations below this size, which is that of the smallest buffer of a layer, stay with malloc.
const LARGE: usize = 256 << 10;

/// A layer to ingest.
struct Job<'a> {
    layer: &'a SourceLayer,
    /// Path of its tar until the commit.
    path: PathBuf,
}

/// Existing layers, with their pinned tars, and layers to ingest.
type Planned<'a> = (Vec<(Digest, Stretch)>, Vec<Job<'a>>);

/// The layers of a load: sizes, entries for the merge, and the remaining steps that its merges may take.
pub(super) struct Layers {
    pub sizes: BTreeMap<Digest, u64>,
    entries: BTreeMap<Digest, Vec<Entry>>,
    steps: u64,
}

impl Layers {
    pub(super) fn new(entries: BTreeMap<Digest, Vec<Entry>>) -> Self {
        Self { sizes: BTreeMap::new(), entries, steps: MAX_STEPS }
    }
}

impl Store {
    /// Loads all images of a source. Either all of them are in the store afterwards, or the store is unchanged.
    pub(crate) fn load(
        &self,
        source: &Source,
        options: &LoadOptions,
        progress: &dyn Progress,
    ) -> Result<Vec<Loaded>, LoadError> {
        let staging = Staging::new(self)?;
        let mut images = find_images(source, options, &staging, progress)?;
        if options.renames {
            images.iter_mut().for_each(|image| image.names.clear());
        }
        if !options.names.is_empty() {
            let [image] = &mut images[..] else {
                return Err(LoadError::OneName { origin: source.to_string(), images: images.len() });
            };
            image.names.extend(options.names.iter().cloned());
        }
        self.load_images(&mut images, &staging, progress)
    }

    /// Loads images that a transport has found.
    fn load_images(
        &self,
        images: &mut [SourceImage],
        staging: &Staging,
        progress: &dyn Progress,
    ) -> Result<Vec<Loaded>, LoadError> {
        self.prove_manifests(images)?;
        let images = &*images;
        let (present, jobs) = self.plan(images, staging)?;
        progress.start(&jobs.iter().map(|job| (job.layer.diff_id, job.layer.blob.len)).collect::<Vec<_>>());
        let ingested = ingest_all(&jobs, progress)?;
        progress.finish();
        let mut layers = Layers::new(BTreeMap::new());
        for (job, done) in jobs.iter().zip(ingested) {
            layers.sizes.insert(job.layer.diff_id, done.size);
            layers.entries.insert(job.layer.diff_id, done.entries);
        }
        // Read existing layers again only if an index must be rendered.
        let mut indexed = true;
        for image in images {
            let chain_id = merge::chain_id(&image.config.diff_ids);
            indexed &= length(&index_in(staging, &chain_id))?.is_some() || self.pin_index(&chain_id, staging)?;
        }
        layers.sizes.extend(present.iter().map(|(diff_id, stretch)| (*diff_id, stretch.len)));
        if !indexed {
            layers.entries.extend(scan_layers(&present, Stretch::open)?);
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

    /// Returns the existing layers (pinned with a link) and the layers to ingest. Each is listed once, largest first.
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

    /// Creates the small files of an image in the staging directory. If an index already exists, it was rendered from
    /// the same layers, so their merge was checked before.
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
        let sizes = diff_ids.iter().filter_map(|diff_id| layers.sizes.get(diff_id).copied()).collect();
        if length(&index_in(staging, &chain_id))?.is_none() && !self.pin_index(&chain_id, staging)? {
            let tree = merge_layers(diff_ids, &mut layers.entries, !last, &mut layers.steps)?;
            write_index(&tree, &chain_id, staged(staging), staging)?;
        }
        if length(&staging.path().join(image.id.hex()))?.is_some() {
            // The source lists it twice.
            return Ok(());
        }
        let dir = write_documents(image, sizes, intermediate, staging)?;
        durable::sync_dir(&dir).map_err(StoreError::io("sync", &dir))
    }

    /// Pins an existing index with links in the staging directory, as for layers, because an image that shares it may
    /// be removed in the meantime.
    fn pin_index(&self, chain_id: &Digest, staging: &Staging) -> Result<bool, StoreError> {
        // A removal takes both files or none.
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

    /// Renames everything into place, under the lock. A file is moved before the files that refer to it. A commit that
    /// fails is rolled back.
    pub(super) fn commit(&self, images: &[SourceImage], staging: &Staging) -> Result<(), StoreError> {
        let _lock = self.lock()?;
        let mut adopted = Vec::new();
        self.place(images, staging, &mut adopted).inspect_err(|_| self.rollback(&adopted, staging))
    }

    fn rollback(&self, adopted: &[Digest], staging: &Staging) {
        let taken = self.names().and_then(|names| {
            // If a name is already written, it refers to a complete image, which stays.
            for id in adopted.iter().filter(|id| names.of(id).is_empty()) {
                let dir = self.image_dir(id);
                fs::rename(&dir, staging.path().join(id.hex())).map_err(StoreError::io("remove", &dir))?;
            }
            self.collect_garbage()
        });
        if taken.is_err() {
            // The disk is too broken for a rollback. The next command tries again.
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
                // The existing image is damaged or missing. The image that was just checked replaces it.
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
        self.add_repo_digests(images)?;
        self.write_names(&names)
    }

    pub(super) fn adopt_index(&self, staging: &Staging, chain_id: &Digest) -> Result<(), StoreError> {
        let index = index_in(staging, chain_id);
        // Move the side file first: an index must not exist without its devices.
        adopt(&index.with_extension("side"), &self.side_path(chain_id))?;
        adopt(&index, &self.index_path(chain_id)).map(drop)
    }

    pub(super) fn sync(&self, directory: &str) -> Result<(), StoreError> {
        let path = self.root.join(directory);
        durable::sync_dir(&path).map_err(StoreError::io("sync", &path))
    }
}

/// Whether the size of a layer differs from the recorded one. (`verify` checks the digest, because reading gigabytes
/// takes seconds.)
fn is_cut(path: &Path, recorded: Option<&u64>) -> bool {
    recorded.is_some_and(|size| path.metadata().is_ok_and(|metadata| metadata.len() != *size))
}

/// Renames `from` to `to`, unless `to` already exists: equal names mean equal content here. Returns whether it was
/// renamed.
fn adopt(from: &Path, to: &Path) -> Result<bool, StoreError> {
    if length(to)?.is_some() || length(from)?.is_none() {
        return Ok(false);
    }
    fs::rename(from, to).map_err(StoreError::io("create", to))?;
    Ok(true)
}

/// The same for a layer. An existing file that was truncated is replaced.
fn adopt_layer(from: &Path, to: &Path) -> Result<(), StoreError> {
    // An image may list a layer twice. The second time, it is already in place.
    let Some(len) = length(from)? else { return Ok(()) };
    if length(to)? == Some(len) {
        return Ok(());
    }
    fs::rename(from, to).map_err(StoreError::io("create", to))
}

/// Returns the path at which an index is rendered.
pub(super) fn index_in(staging: &Staging, chain_id: &Digest) -> PathBuf {
    staging.path().join(format!("{}.erofs", chain_id.hex()))
}

/// Writes the small files of an image to a directory in the staging directory, and returns its path.
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

/// Opens the tars of a staging directory.
pub(super) fn staged(staging: &Staging) -> impl Fn(&Digest) -> Result<File, StoreError> {
    |diff_id| {
        let path = staging.path().join(format!("{}.tar", diff_id.hex()));
        File::open(&path).map_err(StoreError::io("open", &path))
    }
}

/// Renders the index of a merged tree in the staging directory. `open` opens the files that it points into.
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

/// Ingests the layers, a few at a time. The first failure stops the others.
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
            // If a thread cannot start, the others do its work.
            let _ = thread::scoped(scope, work);
        }
        work();
    });
    let results = results.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner);
    let (mut done, mut stopped) = (Vec::new(), None);
    for result in results.into_iter().flatten() {
        match result {
            Ok(ingested) => done.push(ingested),
            // This is not the cause, which is the error of another layer.
            Err(error @ LoadError::Layer { cause: IngestError::Stopped, .. }) => stopped = Some(error),
            Err(error) => return Err(error),
        }
    }
    stopped.map_or(Ok(done), Err)
}

fn ingest_one(at: usize, job: &Job<'_>, shared: &Shared<'_>) -> Result<Ingested, IngestError> {
    let mut out = create(&job.path).map_err(IngestError::Write)?;
    let first = ingest::ingest(at, job.layer, &out, shared);
    let (Err(error), Some(host)) = (&first, job.layer.blob.registry()) else { return first };
    if !error.is_damage() || shared.is_stopped() {
        return first;
    }
    tracing::debug!(%error, layer = %job.layer.diff_id, "requesting a damaged layer again");
    job.layer.blob.read_in_order();
    out.set_len(0).and_then(|()| io::Seek::rewind(&mut out)).map_err(IngestError::Write)?;
    ingest::ingest(at, job.layer, &out, shared).map_err(|error| match error.is_damage() {
        true => IngestError::Damaged { host: host.into(), cause: error.into() },
        false => error,
    })
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
            // For a pipe or a compressed archive, the members can only be found after unpacking.
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

/// Unpacks a whole stream into a file of the staging directory.
fn spool(input: impl Read, staging: &Staging, progress: &dyn Progress) -> Result<File, IngestError> {
    let mut file = create(&staging.path().join("archive")).map_err(IngestError::Write)?;
    let windows = Windows::new();
    let mut unpacker = Unpacker::new(input, &windows, |rest, _| Ok(Inline(rest))).map_err(IngestError::Unpack)?;
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
