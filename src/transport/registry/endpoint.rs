//! One repository of one registry. Detects the scheme, and sends requests with the right `Authorization` header.

use std::sync::Arc;

use ureq::Body;
use ureq::http::{Response, StatusCode};

use super::agents::Agents;
use super::auth::{self, Auth};
use super::error;
use super::http::{self, Attempt, Http};
use super::settings::Place;
use super::{Options, RegistryError, credentials};
use crate::image::{MAX_DOCUMENT, digest_of};
use crate::names::Digest;

/// The supported manifest types. Without this list, a registry sends docker's schema 1.
const ACCEPT: &str = "application/vnd.oci.image.index.v1+json, application/vnd.docker.distribution.manifest.list.v2+json, \
                      application/vnd.oci.image.manifest.v1+json, application/vnd.docker.distribution.manifest.v2+json";

pub(super) struct Endpoint {
    host: String,
    repository: String,
    /// `https://registry-1.docker.io`
    base: String,
    agents: Agents,
    auth: Auth,
    http: Arc<Http>,
    /// `pull` or `pull,push`.
    actions: &'static str,
}

/// A request.
#[derive(Debug, Clone, Default)]
pub(super) struct RequestSpec<'a> {
    pub method: &'static str,
    /// Relative to `/v2/<repository>/`, or a complete URL.
    pub path: &'a str,
    pub headers: Vec<(&'static str, String)>,
    /// The subject of the request, for error messages.
    pub what: &'a str,
    pub body: Payload<'a>,
    /// Whether the response is a document and not a layer.
    pub small: bool,
}

/// The body of a request.
#[derive(Debug, Clone, Copy, Default)]
pub(super) enum Payload<'a> {
    #[default]
    None,
    Empty,
    Bytes(&'a [u8]),
    /// A range of a file, read again for each attempt.
    File(&'a super::upload::Upload<'a>),
}

impl Endpoint {
    pub(super) fn open(place: &Place, http: &Arc<Http>, options: &Options) -> Result<Self, RegistryError> {
        Self::open_for(place, http, options, "pull")
    }

    pub(super) fn open_to_push(place: &Place, http: &Arc<Http>, options: &Options) -> Result<Self, RegistryError> {
        Self::open_for(place, http, options, "pull,push")
    }

    /// Opens a repository for some actions. Without a repository, `actions` is the scope itself.
    pub(super) fn open_for(
        place: &Place,
        http: &Arc<Http>,
        options: &Options,
        actions: &'static str,
    ) -> Result<Self, RegistryError> {
        let verify = options.tls_verify.unwrap_or(!place.insecure);
        // The API of Docker Hub is not at the host name that users write.
        let address = if place.host == "docker.io" { "registry-1.docker.io" } else { &place.host };
        let agents = Agents::new(&place.host, address, verify, options)?;
        // As in docker, a registry on this host may work without TLS.
        let plain_is_fine = !verify || (options.tls_verify.is_none() && is_loopback(&place.host));
        let schemes: &[&str] = match place.scheme {
            Some("http") => &["http"],
            Some(_) => &["https"],
            None if plain_is_fine => &["https", "http"],
            None => &["https"],
        };
        let login = credentials::find(&place.host, &place.repository, options)?;
        let mut last: Option<RegistryError> = None;
        for (at, scheme) in schemes.iter().enumerate() {
            let base = format!("{scheme}://{address}");
            // A server that answers a TLS handshake with plain HTTP may send anything, or close the connection.
            let patient = at + 1 == schemes.len();
            match ping(&base, &place.host, &agents, http, patient) {
                Ok(challenge) => {
                    return Ok(Self {
                        auth: Auth::new(&place.host, *scheme == "https", login, challenge),
                        host: place.host.clone(),
                        repository: place.repository.clone(),
                        base,
                        agents,
                        http: http.clone(),
                        actions,
                    });
                }
                // Report the error of the second scheme if the first one met no TLS at all and a server answered the
                // second.
                Err(error) => {
                    last = match last {
                        Some(first) if !first.found_no_tls() || error.found_no_server() => Some(first),
                        _ => Some(error),
                    };
                }
            }
        }
        Err(last
            .unwrap_or_else(|| RegistryError::Protocol { host: place.host.clone(), why: "it has no address".into() }))
    }

    pub(super) fn host(&self) -> &str {
        &self.host
    }

    pub(super) fn http(&self) -> &Http {
        &self.http
    }

    /// Returns the URL of a path in this repository. The `Location` of a response may be a complete URL or an absolute
    /// path.
    pub(super) fn url(&self, path: &str) -> String {
        if path.starts_with("https://") || path.starts_with("http://") {
            path.to_owned()
        } else if path.starts_with('/') {
            format!("{}{path}", self.base)
        } else {
            format!("{}/v2/{}/{path}", self.base, self.repository)
        }
    }

