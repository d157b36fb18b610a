//! The systemd unit that starts containers at boot: whether the host can have it, and whether it does.

use std::io::IsTerminal;
use std::path::Path;

use super::print;
use crate::request::RestartPolicy;

pub(super) const UNIT: &str = "gpurun-boot.service";
pub(super) const UNIT_DIR: &str = "/etc/systemd/system";
/// Exists where systemd is PID 1 (sd_booted(3)).
const SYSTEMD: &str = "/run/systemd/system";

#[must_use]
pub(super) fn has_systemd() -> bool {
    // Scripts of packages make this directory elsewhere, too.
    Path::new(SYSTEMD).is_dir() && std::fs::read("/proc/1/comm").is_ok_and(|name| name.trim_ascii() == b"systemd")
}

/// Whether containers start at boot: the unit is linked from the target that pulls it in.
pub(super) fn is_enabled() -> bool {
    has_systemd() && Path::new(UNIT_DIR).join("multi-user.target.wants").join(UNIT).symlink_metadata().is_ok()
}

/// Prints a notice if a container's restart policy does not apply at boot. Only a terminal gets it: programs create many
/// containers and cannot act on it.
pub(super) fn notice(policy: RestartPolicy) {
    let applies = matches!(policy, RestartPolicy::Always | RestartPolicy::UnlessStopped);
    if applies && !is_enabled() && std::io::stderr().is_terminal() {
        print::say(&match has_systemd() {
            true => format!("gpurun: `--restart {policy}` survives a reboot after `gpurun boot enable`"),
            false => format!("gpurun: `--restart {policy}` survives a reboot if `gpurun boot start` runs at boot"),
        });
    }
}
