//! `gpurun exec-drain` keeps the streams of a command open after its `exec` has ended.
//!
//! A terminal hangs up when its master is closed, and a pipe breaks when its reader exits. This small process holds
//! them open, and reads and discards all output. It ends as soon as no process of the container has any of them open,
//! so it never outlives the container.

use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::process::Stdio;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use crate::sys::{exe, keyring, process};

/// The name of the subcommand.
pub(crate) const EXEC_DRAIN: &str = "exec-drain";

/// Starts the process, which inherits only these descriptors from the caller.
pub(crate) fn spawn_drain(streams: &[OwnedFd]) -> io::Result<()> {
    let mut command = exe::sealed_command()?;
    let fds: Vec<i32> = streams.iter().map(AsRawFd::as_raw_fd).collect();
    command.arg(EXEC_DRAIN).args(fds.iter().map(ToString::to_string)).env_clear().current_dir("/");
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    process::pass_only(&mut command, &fds);
    // The child outlives this process, so it is never waited for.
    command.spawn().map(drop)
}

/// Implements the subcommand. `numbers` are the numbers of the descriptors.
#[must_use]
pub(crate) fn exec_drain_main(numbers: &[i32]) -> u8 {
    // Create a new session, so that signals from the caller's terminal do not reach this process.
    let _ = nix::unistd::setsid();
    let _ = keyring::leave_session();
    let mut streams: Vec<OwnedFd> = numbers.iter().filter_map(|&fd| process::take_inherited_fd(fd)).collect();
    let mut buffer = [0; 16 * 1024];
    while !streams.is_empty() {
        let mut fds: Vec<PollFd<'_>> =
            streams.iter().map(|stream| PollFd::new(stream.as_fd(), PollFlags::POLLIN)).collect();
        match poll(&mut fds, PollTimeout::NONE) {
            Ok(_) | Err(nix::Error::EINTR) => {}
            Err(_) => return 1,
        }
        let ready: Vec<bool> = fds.iter().map(|fd| fd.any().unwrap_or(false)).collect();
        drop(fds);
        let mut ready = ready.into_iter();
        streams.retain(|stream| {
            if !ready.next().unwrap_or(false) {
                return true;
            }
            match nix::unistd::read(stream, &mut buffer) {
                Ok(count) => count > 0,
                // A pty master returns EIO when no process has the terminal open.
                Err(errno) => matches!(errno, nix::Error::EINTR | nix::Error::EAGAIN),
            }
        });
    }
    0
}
