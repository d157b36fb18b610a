//! Plain downloads, for `ADD` in a build. They use the same certificates and retries as requests to registries.

use std::fmt;
use std::io;
use std::time::Duration;

use ureq::Body;
use ureq::http::{Response, StatusCode};

use super::error;
use super::http::{self, LONGEST_WAIT};
use super::{Options, RegistryError, tls};
use crate::report::Explain;

/// A URL that could not be fetched.
#[derive(Debug, thiserror::Error)]
#[error("cannot fetch `{url}`")]
pub(crate) struct DownloadError {
    url: String,
    #[source]
    pub cause: Trouble,
    /// Whether all attempts were used up.
    tried: bool,
}

/// The reason of the failure.
#[derive(Debug)]
pub(crate) enum Trouble {
    Trust(RegistryError),
    Request(ureq::Error),
    /// The status, and how long the server asks to wait.
    Status(StatusCode, Option<Duration>),
    Broken(io::Error),
}

impl fmt::Display for Trouble {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Trust(error) => write!(f, "{error}"),
            Self::Request(error) => write!(f, "{error}"),
            Self::Status(status, None) => write!(f, "the server answered {status}"),
            Self::Status(status, Some(wait)) => {
                write!(f, "the server answered {status} and requests a pause of {} s", wait.as_secs())
            }
            Self::Broken(error) if error.kind() == io::ErrorKind::UnexpectedEof => f.write_str("it ends early"),
            Self::Broken(error) => write!(f, "{error}"),
        }
    }
}

impl std::error::Error for Trouble {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Trust(error) => std::error::Error::source(error),
            _ => None,
        }
    }
}

impl Explain for DownloadError {
    fn hint(&self) -> Option<String> {
        match &self.cause {
            Trouble::Trust(error) => error.hint(),
            _ if self.tried => Some("try again later; several attempts failed".into()),
            _ => None,
        }
    }
}

/// Fetches a URL, and follows redirects. `take` receives the response. If it cannot read the response completely, the
/// download is repeated from the beginning, as after any other temporary failure. Before each further attempt, `wait`
/// waits or aborts the download.
pub(crate) fn download<T, E: From<DownloadError>>(
    url: &str,
    take: &mut dyn FnMut(Response<Body>) -> Result<Result<T, E>, io::Error>,
    wait: &mut dyn FnMut(Duration, &DownloadError) -> Result<(), E>,
) -> Result<T, E> {
    let failed = |cause, tried| DownloadError { url: url.into(), cause, tried };
    let options = Options::default();
    let host = url.split('/').nth(2).unwrap_or_default();
    let trust = tls::config(host, true, None).map_err(|error| failed(Trouble::Trust(error), false))?;
    let agent = http::following_agent(trust, options.stall);
    let (mut failures, mut answered) = (0, false);
    loop {
        let (trouble, may_pass) = match agent.get(url).call() {
            Ok(response) if response.status().is_success() => {
                answered = true;
                match take(response) {
                    Ok(taken) => return taken,
                    Err(error) => {
                        let may_pass = http::is_passing(&error);
                        (Trouble::Broken(error), may_pass)
                    }
                }
            }
            Ok(response) => {
                let status = response.status();
                (Trouble::Status(status, http::retry_after(&response)), http::may_pass(status))
            }
            // A refused connection is final, unless the server has answered before.
            Err(error) => {
                let may_pass = http::may_recover(&error) && (answered || !error::is_refused(&error));
                (Trouble::Request(error), may_pass)
            }
        };
        let after = if let Trouble::Status(_, after) = trouble { after } else { None };
        if !may_pass || after.is_some_and(|after| after > LONGEST_WAIT) {
            return Err(failed(trouble, failures > 0).into());
        }
        match http::next_pause(&mut failures, after) {
            Some(pause) => wait(pause, &failed(trouble, true))?,
            None => return Err(failed(trouble, true).into()),
        }
    }
}
