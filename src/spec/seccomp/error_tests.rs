//! Snapshots of the error texts of profiles, with their hints and exit statuses. After a wanted change of a text, run this test with
//! `INSTA_UPDATE=always` and read the difference.

use super::compile::CompileError;
use super::document::ProfileError;
use crate::report::texts::{Texts, json};

#[test]
fn errors_of_seccomp() {
    let mut texts = Texts::default();
    texts.add(ProfileError::Json(json()));
    texts.add(ProfileError::Action("SCMP_ACT_X".into()));
    texts.add(ProfileError::Compare("SCMP_CMP_X".into()));
    texts.add(ProfileError::Argument(6));
    texts.add(CompileError::TooLong(5000));
    texts.add(CompileError::TooManyConditions(59));
    insta::assert_snapshot!(texts.0);
}
