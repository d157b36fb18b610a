//! `gpurun explain`: shows the effect of flags before a launch or in a running container, and a container's cgroups,
//! namespaces, mounts and devices on the host.

use std::io::IsTerminal;
use std::path::Path;

use clap::Args;
use oci_spec::runtime::Spec;

use super::flags::{GpuRequestFlags, LimitFlags};
use super::{Context, print};
use crate::cgroup::{Cgroup, Host, Version};
use crate::explain::{self, Explained, Group, MountPoint, ProcessLimits, TOPICS, Tree};
use crate::gpu::usage;
use crate::launch;
use crate::record::{self, Entry, Records};
use crate::report::Report;
use crate::request::{HostFacts, LimitsRequest, Request, parse_cgroup_parent, parse_shm_size, parse_ulimits};
use crate::spec::Limits;
use crate::units::{CpuSet, format_memory};

#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  gpurun explain --memory 2g --cpus 1.5  what these flags become\n  \
    gpurun explain --gpus 1                the selected GPU and its injection\n  \
    gpurun explain notebook                limits and GPUs of a running container\n  \
    gpurun explain --tree notebook         its cgroups, namespaces, mounts\n  \
    gpurun explain                         a paragraph about every limit")]
pub(super) struct ExplainArgs {
    /// Show the container's cgroups, namespaces, mounts and devices
    #[arg(long, requires = "container")]
    tree: bool,
    /// Print as JSON
    #[arg(long)]
    json: bool,
    /// Name or ID of a container (default: none, explain the flags)
    #[arg(value_name = "CONTAINER")]
    container: Option<String>,
    #[command(flatten)]
    limits: LimitFlags,
    #[command(flatten)]
    gpu: GpuRequestFlags,
}

impl ExplainArgs {
    /// Returns whether the command is only about flags, and not about GPUs, which require a query of the driver.
    #[must_use]
    pub(super) fn names_no_container(&self) -> bool {
        self.container.is_none() && self.gpu.gpus.is_none()
    }
}

pub(super) fn run(args: &ExplainArgs, context: &Context) -> Result<u8, Report> {
    let host = Host::probe(Path::new("/"))?;
    let asked = args.limits.cgroup.limits()?;
    let process = process_limits(&args.limits)?;
    let given = asked != LimitsRequest::default() || process != ProcessLimits::default();
    let Some(name) = &args.container else {
        if !given && args.gpu.gpus.is_none() {
            return topics(args.json);
        }
        let (mut limits, beyond) = shown(&asked, &host)?;
        let mut notices = host.clamp(&mut limits);
        notices.extend(beyond);
        let path = record::cgroup_path(process.cgroup_parent.as_deref(), "ID");
        let mut all = explain::explain(&limits, host.limits_version(), &path);
        all.extend(explain::explain_process(&process, host.limits_version(), "ID"));
        if let Some(gpus) = &args.gpu.gpus {
            let mode = args.gpu.gpu_mode.as_deref().map(str::parse).transpose()?.unwrap_or_default();
            let (gpus, share, cpus) = (gpus.parse()?, args.gpu.share_gpu, limits.cpuset_cpus.as_ref());
            let edits = launch::preview_gpus(&context.run_dir, &gpus, mode, share, cpus)?;
            all.push(explain::explain_gpus(&edits));
        }
        return show(all, &notices, args.json, None);
    };
    let entry = context.records()?.find(name)?;
    if args.tree && (given || args.gpu.gpus.is_some()) {
        return Err(Report::usage("`--tree` shows a container as it is, and cannot be used with limits").with_hint(
            format!("use `gpurun explain --tree {name}`, or omit `--tree` to see what the limits would become"),
        ));
    }
    if args.tree {
        return tree(&host, &entry, args.json);
    }
    if process != ProcessLimits::default() || args.gpu.gpus.is_some() {
        return Err(Report::usage(
            "`--shm-size`, `--ulimit`, `--oom-score-adj`, `--cgroup-parent` and `--gpus` cannot be changed after the start",
        )
        .with_hint(format!("omit `{name}` to see what they become in a new container")));
    }
    let of_container = &entry.record.request;
    let asked = if given { of_container.limits.updated_by(&asked) } else { of_container.limits.clone() };
    let mut limits = asked.resolve(&host.facts()?)?;
    let notices = host.clamp(&mut limits);
    let place = &entry.record.cgroup;
    let mut all = explain::explain(&limits, host.limits_version(), place);
    let mut in_force = Ok(());
    if !given {
        all.extend(explain::explain_process(&its_own(of_container), host.limits_version(), &entry.record.id));
        if let Some(cgroup) = Cgroup::open(&host, place)? {
            let (rows, stats) = (cgroup.look(&limits)?, cgroup.stats());
            explain::add_kernel(&mut all, &rows, &stats);
            let given: Vec<&str> = rows.iter().map(|row| row.flag).collect();
            explain::add_step(&mut all, &cgroup.step_rows(&host, &given), &stats);
            in_force = cgroup.verify(&limits).map(drop);
            add_process(&mut all, &entry)?;
        }
        all.extend(given_gpus(&entry, &context.records()?)?);
    }
    if all.is_empty() && !args.json {
        print::out(&format!("container `{name}` has no limits; `gpurun update {name} --memory 2g` gives it one\n"))?;
        return Ok(0);
    }
    show(all, &notices, args.json, Some(&entry.record.id))?;
    // Everything has been shown. A limit that is not in effect is still an error.
    Ok(in_force.map(|()| 0)?)
}

