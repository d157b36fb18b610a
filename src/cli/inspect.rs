//! `gpurun inspect`: everything about containers, as JSON.

use clap::Args;
use serde_json::{Value, json};

use super::{Context, print};
use crate::record::Entry;
use crate::report::Report;
use crate::supervise::log::rfc3339;

#[derive(Debug, Args)]
pub struct InspectArgs {
    /// Containers (or images): names, ids, or unambiguous beginnings
    #[arg(required = true)]
    names: Vec<String>,
    /// For those who ask for it everywhere: it is always JSON
    #[arg(long)]
    json: bool,
}

pub fn run(args: &InspectArgs, context: &Context) -> Result<u8, Report> {
    let records = context.records()?;
    let mut all = Vec::new();
    for name in &args.names {
        match records.find(name) {
            Ok(entry) => all.push(container(&entry)?),
            // A name that is no container may be an image, as with docker.
            Err(report) => match context.store()?.resolve(name) {
                Ok(image) => all.push(super::image::inspect_json(&image)),
                Err(_) => return Err(report),
            },
        }
    }
    print::json(&all)?;
    Ok(0)
}

fn container(entry: &Entry) -> Result<Value, Report> {
    let state = entry.state()?;
    let moment = |nanos: Option<u64>| nanos.map(rfc3339);
    let spec: Option<Value> =
        std::fs::read(entry.run_dir.join("config.json")).ok().and_then(|bytes| serde_json::from_slice(&bytes).ok());
    Ok(json!({
        "Id": entry.record.id,
        "Name": entry.record.name,
        "Created": rfc3339(entry.record.created),
        "Image": entry.record.request.image_id,
        "State": {
            "Status": if state.paused { "paused".into() } else { json!(state.phase) },
            "Paused": state.paused,
            "Running": state.phase == crate::record::Phase::Running,
            "Pid": state.pid.unwrap_or(0),
            "ExitCode": state.exit_code,
            "OOMKilled": state.oom_killed,
            "OOMKills": state.oom_kills,
            "OOMs": state.ooms,
            "Usage": state.usage,
            "Error": state.error,
            "StartedAt": moment(state.started),
            "FinishedAt": moment(state.finished),
            "StoppedByUser": state.stopped_by_user,
        },
        "RestartCount": state.restarts,
        "Request": entry.record.request,
        "Limits": state.limits,
        "Gpus": state.gpus,
        "GpusBy": state.gpus_by,
        "Cgroup": state.cgroup,
        "Network": { "IPAddress": state.ip, "Ports": state.ports },
        "Url": state.url,
        "Paths": {
            "Directory": entry.dir,
            "UpperDir": entry.dir.join("upper"),
            "Log": entry.log(),
            "Bundle": entry.run_dir,
        },
        "Spec": spec,
    }))
}
