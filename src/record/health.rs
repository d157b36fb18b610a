//! The health of a container as its health check finds it, by docker's rules.

use serde::{Deserialize, Serialize};

/// How many results are kept (docker's number).
const KEPT: usize = 5;

/// docker's states of a container with a health check.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum HealthStatus {
    #[default]
    Starting,
    Healthy,
    Unhealthy,
}

impl HealthStatus {
    #[must_use]
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Starting => "starting",
            Self::Healthy => "healthy",
            Self::Unhealthy => "unhealthy",
        }
    }
}

/// One run of the health check.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct HealthResult {
    /// Nanoseconds since 1970.
    pub start: u64,
    pub end: u64,
    /// 0 means healthy. -1 means that the check could not be run or was killed at its time limit, as in docker.
    pub exit_code: i32,
    /// The beginning of what the check printed, or why it failed.
    pub output: String,
}

/// The health of a container that has a health check.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct Health {
    pub status: HealthStatus,
    /// Failures in a row.
    pub failing_streak: u32,
    /// The last results, oldest first.
    pub log: Vec<HealthResult>,
}

impl Health {
    /// Adds a result. `retries` failures in a row make the container unhealthy. A failure of a starting container in
    /// its start period (`excused`) does not count.
    pub(crate) fn add(&mut self, result: HealthResult, retries: u32, excused: bool) {
        if result.exit_code == 0 {
            (self.status, self.failing_streak) = (HealthStatus::Healthy, 0);
        } else if !(excused && self.status == HealthStatus::Starting) {
            self.failing_streak = self.failing_streak.saturating_add(1);
            if self.failing_streak >= retries {
                self.status = HealthStatus::Unhealthy;
            }
        }
        self.log.push(result);
        let old = self.log.len().saturating_sub(KEPT);
        self.log.drain(..old);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn after(results: &[(i32, bool)]) -> Health {
        let mut health = Health::default();
        for (number, (exit_code, excused)) in results.iter().enumerate() {
            let result = HealthResult { start: number as u64, end: 0, exit_code: *exit_code, output: String::new() };
            health.add(result, 3, *excused);
        }
        health
    }

    #[test]
    fn failures_in_a_row_make_it_unhealthy_and_one_success_healthy() {
        use HealthStatus::{Healthy, Starting, Unhealthy};
        for (results, status, streak) in [
            (&[][..], Starting, 0),
            (&[(1, false), (2, false)], Starting, 2),
            (&[(1, false), (2, false), (-1, false)], Unhealthy, 3),
            (&[(1, false), (1, false), (0, false), (1, false), (1, false)], Healthy, 2),
            (&[(1, false), (1, false), (1, false), (0, false)], Healthy, 0),
            // In the start period.
            (&[(1, true), (1, true), (1, true), (1, true)], Starting, 0),
            (&[(1, true), (0, true)], Healthy, 0),
            // Once healthy, a failure counts in the start period as well.
            (&[(0, true), (1, true), (1, true), (1, true)], Unhealthy, 3),
            (&[(1, true), (1, false), (1, false), (1, false)], Unhealthy, 3),
        ] {
            let health = after(results);
            assert_eq!((health.status, health.failing_streak), (status, streak), "{results:?}");
        }
    }

    #[test]
    fn the_log_keeps_the_last_results() {
        let starts: Vec<u64> = after(&[(1, false); 8]).log.iter().map(|result| result.start).collect();
        assert_eq!(starts, [3, 4, 5, 6, 7]);
    }
}
