//! `--gpus` and `--device`: asks the gpu room, takes the lease, and puts what it answers into the container's root and plan.

use std::os::fd::OwnedFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use super::undo::Undo;
use crate::gpu::{self, Edits, Mode, Selection, cdi, driver, ldcache, lease, usage};
use crate::record::{Entry, Records};
use crate::report::Report;
use crate::request::{DeviceRequest, Request};
use crate::rootfs::{self, MountpointKind};
use crate::spec::{Device, Limits, Mount};
use crate::units::CpuSet;

/// Where a container's linker looks by itself, the most special directory first; the second list is for 32-bit programs.
const LIBRARY_DIRS: [&str; 3] = [
    if cfg!(target_arch = "aarch64") { "/usr/lib/aarch64-linux-gnu" } else { "/usr/lib/x86_64-linux-gnu" },
    "/usr/lib64",
    "/usr/lib",
];
const LIBRARY_DIRS_32: [&str; 3] = ["/usr/lib/i386-linux-gnu", "/usr/lib32", "/usr/lib"];
/// No image's cache of libraries is larger.
const MAX_CACHE: usize = 32 << 20;

/// The root directory below which the driver and its hook are looked for; another one than `/` serves tests, and drivers that live in a
/// tree of their own.
#[must_use]
pub fn driver_root() -> PathBuf {
    std::env::var_os("GPURUN_DRIVER_ROOT").map_or_else(|| PathBuf::from("/"), PathBuf::from)
}

/// A request's words, understood.
struct Asked {
    selection: Option<Selection>,
    names: Vec<cdi::Name>,
    mode: Mode,
    share: bool,
}

impl Asked {
    fn of(request: &Request) -> Result<Self, Report> {
        let names = request.devices.iter().filter_map(|device| match device {
            DeviceRequest::Cdi(name) => Some(name.parse::<cdi::Name>()),
            DeviceRequest::Node { .. } => None,
        });
        Ok(Self {
            selection: request.gpus.as_deref().map(str::parse).transpose()?,
            names: names.collect::<Result<_, _>>()?,
            mode: request.gpu_mode.as_deref().map(str::parse).transpose()?.unwrap_or_default(),
            share: request.share_gpu,
        })
    }

    fn ask(&self) -> gpu::Ask<'_> {
        gpu::Ask { selection: self.selection.as_ref(), devices: &self.names, mode: self.mode, share: self.share }
    }
}

/// What can be refused before anything is made.
pub(super) fn check(request: &Request) -> Result<(), Report> {
    gpu::check(&Asked::of(request)?.ask(), &driver_root())?;
    nodes(request).map(drop)
}

/// Chooses and takes; what was taken is given back by `undo`.
pub(super) fn plan(
    records: &Records,
    entry: &Entry,
    limits: &Limits,
    image_env: &[String],
    user: (u32, u32),
    undo: &mut Undo,
) -> Result<Edits, Report> {
    let request = &entry.record.request;
    let image = image_env.iter().filter_map(|entry| entry.split_once('='));
    let image = image.map(|(name, value)| (name.to_owned(), value.to_owned()));
    let env: Vec<(String, String)> = image.chain(request.env.iter().cloned()).collect();
    let leases = records.run_dir().join("gpus");
    let taker = lease::Taker {
        id: entry.record.id.clone(),
        name: entry.record.name.clone(),
        // The person behind `sudo`, for those who wait for his GPU.
        user: usage::user_name(request.invoker.map_or(0, |(uid, _)| uid)),
        now: now(),
    };
    let (root, cpus) = (driver_root(), limits.cpuset_cpus.as_ref());
    let place = gpu::Place { root: &root, leases: &leases, taker, cpus, env: &env, user, dry: false };
    let mut edits = gpu::plan(&Asked::of(request)?.ask(), &place)?;
    if !edits.given.is_empty() || request.gpus.is_some() {
        let id = entry.record.id.clone();
        undo.push("give the GPUs back", move || Ok(lease::release(&leases, &id)?));
    }
    edits.notices.extend(misled(request));
    let own = nodes(request)?;
    edits.devices.retain(|device| !own.iter().any(|other| other.path == device.path));
    edits.devices.extend(own);
    Ok(edits)
}

/// What `--gpus` would become right now; takes nothing. Of the image, which may have its say too, nothing is known.
pub fn preview(
    run_dir: &Path,
    selection: &str,
    mode: Option<&str>,
    share: bool,
    cpus: Option<&CpuSet>,
) -> Result<Edits, Report> {
    let selection: Selection = selection.parse()?;
    let mode = mode.map(str::parse).transpose()?.unwrap_or_default();
    let ask = gpu::Ask { selection: Some(&selection), devices: &[], mode, share };
    let taker = lease::Taker { id: "ID".into(), name: "NAME".into(), user: usage::user_name(0), now: now() };
    let (root, leases) = (driver_root(), run_dir.join("gpus"));
    let place = gpu::Place { root: &root, leases: &leases, taker, cpus, env: &[], user: (0, 0), dry: true };
    Ok(gpu::plan(&ask, &place)?)
}

