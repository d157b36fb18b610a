//! The options of one build.

use std::collections::BTreeMap;
use std::path::PathBuf;

use super::containerfile::Containerfile;
use crate::names::Reference;
use crate::report::Report;
use crate::request::{HostEntry, LimitsRequest, NetworkMode};
use crate::store::Image;

/// The options of one build.
#[derive(Debug, Clone)]
pub(crate) struct Options {
    /// The root of the store.
    pub root: PathBuf,
    pub file: Containerfile,
    /// The context directory, or `None` if only a Containerfile was given.
    pub context: Option<PathBuf>,
    pub names: Vec<Reference>,
    pub args: BTreeMap<String, String>,
    pub target: Option<String>,
    pub labels: Vec<(String, String)>,
    pub no_cache: bool,
    /// The network of `RUN`. `None` is the bridge, or the host's network where no bridge can be made.
    pub network: Option<NetworkMode>,
    pub limits: LimitsRequest,
    /// Size of /dev/shm in a `RUN`, in bytes.
    pub shm_size: Option<u64>,
    pub add_hosts: Vec<HostEntry>,
    pub secrets: BTreeMap<String, Vec<u8>>,
    /// The sockets of SSH agents, by ID.
    pub agents: BTreeMap<String, PathBuf>,
    pub host_ca: bool,
    /// SOURCE_DATE_EPOCH: no time in the image is later than this.
    pub clamp: Option<i64>,
}

/// Gets a base image from the store, or from a registry if the store has none or the caller asked for a newer one.
pub(crate) type Pull<'a> = &'a dyn Fn(&str) -> Result<Image, Report>;
