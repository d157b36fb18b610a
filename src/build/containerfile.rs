//! Finds and reads the Containerfile of a build.
//!
//! A file inside the context is read like everything else in the context: its links cannot leave the context. So a
//! context from an untrusted source cannot make `build` read a file of the host and quote it in an error. Any other
//! file belongs to the caller, and its links are followed.

use std::fs::File;
use std::io::{self, Read};
use std::path::{Component, Path, PathBuf};

use super::context::Place;
use super::context::{Context, ContextError};
use crate::report::Report;

/// The size limit of a Containerfile, in bytes.
const LONGEST: u64 = 16 << 20;
const DEFAULT_NAMES: [&str; 2] = ["Containerfile", "Dockerfile"];

/// A Containerfile and its location.
#[derive(Debug, Clone)]
pub(crate) struct Containerfile {
    /// Name of the file for messages.
    pub name: String,
    pub text: String,
    pub place: Place,
}

impl Containerfile {
    /// Reads the file that `--file` names, or the context's default. `-`, or a missing context, means standard input.
    pub(crate) fn read(context: Option<&Path>, file: Option<&Path>) -> Result<Self, Report> {
        let place = match (file, context) {
            (Some(file), _) if file == Path::new("-") => Place::StandardInput,
            (Some(file), Some(context)) => place(file, context),
            (Some(file), None) => Place::Outside(file.to_owned()),
            (None, Some(context)) => Place::Inside(default_name(context)?.into()),
            (None, None) => Place::StandardInput,
        };
        let name = match (&place, file, context) {
            (Place::StandardInput, ..) => "-".to_owned(),
            (_, Some(file), _) => file.display().to_string(),
            (Place::Inside(inside), None, Some(context)) => context.join(inside).display().to_string(),
            (Place::Inside(path) | Place::Outside(path), ..) => path.display().to_string(),
        };
        let text = match (&place, context) {
            (Place::Inside(inside), Some(context)) => {
                let context = Context::bare(context)?;
                let file = context.file(inside).map_err(|error| unreadable(inside, error))?;
                text(file, &name)?
            }
            (Place::Inside(path) | Place::Outside(path), _) => {
                let file =
                    File::open(path).map_err(|error| Report::new(format!("cannot read `{name}`")).with_cause(error))?;
                text(file, &name)?
            }
            (Place::StandardInput, _) => text(io::stdin().lock(), "the Containerfile on standard input")?,
        };
        Ok(Self { name, text, place })
    }
}

fn unreadable(inside: &Path, error: ContextError) -> Report {
    let report = match error {
        ContextError::Link { .. } => Report::from(error)
            .with_hint("name the Containerfile itself, outside of the context: `gpurun build --file FILE DIR`"),
        error => Report::from(error),
    };
    report.under(format!("cannot use the Containerfile `{}`", inside.display())).with_exit_code(1)
}

fn text(input: impl Read, name: &str) -> Result<String, Report> {
    let failed = |error: io::Error| Report::new(format!("cannot read `{name}`")).with_cause(error);
    let mut bytes = Vec::new();
    input.take(LONGEST + 1).read_to_end(&mut bytes).map_err(failed)?;
    if is_archive(&bytes) {
        return Err(Report::new(format!("cannot read `{name}`: it is an archive")).with_hint(
            "unpack the archive, and name the directory: `mkdir DIR && tar -xf FILE -C DIR && gpurun build -t NAME DIR`",
        ));
    }
    if bytes.len() as u64 > LONGEST {
        return Err(Report::new(format!("cannot read `{name}`: it is larger than {} MiB", LONGEST >> 20)));
    }
    String::from_utf8(bytes).map_err(|error| failed(io::Error::new(io::ErrorKind::InvalidData, error)))
}

/// Whether the bytes begin a tar archive, or one that is compressed with gzip, bzip2, xz or zstd: docker takes it as a
/// context.
fn is_archive(bytes: &[u8]) -> bool {
    const COMPRESSED: [&[u8]; 4] = [b"\x1f\x8b", b"BZh", b"\xfd7zXZ\0", b"\x28\xb5\x2f\xfd"];
    bytes.get(257..262) == Some(b"ustar") || COMPRESSED.iter().any(|magic| bytes.starts_with(magic))
}

fn default_name(context: &Path) -> Result<&'static str, Report> {
    // A link counts, whatever its target is. To skip an existing file silently would be surprising.
    let found = DEFAULT_NAMES.into_iter().find(|name| context.join(name).symlink_metadata().is_ok());
    found.ok_or_else(|| {
        Report::new(format!("there is no Containerfile or Dockerfile in `{}`", context.display()))
            .with_hint("name it with `--file FILE`")
            .with_exit_code(1)
    })
}

/// Decides whether a file is inside the context, by its name or by the directory that really contains it.
fn place(file: &Path, context: &Path) -> Place {
    let named = || plain(file)?.strip_prefix(plain(context)?).ok().map(Path::to_owned);
    let real = || {
        let parent = match file.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => parent,
            _ => Path::new("."),
        };
        let parent = parent.canonicalize().ok()?;
        Some(parent.strip_prefix(context.canonicalize().ok()?).ok()?.join(file.file_name()?))
    };
    named().or_else(real).map_or_else(|| Place::Outside(file.to_owned()), Place::Inside)
}

/// The absolute path, or `None` if it contains `..`, which cannot be resolved by name alone.
fn plain(path: &Path) -> Option<PathBuf> {
    let absolute = std::path::absolute(path).ok()?;
    (!absolute.components().any(|part| part == Component::ParentDir)).then_some(absolute)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn a_file_of_the_context_is_recognized() {
        let base = tempfile::tempdir().expect("a directory");
        let context = base.path().join("context");
        std::fs::create_dir_all(context.join("sub")).expect("made");
        symlink("context", base.path().join("alias")).expect("linked");
        symlink("/etc", context.join("out")).expect("linked");
        for (file, want) in [
            ("context/Dockerfile", Some("Dockerfile")),
            ("context/sub/./D", Some("sub/D")),
            ("context/sub/../D", Some("D")),
            ("alias/sub/D", Some("sub/D")),
            ("context/out/D", Some("out/D")),
            ("context/../D", None),
            ("D", None),
        ] {
            let want = want.map_or_else(|| Place::Outside(base.path().join(file)), |path| Place::Inside(path.into()));
            assert_eq!(place(&base.path().join(file), &context), want, "{file}");
        }
    }
}
