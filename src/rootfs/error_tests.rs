//! Snapshots of this module's error texts, with their hints, causes and exit statuses. After a wanted change of a text, run this test with
//! `INSTA_UPDATE=always` and read the difference.

use super::{
    guards::GuardError, images::MountError, namespace::NamespaceError, overlay::OverlayError, root::RootError,
    stored::RenderImageError, users::LookupError,
};
use crate::layer::directory::RenderError;
use crate::report::Report;
use crate::report::texts::{Texts, denied};
use crate::store::StoreError;
use crate::sys::mount::FsError;

fn store_error() -> StoreError {
    StoreError::Altered { path: "/path/to/file".into() }
}

fn render_error() -> RenderError {
    RenderError { action: "create", path: "etc/passwd".into(), cause: denied() }
}

fn fs_error() -> FsError {
    FsError { source_errno: denied(), messages: vec!["overlay: no".into()] }
}

#[test]
fn errors_of_rootfs() {
    let mut texts = Texts::default();
    texts.add(GuardError::Inspect { name: "notebook:1", source: denied() });
    texts.add(GuardError::Replace { name: "notebook:1", source: denied() });
    texts.add(MountError::Prepare { path: "/path/to/file".into(), source: denied() });
    texts.add(MountError::Missing { path: "/path/to/file".into(), source: denied() });
    texts.add(MountError::Files { source: store_error() });
    texts.add(MountError::Mismatch { index: "/path/to/file".into(), wants: 12, given: 12 });
    texts.add(MountError::NotAnIndex { index: "/path/to/file".into() });
    texts.add(MountError::Render { chain: "TEXT".into(), source: fs_error(), render: Box::new(Report::new("WHY")) });
    texts.add(MountError::Attach { target: "/path/to/file".into(), source: denied() });
    texts.add(NamespaceError::Unshare(denied()));
    texts.add(NamespaceError::Open { path: "PATH", source: denied() });
    texts.add(NamespaceError::Return(denied()));
    texts.add(NamespaceError::Table(denied()));
    texts.add(NamespaceError::Detach { path: "/path/to/file".into(), source: denied() });
    texts.add(OverlayError::UnfitUpper { path: "/path/to/file".into(), kind: "a directory" });
    texts.add(OverlayError::Directory { path: "/path/to/file".into(), source: denied() });
    texts.add(OverlayError::Look { path: "/path/to/file".into(), source: denied() });
    texts.add(OverlayError::NoOverlay(denied()));
    texts.add(OverlayError::Mount { merged: "/path/to/file".into(), source: fs_error() });
    texts.add(RootError::Open { path: "/path/to/file".into(), source: denied() });
    texts.add(RootError::Resolve { path: "/path/to/file".into(), source: denied() });
    texts.add(RootError::Read { path: "/path/to/file".into(), source: denied() });
    texts.add(RootError::NotAFile { path: "/path/to/file".into(), kind: "a directory" });
    texts.add(RootError::TooLarge { path: "/path/to/file".into(), max: 12 });
    texts.add(RootError::Make { path: "/path/to/file".into(), source: denied() });
    texts.add(RootError::Mismatch { path: "/path/to/file".into(), found: "linux/amd64", wanted: "linux/arm64" });
    texts.add(RootError::IsRoot { path: "/path/to/file".into() });
    texts.add(RenderImageError::Make { path: "/path/to/file".into(), source: denied() });
    texts.add(RenderImageError::Layer { path: "/path/to/file".into(), source: denied().into() });
    texts.add(RenderImageError::Render { path: "/path/to/file".into(), source: render_error() });
    texts.add(LookupError::NoUser { user: "ann".into() });
    texts.add(LookupError::NoGroup { group: "lab".into() });
    texts.add(LookupError::OutOfRange { id: "9999999999".into() });
    texts.add(LookupError::Unreadable { spec: "ann:lab".into(), source: RootError::IsRoot { path: "/".into() } });
    insta::assert_snapshot!(texts.0);
}
