//! What `--gpus` becomes: the way in that this host has, and everything that it changes in a container.

use super::{Explained, File};
use crate::gpu::Edits;

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
        one.oci.push(format!("linux.devices: {} {} {}:{}", device.path, device.kind, device.major, device.minor));
        let rule = format!("{} {}:{} {}", device.kind, device.major, device.minor, device.access);
        one.files.push(File { version: "v1", file: "devices/devices.allow".into(), value: rule.clone() });
        one.files.push(File { version: "v2", file: "device filter (BPF)".into(), value: format!("allow {rule}") });
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
