//! The files that every container gets from gpurun: resolv.conf, hosts, and hostname.

use std::fs;
use std::io::{self, Read};
use std::net::{IpAddr, Ipv4Addr};
use std::os::unix::fs::{FileExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use super::peer::Peer;
use super::places::Places;
use super::progress::{Progress, Tell};
use crate::net;
use crate::record::Entry;
use crate::report::Report;
use crate::request::{Mounted, NetworkMode, Request};
use crate::rootfs::MountpointKind;
use crate::spec::Mount;

const HOST_DNS: &str = "/etc/resolv.conf";
/// The upstream servers of systemd-resolved.
const RESOLVED_DNS: &str = "/run/systemd/resolve/resolv.conf";

fn read(path: &str) -> String {
    fs::read_to_string(path).unwrap_or_default()
}

/// The name servers to which the container's resolver forwards.
pub(super) fn name_servers(request: &Request) -> Vec<IpAddr> {
    net::files::upstreams(&read(HOST_DNS), &read(RESOLVED_DNS), &request.dns)
}

fn resolv_conf(request: &Request, has_resolver: bool) -> String {
    let is_asked = !(request.dns.is_empty() && request.dns_search.is_empty() && request.dns_options.is_empty());
    if request.network == NetworkMode::Host && !is_asked {
        return read(HOST_DNS);
    }
    let asked = net::files::DnsSettings {
        servers: &request.dns,
        search: &request.dns_search,
        options: &request.dns_options,
        has_resolver,
    };
    net::files::resolv_conf(&read(HOST_DNS), &read(RESOLVED_DNS), &asked)
}

/// Names the resolver in the resolv.conf of a running container that had none, unless the file was changed. Returns
/// whether the file names it.
///
/// The file is mounted in the container, so it is overwritten in place, by one write of at least the old length: a
/// reader never sees a part of it.
pub(super) fn name_resolver(entry: &Entry) -> io::Result<bool> {
    let request = &entry.record.request;
    let (before, mut after) = (resolv_conf(request, false), resolv_conf(request, true));
    let path = entry.dir.join("resolv.conf");
    let file = fs::File::options().read(true).write(true).custom_flags(libc::O_NOFOLLOW).open(path)?;
    let mut now = Vec::new();
    (&file).take(before.len() as u64 + 1).read_to_end(&mut now)?;
    if now != before.as_bytes() {
        return Ok(false);
    }
    while after.len() < before.len() {
        after.push('\n');
    }
    file.write_all_at(after.as_bytes(), 0)?;
    Ok(true)
}

/// Writes the files beside the record and returns their mounts.
pub(super) fn mounts(
    entry: &Entry,
    places: &Places<'_>,
    hostname: &str,
    network: &net::Network,
    peer: Option<&Peer>,
    tell: Tell<'_>,
) -> Result<Vec<Mount>, Report> {
    let request = &entry.record.request;
    let resolv_conf = resolv_conf(request, network.resolver.is_some());
    // The whole name is the first one, which `hostname -f` looks for.
    let names = match &request.domainname {
        Some(domain) => format!("{hostname}.{domain} {hostname}"),
        None => hostname.to_owned(),
    };
    let hosts = match request.network {
        NetworkMode::Host => net::files::add_hosts(&read("/etc/hosts"), &request.add_hosts, Some(Ipv4Addr::LOCALHOST)),
        _ => net::files::hosts(&names, network.ip, network.gateway, &request.add_hosts),
    };
    let texts = [("resolv.conf", resolv_conf), ("hosts", hosts), ("hostname", format!("{hostname}\n"))];
    let mut mounts = Vec::new();
    for (name, text) in texts {
        let destination = Path::new("/etc").join(name);
        // In a mounted directory of the host, gpurun mounts only on existing files and creates none.
        if places.lacks(&destination) {
            tell(Progress::Notice(format!(
                "`{}` is left out: the directory that is mounted above it has no such file",
                destination.display()
            )));
            continue;
        }
        let destination = match places.added(&destination, MountpointKind::File, Mounted::Other) {
            Ok(path) => path,
            // A link in the image leads into the runtime's own file systems or into a directory of the host, or the
            // destination is not a file.
            Err(report) => {
                tell(Progress::Notice(format!("`{}` is left out: {}", destination.display(), report.message)));
                continue;
            }
        };
        // Containers that share a network share the files about it, as in docker.
        let shared = peer.map(|peer| peer.file(name)).filter(|file| name != "hostname" && file.exists());
        let source = shared.clone().unwrap_or_else(|| entry.dir.join(name));
        if shared.is_none() {
            // Not in place: another container's start may write names into a hosts file that this container had before.
            crate::durable::write_atomic_volatile(&source, text.as_bytes())
                .and_then(|()| fs::set_permissions(&source, fs::Permissions::from_mode(0o644)))
                .map_err(|error| Report::new(format!("cannot write `{}`", source.display())).with_cause(error))?;
        }
        let options = ["bind", "rw", "rprivate"].map(str::to_owned).into();
        mounts.push(Mount { destination, kind: "bind".into(), source, options });
    }
    mounts.extend(local_time(entry, places, request)?);
    Ok(mounts)
}

/// The host's file of a time zone.
fn zone_file(name: &str) -> PathBuf {
    if name == "local" { PathBuf::from("/etc/localtime") } else { Path::new("/usr/share/zoneinfo").join(name) }
}

/// Checks that this host knows the requested time zone.
pub(super) fn check(request: &Request) -> Result<(), Report> {
    let Some(name) = &request.time_zone else { return Ok(()) };
    let path = zone_file(name);
    match fs::read(&path) {
        Ok(bytes) if bytes.starts_with(b"TZif") => Ok(()),
        Ok(_) => Err(Report::usage(format!("`--tz {name}`: `{}` is not a time zone", path.display()))),
        Err(error) => Err(Report::usage(format!("cannot use `--tz {name}`"))
            .with_cause(format!("cannot read `{}`: {error}", path.display()))
            .with_hint("install the package tzdata on this host, or set the variable: `-e TZ=NAME`")),
    }
}

/// The mount of /etc/localtime for `--tz`.
fn local_time(entry: &Entry, places: &Places<'_>, request: &Request) -> Result<Option<Mount>, Report> {
    let Some(name) = &request.time_zone else { return Ok(None) };
    let source = entry.dir.join("localtime");
    fs::copy(zone_file(name), &source)
        .and_then(|_| fs::set_permissions(&source, fs::Permissions::from_mode(0o644)))
        .map_err(|error| Report::new(format!("cannot use `--tz {name}`")).with_cause(error))?;
    let destination = places.added(Path::new("/etc/localtime"), MountpointKind::File, Mounted::Other)?;
    let options = ["bind", "ro", "rprivate"].map(str::to_owned).into();
    Ok(Some(Mount { destination, kind: "bind".into(), source, options }))
}
