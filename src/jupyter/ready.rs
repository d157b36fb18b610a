//! Checks over real HTTP, as a browser would, that the server is up, refuses strangers, and accepts the login.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use super::auth::Auth;
use super::http::{self, HttpError, Request, Response, Server};
use super::password;
use super::tls::Pinned;
use crate::report::Explain;

/// Interval between two attempts to reach a server that is not up yet.
const PAUSE: Duration = Duration::from_millis(50);

/// The server to check.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Probe<'a> {
    /// The published address and port, as seen from the calling process.
    pub address: SocketAddr,
    /// `/`, or the caller's `base_url`, starting and ending with a slash.
    pub base_url: &'a str,
    pub auth: &'a Auth,
    /// With HTTPS, the server's certificate.
    pub tls: Option<&'a Pinned>,
    /// The mark that is part of every request's URL, unless it is empty. See `jupyter::probe_mark`.
    pub mark: &'a str,
}

/// The result of the check.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Ready {
    pub after: Duration,
    /// Whether a login with the real password or token succeeded. With only a hash, it cannot be tried.
    pub login_proved: bool,
}

#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub(crate) enum ReadyError {
    #[error("Jupyter ended before it was ready, with exit status {status}")]
    Died { status: i32 },
    #[error("Jupyter did not answer on {address} within {} s (last attempt: {last})", .waited.as_secs_f64())]
    Late { address: SocketAddr, waited: Duration, last: String },
    #[error("Jupyter on {address} is open: it shows files without a login")]
    Open { address: SocketAddr },
    #[error("Jupyter on {address} accepts a wrong {what}")]
    WrongAccepted { address: SocketAddr, what: &'static str },
    #[error("Jupyter on {address} refuses the correct {what}")]
    RightRefused { address: SocketAddr, what: &'static str },
    #[error("cannot create a random password to test the login")]
    Random,
}

impl Explain for ReadyError {
    fn hint(&self) -> Option<String> {
        Some(match self {
            Self::Late { .. } => {
                "give it more time with `--ready-timeout SECONDS`; a start takes longer with a small `--cpus` or `--mem`"
                    .into()
            }
            Self::Open { .. } | Self::WrongAccepted { .. } => {
                "remove the setting in the image or in its arguments that turns the login off (an empty token, \
                 another identity provider)"
                    .into()
            }
            Self::RightRefused { .. } => {
                "try a hash from `gpurun token --algorithm sha512`; the image cannot check this kind of hash, or a \
                 setting of the image overrides gpurun's"
                    .into()
            }
            Self::Died { .. } | Self::Random => return None,
        })
    }
}

/// Waits until the server answers, then checks that it refuses a request without a login, refuses a wrong login, and
/// accepts the right one. `alive` returns the exit status of a server (or container) that has ended.
///
/// Spawns no thread. The password only crosses this machine's own network, to the server that checks it.
pub(crate) fn wait_ready(
    probe: &Probe<'_>,
    patience: Duration,
    alive: &mut dyn FnMut() -> Option<i32>,
) -> Result<Ready, ReadyError> {
    let started = Instant::now();
    let wrong = hex::encode(password::random::<16>().map_err(|_| ReadyError::Random)?);
    let mut visitor =
        Visitor { probe, end: started + patience, alive, died: None, base: probe.base_url.trim_end_matches('/') };
    let mut last = None;
    loop {
        match visitor.examine(&wrong) {
            Ok(login_proved) => return Ok(Ready { after: started.elapsed(), login_proved }),
            Err(Attempt::Verdict(error)) => return Err(error),
            Err(Attempt::Again(why)) => last = Some(why),
            // The deadline cut this attempt off. The reason of the previous attempt is more informative.
            Err(Attempt::Cut) => {}
        }
        let status = visitor.died.or_else(|| (visitor.alive)());
        if let Some(status) = status {
            return Err(ReadyError::Died { status });
        }
        if Instant::now() + PAUSE >= visitor.end {
            let last = last.unwrap_or_else(|| "connected, but no answer in time".into());
            return Err(ReadyError::Late { address: probe.address, waited: patience, last });
        }
        std::thread::sleep(PAUSE);
    }
}

/// Why an attempt did not complete.
enum Attempt {
    Again(String),
    /// The deadline passed, or the server ended.
    Cut,
    Verdict(ReadyError),
}

impl From<HttpError> for Attempt {
    fn from(error: HttpError) -> Self {
        use std::error::Error;
        if matches!(error, HttpError::Late | HttpError::Interrupted) {
            return Self::Cut;
        }
        Self::Again(error.source().map_or_else(|| error.to_string(), |source| format!("{error}, {source}")))
    }
}

struct Visitor<'a> {
    probe: &'a Probe<'a>,
    base: &'a str,
    end: Instant,
    alive: &'a mut dyn FnMut() -> Option<i32>,
    died: Option<i32>,
}

