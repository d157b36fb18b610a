//! The options of docker's `local` driver (`type`, `device`, `o`): the file system that is mounted on a volume's directory
//! while containers use the volume.
//!
//! The mount is made with mount(2) in the namespace of the command that launches a container, so that the supervisor's
//! namespace has it too. The kernel decides what the options mean.

use std::collections::BTreeMap;
use std::io;
use std::net::ToSocketAddrs;
use std::path::Path;

use nix::mount::MsFlags;

/// The options that docker's driver knows.
const KEYS: [&str; 3] = ["type", "device", "o"];

/// Checks the options, and returns what is wrong with them.
pub(super) fn check(options: &BTreeMap<String, String>) -> Result<(), String> {
    if let Some(key) = options.keys().find(|key| !KEYS.contains(&key.as_str())) {
        return Err(format!("the driver `local` has no option `{key}`"));
    }
    let is_missing = |key: &&&str| options.get(**key).is_none_or(String::is_empty);
    match ["type", "device"].iter().find(is_missing) {
        Some(key) => Err(format!("the option `{key}` is missing")),
        None => Ok(()),
    }
}

/// Mounts the file system on a directory.
pub(super) fn mount(options: &BTreeMap<String, String>, dir: &Path) -> io::Result<()> {
    let text = |key: &str| options.get(key).map(String::as_str).unwrap_or_default();
    let (flags, data) = parse(text("o"));
    let data = if text("type").starts_with("nfs") { with_address(&data)? } else { data };
    let kind = Some(text("type")).filter(|kind| !["", "none", "bind"].contains(kind));
    let data = Some(data.as_str()).filter(|data| !data.is_empty());
    nix::mount::mount(Some(text("device")), dir, kind, flags, data)?;
    // A bind mount gets its other flags in a second step.
    let own = flags & !(MsFlags::MS_BIND | MsFlags::MS_REC);
    if flags.contains(MsFlags::MS_BIND) && !own.is_empty() {
        let again = MsFlags::MS_BIND | MsFlags::MS_REMOUNT | own;
        nix::mount::mount(None::<&str>, dir, None::<&str>, again, None::<&str>).inspect_err(|_| {
            let _ = crate::sys::mount::detach(dir);
        })?;
    }
    Ok(())
}

/// Splits the value of `o` into the flags of mount(2) and what the file system gets.
fn parse(text: &str) -> (MsFlags, String) {
    const FLAGS: [(&str, MsFlags); 11] = [
        ("bind", MsFlags::MS_BIND),
        ("rbind", MsFlags::MS_BIND.union(MsFlags::MS_REC)),
        ("ro", MsFlags::MS_RDONLY),
        ("nosuid", MsFlags::MS_NOSUID),
        ("nodev", MsFlags::MS_NODEV),
        ("noexec", MsFlags::MS_NOEXEC),
        ("noatime", MsFlags::MS_NOATIME),
        ("nodiratime", MsFlags::MS_NODIRATIME),
        ("relatime", MsFlags::MS_RELATIME),
        ("strictatime", MsFlags::MS_STRICTATIME),
        ("sync", MsFlags::MS_SYNCHRONOUS),
    ];
    /// What is so without a flag.
    const DEFAULTS: [&str; 6] = ["", "rw", "suid", "dev", "exec", "defaults"];
    let (mut flags, mut data) = (MsFlags::empty(), Vec::new());
    for option in text.split(',') {
        match FLAGS.iter().find(|(name, _)| *name == option) {
            Some((_, flag)) => flags |= *flag,
            None if DEFAULTS.contains(&option) => {}
            None => data.push(option),
        }
    }
    (flags, data.join(","))
}

/// Replaces the name of an NFS server in `addr=` by its address, as mount.nfs does: the kernel knows addresses only.
fn with_address(data: &str) -> io::Result<String> {
    let resolved = data.split(',').map(|option| match option.strip_prefix("addr=") {
        Some(name) if name.parse::<std::net::IpAddr>().is_err() => {
            let found = (name, 0u16).to_socket_addrs()?.next();
            let missing = || io::Error::other(format!("the name `{name}` has no address"));
            Ok(format!("addr={}", found.ok_or_else(missing)?.ip()))
        }
        _ => Ok(option.to_owned()),
    });
    Ok(resolved.collect::<io::Result<Vec<_>>>()?.join(","))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options(all: &[(&str, &str)]) -> BTreeMap<String, String> {
        all.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
    }

    #[test]
    fn options_are_those_of_dockers_driver() {
        assert_eq!(check(&options(&[("type", "tmpfs"), ("device", "tmpfs"), ("o", "size=1m")])), Ok(()));
        assert!(check(&options(&[("type", "tmpfs")])).unwrap_err().contains("`device`"));
        assert!(check(&options(&[("device", "/x")])).unwrap_err().contains("`type`"));
        assert!(check(&options(&[("size", "1g")])).unwrap_err().contains("`size`"));
    }

    #[test]
    fn flags_are_not_data() {
        assert_eq!(parse("size=1m,ro,noexec,uid=7"), (MsFlags::MS_RDONLY | MsFlags::MS_NOEXEC, "size=1m,uid=7".into()));
        assert_eq!(parse("bind"), (MsFlags::MS_BIND, String::new()));
        assert_eq!(parse("rw,"), (MsFlags::empty(), String::new()));
    }

    #[test]
    fn a_server_is_resolved() {
        assert_eq!(with_address("addr=127.0.0.1,rw").unwrap(), "addr=127.0.0.1,rw");
        assert_eq!(with_address("nfsvers=4").unwrap(), "nfsvers=4");
    }
}
