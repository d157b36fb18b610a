//! One HTTP agent per host, so that the settings that an administrator configured for a registry only apply to it.
//!
//! A client certificate, an additional CA and `--tls-verify=false` apply to the registry's own host. A redirect, a
//! token service and an upload may use another host. Requests to another host use the settings for that host
//! (`certs.d`, `insecure` in `registries.json`), and otherwise the system's trust store.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};

use ureq::http::{Response, StatusCode, Uri};
use ureq::{Agent, Body};

use super::{Options, RegistryError, http, tls};

/// Maximum number of redirects of one request.
const MAX_REDIRECTS: u32 = 10;

/// Sends one request. The arguments are the agent for the URL, the URL, and whether it is the first request;
/// credentials are only sent with the first.
pub(super) type Send<'a> = dyn Fn(&Agent, &str, bool) -> Result<Response<Body>, ureq::Error> + 'a;

pub(super) struct Agents {
    /// The registry's name, for error messages.
    name: String,
    /// The registry's host without a port, because its token service may use another port.
    host: String,
    own: Agent,
    others: Mutex<HashMap<String, Agent>>,
    options: Options,
}

impl Agents {
    /// Creates the agents for the registry `name` (as users write it), whose API is at `address`.
    pub(super) fn new(name: &str, address: &str, verify: bool, options: &Options) -> Result<Self, RegistryError> {
        let trust = tls::config(name, verify, options.cert_dir.as_deref())?;
        Ok(Self {
            name: name.into(),
            host: bare(address).to_owned(),
            own: http::agent(trust, options.stall),
            others: Mutex::default(),
            options: options.clone(),
        })
    }

    /// Sends a request, and follows redirects.
    pub(super) fn follow(
        &self,
        method: &str,
        url: &str,
        ask: &Send<'_>,
    ) -> Result<Result<Response<Body>, ureq::Error>, RegistryError> {
        let mut url = url.to_owned();
        let mut hops = 0;
        loop {
            let response = match ask(&self.of(&url)?, &url, hops == 0) {
                Ok(response) => response,
                // The other host is not trusted, not the registry.
                Err(cause) if is_tls(&cause) && !self.is_own(&url) => {
                    return Err(RegistryError::Certificate { host: authority(&url).unwrap_or_default(), cause });
                }
                failed => return Ok(failed),
            };
            let status = response.status();
            let Some(location) = redirect(method, &response) else { return Ok(Ok(response)) };
            let wrong = |why: String| RegistryError::Protocol { host: self.name.clone(), why };
            hops += 1;
            if hops > MAX_REDIRECTS {
                let shown: String = without_query(&url).escape_debug().take(200).collect();
                return Err(wrong(format!("too many redirects; `{shown}` answered {} as well", status.as_u16())));
            }
            let shown = || without_query(&location).escape_debug().take(200).collect::<String>();
            url = join(&url, &location).ok_or_else(|| wrong(format!("a redirect to `{}`", shown())))?;
        }
    }

    /// Whether a URL is on the registry's own host. (An invalid URL fails with any agent.)
    fn is_own(&self, url: &str) -> bool {
        authority(url).is_none_or(|authority| bare(&authority).eq_ignore_ascii_case(&self.host))
    }

    /// Returns the agent for a URL.
    pub(super) fn of(&self, url: &str) -> Result<Agent, RegistryError> {
        let Some(authority) = authority(url).filter(|_| !self.is_own(url)) else { return Ok(self.own.clone()) };
        let mut others = self.others.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(agent) = others.get(&authority) {
            return Ok(agent.clone());
        }
        let verify = !self.options.settings.insecure.iter().any(|known| known.eq_ignore_ascii_case(&authority));
        let agent = http::agent(tls::config(&authority, verify, None)?, self.options.stall);
        others.insert(authority, agent.clone());
        Ok(agent)
    }
}

/// Returns the host and port of a URL, without a user and a password.
fn authority(url: &str) -> Option<String> {
    let authority = url.parse::<Uri>().ok()?.authority()?.to_string();
    Some(authority.rsplit('@').next()?.to_ascii_lowercase())
}

