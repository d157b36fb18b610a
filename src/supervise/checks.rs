//! The health check of the current run, and the check that runs now.

use std::os::fd::BorrowedFd;
use std::time::{Duration, Instant};

use crate::launch::RunningCheck;
use crate::record::HealthStatus;
use crate::request::HealthCheck;

/// The health check of the current run of the container.
#[derive(Debug)]
pub(crate) struct Checks {
    pub(super) check: HealthCheck,
    /// When the container started. The times here move by the length of each freeze.
    pub(super) began: Instant,
    pub(super) running: Option<Running>,
    /// Since when the container is frozen, and when the timer would have been due.
    pub(super) held: Option<(Instant, Option<Instant>)>,
}

#[derive(Debug)]
pub(super) struct Running {
    pub(super) helper: RunningCheck,
    /// Nanoseconds since 1970.
    pub(super) start: u64,
    pub(super) is_excused: bool,
    pub(super) timed_out: bool,
}

impl Checks {
    /// The descriptor that becomes readable when the current check has ended.
    pub(crate) fn fd(&self) -> Option<BorrowedFd<'_>> {
        self.running.as_ref().map(|running| running.helper.fd())
    }

    /// Whether the container is in its start period.
    pub(super) fn is_early(&self) -> bool {
        self.began.elapsed() < self.check.start_period
    }

    /// The time until the next check.
    pub(super) fn pause(&self, status: HealthStatus) -> Duration {
        let is_starting = status == HealthStatus::Starting && self.is_early();
        if is_starting { self.check.start_interval } else { self.check.interval }
    }
}
