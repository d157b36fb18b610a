//! `gpurun gpus`: the host's GPUs, and who uses which.

use std::path::Path;

use clap::Args;
use serde::Serialize;

use super::{Context, print};
use crate::gpu::usage::{self, Usage};
use crate::gpu::{GpuError, Inventory, gib, lease};
use crate::record::{Records, short};
use crate::report::Report;
use crate::supervise::log::now;

/// The host's GPUs: memory, utilisation, which containers were given them, which processes compute on them
#[derive(Debug, Args)]
#[command(
    after_help = "HELD BY are containers that were given the GPU: `alone` those that asked for an idle one (`--gpus N`), which no other\n`--gpus N` gets. USED BY are the processes that compute on it, wherever they run: in a container (another\nprogram's by its name: `docker 1a2b3c4d5e6f`), or `host`.\nA GPU in MIG mode is shown by its MIG devices (0:1 is the second of GPU 0)."
)]
pub struct GpusArgs {
    /// JSON, an object with the driver's version and an array of GPUs
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Serialize)]
struct All<'a> {
    driver: &'a str,
    /// The newest CUDA that the driver supports.
    cuda: Option<String>,
    /// Why memory, utilisation and processes are not known.
    unread: Option<String>,
    gpus: &'a [Usage],
}

pub fn run(args: &GpusArgs, context: &Context) -> Result<u8, Report> {
    let records = context.records()?;
    let root = crate::launch::driver_root();
    let inventory =
        Inventory::read(&root).map_err(|missing| Report::from(GpuError::NoDriver { asked: None, missing }))?;
    let all = look(&inventory, &records)?;
    let readings = inventory.readings.as_ref();
    if args.json {
        let cuda = readings.ok().and_then(|readings| readings.cuda);
        print::json(&All {
            driver: &inventory.host.driver,
            cuda: cuda.map(|(major, minor)| format!("{major}.{minor}")),
            unread: readings.err().map(ToString::to_string),
            gpus: &all,
        })?;
        return Ok(0);
    }
    if let Err(unread) = readings {
        print::say(&format!("gpurun: memory and processes are not known: {unread}"));
    }
    let rows: Vec<Vec<String>> = all.iter().map(|one| row(one, &records)).collect();
    print::out(&print::table(&["GPU", "MODEL", "UUID", "MEMORY", "UTIL", "HELD BY", "USED BY"], &rows))?;
    Ok(0)
}

/// Who uses what of it.
pub fn look(inventory: &Inventory, records: &Records) -> Result<Vec<Usage>, Report> {
    let leases = lease::living(&records.run_dir().join("gpus"))?;
    let ids = records.list()?.into_iter().map(|entry| entry.record.id).collect();
    Ok(usage::usage(inventory, &leases, &ids, Path::new("/proc")))
}

fn row(usage: &Usage, records: &Records) -> Vec<String> {
    let unit = &usage.unit;
    let dash = || "-".to_owned();
    let memory = unit
        .memory
        .map_or_else(dash, |memory| format!("{:.1} / {}", memory.used as f64 / f64::from(1 << 30), gib(memory.total)));
    let held = usage.leases.iter().map(|holder| {
        let age = print::ago(now().saturating_sub(holder.since));
        let alone = if holder.exclusive { ", alone" } else { "" };
        format!("{} ({}, {age}{alone})", holder.container, holder.user)
    });
    let used = usage.users.iter().map(|user| {
        let place = match &user.container {
            Some(id) => name(records, id),
            None => {
                let place = user.elsewhere.as_deref().unwrap_or("host");
                format!("{place} ({})", user.user.as_deref().unwrap_or("?"))
            }
        };
        let size = user.memory.map(|bytes| format!(" {}", gib(bytes))).unwrap_or_default();
        format!("{place}: {} [{}]{size}", user.command.as_deref().unwrap_or("?"), user.pid)
    });
    let joined = |words: Vec<String>| if words.is_empty() { dash() } else { words.join("; ") };
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

fn name(records: &Records, id: &str) -> String {
    let entry = records.get(id).ok().flatten();
    entry.map_or_else(|| short(id).to_owned(), |entry| entry.record.name)
}
