//! `gpurun explain`: what flags become, before or while they hold; and a container's place on the host.

use std::io::IsTerminal;
use std::path::Path;

use clap::Args;

use super::resources::ResourceFlags;
use super::{Context, print};
use crate::cgroup::{Cgroup, Host, Version};
use crate::explain::{self, Explained, TOPICS, Tree};
use crate::launch;
use crate::record::Entry;
use crate::report::Report;

#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  gpurun explain --memory 2g --cpus 1.5        what these flags would become; changes nothing\n  \
    gpurun explain lab                           a running container's limits, and what they do right now\n  \
    gpurun explain --tree lab                    its cgroup, namespaces, mounts and devices\n  \
    gpurun explain                               every limit in a paragraph"
)]
pub struct ExplainArgs {
    #[command(flatten)]
    limits: ResourceFlags,
    /// The container's cgroup in its tree, its namespaces, mounts and devices
    #[arg(long, requires = "container")]
    tree: bool,
    /// JSON
    #[arg(long)]
    json: bool,
    #[arg(value_name = "CONTAINER")]
    container: Option<String>,
}

pub fn run(args: &ExplainArgs, context: &Context) -> Result<u8, Report> {
    let host = Host::probe(Path::new("/"))?;
    let asked = args.limits.asked();
    let given = asked != crate::spec::AskedLimits::default();
    let Some(name) = &args.container else {
        if !given {
            return topics(args.json);
        }
        let mut limits = asked.resolve(&host.facts()?)?;
        let words = host.soften(&mut limits);
        let all = explain::explain(&limits, host.limits_version(), &launch::cgroup_path(None, "ID"));
        return show(&all, &words, args.json);
    };
    let entry = context.records()?.find(name)?;
    if args.tree {
        return tree(&host, &entry, args.json);
    }
    let request = &entry.record.request;
    let asked = if given { request.limits.updated_by(&asked) } else { request.limits.clone() };
    let mut limits = asked.resolve(&host.facts()?)?;
    let words = host.soften(&mut limits);
    let path = launch::cgroup_path(request.cgroup_parent.as_deref(), &entry.record.id);
    let mut all = explain::explain(&limits, host.limits_version(), &path);
    if !given && let Some(cgroup) = Cgroup::open(&host, &path)? {
        explain::add_kernel(&mut all, &cgroup.verify(&limits)?, &cgroup.stats());
    }
    if all.is_empty() && !args.json {
        print::out(&format!("container `{name}` has no limits; `gpurun update {name} --memory 2g` gives it one\n"))?;
        return Ok(0);
    }
    show(&all, &words, args.json)
}

fn show(all: &[Explained], words: &[String], json: bool) -> Result<u8, Report> {
    if json {
        print::json(&all)?;
        return Ok(0);
    }
    let mut text: Vec<String> = all.iter().map(|one| block(one, Style::detect())).collect();
    text.extend(words.iter().map(|word| print::wrapped(&format!("note: {word}"), "", WIDTH)));
    print::out(&text.join("\n"))?;
    Ok(0)
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

fn block(one: &Explained, style: Style) -> String {
    let mut text = style.bold(one.flag) + "\n";
    let mut line = |name: &str, value: &str| text.push_str(&format!("  {name:<11}{value}\n"));
    for oci in &one.oci {
        line("OCI", oci);
    }
    for file in &one.files {
        line(&format!("cgroup {}", file.version), &format!("{} = {}", file.file, file.value));
    }
    if let Some(refused) = &one.refused {
        line("here", &format!("cannot be enforced: {refused}"));
    }
    for hand in &one.by_hand {
        line("by hand", &hand.replace(" > ", " \\\n               > "));
    }
    for kernel in &one.kernel {
        let file = kernel.path.rsplit('/').next().unwrap_or_default();
        let effective =
            if kernel.effective == kernel.value { String::new() } else { format!(", effective {}", kernel.effective) };
        line("kernel", &format!("{file} = {}{effective}", kernel.value));
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
        let limits: Vec<String> = group.limits.iter().map(|(file, value)| format!("{file}={value}")).collect();
        text.push_str(format!("{indent}{name}  {}", limits.join("  ")).trim_end());
        text.push('\n');
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
    let width = tree.mounts.iter().map(|mount| mount.point.chars().count()).max().unwrap_or(0).min(40);
    for mount in &tree.mounts {
        let mode = if mount.read_only { "ro" } else { "rw" };
        text.push_str(&format!("  {:<width$} {mode} {:<8} {}\n", mount.point, mount.kind, mount.source));
    }
    text.push_str(&format!("\n{}\n", style.bold("devices")));
    for device in &tree.devices {
        text.push_str(&format!("  {:<14} {}:{}\n", device.path, device.major, device.minor));
    }
    text
}
