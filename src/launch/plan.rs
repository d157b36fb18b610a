//! From a recorded request to a [`Plan`], and from the plan to a created container.
//!
//! Everything that looks at the image does so in the container's own root, by descriptor.

use std::fs;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};

use super::container::Container;
use super::streams::{Stream, Streams};
use super::undo::Undo;
use super::{Progress, cgroup_path, files, gpus, jupyter, mounts, process, step};
use crate::cgroup;
use crate::gpu;
use crate::hook;
use crate::net::{self, PortSpec};
use crate::record::{Entry, PublishedPort, Records};
use crate::report::Report;
use crate::request::{MountSource, NetworkMode, Payload, Request, Seccomp, Ulimit, parse_signal};
use crate::rootfs::{self, users};
use crate::runtime::{self, CreateRequest, INIT_PAYLOAD, Stdio};
use crate::spec::seccomp::{self, Filter, Profile};
use crate::spec::{
    AskedLimits, Capabilities, HookEntry, Limits, Mount, Network, Plan, Rlimit, Stage, device_rules, oci_spec,
};
use crate::store::Store;

/// docker's size of /dev/shm.
pub(super) const SHM_SIZE: u64 = 64 << 20;
/// Where our init lies in the container: in its /dev, a tmpfs, so that the image's files are left alone.
const START_NOFILE: u64 = 64;
const INIT_PATH: &str = "/dev/gpurun-init";

/// Whether the host knows these limits at all; whether it enforces them shows when they are read back.
pub fn check_limits(asked: &AskedLimits) -> Result<(), Report> {
    let host = cgroup::Host::probe(Path::new("/"))?;
    Ok(host.check(&asked.resolve(&host.facts()?)?)?)
}

/// The checks that need the host but change nothing: run by the command, so that what is wrong is said before anything is made.
pub fn check(request: &Request) -> Result<(), Report> {
    check_limits(&request.limits)?;
    Capabilities::resolve(&request.cap_add, &request.cap_drop)?;
    ports(request)?;
    rlimits(&request.ulimits, &[])?;
    mounts::check(&request.mounts)?;
    if let Seccomp::Profile(text) = &request.seccomp {
        Profile::parse(text, &Capabilities::default())?;
    }
    gpus::check(request)
}

fn ports(request: &Request) -> Result<Vec<PortSpec>, Report> {
    let mut ports = Vec::new();
    for text in &request.publish {
        ports.extend(PortSpec::parse(text)?);
    }
    if !ports.is_empty() && request.network != NetworkMode::Bridge {
        return Err(Report::usage("ports can only be published with `--network bridge`")
            .with_hint("with `--network host` the container's ports are the host's: leave `-p` out"));
    }
    Ok(ports)
}

/// What has been made so far, and the plan for the rest.
pub(super) struct Planned {
    plan: Plan,
    filter: Option<Filter>,
    host: cgroup::Host,
    limits: Limits,
    network: net::Network,
    stop_signal: i32,
    check: String,
    jupyter: Option<jupyter::Prepared>,
    gpus: (Vec<gpu::Given>, Option<String>),
}

