//! Snapshots of this module's error texts, with their hints, causes and exit statuses. After a wanted change of a text, run this test with
//! `INSTA_UPDATE=always` and read the difference.

use super::{DeviceFault, RuntimeError};
use crate::report::texts::{Texts, denied, json};

#[test]
fn errors_of_runtime() {
    let mut texts = Texts::default();
    texts.add(RuntimeError::Threads(12));
    texts.add(RuntimeError::Io { action: "read", path: "/path/to/file".into(), source: denied() });
    texts.add(RuntimeError::Sys("TEXT", denied()));
    texts.add(RuntimeError::Spec { path: "/path/to/file".into(), source: json() });
    texts.add(RuntimeError::Create {
        reason: "REASON".into(),
        source: Box::new(libcontainer::error::LibcontainerError::Other("REASON".into())),
    });
    texts.add(RuntimeError::Start {
        reason: "REASON".into(),
        source: Box::new(libcontainer::error::LibcontainerError::Other("REASON".into())),
    });
    texts.add(RuntimeError::Delete {
        id: "9999999999".into(),
        reason: "REASON".into(),
        source: Box::new(libcontainer::error::LibcontainerError::Other("REASON".into())),
    });
    texts.add(RuntimeError::Execute { program: "/bin/train".into(), why: "WHY".into(), not_found: true });
    texts.add(RuntimeError::Directory { path: "/path/to/file".into(), source: denied() });
    texts.add(RuntimeError::Device(DeviceFault::Denied { path: "/dev/kmsg".into() }));
    texts.add(RuntimeError::Enter { step: "enter the namespaces".into(), source: denied() });
    insta::assert_snapshot!(texts.0);
}
