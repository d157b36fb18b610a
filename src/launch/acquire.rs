//! Acquires what a container needs from the host: its limits, the image's root, its network, GPUs, mounts and files.
//!
//! Each step that creates something outside this process pushes its undo action before the next step begins. All access
//! to the image goes through the container's own root, by descriptor.

use std::fs;
use std::net::Ipv4Addr;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::rc::Rc;

use super::command::{Command, INIT_PATH, command, uses_init};
use super::context::{ADDED_GROUPS, Launch};
use super::opens::Opening;
use super::peer::Peer;
use super::places::{Places, combine};
use super::progress::{Progress, Tell, step};
use super::undo::Undo;
use super::{
    driver_files, files, gpus, home, hooks, host_ca, hostname, image_mounts, ipc, jupyter, mounts, nested, pid,
    process, propagation, scaffold, secrets,
};
use crate::cgroup;
use crate::gpu;
use crate::hook;
use crate::image::Config;
use crate::net;
use crate::network::Networks;
use crate::record::Entry;
use crate::report::{EXIT_GPURUN, Report};
use crate::request::{ExposedPort, NetworkMode, Payload, PortSpec, Request, UserSpec};
use crate::rootfs::driver_layer::DriverLayer;
use crate::rootfs::images::Lower;
use crate::rootfs::{self, HostNamespace, users};
use crate::runtime::INIT_PAYLOAD;
use crate::spec::{self, Limits, Mount};
use crate::store::{Image, Store};

/// What `--privileged` means, for a caller who may not know.
const PRIVILEGED: &str = "`--privileged` grants all capabilities, all devices and writable kernel settings: a process of this \
                          container can take over the host, and change its own limits";

/// What was acquired, as far as the plan depends on it.
#[derive(Debug, Clone)]
pub(super) struct Acquired {
    /// Where the container's cgroup is.
    pub cgroup: cgroup::Place,
    pub limits: Limits,
    pub image: Config,
    /// The container's root, an absolute path.
    pub rootfs: PathBuf,
    pub user: users::User,
    /// The groups that all of the container's processes have, whichever user they run as.
    pub added_groups: Vec<u32>,
    pub hostname: String,
    pub network: spec::Network,
    pub ipc: spec::Namespace,
    pub pid: spec::Namespace,
    pub gpus: gpu::Edits,
    pub env: Vec<String>,
    pub cwd: PathBuf,
    /// The mounts that the runtime makes, in their order.
    pub mounts: Vec<Mount>,
    pub command: Command,
    /// The hooks of hooks.d that apply.
    pub hooks: Vec<hook::Chosen>,
    /// The directory in which hooks report.
    pub hook_reports: PathBuf,
    /// The Jupyter of a bare launch.
    pub jupyter: Option<jupyter::Prepared>,
}

/// What must stay open until the container has been created or, in the case of the network, until it ends.
#[derive(Debug)]
pub(super) struct Handles {
    pub host: cgroup::Host,
    pub network: net::Network,
    /// The namespaces of other containers.
    pub joined: Vec<OwnedFd>,
    pub opening: Option<Opening>,
    pub before: Option<scaffold::Before>,
    /// All mounts, also those that are parts of a tree.
    pub mounts: Vec<Mount>,
}

