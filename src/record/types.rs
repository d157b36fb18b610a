//! What is known of a container before it is created.

use serde::{Deserialize, Serialize};

use super::owner::Owner;
use crate::cgroup::Place;
use crate::names::Digest;
use crate::request::Request;

/// The parent cgroup of containers, unless `--cgroup-parent` names another.
const CGROUP_PARENT: &str = "/gpurun";

/// The version of the format of `record.json`.
pub(super) const VERSION: u32 = 1;

/// A container: what was requested, of which image, by whom, and which cgroup it has. Everything in a record is known
/// before the container is created, and only `rename` and `update` change it. What changes while the container runs
/// is in its [`State`](super::State).
#[derive(Debug, Clone)]
pub(crate) struct Record {
    /// 64 hex digits.
    pub id: String,
    pub name: String,
    /// Nanoseconds since 1970.
    pub created: u64,
    /// The image ID (config digest) at the time of the request. The container is created from this image even if the
    /// name has moved since.
    pub image: Digest,
    pub owner: Owner,
    /// Where the container's cgroup is.
    pub cgroup: Place,
    pub request: Request,
    /// Whether this is a step of a build. A step is not visible as a container, and the builder removes it.
    pub step: bool,
}

impl Record {
    #[must_use]
    pub(crate) fn new(id: String, name: String, created: u64, image: Digest, owner: Owner, request: Request) -> Self {
        let cgroup = cgroup_path(request.cgroup_parent.as_deref(), &id).as_str().into();
        Self { id, name, created, image, owner, cgroup, request, step: false }
    }
}

/// The path of a new container's cgroup. The cgroup of an existing container is in its record.
#[must_use]
pub(crate) fn cgroup_path(parent: Option<&str>, id: &str) -> String {
    format!("{}/{id}", parent.unwrap_or(CGROUP_PARENT))
}

/// The login for Jupyter. It is never in `record.json`, which `inspect` prints.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Secrets {
    Token(String),
    /// Hashes of one password in Jupyter's formats, the preferred one first. The launch finds out which of them the
    /// image can verify.
    Hashes(Vec<String>),
}

/// The first twelve digits of an ID, for display.
#[must_use]
pub(crate) fn short(id: &str) -> &str {
    &id[..id.len().min(12)]
}
