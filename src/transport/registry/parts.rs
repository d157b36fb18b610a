//! Reads a large layer over several connections at the same time.
//!
//! A connection to a registry is often slower than the link, and slower than decompression. A large layer is therefore
//! requested in parts of 1 MiB (`Range`), each by a thread of its own, and returned in order. The first bytes are
//! returned while the others arrive.
//!
//! Every part that is requested or not completely read holds a slot. One command has a fixed number of slots for all its
//! layers, which bounds connections and memory. In addition, each layer may always have one part, so that no layer
//! waits for another.
//!
//! A part whose connection breaks resumes where it stopped. With anything else (no support for ranges, another version
//! of the layer, a registry that limits requests, a part that fails repeatedly) the reader stops, and the caller reads
//! the rest over one connection, which also decides what is an error. The store verifies the digest of the whole layer.

use std::collections::VecDeque;
use std::io::{self, Read};
use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use ureq::http::{Response, StatusCode};
use ureq::{Body, BodyReader, ResponseExt};

use super::RegistryError;
use super::endpoint::{Endpoint, RequestSpec, declared_digest};
use super::http::Attempt;
use super::pace::Pace;
use super::slots::{Slot, Slots};
use crate::names::Digest;
use crate::sys::thread;

const PART: u64 = 1 << 20;
/// Minimum size of a layer that is read in parts.
pub(super) const LARGE: u64 = 8 * PART;
/// Maximum number of connections for one layer.
const CONNECTIONS: usize = 8;
/// Maximum number of attempts at a part without progress, and of requests for it.
const TRIES: u32 = 3;
const MOST_REQUESTS: u32 = 16;
/// How many bytes are handed to the reader at a time.
const PIECE: usize = 64 << 10;

/// Why a layer is not read in parts any further, and how long the registry asks to wait.
#[derive(Debug)]
pub(super) struct Stopped {
    pub error: Box<RegistryError>,
    pub after: Option<Duration>,
}

impl From<RegistryError> for Stopped {
    fn from(error: RegistryError) -> Self {
        Self { error: Box::new(error), after: None }
    }
}

/// The answer to the first request.
pub(super) enum Start {
    Parts(Parts),
    /// The registry does not support ranges, and sends the whole layer.
    Whole(Response<Body>),
}

/// Reads a layer in parts, from its start.
pub(super) struct Parts {
    layer: Arc<Layer>,
    /// The offset of the next part to request.
    next: u64,
    /// The parts that are requested and not completely read, in order.
    parts: VecDeque<Arc<Part>>,
    /// How many bytes of the first part were read.
    used: usize,
}

/// What the threads of one layer share.
struct Layer {
    endpoint: Arc<Endpoint>,
    slots: Arc<Slots>,
    digest: Digest,
    size: u64,
    etag: Option<String>,
    /// Where the registry redirected the last request to. Another redirect for each part would double the requests.
    target: Mutex<Option<String>>,
    /// The reader is gone.
    closed: AtomicBool,
}

struct Part {
    len: usize,
    arrived: Mutex<Arrived>,
    changed: Condvar,
    /// Held for as long as the bytes are in memory.
    _slot: Option<Slot>,
}

