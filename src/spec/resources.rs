//! Converts limits to the OCI spec's `linux.resources` (config-linux.md, "Control groups"), for hooks and other readers
//! of config.json. The cgroup module writes the cgroup files itself and does not use this output.

use serde_json::{Map, Value, json};

use super::limits::{IoKind, Limits, Swap};

/// Converts docker's shares to version 2's `cpu.weight` (1 to 10000). This is the formula of runc since 1.3.2 and crun
/// since 1.23. It maps 2, 1024 and 262144 to 1, 100 and 10000.
#[must_use]
pub(crate) fn cpu_weight(shares: u64) -> u64 {
    let log = (shares.clamp(2, 262_144) as f64).log2();
    let exponent = (log * log + 125.0 * log) / 612.0 - 7.0 / 34.0;
    (10f64.powf(exponent).ceil() as u64).clamp(1, 10_000)
}

/// Converts a blkio weight (10 to 1000) to `io.weight` (1 to 10000) by runc's formula.
#[must_use]
pub(crate) fn io_weight(weight: u64) -> u64 {
    1 + (weight.saturating_sub(10)) * 9999 / 990
}

/// Returns the complete `linux.resources` object.
#[must_use]
pub(super) fn oci(limits: &Limits, devices: Vec<Value>) -> Value {
    let mut resources = Map::new();
    resources.insert("devices".into(), devices.into());
    for (name, part) in [("memory", memory(limits)), ("cpu", cpu(limits)), ("blockIO", block_io(limits))] {
        if !part.is_empty() {
            resources.insert(name.into(), part.into());
        }
    }
    if let Some(pids) = limits.pids {
        let limit = pids.map_or(-1, |pids| i64::try_from(pids).unwrap_or(-1));
        resources.insert("pids".into(), json!({ "limit": limit }));
    }
    let mut unified: Map<String, Value> =
        limits.conf.iter().map(|(file, value)| (file.clone(), json!(value))).collect();
    for (file, bytes) in [("memory.high", limits.memory_high), ("memory.min", limits.memory_min)] {
        if let Some(bytes) = bytes {
            unified.insert(file.into(), json!(bytes.to_string()));
        }
    }
    if !unified.is_empty() {
        resources.insert("unified".into(), unified.into());
    }
    resources.into()
}

fn put(map: &mut Map<String, Value>, key: &str, value: Option<impl Into<Value>>) {
    if let Some(value) = value {
        map.insert(key.into(), value.into());
    }
}

fn memory(limits: &Limits) -> Map<String, Value> {
    let mut memory = Map::new();
    put(&mut memory, "limit", limits.memory);
    put(&mut memory, "reservation", limits.memory_reservation);
    match limits.swap {
        Some(Swap::Total(total) | Swap::Implicit { total }) => put(&mut memory, "swap", Some(total)),
        Some(Swap::Unlimited) => put(&mut memory, "swap", Some(-1)),
        None => {}
    }
    put(&mut memory, "swappiness", limits.memory_swappiness);
    put(&mut memory, "disableOOMKiller", limits.oom_kill_disable.then_some(true));
    memory
}

fn cpu(limits: &Limits) -> Map<String, Value> {
    let mut cpu = Map::new();
    put(&mut cpu, "shares", limits.cpu_shares);
    put(&mut cpu, "quota", limits.cpu_quota_us);
    put(&mut cpu, "period", limits.cpu_period_us);
    put(&mut cpu, "cpus", limits.cpuset_cpus.as_ref().map(ToString::to_string));
    put(&mut cpu, "mems", limits.cpuset_mems.as_ref().map(ToString::to_string));
    cpu
}

fn block_io(limits: &Limits) -> Map<String, Value> {
    let mut block = Map::new();
    put(&mut block, "weight", limits.blkio_weight);
    let weights: Vec<Value> = limits
        .device_weights
        .iter()
        .map(|one| json!({ "major": one.major, "minor": one.minor, "weight": one.weight }))
        .collect();
    put(&mut block, "weightDevice", (!weights.is_empty()).then_some(weights));
    for (kind, key) in IoKind::ALL.into_iter().zip([
        "throttleReadBpsDevice",
        "throttleWriteBpsDevice",
        "throttleReadIOPSDevice",
        "throttleWriteIOPSDevice",
    ]) {
        let devices: Vec<Value> = limits
            .io
            .iter()
            .filter(|limit| limit.kind == kind)
            .map(|limit| json!({ "major": limit.major, "minor": limit.minor, "rate": limit.rate }))
            .collect();
        put(&mut block, key, (!devices.is_empty()).then_some(devices));
    }
    block
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn weights_are_runcs() {
        for (shares, weight) in [(2, 1), (1024, 100), (262_144, 10_000), (512, 59), (2048, 174)] {
            assert_eq!(cpu_weight(shares), weight, "{shares}");
        }
        for (blkio, weight) in [(10, 1), (500, 4950), (1000, 10_000)] {
            assert_eq!(io_weight(blkio), weight, "{blkio}");
        }
    }

    #[test]
    fn every_limit_has_its_field() {
        let limits = Limits {
            memory: Some(64 << 20),
            swap: Some(Swap::Unlimited),
            memory_high: Some(32 << 20),
            memory_swappiness: Some(0),
            oom_kill_disable: true,
            cpu_shares: Some(512),
            cpu_quota_us: Some(5000),
            cpu_period_us: Some(10_000),
            pids: Some(None),
            blkio_weight: Some(300),
            io: vec![super::super::limits::IoLimit { kind: IoKind::WriteBps, major: 8, minor: 0, rate: 1 << 20 }],
            conf: vec![("memory.oom.group".into(), "1".into())],
            ..Limits::default()
        };
        let expected = json!({
            "devices": [],
            "memory": { "limit": 67_108_864, "swap": -1, "swappiness": 0, "disableOOMKiller": true },
            "cpu": { "shares": 512, "quota": 5000, "period": 10_000 },
            "blockIO": { "weight": 300, "throttleWriteBpsDevice": [{ "major": 8, "minor": 0, "rate": 1_048_576 }] },
            "pids": { "limit": -1 },
            "unified": { "memory.oom.group": "1", "memory.high": "33554432" },
        });
        assert_eq!(oci(&limits, Vec::new()), expected);
    }
}
