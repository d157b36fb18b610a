//! Registries: the OCI distribution API (docker's registry v2), as a client that waits, asks again and checks everything.
//!
//! ```text
//! find ─ endpoints: mirrors, then the registry itself ─ manifest by tag or digest ─ index → platform ─ config
//!   └─→ SourceImage, its layers as [`RemoteBlob`]s ── read by the store like any file: packed bytes in, digest checked there
//! push ── what the registry has not, blob by blob, then the manifest
//! ```
//!
//! Rules:
//! - Nothing that a registry says is believed: a document's digest is computed, a layer's is by the store, sizes bound every read.
//! - A request that failed for a reason that may pass (connection, timeout, 408, 429, 5xx) is made again, a few times, with a growing
//!   pause or the one that `Retry-After` asks for; a broken layer goes on where it broke (`Range`). Progress resets the count.
//! - One deadline (`--timeout`) bounds all of it, pauses included. A line on which nothing moves for [`Options::stall`] is broken,
//!   and so is one that trickles (see `blob`); a small document has a few times as long.
//! - Credentials go to the registry they are for, and to the token service that it names over a connection that is no weaker.
//! - A tag is resolved once; everything else is asked for by digest, so a tag that moves meanwhile cannot mix two images.

mod auth;
mod blob;
mod credentials;
mod download;
mod endpoint;
mod http;
mod push;
mod settings;
mod tls;

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

pub use blob::{RemoteBlob, RemoteReader};
pub use credentials::Credentials;
pub use download::{DownloadError, download};
pub use push::{PushImage, PushLayer, PushProgress, Pushed, push};
pub use settings::{Settings, SettingsError};

use super::choose::{Documents, Search};
use super::{Blob, SourceError, SourceImage};
use crate::image::{Descriptor, Document, MAX_DOCUMENT, Platform, digest_of};
use crate::names::{Digest, Reference};
use crate::report::Explain;
use endpoint::Endpoint;
use http::Http;

/// Told about what takes time: a registry that asks to wait, a mirror that fails.
pub type Notice = Arc<dyn Fn(&str) + Send + Sync>;

/// How to talk to registries.
#[derive(Clone)]
pub struct Options {
    /// `Some(false)`: take any certificate, and plain HTTP where there is no TLS; `Some(true)`: never.
    pub tls_verify: Option<bool>,
    /// A directory with `*.crt` (authorities), `*.cert` and `*.key` (for us), instead of certs.d.
    pub cert_dir: Option<PathBuf>,
    /// Instead of the config files of docker and podman.
    pub credentials: Option<Credentials>,
    /// The config file to take credentials from, instead of all that are known.
    pub auth_file: Option<PathBuf>,
    /// For everything together.
    pub timeout: Option<Duration>,
    /// How long a line may be silent.
    pub stall: Duration,
    /// Mirrors and registries without TLS.
    pub settings: Settings,
    pub notice: Notice,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            tls_verify: None,
            cert_dir: None,
            credentials: None,
            auth_file: None,
            timeout: None,
            stall: Duration::from_secs(30),
            settings: Settings::default(),
            notice: Arc::new(|_| ()),
        }
    }
}

impl fmt::Debug for Options {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Options").field("tls_verify", &self.tls_verify).field("timeout", &self.timeout).finish()
    }
}

/// A registry that does not do what is wanted.
#[derive(Debug, thiserror::Error)]
pub enum RegistryError {
    #[error("the registry `{host}` cannot be reached")]
    Unreachable {
        host: String,
        #[source]
        cause: ureq::Error,
    },
    #[error("the registry `{host}` is not trusted")]
    Certificate {
        host: String,
        #[source]
        cause: ureq::Error,
    },
    #[error("the registry `{host}` has no image `{what}`")]
    NotFound { host: String, what: String },
    #[error("the registry `{host}` refuses access to `{what}`{}", behind_colon(.said))]
    Denied { host: String, what: String, credentials: Option<String>, said: String },
    #[error("the registry `{host}` answered {status} for `{what}`{}", behind_colon(.said))]
    Status { host: String, what: String, status: u16, said: String },
    #[error("`{what}` from the registry `{host}` broke off")]
    Broken {
        host: String,
        what: String,
        #[source]
        cause: std::io::Error,
    },
    #[error("`{what}` from the registry `{host}` has {found} bytes, {expected} were announced")]
    Size { host: String, what: String, expected: u64, found: u64 },
    #[error("`{what}` from the registry `{host}` is larger than {limit} bytes")]
    TooLarge { host: String, what: String, limit: u64 },
    #[error("`{what}` from the registry `{host}` has the digest `{found}`, not `{expected}`")]
    Digest { host: String, what: String, expected: Digest, found: Digest },
    #[error("the registry `{host}` sent an answer that makes no sense: {why}")]
    Protocol { host: String, why: String },
    #[error("it was not done within {seconds} seconds{}", asked(.wait))]
    Deadline {
        seconds: u64,
        /// What the registry asked to wait, where that was too long.
        wait: Option<Duration>,
        /// What was in the way.
        #[source]
        cause: Option<Box<RegistryError>>,
    },
    #[error("`{}` cannot be read", path.display())]
    File {
        path: PathBuf,
        #[source]
        cause: std::io::Error,
    },
    #[error("`{}` is damaged: {why}", path.display())]
    BadFile { path: PathBuf, why: String },
    #[error("the credential helper `{helper}` failed: {why}")]
    Helper { helper: String, why: String },
    #[error("the layer `{layer}` cannot be packed")]
    Pack {
        layer: Digest,
        #[source]
        cause: std::io::Error,
    },
}

