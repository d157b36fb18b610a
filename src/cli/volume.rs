//! `gpurun volume create | inspect | ls | prune | rm`: named volumes, and the anonymous ones of containers.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::IsTerminal;
use std::path::{Path, PathBuf};

use clap::{Args, Subcommand};
use serde_json::{Value, json};

use super::confirm::confirm;
use super::exists::{ExistsArgs, existence};
use super::filter::Filters;
use super::format::{self, Format, Titles};
use super::view::{self, Images, View};
use super::volume_use::users;
use super::{Context, copy, image, print};
use crate::clock::rfc3339;
use crate::durable::FileLock;
use crate::record::Records;
use crate::report::Report;
use crate::template;
use crate::volume::{ANONYMOUS, Volume, Volumes};

#[derive(Debug, Args)]
pub(super) struct VolumeArgs {
    #[command(subcommand)]
    command: VolumeCommand,
}

#[derive(Debug, Subcommand)]
enum VolumeCommand {
    /// Create a volume
    Create(CreateArgs),
    /// Exit with status 0 if a volume exists, and with 1 if not
    Exists(ExistsArgs),
    /// Write the files of a volume as a tar archive
    Export(ExportArgs),
    /// Extract a tar archive into a volume
    Import(ImportArgs),
    /// Show details of volumes as JSON, with the containers that use them
    Inspect(InspectArgs),
    /// List volumes
    #[command(alias = "list")]
    Ls(LsArgs),
    /// Mount the file system of a volume until `unmount`, and print the volume's directory
    Mount(MountArgs),
    /// Remove unused volumes
    Prune(PruneArgs),
    /// Remove volumes that no container uses
    #[command(alias = "remove")]
    Rm(RmArgs),
    /// Unmount the file system of a volume that `mount` mounted
    Unmount(MountArgs),
}

#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  gpurun volume create data\n  gpurun volume create -o type=none -o o=bind -o device=/srv/data data\n  gpurun volume create -o type=tmpfs -o device=tmpfs -o o=size=1g scratch\n  gpurun volume create -o type=nfs -o o=addr=10.0.0.2 -o device=:/export shared\n\nThe file system is mounted while containers use the volume, and the image's files are not copied to it."
)]
struct CreateArgs {
    /// Driver of the volume: `local`, a directory of this host
    #[arg(short, long, value_name = "DRIVER", default_value = "local")]
    driver: String,
    /// Set a label
    #[arg(long, value_name = "KEY[=VALUE]")]
    label: Vec<String>,
    /// Accepted for compatibility with podman: a volume that exists is left as it is
    #[arg(long, hide = true)]
    ignore: bool,
    /// Option of the driver, as in docker: `type`, `device` and `o` of a file system that containers of the volume mount
    #[arg(short, long, value_name = "KEY=VALUE")]
    opt: Vec<String>,
    /// Name of the volume (default: a random name)
    #[arg(value_name = "NAME")]
    name: Option<String>,
}

#[derive(Debug, Args)]
struct ExportArgs {
    /// File to write (default: standard output)
    #[arg(short, long, value_name = "FILE")]
    output: Option<PathBuf>,
    /// Name of a volume
    #[arg(value_name = "VOLUME")]
    volume: String,
}

#[derive(Debug, Args)]
struct MountArgs {
    /// Names of volumes
    #[arg(required = true, value_name = "VOLUME")]
    volumes: Vec<String>,
}

#[derive(Debug, Args)]
struct ImportArgs {
    /// Name of a volume
    #[arg(value_name = "VOLUME")]
    volume: String,
    /// Archive (plain, gzip or zstd), or `-` for standard input
    #[arg(value_name = "FILE")]
    file: PathBuf,
}

#[derive(Debug, Args)]
struct InspectArgs {
    /// Print a Go template for each volume, or a JSON object per line (`json`)
    #[arg(short, long, value_name = "FORMAT")]
    format: Option<String>,
    /// Accepted for symmetry: the output is always JSON
    #[arg(long, hide = true)]
    json: bool,
    /// Names of volumes
    #[arg(required = true, value_name = "VOLUME")]
    volumes: Vec<String>,
}

