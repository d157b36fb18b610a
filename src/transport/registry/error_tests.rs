//! Snapshots of this module's error texts, with their hints, causes and exit statuses. After a wanted change of a text, run this test with
//! `INSTA_UPDATE=always` and read the difference.

use std::time::Duration;

use super::super::SourceError;
use super::super::SourceNameError;
use super::RegistryError;
use super::settings::SettingsError;
use crate::image::DocumentError;
use crate::layer::tar::ScanError;
use crate::names::NameError;
use crate::report::texts::{Texts, denied, digest, json};

fn registry_error() -> RegistryError {
    RegistryError::NoTls { host: "registry.lab:5000".into() }
}

#[test]
fn errors_of_transport() {
    let mut texts = Texts::default();
    texts.add(SourceError::Read { path: "/path/to/file".into(), cause: denied() });
    texts.add(SourceError::Unknown { path: "/path/to/file".into() });
    texts.add(SourceError::Tar { path: "/path/to/file".into(), cause: ScanError::Read(denied()) });
    texts.add(SourceError::Blob { member: "manifest.json".into(), cause: denied() });
    texts.add(SourceError::Missing { member: "manifest.json".into() });
    texts.add(SourceError::NotRegular { member: "manifest.json".into() });
    texts.add(SourceError::Size { member: "manifest.json".into(), expected: 12, found: 12 });
    texts.add(SourceError::TooLarge { member: "manifest.json".into(), limit: 12 });
    texts.add(SourceError::Digest { member: "manifest.json".into(), expected: digest(1), found: digest(2) });
    texts.add(SourceError::Document {
        member: "manifest.json".into(),
        cause: DocumentError::Size { document: "manifest" },
    });
    texts.add(SourceError::Json { member: "manifest.json".into(), cause: json() });
    texts.add(SourceError::LayoutVersion("TEXT".into()));
    texts.add(SourceError::Nesting(12));
    texts.add(SourceError::Platform {
        origin: "standard input".into(),
        wanted: "linux/arm64".into(),
        found: "linux/amd64".into(),
    });
    texts.add(SourceError::TooMany { what: "lab/notebook:1", limit: 12 });
    texts.add(SourceError::Empty { path: "/path/to/file".into() });
    texts.add(SourceError::NotInside {
        path: "/path/to/file".into(),
        pick: "one:1".into(),
        found: "linux/amd64".into(),
    });
    texts.add(RegistryError::Unreachable { host: "registry.lab:5000".into(), cause: ureq::Error::HostNotFound });
    texts.add(RegistryError::Certificate { host: "registry.lab:5000".into(), cause: ureq::Error::HostNotFound });
    texts.add(RegistryError::NoTls { host: "registry.lab:5000".into() });
    texts.add(RegistryError::NotFound { host: "registry.lab:5000".into(), what: "lab/notebook:1".into() });
    texts.add(RegistryError::Denied {
        host: "registry.lab:5000".into(),
        what: "lab/notebook:1".into(),
        credentials: Some("`--creds`".into()),
        message: "denied".into(),
    });
    texts.add(RegistryError::Status {
        host: "registry.lab:5000".into(),
        what: "lab/notebook:1".into(),
        status: 500,
        message: "denied".into(),
    });
    texts.add(RegistryError::Broken {
        host: "registry.lab:5000".into(),
        what: "lab/notebook:1".into(),
        cause: denied(),
    });
    texts.add(RegistryError::Size {
        host: "registry.lab:5000".into(),
        what: "lab/notebook:1".into(),
        expected: 12,
        found: 12,
    });
    texts.add(RegistryError::TooLarge { host: "registry.lab:5000".into(), what: "lab/notebook:1".into(), limit: 12 });
    texts.add(RegistryError::Digest {
        host: "registry.lab:5000".into(),
        what: "lab/notebook:1".into(),
        expected: digest(1),
        found: digest(2),
    });
    texts.add(RegistryError::Protocol { host: "registry.lab:5000".into(), why: "WHY".into() });
    texts.add(RegistryError::Deadline {
        seconds: 12,
        wait: Some(Duration::from_secs(90)),
        cause: Some(Box::new(registry_error())),
    });
    texts.add(RegistryError::Wait { seconds: 12, cause: Box::new(registry_error()) });
    texts.add(RegistryError::TinyReads {
        host: "registry.lab:5000".into(),
        what: "lab/notebook:1".into(),
        requests: 12,
    });
    texts.add(RegistryError::File { path: "/path/to/file".into(), cause: denied() });
    texts.add(RegistryError::BadFile { path: "/path/to/file".into(), why: "WHY".into() });
    texts.add(RegistryError::Helper { helper: "docker-credential-lab".into(), why: "WHY".into() });
    texts.add(RegistryError::Pack { layer: digest(2), cause: denied() });
    texts.add(SettingsError::Read { path: "/path/to/file".into(), source: denied() });
    texts.add(SettingsError::Json { path: "/path/to/file".into(), source: json() });
    texts.add(SettingsError::Variable("TEXT".into()));
    texts.add(SourceNameError::NoPlace("TEXT".into()));
    texts.add(SourceNameError::Reference("TEXT".into(), NameError::Digest("TEXT".into())));
    texts.add(SourceNameError::Transport("TEXT".into()));
    insta::assert_snapshot!(texts.0);
}
