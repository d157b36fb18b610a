//! Errors of a registry.

use std::path::PathBuf;
use std::time::Duration;

use crate::names::Digest;
use crate::report::Explain;

/// Whether no server answered. In the middle of a pull this may be temporary (a registry that restarts). At its
/// beginning it is final.
pub(crate) fn is_refused(error: &ureq::Error) -> bool {
    use std::io::ErrorKind as Kind;
    let ureq::Error::Io(error) = error else { return matches!(error, ureq::Error::HostNotFound) };
    matches!(error.kind(), Kind::ConnectionRefused | Kind::HostUnreachable | Kind::NetworkUnreachable)
        // The standard library has no kind for an unknown host name.
        || error.to_string().starts_with("failed to lookup address")
}

/// A failed operation on a registry.
#[derive(Debug, thiserror::Error)]
pub enum RegistryError {
    #[error("cannot reach the registry `{host}`")]
    Unreachable {
        host: String,
        #[source]
        cause: ureq::Error,
    },
    #[error("cannot verify the certificate of the registry `{host}`")]
    Certificate {
        host: String,
        #[source]
        cause: ureq::Error,
    },
    #[error("the registry `{host}` does not speak TLS")]
    NoTls { host: String },
    #[error("the registry `{host}` has no image `{what}`")]
    NotFound { host: String, what: String },
    #[error("the registry `{host}` refuses access to `{what}`{}", colon_prefixed(.message))]
    Denied { host: String, what: String, credentials: Option<String>, message: String },
    #[error("the registry `{host}` answered {status} for `{what}`{}", colon_prefixed(.message))]
    Status { host: String, what: String, status: u16, message: String },
    #[error("the transfer of `{what}` from the registry `{host}` was interrupted")]
    Broken {
        host: String,
        what: String,
        #[source]
        cause: std::io::Error,
    },
    #[error("`{what}` from the registry `{host}` has {found} bytes, but {expected} were announced")]
    Size { host: String, what: String, expected: u64, found: u64 },
    #[error("`{what}` from the registry `{host}` is larger than {limit} bytes")]
    TooLarge { host: String, what: String, limit: u64 },
    #[error("`{what}` from the registry `{host}` has the digest `{found}`, not `{expected}`")]
    Digest { host: String, what: String, expected: Digest, found: Digest },
    #[error("the registry `{host}` sent an invalid answer: {why}")]
    Protocol { host: String, why: String },
    #[error("it was not complete after {seconds} seconds{}", requested_wait(.wait))]
    Deadline {
        seconds: u64,
        /// The wait that the registry requested, if that was too long.
        wait: Option<Duration>,
        /// The failure before the deadline.
        #[source]
        cause: Option<Box<RegistryError>>,
    },
    #[error("the registry requests a pause of {seconds} s before the next attempt")]
    Wait {
        seconds: u64,
        #[source]
        cause: Box<RegistryError>,
    },
    #[error("`{what}` from the registry `{host}` took {requests} requests and is not complete")]
    TinyReads { host: String, what: String, requests: u64 },
    #[error("cannot read `{}`", path.display())]
    File {
        path: PathBuf,
        #[source]
        cause: std::io::Error,
    },
    #[error("cannot write `{}`", path.display())]
    Unwritable {
        path: PathBuf,
        #[source]
        cause: std::io::Error,
    },
    #[error("`{}` is damaged: {why}", path.display())]
    BadFile { path: PathBuf, why: String },
    #[error("the credential helper `{helper}` failed: {why}")]
    Helper { helper: String, why: String },
    #[error("cannot compress the layer `{layer}`")]
    Pack {
        layer: Digest,
        #[source]
        cause: std::io::Error,
    },
}

impl RegistryError {
    /// Whether the cause may be a server without TLS: it sent plain text, or closed the connection.
    pub(super) fn found_no_tls(&self) -> bool {
        match self {
            Self::NoTls { .. } | Self::Protocol { .. } | Self::Status { .. } => true,
            Self::Unreachable { cause, .. } => !is_refused(cause),
            _ => false,
        }
    }

    pub(super) fn found_no_server(&self) -> bool {
        matches!(self, Self::Unreachable { .. } | Self::Certificate { .. } | Self::NoTls { .. })
    }
}

pub(super) fn requested_wait(wait: &Option<Duration>) -> String {
    wait.map_or_else(String::new, |wait| format!(", and the registry requests a pause of {} s", wait.as_secs()))
}

pub(super) fn colon_prefixed(text: &str) -> String {
    if text.is_empty() { String::new() } else { format!(": {text}") }
}

impl Explain for RegistryError {
    fn hint(&self) -> Option<String> {
        match self {
            Self::Unreachable { host, .. } => Some(format!(
                "check the name `{host}`, whether the registry is running, and the proxy settings (HTTPS_PROXY)"
            )),
            Self::Certificate { host, .. } => Some(format!(
                "put the certificate of its authority into `/etc/docker/certs.d/{host}/ca.crt` or into a directory \
                 for `--cert-dir DIR`; `--tls-verify=false` accepts every certificate, and plain HTTP if there is \
                 no TLS"
            )),
            Self::NoTls { .. } => Some(
                "allow plain HTTP with `--tls-verify=false`, or with `insecure` in the section [registries] of \
                 `/etc/gpurun/config.toml`"
                    .into(),
            ),
            Self::Wait { seconds, cause } => Some(format!(
                "wait, or let gpurun wait with `--timeout {}`{}",
                (seconds + 60).next_multiple_of(10),
                cause.hint().map_or_else(String::new, |hint| format!("; {hint}"))
            )),
            Self::NotFound { .. } => {
                Some("check the name and the tag; a private image is visible only after a login".into())
            }
            Self::Denied { host, credentials: Some(origin), .. } => Some(format!(
                "check the credentials, which came from {origin}, or log in again with `gpurun login {host}`"
            )),
            Self::Denied { host, .. } => Some(format!(
                "log in with `gpurun login {host}`, or use `--creds USER`; the registry \
                 also refuses names that do not exist"
            )),
            Self::Status { status: 429, .. } => Some(
                "log in, wait, or use a mirror; the registry received too many \
                                                      requests"
                    .into(),
            ),
            Self::Broken { .. } | Self::Status { .. } => Some("try again later; several attempts failed".into()),
            Self::Digest { .. } | Self::Size { .. } => Some(
                "try again or use another mirror; the registry or a proxy sent wrong data, and none of it was \
                      stored"
                    .into(),
            ),
            Self::Deadline { wait: Some(wait), cause, seconds } => {
                let more = (wait.as_secs() + seconds).next_multiple_of(10);
                let also = cause.as_ref().and_then(|cause| cause.hint());
                Some(format!(
                    "allow more time with `--timeout {more}`{}",
                    also.map_or_else(String::new, |hint| format!("; {hint}"))
                ))
            }
            Self::Deadline { .. } => Some("allow more time with `--timeout SECONDS`".into()),
            Self::File { .. } | Self::BadFile { .. } | Self::Helper { .. } => {
                Some("use `--creds USER:PASSWORD` or `--authfile FILE` instead".into())
            }
            Self::TinyReads { .. } => Some(
                "try another registry or mirror; this one, or a proxy before it, breaks \
                                            every connection"
                    .into(),
            ),
            Self::TooLarge { .. } | Self::Protocol { .. } | Self::Pack { .. } | Self::Unwritable { .. } => None,
        }
    }
}
