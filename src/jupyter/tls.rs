//! HTTPS for a notebook (`--tls`): its certificate, and connections that accept no other one.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, ring, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::{CertificateError, ClientConfig, DigitallySignedStruct, SignatureScheme};
use sha2::{Digest, Sha256};

use crate::report::Explain;

/// How many days a generated certificate is valid. Some browsers refuse certificates that are valid for longer.
const DAYS: u32 = 397;
/// Maximum size of a file with a certificate or a key.
const MAX_FILE: u64 = 1 << 20;

/// A certificate chain and its private key, as PEM.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Pair {
    pub certificate: String,
    pub key: String,
}

impl std::fmt::Debug for Pair {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Pair").finish_non_exhaustive()
    }
}

#[derive(Debug, thiserror::Error)]
pub(crate) enum TlsError {
    #[error("cannot generate a certificate")]
    Generate(#[source] rcgen::Error),
    #[error("cannot read `{}`", path.display())]
    Read { path: PathBuf, source: io::Error },
    #[error("`{}` contains no certificate in the PEM format", .0.display())]
    NoCertificate(PathBuf),
    #[error("`{}` contains no private key in the PEM format", .0.display())]
    NoKey(PathBuf),
    #[error("the private key `{}` cannot be used with the certificate `{}`", key.display(), certificate.display())]
    Mismatch { certificate: PathBuf, key: PathBuf, source: rustls::Error },
}

impl Explain for TlsError {
    fn hint(&self) -> Option<String> {
        match self {
            Self::Generate(_) => None,
            Self::Read { .. } => Some("name files that root can read, or generate a certificate with `--tls`".into()),
            Self::NoCertificate(_) | Self::NoKey(_) | Self::Mismatch { .. } => Some(
                "name a PEM certificate chain with `--tls-cert` and its private key without a passphrase with `--tls-key`"
                    .into(),
            ),
        }
    }
}

/// Generates a key and a certificate that it signs itself, for these names and addresses.
pub(crate) fn generate(names: &[String], addresses: &[IpAddr]) -> Result<Pair, TlsError> {
    let mut subjects: Vec<String> = names.to_vec();
    subjects.extend(addresses.iter().map(ToString::to_string));
    let make = || -> Result<Pair, rcgen::Error> {
        let key = rcgen::KeyPair::generate()?;
        let mut params = rcgen::CertificateParams::new(subjects)?;
        let now = std::time::SystemTime::now();
        let day = std::time::Duration::from_secs(86_400);
        // The clock of another machine may be a little behind.
        params.not_before = (now - day).into();
        params.not_after = (now + day * DAYS).into();
        params.distinguished_name = rcgen::DistinguishedName::new();
        let name = names.first().map_or("gpurun", String::as_str);
        params.distinguished_name.push(rcgen::DnType::CommonName, name);
        params.extended_key_usages = vec![rcgen::ExtendedKeyUsagePurpose::ServerAuth];
        let certificate = params.self_signed(&key)?;
        Ok(Pair { certificate: pem("CERTIFICATE", certificate.der()), key: pem("PRIVATE KEY", key.serialized_der()) })
    };
    make().map_err(TlsError::Generate)
}

/// Encodes DER as PEM (RFC 7468).
fn pem(label: &str, der: &[u8]) -> String {
    const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::new();
    for chunk in der.chunks(3) {
        let bits = (0..3).fold(0_u32, |bits, at| (bits << 8) | u32::from(chunk.get(at).copied().unwrap_or(0)));
        for at in 0..4 {
            let digit = (bits >> (18 - 6 * at)) & 63;
            text.push(if at <= chunk.len() { char::from(ALPHABET[digit as usize]) } else { '=' });
        }
    }
    let lines: Vec<&str> = text.as_bytes().chunks(64).filter_map(|line| std::str::from_utf8(line).ok()).collect();
    format!("-----BEGIN {label}-----\n{}\n-----END {label}-----\n", lines.join("\n"))
}

/// Reads a certificate chain and its key from files, and checks that they belong together.
pub(crate) fn read(certificate: &Path, key: &Path) -> Result<Pair, TlsError> {
    let pair = Pair { certificate: read_text(certificate)?, key: read_text(key)? };
    let chain: Vec<CertificateDer<'static>> =
        CertificateDer::pem_slice_iter(pair.certificate.as_bytes()).filter_map(Result::ok).collect();
    if chain.is_empty() {
        return Err(TlsError::NoCertificate(certificate.to_path_buf()));
    }
    let private = PrivateKeyDer::from_pem_slice(pair.key.as_bytes()).map_err(|_| TlsError::NoKey(key.to_path_buf()))?;
    let failed = |source| TlsError::Mismatch { certificate: certificate.to_path_buf(), key: key.to_path_buf(), source };
    let signing = ring::sign::any_supported_type(&private).map_err(failed)?;
    rustls::sign::CertifiedKey::new(chain, signing).keys_match().map_err(failed)?;
    Ok(pair)
}

fn read_text(path: &Path) -> Result<String, TlsError> {
    use std::io::Read;
    let failed = |source| TlsError::Read { path: path.to_path_buf(), source };
    let mut text = String::new();
    std::fs::File::open(path).and_then(|file| file.take(MAX_FILE).read_to_string(&mut text)).map_err(failed)?;
    Ok(text)
}

/// The names and addresses under which a host's users may open a notebook.
#[must_use]
pub(crate) fn subjects(host_name: &str) -> (Vec<String>, Vec<IpAddr>) {
    let is_name = |name: &&str| {
        !name.is_empty() && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-.".contains(&byte))
    };
    let short = host_name.split('.').next().unwrap_or_default();
    let mut names: Vec<String> = [host_name, short].into_iter().filter(is_name).map(str::to_owned).collect();
    names.push("localhost".into());
    names.dedup();
    let mut addresses = vec![IpAddr::from(Ipv4Addr::LOCALHOST), IpAddr::from(Ipv6Addr::LOCALHOST)];
    for interface in nix::ifaddrs::getifaddrs().into_iter().flatten() {
        let Some(address) = interface.address else { continue };
        let v4 = address.as_sockaddr_in().map(|address| IpAddr::from(address.ip()));
        let v6 = address.as_sockaddr_in6().map(|address| IpAddr::from(address.ip()));
        addresses.extend(v4.or(v6).filter(|address| !is_link_local(address)));
    }
    addresses.sort_unstable();
    addresses.dedup();
    (names, addresses)
}

/// A link-local IPv6 address cannot be part of a URL without the name of an interface.
fn is_link_local(address: &IpAddr) -> bool {
    matches!(address, IpAddr::V6(address) if address.segments()[0] & 0xffc0 == 0xfe80)
}

/// The certificate of a notebook, the only one that a connection to it accepts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Pinned(CertificateDer<'static>);

impl Pinned {
    /// The first certificate of a chain in the PEM format.
    #[must_use]
    pub(crate) fn from_pem(text: &[u8]) -> Option<Self> {
        CertificateDer::from_pem_slice(text).ok().map(Self)
    }

