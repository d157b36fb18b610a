//! The limits of a service and its GPUs.

use super::super::error::Wrong;
use super::super::service::{Deploy, Device};
use super::maker::{Flags, Maker};

impl Maker<'_> {
    pub(super) fn limits(&self, flags: &mut Flags, notices: &mut Vec<String>) -> Result<(), Wrong> {
        let service = self.service;
        let none = Deploy::default();
        let resources = &service.deploy.as_ref().unwrap_or(&none).resources;
        let (limits, reservations) = (&resources.limits, &resources.reservations);
        let one = |key: &str, own: Option<String>, deploy: Option<String>| match (own, deploy) {
            (Some(own), Some(deploy)) if own != deploy => {
                Err(self.wrong(key, format!("`deploy.resources` says `{deploy}`, and this key `{own}`")))
            }
            (own, deploy) => Ok(own.or(deploy)),
        };
        flags.option("--memory", one("mem_limit", service.mem_limit.clone(), limits.memory.clone())?);
        flags.option("--memory-swap", service.memswap_limit.as_ref());
        let reservation = one("mem_reservation", service.mem_reservation.clone(), reservations.memory.clone())?;
        flags.option("--memory-reservation", reservation);
        flags.option("--memory-swappiness", service.mem_swappiness.as_ref());
        let text = |cpus: Option<f64>| cpus.map(|cpus| cpus.to_string());
        flags.option("--cpus", one("cpus", text(service.cpus), text(limits.cpus))?);
        flags.option("--cpuset-cpus", service.cpuset.as_ref());
        flags.option("--cpu-shares", service.cpu_shares);
        flags.option("--cpu-period", service.cpu_period);
        flags.option("--cpu-quota", service.cpu_quota);
        let number = |number: Option<i64>| number.map(|number| number.to_string());
        flags.option("--pids-limit", one("pids_limit", number(service.pids_limit), number(limits.pids))?);
        flags.switch("--oom-kill-disable", service.oom_kill_disable);
        flags.option("--oom-score-adj", service.oom_score_adj);
        flags.option("--shm-size", service.shm_size.as_ref());
        flags.option("--cgroup-parent", service.cgroup_parent.as_ref());
        flags.each("--ulimit", service.ulimits.iter().map(|(name, limit)| limit.flag(name)));
        if let Some(io) = &service.blkio_config {
            flags.option("--blkio-weight", io.weight);
            let weights = io.weight_device.iter().map(|device| format!("{}:{}", device.path, device.weight));
            flags.each("--blkio-weight-device", weights);
            for (flag, list) in [
                ("--device-read-bps", &io.device_read_bps),
                ("--device-read-iops", &io.device_read_iops),
                ("--device-write-bps", &io.device_write_bps),
                ("--device-write-iops", &io.device_write_iops),
            ] {
                flags.each(flag, list.iter().map(|limit| format!("{}:{}", limit.path, limit.rate)));
            }
        }
        if reservations.cpus.is_some() {
            notices.push(format!(
                "`services.{}.deploy.resources.reservations.cpus` is ignored: it is for swarm",
                self.name
            ));
        }
        Ok(())
    }

    /// The GPU request. No GPU is left out silently: what cannot be honored is an error.
    pub(super) fn gpus(&self, flags: &mut Flags) -> Result<(), Wrong> {
        let service = self.service;
        let reserved = service.deploy.as_ref().map(|deploy| &deploy.resources.reservations.devices);
        let mut request: Option<String> = None;
        let mut set = |key: &str, value: String| match &request {
            Some(before) if *before != value => {
                Err(self.wrong(key, format!("the service asks for GPUs twice: `{before}` and `{value}`")))
            }
            _ => {
                request = Some(value);
                Ok(())
            }
        };
        let lists = [("deploy.resources.reservations.devices", reserved), ("gpus", Some(&service.gpus))];
        for (key, list) in lists {
            for device in list.into_iter().flatten() {
                if key != "gpus" && !is_gpu(device) {
                    let kinds = device.capabilities.join(", ");
                    return Err(self
                        .wrong(key, format!("gpurun reserves GPUs only, and this asks for `{kinds}`"))
                        .with_hint("write `capabilities: [gpu]`"));
                }
                let cdi = |id: &&String| id.contains('/') && id.contains('=');
                match device.driver.as_deref() {
                    None | Some("nvidia" | "cdi" | "") => {}
                    Some(other) => {
                        return Err(self.wrong(key, format!("there is no driver `{other}`: use `nvidia` or `cdi`")));
                    }
                }
                if device.count.is_some() && !device.device_ids.is_empty() {
                    return Err(self.wrong(key, "`count` and `device_ids` exclude each other"));
                }
                flags.each("--device", device.device_ids.iter().filter(cdi));
                let ids: Vec<&str> = device.device_ids.iter().filter(|id| !cdi(id)).map(String::as_str).collect();
                match (&ids[..], device.count) {
                    ([], _) if !device.device_ids.is_empty() => {}
                    ([], None | Some(-1)) => set(key, "all".to_owned())?,
                    ([], Some(count)) => set(key, count.to_string())?,
                    (ids, _) => set(key, format!("device={}", ids.join(",")))?,
                }
            }
        }
        if request.is_none() && service.runtime.as_deref() == Some("nvidia") {
            // NVIDIA's runtime takes the GPUs from this variable, and the image's default is `all`.
            request = match service.environment.get("NVIDIA_VISIBLE_DEVICES").and_then(Option::as_deref) {
                None | Some("all") => Some("all".to_owned()),
                Some("none" | "void" | "") => None,
                Some(list) => Some(format!("device={list}")),
            };
        }
        flags.option("--gpus", request);
        Ok(())
    }
}

/// Older files name the capability only in the driver.
fn is_gpu(device: &Device) -> bool {
    device.capabilities.iter().any(|name| name == "gpu" || name == "nvidia")
        || (device.capabilities.is_empty() && matches!(device.driver.as_deref(), Some("nvidia" | "cdi")))
}
