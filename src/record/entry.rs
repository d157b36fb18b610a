//! One container: its record, its state, its locks, and the paths of its files.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use super::binding::{self, InUse};
use super::error::RecordError;
use super::files::{get, make_dir, put, put_bytes};
use super::format::{put_record, read_record};
use super::paths::{DISPOSABLE, FORKS, STEP, control_socket, diagnostics, is_idle, supervisor_of};
use super::state::{Phase, State};
use super::types::{Record, Secrets};
use crate::durable::{FileLock, ProcessLock};
use crate::report::Report;
use crate::request::{Attachment, LimitsRequest, Request, RestartPolicy, TimeLimits};

/// One container: its record and the paths that belong to it.
#[derive(Debug, Clone)]
pub(crate) struct Entry {
    pub record: Record,
    /// `/var/lib/gpurun/containers/ID`
    pub dir: PathBuf,
    /// `/run/gpurun/ID`
    pub run_dir: PathBuf,
}

/// The lock of a command that is starting this container. While it is held, no other command cleans up the container,
/// and the root keeps its run directory.
#[derive(Debug)]
pub(crate) struct Launching {
    #[expect(dead_code, reason = "held for its Drop")]
    lock: ProcessLock,
    #[expect(dead_code, reason = "held for its Drop")]
    in_use: InUse,
}

impl Entry {
    /// Creates the directories and the record of a new container.
    pub(super) fn write_new(&self, secrets: Option<&Secrets>) -> Result<Launching, RecordError> {
        let durable = !self.record.request.auto_remove;
        make_dir(&self.run_dir)?;
        let launching = self.launching()?;
        make_dir(&self.dir)?;
        if self.record.step {
            put_bytes(&self.dir.join(DISPOSABLE), b"", false)?;
        }
        if let Some(secrets) = secrets {
            put(&self.dir.join("secrets.json"), secrets, durable)?;
        }
        let path = if self.record.step { self.run_dir.join(STEP) } else { self.dir.join("record.json") };
        put_record(&path, &self.record, durable)?;
        Ok(launching)
    }

    /// Prevents a change of the root's run directory while this process uses a container.
    pub(crate) fn in_use(&self) -> Result<InUse, RecordError> {
        let parent = |dir: &Path| dir.parent().unwrap_or(dir).to_path_buf();
        binding::hold(&parent(&self.dir), &parent(&self.run_dir))
    }

    /// The container's state from its file. A container that has never run has no state file.
    pub(crate) fn state(&self) -> Result<State, RecordError> {
        if let Some(state) = get(&self.spare_state())? {
            return Ok(state);
        }
        Ok(get(&self.dir.join("state.json"))?.unwrap_or_default())
    }

    /// The state for a listing, which a damaged state must not interrupt. A damaged state belongs to a running
    /// container, whose supervisor writes it again at the next change. Every command rewrites the damaged states of
    /// other containers.
    pub(crate) fn state_shown(&self) -> Result<State, RecordError> {
        match self.state() {
            Err(RecordError::Damaged { .. }) => Ok(State { phase: Phase::Running, ..State::default() }),
            state => state,
        }
    }

    /// Replaces the state. Only the living supervisor may call this or, without one, the holder of [`Records::lock`].
    ///
    /// If the disk is full, the state is kept in /run until it can be written. That is still an error, but a container
    /// that has ended is never shown as running. (The container itself may have filled the disk, for example with its
    /// log.)
    pub(crate) fn write_state(&self, state: &State) -> Result<(), RecordError> {
        let durable = !self.record.request.auto_remove && state.phase == Phase::Exited;
        let spare = self.spare_state();
        if let Err(error) = put(&self.dir.join("state.json"), state, durable) {
            // If /run is full too, reconcile finds out that the old state is wrong.
            let _ = put(&spare, state, false);
            return Err(error);
        }
        match fs::remove_file(&spare) {
            Err(source) if source.kind() != io::ErrorKind::NotFound => {
                Err(RecordError::Io { action: "remove", path: spare, source })
            }
            _ => Ok(()),
        }
    }

    /// The path of the state while the disk is full.
    #[must_use]
    pub(crate) fn spare_state(&self) -> PathBuf {
        self.run_dir.join("state.json")
    }

    pub(crate) fn secrets(&self) -> Result<Option<Secrets>, RecordError> {
        get(&self.dir.join("secrets.json"))
    }

    /// Renames the container. The caller holds [`Records::lock`] and has checked the name.
    pub(crate) fn rename(&mut self, name: &str) -> Result<(), RecordError> {
        self.amend(|record| {
            name.clone_into(&mut record.name);
            Ok(())
        })
    }

