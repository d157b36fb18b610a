//! Parses `--workdir` and `--cgroup-parent`.

use std::path::{Path, PathBuf};

use crate::report::{EXIT_USAGE, Explain};

#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub(crate) enum PathError {
    #[error("`--workdir {}` is not an absolute path", .0.display())]
    Workdir(PathBuf),
    #[error("`--cgroup-parent {text}` {why}")]
    CgroupParent { text: String, why: &'static str },
}

impl Explain for PathError {
    fn hint(&self) -> Option<String> {
        Some(
            match self {
                Self::Workdir(_) => "give an absolute path inside the container",
                Self::CgroupParent { .. } => {
                    "give a path below the cgroup mount, such as `/lab/alice`, or a slice, such as `lab.slice`"
                }
            }
            .into(),
        )
    }
    fn exit_code(&self) -> u8 {
        EXIT_USAGE
    }
}

/// Checks a working directory in the container.
pub(crate) fn parse_workdir(path: &Path) -> Result<PathBuf, PathError> {
    if path.is_absolute() { Ok(path.to_path_buf()) } else { Err(PathError::Workdir(path.to_path_buf())) }
}

/// Returns the absolute path of the parent cgroup in the hierarchy. As in docker, a systemd slice is given by its name
/// alone, and `a-b.slice` is below `a.slice`.
pub(crate) fn parse_cgroup_parent(text: &str) -> Result<String, PathError> {
    let wrong = |why| PathError::CgroupParent { text: text.to_owned(), why };
    let relative = text.trim_matches('/');
    if let Some(name) = relative.strip_suffix(".slice").filter(|name| !name.contains('/') && !name.is_empty()) {
        let mut path = String::new();
        for (end, _) in name.match_indices('-').chain([(name.len(), "")]) {
            path.push('/');
            path.push_str(&name[..end]);
            path.push_str(".slice");
        }
        return Ok(path);
    }
    if relative.is_empty() {
        return Err(wrong("names no cgroup"));
    }
    if relative.split('/').any(|part| part.is_empty() || part == "." || part == "..") || relative.contains('\n') {
        return Err(wrong("is not a plain path"));
    }
    Ok(format!("/{relative}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parents_are_paths_or_slices() {
        for (text, path) in [
            ("/lab/alice", "/lab/alice"),
            ("lab/", "/lab"),
            ("lab.slice", "/lab.slice"),
            ("lab-alice.slice", "/lab.slice/lab-alice.slice"),
            ("/a.slice/b.slice", "/a.slice/b.slice"),
        ] {
            assert_eq!(parse_cgroup_parent(text).as_deref(), Ok(path), "{text}");
        }
        for wrong in ["", "/", "a//b", "a/../b", "./a", "a\nb"] {
            assert!(parse_cgroup_parent(wrong).is_err(), "{wrong}");
        }
        assert!(parse_workdir("/x".as_ref()).is_ok() && parse_workdir("x".as_ref()).is_err());
    }
}