    /// Makes one attempt at a request. Renews a refused token once. A status below 300 or one of `fine` is a success.
    pub(super) fn attempt(&self, spec: &RequestSpec<'_>, fine: &[u16]) -> Attempt<Response<Body>> {
        let mut renewed = false;
        loop {
            let mut response = match self.send(spec) {
                Ok(Ok(response)) => response,
                Ok(Err(cause)) => return self.failed(cause),
                Err(error) => return Attempt::Failed(error),
            };
            let status = response.status();
            if status.is_success() || fine.contains(&status.as_u16()) {
                return Attempt::Done(response);
            }
            if status == StatusCode::UNAUTHORIZED && !renewed {
                // The token may have expired during a long pull.
                self.auth.forget(&self.scope());
                renewed = true;
                continue;
            }
            let after = http::retry_after(&response);
            let message = http::error_message(response.body_mut(), self.http.stall);
            let (host, what) = (self.host.clone(), spec.what.to_owned());
            return match status {
                StatusCode::NOT_FOUND => Attempt::Failed(RegistryError::NotFound { host, what }),
                StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => Attempt::Failed(self.auth.denied(&what, message)),
                _ => {
                    let error = RegistryError::Status { host, what, status: status.as_u16(), message };
                    if http::may_pass(status) { Attempt::Again { error, after } } else { Attempt::Failed(error) }
                }
            };
        }
    }

    /// Sends a request, and retries it after a temporary failure.
    pub(super) fn call(&self, spec: &RequestSpec<'_>, fine: &[u16]) -> Result<Response<Body>, RegistryError> {
        self.http.retry(|| self.attempt(spec, fine))
    }

    fn failed<T>(&self, cause: ureq::Error) -> Attempt<T> {
        let again = http::may_recover(&cause);
        let error = unreachable(&self.host, cause);
        if again { Attempt::Again { error, after: None } } else { Attempt::Failed(error) }
    }

    fn scope(&self) -> String {
        if self.repository.is_empty() {
            return self.actions.to_owned();
        }
        format!("repository:{}:{}", self.repository, self.actions)
    }

    fn send(&self, spec: &RequestSpec<'_>) -> Result<Result<Response<Body>, ureq::Error>, RegistryError> {
        let url = self.url(spec.path);
        let left = if spec.small { self.http.left_for_small()? } else { self.http.left()? };
        // An upload may be redirected to another storage service, which has its own signature in the URL.
        let mut login = None;
        if url.starts_with(&format!("{}/", self.base)) {
            login = self.auth.header(&self.scope(), &self.agents, &self.http)?;
        }
        self.agents.follow(spec.method, &url, &|agent, url, first| {
            let mut headers: Vec<(&str, &str)> = spec.headers.iter().map(|(name, value)| (*name, &**value)).collect();
            headers.extend(login.as_deref().filter(|_| first).map(|login| ("authorization", login)));
            macro_rules! with {
                ($request:expr) => {
                    headers
                        .iter()
                        .fold($request, |request, (name, value)| request.header(*name, *value))
                        .config()
                        .timeout_global(left)
                        .build()
                };
            }
            let request = |method: &str| match method {
                "PUT" => agent.put(url),
                "PATCH" => agent.patch(url),
                _ => agent.post(url),
            };
            match spec.body {
                Payload::None if spec.method == "HEAD" => with!(agent.head(url)).call(),
                Payload::None => with!(agent.get(url)).call(),
                Payload::Empty => with!(request(spec.method)).send_empty(),
                Payload::Bytes(bytes) => with!(request(spec.method)).send(bytes),
                Payload::File(upload) => match upload.reader() {
                    Ok(mut reader) => with!(request(spec.method)).send(ureq::SendBody::from_reader(&mut reader)),
                    Err(error) => Err(error.into()),
                },
            }
        })
    }

    /// Reads a whole small document. Repeats the request if the connection breaks.
    fn document(&self, spec: &RequestSpec<'_>) -> Result<Vec<u8>, RegistryError> {
        self.document_and_head(spec).map(|(bytes, _)| bytes)
    }