/// Resolves the limits. If only a larger host could satisfy them, adds a notice instead of an error, because showing
/// limits changes nothing.
fn shown(asked: &LimitsRequest, host: &Host) -> Result<(Limits, Option<String>), Report> {
    let facts = host.facts()?;
    let refused = match asked.resolve(&facts) {
        Ok(limits) => return Ok((limits, None)),
        Err(error) => error,
    };
    /// The kernel's maximum number of CPUs (NR_CPUS), which also exceeds the number of NUMA nodes.
    const LARGEST: u32 = 8192;
    let all = || CpuSet((0..LARGEST).collect());
    let larger = HostFacts { cpus: all(), mems: all(), ..facts };
    match asked.resolve(&larger) {
        Ok(limits) => Ok((limits, Some(format!("{refused}; a launch would be refused here")))),
        Err(_) => Err(refused.into()),
    }
}

fn process_limits(flags: &LimitFlags) -> Result<ProcessLimits, Report> {
    Ok(ProcessLimits {
        shm_size: flags.shm_size.as_deref().map(parse_shm_size).transpose()?.flatten(),
        ulimits: parse_ulimits(&flags.ulimit)?,
        oom_score_adj: flags.oom_score_adj,
        cgroup_parent: flags.cgroup_parent.as_deref().map(parse_cgroup_parent).transpose()?,
    })
}

fn its_own(request: &Request) -> ProcessLimits {
    ProcessLimits {
        shm_size: request.shm_size,
        ulimits: request.ulimits.clone(),
        oom_score_adj: request.oom_score_adj,
        cgroup_parent: request.cgroup_parent.clone(),
    }
}

/// Adds the values that were read back when the container was created.
fn add_process(all: &mut [Explained], entry: &Entry) -> Result<(), Report> {
    for row in entry.state()?.limits.into_iter().filter(|row| row.file.starts_with("/proc/")) {
        if let Some(one) = all.iter_mut().find(|one| one.flag == row.flag) {
            one.kernel.push(explain::Kernel {
                path: row.file,
                value: row.kernel,
                effective: row.effective,
                binding: None,
                holds: true,
            });
        }
    }
    Ok(())
}

/// Describes the GPUs that the container has, if any, and its use of their memory if NVML reports it.
fn given_gpus(entry: &Entry, records: &Records) -> Result<Option<Explained>, Report> {
    let state = entry.state()?;
    if state.gpus.is_empty() {
        return Ok(None);
    }
    let inventory = state.pid.and_then(|_| crate::gpu::inventory(&launch::driver_root()).ok());
    let all =
        inventory.map(|inventory| crate::sampler::gpu_usage(&inventory, records)).transpose()?.unwrap_or_default();
    let spec = Spec::load(entry.run_dir.join("config.json")).ok();
    Ok(Some(explain::explain_given(spec.as_ref(), state.gpus_by.as_deref(), &usage::shares(&all, &entry.record.id))))
}

fn show(mut all: Vec<Explained>, notices: &[String], json: bool, id: Option<&str>) -> Result<u8, Report> {
    explain::sort(&mut all);
    if json {
        print::json(&all)?;
        return Ok(0);
    }
    let style = Style::detect();
    let mut text = Vec::new();
    if let Some(id) = id.filter(|_| all.iter().any(|one| !one.by_hand.is_empty())) {
        // The id would make every line wider than the screen, so it is printed only once.
        text.push(format!("{}\n  ID={id}\n", style.bold("for the commands")));
    }
    text.extend(all.iter().map(|one| short(block(one, style), id)));
    text.extend(notices.iter().map(|word| print::wrapped(&format!("note: {word}"), "", WIDTH)));
    print::styled(&text.join("\n"))?;
    Ok(0)
}

