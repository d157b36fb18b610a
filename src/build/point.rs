//! Points at which a test can end the process.

/// A point at which a test can kill or stop the build: `GPURUN_KILL_AT=POINT` or `GPURUN_STOP_AT=POINT`. Release builds
/// ignore these variables.
pub(super) fn point(name: &str) {
    tracing::debug!("build: {name}");
    #[cfg(debug_assertions)]
    for (variable, signal) in
        [("GPURUN_KILL_AT", nix::sys::signal::Signal::SIGKILL), ("GPURUN_STOP_AT", nix::sys::signal::Signal::SIGSTOP)]
    {
        if std::env::var_os(variable).is_some_and(|at| at == name) {
            let _ = nix::sys::signal::raise(signal);
        }
    }
}
