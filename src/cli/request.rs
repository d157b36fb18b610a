//! Maps the flags to a [`Request`]. The grammar of each flag is in the request module. Everything that can be refused
//! without access to the host is refused here.

use std::path::Path;

use super::flags::{ContainerFlags, HealthFlags, NetworkFlags, SecurityFlags};
use super::resources::{caller_env, each, value};
use crate::config::Config;
use crate::report::Report;
use crate::request::{
    self, AttachError, Attached, ExposedPort, HealthAction, HealthConfig, HealthError, IpcMode, LogOptions,
    MountRequest, NetworkError, NetworkMode, Networking, Payload, PortSpec, Request, RestartPolicy, Seccomp,
    SecretRequest, SecurityOption, UserSpec, check_duplicates, check_isolation, check_sysctl, check_user_mode,
    check_volume_driver, check_wait, parse_annotation, parse_cgroup_mode, parse_cgroup_parent, parse_device,
    parse_dns_option, parse_dns_search, parse_domainname, parse_env, parse_env_file, parse_hostname, parse_label,
    parse_label_file, parse_mount, parse_name_server, parse_pid_mode, parse_shm_size, parse_signal, parse_sysctl,
    parse_time_zone, parse_tmpfs, parse_ulimits, parse_umask, parse_uts_mode, parse_volume, parse_workdir,
};

/// Maximum size of an environment file.
const ENV_FILE_MAX: u64 = 1 << 20;
/// Maximum size of a seccomp profile.
const PROFILE_MAX: u64 = 4 << 20;

/// Builds the request. `image` is the image reference from the command line.
pub(super) fn build(flags: &ContainerFlags, image: &str, payload: Payload) -> Result<Request, Report> {
    let restart: RestartPolicy = flags.restart.parse()?;
    if (flags.rm || flags.rmi) && restart != RestartPolicy::No {
        let flag = if flags.rmi { "--rmi" } else { "--rm" };
        return Err(
            Report::usage(format!("`{flag}` and `--restart` cannot be used together")).with_hint("omit one of them")
        );
    }
    if flags.detach && flags.rm && flags.interactive && !flags.tty {
        tracing::debug!("`-d` and `-i` are both set: standard input stays open without input");
    }
    let cwd =
        std::env::current_dir().map_err(|error| Report::new("cannot read the current directory").with_cause(error))?;
    let security = security_options(&flags.security)?;
    check_unused(flags)?;
    let gpus = flags.gpu.request.gpus.as_deref().map(str::parse).transpose()?;
    let gpu_wait = value("--wait", &flags.gpu.wait)?;
    check_wait(gpu_wait, gpus.as_ref())?;
    let networking = networking(&flags.network)?;
    let (pid_host, pid_container) = parse_pid_mode(flags.security.pid.as_deref().unwrap_or_default())?;
    let mut request = Request {
        image: image.to_owned(),
        payload,
        entrypoint: flags.entrypoint.as_deref().map(entrypoint),
        env: environment(flags)?,
        env_host: if flags.env_host { caller_env() } else { Vec::new() },
        unset_env: flags.unsetenv.clone(),
        unset_all_env: flags.unsetenv_all,
        secrets: each(&flags.secret, |text| SecretRequest::parse(text, &cwd))?,
        umask: flags.umask.as_deref().map(parse_umask).transpose()?,
        time_zone: flags.tz.as_deref().map(parse_time_zone).transpose()?,
        workdir: flags.workdir.as_deref().map(parse_workdir).transpose()?,
        user: flags.user.as_deref().map(UserSpec::of),
        group_add: flags.group_add.iter().flat_map(|list| list.split(',').map(str::to_owned)).collect(),
        hostname: flags.hostname.as_deref().map(parse_hostname).transpose()?,
        domainname: flags.domainname.as_deref().map(parse_domainname).transpose()?,
        labels: labels(flags)?,
        annotations: each(&flags.annotation, parse_annotation)?,
        cidfile: flags.cidfile.as_ref().map(|path| cwd.join(path)),
        tty: flags.tty,
        interactive: flags.interactive,
        passed_fds: Vec::new(),
        attached: attached(flags)?,
        auto_remove: flags.rm || flags.rmi,
        remove_image: flags.rmi,
        restart,
        stop_signal: flags.stop_signal.as_deref().map(parse_signal).transpose()?,
        stop_timeout: flags.stop_timeout,
        log: log_options(flags)?,
        health: health(&flags.health)?,
        health_on_failure: flags.health.health_on_failure.as_deref().and_then(HealthAction::parse).unwrap_or_default(),
        init: flags.init,
        mounts: mounts(flags, &cwd)?,
        volumes_from: flags.files.volumes_from.clone(),
        read_only: flags.files.read_only,
        shm_size: flags.limits.shm_size.as_deref().map(parse_shm_size).transpose()?.flatten(),
        limits: flags.limits.cgroup.limits()?,
        cgroup_parent: flags.limits.cgroup_parent.as_deref().map(parse_cgroup_parent).transpose()?,
        ulimits: parse_ulimits(&flags.limits.ulimit)?,
        oom_score_adj: flags.limits.oom_score_adj,
        network: networking.mode,
        networks: Some(networking.networks).filter(|networks| !networks.is_empty()),
        network_container: networking.container,
        publish: PortSpec::parse_all(&flags.network.publish)?,
        publish_all: flags.network.publish_all,
        expose: ExposedPort::parse_all(&flags.network.expose)?,
        dns: each(&flags.network.dns, parse_name_server)?,
        dns_search: each(&flags.network.dns_search, parse_dns_search)?,
        dns_options: each(&flags.network.dns_option, parse_dns_option)?,
        add_hosts: each(&flags.network.add_host, str::parse)?,
        pid_host,
        pid_container,
        ipc: flags.security.ipc.as_deref().unwrap_or_default().parse()?,
        uts_host: parse_uts_mode(flags.security.uts.as_deref().unwrap_or_default())?,
        cgroup_host: parse_cgroup_mode(flags.security.cgroupns.as_deref().unwrap_or_default())?,
        privileged: flags.security.privileged,
        unmasked: security.unmasked,
        runtime: flags.security.runtime.as_deref().map(str::parse).transpose()?,
        cap_add: each(&flags.security.cap_add, str::parse)?,
        cap_drop: each(&flags.security.cap_drop, str::parse)?,
        no_new_privileges: security.no_new_privileges,
        seccomp: security.seccomp,
        sysctls: each(&flags.security.sysctl, parse_sysctl)?,
        gpus,
        gpu_wait,
        gpu_mem_watch: value("--gpu-mem-watch", &flags.gpu.gpu_mem_watch)?,
        time_limits: flags.times.new_limits()?,
        gpu_mode: flags.gpu.request.gpu_mode.as_deref().map(str::parse).transpose()?.unwrap_or_default(),
        share_gpu: flags.gpu.request.share_gpu,
        devices: each(&flags.gpu.device, parse_device)?,
        device_rules: each(&flags.gpu.device_cgroup_rule, str::parse)?,
        hooks_dirs: flags.gpu.hooks_dir.iter().map(|dir| cwd.join(dir)).collect(),
        host_ca: flags.network.host_ca.then(crate::build::host_ca).transpose()?,
    };
    super::step::complete(flags, &mut request)?;
    check_contradictions(flags, &request)?;
    Ok(request)
}