    /// The SHA-256 fingerprint, as browsers show it: `AB:CD:…`.
    #[must_use]
    pub(crate) fn fingerprint(&self) -> String {
        let digest = Sha256::digest(&self.0);
        digest.iter().map(|byte| format!("{byte:02X}")).collect::<Vec<_>>().join(":")
    }

    pub(super) fn config(&self) -> Result<Arc<ClientConfig>, rustls::Error> {
        let provider = Arc::new(ring::default_provider());
        let verifier = Verifier { pinned: self.0.clone(), provider: Arc::clone(&provider) };
        let builder = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions()?;
        Ok(Arc::new(builder.dangerous().with_custom_certificate_verifier(Arc::new(verifier)).with_no_client_auth()))
    }
}

#[derive(Debug)]
struct Verifier {
    pinned: CertificateDer<'static>,
    provider: Arc<CryptoProvider>,
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        match end_entity.as_ref() == self.pinned.as_ref() {
            true => Ok(ServerCertVerified::assertion()),
            false => Err(rustls::Error::InvalidCertificate(CertificateError::UnknownIssuer)),
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(message, certificate, signature, &self.provider.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, certificate, signature, &self.provider.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_generated_pair_belongs_together_and_another_does_not() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        let (names, addresses) = subjects("gpubox.lab");
        assert_eq!(names, ["gpubox.lab", "gpubox", "localhost"]);
        assert!(addresses.contains(&IpAddr::from(Ipv4Addr::LOCALHOST)));
        let one = generate(&names, &addresses).unwrap();
        let other = generate(&names, &addresses).unwrap();
        std::fs::write(at("cert"), &one.certificate).unwrap();
        std::fs::write(at("key"), &one.key).unwrap();
        std::fs::write(at("other"), &other.key).unwrap();
        assert_eq!(read(&at("cert"), &at("key")).unwrap(), one);
        assert!(matches!(read(&at("cert"), &at("other")), Err(TlsError::Mismatch { .. })));
        assert!(matches!(read(&at("key"), &at("key")), Err(TlsError::NoCertificate(_))));
        assert!(matches!(read(&at("cert"), &at("cert")), Err(TlsError::NoKey(_))));
        assert!(matches!(read(&at("none"), &at("key")), Err(TlsError::Read { .. })));
        let pinned = Pinned::from_pem(one.certificate.as_bytes()).unwrap();
        assert_eq!(pinned.fingerprint().len(), 32 * 3 - 1);
        assert_ne!(pinned, Pinned::from_pem(other.certificate.as_bytes()).unwrap());
    }

    #[test]
    fn pem_is_base64_with_short_lines() {
        for (bytes, text) in [(&b"f"[..], "Zg=="), (b"fo", "Zm8="), (b"foo", "Zm9v"), (b"foob", "Zm9vYg==")] {
            assert_eq!(pem("X", bytes), format!("-----BEGIN X-----\n{text}\n-----END X-----\n"));
        }
        assert_eq!(pem("X", &[0; 100]).lines().map(str::len).collect::<Vec<_>>(), [17, 64, 64, 8, 15]);
    }
}
