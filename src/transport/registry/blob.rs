//! A layer that comes over the network, going on where it broke.

use std::fmt;
use std::io::{self, Read};
use std::sync::Arc;

use ureq::BodyReader;
use ureq::http::{Response, StatusCode};

use super::RegistryError;
use super::endpoint::{Ask, Endpoint};
use super::http::{self, Attempt};
use crate::names::Digest;

/// A blob of a registry; reading it makes the requests.
#[derive(Clone)]
pub struct RemoteBlob {
    endpoint: Arc<Endpoint>,
    digest: Digest,
    size: u64,
}

impl fmt::Debug for RemoteBlob {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "RemoteBlob({} of {})", self.digest, self.endpoint.host())
    }
}

impl RemoteBlob {
    pub(super) fn new(endpoint: Arc<Endpoint>, digest: Digest, size: u64) -> Self {
        Self { endpoint, digest, size }
    }

    pub fn open(&self) -> RemoteReader {
        RemoteReader { blob: self.clone(), at: 0, body: None, failures: 0 }
    }
}

/// Reads a remote blob from its beginning to the size that its descriptor promised, never beyond.
pub struct RemoteReader {
    blob: RemoteBlob,
    at: u64,
    body: Option<BodyReader<'static>>,
    /// Since bytes came last.
    failures: u32,
}

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
        loop {
            let mut body = match self.body.take() {
                Some(body) => body,
                None => self.connect().map_err(told)?,
            };
            let broken = match body.read(&mut buffer[..want]) {
                Ok(0) => io::Error::new(
                    io::ErrorKind::UnexpectedEof,
                    format!("it ended after {} of {} bytes", self.at, self.blob.size),
                ),
                Ok(got) => {
                    self.at += got as u64;
                    self.failures = 0;
                    self.body = Some(body);
                    return Ok(got);
                }
                Err(error) if http::is_passing(&error) => error,
                Err(error) => return Err(error),
            };
            let error = self.error(broken);
            self.blob.endpoint.http().pause(&mut self.failures, error, None).map_err(told)?;
        }
    }
}

impl RemoteReader {
    fn error(&self, cause: io::Error) -> RegistryError {
        let (host, what) = (self.blob.endpoint.host().to_owned(), self.blob.digest.to_string());
        RegistryError::Broken { host, what, cause }
    }

    fn connect(&mut self) -> Result<BodyReader<'static>, RegistryError> {
        let what = self.blob.digest.to_string();
        let path = format!("blobs/{what}");
        let headers = if self.at > 0 { vec![("range", format!("bytes={}-", self.at))] } else { Vec::new() };
        let ask = Ask { method: "GET", path: &path, headers, what: &what, ..Ask::default() };
        loop {
            let (error, after) = match self.blob.endpoint.attempt(&ask, &[]) {
                Attempt::Done(response) => match self.position(response) {
                    Ok(body) => return Ok(body),
                    Err(error @ RegistryError::Broken { .. }) => (error, None),
                    Err(error) => return Err(error),
                },
                Attempt::Failed(error) => return Err(error),
                Attempt::Again { error, after } => (error, after),
            };
            self.blob.endpoint.http().pause(&mut self.failures, error, after)?;
        }
    }

    /// The body of an answer, at the place where we are: a server that knows no ranges begins at the beginning.
    fn position(&self, response: Response<ureq::Body>) -> Result<BodyReader<'static>, RegistryError> {
        let host = self.blob.endpoint.host().to_owned();
        let what = self.blob.digest.to_string();
        let partial = response.status() == StatusCode::PARTIAL_CONTENT;
        if partial && self.at == 0 {
            return Err(RegistryError::Protocol {
                host,
                why: "a part of a layer where the whole was asked for".into(),
            });
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
        let mut body = response.into_body().into_with_config().limit(u64::MAX).reader();
        let skipped = io::copy(&mut (&mut body).take(skip), &mut io::sink()).map_err(|cause| self.error(cause))?;
        if skipped < skip {
            return Err(self.error(io::ErrorKind::UnexpectedEof.into()));
        }
        Ok(body)
    }
}

/// A registry's error as what `Read` answers; the store takes it out again to show its causes and hint.
fn told(error: RegistryError) -> io::Error {
    io::Error::other(error)
}