/// Replaces the id by a shell variable.
fn short(text: String, id: Option<&str>) -> String {
    match id {
        Some(id) => text.replace(id, "$ID"),
        None => text,
    }
}

const WIDTH: usize = 80;

/// Whether to use color, which is done only on a terminal.
#[derive(Debug, Clone, Copy)]
struct Style(bool);

impl Style {
    fn detect() -> Self {
        Self(std::io::stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none())
    }

    fn bold(self, text: &str) -> String {
        if self.0 { print::bold(text) } else { text.to_owned() }
    }
}

/// Adds a readable form to a number of bytes: `67108864 (64 MiB)`.
fn readable(flag: &str, value: &str) -> String {
    let bytes = flag.starts_with("--memory") && flag != "--memory-swappiness" || flag == "--shm-size";
    match value.parse::<u64>() {
        Ok(number) if bytes && (1024..1 << 62).contains(&number) => format!("{value} ({})", format_memory(number)),
        _ => value.to_owned(),
    }
}

fn block(one: &Explained, style: Style) -> String {
    let mut text = style.bold(one.flag) + "\n";
    let mut line = |name: &str, value: &str| text.push_str(&format!("  {name:<11}{value}\n"));
    for oci in &one.oci {
        line("OCI", oci);
    }
    for file in &one.files {
        let label = if file.version == "any" { "file".to_owned() } else { format!("cgroup {}", file.version) };
        line(&label, &format!("{} = {}", file.file, readable(one.flag, &file.value)));
    }
    if let Some(refused) = &one.refused {
        line("here", &format!("cannot be enforced: {refused}"));
    }
    for hand in &one.by_hand {
        line("command", &hand.replace(" > ", " \\\n               >"));
    }
    for kernel in &one.kernel {
        let file = kernel.path.rsplit('/').next().unwrap_or_default();
        let effective = if kernel.effective == kernel.value {
            String::new()
        } else {
            format!(", effective {}", readable(one.flag, &kernel.effective))
        };
        line("kernel", &format!("{file} = {}{effective}", readable(one.flag, &kernel.value)));
        if !kernel.holds {
            line("changed", "not what was requested: another program has changed it");
        }
        if let Some(binding) = &kernel.binding {
            line("binding", binding);
        }
    }
    for now in &one.now {
        line("now", print::wrapped(now, "             ", WIDTH).trim());
    }
    text.push_str(&print::wrapped(&one.why, "  ", WIDTH));
    text.push_str(&print::wrapped(&format!("({})", one.source), "  ", WIDTH));
    text
}

/// Prints a paragraph about each limit.
fn topics(json: bool) -> Result<u8, Report> {
    if json {
        let all: Vec<_> = TOPICS
            .iter()
            .map(|topic| serde_json::json!({ "flag": topic.flag, "why": topic.why, "source": topic.source }))
            .collect();
        print::json(&all)?;
        return Ok(0);
    }
    let style = Style::detect();
    let text: Vec<String> = TOPICS
        .iter()
        .map(|topic| {
            let source = print::wrapped(&format!("({})", topic.source), "  ", WIDTH);
            format!("{}\n{}{source}", style.bold(topic.flag), print::wrapped(topic.why, "  ", WIDTH))
        })
        .collect();
    print::styled(&text.join("\n"))?;
    Ok(0)
}

fn tree(host: &Host, entry: &Entry, json: bool) -> Result<u8, Report> {
    let name = &entry.record.name;
    let state = entry.state()?;
    let not_running = || {
        Report::new(format!("container `{name}` is not running"))
            .with_hint(format!("start it with `gpurun start {name}`"))
    };
    let pid = state.pid.ok_or_else(not_running)?;
    let cgroup = Cgroup::open(host, &entry.record.cgroup)?.ok_or_else(not_running)?;
    let tree = explain::tree(Path::new("/"), pid, &cgroup.mounts_and_dirs())
        .map_err(|error| Report::new(format!("cannot inspect container `{name}`")).with_cause(error))?;
    if json {
        print::json(&tree)?;
    } else {
        print::out(&tree_text(&tree, host.limits_version()))?;
    }
    Ok(0)
}

