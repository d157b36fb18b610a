//! Snapshots of this module's error texts, with their hints, causes and exit statuses. After a wanted change of a text, run this test with
//! `INSTA_UPDATE=always` and read the difference.

use super::definition::DefinitionError;
use crate::report::texts::{Texts, denied, json};

#[test]
fn errors_of_hook() {
    let mut texts = Texts::default();
    texts.add(DefinitionError::Directory { path: "/path/to/file".into(), source: denied() });
    texts.add(DefinitionError::Read { file: "memory.max".into(), source: denied() });
    texts.add(DefinitionError::Json { file: "memory.max".into(), source: json() });
    texts.add(DefinitionError::Version { file: "memory.max".into(), version: "2.0.0".into() });
    texts.add(DefinitionError::Stage { file: "memory.max".into(), stage: "before".into() });
    texts.add(DefinitionError::NoStage { file: "memory.max".into() });
    texts.add(DefinitionError::NoCondition { file: "memory.max".into() });
    texts.add(DefinitionError::Pattern {
        file: "memory.max".into(),
        pattern: "(".into(),
        source: Box::new(regex::Regex::new(&["("].concat()).unwrap_err()),
    });
    texts.add(DefinitionError::Relative { file: "memory.max".into(), path: "/path/to/file".into() });
    texts.add(DefinitionError::Nul { file: "memory.max".into() });
    texts.add(DefinitionError::Env { file: "memory.max".into(), entry: "=x".into() });
    texts.add(DefinitionError::NoProgram { file: "memory.max".into(), path: "/path/to/file".into() });
    insta::assert_snapshot!(texts.0);
}
