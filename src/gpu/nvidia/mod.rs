//! NVIDIA's GPUs.
//!
//! ```text
//! host, nvml, snapshot   /proc/driver/nvidia, NVML, and the units of both (GPUs and MIG devices)
//! gpus                   the names that callers may use for them
//! variables              the environment variables of NVIDIA's tools
//! mode                   the injection mode that works on this host
//! toolkit (config)       mode hook: NVIDIA's prestart hook and its configuration
//! cdi                    mode cdi: which devices of a CDI file the selected units are, and facts about NVIDIA's files
//! native (driver)        mode native: the driver's files and device nodes; params masks a file of the driver
//! require                driver versions that the image requires
//! inject                 the injection, in the mode that was found
//! doctor                 problems with the host's setup
//! ```

mod cdi;
mod config;
mod doctor;
mod driver;
mod error;
#[cfg(test)]
mod error_tests;
mod gpus;
mod host;
mod inject;
mod mode;
mod native;
pub(crate) mod nvml;
pub(crate) mod params;
mod require;
mod snapshot;
mod toolkit;
mod variables;

use std::path::Path;

use super::cdi::Facts;
use super::doctor::Finding;
use super::edits::Edits;
use super::error::Reason;
use super::query::{Early, Query};
use super::vendor::{Detail, Gpus, Notice, Vendor};
use crate::request::GpuRequest;
use host::Host;
use snapshot::Snapshot;

pub(super) struct Nvidia;

impl Vendor for Nvidia {
    fn name(&self) -> &'static str {
        "nvidia"
    }

    fn cdi(&self) -> &'static Facts {
        &cdi::FACTS
    }

    fn begin(&self, root: &Path) -> Option<Query> {
        nvml::begin(&driver::nvml_library(root)?)
    }

    fn read(
        &self,
        root: &Path,
        detail: Detail,
        early: Option<&Early>,
        notice: Notice<'_>,
    ) -> Result<Box<dyn Gpus>, Reason> {
        let host = Host::read(root).map_err(|missing| Reason::NoDriver {
            vendor: "NVIDIA",
            missing: missing.display().to_string(),
            hint: "install NVIDIA's driver so that `nvidia-smi` works on the host".into(),
        })?;
        Ok(Box::new(Snapshot::read(root, host, detail, early, notice)))
    }

    fn denial(&self) -> (&'static str, &'static str) {
        (variables::VISIBLE, "void")
    }

    fn is_privilege(&self, entry: &str) -> bool {
        variables::is_privilege(entry)
    }

    fn misled(&self, env: &[(String, String)]) -> Option<String> {
        variables::misled(env)
    }

    fn example(&self, request: &GpuRequest) -> Edits {
        let default_env = vec![variables::device_order()];
        Edits { env: variables::example(request), default_env, ..Edits::default() }
    }

    fn owns_variable(&self, entry: &str) -> bool {
        variables::owns(entry)
    }

    fn owns_node(&self, path: &Path) -> bool {
        path.to_string_lossy().starts_with("/dev/nvidia")
    }

    fn examine(&self, root: &Path) -> Vec<Finding> {
        doctor::findings(&doctor::Facts::read(root))
    }
}

#[cfg(test)]
pub(super) mod tests;
