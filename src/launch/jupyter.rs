//! Jupyter's half of a bare launch (to come).

use crate::report::Report;
use crate::request::Request;
use crate::spec::Limits;

#[derive(Debug)]
pub struct Prepared {}

pub fn limits_env(_: &Request, _: &Limits, _: &[String]) -> Vec<(String, String)> {
    Vec::new()
}

pub fn prepare(
    _: &crate::record::Entry,
    _: &std::os::fd::OwnedFd,
    _: &crate::image::Config,
    _: &[String],
    _: &Limits,
    _: &crate::rootfs::users::User,
    _: &mut Vec<crate::spec::Mount>,
) -> Result<Prepared, Report> {
    Err(Report::new("to come"))
}

pub fn exec(
    _: Prepared,
    _: &crate::runtime::Created,
    _: &crate::cgroup::Cgroup,
    _: &mut super::Streams,
) -> Result<crate::runtime::ExecChild, Report> {
    Err(Report::new("to come"))
}
