//! File locations: `--root` and `--run-dir`, which are checked once before any command uses them.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use super::{Context, Globals};
use crate::report::Report;

/// The flag and the environment variable of each directory.
const ROOT: (&str, &str) = ("--root", "GPURUN_ROOT");
const RUN_DIR: (&str, &str) = ("--run-dir", "GPURUN_RUN");

impl Context {
    /// Resolves relative directories against the working directory of this command. The processes that it starts have a
    /// different one.
    pub(super) fn new(globals: &Globals) -> Result<Self, Report> {
        let root = absolute(&globals.root, ROOT)?;
        let run_dir = absolute(&globals.run_dir, RUN_DIR)?;
        Ok(Self { root, run_dir, verbose: globals.verbose, dry_run: false })
    }

    /// Refuses directories that any user other than root can write to. A user with write access would control what root
    /// mounts and executes.
    pub(super) fn check(&self) -> Result<(), Report> {
        trusted(&self.root, ROOT)?;
        trusted(&self.root.join("containers"), ROOT)?;
        trusted(&self.run_dir, RUN_DIR)
    }
}

fn absolute(path: &Path, (flag, variable): (&str, &str)) -> Result<PathBuf, Report> {
    std::path::absolute(path).map_err(|error| {
        let report = Report::usage(format!("cannot use `{}` as the directory of `{flag}`", path.display()));
        report.with_cause(error).with_hint(format!("name an absolute path with `{flag} DIR` or `{variable}`"))
    })
}

fn trusted(dir: &Path, (flag, _): (&str, &str)) -> Result<(), Report> {
    let refused = |why: String| Report::new(format!("cannot use `{}` for `{flag}`: {why}", dir.display()));
    let metadata = match fs::metadata(dir) {
        Ok(metadata) => metadata,
        // The directory will be created by root, with access for root only.
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(refused("it cannot be opened".into()).with_cause(error)),
    };
    let (owner, group, mode) = (metadata.uid(), metadata.gid(), metadata.mode());
    let why = if !metadata.is_dir() {
        "it is not a directory".to_owned()
    } else if owner != 0 {
        format!("user {owner} owns it, and could replace what root mounts and executes")
    } else if mode & 0o002 != 0 || (mode & 0o020 != 0 && group != 0) {
        format!("users other than root can write to it (mode {:04o})", mode & 0o7777)
    } else {
        return Ok(());
    };
    let hint = match mode & 0o022 {
        0 => format!("name a directory that does not exist yet, or one of root's: `{flag} DIR`"),
        _ => format!("`sudo chmod go-w {}`, or name another directory: `{flag} DIR`", dir.display()),
    };
    Err(refused(why).with_hint(hint))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn only_root_may_write_to_what_root_executes() {
        if !nix::unistd::geteuid().is_root() {
            eprintln!("skipped: needs root");
            return;
        }
        let base = tempfile::tempdir().unwrap();
        let dir = base.path().join("dir");
        trusted(&dir, ROOT).unwrap();
        fs::create_dir(&dir).unwrap();
        for (owner, group, mode, fine) in [
            (0, 0, 0o755, true),
            (0, 0, 0o775, true),
            (0, 0, 0o777, false),
            (0, 0, 0o1777, false),
            (0, 1000, 0o755, true),
            (0, 1000, 0o775, false),
            (1000, 0, 0o700, false),
        ] {
            std::os::unix::fs::chown(&dir, Some(owner), Some(group)).unwrap();
            fs::set_permissions(&dir, fs::Permissions::from_mode(mode)).unwrap();
            let checked = trusted(&dir, ROOT);
            assert_eq!(checked.is_ok(), fine, "{owner} {group} {mode:o}: {checked:?}");
        }
    }
}
