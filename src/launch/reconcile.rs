//! Clearing away what dead supervisors left. Every command does this before it looks at a container; it is idempotent, and works under
//! the records' lock.
//!
//! Who owns what, and how its owner is known to be dead:
//!
//! | resource | made by | proof of life | removed by |
//! |---|---|---|---|
//! | `containers/ID` without `record.json` | the command | record lock `launching` | reconcile |
//! | `/run/gpurun/ID` | the command | record locks `launching`, `alive` | the supervisor at the end, reconcile |
//! | container's processes | the supervisor | PDEATHSIG KILL of pid 1 | the kernel; `cgroup.kill` by reconcile |
//! | cgroup `/gpurun/ID` | the command | record locks `launching`, `alive` | the supervisor, reconcile |
//! | overlay and bind mounts | the supervisor | they stand in its mount namespace | the kernel |
//! | network namespace, veth | the supervisor | held by its descriptor | the kernel |
//! | address lease, nft elements | the supervisor | record lock `alive` | the supervisor, `net::reconcile` |
//! | GPU lease | the supervisor | pid and start time in it | the supervisor, reconcile, whoever takes a GPU next |
//! | image mount | any launch | flock on its lease | every command, when nobody used it for [`IDLE_IMAGE`] or its index is gone; `image rm` |
//! | `state.json` says `running` | the supervisor | record lock `alive` | the supervisor, reconcile |
//! | `/run/gpurun/ID/state.json` | the supervisor, reconcile: a disk without room | record lock `alive` | whoever can write the state again |

use std::path::Path;
use std::time::Duration;

use crate::record::{Entry, Phase, RecordError, Records, State, is_idle, short};
use crate::report::Report;
use crate::sys::mount;
use crate::{cgroup, net, rootfs};

/// How long an unused image stays mounted: a mount's pages go with it, and what was just used is often used again.
pub const IDLE_IMAGE: Duration = Duration::from_secs(600);

/// Takes away the image mounts that nobody needs. One that will not go stands in nobody's way: the next command tries again.
pub fn sweep_images(run_dir: &Path) {
    let images = run_dir.join("images");
    match rootfs::images::sweep(&images, IDLE_IMAGE) {
        Ok(gone) => gone.iter().for_each(|chain| tracing::info!("unmounted the idle image {chain}")),
        // Who may not look there may not unmount.
        Err(error) if error.kind() == std::io::ErrorKind::PermissionDenied => {}
        Err(error) => tracing::warn!("cannot unmount idle images below `{}`: {error}", images.display()),
    }
}

/// Clears away everything that belongs to containers whose supervisor is dead, and image mounts that nobody needs. Costs a few reads where
/// there is nothing to do.
pub fn reconcile(records: &Records) -> Result<(), Report> {
    sweep_images(records.run_dir());
    if dead(records)?.is_empty() {
        return Ok(());
    }
    let _lock = records.lock()?;
    // Looked at again under the lock: another command may have done it meanwhile.
    let dead = dead(records)?;
    if dead.is_empty() {
        return Ok(());
    }
    let host = cgroup::Host::probe(Path::new("/"))?;
    for id in &dead {
        tracing::info!("clearing away what the dead supervisor of {id} left");
        crate::gpu::lease::release(&records.run_dir().join("gpus"), id)?;
        match records.get(id) {
            Ok(entry) => {
                // Without a record nothing was made, or everything but the directories has gone already.
                let parent = entry.and_then(|entry| entry.record.request.cgroup_parent);
                remove_cgroup(&host, &super::cgroup_path(parent.as_deref(), id))?;
            }
            Err(_) => remove_cgroups(&host, id)?,
        }
    }
    net::reconcile(&records.run_dir().join("net"), &living(records)?)?;
    for id in &dead {
        match records.get(id) {
            Ok(Some(entry)) if !entry.record.request.auto_remove => {
                // A disk without room must not stand in the way of the commands that make some.
                if let Err(error) = bury(&entry) {
                    let why = std::error::Error::source(&error).map(|cause| format!(": {cause}")).unwrap_or_default();
                    tracing::warn!("how `{}` ended is not on the disk yet: {error}{why}", entry.record.name);
                }
                clear_run_dir(&entry)?;
            }
            Ok(_) => remove_dirs(records, id)?,
            // Its files stay, and with them whatever a person (or the gpurun that wrote the record) can still make of them. Nor does it
            // stand in the way of every other container's command.
            Err(error) => {
                tracing::warn!("{}", Report::from(error));
                remove_tree(&records.paths(id).1)?;
            }
        }
    }
    Ok(())
}

