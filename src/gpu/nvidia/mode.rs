//! Selects the injection mode for this host.

use std::path::Path;

use super::error::NvidiaError;
use super::{cdi, toolkit};
use crate::gpu::cdi::{CdiError, Registry};
use crate::gpu::error::Reason;
use crate::request::GpuMode;

/// The mode, with the data that it needs.
#[derive(Debug)]
pub(super) enum Mode {
    Hook(Box<toolkit::Hook>),
    Cdi(Registry),
    Native,
}

impl Mode {
    pub(super) fn by(&self) -> &'static str {
        match self {
            Self::Hook(_) => "NVIDIA's prestart hook",
            Self::Cdi(_) => "CDI",
            Self::Native => "native injection",
        }
    }
}

#[derive(Debug)]
pub(super) struct Found {
    pub mode: Mode,
    /// Why `auto` skipped the modes that come first.
    pub why: Option<String>,
    /// The same reason as a notice, if something on the host needs attention.
    pub notices: Vec<String>,
}

/// Returns the requested mode, or the first one that works on this host.
pub(super) fn find(mode: GpuMode, root: &Path) -> Result<Found, Reason> {
    let hook = || toolkit::hook(root).map(|hook| Mode::Hook(Box::new(hook)));
    let found = |mode| Found { mode, why: None, notices: Vec::new() };
    match mode {
        GpuMode::Hook => hook().map(found).map_err(|missing| NvidiaError::NoHook(missing).into()),
        GpuMode::Cdi => match registry(root)? {
            Ok(registry) => Ok(found(Mode::Cdi(registry))),
            Err(source) => {
                let generate = cdi::registry(root).generate(cdi::KIND).unwrap_or_default();
                Err(NvidiaError::NoCdi { generate, source }.into())
            }
        },
        GpuMode::Native => Ok(found(Mode::Native)),
        GpuMode::Auto => Ok(first(hook(), || registry(root))),
    }
}

/// Reads the host's CDI files for NVIDIA's devices. `Ok(Err(…))`: no file describes such a device, perhaps because one
/// cannot be read.
fn registry(root: &Path) -> Result<Result<Registry, Option<CdiError>>, CdiError> {
    let registry = cdi::registry(root);
    registry.check(cdi::KIND)?;
    Ok(match registry.devices(cdi::KIND).is_empty() {
        false => Ok(registry),
        true => Err(registry.broken().first().cloned()),
    })
}

fn first(
    hook: Result<Mode, toolkit::Missing>,
    registry: impl FnOnce() -> Result<Result<Registry, Option<CdiError>>, CdiError>,
) -> Found {
    let missing = match hook {
        Ok(mode) => return Found { mode, why: None, notices: Vec::new() },
        Err(missing) => missing,
    };
    let mut problems = Vec::new();
    if !missing.is_expected() {
        problems.push(missing.to_string());
    }
    let (mode, why) = match registry() {
        Ok(Ok(registry)) => (Mode::Cdi(registry), None),
        Ok(Err(broken)) => {
            problems.extend(broken.map(|error| error.to_string()));
            if problems.is_empty() && matches!(missing, toolkit::Missing::Mode { .. }) {
                // The administrator chose CDI, but no CDI file describes a GPU.
                problems.push(missing.to_string());
            }
            (Mode::Native, Some(problems.first().cloned().unwrap_or_else(|| missing.to_string())))
        }
        Err(stale) => {
            problems.push(stale.to_string());
            (Mode::Native, Some(stale.to_string()))
        }
    };
    let why = why.or_else(|| problems.first().cloned());
    let notices = problems.iter().map(|problem| format!("the GPUs are injected by {}: {problem}", mode.by())).collect();
    Found { mode, why, notices }
}
