//! `gpurun image …`: one file for each kind of command.

mod bootstrap;
mod files;
mod list;
mod manage;
mod output;
mod progress;
mod transfer;

pub use list::inspect_json;
pub use transfer::{ImageFlags, PullPolicy, RegistryFlags, provide};

use std::io::{self, Write};
use std::path::PathBuf;

use clap::{Args, Subcommand};
use serde_json::Value;

use super::Context;
use crate::launch;
use crate::names::{Digest, Reference};
use crate::record::{Entry, Records};
use crate::report::Report;
use crate::rootfs::images;
use crate::store::{Image, Store, User};
use files::{MountArgs, SaveArgs, UnmountArgs, UnpackArgs};
use list::{DfArgs, HistoryArgs, InspectArgs, LsArgs};
use manage::{PruneArgs, RmArgs, TagArgs, VerifyArgs};
use transfer::{LoadArgs, PullArgs, PushArgs};

#[derive(Debug, Args)]
pub struct ImageArgs {
    #[command(subcommand)]
    pub command: ImageCommand,
}

#[derive(Debug, Subcommand)]
pub enum ImageCommand {
    /// Load images from a `docker save` or `podman save` tar, or from an OCI image layout
    Load(LoadArgs),
    /// Make a base image from a distribution's packages: no registry is needed
    Bootstrap(bootstrap::BootstrapArgs),
    /// Take images from a registry
    Pull(PullArgs),
    /// Send an image to a registry
    Push(PushArgs),
    /// List the images of the store
    #[command(alias = "list")]
    Ls(LsArgs),
    /// Remove images or names of images
    #[command(alias = "remove")]
    Rm(RmArgs),
    /// Show all that is known about images, as JSON
    Inspect(InspectArgs),
    /// Show how an image came to be, the youngest step first
    History(HistoryArgs),
    /// Give an image one more name
    Tag(TagArgs),
    /// Remove images that nobody needs
    Prune(PruneArgs),
    /// Show what takes how much of the disk
    Df(DfArgs),
    /// Check that everything in the store is what its name says; status 1 when something is damaged
    Verify(VerifyArgs),
    /// Write images to a file that docker, podman, skopeo and umoci read
    Save(SaveArgs),
    /// Mount images' files, read-only, and print where
    Mount(MountArgs),
    /// Take mounts of `gpurun image mount` away
    #[command(alias = "umount")]
    Unmount(UnmountArgs),
    /// Write an image's files into an empty directory
    Unpack(UnpackArgs),
}

/// Who needs an image, if anybody.
type Usages<'a> = dyn Fn(&Digest) -> Option<User> + 'a;

/// Where images are mounted.
struct Place<'a> {
    images: PathBuf,
    context: &'a Context,
}

impl Place<'_> {
    /// Whether `gpurun image mount` keeps it.
    fn is_mounted(&self, image: &Image) -> bool {
        images::is_kept(&self.images, &image.chain_id.hex())
    }

    fn user_of(&self, id: &Digest, store: &Store) -> Option<User> {
        // What cannot be read is no proof that nobody needs it.
        self.look_for_user(id, store).unwrap_or_else(|report| Some(User::Unknown(report)))
    }

    fn look_for_user(&self, id: &Digest, store: &Store) -> Result<Option<User>, Report> {
        if store.list()?.iter().any(|image| image.id == *id && self.is_mounted(image)) {
            return Ok(Some(User::Mount));
        }
        let records = Records::open(&self.context.root, &self.context.run_dir)?;
        let (entries, unreadable) = records.list_all()?;
        let uses = |entry: &Entry| entry.record.request.image_id == id.to_string();
        if records.steps()?.iter().any(uses) {
            return Ok(Some(User::Build));
        }
        match (entries.into_iter().find(uses), unreadable.into_iter().next()) {
            (Some(entry), _) => Ok(Some(User::Container(entry.record.name))),
            (None, Some(container)) => Err(container.error.into()),
            (None, None) => Ok(None),
        }
    }
}

