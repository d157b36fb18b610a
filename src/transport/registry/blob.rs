//! A layer that comes over the network, going on where it broke.
//!
//! A line that is silent breaks by the agent's own timeout. One that trickles, or breaks after every few bytes, would hold a pull for years
//! without ever being silent: so each window of time must bring some bytes, or the line counts as broken too.

use std::fmt;
use std::io::{self, Read};
use std::sync::Arc;
use std::time::{Duration, Instant};

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
        let window = self.endpoint.http().stall * 2;
        let pace = Pace { window, spent: Duration::ZERO, bytes: 0, slow: 0 };
        RemoteReader { blob: self.clone(), at: 0, body: None, failures: 0, pace }
    }
}

/// Reads a remote blob from its beginning to the size that its descriptor promised, never beyond.
pub struct RemoteReader {
    blob: RemoteBlob,
    at: u64,
    /// An answer's body, and how much of it lies before where we are.
    body: Option<(BodyReader<'static>, u64)>,
    /// Since bytes came last.
    failures: u32,
    pace: Pace,
}

/// Bytes a second that a line must bring: a tenth of an old modem.
const FLOOR: u64 = 512;
/// Windows in a row that may bring less.
const SLOW_WINDOWS: u32 = 3;

/// Whether a line keeps up with [`FLOOR`], by the time that was spent waiting for it alone: a full disk's writer is not its fault.
struct Pace {
    window: Duration,
    spent: Duration,
    bytes: u64,
    /// Windows in a row with too little.
    slow: u32,
}

impl Pace {
    /// Takes down what a read brought; whether a window has ended that brought too little.
    fn is_slow(&mut self, spent: Duration, bytes: u64) -> bool {
        self.spent += spent;
        self.bytes += bytes;
        if self.spent < self.window {
            return false;
        }
        let is_slow = self.bytes < FLOOR * self.window.as_secs();
        self.slow = if is_slow { self.slow + 1 } else { 0 };
        (self.spent, self.bytes) = (Duration::ZERO, 0);
        is_slow
    }

    /// The error, once that has been so for too long.
    fn trouble(&self) -> Option<io::Error> {
        let seconds = self.window.as_secs() * u64::from(SLOW_WINDOWS);
        let why = || format!("it brings less than {FLOOR} bytes a second, for {seconds} seconds now");
        (self.slow >= SLOW_WINDOWS).then(|| io::Error::new(io::ErrorKind::TimedOut, why()))
    }
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
        let mut began = Instant::now();
        loop {
            if let Some(trouble) = self.pace.trouble() {
                return Err(told(self.error(trouble)));
            }
            let (is_new, (mut body, skip)) = match self.body.take() {
                Some(body) => (false, body),
                None => (true, self.connect().map_err(told)?),
            };
            let most = if skip > 0 { skip.min(buffer.len() as u64) as usize } else { want };
            let broken = match body.read(&mut buffer[..most]) {
                Ok(0) => io::Error::new(
                    io::ErrorKind::UnexpectedEof,
                    format!("it ended after {} of {} bytes", self.at, self.blob.size),
                ),
                Ok(got) => {
                    let is_slow = self.pace.is_slow(began.elapsed(), got as u64);
                    began = Instant::now();
                    // Another connection may be better than a slow one. The time before a new one was a pause, maybe one that was asked for.
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
            self.blob.endpoint.http().pause(&mut self.failures, error, None).map_err(told)?;
        }
    }
}

impl RemoteReader {
    fn error(&self, cause: io::Error) -> RegistryError {
        let (host, what) = (self.blob.endpoint.host().to_owned(), self.blob.digest.to_string());
        RegistryError::Broken { host, what, cause }
    }

    fn connect(&mut self) -> Result<(BodyReader<'static>, u64), RegistryError> {
        let what = self.blob.digest.to_string();
        let path = format!("blobs/{what}");
        let headers = if self.at > 0 { vec![("range", format!("bytes={}-", self.at))] } else { Vec::new() };
        let ask = Ask { method: "GET", path: &path, headers, what: &what, ..Ask::default() };
        loop {
            let (error, after) = match self.blob.endpoint.attempt(&ask, &[]) {
                Attempt::Done(response) => return self.position(response),
                Attempt::Failed(error) => return Err(error),
                Attempt::Again { error, after } => (error, after),
            };
            self.blob.endpoint.http().pause(&mut self.failures, error, after)?;
        }
    }

    /// The body of an answer, and how much of it lies before where we are: a server that knows no ranges begins at the beginning.
    fn position(&self, response: Response<ureq::Body>) -> Result<(BodyReader<'static>, u64), RegistryError> {
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
        Ok((response.into_body().into_with_config().limit(u64::MAX).reader(), skip))
    }
}

/// A registry's error as what `Read` answers; the store takes it out again to show its causes and hint.
fn told(error: RegistryError) -> io::Error {
    io::Error::other(error)
}
