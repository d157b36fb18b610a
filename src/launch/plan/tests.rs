//! Golden OCI specs of typical requests. One snapshot holds the parts that all containers share; the others show the
//! difference to it.

use serde_json::{Value, json};

use super::*;
use crate::gpu::Edits;
use crate::image::Config;
use crate::launch::command::{INIT_PATH, command};
use crate::launch::process;
use crate::launch::rlimits::HardLimits;
use crate::request::{GpuRequest, JupyterRequest, Payload, UserSpec, parse_volume};
use crate::rootfs::users::User;
use crate::spec::{Device, Mount, Network, Swap, oci_spec};

fn image() -> Config {
    Config {
        env: vec!["PATH=/usr/bin:/bin".into(), "LANG=C.UTF-8".into()],
        entrypoint: vec!["tini".into(), "--".into()],
        cmd: vec!["bash".into()],
        stop_signal: "SIGINT".into(),
        ..Config::default()
    }
}

fn request() -> Request {
    Request { network: NetworkMode::Bridge, ..Request::bare("img".into(), Payload::Command(vec!["true".into()])) }
}

fn host() -> HostFacts {
    HostFacts {
        last_capability: 40,
        capabilities: crate::spec::Capabilities(u64::MAX),
        rlimits: HardLimits::default(),
        memory: Some(16 << 30),
        masked: vec!["/sys/devices/system/cpu/cpu0/thermal_throttle".into()],
        v1_cgroups: Vec::new(),
    }
}

/// What a launch acquires for a request, with values that stand for the host's.
fn acquired(request: &Request) -> Acquired {
    let (image, gpus) = (image(), Edits::default());
    let hostname = request.hostname.clone().unwrap_or_else(|| "0123456789ab".into());
    let user = User { uid: 0, gid: 0, groups: vec![0], home: "/root".into(), name: Some("root".into()) };
    let mut env = process::environment(&hostname, request.tty, &image.env, &gpus.default_env, &request.env, &gpus.env);
    process::add_home(&mut env, &user.home);
    Acquired {
        cgroup: "/gpurun/ID".into(),
        limits: Limits::default(),
        command: command(request, &image).unwrap(),
        image,
        rootfs: "/run/gpurun/ID/rootfs".into(),
        user,
        added_groups: Vec::new(),
        hostname,
        network: match request.network {
            NetworkMode::Host => Network::Host,
            NetworkMode::Bridge | NetworkMode::None => Network::Path("/proc/1/fd/9".into()),
        },
        ipc: spec::Namespace::New,
        pid: spec::Namespace::New,
        gpus,
        env,
        cwd: process::workdir(request.workdir.as_ref(), None),
        mounts: Vec::new(),
        hooks: Vec::new(),
        hook_reports: "/run/gpurun/ID/hooks".into(),
        jupyter: None,
    }
}

fn plan_of(request: &Request, change: impl FnOnce(&mut Acquired)) -> Plan {
    let mut acquired = acquired(request);
    change(&mut acquired);
    plan(request, &acquired, &host()).unwrap()
}

/// The spec with sorted capability sets, because their order is not defined. The seccomp profile has tests of its own,
/// so only its default is kept.
fn spec_of(plan: &Plan) -> Value {
    let mut spec = serde_json::to_value(oci_spec(&plan.container).unwrap()).unwrap();
    for set in spec["process"]["capabilities"].as_object_mut().unwrap().values_mut() {
        set.as_array_mut().unwrap().sort_by_key(ToString::to_string);
    }
    if let Some(seccomp) = spec["linux"].get_mut("seccomp") {
        *seccomp = seccomp["defaultAction"].clone();
    }
    spec
}

/// The values of `new` that differ from `old`, by JSON pointer.
fn difference(old: &Value, new: &Value, at: &str, found: &mut serde_json::Map<String, Value>) {
    match (old, new) {
        (Value::Object(old), Value::Object(new)) => {
            let keys: std::collections::BTreeSet<&String> = old.keys().chain(new.keys()).collect();
            for key in keys {
                let (old, new) = (old.get(key).unwrap_or(&Value::Null), new.get(key).unwrap_or(&Value::Null));
                difference(old, new, &format!("{at}/{key}"), found);
            }
        }
        (old, new) if old != new => drop(found.insert(at.to_owned(), new.clone())),
        _ => {}
    }
}

