//! `--gpus` and `--device`: plans the GPU injection with the gpu module, takes the lease, and adds the edits to the
//! container's root and plan.

use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use super::context::Launch;
use super::progress::{Progress, Tell};
use super::undo::Undo;
use crate::gpu::{self, Early, Edits, GpuError, Requested, lease, usage};
use crate::record::Entry;
use crate::report::Report;
use crate::request::{DeviceRequest, GpuMode, GpuRequest, Request, RestartPolicy, check_node};
use crate::spec::{Device, Limits};
use crate::units::CpuSet;

/// The root directory below which the driver and its hook are searched. A root other than `/` is for tests, and for
/// drivers that are installed in a separate tree.
#[must_use]
pub(crate) fn driver_root() -> PathBuf {
    std::env::var_os("GPURUN_DRIVER_ROOT").map_or_else(|| PathBuf::from("/"), PathBuf::from)
}

/// The parts of a request that concern GPUs.
fn requested(request: &Request) -> Requested<'_> {
    let devices = request.devices.iter().filter_map(|device| match device {
        DeviceRequest::Cdi(name) => Some(name.clone()),
        DeviceRequest::Node { .. } => None,
    });
    Requested {
        gpus: request.gpus.as_ref(),
        mode: request.gpu_mode,
        share: request.share_gpu,
        devices: devices.collect(),
    }
}

/// Reports errors that can be detected before anything is created.
pub(super) fn check(request: &Request) -> Result<(), Report> {
    gpu::check(&requested(request), &driver_root())?;
    nodes(request).map(drop)
}

/// Begins to ask the driver which GPUs are idle, if the request depends on it.
pub(super) fn begin(request: &Request) -> Early {
    gpu::begin(&requested(request), &driver_root())
}

/// Selects the GPUs and takes their leases. `undo` releases them.
pub(super) fn acquire(
    launch: Launch<'_>,
    limits: &Limits,
    image_env: &[String],
    early: &Early,
    tell: Tell<'_>,
    undo: &mut Undo,
) -> Result<Edits, Report> {
    let Launch { records, entry, .. } = launch;
    let request = launch.request();
    let image = image_env.iter().filter_map(|entry| entry.split_once('='));
    let image_env: Vec<(String, String)> = image.map(|(name, value)| (name.to_owned(), value.to_owned())).collect();
    let leases = records.run_dir().join("gpus");
    let taker = lease::Taker {
        id: entry.record.id.clone(),
        name: entry.record.name.clone(),
        // Shown to others who wait for the GPU.
        user: usage::user_name(entry.record.owner.uid),
        now: now(),
    };
    let (root, cpus) = (driver_root(), limits.cpuset_cpus.as_ref());
    let (image_env, env) = (&image_env[..], &request.env[..]);
    let step = entry.record.cgroup.step.as_deref();
    let container = gpu::Container {
        root: &root,
        leases: &leases,
        taker,
        cpus,
        image_env,
        env,
        step,
        early: Some(early),
        dry: false,
    };
    let mut edits = gpu::plan(&requested(request), &container, &mut |line| tell(Progress::Notice(line)))?;
    // A container that restarts keeps its GPUs meanwhile. Its supervisor releases them at the end.
    let restarts = request.restart != RestartPolicy::No;
    if !restarts && (!edits.given.is_empty() || request.gpus.is_some()) {
        let id = entry.record.id.clone();
        undo.push("release the GPUs", move || Ok(lease::release(&leases, &id)?));
    }
    let mut own = nodes(request)?;
    if let Some(step) = step {
        check_nodes(request, step)?;
    }
    if request.privileged {
        own.extend(host_nodes(&own)?);
    }
    edits.devices.retain(|device| !own.iter().any(|other| other.path == device.path));
    if let Some(opens) = &mut edits.opens {
        opens.except(&own);
    }
    edits.devices.extend(own);
    write_hook_config(entry, &mut edits)?;
    Ok(edits)
}

