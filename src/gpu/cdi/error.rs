//! Why a CDI device cannot be injected.

use std::path::PathBuf;

use crate::report::Explain;

/// Directories of CDI files, in order of increasing precedence.
pub(super) const DIRS: [&str; 2] = ["/etc/cdi", "/var/run/cdi"];

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum CdiError {
    /// `generate` is the command that writes the file again, if it is known.
    #[error("the CDI file `{}` is invalid: {why}", .file.display())]
    Invalid { file: PathBuf, why: String, generate: Option<String> },
    #[error("there is no CDI device `{name}`{known}")]
    NoDevice { name: String, known: String, generate: Option<String>, source: Option<Box<CdiError>> },
    #[error("two files describe the CDI device `{name}`: `{}` and `{}`", .one.display(), .other.display())]
    Conflict { name: String, one: PathBuf, other: PathBuf },
    #[error("the CDI file `{}` is stale: {why}", .file.display())]
    Stale { file: PathBuf, why: String, generate: Option<String> },
    #[error("the CDI device `{name}` needs {what}, which gpurun does not support (`{}`)", .file.display())]
    Unsupported { name: String, file: PathBuf, what: &'static str },
}

impl Explain for CdiError {
    fn hint(&self) -> Option<String> {
        Some(match self {
            Self::Invalid { generate: Some(generate), file, .. } => {
                format!("run {generate} to write it again, or remove it: `sudo rm {}`", file.display())
            }
            Self::Invalid { file, .. } => {
                format!("write it again with the tool of its vendor, or remove it: `sudo rm {}`", file.display())
            }
            Self::NoDevice { generate: Some(generate), .. } => format!("run {generate}"),
            Self::NoDevice { known, .. } if !known.is_empty() => "use one of these names".into(),
            Self::NoDevice { .. } => {
                let dirs = DIRS.map(|dir| format!("`{dir}`")).join(" or ");
                format!("write a CDI file into {dirs} with the tool of the vendor")
            }
            Self::Conflict { other, .. } => {
                format!("remove one of the files, for example: `sudo rm {}`", other.display())
            }
            Self::Stale { generate: Some(generate), .. } => format!("run {generate}"),
            Self::Stale { file, .. } => format!("write `{}` again with the tool of its vendor", file.display()),
            Self::Unsupported { .. } => return None,
        })
    }
}