#[derive(Debug, Args)]
struct LsArgs {
    /// Select volumes: dangling=true, name=TEXT, label=KEY[=VALUE], driver=local
    #[arg(short, long, value_name = "KEY=VALUE")]
    filter: Vec<String>,
    /// Print a table of chosen fields, JSON lines (`json`), or a Go template for each volume
    #[arg(long, value_name = "FORMAT")]
    format: Option<String>,
    /// Print only names
    #[arg(short, long)]
    quiet: bool,
    /// Print no titles
    #[arg(short = 'n', long)]
    noheading: bool,
    /// Print a JSON array
    #[arg(long, conflicts_with_all = ["quiet", "format"])]
    json: bool,
}

#[derive(Debug, Args)]
#[command(
    after_help = "Without --all, only volumes without a name are removed: those of `gpurun volume create` without NAME. The anonymous volumes of containers are removed with their container."
)]
pub(super) struct PruneArgs {
    /// Remove all unused volumes, also those with a name
    #[arg(short, long)]
    pub(super) all: bool,
    /// Do not prompt for confirmation
    #[arg(short, long)]
    pub(super) force: bool,
    /// Select volumes: label=KEY[=VALUE]
    #[arg(long, value_name = "KEY=VALUE")]
    pub(super) filter: Vec<String>,
}

#[derive(Debug, Args)]
struct RmArgs {
    /// Do not fail if a volume does not exist
    #[arg(short, long)]
    force: bool,
    /// Remove all volumes that no container uses
    #[arg(short, long, conflicts_with = "volumes")]
    all: bool,
    /// Accepted for compatibility with podman: a volume that a container uses stays
    #[arg(short, long, hide = true, value_name = "SECONDS", allow_hyphen_values = true)]
    time: Option<String>,
    /// Names of volumes
    #[arg(required_unless_present = "all", value_name = "VOLUME")]
    volumes: Vec<String>,
}

const TITLES: &Titles = &[
    ("Name", "VOLUME NAME"),
    ("Driver", "DRIVER"),
    ("Scope", "SCOPE"),
    ("Mountpoint", "MOUNTPOINT"),
    ("Labels", "LABELS"),
    ("Links", "LINKS"),
    ("Size", "SIZE"),
];

pub(super) fn run(args: &VolumeArgs, context: &Context) -> Result<u8, Report> {
    match &args.command {
        VolumeCommand::Create(args) => create(args, context),
        VolumeCommand::Exists(args) => {
            let (all, _) = all(context, &context.records()?)?;
            Ok(existence(all.iter().any(|used| used.volume.name == args.name)))
        }
        VolumeCommand::Export(args) => export(args, context),
        VolumeCommand::Import(args) => import(args, context),
        VolumeCommand::Inspect(args) => inspect(args, context),
        VolumeCommand::Ls(args) => ls(args, context),
        VolumeCommand::Mount(args) => mount(args, true, context),
        VolumeCommand::Unmount(args) => mount(args, false, context),
        VolumeCommand::Prune(args) => prune(args, context),
        VolumeCommand::Rm(args) => rm(args, context),
    }
}

/// A volume, named or anonymous, and the containers that use it.
struct Used {
    volume: Volume,
    /// Names of containers.
    users: Vec<String>,
    is_anonymous: bool,
}

impl Used {
    fn json(&self) -> Value {
        let size = view::size_of(&self.volume.path);
        json!({
            "CreatedAt": self.volume.created.map(rfc3339),
            "Driver": "local",
            "Labels": self.volume.labels,
            "Mountpoint": self.volume.path,
            "Name": self.volume.name,
            "Options": if self.volume.options.is_empty() { Value::Null } else { json!(self.volume.options) },
            "Scope": "local",
            "UsageData": { "RefCount": self.users.len(), "Size": size },
            "Gpurun": { "Anonymous": self.is_anonymous, "Containers": self.users },
        })
    }
}

