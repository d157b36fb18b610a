//! Logging in to a registry and out of it: checks credentials against the registry, and keeps them in docker's
//! `config.json` or with the credential helper that this file names.
//!
//! The file keeps its owner, its other keys, and the mode 0600. It is replaced as a whole. A helper is only run if no
//! other user controls the file or the program (see `helper`).

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use base64::Engine as _;
use serde_json::{Map, Value, json};

use super::credentials::{bare, server};
use super::endpoint::Endpoint;
use super::helper::{self, read_config};
use super::http::Http;
use super::settings::Place;
use super::{Options, RegistryError};

/// Where a login was stored, or removed from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Kept {
    File(PathBuf),
    Helper(String),
}

/// An image that a search found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Hit {
    pub(crate) name: String,
    pub(crate) description: String,
    pub(crate) stars: u64,
    pub(crate) is_official: bool,
}

fn place(host: &str, options: &Options) -> Place {
    Place { host: host.into(), repository: String::new(), scheme: None, insecure: options.settings.is_insecure(host) }
}

/// Checks the credentials in `options` against the registry.
pub(crate) fn check_login(host: &str, options: &Options) -> Result<(), RegistryError> {
    let http = Arc::new(Http::new(options));
    Endpoint::open_for(&place(host, options), &http, options, "")?.check_login()
}

/// Names per request of a catalog. Registries refuse more than 1,000.
const CATALOG_PAGE: usize = 1000;
/// The most requests for one catalog.
const CATALOG_PAGES: usize = 100;

/// Encodes a value of a query.
fn percent(text: &str) -> String {
    text.bytes()
        .map(|byte| match byte {
            byte if byte.is_ascii_alphanumeric() => char::from(byte).to_string(),
            byte => format!("%{byte:02X}"),
        })
        .collect()
}

/// Searches a registry for images whose name or description contains a text. Docker Hub and some others have a search of
/// their own. The catalog of other registries is searched for the name.
pub(crate) fn search(host: &str, term: &str, most: usize, options: &Options) -> Result<Vec<Hit>, RegistryError> {
    let http = Arc::new(Http::new(options));
    let endpoint = Endpoint::open_for(&place(host, options), &http, options, "registry:catalog:*")?;
    let encoded = percent(term);
    let nonsense = |why: &str| RegistryError::Protocol { host: host.to_owned(), why: why.to_owned() };
    let base = if host == "docker.io" { "https://index.docker.io" } else { "" };
    let found = endpoint.json(&format!("{base}/v1/search?q={encoded}&n={most}"));
    match found {
        Ok(bytes) => {
            let value: Value = serde_json::from_slice(&bytes).map_err(|error| nonsense(&error.to_string()))?;
            let results = value["results"].as_array().ok_or_else(|| nonsense("its search gave no results"))?;
            let text = |hit: &Value, key: &str| hit[key].as_str().unwrap_or_default().to_owned();
            let hit = |hit: &Value| Hit {
                name: text(hit, "name"),
                description: text(hit, "description"),
                stars: hit["star_count"].as_u64().unwrap_or(0),
                is_official: hit["is_official"].as_bool().unwrap_or(false),
            };
            Ok(results.iter().take(most).map(hit).collect())
        }
        Err(RegistryError::NotFound { .. }) => {
            let mut hits = Vec::new();
            let mut last = String::new();
            // A registry that does not end its catalog is given up after some pages.
            for _ in 0..CATALOG_PAGES {
                let after = if last.is_empty() { String::new() } else { format!("&last={}", percent(&last)) };
                let bytes = endpoint.json(&format!("/v2/_catalog?n={CATALOG_PAGE}{after}"))?;
                let value: Value = serde_json::from_slice(&bytes).map_err(|error| nonsense(&error.to_string()))?;
                let names =
                    value["repositories"].as_array().ok_or_else(|| nonsense("its catalog has no repositories"))?;
                let names: Vec<&str> = names.iter().filter_map(Value::as_str).collect();
                hits.extend(names.iter().filter(|name| name.contains(term)).map(|name| Hit {
                    name: (*name).to_owned(),
                    description: String::new(),
                    stars: 0,
                    is_official: false,
                }));
                match names.last() {
                    Some(name) if names.len() == CATALOG_PAGE && *name != last && hits.len() < most => {
                        last = (*name).to_owned();
                    }
                    _ => break,
                }
            }
            hits.truncate(most);
            Ok(hits)
        }
        Err(error) => Err(error),
    }
}

