//! Rates between two samples of counters.

use std::time::Duration;

use crate::cgroup::Stats;

/// The rates of a container.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Rates {
    pub cpu_percent: Option<f64>,
    pub throttled_percent: Option<f64>,
}

/// Returns the rates between two samples. A counter that became smaller belongs to a new cgroup, so it has no rate.
pub(super) fn rates(earlier: &Stats, now: &Stats, elapsed: Duration) -> Rates {
    let grown = |of: fn(&Stats) -> Option<u64>| of(now)?.checked_sub(of(earlier)?);
    let elapsed = elapsed.as_secs_f64() * 1e6;
    let throttled = grown(|stats| stats.cpu_throttled_periods).zip(grown(|stats| stats.cpu_periods));
    Rates {
        cpu_percent: grown(|stats| stats.cpu_usage_us).map(|used| 100.0 * used as f64 / elapsed),
        throttled_percent: throttled.map(|(throttled, periods)| percent(throttled, periods)),
    }
}

/// `part` as a percentage of `whole`, and 0 of nothing.
pub(super) fn percent(part: u64, whole: u64) -> f64 {
    if whole == 0 { 0.0 } else { 100.0 * part as f64 / whole as f64 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_between_two_samples() {
        let of = |usage, periods, throttled| Stats {
            cpu_usage_us: Some(usage),
            cpu_periods: Some(periods),
            cpu_throttled_periods: Some(throttled),
            ..Stats::default()
        };
        for (earlier, now, seconds, cpu, throttled) in [
            (of(0, 0, 0), of(1_500_000, 10, 4), 1, Some(150.0), Some(40.0)),
            (of(100, 10, 4), of(1_000_100, 10, 4), 2, Some(50.0), Some(0.0)),
            (of(100, 10, 4), of(50, 1, 0), 1, None, None),
            (Stats::default(), of(50, 1, 0), 1, None, None),
        ] {
            let found = rates(&earlier, &now, Duration::from_secs(seconds));
            assert_eq!(found, Rates { cpu_percent: cpu, throttled_percent: throttled });
        }
    }
}
