//! `gpurun image save | mount | unmount | unpack`: makes an image's files available outside the store.

use std::fs::File;
use std::io::{self, IsTerminal};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};

use clap::Args;
use serde_json::{Value, json};

use super::manage::in_store;
use super::output::{self, Output};
use super::text::{names, print, print_json};
use super::transfer::{Packing, PullPolicy, RegistryFlags, provide};
use super::users::Mounts;
use crate::build::{self, Commit};
use crate::layer::directory;
use crate::names::Reference;
use crate::report::Report;
use crate::rootfs::{images, stored};
use crate::store::{Format, Image, Sink, Store, ToSave};
use crate::sys::process::CallerUmask;

#[derive(Debug, Args)]
pub(crate) struct SaveArgs {
    /// Names or IDs of images, or sources in skopeo's notation
    #[arg(required = true, value_name = "IMAGE")]
    pub images: Vec<String>,
    /// File or directory to write (default: standard output)
    #[arg(short, long, value_name = "PATH")]
    pub output: Option<PathBuf>,
    /// Format of the output; a docker-archive is an OCI archive too
    #[arg(long, value_name = "FORMAT", default_value = "docker-archive")]
    pub format: FormatFlag,
    /// Compression of the layers in the OCI formats
    #[arg(long, value_name = "gzip|zstd|none", default_value = "none")]
    pub compression: Packing,
    /// Accepted for compatibility with podman: nothing is printed
    #[arg(short, long, hide = true)]
    pub quiet: bool,
    #[command(flatten)]
    pub registry: RegistryFlags,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum FormatFlag {
    DockerArchive,
    OciArchive,
    OciDir,
}

#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  gpurun import rootfs.tar.gz lab/base:1\n  gpurun export lab | gpurun import -c 'CMD [\"bash\"]' - lab:files"
)]
pub(crate) struct ImportArgs {
    /// Apply an instruction to the image's config: CMD, ENV, USER, …
    #[arg(short, long, value_name = "INSTRUCTION")]
    pub change: Vec<String>,
    /// Comment in the image's history
    #[arg(short, long, value_name = "TEXT", default_value = "")]
    pub message: String,
    /// Accepted for compatibility with podman: only the ID is printed
    #[arg(short, long, hide = true)]
    pub quiet: bool,
    /// Archive (plain, gzip or zstd), or `-` for standard input
    #[arg(value_name = "FILE")]
    pub file: PathBuf,
    /// Name of the image (default: none)
    #[arg(value_name = "NAME[:TAG]")]
    pub name: Option<Reference>,
}

pub(super) fn import(store: &Store, args: &ImportArgs) -> Result<(), Report> {
    let commit = Commit {
        name: args.name.clone(),
        changes: args.change.clone(),
        message: args.message.clone(),
        author: String::new(),
        clamp: crate::cli::moment::source_date_epoch(None)?,
    };
    let id = if args.file == Path::new("-") {
        if io::stdin().is_terminal() {
            return Err(Report::usage("cannot read a tar archive from a terminal")
                .with_hint("name the file, or pipe it: `gpurun export NAME | gpurun import - NEW`"));
        }
        build::import(store, io::stdin().lock(), "-", &commit)?
    } else {
        let file = File::open(&args.file)
            .map_err(|error| Report::new(format!("cannot read `{}`", args.file.display())).with_cause(error))?;
        build::import(store, file, &args.file.display().to_string(), &commit)?
    };
    print(&format!("{id}\n"))
}

#[derive(Debug, Args)]
pub(crate) struct MountArgs {
    /// Names or IDs of images, or sources in skopeo's notation (default: none, list the mounted images)
    #[arg(value_name = "IMAGE")]
    pub images: Vec<String>,
    /// Print as JSON
    #[arg(long)]
    pub json: bool,
    #[command(flatten)]
    pub registry: RegistryFlags,
}