pub fn run(args: &ImageArgs, context: &Context) -> Result<u8, Report> {
    let store = context.store()?;
    let place = Place { images: context.run_dir.join("images"), context };
    let users = |id: &Digest| place.user_of(id, &store);
    launch::sweep_images(&context.run_dir);
    match &args.command {
        ImageCommand::Load(args) => transfer::load(&store, args),
        ImageCommand::Bootstrap(args) => bootstrap::run(&store, args),
        ImageCommand::Pull(args) => transfer::pull(&store, args),
        ImageCommand::Push(args) => transfer::push(&store, args),
        ImageCommand::Ls(args) => list::ls(&store, args),
        ImageCommand::Rm(args) => manage::rm(&store, args, &place, &users),
        ImageCommand::Inspect(args) => list::inspect(&store, args),
        ImageCommand::History(args) => list::history(&store, args),
        ImageCommand::Tag(args) => manage::tag(&store, args),
        ImageCommand::Prune(args) => manage::prune(&store, args, &place, &users),
        ImageCommand::Df(args) => list::df(&store, args, &users),
        ImageCommand::Verify(args) => return manage::verify(&store, args, &place),
        ImageCommand::Save(args) => files::save(&store, args),
        ImageCommand::Mount(args) => files::mount(&store, args, &place),
        ImageCommand::Unmount(args) => files::unmount(&store, args, &place),
        ImageCommand::Unpack(args) => files::unpack(&store, args),
    }?;
    Ok(0)
}

fn names(references: &[Reference]) -> Vec<String> {
    references.iter().map(Reference::familiar).collect()
}

fn repository_and_tag(name: &Reference) -> (String, String) {
    let familiar = name.familiar();
    let tag = name.tag.clone().unwrap_or_else(|| "<none>".into());
    let repository = familiar.split('@').next().unwrap_or_default();
    (repository.strip_suffix(&format!(":{tag}")).unwrap_or(repository).to_string(), tag)
}

/// Decimal units, as docker shows image sizes.
fn size(bytes: u64) -> String {
    let mut value = bytes as f64;
    for unit in ["B", "kB", "MB", "GB"] {
        if value < 999.5 {
            let digits = if unit == "B" || value >= 99.95 {
                0
            } else if value >= 9.995 {
                1
            } else {
                2
            };
            return format!("{value:.digits$}{unit}");
        }
        value /= 1000.0;
    }
    format!("{value:.2}TB")
}

fn ago(seconds: u64) -> String {
    let (count, unit) = match seconds {
        0..60 => return "just now".into(),
        60..3600 => (seconds / 60, "minute"),
        3600..86_400 => (seconds / 3600, "hour"),
        _ => (seconds / 86_400, "day"),
    };
    format!("{count} {unit}{} ago", if count == 1 { "" } else { "s" })
}

/// Columns as wide as they must be, three spaces between them.
fn table<const N: usize>(rows: &[[String; N]]) -> String {
    let widths: Vec<usize> =
        (0..N).map(|at| rows.iter().map(|row| row[at].chars().count()).max().unwrap_or(0)).collect();
    let line = |row: &[String; N]| {
        let cells: Vec<String> = row.iter().zip(&widths).map(|(cell, width)| format!("{cell:width$}")).collect();
        cells.join("   ").trim_end().to_string() + "\n"
    };
    rows.iter().map(line).collect()
}

fn print_json(value: &Value) -> Result<(), Report> {
    print(&format!("{value:#}\n"))
}

/// To standard output; a reader that has gone away (`| head`) is no failure.
fn print(text: &str) -> Result<(), Report> {
    match io::stdout().lock().write_all(text.as_bytes()) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
            Err(Report::new("cannot write to standard output").with_cause(error))
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_and_ages() {
        for (bytes, want) in [
            (0, "0B"),
            (999, "999B"),
            (1_000, "1.00kB"),
            (12_345, "12.3kB"),
            (868_000_000, "868MB"),
            (6_480_000_000, "6.48GB"),
            (999_999, "1.00MB"),
        ] {
            assert_eq!(size(bytes), want);
        }
        assert_eq!(
            (ago(3).as_str(), ago(60).as_str(), ago(7200).as_str()),
            ("just now", "1 minute ago", "2 hours ago")
        );
    }

    #[test]
    fn names_fall_into_repository_and_tag() {
        for (name, want) in [
            ("x", ("x", "latest")),
            ("localhost/a/b:1", ("localhost/a/b", "1")),
            ("r.io:5000/x:2", ("r.io:5000/x", "2")),
        ] {
            let (repository, tag) = repository_and_tag(&name.parse().expect("a reference"));
            assert_eq!((repository.as_str(), tag.as_str()), want);
        }
    }

    #[test]
    fn tables_align() {
        let rows = [["A".to_string(), "B".into()], ["long".into(), "x".into()]];
        assert_eq!(table(&rows), "A      B\nlong   x\n");
    }

    #[test]
    fn the_arguments_are_consistent() {
        use clap::Args as _;
        ImageArgs::augment_args(clap::Command::new("image")).debug_assert();
    }
}