fn is_tls(error: &ureq::Error) -> bool {
    match error {
        ureq::Error::Rustls(_) | ureq::Error::Tls(_) => true,
        ureq::Error::Io(error) => http::tls_trouble(error),
        _ => false,
    }
}

/// Returns the target of a redirect, if the response is one. A request with a body is only repeated if the status
/// requires it.
fn redirect(method: &str, response: &Response<Body>) -> Option<String> {
    let follows = match response.status() {
        StatusCode::TEMPORARY_REDIRECT | StatusCode::PERMANENT_REDIRECT => true,
        StatusCode::MOVED_PERMANENTLY | StatusCode::FOUND | StatusCode::SEE_OTHER => matches!(method, "GET" | "HEAD"),
        _ => false,
    };
    let location = response.headers().get("location").filter(|_| follows)?;
    Some(location.to_str().ok()?.to_owned())
}

/// Resolves a `Location` header relative to a URL.
fn join(base: &str, location: &str) -> Option<String> {
    let location = location.split('#').next().unwrap_or_default();
    if location.starts_with("https://") || location.starts_with("http://") {
        return Some(location.to_owned());
    }
    let (scheme, rest) = base.split_once("://")?;
    if let Some(rest) = location.strip_prefix("//") {
        return Some(format!("{scheme}://{rest}"));
    }
    let path_at = rest.find('/').unwrap_or(rest.len());
    let (authority, path) = rest.split_at(path_at);
    if location.starts_with('/') {
        return Some(format!("{scheme}://{authority}{location}"));
    }
    if location.is_empty() || location.split(['/', '?']).next().is_some_and(|first| first.contains(':')) {
        // Another scheme, or an empty target.
        return None;
    }
    let path = without_query(path);
    let dir = path.rfind('/').map_or("/", |at| &path[..=at]);
    Some(match location.starts_with('?') {
        true => format!("{scheme}://{authority}{path}{location}"),
        false => format!("{scheme}://{authority}{dir}{location}"),
    })
}

/// Removes the query, which may contain signatures and tokens.
fn without_query(url: &str) -> &str {
    url.split('?').next().unwrap_or_default()
}

/// Returns a host without its port. An IPv6 address keeps its brackets.
fn bare(authority: &str) -> &str {
    match authority.rsplit_once(':') {
        Some((host, port)) if port.bytes().all(|byte| byte.is_ascii_digit()) => host,
        _ => authority,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn locations() {
        for (base, location, want) in [
            ("https://a.io/v2/x?y", "https://b.io/z", Some("https://b.io/z")),
            ("https://a.io/v2/x?y", "//b.io/z#f", Some("https://b.io/z")),
            ("http://a.io:5000/v2/x?y", "/z?q", Some("http://a.io:5000/z?q")),
            ("https://a.io/v2/x?y=/", "z", Some("https://a.io/v2/z")),
            ("https://a.io/v2/x?y", "?q", Some("https://a.io/v2/x?q")),
            ("https://a.io", "z", Some("https://a.io/z")),
            ("https://a.io/x", "ftp://b.io/z", None),
            ("https://a.io/x", "file:/etc/passwd", None),
            ("https://a.io/x", "", None),
        ] {
            assert_eq!(join(base, location).as_deref(), want, "{location}");
        }
    }

    #[test]
    fn what_is_for_one_host_is_not_for_another() {
        let options = Options { tls_verify: Some(false), ..Options::default() };
        let agents = Agents::new("a.io:5000", "a.io:5000", false, &options).expect("agents");
        let verifies = |url: &str| !agents.of(url).expect(url).config().tls_config().disable_verification();
        assert!(!verifies("https://a.io:5000/v2/") && !verifies("https://A.io/token"));
        for other in ["https://b.io/", "https://a.io@b.io/", "https://a.io.b.io/", "https://xa.io:5000/"] {
            assert!(verifies(other), "{other}");
        }
        assert!(!verifies("https://x:y@a.io/"), "a user in front is no host");
    }

    #[test]
    fn hosts_without_ports() {
        for (authority, want) in [("a.io", "a.io"), ("a.io:5000", "a.io"), ("[::1]:5000", "[::1]"), ("[::1]", "[::1]")]
        {
            assert_eq!(bare(authority), want);
        }
    }
}
