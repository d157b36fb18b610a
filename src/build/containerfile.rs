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
    /// Reads the file that `--file` names, or the context's default. `-` means standard input.
    pub(crate) fn read(context: &Path, file: Option<&Path>) -> Result<Self, Report> {
        let Some(file) = file else {
            let inside = PathBuf::from(default_name(context, &format!("`{}`", context.display()))?);
            let name = context.join(&inside).display().to_string();
            return Self::inside(context, inside, name);
        };
        if file == Path::new("-") {
            return Self::from_stream(io::stdin().lock());
        }
        let name = file.display().to_string();
        // Like podman and docker's former builder, look in the context for what is not there.
        if file.is_relative() && file.symlink_metadata().is_err() && context.join(file).symlink_metadata().is_ok() {
            return Self::inside(context, file.to_owned(), name);
        }
        match inside(file, context) {
            Some(inside) => Self::inside(context, inside, name),
            None => {
                let open =
                    File::open(file).map_err(|error| Report::new(format!("cannot read `{name}`")).with_cause(error))?;
                Ok(Self { text: text(open, &name)?, name, place: Place::Outside(file.to_owned()) })
            }
        }
    }

    /// Reads a Containerfile from standard input.
    pub(super) fn from_stream(input: impl Read) -> Result<Self, Report> {
        let text = text(input, "the Containerfile on standard input")?;
        Ok(Self { name: "-".to_owned(), text, place: Place::StandardInput })
    }

    /// Reads a file of a context that was on standard input, or its default.
    pub(super) fn of_archive(context: &Path, file: Option<&Path>) -> Result<Self, Report> {
        let inside = match file {
            Some(file) => file.to_owned(),
            None => default_name(context, "the archive on standard input")?.into(),
        };
        let name = inside.display().to_string();
        Self::inside(context, inside, name)
    }

    fn inside(context: &Path, inside: PathBuf, name: String) -> Result<Self, Report> {
        let file = Context::bare(context)?.file(&inside).map_err(|error| unreadable(&inside, error))?;
        Ok(Self { text: text(file, &name)?, name, place: Place::Inside(inside) })
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
        return Err(Report::new(format!("cannot read `{name}`: it is an archive"))
            .with_hint("to build from an archive, pass it as the context: `gpurun build -t NAME - <FILE`"));
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

fn default_name(context: &Path, shown: &str) -> Result<&'static str, Report> {
    // A link counts, whatever its target is. To skip an existing file silently would be surprising.
    let found = DEFAULT_NAMES.into_iter().find(|name| context.join(name).symlink_metadata().is_ok());
    found.ok_or_else(|| {
        Report::new(format!("there is no Containerfile or Dockerfile in {shown}"))
            .with_hint("name it with `--file FILE`")
            .with_exit_code(1)
    })
}

/// The path of a file inside the context, by its name or by the directory that really contains it. `None` means that the
/// file is outside.
fn inside(file: &Path, context: &Path) -> Option<PathBuf> {
    let named = || plain(file)?.strip_prefix(plain(context)?).ok().map(Path::to_owned);
    let real = || {
        let parent = match file.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => parent,
            _ => Path::new("."),
        };
        let parent = parent.canonicalize().ok()?;
        Some(parent.strip_prefix(context.canonicalize().ok()?).ok()?.join(file.file_name()?))
    };
    named().or_else(real)
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
            assert_eq!(inside(&base.path().join(file), &context), want.map(PathBuf::from), "{file}");
        }
    }
}