/// Removes a container for good: its record first, so that a removal which is killed half way is finished by the next command.
pub fn remove(records: &Records, entry: &Entry) -> Result<(), Report> {
    remove_dirs(records, &entry.record.id)
}

/// Removes a container whose record cannot be read, with everything that is its: found by its id alone, which its files, its leases and its
/// cgroups are named by. Nobody runs it, or the caller has stopped it.
pub fn remove_unreadable(records: &Records, id: &str) -> Result<(), Report> {
    let _lock = records.lock()?;
    if !is_idle(&records.paths(id).1)? {
        return Err(Report::new(format!("container {} is being started by another command", short(id))));
    }
    remove_cgroups(&cgroup::Host::probe(Path::new("/"))?, id)?;
    crate::gpu::lease::release(&records.run_dir().join("gpus"), id)?;
    net::teardown(&records.run_dir().join("net"), id)?;
    remove_dirs(records, id)
}

/// Removes the directory in /run, which says that there is nothing left to clear away; but not a state that the disk had no room for.
pub fn clear_run_dir(entry: &Entry) -> Result<(), Report> {
    let spare = entry.spare_state();
    if !spare.exists() {
        return remove_tree(&entry.run_dir);
    }
    let failed = |error| Report::new(format!("cannot clear `{}`", entry.run_dir.display())).with_cause(error);
    for item in std::fs::read_dir(&entry.run_dir).map_err(failed)? {
        let path = item.map_err(failed)?.path();
        if path.symlink_metadata().map_err(failed)?.is_dir() {
            remove_tree(&path)?;
        } else if path != spare {
            std::fs::remove_file(&path).map_err(failed)?;
        }
    }
    Ok(())
}

fn remove_dirs(records: &Records, id: &str) -> Result<(), Report> {
    let (dir, run_dir) = records.paths(id);
    match std::fs::remove_file(dir.join("record.json")) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            return Err(Report::new(format!("cannot remove the record of container {id}")).with_cause(error));
        }
        _ => {}
    }
    remove_tree(&dir)?;
    remove_tree(&run_dir)
}

/// Removes a directory with everything in it, and nothing that is only mounted there: behind a mount lie the image's or a person's files.
fn remove_tree(dir: &Path) -> Result<(), Report> {
    let name = dir.display().to_string();
    let failed = |error: std::io::Error| Report::new(format!("cannot remove `{name}`")).with_cause(error);
    // The kernel's table has real paths; `dir` may come by way of a link (/var/run).
    let dir = match std::fs::canonicalize(dir) {
        Ok(dir) => dir,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(failed(error)),
    };
    for point in mount::points_below(&dir).map_err(failed)?.into_iter().rev() {
        mount::detach(&point)
            .map_err(|error| Report::new(format!("cannot unmount `{}`", point.display())).with_cause(error))?;
    }
    match std::fs::remove_dir_all(&dir) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(failed(error)),
        _ => Ok(()),
    }
}

/// Ids of everything that nobody runs or starts, and that is not simply at rest.
fn dead(records: &Records) -> Result<Vec<String>, Report> {
    let mut ids = records.ids_in_run()?;
    ids.extend(records.orphans()?);
    // What cannot be read is for the command's own look at the list to tell.
    for entry in records.list_all()?.0 {
        // After a reboot /run is empty, but the file still says `running`.
        match entry.state().map(|state| state.phase) {
            Ok(Phase::Created | Phase::Exited) => {}
            // One that cannot be read says nothing, and is written anew.
            Ok(Phase::Running | Phase::Restarting) | Err(RecordError::Damaged { .. }) => ids.push(entry.record.id),
            // For who looks at that container: the others have no part in it.
            Err(error) => tracing::warn!("{}", Report::from(error)),
        }
    }
    ids.sort();
    ids.dedup();
    let mut dead = Vec::new();
    for id in ids {
        if is_idle(&records.paths(&id).1)? {
            dead.push(id);
        }
    }
    Ok(dead)
}

fn living(records: &Records) -> Result<Vec<String>, Report> {
    let mut living = records.ids_in_run()?;
    living.retain(|id| !is_idle(&records.paths(id).1).unwrap_or(false));
    Ok(living)
}

fn remove_cgroup(host: &cgroup::Host, path: &str) -> Result<(), Report> {
    let Some(cgroup) = cgroup::Cgroup::open(host, path)? else { return Ok(()) };
    cgroup.kill_all()?;
    cgroup.remove()?;
    Ok(())
}

