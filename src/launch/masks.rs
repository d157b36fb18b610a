//! Masked paths whose number depends on the host.
//!
//! `thermal_throttle` counts how often each CPU was throttled, which reveals the load of other users. Each mask is one
//! mount (measured: 32 µs, so 8 ms on a host with 256 CPUs, and a line in the container's mount table). So only
//! existing paths are masked: none in most virtual machines, and one directory for each CPU elsewhere. One mount cannot
//! mask them all, because their common parent directories contain files that programs need (`online`, `topology`,
//! `cache`). A CPU that is plugged in later is not masked in running containers.

use std::path::Path;

/// The `thermal_throttle` directory of each CPU that has one, as a path in the container. `root` is the host's root
/// directory.
pub(super) fn thermal(root: &Path) -> Vec<String> {
    let cpus = Path::new("sys/devices/system/cpu");
    let mut found: Vec<(u32, String)> = Vec::new();
    for entry in std::fs::read_dir(root.join(cpus)).into_iter().flatten().flatten() {
        let name = entry.file_name();
        let number = name.to_str().and_then(|name| name.strip_prefix("cpu")).and_then(|number| number.parse().ok());
        if let Some(number) = number
            && entry.path().join("thermal_throttle").is_dir()
        {
            found.push((number, format!("/{}/cpu{number}/thermal_throttle", cpus.display())));
        }
    }
    found.sort();
    found.into_iter().map(|(_, path)| path).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_cpu_that_has_counters_is_masked_and_no_other() {
        let root = tempfile::tempdir().unwrap();
        let cpus = root.path().join("sys/devices/system/cpu");
        assert!(thermal(root.path()).is_empty());
        for name in [
            "cpu0/thermal_throttle",
            "cpu1/topology",
            "cpu10/thermal_throttle",
            "cpu2/thermal_throttle",
            "cpufreq",
            "cpuidle",
        ] {
            std::fs::create_dir_all(cpus.join(name)).unwrap();
        }
        let expected = [0, 2, 10].map(|cpu| format!("/sys/devices/system/cpu/cpu{cpu}/thermal_throttle"));
        assert_eq!(thermal(root.path()), expected);
    }
}
