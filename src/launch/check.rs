//! The checks that need the host but change nothing. A command runs them, so that errors are reported before anything is
//! created.

use std::path::Path;

use super::rlimits::{self, HardLimits};
use super::{files, gpus, hooks, mounts, secrets};
use crate::cgroup;
use crate::report::Report;
use crate::request::{LimitsRequest, Request};

/// Checks whether the host supports these limits. Whether it enforces them is only known once they are read back.
pub(crate) fn check_limits(limits: &LimitsRequest) -> Result<(), Report> {
    let host = cgroup::Host::probe(Path::new("/"))?;
    Ok(host.check(&limits.resolve(&host.facts()?)?)?)
}

/// Checks a whole request.
pub(crate) fn check(request: &Request) -> Result<(), Report> {
    check_limits(&request.limits)?;
    rlimits::resolve(&request.ulimits, &[], &HardLimits::read())?;
    mounts::check(&request.mounts)?;
    secrets::check(request)?;
    files::check(request)?;
    crate::hook::read_dirs(&hooks::dirs(request))?;
    gpus::check(request)
}
