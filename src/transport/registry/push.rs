//! Pushes an image to a registry: the missing blobs, one by one, then the manifest.
//!
//! The store keeps a layer's tar, not the compressed bytes that were pulled. The original manifest, with its digest, is
//! therefore only sent if the registry already has all of its blobs (another tag, or another name in the same
//! registry). Otherwise each layer is compressed again. It is written to a file first, because its digest must be known
//! before the upload, and a broken upload can then be repeated.

use std::fs::File;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use ureq::http::{Response, StatusCode};

use super::endpoint::{Endpoint, Payload, RequestSpec};
use super::http::Http;
use super::upload::Upload;
use super::{Options, RegistryError};
use crate::image::{Compression, Document, OCI_MANIFEST, digest_of, write_manifest};
use crate::names::{Digest, Reference};
use crate::sys::thread;
use crate::transport::pack::pack;

/// An image to push.
#[derive(Debug)]
pub(crate) struct PushImage {
    pub config: Vec<u8>,
    /// The manifest that the image was loaded with.
    pub manifest: Option<Vec<u8>>,
    /// Lowest layer first.
    pub layers: Vec<PushLayer>,
    /// The compression for layers that must be compressed again.
    pub packing: Compression,
    /// Repositories of the same registry that may already have its blobs.
    pub neighbours: Vec<String>,
    /// A directory for the compressed layers.
    pub workplace: PathBuf,
}

/// A layer's tar.
#[derive(Debug, Clone)]
pub(crate) struct PushLayer {
    pub diff_id: Digest,
    pub path: PathBuf,
    pub size: u64,
}

/// Receives the progress of a push. Called from several threads.
pub(crate) trait PushProgress: Sync {
    /// Reports further bytes of a layer's tar that were compressed.
    fn packed(&self, _diff_id: &Digest, _bytes: u64) {}
    /// Reports that the registry has the layer. `sent` is false if the registry already had it.
    fn done(&self, _diff_id: &Digest, _sent: bool) {}
    /// Reports that the registry has all layers.
    fn finish(&self) {}
}

impl PushProgress for () {}

/// The result of a push.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Pushed {
    pub manifest_digest: Digest,
    /// Number of layers that were sent.
    pub sent: usize,
}

/// Number of layers that are compressed and sent in parallel.
const PARALLEL: usize = 3;

/// Pushes an image to a registry, with the reference's tag.
pub(crate) fn push(
    reference: &Reference,
    image: &PushImage,
    options: &Options,
    progress: &dyn PushProgress,
) -> Result<Pushed, RegistryError> {
    let http = Arc::new(Http::new(options));
    let endpoint = Endpoint::open_to_push(&options.settings.place(reference), &http, options)?;
    let push = Push { endpoint: &endpoint, progress };
    let tag = match &reference.digest {
        Some(digest) => digest.to_string(),
        None => reference.tag.clone().unwrap_or_else(|| "latest".into()),
    };
    if let Some(manifest) = image.manifest.as_deref().filter(|manifest| push.has_all_of(manifest, image)) {
        push.blob_if_missing(&image.config)?;
        return Ok(Pushed { manifest_digest: push.manifest(manifest, &tag, reference)?, sent: 0 });
    }
    let layers = push.layers(image)?;
    progress.finish();
    let config = push.blob_if_missing(&image.config)?;
    let descriptors: Vec<_> = layers.iter().map(|layer| (layer.digest, layer.size)).collect();
    let manifest = write_manifest((config, image.config.len()), &descriptors, image.packing);
    let manifest_digest = push.manifest(&manifest, &tag, reference)?;
    Ok(Pushed { manifest_digest, sent: layers.iter().filter(|layer| layer.sent).count() })
}

struct Push<'a> {
    endpoint: &'a Endpoint,
    progress: &'a dyn PushProgress,
}

/// A layer in the registry.
#[derive(Debug, Clone)]
struct Sent {
    digest: Digest,
    size: u64,
    sent: bool,
}

