//! A question to a vendor's library, in a process of its own (gpurun's own executable). The library of a faulty GPU may
//! hang or crash, and it maps megabytes of memory and opens devices that a supervisor must not keep.
//!
//! A launch may begin a query before it needs the answer ([`Early`]).

use std::cell::RefCell;
use std::io::{self, Read};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

/// A query that a launch began early. The first one who needs the answer takes it.
#[derive(Debug, Default)]
pub(crate) struct Early(RefCell<Option<Query>>);

impl Early {
    pub(super) fn new(query: Option<Query>) -> Self {
        Self(RefCell::new(query))
    }

    pub(super) fn take(&self) -> Option<Query> {
        self.0.take()
    }
}

/// A running query. It is ended when it is dropped.
#[derive(Debug)]
pub(crate) struct Query {
    /// The library that it loads.
    pub(super) library: PathBuf,
    child: Option<Child>,
    began: Instant,
}

/// The outcome of a query.
pub(super) enum Answer {
    Text(Vec<u8>, ExitStatus),
    /// No answer in time.
    Silent,
}

impl Query {
    pub(super) fn begin(subcommand: &str, library: &Path) -> io::Result<Self> {
        let mut command = Command::new("/proc/self/exe");
        command.arg(subcommand).arg(library).env_clear().current_dir("/");
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null());
        Ok(Self { library: library.to_path_buf(), child: Some(command.spawn()?), began: Instant::now() })
    }

    /// Waits for the answer until `patience` after the beginning, and calls `notice` after `quiet`.
    pub(super) fn finish(mut self, quiet: Duration, patience: Duration, notice: impl FnOnce()) -> io::Result<Answer> {
        let mut text = Vec::new();
        let Some(child) = &mut self.child else { return Ok(Answer::Silent) };
        let in_time = child.stdout.take().is_none_or(|mut pipe| {
            read_until(&mut pipe, &mut text, self.began + quiet.min(patience)) || {
                notice();
                read_until(&mut pipe, &mut text, self.began + patience)
            }
        });
        if !in_time {
            return Ok(Answer::Silent);
        }
        let status = child.wait()?;
        self.child = None;
        Ok(Answer::Text(text, status))
    }
}

impl Drop for Query {
    fn drop(&mut self) {
        if let Some(child) = &mut self.child {
            // No signal ends a process that hangs in the driver. If the kill has no effect, leave the process behind.
            let _ = child.kill();
            let _ = child.try_wait();
        }
    }
}

/// Reads to the end of the pipe. Returns false if the deadline passes first.
pub(super) fn read_until(pipe: &mut ChildStdout, text: &mut Vec<u8>, deadline: Instant) -> bool {
    let mut buffer = [0; 16 << 10];
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let mut fds = [PollFd::new(pipe.as_fd(), PollFlags::POLLIN)];
        match poll(&mut fds, PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX)) {
            Ok(0) => return false,
            Err(nix::Error::EINTR) => continue,
            // The pipe is readable, or its other end is closed. Either way, a read does not block.
            _ => {}
        }
        match pipe.read(&mut buffer) {
            Ok(0) => return true,
            Ok(count) => text.extend_from_slice(&buffer[..count]),
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            Err(_) => return true,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_that_hangs_is_not_waited_for() {
        let script = "echo some; exec sleep 1000";
        let mut child = Command::new("sh").args(["-c", script]).stdout(Stdio::piped()).spawn().unwrap();
        let mut text = Vec::new();
        let began = Instant::now();
        let in_time = read_until(&mut child.stdout.take().unwrap(), &mut text, began + Duration::from_millis(300));
        assert!(!in_time && began.elapsed() < Duration::from_secs(30));
        assert_eq!(text, b"some\n");
        child.kill().unwrap();
        child.wait().unwrap();
    }
}