/// Mounts the root, looks into it, makes the network, and plans. Side effects are pushed on `undo`.
pub(super) fn make(
    root: &Path,
    records: &Records,
    entry: &Entry,
    tell: &mut dyn FnMut(Progress),
    undo: &mut Undo,
) -> Result<Planned, Report> {
    let request = &entry.record.request;
    let host = cgroup::Host::probe(Path::new("/"))?;
    let (made_in, path) = (host.clone(), cgroup_path(request.cgroup_parent.as_deref(), &entry.record.id));
    undo.push("remove the container's cgroup", move || {
        // The command has made it (see `spawn`); libcontainer makes directories of its own under version 1: all of them go.
        let all = cgroup::Cgroup::open(&made_in, &path)?;
        all.map_or(Ok(()), |all| all.remove()).map_err(Report::from)
    });
    host.leave_login()?;
    let mut limits = request.limits.resolve(&host.facts()?)?;
    host.soften(&mut limits).into_iter().for_each(|word| tell(Progress::Notice(word)));

    let (image, rootfs) = mount_root(root, records, entry, tell, undo)?;
    let root_fd = rootfs::open_root(&rootfs)?;
    let config = &image.config;
    let user = users::lookup(&root_fd, request.user.as_deref().unwrap_or(&config.user))?;
    let mut groups = groups(&root_fd, &user.groups, &request.group_add)?;

    let id = &entry.record.id;
    let hostname = request.hostname.clone().unwrap_or_else(|| match request.network {
        NetworkMode::Host => host_name(),
        _ => crate::record::short(id).to_owned(),
    });
    let network = make_network(records, entry, &hostname, undo)?;
    step("network");

    let (refused, image_env): (Vec<String>, Vec<String>) =
        config.env.iter().cloned().partition(|entry| gpu::asks_for_rights(entry));
    let gpus = gpus::plan(records, entry, &limits, &image_env, (user.uid, user.gid), undo)?;
    for entry in refused.iter().filter(|_| request.gpus.is_some()) {
        let entry = entry.escape_debug();
        tell(Progress::Notice(format!("the image's `{entry}` is left out: `-e {entry}` grants it")));
    }
    gpus.summary.iter().for_each(|line| tell(Progress::Detail(line.clone())));
    gpus.notices.iter().for_each(|line| tell(Progress::Notice(line.clone())));
    step("gpus");
    let capabilities = Capabilities::resolve(&request.cap_add, &request.cap_drop)?.known_up_to(last_capability());
    let mut env = process::environment(&hostname, request.tty, &image_env, &gpus.default_env, &request.env, &gpus.env);
    process::add_home(&mut env, &user.home);
    let cwd = process::workdir(request.workdir.as_ref(), Some(&config.working_dir));
    let cwd = rootfs::create_dir_in_root(&root_fd, &cwd)?;

    groups.extend(gpus.gids.iter().filter(|gid| !user.groups.contains(gid)));

    let mut all_mounts = files::mounts(entry, &root_fd, &hostname, &network, request)?;
    all_mounts.extend(gpus::mounts(&gpus, &root_fd)?);
    // Only a notebook's files are meant for the person: `run` leaves owners alone, as docker does.
    let owners = match &request.payload {
        Payload::Jupyter(_) => crate::jupyter::exchange((user.uid, user.gid), request.invoker),
        Payload::Command(_) => None,
    };
    all_mounts.extend(mounts::plan(root, entry, &root_fd, &rootfs, &config.volumes, owners, tell)?);
    mounts::make_workdir(&cwd, &all_mounts)?;

    let about = About {
        entry,
        request,
        root: &root_fd,
        merged: &rootfs,
        config,
        env: &env,
        cwd: &cwd,
        limits: &limits,
        user: &user,
    };
    let (args, check, jupyter) = payload(&about, &mut all_mounts)?;
    let annotations: Vec<(String, String)> = request.labels.iter().cloned().chain(gpus.annotations.clone()).collect();
    let hooks = hooks(entry, &gpus, &annotations, &args)?;
    let seccomp_profile = match &request.seccomp {
        Seccomp::Unconfined => None,
        Seccomp::Default => Some(Profile::docker_default(&capabilities)),
        Seccomp::Profile(text) => Some(Profile::parse(text, &capabilities)?),
    };
    let filter = seccomp_profile.as_ref().map(seccomp::compile).transpose()?;
    let (rlimits, lowered) = rlimits(&request.ulimits, &gpus.rlimits)?;
    lowered.into_iter().for_each(|word| tell(Progress::Detail(word)));

    // Nonsense in an image counts as none.
    let stop_signal = request.stop_signal.or_else(|| parse_signal(&config.stop_signal)).unwrap_or(libc::SIGTERM);
    let plan = Plan {
        hostname: (request.network != NetworkMode::Host || request.hostname.is_some()).then_some(hostname),
        rootfs,
        readonly_root: request.read_only,
        args,
        env,
        cwd,
        uid: user.uid,
        gid: user.gid,
        groups,
        tty: request.tty,
        capabilities,
        no_new_privileges: request.no_new_privileges,
        rlimits,
        limits: limits.clone(),
        devices: gpus.devices,
        mounts: all_mounts,
        shm_size: request.shm_size.unwrap_or_else(|| match request.gpus {
            Some(_) => gpus::shm_size(&limits),
            None => SHM_SIZE,
        }),
        network: match &network.namespace {
            None => Network::Host,
            Some(fd) => Network::Path(PathBuf::from(format!("/proc/{}/fd/{}", std::process::id(), fd.as_raw_fd()))),
        },
        pid_host: request.pid_host,
        v1_cgroups: host.v1_dirs(&cgroup_path(request.cgroup_parent.as_deref(), id)),
        cgroup_path: cgroup_path(request.cgroup_parent.as_deref(), id),
        hooks,
        oom_score_adj: request.oom_score_adj,
        sysctls: request.sysctls.clone(),
        annotations,
        masked_paths: gpus.masked,
        seccomp: seccomp_profile,
    };
    let given = (gpus.given, gpus.summary);
    Ok(Planned { plan, filter, host, limits, network, stop_signal, check, jupyter, gpus: given })
}

