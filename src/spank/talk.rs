//! The two sockets between the plugin and gpurun. Each message is one packet, and begins with a letter.
//!
//! ```text
//! from the plugin   P<pid> a task    X the last task has ended
//! to the plugin     N<text> a message for the user    R done    F failed
//! to each task      T, with the descriptors of the mount namespace, the seccomp filter and the settings
//! ```

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};

use nix::sys::socket::{ControlMessage, MsgFlags, recv, send, sendmsg};

use crate::report::Report;
use crate::sys::process;

/// The descriptors that the plugin passes.
const CONTROL: i32 = 3;
const TASKS: i32 = 4;
/// The longest part of a message. The plugin reads up to 64 KiB.
const LONGEST: usize = 60_000;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum FromPlugin {
    Task(i32),
    End,
}

#[derive(Debug)]
pub(super) struct Sockets {
    control: OwnedFd,
    tasks: OwnedFd,
}

impl Sockets {
    pub(super) fn inherited() -> Result<Self, Report> {
        let take = |fd| {
            process::take_inherited_fd(fd)
                .ok_or_else(|| Report::new("only the Slurm plugin can start `gpurun step-enter`"))
        };
        Ok(Self { control: take(CONTROL)?, tasks: take(TASKS)? })
    }

    /// Waits for a message. Returns `None` if slurmstepd has closed the socket, or was killed.
    pub(super) fn receive(&self) -> Option<FromPlugin> {
        let mut bytes = [0_u8; 64];
        loop {
            match recv(self.control.as_raw_fd(), &mut bytes, MsgFlags::empty()) {
                Err(nix::Error::EINTR) => {}
                Err(_) | Ok(0) => return None,
                Ok(size) => {
                    let text = std::str::from_utf8(&bytes[..size]).unwrap_or_default();
                    if text == "X" {
                        return Some(FromPlugin::End);
                    }
                    if let Some(pid) = text.strip_prefix('P').and_then(|pid| pid.parse().ok()).filter(|pid| *pid > 1) {
                        return Some(FromPlugin::Task(pid));
                    }
                }
            }
        }
    }

    /// Shows text to the user.
    pub(super) fn say(&self, text: &str) {
        for part in text.as_bytes().chunks(LONGEST) {
            self.send(&[b"N", part].concat());
        }
    }

    pub(super) fn ready(&self) {
        self.send(b"R");
    }

    /// Reports an error, and lets the tasks fail.
    pub(super) fn fail(&self, report: &Report, tasks: usize) {
        self.say(&format!("gpurun: {report}"));
        for _ in 0..tasks {
            let _ = send(self.tasks.as_raw_fd(), b"F", MsgFlags::MSG_NOSIGNAL);
        }
        self.send(b"F");
    }

    /// Sends each task what it needs.
    pub(super) fn send_tasks(
        &self,
        tasks: usize,
        namespace: &OwnedFd,
        filter: &[u8],
        settings: &[u8],
    ) -> Result<(), Report> {
        let run = || -> io::Result<()> {
            let filter = process::memory_file(c"seccomp", filter)?;
            let settings = process::memory_file(c"settings", settings)?;
            let fds = [namespace.as_raw_fd(), filter.as_raw_fd(), settings.as_raw_fd()];
            for _ in 0..tasks {
                let bytes = [io::IoSlice::new(b"T")];
                let control = [ControlMessage::ScmRights(&fds)];
                sendmsg::<()>(self.tasks.as_raw_fd(), &bytes, &control, MsgFlags::MSG_NOSIGNAL, None)?;
            }
            Ok(())
        };
        run().map_err(|error| Report::new("cannot send the container to the tasks").with_cause(error))
    }

    fn send(&self, bytes: &[u8]) {
        // The plugin may be gone. The next wait notices that.
        let _ = send(self.control.as_raw_fd(), bytes, MsgFlags::MSG_NOSIGNAL);
    }
}