/// All volumes. The second value is the reason why the users may be incomplete.
fn all(context: &Context, records: &Records) -> Result<(Vec<Used>, Option<Report>), Report> {
    let (entries, unreadable) = records.list_all()?;
    let mut all: Vec<Used> = Vec::new();
    for volume in Volumes::new(&context.root).list()? {
        let users = users(&entries, &volume.name);
        all.push(Used { volume, users, is_anonymous: false });
    }
    let images = Images::new(context.store().ok());
    for entry in &entries {
        let state = entry.state_shown()?;
        let view = View::new(entry, &state, &images, &context.root);
        for mount in view.mounts().into_iter().filter(|mount| mount.is_anonymous) {
            // Before the first start, it does not exist.
            if let (Some(name), Some(path)) = (mount.name, mount.source.filter(|path| path.is_dir())) {
                let (created, labels) = (Some(entry.record.created), BTreeMap::new());
                let volume = Volume { name, path, created, labels, options: BTreeMap::new() };
                all.push(Used { volume, users: vec![entry.record.name.clone()], is_anonymous: true });
            }
        }
    }
    Ok((all, unreadable.into_iter().next().map(|container| container.error.into())))
}

/// Whether each volume is used, and its size in bytes.
pub(super) fn sizes(context: &Context, records: &Records) -> Result<Vec<(bool, u64)>, Report> {
    let (all, _) = all(context, records)?;
    Ok(all.iter().map(|used| (!used.users.is_empty(), view::size_of(&used.volume.path))).collect())
}

/// The fields of every volume for `gpurun system df --verbose`.
pub(super) fn usage_rows(context: &Context, records: &Records) -> Result<Vec<template::Value>, Report> {
    let (all, _) = all(context, records)?;
    Ok(all.iter().map(|used| fields(used, true)).collect())
}

/// Finds a volume for `inspect`.
pub(super) fn find(context: &Context, name: &str) -> Result<Value, Report> {
    let (all, _) = all(context, &context.records()?)?;
    match all.into_iter().find(|used| used.volume.name == name) {
        Some(used) => Ok(used.json()),
        None => Err(Volumes::new(&context.root).get(name).map_or_else(Report::from, |_| missing(name))),
    }
}

fn missing(name: &str) -> Report {
    crate::volume::VolumeError::Missing(name.to_owned()).into()
}

fn create(args: &CreateArgs, context: &Context) -> Result<u8, Report> {
    if args.driver != "local" {
        return Err(Report::usage(format!("there is no volume driver `{}`", args.driver))
            .with_hint("omit `--driver`: a volume is a directory of this host"));
    }
    let options: BTreeMap<String, String> = args.opt.iter().map(|text| option(text)).collect::<Result<_, _>>()?;
    let mut labels: BTreeMap<String, String> =
        args.label.iter().map(|text| crate::request::parse_label(text)).collect::<Result<_, _>>()?;
    let records = context.records()?;
    let name = args.name.clone().filter(|name| !name.is_empty()).unwrap_or_else(|| {
        labels.insert(ANONYMOUS.to_owned(), String::new());
        crate::names::new_container_id()
    });
    let _lock = records.lock()?;
    match options.is_empty() {
        true => Volumes::new(&context.root).create(&name, &labels)?,
        false => Volumes::new(&context.root).create_with(&name, &labels, &options)?,
    }
    print::out(&format!("{name}\n"))?;
    Ok(0)
}

/// Splits an option of the driver.
fn option(text: &str) -> Result<(String, String), Report> {
    let pair = text.split_once('=').map(|(key, value)| (key.to_owned(), value.to_owned()));
    pair.ok_or_else(|| {
        Report::usage(format!("`--opt {text}` is not `KEY=VALUE`"))
            .with_hint("for example `--opt type=none --opt o=bind --opt device=/DIR`")
    })
}

/// Returns the directory of a volume, and the lock that keeps its file system mounted.
fn opened(context: &Context, name: &str) -> Result<(PathBuf, Option<FileLock>), Report> {
    let (all, _) = all(context, &context.records()?)?;
    let used = all.into_iter().find(|used| used.volume.name == name).ok_or_else(|| missing(name))?;
    let lock = if used.is_anonymous { None } else { Volumes::new(&context.root).mount(name)? };
    Ok((used.volume.path, lock))
}

