//! Credentials for registries: the config files of docker and podman, and credential helpers.
//!
//! If `--authfile` or REGISTRY_AUTH_FILE is set, only that file is read. Otherwise the files are, in order: docker's
//! (`$DOCKER_CONFIG`, `~/.docker/config.json`), podman's (`$XDG_RUNTIME_DIR/containers/auth.json`,
//! `/run/containers/UID/auth.json`, `~/.config/containers/auth.json`), and the same files in the home directory of the
//! caller of `sudo`. From a file that does not belong to root, gpurun only uses credentials in the file itself: root
//! runs no program that it names (see `helper`).

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};

use base64::Engine as _;
use serde::Deserialize;

use super::helper::{self, read_config};
use super::options::Credentials;
use super::{Options, RegistryError};

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

/// Returns the login for a repository of the registry `host`, if there is one.
pub(super) fn find(host: &str, repository: &str, options: &Options) -> Result<Option<Found>, RegistryError> {
    if let Some(credentials) = &options.credentials {
        return Ok(Some(Found { credentials: credentials.clone(), origin: "`--creds`".into() }));
    }
    for path in files(options) {
        let (bytes, distrust) = match read_config(&path) {
            Ok(read) => read,
            Err(error) if error.kind() == io::ErrorKind::NotFound && options.auth_file.is_none() => continue,
            Err(cause) => return Err(RegistryError::File { path, cause }),
        };
        let ask = |name: &str| match &distrust {
            None => helper::ask(name, server(host), &*options.notice),
            Some(why) => {
                helper::refuse(&format!("docker-credential-{name}"), why, &*options.notice);
                Ok(None)
            }
        };
        if let Some(found) = find_in(&bytes, &path, host, repository, &ask)? {
            return Ok(Some(found));
        }
    }
    Ok(None)
}

/// Returns the config files to read.
fn files(options: &Options) -> Vec<PathBuf> {
    let variable = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    if let Some(path) = options.auth_file.clone().or_else(|| variable("REGISTRY_AUTH_FILE")) {
        return vec![path];
    }
    let in_home = |home: &Path| [home.join(".docker/config.json"), home.join(".config/containers/auth.json")];
    let mut files = Vec::new();
    files.extend(variable("DOCKER_CONFIG").map(|dir| dir.join("config.json")));
    files.extend(variable("XDG_RUNTIME_DIR").map(|dir| dir.join("containers/auth.json")));
    files.push(PathBuf::from(format!("/run/containers/{}/auth.json", nix::unistd::geteuid())));
    files.extend(variable("HOME").into_iter().flat_map(|home| in_home(&home)));
    let person = std::env::var("SUDO_USER").ok().and_then(|name| nix::unistd::User::from_name(&name).ok().flatten());
    if let Some(person) = person {
        files.push(PathBuf::from(format!("/run/containers/{}/auth.json", person.uid)));
        files.extend(in_home(&person.dir));
    }
    files
}

/// Runs a helper, by name.
type AskHelper<'a> = dyn Fn(&str) -> Result<Option<Credentials>, RegistryError> + 'a;

fn find_in(
    bytes: &[u8],
    path: &Path,
    host: &str,
    repository: &str,
    ask: &AskHelper<'_>,
) -> Result<Option<Found>, RegistryError> {
    let bad = |why: String| RegistryError::BadFile { path: path.into(), why };
    let file: File = serde_json::from_slice(bytes).map_err(|error| bad(error.to_string()))?;
    let origin = format!("`{}`", path.display());
    let keys = keys(host, repository);
    let helper = keys.iter().find_map(|key| file.helpers.get(key));
    if let Some(helper) = helper
        && let Some(credentials) = ask(helper)?
    {
        return Ok(Some(Found { credentials, origin: format!("`docker-credential-{helper}`") }));
    }
    for key in &keys {
        let entry = file.auths.iter().find(|(name, _)| bare(name) == *key).map(|(_, auth)| auth);
        if let Some(credentials) = entry.and_then(|auth| auth.read().transpose()).transpose().map_err(bad)? {
            return Ok(Some(Found { credentials, origin }));
        }
    }
    if !file.store.is_empty()
        && helper.is_none()
        && let Some(credentials) = ask(&file.store)?
    {
        return Ok(Some(Found { credentials, origin: format!("`docker-credential-{}`", file.store) }));
    }
    Ok(None)
}

/// Returns the name of Docker Hub in docker's files and helpers.
pub(super) fn server(host: &str) -> &str {
    if host == "docker.io" { "https://index.docker.io/v1/" } else { host }
}

/// Returns the keys that may hold the login, most specific first. podman supports logins for a part of a registry.
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

/// Reduces `https://host/v1/` to `host`.
pub(super) fn bare(key: &str) -> &str {
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

#[cfg(test)]
mod tests {
    use super::*;

    fn found(file: &str, host: &str, repository: &str) -> Option<Credentials> {
        let found =
            find_in(file.as_bytes(), Path::new("auth.json"), host, repository, &|_| Ok(None)).expect("a good file");
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
            let error = find_in(bad.as_bytes(), Path::new("auth.json"), "a.io", "x", &|_| Ok(None)).expect_err(bad);
            assert!(matches!(error, RegistryError::BadFile { .. }), "{bad}");
        }
    }

    #[test]
    fn no_secret_is_printed() {
        let shown = format!("{:?} {:?}", password("u", "secret"), Credentials::Identity("secret".into()));
        assert!(!shown.contains("secret"), "{shown}");
    }
}
