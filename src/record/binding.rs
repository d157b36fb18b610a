//! Binds a root to one run directory in /run, because the locks that prove that supervisors are alive exist only there.
//!
//! ```text
//! /var/lib/gpurun/containers/
//!     .run      the run directory (path, device and inode) and the boot in which it was last used
//!     .users    record lock, shared: held by each command that starts a container, and by each supervisor
//! ```
//!
//! A command with another run directory (a forgotten GPURUN_RUN, `sudo` that drops it, a mount namespace with its own
//! /run) would take every running container for dead. So it is refused while the root is in use. When the root is not
//! in use, it is bound to the new run directory. The record lock works across mount and pid namespaces. Supervisors of
//! releases up to 0.1 do not hold it. For them, the pid, the start time and the boot in `state.json` are the proof.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use super::error::RecordError;
use super::files::{get, put};
use super::paths::{holder, is_id};
use super::refused::{Binding, Refused};
use super::state::State;
use crate::durable::{FileLock, ProcessLock};
use crate::sys::process;

/// Held by each command that starts a container, and by each supervisor. While it is held, the root's run directory
/// cannot change.
#[derive(Debug)]
pub(crate) struct InUse(#[expect(dead_code, reason = "held for its Drop")] ProcessLock);

/// Checks that `run` is the run directory of the root of `containers`, or binds the root to it.
pub(super) fn bind(containers: &Path, run: &Path) -> Result<(), RecordError> {
    let before = known(containers)?;
    if is_current(before.as_ref(), run) {
        return Ok(());
    }
    let wanted = current(run)?;
    if before.as_ref() == Some(&wanted) {
        return Ok(());
    }
    // Serialize the binding: two commands that use a new root at the same time must not take each other for its user.
    let path = containers.join(".lock");
    let _turn = FileLock::exclusive(&path).map_err(|source| RecordError::Io { action: "lock", path, source })?;
    let known = known(containers)?;
    if known.as_ref() == Some(&wanted) {
        return Ok(());
    }
    let users = containers.join(".users");
    let failed = |source| RecordError::Io { action: "lock", path: users.clone(), source };
    let refused = |known, pid| {
        let (asked, containers) = (wanted.run_dir.clone(), containers.to_path_buf());
        RecordError::RunDir(Box::new(Refused { asked, containers, known, pid }))
    };
    let Some(_alone) = ProcessLock::try_take(&users).map_err(failed)? else {
        let pid = ProcessLock::holder(&users).map_err(failed)?.filter(|pid| *pid > 0);
        return Err(refused(known, pid));
    };
    if let Some(pid) = runs_elsewhere(containers, run, wanted.boot_id.as_deref())? {
        return Err(refused(known, Some(pid)));
    }
    put(&containers.join(".run"), &wanted, true)
}

/// Takes the shared lock. Returns an error if the run directory has changed in the meantime.
pub(super) fn hold(containers: &Path, run: &Path) -> Result<InUse, RecordError> {
    let users = containers.join(".users");
    let lock = ProcessLock::share(&users).map_err(|source| RecordError::Io { action: "lock", path: users, source })?;
    let known = known(containers)?;
    if is_current(known.as_ref(), run) {
        return Ok(InUse(lock));
    }
    let wanted = current(run)?;
    if known.as_ref() == Some(&wanted) {
        return Ok(InUse(lock));
    }
    let (asked, containers) = (wanted.run_dir, containers.to_path_buf());
    Err(RecordError::RunDir(Box::new(Refused { asked, containers, known, pid: None })))
}

/// Reads the binding. A damaged file counts as none.
fn known(containers: &Path) -> Result<Option<Binding>, RecordError> {
    match get(&containers.join(".run")) {
        Err(RecordError::Damaged { .. }) => Ok(None),
        known => known,
    }
}

/// Whether a binding is to this run directory. Its path is not resolved: the number of the directory identifies it.
fn is_current(known: Option<&Binding>, run: &Path) -> bool {
    let (Some(known), Ok(metadata)) = (known, fs::metadata(run)) else { return false };
    let is_same = known.run_dir == run && (known.device, known.inode) == (metadata.dev(), metadata.ino());
    is_same && known.boot_id == process::boot_id()
}

/// The binding to a run directory as it is now.
fn current(run: &Path) -> Result<Binding, RecordError> {
    let failed = |source| RecordError::Io { action: "examine", path: run.to_path_buf(), source };
    let run_dir = run.canonicalize().map_err(failed)?;
    let metadata = fs::metadata(&run_dir).map_err(failed)?;
    Ok(Binding { device: metadata.dev(), inode: metadata.ino(), boot_id: process::boot_id(), run_dir })
}

/// Finds the supervisor of a running container that has no lock in this run directory. The state names the process, and
/// the kernel confirms it.
fn runs_elsewhere(containers: &Path, run: &Path, boot: Option<&str>) -> Result<Option<i32>, RecordError> {
    let entries = match fs::read_dir(containers) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(source) => return Err(RecordError::Io { action: "list", path: containers.to_path_buf(), source }),
    };
    for name in entries.flatten().filter_map(|entry| entry.file_name().into_string().ok()).filter(|name| is_id(name)) {
        let Ok(Some(state)) = get::<State>(&containers.join(&name).join("state.json")) else { continue };
        let Some(pid) = state.living_pid(boot) else { continue };
        if holder(&run.join(&name).join("alive"))?.is_none() {
            return Ok(Some(process::parent(pid).filter(|parent| *parent > 1).unwrap_or(pid)));
        }
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_root_in_use_has_one_run_directory() {
        let base = tempfile::tempdir().unwrap();
        let (containers, one, other) =
            (base.path().join("containers"), base.path().join("one"), base.path().join("other"));
        for dir in [&containers, &one, &other] {
            fs::create_dir(dir).unwrap();
        }
        // The root is not in use, so its run directory can change.
        for run in [&one, &other, &one] {
            bind(&containers, run).unwrap();
            assert!(hold(&containers, run).is_ok());
        }
        assert!(matches!(hold(&containers, &other), Err(RecordError::RunDir(_))));
        // A record lock does not conflict with locks of the same process, so another process holds it.
        let mut holder = std::process::Command::new("python3")
            .args(["-c", "import fcntl,sys; f=open(sys.argv[1],'r+'); fcntl.lockf(f,fcntl.LOCK_SH); print(flush=True); sys.stdin.read()"])
            .arg(containers.join(".users"))
            .stdin(std::process::Stdio::piped())
            .stdout(std::process::Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        io::BufRead::read_line(&mut io::BufReader::new(holder.stdout.take().unwrap()), &mut line).unwrap();
        bind(&containers, &one).unwrap();
        let refused = crate::report::Report::from(bind(&containers, &other).unwrap_err());
        let real = one.canonicalize().unwrap().display().to_string();
        assert!(refused.message.contains(&real), "{refused}");
        assert!(refused.hint.unwrap().contains(&format!("--run-dir {real}")));
        // The path now names another directory, as in a mount namespace with its own /run.
        fs::rename(&one, base.path().join("moved")).unwrap();
        fs::create_dir(&one).unwrap();
        let refused = crate::report::Report::from(bind(&containers, &one).unwrap_err());
        assert!(refused.message.contains("another directory of that name"), "{refused}");
        assert!(refused.hint.unwrap().contains(&format!("kill -9 {}", holder.id())));
        drop(holder.stdin.take());
        holder.wait().unwrap();
        bind(&containers, &one).unwrap();
    }

    #[test]
    fn a_container_of_an_earlier_release_is_found_by_its_pid() {
        let base = tempfile::tempdir().unwrap();
        let (containers, run) = (base.path().join("containers"), base.path().join("run"));
        let id = "a".repeat(64);
        fs::create_dir_all(containers.join(&id)).unwrap();
        fs::create_dir_all(run.join(&id)).unwrap();
        let pid = std::process::id() as i32;
        let state = State {
            phase: crate::record::Phase::Running,
            pid: Some(pid),
            pid_start: process::start_time(pid),
            boot_id: process::boot_id(),
            ..State::default()
        };
        let write = |state: &State| put(&containers.join(&id).join("state.json"), state, false).unwrap();
        write(&state);
        assert!(matches!(bind(&containers, &run), Err(RecordError::RunDir(_))));
        // A process of another boot, or another process with the same pid, counts as dead.
        for dead in
            [State { boot_id: Some("x".into()), ..state.clone() }, State { pid_start: Some(1), ..state.clone() }]
        {
            write(&dead);
            bind(&containers, &run).unwrap();
            fs::remove_file(containers.join(".run")).unwrap();
        }
    }
}
