//! The options of one build.

use std::collections::BTreeMap;
use std::path::PathBuf;

use super::containerfile::Containerfile;
use crate::names::Reference;
use crate::report::Report;
use crate::request::{HostEntry, LimitsRequest, NetworkMode, Ulimit};
use crate::store::Image;

/// The options of one build.
#[derive(Debug, Clone)]
pub(crate) struct Options {
    /// The root of the store.
    pub root: PathBuf,
    pub file: Containerfile,
    /// The context directory, or `None` if only a Containerfile was given.
    pub context: Option<PathBuf>,
    /// The ignore file, if it is none of the usual ones.
    pub ignore_file: Option<PathBuf>,
    /// Further contexts, by name.
    pub contexts: BTreeMap<String, NamedContext>,
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
    /// Resource limits of the processes of a `RUN`.
    pub ulimits: Vec<Ulimit>,
    pub add_hosts: Vec<HostEntry>,
    pub secrets: BTreeMap<String, Vec<u8>>,
    /// The sockets of SSH agents, by ID.
    pub agents: BTreeMap<String, PathBuf>,
    pub host_ca: bool,
    /// SOURCE_DATE_EPOCH: no time in the image is later than this.
    pub clamp: Option<i64>,
}

/// What the name of a context stands for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum NamedContext {
    Image(String),
    Directory(PathBuf),
}

impl NamedContext {
    /// Parses `NAME=DIR` or `NAME=docker-image://IMAGE`.
    pub(crate) fn parse(text: &str) -> Result<(String, Self), Report> {
        let wrong = |why: &str| {
            Report::usage(format!("cannot use `--build-context {text}`: {why}"))
                .with_hint("write `--build-context NAME=DIR` or `--build-context NAME=docker-image://IMAGE`")
        };
        let (name, value) = text.split_once('=').ok_or_else(|| wrong("it is not `NAME=CONTEXT`"))?;
        if name.is_empty() || value.is_empty() {
            return Err(wrong("a part of it is empty"));
        }
        if let Some(image) = value.strip_prefix("docker-image://") {
            return Ok((name.to_owned(), Self::Image(image.to_owned())));
        }
        if value.contains("://") || value.starts_with("git@") {
            return Err(wrong("a context is a directory of this host or an image"));
        }
        let path = PathBuf::from(value);
        if !path.is_dir() {
            return Err(wrong("the directory does not exist"));
        }
        Ok((name.to_owned(), Self::Directory(path)))
    }
}

/// Gets a base image from the store, or from a registry if the store has none or the caller asked for a newer one.
pub(crate) type Pull<'a> = &'a dyn Fn(&str) -> Result<Image, Report>;
