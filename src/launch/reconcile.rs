//! Cleans up after dead supervisors. Every command does this before it accesses a container. The clean-up is idempotent
//! and runs under the records' lock.
//!
//! The table lists each resource, and how its owner is known to be dead:
//!
//! | resource | created by | proof of life | removed by |
//! |---|---|---|---|
//! | `containers/ID` without `record.json` and upper directory | the command | record lock `launching` | reconcile |
//! | `containers/ID` with `disposable`, without a record | a removal, a build's step | the same | reconcile |
//! | `/run/gpurun/ID` | the command | record locks `launching`, `alive` | the supervisor at the end, reconcile |
//! | the runtime's forks | the supervisor | flock `forks` | themselves; reconcile, if they are in the cgroup |
//! | container's processes | the supervisor | PDEATHSIG KILL of pid 1, the keeper | the kernel; the keeper; reconcile |
//! | helper and processes of a health check | the supervisor | PDEATHSIG KILL of the helper | the supervisor; with the container |
//! | cgroup `/gpurun/ID` and its part | the command | record locks `launching`, `alive` | the supervisor, reconcile |
//! | step keeper, in its own cgroup `/gpurun/supervisors` | the command | itself | itself, once the container is gone |
//! | overlay and bind mounts | the supervisor | its mount namespace | the kernel |
//! | network namespace, veth | the supervisor | its descriptor | the kernel |
//! | address lease, nft elements | the supervisor | record lock `alive` | the supervisor, `net::reconcile` |
//! | DNS resolver | the supervisor | PDEATHSIG KILL, a socket pair | the supervisor; the kernel |
//! | `/run/gpurun/net/ID.names` | any process that changes a lease | record lock `alive` | with the lease |
//! | image `localhost/slurm/jobN/uidU`: files of steps | `step-enter` | none: they belong to the job | `step-clean` at its end |
//! | `removed`: the last runs of removed containers | the command or supervisor that removes a record | none: it only informs | a reboot |
//! | `loaded/KEY`: the ID of an archive's image | `step-enter` | none: it only saves time | a reboot |
//! | GPU lease | the supervisor | pid and start time in it | the supervisor, reconcile, the next GPU selection |
//! | ticket in the queue for GPUs | the command | flock on it | the command, the launch, the next one that joins |
//! | image mount | any launch | flock on its lease | every command (see below); `image rm` |
//! | layer of a driver's files | any launch with GPUs | flock on its lease | the next layer that is made; `system prune` |
//! | `state.json` says `running` | the supervisor | record lock `alive` | the supervisor, reconcile |
//! | file system of a volume with options | the command that launches | record locks `launching`, `alive` of its containers | every command; `volume rm` |
//! | `compose/PROJECT`: contents of secrets | `compose up` | none: they belong to the project | `compose down` |
//! | `/run/gpurun/ID/state.json` | supervisor, reconcile | record lock `alive` | the next write of the state |
//!
//! The keeper is described in `keeper`; reconcile kills processes through `cgroup.kill`. Every command removes an image
//! mount that was not used for [`IDLE_IMAGE`] or whose index is gone. The state is written to /run only when the disk
//! is full.

use std::path::Path;
use std::time::{Duration, Instant};

use crate::record::{Entry, Phase, RecordError, Records, State, forks_have_ended, is_idle, short};
use crate::report::Report;
use crate::sys::mount;
use crate::{cgroup, net, rootfs};

/// How long an unused image stays mounted. Unmounting drops the page cache of the image, and recently used images are
/// often used again.
pub(super) const IDLE_IMAGE: Duration = Duration::from_secs(600);

/// How long the forks of a dead supervisor may take to end.
const FORKS: Duration = Duration::from_secs(10);

