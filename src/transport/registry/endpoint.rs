//! One repository of one registry: its scheme found out, requests made with the right `Authorization`.

use std::sync::Arc;

use ureq::http::{Response, StatusCode};
use ureq::{Agent, Body};

use super::auth::{self, Auth};
use super::http::{self, Attempt, Http};
use super::settings::Place;
use super::{Options, RegistryError, credentials, tls};
use crate::image::MAX_DOCUMENT;

/// The manifests that we can read; without this list a registry sends docker's first schema.
const ACCEPT: &str = "application/vnd.oci.image.index.v1+json, application/vnd.docker.distribution.manifest.list.v2+json, \
                      application/vnd.oci.image.manifest.v1+json, application/vnd.docker.distribution.manifest.v2+json";

pub(super) struct Endpoint {
    host: String,
    repository: String,
    /// `https://registry-1.docker.io`
    base: String,
    agent: Agent,
    auth: Auth,
    http: Arc<Http>,
    /// `pull` or `pull,push`.
    actions: &'static str,
}

/// A request to make.
#[derive(Debug, Clone, Default)]
pub(super) struct Ask<'a> {
    pub method: &'static str,
    /// Below `/v2/<repository>/`, or a whole URL.
    pub path: &'a str,
    pub headers: Vec<(&'static str, String)>,
    /// What it is about, for an error.
    pub what: &'a str,
    pub body: Payload<'a>,
    /// The answer is a document, not a layer.
    pub small: bool,
}

/// What a request carries.
#[derive(Debug, Clone, Copy, Default)]
pub(super) enum Payload<'a> {
    #[default]
    None,
    Empty,
    Bytes(&'a [u8]),
    /// A stretch of a file, read anew for each attempt.
    File(&'a super::push::Upload<'a>),
}

impl Endpoint {
    pub fn open(place: &Place, http: &Arc<Http>, options: &Options) -> Result<Self, RegistryError> {
        Self::open_for(place, http, options, "pull")
    }

    pub fn open_to_push(place: &Place, http: &Arc<Http>, options: &Options) -> Result<Self, RegistryError> {
        Self::open_for(place, http, options, "pull,push")
    }

    fn open_for(
        place: &Place,
        http: &Arc<Http>,
        options: &Options,
        actions: &'static str,
    ) -> Result<Self, RegistryError> {
        let verify = options.tls_verify.unwrap_or(!place.insecure);
        let agent = http::agent(tls::config(&place.host, verify, options)?, http.stall);
        // What people type is not where Docker Hub's API lives.
        let address = if place.host == "docker.io" { "registry-1.docker.io" } else { &place.host };
        // As docker: a registry on this very host may do without TLS.
        let plain_is_fine = !verify || (options.tls_verify.is_none() && is_loopback(&place.host));
        let schemes: &[&str] = match place.scheme {
            Some("http") => &["http"],
            Some(_) => &["https"],
            None if plain_is_fine => &["https", "http"],
            None => &["https"],
        };
        let login = credentials::find(&place.host, &place.repository, options)?;
        let mut last = None;
        for (at, scheme) in schemes.iter().enumerate() {
            let base = format!("{scheme}://{address}");
            // What greets a TLS handshake with plain HTTP may answer anything, or hang up.
            let patient = at + 1 == schemes.len();
            match ping(&base, &place.host, &agent, http, patient) {
                Ok(challenge) => {
                    return Ok(Self {
                        auth: Auth::new(&place.host, *scheme == "https", login, challenge),
                        host: place.host.clone(),
                        repository: place.repository.clone(),
                        base,
                        agent,
                        http: http.clone(),
                        actions,
                    });
                }
                // The second scheme's error would only say that port 80 is closed.
                Err(error) => last = last.or(Some(error)),
            }
        }
        Err(last
            .unwrap_or_else(|| RegistryError::Protocol { host: place.host.clone(), why: "it has no address".into() }))
    }

    pub fn host(&self) -> &str {
        &self.host
    }

