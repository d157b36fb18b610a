//! Reads a layer from the network, and resumes after a connection breaks.
//!
//! A large layer is first read over several connections (see `parts`), and over one if the registry does not support
//! that.
//!
//! The agent's own timeout ends a connection that sends nothing. A connection that trickles, or that breaks after every
//! few bytes, could delay a pull for years without ever being silent. Each time window must therefore deliver a minimum
//! of bytes, or the connection counts as broken.

use std::fmt;
use std::io::{self, Read};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use ureq::BodyReader;
use ureq::http::{Response, StatusCode};

use super::RegistryError;
use super::endpoint::{Endpoint, RequestSpec, declared_digest};
use super::http::{self, Attempt};
use super::pace::Pace;
use super::parts::{LARGE, Parts, Start, Stopped};
use crate::names::Digest;

/// A blob of a registry. Reading it makes the requests.
#[derive(Clone)]
pub(crate) struct RemoteBlob {
    endpoint: Arc<Endpoint>,
    digest: Digest,
    size: u64,
    /// Whether to read it over one connection.
    in_order: Arc<AtomicBool>,
}

impl fmt::Debug for RemoteBlob {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "RemoteBlob({} of {})", self.digest, self.endpoint.host())
    }
}

impl RemoteBlob {
    pub(super) fn new(endpoint: Arc<Endpoint>, digest: Digest, size: u64) -> Self {
        Self { endpoint, digest, size, in_order: Arc::new(AtomicBool::new(size < LARGE)) }
    }

    /// Reads it over one connection from now on.
    pub(crate) fn read_in_order(&self) {
        self.in_order.store(true, Ordering::Relaxed);
    }

    pub(crate) fn host(&self) -> &str {
        self.endpoint.host()
    }

    pub(crate) fn open(&self) -> RemoteReader {
        let pace = Pace::new(self.endpoint.http().stall * 2);
        RemoteReader { blob: self.clone(), at: 0, parts: None, body: None, failures: 0, requests: 0, received: 0, pace }
    }
}

/// Reads a remote blob from its start up to the size in its descriptor, never beyond.
pub struct RemoteReader {
    blob: RemoteBlob,
    at: u64,
    /// If it is read over several connections.
    parts: Option<Parts>,
    /// The body of a response, and how many of its next bytes to skip because they were read before.
    body: Option<(BodyReader<'static>, u64)>,
    /// Failures since the last bytes arrived.
    failures: u32,
    /// Requests so far. Progress resets `failures` but not this count, because a server that sends little for each
    /// request would otherwise never reach a limit.
    requests: u64,
    /// All bytes received, including repeated ones.
    received: u64,
    pace: Pace,
}

/// Maximum number of requests for a blob, in addition to one for each `BYTES_OF_A_REQUEST`.
const MOST_REQUESTS: u64 = 64;
const BYTES_OF_A_REQUEST: u64 = 64 << 10;
/// Maximum number of times that a blob may be sent (by a server that does not support ranges), in addition to
/// `MOST_BYTES`.
const MOST_TIMES: u64 = 4;
const MOST_BYTES: u64 = 64 << 20;

impl fmt::Debug for RemoteReader {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "RemoteReader({:?} at {})", self.blob, self.at)
    }
}

impl Read for RemoteReader {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let want = (self.blob.size - self.at).min(buffer.len() as u64) as usize;
        if want == 0 {
            return Ok(0);
        }
        if let Some(got) = self.read_parts(&mut buffer[..want]).map_err(into_io)? {
            return Ok(got);
        }
        let mut began = Instant::now();
        loop {
            if let Some(trouble) = self.pace.trouble() {
                return Err(into_io(self.error(trouble)));
            }
            let (is_new, (mut body, skip)) = match self.body.take() {
                Some(body) => (false, body),
                None => (true, self.connect().map_err(into_io)?),
            };
            let most = if skip > 0 { skip.min(buffer.len() as u64) as usize } else { want };
            let broken = match body.read(&mut buffer[..most]) {
                Ok(0) => io::Error::new(
                    io::ErrorKind::UnexpectedEof,
                    format!("it ended after {} of {} bytes", self.at, self.blob.size),
                ),
                Ok(got) => {
                    self.received += got as u64;
                    let is_slow = self.pace.is_slow(began.elapsed(), got as u64);
                    began = Instant::now();
                    // Replace a slow connection, because another one may be faster. The first read of a new connection
                    // is exempt: the time before it includes a pause, which the server may have requested.
                    self.body = (is_new || !is_slow).then_some((body, skip.saturating_sub(got as u64)));
                    if skip > 0 {
                        continue;
                    }
                    self.at += got as u64;
                    self.failures = 0;
                    return Ok(got);
                }
                Err(error) if http::is_passing(&error) => error,
                Err(error) => return Err(error),
            };
            let error = self.error(broken);
            self.blob.endpoint.http().pause(&mut self.failures, error, None).map_err(into_io)?;
        }
    }
}

