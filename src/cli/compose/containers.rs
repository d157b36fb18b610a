//! The containers of a project, found by their labels.

use std::collections::BTreeMap;
use std::path::PathBuf;

use super::super::Context;
use crate::compose::labels;
use crate::record::{Entry, Phase, State};
use crate::report::Report;

/// Returns the directory with the contents of secrets and configs. `down` removes it.
pub(crate) fn contents_directory(context: &Context, project: &str) -> PathBuf {
    context.root.join("compose").join(project)
}

/// A container of a project.
pub(super) struct Container {
    pub(super) entry: Entry,
    pub(super) state: State,
    pub(super) service: String,
    pub(super) number: u32,
    /// Whether `compose run` made it.
    pub(super) oneoff: bool,
}

impl Container {
    fn new(entry: Entry, state: State) -> Option<Self> {
        let service = label(&entry, labels::SERVICE)?.to_owned();
        let number = label(&entry, labels::NUMBER).and_then(|text| text.parse().ok()).unwrap_or(1);
        let oneoff = label(&entry, labels::ONEOFF).is_some_and(|text| text.eq_ignore_ascii_case("true"));
        Some(Self { entry, state, service, number, oneoff })
    }

    pub(super) fn name(&self) -> &str {
        &self.entry.record.name
    }

    pub(super) fn label(&self, name: &str) -> Option<&str> {
        label(&self.entry, name)
    }

    pub(super) fn is_running(&self) -> bool {
        matches!(self.state.phase, Phase::Running | Phase::Restarting)
    }

    /// Returns the services that this one was started after.
    pub(super) fn depends_on(&self) -> Vec<String> {
        self.dependencies().map(|(name, _)| name.to_owned()).collect()
    }

    /// Returns the services with which this one is restarted.
    pub(super) fn restarts_with(&self) -> Vec<String> {
        self.dependencies().filter(|(_, restart)| *restart).map(|(name, _)| name.to_owned()).collect()
    }

    fn dependencies(&self) -> impl Iterator<Item = (&str, bool)> {
        let list = self.label(labels::DEPENDS).unwrap_or_default();
        list.split(',').filter_map(|item| {
            let mut parts = item.split(':');
            let name = parts.next().filter(|name| !name.is_empty())?;
            Some((name, parts.nth(1) == Some("true")))
        })
    }
}

fn label<'a>(entry: &'a Entry, name: &str) -> Option<&'a str> {
    entry.record.request.labels.iter().rev().find(|(key, _)| key == name).map(|(_, value)| value.as_str())
}

/// Returns all containers that belong to a project, by project.
pub(super) fn all(context: &Context) -> Result<BTreeMap<String, Vec<Container>>, Report> {
    let mut projects: BTreeMap<String, Vec<Container>> = BTreeMap::new();
    for entry in context.records()?.list()? {
        let Some(project) = label(&entry, labels::PROJECT).map(str::to_owned) else { continue };
        let state = entry.state_shown()?;
        projects.entry(project).or_default().extend(Container::new(entry, state));
    }
    for containers in projects.values_mut() {
        containers.sort_by(|one, other| {
            (&one.service, one.number, one.name()).cmp(&(&other.service, other.number, other.name()))
        });
    }
    Ok(projects)
}

/// Returns the containers of one project, without those of `compose run`.
pub(super) fn of(context: &Context, project: &str) -> Result<Vec<Container>, Report> {
    let mut all = every(context, project)?;
    all.retain(|container| !container.oneoff);
    Ok(all)
}

/// Returns the containers of one project, also those of `compose run`.
pub(super) fn every(context: &Context, project: &str) -> Result<Vec<Container>, Report> {
    Ok(all(context)?.remove(project).unwrap_or_default())
}

/// Keeps the containers of the named services, or all if there are no names. A service without containers is an error.
pub(super) fn select(containers: &mut Vec<Container>, services: &[String], known: &[String]) -> Result<(), Report> {
    if let Some(name) = services
        .iter()
        .find(|name| !known.contains(name) && !containers.iter().any(|container| container.service == **name))
    {
        let mut all: Vec<&str> = containers.iter().map(|container| container.service.as_str()).collect();
        all.extend(known.iter().map(String::as_str));
        all.sort_unstable();
        all.dedup();
        return Err(Report::new(format!("there is no service `{name}`"))
            .with_hint(format!("the services are: {}", all.join(", "))));
    }
    if !services.is_empty() {
        containers.retain(|container| services.contains(&container.service));
    }
    Ok(())
}

/// Returns the containers in groups for stopping: those that depend on others come first.
pub(super) fn stop_order(containers: Vec<Container>) -> Vec<Vec<Container>> {
    let mut left = containers;
    let mut groups = Vec::new();
    while !left.is_empty() {
        let needed: Vec<String> = left
            .iter()
            .flat_map(|container| {
                let own = container.service.clone();
                container.depends_on().into_iter().filter(move |name| *name != own)
            })
            .collect();
        let (mut now, mut later): (Vec<_>, Vec<_>) =
            left.into_iter().partition(|container| !needed.contains(&container.service));
        // Labels of hostile containers may name each other.
        if now.is_empty() {
            now = std::mem::take(&mut later);
        }
        groups.push(now);
        left = later;
    }
    groups
}