/// The words of an entrypoint: none, a program, or podman's JSON list of words.
fn entrypoint(text: &str) -> Vec<String> {
    match serde_json::from_str::<Vec<String>>(text) {
        Ok(words) if text.starts_with('[') => words,
        _ => Some(text.to_owned()).filter(|text| !text.is_empty()).into_iter().collect(),
    }
}

/// Checks flags whose accepted values describe what gpurun does anyway.
fn check_unused(flags: &ContainerFlags) -> Result<(), Report> {
    let text = |value: &Option<String>| value.clone().unwrap_or_default();
    check_user_mode(&text(&flags.security.userns))?;
    check_isolation(&text(&flags.security.isolation))?;
    check_volume_driver(&text(&flags.files.volume_driver))?;
    match &flags.image.registry.platform {
        Some(platform) if platform.os != "linux" => {
            Err(Report::usage(format!("cannot run an image for `--platform {platform}`: this host runs Linux"))
                .with_hint("name a platform such as `linux/amd64`, or omit it"))
        }
        _ => Ok(()),
    }
}

/// Refuses flags that exclude each other.
fn check_contradictions(flags: &ContainerFlags, request: &Request) -> Result<(), Report> {
    let both = |one: &str, other: &str| {
        Err(Report::usage(format!("`{one}` and `{other}` cannot be used together")).with_hint("omit one of them"))
    };
    if request.uts_host && request.hostname.is_some() {
        return both("--uts host", "--hostname");
    }
    if request.uts_host && request.domainname.is_some() {
        return both("--uts host", "--domainname");
    }
    if request.ipc == IpcMode::None && flags.limits.shm_size.is_some() {
        return both("--ipc none", "--shm-size");
    }
    let own_ipc = matches!(request.ipc, IpcMode::Private | IpcMode::Shareable | IpcMode::None);
    let own_network = request.network != NetworkMode::Host;
    for (key, _) in &request.sysctls {
        check_sysctl(key, own_ipc, own_network, !request.uts_host)?;
    }
    Ok(())
}