impl RemoteReader {
    /// Reads over several connections. `None`: the rest is to be read over one connection.
    fn read_parts(&mut self, buffer: &mut [u8]) -> Result<Option<usize>, RegistryError> {
        let endpoint = &self.blob.endpoint;
        if self.at == 0 && self.parts.is_none() && !self.blob.in_order.load(Ordering::Relaxed) {
            if endpoint.http().slots.are_limited() {
                self.blob.read_in_order();
                return Ok(None);
            }
            match Parts::start(endpoint, self.blob.digest, self.blob.size, &mut self.failures) {
                Ok(Start::Parts(parts)) => self.parts = Some(parts),
                Ok(Start::Whole(response)) => {
                    self.blob.read_in_order();
                    self.body = Some(self.position(response)?);
                    return Ok(None);
                }
                Err(stopped) => return self.stop_parts(stopped).map(|()| None),
            }
        }
        let Some(parts) = &mut self.parts else { return Ok(None) };
        match parts.read(buffer) {
            Ok(got) => {
                self.at += got as u64;
                self.failures = 0;
                Ok(Some(got))
            }
            Err(stopped) => self.stop_parts(stopped).map(|()| None),
        }
    }

    fn stop_parts(&mut self, stopped: Stopped) -> Result<(), RegistryError> {
        self.parts = None;
        self.blob.read_in_order();
        let Stopped { error, after } = stopped;
        tracing::debug!(%error, at = self.at, "reading the rest of a layer over one connection");
        match (*error, after) {
            (error, Some(_)) => self.blob.endpoint.http().pause(&mut self.failures, error, after),
            (error @ RegistryError::Deadline { .. }, _) => Err(error),
            _ => Ok(()),
        }
    }

    fn error(&self, cause: io::Error) -> RegistryError {
        let (host, what) = (self.blob.endpoint.host().to_owned(), self.blob.digest.to_string());
        RegistryError::Broken { host, what, cause }
    }

    fn connect(&mut self) -> Result<(BodyReader<'static>, u64), RegistryError> {
        let what = self.blob.digest.to_string();
        let path = format!("blobs/{what}");
        let headers = if self.at > 0 { vec![("range", format!("bytes={}-", self.at))] } else { Vec::new() };
        let spec = RequestSpec { method: "GET", path: &path, headers, what: &what, ..RequestSpec::default() };
        loop {
            self.requests += 1;
            let most = (
                MOST_REQUESTS + self.blob.size / BYTES_OF_A_REQUEST,
                self.blob.size.saturating_mul(MOST_TIMES) + MOST_BYTES,
            );
            if self.requests > most.0 || self.received > most.1 {
                let host = self.blob.endpoint.host().to_owned();
                return Err(RegistryError::TinyReads { host, what, requests: self.requests - 1 });
            }
            let (error, after) = match self.blob.endpoint.attempt(&spec, &[]) {
                Attempt::Done(response) => return self.position(response),
                Attempt::Failed(error) => return Err(error),
                Attempt::Again { error, after } => (error, after),
            };
            self.blob.endpoint.http().pause(&mut self.failures, error, after)?;
        }
    }

    /// Returns the body of a response, and how many of its bytes to skip. A server that does not support ranges starts
    /// at the beginning.
    fn position(&self, response: Response<ureq::Body>) -> Result<(BodyReader<'static>, u64), RegistryError> {
        let host = self.blob.endpoint.host().to_owned();
        let what = self.blob.digest.to_string();
        let partial = response.status() == StatusCode::PARTIAL_CONTENT;
        if let Some(found) = declared_digest(&response).filter(|into_io| *into_io != self.blob.digest) {
            return Err(RegistryError::Digest { host, what, expected: self.blob.digest, found });
        }
        if partial && self.at == 0 {
            return Err(RegistryError::Protocol { host, why: "a part of a layer instead of the whole layer".into() });
        }
        if partial {
            let range = response.headers().get("content-range").and_then(|value| value.to_str().ok());
            let begin = range.and_then(|range| range.strip_prefix("bytes ")?.split_once('-')?.0.parse().ok());
            if begin != Some(self.at) {
                let why = format!("the range `{}` of a layer", range.unwrap_or_default().escape_debug());
                return Err(RegistryError::Protocol { host, why });
            }
        }
        let skip = if partial { 0 } else { self.at };
        let expected = self.blob.size - self.at + skip;
        if let Some(found) = response.body().content_length().filter(|length| *length != expected) {
            return Err(RegistryError::Size { host, what, expected, found });
        }
        Ok((response.into_body().into_with_config().limit(u64::MAX).reader(), skip))
    }
}

/// Converts a registry's error for `Read`. The store extracts it again to show its causes and hint.
fn into_io(error: RegistryError) -> io::Error {
    io::Error::other(error)
}
