//! What one build has used of its limits.

use super::limits::INSTRUCTIONS;
use super::state::State;
use crate::report::Report;

/// Entries per list and bytes of an image's config, and bytes of all stages that the build keeps in memory.
pub(super) const ENTRIES: usize = 10_000;

pub(super) const PORTS: usize = 2 << 16;
pub(super) const CONFIG: usize = 4 << 20;

pub(super) const KEPT: usize = 256 << 20;
/// Base images, downloads of `ADD`, and the total size of the downloads.
pub(super) const IMAGES: usize = 200;

pub(super) const DOWNLOADS: usize = 1_000;
pub(super) const DOWNLOADED: u64 = 64 << 30;

/// The resources that a build has used so far.
#[derive(Debug, Default)]
pub(crate) struct Budget {
    pub(super) instructions: usize,
    pub(super) images: usize,
    pub(super) downloads: usize,
    pub(super) downloaded: u64,
    pub(super) kept: usize,
}

pub(super) fn exceeded(what: &str) -> Report {
    Report::new(format!("the build is too large: {what}")).with_exit_code(1)
}

impl Budget {
    pub(crate) fn instruction(&mut self) -> Result<(), Report> {
        self.instructions += 1;
        if self.instructions > INSTRUCTIONS {
            return Err(exceeded(&format!("it has more than {INSTRUCTIONS} instructions")));
        }
        Ok(())
    }

    pub(crate) fn image(&mut self) -> Result<(), Report> {
        self.images += 1;
        if self.images > IMAGES { Err(exceeded(&format!("it uses more than {IMAGES} images"))) } else { Ok(()) }
    }

    /// Counts a download and returns the number of bytes that it may have.
    pub(crate) fn download(&mut self) -> Result<u64, Report> {
        self.downloads += 1;
        if self.downloads > DOWNLOADS {
            return Err(exceeded(&format!("it downloads more than {DOWNLOADS} files")));
        }
        Ok(DOWNLOADED.saturating_sub(self.downloaded))
    }

    pub(crate) fn downloaded(&mut self, bytes: u64) {
        self.downloaded = self.downloaded.saturating_add(bytes);
    }

    /// Counts a finished stage. Later stages may start or copy from it.
    pub(crate) fn keep(&mut self, state: &State) -> Result<(), Report> {
        self.kept += bytes(state);
        if self.kept > KEPT {
            return Err(exceeded(&format!("the configs of its stages have more than {} MiB", KEPT >> 20)));
        }
        Ok(())
    }
}

/// Refuses a stage whose config is too large.
pub(crate) fn check(state: &State) -> Result<(), Report> {
    let config = &state.document.config;
    let lists = [
        (config.env.len(), ENTRIES),
        (config.labels.len(), ENTRIES),
        (state.args.len(), ENTRIES),
        (config.exposed_ports.len(), PORTS),
        (config.volumes.len(), ENTRIES),
        (config.on_build.len(), ENTRIES),
    ];
    if let Some((_, most)) = lists.into_iter().find(|(has, most)| has > most) {
        return Err(exceeded(&format!("a list of the image's config has more than {most} entries")));
    }
    if bytes(state) > CONFIG {
        return Err(exceeded(&format!("the image's config has more than {} MiB", CONFIG >> 20)));
    }
    Ok(())
}

/// The approximate memory of a stage.
pub(super) fn bytes(state: &State) -> usize {
    let config = &state.document.config;
    let list = |texts: &[String]| texts.iter().map(|text| text.len() + 24).sum::<usize>();
    let lists = [
        &config.env,
        &config.cmd,
        &config.entrypoint,
        &config.exposed_ports,
        &config.volumes,
        &config.on_build,
        &config.shell,
    ];
    let pairs = config.labels.iter().chain(&state.args).map(|(name, value)| name.len() + value.len() + 48);
    let history = state.document.history.iter().map(|line| line.created_by.len() + 120);
    lists.into_iter().map(|texts| list(texts)).sum::<usize>() + pairs.sum::<usize>() + history.sum::<usize>()
}
