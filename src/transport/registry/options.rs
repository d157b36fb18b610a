//! How registries are asked, and with which credentials.
use super::settings::Settings;
use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

/// Receives notices about delays: a registry that asks to wait, or a mirror that fails.
pub(crate) type Notice = Arc<dyn Fn(&str) + Send + Sync>;

/// Settings for the communication with registries.
#[derive(Clone)]
pub(crate) struct Options {
    /// `Some(false)`: accept any certificate, and plain HTTP if the server has no TLS. `Some(true)`: never accept
    /// these.
    pub tls_verify: Option<bool>,
    /// A directory with `*.crt` (CAs), `*.cert` and `*.key` (client certificate), to use in place of certs.d.
    pub cert_dir: Option<PathBuf>,
    /// Credentials to use in place of the config files of docker and podman.
    pub credentials: Option<Credentials>,
    /// The only config file to read credentials from.
    pub auth_file: Option<PathBuf>,
    /// Time limit for the whole operation.
    pub timeout: Option<Duration>,
    /// How long a connection may be silent.
    pub stall: Duration,
    /// Mirrors and registries without TLS.
    pub settings: Settings,
    pub notice: Notice,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            tls_verify: None,
            cert_dir: None,
            credentials: None,
            auth_file: None,
            timeout: None,
            stall: Duration::from_secs(30),
            settings: Settings::default(),
            notice: Arc::new(|_| ()),
        }
    }
}

impl fmt::Debug for Options {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Options").field("tls_verify", &self.tls_verify).field("timeout", &self.timeout).finish()
    }
}

/// A login.
#[derive(Clone, PartialEq, Eq)]
pub(crate) enum Credentials {
    Password {
        user: String,
        password: String,
    },
    /// An OAuth refresh token, which the token service exchanges for access tokens.
    Identity(String),
}

/// Debug output must not contain secrets.
impl std::fmt::Debug for Credentials {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Password { user, .. } => f.debug_struct("Password").field("user", user).finish_non_exhaustive(),
            Self::Identity(_) => f.write_str("Identity"),
        }
    }
}
