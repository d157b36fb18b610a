//! Errors of the runtime.

use std::path::PathBuf;

use super::devices::DeviceFault;
use crate::report::{EXIT_CANNOT_EXECUTE, EXIT_NOT_FOUND, Explain};

/// The hint for a failure to lower the OOM score without CAP_SYS_RESOURCE.
pub(super) const LOWER_SCORE: &str =
    "use `--oom-score-adj 0` or more on this host; a score below gpurun's own needs CAP_SYS_RESOURCE";

/// The step of `exec` that may fail for the same reason.
pub(super) const SCORE_STEP: &str = "set the OOM score";
pub(super) const OOM_SCORE: &str = "set the container's OOM score";

/// An error of libcontainer, or one that another process has passed on.
pub(super) type Cause = Box<dyn std::error::Error + Send + Sync>;

/// An error that another process has passed on as text, with its causes.
#[derive(Debug, thiserror::Error)]
#[error("{message}")]
pub(super) struct Relayed {
    message: String,
    source: Option<Box<Relayed>>,
}

impl Relayed {
    /// Makes an error of its message and those of its causes.
    pub(super) fn new(chain: Vec<String>) -> Self {
        let link = |source, message| Some(Box::new(Self { message, source }));
        let whole = chain.into_iter().rev().fold(None, link);
        whole.map_or_else(|| Self { message: "the runtime failed without a message".into(), source: None }, |one| *one)
    }
}

#[derive(Debug, thiserror::Error)]
pub enum RuntimeError {
    #[error("cannot create a container in a process with {0} threads")]
    Threads(usize),
    #[error("cannot {action} `{}`", path.display())]
    Io { action: &'static str, path: PathBuf, source: std::io::Error },
    #[error("cannot {0}")]
    Sys(&'static str, #[source] std::io::Error),
    #[error("cannot parse the OCI spec `{}`", path.display())]
    Spec { path: PathBuf, source: serde_json::Error },
    #[error("cannot create the container: {reason}")]
    Create { reason: String, source: Cause },
    #[error("cannot start the container: {reason}")]
    Start { reason: String, source: Cause },
    #[error("cannot delete the container `{id}`: {reason}")]
    Delete { id: String, reason: String, source: Cause },
    #[error("cannot execute `{program}`: {why}")]
    Execute { program: String, why: String, not_found: bool },
    #[error("cannot enter the working directory `{}` of the container", path.display())]
    Directory { path: PathBuf, source: std::io::Error },
    #[error("a device of the container is not usable: {0:?}")]
    Device(DeviceFault),
    #[error("cannot enter the container: {step}")]
    Enter { step: String, source: std::io::Error },
}

impl Explain for RuntimeError {
    fn hint(&self) -> Option<String> {
        match self {
            Self::Execute { not_found: true, .. } => {
                Some("check that it is in the image and in its PATH; many images have `sh`, but not `bash`".into())
            }
            Self::Sys(OOM_SCORE, source) if source.raw_os_error() == Some(libc::EACCES) => Some(LOWER_SCORE.into()),
            Self::Enter { step, source }
                if step.contains(SCORE_STEP) && source.raw_os_error() == Some(libc::EACCES) =>
            {
                Some(LOWER_SCORE.into())
            }
            // fork(2) fails with EAGAIN when pids.max is reached.
            Self::Enter { source, .. } if source.raw_os_error() == Some(libc::EAGAIN) => Some(
                "raise `--pids-limit` with `gpurun update`; `gpurun stats` shows the number of processes and the \
                 limit"
                    .into(),
            ),
            Self::Directory { .. } => {
                Some("create it in the image or in the mounted directory, or choose another one with `-w DIR`".into())
            }
            _ => None,
        }
    }

    fn exit_code(&self) -> u8 {
        match self {
            Self::Execute { not_found: true, .. } => EXIT_NOT_FOUND,
            Self::Execute { .. } => EXIT_CANNOT_EXECUTE,
            _ => crate::report::EXIT_GPURUN,
        }
    }
}
