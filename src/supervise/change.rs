//! Changes to a living container: its limits, and whether it runs or stands still.

use super::Supervisor;
use crate::cgroup::Freeze;
use crate::launch::{self, Container};
use crate::record::LimitRow;
use crate::report::Report;
use crate::request::RestartPolicy;
use crate::spec::AskedLimits;

impl Supervisor {
    /// Freezes or thaws the container; the answer is the limits as they stand.
    pub(super) fn pause(&mut self, paused: bool, container: Option<&mut Container>) -> Result<Vec<LimitRow>, Report> {
        let name = &self.entry.record.name;
        let container = container.ok_or_else(|| Report::new(format!("container `{name}` is not running")))?;
        if self.state.paused == paused {
            let how = if paused { "paused already" } else { "not paused" };
            return Err(Report::new(format!("container `{name}` is {how}")));
        }
        container.freeze(if paused { Freeze::Frozen } else { Freeze::Thawed })?;
        self.state.paused = paused;
        self.save();
        Ok(self.state.limits.clone())
    }

    /// Thaws what a person paused, so that it can end.
    pub(super) fn thaw(&mut self, container: &Container) {
        if self.state.paused {
            match container.freeze(Freeze::Thawed) {
                Ok(()) => self.state.paused = false,
                Err(report) => tracing::error!("{report}"),
            }
        }
    }

    /// Changes limits in the kernel, then in the record, so that a restart has them too. What fails changes nothing.
    pub(super) fn update(
        &mut self,
        asked: &AskedLimits,
        restart: Option<RestartPolicy>,
        container: Option<&mut Container>,
    ) -> Result<Vec<LimitRow>, Report> {
        let request = &self.entry.record.request;
        let before = request.limits.clone();
        let merged = before.updated_by(asked);
        let restart = restart.unwrap_or(request.restart);
        let mut container = container;
        let rows = match &mut container {
            Some(container) => Some(container.update(&before, &merged)?),
            None => launch::check_limits(&merged).map(|()| None)?,
        };
        // On the disk last: a record may be behind the kernel for a moment, never ahead of it.
        if let Err(error) = self.entry.change(merged.clone(), restart) {
            let mut report = Report::from(error);
            // A limit that the next start would not know shall not hold now.
            if let Some(Err(back)) = container.map(|container| container.update(&merged, &before)) {
                report.afterwards.push(back.message);
            }
            return Err(report);
        }
        if let Some(rows) = rows {
            self.state.limits = rows;
            self.save();
        }
        Ok(self.state.limits.clone())
    }
}
