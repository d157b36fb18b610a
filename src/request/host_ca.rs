//! The data of `--host-ca`: the host's configuration for reaching package indexes, as passed to a container.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// The certificates are stored as the path of a host file. Everything else is stored by content because it comes from
/// the caller's environment.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct HostCa {
    /// The certificate bundle of the host.
    pub bundle: PathBuf,
    pub pip_conf: String,
    pub apt_conf: String,
    /// Variables that point to the files in the container, and the caller's proxy settings.
    pub env: Vec<(String, String)>,
}

impl HostCa {
    /// Paths of the files in the container.
    pub(crate) const BUNDLE: &str = "/run/gpurun-host/ca.crt";
    pub(crate) const PIP_CONF: &str = "/run/gpurun-host/pip.conf";
    pub(crate) const APT_CONF: &str = "/run/gpurun-host/apt.conf";
}
