//! Who we are for a registry: docker's and podman's config files, and credential helpers.
//!
//! The files, in the order in which they are asked: `--authfile` or REGISTRY_AUTH_FILE alone; else docker's (`$DOCKER_CONFIG`,
//! `~/.docker/config.json`), podman's (`$XDG_RUNTIME_DIR/containers/auth.json`, `/run/containers/UID/auth.json`,
//! `~/.config/containers/auth.json`), and the same in the home of the person behind `sudo`. From the last only what is written there is
//! taken: root starts no program that somebody else's file names.

use std::collections::BTreeMap;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::mpsc;
use std::time::Duration;

use base64::Engine as _;
use serde::Deserialize;

use super::{Options, RegistryError};

/// A login.
#[derive(Clone, PartialEq, Eq)]
pub enum Credentials {
    Password {
        user: String,
        password: String,
    },
    /// An OAuth refresh token, which the token service changes into access tokens.
    Identity(String),
}

/// No secret is ever printed.
impl std::fmt::Debug for Credentials {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Password { user, .. } => f.debug_struct("Password").field("user", user).finish_non_exhaustive(),
            Self::Identity(_) => f.write_str("Identity"),
        }
    }
}

/// A login, and where it was found.
#[derive(Debug, Clone)]
pub(super) struct Found {
    pub credentials: Credentials,
    pub origin: String,
}

#[derive(Debug, Default, Deserialize)]
struct File {
    #[serde(default)]
    auths: BTreeMap<String, Auth>,
    #[serde(rename = "credHelpers", default)]
    helpers: BTreeMap<String, String>,
    #[serde(rename = "credsStore", default)]
    store: String,
}

#[derive(Debug, Default, Deserialize)]
struct Auth {
    /// base64 of `user:password`.
    #[serde(default)]
    auth: String,
    #[serde(default)]
    username: String,
    #[serde(default)]
    password: String,
    #[serde(rename = "identitytoken", default)]
    identity: String,
}

/// How long a helper may think.
const HELPER_PATIENCE: Duration = Duration::from_secs(30);

/// The login for a repository of the registry `host`, if there is one.
pub(super) fn find(host: &str, repository: &str, options: &Options) -> Result<Option<Found>, RegistryError> {
    if let Some(credentials) = &options.credentials {
        return Ok(Some(Found { credentials: credentials.clone(), origin: "`--creds`".into() }));
    }
    for (path, may_run) in files(options) {
        let bytes = match std::fs::read(&path) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == io::ErrorKind::NotFound && options.auth_file.is_none() => continue,
            Err(cause) => return Err(RegistryError::File { path, cause }),
        };
        if let Some(found) = find_in(&bytes, &path, host, repository, may_run)? {
            return Ok(Some(found));
        }
    }
    Ok(None)
}

/// The files to ask, and whether their helpers may be run.
fn files(options: &Options) -> Vec<(PathBuf, bool)> {
    let variable = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    if let Some(path) = options.auth_file.clone().or_else(|| variable("REGISTRY_AUTH_FILE")) {
        return vec![(path, true)];
    }
    let in_home = |home: &Path| [home.join(".docker/config.json"), home.join(".config/containers/auth.json")];
    let mut files = Vec::new();
    files.extend(variable("DOCKER_CONFIG").map(|dir| (dir.join("config.json"), true)));
    files.extend(variable("XDG_RUNTIME_DIR").map(|dir| (dir.join("containers/auth.json"), true)));
    files.push((PathBuf::from(format!("/run/containers/{}/auth.json", nix::unistd::geteuid())), true));
    files.extend(variable("HOME").into_iter().flat_map(|home| in_home(&home)).map(|path| (path, true)));
    let person = std::env::var("SUDO_USER").ok().and_then(|name| nix::unistd::User::from_name(&name).ok().flatten());
    if let Some(person) = person {
        files.push((PathBuf::from(format!("/run/containers/{}/auth.json", person.uid)), false));
        files.extend(in_home(&person.dir).map(|path| (path, false)));
    }
    files
}

fn find_in(
    bytes: &[u8],
    path: &Path,
    host: &str,
    repository: &str,
    may_run: bool,
) -> Result<Option<Found>, RegistryError> {
    let bad = |why: String| RegistryError::BadFile { path: path.into(), why };
    let file: File = serde_json::from_slice(bytes).map_err(|error| bad(error.to_string()))?;
    let origin = format!("`{}`", path.display());
    let keys = keys(host, repository);
    let helper = keys.iter().find_map(|key| file.helpers.get(key));
    if let Some(helper) = helper.filter(|_| may_run)
        && let Some(credentials) = ask(helper, server(host))?
    {
        return Ok(Some(Found { credentials, origin: format!("`docker-credential-{helper}`") }));
    }
    for key in &keys {
        let entry = file.auths.iter().find(|(name, _)| bare(name) == *key).map(|(_, auth)| auth);
        if let Some(credentials) = entry.and_then(|auth| auth.read().transpose()).transpose().map_err(bad)? {
            return Ok(Some(Found { credentials, origin }));
        }
    }
    if may_run
        && !file.store.is_empty()
        && helper.is_none()
        && let Some(credentials) = ask(&file.store, server(host))?
    {
        return Ok(Some(Found { credentials, origin: format!("`docker-credential-{}`", file.store) }));
    }
    Ok(None)
}

/// What docker calls the Docker Hub in its files and helpers.
fn server(host: &str) -> &str {
    if host == "docker.io" { "https://index.docker.io/v1/" } else { host }
}