#[derive(Default)]
struct Arrived {
    bytes: Vec<u8>,
    failed: Option<Stopped>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Parts {
    /// Requests the first part. `failures` counts failed attempts.
    pub(super) fn start(
        endpoint: &Arc<Endpoint>,
        digest: Digest,
        size: u64,
        failures: &mut u32,
    ) -> Result<Start, Stopped> {
        let mut layer = Layer {
            endpoint: endpoint.clone(),
            slots: endpoint.http().slots.clone(),
            digest,
            size,
            etag: None,
            target: Mutex::default(),
            closed: AtomicBool::new(false),
        };
        let range = 0..PART.min(size);
        let response = loop {
            match layer.request(&range) {
                Attempt::Done(response) => break response,
                Attempt::Failed(error) => return Err(error.into()),
                Attempt::Again { error, after } if layer.is_limit(&error) => {
                    return Err(Stopped { error: error.into(), after });
                }
                Attempt::Again { error, after } => endpoint.http().pause(failures, error, after)?,
            }
        };
        if response.status() != StatusCode::PARTIAL_CONTENT {
            return Ok(Start::Whole(response));
        }
        layer.etag = etag(&response);
        let body = layer.body(response, &range)?;
        let mut parts = Self { layer: Arc::new(layer), next: 0, parts: VecDeque::new(), used: 0 };
        parts.request_next(None, Some(body)).map_err(|error| parts.layer.broken(error))?;
        Ok(Start::Parts(parts))
    }

    /// Waits for the next bytes, and copies them. `Ok(0)` is the end of the layer.
    pub(super) fn read(&mut self, buffer: &mut [u8]) -> Result<usize, Stopped> {
        loop {
            self.request_more()?;
            let Some(part) = self.parts.front() else { return Ok(0) };
            let arrived = lock(&part.arrived);
            let waits = |arrived: &mut Arrived| arrived.bytes.len() == self.used && arrived.failed.is_none();
            let mut arrived = part.changed.wait_while(arrived, waits).unwrap_or_else(PoisonError::into_inner);
            let new = &arrived.bytes[self.used..];
            if new.is_empty() {
                let stopped = arrived.failed.take();
                return Err(stopped.unwrap_or_else(|| self.layer.broken(io::ErrorKind::UnexpectedEof.into()).into()));
            }
            let got = new.len().min(buffer.len());
            buffer[..got].copy_from_slice(&new[..got]);
            self.used += got;
            drop(arrived);
            if self.used == part.len {
                self.parts.pop_front();
                self.used = 0;
            }
            if got > 0 {
                return Ok(got);
            }
        }
    }

    /// Requests as many parts as there are slots. One part is always requested, unless the registry limits requests.
    fn request_more(&mut self) -> Result<(), RegistryError> {
        while self.next < self.layer.size && self.parts.len() < CONNECTIONS {
            if self.parts.is_empty() && self.layer.slots.are_limited() {
                return Err(self.layer.broken(io::Error::other("the registry limits requests")));
            }
            let slot = self.layer.slots.take();
            let is_only = self.parts.is_empty();
            if slot.is_none() && !is_only {
                break;
            }
            match self.request_next(slot, None) {
                Err(error) if is_only => return Err(self.layer.broken(error)),
                // The system cannot start a further thread now.
                Err(_) => break,
                Ok(()) => {}
            }
        }
        Ok(())
    }

    fn request_next(&mut self, slot: Option<Slot>, body: Option<BodyReader<'static>>) -> io::Result<()> {
        let range = self.next..(self.next + PART).min(self.layer.size);
        let len = (range.end - range.start) as usize;
        let part = Arc::new(Part { len, arrived: Mutex::default(), changed: Condvar::new(), _slot: slot });
        let (layer, filled, end) = (self.layer.clone(), part.clone(), range.end);
        thread::detached(move || {
            let done = layer.fetch(&filled, range, body);
            lock(&filled.arrived).failed = done.err();
            filled.changed.notify_one();
        })?;
        self.parts.push_back(part);
        self.next = end;
        Ok(())
    }
}

impl Drop for Parts {
    fn drop(&mut self) {
        self.layer.closed.store(true, Ordering::Relaxed);
    }
}

impl Layer {
    /// Fetches one part. Resumes it after a connection breaks.
    fn fetch(&self, part: &Part, range: Range<u64>, mut body: Option<BodyReader<'static>>) -> Result<(), Stopped> {
        let mut pace = Pace::new(self.endpoint.http().stall * 2);
        let (mut failures, mut requests) = (0, u32::from(body.is_some()));
        let mut buffer = vec![0; PIECE];
        lock(&part.arrived).bytes.reserve_exact(part.len);
        let mut left = range;
        while !left.is_empty() {
            if self.closed.load(Ordering::Relaxed) {
                return Ok(());
            }
            if let Some(trouble) = pace.trouble() {
                return Err(self.broken(trouble).into());
            }
            let (mut reader, began) = match body.take() {
                Some(reader) => (reader, Instant::now()),
                None if requests == MOST_REQUESTS => {
                    return Err(self.broken(io::Error::other("a part took too many requests")).into());
                }
                None => {
                    requests += 1;
                    match self.connect(&left) {
                        Attempt::Done(reader) => (reader, Instant::now()),
                        Attempt::Failed(error) => return Err(error.into()),
                        Attempt::Again { error, after } => {
                            self.pause(&mut failures, error, after)?;
                            continue;
                        }
                    }
                }
            };
            let most = (left.end - left.start).min(PIECE as u64) as usize;
            let broken = match reader.read(&mut buffer[..most]) {
                Ok(0) => io::ErrorKind::UnexpectedEof.into(),
                Ok(got) => {
                    failures = 0;
                    left.start += got as u64;
                    let is_slow = pace.is_slow(began.elapsed(), got as u64);
                    if left.is_empty() {
                        // At its end, the agent keeps the connection for the next request.
                        let _ = reader.read(&mut [0]);
                    }
                    lock(&part.arrived).bytes.extend_from_slice(&buffer[..got]);
                    part.changed.notify_one();
                    body = (!is_slow).then_some(reader);
                    continue;
                }
                Err(error) => error,
            };
            self.pause(&mut failures, self.broken(broken), None)?;
        }
        Ok(())
    }

    /// Waits before the next attempt at a part. Fails after a few attempts, or if the registry requests a pause: one
    /// connection then waits for all.
    fn pause(&self, failures: &mut u32, error: RegistryError, after: Option<Duration>) -> Result<(), Stopped> {
        if *failures + 1 == TRIES || self.is_limit(&error) || after.is_some() {
            return Err(Stopped { error: error.into(), after });
        }
        Ok(self.endpoint.http().pause(failures, error, after)?)
    }

