//! The networks of a project: `up` and `run` create them, and `down` removes them.
//!
//! A network belongs to the project that its label names. `up` creates a network again if its settings have changed.

use std::path::PathBuf;

use super::super::versions::COMPOSE_VERSION;
use super::super::{Context, print};
use super::containers;
use super::{act, group};
use crate::compose::{Plans, ProjectNetwork, labels};
use crate::config::Config;
use crate::net::{self, NetError, NewNetwork};
use crate::network::{BUILT_IN, Network, NetworkError, Networks};
use crate::report::Report;

fn state_dir(context: &Context) -> PathBuf {
    context.run_dir.join("net")
}

/// Makes sure that the networks of the services exist, with the settings of the files.
pub(super) fn create(context: &Context, project: &str, plans: &Plans, timeout: Option<u64>) -> Result<(), Report> {
    let networks = Networks::new(&context.root);
    for network in &plans.networks {
        if network.external {
            external(&networks, network)?;
            continue;
        }
        let Some(existing) = networks.read(&network.name)? else {
            create_one(context, project, network)?;
            continue;
        };
        if existing.labels.get(labels::PROJECT).map(String::as_str) != Some(project) {
            print::say(&format!(
                "gpurun: the network `{}` exists, and this project has not created it; with `external: true` in the file, it is used without this notice",
                network.name
            ));
        } else if existing.labels.get(labels::HASH) != Some(&network.hash()) {
            replace(context, project, network, plans, timeout)?;
        }
    }
    Ok(())
}

fn external(networks: &Networks, network: &ProjectNetwork) -> Result<(), Report> {
    let name = &network.name;
    if BUILT_IN.contains(&name.as_str()) || networks.find(name).is_ok() {
        return Ok(());
    }
    Err(Report::new(format!("the external network `{name}` does not exist"))
        .with_hint(format!("create it with `gpurun network create {name}`")))
}

fn create_one(context: &Context, project: &str, network: &ProjectNetwork) -> Result<(), Report> {
    if context.dry_run {
        act::announce(context, &format!(" Network {}  Created", network.name));
        return Ok(());
    }
    let config = Config::load()?;
    // Removes the leases of dead containers.
    context.records()?;
    let networks = Networks::new(&context.root);
    let mut new = NewNetwork {
        name: network.name.clone(),
        subnet: network.subnet,
        gateway: network.gateway,
        internal: network.internal,
        labels: network.labels.clone(),
        range: config.network.range.map(|range| range.0),
        default: config.network.subnet.map(|subnet| subnet.0),
    };
    for (label, value) in [
        (labels::PROJECT, project),
        (labels::NETWORK, &network.key),
        (labels::VERSION, COMPOSE_VERSION),
        (labels::HASH, &network.hash()),
    ] {
        new.labels.insert(label.to_owned(), value.to_owned());
    }
    match net::create(&state_dir(context), &networks, new) {
        Ok(network) => print::say(&format!(" Network {}  Created", network.name)),
        // Another command has created it in the meantime.
        Err(NetError::NameTaken(_)) if is_of(networks.read(&network.name)?.as_ref(), project) => {}
        Err(error) => return Err(error.into()),
    }
    Ok(())
}

fn is_of(network: Option<&Network>, project: &str) -> bool {
    network.is_some_and(|network| network.labels.get(labels::PROJECT).is_some_and(|label| label == project))
}

/// Creates a network again. The project's containers on it are stopped for that time.
fn replace(
    context: &Context,
    project: &str,
    network: &ProjectNetwork,
    plans: &Plans,
    timeout: Option<u64>,
) -> Result<(), Report> {
    let name = &network.name;
    let mut own = containers::every(context, project)?;
    own.retain(|container| {
        let attachments = container.entry.record.request.attachments();
        container.is_running() && attachments.iter().any(|attachment| attachment.network == *name)
    });
    let connected = net::connected(&state_dir(context))?.into_iter();
    let on_network = connected.filter(|(.., endpoint)| endpoint.bridge.network == *name);
    let foreign: Vec<String> = on_network
        .filter(|(id, ..)| own.iter().all(|container| container.entry.record.id != *id))
        .map(|(_, name, _)| format!("`{name}`"))
        .collect();
    if !foreign.is_empty() {
        let message = format!("cannot replace the network `{name}`, whose settings have changed");
        return Err(Report::new(message)
            .with_cause(format!("these containers are connected to it: {}", foreign.join(", ")))
            .with_hint(format!("disconnect them first: `gpurun network disconnect {name} CONTAINER`")));
    }
    let names: Vec<(String, bool)> = own
        .iter()
        .map(|container| (container.name().to_owned(), plans.services.contains_key(&container.service)))
        .collect();
    group::stop(context, own, timeout)?;
    if !context.dry_run {
        net::remove(&state_dir(context), &Networks::new(&context.root), name)?;
    }
    act::announce(context, &format!(" Network {name}  Removed"));
    create_one(context, project, network)?;
    // The command starts the others itself.
    for (name, _) in names.iter().filter(|(_, is_planned)| !is_planned) {
        act::run(context, &["start".to_owned(), name.clone()])?.check()?;
    }
    Ok(())
}

/// Returns the networks that a project has created.
pub(super) fn of(context: &Context, project: &str) -> Result<Vec<Network>, Report> {
    let mut all = Networks::new(&context.root).list()?;
    all.retain(|network| is_of(Some(network), project));
    Ok(all)
}

/// Removes the networks that a project has created. One that other containers use stays.
pub(super) fn remove(context: &Context, project: &str) -> Result<(), Report> {
    for Network { name, .. } in of(context, project)? {
        if context.dry_run {
            act::announce(context, &format!(" Network {name}  Removed"));
            continue;
        }
        match net::remove(&state_dir(context), &Networks::new(&context.root), &name) {
            Ok(_) => print::say(&format!(" Network {name}  Removed")),
            // Another command has removed it in the meantime.
            Err(NetError::Network(NetworkError::Missing(_))) => {}
            Err(error @ NetError::InUse { .. }) => print::say(&format!("gpurun: {}", Report::from(error).message)),
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}
