//! Flags → [`Request`]: everything that can be refused without touching the host is refused here.

use std::path::{Path, PathBuf};

use super::flags::{ContainerFlags, SecurityFlags};
use crate::report::Report;
use crate::request::{
    NetworkMode, Payload, Request, RestartPolicy, Seccomp, Ulimit, parse_device, parse_env, parse_env_file,
    parse_mount, parse_signal, parse_tmpfs, parse_ulimit, parse_volume,
};
use crate::units::parse_memory;

/// The longest environment file that is read.
const ENV_FILE_MAX: u64 = 1 << 20;

/// Builds the request; `image` is what was typed. What it means (`image_id`) is for the caller to add once the image is there.
pub fn build(flags: &ContainerFlags, image: &str, payload: Payload) -> Result<Request, Report> {
    let restart: RestartPolicy = flags.restart.parse()?;
    if flags.rm && restart != RestartPolicy::No {
        return Err(Report::usage("`--rm` and `--restart` contradict each other").with_hint("choose one of them"));
    }
    if flags.detach && flags.rm && flags.interactive && !flags.tty {
        tracing::debug!("-d with -i: standard input stays open without anybody typing");
    }
    let cwd =
        std::env::current_dir().map_err(|error| Report::new("cannot tell the current directory").with_cause(error))?;
    let (no_new_privileges, seccomp) = security_options(&flags.security)?;
    Ok(Request {
        image: image.to_owned(),
        image_id: String::new(),
        payload,
        entrypoint: flags.entrypoint.as_ref().map(|entry| match entry.as_str() {
            "" => Vec::new(),
            entry => vec![entry.to_owned()],
        }),
        env: environment(flags)?,
        workdir: flags.workdir.as_deref().map(workdir).transpose()?,
        user: flags.user.clone(),
        group_add: flags.group_add.clone(),
        hostname: flags.hostname.as_deref().map(hostname).transpose()?,
        labels: flags.label.iter().map(|text| label(text)).collect::<Result<_, _>>()?,
        tty: flags.tty,
        interactive: flags.interactive,
        auto_remove: flags.rm,
        restart,
        stop_signal: flags.stop_signal.as_deref().map(signal_number).transpose()?,
        stop_timeout: flags.stop_timeout,
        init: flags.init,
        mounts: mounts(flags, &cwd)?,
        read_only: flags.files.read_only,
        shm_size: flags.limits.shm_size.as_deref().map(shm_size).transpose()?.flatten(),
        limits: flags.limits.cgroup.asked(),
        cgroup_parent: flags.limits.cgroup_parent.as_deref().map(cgroup_parent).transpose()?,
        ulimits: ulimits(&flags.limits.ulimit)?,
        oom_score_adj: flags.limits.oom_score_adj,
        network: network_mode(&flags.network.network)?,
        publish: flags.network.publish.clone(),
        dns: flags.network.dns.iter().map(|text| name_server(text)).collect::<Result<_, _>>()?,
        add_hosts: flags.network.add_host.iter().map(|text| host_line(text)).collect::<Result<_, _>>()?,
        pid_host: match flags.security.pid.as_deref() {
            None | Some("private" | "") => false,
            Some("host") => true,
            Some(other) => {
                return Err(
                    Report::usage(format!("`--pid {other}` is not a mode")).with_hint("the only mode is `--pid host`")
                );
            }
        },
        cap_add: flags.security.cap_add.clone(),
        cap_drop: flags.security.cap_drop.clone(),
        no_new_privileges,
        seccomp,
        sysctls: flags.security.sysctl.iter().map(|text| key_value("--sysctl", text)).collect::<Result<_, _>>()?,
        gpus: flags.gpu.wish.gpus.clone(),
        gpu_mode: flags.gpu.wish.gpu_mode.clone(),
        share_gpu: flags.gpu.wish.share_gpu,
        devices: flags.gpu.device.iter().map(|text| parse_device(text)).collect::<Result<_, _>>()?,
        hooks_dirs: flags.gpu.hooks_dir.iter().map(|dir| cwd.join(dir)).collect(),
        invoker: invoker(),
    })
}

fn environment(flags: &ContainerFlags) -> Result<Vec<(String, String)>, Report> {
    let lookup = |name: &str| std::env::var(name).ok();
    let mut all = Vec::new();
    for path in &flags.env_file {
        let text = read_small_text(path, ENV_FILE_MAX)
            .map_err(|report| report.under(format!("cannot use `--env-file {}`", path.display())))?;
        all.extend(parse_env_file(&text, lookup).map_err(|error| {
            Report::from(error).under(format!("cannot use the environment file `{}`", path.display()))
        })?);
    }
    for text in &flags.env {
        all.extend(parse_env(text, lookup)?);
    }
    Ok(all)
}

