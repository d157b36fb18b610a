//! `gpurun explain`: what flags become, before or while they hold; and a container's place on the host.

use std::io::IsTerminal;
use std::path::Path;

use clap::Args;
use oci_spec::runtime::Spec;

use super::flags::{GpuWish, LimitFlags};
use super::{Context, print, request};
use crate::cgroup::{Cgroup, Host, Version};
use crate::explain::{self, Explained, MountPoint, ProcessLimits, TOPICS, Tree};
use crate::gpu::Inventory;
use crate::gpu::usage;
use crate::launch;
use crate::record::{Entry, Records};
use crate::report::Report;
use crate::request::Request;
use crate::units::format_memory;

#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  gpurun explain --memory 2g --cpus 1.5        what these flags would become; changes nothing\n  \
    gpurun explain --gpus 1                      which GPU it would be, how it would come in, what it changes\n  \
    gpurun explain lab                           a running container's limits and GPUs, and what they do right now\n  \
    gpurun explain --tree lab                    its cgroup, namespaces, mounts and devices\n  \
    gpurun explain                               every limit in a paragraph"
)]
pub struct ExplainArgs {
    #[command(flatten)]
    limits: LimitFlags,
    #[command(flatten)]
    gpu: GpuWish,
    /// The container's cgroup in its tree, its namespaces, mounts and devices
    #[arg(long, requires = "container")]
    tree: bool,
    /// JSON
    #[arg(long)]
    json: bool,
    #[arg(value_name = "CONTAINER")]
    container: Option<String>,
}

impl ExplainArgs {
    /// Whether it is about flags alone (and not about GPUs, whose driver is asked).
    #[must_use]
    pub fn names_no_container(&self) -> bool {
        self.container.is_none() && self.gpu.gpus.is_none()
    }
}

pub fn run(args: &ExplainArgs, context: &Context) -> Result<u8, Report> {
    let host = Host::probe(Path::new("/"))?;
    let asked = args.limits.cgroup.asked();
    let process = process_limits(&args.limits)?;
    let given = asked != crate::spec::AskedLimits::default() || process != ProcessLimits::default();
    let Some(name) = &args.container else {
        if !given && args.gpu.gpus.is_none() {
            return topics(args.json);
        }
        let mut limits = asked.resolve(&host.facts()?)?;
        let words = host.soften(&mut limits);
        let path = launch::cgroup_path(process.cgroup_parent.as_deref(), "ID");
        let mut all = explain::explain(&limits, host.limits_version(), &path);
        all.extend(explain::explain_process(&process, host.limits_version(), "ID"));
        if let Some(gpus) = &args.gpu.gpus {
            let (mode, share) = (args.gpu.gpu_mode.as_deref(), args.gpu.share_gpu);
            let edits = launch::preview_gpus(&context.run_dir, gpus, mode, share, limits.cpuset_cpus.as_ref())?;
            all.push(explain::explain_gpus(&edits));
        }
        return show(all, &words, args.json, None);
    };
    let entry = context.records()?.find(name)?;
    if args.tree && (given || args.gpu.gpus.is_some()) {
        return Err(Report::usage("`--tree` shows a container as it is, and takes no limits").with_hint(format!(
            "`gpurun explain --tree {name}`; without `--tree` it says what the limits would become"
        )));
    }
    if args.tree {
        return tree(&host, &entry, args.json);
    }
    if process != ProcessLimits::default() || args.gpu.gpus.is_some() {
        return Err(Report::usage(
            "`--shm-size`, `--ulimit`, `--oom-score-adj`, `--cgroup-parent` and `--gpus` cannot be changed any more",
        )
        .with_hint(format!("leave `{name}` out to see what they become in a new container")));
    }
    let of_container = &entry.record.request;
    let asked = if given { of_container.limits.updated_by(&asked) } else { of_container.limits.clone() };
    let mut limits = asked.resolve(&host.facts()?)?;
    let words = host.soften(&mut limits);
    let path = launch::cgroup_path(of_container.cgroup_parent.as_deref(), &entry.record.id);
    let mut all = explain::explain(&limits, host.limits_version(), &path);
    let mut in_force = Ok(());
    if !given {
        all.extend(explain::explain_process(&its_own(of_container), host.limits_version(), &entry.record.id));
        if let Some(cgroup) = Cgroup::open(&host, &path)? {
            explain::add_kernel(&mut all, &cgroup.look(&limits)?, &cgroup.stats());
            in_force = cgroup.verify(&limits).map(drop);
            add_process(&mut all, &entry)?;
        }
        all.extend(given_gpus(&entry, &context.records()?)?);
    }
    if all.is_empty() && !args.json {
        print::out(&format!("container `{name}` has no limits; `gpurun update {name} --memory 2g` gives it one\n"))?;
        return Ok(0);
    }
    show(all, &words, args.json, Some(&entry.record.id))?;
    // All of it is shown, and that one does not hold is an error all the same.
    Ok(in_force.map(|()| 0)?)
}

