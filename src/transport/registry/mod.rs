//! Registries: a client of the OCI distribution API (docker's registry v2) that retries requests and verifies all data.
//!
//! ```text
//! find ─ endpoints: mirrors, then the registry itself ─ manifest by tag or digest ─ index → platform ─ config
//!   └─→ SourceImage, with its layers as [`RemoteBlob`]s ── the store reads them like files and verifies their digests
//! push ── the missing blobs, one by one, then the manifest
//! ```
//!
//! Rules:
//! - Data from a registry is not trusted. This module computes the digest of each document, and the store that of each
//!   layer. Known sizes limit every read.
//! - A request that fails for a temporary reason (connection, timeout, 408, 429, 5xx) is retried a few times, with an
//!   increasing pause or the one that `Retry-After` requests. An interrupted layer resumes where it stopped (`Range`).
//!   Progress resets the count of failures.
//! - A large layer is read over several connections, and over one where that does not work (see `parts`).
//! - One deadline (`--timeout`) covers everything, including pauses. A connection that delivers nothing for
//!   [`Options::stall`] counts as broken, and so does one that trickles (see `blob`). A small document has a few times
//!   as long.
//! - Credentials are only sent to the registry that they are for, and to the token service that it names, over a
//!   connection that is no less secure.
//! - A tag is resolved once. Everything else is requested by digest, so that a tag that moves in the meantime cannot
//!   mix two images.

mod agents;
mod auth;
mod blob;
mod credentials;
mod download;
mod endpoint;
mod error;
#[cfg(test)]
mod error_tests;
mod helper;
mod http;
mod login;
mod options;
mod pace;
mod parts;
mod push;
mod settings;
mod slots;
mod tags;
mod tls;
mod upload;

use std::sync::Arc;

pub(crate) use blob::{RemoteBlob, RemoteReader};
pub(crate) use download::{DownloadError, download};
pub(crate) use error::RegistryError;
pub(crate) use login::{Hit, Kept, check_login, login_file, remove_login, search, store_login};
pub(crate) use options::Credentials;
pub(crate) use options::{Notice, Options};
pub(crate) use push::{PushImage, PushLayer, PushProgress, Pushed, push};
pub(crate) use settings::Settings;
pub(crate) use tags::tags;

use super::budget::Budget;
use super::choose::{Documents, Search};
use super::{Blob, SourceError, SourceImage};
use crate::image::{Descriptor, Document, MAX_DOCUMENT, Platform, digest_of};
use crate::names::{Digest, Reference};
use endpoint::Endpoint;
use http::Http;

/// Finds an image in its registry, or in a mirror of it.
pub(crate) fn find(reference: &Reference, platform: &Platform, options: &Options) -> Result<SourceImage, SourceError> {
    let http = Arc::new(Http::new(options));
    let mut places = options.settings.places(reference);
    let origin = places.pop();
    for place in &places {
        let found = Endpoint::open(place, &http, options)
            .map_err(SourceError::from)
            .and_then(|endpoint| find_at(endpoint, reference, platform));
        match found {
            Ok(image) => return Ok(image),
            Err(error @ SourceError::Registry(RegistryError::Deadline { .. })) => return Err(error),
            Err(error) => (options.notice)(&format!("skipping the mirror `{}`: {error}", place.host)),
        }
    }
    let origin = origin.ok_or(RegistryError::Protocol { host: reference.domain.clone(), why: "no place".into() })?;
    find_at(Endpoint::open(&origin, &http, options)?, reference, platform)
}

fn find_at(endpoint: Endpoint, reference: &Reference, platform: &Platform) -> Result<SourceImage, SourceError> {
    let remote = Remote { endpoint: Arc::new(endpoint) };
    let wanted = match &reference.digest {
        Some(digest) => digest.to_string(),
        None => reference.tag.clone().unwrap_or_else(|| "latest".into()),
    };
    let name = reference.familiar();
    let bytes = twice(|| {
        let bytes = remote.endpoint.manifest(&wanted, &name)?;
        reference.digest.map_or(Ok(()), |expected| remote.check(&name, expected, &bytes))?;
        Ok(bytes)
    })?;
    let asked_for = digest_of(&bytes);
    let document =
        Document::parse(&bytes).map_err(|cause| SourceError::Document { member: reference.familiar(), cause })?;
    let mut search = Search::new(&remote, platform, Budget::of_registry());
    let Some(mut image) = search.document(document, bytes, false, 0)? else {
        return Err(SourceError::Platform {
            origin: reference.familiar(),
            wanted: platform.to_string(),
            found: search.refusal().unwrap_or_else(|| "none".into()),
        });
    };
    // If the reference has a digest, its tag was not looked up, so drop it.
    let tag = reference.tag.clone().filter(|_| reference.digest.is_none());
    image.names = vec![Reference { tag, ..reference.clone() }];
    image.repo_digests = vec![asked_for];
    image.repo_digests.extend(image.manifest_bytes.as_deref().map(digest_of).filter(|digest| *digest != asked_for));
    Ok(image)
}

/// Requests a document again if it arrived damaged.
fn twice<T>(mut ask: impl FnMut() -> Result<T, RegistryError>) -> Result<T, RegistryError> {
    match ask() {
        Err(RegistryError::Digest { .. } | RegistryError::Size { .. }) => ask(),
        other => other,
    }
}

/// An image's documents in a registry.
struct Remote {
    endpoint: Arc<Endpoint>,
}

impl Remote {
    fn check(&self, what: &str, expected: Digest, bytes: &[u8]) -> Result<(), RegistryError> {
        let found = digest_of(bytes);
        if found == expected {
            return Ok(());
        }
        Err(RegistryError::Digest { host: self.endpoint.host().into(), what: what.into(), expected, found })
    }

    fn check_size(&self, descriptor: &Descriptor, bytes: &[u8]) -> Result<(), RegistryError> {
        let (host, what) = (self.endpoint.host().to_owned(), descriptor.digest.to_string());
        if bytes.len() as u64 != descriptor.size {
            return Err(RegistryError::Size { host, what, expected: descriptor.size, found: bytes.len() as u64 });
        }
        self.check(&what, descriptor.digest, bytes)
    }
}

impl Documents for Remote {
    fn manifest(&self, descriptor: &Descriptor) -> Result<Vec<u8>, SourceError> {
        let digest = descriptor.digest.to_string();
        Ok(twice(|| {
            let bytes = self.endpoint.manifest(&digest, &digest)?;
            self.check_size(descriptor, &bytes)?;
            Ok(bytes)
        })?)
    }

    fn config(&self, descriptor: &Descriptor) -> Result<Vec<u8>, SourceError> {
        let what = descriptor.digest.to_string();
        if descriptor.size > MAX_DOCUMENT {
            return Err(RegistryError::TooLarge { host: self.endpoint.host().into(), what, limit: MAX_DOCUMENT }.into());
        }
        Ok(twice(|| {
            let bytes = self.endpoint.small_blob(&what)?;
            self.check_size(descriptor, &bytes)?;
            Ok(bytes)
        })?)
    }

    fn layer(&self, descriptor: &Descriptor) -> Result<Blob, SourceError> {
        let blob = RemoteBlob::new(self.endpoint.clone(), descriptor.digest, descriptor.size);
        Ok(Blob::remote(blob, descriptor.size))
    }

    fn name(&self, descriptor: &Descriptor) -> String {
        descriptor.digest.to_string()
    }
}
