//! IDs of networks and of connections to them, and the networks that a request names.

use super::{Context, print};
use crate::image::digest_of;
use crate::net::Endpoint;
use crate::network::Networks;
use crate::report::{EXIT_GPURUN, Report};
use crate::request::{DEFAULT_NETWORK, Request};

/// The ID of a network that every host has.
pub(super) fn built_in(name: &str) -> String {
    digest_of(format!("gpurun network {name}").as_bytes()).hex()
}

/// An ID of a container's connection to a network.
pub(super) fn endpoint_id(container: &str, endpoint: &Endpoint) -> String {
    digest_of(format!("{container} {}", endpoint.bridge.device).as_bytes()).hex()
}

/// The ID of a network as `network ls` shows it.
pub(super) fn network_id(endpoint: &Endpoint) -> String {
    endpoint.bridge.id.clone().unwrap_or_else(|| built_in(DEFAULT_NETWORK))
}

/// Checks that the networks of a request exist, and replaces IDs by names. Finds the container whose network is shared.
pub(super) fn resolve(request: &mut Request, context: &Context) -> Result<(), Report> {
    let networks = Networks::new(&context.root);
    for attachment in request.networks.iter_mut().flatten().filter(|attachment| !attachment.is_default()) {
        let network =
            networks.find(&attachment.network).map_err(|error| Report::from(error).with_exit_code(EXIT_GPURUN))?;
        attachment.network = network.name;
    }
    let mut names: Vec<&str> =
        request.networks.iter().flatten().map(|attachment| attachment.network.as_str()).collect();
    names.sort_unstable();
    if let Some(twice) = names.windows(2).find(|pair| pair[0] == pair[1]) {
        return Err(Report::usage(format!("the network `{}` is named twice", twice[0])).with_hint("name it once"));
    }
    if request.network_container.is_some() && !request.publish.is_empty() {
        let instead = "publish them with the other container";
        print::say(&format!("gpurun: published ports are discarded with `--network container`: {instead}"));
    }
    if let Some(name) = &mut request.network_container {
        *name = context.records()?.find(name)?.record.id;
    }
    Ok(())
}
