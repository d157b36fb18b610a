//! Sends requests, and retries them after temporary failures, within the deadline.

use std::io::Read;
use std::sync::Arc;
use std::time::{Duration, Instant};

use ureq::config::Config;
use ureq::http::{Response, StatusCode, Uri};
use ureq::unversioned::resolver::{DefaultResolver, ResolvedSocketAddrs, Resolver};
use ureq::unversioned::transport::{DefaultConnector, NextTimeout};
use ureq::{Agent, Body};

use super::slots::Slots;
use super::{Notice, Options, RegistryError};
use crate::sys::thread;

/// Maximum number of attempts at a request.
pub(super) const ATTEMPTS: u32 = 6;
/// The first pause. Each further pause is twice as long.
const FIRST_PAUSE: Duration = Duration::from_millis(250);
const LONGEST_PAUSE: Duration = Duration::from_secs(20);
/// Maximum `Retry-After` if no deadline is set.
pub(super) const LONGEST_WAIT: Duration = Duration::from_secs(300);

/// Time limit of a small response, as a multiple of [`Http::stall`].
const SMALL: u32 = 4;

/// State shared by all requests of one command: the deadline and the receiver of notices.
pub(super) struct Http {
    deadline: Option<(Instant, Duration)>,
    pub stall: Duration,
    pub slots: Arc<Slots>,
    notice: Notice,
}

/// The result of one attempt.
pub(super) enum Attempt<T> {
    Done(T),
    /// A temporary failure. `after` is the minimum time before the next attempt.
    Again {
        error: RegistryError,
        after: Option<Duration>,
    },
    Failed(RegistryError),
}

impl Http {
    pub(super) fn new(options: &Options) -> Self {
        Self {
            deadline: options.timeout.map(|timeout| (Instant::now() + timeout, timeout)),
            stall: options.stall,
            slots: Arc::default(),
            notice: options.notice.clone(),
        }
    }

    pub(super) fn notice(&self, line: &str) {
        (self.notice)(line);
    }

    /// Returns the remaining time, or an error if there is none.
    pub(super) fn left(&self) -> Result<Option<Duration>, RegistryError> {
        let Some((deadline, whole)) = self.deadline else { return Ok(None) };
        match deadline.checked_duration_since(Instant::now()) {
            Some(left) if !left.is_zero() => Ok(Some(left)),
            _ => Err(RegistryError::Deadline { seconds: whole.as_secs(), wait: None, cause: None }),
        }
    }

    /// The same for one request with a small response. It is limited to a multiple of the time that a connection may be
    /// silent, so that a response that trickles does not take forever.
    pub(super) fn left_for_small(&self) -> Result<Option<Duration>, RegistryError> {
        let most = self.stall * SMALL;
        Ok(Some(self.left()?.map_or(most, |left| left.min(most))))
    }

    /// Makes attempts until one succeeds, one fails permanently, or all are used up.
    pub(super) fn retry<T>(&self, mut attempt: impl FnMut() -> Attempt<T>) -> Result<T, RegistryError> {
        let mut failures = 0;
        loop {
            self.left()?;
            match attempt() {
                Attempt::Done(value) => return Ok(value),
                Attempt::Failed(error) => return Err(error),
                Attempt::Again { error, after } => self.pause(&mut failures, error, after)?,
            }
        }
    }

    /// Waits before the next attempt. Returns the error if there should be none.
    ///
    /// Without a deadline, a requested wait longer than [`LONGEST_WAIT`] is an error that states it.
    pub(super) fn pause(
        &self,
        failures: &mut u32,
        error: RegistryError,
        after: Option<Duration>,
    ) -> Result<(), RegistryError> {
        let Some(wait) = next_pause(failures, after) else {
            // If the deadline has passed, report that, whatever the last error was.
            return Err(self.left().err().unwrap_or(error));
        };
        match self.left()? {
            // Do not wait if the next attempt would be too late.
            Some(left) if wait >= left => {
                let seconds = self.deadline.map_or(0, |(_, whole)| whole.as_secs());
                return Err(RegistryError::Deadline { seconds, wait: after, cause: Some(error.into()) });
            }
            None if wait > LONGEST_WAIT => {
                return Err(RegistryError::Wait { seconds: wait.as_secs(), cause: error.into() });
            }
            _ => {}
        }
        if wait >= Duration::from_secs(1) {
            self.notice(&format!("{error}; trying again in {} s", wait.as_secs()));
        }
        tracing::debug!(?wait, %error, "trying again");
        std::thread::sleep(wait);
        Ok(())
    }
}

