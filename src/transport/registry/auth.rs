//! Authentication challenges and tokens (docker's registry v2 token authentication, RFC 6750 and 7617).

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use base64::Engine as _;
use serde::Deserialize;
use ureq::http::{HeaderMap, Response};

use super::RegistryError;
use super::agents::Agents;
use super::credentials::Found;
use super::http::{self, Attempt, Http};
use super::options::Credentials;

/// The authentication that a registry requires.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Challenge {
    Basic,
    Bearer { realm: String, service: String },
}

/// A token is renewed this long before it expires.
const MARGIN: Duration = Duration::from_secs(10);
/// Lifetime of a token that does not specify one, from the specification.
const LIFE: u64 = 60;

/// The login state for one registry.
pub(super) struct Auth {
    host: String,
    /// Whether the connection to the registry uses TLS. If so, no password is sent without TLS.
    pub secure: bool,
    pub login: Option<Found>,
    challenge: Option<Challenge>,
    tokens: Mutex<HashMap<String, (String, Instant)>>,
}

impl Auth {
    pub(super) fn new(host: &str, secure: bool, login: Option<Found>, challenge: Option<Challenge>) -> Self {
        Self { host: host.into(), secure, login, challenge, tokens: Mutex::default() }
    }

    /// Returns the `Authorization` header for a request within `scope`.
    pub(super) fn header(&self, scope: &str, agents: &Agents, http: &Http) -> Result<Option<String>, RegistryError> {
        match (&self.challenge, self.login.as_ref().map(|found| &found.credentials)) {
            (Some(Challenge::Bearer { realm, service }), _) => {
                let mut tokens = self.tokens.lock().unwrap_or_else(PoisonError::into_inner);
                if let Some((token, _)) = tokens.get(scope).filter(|(_, end)| *end > Instant::now()) {
                    return Ok(Some(format!("Bearer {token}")));
                }
                // Keep the lock while fetching, so that four layers that start at the same time fetch one token.
                let (token, life) = self.fetch(realm, service, scope, agents, http)?;
                tokens.insert(scope.into(), (token.clone(), Instant::now() + life.saturating_sub(MARGIN)));
                Ok(Some(format!("Bearer {token}")))
            }
            (Some(Challenge::Basic), Some(Credentials::Password { user, password })) => Ok(Some(basic(user, password))),
            (Some(Challenge::Basic), _) | (None, _) => Ok(None),
        }
    }

    /// Removes a token that was refused.
    pub(super) fn forget(&self, scope: &str) {
        self.tokens.lock().unwrap_or_else(PoisonError::into_inner).remove(scope);
    }

    pub(super) fn denied(&self, what: &str, message: String) -> RegistryError {
        let credentials = self.login.as_ref().map(|found| found.origin.clone());
        RegistryError::Denied { host: self.host.clone(), what: what.into(), credentials, message }
    }

    fn fetch(
        &self,
        realm: &str,
        service: &str,
        scope: &str,
        agents: &Agents,
        http: &Http,
    ) -> Result<(String, Duration), RegistryError> {
        let nonsense = |why: &str| RegistryError::Protocol { host: self.host.clone(), why: why.into() };
        if !realm.starts_with("https://") && (self.secure || !realm.starts_with("http://")) {
            return Err(nonsense(&format!("it wants the credentials to be sent to `{}`", realm.escape_debug())));
        }
        let answer = http.retry(|| {
            let left = match http.left_for_small() {
                Ok(left) => left,
                Err(error) => return Attempt::Failed(error),
            };
            let asked = match self.ask(realm, service, scope, agents, left) {
                Ok(asked) => asked,
                Err(error) => return Attempt::Failed(error),
            };
            match asked {
                Err(cause) if http::may_recover(&cause) => {
                    Attempt::Again { error: RegistryError::Unreachable { host: realm.into(), cause }, after: None }
                }
                Err(cause) => Attempt::Failed(RegistryError::Unreachable { host: realm.into(), cause }),
                Ok(mut response) if http::may_pass(response.status()) => Attempt::Again {
                    after: http::retry_after(&response),
                    error: RegistryError::Status {
                        host: self.host.clone(),
                        what: realm.into(),
                        status: response.status().as_u16(),
                        message: http::error_message(response.body_mut(), http.stall),
                    },
                },
                Ok(mut response) if !response.status().is_success() => {
                    let message = http::error_message(response.body_mut(), http.stall);
                    Attempt::Failed(self.denied(repository_of(scope), message))
                }
                Ok(response) => match response.into_body().with_config().limit(1 << 20).read_to_vec() {
                    Ok(bytes) => Attempt::Done(bytes),
                    Err(cause) => {
                        let again = http::may_recover(&cause);
                        let error = RegistryError::Unreachable { host: realm.into(), cause };
                        if again { Attempt::Again { error, after: None } } else { Attempt::Failed(error) }
                    }
                },
            }
        })?;
        token(&answer).ok_or_else(|| nonsense("its token service returned no token"))
    }

