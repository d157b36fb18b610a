//! The container to create.

use std::os::fd::OwnedFd;
use std::path::Path;

use super::devices::DeviceCheck;
use crate::spec::{Process, SeenLine};

/// The container's standard streams.
#[derive(Debug)]
pub enum Stdio {
    /// A pty in the container. The size is rows and columns.
    Pty {
        size: Option<(u16, u16)>,
    },
    Fds {
        stdin: OwnedFd,
        stdout: OwnedFd,
        stderr: OwnedFd,
    },
}

#[derive(Debug)]
pub struct CreateRequest<'a> {
    pub id: &'a str,
    /// The directory with `config.json`, which hooks read. libcontainer gets a copy with a few changed fields (see
    /// above).
    pub bundle: &'a Path,
    /// A directory for libcontainer's own state.
    pub state_root: &'a Path,
    pub stdio: Stdio,
    /// PID 1, as `config.json` describes it.
    pub process: &'a Process,
    /// The program that must exist and be executable. If pid 1 is gpurun's init, this is the program that the init
    /// starts.
    pub program: &'a str,
    /// The descriptors of this process that the container's process inherits, with the same numbers.
    pub passed_fds: &'a [i32],
    /// Lines that the container sees with another value. The spec has a hook for each of them.
    pub lines: &'a [SeenLine],
    /// The devices that must be accessible in the container, and those that must not be.
    pub devices: Option<std::rc::Rc<DeviceCheck>>,
}