/// The same of a container of which nothing is known but its id: its cgroups are found by that, whatever they lie below.
fn remove_cgroups(host: &cgroup::Host, id: &str) -> Result<(), Report> {
    host.find(id).iter().try_for_each(|path| remove_cgroup(host, path))
}

/// Writes the exit report that the supervisor could not write.
fn bury(entry: &Entry) -> Result<(), RecordError> {
    let mut state = match entry.state() {
        Err(error @ RecordError::Damaged { .. }) => {
            let why = Report::from(error).under("how the container ended is not known any more");
            let state = State {
                phase: Phase::Exited,
                // It may have run: a first launch that fails would be removed with all its files.
                started: Some(entry.record.created),
                finished: Some(crate::supervise::log::now()),
                // docker's, for an end that nobody saw.
                exit_code: Some(255),
                error: Some(Report { hint: None, ..why }),
                ..State::default()
            };
            return entry.write_state(&state);
        }
        state => state?,
    };
    if !matches!(state.phase, Phase::Running | Phase::Restarting) {
        // Once more what the disk had no room for.
        return if entry.spare_state().exists() { entry.write_state(&state) } else { Ok(()) };
    }
    let same_boot = state.boot_id == super::boot_id();
    state.phase = Phase::Exited;
    state.exit_code = Some(128 + 9);
    state.finished = Some(crate::supervise::log::now());
    state.pid = None;
    state.pid_start = None;
    state.url = None;
    state.error = Some(Report::new(if same_boot {
        "the container's supervisor was killed, and the container with it"
    } else {
        "the host was restarted while the container ran"
    }));
    entry.write_state(&state)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_an_unreadable_record_stands_for_stays() {
        if !nix::unistd::geteuid().is_root() {
            eprintln!("skipped: needs root");
            return;
        }
        let base = tempfile::tempdir().unwrap();
        let records = Records::open(base.path(), &base.path().join("run")).unwrap();
        // Its supervisor is dead, and what it left in /run is all that may go.
        let (dir, run_dir) = records.paths(&"d".repeat(64));
        std::fs::create_dir_all(dir.join("upper")).unwrap();
        std::fs::write(dir.join("upper/thesis"), "years of work").unwrap();
        std::fs::create_dir_all(&run_dir).unwrap();
        std::fs::write(dir.join("record.json"), "{").unwrap();
        for _ in 0..2 {
            reconcile(&records).unwrap();
            assert!(!run_dir.exists(), "nobody holds its locks");
            assert_eq!(std::fs::read_to_string(dir.join("upper/thesis")).unwrap(), "years of work");
        }
        std::fs::remove_file(dir.join("record.json")).unwrap();
        reconcile(&records).unwrap();
        assert!(!dir.exists(), "without a record it is what a killed launch left");
    }

    #[test]
    fn a_state_that_cannot_be_read_is_one_containers_own_trouble() {
        if !nix::unistd::geteuid().is_root() {
            eprintln!("skipped: needs root");
            return;
        }
        let base = tempfile::tempdir().unwrap();
        let records = Records::open(base.path(), &base.path().join("run")).unwrap();
        let record = crate::testing::record(&"e".repeat(64), "one");
        drop(records.create(&record, None).unwrap());
        let entry = records.get(&record.id).unwrap().unwrap();
        clear_run_dir(&entry).unwrap();
        std::fs::write(entry.dir.join("state.json"), "{").unwrap();
        reconcile(&records).unwrap();
        let state = entry.state().unwrap();
        assert_eq!((state.phase, state.exit_code, state.started), (Phase::Exited, Some(255), Some(record.created)));
        let told = state.error.unwrap().to_string();
        assert!(told.contains("not known any more") && told.contains("state.json"), "{told}");
    }

    #[test]
    fn what_is_only_mounted_is_never_removed() {
        if !nix::unistd::geteuid().is_root() {
            eprintln!("skipped: needs root");
            return;
        }
        let base = tempfile::tempdir().unwrap();
        let (precious, run) = (base.path().join("precious"), base.path().join("run"));
        std::fs::create_dir_all(run.join("binds/0")).unwrap();
        std::fs::create_dir(&precious).unwrap();
        std::fs::write(precious.join("thesis"), "years of work").unwrap();
        let flags = nix::mount::MsFlags::MS_BIND;
        nix::mount::mount(Some(&precious), &run.join("binds/0"), None::<&str>, flags, None::<&str>).unwrap();
        std::os::unix::fs::symlink(base.path(), base.path().join("link")).unwrap();
        remove_tree(&base.path().join("link/run")).unwrap();
        assert!(!run.exists());
        assert_eq!(std::fs::read_to_string(precious.join("thesis")).unwrap(), "years of work");
    }
}
