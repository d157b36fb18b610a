//! `--host-ca`: makes the host's certificates, proxies and pip settings available in a container, as bind mounts and
//! environment variables.
//!
//! In a build, they apply to one `RUN` step only. They are in no layer, no config and no cache key. A container of
//! `run` or a bare launch keeps the settings in its record, and reads the certificates again at every start.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use super::state::PREDEFINED;
use crate::report::Report;
use crate::request::HostCa;

/// A file that exists for one step only.
#[derive(Debug, Clone)]
pub(crate) struct HostFile {
    pub target: PathBuf,
    pub bytes: Vec<u8>,
    pub mode: u32,
    pub owner: (u32, u32),
}

/// The certificate bundles of the common distributions.
const BUNDLES: [&str; 4] = [
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/ca-bundle.pem",
    "/etc/ssl/cert.pem",
];
const BUNDLE: &str = HostCa::BUNDLE;
const PIP: &str = HostCa::PIP_CONF;
const APT: &str = HostCa::APT_CONF;

/// Variables that name the bundle, for OpenSSL, pip, requests, curl, git and Node.
const NAMES: [&str; 6] =
    ["SSL_CERT_FILE", "PIP_CERT", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "GIT_SSL_CAINFO", "NODE_EXTRA_CA_CERTS"];
/// The pip settings that select where to fetch from and mean the same in a container. Paths of the host do not, so they
/// are left out.
const PIP_SETTINGS: [&str; 6] = ["index-url", "extra-index-url", "trusted-host", "proxy", "timeout", "retries"];

/// Files to bind-mount, and environment variables.
pub(super) type Settings = (Vec<HostFile>, Vec<(String, String)>);

/// Reads the files and variables for one `RUN` from this host.
pub(super) fn collect() -> Result<Settings, Report> {
    let found = find()?;
    let bytes = found.read_bundle()?;
    let file = |target: &str, bytes: Vec<u8>| HostFile { target: target.into(), bytes, mode: 0o444, owner: (0, 0) };
    let files =
        vec![file(BUNDLE, bytes), file(PIP, found.pip_conf.into_bytes()), file(APT, found.apt_conf.into_bytes())];
    Ok((files, found.env))
}

/// Finds the settings of this host and of the caller's environment.
pub(crate) fn find() -> Result<HostCa, Report> {
    let own = std::env::var_os("SSL_CERT_FILE").map(PathBuf::from);
    let bundle = own.into_iter().chain(BUNDLES.map(PathBuf::from)).find(|path| path.is_file()).ok_or_else(|| {
        Report::new("cannot find this host's bundle of CA certificates")
            .with_hint("install the package `ca-certificates`, or set `SSL_CERT_FILE` to a bundle")
    })?;
    let bundle = std::path::absolute(&bundle)
        .map_err(|error| Report::new(format!("cannot find `{}`", bundle.display())).with_cause(error))?;
    let mut env: Vec<(String, String)> = NAMES.map(|name| (name.to_owned(), BUNDLE.to_owned())).to_vec();
    let mut apt = format!("Acquire::https::CAInfo \"{BUNDLE}\";\n");
    for name in PREDEFINED {
        if let Ok(value) = std::env::var(name) {
            if let Some(scheme) = name.strip_suffix("_proxy").filter(|scheme| ["http", "https"].contains(scheme)) {
                apt.push_str(&format!("Acquire::{scheme}::Proxy \"{value}\";\n"));
            }
            env.push((name.to_owned(), value));
        }
    }
    env.push(("PIP_CONFIG_FILE".into(), PIP.into()));
    env.push(("APT_CONFIG".into(), APT.into()));
    let home = std::env::var_os("HOME").map(PathBuf::from).unwrap_or_default();
    let texts = [Path::new("/etc/pip.conf").into(), home.join(".pip/pip.conf"), home.join(".config/pip/pip.conf")]
        .map(|path| fs::read_to_string(path).unwrap_or_default());
    let variables = |name: &str| std::env::var(format!("PIP_{}", name.replace('-', "_").to_ascii_uppercase())).ok();
    Ok(HostCa { bundle, pip_conf: pip_conf(&texts, &variables), apt_conf: apt, env })
}

/// The pip settings in these files that hold an address.
pub(super) fn addresses(files: &[HostFile]) -> Vec<(String, String)> {
    let pip = files.iter().find(|file| file.target == Path::new(PIP));
    let text = pip.map(|file| String::from_utf8_lossy(&file.bytes).into_owned()).unwrap_or_default();
    let mut found: Vec<(String, String)> = Vec::new();
    for line in text.lines() {
        match (line.split_once(" = "), found.last_mut()) {
            (Some((name, value)), _) => found.push((format!("pip's {name}"), value.to_owned())),
            (None, Some((_, value))) => value.push_str(&format!(" {}", line.trim())),
            _ => {}
        }
    }
    found.retain(|(name, _)| ["index-url", "proxy"].iter().any(|kind| name.ends_with(kind)));
    found
}

/// Merges several pip.conf files into one. A later file overrides an earlier one, and variables override all files.
fn pip_conf(texts: &[String], variable: &dyn Fn(&str) -> Option<String>) -> String {
    let mut settings: BTreeMap<&str, String> = BTreeMap::new();
    for text in texts {
        let mut current: Option<&str> = None;
        for line in text.lines() {
            // An indented line continues the value.
            if line.starts_with([' ', '\t']) && !line.trim().is_empty() {
                if let Some(value) = current.and_then(|name| settings.get_mut(name)) {
                    value.push_str(&format!("\n    {}", line.trim()));
                }
                continue;
            }
            current = None;
            let Some((name, value)) = line.split_once(['=', ':']) else { continue };
            if let Some(name) = PIP_SETTINGS.into_iter().find(|known| *known == name.trim()) {
                settings.insert(name, value.trim().to_owned());
                current = Some(name);
            }
        }
    }
    for name in PIP_SETTINGS {
        if let Some(value) = variable(name) {
            settings.insert(name, value);
        }
    }
    settings.iter().fold("[global]\n".to_owned(), |text, (name, value)| format!("{text}{name} = {value}\n"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_means_the_same_in_a_container_is_passed() {
        let system =
            "[global]\ncert = /etc/x.crt\nindex-url = https://a/simple\nextra-index-url = https://b\n   https://c\n";
        let own = "[install]\nfind-links = /opt/wheels\n[global]\nindex-url: https://d/simple\n";
        let variable = |name: &str| (name == "timeout").then(|| "90".to_owned());
        assert_eq!(
            pip_conf(&[system.into(), own.into()], &variable),
            "[global]\nextra-index-url = https://b\n    https://c\nindex-url = https://d/simple\ntimeout = 90\n"
        );
    }
}