/// Counts a failure, and returns how long to wait before the next attempt (`after` is the requested time). `None` if
/// there should be no further attempt.
pub(super) fn next_pause(failures: &mut u32, after: Option<Duration>) -> Option<Duration> {
    *failures += 1;
    (*failures < ATTEMPTS).then(|| after.unwrap_or_else(|| back_off(*failures)))
}

/// Doubles the pause each time, with jitter, so that many clients do not return at the same time.
fn back_off(failures: u32) -> Duration {
    let whole = FIRST_PAUSE.saturating_mul(1 << failures.saturating_sub(1).min(16)).min(LONGEST_PAUSE);
    let mut random = [0; 1];
    // Without random bytes, the pause only has less jitter.
    let _ = getrandom::fill(&mut random);
    whole / 2 + (whole / 2).mul_f64(f64::from(random[0]) / 255.0)
}

/// Creates an agent for one host. It returns redirects like any other response.
pub(super) fn agent(tls: ureq::tls::TlsConfig, stall: Duration) -> Agent {
    with_redirects(tls, stall, 0)
}

/// Creates an agent with settings that are the same for every host. It follows redirects.
pub(super) fn following_agent(tls: ureq::tls::TlsConfig, stall: Duration) -> Agent {
    with_redirects(tls, stall, 10)
}

fn with_redirects(tls: ureq::tls::TlsConfig, stall: Duration, redirects: u32) -> Agent {
    let config = Agent::config_builder()
        .max_redirects(redirects)
        .http_status_as_error(false)
        .tls_config(tls)
        .user_agent(concat!("gpurun/", env!("CARGO_PKG_VERSION")))
        // Blobs must arrive unchanged, because transparent decompression would break their digests.
        .accept_encoding("identity")
        .redirect_auth_headers(ureq::config::RedirectAuthHeaders::Never)
        .timeout_resolve(Some(stall))
        .timeout_connect(Some(stall))
        .timeout_recv_response(Some(stall * 2))
        .timeout_per_read(Some(stall))
        .timeout_per_write(Some(stall))
        // More than there are connections at the same time (see `parts`), so that each is used again.
        .max_idle_connections(16)
        .max_idle_connections_per_host(16)
        .build();
    Agent::with_parts(config, DefaultConnector::default(), Bounded)
}

/// Resolves a name on a thread, so that the lookup ends in time. ureq's own resolver does the same, but panics if no
/// thread can start.
#[derive(Debug)]
struct Bounded;

impl Resolver for Bounded {
    fn resolve(&self, uri: &Uri, config: &Config, timeout: NextTimeout) -> Result<ResolvedSocketAddrs, ureq::Error> {
        let at_once = || NextTimeout { after: ureq::unversioned::transport::time::Duration::NotHappening, ..timeout };
        let is_address =
            uri.host().is_some_and(|host| host.trim_matches(['[', ']']).parse::<std::net::IpAddr>().is_ok());
        if is_address || timeout.after.is_not_happening() {
            return DefaultResolver::default().resolve(uri, config, at_once());
        }
        let (sender, receiver) = std::sync::mpsc::sync_channel(1);
        let (uri, config, endless) = (uri.clone(), config.clone(), at_once());
        thread::detached(move || drop(sender.send(DefaultResolver::default().resolve(&uri, &config, endless))))?;
        receiver.recv_timeout(*timeout.after).unwrap_or(Err(ureq::Error::Timeout(timeout.reason)))
    }
}

/// Whether a status may be temporary.
pub(super) fn may_pass(status: StatusCode) -> bool {
    matches!(status.as_u16(), 408 | 429 | 500 | 502 | 503 | 504)
}