    fn ask(
        &self,
        realm: &str,
        service: &str,
        scope: &str,
        agents: &Agents,
        left: Option<Duration>,
    ) -> Result<Result<Response<ureq::Body>, ureq::Error>, RegistryError> {
        let mut parameters = vec![("service", service), ("scope", scope)];
        parameters.retain(|(_, value)| !value.is_empty());
        match self.login.as_ref().map(|found| &found.credentials) {
            Some(Credentials::Identity(token)) => {
                parameters.extend([
                    ("grant_type", "refresh_token"),
                    ("client_id", "gpurun"),
                    ("refresh_token", token.as_str()),
                ]);
                // The token is in the body, so it is only sent to the realm.
                Ok(agents.of(realm)?.post(realm).config().timeout_global(left).build().send_form(parameters))
            }
            login => {
                let mut login_header = None;
                if let Some(Credentials::Password { user, password }) = login {
                    parameters.push(("account", user));
                    login_header = Some(basic(user, password));
                }
                agents.follow("GET", realm, &|agent, url, first| {
                    let mut request = agent.get(url);
                    if first {
                        request = request.query_pairs(parameters.iter().copied());
                    }
                    if let Some(login) = login_header.as_ref().filter(|_| first) {
                        request = request.header("authorization", login);
                    }
                    request.config().timeout_global(left).build().call()
                })
            }
        }
    }
}

/// Parses a token response: `token` or `access_token`, and the lifetime, which may be missing, null or invalid.
fn token(answer: &[u8]) -> Option<(String, Duration)> {
    #[derive(Deserialize)]
    struct Answer {
        token: Option<String>,
        access_token: Option<String>,
        #[serde(default)]
        expires_in: serde_json::Value,
    }
    let answer: Answer = serde_json::from_slice(answer).ok()?;
    let good = |token: &String| !token.is_empty() && token.bytes().all(|byte| byte.is_ascii_graphic());
    let token = answer.token.filter(|token| !token.is_empty()).or(answer.access_token).filter(good)?;
    Some((token, Duration::from_secs(answer.expires_in.as_u64().unwrap_or(LIFE).clamp(LIFE, 3600))))
}

fn basic(user: &str, password: &str) -> String {
    format!("Basic {}", base64::engine::general_purpose::STANDARD.encode(format!("{user}:{password}")))
}

/// Returns `a/b` from `repository:a/b:pull`.
fn repository_of(scope: &str) -> &str {
    scope.split(':').nth(1).unwrap_or(scope)
}

/// Returns the challenge of a 401 response that gpurun supports. Prefers Bearer to Basic.
pub(super) fn challenge(headers: &HeaderMap) -> Option<Challenge> {
    let values = headers.get_all("www-authenticate").iter().filter_map(|value| value.to_str().ok());
    let challenges: Vec<_> = values.flat_map(parse).collect();
    challenges.iter().find(|challenge| matches!(challenge, Challenge::Bearer { .. })).or(challenges.first()).cloned()
}

