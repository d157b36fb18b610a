//! `gpurun image …`: one file for each kind of command.

mod progress;
mod transfer;

pub use transfer::{ImageFlags, provide};

use std::io::{self, Write};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use clap::{Args, Subcommand};
use serde_json::{Value, json};

use crate::layer::directory;
use crate::names::{Digest, Reference};
use crate::report::Report;
use crate::store::{Image, Store};
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
    /// Write an image's files into an empty directory
    Unpack(UnpackArgs),
}

#[derive(Debug, Args)]
pub struct LsArgs {
    /// Show the steps of builds too
    #[arg(short, long)]
    pub all: bool,
    /// Print the ids alone
    #[arg(short, long)]
    pub quiet: bool,
    /// Do not shorten ids
    #[arg(long)]
    pub no_trunc: bool,
    /// Print as JSON
    #[arg(long, conflicts_with = "quiet")]
    pub json: bool,
}

#[derive(Debug, Args)]
pub struct RmArgs {
    /// Names or ids
    #[arg(required = true, value_name = "IMAGE")]
    pub images: Vec<String>,
    /// Remove an image by its id even when it has several names
    #[arg(short, long)]
    pub force: bool,
    /// Print the result as JSON
    #[arg(long)]
    pub json: bool,
}

#[derive(Debug, Args)]
pub struct InspectArgs {
    /// Names or ids
    #[arg(required = true, value_name = "IMAGE")]
    pub images: Vec<String>,
}

#[derive(Debug, Args)]
pub struct UnpackArgs {
    /// Name or id
    pub image: String,
    /// An empty directory, made if it is not there
    pub dir: PathBuf,
}

/// Runs one of the commands on the store below `root`; `in_use` names the container that needs an image, if any.
pub fn run(args: &ImageArgs, root: &Path, in_use: &dyn Fn(&Digest) -> Option<String>) -> Result<u8, Report> {
    let store = Store::open(root)?;
    match &args.command {
        ImageCommand::Load(args) => transfer::load(&store, args),
        ImageCommand::Pull(args) => transfer::pull(&store, args),
        ImageCommand::Push(args) => transfer::push(&store, args),
        ImageCommand::Ls(args) => ls(&store, args),
        ImageCommand::Rm(args) => rm(&store, args, in_use),
        ImageCommand::Inspect(args) => inspect(&store, args),
        ImageCommand::Unpack(args) => unpack(&store, args),
    }?;
    Ok(0)
}

fn ls(store: &Store, args: &LsArgs) -> Result<(), Report> {
    let mut images = store.list()?;
    images.retain(|image| args.all || !image.intermediate);
    if args.json {
        let list = images.iter().map(|image| {
            json!({"Id": image.id.to_string(), "Names": names(&image.names), "Size": image.size, "Created": image.created,
                "Architecture": image.architecture, "LoadedAt": image.loaded_at})
        });
        return print_json(&Value::Array(list.collect()));
    }
    let id = |image: &Image| if args.no_trunc { image.id.to_string() } else { image.short_id() };
    if args.quiet {
        return print(&images.iter().map(|image| id(image) + "\n").collect::<String>());
    }
    let mut rows = vec![["REPOSITORY".to_string(), "TAG".into(), "IMAGE ID".into(), "LOADED".into(), "SIZE".into()]];
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |now| now.as_secs());
    for image in &images {
        let shown: Vec<(String, String)> = match image.names.as_slice() {
            [] => vec![("<none>".into(), "<none>".into())],
            names => names.iter().map(repository_and_tag).collect(),
        };
        for (repository, tag) in shown {
            let age = ago(now.saturating_sub(image.loaded_at));
            rows.push([repository, tag, id(image), age, size(image.size)]);
        }
    }
    print(&table(&rows))
}

fn rm(store: &Store, args: &RmArgs, in_use: &dyn Fn(&Digest) -> Option<String>) -> Result<(), Report> {
    let mut list = Vec::new();
    for image in &args.images {
        let removed = store.remove(image, args.force, in_use)?;
        if args.json {
            list.push(
                json!({"Untagged": names(&removed.untagged), "Deleted": removed.deleted.map(|id| id.to_string()),
                "Freed": removed.freed}),
            );
            continue;
        }
        let mut out: String = removed.untagged.iter().map(|name| format!("Untagged: {}\n", name.familiar())).collect();
        if let Some(id) = removed.deleted {
            out.push_str(&format!("Deleted: {id}\n"));
        }
        print(&out)?;
    }
    if args.json { print_json(&Value::Array(list)) } else { Ok(()) }
}

/// All that is known about an image, with docker's keys.
pub fn inspect_json(image: &Image) -> Value {
    json!({
        "Id": image.id.to_string(),
        "RepoTags": names(&image.names),
        "Created": image.created,
        "LoadedAt": image.loaded_at,
        "Architecture": image.architecture,
        "Os": image.os,
        "Size": image.size,
        "ManifestDigest": image.manifest_digest.map(|digest| digest.to_string()),
        "ChainId": image.chain_id.to_string(),
        "Config": image.config,
        "RootFS": {"Type": "layers", "Layers": image.diff_ids.iter().map(ToString::to_string).collect::<Vec<_>>()},
    })
}

fn inspect(store: &Store, args: &InspectArgs) -> Result<(), Report> {
    let mut list = Vec::new();
    for name in &args.images {
        let image = store.resolve(name)?;
        list.push(inspect_json(&image));
    }
    print_json(&Value::Array(list))
}

fn unpack(store: &Store, args: &UnpackArgs) -> Result<(), Report> {
    let image = store.resolve(&args.image)?;
    let failed = |cause: io::Error| {
        Report::new(format!("cannot unpack the image `{}` into `{}`", image.label(), args.dir.display()))
            .with_cause(cause)
    };
    std::fs::create_dir_all(&args.dir).map_err(failed)?;
    if std::fs::read_dir(&args.dir).map_err(failed)?.next().is_some() {
        return Err(
            Report::new(format!("the directory `{}` is not empty", args.dir.display())).with_hint("choose a new one")
        );
    }
    let dir = directory::open_root(&args.dir).map_err(failed)?;
    let tree = store.tree(&image)?;
    let sources = store.open_sources(&tree)?;
    directory::render(&tree, &sources, dir.as_fd())?;
    Ok(())
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
