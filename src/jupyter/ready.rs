//! Is the server up, closed to strangers, and open to its owner? Asked over real HTTP, as a browser would.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use super::auth::Auth;
use super::http::{self, HttpError, Request, Response};
use super::password;
use crate::report::Explain;

/// Between two attempts to reach a server that is not there yet.
const PAUSE: Duration = Duration::from_millis(50);

/// Whom to ask.
#[derive(Debug, Clone, Copy)]
pub struct Probe<'a> {
    /// Where the port is published, as seen from the calling process.
    pub address: SocketAddr,
    /// `/`, or what the person set as `base_url`; with slashes at both ends.
    pub base_url: &'a str,
    pub auth: &'a Auth,
}

/// What was proved.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ready {
    pub after: Duration,
    /// A login with the real password or token was made (with a hash alone it cannot be).
    pub login_proved: bool,
}

#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum ReadyError {
    #[error("Jupyter ended before it was ready, with exit status {status}")]
    Died { status: i32 },
    #[error("Jupyter did not answer on {address} within {} s (last attempt: {last})", .waited.as_secs_f64())]
    Late { address: SocketAddr, waited: Duration, last: String },
    #[error("Jupyter on {address} is open: it shows files to a visitor without a login")]
    Open { address: SocketAddr },
    #[error("Jupyter on {address} lets a visitor in with a wrong {what}")]
    WrongAccepted { address: SocketAddr, what: &'static str },
    #[error("Jupyter on {address} refuses the right {what}")]
    RightRefused { address: SocketAddr, what: &'static str },
    #[error("no random password could be made to try the login with")]
    Random,
}

impl Explain for ReadyError {
    fn hint(&self) -> Option<String> {
        Some(match self {
            Self::Died { .. } => "its own log says why: `gpurun logs CONTAINER`".into(),
            Self::Late { .. } => {
                "its own log says how far it came (`gpurun logs CONTAINER`); with little `--cpus` or `--mem` a start takes longer".into()
            }
            Self::Open { .. } | Self::WrongAccepted { .. } => {
                "a setting in the image or in its arguments switches the login off (a blank token, another identity provider): take it out"
                    .into()
            }
            Self::RightRefused { .. } => {
                "a setting of the image wins over gpurun's, or the image cannot check this kind of hash: try `gpurun token --algorithm sha512`"
                    .into()
            }
            Self::Random => return None,
        })
    }
}

/// Waits until the server answers, then tries the locks: a visitor without a login is refused, a wrong login is refused, the right one
/// is let in. `alive` tells the exit status of a server (or container) that ended.
///
/// Spawns no thread. The password goes over this machine's own network only, to the server that is to check it.
pub fn wait_ready(
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
            // The attempt that the end of the time cut off says less than the one before.
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

/// Why an examination did not come to its end.
enum Attempt {
    Again(String),
    /// The time was over, or the server died.
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

/// What a browser keeps.
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
        http::exchange(self.probe.address, &request, self.end, &mut || {
            *died = alive();
            died.is_some()
        })
    }

    /// Tries to list the notebook directory.
    fn contents(&mut self, headers: &[(&str, String)]) -> Result<Access, Attempt> {
        let response = self.send("GET", "/api/contents?content=0", headers, None)?;
        let to_login = response.header("location").is_some_and(|place| place.contains("login"));
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

    /// Fills the login form in, as a browser would, and looks at what its cookies open.
    fn password(&mut self, typed: &str) -> Result<bool, Attempt> {
        let mut cookies = Cookies::new();
        let form = self.send("GET", "/login", &[], None)?;
        keep(&mut cookies, &form);
        let xsrf = cookies.iter().find(|(name, _)| name == "_xsrf").map(|(_, value)| value.clone()).unwrap_or_default();
        let body = format!("_xsrf={}&password={}", http::encode(&xsrf), http::encode(typed));
        let answer = self.send("POST", "/login", &[self.referer(), cookie_header(&cookies)], Some(&body))?;
        if answer.status >= 500 {
            return Err(Attempt::Again(format!("HTTP status {} to the login form", answer.status)));
        }
        keep(&mut cookies, &answer);
        self.works(&[self.referer(), cookie_header(&cookies)])
    }

    fn referer(&self) -> (&'static str, String) {
        ("Referer", format!("http://{}{}/login", self.probe.address, self.base))
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
