//! Hearing of OOM kills: v2's `memory.events`, v1's `memory.oom_control` with an eventfd.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Seek, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::path::Path;

use nix::poll::PollFlags;
use nix::sys::eventfd::{EfdFlags, EventFd};

use super::Cgroup;

/// A descriptor that becomes ready when the kernel killed (or came close to killing) for memory.
#[derive(Debug)]
pub enum OomWatch {
    V1(EventFd),
    V2(File),
}

impl Cgroup {
    /// Watches for OOM kills, where the memory controller is there.
    #[must_use]
    pub fn oom_watch(&self) -> Option<OomWatch> {
        let memory = self.dirs.get("memory")?;
        let watch = if self.is_v2 { OomWatch::v2(memory) } else { OomWatch::v1(memory) };
        watch.inspect_err(|error| tracing::warn!("cannot watch for OOM kills in {}: {error}", memory.display())).ok()
    }

    /// How many processes the kernel has killed here for memory.
    #[must_use]
    pub fn oom_kills(&self) -> Option<u64> {
        let memory = self.dirs.get("memory")?;
        keyed(&memory.join(if self.is_v2 { "memory.events" } else { "memory.oom_control" }), "oom_kill")
    }
}

impl OomWatch {
    pub(super) fn v1(memory: &Path) -> io::Result<Self> {
        let event = EventFd::from_value_and_flags(0, EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)?;
        let control = File::open(memory.join("memory.oom_control"))?;
        let line = format!("{} {}", event.as_fd().as_raw_fd(), control.as_raw_fd());
        OpenOptions::new().write(true).open(memory.join("cgroup.event_control"))?.write_all(line.as_bytes())?;
        Ok(Self::V1(event))
    }

    pub(super) fn v2(cgroup: &Path) -> io::Result<Self> {
        let mut file = File::open(cgroup.join("memory.events"))?;
        // kernfs answers poll only for what changed since the last read.
        read_again(&mut file)?;
        Ok(Self::V2(file))
    }

    #[must_use]
    pub fn fd(&self) -> BorrowedFd<'_> {
        match self {
            Self::V1(event) => event.as_fd(),
            Self::V2(file) => file.as_fd(),
        }
    }

    #[must_use]
    pub fn poll_flags(&self) -> PollFlags {
        match self {
            Self::V1(_) => PollFlags::POLLIN,
            Self::V2(_) => PollFlags::POLLPRI,
        }
    }

    /// Makes it ready for the next event. `false`: there will be none (the cgroup is gone).
    pub fn clear(&mut self) -> bool {
        match self {
            Self::V1(event) => event.read().is_ok(),
            Self::V2(file) => read_again(file).is_ok(),
        }
    }
}

fn read_again(file: &mut File) -> io::Result<()> {
    file.rewind()?;
    io::copy(&mut file.take(4096), &mut io::sink()).map(drop)
}

/// The number behind a key of a flat-keyed file (`oom_kill 3`).
pub(super) fn keyed(path: &Path, key: &str) -> Option<u64> {
    let text = fs::read_to_string(path).ok()?;
    text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(' ')?.trim().parse().ok())
}
