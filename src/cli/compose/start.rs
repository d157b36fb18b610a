//! Starting the containers of a project.
//!
//! Each service has a thread. It waits for the services that its own depends on, so that all services start as early as
//! their conditions allow, and then starts the service's containers in parallel. A condition is read from the records.

use std::collections::BTreeMap;
use std::sync::{Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

use super::super::{Context, print};
use super::args::CheckRun;
use super::containers::{self, Container, contents_directory};
use super::{act, build, group, networks};
use crate::compose::{Condition, Connection, Plan, Plans, Project, PullPolicy, labels};
use crate::record::{HealthStatus, Phase, State};
use crate::report::Report;
use crate::request::IpcMode;

/// Which containers are replaced.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Recreate {
    Changed,
    All,
    None,
}

/// Which containers of which services are replaced.
pub(super) struct Choice {
    /// The services that the caller named. None stands for all.
    pub(super) named: Vec<String>,
    pub(super) named_ones: Recreate,
    /// For the services that the named ones depend on.
    pub(super) others: Recreate,
}

impl Choice {
    /// Whatever has changed.
    pub(super) const CHANGED: Self =
        Self { named: Vec::new(), named_ones: Recreate::Changed, others: Recreate::Changed };

    fn of(&self, service: &str) -> Recreate {
        let is_named = self.named.is_empty() || self.named.iter().any(|name| name == service);
        if is_named { self.named_ones } else { self.others }
    }
}

/// Starts the services of a project.
pub(super) struct Starter<'a> {
    pub(super) context: &'a Context,
    pub(super) project: &'a Project,
    pub(super) plans: &'a Plans,
    pub(super) timeout: Option<u64>,
    /// Whether containers are started, and not only created.
    pub(super) starts: bool,
}

/// What must happen with one container.
struct Task<'a> {
    plan: &'a Plan,
    number: u32,
    old: Option<&'a Container>,
    /// A service that this one depends on with `restart: true` has new containers.
    restart: bool,
}

/// What has become of a service.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Outcome {
    /// Its containers ran already.
    Unchanged,
    Started,
    Failed,
}

/// The services that are done. Threads wait for each other here.
#[derive(Default)]
pub(super) struct Progress {
    done: Mutex<(BTreeMap<String, Outcome>, bool)>,
    changed: Condvar,
}

/// The interval at which a condition is read.
const LOOK: Duration = Duration::from_millis(50);

impl Progress {
    fn finish(&self, service: &str, outcome: Outcome) {
        let mut done = self.done.lock().unwrap_or_else(PoisonError::into_inner);
        done.0.insert(service.to_owned(), outcome);
        self.changed.notify_all();
    }

    /// Ends all waits: the caller has interrupted the start.
    pub(super) fn cancel(&self) {
        self.done.lock().unwrap_or_else(PoisonError::into_inner).1 = true;
        self.changed.notify_all();
    }

    /// Waits for a service. `None` means that the start was interrupted.
    fn wait(&self, service: &str) -> Option<Outcome> {
        let mut done = self.done.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            if done.1 {
                return None;
            }
            if let Some(outcome) = done.0.get(service) {
                return Some(*outcome);
            }
            done = self.changed.wait(done).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Waits a moment. Returns whether the start goes on.
    fn pause(&self) -> bool {
        let done = self.done.lock().unwrap_or_else(PoisonError::into_inner);
        let (done, _) = self.changed.wait_timeout(done, LOOK).unwrap_or_else(PoisonError::into_inner);
        !done.1
    }
}

/// Reports a service as done, also when its thread panics: others wait for it.
struct Pending<'a> {
    progress: &'a Progress,
    service: &'a str,
    outcome: Outcome,
}

impl Drop for Pending<'_> {
    fn drop(&mut self) {
        self.progress.finish(self.service, self.outcome);
    }
}

/// Joins threads and collects what they return.
fn joined<T>(threads: Vec<std::thread::ScopedJoinHandle<'_, Result<T, Report>>>) -> Vec<Result<T, Report>> {
    let failed = |_| Err(Report::new("a thread that starts a container has failed"));
    threads.into_iter().map(|thread| thread.join().unwrap_or_else(failed)).collect()
}

/// Returns the values, or the first error. The other errors are printed.
fn first_error<T>(results: Vec<Result<T, Report>>) -> Result<Vec<T>, Report> {
    let (mut values, mut first) = (Vec::new(), None);
    for result in results {
        match result {
            Ok(value) => values.push(value),
            Err(report) if first.is_none() => first = Some(report),
            Err(report) => print::say(&report.to_string()),
        }
    }
    first.map_or(Ok(values), Err)
}