/// Unmounts idle images. A failure blocks nothing: the next command tries again.
pub(crate) fn sweep_images(run_dir: &Path) {
    let images = run_dir.join("images");
    match rootfs::images::sweep(&images, IDLE_IMAGE) {
        Ok(gone) => gone.iter().for_each(|chain| tracing::info!("unmounted the idle image {chain}")),
        // A caller without permission to read the directory cannot unmount either.
        Err(error) if error.kind() == std::io::ErrorKind::PermissionDenied => {}
        Err(error) => tracing::warn!("cannot unmount idle images below `{}`: {error}", images.display()),
    }
}

/// Cleans up everything that belongs to containers whose supervisor is dead, and unmounts idle images. Costs a few
/// reads if there is nothing to do.
///
/// A failure to clean up one container is reported, does not fail the command, and is retried by the next command.
pub(crate) fn reconcile(records: &Records) -> Result<(), Report> {
    sweep_images(records.run_dir());
    if dead(records)?.is_empty() {
        return Ok(());
    }
    let _lock = records.lock()?;
    // Check again under the lock: another command may have cleaned up in the meantime.
    let dead = dead(records)?;
    if dead.is_empty() {
        return Ok(());
    }
    let host = cgroup::Host::probe(Path::new("/"))?;
    let released: Vec<(&String, bool)> = dead.iter().map(|id| (id, done(id, release(records, &host, id)))).collect();
    let network = living(records).and_then(|living| net::reconcile(&records.run_dir().join("net"), &living, &dead));
    if let Err(report) = network {
        tracing::warn!("{}", report.under("cannot clean up the networks of containers that have ended"));
    }
    for (id, released) in released {
        done(id, settle(records, id, released));
    }
    Ok(())
}

/// Returns whether the clean-up of a container succeeded, and reports a failure.
fn done(id: &str, result: Result<(), Report>) -> bool {
    let Err(report) = result else { return true };
    tracing::warn!("{}", report.under(format!("cannot clean up container {}", short(id))));
    false
}

/// Releases the resources of a dead supervisor outside the container's directories: its GPUs, its processes and its
/// cgroup.
fn release(records: &Records, host: &cgroup::Host, id: &str) -> Result<(), Report> {
    tracing::info!("cleaning up after the dead supervisor of {id}");
    crate::gpu::lease::release(&records.run_dir().join("gpus"), id)?;
    let place = match records.get(id) {
        Ok(Some(entry)) => Some(entry.record.cgroup),
        // Without a record, the removal may have been interrupted, and the parent cgroup is not known any more.
        Ok(None) | Err(_) => None,
    };
    remove_cgroups(records, host, id, place)
}

/// Records how the container ended. Removes its directory in /run if all of its resources have been released.
fn settle(records: &Records, id: &str, released: bool) -> Result<(), Report> {
    match records.get(id) {
        Ok(Some(entry)) if !entry.record.request.auto_remove => {
            // A full disk must not block the commands that free space.
            if let Err(error) = bury(&entry) {
                let why = std::error::Error::source(&error).map(|cause| format!(": {cause}")).unwrap_or_default();
                tracing::warn!("cannot save how `{}` ended: {error}{why}", entry.record.name);
            }
            if released { clear_run_dir(&entry) } else { Ok(()) }
        }
        // The files of a lost container stay.
        Ok(None) if records.is_lost(id) => {
            if released {
                remove_tree(&records.paths(id).1)
            } else {
                Ok(())
            }
        }
        Ok(_) if released => remove_dirs(records, id),
        Ok(_) => remove_record(records, id),
        // The container's files stay, so that the user, or the gpurun version that wrote the record, can still use
        // them. An unreadable record must not block commands for other containers.
        Err(error) => {
            tracing::warn!("{}", Report::from(error));
            if released { remove_tree(&records.paths(id).1) } else { Ok(()) }
        }
    }
}

