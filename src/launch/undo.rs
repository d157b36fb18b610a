//! The undo stack: actions that run in reverse order, and all of them run even if one fails.

use crate::report::Report;

type Step = Box<dyn FnOnce() -> Result<(), Report>>;

/// The action that ends all processes of a container.
pub(super) const KILL: &str = "end what runs in the container's cgroup";

#[derive(Default)]
pub(super) struct Undo(Vec<(&'static str, Step)>);

impl Undo {
    /// Registers the undo action of the step that has just run.
    pub(super) fn push(&mut self, what: &'static str, step: impl FnOnce() -> Result<(), Report> + 'static) {
        self.0.push((what, Box::new(step)));
    }

    /// Drops an action whose work is done.
    pub(super) fn forget(&mut self, what: &str) {
        self.0.retain(|(other, _)| *other != what);
    }

    /// Runs all undo actions. Returns the failures, which are left to reconcile.
    #[must_use]
    pub(super) fn run(&mut self) -> Vec<String> {
        let mut failures = Vec::new();
        while let Some((what, step)) = self.0.pop() {
            if let Err(report) = step() {
                let causes: String = report.causes.iter().map(|cause| format!(": {cause}")).collect();
                failures.push(format!("cannot {what}: {}{causes}", report.message));
            }
        }
        failures
    }
}

impl std::fmt::Debug for Undo {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_list().entries(self.0.iter().map(|(what, _)| what)).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::RefCell;
    use std::rc::Rc;

    #[test]
    fn steps_are_taken_back_in_reverse_and_a_failure_stops_none() {
        let done = Rc::new(RefCell::new(Vec::new()));
        let mut undo = Undo::default();
        for (name, works) in [("a", true), ("b", false), ("c", true)] {
            let done = Rc::clone(&done);
            undo.push(name, move || {
                done.borrow_mut().push(name);
                if works { Ok(()) } else { Err(Report::new("no").with_cause("because")) }
            });
        }
        assert_eq!(undo.run(), ["cannot b: no: because"]);
        assert_eq!(*done.borrow(), ["c", "b", "a"]);
        assert!(undo.run().is_empty(), "nothing is taken back twice");
    }
}