/// A start takes a few descriptors itself, and fails in the runtime's own words where it gets none.
fn descriptors(report: Report, ulimits: &[Ulimit]) -> Report {
    match ulimits.iter().find(|limit| limit.name == "nofile" && limit.soft < START_NOFILE) {
        Some(limit) if report.hint.is_none() => report.with_hint(format!(
            "`--ulimit nofile={}` may leave too few descriptors for the start itself: use at least {START_NOFILE}",
            limit.soft
        )),
        _ => report,
    }
}

/// Image mount (host's namespace), then our own mount namespace, then the overlay in it.
fn mount_root(
    root: &Path,
    records: &Records,
    entry: &Entry,
    tell: &mut dyn FnMut(Progress),
    undo: &mut Undo,
) -> Result<(crate::store::Image, PathBuf), Report> {
    let store = Store::open(root)?;
    let image = store.image_of(&entry.record.request.image_id)?;
    let images = records.run_dir().join("images");
    let lower = rootfs::stored::lower(&images, &store, &image)?;
    step("image");
    let host_namespace = rootfs::private_namespace(&images, Some(&lower.dir))?;
    let rootfs = entry.run_dir.join("rootfs");
    rootfs::overlay(&rootfs::Overlay {
        lower: &lower.dir,
        upper: &entry.dir.join("upper"),
        work: &entry.dir.join("work"),
        merged: &rootfs,
        volatile: entry.record.request.auto_remove,
    })?;
    host_namespace.forget(&images)?;
    let mounted = rootfs.clone();
    undo.push("unmount the container's root", move || {
        let detached = crate::sys::mount::detach(&mounted)
            .map_err(|error| Report::new(format!("cannot unmount `{}`", mounted.display())).with_cause(error));
        // The lease is held until here: the image stays mounted for as long as the overlay needs it.
        drop(lower);
        let entered = host_namespace.enter().map_err(Report::from);
        detached.and(entered)
    });
    step("overlay");
    for name in rootfs::check_guards(&rootfs)? {
        tell(Progress::Notice(format!("the image's `{name}` is no directory: replaced in this container")));
    }
    Ok((image, rootfs))
}

fn groups(root: &OwnedFd, own: &[u32], added: &[String]) -> Result<Vec<u32>, Report> {
    let mut groups = own.to_vec();
    for name in added {
        groups.push(users::group(root, name)?);
    }
    let mut seen = std::collections::BTreeSet::new();
    groups.retain(|group| seen.insert(*group));
    Ok(groups)
}

fn make_network(records: &Records, entry: &Entry, hostname: &str, undo: &mut Undo) -> Result<net::Network, Report> {
    let request = &entry.record.request;
    let state_dir = records.run_dir().join("net");
    let id = entry.record.id.clone();
    let network = net::setup(&net::Request {
        id: &id,
        name: &entry.record.name,
        hostname,
        mode: request.network,
        ports: &ports(request)?,
        state_dir: &state_dir,
    })?;
    if request.network == NetworkMode::Bridge {
        undo.push("take down the container's network", move || Ok(net::teardown(&state_dir, &id)?));
    }
    Ok(network)
}

