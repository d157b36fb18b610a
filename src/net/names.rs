//! The names of containers on named networks: a block in the hosts file of each container, and the table of its
//! resolver ([`super::dns`]). Both are kept up to date while containers start and stop.
//!
//! A process that changes a lease calls [`publish`] under the lock. The whole file is replaced by one write of at least the old
//! length: a reader never sees a part of it, which a truncated file would show, and a renamed file would not be visible
//! in the container, because the file itself is mounted there.

use std::fs::OpenOptions;
use std::io::{self, Read};
use std::net::Ipv4Addr;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;

use super::bridge::{live, lock};
use super::dns::table::{self, Host, Table};
use super::lease::Lease;
use super::{Bridge, Endpoint, NetError};

const BEGIN: &str = "# containers of the same networks, kept up to date by gpurun";
const END: &str = "# end of the containers";
/// The largest hosts file that is changed. A container can write into its own.
const MAX: u64 = 1 << 20;

/// Brings the names of these endpoints' networks up to date in all of their containers. The caller holds the lock.
///
/// The hosts file of another container that cannot be written is reported, and does not fail the caller's change.
pub(super) fn publish(state_dir: &Path, endpoints: &[Endpoint]) -> Result<(), NetError> {
    let networks: Vec<&Bridge> =
        endpoints.iter().map(|endpoint| &endpoint.bridge).filter(|bridge| bridge.id.is_some()).collect();
    if networks.is_empty() {
        return Ok(());
    }
    let leases = live(state_dir)?;
    for (id, lease) in &leases {
        if lease.endpoints.iter().any(|one| networks.iter().any(|network| network.device == one.bridge.device)) {
            update(state_dir, id, lease, &leases);
        }
    }
    Ok(())
}

/// Writes the block of one container, whose hosts file has just been made.
pub(super) fn write_own(state_dir: &Path, id: &str) -> Result<(), NetError> {
    let _lock = lock(state_dir)?;
    let leases = live(state_dir)?;
    if let Some((id, lease)) = leases.iter().find(|(other, _)| other == id) {
        update(state_dir, id, lease, &leases);
    }
    Ok(())
}

/// Removes from a container's own hosts file what belongs to a network that it has left. The caller holds the lock.
pub(super) fn left(state_dir: &Path, id: &str, lease: &Lease, endpoint: &Endpoint) -> Result<(), NetError> {
    let hosts = hosts(lease, &live(state_dir)?);
    change(lease, |old| with_block(&moved(old, endpoint, lease.first()), &hosts));
    tell_resolver(state_dir, id, lease, hosts);
    Ok(())
}

fn update(state_dir: &Path, id: &str, lease: &Lease, leases: &[(String, Lease)]) {
    let hosts = hosts(lease, leases);
    change(lease, |old| with_block(old, &hosts));
    tell_resolver(state_dir, id, lease, hosts);
}

/// Writes the names for the container's resolver. A container that has left its named networks keeps its resolver.
fn tell_resolver(state_dir: &Path, id: &str, lease: &Lease, hosts: Vec<Host>) {
    let path = table::path(state_dir, id);
    if lease.endpoints.iter().all(|endpoint| endpoint.bridge.id.is_none()) && !path.exists() {
        return;
    }
    let own = lease.endpoints.iter().map(|endpoint| endpoint.ip).collect();
    if let Err(error) = (Table { forward: lease.target().is_some(), own, hosts }).write(&path) {
        tracing::warn!("cannot write the names of containers to `{}`: {error}", path.display());
    }
}

fn change(lease: &Lease, change: impl FnOnce(&str) -> String) {
    let Some(path) = &lease.hosts else { return };
    match write(path, change) {
        // Before its first start, a container has no file, and one without /etc may never have.
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => tracing::warn!("cannot write the names of containers to `{}`: {error}", path.display()),
        Ok(()) => {}
    }
}

/// The containers that a container sees: all on its named networks, itself included.
fn hosts(lease: &Lease, leases: &[(String, Lease)]) -> Vec<Host> {
    let is_seen = |endpoint: &&Endpoint| {
        endpoint.bridge.id.is_some() && lease.endpoints.iter().any(|own| own.bridge.device == endpoint.bridge.device)
    };
    let all = leases.iter().flat_map(|(_, other)| &other.endpoints).filter(is_seen);
    let host = |Endpoint { ip, bridge, names, .. }: &Endpoint| Host {
        ip: *ip,
        network: bridge.network.clone(),
        names: names.clone(),
    };
    let mut hosts: Vec<Host> = all.map(host).collect();
    hosts.sort();
    hosts
}

fn write(path: &Path, change: impl FnOnce(&str) -> String) -> io::Result<()> {
    let file = OpenOptions::new().read(true).write(true).custom_flags(libc::O_NOFOLLOW).open(path)?;
    let mut old = Vec::new();
    (&file).take(MAX).read_to_end(&mut old)?;
    if old.len() as u64 == MAX {
        return Err(io::Error::other("the file is too large"));
    }
    // A container may write anything into its file.
    let old = String::from_utf8_lossy(&old);
    let mut new = change(&old);
    while new.len() < old.len() {
        new.push('\n');
    }
    if new.len() as u64 >= MAX {
        return Err(io::Error::other("the names of the containers make it too large"));
    }
    if new != old { file.write_all_at(new.as_bytes(), 0) } else { Ok(()) }
}

