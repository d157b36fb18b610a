//! What the supervisor knows of a running container for the limits of its time and GPU memory (see `time_limits`).

use std::os::fd::BorrowedFd;
use std::time::Instant;

use super::probe::Probe;
use crate::launch::Activity;

/// The state of the watch on one run of the container.
#[derive(Debug)]
pub(super) struct Watch {
    pub(super) began: Instant,
    /// When the container last did something.
    pub(super) active: Instant,
    pub(super) sample: Option<Activity>,
    /// When to sample again.
    pub(super) look: Option<Instant>,
    /// When to ask for the GPU memory again.
    pub(super) ask: Option<Instant>,
    pub(super) probe: Option<Probe>,
    pub(super) warned_of_end: bool,
    pub(super) warned_of_idleness: bool,
    pub(super) warned_of_memory: bool,
    pub(super) told_unknown: bool,
}

impl Watch {
    pub(super) fn begin() -> Self {
        let now = Instant::now();
        Self {
            began: now,
            active: now,
            sample: None,
            look: None,
            ask: None,
            probe: None,
            warned_of_end: false,
            warned_of_idleness: false,
            warned_of_memory: false,
            told_unknown: false,
        }
    }

    /// The descriptor of the process that asks, if there is one.
    pub(super) fn fd(&self) -> Option<BorrowedFd<'_>> {
        self.probe.as_ref().and_then(Probe::fd)
    }

    /// After a change of the limits, they are due at other times.
    pub(super) fn reset(&mut self) {
        (self.look, self.ask) = (None, None);
        (self.warned_of_end, self.warned_of_idleness) = (false, false);
    }
}
