//! The files that every container gets from its host: resolv.conf, hosts, hostname.

use std::fs;
use std::os::fd::OwnedFd;
use std::path::Path;

use crate::net;
use crate::record::Entry;
use crate::report::Report;
use crate::request::{NetworkMode, Request};
use crate::rootfs::{self, MountpointKind};
use crate::spec::Mount;

/// Writes them beside the record and binds them into the container.
pub fn mounts(
    entry: &Entry,
    root: &OwnedFd,
    hostname: &str,
    network: &net::Network,
    request: &Request,
) -> Result<Vec<Mount>, Report> {
    let host = |path: &str| fs::read_to_string(path).unwrap_or_default();
    let resolv_conf = match (request.network, request.dns.is_empty()) {
        (NetworkMode::Host, true) => host("/etc/resolv.conf"),
        _ => {
            net::files::resolv_conf(&host("/etc/resolv.conf"), &host("/run/systemd/resolve/resolv.conf"), &request.dns)
        }
    };
    let hosts = match request.network {
        NetworkMode::Host => net::files::add_hosts(&host("/etc/hosts"), &request.add_hosts, None),
        _ => net::files::hosts(hostname, network.ip, network.gateway, &request.add_hosts),
    };
    let texts = [("resolv.conf", resolv_conf), ("hosts", hosts), ("hostname", format!("{hostname}\n"))];
    let mut mounts = Vec::new();
    for (name, text) in texts {
        let destination = Path::new("/etc").join(name);
        // A person's own mount there wins.
        if request.mounts.iter().any(|mount| mount.destination == destination) {
            continue;
        }
        let source = entry.dir.join(name);
        fs::write(&source, text)
            .map_err(|error| Report::new(format!("cannot write `{}`", source.display())).with_cause(error))?;
        let destination = rootfs::make_mountpoint_in_root(root, &destination, MountpointKind::File)?;
        let options = ["bind", "rw", "rprivate"].map(str::to_owned).into();
        mounts.push(Mount { destination, kind: "bind".into(), source, options });
    }
    Ok(mounts)
}
