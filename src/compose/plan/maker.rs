//! What the files of a plan share.

use crate::compose::project::Project;
use crate::compose::service::Service;
use crate::compose::value::Node;

/// A file with the content of a secret or a config, which must be written before the container starts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Content {
    pub(crate) target: String,
    pub(crate) text: String,
    pub(crate) uid: Option<u32>,
    pub(crate) gid: Option<u32>,
    pub(crate) mode: u32,
}

/// How the image of a service is built.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Build {
    /// Arguments of `gpurun build`. The context is the last one.
    pub(crate) arguments: Vec<String>,
    /// The services whose images the build reads (`additional_contexts: {NAME: service:SERVICE}`).
    pub(crate) reads: Vec<String>,
}

/// Makes the plan of one service.
pub(super) struct Maker<'a> {
    pub(super) project: &'a Project,
    pub(super) name: &'a str,
    pub(super) node: &'a Node,
    pub(super) service: &'a Service,
}

/// Flags of a command line.
#[derive(Default)]
pub(super) struct Flags(pub(super) Vec<String>);

impl Flags {
    pub(super) fn add(&mut self, flag: &str, value: impl Into<String>) {
        self.0.push(format!("{flag}={}", value.into()));
    }

    pub(super) fn option(&mut self, flag: &str, value: Option<impl ToString>) {
        if let Some(value) = value {
            self.add(flag, value.to_string());
        }
    }

    pub(super) fn each<T: ToString>(&mut self, flag: &str, values: impl IntoIterator<Item = T>) {
        for value in values {
            self.add(flag, value.to_string());
        }
    }

    pub(super) fn switch(&mut self, flag: &str, on: bool) {
        if on {
            self.0.push(flag.to_owned());
        }
    }
}
