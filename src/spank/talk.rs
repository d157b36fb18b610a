//! The two sockets between the plugin and gpurun. Each message is one packet, and begins with a letter.
//!
//! ```text
//! from slurmstepd   P<pid> a task    X the last task has ended
//! to the tasks      N<text> a message for the user, which one of them shows
//! to each task      T, with the descriptors of the mount namespace, the seccomp filter and the settings    F failed
//! to slurmstepd, after X    N<text> a message for the user    R done    F failed
//! ```

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};

use nix::sys::socket::{ControlMessage, MsgFlags, recv, send, sendmsg, sockopt};

use crate::report::Report;
use crate::sys::process;

/// The descriptors that the plugin passes.
const CONTROL: i32 = 3;
const TASKS: i32 = 4;
/// Room for the messages of all tasks.
const SPACE: usize = 16 << 20;
const AT_ONCE: MsgFlags = MsgFlags::MSG_NOSIGNAL.union(MsgFlags::MSG_DONTWAIT);
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
        let sockets = Self { control: take(CONTROL)?, tasks: take(TASKS)? };
        // A message must not wait for tasks, which their user may have stopped.
        nix::sys::socket::setsockopt(&sockets.tasks, sockopt::SndBufForce, &SPACE)
            .map_err(|errno| Report::new("cannot prepare the socket of the tasks").with_cause(errno))?;
        Ok(sockets)
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

    /// Shows text to the user before the program starts.
    pub(super) fn say(&self, text: &str) {
        for part in text.as_bytes().chunks(LONGEST) {
            self.send_task(&[b"N", part].concat());
        }
    }

    /// Shows text to the user after the program has ended.
    pub(super) fn tell(&self, text: &str) {
        for part in text.as_bytes().chunks(LONGEST) {
            self.send(&[b"N", part].concat());
        }
    }

    pub(super) fn ready(&self) {
        self.send(b"R");
    }

    /// Reports an error, and lets the tasks fail.
    pub(super) fn fail_tasks(&self, report: &Report, tasks: usize) {
        self.say(&format!("gpurun: {report}"));
        (0..tasks).for_each(|_| self.send_task(b"F"));
        self.send(b"F");
    }

    /// Reports an error after the program has ended.
    pub(super) fn fail(&self, report: &Report) {
        self.tell(&format!("gpurun: {report}"));
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
                sendmsg::<()>(self.tasks.as_raw_fd(), &bytes, &control, AT_ONCE, None)?;
            }
            Ok(())
        };
        run().map_err(|error| Report::new("cannot send the container to the tasks").with_cause(error))
    }

    fn send_task(&self, bytes: &[u8]) {
        let _ = send(self.tasks.as_raw_fd(), bytes, AT_ONCE);
    }

    fn send(&self, bytes: &[u8]) {
        // The plugin may be gone. The next wait notices that.
        let _ = send(self.control.as_raw_fd(), bytes, MsgFlags::MSG_NOSIGNAL);
    }
}
