//! The containers that a command is about: by name, by file, by filter, or all. The flags beside the names are podman's.

use std::path::PathBuf;

use clap::Args;

use super::{Context, ps};
use crate::record::Records;
use crate::report::Report;

/// Further ways to choose containers.
#[derive(Debug, Args)]
pub(super) struct ChosenFlags {
    /// Choose the container whose ID is in a file (`run --cidfile`); may be given more than once
    #[arg(long, value_name = "FILE")]
    pub(super) cidfile: Vec<PathBuf>,
    /// Choose containers, running or not, as `gpurun ps` does, or select from those that are named: label=KEY[=VALUE], status=exited, name=TEXT, …
    #[arg(long, value_name = "KEY=VALUE")]
    pub(super) filter: Vec<String>,
    /// Choose the newest container
    #[arg(long)]
    pub(super) latest: bool,
    /// Do not fail if a container, or a file with an ID, does not exist
    #[arg(long)]
    pub(super) ignore: bool,
}

/// The ID of the newest container.
pub(super) fn newest(records: &Records) -> Result<String, Report> {
    let newest = records.list()?.into_iter().max_by_key(|entry| entry.record.created);
    newest
        .map(|entry| entry.record.id)
        .ok_or_else(|| Report::new("there are no containers").with_hint("start one with `gpurun run IMAGE`"))
}

impl ChosenFlags {
    /// Returns the names that the caller gave, and the IDs of the containers that the flags choose. `all` are those that
    /// `--all` stands for, if the caller gave it.
    pub(super) fn names(
        &self,
        names: &[String],
        all: Option<Vec<String>>,
        records: &Records,
        context: &Context,
    ) -> Result<Vec<String>, Report> {
        let is_all = all.is_some();
        let mut chosen = names.to_vec();
        chosen.extend(all.unwrap_or_default());
        if self.latest {
            chosen.push(newest(records)?);
        }
        for file in &self.cidfile {
            match std::fs::read_to_string(file) {
                Ok(text) => chosen.push(text.lines().next().unwrap_or_default().trim().to_owned()),
                Err(error) if self.ignore && error.kind() == std::io::ErrorKind::NotFound => {}
                Err(error) => {
                    return Err(Report::new(format!("cannot read the container's ID in `{}`", file.display()))
                        .with_cause(error));
                }
            }
        }
        if !self.filter.is_empty() {
            let selected = ps::selected(&self.filter, context)?;
            // As in podman, a filter selects from what is named otherwise.
            if is_all || !chosen.is_empty() {
                let mut all = records.snapshot()?;
                chosen.retain(|name| all.find(name).is_ok_and(|entry| selected.contains(&entry.record.id)));
            } else {
                chosen.extend(selected);
            }
        }
        if self.ignore {
            let snapshot = records.snapshot()?;
            chosen.retain(|name| !snapshot.lacks(name));
        }
        Ok(chosen)
    }
}
