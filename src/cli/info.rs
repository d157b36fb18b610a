//! `gpurun version | info`: docker's keys, for programs that ask which docker they talk to.

use clap::Args;
use serde_json::{Value, json};

use super::versions::DOCKER_VERSION;
use super::{Context, format, print};
use crate::record::Phase;
use crate::report::Report;

/// The version of docker's API whose output the commands have. Programs compare it with what they need.
const API_VERSION: &str = "1.45";
const VERSION: &str = env!("CARGO_PKG_VERSION");

/// Returns the version that programs are shown.
fn shown() -> &'static str {
    if super::shim::name().is_some() { DOCKER_VERSION } else { VERSION }
}

#[derive(Debug, Args)]
pub(super) struct VersionArgs {
    /// Print a Go template, or JSON (`json`)
    #[arg(short, long, value_name = "FORMAT")]
    format: Option<String>,
    /// Print as JSON
    #[arg(long, conflicts_with = "format")]
    json: bool,
}

#[derive(Debug, Args)]
pub(super) struct InfoArgs {
    /// Print a Go template, or JSON (`json`)
    #[arg(short, long, value_name = "FORMAT")]
    format: Option<String>,
    /// Print as JSON
    #[arg(long, conflicts_with = "format")]
    json: bool,
}

pub(super) fn version(args: &VersionArgs) -> Result<u8, Report> {
    let host = Host::read();
    let (os, arch) = ("linux", crate::image::Platform::host().architecture);
    if args.format.is_none() && !args.json && super::shim::name().is_some() {
        let side = format!(
            " Version:           {DOCKER_VERSION} (gpurun {VERSION})\n API version:       {API_VERSION}\n OS/Arch:           {os}/{arch}\n"
        );
        print::out(&format!("Client:\n{side} Context:           default\n\nServer: gpurun\n{side}"))?;
        return Ok(0);
    }
    if args.format.is_none() && !args.json {
        print::out(&format!(
            "Version:      {VERSION}\nAPI version:  {API_VERSION} (docker's, as far as commands print it)\nOS/Arch:      {os}/{arch}\nKernel:       {}\n",
            host.kernel
        ))?;
        return Ok(0);
    }
    // gpurun has no daemon: both sides are this program.
    let value = json!({
        "Client": {
            "Platform": { "Name": format!("gpurun {VERSION}") }, "Version": shown(), "ApiVersion": API_VERSION,
            "DefaultAPIVersion": API_VERSION, "GitCommit": "", "GoVersion": "", "Os": os, "Arch": arch,
            "BuildTime": "", "Context": "default",
        },
        "Server": {
            "Platform": { "Name": format!("gpurun {VERSION}") }, "Version": shown(), "ApiVersion": API_VERSION, "MinAPIVersion": "1.24",
            "GitCommit": "", "GoVersion": "", "Os": os, "Arch": arch, "KernelVersion": host.kernel, "BuildTime": "",
            "Components": [{ "Name": "gpurun", "Version": VERSION, "Details": { "ApiVersion": API_VERSION } }],
        },
    });
    format::print_object(args.format.as_deref(), &value, &["Details"])?;
    Ok(0)
}

