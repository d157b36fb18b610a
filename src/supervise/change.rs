//! Changes to a running container: its limits, and freezing or thawing it.

use std::path::Path;

use super::Supervisor;
use crate::cgroup::{self, Freeze, Place};
use crate::cluster;
use crate::launch::{self, Container};
use crate::record::LimitRow;
use crate::report::Report;
use crate::request::{Attachment, LimitsRequest, RestartPolicy, TimeLimits};

impl Supervisor {
    /// Implements `pause` and `resume`: freezes or thaws the container until the next request. Returns the current
    /// limits.
    pub(super) fn pause(&mut self, paused: bool, container: Option<&mut Container>) -> Result<Vec<LimitRow>, Report> {
        let container = container.ok_or_else(|| self.not_running())?;
        if !paused && !self.paused && self.clients.hold() {
            // A command that holds the container frozen may be stopped itself, so the user's request wins.
            self.thaw(container);
            return Ok(self.state.limits.clone());
        }
        if self.paused == paused {
            let (name, how) = (&self.entry.record.name, if paused { "paused already" } else { "not paused" });
            return Err(Report::new(format!("container `{name}` is {how}")));
        }
        self.paused = paused;
        self.freeze_as_wanted(container).inspect_err(|_| self.paused = !paused)?;
        Ok(self.state.limits.clone())
    }

    /// Freezes the container until the client releases it or disconnects. Commands that must not outlive their freeze
    /// use this.
    pub(super) fn hold(
        &mut self,
        client: usize,
        hold: bool,
        container: Option<&mut Container>,
    ) -> Result<Vec<LimitRow>, Report> {
        let container = container.ok_or_else(|| self.not_running())?;
        self.clients.set_hold(client, hold);
        self.freeze_as_wanted(container).inspect_err(|_| self.clients.set_hold(client, false))?;
        Ok(self.state.limits.clone())
    }

    fn not_running(&self) -> Report {
        Report::new(format!("container `{}` is not running", self.entry.record.name))
    }

    /// Thaws the container when the last client that held it frozen is gone.
    pub(super) fn settle_freeze(&mut self, container: &Container) {
        if let Err(report) = self.freeze_as_wanted(container) {
            tracing::error!("{report}");
        }
    }

    /// Freezes the container if a user has paused it or a connected client holds it; otherwise thaws it.
    fn freeze_as_wanted(&mut self, container: &Container) -> Result<(), Report> {
        let frozen = self.paused || self.clients.hold();
        if self.state.paused == frozen {
            return Ok(());
        }
        container.freeze(if frozen { Freeze::Frozen } else { Freeze::Thawed })?;
        self.state.paused = frozen;
        self.hold_health(frozen);
        self.save();
        Ok(())
    }

    /// Thaws a paused or held container, so that it can end.
    pub(super) fn thaw(&mut self, container: &Container) {
        self.paused = false;
        self.clients.end_holds();
        self.settle_freeze(container);
    }

    /// Connects the container to one more network, now and at later starts.
    pub(super) fn connect(
        &mut self,
        attachment: Attachment,
        container: Option<&mut Container>,
    ) -> Result<Vec<LimitRow>, Report> {
        let container = container.ok_or_else(|| self.not_running())?;
        let notes = container.connect(&self.root, &self.records, &self.entry, &attachment)?;
        notes.iter().for_each(|note| tracing::warn!("{note}"));
        let mut networks = self.entry.record.request.attachments();
        networks.push(attachment);
        self.record_networks(networks, container)
    }

    /// Disconnects the container from a network, now and at later starts.
    pub(super) fn disconnect(
        &mut self,
        network: &str,
        container: Option<&mut Container>,
    ) -> Result<Vec<LimitRow>, Report> {
        let container = container.ok_or_else(|| self.not_running())?;
        container.disconnect(&self.records, &self.entry, network)?;
        let mut networks = self.entry.record.request.attachments();
        networks.retain(|known| known.network != network);
        self.record_networks(networks, container)
    }

    fn record_networks(&mut self, networks: Vec<Attachment>, container: &Container) -> Result<Vec<LimitRow>, Report> {
        container.describe(&mut self.state);
        self.save();
        self.entry.change_networks(networks)?;
        Ok(self.state.limits.clone())
    }

    /// Changes limits in the kernel and then in the record, so that a restart has them too. A failure changes nothing.
    pub(super) fn update(
        &mut self,
        asked: &LimitsRequest,
        restart: Option<RestartPolicy>,
        times: Option<TimeLimits>,
        container: Option<&mut Container>,
    ) -> Result<Vec<LimitRow>, Report> {
        let request = &self.entry.record.request;
        let before = request.limits.clone();
        let merged = before.updated_by(asked);
        let restart = restart.unwrap_or(request.restart);
        let times = times.map_or(request.time_limits, |asked| request.time_limits.updated_by(&asked));
        check_step(&self.entry.record.cgroup, &merged)?;
        let mut container = container;
        let rows = match &mut container {
            Some(container) => Some(container.update(&before, &merged)?),
            None => launch::check_limits(&merged).map(|()| None)?,
        };
        // Write the record last: it may be briefly behind the kernel, but never ahead of it.
        if let Err(error) = self.entry.change(merged.clone(), restart, times) {
            let mut report = Report::from(error);
            // The record lacks the new limits, so the next start would not apply them. Undo them in the kernel as well.
            if let Some(Err(back)) = container.map(|container| container.update(&merged, &before)) {
                report.afterwards.push(back.message);
            }
            return Err(report);
        }
        self.watch.reset();
        if let Some(rows) = rows {
            self.state.limits = rows;
            self.save();
        }
        Ok(self.state.limits.clone())
    }
}

/// Refuses a limit that is looser than that of the Slurm step that a container is in.
fn check_step(place: &Place, limits: &LimitsRequest) -> Result<(), Report> {
    if place.step.is_none() {
        return Ok(());
    }
    let host = cgroup::Host::probe(Path::new("/"))?;
    Ok(cluster::check_limits(place, &host, &limits.resolve(&host.facts()?)?)?)
}