    fn document_and_head(&self, spec: &RequestSpec<'_>) -> Result<(Vec<u8>, Response<Body>), RegistryError> {
        let (host, what) = (&self.host, spec.what);
        let response = self.http.retry(|| {
            let mut response = match self.attempt(spec, &[]) {
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
        let (bytes, response) = response?;
        match declared_digest(&response) {
            Some(expected) if expected != digest_of(&bytes) => {
                let (host, what) = (host.clone(), what.to_owned());
                Err(RegistryError::Digest { host, what, expected, found: digest_of(&bytes) })
            }
            _ => Ok((bytes, response)),
        }
    }

    /// Returns a page of a list in this repository, and the path of the next page (RFC 5988's `Link`).
    pub(super) fn page(&self, path: &str) -> Result<(Vec<u8>, Option<String>), RegistryError> {
        let what = format!("{}/{path}", self.repository);
        let spec = RequestSpec { method: "GET", path, what: &what, small: true, ..RequestSpec::default() };
        let (bytes, response) = self.document_and_head(&spec)?;
        let link = response.headers().get("link").and_then(|value| value.to_str().ok());
        Ok((bytes, link.and_then(next_page)))
    }

    /// Returns a manifest or an index, by tag or digest.
    pub(super) fn manifest(&self, reference: &str, what: &str) -> Result<Vec<u8>, RegistryError> {
        let path = format!("manifests/{reference}");
        let headers = vec![("accept", ACCEPT.to_owned())];
        self.document(&RequestSpec { method: "GET", path: &path, headers, what, small: true, ..RequestSpec::default() })
    }

    /// Makes the request that needs a valid login and nothing else.
    pub(super) fn check_login(&self) -> Result<(), RegistryError> {
        let what = &self.host;
        self.call(&RequestSpec { method: "GET", path: "/v2/", what, small: true, ..RequestSpec::default() }, &[])
            .map(drop)
    }

    /// Returns a document of the registry's that is not part of a repository.
    pub(super) fn json(&self, path: &str) -> Result<Vec<u8>, RegistryError> {
        self.document(&RequestSpec { method: "GET", path, what: path, small: true, ..RequestSpec::default() })
    }

    pub(super) fn small_blob(&self, digest: &str) -> Result<Vec<u8>, RegistryError> {
        self.document(&RequestSpec {
            method: "GET",
            path: &format!("blobs/{digest}"),
            what: digest,
            small: true,
            ..RequestSpec::default()
        })
    }
}

/// Returns the target of a `Link` header to the next page. It must be a path, so that no other host is asked.
fn next_page(link: &str) -> Option<String> {
    let (target, parameters) = link.trim().strip_prefix('<')?.split_once('>')?;
    let is_next = parameters.split(';').any(|one| matches!(one.trim(), r#"rel="next""# | "rel=next"));
    (is_next && target.starts_with('/') && !target.starts_with("//")).then(|| target.to_owned())
}

/// Returns the digest that a registry declares for its response, if it is a digest of the supported kind.
pub(super) fn declared_digest(response: &Response<Body>) -> Option<Digest> {
    response.headers().get("docker-content-digest")?.to_str().ok()?.trim().parse().ok()
}

/// Checks whether there is a registry, and which authentication it requires.
fn ping(
    base: &str,
    host: &str,
    agents: &Agents,
    http: &Http,
    patient: bool,
) -> Result<Option<auth::Challenge>, RegistryError> {
    let url = format!("{base}/v2/");
    http.retry(|| {
        let left = match http.left_for_small() {
            Ok(left) => left,
            Err(error) => return Attempt::Failed(error),
        };
        let asked =
            agents.follow("GET", &url, &|agent, url, _| agent.get(url).config().timeout_global(left).build().call());
        let answer = match asked {
            Ok(answer) => answer,
            Err(error) => return Attempt::Failed(error),
        };
        match answer {
            Ok(response) if response.status() == StatusCode::UNAUTHORIZED => {
                Attempt::Done(auth::challenge(response.headers()))
            }
            // Some registries answer 404 here and still serve images.
            Ok(response) if response.status().is_success() || response.status() == StatusCode::NOT_FOUND => {
                Attempt::Done(None)
            }
            Ok(mut response) => {
                let (status, after) = (response.status(), http::retry_after(&response));
                let message = http::error_message(response.body_mut(), http.stall);
                let error =
                    RegistryError::Status { host: host.into(), what: "/v2/".into(), status: status.as_u16(), message };
                if http::may_pass(status) { Attempt::Again { error, after } } else { Attempt::Failed(error) }
            }
            Err(cause) if patient && http::may_recover(&cause) && !error::is_refused(&cause) => {
                Attempt::Again { error: unreachable(host, cause), after: None }
            }
            Err(cause) => Attempt::Failed(unreachable(host, cause)),
        }
    })
}

fn unreachable(host: &str, cause: ureq::Error) -> RegistryError {
    let host = host.to_owned();
    match &cause {
        ureq::Error::Io(error) if http::no_tls(error) => RegistryError::NoTls { host },
        ureq::Error::Rustls(rustls::Error::InvalidMessage(_)) => RegistryError::NoTls { host },
        ureq::Error::Rustls(_) | ureq::Error::Tls(_) => RegistryError::Certificate { host, cause },
        ureq::Error::Io(error) if http::tls_trouble(error) => RegistryError::Certificate { host, cause },
        // The registry was reached.
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

#[cfg(test)]
mod tests {
    use super::next_page;

    #[test]
    fn the_next_page_is_at_the_same_host() {
        let next = |link: &str| next_page(link);
        let path = Some("/v2/t/tags/list?last=b&n=2".to_owned());
        assert_eq!(next("</v2/t/tags/list?last=b&n=2>; rel=\"next\""), path);
        assert_eq!(next("</v2/t/tags/list?last=b&n=2>;rel=next"), path);
        for other in ["</v2/x>; rel=\"prev\"", "<//evil/x>; rel=next", "<https://evil/x>; rel=next", "", "</x"] {
            assert_eq!(next(other), None, "{other}");
        }
    }
}
