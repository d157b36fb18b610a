//! The process state that a supervisor starts with. A supervisor lives as long as its container, so it must not keep
//! anything incidental from the command that started it: no descriptor (a lock would be held for the container's life),
//! no variable, no key, no signal disposition, and no resource limit. The command chooses the descriptors and the
//! environment (`launch::spawn`); this module sets the rest.

use std::ffi::OsString;

use crate::report::Report;
use crate::sys::{keyring, process, rlimit};

/// Where the supervisor looks for programs (`nft`, `cp`, `ldconfig`), whatever the caller's PATH is.
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
/// The prefix of gpurun's own variables. The supervisor does not inherit the caller's other variables.
const OWN: &str = "GPURUN_";

/// The supervisor's environment.
pub(crate) fn environment() -> impl Iterator<Item = (OsString, OsString)> {
    let own = std::env::vars_os().filter(|(name, _)| name.to_str().is_some_and(|name| name.starts_with(OWN)));
    own.chain([("PATH".into(), PATH.into())])
}

/// Sets the signal dispositions, the resource limits and the session keyring. A supervisor calls this first.
pub(crate) fn choose() -> Result<(), Report> {
    process::default_signals();
    // A write to a container that has closed its input must return an error instead of killing the supervisor.
    process::ignore_signal(libc::SIGPIPE);
    process::ignore_signal(libc::SIGXFSZ);
    rlimit::lift();
    keyring::leave_session().map_err(|error| Report::new("cannot create a session keyring").with_cause(error))
}