/// Whether a failed request may succeed later.
pub(super) fn may_recover(error: &ureq::Error) -> bool {
    match error {
        ureq::Error::Io(error) => is_passing(error),
        ureq::Error::Timeout(_) | ureq::Error::ConnectionFailed | ureq::Error::Protocol(_) => true,
        _ => false,
    }
}

/// Whether an error is a broken connection, and not a problem with a file or a certificate.
pub(super) fn is_passing(error: &std::io::Error) -> bool {
    use std::io::ErrorKind as Kind;
    if tls_trouble(error) {
        return false;
    }
    !matches!(error.kind(), Kind::PermissionDenied | Kind::NotFound)
}

/// Whether TLS itself failed, because of a certificate or a server that does not support it.
pub(super) fn tls_trouble(error: &std::io::Error) -> bool {
    error.get_ref().is_some_and(|inner| inner.is::<rustls::Error>())
}

/// Whether the server does not speak TLS at all.
pub(super) fn no_tls(error: &std::io::Error) -> bool {
    let inner = error.get_ref().and_then(|inner| inner.downcast_ref());
    matches!(inner, Some(rustls::Error::InvalidMessage(_)))
}

/// Parses `Retry-After`: seconds, or a date.
pub(super) fn retry_after(response: &Response<Body>) -> Option<Duration> {
    let text = response.headers().get("retry-after")?.to_str().ok()?.trim();
    if let Ok(seconds) = text.parse() {
        return Some(Duration::from_secs(seconds));
    }
    let moment = chrono::DateTime::parse_from_rfc2822(text).ok()?;
    moment.signed_duration_since(chrono::Utc::now()).to_std().ok()
}

/// Returns the registry's own error message, from `{"errors":[{"code":…,"message":…}]}`, as one printable line. Reading
/// it takes no longer than a connection may be silent, even if the response trickles.
pub(super) fn error_message(body: &mut Body, patience: Duration) -> String {
    #[derive(serde::Deserialize)]
    struct Answer {
        #[serde(default)]
        errors: Vec<Item>,
    }
    #[derive(serde::Deserialize)]
    struct Item {
        #[serde(default)]
        code: String,
        #[serde(default)]
        message: String,
    }
    let (began, mut text, mut buffer) = (Instant::now(), Vec::new(), [0; 4 << 10]);
    let mut reader = body.as_reader().take(16 << 10);
    while began.elapsed() < patience {
        match reader.read(&mut buffer) {
            Ok(0) => break,
            Ok(got) => text.extend_from_slice(&buffer[..got]),
            Err(_) => return String::new(),
        }
    }
    let Ok(answer) = serde_json::from_slice::<Answer>(&text) else { return String::new() };
    let lines = answer.errors.into_iter().map(|item| if item.message.is_empty() { item.code } else { item.message });
    lines.collect::<Vec<_>>().join("; ").chars().filter(|c| !c.is_control()).take(200).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_and_are_bounded() {
        for (failures, longest) in [(1, 250), (2, 500), (3, 1000), (20, 20_000)] {
            let pause = back_off(failures);
            let longest = Duration::from_millis(longest);
            assert!(pause <= longest && pause >= longest / 2, "{failures}: {pause:?}");
        }
    }

    #[test]
    fn a_deadline_ends_the_waiting_before_it_begins() {
        let http = Http::new(&Options { timeout: Some(Duration::from_secs(5)), ..Options::default() });
        let mut attempts = 0;
        let began = Instant::now();
        let result: Result<(), _> = http.retry(|| {
            attempts += 1;
            Attempt::Again {
                error: RegistryError::Protocol { host: "x".into(), why: "busy".into() },
                after: Some(Duration::from_secs(60)),
            }
        });
        let Err(error) = result else { panic!("there was no time") };
        let report = crate::report::Report::from(error);
        assert_eq!(report.message, "it was not complete after 5 seconds, and the registry requests a pause of 60 s");
        assert_eq!(report.causes, ["the registry `x` sent an invalid answer: busy"]);
        assert!(report.hint.is_some_and(|hint| hint.contains("`--timeout 70`")));
        assert_eq!(attempts, 1);
        assert!(began.elapsed() < Duration::from_secs(2));
    }
}