fn beyond_plain(plan: &Plan) -> Value {
    let mut found = serde_json::Map::new();
    difference(&spec_of(&plan_of(&request(), |_| {})), &spec_of(plan), "", &mut found);
    found.into()
}

fn bind(source: &str, destination: &str, options: &[&str]) -> Mount {
    Mount {
        destination: destination.into(),
        kind: "bind".into(),
        source: source.into(),
        options: options.iter().map(|option| (*option).to_owned()).collect(),
    }
}

#[test]
fn a_command() {
    let plan = plan_of(&request(), |_| {});
    assert_eq!((&*plan.program, plan.stop_signal, plan.jupyter.is_some()), ("tini", libc::SIGINT, false));
    assert!(plan.container.process.seccomp.is_some());
    insta::assert_json_snapshot!(spec_of(&plan));
}

#[test]
fn a_bare_launch() {
    let jupyter = Payload::Jupyter(JupyterRequest { port: 8888, args: Vec::new(), tls: None });
    let mounts = vec![parse_volume("/data:/work", "/".as_ref()).unwrap()];
    let plan = plan_of(&Request { payload: jupyter, mounts, ..request() }, |acquired| {
        acquired.mounts = vec![
            bind("/run/gpurun/ID/init", INIT_PATH, &["bind", "ro"]),
            bind("/data", "/work", &["rbind", "rw", "rprivate"]),
        ];
        acquired.jupyter = Some(crate::launch::jupyter::Prepared {
            args: vec!["jupyter".into(), "lab".into()],
            env: vec!["PATH=/usr/bin:/bin".into(), "JUPYTER_CONFIG_DIR=/run/gpurun/jupyter".into()],
            cwd: "/work".into(),
        });
    });
    let jupyter = plan.jupyter.clone().unwrap();
    let pid_1 = &plan.container.process;
    assert_eq!((&*plan.program, &jupyter.args[..]), (INIT_PATH, &["jupyter".to_owned(), "lab".into()][..]));
    // Jupyter differs from PID 1 only in what it runs.
    let same = Process { args: pid_1.args.clone(), env: pid_1.env.clone(), cwd: pid_1.cwd.clone(), ..jupyter };
    assert_eq!(&same, pid_1);
    insta::assert_json_snapshot!(beyond_plain(&plan));
}

#[test]
fn limits() {
    let request = Request {
        ulimits: vec![crate::request::Ulimit { name: "nofile".into(), soft: 100, hard: 200 }],
        oom_score_adj: Some(500),
        shm_size: Some(1 << 30),
        ..request()
    };
    let plan = plan_of(&request, |acquired| {
        acquired.limits = Limits {
            memory: Some(2 << 30),
            swap: Some(Swap::Implicit { total: 4 << 30 }),
            cpu_quota_us: Some(150_000),
            cpu_period_us: Some(100_000),
            cpuset_cpus: Some("0-1".parse().unwrap()),
            pids: Some(Some(100)),
            ..Limits::default()
        };
    });
    insta::assert_json_snapshot!(beyond_plain(&plan));
}

#[test]
fn the_hosts_network() {
    let named = Request { network: NetworkMode::Host, hostname: Some("box".into()), ..request() };
    let plain = Request { hostname: None, ..named.clone() };
    let specs = [named, plain].map(|request| beyond_plain(&plan_of(&request, |_| {})));
    insta::assert_json_snapshot!(specs);
}

#[test]
fn isolation() {
    let strict = Request {
        read_only: true,
        cap_drop: vec!["ALL".parse().unwrap()],
        cap_add: vec!["NET_BIND_SERVICE".parse().unwrap()],
        sysctls: vec![("net.core.somaxconn".into(), "100".into())],
        labels: vec![("course".into(), "cgroups".into())],
        ..request()
    };
    let lax = Request { pid_host: true, no_new_privileges: false, seccomp: Seccomp::Unconfined, ..request() };
    assert!(plan_of(&lax, |_| {}).container.process.seccomp.is_none());
    let specs = [
        beyond_plain(&plan_of(&strict, |_| {})),
        beyond_plain(&plan_of(&lax, |acquired| acquired.pid = spec::Namespace::Host)),
    ];
    insta::assert_json_snapshot!(specs);
}

