//! The format of `record.json`: its fields, its version, and the digest that detects damage.
//!
//! Earlier and later releases read each other's records, because a supervisor of one release may read a record that a
//! command of another release has changed. Therefore new fields are added beside the old ones, a missing field has a
//! default, and [`VERSION`] rises only if an earlier release would misread a record.

use std::fs;
use std::path::Path;

use serde::{Deserialize, Serialize};

use super::error::RecordError;
use super::files::{parse, put_bytes, read, to_bytes};
use super::owner::Owner;
use super::types::{Record, VERSION, cgroup_path};
use crate::cgroup::Place;
use crate::image::digest_of;
use crate::names::{ContainerName, Digest};
use crate::request::Request;

/// The fields of the file.
#[derive(Serialize, Deserialize)]
struct Stored {
    version: u32,
    id: String,
    name: String,
    created: u64,
    request: StoredRequest,
    #[serde(default)]
    step: bool,
    /// Releases up to 0.1 did not store the cgroup and the owner.
    cgroup: Option<String>,
    /// The rest of the place of a cgroup that is in a cluster's step.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    place: Option<Place>,
    owner: Option<Owner>,
}

#[derive(Serialize, Deserialize)]
struct StoredRequest {
    image_id: Digest,
    /// Releases up to 0.1 stored only an owner who ran `sudo`, as the request's UID and GID.
    invoker: Option<(u32, u32)>,
    #[serde(flatten)]
    request: Request,
}

impl From<&Record> for Stored {
    fn from(record: &Record) -> Self {
        Self {
            version: VERSION,
            id: record.id.clone(),
            name: record.name.clone(),
            created: record.created,
            request: StoredRequest {
                image_id: record.image,
                invoker: record.owner.unprivileged(),
                request: record.request.clone(),
            },
            step: record.step,
            cgroup: Some(record.cgroup.path.clone()),
            place: record.cgroup.step.is_some().then(|| record.cgroup.clone()),
            owner: Some(record.owner),
        }
    }
}

impl From<Stored> for Record {
    fn from(stored: Stored) -> Self {
        let StoredRequest { image_id, invoker, request } = stored.request;
        let invoker = invoker.map_or_else(Owner::default, |(uid, gid)| Owner { uid, gid });
        let path = || stored.cgroup.unwrap_or_else(|| cgroup_path(request.cgroup_parent.as_deref(), &stored.id));
        Self {
            cgroup: stored.place.unwrap_or_else(|| path().as_str().into()),
            owner: stored.owner.unwrap_or(invoker),
            id: stored.id,
            name: stored.name,
            created: stored.created,
            image: image_id,
            request,
            step: stored.step,
        }
    }
}

/// Writes a record with a first line `check`, the digest of all other lines. Without it, a flipped bit in a limit would
/// silently change the limit. The digest covers the text and not the values, so that a gpurun with more or fewer fields
/// can verify it too.
pub(super) fn put_record(path: &Path, record: &Record, durable: bool) -> Result<(), RecordError> {
    let plain = to_bytes(path, &Stored::from(record))?;
    let rest = plain.strip_prefix(b"{\n").unwrap_or(&plain);
    put_bytes(path, &[check_line(rest).as_bytes(), rest].concat(), durable)
}

pub(super) fn check_line(rest: &[u8]) -> String {
    format!("{{\n  \"check\": \"{}\",\n", digest_of(rest))
}

/// Reads the record of the container `id`. (A record without a check comes from an older gpurun.)
pub(super) fn read_record(path: &Path, id: &str) -> Result<Option<Record>, RecordError> {
    let Some(bytes) = read(path)? else { return Ok(None) };
    let told = bytes.split_inclusive(|byte| *byte == b'\n').take(2).map(<[u8]>::len).sum();
    let (head, rest) = bytes.split_at(told);
    if head.starts_with(b"{\n  \"check\": ") && head != check_line(rest).as_bytes() {
        return Err(RecordError::Altered { path: path.to_path_buf() });
    }
    // A record of a later format may differ in any field, so its version is checked first.
    #[derive(Deserialize)]
    struct Versioned {
        version: Option<u32>,
    }
    if let Some(version) = serde_json::from_slice::<Versioned>(&bytes).ok().and_then(|probe| probe.version)
        && version != VERSION
    {
        return Err(RecordError::Version { path: path.to_path_buf(), version });
    }
    let record: Record = parse::<Stored>(path, &bytes)?.into();
    // For example in a copied directory. Using it would affect the paths of the other container.
    if record.id == id {
        Ok(Some(record))
    } else {
        Err(RecordError::Misplaced { path: path.to_path_buf(), id: record.id })
    }
}