/// Reads a text file of at most `max` bytes.
pub fn read_small_text(path: &Path, max: u64) -> Result<String, Report> {
    use std::io::Read;
    let failed = |error: std::io::Error| Report::new(format!("cannot read `{}`", path.display())).with_cause(error);
    let mut text = String::new();
    let file = std::fs::File::open(path).map_err(failed)?;
    file.take(max + 1).read_to_string(&mut text).map_err(failed)?;
    if text.len() as u64 > max {
        return Err(Report::new(format!("`{}` is longer than {max} bytes", path.display())));
    }
    Ok(text)
}

fn mounts(flags: &ContainerFlags, cwd: &Path) -> Result<Vec<crate::request::MountRequest>, Report> {
    let mut mounts = Vec::new();
    for text in &flags.files.volume {
        mounts.push(parse_volume(text, cwd)?);
    }
    for text in &flags.files.mount {
        mounts.push(parse_mount(text, cwd)?);
    }
    for text in &flags.files.tmpfs {
        mounts.push(parse_tmpfs(text)?);
    }
    let mut seen = std::collections::BTreeSet::new();
    for mount in &mounts {
        if !seen.insert(&mount.destination) {
            return Err(Report::usage(format!("two mounts want the same place, `{}`", mount.destination.display())));
        }
    }
    Ok(mounts)
}

pub fn workdir(path: &Path) -> Result<PathBuf, Report> {
    if path.is_absolute() {
        return Ok(path.to_path_buf());
    }
    Err(Report::usage(format!("`--workdir {}` is not an absolute path", path.display()))
        .with_hint("it is a path in the container: begin it with `/`"))
}

fn hostname(name: &str) -> Result<String, Report> {
    let good = (1..=63).contains(&name.len())
        && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-.".contains(&byte))
        && !name.starts_with('-')
        && !name.starts_with('.');
    if good {
        return Ok(name.to_owned());
    }
    Err(Report::usage(format!("`--hostname {name}` is not a host name"))
        .with_hint("use letters, digits, `-` and `.`, 63 characters at most"))
}

pub fn network_mode(text: &str) -> Result<NetworkMode, Report> {
    match text {
        "bridge" | "default" => Ok(NetworkMode::Bridge),
        "host" => Ok(NetworkMode::Host),
        "none" => Ok(NetworkMode::None),
        other => {
            Err(Report::usage(format!("there is no network `{other}`")).with_hint("use `bridge`, `host` or `none`"))
        }
    }
}

fn security_options(flags: &SecurityFlags) -> Result<(bool, Seccomp), Report> {
    let (mut no_new_privileges, mut seccomp) = (true, Seccomp::Default);
    for option in &flags.security_opt {
        let (key, value) =
            option.split_once(['=', ':']).map_or((option.as_str(), None), |(key, value)| (key, Some(value)));
        match (key, value) {
            ("no-new-privileges", None | Some("true")) => no_new_privileges = true,
            ("no-new-privileges", Some("false")) => no_new_privileges = false,
            ("seccomp", Some("unconfined")) => seccomp = Seccomp::Unconfined,
            ("seccomp", Some("builtin")) => seccomp = Seccomp::Default,
            ("seccomp", Some(path)) => {
                let text = read_small_text(Path::new(path), 4 << 20)
                    .map_err(|report| report.under(format!("cannot use `--security-opt seccomp={path}`")))?;
                seccomp = Seccomp::Profile(text);
            }
            _ => {
                return Err(Report::usage(format!("`--security-opt {option}` is not known"))
                    .with_hint("use `no-new-privileges=true|false` or `seccomp=unconfined|FILE`"));
            }
        }
    }
    Ok((no_new_privileges, seccomp))
}

/// A signal by number or name, with or without `SIG`.
pub fn signal_number(text: &str) -> Result<i32, Report> {
    parse_signal(text).ok_or_else(|| {
        Report::usage(format!("`{text}` is not a signal"))
            .with_hint("use a name such as `TERM` or `SIGINT`, or a number from 1 to 64")
    })
}

/// Of two for one resource the later holds, as in docker.
pub fn ulimits(texts: &[String]) -> Result<Vec<Ulimit>, Report> {
    let mut all: Vec<Ulimit> = Vec::new();
    for text in texts {
        let ulimit = parse_ulimit(text)?;
        all.retain(|other| other.name != ulimit.name);
        all.push(ulimit);
    }
    Ok(all)
}

/// docker's 0 is "not asked for".
pub fn shm_size(text: &str) -> Result<Option<u64>, Report> {
    match parse_memory(text) {
        Ok(size) => Ok(Some(size).filter(|size| *size > 0)),
        Err(error) => Err(Report::from(error).under(format!("`--shm-size {text}` cannot be used"))),
    }
}