    /// Replaces the limits, the restart policy and the limits of time. Only the living supervisor may call this. A failure leaves the
    /// record unchanged.
    pub(crate) fn change(
        &mut self,
        limits: LimitsRequest,
        restart: RestartPolicy,
        times: TimeLimits,
    ) -> Result<(), RecordError> {
        self.amend(|record| {
            let request = &mut record.request;
            (request.limits, request.restart, request.time_limits) = (limits, restart, times);
            Ok(())
        })
    }

    /// Like [`Self::change`], for a container that no process runs or starts; `change` computes the new values from the
    /// request. A supervisor that starts at the same time either reads the changed record or is detected here, so it
    /// never runs with outdated limits.
    pub(crate) fn change_at_rest(
        &mut self,
        change: impl FnOnce(&Request) -> Result<(LimitsRequest, RestartPolicy, TimeLimits), Report>,
    ) -> Result<(), Report> {
        self.amend_at_rest(|request| {
            (request.limits, request.restart, request.time_limits) = change(request)?;
            Ok(())
        })
    }

    /// Replaces the networks. Only the living supervisor may call this.
    pub(crate) fn change_networks(&mut self, networks: Vec<Attachment>) -> Result<(), RecordError> {
        self.amend(|record| {
            record.request.networks = Some(networks);
            Ok(())
        })
    }

    /// Changes the request of a container that no process runs or starts: see [`Self::change_at_rest`].
    pub(crate) fn amend_at_rest(
        &mut self,
        change: impl FnOnce(&mut Request) -> Result<(), Report>,
    ) -> Result<(), Report> {
        let run_dir = self.run_dir.clone();
        self.amend(|record| {
            if !is_idle(&run_dir)? {
                return Err(Report::new(format!("container `{}` is being started by another command", record.name)));
            }
            change(&mut record.request)
        })
    }

    /// Changes the record as it is on the disk now, not an earlier copy. A supervisor's `update` and another command's
    /// `rename` may come at the same moment, and each keeps the other's change.
    pub(super) fn amend<E: From<RecordError>>(
        &mut self,
        change: impl FnOnce(&mut Record) -> Result<(), E>,
    ) -> Result<(), E> {
        let _lock = self.record_lock()?;
        let path = self.dir.join("record.json");
        let gone = || RecordError::Io { action: "read", path: path.clone(), source: io::ErrorKind::NotFound.into() };
        let mut record = read_record(&path, &self.record.id)?.ok_or_else(gone)?;
        change(&mut record)?;
        put_record(&path, &record, true)?;
        self.record = record;
        Ok(())
    }

    /// The lock for changing the record. Decisions that depend on the record and on whether the container runs are made
    /// under it: see `Supervisor::new`.
    pub(crate) fn record_lock(&self) -> Result<FileLock, RecordError> {
        FileLock::of_dir(&self.dir).map_err(|source| RecordError::Io { action: "lock", path: self.dir.clone(), source })
    }

    /// Takes the lock of a command that is starting this container.
    pub(crate) fn launching(&self) -> Result<Launching, RecordError> {
        let in_use = self.in_use()?;
        let path = self.run_dir.join("launching");
        match ProcessLock::try_take(&path) {
            Ok(Some(lock)) => Ok(Launching { lock, in_use }),
            Ok(None) => Err(RecordError::Io {
                action: "start, because another command is starting it:",
                path,
                source: io::ErrorKind::ResourceBusy.into(),
            }),
            Err(source) => Err(RecordError::Io { action: "lock", path, source }),
        }
    }

    /// Takes the lock that the supervisor's forks inherit, or returns `None` if forks of an earlier supervisor live.
    ///
    /// A fork can outlive a killed supervisor until it next tries to reach it, and can create cgroups until then. So
    /// nothing of the container is removed while this lock is held.
    pub(crate) fn hold_forks(&self) -> Result<Option<FileLock>, RecordError> {
        let path = self.run_dir.join(FORKS);
        FileLock::try_exclusive(&path).map_err(|source| RecordError::Io { action: "lock", path, source })
    }

    /// The pid of the supervisor, if it is alive.
    pub(crate) fn supervisor(&self) -> Result<Option<i32>, RecordError> {
        supervisor_of(&self.run_dir)
    }

    /// Whether no process is running or starting this container.
    pub(crate) fn is_idle(&self) -> Result<bool, RecordError> {
        is_idle(&self.run_dir)
    }

    #[must_use]
    pub(crate) fn control_socket(&self) -> PathBuf {
        control_socket(&self.run_dir)
    }

    #[must_use]
    pub(crate) fn log(&self) -> PathBuf {
        self.dir.join("log")
    }

    /// The path of the supervisor's diagnostics.
    #[must_use]
    pub(crate) fn diagnostics(&self) -> PathBuf {
        let root = self.dir.ancestors().nth(2).unwrap_or(&self.dir);
        diagnostics(root, &self.record.id)
    }
}