fn export(args: &ExportArgs, context: &Context) -> Result<u8, Report> {
    let (dir, _lock) = opened(context, &args.volume)?;
    let store = context.store()?;
    let failed = |error: std::io::Error| Report::new("cannot write the archive").with_cause(error);
    match &args.output {
        Some(path) => image::write_atomically(path, &mut |out| copy::write_files(&store, &dir, out))?,
        None if std::io::stdout().is_terminal() => {
            return Err(Report::usage("cannot write a tar archive to a terminal")
                .with_hint(format!("write it to a file: `gpurun volume export -o FILE {}`", args.volume)));
        }
        None => {
            let mut out = std::io::stdout().lock();
            copy::write_files(&store, &dir, &mut out)?;
            std::io::Write::flush(&mut out).map_err(failed)?;
        }
    }
    Ok(0)
}

/// Makes the files of volumes available on this host, or ends that.
fn mount(args: &MountArgs, mount: bool, context: &Context) -> Result<u8, Report> {
    let records = context.records()?;
    let mut first: Option<Report> = None;
    for name in &args.volumes {
        let one = || -> Result<String, Report> {
            let volumes = Volumes::new(&context.root);
            let volume = volumes.get(name)?;
            if mount {
                volumes.keep(name)?;
                return Ok(volume.path.display().to_string());
            }
            volumes.release(name)?;
            volumes.unmount_unused(&|name| super::volume_use::is_in_use(&records, name));
            Ok(name.clone())
        };
        match one() {
            Ok(line) => print::out(&format!("{line}\n"))?,
            Err(report) if first.is_none() => first = Some(report),
            Err(report) => print::say(&report.to_string()),
        }
    }
    first.map_or(Ok(0), Err)
}

fn import(args: &ImportArgs, context: &Context) -> Result<u8, Report> {
    let (dir, _lock) = opened(context, &args.volume)?;
    let store = context.store()?;
    if args.file == Path::new("-") {
        copy::extract_files(&store, &dir, std::io::stdin().lock())?;
    } else {
        let failed = |error| Report::new(format!("cannot read `{}`", args.file.display())).with_cause(error);
        copy::extract_files(&store, &dir, File::open(&args.file).map_err(failed)?)?;
    }
    // What was imported is not replaced by the image's files.
    Volumes::new(&context.root).note_use(&args.volume)?;
    Ok(0)
}

fn inspect(args: &InspectArgs, context: &Context) -> Result<u8, Report> {
    let (mut found, mut first) = (Vec::new(), None);
    for name in &args.volumes {
        match find(context, name) {
            Ok(volume) => found.push(volume),
            Err(report) => drop(first.get_or_insert(report)),
        }
    }
    format::print_all(args.format.as_deref(), &found)?;
    first.map_or(Ok(0), Err)
}

fn ls(args: &LsArgs, context: &Context) -> Result<u8, Report> {
    let format = Format::of(args.format.as_deref())?;
    let filters = Filters::parse(&args.filter, &["dangling", "name", "label", "driver"])?;
    let dangling = filters.truth("dangling")?;
    let (mut volumes, _) = all(context, &context.records()?)?;
    volumes.retain(|used| {
        dangling.is_none_or(|dangling| dangling == used.users.is_empty())
            && filters.name(&used.volume.name)
            && filters.any("driver", |driver| driver == "local")
            && filters.labels(&used.volume.labels)
    });
    if args.json {
        print::json(&volumes.iter().map(Used::json).collect::<Vec<_>>())?;
    } else if !matches!(format, Format::Table) {
        let with_size = format.uses("Size");
        let rows: Vec<template::Value> = volumes.iter().map(|used| fields(used, with_size)).collect();
        format.print(TITLES, &rows, args.noheading)?;
    } else if args.quiet {
        print::out(&volumes.iter().map(|used| used.volume.name.clone() + "\n").collect::<String>())?;
    } else {
        let rows: Vec<Vec<String>> =
            volumes.iter().map(|used| vec!["local".into(), used.volume.name.clone()]).collect();
        print::show_rows(&["DRIVER", "VOLUME NAME"], &rows, args.noheading)?;
    }
    Ok(0)
}

