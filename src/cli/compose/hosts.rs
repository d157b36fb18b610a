//! Names of services in the containers of a project.
//!
//! All containers are on one bridge, and gpurun has no resolver yet. Each container's hosts file gets a block with the
//! addresses of the project's services. A container that starts gets the addresses of those before it as `--add-host`;
//! when all have been started, the block of every container is brought up to date. It is replaced by one write of at
//! least the old length: a reader never sees a part of it, which a truncated file would show.

use std::fs::OpenOptions;
use std::io::Read;
use std::os::unix::fs::{FileExt, OpenOptionsExt};

use super::containers::Container;
use crate::report::Report;

const BEGIN: &str = "# services of this compose project";
const END: &str = "# end of the services";
/// Largest hosts file that is changed. A container can write into its own.
const MAX: u64 = 1 << 20;

/// One name and its address.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Name {
    pub(super) name: String,
    pub(super) ip: String,
}

/// Writes the names into the hosts files of running containers.
pub(super) fn update(containers: &[Container], names: &[Name]) -> Result<(), Report> {
    // Also those of containers that have ended: their addresses are out of date.
    let known: Vec<&str> =
        containers.iter().flat_map(|container| [container.service.as_str(), container.name()]).collect();
    for container in containers.iter().filter(|container| container.is_running() && container.state.ip.is_some()) {
        let path = container.entry.dir.join("hosts");
        let write = || -> std::io::Result<()> {
            let file = OpenOptions::new().read(true).write(true).custom_flags(libc::O_NOFOLLOW).open(&path)?;
            let mut old = String::new();
            (&file).take(MAX).read_to_string(&mut old)?;
            let new = with_block(&old, names, &known);
            if new != old {
                file.write_all_at(new.as_bytes(), 0)?;
            }
            Ok(())
        };
        match write() {
            // The container ended in the meantime, or it has no hosts file of its own.
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
            Err(error) => {
                return Err(Report::new(format!("cannot change `{}`", path.display())).with_cause(error));
            }
            Ok(()) => {}
        }
    }
    Ok(())
}

/// Replaces the block in the text of a hosts file, and removes other lines about the names in `known`. The result is
/// never shorter than the text.
fn with_block(old: &str, names: &[Name], known: &[&str]) -> String {
    let is_known = |name: &String| known.contains(&name.as_str()) || names.iter().any(|other| other.name == *name);
    let names_of = |line: &str| {
        let words = line.split('#').next().unwrap_or_default();
        words.split_whitespace().skip(1).map(str::to_owned).collect::<Vec<_>>()
    };
    let (mut text, mut inside) = (String::new(), false);
    for line in old.lines() {
        match line {
            BEGIN => inside = true,
            END => inside = false,
            // What `--add-host` said about a service at the start may be out of date.
            _ if !inside && !names_of(line).iter().any(is_known) => {
                text.push_str(line);
                text.push('\n');
            }
            _ if !inside && is_own(line) => {
                text.push_str(line);
                text.push('\n');
            }
            _ => {}
        }
    }
    let text = text.trim_end_matches('\n').to_owned();
    let mut text = format!("{text}\n{BEGIN}\n");
    for name in names {
        text.push_str(&format!("{}\t{}\n", name.ip, name.name));
    }
    text.push_str(END);
    text.push('\n');
    while text.len() < old.len() {
        text.push('\n');
    }
    text
}

/// The lines that gpurun writes for every container name several hosts or loopback.
fn is_own(line: &str) -> bool {
    line.starts_with("127.") || line.starts_with("::1")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_block_is_replaced_and_never_shortens_the_file() {
        let name = |name: &str, ip: &str| Name { name: name.into(), ip: ip.into() };
        let base = "127.0.0.1\tlocalhost\n10.0.0.2\tme\n10.0.0.9\tdb\n10.0.0.8\tgone\n";
        let one = with_block(base, &[name("db", "10.0.0.3"), name("api", "10.0.0.4")], &["gone"]);
        assert!(
            !one.contains("10.0.0.9")
                && !one.contains("gone")
                && one.contains("10.0.0.3\tdb\n")
                && one.contains("10.0.0.2\tme\n")
        );
        let two = with_block(&one, &[name("db", "10.0.0.5")], &[]);
        assert!(two.len() >= one.len() && two.contains("10.0.0.5\tdb\n") && !two.contains("api"));
        assert_eq!(two.matches(BEGIN).count(), 1);
        assert_eq!(with_block(&two, &[name("db", "10.0.0.5")], &[]), two);
    }
}