/// What the payload depends on.
struct About<'a> {
    entry: &'a Entry,
    request: &'a Request,
    root: &'a OwnedFd,
    merged: &'a Path,
    config: &'a crate::image::Config,
    env: &'a [String],
    cwd: &'a Path,
    limits: &'a Limits,
    user: &'a users::User,
}

/// The hooks of hooks.d that apply, and NVIDIA's where GPUs were asked for, each behind our shim.
fn hooks(
    entry: &Entry,
    gpus: &gpu::Edits,
    annotations: &[(String, String)],
    args: &[String],
) -> Result<Vec<(Stage, HookEntry)>, Report> {
    let request = &entry.record.request;
    let mut dirs: Vec<(PathBuf, bool)> = hook::HOST_DIRS.iter().map(|dir| (PathBuf::from(dir), true)).collect();
    dirs.extend(request.hooks_dirs.iter().map(|dir| (dir.clone(), false)));
    let definitions = hook::read_dirs(&dirs)?;
    let matched = hook::matching(
        &definitions,
        &hook::Circumstances {
            annotations,
            command: args.first().map_or("", String::as_str),
            has_bind_mounts: request.mounts.iter().any(|mount| matches!(mount.source, MountSource::Bind { .. })),
        },
    )?;
    let reports = entry.run_dir.join("hooks");
    fs::create_dir_all(&reports)
        .map_err(|error| Report::new(format!("cannot make `{}`", reports.display())).with_cause(error))?;
    Ok(hook::spec_entries(&gpus.combine(matched), Path::new("/proc/self/exe"), &reports))
}

/// Arguments of pid 1, the program whose absence is an error, and Jupyter's half of a bare launch.
fn payload(
    about: &About<'_>,
    mounts: &mut Vec<Mount>,
) -> Result<(Vec<String>, String, Option<jupyter::Prepared>), Report> {
    let About { entry, request, config, .. } = about;
    let init_mount = || -> Result<Mount, Report> {
        let path = entry.run_dir.join("init");
        write_executable(&path, INIT_PAYLOAD)?;
        Ok(Mount {
            destination: INIT_PATH.into(),
            kind: "bind".into(),
            source: path,
            options: ["bind", "ro", "nosuid", "nodev"].map(str::to_owned).into(),
        })
    };
    match &request.payload {
        Payload::Jupyter(jupyter_request) => {
            mounts.push(init_mount()?);
            let about = jupyter::About {
                entry,
                request: jupyter_request,
                root: about.root,
                merged: about.merged,
                entrypoint: request.entrypoint.as_deref().unwrap_or(&config.entrypoint),
                env: about.env,
                cwd: about.cwd,
                limits: about.limits,
                user: about.user,
            };
            let prepared = jupyter::prepare(&about, mounts)?;
            Ok((vec![INIT_PATH.into()], INIT_PATH.into(), Some(prepared)))
        }
        Payload::Command(words) => {
            let args = process::command(&config.entrypoint, &config.cmd, request.entrypoint.as_deref(), words);
            let Some(program) = args.first().cloned() else {
                return Err(Report::new(format!(
                    "the image `{}` has no command of its own, and none was given",
                    request.image
                ))
                .with_hint(format!("`gpurun run … {} COMMAND`", request.image)));
            };
            if request.init {
                mounts.push(init_mount()?);
                let args = std::iter::once(INIT_PATH.to_owned()).chain(args).collect();
                return Ok((args, program, None));
            }
            Ok((args, program, None))
        }
    }
}

fn write_executable(path: &Path, bytes: &[u8]) -> Result<(), Report> {
    use std::os::unix::fs::PermissionsExt;
    fs::write(path, bytes)
        .and_then(|()| fs::set_permissions(path, fs::Permissions::from_mode(0o555)))
        .map_err(|error| Report::new(format!("cannot write `{}`", path.display())).with_cause(error))
}

