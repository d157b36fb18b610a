//! The resource limits of a container's processes.

use std::collections::BTreeMap;

use crate::report::Report;
use crate::request::Ulimit;
use crate::spec::Rlimit;

/// Every resource limit, soft and hard, so that none is inherited from the caller's shell. The values are those that a
/// container gets from a dockerd started by systemd, without any real-time or nice priorities.
const DEFAULTS: [(&str, u64, u64); 16] = [
    ("AS", u64::MAX, u64::MAX),
    ("CORE", u64::MAX, u64::MAX),
    ("CPU", u64::MAX, u64::MAX),
    ("DATA", u64::MAX, u64::MAX),
    ("FSIZE", u64::MAX, u64::MAX),
    ("LOCKS", u64::MAX, u64::MAX),
    ("MEMLOCK", 8 << 20, 8 << 20),
    ("MSGQUEUE", 819_200, 819_200),
    ("NICE", 0, 0),
    ("NOFILE", 1_048_576, 1_048_576),
    ("NPROC", u64::MAX, u64::MAX),
    ("RSS", u64::MAX, u64::MAX),
    ("RTPRIO", 0, 0),
    ("RTTIME", u64::MAX, u64::MAX),
    ("SIGPENDING", 96_000, 96_000),
    ("STACK", 8 << 20, u64::MAX),
];
/// With fewer descriptors than this, a start itself may fail (see [`descriptors`]).
const START_NOFILE: u64 = 64;

/// The hard limits of this process, which bound those of a container unless the process may raise them.
#[derive(Debug, Clone, Default)]
pub(super) struct HardLimits {
    /// By the name of the limit. A limit that is missing is not bounded.
    limits: BTreeMap<String, u64>,
    may_raise: bool,
}

impl HardLimits {
    pub(super) fn read() -> Self {
        let may_raise = may_raise_limits();
        let limits = if may_raise { Vec::new() } else { crate::sys::rlimit::all() };
        Self { limits: limits.into_iter().map(|(name, _, hard)| (name, hard)).collect(), may_raise }
    }

    /// The bound of a limit that is lower than `hard`.
    fn bound(&self, name: &str, hard: u64) -> Option<u64> {
        self.limits.get(name).copied().filter(|most| hard > *most && !self.may_raise)
    }
}

/// Whether this process has CAP_SYS_RESOURCE (number 24), without which no hard limit can be raised.
fn may_raise_limits() -> bool {
    let status = crate::sys::file::read_control("/proc/self/status").unwrap_or_default();
    let effective = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    effective.and_then(|digits| u64::from_str_radix(digits.trim(), 16).ok()).is_some_and(|bits| bits >> 24 & 1 == 1)
}

/// Returns the process's limits, and a notice for each of gpurun's defaults that the host does not allow. `gpus` are the
/// defaults of a container with GPUs. A limit that the user requested and the host does not allow is an error.
pub(super) fn resolve(
    requested: &[Ulimit],
    gpus: &[Rlimit],
    host: &HardLimits,
) -> Result<(Vec<Rlimit>, Vec<String>), Report> {
    let (mut limits, mut notices) = (Vec::new(), Vec::new());
    for ulimit in requested {
        let name = format!("RLIMIT_{}", ulimit.name.to_ascii_uppercase());
        if let Some(most) = host.bound(&name, ulimit.hard) {
            return Err(Report::usage(format!(
                "`--ulimit {ulimit}` is above {most}, the hard limit of gpurun itself, which it may not raise"
            ))
            .with_hint(format!(
                "request at most {most}, or raise the limit first (`ulimit -H`, systemd's `Limit…=`)"
            )));
        }
        limits.push(Rlimit { name, soft: ulimit.soft, hard: ulimit.hard });
    }
    let defaults = DEFAULTS.map(|(name, soft, hard)| Rlimit { name: format!("RLIMIT_{name}"), soft, hard });
    for default in gpus.iter().cloned().chain(defaults) {
        if limits.iter().any(|other| other.name == default.name) {
            continue;
        }
        match host.bound(&default.name, default.hard) {
            Some(most) => {
                notices.push(format!("the resource limit {} is lowered to this host's {most}", default.name));
                limits.push(Rlimit { soft: default.soft.min(most), hard: most, name: default.name });
            }
            None => limits.push(default),
        }
    }
    Ok((limits, notices))
}

/// Adds a hint to an error when a low `nofile` limit may be the cause: the start itself needs a few descriptors. The
/// process may end at any step: before the checks, between them, or at the start itself.
pub(super) fn descriptors(report: Report, ulimits: &[Ulimit]) -> Report {
    match ulimits.iter().find(|limit| limit.name == "nofile" && limit.soft < START_NOFILE) {
        Some(limit) if report.hint.is_none() => report.with_hint(format!(
            "`--ulimit nofile={}` may leave too few descriptors for the start itself: use at least {START_NOFILE}",
            limit.soft
        )),
        _ => report,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_host_bounds_defaults_and_refuses_requests() {
        let host = HardLimits { limits: BTreeMap::from([("RLIMIT_NOFILE".to_owned(), 4096)]), may_raise: false };
        let (limits, notices) = resolve(&[], &[], &host).unwrap();
        let nofile = limits.iter().find(|limit| limit.name == "RLIMIT_NOFILE").unwrap();
        assert_eq!((nofile.soft, nofile.hard, limits.len()), (4096, 4096, DEFAULTS.len()));
        assert_eq!(notices, ["the resource limit RLIMIT_NOFILE is lowered to this host's 4096"]);
        let asked = Ulimit { name: "nofile".into(), soft: 10, hard: 5000 };
        let report = resolve(std::slice::from_ref(&asked), &[], &host).unwrap_err();
        assert_eq!(report.exit_code, crate::report::EXIT_USAGE, "{report}");
        let (limits, notices) = resolve(&[asked], &[], &HardLimits { may_raise: true, ..host }).unwrap();
        assert_eq!((limits[0].soft, limits[0].hard, notices.len()), (10, 5000, 0));
    }
}
