//! Explains `--gpus`: the injection method of this host, and its edits to the container.

use oci_spec::runtime::Spec;

use super::{Explained, File};
use crate::gpu::usage::Share;
use crate::gpu::{self, Edits, gib};

/// Explains the edits that a launch would make now.
#[must_use]
pub(crate) fn explain_gpus(edits: &Edits) -> Explained {
    let mut one = Explained::new("--gpus");
    for hook in &edits.hooks {
        let argv =
            [&[hook.command.path.display().to_string()], hook.command.args.get(1..).unwrap_or_default()].concat();
        one.oci.push(format!("hooks.{}: {}", hook.stage.key(), argv.join(" ")));
    }
    one.oci.extend(edits.env.iter().map(|(name, value)| format!("process.env: {name}={value}")));
    one.oci.extend(edits.default_env.iter().map(|(name, value)| format!("process.env, if unset: {name}={value}")));
    for device in &edits.devices {
        let number = format!("{} {}:{}", device.kind, device.major, device.minor);
        add_device(&mut one, &device.path, &number, &device.access);
    }
    let count = |count: usize, what: &str| (count > 0).then(|| format!("{what}: {count}"));
    let (layered, mounted): (Vec<_>, Vec<_>) = edits.mounts.iter().partition(|mount| mount.is_layered());
    one.oci.extend(count(layered.len() + edits.libraries.len(), "a layer of the root file system, the driver's files"));
    one.oci.extend(count(mounted.len(), "mounts, the driver's files"));
    one.oci.extend(count(edits.masked.len(), "linux.maskedPaths, other GPUs in /proc"));
    for limit in &edits.rlimits {
        let text = |value: u64| if value == u64::MAX { "unlimited".to_owned() } else { value.to_string() };
        one.oci.push(format!("process.rlimits: {} = {}", limit.name, text(limit.soft)));
    }
    one.now.extend(edits.summary.iter().cloned());
    one.now.extend(edits.notices.iter().cloned());
    one
}

/// Explains the GPUs of a container: its OCI spec, the injection method, and its current use of the GPUs.
#[must_use]
pub(crate) fn explain_given(spec: Option<&Spec>, by: Option<&str>, shares: &[Share]) -> Explained {
    let mut one = Explained::new("--gpus");
    let env = spec.and_then(|spec| spec.process().as_ref()?.env().as_ref());
    one.oci.extend(
        env.into_iter()
            .flatten()
            .filter(|entry| gpu::owns_variable(entry))
            .map(|entry| format!("process.env: {entry}")),
    );
    let linux = spec.and_then(|spec| spec.linux().as_ref());
    let rules = linux.and_then(|linux| linux.resources().as_ref()?.devices().as_ref());
    let devices = linux.and_then(|linux| linux.devices().as_ref()).into_iter().flatten();
    // Other devices come from `--device`.
    for device in devices.filter(|device| gpu::owns_node(device.path())) {
        let (major, minor) = (device.major(), device.minor());
        let rule = rules.into_iter().flatten().find(|rule| (rule.major(), rule.minor()) == (Some(major), Some(minor)));
        let access = rule.and_then(|rule| rule.access().as_deref()).unwrap_or("rwm");
        let number = format!("{} {major}:{minor}", device.typ().as_str());
        add_device(&mut one, &device.path().display().to_string(), &number, access);
    }
    one.now.extend(by.map(str::to_owned));
    for share in shares {
        let busy = share.utilization.map_or_else(String::new, |percent| {
            format!(
                "; its utilization by all users is \
                                                                          {percent} %"
            )
        });
        one.now.push(format!("this container uses {} of the memory of GPU {}{busy}", gib(share.memory), share.index));
    }
    one
}

fn add_device(one: &mut Explained, path: &str, number: &str, access: &str) {
    one.oci.push(format!("linux.devices: {path} {number}"));
    let rule = format!("{number} {access}");
    one.files.push(File { version: "v1", file: "devices/devices.allow".into(), value: rule.clone() });
    one.files.push(File { version: "v2", file: "device filter (BPF)".into(), value: format!("allow {rule}") });
}