impl Starter<'_> {
    /// Makes sure that all images are in the store. With `all`, all that have a build are built.
    pub(super) fn images(&self, all: bool, no_build: bool, pull: Option<&str>, quiet: bool) -> Result<(), Report> {
        let mut builder = build::Builder::new(self.context, self.project, self.plans, &[]);
        for plan in self.plans.services.values() {
            let exists = self.context.store()?.resolve(&plan.image).is_ok();
            let pull = match pull {
                Some("always") => PullPolicy::Always,
                Some("never") => PullPolicy::Never,
                _ => plan.pull,
            };
            if plan.build.is_some() && !no_build && (all || !exists || plan.pull == PullPolicy::Build) {
                builder.build(&plan.service, all)?;
            } else if plan.build.is_none() && (pull == PullPolicy::Always || (!exists && pull != PullPolicy::Never)) {
                build::pull(self.context, plan, quiet)?;
            } else if !exists && !self.context.dry_run {
                let image = &plan.image;
                return Err(Report::new(format!(
                    "the image `{image}` of service `{}` is not in the store",
                    plan.service
                ))
                .with_hint(format!(
                    "get it with `gpurun compose pull {0}` or `gpurun compose build {0}`",
                    plan.service
                )));
            }
        }
        Ok(())
    }

    /// Checks the settings of all services as the command line does, before anything is started.
    pub(super) fn check(&self, check: CheckRun) -> Result<(), Report> {
        for plan in self.plans.services.values() {
            self.project.check_files(&plan.service)?;
            // What `prepare` will create cannot be mounted yet.
            let missing: Vec<String> =
                plan.create.iter().map(|path| path.to_string_lossy().replace('"', "\"\"")).collect();
            let is_missing = |flag: &String| missing.iter().any(|path| flag.contains(&format!("source={path}")));
            let name = format!("--name={}", plan.container(&self.project.name, 1));
            let flags = plan.flags.iter().filter(|flag| !is_missing(flag));
            let connections: Vec<String> = plan.connections.iter().map(Connection::flag).collect();
            let all = std::iter::once(&name).chain(&plan.ports).chain(flags).chain(&connections);
            let arguments = |flags: Vec<&String>| {
                let flags = flags.into_iter().cloned();
                ["run".to_owned()].into_iter().chain(flags).chain([plan.image.clone()]).collect::<Vec<_>>()
            };
            let Err(report) = check(&arguments(all.clone().collect())) else { continue };
            for flag in all {
                if let Err(report) = check(&arguments(vec![flag])) {
                    return Err(self.project.refuse(&plan.service, Some(flag), &report).into());
                }
            }
            // Each value alone is accepted, and not all of them together.
            return Err(self.project.refuse(&plan.service, None, &report).into());
        }
        Ok(())
    }

    /// Removes the containers of services that the files do not define, or names them.
    pub(super) fn orphans(&self, remove: bool) -> Result<(), Report> {
        let known = self.project.all_service_names();
        let mut all = containers::of(self.context, &self.project.name)?;
        all.retain(|container| !known.contains(&container.service));
        if all.is_empty() {
            return Ok(());
        }
        if remove {
            return group::remove(self.context, all, self.timeout, false);
        }
        let names: Vec<&str> = all.iter().map(Container::name).collect();
        print::say(&format!(
            "gpurun: the project has containers of services that its files do not define: {}; `--remove-orphans` removes them",
            names.join(", ")
        ));
        Ok(())
    }

    /// Starts all services.
    pub(super) fn start(&self, choice: &Choice, progress: &Progress) -> Result<(), Report> {
        for plan in self.plans.services.values() {
            self.prepare(plan)?;
        }
        networks::create(self.context, &self.project.name, self.plans, self.timeout)?;
        let existing = containers::of(self.context, &self.project.name)?;
        let results = std::thread::scope(|scope| {
            let threads = self.plans.services.values().map(|plan| {
                let existing = &existing;
                scope.spawn(move || {
                    let mut pending = Pending { progress, service: &plan.service, outcome: Outcome::Failed };
                    pending.outcome = self.service(plan, existing, choice.of(&plan.service), progress)?;
                    Ok(())
                })
            });
            joined(threads.collect())
        });
        first_error(results).map(drop)
    }

    /// Starts the containers of one service when its dependencies are ready. A failure of a dependency is reported by
    /// the dependency's own thread.
    fn service(
        &self,
        plan: &Plan,
        existing: &[Container],
        recreate: Recreate,
        progress: &Progress,
    ) -> Result<Outcome, Report> {
        let mut restart = false;
        for (name, dependency) in &plan.depends_on {
            if !self.plans.services.contains_key(name) {
                continue;
            }
            let Some(outcome) = progress.wait(name) else { return Ok(Outcome::Failed) };
            let ready = match outcome {
                Outcome::Failed if dependency.required => return Ok(Outcome::Failed),
                Outcome::Failed => Ok(false),
                _ if self.context.dry_run || !self.starts => Ok(true),
                _ => self.ready(plan, name, dependency.condition, progress),
            };
            match ready {
                Ok(true) => {}
                Ok(false) if dependency.required => return Ok(Outcome::Failed),
                Ok(false) => print::say(&format!(
                    "gpurun: service `{}` starts without `{name}`, which is not required",
                    plan.service
                )),
                Err(report) if dependency.required => return Err(report),
                Err(report) => print::say(&format!("gpurun: {}; it is not required", report.message)),
            }
            restart |= dependency.restart && outcome == Outcome::Started;
        }
        self.shrink(plan, existing)?;
        let tasks: Vec<Task<'_>> = (1..=plan.scale)
            .map(|number| {
                let old = existing.iter().find(|old| old.service == plan.service && old.number == number);
                Task { plan, number, old, restart }
            })
            .collect();
        let outcomes = match &tasks[..] {
            [task] => vec![self.one(task, recreate)],
            tasks => std::thread::scope(|scope| {
                joined(tasks.iter().map(|task| scope.spawn(move || self.one(task, recreate))).collect())
            }),
        };
        let started = first_error(outcomes)?.contains(&Outcome::Started);
        Ok(if started { Outcome::Started } else { Outcome::Unchanged })
    }

    /// Creates the directories that docker would create, and checks the volumes that must exist.
    fn prepare(&self, plan: &Plan) -> Result<(), Report> {
        for path in &plan.create {
            if path.exists() {
                continue;
            }
            if !self.context.dry_run {
                std::fs::create_dir_all(path).map_err(|error| {
                    Report::new(format!("cannot create `{}` for service `{}`", path.display(), plan.service))
                        .with_cause(error)
                })?;
            }
            act::announce(self.context, &format!("gpurun: created the directory `{}`", path.display()));
        }
        for name in &plan.external_volumes {
            if crate::volume::Volumes::new(&self.context.root).get(name).is_err() {
                return Err(Report::new(format!(
                    "the external volume `{name}` of service `{}` does not exist",
                    plan.service
                ))
                .with_hint(format!("create it with `gpurun volume create {name}`")));
            }
        }
        Ok(())
    }

    /// Waits until the containers of a service meet a condition. `false` means that the start was interrupted.
    fn ready(&self, plan: &Plan, service: &str, condition: Condition, progress: &Progress) -> Result<bool, Report> {
        if condition == Condition::Started {
            return Ok(true);
        }
        let records = self.context.records()?;
        let all = containers::of(self.context, &self.project.name)?;
        for container in all.iter().filter(|container| container.service == service) {
            loop {
                let state = records.again(&container.entry)?.state_shown()?;
                match met(condition, &state) {
                    Some(Ok(())) => break,
                    Some(Err(why)) => {
                        return Err(Report::new(format!(
                            "cannot start service `{}`: service `{service}` {why}",
                            plan.service
                        ))
                        .with_hint(format!("see its output with `gpurun logs {}`", container.name())));
                    }
                    None if progress.pause() => {}
                    None => return Ok(false),
                }
            }
        }
        Ok(true)
    }

    /// Removes the containers beyond the number that a service has.
    fn shrink(&self, plan: &Plan, existing: &[Container]) -> Result<(), Report> {
        let extra = existing.iter().filter(|old| old.service == plan.service && old.number > plan.scale);
        extra.map(|old| old.name().to_owned()).try_for_each(|name| {
            group::stop_one(self.context, &name, self.timeout)?;
            group::rm_one(self.context, &name)
        })
    }

    fn one(&self, task: &Task<'_>, recreate: Recreate) -> Result<Outcome, Report> {
        let name = task.plan.container(&self.project.name, task.number);
        let under = |report: Report| {
            report.under(format!("cannot start the container `{name}` of service `{}`", task.plan.service))
        };
        let said = |how: &str| act::announce(self.context, &format!(" Container {name}  {how}"));
        if let Some(old) = task.old {
            let keep = match recreate {
                Recreate::None => true,
                Recreate::All => false,
                Recreate::Changed => self.is_current(old, task.plan)?,
            } && self.can_join(old)?;
            if keep && old.is_running() && !task.restart {
                said("Running");
                return Ok(Outcome::Unchanged);
            }
            if keep && !self.starts {
                said(if old.is_running() { "Running" } else { "Created" });
                return Ok(Outcome::Unchanged);
            }
            if keep {
                let command = if old.is_running() { "restart" } else { "start" };
                act::run(self.context, &[command.to_owned(), old.name().to_owned()])?.check().map_err(under)?;
                said(if old.is_running() { "Restarted" } else { "Started" });
                return Ok(Outcome::Started);
            }
            if old.is_running() {
                group::stop_one(self.context, old.name(), self.timeout)?;
            }
            group::rm_one(self.context, old.name())?;
        }
        let arguments = self.arguments(task.plan, task.number, &name)?;
        let done = act::run(self.context, &arguments)?.check().map_err(under)?;
        done.err.lines().filter(|line| !line.trim().is_empty()).for_each(print::say);
        said(match (task.old, self.starts) {
            (Some(_), _) => "Recreated",
            (None, true) => "Started",
            (None, false) => "Created",
        });
        Ok(Outcome::Started)
    }

    /// Returns whether a container was made from the present configuration and the present image.
    fn is_current(&self, old: &Container, plan: &Plan) -> Result<bool, Report> {
        let image = self.context.store()?.resolve(&plan.image);
        let same_image = image.is_ok_and(|image| image.id == old.entry.record.image);
        Ok(same_image && old.label(labels::HASH) == Some(self.hash(plan).as_str()))
    }

    /// Returns whether the containers still exist whose namespaces a container joins when it starts.
    fn can_join(&self, old: &Container) -> Result<bool, Report> {
        let request = &old.entry.record.request;
        let ipc = match &request.ipc {
            IpcMode::Container(id) => Some(id),
            _ => None,
        };
        let mut others = request.network_container.iter().chain(&request.pid_container).chain(ipc).peekable();
        if others.peek().is_none() {
            return Ok(true);
        }
        let records = self.context.records()?;
        Ok(others.all(|id| records.find(id).is_ok()))
    }

    fn hash(&self, plan: &Plan) -> String {
        self.project.hash(&plan.service)
    }

    /// Returns the command line that makes a container.
    fn arguments(&self, plan: &Plan, number: u32, name: &str) -> Result<Vec<String>, Report> {
        let mut all = group::words(if self.starts { &["run", "--detach"] } else { &["create"] });
        all.push(format!("--name={name}"));
        all.extend(self.labels(plan, number, false));
        all.extend(plan.ports.iter().cloned());
        if plan.tty {
            all.push("--tty".to_owned());
        }
        if plan.stdin {
            all.push("--interactive".to_owned());
        }
        all.extend(plan.connections.iter().map(Connection::flag));
        all.extend(self.common(plan)?);
        let (entrypoint, command) = command(plan);
        all.extend(entrypoint);
        all.push(plan.image.clone());
        all.extend(command);
        Ok(all)
    }

    /// Returns the flags that all containers of a service have, without those of its networks.
    pub(super) fn common(&self, plan: &Plan) -> Result<Vec<String>, Report> {
        let mut all = plan.flags.clone();
        if !self.context.dry_run {
            all.extend(self.contents(plan)?);
        }
        Ok(all)
    }

    pub(super) fn labels(&self, plan: &Plan, number: u32, oneoff: bool) -> Vec<String> {
        let depends: Vec<String> =
            plan.depends_on.iter().map(|(name, on)| format!("{name}:{}:{}", on.condition.name(), on.restart)).collect();
        let files: Vec<String> = self.project.files.iter().map(|path| path.display().to_string()).collect();
        let own: [(&str, String); 8] = [
            (labels::PROJECT, self.project.name.clone()),
            (labels::SERVICE, plan.service.clone()),
            (labels::NUMBER, number.to_string()),
            (labels::HASH, self.hash(plan)),
            (labels::ONEOFF, if oneoff { "True" } else { "False" }.to_owned()),
            (labels::DEPENDS, depends.join(",")),
            (labels::DIRECTORY, self.project.directory.display().to_string()),
            (labels::FILES, files.join(",")),
        ];
        let user = plan.labels.iter().map(|(key, value)| format!("--label={key}={value}"));
        user.chain(own.iter().map(|(key, value)| format!("--label={key}={value}"))).collect()
    }

    /// Writes the contents of secrets and configs that are not files of the host, and returns the flags that mount them.
    fn contents(&self, plan: &Plan) -> Result<Vec<String>, Report> {
        use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
        let mut flags = Vec::new();
        for (index, content) in plan.contents.iter().enumerate() {
            let directory = contents_directory(self.context, &self.project.name);
            let path = directory.join(format!("{}-{index}", plan.service));
            let write = || -> std::io::Result<()> {
                std::fs::DirBuilder::new().recursive(true).mode(0o700).create(&directory)?;
                let temporary = directory.join(format!(".{}-{index}-{}", plan.service, std::process::id()));
                std::fs::write(&temporary, &content.text)?;
                std::fs::set_permissions(&temporary, std::fs::Permissions::from_mode(content.mode))?;
                std::os::unix::fs::chown(&temporary, content.uid, content.gid)?;
                std::fs::rename(&temporary, &path)
            };
            write().map_err(|error| {
                Report::new(format!("cannot write `{}` for service `{}`", path.display(), plan.service))
                    .with_cause(error)
            })?;
            flags.push(format!("--mount=type=bind,source={},target={},readonly", path.display(), content.target));
        }
        Ok(flags)
    }

    /// Waits until all services run and are healthy, for `--wait`. A service that has done its work is fine too.
    pub(super) fn wait(&self, timeout: Option<u64>) -> Result<(), Report> {
        let records = self.context.records()?;
        let deadline = timeout.map(|seconds| Instant::now() + Duration::from_secs(seconds));
        for container in containers::of(self.context, &self.project.name)? {
            if !self.plans.services.contains_key(&container.service) {
                continue;
            }
            let name = container.name();
            let hint = format!("see its output with `gpurun logs {name}`");
            loop {
                match works(&records.again(&container.entry)?.state_shown()?) {
                    Some(Ok(())) => break,
                    Some(Err(why)) => return Err(Report::new(format!("container `{name}` {why}")).with_hint(hint)),
                    None if deadline.is_some_and(|deadline| Instant::now() >= deadline) => {
                        return Err(Report::new(format!("container `{name}` is not ready in time")).with_hint(hint));
                    }
                    None => std::thread::sleep(LOOK),
                }
            }
        }
        Ok(())
    }
}

