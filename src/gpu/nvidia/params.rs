//! `gpurun gpu-params`: masks /proc/driver/nvidia/params in a container. It runs as a createContainer hook.
//!
//! The file tells the driver's libraries whether they may create and change device nodes. In a container they must not.
//! The OCI spec cannot express the mount, because runtimes refuse mounts below /proc. Usually the container's first
//! process makes it ([`LINE`]). If libcontainer runs hooks or mounts /proc itself, this hook makes it in the
//! container's mount namespace, after /proc is mounted and before pivot_root. The image cannot interfere: the path is
//! resolved inside the container's root, and /proc there is the kernel's.

use std::io::Read;
use std::path::{Path, PathBuf};

use nix::mount::{MsFlags, mount};

use crate::hook::{Chosen, Command};
use crate::report::Report;
use crate::rootfs;
use crate::spec::{SeenLine, Stage};
use crate::sys::mount::fd_path;

/// The subcommand that masks the file. It runs as a createContainer hook.
const SUBCOMMAND: &str = "gpu-params";
/// The driver's parameters, of which a container gets a changed copy.
const PARAMS: &str = "/proc/driver/nvidia/params";

/// The changed line.
pub(super) const LINE: SeenLine = SeenLine { file: PARAMS, key: "ModifyDeviceFiles:", value: "0", hook: SUBCOMMAND };

/// The subcommand. It reads the container's state from standard input.
pub(crate) fn main() -> Result<(), Report> {
    let mut state = Vec::new();
    let failed = |what: &str, error: &dyn std::fmt::Display| Report::new(format!("cannot {what}")).with_cause(error);
    std::io::stdin()
        .lock()
        .take(4 << 20)
        .read_to_end(&mut state)
        .map_err(|error| failed("read the container's state", &error))?;
    #[derive(serde::Deserialize)]
    struct State {
        bundle: PathBuf,
    }
    let State { bundle } =
        serde_json::from_slice(&state).map_err(|error| failed("parse the container's state", &error))?;
    let config = std::fs::read(bundle.join("config.json"))
        .map_err(|error| failed("read `config.json` of the bundle", &error))?;
    let config: serde_json::Value =
        serde_json::from_slice(&config).map_err(|error| failed("parse `config.json` of the bundle", &error))?;
    let root = config["root"]["path"].as_str().ok_or_else(|| {
        Report::new("cannot find the container's root: `config.json` of the bundle has no `root.path`")
    })?;
    mask(Path::new(root), &bundle)
}

/// Masks the file in the container's root with a changed copy in `dir`. Does nothing if no driver is loaded.
fn mask(root: &Path, dir: &Path) -> Result<(), Report> {
    let root = rootfs::open_root(root)?;
    let path = Path::new(PARAMS);
    let Some(text) = rootfs::read_file_in_root(&root, path, 64 << 10)? else { return Ok(()) };
    let Some(file) = rootfs::resolve_in_root(&root, path)? else { return Ok(()) };
    let copy = dir.join("nvidia-params");
    let failed = |error: &dyn std::fmt::Display| Report::new(format!("cannot mask `{PARAMS}`")).with_cause(error);
    std::fs::write(&copy, LINE.apply(&String::from_utf8_lossy(&text))).map_err(|error| failed(&error))?;
    let file = fd_path(&file);
    let none = None::<&Path>;
    mount(Some(&copy), &file, none, MsFlags::MS_BIND, none).map_err(|errno| failed(&errno))?;
    // The descriptor refers to the file below the mount. Resolve the path again to reach the new mount.
    let above = rootfs::resolve_in_root(&root, path)?.ok_or_else(|| failed(&"it has disappeared"))?;
    let flags = MsFlags::MS_BIND | MsFlags::MS_REMOUNT | MsFlags::MS_RDONLY | MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
    mount(none, &fd_path(&above), none, flags, none).map_err(|errno| failed(&errno))
}

/// The hook that masks the file.
pub(super) fn hook() -> Chosen {
    Chosen {
        name: SUBCOMMAND.into(),
        stage: Stage::CreateContainer,
        command: Command {
            // The hook runs in the container's namespaces, but before pivot_root. /proc/self/exe is the hook's shim,
            // which is gpurun.
            path: "/proc/self/exe".into(),
            args: vec!["gpurun".into(), SUBCOMMAND.into()],
            env: Vec::new(),
            timeout: Some(30),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rootfs::testing::{in_own_mounts, root_or_skip};

    #[test]
    fn the_container_reads_a_changed_copy() {
        if !root_or_skip("masking a file") {
            return;
        }
        let base = tempfile::tempdir().unwrap();
        let (root, dir) = (base.path().join("root"), base.path().join("bundle"));
        std::fs::create_dir_all(root.join("proc/driver/nvidia")).unwrap();
        std::fs::create_dir(&dir).unwrap();
        mask(&root, &dir).expect("no driver, nothing to do");
        assert!(!dir.join("nvidia-params").exists());
        let params = root.join("proc/driver/nvidia/params");
        std::fs::write(&params, "Mobile: 0\nModifyDeviceFiles: 1\n").unwrap();
        let path = params.clone();
        in_own_mounts(move || {
            mask(&root, &dir).unwrap();
            assert_eq!(std::fs::read_to_string(&path).unwrap(), "Mobile: 0\nModifyDeviceFiles: 0\n");
            let refused = std::fs::write(&path, "x").unwrap_err();
            assert_eq!(refused.kind(), std::io::ErrorKind::ReadOnlyFilesystem);
        });
        assert_eq!(std::fs::read_to_string(&params).unwrap(), "Mobile: 0\nModifyDeviceFiles: 1\n");
    }
}