/// Tells the caller which GPUs the container gets, and how.
pub(super) fn tell(edits: &Edits, tell: Tell<'_>) {
    edits.summary.iter().for_each(|line| tell(Progress::Detail(line.clone())));
    edits.notices.iter().for_each(|line| tell(Progress::Notice(line.clone())));
}

/// Refuses devices that the step's filter denies. Under version 2, gpurun's own filter is beside the step's.
fn check_nodes(request: &Request, step: &str) -> Result<(), Report> {
    for device in &request.devices {
        if let DeviceRequest::Node { host, .. } = device
            && !gpu::step::may_open(host)
        {
            let what = format!("cannot use `--device {}`: the {step} does not have this device", host.display());
            return Err(Report::new(what).with_hint("request it from Slurm (`srun --gres=…`), or omit `--device`"));
        }
    }
    Ok(())
}

/// Returns the request for the GPUs of the cluster's step that this process is in, if the step has some. On a node where
/// nothing denies GPUs, only Slurm's variables say whether the step has any (`has_variable`).
#[must_use]
pub(crate) fn step_gpus(has_variable: bool) -> Option<GpuRequest> {
    let (there, has) = gpu::step::count(&driver_root());
    (has > 0 && (has < there || has_variable)).then(|| "all".parse().ok()).flatten()
}

/// Writes the configuration that a hook uses in this run instead of the host's.
fn write_hook_config(entry: &Entry, edits: &mut Edits) -> Result<(), Report> {
    let Some(config) = edits.hook_config.take() else { return Ok(()) };
    let path = entry.run_dir.join(config.file);
    std::fs::write(&path, config.text)
        .map_err(|error| Report::new(format!("cannot write `{}`", path.display())).with_cause(error))?;
    for hook in edits.hooks.iter_mut().filter(|hook| hook.name == config.hook) {
        let at = hook.command.args.len().min(1);
        hook.command.args.splice(at..at, ["-config".to_owned(), path.display().to_string()]);
    }
    Ok(())
}

/// Checks whether the GPUs of a container that is not running are idle now, regardless of the queue.
pub(crate) fn available(run_dir: &Path, entry: &Entry, notice: &mut dyn FnMut(String)) -> Result<(), GpuError> {
    let record = &entry.record;
    let (id, name) = (record.id.clone(), record.name.clone());
    let taker = lease::Taker { id, name, user: usage::user_name(record.owner.uid), now: now() };
    let (root, leases) = (driver_root(), run_dir.join("gpus"));
    let step = record.cgroup.step.as_deref();
    let container = gpu::Container { step, ..gpu::Container::question(&root, &leases, taker) };
    gpu::available(&requested(&record.request), &container, notice)
}

/// Resolves `--gpus` as of now, without taking a lease. Environment variables of the image, which can matter too, are
/// not considered. On a host without a GPU, returns the request itself, with a notice.
pub(crate) fn preview(
    run_dir: &Path,
    request: &GpuRequest,
    mode: GpuMode,
    share: bool,
    cpus: Option<&CpuSet>,
) -> Result<Edits, Report> {
    let requested = Requested { gpus: Some(request), devices: Vec::new(), mode, share };
    let taker = no_container();
    let (root, leases) = (driver_root(), run_dir.join("gpus"));
    let container = gpu::Container { cpus, ..gpu::Container::question(&root, &leases, taker) };
    match gpu::plan(&requested, &container, &mut |line| crate::report::say(&format!("note: {line}"))) {
        Err(error) if error.is_absence() => Ok(gpu::example(request, &error)),
        other => Ok(other?),
    }
}

/// Whether the driver of the requested GPUs is loaded. A request that fails for another reason, such as GPUs in use,
/// counts as ready: waiting for the driver would not help.
pub(crate) fn are_ready(run_dir: &Path, request: &Request) -> bool {
    let Some(gpus) = &request.gpus else { return true };
    let requested = Requested { gpus: Some(gpus), devices: Vec::new(), mode: request.gpu_mode, share: true };
    let taker = no_container();
    let (root, leases) = (driver_root(), run_dir.join("gpus"));
    let container = gpu::Container::question(&root, &leases, taker);
    gpu::plan(&requested, &container, &mut |_| {}).err().is_none_or(|error| !error.is_driver())
}

