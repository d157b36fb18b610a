//! gpurun's own check of a GPU injection: what pid 1 verifies before it runs its program, and the error for a failed
//! check.
//!
//! ```text
//! <run dir>/gpu-nodes/N    a node of each GPU that was not selected, during a create
//! ```

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::rc::Rc;

use nix::sys::stat::{Mode, SFlag, makedev, mknod};

use super::progress::{Progress, Tell};
use crate::gpu::opens::{self, Finding, Node, Opens, User};
use crate::hook::{self, HookReport, Outcome};
use crate::record::Entry;
use crate::report::Report;
use crate::rootfs;
use crate::runtime::{DeviceCheck, DeviceFault, NodeCheck};

/// The size limit for reading an image's /etc/group. Real files are smaller.
const MAX_GROUPS: usize = 1 << 20;
/// How many of the last lines of a hook's output an error quotes.
const LINES: usize = 5;

/// The GPU check of one container.
#[derive(Debug)]
pub(super) struct Opening {
    opens: Opens,
    nodes: PathBuf,
    /// The directory of the hooks' reports.
    reports: PathBuf,
    rootfs: PathBuf,
    uid: u32,
}

impl Opening {
    pub(super) fn new(entry: &Entry, opens: Opens, rootfs: &Path, uid: u32) -> Self {
        let (nodes, reports) = (entry.run_dir.join("gpu-nodes"), entry.run_dir.join("hooks"));
        Self { opens, nodes, reports, rootfs: rootfs.to_path_buf(), uid }
    }

    /// Builds the check for pid 1. [`Self::clean`] removes the nodes that it creates.
    pub(super) fn check(&self) -> Result<Rc<DeviceCheck>, Report> {
        let checks = |nodes: &[Node]| -> Vec<NodeCheck> {
            let one = |node: &Node| NodeCheck {
                path: node.path.clone(),
                number: node.number,
                open: node.awake,
                read_only: node.read_only,
            };
            nodes.iter().map(one).collect()
        };
        let others = match self.opens.others.is_empty() {
            true => None,
            false => Some(self.others().map_err(|error| {
                Report::new(format!("cannot create the device nodes in `{}`", self.nodes.display())).with_cause(error)
            })?),
        };
        Ok(Rc::new(DeviceCheck {
            nodes: checks(&self.opens.nodes),
            any_of: checks(&self.opens.any_of),
            others,
            driven: opens::driven_majors(),
        }))
    }

    /// Creates a node of every GPU that was not selected. Its mode lets everyone open it, so only the container's
    /// device filter can refuse access.
    fn others(&self) -> std::io::Result<(std::os::fd::OwnedFd, Vec<String>)> {
        self.clean();
        std::fs::create_dir(&self.nodes)?;
        std::fs::set_permissions(&self.nodes, std::fs::Permissions::from_mode(0o711))?;
        let mut names = Vec::new();
        for (number, other) in self.opens.others.iter().enumerate() {
            let Some((major, minor)) = other.number else { continue };
            let path = self.nodes.join(number.to_string());
            mknod(&path, SFlag::S_IFCHR, Mode::empty(), makedev(major.into(), minor.into()))?;
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o666))?;
            names.push(number.to_string());
        }
        Ok((rootfs::open_root(&self.nodes).map_err(std::io::Error::other)?, names))
    }

    pub(super) fn clean(&self) {
        // A remaining node is removed later with the container's directory in /run.
        let _ = std::fs::remove_dir_all(&self.nodes);
    }

    /// The error for pid 1's finding, with the hooks' own messages.
    pub(super) fn failed(&self, fault: &DeviceFault) -> Report {
        let finding = match fault {
            DeviceFault::Missing { path } => Finding::Missing { path },
            DeviceFault::Other { path, number } => Finding::Other { path, number: *number },
            DeviceFault::Denied { path } => Finding::Denied { path },
            DeviceFault::Permissions { path, mode, owner } => Finding::Permissions { path, mode: *mode, owner: *owner },
            DeviceFault::NoDevices { path } => Finding::NoDevices { path },
            DeviceFault::Driver { path, errno } => Finding::Driver { path, errno: *errno },
            DeviceFault::Reachable { name } => {
                let other = name.parse().ok().and_then(|number: usize| self.opens.others.get(number));
                Finding::Reachable { path: other.map_or("", |other| &other.path) }
            }
        };
        let group = match &finding {
            Finding::Permissions { owner, .. } => self.group(owner.1),
            _ => None,
        };
        let user = User { uid: self.uid, group: group.as_deref() };
        let (message, hint) = opens::explain(&self.opens, &finding, user);
        let mut report = Report::new(message).with_hint(hint);
        for said in hook::reports(&self.reports) {
            let lines: Vec<&str> = said.stderr.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
            for line in &lines[lines.len().saturating_sub(LINES)..] {
                report = report.with_cause(format!("the hook `{}` wrote: {}", said.hook, hook::shorten(line)));
            }
        }
        report
    }

    /// The name of a group in the container.
    fn group(&self, gid: u32) -> Option<String> {
        let root = rootfs::open_root(&self.rootfs).ok()?;
        let table = rootfs::read_file_in_root(&root, Path::new("/etc/group"), MAX_GROUPS).ok()??;
        let wanted = gid.to_string();
        String::from_utf8_lossy(&table).lines().find_map(|line| {
            let mut fields = line.split(':');
            let name = fields.next()?;
            (fields.nth(1)? == wanted && name.chars().all(|c| c.is_ascii_alphanumeric() || "-_".contains(c)))
                .then(|| name.to_owned())
        })
    }
}

/// Reports the output of successful hooks: warnings as notices, and the rest as details.
pub(super) fn tell_warnings(entry: &Entry, tell: Tell<'_>) {
    let all: Vec<HookReport> = hook::reports(&entry.run_dir.join("hooks"));
    for report in all.iter().filter(|report| report.outcome == Outcome::Exit(0)) {
        for line in report.stderr.lines().map(str::trim).filter(|line| !line.is_empty()) {
            let text = format!("the hook `{}` wrote: {}", report.hook, hook::shorten(line));
            let lower = line.to_ascii_lowercase();
            match ["warn", "ignoring", "error"].iter().any(|word| lower.contains(word)) {
                true => tell(Progress::Notice(text)),
                false => tell(Progress::Detail(text)),
            }
        }
    }
}