#[derive(Debug, Args)]
pub(crate) struct UnmountArgs {
    /// Names or IDs of images
    #[arg(required_unless_present = "all", value_name = "IMAGE")]
    pub images: Vec<String>,
    /// Unmount all images
    #[arg(short, long, conflicts_with = "images")]
    pub all: bool,
    /// Accepted for compatibility with podman: a mount that a container uses stays until the container ends
    #[arg(short, long, hide = true)]
    pub force: bool,
}

#[derive(Debug, Args)]
pub(crate) struct UnpackArgs {
    /// Name or ID of an image, or a source in skopeo's notation: `oci:DIR[:TAG]`, `docker-archive:FILE[:NAME]`, `docker://NAME`
    #[arg(value_name = "SOURCE")]
    pub image: String,
    /// Destination, an empty or new directory
    #[arg(value_name = "DIR")]
    pub dir: PathBuf,
    #[command(flatten)]
    pub registry: RegistryFlags,
}

pub(super) fn save(store: &Store, args: &SaveArgs) -> Result<(), Report> {
    let mut list: Vec<ToSave> = Vec::new();
    for name in &args.images {
        let name = &provide(store, name, PullPolicy::Never, &args.registry)?;
        let image = store.resolve(name)?;
        // Save the image under the name that was given. An image given by its id is saved under all its names.
        let typed: Vec<_> = image.names.iter().filter(|known| store.is_name(name, known)).cloned().collect();
        let names = if typed.is_empty() { image.names.clone() } else { typed };
        match list.iter_mut().find(|known| known.image.id == image.id) {
            Some(known) => {
                let more: Vec<_> = names.into_iter().filter(|name| !known.names.contains(name)).collect();
                known.names.extend(more);
            }
            None => list.push(ToSave { image, names }),
        }
    }
    let hint = || format!("write it to a file: `gpurun image save -o FILE {}`", args.images.join(" "));
    write_images(store, &list, args.output.as_deref(), args.format, args.compression, &hint)
}

/// Saves one image for another command, with these names alone.
pub(crate) fn save_image(
    store: &Store,
    image: ToSave,
    output: Option<&Path>,
    format: FormatFlag,
    compression: Packing,
) -> Result<(), Report> {
    let hint = || "name a file: `--output type=docker,dest=FILE`".to_owned();
    write_images(store, &[image], output, format, compression, &hint)
}

/// The error of an output file.
fn failed(path: &Path, error: io::Error) -> Report {
    let report = Report::new(format!("cannot write `{}`", path.display()));
    let directory = path.parent().filter(|directory| *directory != Path::new("") && !directory.exists());
    match directory {
        Some(directory) => report.with_hint(format!("create the directory: `mkdir -p {}`", directory.display())),
        None => report,
    }
    .with_cause(error)
}

/// Writes images to a file or directory, or to standard output.
fn write_images(
    store: &Store,
    list: &[ToSave],
    output: Option<&Path>,
    format: FormatFlag,
    compression: Packing,
    no_terminal: &dyn Fn() -> String,
) -> Result<(), Report> {
    let packing = compression.into();
    match (output, format) {
        (Some(dir), FormatFlag::OciDir) => Ok(store.save(list, Format::OciDirectory, packing, Sink::Directory(dir))?),
        (None, FormatFlag::OciDir) => Err(Report::usage("an OCI layout is a directory: name it with `--output DIR`")),
        (None, format) => {
            if io::stdout().is_terminal() {
                return Err(Report::usage("cannot write an image to a terminal").with_hint(no_terminal()));
            }
            Ok(store.save(list, archive(format), packing, Sink::Stream(&mut io::stdout().lock()))?)
        }
        // A pipe or a device is written to directly.
        (Some(path), format) if output::is_stream(path) => {
            let mut out = File::options().write(true).open(path).map_err(|error| failed(path, error))?;
            Ok(store.save(list, archive(format), packing, Sink::Stream(&mut out))?)
        }
        (Some(path), format) => {
            let mut out = Output::begin(path).map_err(|error| failed(path, error))?;
            store.save(list, archive(format), packing, Sink::Stream(out.file()))?;
            out.rename_into_place().map_err(|error| failed(path, error))
        }
    }
}

