//! The number of parts that one command may fetch at a time.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

/// Maximum number of parts of all layers of a command, in addition to one for each layer.
pub(super) const SLOTS: usize = 7;

/// The slots of one command.
#[derive(Debug)]
pub(crate) struct Slots {
    pub(super) free: AtomicUsize,
    /// The registry limits the number of requests.
    pub(super) limited: AtomicBool,
}

impl Default for Slots {
    fn default() -> Self {
        Self { free: AtomicUsize::new(SLOTS), limited: AtomicBool::new(false) }
    }
}

/// A slot, which is returned when this is dropped.
#[derive(Debug)]
pub(super) struct Slot(pub(super) Arc<Slots>);

impl Slots {
    pub(super) fn take(self: &Arc<Self>) -> Option<Slot> {
        if self.are_limited() {
            return None;
        }
        let taken = self.free.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |free| free.checked_sub(1));
        taken.ok().map(|_| Slot(self.clone()))
    }

    pub(crate) fn are_limited(&self) -> bool {
        self.limited.load(Ordering::Relaxed)
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        self.0.free.fetch_add(1, Ordering::Relaxed);
    }
}
