//! Trusted certificates: the system's CAs, and those that an administrator put into certs.d for a registry.
//!
//! ```text
//! /etc/docker/certs.d/HOST[:PORT]/     (and /etc/containers/certs.d; or the directory of --cert-dir)
//!     *.crt                            CA certificates
//!     NAME.cert, NAME.key              client certificate for the registry
//! ```

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use ureq::tls::{Certificate, ClientCert, PemItem, PrivateKey, RootCerts, TlsConfig, parse_pem};

use super::RegistryError;

/// The CA bundles of Linux distributions.
const SYSTEM: [&str; 5] = [
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/ca-trust/extracted/pem/tls-ca-bundle.pem",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/ca-bundle.pem",
    "/etc/ssl/cert.pem",
];
const PER_HOST: [&str; 2] = ["/etc/docker/certs.d", "/etc/containers/certs.d"];

/// Returns the TLS settings for `host` (with its port). If `verify` is false, any certificate is accepted. `dir` is
/// used in place of the host's directory in certs.d.
pub(super) fn config(host: &str, verify: bool, dir: Option<&Path>) -> Result<TlsConfig, RegistryError> {
    let mut roots = Vec::new();
    if verify {
        let system = std::env::var_os("SSL_CERT_FILE").map(PathBuf::from);
        let system = system.into_iter().chain(SYSTEM.iter().map(PathBuf::from)).find(|path| path.exists());
        if let Some(path) = system {
            roots.extend(certificates(&path)?);
        }
    }
    let mut client = None;
    for dir in directories(host, dir) {
        for path in files(&dir)? {
            match path.extension().and_then(|extension| extension.to_str()) {
                Some("crt") if verify => roots.extend(certificates(&path)?),
                Some("cert") => client = Some(own_certificate(&path)?),
                _ => {}
            }
        }
    }
    Ok(TlsConfig::builder()
        .unversioned_rustls_crypto_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .root_certs(RootCerts::new_with_certs(&roots))
        .client_cert(client)
        .disable_verification(!verify)
        .build())
}

fn directories(host: &str, dir: Option<&Path>) -> Vec<PathBuf> {
    // The host may come from a server's response and have any content. It must not become an arbitrary path.
    let is_host = !host.is_empty() && !host.starts_with('.') && !host.contains(['/', '\0']);
    match dir {
        Some(dir) => vec![dir.to_owned()],
        None if !is_host => Vec::new(),
        None => PER_HOST.iter().map(|dir| Path::new(dir).join(host)).filter(|dir| dir.is_dir()).collect(),
    }
}

fn files(dir: &Path) -> Result<Vec<PathBuf>, RegistryError> {
    let failed = |cause: io::Error| RegistryError::File { path: dir.into(), cause };
    let entries = fs::read_dir(dir).map_err(failed)?;
    let mut paths = entries.map(|entry| Ok(entry?.path())).collect::<Result<Vec<_>, _>>().map_err(failed)?;
    paths.sort();
    Ok(paths)
}

fn certificates(path: &Path) -> Result<Vec<Certificate<'static>>, RegistryError> {
    let pem = fs::read(path).map_err(|cause| RegistryError::File { path: path.into(), cause })?;
    let items = parse_pem(&pem).filter_map(|item| match item {
        Ok(PemItem::Certificate(certificate)) => Some(certificate),
        // One unreadable certificate of 140 is no reason to trust none.
        _ => None,
    });
    Ok(items.collect())
}

fn own_certificate(path: &Path) -> Result<ClientCert, RegistryError> {
    let key_path = path.with_extension("key");
    let key = fs::read(&key_path).map_err(|cause| RegistryError::File { path: key_path.clone(), cause })?;
    let key = PrivateKey::from_pem(&key)
        .map_err(|cause| RegistryError::BadFile { path: key_path, why: cause.to_string() })?;
    Ok(ClientCert::new_with_certs(&certificates(path)?, key))
}
