//! Credential helpers: `docker-credential-NAME get|store|erase`, and whether root may run one.
//!
//! A helper is a program that a config file names. Root only runs it if no other user controls it: the file must belong
//! to root and only root may write it, and the same must hold for the program and for every directory on its path. With
//! `sudo -E`, the config file, HOME and PATH may all be the caller's. A helper that is not run is skipped, with a
//! notice that gives the reason.

use std::fs::{self, File, Metadata};
use std::io::{self, Read, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::mpsc;
use std::time::Duration;

use serde::Deserialize;

use super::RegistryError;
use super::options::Credentials;
use crate::sys::thread;

/// Time limit of a helper.
const PATIENCE: Duration = Duration::from_secs(30);
/// Larger files are not a config file.
const MAX_CONFIG: u64 = 1 << 20;

/// Reads a config file. Also returns the reason if the helpers that it names must not be run. Does not block on
/// anything but a regular file.
pub(super) fn read_config(path: &Path) -> io::Result<(Vec<u8>, Option<String>)> {
    let file = File::options().read(true).custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY).open(path)?;
    let metadata = file.metadata()?;
    if !metadata.is_file() {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "it is not a regular file"));
    }
    let mut bytes = Vec::new();
    file.take(MAX_CONFIG + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > MAX_CONFIG {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "it is larger than 1 MiB"));
    }
    Ok((bytes, distrust(path, &metadata, nix::unistd::geteuid().as_raw())))
}

/// Returns the reason why another user than root and `uid` can change a file or directory.
fn distrust(path: &Path, metadata: &Metadata, uid: u32) -> Option<String> {
    let (path, mode) = (path.display(), metadata.permissions().mode());
    // In a sticky directory (/tmp), other users cannot replace a file.
    let is_open = mode & 0o022 != 0 && !(metadata.is_dir() && mode & 0o1000 != 0);
    if metadata.uid() != 0 && metadata.uid() != uid {
        Some(format!("`{path}` belongs to the user {}", metadata.uid()))
    } else {
        is_open.then(|| format!("other users can write to `{path}`"))
    }
}

/// Returns the program of a helper, or the reason why it is not run.
fn program(helper: &str) -> io::Result<Result<PathBuf, String>> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let is_program = |path: &PathBuf| path.metadata().is_ok_and(|found| found.is_file() && found.mode() & 0o111 != 0);
    let found =
        std::env::split_paths(&path).filter(|dir| dir.is_absolute()).map(|dir| dir.join(helper)).find(is_program);
    let found = found.ok_or_else(|| io::Error::from_raw_os_error(libc::ENOENT))?;
    let real = found.canonicalize()?;
    let uid = nix::unistd::geteuid().as_raw();
    // Check both paths to it, because a symbolic link can be changed too.
    for path in real.ancestors().chain(found.ancestors().skip(1)) {
        if let Some(why) = distrust(path, &fs::metadata(path)?, uid) {
            return Ok(Err(why));
        }
    }
    Ok(Ok(real))
}

/// Runs a helper to get the login for a server. `None` if it has no login, or must not be run.
pub(super) fn ask(name: &str, server: &str, notice: &dyn Fn(&str)) -> Result<Option<Credentials>, RegistryError> {
    #[derive(Deserialize)]
    struct Answer {
        #[serde(rename = "Username")]
        user: String,
        #[serde(rename = "Secret")]
        secret: String,
    }
    let helper = format!("docker-credential-{name}");
    let failed = |why: String| RegistryError::Helper { helper: helper.clone(), why };
    if name.contains('/') {
        return Err(failed("its name is a path".into()));
    }
    let program = match program(&helper).map_err(|error| failed(error.to_string()))? {
        Ok(program) => program,
        Err(why) => {
            refuse(&helper, &why, notice);
            return Ok(None);
        }
    };
    let output = run(&program, "get", server).map_err(|error| failed(error.to_string()))?;
    let text = String::from_utf8_lossy(&output.stdout);
    if !output.status.success() {
        // The protocol's message for an unknown server.
        if text.contains("credentials not found") {
            return Ok(None);
        }
        return Err(failed(failure(&output)));
    }
    let answer: Answer = serde_json::from_str(&text).map_err(|error| failed(error.to_string()))?;
    Ok(Some(match answer.user.as_str() {
        "<token>" => Credentials::Identity(answer.secret),
        _ => Credentials::Password { user: answer.user, password: answer.secret },
    }))
}