#[test]
fn namespaces_of_others() {
    let host = Request {
        ipc: IpcMode::Host,
        uts_host: true,
        cgroup_host: true,
        device_rules: vec!["c 189:* rmw".parse().unwrap()],
        annotations: vec![("org.example".into(), "1".into())],
        ..request()
    };
    let joined = Request { ipc: IpcMode::Container("ID".into()), domainname: Some("lab".into()), ..request() };
    let none = Request { ipc: IpcMode::None, ..request() };
    let specs = [
        beyond_plain(&plan_of(&host, |acquired| acquired.ipc = spec::Namespace::Host)),
        beyond_plain(&plan_of(&joined, |acquired| {
            acquired.ipc = spec::Namespace::Path("/proc/1/fd/8".into());
            acquired.pid = spec::Namespace::Path("/proc/1/fd/9".into());
        })),
        beyond_plain(&plan_of(&none, |_| {})),
    ];
    insta::assert_json_snapshot!(specs);
}

#[test]
fn a_privileged_container() {
    let privileged = Request { privileged: true, seccomp: Seccomp::Unconfined, no_new_privileges: false, ..request() };
    let facts = HostFacts { v1_cgroups: vec![("memory".into(), "/sys/fs/cgroup/memory/gpurun/ID".into())], ..host() };
    let v1 = plan(&privileged, &acquired(&privileged), &facts).unwrap();
    let v2 = plan_of(&privileged, |_| {});
    assert!(v2.container.creation_rules().is_none() && v2.container.process.seccomp.is_none());
    insta::assert_json_snapshot!([beyond_plain(&v1), beyond_plain(&v2)]);
}

#[test]
fn a_user_with_more_groups() {
    let request =
        Request { user: Some(UserSpec::of("user")), group_add: vec!["7".into()], tty: true, init: true, ..request() };
    let plan = plan_of(&request, |acquired| {
        acquired.user =
            User { uid: 1000, gid: 100, groups: vec![100, 44], home: "/home/user".into(), name: Some("user".into()) };
        acquired.added_groups = vec![7, 44];
    });
    assert_eq!(plan.program, "tini", "the init starts it");
    insta::assert_json_snapshot!(beyond_plain(&plan));
}

#[test]
fn mounts_replace_the_runtimes_own() {
    let plan = plan_of(&request(), |acquired| {
        acquired.mounts = vec![
            bind("/data", "/data", &["rbind", "ro", "rro", "rprivate"]),
            bind("/mnt/shm", "/dev/shm", &["rbind", "rw", "rprivate"]),
        ];
    });
    insta::assert_json_snapshot!(beyond_plain(&plan));
}

#[test]
fn gpus_by_native_mode() {
    let gpus: GpuRequest = "all".parse().unwrap();
    let plan = plan_of(&Request { gpus: Some(gpus), ..request() }, |acquired| {
        acquired.gpus.devices = vec![Device {
            path: "/dev/nvidia0".into(),
            kind: 'c',
            major: 195,
            minor: 0,
            mode: 0o666,
            uid: 0,
            gid: 0,
            access: "rw".into(),
        }];
        acquired.gpus.masked = vec!["/proc/driver/nvidia/gpus/0000:02:00.0".into()];
        acquired.gpus.annotations = vec![("org.gpurun.gpus".into(), "GPU-1".into())];
        acquired.gpus.rlimits =
            vec![crate::spec::Rlimit { name: "RLIMIT_MEMLOCK".into(), soft: u64::MAX, hard: u64::MAX }];
        acquired.mounts = vec![bind("/usr/lib/libcuda.so.1", "/usr/lib/libcuda.so.1", &["ro", "bind"])];
    });
    // Half of the host's memory, because the container has no limit of its own.
    assert_eq!(plan.container.shm_size, Some(8 << 30));
    insta::assert_json_snapshot!(beyond_plain(&plan));
}

#[test]
fn version_1_has_a_directory_for_each_controller() {
    let facts = HostFacts { v1_cgroups: vec![("memory".into(), "/sys/fs/cgroup/memory/gpurun/ID".into())], ..host() };
    let plan = plan(&request(), &acquired(&request()), &facts).unwrap();
    insta::assert_json_snapshot!(beyond_plain(&plan));
}

#[test]
fn an_image_without_a_command_needs_one() {
    let request = Request { payload: Payload::Command(Vec::new()), ..request() };
    let report = command(&request, &Config::default()).unwrap_err();
    insta::assert_snapshot!(report.to_string(), @r"
    error: the image `img` has no command of its own, and none was given

    hint: `gpurun run … img COMMAND`
    ");
    assert_eq!(json!(command(&request, &image()).unwrap().args), json!(["tini", "--", "bash"]));
}
