//! A build with `-` as its context: standard input is a tar archive with the context, or a Containerfile without one.
//!
//! An archive is unpacked into a staging directory of the store, which is removed when the value is dropped; that of a
//! killed build is removed by the next command. No name in the archive leads out of that directory: the archive is
//! checked like a layer.

use std::io::Read;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};

use super::containerfile::Containerfile;
use super::fetch::{not_poured, unpacker};
use crate::layer::{Merger, directory, tar};
use crate::names::Digest;
use crate::report::Report;
use crate::store::{IngestError, Staging, Store};

const NAME: &str = "the archive on standard input";

/// What standard input held.
#[derive(Debug)]
pub(crate) struct Piped {
    pub(crate) file: Containerfile,
    staging: Option<Staging>,
}

impl Piped {
    /// The directory of the unpacked context, if standard input was an archive.
    pub(crate) fn context(&self) -> Option<PathBuf> {
        self.staging.as_ref().map(directory_of)
    }
}

fn directory_of(staging: &Staging) -> PathBuf {
    staging.path().join("context")
}

/// Reads standard input. `file` is the value of `--file`, a file of the archive.
pub(crate) fn piped(store: &Store, input: impl Read, file: Option<&Path>) -> Result<Piped, Report> {
    let broken = |error| not_poured(format!("cannot unpack {NAME}"), &IngestError::Unpack(error));
    let mut plain = unpacker(input).map_err(broken)?;
    let mut first = Vec::new();
    plain.by_ref().take(512).read_to_end(&mut first).map_err(broken)?;
    if !tar::is_archive(&first) {
        if let Some(file) = file {
            return Err(Report::usage(format!(
                "cannot use `--file {}` with `-`: standard input is a Containerfile, and not an archive",
                file.display()
            ))
            .with_hint("name the build context: `gpurun build --file FILE DIR`"));
        }
        return Ok(Piped { file: Containerfile::from_stream(first.chain(plain))?, staging: None });
    }
    let failed = |cause: &dyn std::fmt::Display| Report::new(format!("cannot unpack {NAME}")).with_cause(cause);
    let archive =
        store.pour(first.chain(plain), |_| ()).map_err(|error| not_poured(format!("cannot unpack {NAME}"), &error))?;
    let length = archive.metadata().map_err(|error| failed(&error))?.len();
    let entries = tar::scan_file(&archive, 0, length).map_err(|error| failed(&error))?;
    let mut merger = Merger::new();
    merger.apply(Digest([0; 32]), entries).map_err(|error| failed(&error.problem))?;
    let tree = merger.finish().portable(Some((0, 0)));
    let staging = store.scratch()?;
    let path = directory_of(&staging);
    let root = std::fs::create_dir(&path).and_then(|()| directory::open_root(&path)).map_err(|error| failed(&error))?;
    directory::render(&tree, &[archive], root.as_fd())?;
    Ok(Piped { file: Containerfile::of_archive(&path, file)?, staging: Some(staging) })
}
