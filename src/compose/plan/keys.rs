//! Which key of a service a flag of `run` comes from, for errors of the command line.
//!
//! A service is checked by the command line's own parser. Its messages name flags; people who write compose files know
//! keys. This table is the only place that maps one to the other.

use super::super::error::{ComposeError, Wrong};
use super::super::project::Project;
use crate::report::Report;

/// A flag, and the keys that it may come from. The first one that a service has is named.
const KEYS: &[(&str, &[&str])] = &[
    ("--add-host", &["extra_hosts"]),
    ("--annotation", &["annotations"]),
    ("--blkio-weight", &["blkio_config.weight", "blkio_config"]),
    ("--blkio-weight-device", &["blkio_config.weight_device"]),
    ("--cap-add", &["cap_add"]),
    ("--cap-drop", &["cap_drop"]),
    ("--cgroup-parent", &["cgroup_parent"]),
    ("--cgroupns", &["cgroup"]),
    ("--cpu-period", &["cpu_period"]),
    ("--cpu-quota", &["cpu_quota"]),
    ("--cpu-shares", &["cpu_shares"]),
    ("--cpus", &["cpus", "deploy.resources.limits.cpus"]),
    ("--cpuset-cpus", &["cpuset"]),
    ("--device", &["devices", "deploy.resources.reservations.devices", "gpus"]),
    ("--device-cgroup-rule", &["device_cgroup_rules"]),
    ("--device-read-bps", &["blkio_config.device_read_bps"]),
    ("--device-read-iops", &["blkio_config.device_read_iops"]),
    ("--device-write-bps", &["blkio_config.device_write_bps"]),
    ("--device-write-iops", &["blkio_config.device_write_iops"]),
    ("--dns", &["dns"]),
    ("--dns-option", &["dns_opt"]),
    ("--dns-search", &["dns_search"]),
    ("--domainname", &["domainname"]),
    ("--entrypoint", &["entrypoint"]),
    ("--env", &["environment"]),
    ("--expose", &["expose"]),
    ("--gpus", &["gpus", "deploy.resources.reservations.devices", "runtime"]),
    ("--group-add", &["group_add"]),
    ("--health-cmd", &["healthcheck.test"]),
    ("--health-interval", &["healthcheck.interval"]),
    ("--health-retries", &["healthcheck.retries"]),
    ("--health-start-interval", &["healthcheck.start_interval"]),
    ("--health-start-period", &["healthcheck.start_period"]),
    ("--health-timeout", &["healthcheck.timeout"]),
    ("--hostname", &["hostname"]),
    ("--init", &["init"]),
    ("--ip", &["networks"]),
    ("--ipc", &["ipc"]),
    ("--isolation", &["isolation"]),
    ("--label", &["labels"]),
    ("--label-file", &["label_file"]),
    ("--log-opt", &["logging.options"]),
    ("--mac-address", &["mac_address", "networks"]),
    ("--memory", &["mem_limit", "deploy.resources.limits.memory"]),
    ("--memory-reservation", &["mem_reservation", "deploy.resources.reservations.memory"]),
    ("--memory-swap", &["memswap_limit"]),
    ("--memory-swappiness", &["mem_swappiness"]),
    ("--mount", &["volumes", "secrets", "configs"]),
    ("--name", &["container_name"]),
    ("--network", &["network_mode", "networks"]),
    ("--network-alias", &["networks"]),
    ("--no-healthcheck", &["healthcheck"]),
    ("--oom-kill-disable", &["oom_kill_disable"]),
    ("--oom-score-adj", &["oom_score_adj"]),
    ("--pid", &["pid"]),
    ("--pids-limit", &["pids_limit", "deploy.resources.limits.pids"]),
    ("--privileged", &["privileged"]),
    ("--publish", &["ports"]),
    ("--read-only", &["read_only"]),
    ("--restart", &["restart", "deploy.restart_policy"]),
    ("--security-opt", &["security_opt"]),
    ("--shm-size", &["shm_size"]),
    ("--stop-signal", &["stop_signal"]),
    ("--stop-timeout", &["stop_grace_period"]),
    ("--sysctl", &["sysctls"]),
    ("--tmpfs", &["tmpfs"]),
    ("--ulimit", &["ulimits"]),
    ("--user", &["user"]),
    ("--userns", &["userns_mode"]),
    ("--uts", &["uts"]),
    ("--volumes-from", &["volumes_from"]),
    ("--workdir", &["working_dir"]),
];