/// Acquires everything. The undo actions are pushed on `undo`.
pub(super) fn acquire(launch: Launch<'_>, tell: Tell<'_>, undo: &mut Undo) -> Result<(Acquired, Handles), Report> {
    let (entry, request) = (launch.entry, launch.request());
    if request.privileged {
        tell(Progress::Notice(PRIVILEGED.into()));
    }
    let early = gpus::begin(request);
    let (host, limits) = limits(launch, tell, undo)?;
    tell(Progress::Step("mounting the image"));
    let before = scaffold::before(entry)?;
    let mounted = mount_images(launch, undo)?;
    let image = mounted.image.config.clone();
    let command = command(request, &image)?;
    let peer = peer(launch)?;
    let hostname = hostname::of(launch.records, entry);
    tell(Progress::Step("setting up the container's network"));
    let network = match &peer {
        Some(peer) => peer.network()?,
        None => network(launch, &hostname, &image, tell, undo)?,
    };
    let ipc = ipc::acquire(launch, tell)?;
    let (pid, pid_namespace) = pid::acquire(launch)?;
    tell(Progress::Step("preparing the container's devices and files"));

    let image_env = image_environment(request, &image, tell);
    let mut gpus = gpus::acquire(launch, &limits, &image_env, &early, tell, undo)?;
    let driver = driver_files::prepare(launch, &mounted.lower, &mounted.name, &mut gpus);
    gpus::tell(&gpus, tell);
    step("gpus");
    let upper = used_upper(entry)?;
    let rootfs = mount_root(launch, mounted, driver.as_ref(), tell, undo)?;
    let root = rootfs::open_root(&rootfs)?;
    let user = users::lookup(&root, &user_of(request, &image))?;
    gpus.give_nodes_to((user.uid, user.gid));
    let mut added_groups = added_groups(&root, &request.group_add)?;
    added_groups.extend(gpus.gids.iter().filter(|gid| !added_groups.contains(gid)).copied().collect::<Vec<_>>());
    write_added_groups(entry, &added_groups)?;
    let image_env = process::beneath(&request.env_host, &image_env);
    let mut env = process::environment(&hostname, request.tty, &image_env, &gpus.default_env, &request.env, &gpus.env);
    if request.unset_all_env || !request.unset_env.is_empty() {
        let kept = |name: &str| request.env.iter().chain(&gpus.env).any(|(known, _)| known == name);
        let unset = |name: &str| request.unset_all_env || request.unset_env.iter().any(|known| known == name);
        env.retain(|entry| entry.split_once('=').is_some_and(|(name, _)| kept(name) || !unset(name)));
    }
    process::add_home(&mut env, &user.home);
    let cwd = process::workdir(request.workdir.as_ref(), Some(&image.working_dir));
    let cwd = rootfs::create_dir_in_root(&root, &cwd)?;

    let about = About {
        launch,
        image: &image,
        rootfs: &rootfs,
        root: &root,
        limits: &limits,
        user: &user,
        added_groups: &added_groups,
        hostname: &hostname,
        network: &network,
        ipc: &ipc,
        peer: peer.as_ref(),
        gpus: &gpus,
        driver: driver.as_ref(),
        cwd: &cwd,
    };
    let (mounts, jupyter) = mount_files(&about, upper, &mut env, tell)?;
    mounts::make_workdir(&cwd, &mounts)?;
    propagation::check(&mounts)?;
    let made_by_runtime = nested::assemble(&entry.run_dir, &mounts)?;
    let hooks = hooks::matching(request, &hooks::annotations(request, &gpus), &command.args)?;
    let hook_reports = hooks::make_reports(entry, &gpus.combine(hooks.clone()))?;
    let opening = gpus.opens.take().map(|opens| Opening::new(entry, opens, &rootfs, user.uid));
    let acquired = Acquired {
        cgroup: entry.record.cgroup.clone(),
        limits,
        image,
        rootfs,
        user,
        added_groups,
        hostname,
        network: namespace(&network),
        ipc: ipc.spec,
        pid,
        gpus,
        env,
        cwd,
        mounts: made_by_runtime,
        command,
        hooks,
        hook_reports,
        jupyter,
    };
    let joined = ipc.namespace.into_iter().chain(pid_namespace).collect();
    Ok((acquired, Handles { host, network, joined, opening, before, mounts }))
}

/// Checks the limits against this host. From here on, the container's cgroup is removed when the launch fails: the
/// command has already created it (see `spawn`). Under version 1, libcontainer creates directories of its own, and all
/// of them are removed.
fn limits(launch: Launch<'_>, tell: Tell<'_>, undo: &mut Undo) -> Result<(cgroup::Host, Limits), Report> {
    let host = cgroup::Host::probe(Path::new("/"))?;
    let (made_in, place) = (host.clone(), launch.entry.record.cgroup.clone());
    undo.push("remove the container's cgroup", move || {
        place.all().try_for_each(|place| {
            let all = cgroup::Cgroup::open(&made_in, place)?;
            all.map_or(Ok(()), |all| all.remove()).map_err(Report::from)
        })
    });
    host.leave_login()?;
    let mut limits = launch.request().limits.resolve(&host.facts()?)?;
    host.clamp(&mut limits).into_iter().for_each(|notice| tell(Progress::Notice(notice)));
    Ok((host, limits))
}

