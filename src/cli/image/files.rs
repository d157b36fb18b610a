//! `gpurun image save | mount | unmount | unpack`: an image's files, outside the store.

use std::fs::File;
use std::io::{self, IsTerminal};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};

use clap::Args;
use serde_json::{Value, json};

use super::output::{self, Output};
use super::transfer::{Packing, PullPolicy, RegistryFlags, provide};
use super::{Place, names, print, print_json};
use crate::layer::directory;
use crate::report::Report;
use crate::rootfs::{images, stored};
use crate::store::{Format, Image, Sink, Store, ToSave};

#[derive(Debug, Args)]
pub struct SaveArgs {
    /// Names, ids, or sources as skopeo writes them
    #[arg(required = true, value_name = "IMAGE")]
    pub images: Vec<String>,
    /// File or directory to write (default: standard output)
    #[arg(short, long, value_name = "PATH")]
    pub output: Option<PathBuf>,
    /// What to write; a docker-archive is read by docker, podman and skopeo, and is an OCI archive too
    #[arg(long, value_name = "FORMAT", default_value = "docker-archive")]
    pub format: FormatFlag,
    /// How the layers of the OCI formats are packed
    #[arg(long, value_name = "gzip|zstd|none", default_value = "none")]
    pub compression: Packing,
    #[command(flatten)]
    pub registry: RegistryFlags,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum FormatFlag {
    DockerArchive,
    OciArchive,
    OciDir,
}

#[derive(Debug, Args)]
pub struct MountArgs {
    /// Names, ids, or sources as skopeo writes them; none: list what is mounted
    #[arg(value_name = "IMAGE")]
    pub images: Vec<String>,
    /// Print as JSON
    #[arg(long)]
    pub json: bool,
    #[command(flatten)]
    pub registry: RegistryFlags,
}

#[derive(Debug, Args)]
pub struct UnmountArgs {
    /// Names or ids
    #[arg(required_unless_present = "all", value_name = "IMAGE")]
    pub images: Vec<String>,
    /// Unmount all that were mounted
    #[arg(short, long, conflicts_with = "images")]
    pub all: bool,
}

#[derive(Debug, Args)]
pub struct UnpackArgs {
    /// Name or id, or a source as skopeo writes it: `oci:DIR[:TAG]`, `docker-archive:FILE[:NAME]`, `docker://NAME`
    #[arg(value_name = "SOURCE")]
    pub image: String,
    /// An empty directory, made if it is not there
    pub dir: PathBuf,
    #[command(flatten)]
    pub registry: RegistryFlags,
}

pub fn save(store: &Store, args: &SaveArgs) -> Result<(), Report> {
    let mut list: Vec<ToSave> = Vec::new();
    for name in &args.images {
        let name = &provide(store, name, PullPolicy::Never, &args.registry)?;
        let image = store.resolve(name)?;
        // Under the name that was said; by its id, under all that it has.
        let said: Vec<_> = image.names.iter().filter(|known| store.is_name(name, known)).cloned().collect();
        let names = if said.is_empty() { image.names.clone() } else { said };
        match list.iter_mut().find(|known| known.image.id == image.id) {
            Some(known) => {
                let more: Vec<_> = names.into_iter().filter(|name| !known.names.contains(name)).collect();
                known.names.extend(more);
            }
            None => list.push(ToSave { image, names }),
        }
    }
    let packing = args.compression.into();
    let failed =
        |path: &Path, error: io::Error| Report::new(format!("cannot write `{}`", path.display())).with_cause(error);
    match (&args.output, args.format) {
        (Some(dir), FormatFlag::OciDir) => {
            Ok(store.save(&list, Format::OciDirectory, packing, Sink::Directory(dir))?)
        }
        (None, FormatFlag::OciDir) => Err(Report::usage("an OCI layout is a directory: name it with `--output DIR`")),
        (None, format) => {
            if io::stdout().is_terminal() {
                return Err(Report::usage("cannot write an image to a terminal")
                    .with_hint(format!("write `gpurun image save -o FILE {}`", args.images.join(" "))));
            }
            Ok(store.save(&list, archive(format), packing, Sink::Stream(&mut io::stdout().lock()))?)
        }
        // A pipe or a device is written as it is.
        (Some(path), format) if output::is_stream(path) => {
            let mut out = File::options().write(true).open(path).map_err(|error| failed(path, error))?;
            Ok(store.save(&list, archive(format), packing, Sink::Stream(&mut out))?)
        }
        (Some(path), format) => {
            let mut out = Output::begin(path).map_err(|error| failed(path, error))?;
            store.save(&list, archive(format), packing, Sink::Stream(out.file()))?;
            out.place().map_err(|error| failed(path, error))
        }
    }
}

fn archive(format: FormatFlag) -> Format {
    match format {
        FormatFlag::DockerArchive => Format::DockerArchive,
        FormatFlag::OciArchive | FormatFlag::OciDir => Format::OciArchive,
    }
}

pub fn mount(store: &Store, args: &MountArgs, place: &Place<'_>) -> Result<(), Report> {
    if args.images.is_empty() {
        return list_mounts(store, args.json, place);
    }
    let mut mounted = Vec::new();
    for name in &args.images {
        let name = provide(store, name, PullPolicy::Never, &args.registry)?;
        let hold = store.hold()?;
        let image = store.resolve(&name)?;
        let lower = stored::lower(&place.images, store, &image)?;
        images::keep(&place.images, &image.chain_id.hex())
            .map_err(|error| Report::new(format!("cannot keep the mount of `{}`", image.label())).with_cause(error))?;
        drop(hold);
        mounted.push((image, lower.dir.clone()));
    }
    show_mounts(&mounted, args.json, args.images.len() > 1)
}

fn list_mounts(store: &Store, json: bool, place: &Place<'_>) -> Result<(), Report> {
    let mut mounted = Vec::new();
    for image in store.list()? {
        if place.is_mounted(&image) {
            let dir = place.images.join(image.chain_id.hex());
            let dir = if dir.exists() { dir } else { store.directory_path(&image.chain_id) };
            mounted.push((image, dir));
        }
    }
    show_mounts(&mounted, json, true)
}

fn show_mounts(mounted: &[(Image, PathBuf)], json: bool, with_names: bool) -> Result<(), Report> {
    if json {
        let list =
            mounted.iter().map(|(image, dir)| json!({"Id": image.id, "Names": names(&image.names), "Path": dir}));
        return print_json(&Value::Array(list.collect()));
    }
    let line = |(image, dir): &(Image, PathBuf)| match with_names {
        true => format!("{}  {}\n", image.label(), dir.display()),
        false => format!("{}\n", dir.display()),
    };
    print(&mounted.iter().map(line).collect::<String>())
}

pub fn unmount(store: &Store, args: &UnmountArgs, place: &Place<'_>) -> Result<(), Report> {
    let wanted = match args.all {
        true => store.list()?.into_iter().filter(|image| place.is_mounted(image)).collect(),
        false => args.images.iter().map(|name| store.resolve(name)).collect::<Result<Vec<_>, _>>()?,
    };
    for image in wanted {
        let chain = image.chain_id.hex();
        let failed = |error: io::Error| Report::new(format!("cannot unmount `{}`", image.label())).with_cause(error);
        if !images::release(&place.images, &chain).map_err(failed)? {
            return Err(Report::new(format!("`{}` is not mounted", image.label()))
                .with_hint("`gpurun image mount` lists what is"));
        }
        // A container that uses it keeps it; it goes with that.
        images::sweep_one(&place.images, &chain).map_err(failed)?;
        print(&format!("{}\n", image.label()))?;
    }
    Ok(())
}

pub fn unpack(store: &Store, args: &UnpackArgs) -> Result<(), Report> {
    let name = provide(store, &args.image, PullPolicy::Never, &args.registry)?;
    let image = store.resolve(&name)?;
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
