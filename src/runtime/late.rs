//! What the container's first process does itself, when libcontainer has changed its root directory.
//!
//! libcontainer takes about seventy calls to mount `/proc`, and as many to drop capabilities. [`take`] removes these
//! parts from its spec. The first process still has all capabilities when libcontainer calls the executor, which then
//! does these steps ([`Late::apply`]). No program of the container has run by then, and `/proc` belongs to the
//! namespaces of the process.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::rc::Rc;

use serde_json::Value;

use super::failure::{Failure, Step, failed};
use super::masks;
use crate::rootfs::{self, MountpointKind};
use crate::spec::{Process, Rlimit, SeenLine};
use crate::sys::mount::{self, Attr, FsContext};
use crate::sys::{caps, rlimit};

/// CAP_SYS_ADMIN, which loading a filter needs without no-new-privileges.
const SYS_ADMIN: u64 = 1 << 21;

/// The steps that libcontainer leaves out.
#[derive(Debug, Clone)]
pub(super) struct Late {
    /// The part of the spec with the masked and read-only paths.
    paths: Value,
    has_proc: bool,
    rlimits: Vec<Rlimit>,
    bounding: u64,
    held: u64,
    /// Files of `/proc`, and mounts that replace them.
    files: Vec<(&'static str, Rc<OwnedFd>)>,
}

/// Removes from a spec what is done late. `dir` is a directory for changed copies of files.
pub(super) fn take(spec: &mut Value, process: &Process, lines: &[SeenLine], dir: &Path) -> io::Result<Late> {
    let has_proc = take_proc(spec);
    let mut paths = Value::Null;
    for key in ["maskedPaths", "readonlyPaths"] {
        paths["linux"][key] = spec["linux"][key].take();
    }
    if let Some(process) = spec["process"].as_object_mut() {
        process.remove("capabilities");
        process.remove("rlimits");
    }
    let filter = if !process.no_new_privileges && process.seccomp.is_some() { SYS_ADMIN } else { 0 };
    let files = lines.iter().enumerate().filter_map(|(number, line)| {
        changed(line, &dir.join(format!("line-{number}"))).map(|mount| Some((line.file, Rc::new(mount?)))).transpose()
    });
    Ok(Late {
        files: files.collect::<io::Result<_>>()?,
        paths,
        has_proc,
        rlimits: process.rlimits.clone(),
        bounding: process.capabilities.0,
        held: process.held().0 | filter,
    })
}

/// Returns a mount of a copy at `copy` that has this line. `None` if this kernel does not have the file.
fn changed(line: &SeenLine, copy: &Path) -> io::Result<Option<OwnedFd>> {
    let text = match crate::sys::file::read(line.file) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        text => text?,
    };
    std::fs::write(copy, line.apply(&String::from_utf8_lossy(&text)))?;
    let file = mount::clone(copy, false)?;
    mount::set(&file, Attr::RDONLY.and(Attr::NOSUID).and(Attr::NODEV), false)?;
    Ok(Some(file))
}

/// Removes the mount of `/proc`, if it is the usual one.
fn take_proc(spec: &mut Value) -> bool {
    let Some(mounts) = spec["mounts"].as_array_mut() else { return false };
    let is_usual = |mount: &Value| {
        let options = mount["options"].as_array().into_iter().flatten().filter_map(Value::as_str);
        mount["destination"] == "/proc" && mount["type"] == "proc" && options.eq(["nosuid", "noexec", "nodev"])
    };
    let is_below = |mount: &Value| {
        let destination = Path::new(mount["destination"].as_str().unwrap_or_default());
        destination.starts_with("/proc") && destination != Path::new("/proc")
    };
    if mounts.iter().any(is_below) {
        return false;
    }
    let before = mounts.len();
    mounts.retain(|mount| !is_usual(mount));
    mounts.len() < before
}

impl Late {
    /// Does the steps, in the container's root directory.
    pub(super) fn apply(&self) -> Step {
        let root = rootfs::open_root(Path::new("/")).map_err(|_| Failure::step("open the root", libc::EIO))?;
        if self.has_proc {
            // No link is followed.
            let target = rootfs::open_mountpoint_below(&root, Path::new("/proc"), MountpointKind::Directory)
                .map_err(|_| Failure::step("find the directory `/proc`", libc::ENOTDIR))?;
            let attr = Attr::NOSUID.and(Attr::NODEV).and(Attr::NOEXEC);
            let mounted = FsContext::open(c"proc").and_then(|proc| {
                let made = proc.string(c"source", b"proc").and_then(|()| proc.mount(attr));
                mount::attach(made.map_err(|error| error.source_errno)?.as_fd(), target.as_fd())
            });
            mounted.map_err(failed("mount `/proc`"))?;
        }
        for (path, file) in &self.files {
            let step = format!("replace `{path}`");
            let target = rootfs::resolve_in_root(&root, Path::new(path))
                .ok()
                .flatten()
                .ok_or_else(|| Failure::step(step.clone(), libc::ENOENT))?;
            mount::attach(file.as_fd(), target.as_fd()).map_err(failed(&step))?;
        }
        masks::apply(&self.paths, &root)?;
        let before = rlimit::all();
        let is_set = |limit: &Rlimit| before.contains(&(limit.name.clone(), limit.soft, limit.hard));
        for limit in self.rlimits.iter().filter(|limit| !is_set(limit)) {
            let Rlimit { name, soft, hard } = limit;
            rlimit::set(name, *soft, *hard).map_err(failed(&format!("set the limit `{name}`")))?;
        }
        let step = failed("drop capabilities");
        caps::bound(self.bounding).map_err(&step)?;
        caps::set(self.held).map_err(&step)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn the_usual_proc_is_taken() {
        let proc =
            |options: &[&str]| json!({ "destination": "/proc", "type": "proc", "source": "proc", "options": options });
        let usual = proc(&["nosuid", "noexec", "nodev"]);
        let below = json!({ "destination": "/proc/x", "type": "bind", "source": "/x", "options": [] });
        for (mounts, taken, left) in [
            (json!([usual]), true, 0),
            (json!([usual, below]), false, 2),
            (json!([proc(&["nosuid"])]), false, 1),
            (json!([]), false, 0),
        ] {
            let mut spec = json!({ "mounts": mounts });
            assert_eq!(take_proc(&mut spec), taken, "{mounts}");
            assert_eq!(spec["mounts"].as_array().unwrap().len(), left, "{mounts}");
        }
    }
}
