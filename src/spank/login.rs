//! The user's own logins for registries.
//!
//! They come from the files that docker, podman and enroot read, each opened by a process of the user. Of these files, only
//! the logins themselves count: no credential helper is run, because the user would choose a program of root.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use nix::fcntl::OFlag;
use nix::unistd::{Uid, User};
use serde_json::{Map, Value, json};

use super::request::StepRequest;
use super::tasks::Tasks;
use crate::names::Reference;

/// Larger files are not read.
const MAX_FILE: u64 = 1 << 20;
/// The names of Docker Hub in these files.
const HUB: [&str; 3] = ["docker.io", "index.docker.io", "auth.docker.io"];

type Logins = Map<String, Value>;

/// Returns the user's logins as the text of podman's auth.json, and whether one of them is for the registry of an image.
pub(super) fn of_user(request: &StepRequest, image: &Reference, tasks: &Tasks) -> (String, bool) {
    let home = User::from_uid(Uid::from_raw(request.caller.uid)).ok().flatten().map(|user| user.dir);
    let mut all = Logins::new();
    for path in files(request, home.as_deref()) {
        let Some(text) = read(request, &path, tasks) else { continue };
        let found = if path.ends_with(CREDENTIALS) { netrc(&text) } else { auths(&text) };
        for (name, login) in found {
            all.entry(name).or_insert(login);
        }
    }
    let is_known = all.keys().any(|name| is_of(name, &image.domain));
    (json!({"auths": all}).to_string(), is_known)
}

/// The name of enroot's file.
const CREDENTIALS: &str = ".credentials";

fn files(request: &StepRequest, home: Option<&Path>) -> Vec<PathBuf> {
    let variable = |name: &str| request.variable(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    if let Some(file) = variable("REGISTRY_AUTH_FILE") {
        return vec![file];
    }
    let below = |path: &str| home.map(|home| home.join(path));
    let all = [
        variable("DOCKER_CONFIG").map(|dir| dir.join("config.json")),
        below(".docker/config.json"),
        variable("XDG_RUNTIME_DIR").map(|dir| dir.join("containers/auth.json")),
        below(".config/containers/auth.json"),
        variable("ENROOT_CONFIG_PATH").map(|dir| dir.join(CREDENTIALS)),
        below(".config/enroot/.credentials"),
    ];
    all.into_iter().flatten().collect()
}

fn read(request: &StepRequest, path: &Path, tasks: &Tasks) -> Option<String> {
    let (file, about) = request.caller.open(path, OFlag::O_RDONLY | OFlag::O_NONBLOCK, tasks).ok()?;
    let mut text = String::new();
    (about.is_file() && File::from(file).take(MAX_FILE).read_to_string(&mut text).is_ok()).then_some(text)
}

/// Returns the logins in a file of docker or podman.
fn auths(text: &str) -> Logins {
    let Ok(Value::Object(mut file)) = serde_json::from_str(text) else { return Logins::new() };
    let Some(Value::Object(mut auths)) = file.remove("auths") else { return Logins::new() };
    // With a credential helper, docker writes empty entries.
    auths.retain(|_, login| login.as_object().is_some_and(|login| !login.is_empty()));
    auths
}

/// Returns the logins in a file of enroot, which has the format of netrc. A password that a variable contains is not known.
fn netrc(text: &str) -> Logins {
    let mut logins: BTreeMap<String, (Option<String>, Option<String>)> = BTreeMap::new();
    let mut machine = None;
    for line in text.lines().filter(|line| !line.trim_start().starts_with('#')) {
        let mut words = line.split_whitespace();
        while let Some(word) = words.next() {
            let value = words.next().map(|value| value.trim_matches('"').to_owned());
            match (word, &machine) {
                ("machine", _) => machine = value,
                ("login", Some(name)) => logins.entry(String::clone(name)).or_default().0 = value,
                ("password", Some(name)) => logins.entry(String::clone(name)).or_default().1 = value,
                _ => {}
            }
        }
    }
    let complete = logins.into_iter().filter_map(|(name, (user, password))| {
        let password = password.filter(|password| !password.starts_with('$'))?;
        let name = if HUB.contains(&name.as_str()) { "docker.io".to_owned() } else { name };
        Some((name, json!({"username": user?, "password": password})))
    });
    complete.collect()
}

/// Whether the name of a login is one of a registry, or of a part of it.
fn is_of(name: &str, registry: &str) -> bool {
    let bare = name.strip_prefix("https://").or_else(|| name.strip_prefix("http://")).unwrap_or(name);
    let host = bare.split('/').next().unwrap_or_default();
    host == registry || (HUB.contains(&host) && registry == HUB[0])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn logins_of_three_programs_without_their_helpers() {
        let text = r#"{"auths":{"https://index.docker.io/v1/":{"auth":"YTpi"},"a.io":{}},"credsStore":"x","credHelpers":{"b.io":"y"}}"#;
        let found = auths(text);
        assert_eq!(found.keys().collect::<Vec<_>>(), ["https://index.docker.io/v1/"]);
        let text = "# comment\nmachine nvcr.io login $oauthtoken password abc\nmachine auth.docker.io\n  login me\n  password p\n\
            machine b.io login x password $TOKEN\nmachine c.io login x\n";
        let found = netrc(text);
        assert_eq!(found["nvcr.io"], json!({"username": "$oauthtoken", "password": "abc"}));
        assert_eq!(found.keys().collect::<Vec<_>>(), ["docker.io", "nvcr.io"]);
        for nothing in ["", "[]", "{\"auths\":[]}", "machine", "login x password y", "{"] {
            assert!(auths(nothing).is_empty() && netrc(nothing).is_empty(), "{nothing}");
        }
    }

    #[test]
    fn a_login_is_for_one_registry() {
        for (name, registry, expected) in [
            ("https://index.docker.io/v1/", "docker.io", true),
            ("nvcr.io", "nvcr.io", true),
            ("nvcr.io/nvidia", "nvcr.io", true),
            ("localhost:5000", "localhost:5000", true),
            ("localhost", "localhost:5000", false),
            ("xnvcr.io", "nvcr.io", false),
        ] {
            assert_eq!(is_of(name, registry), expected, "{name}");
        }
    }
}
