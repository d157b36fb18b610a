//! From the store to archives and layouts that docker, podman, skopeo and umoci read.
//!
//! ```text
//! oci-layout, index.json            OCI: manifests by digest, names as annotations
//! blobs/sha256/<digest>             configs, manifests, layers
//! manifest.json                     docker's, in a docker-archive only: one file is both then, as `docker save` writes it today
//! ```
//!
//! The configs are verbatim, so an image keeps its id. Equal images give equal archives: nothing in them tells the time.

use std::fs::{self, File};
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};

use nix::fcntl::{Flock, FlockArg};
use serde_json::{Value, json};

use super::load::create;
use super::{Image, Staging, Store, StoreError};
use crate::durable;
use crate::image::{Compression, OCI_MANIFEST, digest_of, write_manifest};
use crate::layer::tar::Writer;
use crate::layer::{Data, Entry, EntryKind, Segment};
use crate::names::{Digest, Reference};
use crate::report::Explain;
use crate::transport::pack;

/// What is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// A tar for `docker load` and `podman load`, which is an OCI archive too.
    DockerArchive,
    OciArchive,
    /// An OCI layout as a directory.
    OciDirectory,
}

/// An image to save, and the names to save it under.
#[derive(Debug, Clone)]
pub struct ToSave {
    pub image: Image,
    pub names: Vec<Reference>,
}

/// Where a save goes.
pub enum Sink<'a> {
    Stream(&'a mut dyn Write),
    /// A directory that is empty or not there.
    Directory(&'a Path),
}

#[derive(Debug, thiserror::Error)]
pub enum SaveError {
    #[error("cannot write the archive")]
    Write(#[source] io::Error),
    #[error("cannot write `{}`", path.display())]
    File {
        path: PathBuf,
        #[source]
        cause: io::Error,
    },
    #[error("the directory `{}` is not empty", .0.display())]
    NotEmpty(PathBuf),
    #[error("the layer `{layer}` cannot be read or packed")]
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
                Some("the disk is full: write to another one".into())
            }
            Self::NotEmpty(_) => Some("choose a new one; an image is never added to what is there".into()),
            Self::Layer { .. } => Some("`gpurun image verify` tells what is damaged".into()),
            Self::Store(cause) => cause.hint(),
            Self::Write(_) | Self::File { .. } => None,
        }
    }
}

/// A blob of the archive.
enum Blob {
    Bytes(Vec<u8>),
    /// A layer's tar as it is in the store.
    Tar {
        diff_id: Digest,
        path: PathBuf,
        size: u64,
    },
    /// A layer packed for this archive.
    Packed {
        path: PathBuf,
        size: u64,
    },
}

/// Everything that is to be written, in order.
#[derive(Default)]
struct Plan {
    members: Vec<(String, Blob)>,
    index: Vec<Value>,
    docker: Vec<Value>,
}

impl Store {
    /// Writes images out. Their layers are held by links meanwhile: a removal beside it takes nothing away.
    pub fn save(
        &self,
        images: &[ToSave],
        format: Format,
        packing: Compression,
        sink: Sink<'_>,
    ) -> Result<(), SaveError> {
        let staging = Staging::new(self)?;
        // docker-archives hold plain tars: docker packs nothing in them either.
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
                "org.opencontainers.image.ref.name": word(name, all),
            });
            plan.index.push(descriptor);
        }
        // Names in full: podman takes a short one for `localhost/…`.
        plan.docker.push(json!({
            "Config": blob(&config_digest),
            "RepoTags": to_save.names.iter().filter(|name| name.digest.is_none()).map(Reference::to_string).collect::<Vec<_>>(),
            "Layers": layers.iter().map(|(digest, _)| blob(digest)).collect::<Vec<_>>(),
        }));
        Ok(())
    }

    /// Answers the digest and size of the layer's blob.
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
    /// Adds a member, unless it is there: layers and configs are shared.
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

    /// `failed` is what a sink's error becomes; a layer that cannot be read is told by its name.
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

/// The layout's word for a name: its tag, as skopeo and umoci want to say it, or the whole name where tags repeat.
fn word(name: &Reference, all: &[ToSave]) -> String {
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

/// Builds the layout in a directory inside `dir` and moves it out at the end. While that directory is there everything beside it is of an
/// unfinished save: so one that was killed is cleared by the next.
fn write_directory(plan: &Plan, dir: &Path) -> Result<(), SaveError> {
    let failed = |path: &Path| {
        let path = path.to_owned();
        move |cause| SaveError::File { path, cause }
    };
    fs::create_dir_all(dir).map_err(failed(dir))?;
    clear_unfinished(dir).map_err(failed(dir))?;
    if fs::read_dir(dir).map_err(failed(dir))?.next().is_some() {
        return Err(SaveError::NotEmpty(dir.into()));
    }
    let partial = dir.join(PARTIAL);
    fs::create_dir(&partial).map_err(failed(&partial))?;
    let written = fill(plan, dir, &partial);
    if written.is_err() {
        // The first error is the one to tell.
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
    // A living save holds it.
    let _lock = Flock::lock(File::open(partial).map_err(failed(partial))?, FlockArg::LockExclusiveNonblock)
        .map_err(|(_, errno)| failed(partial)(errno.into()))?;
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

/// What is moved out; with the last one it is a layout.
const LAYOUT: [&str; 3] = ["blobs", "oci-layout", "index.json"];

fn clear_unfinished(dir: &Path) -> io::Result<()> {
    let partial = match File::open(dir.join(PARTIAL)) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        other => other?,
    };
    match Flock::lock(partial, FlockArg::LockExclusiveNonblock) {
        Ok(_lock) => clear(dir),
        // Another save is at it: then the directory is not empty.
        Err(_) => Ok(()),
    }
}

fn clear(dir: &Path) -> io::Result<()> {
    for name in LAYOUT.into_iter().chain([PARTIAL]) {
        let path = dir.join(name);
        let removed = match path.symlink_metadata() {
            Ok(metadata) if metadata.is_dir() => fs::remove_dir_all(&path),
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
