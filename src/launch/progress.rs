//! What a launch tells its caller while it runs.

use crate::record::LimitRow;

/// An event of the launch that the user may want to see.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Progress {
    Notice(String),
    /// What the launch does next, if that may take long.
    Step(&'static str),
    /// Shown only when the user asks for more output.
    Detail(String),
    Limits(Vec<LimitRow>),
}

/// Receives the events of a launch.
pub(super) type Tell<'a> = &'a mut dyn FnMut(Progress);

/// Kills this process here if a test requests it. `GPURUN_KILL_AT=STEP` proves that the next command cleans up
/// everything that a SIGKILL between two steps leaves behind. Release builds ignore the variable.
pub(crate) fn step(name: &str) {
    tracing::debug!("launch: {name}");
    #[cfg(debug_assertions)]
    if std::env::var_os("GPURUN_KILL_AT").is_some_and(|at| at == name) {
        let _ = nix::sys::signal::raise(nix::sys::signal::Signal::SIGKILL);
    }
}