fn asked(wait: &Option<Duration>) -> String {
    wait.map_or_else(String::new, |wait| format!(", and the registry asks to wait {} s", wait.as_secs()))
}

fn behind_colon(text: &str) -> String {
    if text.is_empty() { String::new() } else { format!(": {text}") }
}

impl Explain for RegistryError {
    fn hint(&self) -> Option<String> {
        match self {
            Self::Unreachable { host, .. } => {
                Some(format!("is `{host}` the right name and up, and does a proxy (HTTPS_PROXY) stand in between?"))
            }
            Self::Certificate { host, .. } => Some(format!(
                "put its authority's certificate into `/etc/docker/certs.d/{host}/ca.crt`, or name a directory with it by `--cert-dir`; \
                 `--tls-verify=false` trusts anybody, and speaks plain HTTP where there is no TLS"
            )),
            Self::NotFound { .. } => {
                Some("check the name and the tag; a private image may hide until you log in".into())
            }
            Self::Denied { credentials: Some(origin), .. } => Some(format!(
                "the credentials from {origin} were used: log in again with `podman login` or `docker login`"
            )),
            Self::Denied { host, .. } => Some(format!(
                "log in with `podman login {host}` or `docker login {host}`, or give `--creds USER`; a name that does not exist is refused, too"
            )),
            Self::Status { status: 429, .. } => Some("too many requests: log in, wait, or use a mirror".into()),
            Self::Broken { .. } | Self::Status { .. } => Some("it was tried several times: try again later".into()),
            Self::Digest { .. } | Self::Size { .. } => {
                Some("the registry, or somebody in between, is broken or lies; nothing of it was kept".into())
            }
            Self::Deadline { wait: Some(wait), cause, seconds } => {
                let more = (wait.as_secs() + seconds).next_multiple_of(10);
                let also = cause.as_ref().and_then(|cause| cause.hint());
                Some(format!(
                    "give it more time with `--timeout {more}`{}",
                    also.map_or_else(String::new, |hint| format!("; {hint}"))
                ))
            }
            Self::Deadline { .. } => Some("give it more time with `--timeout SECONDS`".into()),
            Self::File { .. } | Self::BadFile { .. } | Self::Helper { .. } => {
                Some("`--creds USER:PASSWORD` or `--authfile FILE` does without it".into())
            }
            Self::TooLarge { .. } | Self::Protocol { .. } | Self::Pack { .. } => None,
        }
    }
}

/// Finds an image in its registry, or in a mirror of it.
pub fn find(reference: &Reference, platform: &Platform, options: &Options) -> Result<SourceImage, SourceError> {
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
            Err(error) => (options.notice)(&format!("the mirror `{}` is passed over: {error}", place.host)),
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
    let bytes = remote.endpoint.manifest(&wanted, &reference.familiar())?;
    if let Some(expected) = reference.digest {
        remote.check(&reference.familiar(), expected, &bytes)?;
    }
    let document =
        Document::parse(&bytes).map_err(|cause| SourceError::Document { member: reference.familiar(), cause })?;
    let mut search = Search::new(&remote, platform);
    let Some(mut image) = search.document(document, bytes, false, 0)? else {
        return Err(SourceError::Platform {
            origin: reference.familiar(),
            wanted: platform.to_string(),
            found: search.refusal().unwrap_or_else(|| "none".into()),
        });
    };
    // With a digest the tag says nothing: it was not looked up.
    let tag = reference.tag.clone().filter(|_| reference.digest.is_none());
    image.names = vec![Reference { tag, ..reference.clone() }];
    Ok(image)
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
        let bytes = self.endpoint.manifest(&digest, &digest)?;
        self.check_size(descriptor, &bytes)?;
        Ok(bytes)
    }

    fn config(&self, descriptor: &Descriptor) -> Result<Vec<u8>, SourceError> {
        let what = descriptor.digest.to_string();
        if descriptor.size > MAX_DOCUMENT {
            return Err(RegistryError::TooLarge { host: self.endpoint.host().into(), what, limit: MAX_DOCUMENT }.into());
        }
        let bytes = self.endpoint.small_blob(&what)?;
        self.check_size(descriptor, &bytes)?;
        Ok(bytes)
    }

    fn layer(&self, descriptor: &Descriptor) -> Result<Blob, SourceError> {
        let blob = RemoteBlob::new(self.endpoint.clone(), descriptor.digest, descriptor.size);
        Ok(Blob::remote(blob, descriptor.size))
    }

    fn name(&self, descriptor: &Descriptor) -> String {
        descriptor.digest.to_string()
    }
}