fn process_limits(flags: &LimitFlags) -> Result<ProcessLimits, Report> {
    Ok(ProcessLimits {
        shm_size: flags.shm_size.as_deref().map(request::shm_size).transpose()?.flatten(),
        ulimits: request::ulimits(&flags.ulimit)?,
        oom_score_adj: flags.oom_score_adj,
        cgroup_parent: flags.cgroup_parent.as_deref().map(request::cgroup_parent).transpose()?,
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

/// What was read back of them when the container was made.
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

/// The GPUs that it was given, if any; what it has of their memory, where NVML tells.
fn given_gpus(entry: &Entry, records: &Records) -> Result<Option<Explained>, Report> {
    let state = entry.state()?;
    if state.gpus.is_empty() {
        return Ok(None);
    }
    let inventory = state.pid.and_then(|_| Inventory::read(&launch::driver_root()).ok());
    let all = inventory.map(|inventory| super::gpus::look(&inventory, records)).transpose()?.unwrap_or_default();
    let spec = Spec::load(entry.run_dir.join("config.json")).ok();
    Ok(Some(explain::explain_given(spec.as_ref(), state.gpus_by.as_deref(), &usage::shares(&all, &entry.record.id))))
}

fn show(mut all: Vec<Explained>, words: &[String], json: bool, id: Option<&str>) -> Result<u8, Report> {
    explain::sort(&mut all);
    if json {
        print::json(&all)?;
        return Ok(0);
    }
    let style = Style::detect();
    let mut text = Vec::new();
    if let Some(id) = id.filter(|_| all.iter().any(|one| !one.by_hand.is_empty())) {
        // An id makes any line longer than a screen is wide: once is enough.
        text.push(format!("{}\n  ID={id}\n", style.bold("for the lines by hand")));
    }
    text.extend(all.iter().map(|one| short(block(one, style), id)));
    text.extend(words.iter().map(|word| print::wrapped(&format!("note: {word}"), "", WIDTH)));
    print::out(&text.join("\n"))?;
    Ok(0)
}

/// The text with the id as a shell's variable.
fn short(text: String, id: Option<&str>) -> String {
    match id {
        Some(id) => text.replace(id, "$ID"),
        None => text,
    }
}

const WIDTH: usize = 80;

/// Colour on a terminal alone.
#[derive(Debug, Clone, Copy)]
struct Style(bool);

impl Style {
    fn detect() -> Self {
        Self(std::io::stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none())
    }

    fn bold(self, text: &str) -> String {
        if self.0 { format!("\x1b[1m{text}\x1b[0m") } else { text.to_owned() }
    }
}

/// Bytes with what they are to a person: `67108864 (64 MiB)`.
fn for_eyes(flag: &str, value: &str) -> String {
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
        let place = if file.version == "any" { "file".to_owned() } else { format!("cgroup {}", file.version) };
        line(&place, &format!("{} = {}", file.file, for_eyes(one.flag, &file.value)));
    }
    if let Some(refused) = &one.refused {
        line("here", &format!("cannot be enforced: {refused}"));
    }
    for hand in &one.by_hand {
        line("by hand", &hand.replace(" > ", " \\\n               >"));
    }
    for kernel in &one.kernel {
        let file = kernel.path.rsplit('/').next().unwrap_or_default();
        let effective = if kernel.effective == kernel.value {
            String::new()
        } else {
            format!(", effective {}", for_eyes(one.flag, &kernel.effective))
        };
        line("kernel", &format!("{file} = {}{effective}", for_eyes(one.flag, &kernel.value)));
        if !kernel.holds {
            line("changed", "not what was asked for: something else has written it since");
        }
        if let Some(binding) = &kernel.binding {
            line("binding", binding);
        }
    }
    for now in &one.now {
        line("now", print::wrapped(now, "             ", WIDTH).trim());
    }
    text.push_str(&print::wrapped(one.why, "  ", WIDTH));
    text.push_str(&print::wrapped(&format!("({})", one.source), "  ", WIDTH));
    text
}

/// Every limit in a paragraph, for who wants to read.
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
    print::out(&text.join("\n"))?;
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
    let path = launch::cgroup_path(entry.record.request.cgroup_parent.as_deref(), &entry.record.id);
    let cgroup = Cgroup::open(host, &path)?.ok_or_else(not_running)?;
    let tree = explain::tree(Path::new("/"), pid, &cgroup.mounts_and_dirs(&path))
        .map_err(|error| Report::new(format!("cannot look at container `{name}`")).with_cause(error))?;
    if json {
        print::json(&tree)?;
    } else {
        print::out(&tree_text(&tree, host.limits_version()))?;
    }
    Ok(0)
}

fn tree_text(tree: &Tree, version: Version) -> String {
    let style = Style::detect();
    let mut text =
        style.bold(if version == Version::V2 { "cgroup (v2)" } else { "cgroups (v1: one tree a controller)" }) + "\n";
    for group in &tree.cgroups {
        let name = if group.depth == 0 {
            group.path.clone()
        } else {
            group.path.rsplit('/').next().unwrap_or_default().to_owned()
        };
        // An id is known by its first digits.
        let name = if name.len() == 64 { format!("{}…", crate::record::short(&name)) } else { name };
        let indent = "  ".repeat(group.depth + 1);
        text.push_str(&format!("{indent}{name}\n"));
        for (file, value) in &group.limits {
            let flag = if file.starts_with("memory.") { "--memory" } else { "" };
            text.push_str(&format!("{indent}  {file} = {}\n", for_eyes(flag, value)));
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
    // Of mounts on one point the last one is what the container sees.
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
