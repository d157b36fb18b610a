//! What the tests of several modules share.

use std::fs;

use crate::names::Digest;
use crate::record::{Owner, Record};
use crate::request::{Payload, Request};

/// A directory with these files (path, text): a stand-in for the tree of a host that a reader takes.
pub fn files(files: &[(&str, &str)]) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    for (path, text) in files {
        let path = dir.path().join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }
    dir
}

/// The record of a container for which nothing was asked.
pub fn record(id: &str, name: &str) -> Record {
    let request = Request::bare("box".into(), Payload::Command(Vec::new()));
    Record::new(id.into(), name.into(), 1_000_000_000, Digest([0; 32]), Owner::default(), request)
}