/// The file that a login is written to: docker's, or the one that the caller names.
pub(crate) fn login_file(options: &Options) -> PathBuf {
    let variable = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    let named = options.auth_file.clone().or_else(|| variable("REGISTRY_AUTH_FILE"));
    let in_config = || variable("DOCKER_CONFIG").map(|dir| dir.join("config.json"));
    let in_home = || variable("HOME").unwrap_or_else(|| PathBuf::from("/root")).join(".docker/config.json");
    named.or_else(in_config).unwrap_or_else(in_home)
}

/// Stores a login.
pub(crate) fn store_login(path: &Path, host: &str, user: &str, password: &str) -> Result<Kept, RegistryError> {
    let (mut config, distrust) = read(path)?;
    if let Some(name) = helper_of(&config, host) {
        trusted(&name, distrust)?;
        let login = json!({ "ServerURL": server(host), "Username": user, "Secret": password });
        helper::call(&name, "store", &login.to_string())?;
        return Ok(Kept::Helper(name));
    }
    let auth = base64::engine::general_purpose::STANDARD.encode(format!("{user}:{password}"));
    let auths = config.entry("auths").or_insert_with(|| json!({}));
    let Some(auths) = auths.as_object_mut() else {
        return Err(RegistryError::BadFile { path: path.into(), why: "`auths` is not an object".into() });
    };
    auths.retain(|key, _| bare(key) != bare(server(host)));
    auths.insert(server(host).to_owned(), json!({ "auth": auth }));
    write(path, &config)?;
    Ok(Kept::File(path.into()))
}

/// Removes a login. Returns where it was, or `None` if there was none.
pub(crate) fn remove_login(path: &Path, host: &str) -> Result<Option<Kept>, RegistryError> {
    let (mut config, distrust) = read(path)?;
    let mut kept = None;
    if let Some(name) = helper_of(&config, host) {
        trusted(&name, distrust)?;
        helper::call(&name, "erase", server(host))?;
        kept = Some(Kept::Helper(name));
    }
    if let Some(auths) = config.get_mut("auths").and_then(Value::as_object_mut) {
        let before = auths.len();
        auths.retain(|key, _| bare(key) != bare(server(host)));
        if auths.len() != before {
            write(path, &config)?;
            kept = Some(Kept::File(path.into()));
        }
    }
    Ok(kept)
}

/// The credential helper for a registry, if the file names one.
fn helper_of(config: &Map<String, Value>, host: &str) -> Option<String> {
    let of_host = config.get("credHelpers").and_then(|helpers| helpers.get(host)).and_then(Value::as_str);
    let of_all = config.get("credsStore").and_then(Value::as_str);
    of_host.or(of_all).filter(|name| !name.is_empty()).map(str::to_owned)
}

fn trusted(name: &str, distrust: Option<String>) -> Result<(), RegistryError> {
    match distrust {
        None => Ok(()),
        Some(why) => Err(RegistryError::Helper {
            helper: format!("docker-credential-{name}"),
            why: format!("it is not run: {why}"),
        }),
    }
}

