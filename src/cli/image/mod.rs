//! `gpurun image …`: each file contains one group of commands.

mod bootstrap;
mod cache;
mod files;
mod list;
mod manage;
mod output;
mod progress;
mod push;
mod text;
mod transfer;
mod usage;
mod users;

pub(crate) use cache::{Part as CachePart, Selection as CacheSelection, parts as cache_parts, prune as prune_cache};
pub(crate) use files::{FormatFlag, save_image, write_atomically};
pub(crate) use list::inspect_json;
pub(crate) use manage::UntagArgs;
pub(super) use manage::in_store;
pub(crate) use push::push_image;
pub(crate) use text::size;
pub(crate) use transfer::{ImageFlags, Packing, PullPolicy, RegistryFlags, provide};
pub(crate) use usage::Usage;
use users::Mounts;

use std::cell::OnceCell;

use clap::{Args, Subcommand};

use super::Context;
use super::exists::{ExistsArgs, existence};
use crate::launch;
use crate::names::Digest;
use crate::report::Report;
use files::{MountArgs, SaveArgs, UnmountArgs, UnpackArgs};
use list::{HistoryArgs, InspectArgs, LsArgs};
use manage::{PruneArgs, RmArgs, TagArgs, VerifyArgs};
use push::PushArgs;
use transfer::{LoadArgs, PullArgs};
use usage::DfArgs;

#[derive(Debug, Args)]
pub(super) struct ImageArgs {
    #[command(subcommand)]
    pub command: ImageCommand,
}

#[derive(Debug, Subcommand)]
pub(super) enum ImageCommand {
    /// Load images from a `docker save` or `podman save` archive or an OCI image layout
    Load(LoadArgs),
    /// Create an image from the files in a tar archive
    Import(files::ImportArgs),
    /// Create a base image from a distribution's packages, without a registry
    Bootstrap(bootstrap::BootstrapArgs),
    /// Pull images from a registry
    Pull(PullArgs),
    /// Push an image to a registry
    Push(PushArgs),
    /// List images
    #[command(alias = "list")]
    Ls(LsArgs),
    /// Remove images, or names of images
    #[command(alias = "remove")]
    Rm(RmArgs),
    /// Show details of images as JSON
    Inspect(InspectArgs),
    /// Show the history of an image, the newest step first
    History(HistoryArgs),
    /// Add a name to an image
    Tag(TagArgs),
    /// Exit with status 0 if an image exists, and with 1 if not
    Exists(ExistsArgs),
    /// Remove unused images
    Prune(PruneArgs),
    /// Show disk usage
    Df(DfArgs),
    /// Verify the digests of everything in the store; the exit status is 1 if something is damaged
    Verify(VerifyArgs),
    /// Save images to a file that docker, podman, skopeo and umoci can read
    Save(SaveArgs),
    /// Mount images read-only, and print the mount points
    Mount(MountArgs),
    /// Unmount images that `gpurun image mount` mounted
    #[command(alias = "umount")]
    Unmount(UnmountArgs),
    /// Unpack an image's files into an empty directory
    Unpack(UnpackArgs),
}

pub(super) fn run(args: &ImageArgs, context: &Context) -> Result<u8, Report> {
    let store = context.store()?;
    let mounts = Mounts { images: context.run_dir.join("images"), context };
    // Read once, on first use. For a removal, this is under the store's lock, as `Store::remove` requires.
    let users = || {
        let users = OnceCell::new();
        let (mounts, store) = (&mounts, &store);
        move |id: &Digest| users.get_or_init(|| mounts.users(store)).of(id)
    };
    launch::sweep_images(&context.run_dir);
    match &args.command {
        ImageCommand::Load(args) => transfer::load(&store, args),
        ImageCommand::Import(args) => files::import(&store, args),
        ImageCommand::Bootstrap(args) => bootstrap::run(&store, args),
        ImageCommand::Pull(args) => transfer::pull(&store, args),
        ImageCommand::Push(args) => push::push(&store, args),
        ImageCommand::Ls(args) => list::ls(&store, args, &users()),
        ImageCommand::Rm(args) => manage::rm(&store, args, &mounts, &|| Box::new(users())),
        ImageCommand::Inspect(args) => list::inspect(&store, args),
        ImageCommand::History(args) => list::history(&store, args),
        ImageCommand::Tag(args) => manage::tag(&store, args),
        ImageCommand::Exists(args) => return Ok(existence(store.resolve(&args.name).is_ok())),
        ImageCommand::Prune(args) => manage::prune(&store, args, &mounts, &users()),
        ImageCommand::Df(args) => usage::df(&store, args, &users()),
        ImageCommand::Verify(args) => return manage::verify(&store, args, &mounts),
        ImageCommand::Save(args) => files::save(&store, args),
        ImageCommand::Mount(args) => files::mount(&store, args, &mounts),
        ImageCommand::Unmount(args) => files::unmount(&store, args, &mounts),
        ImageCommand::Unpack(args) => files::unpack(&store, args),
    }?;
    Ok(0)
}

/// `gpurun untag`
pub(super) fn untag(args: &UntagArgs, context: &Context) -> Result<u8, Report> {
    manage::untag(&context.store()?, args)?;
    Ok(0)
}

/// Removes unused images for `gpurun system prune`, and prints them. Returns the freed bytes.
pub(super) fn prune_for_system(context: &Context, all: bool, filters: &[String]) -> Result<u64, Report> {
    let selection = manage::Selection::parse(all, filters)?;
    let store = context.store()?;
    let mounts = Mounts { images: context.run_dir.join("images"), context };
    launch::sweep_images(&context.run_dir);
    let users = OnceCell::new();
    manage::prune_unused(&store, &selection, &mounts, &|id: &Digest| users.get_or_init(|| mounts.users(&store)).of(id))
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_arguments_are_consistent() {
        use clap::Args as _;
        super::ImageArgs::augment_args(clap::Command::new("image")).debug_assert();
    }
}
