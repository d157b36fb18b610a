//! The arguments of `run` and `create`, and what both do before the container's record is written.

use clap::Args;

use super::Context;
use super::flags::ContainerFlags;
use super::prepare::{self, CidFile};
use crate::durable::FileLock;
use crate::launch;
use crate::names::{ContainerName, Digest};
use crate::report::Report;
use crate::request::{Payload, Request};

#[derive(Debug, Args)]
#[command(disable_help_flag = true)]
pub(super) struct NewContainer {
    /// Print help
    #[arg(long, action = clap::ArgAction::Help)]
    help: Option<bool>,
    #[command(flatten)]
    pub flags: ContainerFlags,
    /// Image: a name, an ID, or `./FILE.tar`, a docker-archive or OCI layout that is run in place without a copy in the store
    #[arg(value_name = "IMAGE")]
    image: String,
    /// Command and its arguments; everything after IMAGE belongs to it (default: the image's command)
    command: Vec<String>,
}

/// A container that is ready to be recorded.
pub(super) struct Prepared {
    pub request: Request,
    pub image: Digest,
    /// Prevents the removal of the image until the record of the container exists.
    pub hold: FileLock,
    pub cidfile: Option<CidFile>,
}

impl NewContainer {
    /// Returns the request. All errors in the flags are reported here, before an image is pulled.
    pub(super) fn check(&self) -> Result<Request, Report> {
        let payload = Payload::Command(self.command.clone());
        let request = super::request::build(&self.flags, &self.image, payload)?;
        launch::check(&request)?;
        check_name(self.flags.name.as_deref())?;
        Ok(request)
    }

    /// Resolves what the request names (networks, containers, images, GPUs), and pulls the image if it is missing.
    pub(super) fn prepare(
        &self,
        mut request: Request,
        context: &Context,
        remove: prepare::Remove,
    ) -> Result<Prepared, Report> {
        let flags = &self.flags;
        super::boot_unit::notice(request.restart);
        super::network_ids::resolve(&mut request, context)?;
        prepare::resolve_others(flags, &mut request, context)?;
        let cidfile = CidFile::create(request.cidfile.as_deref())?;
        let store = context.store()?;
        let (hold, image) = flags.image.provide(&store, &self.image, flags.quiet)?;
        prepare::select_gpus(&mut request, &image.config)?;
        prepare::check_health_action(&request, &image.config)?;
        prepare::resolve_images(&mut request, &store)?;
        prepare::replace(flags, context, remove)?;
        Ok(Prepared { request, image: image.id, hold, cidfile })
    }
}

/// Rejects a name that no container can have.
pub(super) fn check_name(name: Option<&str>) -> Result<(), Report> {
    name.map(str::parse::<ContainerName>).transpose()?;
    Ok(())
}
