//! Saves images of the store as archives and layouts that docker, podman, skopeo and umoci read.
//!
//! ```text
//! oci-layout, index.json            OCI: manifests by digest, names as annotations
//! blobs/sha256/<digest>             configs, manifests, layers
//! manifest.json                     docker's; only in a docker-archive, which has both formats, as with `docker save`
//! ```
//!
//! Configs are verbatim, so an image keeps its id. Equal images give equal archives, because the archives contain no
//! timestamps.

use std::fs::{self, File};
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use super::load::create;
use super::staging::Staging;
use super::{Image, Store, StoreError};
use crate::durable;
use crate::image::{Compression, OCI_MANIFEST, digest_of, write_manifest};
use crate::layer::tar::Writer;
use crate::layer::{Data, Entry, EntryKind, Segment};
use crate::names::{Digest, Reference};
use crate::report::Explain;
use crate::sys::lock::{Flock, FlockArg};
use crate::sys::process::CallerUmask;
use crate::transport::pack;

/// The format of the output.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Format {
    /// A tar for `docker load` and `podman load`. It is also an OCI archive.
    DockerArchive,
    OciArchive,
    /// An OCI layout as a directory.
    OciDirectory,
}

/// An image to save, and its names in the output.
#[derive(Debug, Clone)]
pub(crate) struct ToSave {
    pub image: Image,
    pub names: Vec<Reference>,
}