impl Planned {
    /// Cgroup, bundle, libcontainer, and the limits once more.
    pub(super) fn create(
        self,
        entry: &Entry,
        tell: &mut dyn FnMut(Progress),
        undo: &mut Undo,
    ) -> Result<Container, Report> {
        let Self { plan, filter, host, limits, network, stop_signal, check, mut jupyter, gpus } = self;
        if let Some(prepared) = &mut jupyter {
            prepared.hold(&plan, filter.as_ref());
        }
        // All that can be done before the cgroup is there: making it waits for the kernel (`Host::prime_moves`).
        let held = if plan.uid == 0 { plan.capabilities.0 } else { 0 };
        write_bundle(entry, &plan, filter.as_ref())?;
        let (stdio, streams) = streams(entry)?;
        let state_root = entry.run_dir.join("libcontainer");
        let prepared = runtime::prepare(CreateRequest {
            id: &entry.record.id,
            bundle: &entry.run_dir,
            state_root: &state_root,
            stdio,
            seccomp: filter.as_ref(),
            no_new_privileges: plan.no_new_privileges,
            held_capabilities: held,
            oom_score_adj: plan.oom_score_adj,
            check: &check,
        })?;
        step("bundle");
        let (cgroup, _) = host.create(&plan.cgroup_path, &limits, &device_rules(&plan.devices))?;
        let ours = cgroup.clone();
        undo.push("end what runs in the container's cgroup", move || Ok(ours.kill_all()?));
        step("cgroup");
        let created = prepared.create();
        // A hook's own words say more than the runtime's.
        let mut created =
            created.map_err(|error| match hook::failures(&entry.run_dir.join("hooks")).into_iter().next() {
                Some(failure) => Report::from(failure),
                None => descriptors(Report::from(error), &entry.record.request.ulimits),
            })?;
        step("created");
        super::scaffold::note(entry)?;
        let pidfd = created
            .pidfd
            .try_clone()
            .map_err(|error| Report::new("cannot keep hold of the container's process").with_cause(error))?;
        let mut streams = streams;
        if let Some(master) = created.pty.take() {
            streams
                .with_pty(master, entry.record.request.interactive)
                .map_err(|error| Report::new("cannot use the container's terminal").with_cause(error))?;
        }
        let mut limit_rows = cgroup.verify(&limits)?.into_iter().map(super::row).collect::<Vec<_>>();
        limit_rows.iter().filter_map(super::readback::tighter).for_each(|line| tell(Progress::Notice(line)));
        let process_limits = super::readback::process(created.pid, &entry.record.request)?;
        limit_rows.extend(process_limits.iter().cloned());
        step("verified");
        tell(Progress::Limits(limit_rows.clone()));
        Ok(Container {
            oom: cgroup.oom_watch(),
            cgroup,
            streams,
            jupyter: None,
            jupyter_plan: jupyter,
            limits: limit_rows,
            process_limits,
            gpus: gpus.0,
            gpus_by: gpus.1,
            ip: network.ip.map(|ip| ip.to_string()),
            ports: network.ports.iter().map(published).collect(),
            network,
            cgroup_path: plan.cgroup_path,
            stop_signal,
            ending: None,
            payload_ending: None,
            undo: Undo::default(),
            pid: created.pid,
            start_time: created.start_time,
            pidfd,
            created: Some(created),
        })
    }
}

fn published(port: &net::Published) -> PublishedPort {
    PublishedPort {
        host_ip: port.host_ip.to_string(),
        host_port: port.host_port,
        container_port: port.container_port,
        protocol: port.protocol.to_string(),
    }
}

/// `config.json` for hooks and readers, the compiled filter for `exec`.
fn write_bundle(entry: &Entry, plan: &Plan, filter: Option<&Filter>) -> Result<(), Report> {
    let spec = oci_spec(plan)?;
    let write = |name: &str, bytes: &[u8]| {
        let path = entry.run_dir.join(name);
        fs::write(&path, bytes)
            .map_err(|error| Report::new(format!("cannot write `{}`", path.display())).with_cause(error))
    };
    let text =
        serde_json::to_vec_pretty(&spec).map_err(|error| Report::new("cannot write the OCI spec").with_cause(error))?;
    write("config.json", &text)?;
    if let Some(filter) = filter {
        write("seccomp.bpf", &filter.to_bytes())?;
    }
    Ok(())
}

