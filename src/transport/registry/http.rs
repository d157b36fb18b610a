//! Requests that are made again where that may help, within the deadline.

use std::io::Read;
use std::time::{Duration, Instant};

use ureq::http::{Response, StatusCode};
use ureq::{Agent, Body};

use super::{Notice, Options, RegistryError};

/// How often a request is made before it has failed for good.
pub(super) const ATTEMPTS: u32 = 6;
/// The first pause; each further one is twice as long.
const FIRST_PAUSE: Duration = Duration::from_millis(250);
const LONGEST_PAUSE: Duration = Duration::from_secs(20);
/// What `Retry-After` may ask for where no deadline is set.
pub(super) const LONGEST_WAIT: Duration = Duration::from_secs(300);

/// How many times [`Http::stall`] a small answer may take.
const SMALL: u32 = 4;

/// What all requests of one command share: the time they have, and whom to tell.
pub(super) struct Http {
    deadline: Option<(Instant, Duration)>,
    pub stall: Duration,
    notice: Notice,
}

/// One attempt's outcome.
pub(super) enum Attempt<T> {
    Done(T),
    /// It may work later; `after`: not before.
    Again {
        error: RegistryError,
        after: Option<Duration>,
    },
    Failed(RegistryError),
}

impl Http {
    pub fn new(options: &Options) -> Self {
        Self {
            deadline: options.timeout.map(|timeout| (Instant::now() + timeout, timeout)),
            stall: options.stall,
            notice: options.notice.clone(),
        }
    }

    pub fn notice(&self, line: &str) {
        (self.notice)(line);
    }

    /// What is left of the time; an error when nothing is.
    pub fn left(&self) -> Result<Option<Duration>, RegistryError> {
        let Some((deadline, whole)) = self.deadline else { return Ok(None) };
        match deadline.checked_duration_since(Instant::now()) {
            Some(left) if !left.is_zero() => Ok(Some(left)),
            _ => Err(RegistryError::Deadline { seconds: whole.as_secs(), wait: None, cause: None }),
        }
    }

    /// The same for one request with a small answer: it has a few times what a line may be silent for, and not for ever because
    /// it trickles.
    pub fn left_for_small(&self) -> Result<Option<Duration>, RegistryError> {
        let most = self.stall * SMALL;
        Ok(Some(self.left()?.map_or(most, |left| left.min(most))))
    }