/// Replaces the container's own address and the host's, after the container left a network.
fn moved(old: &str, left: &Endpoint, now: Option<&Endpoint>) -> String {
    let router = now.filter(|now| !now.bridge.internal).map(|now| now.bridge.gateway);
    let line = |line: &str| {
        let Some((address, names)) = line.split_once(char::is_whitespace) else { return Some(line.to_owned()) };
        let address = match address.parse::<Ipv4Addr>() {
            Ok(ip) if ip == left.ip => now.map_or(Ipv4Addr::LOCALHOST, |now| now.ip),
            Ok(ip) if ip == left.bridge.gateway => router?,
            _ => return Some(line.to_owned()),
        };
        Some(format!("{address}\t{names}"))
    };
    old.lines().filter_map(line).map(|line| line + "\n").collect()
}

/// Replaces the block in the text of a hosts file. Names that other lines have keep their addresses: those of
/// `--add-host` win. The result is never shorter than the text.
fn with_block(old: &str, hosts: &[Host]) -> String {
    let (mut text, mut inside) = (String::new(), false);
    for line in old.lines() {
        match line {
            BEGIN => inside = true,
            END => inside = false,
            line if !inside => {
                text.push_str(line);
                text.push('\n');
            }
            _ => {}
        }
    }
    let mut text = text.trim_end_matches('\n').to_owned();
    let words = |line: &str| {
        let words = line.split('#').next().unwrap_or_default().split_whitespace();
        words.map(str::to_owned).collect::<Vec<_>>()
    };
    let known: Vec<(String, String)> = text
        .lines()
        .map(words)
        .filter_map(|words| Some((words.first()?.clone(), words[1..].to_vec())))
        .flat_map(|(ip, names)| names.into_iter().map(move |name| (ip.clone(), name)))
        .collect();
    if !hosts.is_empty() {
        text.push_str(&format!("\n{BEGIN}\n"));
        for Host { ip, names, .. } in hosts {
            let ip = ip.to_string();
            let is_free = |name: &&String| !known.iter().any(|(other, known)| known == *name && *other != ip);
            let names: Vec<&str> = names.iter().filter(is_free).map(String::as_str).collect();
            if !names.is_empty() {
                text.push_str(&format!("{ip}\t{}\n", names.join(" ")));
            }
        }
        text.push_str(END);
    }
    text.push('\n');
    while text.len() < old.len() {
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hosts(texts: &[(&str, &str)]) -> Vec<Host> {
        let names = |names: &str| names.split(' ').map(str::to_owned).collect();
        let host =
            |(ip, all): &(&str, &str)| Host { ip: ip.parse().unwrap(), network: "lab".into(), names: names(all) };
        texts.iter().map(host).collect()
    }

    #[test]
    fn the_block_is_replaced_and_never_shortens_the_file() {
        let base = "127.0.0.1\tlocalhost\n10.0.0.2\tme\n192.0.2.7\tdb\n";
        let one = with_block(base, &hosts(&[("10.0.0.2", "me m"), ("10.0.0.3", "db postgres"), ("10.0.0.4", "api")]));
        assert!(one.starts_with(base.trim_end()), "{one}");
        assert!(one.contains("10.0.0.2\tme m\n10.0.0.3\tpostgres\n10.0.0.4\tapi\n"), "`db` is the user's: {one}");
        let two = with_block(&one, &hosts(&[("10.0.0.5", "api")]));
        assert!(two.len() >= one.len() && two.contains("10.0.0.5\tapi\n") && !two.contains("postgres"), "{two}");
        assert_eq!((two.matches(BEGIN).count(), two.matches(END).count()), (1, 1));
        assert_eq!(with_block(&two, &hosts(&[("10.0.0.5", "api")])), two, "nothing changes");
        let none = with_block(&two, &[]);
        assert!(none.starts_with(base.trim_end()) && none.len() >= two.len() && !none.contains('#'), "{none}");
    }

    #[test]
    fn a_container_that_leaves_a_network_gets_other_addresses() {
        let endpoint = |third: u8| {
            let bridge = Bridge::default_with([10, 0, third, 0].into());
            Endpoint::new(bridge, [10, 0, third, 7].into(), String::new(), String::new(), None)
        };
        let old = "127.0.0.1\tlocalhost\n10.0.1.7\tme.org me\n10.0.1.1\thost.docker.internal\n# end\n";
        let new = "127.0.0.1\tlocalhost\n10.0.2.7\tme.org me\n10.0.2.1\thost.docker.internal\n# end\n";
        assert_eq!(moved(old, &endpoint(1), Some(&endpoint(2))), new);
        assert_eq!(moved(old, &endpoint(3), Some(&endpoint(1))), old);
        let none = "127.0.0.1\tlocalhost\n127.0.0.1\tme.org me\n# end\n";
        assert_eq!(moved(old, &endpoint(1), None), none);
    }

    #[test]
    fn a_block_that_the_container_has_damaged_is_replaced() {
        for text in [BEGIN.to_owned(), format!("{END}\n"), format!("{BEGIN}\n{BEGIN}\n\u{fffd}\n"), String::new()] {
            let new = with_block(&text, &hosts(&[("10.0.0.5", "api")]));
            assert_eq!((new.matches(BEGIN).count(), new.matches(END).count()), (1, 1), "{text:?}");
            assert!(new.contains("10.0.0.5\tapi\n"));
        }
    }
}