    pub fn http(&self) -> &Http {
        &self.http
    }

    /// The URL of something in this repository; an answer's `Location` may be whole or begin at the host.
    pub fn url(&self, path: &str) -> String {
        if path.starts_with("https://") || path.starts_with("http://") {
            path.to_owned()
        } else if path.starts_with('/') {
            format!("{}{path}", self.base)
        } else {
            format!("{}/v2/{}/{path}", self.base, self.repository)
        }
    }

    /// One attempt at a request, a refused token renewed once. An answer below 300 or one of `fine` is done.
    pub fn attempt(&self, ask: &Ask<'_>, fine: &[u16]) -> Attempt<Response<Body>> {
        let mut renewed = false;
        loop {
            let mut response = match self.send(ask) {
                Ok(Ok(response)) => response,
                Ok(Err(cause)) => return self.failed(cause),
                Err(error) => return Attempt::Failed(error),
            };
            let status = response.status();
            if status.is_success() || fine.contains(&status.as_u16()) {
                return Attempt::Done(response);
            }
            if status == StatusCode::UNAUTHORIZED && !renewed {
                // The token may have ended in the middle of a long pull.
                self.auth.forget(&self.scope());
                renewed = true;
                continue;
            }
            let after = http::retry_after(&response);
            let said = http::said(response.body_mut(), self.http.stall);
            let (host, what) = (self.host.clone(), ask.what.to_owned());
            return match status {
                StatusCode::NOT_FOUND => Attempt::Failed(RegistryError::NotFound { host, what }),
                StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => Attempt::Failed(self.auth.denied(&what, said)),
                _ => {
                    let error = RegistryError::Status { host, what, status: status.as_u16(), said };
                    if http::may_pass(status) { Attempt::Again { error, after } } else { Attempt::Failed(error) }
                }
            };
        }
    }

    /// A request, made again where that may help.
    pub fn call(&self, ask: &Ask<'_>, fine: &[u16]) -> Result<Response<Body>, RegistryError> {
        self.http.retry(|| self.attempt(ask, fine))
    }

    fn failed<T>(&self, cause: ureq::Error) -> Attempt<T> {
        let again = http::may_recover(&cause);
        let error = unreachable(&self.host, cause);
        if again { Attempt::Again { error, after: None } } else { Attempt::Failed(error) }
    }

    fn scope(&self) -> String {
        format!("repository:{}:{}", self.repository, self.actions)
    }

    fn send(&self, ask: &Ask<'_>) -> Result<Result<Response<Body>, ureq::Error>, RegistryError> {
        let url = self.url(ask.path);
        let left = if ask.small { self.http.left_for_small()? } else { self.http.left()? };
        let mut headers = ask.headers.clone();
        // An upload may have been sent to a storage elsewhere, which has its own signature in the URL.
        if url.starts_with(&format!("{}/", self.base))
            && let Some(authorization) = self.auth.header(&self.scope(), &self.agent, &self.http)?
        {
            headers.push(("authorization", authorization));
        }
        macro_rules! with {
            ($request:expr) => {
                headers
                    .iter()
                    .fold($request, |request, (name, value)| request.header(*name, value))
                    .config()
                    .timeout_global(left)
                    .build()
            };
        }
        let request = |method: &str| match method {
            "PUT" => self.agent.put(&url),
            "PATCH" => self.agent.patch(&url),
            _ => self.agent.post(&url),
        };
        Ok(match ask.body {
            Payload::None if ask.method == "HEAD" => with!(self.agent.head(&url)).call(),
            Payload::None => with!(self.agent.get(&url)).call(),
            Payload::Empty => with!(request(ask.method)).send_empty(),
            Payload::Bytes(bytes) => with!(request(ask.method)).send(bytes),
            Payload::File(upload) => match upload.reader() {
                Ok(mut reader) => with!(request(ask.method)).send(ureq::SendBody::from_reader(&mut reader)),
                Err(error) => Err(error.into()),
            },
        })
    }