/// The requested user, or the image's.
pub(super) fn user_of(request: &Request, image: &Config) -> UserSpec {
    request.user.clone().unwrap_or_else(|| UserSpec::of(&image.user))
}

/// The container's images, mounted in the host's mount namespace.
struct MountedImages {
    image: Image,
    /// The name of its mount.
    name: String,
    lower: Lower,
    more: Vec<Lower>,
    host_namespace: Rc<HostNamespace>,
}

/// Mounts the images in the host's mount namespace, and enters a private one.
fn mount_images(launch: Launch<'_>, undo: &mut Undo) -> Result<MountedImages, Report> {
    let Launch { root, records, entry } = launch;
    let store = Store::open(root)?;
    let image = store.image_of(entry.record.image)?;
    let images = records.run_dir().join("images");
    let lower = rootfs::stored::lower(&images, &store, &image)?;
    step("image");
    let more = image_mounts::lowers(launch, &store, &images)?;
    let kept: Vec<&Path> = std::iter::once(&lower).chain(&more).map(|lower| &*lower.dir).collect();
    let host_namespace = Rc::new(rootfs::private_namespace(&images, &kept)?);
    let host = host_namespace.clone();
    undo.push("return to the host's mounts", move || host.enter().map_err(Report::from));
    Ok(MountedImages { name: store.mount_name(&image), image, lower, more, host_namespace })
}

/// The container's own directory, if it has one from an earlier run.
fn used_upper(entry: &Entry) -> Result<Option<OwnedFd>, Report> {
    let upper = entry.dir.join("upper");
    Ok(if upper.exists() { Some(rootfs::open_root(&upper)?) } else { None })
}

/// Mounts the overlay in the private mount namespace, with the driver's files between the image and the container's own.
fn mount_root(
    launch: Launch<'_>,
    mounted: MountedImages,
    driver: Option<&Rc<DriverLayer>>,
    tell: Tell<'_>,
    undo: &mut Undo,
) -> Result<PathBuf, Report> {
    let Launch { records, entry, .. } = launch;
    let MountedImages { lower, more, host_namespace, .. } = mounted;
    let rootfs = entry.run_dir.join("rootfs");
    rootfs::overlay(&rootfs::Overlay {
        lower: &lower.dir,
        above: driver.map(|driver| &*driver.dir),
        upper: &entry.dir.join("upper"),
        work: &entry.dir.join("work"),
        merged: &rootfs,
        volatile: entry.record.request.auto_remove,
    })?;
    image_mounts::attach(entry, &more)?;
    host_namespace.forget(&records.run_dir().join("images"))?;
    let (mounted, driver) = (rootfs.clone(), driver.cloned());
    undo.push("unmount the container's root", move || {
        let detached = crate::sys::mount::detach(&mounted)
            .map_err(|error| Report::new(format!("cannot unmount `{}`", mounted.display())).with_cause(error));
        // The leases are held until here, because the images must stay mounted for as long as they are used.
        drop((lower, more, driver));
        detached
    });
    step("overlay");
    for name in rootfs::check_guards(&rootfs)? {
        tell(Progress::Notice(format!("the image's `{name}` is not a directory: it is replaced in this container")));
    }
    Ok(rootfs)
}

/// The container whose network is shared with `--network container:…`, if there is one.
fn peer(launch: Launch<'_>) -> Result<Option<Peer>, Report> {
    launch.request().network_container.as_deref().map(|id| Peer::find(launch.records, id)).transpose()
}

