//! A connection that is too slow counts as broken.

use std::io;
use std::time::Duration;

/// Minimum rate of a connection in bytes per second: a tenth of an old modem's.
pub(super) const FLOOR: u64 = 512;

/// Maximum number of consecutive windows below the minimum rate.
pub(super) const SLOW_WINDOWS: u32 = 3;

/// Checks a connection against [`FLOOR`]. Only counts the time spent waiting for the connection, because a slow disk is
/// not its fault.
pub(crate) struct Pace {
    pub(super) window: Duration,
    pub(super) spent: Duration,
    pub(super) bytes: u64,
    /// Number of consecutive windows below the minimum rate.
    pub(super) slow: u32,
}

impl Pace {
    pub(crate) fn new(window: Duration) -> Self {
        Self { window, spent: Duration::ZERO, bytes: 0, slow: 0 }
    }

    /// Records the result of a read. Returns whether a window has ended with too few bytes.
    pub(crate) fn is_slow(&mut self, spent: Duration, bytes: u64) -> bool {
        self.spent += spent;
        self.bytes += bytes;
        if self.spent < self.window {
            return false;
        }
        let is_slow = self.bytes < FLOOR * self.window.as_secs();
        self.slow = if is_slow { self.slow + 1 } else { 0 };
        (self.spent, self.bytes) = (Duration::ZERO, 0);
        is_slow
    }

    /// Returns the error, if too many windows were too slow.
    pub(crate) fn trouble(&self) -> Option<io::Error> {
        let seconds = self.window.as_secs() * u64::from(SLOW_WINDOWS);
        let why = || format!("it has sent less than {FLOOR} bytes per second for {seconds} seconds");
        (self.slow >= SLOW_WINDOWS).then(|| io::Error::new(io::ErrorKind::TimedOut, why()))
    }
}