/// The keys that may hold the login, the closest first: podman knows logins for a part of a registry.
fn keys(host: &str, repository: &str) -> Vec<String> {
    let mut keys = Vec::new();
    let mut path = Some(repository);
    while let Some(at) = path.filter(|path| !path.is_empty()) {
        keys.push(format!("{host}/{at}"));
        path = at.rsplit_once('/').map(|(parent, _)| parent);
    }
    keys.push(host.into());
    if host == "docker.io" {
        keys.push("index.docker.io".into());
    }
    keys
}

/// `https://host/v1/` is `host`.
fn bare(key: &str) -> &str {
    let rest = key.strip_prefix("https://").or_else(|| key.strip_prefix("http://")).unwrap_or(key);
    let rest = rest.trim_end_matches('/');
    rest.strip_suffix("/v1").or_else(|| rest.strip_suffix("/v2")).unwrap_or(rest)
}

impl Auth {
    fn read(&self) -> Result<Option<Credentials>, String> {
        if !self.identity.is_empty() {
            return Ok(Some(Credentials::Identity(self.identity.clone())));
        }
        if !self.auth.is_empty() {
            let wrong = || "an `auth` is not base64 of `user:password`".to_owned();
            let decoded = base64::engine::general_purpose::STANDARD.decode(self.auth.trim()).map_err(|_| wrong())?;
            let decoded = String::from_utf8(decoded).map_err(|_| wrong())?;
            let (user, password) = decoded.split_once(':').ok_or_else(wrong)?;
            // docker pads old files with NUL bytes.
            let password = password.trim_end_matches('\0');
            return Ok(Some(Credentials::Password { user: user.into(), password: password.into() }));
        }
        let named = !self.username.is_empty();
        Ok(named.then(|| Credentials::Password { user: self.username.clone(), password: self.password.clone() }))
    }
}

/// Asks `docker-credential-NAME get`; `None` when it knows nothing.
fn ask(name: &str, server: &str) -> Result<Option<Credentials>, RegistryError> {
    #[derive(Deserialize)]
    struct Answer {
        #[serde(rename = "Username")]
        user: String,
        #[serde(rename = "Secret")]
        secret: String,
    }
    let helper = format!("docker-credential-{name}");
    let failed = |why: String| RegistryError::Helper { helper: helper.clone(), why };
    if name.contains('/') {
        return Err(failed("its name is a path".into()));
    }
    let mut child = Command::new(&helper)
        .arg("get")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(|error| failed(error.to_string()))?;
    if let Some(mut stdin) = child.stdin.take() {
        // A helper that knows without asking may be gone already.
        let _ = stdin.write_all(server.as_bytes());
    }
    let pid = nix::unistd::Pid::from_raw(child.id().cast_signed());
    let (tell, told) = mpsc::channel();
    std::thread::spawn(move || tell.send(child.wait_with_output()));
    let Ok(output) = told.recv_timeout(HELPER_PATIENCE) else {
        let _ = nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGKILL);
        return Err(failed(format!("it did not answer within {} seconds", HELPER_PATIENCE.as_secs())));
    };
    let output = output.map_err(|error| failed(error.to_string()))?;
    let text = String::from_utf8_lossy(&output.stdout);
    if !output.status.success() {
        // The protocol's own words for "nothing is known".
        if text.contains("credentials not found") {
            return Ok(None);
        }
        let errors = String::from_utf8_lossy(&output.stderr);
        let line = format!("{text} {errors}").split_whitespace().collect::<Vec<_>>().join(" ");
        return Err(failed(line.chars().take(200).collect()));
    }
    let answer: Answer = serde_json::from_str(&text).map_err(|error| failed(error.to_string()))?;
    Ok(Some(match answer.user.as_str() {
        "<token>" => Credentials::Identity(answer.secret),
        _ => Credentials::Password { user: answer.user, password: answer.secret },
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(file: &str, host: &str, repository: &str) -> Option<Credentials> {
        let found = find_in(file.as_bytes(), Path::new("auth.json"), host, repository, false).expect("a good file");
        found.map(|found| found.credentials)
    }

    fn password(user: &str, password: &str) -> Option<Credentials> {
        Some(Credentials::Password { user: user.into(), password: password.into() })
    }

    #[test]
    fn config_files_of_docker_and_podman() {
        let file = r#"{"auths":{
            "https://index.docker.io/v1/":{"auth":"aHViOnB3"},
            "r.io:5000":{"username":"u","password":"p:q"},
            "quay.io/team":{"auth":"dGVhbTp0"},
            "quay.io":{"auth":"YWxsOmE="},
            "token.io":{"identitytoken":"abc","auth":"eDo="},
            "empty.io":{}},"HttpHeaders":{}}"#;
        assert_eq!(found(file, "docker.io", "library/x"), password("hub", "pw"));
        assert_eq!(found(file, "r.io:5000", "x"), password("u", "p:q"));
        assert_eq!(found(file, "quay.io", "team/x"), password("team", "t"));
        assert_eq!(found(file, "quay.io", "teams/x"), password("all", "a"));
        assert_eq!(found(file, "token.io", "x"), Some(Credentials::Identity("abc".into())));
        assert_eq!((found(file, "empty.io", "x"), found(file, "r.io", "x")), (None, None));
        for bad in ["null", r#"{"auths":{"a.io":{"auth":"%%"}}}"#, r#"{"auths":{"a.io":{"auth":"YWxs"}}}"#] {
            let error = find_in(bad.as_bytes(), Path::new("auth.json"), "a.io", "x", false).expect_err(bad);
            assert!(matches!(error, RegistryError::BadFile { .. }), "{bad}");
        }
    }

    #[test]
    fn no_secret_is_printed() {
        let shown = format!("{:?} {:?}", password("u", "secret"), Credentials::Identity("secret".into()));
        assert!(!shown.contains("secret"), "{shown}");
    }
}
