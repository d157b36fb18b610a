//! The container to launch.

use std::path::Path;

use crate::record::{Entry, Records};
use crate::request::Request;

/// A file in a container's directory in /run. It holds a JSON list of the group ids that all of the container's
/// processes have, whichever user they run as.
pub(crate) const ADDED_GROUPS: &str = "added-groups";

/// The container to launch, and where its files are.
#[derive(Clone, Copy)]
pub(super) struct Launch<'a> {
    /// The root of the store.
    pub root: &'a Path,
    pub records: &'a Records,
    pub entry: &'a Entry,
}

impl<'a> Launch<'a> {
    pub(super) fn request(&self) -> &'a Request {
        &self.entry.record.request
    }
}