/// Writes a file that is replaced atomically.
pub(crate) fn write_atomically(
    path: &Path,
    write: &mut dyn FnMut(&mut File) -> Result<(), Report>,
) -> Result<(), Report> {
    let failed = |error: io::Error| failed(path, error);
    if output::is_stream(path) {
        return write(&mut File::options().write(true).open(path).map_err(failed)?);
    }
    let mut out = Output::begin(path).map_err(failed)?;
    write(out.file())?;
    out.rename_into_place().map_err(failed)
}

fn archive(format: FormatFlag) -> Format {
    match format {
        FormatFlag::DockerArchive => Format::DockerArchive,
        FormatFlag::OciArchive | FormatFlag::OciDir => Format::OciArchive,
    }
}

pub(super) fn mount(store: &Store, args: &MountArgs, mounts: &Mounts<'_>) -> Result<(), Report> {
    if args.images.is_empty() {
        return list_mounts(store, args.json, mounts);
    }
    let mut mounted = Vec::new();
    for name in &args.images {
        let name = provide(store, name, PullPolicy::Never, &args.registry)?;
        let hold = store.hold()?;
        let image = store.resolve(&name)?;
        let lower = stored::lower(&mounts.images, store, &image)?;
        images::keep(&mounts.images, &image.chain_id.hex())
            .map_err(|error| Report::new(format!("cannot mount `{}`", image.label())).with_cause(error))?;
        drop(hold);
        mounted.push((image, lower.dir.clone()));
    }
    show_mounts(&mounted, args.json, args.images.len() > 1)
}

fn list_mounts(store: &Store, json: bool, mounts: &Mounts<'_>) -> Result<(), Report> {
    let mut mounted = Vec::new();
    for image in store.list()? {
        if mounts.is_mounted(&image) {
            let dir = mounts.images.join(image.chain_id.hex());
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

pub(super) fn unmount(store: &Store, args: &UnmountArgs, mounts: &Mounts<'_>) -> Result<(), Report> {
    let wanted = match args.all {
        true => store.list()?.into_iter().filter(|image| mounts.is_mounted(image)).collect(),
        false => args.images.iter().map(|name| store.resolve(name).map_err(in_store)).collect::<Result<Vec<_>, _>>()?,
    };
    for image in wanted {
        let chain = image.chain_id.hex();
        let failed = |error: io::Error| Report::new(format!("cannot unmount `{}`", image.label())).with_cause(error);
        if !images::release(&mounts.images, &chain).map_err(failed)? {
            return Err(Report::new(format!("`{}` is not mounted", image.label()))
                .with_hint("list the mounted images with `gpurun image mount`"));
        }
        // The mount remains while a container uses it, and is removed with that container.
        images::sweep_one(&mounts.images, &chain).map_err(failed)?;
        print(&format!("{}\n", image.label()))?;
    }
    Ok(())
}

pub(super) fn unpack(store: &Store, args: &UnpackArgs) -> Result<(), Report> {
    let name = provide(store, &args.image, PullPolicy::Never, &args.registry)?;
    let image = store.resolve(&name)?;
    let failed = |cause: io::Error| {
        Report::new(format!("cannot unpack the image `{}` into `{}`", image.label(), args.dir.display()))
            .with_cause(cause)
    };
    {
        let _umask = CallerUmask::enter();
        std::fs::create_dir_all(&args.dir).map_err(failed)?;
    }
    if std::fs::read_dir(&args.dir).map_err(failed)?.next().is_some() {
        return Err(Report::new(format!("cannot write to the directory `{}`: it is not empty", args.dir.display()))
            .with_hint("choose an empty or a new directory"));
    }
    let dir = directory::open_root(&args.dir).map_err(failed)?;
    let tree = store.tree(&image)?;
    let sources = store.open_sources(&tree)?;
    directory::render(&tree, &sources, dir.as_fd()).map_err(|error| {
        Report::from(error).under(format!("cannot unpack the image `{}` into `{}`", image.label(), args.dir.display()))
    })
}