    /// Makes attempts until one is done, has failed for good, or they are used up.
    pub fn retry<T>(&self, mut attempt: impl FnMut() -> Attempt<T>) -> Result<T, RegistryError> {
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

    /// Waits before the next attempt; answers the error when there should be none.
    pub fn pause(
        &self,
        failures: &mut u32,
        error: RegistryError,
        after: Option<Duration>,
    ) -> Result<(), RegistryError> {
        let Some(wait) = next_pause(failures, after) else {
            // What ended because the time was over is told so, whatever it looked like.
            return Err(self.left().err().unwrap_or(error));
        };
        match self.left()? {
            // No use in waiting for what comes too late.
            Some(left) if wait >= left => {
                let seconds = self.deadline.map_or(0, |(_, whole)| whole.as_secs());
                return Err(RegistryError::Deadline { seconds, wait: after, cause: Some(error.into()) });
            }
            None if wait > LONGEST_WAIT => return Err(error),
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

/// One more failure: how long to wait before the next attempt (`after`: what was asked for); nothing when there should be none.
pub(super) fn next_pause(failures: &mut u32, after: Option<Duration>) -> Option<Duration> {
    *failures += 1;
    (*failures < ATTEMPTS).then(|| after.unwrap_or_else(|| back_off(*failures)))
}

/// Doubled each time, and spread, so that many clients do not come back at once.
fn back_off(failures: u32) -> Duration {
    let whole = FIRST_PAUSE.saturating_mul(1 << failures.saturating_sub(1).min(16)).min(LONGEST_PAUSE);
    let mut random = [0; 1];
    // Without randomness the pause is only less spread.
    let _ = getrandom::fill(&mut random);
    whole / 2 + (whole / 2).mul_f64(f64::from(random[0]) / 255.0)
}

/// An agent for one registry.
pub(super) fn agent(tls: ureq::tls::TlsConfig, stall: Duration) -> Agent {
    Agent::config_builder()
        .http_status_as_error(false)
        .tls_config(tls)
        .user_agent(concat!("gpurun/", env!("CARGO_PKG_VERSION")))
        // Blobs are sent as they are; a transparent unpacking would break their digests.
        .accept_encoding("identity")
        .redirect_auth_headers(ureq::config::RedirectAuthHeaders::Never)
        .timeout_resolve(Some(stall))
        .timeout_connect(Some(stall))
        .timeout_recv_response(Some(stall * 2))
        .timeout_per_read(Some(stall))
        .timeout_per_write(Some(stall))
        .max_idle_connections_per_host(8)
        .build()
        .new_agent()
}

/// Whether an answer may be another one later.
pub(super) fn may_pass(status: StatusCode) -> bool {
    matches!(status.as_u16(), 408 | 429 | 500 | 502 | 503 | 504)
}

/// Whether a failed request may work later.
pub(super) fn may_recover(error: &ureq::Error) -> bool {
    match error {
        ureq::Error::Io(error) => is_passing(error),
        ureq::Error::Timeout(_) | ureq::Error::ConnectionFailed | ureq::Error::Protocol(_) => true,
        _ => false,
    }
}

/// A connection that broke, not a file or a certificate that is wrong.
pub(super) fn is_passing(error: &std::io::Error) -> bool {
    use std::io::ErrorKind as Kind;
    if tls_trouble(error) {
        return false;
    }
    !matches!(error.kind(), Kind::PermissionDenied | Kind::NotFound)
}

/// Nobody is there. In the middle of a pull that may pass (a registry that restarts), at its beginning it is the answer.
pub(super) fn is_refused(error: &ureq::Error) -> bool {
    use std::io::ErrorKind as Kind;
    let ureq::Error::Io(error) = error else { return matches!(error, ureq::Error::HostNotFound) };
    matches!(error.kind(), Kind::ConnectionRefused | Kind::HostUnreachable | Kind::NetworkUnreachable)
        // The standard library has no kind for a name that nobody knows.
        || error.to_string().starts_with("failed to lookup address")
}

/// Whether TLS itself failed: a certificate, or a server that does not speak it.
pub(super) fn tls_trouble(error: &std::io::Error) -> bool {
    error.get_ref().is_some_and(|inner| inner.is::<rustls::Error>())
}

/// `Retry-After`: seconds, or a moment.
pub(super) fn retry_after(response: &Response<Body>) -> Option<Duration> {
    let text = response.headers().get("retry-after")?.to_str().ok()?.trim();
    if let Ok(seconds) = text.parse() {
        return Some(Duration::from_secs(seconds));
    }
    let moment = chrono::DateTime::parse_from_rfc2822(text).ok()?;
    moment.signed_duration_since(chrono::Utc::now()).to_std().ok()
}

/// What the registry says about an error, in its own words: `{"errors":[{"code":…,"message":…}]}`, one printable line. Nobody waits longer for it
/// than a line may be silent, trickle as it may.
pub(super) fn said(body: &mut Body, patience: Duration) -> String {
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
        assert_eq!(report.message, "it was not done within 5 seconds, and the registry asks to wait 60 s");
        assert_eq!(report.causes, ["the registry `x` sent an answer that makes no sense: busy"]);
        assert!(report.hint.is_some_and(|hint| hint.contains("`--timeout 70`")));
        assert_eq!(attempts, 1);
        assert!(began.elapsed() < Duration::from_secs(2));
    }
}
