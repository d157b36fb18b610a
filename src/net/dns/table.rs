//! The names that a container's resolver answers, and the file in which it finds them.
//!
//! ```text
//! /run/gpurun/net/ID.names    CRC-32 of the rest, length of the JSON, JSON (a Table), leftovers of longer versions
//! ```
//!
//! The file is overwritten in place, because its readers hold it open and cannot open it again. A reader that meets a
//! write detects it by the checksum, and uses the names that it knows.

use std::fs::{File, OpenOptions};
use std::io;
use std::net::Ipv4Addr;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

/// The bytes before the JSON.
const HEADER: usize = 8;
/// The largest file that is read.
const MAX: u64 = 1 << 20;

/// A container, as others on the same network see it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub(crate) struct Host {
    pub ip: Ipv4Addr,
    pub network: String,
    pub names: Vec<String>,
}

/// What one resolver knows.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Table {
    /// Whether other names are looked up. They are not for a container that has internal networks only.
    pub forward: bool,
    /// The container's own addresses. Queries are not forwarded to them.
    pub own: Vec<Ipv4Addr>,
    pub hosts: Vec<Host>,
}

impl Table {
    /// The addresses of a name, or of a name and a network (`db.lab`). `None` if no container has the name.
    pub(super) fn addresses(&self, name: &str) -> Option<Vec<Ipv4Addr>> {
        let has_name = |host: &&Host, name: &str| host.names.iter().any(|known| known.eq_ignore_ascii_case(name));
        let mut found: Vec<Ipv4Addr> =
            self.hosts.iter().filter(|host| has_name(host, name)).map(|host| host.ip).collect();
        if found.is_empty() {
            let within = |host: &&Host| without_network(name, &host.network).is_some_and(|name| has_name(host, name));
            found = self.hosts.iter().filter(within).map(|host| host.ip).collect();
        }
        found.dedup();
        (!found.is_empty()).then_some(found)
    }

    /// The full name of the container that has the address.
    pub(super) fn name(&self, ip: Ipv4Addr) -> Option<String> {
        let host = self.hosts.iter().find(|host| host.ip == ip)?;
        Some(format!("{}.{}", host.names.first()?, host.network))
    }

    fn encode(&self) -> io::Result<Vec<u8>> {
        let json = serde_json::to_vec(self)?;
        let length = u32::try_from(json.len()).map_err(io::Error::other)?;
        let rest = [&length.to_be_bytes()[..], &json].concat();
        Ok([&crc32fast::hash(&rest).to_be_bytes()[..], &rest].concat())
    }

    /// `None` if the bytes are not those of one write.
    fn decode(bytes: &[u8]) -> Option<Self> {
        let length = u32::from_be_bytes(*bytes.get(4..)?.first_chunk()?) as usize;
        let rest = bytes.get(4..HEADER.checked_add(length)?)?;
        let is_whole = crc32fast::hash(rest).to_be_bytes() == bytes[..4];
        is_whole.then(|| serde_json::from_slice(&rest[4..]).ok()).flatten()
    }

    /// Writes the container's file, which need not exist.
    pub(crate) fn write(&self, path: &Path) -> io::Result<()> {
        let mut options = OpenOptions::new();
        options.write(true).create(true).truncate(false).mode(0o600).custom_flags(libc::O_NOFOLLOW);
        options.open(path)?.write_all_at(&self.encode()?, 0)
    }
}

/// Removes the name of the network at the end of a name: `db` of `db.lab`.
fn without_network<'a>(name: &'a str, network: &str) -> Option<&'a str> {
    let (base, last) = name.split_at_checked(name.len().checked_sub(network.len())?)?;
    base.strip_suffix('.').filter(|_| last.eq_ignore_ascii_case(network))
}

/// The file of a container's resolver.
pub(crate) fn path(state_dir: &Path, id: &str) -> PathBuf {
    state_dir.join(format!("{id}.names"))
}

/// A resolver's view of its file.
#[derive(Debug)]
pub(super) struct Names {
    file: File,
    bytes: Vec<u8>,
    table: Table,
}

impl Names {
    pub(super) fn new(file: File) -> Self {
        Self { file, bytes: Vec::new(), table: Table::default() }
    }

    /// The current names, or the last ones if the file cannot be read now.
    pub(super) fn current(&mut self) -> &Table {
        if let Ok(bytes) = self.read()
            && bytes != self.bytes
            && let Some(table) = Table::decode(&bytes)
        {
            (self.bytes, self.table) = (bytes, table);
        }
        &self.table
    }

    fn read(&self) -> io::Result<Vec<u8>> {
        let length = self.file.metadata()?.len().min(MAX);
        let mut bytes = vec![0; length as usize];
        let mut filled = 0;
        while filled < bytes.len() {
            match self.file.read_at(&mut bytes[filled..], filled as u64)? {
                0 => break,
                count => filled += count,
            }
        }
        bytes.truncate(filled);
        Ok(bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table(hosts: &[(u8, &str, &str)]) -> Table {
        let host = |(last, network, names): &(u8, &str, &str)| Host {
            ip: [10, 0, 0, *last].into(),
            network: (*network).into(),
            names: names.split(' ').map(str::to_owned).collect(),
        };
        Table { forward: true, own: Vec::new(), hosts: hosts.iter().map(host).collect() }
    }

    #[test]
    fn names_are_found_with_and_without_their_network() {
        let table = table(&[(2, "lab", "db Base"), (3, "lab", "web all"), (4, "lab.two", "db all")]);
        let found = |name: &str| {
            let found = table.addresses(name);
            found.map(|found| found.iter().map(|ip| ip.octets()[3]).collect::<Vec<_>>())
        };
        assert_eq!(found("db"), Some(vec![2, 4]));
        assert_eq!(found("DB.Lab"), Some(vec![2]));
        assert_eq!(found("db.lab.two"), Some(vec![4]));
        assert_eq!(found("bAsE"), Some(vec![2]));
        assert_eq!(found("all"), Some(vec![3, 4]));
        for missing in ["", ".", "lab", ".lab", "d", "xdb", "db.", "db.la", "db.other", "dblab", "é.lab"] {
            assert_eq!(found(missing), None, "{missing}");
        }
        assert_eq!(table.name([10, 0, 0, 4].into()).as_deref(), Some("db.lab.two"));
        assert_eq!(table.name([10, 0, 0, 9].into()), None);
    }

    #[test]
    fn a_reader_keeps_its_names_while_the_file_is_written() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.names");
        let (long, short) = (table(&[(2, "lab", "one two three"), (3, "lab", "four")]), table(&[(2, "lab", "one")]));
        long.write(&path).unwrap();
        let mut names = Names::new(File::open(&path).unwrap());
        assert_eq!(*names.current(), long);
        // Half of the new file is written.
        let (whole, new) = (std::fs::read(&path).unwrap(), short.encode().unwrap());
        let half = new.len() / 2;
        std::fs::write(&path, [&new[..half], &whole[half..]].concat()).unwrap();
        assert_eq!(*names.current(), long);
        short.write(&path).unwrap();
        assert_eq!(*names.current(), short);
        assert!(std::fs::metadata(&path).unwrap().len() > new.len() as u64, "the file is not shortened");
        for end in 0..new.len() {
            assert_eq!(Table::decode(&new[..end]), None);
        }
    }
}