/// A word to who asks as one asks NVIDIA's own runtime.
fn misled(request: &Request) -> Option<String> {
    let asked =
        request.env.iter().rev().find(|(name, _)| name == "NVIDIA_VISIBLE_DEVICES").map(|(_, value)| value.as_str());
    let value = asked.filter(|value| request.gpus.is_none() && !["", "void", "none"].contains(value))?;
    let flag = if value == "all" { "all".to_owned() } else { format!("device={value}") };
    Some(format!("`NVIDIA_VISIBLE_DEVICES={value}` gives no GPU by itself: say `--gpus {flag}`"))
}

fn now() -> u64 {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_nanos()).unwrap_or(u64::MAX)
}

/// The host's nodes of `--device`; a directory stands for all of them in it, as in docker.
fn nodes(request: &Request) -> Result<Vec<Device>, Report> {
    let mut nodes = Vec::new();
    for device in &request.devices {
        let DeviceRequest::Node { host, container, access } = device else { continue };
        let before = nodes.len();
        add_nodes(host, container, access, &mut nodes)
            .map_err(|error| Report::new(format!("`--device {}` cannot be used", host.display())).with_cause(error))?;
        if nodes.len() == before {
            return Err(Report::new(format!("`--device {}` is no device node", host.display()))
                .with_hint("files and directories go into a container with `-v`"));
        }
    }
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

/// Half of what the container may use, since what lies in /dev/shm counts as its memory: docker's 64 MiB end every DataLoader with workers.
pub(super) fn shm_size(limits: &Limits) -> u64 {
    let all = limits.memory.or_else(|| {
        let text = std::fs::read_to_string("/proc/meminfo").ok()?;
        let line = text.lines().find_map(|line| line.strip_prefix("MemTotal:"))?;
        Some(line.trim().strip_suffix(" kB")?.parse::<u64>().ok()? << 10)
    });
    all.map_or(0, |all| all / 2).max(super::plan::SHM_SIZE)
}

/// Makes the places in the container's root, and answers what is to be mounted there.
pub(super) fn mounts(edits: &Edits, root: &OwnedFd) -> Result<Vec<Mount>, Report> {
    let mut mounts = Vec::new();
    for mount in &edits.mounts {
        let kind = match mount.kind == "bind" && mount.source.is_file() {
            true => MountpointKind::File,
            // A socket or a node is bound onto a file, too.
            false if mount.kind == "bind" && !mount.source.is_dir() => MountpointKind::File,
            false => MountpointKind::Directory,
        };
        mounts.push(Mount {
            destination: rootfs::make_mountpoint_in_root(root, &mount.destination, kind)?,
            kind: mount.kind.clone(),
            source: mount.source.clone(),
            options: mount.options.clone(),
        });
    }
    if !edits.libraries.is_empty() {
        mounts.extend(libraries(&edits.libraries, root)?);
    }
    Ok(mounts)
}

/// The driver's libraries where the container's linker finds them: each file, the names that lead to it, and the linker's own cache.
fn libraries(libraries: &[driver::Library], root: &OwnedFd) -> Result<Vec<Mount>, Report> {
    let dir = library_dir(root, &LIBRARY_DIRS)?;
    let dir_32 = library_dir(root, &LIBRARY_DIRS_32)?;
    let (mut mounts, mut entries) = (Vec::new(), Vec::new());
    for library in libraries {
        let dir = if library.flags == ldcache::NATIVE { &dir } else { &dir_32 };
        let place = dir.join(&library.file);
        mounts.push(Mount {
            destination: rootfs::make_mountpoint_in_root(root, &place, MountpointKind::File)?,
            kind: "bind".into(),
            source: library.source.clone(),
            options: ["ro", "nosuid", "nodev", "bind", "rprivate"].map(str::to_owned).into(),
        });
        for name in &library.names {
            // `libcuda.so` leads to `libcuda.so.1`, where there is one, and that to the file: as an installed driver has it.
            let soname = library.names.iter().find(|other| other.starts_with(&format!("{name}.")));
            rootfs::link_in_root(root, &dir.join(name), soname.map_or(&library.file, |soname| soname))?;
        }
        let names = library.names.iter().chain([&library.file]).map(|name| (name.as_str(), library.flags));
        entries.extend(ldcache::entries(names, dir));
    }
    let cache = Path::new("/etc/ld.so.cache");
    let old = rootfs::read_file_in_root(root, cache, MAX_CACHE).ok().flatten().unwrap_or_default();
    rootfs::replace_file_in_root(root, cache, &ldcache::with(&old, &entries))?;
    Ok(mounts)
}

/// The first of these directories that the image has; the last one is made where it has none.
fn library_dir(root: &OwnedFd, dirs: &[&str]) -> Result<PathBuf, Report> {
    for dir in dirs.iter().map(Path::new) {
        let found = rootfs::stat_in_root(root, dir)?;
        if found.is_some_and(|stat| stat.st_mode & libc::S_IFMT == libc::S_IFDIR) {
            return Ok(dir.to_path_buf());
        }
    }
    Ok(dirs.last().map_or_else(|| PathBuf::from("/usr/lib"), PathBuf::from))
}
