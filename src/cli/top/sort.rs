//! The order of the containers on the screen.

use std::cmp::Ordering;

use crate::sampler::Sample;

/// What the containers are sorted by. Amounts are sorted from the largest to the smallest, texts alphabetically.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) enum Sort {
    #[default]
    Cpu,
    Memory,
    Gpu,
    Name,
    User,
}

impl Sort {
    const ALL: [Self; 5] = [Self::Cpu, Self::Memory, Self::Gpu, Self::Name, Self::User];

    /// The order that comes next when the key is pressed.
    pub(super) fn next(self) -> Self {
        let at = Self::ALL.iter().position(|sort| *sort == self).unwrap_or(0);
        Self::ALL[(at + 1) % Self::ALL.len()]
    }

    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Cpu => "CPU",
            Self::Memory => "memory",
            Self::Gpu => "GPU",
            Self::Name => "name",
            Self::User => "user",
        }
    }

    /// Compares two containers. Equal ones are sorted by their names, so that they do not change places.
    pub(super) fn compare(self, one: &Sample, other: &Sample, is_reversed: bool) -> Ordering {
        let order = match self {
            Self::Cpu => amount(other.cpu_percent).total_cmp(&amount(one.cpu_percent)),
            Self::Memory => other.stats.memory_used.cmp(&one.stats.memory_used),
            Self::Gpu => gpu(other).cmp(&gpu(one)),
            Self::Name => Ordering::Equal,
            Self::User => one.owner.cmp(&other.owner),
        };
        let order = order.then_with(|| one.name.cmp(&other.name));
        if is_reversed { order.reverse() } else { order }
    }
}

/// An unknown amount is less than nothing.
fn amount(value: Option<f64>) -> f64 {
    value.unwrap_or(-1.0)
}

/// The GPU memory of a container, and the utilization of its GPUs.
fn gpu(sample: &Sample) -> Option<(u64, u32)> {
    let memory = sample.gpus.iter().map(|share| share.memory).sum();
    let busy = sample.gpus.iter().filter_map(|share| share.utilization).sum();
    (!sample.gpus.is_empty()).then_some((memory, busy))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cgroup::Stats;
    use crate::gpu::usage::Share;

    #[test]
    fn every_order_has_its_first_container() {
        let sample = |name: &str, owner: &str, cpu, memory, gpu: Option<u64>| Sample {
            name: name.into(),
            owner: owner.into(),
            cpu_percent: cpu,
            stats: Stats { memory_used: memory, ..Stats::default() },
            gpus: gpu
                .map(|memory| Share { index: "0".into(), name: "GPU-0".into(), memory, utilization: Some(5) })
                .into_iter()
                .collect(),
            ..Sample::default()
        };
        let all = [
            sample("b", "carol", Some(150.0), Some(1), None),
            sample("a", "carol", Some(2.0), Some(9), None),
            sample("c", "alice", None, None, Some(7)),
            sample("d", "bob", Some(0.0), Some(2), Some(0)),
        ];
        let mut sort = Sort::default();
        for (expected, name) in
            [("badc", "CPU"), ("adbc", "memory"), ("cdab", "GPU"), ("abcd", "name"), ("cdab", "user")]
        {
            let sorted = |is_reversed| {
                let mut sorted: Vec<&Sample> = all.iter().collect();
                sorted.sort_by(|one, other| sort.compare(one, other, is_reversed));
                sorted.iter().map(|sample| sample.name.as_str()).collect::<String>()
            };
            assert_eq!((sorted(false).as_str(), sort.name()), (expected, name));
            assert_eq!(sorted(true), expected.chars().rev().collect::<String>());
            sort = sort.next();
        }
        assert_eq!(sort, Sort::Cpu);
    }
}