/// Removes a container that is not running, with everything that its supervisor left behind. The record is removed
/// first, so that the next command finishes an interrupted removal. The directory in /run is removed last, so that
/// resources that cannot be released now are found again.
pub(crate) fn remove(records: &Records, entry: &Entry) -> Result<(), Report> {
    let id = &entry.record.id;
    // If that directory is absent, all outside resources have been released, unless it was removed from outside gpurun.
    if entry.run_dir.exists() || entry.state().map_or(true, |state| state.claims_to_run()) {
        let host = cgroup::Host::probe(Path::new("/"))?;
        let released = remove_cgroups(records, &host, id, Some(entry.record.cgroup.clone()))
            .and_then(|()| Ok(crate::gpu::lease::release(&records.run_dir().join("gpus"), id)?))
            .and_then(|()| Ok(net::teardown(&records.run_dir().join("net"), id)?));
        if let Err(report) = released {
            remove_record(records, id)?;
            return Err(report);
        }
    }
    remove_dirs(records, id)
}

/// Removes a container that has never run and is not running, after its launch failed. The caller holds its `launching`
/// lock.
pub(super) fn discard(records: &Records, id: &str) -> Result<(), Report> {
    let _lock = records.lock()?;
    match records.get(id)? {
        Some(entry) if !entry.record.step && entry.supervisor()?.is_none() => {
            let state = entry.state()?;
            if state.has_run() || state.kept {
                return Ok(());
            }
            remove(records, &entry)
        }
        _ => Ok(()),
    }
}

/// Removes the supervisor's own container. If the supervisor could not release all outside resources (`clean` is
/// false), it only removes the record, and the next command removes the rest.
pub(crate) fn remove_own(records: &Records, entry: &Entry, clean: bool) -> Result<(), Report> {
    if clean { remove_dirs(records, &entry.record.id) } else { remove_record(records, &entry.record.id) }
}

/// Removes a container whose record cannot be read, with all of its resources. They are found by its id, which its
/// files, leases and cgroups have in their names. The container is not running, or the caller has stopped it.
pub(crate) fn remove_unreadable(records: &Records, id: &str) -> Result<(), Report> {
    let _lock = records.lock()?;
    if !is_idle(&records.paths(id).1)? {
        return Err(Report::new(format!("container {} is being started by another command", short(id))));
    }
    remove_cgroups(records, &cgroup::Host::probe(Path::new("/"))?, id, None)?;
    crate::gpu::lease::release(&records.run_dir().join("gpus"), id)?;
    net::teardown(&records.run_dir().join("net"), id)?;
    remove_dirs(records, id)
}

/// Removes the directory in /run, whose absence means that nothing is left to clean up. Keeps the spare state, which is
/// in /run because the disk was full.
pub(crate) fn clear_run_dir(entry: &Entry) -> Result<(), Report> {
    let spare = entry.spare_state();
    if !spare.exists() {
        return remove_tree(&entry.run_dir);
    }
    let failed = |error| Report::new(format!("cannot clear `{}`", entry.run_dir.display())).with_cause(error);
    for item in std::fs::read_dir(&entry.run_dir).map_err(failed)? {
        let path = item.map_err(failed)?.path();
        if path != spare {
            remove_tree(&path)?;
        }
    }
    Ok(())
}

/// Restores the network of running containers. Every command of root calls this first. A failure is reported and does
/// not fail the command.
pub(crate) fn repair_network(run_dir: &Path) {
    match net::repair(&run_dir.join("net")) {
        Ok(notices) => notices.iter().for_each(|notice| tracing::warn!("{notice}")),
        Err(error) => {
            tracing::warn!("{}", Report::from(error).under("cannot repair the network of running containers"))
        }
    }
}

fn remove_record(records: &Records, id: &str) -> Result<(), Report> {
    records.remove_record(id).map_err(|error| Report::from(error).under("cannot remove the container"))
}

fn remove_dirs(records: &Records, id: &str) -> Result<(), Report> {
    let (dir, run_dir) = records.paths(id);
    remove_record(records, id)?;
    rootfs::remove_work(&dir.join("work"));
    records.files(id).iter().try_for_each(|path| remove_tree(path))?;
    remove_tree(&dir)?;
    remove_tree(&run_dir)
}