fn keys(flag: &str) -> Option<&'static [&'static str]> {
    KEYS.iter().find(|(known, _)| *known == flag).map(|(_, keys)| *keys)
}

impl Project {
    /// Turns an error of the command line into one about the key that the flag comes from. Without a flag, the error is
    /// about the service as a whole.
    pub(crate) fn refuse(&self, service: &str, flag: Option<&str>, report: &Report) -> ComposeError {
        let node = self.services.get(service);
        let find = |key: &&str| node.and_then(|node| key.split('.').try_fold(node, |node, part| node.get(part)));
        let all = flag.and_then(|flag| keys(flag.split('=').next().unwrap_or(flag))).unwrap_or_default();
        let found = all.iter().find_map(|key| Some((*key, find(key)?.at)));
        let (key, at) = match found {
            Some((key, at)) => (format!("services.{service}.{key}"), at),
            None => (format!("services.{service}"), node.map(|node| node.at).unwrap_or_default()),
        };
        let present = |flag: &str| keys(flag).map(|all| *all.iter().find(|key| find(key).is_some()).unwrap_or(&all[0]));
        let texts = std::iter::once(&report.message).chain(&report.causes);
        let reason = texts.map(|text| in_keys(text, present)).collect::<Vec<_>>().join(": ");
        let mut wrong = Wrong::new(at, key, reason);
        wrong.hint = report.hint.as_ref().map(|hint| in_keys(hint, present));
        self.placed(wrong)
    }
}

/// Replaces flags in a message by keys.
fn in_keys(text: &str, key: impl Fn(&str) -> Option<&'static str>) -> String {
    let is_flag = |c: char| c.is_ascii_alphanumeric() || c == '-';
    let (mut out, mut rest) = (String::new(), text);
    while let Some(at) = rest.find("--") {
        let (before, from) = rest.split_at(at);
        let end = from.find(|c| !is_flag(c)).unwrap_or(from.len());
        let (flag, after) = from.split_at(end);
        out.push_str(before);
        // Two dashes inside a word are no flag.
        let begins = !before.ends_with(is_flag);
        let key = key(flag).filter(|_| begins).and_then(|key| key.rsplit('.').next());
        out.push_str(key.unwrap_or(flag));
        rest = after;
    }
    out + rest
}

#[cfg(test)]
mod tests {
    use super::super::super::schema::{Object, SERVICE, Type};
    use super::*;

    #[test]
    fn flags_in_messages_become_keys() {
        let key = |flag: &str| keys(flag).map(|keys| keys[0]);
        for (text, expected) in [
            ("`--memory` is too small", "`mem_limit` is too small"),
            ("`--memory-swap 1m` and `--memory=2m`", "`memswap_limit 1m` and `mem_limit=2m`"),
            ("`--unknown` stays, and a--memory too", "`--unknown` stays, and a--memory too"),
            ("--", "--"),
        ] {
            assert_eq!(in_keys(text, key), expected);
        }
    }

    #[test]
    fn all_keys_are_keys_of_a_service() {
        fn has(of: &'static Object, key: &str) -> bool {
            let (first, rest) = key.split_once('.').map_or((key, None), |(first, rest)| (first, Some(rest)));
            let Some(found) = of.key(first) else { return false };
            rest.is_none_or(|rest| inner(&found.ty).is_some_and(|of| has(of, rest)))
        }
        fn inner(ty: &'static Type) -> Option<&'static Object> {
            match ty {
                Type::Object(of) => Some(of),
                Type::Short(_, ty) | Type::Empty(ty) => inner(ty),
                _ => None,
            }
        }
        for key in KEYS.iter().flat_map(|(_, keys)| *keys) {
            // The options of a log driver are free.
            assert!(has(&SERVICE, key.strip_suffix(".options").unwrap_or(key)), "{key}");
        }
    }
}