/// Merges the groups of all hierarchies into one tree. Under version 1, a group has a directory in each controller with
/// the same processes. The merged tree shows it once, with the limits of all controllers.
fn merged(groups: &[Group]) -> Vec<Group> {
    let mut all: Vec<(Vec<String>, Group)> = Vec::new();
    for group in groups {
        let parts: Vec<&str> = group.path.split('/').collect();
        let relative: Vec<String> = parts[parts.len() - group.depth..].iter().map(|part| (*part).to_owned()).collect();
        match all.iter_mut().find(|(known, _)| *known == relative) {
            Some((_, known)) => {
                if group.depth == 0 && known.path != group.path {
                    known.path = common(&known.path, &group.path);
                }
                known.limits.extend(group.limits.clone());
                known.processes.extend(group.processes.clone());
                known.processes.sort_unstable();
                known.processes.dedup();
            }
            None => all.push((relative, group.clone())),
        }
    }
    // Sort the groups so that a group that only one controller has follows its parent.
    all.sort_by(|(a, _), (b, _)| a.cmp(b));
    all.into_iter().map(|(_, group)| group).collect()
}

/// Returns the common parent directory of two paths.
fn common(one: &str, other: &str) -> String {
    let parts = one.split('/').zip(other.split('/')).take_while(|(one, other)| one == other);
    parts.map(|(part, _)| part).collect::<Vec<_>>().join("/")
}

fn tree_text(tree: &Tree, version: Version) -> String {
    let style = Style::detect();
    let mut text = style.bold(if version == Version::V2 {
        "cgroup (v2)"
    } else {
        "cgroups (v1: the trees of all controllers as one)"
    }) + "\n";
    for group in merged(&tree.cgroups) {
        let name = group.path.rsplit_once('/').map_or(group.path.as_str(), |(_, last)| last).to_owned();
        let name = if group.depth == 0 { group.path.clone() } else { name };
        // Show an id in its short form.
        let name = if name.len() == 64 { format!("{}…", crate::record::short(&name)) } else { name };
        let indent = "  ".repeat(group.depth + 1);
        text.push_str(&format!("{indent}{name}\n"));
        for (file, value) in &group.limits {
            let flag = if file.starts_with("memory.") { "--memory" } else { "" };
            text.push_str(&format!("{indent}  {file} = {}\n", readable(flag, value)));
        }
        for (pid, name) in &group.processes {
            text.push_str(&format!("{indent}  {pid} {name}\n"));
        }
    }
    text.push_str(&format!("\n{}\n", style.bold("namespaces")));
    for namespace in &tree.namespaces {
        let whose = if namespace.shared { "the host's" } else { "its own" };
        text.push_str(&format!("  {:<7} {:<12} {whose}\n", namespace.kind, namespace.inode));
    }
    text.push_str(&format!("\n{}\n", style.bold("mounts")));
    // If several mounts have the same mount point, the container sees the last one.
    let seen =
        |index: usize, mount: &MountPoint| !tree.mounts[index + 1..].iter().any(|later| later.point == mount.point);
    let mounts: Vec<&MountPoint> =
        tree.mounts.iter().enumerate().filter(|(index, mount)| seen(*index, mount)).map(|(_, mount)| mount).collect();
    let width = mounts.iter().map(|mount| mount.point.chars().count()).max().unwrap_or(0).min(40);
    for mount in mounts {
        let mode = if mount.read_only { "ro" } else { "rw" };
        text.push_str(&format!("  {:<width$} {mode} {:<8} {}\n", mount.point, mount.kind, mount.source));
    }
    text.push_str(&format!("\n{}\n", style.bold("devices")));
    for device in &tree.devices {
        text.push_str(&format!("  {:<14} {}:{}\n", device.path, device.major, device.minor));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_group_of_version_1_is_shown_once() {
        let group = |path: &str, depth, limit: Option<(&str, &str)>| Group {
            path: path.into(),
            depth,
            processes: if depth == 2 { vec![(7, "sleep".into())] } else { Vec::new() },
            limits: limit.into_iter().map(|(file, value)| (file.to_owned(), value.to_owned())).collect(),
        };
        let mut groups = Vec::new();
        for (controller, limit) in [
            ("cpu", ("cpu.cfs_quota_us", "100000")),
            ("memory", ("memory.limit_in_bytes", "64")),
            ("pids", ("pids.max", "9")),
        ] {
            groups.push(group(&format!("/sys/fs/cgroup/{controller}"), 0, None));
            groups.push(group(&format!("/sys/fs/cgroup/{controller}/gpurun"), 1, None));
            groups.push(group(&format!("/sys/fs/cgroup/{controller}/gpurun/ID"), 2, Some(limit)));
        }
        let all = merged(&groups);
        let paths: Vec<&str> = all.iter().map(|group| group.path.as_str()).collect();
        assert_eq!(paths, ["/sys/fs/cgroup", "/sys/fs/cgroup/cpu/gpurun", "/sys/fs/cgroup/cpu/gpurun/ID"]);
        assert_eq!(all[2].limits.len(), 3);
        assert_eq!(all[2].processes, [(7, "sleep".to_owned())]);
    }
}