/// Parses `Bearer realm="…",service="…"` and `Basic realm="…"`, including several challenges in one header.
fn parse(text: &str) -> Vec<Challenge> {
    let mut found = Vec::new();
    let mut scheme = String::new();
    let mut parameters: HashMap<String, String> = HashMap::new();
    let mut finish = |scheme: &str, parameters: &mut HashMap<String, String>| {
        let mut take = |key: &str| parameters.remove(key).unwrap_or_default();
        match scheme.to_ascii_lowercase().as_str() {
            "basic" => found.push(Challenge::Basic),
            "bearer" => {
                let (realm, service) = (take("realm"), take("service"));
                if !realm.is_empty() {
                    found.push(Challenge::Bearer { realm, service });
                }
            }
            _ => {}
        }
        parameters.clear();
    };
    let mut rest = text.trim_start_matches([' ', ',']);
    while !rest.is_empty() {
        let end = rest.find([' ', '=', ',']).unwrap_or(rest.len());
        let (name, after) = rest.split_at(end);
        rest = match after.trim_start().strip_prefix('=') {
            Some(value) => {
                let (value, after) = quoted(value.trim_start());
                parameters.insert(name.to_ascii_lowercase(), value);
                after
            }
            None => {
                finish(&scheme, &mut parameters);
                scheme = name.to_owned();
                after
            }
        }
        .trim_start_matches([' ', ',']);
    }
    finish(&scheme, &mut parameters);
    found
}

/// Splits off a token or a quoted string. Returns it with the rest of the text.
fn quoted(text: &str) -> (String, &str) {
    let Some(inner) = text.strip_prefix('"') else {
        let end = text.find([',', ' ']).unwrap_or(text.len());
        return (text[..end].to_owned(), &text[end..]);
    };
    let mut value = String::new();
    let mut chars = inner.char_indices();
    while let Some((at, c)) = chars.next() {
        match c {
            '"' => return (value, &inner[at + 1..]),
            '\\' => value.extend(chars.next().map(|(_, c)| c)),
            _ => value.push(c),
        }
    }
    (value, "")
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn challenges() {
        let bearer = |realm: &str, service: &str| Challenge::Bearer { realm: realm.into(), service: service.into() };
        for (text, want) in [
            (
                r#"Bearer realm="https://auth.docker.io/token",service="registry.docker.io""#,
                vec![bearer("https://auth.docker.io/token", "registry.docker.io")],
            ),
            (r#"Basic realm="a, \"b\"""#, vec![Challenge::Basic]),
            (
                r#"Basic realm="x", Bearer realm=https://t/,service=s,scope="repository:a:pull,push""#,
                vec![Challenge::Basic, bearer("https://t/", "s")],
            ),
            ("Basic", vec![Challenge::Basic]),
            ("Negotiate", vec![]),
            ("Bearer service=x", vec![]),
            (r#"Bearer realm="unclosed"#, vec![bearer("unclosed", "")]),
            ("", vec![]),
        ] {
            assert_eq!(parse(text), want, "{text}");
        }
        let mut headers = HeaderMap::new();
        headers.append("www-authenticate", "Basic realm=x".parse().expect("a value"));
        headers.append("www-authenticate", "Bearer realm=https://t".parse().expect("a value"));
        assert_eq!(challenge(&headers), Some(bearer("https://t", "")));
    }

    #[test]
    fn tokens() {
        for (answer, want) in [
            (r#"{"token":"a"}"#, Some(("a", 60))),
            (r#"{"access_token":"b","expires_in":300,"issued_at":"x"}"#, Some(("b", 300))),
            (r#"{"token":null,"access_token":"b","expires_in":null}"#, Some(("b", 60))),
            (r#"{"token":"","access_token":"b","expires_in":-1}"#, Some(("b", 60))),
            (r#"{"token":"a","access_token":"b","expires_in":"300"}"#, Some(("a", 60))),
            (r#"{"token":"a","expires_in":18446744073709551615}"#, Some(("a", 3600))),
            (r#"{"token":"a","expires_in":1e400}"#, None),
            (r#"{"token":"a\r\nX: y"}"#, None),
            (r#"{"token":7}"#, None),
            ("{}", None),
            ("<html>", None),
        ] {
            let want = want.map(|(token, life)| (token.to_owned(), Duration::from_secs(life)));
            assert_eq!(token(answer.as_bytes()), want, "{answer}");
        }
    }

    proptest! {
        #[test]
        fn no_challenge_panics(text in "[ -~]{0,80}") {
            let _ = parse(&text);
        }
    }
}