/// The destination of a save.
pub(crate) enum Sink<'a> {
    Stream(&'a mut dyn Write),
    /// A directory that is empty or does not exist.
    Directory(&'a Path),
}

#[derive(Debug, thiserror::Error)]
pub(crate) enum SaveError {
    #[error("cannot write the archive")]
    Write(#[source] io::Error),
    #[error("cannot write `{}`", path.display())]
    File {
        path: PathBuf,
        #[source]
        cause: io::Error,
    },
    #[error("cannot write to the directory `{}`: it is not empty", .0.display())]
    NotEmpty(PathBuf),
    #[error("cannot read or compress the layer `{layer}`")]
    Layer {
        layer: Digest,
        #[source]
        cause: io::Error,
    },
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl Explain for SaveError {
    fn hint(&self) -> Option<String> {
        match self {
            Self::Write(cause) | Self::File { cause, .. } if cause.raw_os_error() == Some(libc::ENOSPC) => {
                Some("write to another disk; this one is full".into())
            }
            Self::NotEmpty(_) => Some("choose a new directory; images are not added to existing files".into()),
            Self::Layer { .. } => Some("find the damaged files with `gpurun image verify`".into()),
            Self::Store(cause) => cause.hint(),
            Self::Write(_) | Self::File { .. } => None,
        }
    }
}

/// A blob of the archive.
enum Blob {
    Bytes(Vec<u8>),
    /// A layer's tar from the store.
    Tar {
        diff_id: Digest,
        path: PathBuf,
        size: u64,
    },
    /// A layer that was compressed for this archive.
    Packed {
        path: PathBuf,
        size: u64,
    },
}

/// The members to write, in order.
#[derive(Default)]
struct Plan {
    members: Vec<(String, Blob)>,
    index: Vec<Value>,
    docker: Vec<Value>,
}

impl Store {
    /// Writes images to a sink. Pins their layers with links, so that a concurrent removal does no harm.
    pub(crate) fn save(
        &self,
        images: &[ToSave],
        format: Format,
        packing: Compression,
        sink: Sink<'_>,
    ) -> Result<(), SaveError> {
        let staging = Staging::new(self)?;
        // docker-archives contain uncompressed tars, as docker writes them.
        let packing = if format == Format::DockerArchive { Compression::None } else { packing };
        let mut plan = Plan::default();
        for to_save in images {
            self.plan_image(to_save, images, packing, &staging, &mut plan)?;
        }
        plan.add("oci-layout", Blob::Bytes(br#"{"imageLayoutVersion":"1.0.0"}"#.to_vec()));
        let index = json!({"schemaVersion": 2, "mediaType": "application/vnd.oci.image.index.v1+json", "manifests": plan.index});
        plan.add("index.json", Blob::Bytes(index.to_string().into_bytes()));
        if format == Format::DockerArchive {
            let manifest = Value::Array(std::mem::take(&mut plan.docker)).to_string();
            plan.add("manifest.json", Blob::Bytes(manifest.into_bytes()));
        }
        match sink {
            Sink::Directory(dir) => write_directory(&plan, dir),
            Sink::Stream(out) => write_tar(&plan, out),
        }
    }

    fn plan_image(
        &self,
        to_save: &ToSave,
        all: &[ToSave],
        packing: Compression,
        staging: &Staging,
        plan: &mut Plan,
    ) -> Result<(), SaveError> {
        let image = &to_save.image;
        let (config, _) = self.documents(image)?;
        let mut layers = Vec::new();
        for (diff_id, size) in self.layers(image)? {
            layers.push(self.plan_layer(diff_id, size, packing, staging, plan)?);
        }
        let config_digest = digest_of(&config);
        let manifest = write_manifest((config_digest, config.len()), &layers, packing);
        let (manifest_digest, manifest_size) = (digest_of(&manifest), manifest.len());
        plan.add(&blob(&config_digest), Blob::Bytes(config));
        plan.add(&blob(&manifest_digest), Blob::Bytes(manifest));
        let descriptor = json!({"mediaType": OCI_MANIFEST, "digest": manifest_digest, "size": manifest_size});
        if to_save.names.is_empty() {
            plan.index.push(descriptor.clone());
        }
        for name in &to_save.names {
            let mut descriptor = descriptor.clone();
            descriptor["annotations"] = json!({
                "io.containerd.image.name": name.to_string(),
                "org.opencontainers.image.ref.name": ref_name(name, all),
            });
            plan.index.push(descriptor);
        }
        // Full names, because podman expands a short one to `localhost/…`.
        plan.docker.push(json!({
            "Config": blob(&config_digest),
            "RepoTags": to_save.names.iter().filter(|name| name.digest.is_none()).map(Reference::to_string).collect::<Vec<_>>(),
            "Layers": layers.iter().map(|(digest, _)| blob(digest)).collect::<Vec<_>>(),
        }));
        Ok(())
    }

    /// Returns the digest and size of the layer's blob.
    fn plan_layer(
        &self,
        diff_id: Digest,
        size: u64,
        packing: Compression,
        staging: &Staging,
        plan: &mut Plan,
    ) -> Result<(Digest, u64), SaveError> {
        let pinned = staging.path().join(format!("{}.tar", diff_id.hex()));
        let failed = |cause| SaveError::Layer { layer: diff_id, cause };
        match fs::hard_link(self.layer_path(&diff_id), &pinned) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(failed(error)),
            _ => {}
        }
        if packing == Compression::None {
            plan.add(&blob(&diff_id), Blob::Tar { diff_id, path: pinned, size });
            return Ok((diff_id, size));
        }
        let path = pinned.with_extension("packed");
        if let Some(known) = plan.packed(&path) {
            return Ok(known);
        }
        let out = create(&path).map_err(failed)?;
        let tar = File::open(&pinned).map_err(failed)?;
        let (digest, size) = pack::pack(&tar, &diff_id, &out, packing, &|_| ()).map_err(failed)?;
        plan.add(&blob(&digest), Blob::Packed { path, size });
        Ok((digest, size))
    }
}

impl Plan {
    /// Adds a member unless it exists already, because images share layers and configs.
    fn add(&mut self, name: &str, blob: Blob) {
        if self.members.iter().all(|(known, _)| known != name) {
            self.members.push((name.into(), blob));
        }
    }

    fn packed(&self, wanted: &Path) -> Option<(Digest, u64)> {
        self.members.iter().find_map(|(name, blob)| match blob {
            Blob::Packed { path, size } if path == wanted => {
                Some((format!("sha256:{}", name.rsplit('/').next()?).parse().ok()?, *size))
            }
            _ => None,
        })
    }
}

impl Blob {
    fn size(&self) -> u64 {
        match self {
            Self::Bytes(bytes) => bytes.len() as u64,
            Self::Tar { size, .. } | Self::Packed { size, .. } => *size,
        }
    }

    /// Writes the members. `failed` converts an error of the sink. An error of a layer's file names the layer.
    fn write(
        &self,
        sink: &mut dyn FnMut(&[u8]) -> io::Result<()>,
        failed: &dyn Fn(io::Error) -> SaveError,
    ) -> Result<(), SaveError> {
        let mut refused = None;
        let mut pass = |bytes: &[u8]| {
            sink(bytes).map_err(|error| {
                let kind = error.kind();
                refused = Some(error);
                io::Error::from(kind)
            })
        };
        let result = match self {
            Self::Bytes(bytes) => pass(bytes).map_err(failed),
            Self::Tar { diff_id, path, .. } => File::open(path)
                .and_then(|file| pack::copy_checked(&file, diff_id, &mut pass))
                .map_err(|cause| SaveError::Layer { layer: *diff_id, cause }),
            Self::Packed { path, .. } => File::open(path)
                .and_then(|mut file| io::copy(&mut file, &mut Each(&mut pass)))
                .map(drop)
                .map_err(failed),
        };
        match refused {
            Some(error) => Err(failed(error)),
            None => result,
        }
    }
}

struct Each<'a>(&'a mut dyn FnMut(&[u8]) -> io::Result<()>);

impl Write for Each<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        (self.0)(bytes)?;
        Ok(bytes.len())
    }
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn blob(digest: &Digest) -> String {
    format!("blobs/sha256/{}", digest.hex())
}

/// Returns the layout's `ref.name` for a name: the tag, as skopeo and umoci expect, or the whole name if several images
/// have the same tag.
fn ref_name(name: &Reference, all: &[ToSave]) -> String {
    let Some(tag) = &name.tag else { return name.to_string() };
    let same = all.iter().flat_map(|to_save| &to_save.names).filter(|other| other.tag.as_ref() == Some(tag));
    if same.count() > 1 { name.familiar() } else { tag.clone() }
}

fn write_tar(plan: &Plan, out: &mut dyn Write) -> Result<(), SaveError> {
    let mut tar = Writer::new(BufWriter::with_capacity(1 << 20, out));
    for (name, blob) in &plan.members {
        let size = blob.size();
        let segments = if size == 0 { Vec::new() } else { vec![Segment { at: 0, source: 0, offset: 0, len: size }] };
        let entry = Entry {
            path: name.as_bytes().into(),
            kind: EntryKind::File(Data { size, segments }),
            mode: 0o644,
            uid: 0,
            gid: 0,
            mtime: (0, 0),
            xattrs: std::collections::BTreeMap::new(),
        };
        tar.entry(&entry).map_err(SaveError::Write)?;
        blob.write(&mut |bytes| tar.data(bytes), &SaveError::Write)?;
    }
    tar.finish().and_then(|mut out| out.flush()).map_err(SaveError::Write)
}

/// Creates the layout in a subdirectory of `dir` and moves it up at the end. While the subdirectory exists, everything
/// next to it belongs to an unfinished save, so that the next save can clean up after a killed one.
fn write_directory(plan: &Plan, dir: &Path) -> Result<(), SaveError> {
    let failed = |path: &Path| {
        let path = path.to_owned();
        move |cause| SaveError::File { path, cause }
    };
    let _umask = CallerUmask::enter();
    fs::create_dir_all(dir).map_err(failed(dir))?;
    clear_unfinished(dir).map_err(failed(dir))?;
    if fs::read_dir(dir).map_err(failed(dir))?.next().is_some() {
        return Err(SaveError::NotEmpty(dir.into()));
    }
    let partial = dir.join(PARTIAL);
    fs::create_dir(&partial).map_err(failed(&partial))?;
    let written = fill(plan, dir, &partial);
    if written.is_err() {
        // Report the first error.
        let _ = clear(dir);
    }
    written
}

const PARTIAL: &str = ".gpurun.partial";

fn fill(plan: &Plan, dir: &Path, partial: &Path) -> Result<(), SaveError> {
    let failed = |path: &Path| {
        let path = path.to_owned();
        move |cause| SaveError::File { path, cause }
    };
    // The save holds this lock while it runs.
    let _lock = Flock::lock(File::open(partial).map_err(failed(partial))?, FlockArg::ExclusiveNonblock)
        .map_err(failed(partial))?;
    let blobs = partial.join("blobs/sha256");
    fs::create_dir_all(&blobs).map_err(failed(&blobs))?;
    for (name, blob) in &plan.members {
        let path = partial.join(name);
        let mut file = File::create_new(&path).map_err(failed(&path))?;
        blob.write(&mut |bytes| file.write_all(bytes), &|cause| SaveError::File { path: dir.join(name), cause })?;
        file.sync_all().map_err(failed(&path))?;
    }
    durable::sync_dir(&blobs).map_err(failed(&blobs))?;
    for name in LAYOUT {
        fs::rename(partial.join(name), dir.join(name)).map_err(failed(&dir.join(name)))?;
    }
    durable::sync_dir(dir).map_err(failed(dir))?;
    fs::remove_dir(partial).map_err(failed(partial))
}

/// The names that are moved up. The layout is complete after the last one.
const LAYOUT: [&str; 3] = ["blobs", "oci-layout", "index.json"];

fn clear_unfinished(dir: &Path) -> io::Result<()> {
    let partial = match File::open(dir.join(PARTIAL)) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        other => other?,
    };
    match Flock::lock(partial, FlockArg::ExclusiveNonblock) {
        Ok(_lock) => clear(dir),
        // Another save is in progress, so the directory is not empty.
        Err(_) => Ok(()),
    }
}

fn clear(dir: &Path) -> io::Result<()> {
    for name in LAYOUT.into_iter().chain([PARTIAL]) {
        let path = dir.join(name);
        let removed = match path.symlink_metadata() {
            Ok(metadata) if metadata.is_dir() => crate::sys::tree::remove(&path),
            Ok(_) => fs::remove_file(&path),
            Err(error) => Err(error),
        };
        match removed {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
    }
    Ok(())
}