/// The taker of GPUs in a question that is not about a container.
fn no_container() -> lease::Taker {
    lease::Taker { id: "ID".into(), name: "NAME".into(), user: usage::user_name(0), now: now() }
}

fn now() -> u64 {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_nanos()).unwrap_or(u64::MAX)
}

/// The directory of a path, for a hint.
fn parent(path: &Path) -> String {
    path.parent().unwrap_or(Path::new("/dev")).display().to_string()
}

/// The host device nodes of `--device`. A directory means all nodes below it, as in docker.
fn nodes(request: &Request) -> Result<Vec<Device>, Report> {
    let mut nodes = Vec::new();
    for device in &request.devices {
        let DeviceRequest::Node { host, container, access } = device else { continue };
        let before = nodes.len();
        check_node(container).map_err(|error| {
            let refused = format!("`--device {}:{}` cannot be used", host.display(), container.display());
            Report::from(error).under(refused).with_hint("choose another path below /dev")
        })?;
        add_nodes(host, container, access, &mut nodes).map_err(|error| {
            let hint = format!("list this host's device nodes with `ls -l {}`", parent(host));
            Report::new(format!("`--device {}` cannot be used", host.display())).with_cause(error).with_hint(hint)
        })?;
        if nodes.len() == before {
            return Err(Report::new(format!("`--device {}` is not a device node", host.display()))
                .with_hint("mount files and directories with `-v`"));
        }
    }
    Ok(nodes)
}

/// Everything in the host's /dev that is a device and not made by the runtime, as in docker. A terminal, a shared memory
/// object or a message queue belongs to a process of the host.
fn host_nodes(known: &[Device]) -> Result<Vec<Device>, Report> {
    let failed = |error| Report::new("cannot list the devices of this host").with_cause(error);
    let (mut nodes, mut open) = (Vec::new(), vec![PathBuf::from("/dev")]);
    while let Some(dir) = open.pop() {
        for entry in std::fs::read_dir(&dir).map_err(failed)? {
            let (path, kind) = entry.and_then(|entry| Ok((entry.path(), entry.file_type()?))).map_err(failed)?;
            if kind.is_dir() {
                let skipped = ["pts", "shm", "fd", "mqueue", "hugepages"];
                if !skipped.iter().any(|name| path == Path::new("/dev").join(name)) {
                    open.push(path);
                }
            } else if (kind.is_char_device() || kind.is_block_device()) && check_node(&path).is_ok() {
                // A device that is unplugged meanwhile is not one of the host any more.
                let _ = add_nodes(&path, &path, "rwm", &mut nodes);
            }
        }
    }
    nodes.retain(|node| !known.iter().any(|other| other.path == node.path));
    nodes.sort_by(|one, other| one.path.cmp(&other.path));
    Ok(nodes)
}

fn add_nodes(host: &Path, container: &Path, access: &str, nodes: &mut Vec<Device>) -> std::io::Result<()> {
    let about = std::fs::metadata(host)?;
    let kind = about.file_type();
    if kind.is_dir() {
        let mut names: Vec<_> = std::fs::read_dir(host)?.filter_map(|entry| Some(entry.ok()?.file_name())).collect();
        names.sort();
        return names.iter().try_for_each(|name| add_nodes(&host.join(name), &container.join(name), access, nodes));
    }
    if kind.is_char_device() || kind.is_block_device() {
        let number = about.rdev();
        nodes.push(Device {
            path: container.display().to_string(),
            kind: if kind.is_block_device() { 'b' } else { 'c' },
            major: nix::sys::stat::major(number) as u32,
            minor: nix::sys::stat::minor(number) as u32,
            mode: about.permissions().mode() & 0o777,
            uid: about.uid(),
            gid: about.gid(),
            access: access.to_owned(),
        });
    }
    Ok(())
}