    /// Whether the registry answered that there are too many requests. No further layer is then read in parts.
    fn is_limit(&self, error: &RegistryError) -> bool {
        let is_limit = matches!(error, RegistryError::Status { status: 429, .. });
        self.slots.limited.fetch_or(is_limit, Ordering::Relaxed);
        is_limit
    }

    fn broken(&self, cause: io::Error) -> RegistryError {
        RegistryError::Broken { host: self.endpoint.host().into(), what: self.digest.to_string(), cause }
    }

    fn connect(&self, range: &Range<u64>) -> Attempt<BodyReader<'static>> {
        match self.request(range) {
            Attempt::Done(response) => match self.body(response, range) {
                Ok(body) => Attempt::Done(body),
                Err(error) => Attempt::Failed(error),
            },
            Attempt::Again { error, after } => Attempt::Again { error, after },
            Attempt::Failed(error) => Attempt::Failed(error),
        }
    }

    fn request(&self, range: &Range<u64>) -> Attempt<Response<Body>> {
        let what = self.digest.to_string();
        let mut headers = vec![("range", format!("bytes={}-{}", range.start, range.end - 1))];
        headers.extend(self.etag.clone().map(|etag| ("if-range", etag)));
        let path = format!("blobs/{what}");
        let ask = |path: &str| {
            let headers = headers.clone();
            let spec = RequestSpec { method: "GET", path, headers, what: &what, ..RequestSpec::default() };
            self.endpoint.attempt(&spec, &[])
        };
        let target = lock(&self.target).clone();
        if let Some(target) = target {
            match ask(&target) {
                // The URL may be valid for a limited time only.
                Attempt::Failed(_) => *lock(&self.target) = None,
                other => return other,
            }
        }
        let answer = ask(&path);
        if let Attempt::Done(response) = &answer {
            let found = response.get_uri().to_string();
            *lock(&self.target) = (found != self.endpoint.url(&path)).then_some(found);
        }
        answer
    }

    /// Returns the body of a response, if it is the requested part or its beginning.
    fn body(&self, response: Response<Body>, range: &Range<u64>) -> Result<BodyReader<'static>, RegistryError> {
        let host = self.endpoint.host().to_owned();
        if let Some(found) = declared_digest(&response).filter(|found| *found != self.digest) {
            return Err(RegistryError::Digest { host, what: self.digest.to_string(), expected: self.digest, found });
        }
        if response.status() != StatusCode::PARTIAL_CONTENT || etag(&response) != self.etag {
            return Err(RegistryError::Protocol { host, why: "another version of a layer instead of a part".into() });
        }
        let shown = response.headers().get("content-range").and_then(|value| value.to_str().ok()).unwrap_or_default();
        let sent = content_range(shown).filter(|(sent, total)| {
            sent.start == range.start && sent.end <= range.end && total.is_none_or(|total| total == self.size)
        });
        let length = response.body().content_length();
        match sent {
            Some((sent, _)) if length.is_none_or(|length| length == sent.end - sent.start) => {
                Ok(response.into_body().into_with_config().limit(u64::MAX).reader())
            }
            _ => Err(RegistryError::Protocol { host, why: format!("the range `{}` of a layer", shown.escape_debug()) }),
        }
    }
}

/// Returns the strong validator of a response.
fn etag(response: &Response<Body>) -> Option<String> {
    let etag = response.headers().get("etag")?.to_str().ok()?;
    etag.starts_with('"').then(|| etag.to_owned())
}

/// Parses `Content-Range: bytes FIRST-LAST/TOTAL`. The total may be unknown (`*`).
fn content_range(text: &str) -> Option<(Range<u64>, Option<u64>)> {
    let (range, total) = text.strip_prefix("bytes ")?.split_once('/')?;
    let (first, last) = range.split_once('-')?;
    let (first, last) = (first.parse().ok()?, last.parse::<u64>().ok()?);
    let total = if total == "*" { None } else { Some(total.parse().ok()?) };
    (first <= last).then_some((first..last.checked_add(1)?, total))
}

#[cfg(test)]
mod tests {
    use super::super::slots::SLOTS;
    use super::*;

    #[test]
    fn content_ranges() {
        for (text, want) in [
            ("bytes 0-0/1", Some((0..1, Some(1)))),
            ("bytes 5-9/*", Some((5..10, None))),
            ("bytes 9-5/20", None),
            ("bytes */20", None),
            ("bytes 5-/20", None),
            ("bytes 0-18446744073709551615/*", None),
            ("0-9/10", None),
            ("", None),
        ] {
            assert_eq!(content_range(text), want, "{text}");
        }
    }

    #[test]
    fn slots_are_bounded_and_come_back() {
        let slots = Arc::new(Slots::default());
        let taken: Vec<_> = std::iter::from_fn(|| slots.take()).collect();
        assert_eq!(taken.len(), SLOTS);
        drop(taken);
        assert_eq!(slots.free.load(Ordering::Relaxed), SLOTS);
    }
}
