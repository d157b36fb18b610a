//! The errors of records, and their hints.

use std::io;
use std::path::{Path, PathBuf};

use super::refused::Refused;
use super::types::{VERSION, short};
use crate::report::Explain;

#[derive(Debug, thiserror::Error)]
pub(crate) enum RecordError {
    #[error("cannot {action} `{}`", path.display())]
    Io { action: &'static str, path: PathBuf, source: io::Error },
    #[error("the record `{}` cannot be read", path.display())]
    Damaged { path: PathBuf, source: serde_json::Error },
    #[error("the record `{}` was changed: its content does not match the digest in its field `check`", path.display())]
    Altered { path: PathBuf },
    #[error("the record `{}` belongs to another container, {}", path.display(), short(id))]
    Misplaced { path: PathBuf, id: String },
    #[error("the record `{}` has the format version {version}, and this gpurun reads version {VERSION}", path.display())]
    Version { path: PathBuf, version: u32 },
    #[error("the record `{}` is lost", path.display())]
    Lost { path: PathBuf },
    #[error("the name `{name}` is taken by container {} of {user}", short(id))]
    NameTaken { name: String, id: String, user: String },
    #[error(transparent)]
    RunDir(Box<Refused>),
}

impl Explain for RecordError {
    fn hint(&self) -> Option<String> {
        match self {
            Self::NameTaken { name, .. } => {
                Some(format!("remove it with `gpurun rm -f {name}`, or choose another name"))
            }
            Self::Lost { path } | Self::Damaged { path, .. } | Self::Misplaced { path, .. } => Some(keep_or_remove(path)),
            Self::Altered { path } => {
                Some(format!("{}; if you edited the record on purpose, remove its line `check`", keep_or_remove(path)))
            }
            Self::Version { path, .. } => Some(format!("use the gpurun that made it; {}", keep_or_remove(path))),
            Self::Io { source, .. } if source.kind() == io::ErrorKind::PermissionDenied => {
                Some("gpurun needs root: try `sudo gpurun …`".into())
            }
            Self::Io { source, .. } if matches!(source.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded) => Some(
                "the disk is full: `gpurun rm` containers that are not needed (`gpurun ps -a`), `gpurun image prune`, or choose another disk with `--root DIR`".into(),
            ),
            Self::Io { source, .. } if source.kind() == io::ErrorKind::FileTooLarge => {
                Some("lift this shell's limit on the size of files: `ulimit -f unlimited`".into())
            }
            Self::Io { source, .. } if source.kind() == io::ErrorKind::ReadOnlyFilesystem => {
                Some("choose directories that can be written with `--root DIR` and `--run-dir DIR`".into())
            }
            Self::Io { source, .. } if source.raw_os_error() == Some(libc::EFBIG) => {
                Some("the limit of file sizes of this shell is too small: `ulimit -f unlimited`, as root".into())
            }
            Self::Io { action: "read", path, .. } if path.ends_with("record.json") => Some(keep_or_remove(path)),
            Self::RunDir(refused) => Some(refused.hint()),
            Self::Io { .. } => None,
        }
    }
}

/// The hint for a container whose file `path` cannot be used.
fn keep_or_remove(path: &Path) -> String {
    let dir = path.parent().unwrap_or(path);
    let id = dir.file_name().unwrap_or_default().to_string_lossy();
    format!(
        "`gpurun rm -f {}` removes the container with all its files; the files that it has written are in `{}`",
        short(&id),
        dir.join("upper").display()
    )
}

/// The error for a name or an ID that stands for no container, or for several.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub(crate) enum FindError {
    #[error("there is no container `{0}`")]
    None(String),
    #[error("there is no container `{asked}`")]
    WholeNames { asked: String, name: String },
    #[error("`{asked}` is the beginning of {count} containers: {examples}")]
    Ambiguous { asked: String, count: usize, examples: String },
    /// Two containers can have the same name if the record of one was unreadable when the other was created.
    #[error("the name `{name}` belongs to {} containers: {}", ids.len(), ids.join(", "))]
    SameName { name: String, ids: Vec<String> },
}

impl Explain for FindError {
    fn hint(&self) -> Option<String> {
        Some(match self {
            Self::None(_) => "list all containers with `gpurun ps -a`".into(),
            Self::WholeNames { name, .. } => {
                format!("give the whole name, `{name}`: a command that changes a container takes no shortened names")
            }
            Self::Ambiguous { .. } => "give the whole name, or more of the ID".into(),
            Self::SameName { ids, .. } => format!(
                "give the ID instead; `gpurun rename {} NEW-NAME` gives one of them another name",
                ids.last().map_or("ID", String::as_str)
            ),
        })
    }
    fn exit_code(&self) -> u8 {
        1
    }
}