pub(super) fn info(args: &InfoArgs, context: &Context) -> Result<u8, Report> {
    let (entries, unreadable) = context.records()?.list_all()?;
    let (mut running, mut paused) = (0, 0);
    for entry in &entries {
        let state = entry.state_shown()?;
        let is_up = matches!(state.phase, Phase::Running | Phase::Restarting);
        paused += usize::from(is_up && state.paused);
        running += usize::from(is_up && !state.paused);
    }
    let containers = entries.len() + unreadable.len();
    let stopped = containers - running - paused;
    let images = context.store()?.list()?.into_iter().filter(|image| !image.intermediate).count();
    let host = Host::read();
    let cgroups = crate::cgroup::Host::probe(std::path::Path::new("/"))?;
    let version = if cgroups.version() == "v2" { "2" } else { "1" };
    let arch = std::env::consts::ARCH;
    if args.format.is_none() && !args.json {
        print::out(&format!(
            "Containers: {containers}\n Running: {running}\n Paused: {paused}\n Stopped: {stopped}\nImages: {images}\n\
             Server Version: {VERSION}\nStorage Driver: overlay2\nLogging Driver: json-file\nCgroup Driver: cgroupfs\n\
             Cgroup Version: {}\nKernel Version: {}\nOperating System: {}\nOSType: linux\nArchitecture: {arch}\n\
             CPUs: {}\nTotal Memory: {}\nName: {}\nGpurun Root Dir: {}\nGpurun Run Dir: {}\n",
            version,
            host.kernel,
            host.system,
            host.cpus,
            crate::units::format_memory(host.memory),
            host.name,
            context.root.display(),
            context.run_dir.display(),
        ))?;
        return Ok(0);
    }
    let mut value: Value = json!({
        "ID": "", "Containers": containers, "ContainersRunning": running, "ContainersPaused": paused,
        "ContainersStopped": stopped, "Images": images, "Driver": "overlay2", "DriverStatus": [],
        "Plugins": { "Volume": ["local"], "Network": ["bridge", "host", "none"], "Log": ["json-file"] },
        "MemoryLimit": true, "SwapLimit": cgroups.has_swap_accounting(), "CpuCfsPeriod": true, "CpuCfsQuota": true,
        "CPUShares": true, "CPUSet": true, "PidsLimit": true, "IPv4Forwarding": true, "OomKillDisable": version == "1",
        "LoggingDriver": "json-file", "CgroupDriver": "cgroupfs", "CgroupVersion": version,
        "KernelVersion": host.kernel, "OperatingSystem": host.system, "OSType": "linux", "Architecture": arch,
        "NCPU": host.cpus, "MemTotal": host.memory, "DockerRootDir": context.root, "Name": host.name, "Labels": [],
        "ExperimentalBuild": false, "ServerVersion": shown(),
        "Runtimes": { "gpurun": { "path": "gpurun" } }, "DefaultRuntime": "gpurun",
        "SecurityOptions": ["name=seccomp,profile=builtin"], "Warnings": [],
        "ClientInfo": { "Version": shown(), "Context": "default", "Plugins": [], "Warnings": null },
        "GpurunRunDir": context.run_dir,
    });
    let platform = crate::image::Platform::host().architecture;
    // podman's names for the same.
    let podmans = json!({
        "Host": {
            "Arch": platform, "Hostname": host.name, "Kernel": host.kernel, "OS": "linux", "CPUs": host.cpus,
            "MemTotal": host.memory, "CgroupVersion": format!("v{version}"), "CgroupsVersion": format!("v{version}"),
            "CgroupManager": "cgroupfs", "LogDriver": "json-file", "EventLogger": "none", "NetworkBackend": "gpurun",
            "Security": { "Rootless": false, "SECCOMPEnabled": true, "SELinuxEnabled": false, "AppArmorEnabled": false },
            "OCIRuntime": { "Name": "gpurun", "Path": std::env::current_exe().unwrap_or_default(), "Version": VERSION },
            "Distribution": { "Distribution": host.distribution, "Version": host.distribution_version },
        },
        "Store": {
            "GraphDriverName": "overlay", "GraphRoot": context.root, "RunRoot": context.run_dir,
            "VolumePath": context.root.join("volumes"),
            "ContainerStore": { "Number": containers, "Running": running, "Paused": paused, "Stopped": stopped },
            "ImageStore": { "Number": images },
        },
        "Version": { "Version": VERSION, "APIVersion": API_VERSION, "OsArch": format!("linux/{}", platform) },
    });
    if let (Value::Object(all), Value::Object(podmans)) = (&mut value, podmans) {
        all.extend(podmans);
    }
    format::print_object(args.format.as_deref(), &value, &["Runtimes"])?;
    Ok(0)
}

/// Facts about this host.
struct Host {
    kernel: String,
    system: String,
    /// Its ID, such as `debian`, and its version.
    distribution: String,
    distribution_version: String,
    name: String,
    cpus: usize,
    /// Bytes.
    memory: u64,
}

impl Host {
    fn read() -> Self {
        let text = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
        let line = |text: &str, key: &str| {
            let found = text.lines().find_map(|line| line.strip_prefix(key));
            found.unwrap_or_default().trim_matches('"').trim().to_owned()
        };
        Self {
            kernel: text("/proc/sys/kernel/osrelease").trim().to_owned(),
            system: line(&text("/etc/os-release"), "PRETTY_NAME="),
            distribution: line(&text("/etc/os-release"), "ID="),
            distribution_version: line(&text("/etc/os-release"), "VERSION_ID="),
            name: text("/proc/sys/kernel/hostname").trim().to_owned(),
            cpus: std::thread::available_parallelism().map_or(1, usize::from),
            memory: memory_total().unwrap_or(0),
        }
    }
}

/// The host's memory in bytes.
pub(super) fn memory_total() -> Option<u64> {
    let text = std::fs::read_to_string("/proc/meminfo").ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("MemTotal:"))?;
    line.split_whitespace().next()?.parse::<u64>().ok()?.checked_mul(1024)
}