/// Sets up the network. Outside the bridge network there is nothing to publish. As in docker, the launch continues then,
/// with a notice.
fn network(
    launch: Launch<'_>,
    hostname: &str,
    image: &Config,
    tell: Tell<'_>,
    undo: &mut Undo,
) -> Result<net::Network, Report> {
    let request = launch.request();
    let ports = if request.network == NetworkMode::Bridge { published(request, image) } else { Vec::new() };
    discarded_ports(request).into_iter().for_each(|notice| tell(Progress::Notice(notice.into())));
    let state_dir = launch.records.run_dir().join("net");
    let id = launch.entry.record.id.clone();
    // Only a bridge records the user, whose name may come from a directory service.
    let is_bridge = request.network == NetworkMode::Bridge;
    let user = if is_bridge { launch.entry.record.owner.name() } else { String::new() };
    let network = net::setup(&net::Request {
        id: &id,
        name: &launch.entry.record.name,
        user: &user,
        hostname,
        mode: request.network,
        attachments: &request.attachments(),
        networks: &Networks::new(launch.root),
        hosts: &launch.entry.dir.join("hosts"),
        ports: &ports,
        state_dir: &state_dir,
        subnet: crate::config::Config::load()?.network.subnet.map(|subnet| subnet.0),
        servers: &if is_bridge { files::name_servers(request) } else { Vec::new() },
    })
    // A network may have been removed since the command found it.
    .map_err(|error| Report::from(error).with_exit_code(EXIT_GPURUN))?;
    if request.network == NetworkMode::Bridge {
        undo.push("remove the container's network", move || Ok(net::teardown(&state_dir, &id)?));
    }
    network.notes.iter().for_each(|note| tell(Progress::Notice(note.clone())));
    step("network");
    Ok(network)
}

/// The ports of `-p` and, with `--publish-all`, the other ports that the image or the request exposes.
fn published(request: &Request, image: &Config) -> Vec<PortSpec> {
    let mut ports = request.publish.clone();
    if request.publish_all {
        // A port in another protocol cannot be published.
        let of_image = image.exposed_ports.iter().filter_map(|text| ExposedPort::parse(text).ok()).flatten();
        for ExposedPort { port, protocol } in request.expose.iter().copied().chain(of_image) {
            if !ports.iter().any(|other| (other.container_port, other.protocol) == (port, protocol)) {
                let host_ip = Ipv4Addr::UNSPECIFIED;
                ports.push(PortSpec { host_ip, host_port: None, host_last: None, container_port: port, protocol });
            }
        }
    }
    ports
}

/// The notice about ports that are not published.
fn discarded_ports(request: &Request) -> Option<&'static str> {
    match request.network {
        _ if request.publish.is_empty() => None,
        NetworkMode::Bridge => None,
        NetworkMode::Host => {
            Some("published ports are discarded with `--network host`: the container uses the host's ports")
        }
        NetworkMode::None if request.network_container.is_some() => {
            Some("published ports are discarded with `--network container`: publish them with the other container")
        }
        NetworkMode::None => Some("published ports are discarded with `--network none`: the container has no network"),
    }
}

/// The namespace as libcontainer and hooks reach it: through the descriptor of this process.
fn namespace(network: &net::Network) -> spec::Network {
    match &network.namespace {
        None => spec::Network::Host,
        Some(fd) => spec::Network::Path(format!("/proc/{}/fd/{}", std::process::id(), fd.as_raw_fd()).into()),
    }
}

/// The groups of `--group-add`, without duplicates.
fn added_groups(root: &OwnedFd, names: &[String]) -> Result<Vec<u32>, Report> {
    let mut groups = Vec::new();
    for name in names {
        let group = users::group(root, name)?;
        if !groups.contains(&group) {
            groups.push(group);
        }
    }
    Ok(groups)
}

/// Records the added groups for `exec` with another user, which cannot tell them from the groups of the container's own
/// user.
fn write_added_groups(entry: &Entry, groups: &[u32]) -> Result<(), Report> {
    let path = entry.run_dir.join(ADDED_GROUPS);
    let failed = |error: std::io::Error| Report::new(format!("cannot write `{}`", path.display())).with_cause(error);
    let bytes = serde_json::to_vec(groups).map_err(|error| failed(error.into()))?;
    crate::durable::write_atomic_volatile(&path, &bytes).map_err(failed)
}

/// The image's environment, without the variables that only the caller may set.
fn image_environment(request: &Request, image: &Config, tell: Tell<'_>) -> Vec<String> {
    let (refused, env): (Vec<String>, Vec<String>) =
        image.env.iter().cloned().partition(|entry| gpu::is_privilege(entry));
    for entry in refused.iter().filter(|_| request.gpus.is_some()) {
        let entry = entry.escape_debug();
        tell(Progress::Notice(format!("the image's `{entry}` is omitted: `-e {entry}` grants it")));
    }
    env
}

