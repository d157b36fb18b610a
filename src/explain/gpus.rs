//! What `--gpus` becomes: the way in that this host has, and everything that it changes in a container.

use std::path::Path;

use oci_spec::runtime::Spec;

use super::{Explained, File};
use crate::gpu::usage::Share;
use crate::gpu::{Edits, gib};

/// Explains what a launch would be given right now.
#[must_use]
pub fn explain_gpus(edits: &Edits) -> Explained {
    let mut one = Explained::new("--gpus");
    for hook in &edits.hooks {
        let words =
            [&[hook.command.path.display().to_string()], hook.command.args.get(1..).unwrap_or_default()].concat();
        one.oci.push(format!("hooks.{}: {}", hook.stage.key(), words.join(" ")));
    }
    one.oci.extend(edits.env.iter().map(|(name, value)| format!("process.env: {name}={value}")));
    one.oci.extend(edits.default_env.iter().map(|(name, value)| format!("process.env, if unset: {name}={value}")));
    for device in &edits.devices {
        let number = format!("{} {}:{}", device.kind, device.major, device.minor);
        add_device(&mut one, &device.path, &number, &device.access);
    }
    let count = |count: usize, what: &str| (count > 0).then(|| format!("{what}: {count}"));
    one.oci.extend(count(edits.mounts.len() + edits.libraries.len(), "mounts, the driver's files"));
    one.oci.extend(count(edits.masked.len(), "linux.maskedPaths, other GPUs in /proc"));
    for limit in &edits.rlimits {
        let text = |value: u64| if value == u64::MAX { "unlimited".to_owned() } else { value.to_string() };
        one.oci.push(format!("process.rlimits: {} = {}", limit.name, text(limit.soft)));
    }
    one.now.extend(edits.summary.iter().cloned());
    one.now.extend(edits.notices.iter().cloned());
    one
}

/// Explains what a container has: its OCI spec, how its GPUs came in, and what it does with them right now.
#[must_use]
pub fn explain_given(spec: Option<&Spec>, by: Option<&str>, shares: &[Share]) -> Explained {
    let mut one = Explained::new("--gpus");
    let env = spec.and_then(|spec| spec.process().as_ref()?.env().as_ref());
    let about_gpus = |entry: &&String| entry.starts_with("NVIDIA_") || entry.starts_with("CUDA_DEVICE_ORDER=");
    one.oci.extend(env.into_iter().flatten().filter(about_gpus).map(|entry| format!("process.env: {entry}")));
    let linux = spec.and_then(|spec| spec.linux().as_ref());
    let rules = linux.and_then(|linux| linux.resources().as_ref()?.devices().as_ref());
    // Others were asked for by `--device`.
    let is_gpus =
        |path: &Path| ["/dev/nvidia", "/dev/dri/"].iter().any(|start| path.to_string_lossy().starts_with(start));
    let devices = linux.and_then(|linux| linux.devices().as_ref()).into_iter().flatten();
    for device in devices.filter(|device| is_gpus(device.path())) {
        let (major, minor) = (device.major(), device.minor());
        let rule = rules.into_iter().flatten().find(|rule| (rule.major(), rule.minor()) == (Some(major), Some(minor)));
        let access = rule.and_then(|rule| rule.access().as_deref()).unwrap_or("rwm");
        let number = format!("{} {major}:{minor}", device.typ().as_str());
        add_device(&mut one, &device.path().display().to_string(), &number, access);
    }
    one.now.extend(by.map(str::to_owned));
    for share in shares {
        let busy =
            share.utilization.map_or_else(String::new, |percent| format!("; all its users keep it {percent} % busy"));
        one.now.push(format!("{} of GPU {}'s memory is this container's{busy}", gib(share.memory), share.index));
    }
    one
}

fn add_device(one: &mut Explained, path: &str, number: &str, access: &str) {
    one.oci.push(format!("linux.devices: {path} {number}"));
    let rule = format!("{number} {access}");
    one.files.push(File { version: "v1", file: "devices/devices.allow".into(), value: rule.clone() });
    one.files.push(File { version: "v2", file: "device filter (BPF)".into(), value: format!("allow {rule}") });
}