    /// A whole small document, read again when it breaks off.
    fn document(&self, ask: &Ask<'_>) -> Result<Vec<u8>, RegistryError> {
        let (host, what) = (&self.host, ask.what);
        let response = self.http.retry(|| {
            let mut response = match self.attempt(ask, &[]) {
                Attempt::Done(response) => response,
                Attempt::Again { error, after } => return Attempt::Again { error, after },
                Attempt::Failed(error) => return Attempt::Failed(error),
            };
            match response.body_mut().with_config().limit(MAX_DOCUMENT).read_to_vec() {
                Ok(bytes) => Attempt::Done((bytes, response)),
                Err(ureq::Error::BodyExceedsLimit(limit)) => {
                    Attempt::Failed(RegistryError::TooLarge { host: host.clone(), what: what.into(), limit })
                }
                Err(cause) => self.failed(cause),
            }
        });
        response.map(|(bytes, _)| bytes)
    }

    /// A manifest or an index by tag or digest.
    pub fn manifest(&self, reference: &str, what: &str) -> Result<Vec<u8>, RegistryError> {
        let path = format!("manifests/{reference}");
        let headers = vec![("accept", ACCEPT.to_owned())];
        self.document(&Ask { method: "GET", path: &path, headers, what, small: true, ..Ask::default() })
    }

    pub fn small_blob(&self, digest: &str) -> Result<Vec<u8>, RegistryError> {
        self.document(&Ask {
            method: "GET",
            path: &format!("blobs/{digest}"),
            what: digest,
            small: true,
            ..Ask::default()
        })
    }
}

/// Is there a registry, and what does it want to see first?
fn ping(
    base: &str,
    host: &str,
    agent: &Agent,
    http: &Http,
    patient: bool,
) -> Result<Option<auth::Challenge>, RegistryError> {
    let url = format!("{base}/v2/");
    http.retry(|| {
        let left = match http.left_for_small() {
            Ok(left) => left,
            Err(error) => return Attempt::Failed(error),
        };
        match agent.get(&url).config().timeout_global(left).build().call() {
            Ok(response) if response.status() == StatusCode::UNAUTHORIZED => {
                Attempt::Done(auth::challenge(response.headers()))
            }
            // Some answer 404 here and serve images all the same.
            Ok(response) if response.status().is_success() || response.status() == StatusCode::NOT_FOUND => {
                Attempt::Done(None)
            }
            Ok(mut response) => {
                let (status, after) = (response.status(), http::retry_after(&response));
                let said = http::said(response.body_mut(), http.stall);
                let error =
                    RegistryError::Status { host: host.into(), what: "/v2/".into(), status: status.as_u16(), said };
                if http::may_pass(status) { Attempt::Again { error, after } } else { Attempt::Failed(error) }
            }
            Err(cause) if patient && http::may_recover(&cause) && !http::is_refused(&cause) => {
                Attempt::Again { error: unreachable(host, cause), after: None }
            }
            Err(cause) => Attempt::Failed(unreachable(host, cause)),
        }
    })
}

fn unreachable(host: &str, cause: ureq::Error) -> RegistryError {
    let host = host.to_owned();
    match &cause {
        ureq::Error::Rustls(_) | ureq::Error::Tls(_) => RegistryError::Certificate { host, cause },
        ureq::Error::Io(error) if http::tls_trouble(error) => RegistryError::Certificate { host, cause },
        // It was reached.
        ureq::Error::TooManyRedirects | ureq::Error::RedirectFailed | ureq::Error::LargeResponseHeader(..) => {
            RegistryError::Protocol { host, why: cause.to_string() }
        }
        _ => RegistryError::Unreachable { host, cause },
    }
}

fn is_loopback(host: &str) -> bool {
    let name = host.rsplit_once(':').map_or(host, |(name, _)| name);
    name == "localhost" || name.parse::<std::net::IpAddr>().is_ok_and(|ip| ip.is_loopback())
}
