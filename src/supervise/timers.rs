//! What the supervisor does at a certain time. A timer that is not set costs no wake-up.

use std::time::Instant;

/// The timers, in the order in which they are served when several are due.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Timer {
    /// Send SIGKILL: the stop timeout is over.
    Kill,
    /// Count the OOM kills again.
    Oom,
    /// Release the memory that the launch used.
    Slim,
    /// Begin or end a health check.
    Health,
    /// Check the limits of time and GPU memory.
    Watch,
}

/// How many timers there are.
const COUNT: usize = Timer::Watch as usize + 1;

const ALL: [Timer; COUNT] = [Timer::Kill, Timer::Oom, Timer::Slim, Timer::Health, Timer::Watch];

#[derive(Debug, Default)]
pub(super) struct Timers([Option<Instant>; COUNT]);

impl Timers {
    /// Sets or clears a timer.
    pub(super) fn set(&mut self, timer: Timer, at: Option<Instant>) {
        self.0[timer as usize] = at;
    }

    #[must_use]
    pub(super) fn get(&self, timer: Timer) -> Option<Instant> {
        self.0[timer as usize]
    }

    /// The time of the next timer.
    #[must_use]
    pub(super) fn next(&self) -> Option<Instant> {
        self.0.iter().flatten().min().copied()
    }

    /// Clears and returns a timer that is due.
    pub(super) fn take_due(&mut self, now: Instant) -> Option<Timer> {
        let due = ALL.into_iter().find(|timer| self.get(*timer).is_some_and(|at| at <= now))?;
        self.set(due, None);
        Some(due)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn timers_are_served_once_and_in_order() {
        let now = Instant::now();
        let mut timers = Timers::default();
        assert_eq!((timers.next(), timers.take_due(now)), (None, None));
        timers.set(Timer::Health, Some(now));
        timers.set(Timer::Kill, Some(now));
        timers.set(Timer::Slim, Some(now + Duration::from_secs(1)));
        assert_eq!(timers.next(), Some(now));
        assert_eq!([timers.take_due(now), timers.take_due(now)], [Some(Timer::Kill), Some(Timer::Health)]);
        assert_eq!((timers.take_due(now), timers.next()), (None, Some(now + Duration::from_secs(1))));
        timers.set(Timer::Slim, None);
        assert_eq!(timers.next(), None);
    }
}
