//! Plain downloads, for `ADD` of a build: with the certificates and the patience that registries get.

use std::fmt;
use std::io;
use std::time::Duration;

use ureq::Body;
use ureq::http::{Response, StatusCode};

use super::http::{self, LONGEST_WAIT};
use super::{Options, RegistryError, tls};
use crate::report::Explain;

/// A URL that was not fetched.
#[derive(Debug, thiserror::Error)]
#[error("cannot fetch `{url}`")]
pub struct DownloadError {
    url: String,
    #[source]
    pub cause: Trouble,
    /// It was tried again and again.
    tried: bool,
}

/// Why not.
#[derive(Debug)]
pub enum Trouble {
    Trust(RegistryError),
    Request(ureq::Error),
    /// With how long the server asks to wait.
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
                write!(f, "the server answered {status}, and asks to wait {} s", wait.as_secs())
            }
            Self::Broken(error) if error.kind() == io::ErrorKind::UnexpectedEof => f.write_str("it ends in the middle"),
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
            _ if self.tried => Some("it was tried several times: try again later".into()),
            _ => None,
        }
    }
}

/// Fetches a URL; redirects are followed. `take` gets the answer: what it cannot read of it is asked for again, from the beginning, as is
/// whatever else may work later. Before each further attempt `wait` lets the time go by, or ends it all.
pub fn download<T, E: From<DownloadError>>(
    url: &str,
    take: &mut dyn FnMut(Response<Body>) -> Result<Result<T, E>, io::Error>,
    wait: &mut dyn FnMut(Duration, &DownloadError) -> Result<(), E>,
) -> Result<T, E> {
    let failed = |cause, tried| DownloadError { url: url.into(), cause, tried };
    let options = Options::default();
    let host = url.split('/').nth(2).unwrap_or_default();
    let trust = tls::config(host, true, &options).map_err(|error| failed(Trouble::Trust(error), false))?;
    let agent = http::agent(trust, options.stall);
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
            // That nobody is there is the answer, unless somebody was.
            Err(error) => {
                let may_pass = http::may_recover(&error) && (answered || !http::is_refused(&error));
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
