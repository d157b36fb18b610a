//! Snapshots of this module's error texts, with their hints, causes and exit statuses. After a wanted change of a text, run this test with
//! `INSTA_UPDATE=always` and read the difference.

use super::ingest::IngestError;
use super::load::LoadError;
use super::push::PushError;
use super::remove::RemoveError;
use super::save::SaveError;
use super::{ResolveError, StoreError};
use crate::image::DocumentError;
use crate::layer::erofs::WriteError;
use crate::layer::merge::{MergeError, Problem};
use crate::layer::tar::{ScanError, TarError, TarProblem};
use crate::report::Report;
use crate::report::texts::{Texts, denied, digest, json};
use crate::transport::SourceError;
use crate::transport::registry::RegistryError;

fn store_error() -> StoreError {
    StoreError::Altered { path: "/path/to/file".into() }
}

fn source_error() -> SourceError {
    SourceError::Missing { member: "manifest.json".into() }
}

fn registry_error() -> RegistryError {
    RegistryError::NoTls { host: "registry.lab:5000".into() }
}

fn tar_error() -> TarError {
    TarError { offset: 512, member: Some("etc/passwd".into()), problem: TarProblem::Checksum }
}

fn merge_error() -> MergeError {
    MergeError { layer: digest(1), path: "etc/passwd".into(), problem: Problem::Escapes }
}

#[test]
fn errors_of_store() {
    let mut texts = Texts::default();
    texts.add(StoreError::Io { action: "read", path: "/path/to/file".into(), cause: denied() });
    texts.add(StoreError::Format { root: "/path/to/file".into(), found: "linux/amd64".into() });
    texts.add(StoreError::NoFormat { path: "/path/to/file".into() });
    texts.add(StoreError::Damaged { id: "9999999999".into(), cause: DocumentError::Size { document: "manifest" } });
    texts.add(StoreError::Changed { path: "/path/to/file".into() });
    texts.add(StoreError::Json { path: "/path/to/file".into(), cause: json() });
    texts.add(StoreError::Altered { path: "/path/to/file".into() });
    texts.add(StoreError::Scan { layer: digest(2), cause: ScanError::Read(denied()) });
    texts.add(StoreError::Archive { path: "/path/to/file".into() });
    texts.add(StoreError::Headers);
    texts.add(StoreError::Merge(merge_error()));
    texts.add(StoreError::Index { cause: Box::new(WriteError::TooLarge { size: 12 }) });
    texts.add(ResolveError::NotFound { name: "notebook:1".into(), known: vec!["one:1".into(), "two:2".into()] });
    texts.add(ResolveError::Ambiguous { prefix: "TEXT".into(), ids: vec!["one:1".into(), "two:2".into()] });
    texts.add(ResolveError::BadName("TEXT".into()));
    texts.add(ResolveError::Store { name: "notebook:1".into(), cause: store_error() });
    texts.plain(IngestError::Unpack(denied()));
    texts.plain(IngestError::Digest { expected: digest(1), found: digest(2) });
    texts.plain(IngestError::DiffId { expected: digest(1), found: digest(2) });
    texts.plain(IngestError::Tar(tar_error()));
    texts.plain(IngestError::Write(denied()));
    texts.plain(IngestError::Space { free: 12, reserve: 12 });
    texts.plain(IngestError::Headers);
    texts.plain(IngestError::Thread(denied()));
    texts.plain(IngestError::Damaged { host: "registry.lab:5000".into(), cause: Box::new(IngestError::Headers) });
    texts.plain(IngestError::Stopped);
    texts.add(LoadError::Source { action: "read", origin: "standard input".into(), cause: Box::new(source_error()) });
    texts.add(LoadError::Spool { origin: "standard input".into(), cause: IngestError::Stopped });
    texts.add(LoadError::Layer { layer: digest(2), cause: IngestError::Stopped });
    texts.add(LoadError::Image { image: "notebook:1".into(), cause: store_error() });
    texts.add(LoadError::OneName { origin: "standard input".into(), images: 12 });
    texts.add(PushError::Registry {
        target: "registry.lab:5000/notebook:1".parse().unwrap(),
        cause: Box::new(registry_error()),
    });
    texts.add(RemoveError::InUse { image: "notebook:1".into(), container: "lab".into() });
    texts.add(RemoveError::Building { image: "notebook:1".into() });
    texts.add(RemoveError::Mounted { image: "notebook:1".into() });
    texts.add(RemoveError::Unknown { image: "notebook:1".into(), why: Box::new(Report::new("WHY")) });
    texts.add(RemoveError::SeveralNames { id: "9999999999".into(), names: vec!["one:1".into(), "two:2".into()] });
    texts.add(RemoveError::Store { image: "notebook:1".into(), cause: store_error() });
    texts.add(SaveError::Write(denied()));
    texts.add(SaveError::File { path: "/path/to/file".into(), cause: denied() });
    texts.add(SaveError::NotEmpty("/path/to/file".into()));
    texts.add(SaveError::Layer { layer: digest(2), cause: denied() });
    insta::assert_snapshot!(texts.0);
}
