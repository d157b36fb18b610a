//! `gpurun create [flags] IMAGE [COMMAND…]`: makes a container that `gpurun start` starts.

use clap::Args;

use super::Context;
use super::new_container::{NewContainer, Prepared};
use super::prepare;
use super::print;
use crate::launch;
use crate::record::State;
use crate::report::Report;

#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  gpurun create --name lab --memory 2g jupyter bash\n  gpurun cp ./data lab:/work\n  gpurun start -a lab"
)]
pub(super) struct CreateArgs {
    #[command(flatten)]
    new: NewContainer,
}

pub(super) fn run(args: &CreateArgs, context: &Context, remove: prepare::Remove) -> Result<u8, Report> {
    let new = &args.new;
    super::step::refuse_create()?;
    if new.flags.detach {
        return Err(Report::usage("`gpurun create` starts nothing, so it has no flag `--detach`")
            .with_hint("start the container in the background with `gpurun start NAME`"));
    }
    let Prepared { request, image, hold, cidfile } = new.prepare(new.check()?, context, remove)?;
    let records = context.records()?;
    let (entry, launching) = super::run::record(&records, new.flags.name.as_deref(), image, request, None)?;
    let kept = || -> Result<(), Report> {
        let _lock = records.lock()?;
        Ok(entry.write_state(&State { kept: true, ..State::default() })?)
    };
    if let Err(report) = kept() {
        let _ = launch::remove(&records, &entry);
        return Err(report);
    }
    // Without resources in use, a container has no directory in /run.
    launch::clear_run_dir(&entry)?;
    drop((launching, hold));
    if let Some(mut cidfile) = cidfile {
        cidfile.write(&entry.record.id)?;
        cidfile.keep();
    }
    print::out(&format!("{}\n", entry.record.id))?;
    Ok(0)
}
