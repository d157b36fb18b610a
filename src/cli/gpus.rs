//! `gpurun gpus`: lists the host's GPUs, with the containers that hold them and the processes that use them.

use clap::Args;
use serde::Serialize;

use super::{Context, print};
use crate::clock::now;
use crate::gpu::queue::{self, Waiter};
use crate::gpu::usage::Usage;
use crate::gpu::{self, gib};
use crate::record::{Records, short};
use crate::report::Report;
use crate::sampler::gpu_usage;

#[derive(Debug, Args)]
#[command(
    after_help = "HELD BY lists the containers that have the GPU; `alone` marks an exclusive GPU (`--gpus N`). USED BY lists the processes that compute on it, in a container (another tool's by its name: `docker 1a2b3c4d5e6f`) or on the host. A GPU in MIG mode is listed by its MIG devices (0:1 is the second one of GPU 0). QUEUE lists the commands that wait for idle GPUs with `--wait`, in their order."
)]
pub(super) struct GpusArgs {
    /// Print a JSON object with the driver's version and an array of GPUs
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Serialize)]
struct All<'a> {
    driver: Option<&'a str>,
    /// The newest CUDA version that the driver supports.
    cuda: Option<&'a str>,
    /// The reason why memory, utilization and processes are unknown.
    unread: Option<&'a str>,
    gpus: &'a [Usage],
    /// The commands that wait for idle GPUs, the first one first.
    queue: &'a [Waiter],
}

pub(super) fn run(args: &GpusArgs, context: &Context) -> Result<u8, Report> {
    let records = context.records()?;
    let root = crate::launch::driver_root();
    let inventory = gpu::inventory(&root)?;
    let all = gpu_usage(&inventory, &records)?;
    let queue = queue::waiting(&records.run_dir().join("gpus"))?;
    if args.json {
        print::json(&All {
            driver: inventory.driver.as_deref(),
            cuda: inventory.cuda.as_deref(),
            unread: inventory.unread.as_deref(),
            gpus: &all,
            queue: &queue,
        })?;
        return Ok(0);
    }
    if let Some(unread) = &inventory.unread {
        print::say(&format!("note: memory, utilization and processes are unknown: {unread}"));
    }
    let rows: Vec<Vec<String>> = all.iter().map(|one| row(one, &records)).collect();
    print::show_table(&["GPU", "MODEL", "UUID", "MEMORY", "UTIL", "HELD BY", "USED BY"], &rows)?;
    if !queue.is_empty() {
        print::out("\n")?;
        let rows: Vec<Vec<String>> =
            queue.iter().enumerate().map(|(place, waiter)| waiting_row(place, waiter)).collect();
        print::show_table(&["QUEUE", "USER", "CONTAINER", "GPUS", "WAITING"], &rows)?;
    }
    Ok(0)
}

fn row(usage: &Usage, records: &Records) -> Vec<String> {
    let unit = &usage.unit;
    let dash = || "-".to_owned();
    let memory = unit
        .memory
        .map_or_else(dash, |memory| format!("{:.1} / {}", memory.used as f64 / f64::from(1 << 30), gib(memory.total)));
    let held = usage.leases.iter().map(|holder| {
        let age = crate::units::age(now().saturating_sub(holder.since));
        let alone = if holder.exclusive { ", alone" } else { "" };
        format!("{} ({}, {age}{alone})", holder.container, holder.user)
    });
    let used = usage.users.iter().map(|user| {
        let owner = match &user.container {
            Some(id) => name(records, id),
            None => {
                let owner = user.elsewhere.as_deref().unwrap_or("host");
                format!("{owner} ({})", user.user.as_deref().unwrap_or("?"))
            }
        };
        let size = user.memory.map(|bytes| format!(" {}", gib(bytes))).unwrap_or_default();
        format!("{owner}: {} [{}]{size}", user.command.as_deref().unwrap_or("?"), user.pid)
    });
    let joined = |parts: Vec<String>| if parts.is_empty() { dash() } else { parts.join("; ") };
    vec![
        unit.index.clone(),
        unit.model.clone(),
        if unit.name == unit.index { dash() } else { unit.name.clone() },
        memory,
        unit.utilization.map_or_else(dash, |percent| format!("{percent}%")),
        joined(held.collect()),
        joined(used.collect()),
    ]
}

fn waiting_row(place: usize, waiter: &Waiter) -> Vec<String> {
    let age = crate::units::age(now().saturating_sub(waiter.since));
    vec![(place + 1).to_string(), waiter.user.clone(), waiter.container.clone(), waiter.gpus.clone(), age]
}

fn name(records: &Records, id: &str) -> String {
    let entry = records.get(id).ok().flatten();
    entry.map_or_else(|| short(id).to_owned(), |entry| entry.record.name)
}
