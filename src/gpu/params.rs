//! `gpurun gpu-params`: covers /proc/driver/nvidia/params in a container, as a createContainer hook.
//!
//! The driver's libraries read there whether they may make and change device nodes; in a container they must not. The OCI spec cannot say it:
//! runtimes refuse mounts below /proc. So it is done in the container's mount namespace, after /proc is mounted and before the container is
//! shut in. The image cannot interfere: the path is followed in the container's root alone, and /proc is the kernel's there.

use std::io::Read;
use std::path::{Path, PathBuf};

use nix::mount::{MsFlags, mount};

use super::native::{PARAMS, sealed_params};
use crate::report::Report;
use crate::rootfs;
use crate::sys::mount::fd_path;

/// The subcommand: the container's state on standard input.
pub fn main() -> Result<(), Report> {
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
        serde_json::from_slice(&state).map_err(|error| failed("understand the container's state", &error))?;
    let config = std::fs::read(bundle.join("config.json")).map_err(|error| failed("read the bundle", &error))?;
    let config: serde_json::Value =
        serde_json::from_slice(&config).map_err(|error| failed("understand the bundle", &error))?;
    let root = config["root"]["path"].as_str().ok_or_else(|| Report::new("the bundle names no root"))?;
    cover(Path::new(root), &bundle)
}

/// Covers the file in the container's root with a copy that lies in `dir`; nothing where no driver is loaded.
pub fn cover(root: &Path, dir: &Path) -> Result<(), Report> {
    let root = rootfs::open_root(root)?;
    let path = Path::new(PARAMS);
    let Some(text) = rootfs::read_file_in_root(&root, path, 64 << 10)? else { return Ok(()) };
    let Some(place) = rootfs::resolve_in_root(&root, path)? else { return Ok(()) };
    let copy = dir.join("nvidia-params");
    let failed = |error: &dyn std::fmt::Display| Report::new(format!("cannot cover `{PARAMS}`")).with_cause(error);
    std::fs::write(&copy, sealed_params(&String::from_utf8_lossy(&text))).map_err(|error| failed(&error))?;
    let place = fd_path(&place);
    let none = None::<&Path>;
    mount(Some(&copy), &place, none, MsFlags::MS_BIND, none).map_err(|errno| failed(&errno))?;
    // The descriptor is of what lies below; the new mount is reached by the path.
    let above = rootfs::resolve_in_root(&root, path)?.ok_or_else(|| failed(&"it is gone"))?;
    let flags = MsFlags::MS_BIND | MsFlags::MS_REMOUNT | MsFlags::MS_RDONLY | MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
    mount(none, &fd_path(&above), none, flags, none).map_err(|errno| failed(&errno))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rootfs::testing::{in_own_mounts, root_or_skip};

    #[test]
    fn the_container_reads_that_nodes_are_left_alone() {
        if !root_or_skip("covering a file") {
            return;
        }
        let base = tempfile::tempdir().unwrap();
        let (root, dir) = (base.path().join("root"), base.path().join("bundle"));
        std::fs::create_dir_all(root.join("proc/driver/nvidia")).unwrap();
        std::fs::create_dir(&dir).unwrap();
        cover(&root, &dir).expect("no driver, nothing to do");
        assert!(!dir.join("nvidia-params").exists());
        let params = root.join("proc/driver/nvidia/params");
        std::fs::write(&params, "Mobile: 0\nModifyDeviceFiles: 1\n").unwrap();
        let path = params.clone();
        in_own_mounts(move || {
            cover(&root, &dir).unwrap();
            assert_eq!(std::fs::read_to_string(&path).unwrap(), "Mobile: 0\nModifyDeviceFiles: 0\n");
            let refused = std::fs::write(&path, "x").unwrap_err();
            assert_eq!(refused.kind(), std::io::ErrorKind::ReadOnlyFilesystem);
        });
        assert_eq!(std::fs::read_to_string(&params).unwrap(), "Mobile: 0\nModifyDeviceFiles: 1\n");
    }
}
