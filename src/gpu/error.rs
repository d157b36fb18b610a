//! Why a GPU request cannot be fulfilled.

use std::error::Error;
use std::fmt;

use super::cdi::CdiError;
use super::lease::LeaseError;
use crate::report::{EXIT_GPURUN, EXIT_USAGE, Explain};
use crate::request::GpuMode;

/// The request that failed, and the reason.
#[derive(Debug)]
pub(crate) struct GpuError {
    /// `--gpus all`, `--device vendor.com/class=name`. `None` for a command that only lists GPUs.
    pub request: Option<String>,
    pub reason: Reason,
}

impl GpuError {
    pub(super) fn of(request: impl Into<String>) -> impl FnOnce(Reason) -> Self {
        let request = request.into();
        move |reason| Self { request: Some(request), reason }
    }

    /// The holders of the GPUs, one line for each, if other containers and processes use too many GPUs for this request.
    pub(crate) fn holders(&self) -> Option<Vec<String>> {
        let (Reason::NoneIdle { busy, .. } | Reason::NoneShareable { busy, .. }) = &self.reason else { return None };
        let mut lines = Vec::new();
        let mut next = busy.as_deref();
        while let Some(busy) = next {
            lines.push(busy.line.clone());
            next = busy.next.as_deref();
        }
        Some(lines)
    }

    /// Whether the driver is missing or does not provide the GPUs. Both may change while the host boots.
    pub(crate) fn is_driver(&self) -> bool {
        self.is_absence() || matches!(self.reason, Reason::Vendor(_))
    }

    /// Whether the host has no GPU of the requested kind at all.
    pub(crate) fn is_absence(&self) -> bool {
        matches!(self.reason, Reason::NoDriver { .. } | Reason::NoGpu)
    }
}

impl fmt::Display for GpuError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.request {
            Some(request) => write!(f, "cannot provide `{request}`: {}", self.reason),
            None => write!(f, "cannot list the GPUs: {}", self.reason),
        }
    }
}

impl Error for GpuError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        self.reason.source()
    }
}

impl Explain for GpuError {
    fn hint(&self) -> Option<String> {
        match (&self.reason, &self.request) {
            (Reason::NoDriver { hint, .. }, None) => Some(hint.clone()),
            (Reason::NoDriver { hint, .. }, Some(_)) => Some(format!("{hint}, or omit `--gpus`")),
            (reason, _) => reason.hint(),
        }
    }

    fn exit_code(&self) -> u8 {
        self.reason.exit_code()
    }

    fn is_transient(&self) -> bool {
        matches!(self.reason, Reason::NoneIdle { .. } | Reason::NoneShareable { .. } | Reason::Queued { .. })
    }
}

#[derive(Debug, thiserror::Error)]
pub(crate) enum Reason {
    #[error("this host has no {vendor} driver (`{missing}` is missing)")]
    NoDriver { vendor: &'static str, missing: String, hint: String },
    #[error("the driver is loaded, but the host has no GPU")]
    NoGpu,
    #[error("{} requested, but the host has {there}", plural(*.wanted as usize, "GPU is", "GPUs are"))]
    TooMany { wanted: u32, there: usize },
    #[error("the {step} has no GPU")]
    NoneInStep { step: String },
    #[error("{} requested, but the {step} has {there}", plural(*.wanted as usize, "GPU is", "GPUs are"))]
    TooManyInStep { wanted: u32, there: usize, step: String },
    #[error("the {step} does not have the GPU `{device}`; it has {there}")]
    NotInStep { device: String, step: String, there: String },
    #[error("the {step} does not have this device")]
    DeviceNotInStep { step: String },
    #[error("there is no GPU `{device}`; the host has {there}")]
    NoSuchGpu { device: String, there: String },
    #[error("{} requested, but {} idle", plural(*.wanted as usize, "idle GPU is", "idle GPUs are"), plural(*.free, "is", "are"))]
    NoneIdle {
        wanted: u32,
        free: usize,
        #[source]
        busy: Option<Box<Busy>>,
    },
    #[error("{} requested, but {} not exclusive to a container", plural(*.wanted as usize, "GPU is", "GPUs are"), plural(*.free, "is", "are"))]
    NoneShareable {
        wanted: u32,
        free: usize,
        #[source]
        busy: Option<Box<Busy>>,
    },
    #[error(
        "{} for idle GPUs, the first one for {first}",
        if *.waiting == 1 { "a command waits".to_owned() } else { format!("{waiting} commands wait") }
    )]
    Queued { waiting: usize, first: String },
    #[error("the driver `{driver}` is unknown")]
    UnknownDriver { driver: String, known: String },
    #[error("no CDI file of this host describes a GPU")]
    NoCdiGpu { source: Option<CdiError> },
    #[error("the CDI files of this host describe GPUs of several vendors: {kinds}")]
    SeveralVendors { kinds: String, example: String },
    #[error("`driver=cdi` and `--gpu-mode {mode}` exclude each other")]
    CdiOnly { mode: GpuMode },
    #[error(transparent)]
    Cdi(#[from] CdiError),
    #[error(transparent)]
    Lease(#[from] LeaseError),
    /// A reason that only one vendor's GPUs have.
    #[error(transparent)]
    Vendor(Box<dyn VendorReason>),
}

/// The error type of a vendor.
pub(crate) trait VendorReason: Explain + Send + Sync + 'static {}

impl std::error::Error for Box<dyn VendorReason> {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        (**self).source()
    }
}

