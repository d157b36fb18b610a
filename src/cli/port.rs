//! `gpurun port CONTAINER [PORT]`: lists the published ports of a container.

use clap::Args;

use super::{Context, print};
use crate::record::PublishedPort;
use crate::report::Report;

#[derive(Debug, Args)]
pub(super) struct PortArgs {
    /// Print a JSON array
    #[arg(long)]
    json: bool,
    /// Name or ID of the container
    #[arg(value_name = "CONTAINER")]
    container: String,
    /// Port of the container (default: all)
    #[arg(value_name = "PORT[/PROTOCOL]")]
    port: Option<String>,
}

pub(super) fn run(args: &PortArgs, context: &Context) -> Result<u8, Report> {
    let entry = context.records()?.find(&args.container)?;
    let name = &entry.record.name;
    let wanted = args.port.as_deref().map(parse).transpose()?;
    let state = entry.state()?;
    let is_wanted = |port: &&PublishedPort| {
        wanted.as_ref().is_none_or(|(number, protocol)| port.container_port == *number && port.protocol == *protocol)
    };
    // A container that has ended keeps the ports of its last run in its state.
    let is_up = entry.supervisor()?.is_some();
    let mut ports: Vec<&PublishedPort> = state.ports.iter().filter(|_| is_up).filter(is_wanted).collect();
    ports.sort_by_key(|port| (port.container_port, &port.protocol, port.host_port));
    if let (Some((number, protocol)), true) = (&wanted, ports.is_empty()) {
        return Err(Report::new(format!("container `{name}` does not publish the port {number}/{protocol}"))
            .with_hint(format!("list the published ports with `gpurun port {name}`"))
            .with_exit_code(1));
    }
    if args.json {
        print::json(&ports)?;
        return Ok(0);
    }
    let line = |port: &&PublishedPort| match wanted {
        Some(_) => format!("{}:{}\n", port.host_ip, port.host_port),
        None => format!("{}/{} -> {}:{}\n", port.container_port, port.protocol, port.host_ip, port.host_port),
    };
    print::out(&ports.iter().map(line).collect::<String>())?;
    Ok(0)
}

fn parse(text: &str) -> Result<(u16, String), Report> {
    let (number, protocol) = text.split_once('/').unwrap_or((text, "tcp"));
    let protocol = protocol.to_ascii_lowercase();
    match number.parse() {
        Ok(number) if protocol == "tcp" || protocol == "udp" => Ok((number, protocol)),
        _ => Err(Report::usage(format!("`{text}` is not a port")).with_hint("for example `80` or `53/udp`")),
    }
}