/// The first characters of what a helper that failed has printed.
fn failure(output: &Output) -> String {
    let (text, errors) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    let line = format!("{text} {errors}").split_whitespace().collect::<Vec<_>>().join(" ");
    line.chars().take(200).collect()
}

/// Runs a helper that stores or erases a login (`store`, `erase`). The caller has checked the file that names it.
pub(super) fn call(name: &str, action: &str, input: &str) -> Result<(), RegistryError> {
    let helper = format!("docker-credential-{name}");
    let failed = |why: String| RegistryError::Helper { helper: helper.clone(), why };
    if name.contains('/') {
        return Err(failed("its name is a path".into()));
    }
    let found = program(&helper).map_err(|error| failed(error.to_string()))?;
    let program = found.map_err(|why| failed(format!("it is not run: {why}")))?;
    let output = run(&program, action, input).map_err(|error| failed(error.to_string()))?;
    if output.status.success() { Ok(()) } else { Err(failed(failure(&output))) }
}

/// Sends a notice that says why a helper is not run.
pub(super) fn refuse(helper: &str, why: &str, notice: &dyn Fn(&str)) {
    notice(&format!("cannot run the credential helper `{helper}`: {why}"));
}

fn run(program: &Path, action: &str, input: &str) -> io::Result<Output> {
    let mut command = Command::new(program);
    command.arg(action).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    // gpg and other programs run programs that files in HOME name.
    let uid = nix::unistd::geteuid();
    let home = std::env::var_os("HOME").map(PathBuf::from);
    let is_own = home.as_ref().is_some_and(|home| home.metadata().is_ok_and(|found| found.uid() == uid.as_raw()));
    if !is_own && let Ok(Some(user)) = nix::unistd::User::from_uid(uid) {
        command.env("HOME", user.dir);
    }
    let mut child = command.spawn()?;
    if let Some(mut stdin) = child.stdin.take() {
        // A helper that does not read its input may have ended already.
        let _ = stdin.write_all(input.as_bytes());
    }
    let pid = nix::unistd::Pid::from_raw(child.id().cast_signed());
    let end = || {
        // The helper may have ended already.
        let _ = nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGKILL);
    };
    let (sender, receiver) = mpsc::channel();
    thread::detached(move || sender.send(child.wait_with_output())).inspect_err(|_| end())?;
    receiver.recv_timeout(PATIENCE).unwrap_or_else(|_| {
        end();
        let why = format!("it did not answer within {} seconds", PATIENCE.as_secs());
        Err(io::Error::new(io::ErrorKind::TimedOut, why))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_others_can_change_is_not_trusted() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("config.json");
        fs::write(&path, "{}").expect("written");
        let own = path.metadata().expect("metadata").uid();
        let why = |mode: u32, uid: u32| {
            fs::set_permissions(&path, fs::Permissions::from_mode(mode)).expect("set");
            distrust(&path, &path.metadata().expect("metadata"), uid)
        };
        assert_eq!((why(0o600, own), why(0o644, own)), (None, None));
        assert!(why(0o660, own).is_some_and(|why| why.contains("other users can write")));
        assert!(why(0o602, own).is_some_and(|why| why.contains("other users can write")));
        if own != 0 {
            assert!(why(0o600, own + 1).is_some_and(|why| why.contains("belongs to the user")));
        }
    }
}