impl Explain for Reason {
    fn hint(&self) -> Option<String> {
        Some(match self {
            Self::NoDriver { hint, .. } => hint.clone(),
            Self::NoGpu => "run `gpurun doctor` to find the reason, or omit `--gpus`".into(),
            Self::TooMany { there, .. } => format!("request at most {}", plural(*there, "GPU", "GPUs")),
            Self::NoneInStep { .. } => "request GPUs from Slurm, for example with `srun --gres=gpu:1`, or omit `--gpus`".into(),
            Self::TooManyInStep { wanted, .. } => format!("request them from Slurm: `srun --gres=gpu:{wanted}`"),
            Self::NotInStep { .. } => "use `--gpus all` for all GPUs of the step, or a name from this list".into(),
            Self::DeviceNotInStep { .. } => "request the device from Slurm (`srun --gres=…`), or omit `--device`".into(),
            Self::NoSuchGpu { .. } => "use an index or a name from this list".into(),
            Self::NoneIdle { .. } => {
                "add `--wait` to wait until a GPU is idle, add `--share-gpu` to share the least used GPUs, or share a particular one with `device=N`".into()
            }
            Self::NoneShareable { .. } => {
                "add `--wait` to wait until one of these containers has ended, or share a particular GPU with `device=N`".into()
            }
            Self::Queued { .. } => "add `--wait` to join the queue, or share a particular GPU with `device=N`".into(),
            Self::UnknownDriver { known, .. } => {
                format!("omit `driver=`, or use {known}")
            }
            Self::NoCdiGpu { source: Some(error) } => return error.hint(),
            Self::NoCdiGpu { source: None } => {
                "generate a CDI file in `/etc/cdi` with the tool of the GPU's vendor".into()
            }
            Self::SeveralVendors { example, .. } => format!("name the GPUs, for example `--gpus device={example},driver=cdi`"),
            Self::CdiOnly { .. } => "omit `--gpu-mode`".into(),
            Self::Cdi(error) => return error.hint(),
            Self::Lease(error) => return error.hint(),
            Self::Vendor(error) => return error.hint(),
        })
    }

    fn exit_code(&self) -> u8 {
        match self {
            Self::CdiOnly { .. } => EXIT_USAGE,
            Self::Cdi(error) => error.exit_code(),
            Self::Vendor(error) => error.exit_code(),
            _ => EXIT_GPURUN,
        }
    }
}

/// `1 GPU is`, `2 GPUs are`
fn plural(count: usize, one: &str, more: &str) -> String {
    format!("{count} {}", if count == 1 { one } else { more })
}

/// The unavailable units, one line each, as a chain of error causes.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Busy {
    line: String,
    next: Option<Box<Busy>>,
}

impl Busy {
    pub(super) fn list(lines: impl DoubleEndedIterator<Item = String>) -> Option<Box<Self>> {
        lines.rev().fold(None, |next, line| Some(Box::new(Self { line, next })))
    }
}

impl fmt::Display for Busy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.line)
    }
}

impl Error for Busy {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        self.next.as_ref().map(|next| &**next as _)
    }
}