/// The streams of `--attach`. As in docker, a container in the background has none.
fn attached(flags: &ContainerFlags) -> Result<Attached, AttachError> {
    if flags.detach { Ok(Attached::default()) } else { Attached::parse(&flags.attach, flags.interactive) }
}

/// The labels of files, then those of `--label`, which win.
fn labels(flags: &ContainerFlags) -> Result<Vec<(String, String)>, Report> {
    let mut labels = Vec::new();
    for path in &flags.label_file {
        let refused = |report: Report| report.under(format!("cannot use `--label-file {}`", path.display()));
        let text = read_small_text(path, ENV_FILE_MAX).map_err(refused)?;
        labels.extend(parse_label_file(&text).map_err(|error| refused(error.into()))?);
    }
    labels.extend(each(&flags.label, parse_label)?);
    Ok(labels)
}

fn health(flags: &HealthFlags) -> Result<Option<HealthConfig>, HealthError> {
    HealthConfig::parse(request::HealthFlags {
        command: flags.health_cmd.as_deref(),
        interval: flags.health_interval.as_deref(),
        timeout: flags.health_timeout.as_deref(),
        start_period: flags.health_start_period.as_deref(),
        start_interval: flags.health_start_interval.as_deref(),
        retries: flags.health_retries,
        none: flags.no_healthcheck,
    })
}

fn networking(flags: &NetworkFlags) -> Result<Networking, NetworkError> {
    let NetworkFlags { network, network_alias, ip, mac_address, .. } = flags;
    let flags = request::NetworkFlags {
        networks: network,
        aliases: network_alias,
        ip: ip.as_deref(),
        mac: mac_address.as_deref(),
    };
    flags.parse()
}

fn environment(flags: &ContainerFlags) -> Result<Vec<(String, String)>, Report> {
    let caller = caller_env();
    let mut all = Vec::new();
    for path in &flags.env_file {
        let text = read_small_text(path, ENV_FILE_MAX)
            .map_err(|report| report.under(format!("cannot use `--env-file {}`", path.display())))?;
        all.extend(parse_env_file(&text, &caller).map_err(|error| {
            Report::from(error).under(format!("cannot use the environment file `{}`", path.display()))
        })?);
    }
    for text in &flags.env {
        all.extend(parse_env(text, &caller)?);
    }
    Ok(all)
}

/// Combines the options of the host's configuration with the caller's, of which the last wins for each key.
fn log_options(flags: &ContainerFlags) -> Result<LogOptions, Report> {
    let driver = flags.log_driver.as_deref();
    // The host's defaults are for containers that have a log.
    let defaults = if driver == Some("none") { Vec::new() } else { Config::load()?.log.options() };
    Ok(LogOptions::parse(driver, &[defaults, flags.log_opt.clone()].concat())?)
}

/// Reads a text file of at most `max` bytes.
pub(super) fn read_small_text(path: &Path, max: u64) -> Result<String, Report> {
    use std::io::Read;
    let failed = |error: std::io::Error| {
        let report = Report::new(format!("cannot read `{}`", path.display()));
        match error.kind() {
            std::io::ErrorKind::NotFound => report.with_hint("create the file, or correct its path"),
            _ => report,
        }
        .with_cause(error)
    };
    let mut text = String::new();
    let file = std::fs::File::open(path).map_err(failed)?;
    file.take(max + 1).read_to_string(&mut text).map_err(failed)?;
    if text.len() as u64 > max {
        return Err(Report::new(format!("`{}` is longer than {max} bytes", path.display())));
    }
    Ok(text)
}

fn mounts(flags: &ContainerFlags, cwd: &Path) -> Result<Vec<MountRequest>, Report> {
    let mut mounts = each(&flags.files.volume, |text| parse_volume(text, cwd))?;
    mounts.extend(each(&flags.files.mount, |text| parse_mount(text, cwd))?);
    mounts.extend(each(&flags.files.tmpfs, parse_tmpfs)?);
    check_duplicates(&mounts)?;
    Ok(mounts)
}

/// What `--security-opt` and `--privileged` say.
struct Security {
    no_new_privileges: bool,
    seccomp: Seccomp,
    unmasked: bool,
}