/// A browser's cookies.
type Cookies = Vec<(String, String)>;

impl Visitor<'_> {
    fn examine(&mut self, wrong: &str) -> Result<bool, Attempt> {
        let address = self.probe.address;
        match self.contents(&[])? {
            Access::Refused => {}
            Access::Granted => return Err(Attempt::Verdict(ReadyError::Open { address })),
            Access::Unclear(status) => return Err(Attempt::Again(format!("HTTP status {status}"))),
        }
        let (what, wrong_works, right_works) = match self.probe.auth {
            Auth::Token(token) => ("token", self.token(wrong)?, Some(self.token(token.reveal())?)),
            Auth::Password(plain) => ("password", self.password(wrong)?, Some(self.password(plain.reveal())?)),
            Auth::Hash(_) => ("password", self.password(wrong)?, None),
        };
        if wrong_works {
            return Err(Attempt::Verdict(ReadyError::WrongAccepted { address, what }));
        }
        if right_works == Some(false) {
            return Err(Attempt::Verdict(ReadyError::RightRefused { address, what }));
        }
        Ok(right_works.is_some())
    }

    fn send(
        &mut self,
        method: &str,
        path: &str,
        headers: &[(&str, String)],
        body: Option<&str>,
    ) -> Result<Response, HttpError> {
        let path = format!("{}{path}", self.base);
        let request = Request { method, path: &path, headers, body };
        let (alive, died) = (&mut self.alive, &mut self.died);
        http::exchange(Server { address: self.probe.address, tls: self.probe.tls }, &request, self.end, &mut || {
            *died = alive();
            died.is_some()
        })
    }

    /// Tries to list the notebook directory.
    fn contents(&mut self, headers: &[(&str, String)]) -> Result<Access, Attempt> {
        let response = self.send("GET", &self.marked("/api/contents?content=0", '&'), headers, None)?;
        let to_login = response.header("location").is_some_and(|location| location.contains("login"));
        Ok(match response.status {
            200 => Access::Granted,
            401 | 403 => Access::Refused,
            302 if to_login => Access::Refused,
            status => Access::Unclear(status),
        })
    }

    fn token(&mut self, token: &str) -> Result<bool, Attempt> {
        self.works(&[("Authorization", format!("token {token}"))])
    }

    fn works(&mut self, headers: &[(&str, String)]) -> Result<bool, Attempt> {
        match self.contents(headers)? {
            Access::Granted => Ok(true),
            Access::Refused => Ok(false),
            Access::Unclear(status) => Err(Attempt::Again(format!("HTTP status {status} after a login"))),
        }
    }

    /// Submits the login form as a browser would, and checks which access the cookies give.
    fn password(&mut self, typed: &str) -> Result<bool, Attempt> {
        let mut cookies = Cookies::new();
        let login = self.marked("/login", '?');
        let form = self.send("GET", &login, &[], None)?;
        keep(&mut cookies, &form);
        let xsrf = cookies.iter().find(|(name, _)| name == "_xsrf").map(|(_, value)| value.clone()).unwrap_or_default();
        let body = format!("_xsrf={}&password={}", http::encode(&xsrf), http::encode(typed));
        let answer = self.send("POST", &login, &[self.referer(), cookie_header(&cookies)], Some(&body))?;
        if answer.status >= 500 {
            return Err(Attempt::Again(format!("HTTP status {} to the login form", answer.status)));
        }
        keep(&mut cookies, &answer);
        self.works(&[self.referer(), cookie_header(&cookies)])
    }

    fn marked(&self, path: &str, separator: char) -> String {
        match self.probe.mark {
            "" => path.to_owned(),
            mark => format!("{path}{separator}gpurun={mark}"),
        }
    }

    fn referer(&self) -> (&'static str, String) {
        let scheme = if self.probe.tls.is_some() { "https" } else { "http" };
        ("Referer", format!("{scheme}://{}{}/login", self.probe.address, self.base))
    }
}

enum Access {
    Granted,
    Refused,
    Unclear(u16),
}

fn keep(cookies: &mut Cookies, response: &Response) {
    for (name, value) in response.cookies() {
        cookies.retain(|(known, _)| known != name);
        cookies.push((name.to_owned(), value.to_owned()));
    }
}

fn cookie_header(cookies: &Cookies) -> (&'static str, String) {
    let list: Vec<String> = cookies.iter().map(|(name, value)| format!("{name}={value}")).collect();
    ("Cookie", list.join("; "))
}

#[cfg(test)]
mod tests;
