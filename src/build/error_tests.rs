//! Snapshots of this module's error texts, with their hints, causes and exit statuses. After a wanted change of a text, run this test with
//! `INSTA_UPDATE=always` and read the difference.

use super::context::{ContextError, no_context};
use super::copy_source::CopyError;
use super::ignore::PatternError;
use super::parse::Problem;
use super::words::WordError;
use crate::layer::LookupError;
use crate::report::texts::{Texts, denied};

#[test]
fn errors_of_build() {
    let mut texts = Texts::default();
    let path = || "data/file".to_owned();
    texts.add(ContextError::Read { path: path(), source: denied() });
    texts.add(ContextError::Ignore { path: "/path/to/.dockerignore".into(), source: denied() });
    texts.add(ContextError::BadIgnore { path: "/path/to/.dockerignore".into(), source: PatternError::Bad("[".into()) });
    texts.add(ContextError::Open { path: "/path/to/context".into(), source: denied() });
    texts.add(ContextError::Copy { path: path(), source: denied() });
    texts.add(ContextError::Missing(path()));
    texts.add(ContextError::Link { path: path(), target: "/etc/passwd".into() });
    texts.add(ContextError::Ignored { path: path(), ignore: ".dockerignore".into() });
    texts.add(ContextError::Kind { path: path(), kind: "a socket", ignore: ".dockerignore".into() });
    texts.add(ContextError::Changed(path()));
    texts.add(CopyError::Destination { path: "/app".into(), source: LookupError::NotDirectory });
    texts.add(CopyError::Mismatch { path: "/app".into(), found: "a link", wanted: "a directory" });
    texts.add(CopyError::Twice { path: "/app".into(), first: "a file", then: "a directory" });
    texts.add(CopyError::NotThere { path: "/app".into(), place: "stage `build`".into() });
    texts.add(CopyError::Read { path: "/app".into(), source: denied() });
    texts.add(CopyError::Write(denied()));
    texts.plain(PatternError::Many);
    for problem in [
        Problem::Unknown("FORM".into()),
        Problem::Needs { instruction: "COPY", what: "a source and a destination" },
        Problem::Flag { instruction: "RUN", flag: "chown".into() },
        Problem::FlagValue { instruction: "COPY", flag: "from".into(), what: "needs a value".into() },
        Problem::HereDocument("EOF".into()),
        Problem::OnBuild("FROM".into()),
        Problem::NoStage,
        Problem::StageName("-x".into()),
        Problem::StageTwice("build".into()),
        Problem::Words("[1]".into()),
        Problem::More("x".into()),
        Problem::NoFrom,
        Problem::Instructions,
        Problem::Stages,
        Problem::Escape("x".into()),
        Problem::Word(WordError::Quote('"')),
        Problem::Word(WordError::Brace),
        Problem::Word(WordError::Substitution("a@b".into())),
        Problem::Word(WordError::Deep),
        Problem::Word(WordError::Required { name: "VERSION".into(), message: "is not set".into() }),
        Problem::Word(WordError::Long(1 << 20)),
        Problem::Word(WordError::Slow),
    ] {
        texts.plain(problem);
    }
    insta::assert_snapshot!(format!("{}\n{}", texts.0, no_context()));
}