/// The inputs for the mounts.
struct About<'a> {
    launch: Launch<'a>,
    image: &'a Config,
    rootfs: &'a Path,
    root: &'a OwnedFd,
    limits: &'a Limits,
    user: &'a users::User,
    added_groups: &'a [u32],
    hostname: &'a str,
    network: &'a net::Network,
    ipc: &'a ipc::Ipc,
    peer: Option<&'a Peer>,
    gpus: &'a gpu::Edits,
    driver: Option<&'a Rc<DriverLayer>>,
    cwd: &'a Path,
}

/// Creates the container's own files and all mount points. Returns the mounts and, for a bare launch, the prepared
/// Jupyter. Adds the variables that go with the files.
fn mount_files(
    about: &About<'_>,
    upper: Option<OwnedFd>,
    env: &mut Vec<String>,
    tell: Tell<'_>,
) -> Result<(Vec<Mount>, Option<jupyter::Prepared>), Report> {
    let About { launch, image, rootfs, root, user, cwd, .. } = *about;
    let (entry, request) = (launch.entry, launch.request());
    // Only a notebook's files are meant for the caller on the host. `run` leaves file owners alone, as docker does.
    let writer = match &request.payload {
        Payload::Jupyter(_) => Some(jupyter::writer(entry, image, rootfs, env, user, about.added_groups)?),
        Payload::Command(_) => None,
    };
    let mut places = Places::new(root);
    if let Some(shm) = &about.ipc.shm {
        places.place(shm, true);
    }
    let mut origins =
        mounts::plan(launch.root, entry, &mut places, &image.volumes, (user.uid, user.gid), writer.as_ref(), tell)?;
    origins.own = files::mounts(entry, &places, about.hostname, about.network, about.peer, tell)?;
    origins.own.extend(about.ipc.shm.clone());
    if about.network.endpoints.iter().any(|endpoint| endpoint.bridge.id.is_some()) {
        net::write_names(&launch.records.run_dir().join("net"), &entry.record.id)?;
    }
    let shown = driver_files::Shown::new(about.driver.map(|driver| &**driver), root, upper);
    origins.gpus = driver_files::mounts(about.gpus, &places, &shown)?;
    origins.own.extend(host_ca::mounts(entry, &places, env)?);
    origins.own.extend(secrets::mounts(entry, &places, request, env)?);
    let mut notebook_dir = cwd.to_path_buf();
    if let Some(writer) = writer.as_ref().filter(|writer| writer.uid == user.uid) {
        let about = home::About { entry, root, places: &places, writer, known: user.name.is_some() };
        home::make(&about, env, &mut origins, tell)?;
        notebook_dir = home::notebook_dir(&about, cwd, env, &origins);
    }
    if uses_init(request) {
        origins.own.push(init(entry)?);
    }
    let jupyter = match &request.payload {
        Payload::Jupyter(jupyter_request) => {
            let about = jupyter::About {
                entry,
                request: jupyter_request,
                places: &places,
                merged: rootfs,
                entrypoint: request.entrypoint.as_deref().unwrap_or(&image.entrypoint),
                env,
                limits: about.limits,
                user,
                config_home: &user.home,
                notebook_dir: &notebook_dir,
                owner: writer.as_ref().map_or((user.uid, user.gid), |writer| (writer.uid, writer.gid)),
            };
            Some(jupyter::prepare(&about, &mut origins.own)?)
        }
        Payload::Command(_) => None,
    };
    origins.gpus.extend(driver_files::hidden(about.gpus, &origins, &places, &shown)?);
    Ok((combine(origins, tell), jupyter))
}

/// Writes gpurun's init, and returns its mount.
fn init(entry: &Entry) -> Result<Mount, Report> {
    use std::os::unix::fs::PermissionsExt;
    let source = entry.run_dir.join("init");
    fs::write(&source, INIT_PAYLOAD)
        .and_then(|()| fs::set_permissions(&source, fs::Permissions::from_mode(0o555)))
        .map_err(|error| Report::new(format!("cannot write `{}`", source.display())).with_cause(error))?;
    let options = ["bind", "ro", "nosuid", "nodev"].map(str::to_owned).into();
    Ok(Mount { destination: INIT_PATH.into(), kind: "bind".into(), source, options })
}
