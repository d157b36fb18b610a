//! `gpurun create [flags] IMAGE [COMMAND…]`: makes a container that `gpurun start` starts.

use clap::Args;

use super::Context;
use super::flags::ContainerFlags;
use super::prepare::{self, CidFile};
use super::print;
use crate::launch;
use crate::record::State;
use crate::report::Report;
use crate::request::Payload;

#[derive(Debug, Args)]
#[command(
    disable_help_flag = true,
    after_help = "Examples:\n  gpurun create --name lab --memory 2g jupyter bash\n  gpurun cp ./data lab:/work\n  gpurun start -a lab"
)]
pub(super) struct CreateArgs {
    /// Print help
    #[arg(long, action = clap::ArgAction::Help)]
    help: Option<bool>,
    #[command(flatten)]
    flags: ContainerFlags,
    /// Image: a name, an ID, or `./FILE.tar`, a docker-archive or OCI layout that is run in place without a copy in the store
    #[arg(value_name = "IMAGE")]
    image: String,
    /// Command and its arguments; everything after IMAGE belongs to it (default: the image's command)
    command: Vec<String>,
}

pub(super) fn run(args: &CreateArgs, context: &Context, remove: prepare::Remove) -> Result<u8, Report> {
    if args.flags.detach {
        return Err(Report::usage("`gpurun create` starts nothing, so it has no flag `--detach`")
            .with_hint("start the container in the background with `gpurun start NAME`"));
    }
    let mut request = super::request::build(&args.flags, &args.image, Payload::Command(args.command.clone()))?;
    // Report errors in the flags before pulling an image.
    launch::check(&request)?;
    super::network_ids::resolve(&mut request, context)?;
    super::boot_unit::notice(request.restart);
    super::run::check_name(args.flags.name.as_deref())?;
    crate::request::Attached::parse(&args.flags.attach, request.interactive)?;
    prepare::resolve_others(&args.flags, &mut request, context)?;
    let mut cidfile = CidFile::create(request.cidfile.as_deref())?;
    let store = context.store()?;
    // Held until the record of the container exists. Until then, the lock prevents the removal of the image.
    let (hold, image) = args.flags.image.provide(&store, &args.image, args.flags.quiet)?;
    prepare::select_gpus(&mut request, &image.config)?;
    prepare::resolve_images(&mut request, &store)?;
    prepare::replace(&args.flags, context, remove)?;
    let records = context.records()?;
    let (entry, launching) = super::run::record(&records, args.flags.name.as_deref(), image.id, request, None)?;
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
    if let Some(mut cidfile) = cidfile.take() {
        cidfile.write(&entry.record.id)?;
        cidfile.keep();
    }
    print::out(&format!("{}\n", entry.record.id))?;
    Ok(0)
}