/// The name in an unusable record, if its line is intact.
pub(super) fn name_in(path: &Path) -> Option<String> {
    let text = String::from_utf8_lossy(&fs::read(path).ok()?).into_owned();
    let name = text.lines().find_map(|line| line.strip_prefix("  \"name\": \"")?.strip_suffix("\","))?;
    name.parse::<ContainerName>().ok().map(|name| name.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::request::{NetworkMode, Protocol, RestartPolicy};

    /// A record that the release 0.1 (commit ee61168) wrote.
    const EARLIER: &[u8] = include_bytes!("record-0.1.json");

    fn earlier() -> (tempfile::TempDir, std::path::PathBuf, String) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("record.json");
        fs::write(&path, EARLIER).unwrap();
        (dir, path, "88818b0c45a026e149fae6695ea429ed01649b74d99889697d96c64ff1d64669".into())
    }

    #[test]
    fn a_record_of_an_earlier_release_is_read() {
        let (_dir, path, id) = earlier();
        let record = read_record(&path, &id).unwrap().unwrap();
        assert_eq!(record.cgroup.path, format!("/gpurun/{id}"), "the release did not record it");
        assert_eq!(record.owner, Owner { uid: 1000, gid: 100 });
        assert!(record.image.to_string().starts_with("sha256:5894cef5bfce"));
        let request = record.request;
        let ports: Vec<_> = request.publish.iter().map(ToString::to_string).collect();
        assert_eq!(ports, ["0.0.0.0:18080:80/tcp", "127.0.0.1:18090:90/tcp", "127.0.0.1:18091:91/tcp"]);
        assert_eq!(request.publish[0].protocol, Protocol::Tcp);
        assert_eq!(request.limits.memory.unwrap().bytes, 64 << 20);
        assert_eq!(request.limits.cpus.unwrap().nanos, 500_000_000);
        assert_eq!(request.limits.cgroup_conf[0].file, "memory.soft_limit_in_bytes");
        assert_eq!(
            (request.network, request.restart),
            (NetworkMode::Bridge, RestartPolicy::OnFailure { max: Some(3) })
        );
        assert_eq!(request.cap_add[0].to_string(), "CAP_SYS_PTRACE");
        assert_eq!(request.add_hosts[0].to_string(), "db:10.0.0.7");
        assert_eq!((request.stop_signal, request.mounts.len(), request.gpus), (Some(libc::SIGUSR1), 2, None));
    }

    #[test]
    fn an_earlier_release_finds_all_of_its_fields() {
        let (_dir, path, id) = earlier();
        let record = read_record(&path, &id).unwrap().unwrap();
        put_record(&path, &record, false).unwrap();
        let keys = |bytes: &[u8]| serde_json::from_slice::<serde_json::Value>(bytes).unwrap();
        let (before, after) = (keys(EARLIER), keys(&fs::read(&path).unwrap()));
        for (place, fields) in [("", before.as_object()), ("/request", before["request"].as_object())] {
            for (key, value) in fields.unwrap() {
                let now = after.pointer(&format!("{place}/{key}")).unwrap_or_else(|| panic!("no `{key}`"));
                // The request's other values may be written in another form of the same grammar.
                let same =
                    !["check", "request", "publish", "cap_add", "cap_drop", "gpu_mode", "limits"].contains(&&**key);
                assert!(!same || now == value, "{key}: {now}");
            }
        }
        assert_eq!(after["request"]["limits"]["memory"], "64m");
        assert_eq!(after["version"], 1);
        let again = read_record(&path, &id).unwrap().unwrap();
        assert_eq!(format!("{again:?}"), format!("{record:?}"));
    }
}