fn security_options(flags: &SecurityFlags) -> Result<Security, Report> {
    // As in docker, a privileged container has neither, unless an option says so.
    let seccomp = if flags.privileged { Seccomp::Unconfined } else { Seccomp::Default };
    let mut all = Security { no_new_privileges: !flags.privileged, seccomp, unmasked: false };
    for option in each(&flags.security_opt, str::parse::<SecurityOption>)? {
        match option {
            SecurityOption::NoNewPrivileges(on) => all.no_new_privileges = on,
            SecurityOption::SeccompDefault => all.seccomp = Seccomp::Default,
            SecurityOption::SystemPathsUnconfined => all.unmasked = true,
            SecurityOption::Unconfined => {}
            SecurityOption::SeccompUnconfined => all.seccomp = Seccomp::Unconfined,
            SecurityOption::SeccompFile(path) => {
                let text = read_small_text(Path::new(&path), PROFILE_MAX)
                    .map_err(|report| report.under(format!("cannot use `--security-opt seccomp={path}`")))?;
                all.seccomp = Seccomp::Profile(text.parse()?);
            }
        }
    }
    Ok(all)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(change: impl FnOnce(&mut ContainerFlags)) -> Result<Request, Report> {
        let mut flags = ContainerFlags { restart: "no".into(), ..ContainerFlags::default() };
        flags.network.network = vec!["bridge".into()];
        change(&mut flags);
        build(&flags, "img", Payload::Command(vec![]))
    }

    #[test]
    fn defaults() {
        let request = request(|_| {}).unwrap();
        assert!(request.no_new_privileges && !request.pid_host && request.seccomp == Seccomp::Default);
        assert_eq!(request.network, NetworkMode::Bridge);
        assert_eq!(request.restart, RestartPolicy::No);
    }

    #[test]
    fn a_label_is_a_name_and_any_text() {
        let request = request(|f| f.label = vec!["a".into(), "b=".into(), " c= x=y ".into()]).unwrap();
        let labels: Vec<(&str, &str)> = request.labels.iter().map(|(key, value)| (&**key, &**value)).collect();
        assert_eq!(labels, [("a", ""), ("b", ""), ("c", " x=y ")]);
    }

    #[test]
    fn a_request_is_stored_and_read_again() {
        let request = request(|f| {
            f.limits.cgroup.memory = Some("1.5g".into());
            f.limits.cgroup.cpus = Some("2".into());
            f.limits.cgroup.device_read_bps = vec!["/dev/sda:10mb".into()];
            f.network.publish = vec!["8000-8001:9000-9001".into(), "127.0.0.1::53/udp".into()];
            f.network.add_host = vec!["db:10.0.0.7".into()];
            f.network.dns = vec!["1.1.1.1".into()];
            f.security.cap_add = vec!["sys_ptrace".into()];
            f.gpu.request.gpus = Some("\"device=0,2\"".into());
            f.gpu.device = vec!["nvidia.com/gpu=0".into()];
        })
        .unwrap();
        let stored = serde_json::to_value(&request).unwrap();
        assert_eq!(stored["publish"][2], "127.0.0.1::53/udp");
        assert_eq!((&stored["gpus"], &stored["limits"]["memory"]), (&"device=0,2".into(), &"1.5g".into()));
        let again: Request = serde_json::from_value(stored.clone()).unwrap();
        assert_eq!(serde_json::to_value(&again).unwrap(), stored);
        assert_eq!(again.publish, request.publish);
    }

    #[test]
    fn contradictions_and_nonsense_are_usage_errors() {
        type Change = fn(&mut ContainerFlags);
        let cases: [(&str, Change); 20] = [
            ("--rm --restart", |f| (f.rm, f.restart) = (true, "always".into())),
            ("--workdir", |f| f.workdir = Some("x".into())),
            ("--network", |f| f.network.network = vec!["-x".into()]),
            ("--pid", |f| f.security.pid = Some("container:".into())),
            ("--security-opt", |f| f.security.security_opt = vec!["label=type:x".into()]),
            ("--dns", |f| f.network.dns = vec!["x".into()]),
            ("--add-host", |f| f.network.add_host = vec!["x".into()]),
            ("--publish", |f| f.network.publish = vec!["x".into()]),
            ("--hostname", |f| f.hostname = Some("-x".into())),
            ("label without a name", |f| f.label = vec!["=x".into()]),
            ("label of a blank", |f| f.label = vec![" =x".into()]),
            ("label with a blank", |f| f.label = vec!["a b=x".into()]),
            ("--stop-signal", |f| f.stop_signal = Some("SIGNOPE".into())),
            ("same place", |f| f.files.volume = vec!["/a:/x".into(), "/b:/x/".into()]),
            ("--memory", |f| f.limits.cgroup.memory = Some("much".into())),
            ("--cap-add", |f| f.security.cap_add = vec!["SYS_NOPE".into()]),
            ("--health-timeout", |f| f.health.health_timeout = Some("5".into())),
            ("--no-healthcheck", |f| {
                (f.health.no_healthcheck, f.health.health_retries) = (true, Some(2));
            }),
            ("--gpus", |f| f.gpu.request.gpus = Some("some".into())),
            ("--device", |f| f.gpu.device = vec!["gpu".into()]),
        ];
        for (what, change) in cases {
            let report = request(change).expect_err(what);
            assert_eq!(report.exit_code, crate::report::EXIT_USAGE, "{what}: {report}");
        }
    }
}
