//! `--host-ca`: a `RUN` sees the host's certificates, proxies and pip settings, by files that are bound into its container and variables
//! that live as long as it. No layer, no config and no key of the cache knows of them.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use super::run::HostFile;
use super::state::PREDEFINED;
use crate::report::Report;

/// Where distributions keep all certificates in one file.
const BUNDLES: [&str; 4] = [
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/ca-bundle.pem",
    "/etc/ssl/cert.pem",
];
const BUNDLE: &str = "/run/gpurun-host/ca.crt";
const PIP: &str = "/run/gpurun-host/pip.conf";
const APT: &str = "/run/gpurun-host/apt.conf";

/// Variables that name the bundle, by who reads them: OpenSSL, pip, requests, curl, git, Node.
const NAMES: [&str; 6] =
    ["SSL_CERT_FILE", "PIP_CERT", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "GIT_SSL_CAINFO", "NODE_EXTRA_CA_CERTS"];
/// Settings of pip that say where to fetch from and mean the same in a container; paths of the host do not.
const PIP_SETTINGS: [&str; 6] = ["index-url", "extra-index-url", "trusted-host", "proxy", "timeout", "retries"];

/// Files to bind, and variables.
pub type Settings = (Vec<HostFile>, Vec<(String, String)>);

/// The files and variables, as they are on this host now.
pub fn collect() -> Result<Settings, Report> {
    let own = std::env::var_os("SSL_CERT_FILE").map(PathBuf::from);
    let bundle = own.into_iter().chain(BUNDLES.map(PathBuf::from)).find(|path| path.is_file()).ok_or_else(|| {
        Report::new("this host has no bundle of certificates")
            .with_hint("install `ca-certificates`, or name a file with `SSL_CERT_FILE`")
    })?;
    let bytes = fs::read(&bundle)
        .map_err(|error| Report::new(format!("cannot read `{}`", bundle.display())).with_cause(error))?;
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
    let file = |target: &str, bytes: Vec<u8>| HostFile { target: target.into(), bytes, mode: 0o444, owner: (0, 0) };
    let pip = pip_conf(&texts, &variables);
    Ok((vec![file(BUNDLE, bytes), file(PIP, pip.into_bytes()), file(APT, apt.into_bytes())], env))
}

/// A pip.conf of what several say about where packages come from; later ones win, variables over all.
fn pip_conf(texts: &[String], variable: &dyn Fn(&str) -> Option<String>) -> String {
    let mut settings: BTreeMap<&str, String> = BTreeMap::new();
    for text in texts {
        let mut current: Option<&str> = None;
        for line in text.lines() {
            // A value goes on in indented lines.
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
