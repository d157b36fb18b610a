//! What `run`, `create` and the bare launch do between reading their flags and recording the container: the parts that
//! depend on other containers, on the image, or on files of the caller.

use std::fs::{File, OpenOptions};
use std::io::{ErrorKind, Write};
use std::path::{Path, PathBuf};

use super::Context;
use super::flags::ContainerFlags;
use crate::image::Config;
use crate::launch;
use crate::record::{Entry, Records};
use crate::report::{EXIT_GPURUN, Report};
use crate::request::{GpuRequest, HealthConfig, IpcMode, MountRequest, MountSource, Request, VolumesFrom};
use crate::store::Store;

/// The variable with which NVIDIA's own runtime selects GPUs.
const VISIBLE_DEVICES: &str = "NVIDIA_VISIBLE_DEVICES";

/// Replaces the names of other containers: those of `--ipc` and `--pid` by IDs, which do not change, and
/// those of `--volumes-from` by their mounts.
pub(super) fn resolve_others(flags: &ContainerFlags, request: &mut Request, context: &Context) -> Result<(), Report> {
    let from = super::resources::each(&flags.files.volumes_from, str::parse::<VolumesFrom>)?;
    let joins = request.pid_container.is_some() || matches!(request.ipc, IpcMode::Container(_));
    if from.is_empty() && !joins {
        return Ok(());
    }
    let records = context.records()?;
    let find = |name: &str| records.find_whole(name).map_err(|report| report.with_exit_code(EXIT_GPURUN));
    if let IpcMode::Container(name) = &request.ipc {
        let other = find(name)?;
        launch::check_shareable(&other)?;
        request.ipc = IpcMode::Container(other.record.id);
    }
    if let Some(name) = &mut request.pid_container {
        *name = find(name)?.record.id;
    }
    for one in from {
        let other = find(&one.container)?;
        for mount in mounts_of(&other, context)? {
            // The container's own mount wins over another container's at the same destination.
            if !request.mounts.iter().any(|known| known.destination == mount.destination) {
                request.mounts.push(MountRequest { read_only: mount.read_only || one.read_only, ..mount });
            }
        }
    }
    Ok(())
}

/// The volumes and host directories of a container, as another container mounts them.
fn mounts_of(other: &Entry, context: &Context) -> Result<Vec<MountRequest>, Report> {
    let record = &other.record;
    let volumes = Store::open(&context.root)?.image_of(record.image)?.config.volumes;
    let mut mounts = Vec::new();
    for (number, (mount, _)) in launch::listed_mounts(&context.root, other, &volumes).into_iter().enumerate() {
        let source = match mount.source {
            MountSource::Tmpfs { .. } => continue,
            MountSource::Volume { name: None, .. } if record.request.auto_remove => {
                return Err(Report::usage(format!(
                    "cannot use `--volumes-from {}`: its volume `{}` is removed with the container, which has `--rm`",
                    record.name,
                    mount.destination.display()
                ))
                .with_hint("give the volume a name: `-v NAME:/DIR` for both containers"));
            }
            MountSource::Volume { name: None, .. } => MountSource::VolumeOf { container: record.id.clone(), number },
            other => other,
        };
        mounts.push(MountRequest { source, ..mount });
    }
    Ok(mounts)
}

/// Finds the images of `--mount type=image`. The caller holds the store's lock until the container is recorded.
pub(super) fn resolve_images(request: &mut Request, store: &Store) -> Result<(), Report> {
    for mount in &mut request.mounts {
        if let MountSource::Image { name, id, .. } = &mut mount.source {
            let found = store.resolve(name).map_err(|error| {
                Report::from(error)
                    .under(format!("cannot mount the image `{name}` on `{}`", mount.destination.display()))
            })?;
            *id = Some(found.id);
        }
    }
    Ok(())
}

/// Refuses an action for an unhealthy container that has no health check.
pub(super) fn check_health_action(request: &Request, image: &Config) -> Result<(), Report> {
    let action = request.health_on_failure;
    let config = request.health.clone().unwrap_or_default().over(HealthConfig::of_image(image.healthcheck.as_ref()));
    if action.is_none() || config.check(&[]).is_some() {
        return Ok(());
    }
    let action = action.name();
    Err(Report::usage(format!("cannot set on-failure action to {action} without a health check"))
        .with_exit_code(EXIT_GPURUN)
        .with_hint("define one with `--health-cmd COMMAND`, or omit `--health-on-failure`"))
}

/// Selects the GPUs that NVIDIA's own runtime would select: those of the variable in the request, or else in the image.
pub(super) fn select_gpus(request: &mut Request, image: &Config) -> Result<(), Report> {
    if request.gpus.is_some() || !request.runtime.as_ref().is_some_and(|runtime| runtime.is_nvidia()) {
        return Ok(());
    }
    let asked = request.env.iter().rev().find(|(name, _)| name == VISIBLE_DEVICES).map(|(_, value)| value.as_str());
    let of_image = || image.env.iter().rev().filter_map(|entry| entry.split_once('='));
    let value = asked.or_else(|| of_image().find(|(name, _)| *name == VISIBLE_DEVICES).map(|(_, value)| value));
    let Some(value) = value else { return Ok(()) };
    request.gpus = GpuRequest::of_visible_devices(value).map_err(|error| {
        Report::from(error)
            .under(format!("cannot use `--runtime nvidia` with `{VISIBLE_DEVICES}={}`", value.escape_debug()))
    })?;
    launch::check(request)
}

/// Ends a container if it runs, and removes it. The commands that do so depend on this module's callers, which pass it.
pub(super) type Remove = fn(&Records, &Entry) -> Result<(), Report>;

/// Removes the container that has the requested name, for `--replace`.
pub(super) fn replace(flags: &ContainerFlags, context: &Context, remove: Remove) -> Result<(), Report> {
    let name = super::step::task_name(flags.name.as_deref());
    let (true, Some(name)) = (flags.replace, name) else { return Ok(()) };
    let records = context.records()?;
    match records.list()?.into_iter().find(|entry| entry.record.name == name) {
        Some(entry) => remove(&records, &entry),
        None => Ok(()),
    }
}

/// The file of `--cidfile`. It is removed if the container does not start.
pub(super) struct CidFile {
    path: PathBuf,
    file: File,
    keep: bool,
}

impl CidFile {
    /// Creates the file, which must not exist: it may be another container's.
    pub(super) fn create(path: Option<&Path>) -> Result<Option<Self>, Report> {
        let Some(path) = path else { return Ok(None) };
        match OpenOptions::new().write(true).create_new(true).open(path) {
            Ok(file) => Ok(Some(Self { path: path.to_owned(), file, keep: false })),
            Err(error) if error.kind() == ErrorKind::AlreadyExists => Err(Report::new(format!(
                "cannot write the container's ID to `{}`: the file exists, and may be another container's",
                path.display()
            ))
            .with_hint(format!("remove it if that container is gone: `rm {}`", path.display()))),
            Err(error) => Err(failed(path, error)),
        }
    }

    pub(super) fn write(&mut self, id: &str) -> Result<(), Report> {
        self.file.write_all(id.as_bytes()).map_err(|error| failed(&self.path, error))
    }

    pub(super) fn keep(mut self) {
        self.keep = true;
    }
}

impl Drop for CidFile {
    fn drop(&mut self) {
        if !self.keep {
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

fn failed(path: &Path, error: std::io::Error) -> Report {
    Report::new(format!("cannot write the container's ID to `{}`", path.display())).with_cause(error)
}
