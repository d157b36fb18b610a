//! `names.json`: which image each name refers to.
//!
//! The name `""`, which no image can have, maps to the digest of all other entries. Without it, a flipped bit in a name
//! would silently rename an image. (Files of older gpurun versions lack it.)

use std::collections::BTreeMap;

use super::files::read_optional;
use super::{Store, StoreError};
use crate::durable;
use crate::image::digest_of;
use crate::names::{Digest, Reference};

/// Full reference → image id, as stored.
#[derive(Debug, Default)]
pub(super) struct Names(BTreeMap<String, String>);

impl Names {
    pub(super) fn get(&self, reference: &Reference) -> Option<Digest> {
        self.0.get(&reference.to_string())?.parse().ok()
    }

    pub(super) fn of(&self, id: &Digest) -> Vec<Reference> {
        let id = id.to_string();
        self.0.iter().filter(|(_, target)| **target == id).filter_map(|(name, _)| name.parse().ok()).collect()
    }

    /// Returns every name with a valid id, as stored.
    pub(super) fn all(&self) -> impl Iterator<Item = (String, Digest)> + '_ {
        self.0.iter().filter_map(|(name, id)| Some((name.clone(), id.parse().ok()?)))
    }

    pub(super) fn set(&mut self, reference: &Reference, id: &Digest) {
        self.0.insert(reference.to_string(), id.to_string());
    }

    pub(super) fn remove(&mut self, reference: &Reference) {
        self.0.remove(&reference.to_string());
    }
}

impl Store {
    pub(super) fn names(&self) -> Result<Names, StoreError> {
        let path = self.root.join("names.json");
        match read_optional(&path)? {
            None => Ok(Names::default()),
            Some(bytes) => {
                let mut names: BTreeMap<String, String> =
                    serde_json::from_slice(&bytes).map_err(|cause| StoreError::Json { path: path.clone(), cause })?;
                match names.remove(CHECK) {
                    Some(recorded) if recorded != check(&names) => Err(StoreError::Altered { path }),
                    _ => Ok(Names(names)),
                }
            }
        }
    }

    /// Requires the exclusive lock.
    pub(super) fn write_names(&self, names: &Names) -> Result<(), StoreError> {
        let path = self.root.join("names.json");
        let mut all = names.0.clone();
        all.insert(CHECK.into(), check(&names.0));
        let bytes = serde_json::to_vec_pretty(&all).map_err(|cause| StoreError::Json { path: path.clone(), cause })?;
        // In `tmp/`, where the next command sweeps the leftovers of a killed process.
        let temp = self.root.join("tmp").join(format!("names.{}", std::process::id()));
        durable::write_atomic_by(&temp, &path, &bytes).map_err(StoreError::io("write", &path))
    }
}

const CHECK: &str = "";

pub(super) fn check(names: &BTreeMap<String, String>) -> String {
    let mut text = String::new();
    for (name, id) in names {
        text.push_str(&format!("{name} {id}\n"));
    }
    digest_of(text.as_bytes()).to_string()
}

/// Returns the references that a short name may stand for, in order: docker's normal form, then a local build of that
/// name.
pub(super) fn candidates(name: &str) -> Vec<Reference> {
    let has_domain = name
        .split_once('/')
        .is_some_and(|(first, _)| first == "localhost" || first.contains('.') || first.contains(':'));
    let local = (!has_domain).then(|| format!("localhost/{name}"));
    [Some(name.to_string()), local].into_iter().flatten().filter_map(|name| name.parse().ok()).collect()
}
