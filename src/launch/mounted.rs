//! Verifies that every mount of a created container is at its planned destination.
//!
//! libcontainer resolves a destination in the container's root when it mounts. Below a directory of the host, other
//! containers may be able to write to that path. A link that appears there just in time redirects the mount, for
//! example over /proc. So the mount table of pid 1 is read back before the container's program runs.

use std::path::{Path, PathBuf};

use crate::report::Report;
use crate::spec::Mount;

/// The destinations that the runtime mounts in every container.
const RUNTIME: [&str; 4] = ["/proc", "/dev", "/sys", "/dev/pts"];

pub(super) fn verify(pid: i32, mounts: &[Mount]) -> Result<(), Report> {
    let points = crate::sys::mount::points_of(pid)
        .map_err(|error| Report::new("cannot read the container's mount table").with_cause(error))?;
    match missing(&points, mounts) {
        None => Ok(()),
        Some(path) => Err(Report::new(format!(
            "cannot mount on `{0}`: the mount is not there after it was made, so `{0}` led elsewhere",
            path.display()
        ))
        .with_hint("look for a link in the directory that is mounted above it, and for what writes there")),
    }
}

fn missing<'a>(points: &[PathBuf], mounts: &'a [Mount]) -> Option<&'a Path> {
    let planned = mounts.iter().map(|mount| mount.destination.as_path());
    planned.chain(RUNTIME.map(Path::new)).find(|path| !points.iter().any(|point| point == path))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mount_that_went_elsewhere_is_found() {
        let mount = |destination: &str| Mount {
            destination: destination.into(),
            kind: "bind".into(),
            source: "/s".into(),
            options: Vec::new(),
        };
        let points: Vec<PathBuf> =
            ["/", "/proc", "/dev", "/sys", "/dev/pts", "/opt", "/proc"].map(PathBuf::from).to_vec();
        assert_eq!(missing(&points, &[mount("/opt")]), None);
        assert_eq!(missing(&points, &[mount("/opt"), mount("/opt/sub")]), Some(Path::new("/opt/sub")));
        assert_eq!(missing(&points[..4], &[]), Some(Path::new("/dev/pts")));
    }
}