fn fields(used: &Used, with_size: bool) -> template::Value {
    let volume = &used.volume;
    let labels: Vec<String> = volume.labels.iter().map(|(key, value)| format!("{key}={value}")).collect();
    let mut row = format::row([
        ("Name", volume.name.as_str().into()),
        ("Driver", "local".into()),
        ("Scope", "local".into()),
        ("Mountpoint", volume.path.display().to_string().into()),
        ("Labels", labels.join(",").into()),
        ("Links", used.users.len().to_string().into()),
        ("Size", if with_size { image::size(view::size_of(&volume.path)) } else { "N/A".into() }.into()),
    ]);
    if let template::Value::Fields(fields) = &mut row {
        fields.insert("Label".into(), template::Value::Lookup(volume.labels.clone()));
    }
    row
}

fn rm(args: &RmArgs, context: &Context) -> Result<u8, Report> {
    let records = context.records()?;
    let every = match args.all {
        true => {
            let (all, unknown) = all(context, &records)?;
            if let Some(report) = unknown {
                return Err(report.under("cannot find out which volumes are used"));
            }
            let unused = all.into_iter().filter(|used| used.users.is_empty() && !used.is_anonymous);
            unused.map(|used| used.volume.name).collect()
        }
        false => args.volumes.clone(),
    };
    super::containers::for_each(&every, |name| {
        let removal = {
            let _lock = records.lock()?;
            let (all, unknown) = all(context, &records)?;
            let Some(used) = all.iter().find(|used| used.volume.name == name) else {
                return if args.force { Ok(()) } else { Err(missing(name)) };
            };
            may_remove(used, unknown)?;
            Volumes::new(&context.root).remove(name)?
        };
        Ok(removal.finish()?)
    })
}

/// Refuses the removal of a volume that a container uses, or may use.
fn may_remove(used: &Used, unknown: Option<Report>) -> Result<(), Report> {
    let name = &used.volume.name;
    let refused = |why: String| Report::new(format!("cannot remove the volume `{name}`: {why}")).with_exit_code(1);
    match (&used.users[..], unknown) {
        ([user, ..], _) if used.is_anonymous => Err(refused(format!("it belongs to the container `{user}`"))
            .with_hint(format!("remove the container, and the volume with it: `gpurun rm {user}`"))),
        ([user, more @ ..], _) => {
            let others = if more.is_empty() { String::new() } else { format!(" and {} more", more.len()) };
            Err(refused(format!("the container `{user}`{others} uses it"))
                .with_hint(format!("remove the container first: `gpurun rm {user}`")))
        }
        ([], Some(report)) => {
            Err(report.under(format!("cannot find out whether a container uses the volume `{name}`")))
        }
        ([], None) => Ok(()),
    }
}

fn prune(args: &PruneArgs, context: &Context) -> Result<u8, Report> {
    let what =
        if args.all { "all volumes that no container uses" } else { "all anonymous volumes that no container uses" };
    if !args.force {
        confirm(what, "gpurun volume prune --force")?;
    }
    let (names, bytes) = prune_unused(args, context)?;
    if !names.is_empty() {
        print::out(&format!("Deleted Volumes:\n{}\n\n", names.join("\n")))?;
    }
    print::out(&format!("Total reclaimed space: {}\n", image::size(bytes)))?;
    Ok(0)
}

/// Removes the unused volumes. Returns their names and their size in bytes.
pub(super) fn prune_unused(args: &PruneArgs, context: &Context) -> Result<(Vec<String>, u64), Report> {
    let filters = Filters::parse(&args.filter, &["label", "all"])?;
    let all_of_them = args.all || filters.truth("all")? == Some(true);
    let records = context.records()?;
    let (mut names, mut bytes, mut removals) = (Vec::new(), 0, Vec::new());
    {
        let _lock = records.lock()?;
        let (all, unknown) = all(context, &records)?;
        if let Some(report) = unknown {
            return Err(report.under("cannot find out which volumes are used"));
        }
        let unused = all
            .iter()
            .filter(|used| used.users.is_empty() && !used.is_anonymous && (all_of_them || used.volume.is_unnamed()));
        for used in unused.filter(|used| filters.labels(&used.volume.labels)) {
            bytes += view::size_of(&used.volume.path);
            removals.push(Volumes::new(&context.root).remove(&used.volume.name)?);
            names.push(used.volume.name.clone());
        }
    }
    removals.into_iter().try_for_each(crate::volume::Removal::finish)?;
    Ok((names, bytes))
}