/// Reads the file. A missing one is empty.
fn read(path: &Path) -> Result<(Map<String, Value>, Option<String>), RegistryError> {
    match read_config(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok((Map::new(), None)),
        Err(cause) => Err(RegistryError::File { path: path.into(), cause }),
        Ok((bytes, _)) if bytes.trim_ascii().is_empty() => Ok((Map::new(), None)),
        Ok((bytes, distrust)) => {
            let config = serde_json::from_slice(&bytes);
            let config =
                config.map_err(|error| RegistryError::BadFile { path: path.into(), why: error.to_string() })?;
            Ok((config, distrust))
        }
    }
}

/// Replaces the file. It is the target of a symbolic link that is replaced, and not the link.
fn write(path: &Path, config: &Map<String, Value>) -> Result<(), RegistryError> {
    let failed = |cause| RegistryError::Unwritable { path: path.into(), cause };
    let path = fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
    let dir = path.parent().filter(|dir| *dir != Path::new("")).unwrap_or(Path::new("."));
    if !dir.exists() {
        fs::DirBuilder::new().recursive(true).mode(0o700).create(dir).map_err(failed)?;
    }
    // The file of a user stays the user's, also if root writes it.
    let owner = fs::metadata(&path).or_else(|_| fs::metadata(dir)).map_err(failed)?;
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let temp = dir.join(format!(".{name}.{}.tmp", std::process::id()));
    let text = serde_json::to_string_pretty(config).map_err(|error| failed(error.into()))?;
    let put = || -> io::Result<()> {
        let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&temp)?;
        std::os::unix::fs::fchown(&file, Some(owner.uid()), Some(owner.gid()))?;
        file.write_all(text.as_bytes())?;
        file.write_all(b"\n")?;
        file.sync_all()?;
        fs::rename(&temp, &path)?;
        File::open(dir)?.sync_all()
    };
    // A file that a killed process left has this process's ID only by chance.
    let _ = fs::remove_file(&temp);
    put().map_err(|error| {
        let _ = fs::remove_file(&temp);
        failed(error)
    })
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn a_login_is_kept_beside_everything_else() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("new/config.json");
        let text = || fs::read_to_string(&path).unwrap();
        assert_eq!(remove_login(&path, "r.lab:5000").unwrap(), None);
        store_login(&path, "r.lab:5000", "ann", "se:cret").unwrap();
        store_login(&path, "docker.io", "bob", "x").unwrap();
        let config: Value = serde_json::from_str(&text()).unwrap();
        assert_eq!(config["auths"]["r.lab:5000"]["auth"], "YW5uOnNlOmNyZXQ=");
        assert_eq!(config["auths"]["https://index.docker.io/v1/"]["auth"], "Ym9iOng=");
        assert_eq!(path.metadata().unwrap().permissions().mode() & 0o777, 0o600);
        // Other keys stay, another form of the name is replaced, and a link is followed.
        fs::write(
            &path,
            r#"{"psFormat":"x","auths":{"https://r.lab:5000/v1/":{"auth":"b2xkOm9sZA=="},"other":{"auth":"YTpi"}}}"#,
        )
        .unwrap();
        let link = dir.path().join("link.json");
        std::os::unix::fs::symlink(&path, &link).unwrap();
        store_login(&link, "r.lab:5000", "ann", "new").unwrap();
        let config: Value = serde_json::from_str(&text()).unwrap();
        assert_eq!(config["psFormat"], "x");
        assert_eq!(config["auths"].as_object().unwrap().keys().collect::<Vec<_>>(), ["other", "r.lab:5000"]);
        assert!(link.symlink_metadata().unwrap().is_symlink());
        assert_eq!(remove_login(&path, "r.lab:5000").unwrap(), Some(Kept::File(path.clone())));
        assert!(!text().contains("r.lab") && text().contains("other"));
        assert_eq!(remove_login(&path, "r.lab:5000").unwrap(), None);
        fs::write(&path, "{").unwrap();
        assert!(matches!(store_login(&path, "x", "a", "b"), Err(RegistryError::BadFile { .. })));
        assert_eq!(fs::read_dir(path.parent().unwrap()).unwrap().count(), 1, "no other file is left");
    }
}
