//! One sample of the host and of all running containers.

use std::path::Path;
use std::time::Duration;

use serde::Serialize;

use crate::cli::Context;
use crate::gpu::usage::Usage;
use crate::record::Records;
use crate::report::Report;
use crate::sampler::{self, HostSample, HostSampler, Sample, Sampler};

/// What `--once --json` prints. docs/sharing.md describes the fields.
#[derive(Debug, Default, Serialize)]
pub(super) struct Snapshot {
    /// Nanoseconds since 1970.
    pub time: u64,
    pub host: HostSample,
    pub containers: Vec<Sample>,
}

/// Takes samples of the host and of its containers.
pub(super) struct Source<'a> {
    host: HostSampler,
    containers: Sampler<'a>,
}

impl<'a> Source<'a> {
    pub(super) fn new(records: &'a Records) -> Result<Self, Report> {
        Ok(Self { host: HostSampler::new(Path::new("/")), containers: Sampler::new(records)? })
    }

    /// Takes a sample. `gpus` is the latest known usage of the GPUs.
    pub(super) fn take(&mut self, gpus: &[Usage]) -> Result<Snapshot, Report> {
        let mut containers = self.containers.all()?;
        sampler::share_gpus(&mut containers, gpus);
        Ok(Snapshot { time: crate::clock::now(), host: self.host.sample(gpus), containers })
    }
}

/// Time between the two samples that the rates of a single one need.
const FIRST: Duration = Duration::from_millis(500);

/// Takes one sample, with rates.
pub(super) fn once(context: &Context, interval: Duration) -> Result<Snapshot, Report> {
    let records = context.records()?;
    let mut source = Source::new(&records)?;
    source.take(&[])?;
    let began = std::time::Instant::now();
    let gpus = sampler::gpus(&records)?;
    std::thread::sleep(interval.min(FIRST).saturating_sub(began.elapsed()));
    source.take(&gpus)
}
