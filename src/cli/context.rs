//! Settings that every command needs.

use std::path::PathBuf;

use clap::Args;

use super::lab;
use crate::record::Records;
use crate::report::Report;

/// File locations.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Global")]
pub(crate) struct Globals {
    /// Directory for images, containers and volumes
    #[arg(long, global = true, value_name = "DIR", env = "GPURUN_ROOT", default_value = "/var/lib/gpurun")]
    pub root: PathBuf,
    /// Directory for files that a reboot may remove
    #[arg(long, global = true, value_name = "DIR", env = "GPURUN_RUN", default_value = "/run/gpurun")]
    pub run_dir: PathBuf,
    /// Show each limit as the kernel has it, and more notices (`-v` is for volumes, as in docker)
    #[arg(long, global = true)]
    pub verbose: bool,
}

/// Settings that every command needs.
#[derive(Debug, Clone)]
pub(crate) struct Context {
    pub root: PathBuf,
    pub run_dir: PathBuf,
    pub verbose: bool,
    /// `compose --dry-run`: nothing of the project is changed.
    pub dry_run: bool,
}

impl Context {
    /// Opens the container records after cleaning up behind dead supervisors.
    pub(crate) fn records(&self) -> Result<Records, Report> {
        let records = Records::open(&self.root, &self.run_dir)?;
        crate::launch::reconcile(&records)?;
        lab::sweep()?;
        let volumes = crate::volume::Volumes::new(&self.root);
        volumes.sweep();
        volumes.unmount_unused(&|name| super::volume_use::is_in_use(&records, name));
        Ok(records)
    }

    pub(crate) fn store(&self) -> Result<crate::store::Store, Report> {
        Ok(crate::store::Store::open(&self.root)?)
    }
}

pub(super) fn need_root() -> Result<(), Report> {
    if nix::unistd::geteuid().is_root() {
        return Ok(());
    }
    Err(Report::new("gpurun needs root: it creates namespaces, mounts and cgroups").with_hint("run it with `sudo`"))
}