/// The parent's path in the hierarchy, absolute. A systemd slice is given by its name alone, as with docker: `a-b.slice` lies in `a.slice`.
pub fn cgroup_parent(text: &str) -> Result<String, Report> {
    let wrong = |why: &str| {
        Report::usage(format!("`--cgroup-parent {text}` {why}"))
            .with_hint("give a path below the cgroup mount, such as `/lab/alice`, or a slice, such as `lab.slice`")
    };
    let relative = text.trim_matches('/');
    if let Some(name) = relative.strip_suffix(".slice").filter(|name| !name.contains('/') && !name.is_empty()) {
        let mut path = String::new();
        for (end, _) in name.match_indices('-').chain([(name.len(), "")]) {
            path.push('/');
            path.push_str(&name[..end]);
            path.push_str(".slice");
        }
        return Ok(path);
    }
    if relative.is_empty() {
        return Err(wrong("names no cgroup"));
    }
    if relative.split('/').any(|part| part.is_empty() || part == "." || part == "..") || relative.contains('\n') {
        return Err(wrong("is not a plain path"));
    }
    Ok(format!("/{relative}"))
}

fn name_server(text: &str) -> Result<String, Report> {
    text.parse::<std::net::IpAddr>().map(|ip| ip.to_string()).map_err(|_| {
        Report::usage(format!("`--dns {text}` is not an IP address")).with_hint("for example `--dns 1.1.1.1`")
    })
}

pub fn host_line(text: &str) -> Result<String, Report> {
    let wrong = || {
        Report::usage(format!("`--add-host {text}` is not `NAME:IP`")).with_hint("for example `--add-host db:10.0.0.7`")
    };
    let (name, ip) = text.split_once([':', '=']).ok_or_else(wrong)?;
    if name.is_empty() || name.contains(char::is_whitespace) || ip.parse::<std::net::IpAddr>().is_err() {
        return Err(wrong());
    }
    Ok(format!("{name}:{ip}"))
}

fn key_value(flag: &str, text: &str) -> Result<(String, String), Report> {
    match text.split_once('=') {
        Some((key, value)) if !key.is_empty() => Ok((key.to_owned(), value.to_owned())),
        _ => Err(Report::usage(format!("`{flag} {text}` is not `KEY=VALUE`"))),
    }
}

/// A label's name is not empty and has no blanks (docker's ValidateLabel); the value is any text.
pub fn label(text: &str) -> Result<(String, String), Report> {
    let (key, value) = text.split_once('=').unwrap_or((text, ""));
    let key = key.trim_start();
    let wrong = |how: &str| {
        Err(Report::usage(format!("`--label {text}` has {how}")).with_hint("for example `--label course=cgroups`"))
    };
    match key {
        "" => wrong("no name"),
        key if key.contains(char::is_whitespace) => wrong("a blank in its name"),
        key => Ok((key.to_owned(), value.to_owned())),
    }
}

/// The person behind `sudo`.
fn invoker() -> Option<(u32, u32)> {
    let number = |name: &str| std::env::var(name).ok()?.parse::<u32>().ok();
    number("SUDO_UID").zip(number("SUDO_GID")).filter(|(uid, _)| *uid != 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(change: impl FnOnce(&mut ContainerFlags)) -> Result<Request, Report> {
        let mut flags = ContainerFlags { restart: "no".into(), ..ContainerFlags::default() };
        flags.network.network = "bridge".into();
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
    fn contradictions_and_nonsense_are_usage_errors() {
        type Change = fn(&mut ContainerFlags);
        let cases: [(&str, Change); 13] = [
            ("--rm --restart", |f| (f.rm, f.restart) = (true, "always".into())),
            ("--workdir", |f| f.workdir = Some("x".into())),
            ("--network", |f| f.network.network = "mynet".into()),
            ("--pid", |f| f.security.pid = Some("container:x".into())),
            ("--security-opt", |f| f.security.security_opt = vec!["label=disable".into()]),
            ("--dns", |f| f.network.dns = vec!["x".into()]),
            ("--add-host", |f| f.network.add_host = vec!["x".into()]),
            ("--hostname", |f| f.hostname = Some("-x".into())),
            ("label without a name", |f| f.label = vec!["=x".into()]),
            ("label of a blank", |f| f.label = vec![" =x".into()]),
            ("label with a blank", |f| f.label = vec!["a b=x".into()]),
            ("--stop-signal", |f| f.stop_signal = Some("SIGNOPE".into())),
            ("same place", |f| f.files.volume = vec!["/a:/x".into(), "/b:/x/".into()]),
        ];
        for (what, change) in cases {
            let report = request(change).expect_err(what);
            assert_eq!(report.exit_code, crate::report::EXIT_USAGE, "{what}: {report}");
        }
    }
}