/// Removes a directory tree but nothing that is mounted in it, because a mount exposes files of the image or of a user.
fn remove_tree(dir: &Path) -> Result<(), Report> {
    let name = dir.display().to_string();
    let failed = |error: std::io::Error| Report::new(format!("cannot remove `{name}`")).with_cause(error);
    match crate::sys::tree::remove(dir) {
        Ok(()) => return Ok(()),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        // Something is mounted on it or in it.
        Err(error) if error.raw_os_error() == Some(libc::EBUSY) => {}
        Err(error) => return Err(failed(error)),
    }
    let dir = match dir.symlink_metadata() {
        Ok(metadata) if !metadata.is_dir() => match std::fs::remove_file(dir) {
            // It is a mount point.
            Err(error) if error.raw_os_error() == Some(libc::EBUSY) => dir.to_path_buf(),
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(failed(error)),
            _ => return Ok(()),
        },
        // The kernel's mount table has real paths, but `dir` may contain a link (/var/run).
        Ok(_) => std::fs::canonicalize(dir).map_err(failed)?,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(failed(error)),
    };
    for point in mount::points_below(&dir).map_err(failed)?.into_iter().rev() {
        mount::detach(&point)
            .map_err(|error| Report::new(format!("cannot unmount `{}`", point.display())).with_cause(error))?;
    }
    match crate::sys::tree::remove(&dir) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(failed(error)),
        _ => Ok(()),
    }
}

/// The ids of the containers that no process runs or starts, and that still need a clean-up.
fn dead(records: &Records) -> Result<Vec<String>, Report> {
    let mut ids = records.ids_in_run()?;
    ids.extend(records.orphans(&ids)?);
    // Unreadable records are skipped here; the command's own listing reports them.
    for entry in records.list_all()?.0 {
        // After a reboot /run is empty, but the file still contains `running`.
        match entry.state().map(|state| state.claims_to_run()) {
            Ok(false) => {}
            // A damaged state carries no information, so it is written again.
            Ok(true) | Err(RecordError::Damaged { .. }) => ids.push(entry.record.id),
            // Commands for that container report the error. It does not concern the others.
            Err(error) => tracing::warn!("{}", Report::from(error)),
        }
    }
    ids.sort();
    ids.dedup();
    let boot = crate::sys::process::boot_id();
    ids.retain(|id| !lives_without_files(records, id, boot.as_deref()));
    // A lock that cannot be checked proves nothing about its container, and must not fail commands for other
    // containers.
    ids.retain(|id| match is_idle(&records.paths(id).1) {
        Ok(idle) => idle,
        Err(error) => {
            tracing::warn!("{}", Report::from(error));
            false
        }
    });
    Ok(ids)
}

/// Whether a container's directory in /run is gone while its process is alive. Then no lock proves that its supervisor
/// is dead, so nothing of it is cleaned up.
fn lives_without_files(records: &Records, id: &str, boot: Option<&str>) -> bool {
    if !matches!(records.paths(id).1.join("alive").try_exists(), Ok(false)) {
        return false;
    }
    let state = records.get(id).ok().flatten().and_then(|entry| entry.state().ok());
    let Some(pid) = state.and_then(|state| state.living_pid(boot)) else { return false };
    let gone = format!("the directory of container {} in `{}` is gone", short(id), records.run_dir().display());
    let report = Report::new(format!("{gone}, but its process {pid} lives"));
    tracing::warn!("{}", report.with_hint(format!("`gpurun rm -f {0}` or `kill -9 {pid}` ends it", short(id))));
    true
}

fn living(records: &Records) -> Result<Vec<String>, Report> {
    let mut living = records.ids_in_run()?;
    living.retain(|id| !is_idle(&records.paths(id).1).unwrap_or(false));
    Ok(living)
}

fn remove_cgroup(host: &cgroup::Host, place: cgroup::Place) -> Result<(), Report> {
    let Some(cgroup) = cgroup::Cgroup::open(host, place)? else { return Ok(()) };
    cgroup.kill_all()?;
    cgroup.remove()?;
    Ok(())
}