impl Push<'_> {
    /// Whether the registry has every layer that a manifest names, so that no layer must be compressed.
    fn has_all_of(&self, manifest: &[u8], image: &PushImage) -> bool {
        let Ok(Document::Manifest(manifest)) = Document::parse(manifest) else { return false };
        let there = |digest: &Digest| self.has(digest).unwrap_or(false);
        manifest.layers.iter().all(|layer| {
            there(&layer.digest) || image.neighbours.iter().any(|from| self.mount(&layer.digest, from).unwrap_or(false))
        })
    }

    /// Asks the registry to mount a blob from another of its repositories.
    fn mount(&self, digest: &Digest, from: &str) -> Result<bool, RegistryError> {
        let (what, path) = (digest.to_string(), format!("blobs/uploads/?mount={digest}&from={from}"));
        let spec =
            RequestSpec { method: "POST", path: &path, body: Payload::Empty, what: &what, ..RequestSpec::default() };
        // With 202, the registry wants an upload of the bytes. The upload that it opened expires by itself.
        Ok(self.endpoint.call(&spec, &[])?.status() == StatusCode::CREATED)
    }

    fn has(&self, digest: &Digest) -> Result<bool, RegistryError> {
        let what = digest.to_string();
        let path = format!("blobs/{digest}");
        let answer = self
            .endpoint
            .call(&RequestSpec { method: "HEAD", path: &path, what: &what, ..RequestSpec::default() }, &[404])?;
        Ok(answer.status().is_success())
    }

    /// Pushes all layers, a few at a time. Equal layers are pushed once.
    fn layers(&self, image: &PushImage) -> Result<Vec<Sent>, RegistryError> {
        let mut todo: Vec<&PushLayer> = Vec::new();
        for layer in &image.layers {
            if !todo.iter().any(|known| known.diff_id == layer.diff_id) {
                todo.push(layer);
            }
        }
        todo.sort_by_key(|layer| layer.size);
        let done: Mutex<Vec<(Digest, Sent)>> = Mutex::default();
        // The largest layer is last, and is taken first.
        let todo = Mutex::new(todo);
        let take = || todo.lock().unwrap_or_else(PoisonError::into_inner).pop();
        let work = || -> Result<(), RegistryError> {
            while let Some(layer) = take() {
                let sent = self.layer(layer, image).inspect_err(|_| {
                    todo.lock().unwrap_or_else(PoisonError::into_inner).clear();
                })?;
                done.lock().unwrap_or_else(PoisonError::into_inner).push((layer.diff_id, sent));
            }
            Ok(())
        };
        std::thread::scope(|scope| {
            // If no further thread can start, the existing ones do its work.
            let others: Vec<_> = (1..PARALLEL).filter_map(|_| thread::scoped(scope, work).ok()).collect();
            let own = work();
            let others = others.into_iter().map(|other| match other.join() {
                Ok(result) => result,
                Err(panic) => std::panic::resume_unwind(panic),
            });
            others.fold(own, |all, one| all.and(one))
        })?;
        let done = done.into_inner().unwrap_or_else(PoisonError::into_inner);
        let sent = |layer: &PushLayer| done.iter().find(|(id, _)| *id == layer.diff_id).map(|(_, sent)| sent.clone());
        Ok(image.layers.iter().filter_map(sent).collect())
    }

    fn layer(&self, layer: &PushLayer, image: &PushImage) -> Result<Sent, RegistryError> {
        let failed = |cause| RegistryError::Pack { layer: layer.diff_id, cause };
        let tar = File::open(&layer.path).map_err(failed)?;
        let (file, digest, size) = match image.packing {
            Compression::None => (tar, layer.diff_id, layer.size),
            packing => {
                let path = image.workplace.join(format!("{}.packed", layer.diff_id.hex()));
                let file = File::options().read(true).write(true).create_new(true).open(&path).map_err(failed)?;
                let on_packed = |bytes| self.progress.packed(&layer.diff_id, bytes);
                // Only this process uses the file. Without a name, it is removed when the process ends.
                std::fs::remove_file(&path).map_err(failed)?;
                let (digest, size) = pack(&tar, &layer.diff_id, &file, packing, &on_packed).map_err(failed)?;
                (file, digest, size)
            }
        };
        let sent = !self.has(&digest)?;
        if sent {
            self.upload(&digest, Payload::File(&Upload { file: &file, len: size }), size)?;
        }
        self.progress.done(&layer.diff_id, sent);
        Ok(Sent { digest, size, sent })
    }

    fn blob_if_missing(&self, bytes: &[u8]) -> Result<Digest, RegistryError> {
        let digest = digest_of(bytes);
        if !self.has(&digest)? {
            self.upload(&digest, Payload::Bytes(bytes), bytes.len() as u64)?;
        }
        Ok(digest)
    }

    /// Uploads a blob: POST returns an upload URL, and PUT sends all bytes to it. A broken attempt is repeated with a
    /// new URL.
    fn upload(&self, digest: &Digest, body: Payload<'_>, size: u64) -> Result<(), RegistryError> {
        let what = digest.to_string();
        self.endpoint.http().retry(|| {
            use super::http::Attempt;
            let begin = RequestSpec {
                method: "POST",
                path: "blobs/uploads/",
                body: Payload::Empty,
                what: &what,
                ..RequestSpec::default()
            };
            let place = match self.endpoint.attempt(&begin, &[]) {
                Attempt::Done(response) => match self.location(&response) {
                    Ok(place) => place,
                    Err(error) => return Attempt::Failed(error),
                },
                Attempt::Again { error, after } => return Attempt::Again { error, after },
                Attempt::Failed(error) => return Attempt::Failed(error),
            };
            let joint = if place.contains('?') { '&' } else { '?' };
            let path = format!("{place}{joint}digest={what}");
            let headers =
                vec![("content-type", "application/octet-stream".into()), ("content-length", size.to_string())];
            match self
                .endpoint
                .attempt(&RequestSpec { method: "PUT", path: &path, headers, body, what: &what, small: false }, &[])
            {
                // The registry may have dropped the upload. Retry with a new one.
                Attempt::Failed(error @ RegistryError::NotFound { .. }) => Attempt::Again { error, after: None },
                other => other,
            }
        })?;
        Ok(())
    }

    fn location(&self, response: &Response<ureq::Body>) -> Result<String, RegistryError> {
        let location = response.headers().get("location").and_then(|value| value.to_str().ok());
        let place =
            location.filter(|_| response.status() == StatusCode::ACCEPTED).map(|place| self.endpoint.url(place));
        place.ok_or_else(|| RegistryError::Protocol {
            host: self.endpoint.host().into(),
            why: "it names no URL for the upload".into(),
        })
    }

    fn manifest(&self, bytes: &[u8], tag: &str, reference: &Reference) -> Result<Digest, RegistryError> {
        let media_type = serde_json::from_slice::<serde_json::Value>(bytes)
            .ok()
            .and_then(|value| value["mediaType"].as_str().map(str::to_owned))
            .unwrap_or_else(|| OCI_MANIFEST.into());
        let what = reference.familiar();
        self.endpoint.call(
            &RequestSpec {
                method: "PUT",
                path: &format!("manifests/{tag}"),
                headers: vec![("content-type", media_type)],
                what: &what,
                body: Payload::Bytes(bytes),
                small: false,
            },
            &[],
        )?;
        Ok(digest_of(bytes))
    }
}
