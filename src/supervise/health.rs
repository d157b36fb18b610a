//! Runs the container's health check at its times, by docker's rules.
//!
//! One check runs at a time, in a helper (`launch::health`). A timer begins a check or ends one that takes too long.
//! While the container is frozen, no check begins and no time passes. A container without a health check has no timer
//! and no descriptor.

use std::time::{Duration, Instant};

use super::Supervisor;
use super::checks::{Checks, Running};
use super::timers::Timer;
use crate::clock::now;
use crate::control::FromSupervisor;
use crate::launch::{Answer, Container};
use crate::record::{Health, HealthResult, HealthStatus};
use crate::report::Report;
use crate::request::HealthAction;
use crate::units::format_duration;

/// How long a helper may take to answer after its check has been killed.
const GRACE: Duration = Duration::from_secs(15);

impl Supervisor {
    /// Schedules the first check of a container that has just started.
    pub(super) fn begin_health(&mut self, container: &Container) {
        let check = container.health_check().cloned();
        self.state.health = check.as_ref().map(|_| Health::default());
        self.checks = check.map(|check| Checks { check, began: Instant::now(), running: None, held: None });
        self.schedule_check();
    }

    /// Answers the commands that wait for a check after which something was done with the container.
    pub(super) fn tell_late_check(&mut self) {
        if let Some(exit_code) = self.late_check.take() {
            self.clients.tell_check(&FromSupervisor::Checked { exit_code });
        }
    }

    /// Ends the checks of a container that has ended. As in docker, it is unhealthy from then on.
    pub(super) fn end_health(&mut self) {
        self.checks = None;
        self.timers.set(Timer::Health, None);
        if self.late_check.is_none() {
            let name = &self.entry.record.name;
            let ended = Report::new(format!("container `{name}` ended before its health check"));
            self.clients.tell_check(&FromSupervisor::Done(Err(ended)));
        }
        if let Some(health) = &mut self.state.health {
            health.status = HealthStatus::Unhealthy;
        }
    }

    /// Begins a check as soon as possible, for a command that asks for it.
    pub(super) fn ask_health(&mut self, runs: bool) -> Result<(), Report> {
        let name = &self.entry.record.name;
        let Some(checks) = self.checks.as_ref().filter(|_| runs) else {
            return Err(match runs {
                true => Report::new(format!("container `{name}` has no health check"))
                    .with_hint("define one with `--health-cmd` when you create the container"),
                false => Report::new(format!("container `{name}` is not running")),
            });
        };
        if checks.held.is_some() {
            return Err(Report::new(format!("container `{name}` is paused"))
                .with_hint(format!("resume it with `gpurun resume {name}`")));
        }
        // The result of a check that runs already is as good.
        if checks.running.is_none() {
            self.timers.set(Timer::Health, Some(Instant::now()));
        }
        Ok(())
    }

    /// Does what `--health-on-failure` says after a container has become unhealthy.
    pub(super) fn act_on_health(&mut self, container: &mut Container) {
        if !std::mem::take(&mut self.unhealthy) {
            return;
        }
        match self.entry.record.request.health_on_failure {
            HealthAction::None => {}
            HealthAction::Kill => container.kill(),
            HealthAction::Stop => self.stop(container, None),
            HealthAction::Restart => {
                self.again = true;
                self.end_gracefully(container, None);
            }
        }
    }

    fn schedule_check(&mut self) {
        let Some(checks) = &self.checks else { return };
        let status = self.state.health.as_ref().map_or(HealthStatus::Starting, |health| health.status);
        // A time that the clock cannot represent never comes.
        self.timers.set(Timer::Health, Instant::now().checked_add(checks.pause(status)));
    }

    /// Begins a check, or ends one that takes too long.
    pub(super) fn serve_health_timer(&mut self, container: &Container) {
        let Some(checks) = &mut self.checks else { return };
        match &mut checks.running {
            None => self.begin_check(container),
            Some(running) if !running.timed_out => {
                running.timed_out = true;
                container.kill_check();
                self.timers.set(Timer::Health, Some(Instant::now() + GRACE));
            }
            Some(running) => running.helper.kill(),
        }
    }

    fn begin_check(&mut self, container: &Container) {
        let Some(checks) = &mut self.checks else { return };
        let (start, is_excused) = (now(), checks.is_early());
        match container.begin_check() {
            Ok(helper) => {
                self.timers.set(Timer::Health, Instant::now().checked_add(checks.check.timeout));
                checks.running = Some(Running { helper, start, is_excused, timed_out: false });
            }
            Err(report) => self.take_result(start, is_excused, Answer { exit_code: -1, output: report.message }),
        }
    }

    /// Takes the result of a check that has ended.
    pub(super) fn hear_health(&mut self, container: &Container) {
        let Some(checks) = &mut self.checks else { return };
        let Some(mut running) = checks.running.take() else { return };
        let limit = format_duration(u64::try_from(checks.check.timeout.as_nanos()).unwrap_or(u64::MAX));
        let answer = running.helper.answer();
        if answer.is_none() {
            // The helper was killed, and its check may still run.
            container.kill_check();
        }
        let answer = match (running.timed_out, answer) {
            (true, answer) => {
                let output = answer.map(|answer| answer.output).filter(|output| !output.is_empty());
                let output = output.map(|output| format!(": {output}")).unwrap_or_default();
                Answer { exit_code: -1, output: format!("Health check exceeded timeout ({limit}){output}") }
            }
            (false, Some(answer)) => answer,
            (false, None) => {
                Answer { exit_code: -1, output: "the process that runs the health check was killed".to_owned() }
            }
        };
        self.take_result(running.start, running.is_excused, answer);
    }

    fn take_result(&mut self, start: u64, is_excused: bool, answer: Answer) {
        let retries = self.checks.as_ref().map_or(1, |checks| checks.check.retries);
        let exit_code = answer.exit_code;
        let result = HealthResult { start, end: now(), exit_code, output: answer.output };
        let health = self.state.health.get_or_insert_default();
        health.add(result, retries, is_excused);
        self.unhealthy = exit_code != 0 && health.status == HealthStatus::Unhealthy;
        self.save();
        // As in podman, the answer comes when the action is done.
        match self.unhealthy && !self.entry.record.request.health_on_failure.is_none() {
            true => self.late_check = Some(exit_code),
            false => self.clients.tell_check(&FromSupervisor::Checked { exit_code }),
        }
        self.schedule_check();
    }

    /// Stops the clock of the checks while the container is frozen.
    pub(super) fn hold_health(&mut self, frozen: bool) {
        let Some(checks) = &mut self.checks else { return };
        match (frozen, checks.held) {
            (true, None) => {
                checks.held = Some((Instant::now(), self.timers.get(Timer::Health)));
                self.timers.set(Timer::Health, None);
            }
            (false, Some((since, due))) => {
                checks.held = None;
                let length = since.elapsed();
                checks.began += length;
                self.timers.set(Timer::Health, due.and_then(|due| due.checked_add(length)));
            }
            _ => {}
        }
    }
}