/// Returns whether a container is as `--wait` wants it, or why it never will be. `None` means not yet.
fn works(state: &State) -> Option<Result<(), String>> {
    match (state.phase, &state.health) {
        (Phase::Running, Some(_)) => met(Condition::Healthy, state),
        (Phase::Running, None) => Some(Ok(())),
        (Phase::Exited, _) => met(Condition::Completed, state),
        (Phase::Created | Phase::Restarting, _) => None,
    }
}

/// Returns whether a container's state meets a condition, or why it never will. `None` means not yet.
fn met(condition: Condition, state: &State) -> Option<Result<(), String>> {
    let ended = || format!("ended with status {}", state.exit_code.unwrap_or(0));
    match (condition, state.phase) {
        (Condition::Started, _) => Some(Ok(())),
        (Condition::Completed, Phase::Exited) if state.exit_code.unwrap_or(0) == 0 => Some(Ok(())),
        (Condition::Healthy | Condition::Completed, Phase::Exited) => Some(Err(ended())),
        (Condition::Healthy, Phase::Running) => match state.health.as_ref().map(|health| health.status) {
            Some(HealthStatus::Healthy) => Some(Ok(())),
            Some(HealthStatus::Unhealthy) => Some(Err("is unhealthy".to_owned())),
            Some(HealthStatus::Starting) => None,
            None => Some(Err("has no health check".to_owned())),
        },
        (Condition::Healthy | Condition::Completed, _) => None,
    }
}

/// Returns the entrypoint as a flag, and the command. `--entrypoint` takes one word; the others come before the command.
pub(super) fn command(plan: &Plan) -> (Option<String>, Vec<String>) {
    match plan.entrypoint.as_deref() {
        None => (None, plan.command.clone()),
        Some([]) => (Some("--entrypoint=".to_owned()), plan.command.clone()),
        Some([first, rest @ ..]) => {
            (Some(format!("--entrypoint={first}")), rest.iter().chain(&plan.command).cloned().collect())
        }
    }
}
