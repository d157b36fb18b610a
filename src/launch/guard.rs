//! Restrictions for a notebook container that has a writable directory of the host.
//!
//! A file that the container creates in such a directory is a file of the host, and any process of the host may execute
//! it. So a setuid or setgid bit, a file capability or a device node would give away rights on the host: those of
//! the file's owner, those of root, or access to the device. (With the exchange of `jupyter::owner` the owner is the
//! caller; without it, another user.) `nosuid` on the container's mount does not apply to the host's own mount of the
//! same directory.
//!
//! Therefore such a container can create none of these: the seccomp filter refuses modes with a set-id bit, and the
//! capabilities for the others are withheld. `gpurun run` follows docker's `run` and grants docker's rights.

use crate::request::{MountSource, Payload, Request};
use crate::spec::seccomp::Profile;
use crate::spec::{Capabilities, CapabilityName};

/// The capability that controls the set-id bits here: with `--cap-add FSETID` the filter allows them.
const SET_ID: &str = "CAP_FSETID";
/// The capabilities that are withheld where [`applies`] holds, unless they were requested: FSETID, MKNOD and SETFCAP.
const WITHHELD: u64 = 1 << 4 | 1 << 27 | 1 << 31;

/// Whether the request is a notebook with a writable bind mount from the host.
#[must_use]
pub(super) fn applies(request: &Request) -> bool {
    let writes =
        |mount: &crate::request::MountRequest| matches!(mount.source, MountSource::Bind { .. }) && !mount.read_only;
    matches!(request.payload, Payload::Jupyter(_)) && request.mounts.iter().any(writes)
}

/// The capabilities of the container's processes, including those of `exec`.
pub(crate) fn capabilities(request: &Request) -> Capabilities {
    let drops_all = request.cap_drop.iter().any(|name| matches!(name, CapabilityName::All));
    let all = match request.privileged && !drops_all {
        true => Capabilities::resolve(&[CapabilityName::All], &request.cap_drop),
        false => Capabilities::resolve(&request.cap_add, &request.cap_drop),
    };
    if !applies(request) || request.privileged {
        return all;
    }
    let requested = Capabilities::resolve(&request.cap_add, &[CapabilityName::All]);
    Capabilities(all.0 & !(WITHHELD & !requested.0))
}

/// Adds this container's restrictions to the seccomp profile.
pub(super) fn profile(profile: Profile, request: &Request) -> Profile {
    let may_set_id = !applies(request) || capabilities(request).has(SET_ID);
    if may_set_id { profile } else { profile.without_set_id() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::request::{JupyterRequest, parse_volume};

    fn request(payload: Payload, volume: Option<&str>, add: &[&str]) -> Request {
        let mut request = Request::bare("img".into(), payload);
        request.mounts = volume.iter().map(|text| parse_volume(text, "/".as_ref()).unwrap()).collect();
        request.cap_add = add.iter().map(|name| name.parse().unwrap()).collect();
        request
    }

    #[test]
    fn a_notebook_that_writes_to_the_host_cannot_hand_out_rights() {
        const NAMES: [&str; 3] = ["CAP_FSETID", "CAP_MKNOD", "CAP_SETFCAP"];
        let notebook = || Payload::Jupyter(JupyterRequest { port: 8888, args: Vec::new(), tls: None });
        let withheld = |request: &Request| -> Vec<&str> {
            let given = capabilities(request);
            NAMES.into_iter().filter(|name| !given.has(name)).collect()
        };
        for harmless in [
            request(notebook(), None, &[]),
            request(notebook(), Some("/data:/data:ro"), &[]),
            request(notebook(), Some("name:/data"), &[]),
            request(Payload::Command(Vec::new()), Some("/data:/data"), &[]),
        ] {
            assert_eq!(withheld(&harmless), [""; 0], "{harmless:?}");
        }
        assert_eq!(withheld(&request(notebook(), Some("/data:/data"), &[])), NAMES);
        assert_eq!(withheld(&request(notebook(), Some("/data:/data"), &["mknod"])), ["CAP_FSETID", "CAP_SETFCAP"]);
        assert_eq!(withheld(&request(notebook(), Some("/data:/data"), &["ALL"])), [""; 0]);
        let default = || Profile::docker_default(&Capabilities::default());
        let changed = |request: &Request| profile(default(), request) != default();
        assert!(changed(&request(notebook(), Some("/data:/data"), &[])));
        assert!(changed(&request(notebook(), Some("/data:/data"), &["SYS_ADMIN"])));
        assert!(!changed(&request(notebook(), Some("/data:/data"), &["FSETID"])));
        assert!(!changed(&request(Payload::Command(Vec::new()), Some("/data:/data"), &[])));
    }
}
