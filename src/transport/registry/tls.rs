//! Whom to trust: the system's authorities, and what an administrator put into certs.d for one registry.
//!
//! ```text
//! /etc/docker/certs.d/HOST[:PORT]/     (and /etc/containers/certs.d; or the directory of --cert-dir)
//!     *.crt                            authorities
//!     NAME.cert, NAME.key              our certificate for it
//! ```

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use ureq::tls::{Certificate, ClientCert, PemItem, PrivateKey, RootCerts, TlsConfig, parse_pem};

use super::{Options, RegistryError};

/// Where distributions keep the authorities that they trust.
const SYSTEM: [&str; 5] = [
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/ca-trust/extracted/pem/tls-ca-bundle.pem",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/ca-bundle.pem",
    "/etc/ssl/cert.pem",
];
const PER_HOST: [&str; 2] = ["/etc/docker/certs.d", "/etc/containers/certs.d"];

/// The TLS settings for the registry `host`; `verify` false takes any certificate.
pub(super) fn config(host: &str, verify: bool, options: &Options) -> Result<TlsConfig, RegistryError> {
    let mut roots = Vec::new();
    if verify {
        let system = std::env::var_os("SSL_CERT_FILE").map(PathBuf::from);
        let system = system.into_iter().chain(SYSTEM.iter().map(PathBuf::from)).find(|path| path.exists());
        if let Some(path) = system {
            roots.extend(certificates(&path)?);
        }
    }
    let mut client = None;
    for dir in directories(host, options) {
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

fn directories(host: &str, options: &Options) -> Vec<PathBuf> {
    match &options.cert_dir {
        Some(dir) => vec![dir.clone()],
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
