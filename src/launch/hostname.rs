//! A container's host name.
//!
//! It comes from the records alone. The file /etc/hostname belongs to the container, which can write anything into it,
//! of any size; other containers read these names in their hosts files.

use crate::record::{Entry, Records, short};
use crate::request::{NetworkMode, Request};

/// How many containers that share each other's networks are followed.
const MOST: usize = 16;

/// Returns the name of a container: its own, or that of the container whose network it shares, or its short ID. On the
/// host's network, it is the host's name.
pub(super) fn of(records: &Records, entry: &Entry) -> String {
    let (id, request) = (&entry.record.id, &entry.record.request);
    let record = |id: &str| records.get(id).ok().flatten().map(|entry| (entry.record.id, entry.record.request));
    find(id, request, &record)
}

fn find(id: &str, request: &Request, record: &impl Fn(&str) -> Option<(String, Request)>) -> String {
    let mut current = (id.to_owned(), request.clone());
    for _ in 0..MOST {
        let (id, request) = current;
        if let Some(name) = request.hostname {
            return name;
        }
        if request.uts_host || request.network == NetworkMode::Host {
            return of_host();
        }
        match request.network_container.as_deref().and_then(record) {
            Some(peer) => current = peer,
            None => return short(&id).to_owned(),
        }
    }
    short(id).to_owned()
}

/// The host's own name.
fn of_host() -> String {
    nix::unistd::gethostname().map_or_else(|_| "localhost".into(), |name| name.to_string_lossy().into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::request::Payload;

    #[test]
    fn the_record_names_a_container() {
        let plain = Request::bare("box".into(), Payload::Command(Vec::new()));
        let named = Request { hostname: Some("box".into()), ..plain.clone() };
        let joined = |peer: &str| Request { network_container: Some(peer.into()), ..plain.clone() };
        let records = |id: &str| match id {
            "named" => Some((id.to_owned(), named.clone())),
            "through" => Some((id.to_owned(), joined("named"))),
            "loop" => Some((id.to_owned(), joined("loop"))),
            "0123456789abcdef" => Some((id.to_owned(), plain.clone())),
            _ => None,
        };
        let name = |request: &Request| find("fedcba9876543210", request, &records);
        assert_eq!(name(&plain), "fedcba987654");
        assert_eq!(name(&named), "box");
        assert_eq!(name(&joined("named")), "box");
        assert_eq!(name(&joined("through")), "box");
        assert_eq!(name(&joined("0123456789abcdef")), "0123456789ab");
        assert_eq!(name(&joined("removed")), "fedcba987654");
        assert_eq!(name(&joined("loop")), "fedcba987654", "no endless search");
        assert_eq!(name(&Request { uts_host: true, ..joined("named") }), of_host());
    }
}
