//! Snapshots of this module's error texts, with their hints, causes and exit statuses. After a wanted change of a text, run this test with
//! `INSTA_UPDATE=always` and read the difference.

use super::refused::{Binding, Refused};
use super::{RecordError, types};
use crate::report::texts::{Texts, denied, json};

#[test]
fn errors_of_record() {
    let mut texts = Texts::default();
    let (path, id) = ("/containers/0123456789abcdef/record.json", "0123456789abcdef");
    texts.add(RecordError::Io { action: "read", path: path.into(), source: denied() });
    for errno in [libc::ENOSPC, libc::EFBIG, libc::EROFS] {
        let source = std::io::Error::from_raw_os_error(errno);
        texts.add(RecordError::Io { action: "write", path: path.into(), source });
    }
    texts.add(RecordError::Damaged { path: path.into(), source: json() });
    texts.add(RecordError::Altered { path: path.into() });
    texts.add(RecordError::Misplaced { path: path.into(), id: id.into() });
    texts.add(RecordError::Version { path: path.into(), version: types::VERSION + 1 });
    texts.add(RecordError::Lost { path: path.into() });
    texts.add(RecordError::NameTaken { name: "lab".into(), id: id.into(), user: "ada".into() });
    let known = Binding { run_dir: "/run/gpurun".into(), device: 1, inode: 1, boot_id: None };
    for known in [Some(known), None] {
        texts.add(RecordError::RunDir(Box::new(Refused {
            asked: "/run/other".into(),
            containers: "/var/lib/gpurun/containers".into(),
            known,
            pid: None,
        })));
    }
    insta::assert_snapshot!(texts.0);
}