/// What the container gets for standard streams, and our ends of them.
fn streams(entry: &Entry) -> Result<(Stdio, Streams), Report> {
    let failed = |error: std::io::Error| Report::new("cannot make the container's standard streams").with_cause(error);
    let mut streams = Streams::default();
    if entry.record.request.tty {
        return Ok((Stdio::Pty { size: None }, streams));
    }
    let pipe = || nix::unistd::pipe2(nix::fcntl::OFlag::O_CLOEXEC).map_err(|errno| failed(errno.into()));
    let stdin: OwnedFd = if entry.record.request.wants_stdin() {
        let (read, write) = pipe()?;
        streams.with_input(write).map_err(failed)?;
        read
    } else {
        fs::File::open("/dev/null").map_err(failed)?.into()
    };
    let (out_read, stdout) = pipe()?;
    let (error_read, stderr) = pipe()?;
    streams.with_output(out_read, Stream::Stdout).map_err(failed)?;
    streams.with_output(error_read, Stream::Stderr).map_err(failed)?;
    Ok((Stdio::Fds { stdin, stdout, stderr }, streams))
}

/// The limits for the process, and a word about each default of ours that the host does not allow. What a person asked for and the host
/// does not allow is an error.
fn rlimits(asked: &[Ulimit], gpus: &[Rlimit]) -> Result<(Vec<Rlimit>, Vec<String>), Report> {
    let (mut limits, mut words) = (Vec::new(), Vec::new());
    // What libcontainer's parent has must not leak in by chance: docker's daemon gives its containers these.
    let mut defaults = vec![Rlimit { name: "RLIMIT_NOFILE".into(), soft: 1_048_576, hard: 1_048_576 }];
    defaults.extend_from_slice(gpus);
    let name = |name: &str| format!("RLIMIT_{}", name.to_ascii_uppercase());
    let hard_limit = |limit: &str| crate::sys::rlimit::get(limit).map(|(_, hard)| hard).unwrap_or(u64::MAX);
    let may_raise = may_raise_limits();
    for ulimit in asked {
        let limit = name(&ulimit.name);
        let most = hard_limit(&limit);
        if ulimit.hard > most && !may_raise {
            return Err(Report::usage(format!(
                "`--ulimit {ulimit}` is above {most}, the hard limit of gpurun itself, which it may not raise"
            ))
            .with_hint(format!(
                "ask for at most {most}, or raise the limit first (`ulimit -H`, systemd's `Limit…=`)"
            )));
        }
        limits.push(Rlimit { name: limit, soft: ulimit.soft, hard: ulimit.hard });
    }
    for default in defaults {
        if limits.iter().any(|other| other.name == default.name) {
            continue;
        }
        let most = hard_limit(&default.name);
        if default.hard > most && !may_raise {
            words.push(format!("the resource limit {} is lowered to this host's {most}", default.name));
            limits.push(Rlimit { soft: default.soft.min(most), hard: most, name: default.name });
        } else {
            limits.push(default);
        }
    }
    Ok((limits, words))
}

/// Whether this process has CAP_SYS_RESOURCE (number 24), without which no hard limit can be raised.
fn may_raise_limits() -> bool {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let effective = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    effective.and_then(|digits| u64::from_str_radix(digits.trim(), 16).ok()).is_some_and(|bits| bits >> 24 & 1 == 1)
}

fn last_capability() -> u32 {
    fs::read_to_string("/proc/sys/kernel/cap_last_cap").ok().and_then(|text| text.trim().parse().ok()).unwrap_or(40)
}

fn host_name() -> String {
    nix::unistd::gethostname().map(|name| name.to_string_lossy().into_owned()).unwrap_or_else(|_| "localhost".into())
}