/// Ends all processes of a dead supervisor and removes the container's cgroup. Without a `place`, the cgroups are found
/// by the id, below any parent.
///
/// Processes that the runtime has forked notice the supervisor's death when they next try to reach it. Until then they
/// may create the cgroup again, so they must end first. Those that are in the cgroup already are killed.
fn remove_cgroups(
    records: &Records,
    host: &cgroup::Host,
    id: &str,
    place: Option<cgroup::Place>,
) -> Result<(), Report> {
    let found = || host.find(id).iter().map(cgroup::Place::from).collect();
    let places = || -> Vec<cgroup::Place> { place.as_ref().map_or_else(found, |place| place.all().collect()) };
    let end = Instant::now() + FORKS;
    while !forks_have_ended(&records.paths(id).1)? {
        for place in places() {
            if let Some(cgroup) = cgroup::Cgroup::open(host, place)? {
                cgroup.kill_all()?;
            }
        }
        if Instant::now() > end {
            let what = format!("processes that the dead supervisor of container {} has started do not end", short(id));
            return Err(Report::new(what).with_hint("the next gpurun command tries again"));
        }
        std::thread::sleep(Duration::from_millis(2));
    }
    places().into_iter().try_for_each(|place| remove_cgroup(host, place))
}

/// Writes the exit state that the supervisor could not write.
fn bury(entry: &Entry) -> Result<(), RecordError> {
    let mut state = match entry.state() {
        Err(error @ RecordError::Damaged { .. }) => {
            let why = Report::from(error).under("how the container ended is not known any more");
            let state = State {
                phase: Phase::Exited,
                // The container may have run. Without a start time, a failed first launch would remove it with all of
                // its files.
                started: Some(entry.record.created),
                finished: Some(crate::clock::now()),
                // docker's exit code for an unobserved end.
                exit_code: Some(255),
                error: Some(Report { hint: None, ..why }),
                ..State::default()
            };
            return entry.write_state(&state);
        }
        state => state?,
    };
    if !state.claims_to_run() {
        // If the disk was full before, write the state to it now.
        return if entry.spare_state().exists() { entry.write_state(&state) } else { Ok(()) };
    }
    let same_boot = state.boot_id == crate::sys::process::boot_id();
    state.phase = Phase::Exited;
    state.exit_code = Some(128 + 9);
    state.finished = Some(crate::clock::now());
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
        // Its supervisor is dead, and only its directory in /run may be removed.
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
        // A lost record, also while the directory in /run says that something is left to clean up.
        std::fs::remove_file(dir.join("record.json")).unwrap();
        for run_dir_too in [false, true] {
            if run_dir_too {
                std::fs::create_dir_all(&run_dir).unwrap();
            }
            reconcile(&records).unwrap();
            assert_eq!(std::fs::read_to_string(dir.join("upper/thesis")).unwrap(), "years of work");
            let unreadable = records.list_all().unwrap().1;
            assert!(matches!(unreadable[0].error, crate::record::RecordError::Lost { .. }), "{unreadable:?}");
        }
        // A removal that was interrupted is finished, and so is a launch that was killed before it had an upper
        // directory.
        records.remove_record(&"d".repeat(64)).unwrap();
        let early = records.paths(&"e".repeat(64)).0;
        std::fs::create_dir(&early).unwrap();
        reconcile(&records).unwrap();
        assert!(!dir.exists() && !early.exists());
    }

    #[test]
    fn a_state_that_cannot_be_read_is_one_containers_own_trouble() {
        if !nix::unistd::geteuid().is_root() {
            eprintln!("skipped: needs root");
            return;
        }
        let base = tempfile::tempdir().unwrap();
        let records = Records::open(base.path(), &base.path().join("run")).unwrap();
        let record = crate::fixture::record(&"e".repeat(64), "one");
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
