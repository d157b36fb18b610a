//! Checks that the container's first process can open the devices that it must have, and no others.
//!
//! The check runs in that process, after all hooks and before its program, with its root, cgroup, user and
//! capabilities. access(2) checks the node's permissions and the device filter as an open would (the kernel's
//! `inode_permission`), without calling the driver. It does not check for a mount with `nodev`, so statvfs(3) does.

use std::fs::OpenOptions;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use nix::fcntl::AtFlags;
use nix::sys::statvfs::{FsFlags, statvfs};
use nix::unistd::{AccessFlags, access, faccessat};
use serde::{Deserialize, Serialize};

/// The devices to check.
#[derive(Debug, Default)]
pub struct DeviceCheck {
    /// Nodes that must all be accessible.
    pub nodes: Vec<NodeCheck>,
    /// Nodes of which at least one must be accessible, unless the list is empty.
    pub any_of: Vec<NodeCheck>,
    /// A directory outside the container with a node for each device that must not be accessible, and the names of the
    /// nodes. Their permissions allow everyone, so that only the device filter can refuse access.
    pub others: Option<(OwnedFd, Vec<String>)>,
    /// Character majors for which the running kernel has a driver. Only for these must an open succeed. For any other
    /// major, the kernel returns ENXIO if the filter allows the device.
    pub driven: Vec<u32>,
}

/// One character device.
#[derive(Debug, Clone)]
pub struct NodeCheck {
    pub path: String,
    /// The major and minor numbers that it must have, if they are known.
    pub number: Option<(u32, u32)>,
    /// Whether to open the node as well, which calls its driver.
    pub open: bool,
    /// Whether read access is enough. Otherwise write access is required, too.
    pub read_only: bool,
}

/// The first fault that was found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum DeviceFault {
    Missing {
        path: String,
    },
    Other {
        path: String,
        number: (u32, u32),
    },
    Denied {
        path: String,
    },
    Permissions {
        path: String,
        mode: u32,
        owner: (u32, u32),
    },
    NoDevices {
        path: String,
    },
    Driver {
        path: String,
        errno: i32,
    },
    /// One of [`DeviceCheck::others`] is accessible, identified by its name.
    Reachable {
        name: String,
    },
}

impl DeviceCheck {
    pub(super) fn run(&self) -> Result<(), DeviceFault> {
        self.nodes.iter().try_for_each(|node| self.node(node))?;
        let mut any_of = self.any_of.iter().map(|node| self.node(node));
        if let Some(first @ Err(_)) = any_of.next()
            && !any_of.any(|found| found.is_ok())
        {
            return first;
        }
        let Some((dir, names)) = &self.others else { return Ok(()) };
        for name in names {
            for flags in [AccessFlags::R_OK, AccessFlags::W_OK] {
                // The filter refuses with EPERM, and nothing else can refuse access to these nodes.
                if faccessat(dir, Path::new(name), flags, AtFlags::empty()).is_ok() {
                    return Err(DeviceFault::Reachable { name: name.clone() });
                }
            }
        }
        Ok(())
    }

    fn node(&self, node: &NodeCheck) -> Result<(), DeviceFault> {
        let path = || node.path.clone();
        let node_path = PathBuf::from(&node.path);
        let Some(about) = std::fs::metadata(&node_path).ok().filter(|about| about.file_type().is_char_device()) else {
            return Err(DeviceFault::Missing { path: path() });
        };
        let rdev = about.rdev();
        let number = (nix::sys::stat::major(rdev) as u32, nix::sys::stat::minor(rdev) as u32);
        if node.number.is_some_and(|wanted| wanted != number) {
            return Err(DeviceFault::Other { path: path(), number });
        }
        let denied = |errno: i32| match errno {
            libc::EPERM => DeviceFault::Denied { path: path() },
            libc::EACCES => DeviceFault::Permissions {
                path: path(),
                mode: about.permissions().mode() & 0o7777,
                owner: (about.uid(), about.gid()),
            },
            errno => DeviceFault::Driver { path: path(), errno },
        };
        let wanted = if node.read_only { AccessFlags::R_OK } else { AccessFlags::R_OK | AccessFlags::W_OK };
        access(&node_path, wanted).map_err(|errno| denied(errno as i32))?;
        if statvfs(&node_path).is_ok_and(|about| about.flags().contains(FsFlags::ST_NODEV)) {
            return Err(DeviceFault::NoDevices { path: path() });
        }
        let has_driver = self.driven.contains(&number.0);
        if has_driver && !node.open {
            return Ok(());
        }
        match open(&node_path, node.read_only) {
            Ok(()) => Ok(()),
            Err(libc::ENXIO) if !has_driver => Ok(()),
            Err(errno) => Err(denied(errno)),
        }
    }
}

fn open(path: &Path, read_only: bool) -> Result<(), i32> {
    let flags = libc::O_NONBLOCK | libc::O_NOCTTY;
    let opened: io::Result<_> = OpenOptions::new().read(true).write(!read_only).custom_flags(flags).open(path);
    opened.map(drop).map_err(|error| error.raw_os_error().unwrap_or(libc::EIO))
}
