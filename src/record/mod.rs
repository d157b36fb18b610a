//! A container's record on disk: its request, its state, and the data to find it again.
//!
//! ```text
//! /var/lib/gpurun/containers/
//!     .lock                 flock: protects the reservation of names and the removal of records
//!     .run .users           the run directory in /run that belongs to this root, and its users: see `binding`
//!     ID/                   flock: held while its record is changed, or read by its supervisor
//!         record.json       the request, written before anything is created; `check` is the digest of its other lines
//!         state.json        the state: replaced as a whole by the supervisor, or by reconcile if the supervisor died
//!         disposable        exists if the directory may be removed when it has no record: see below
//!         secrets.json      mode 0600: the login for this container's Jupyter
//!         tls-cert.pem tls-key.pem    mode 0600: the certificate that gpurun generated for it
//!         upper/ work/      the upper directory and work directory of the overlay
//!         log log.1 …       output (supervise)
//! /var/lib/gpurun/logs/  diagnostics of supervisors (supervise)
//! /run/gpurun/ID/
//!     alive                 record lock of the supervisor: its proof of life
//!     forks                 flock of the supervisor, which the processes inherit that the runtime forks. It is free
//!                           once all of them have ended or have executed a program
//!     launching             record lock of the command that is starting the container
//!     step.json             replaces record.json for a build's step
//!     state.json            replaces the state above while the disk is full
//! /run/gpurun/removed       what is known of removed containers: see `history`
//! ```
//!
//! `record.json` is never changed in place. A writer (`rename`, `update`, a supervisor) takes the lock of the
//! container's directory, reads the record again, and replaces it as a whole, so that no writer overwrites another's
//! change. It holds the lock only for that time, and waits for no other lock meanwhile. `state.json` has one writer:
//! the living supervisor or, without one, the holder of the reconcile lock. A container whose `alive` lock is not held
//! is dead, even if its state is `running`. `/run/gpurun/ID` exists as long as anything of the container may need a
//! clean-up, and is removed last.
//!
//! A container whose record cannot be read ([`Unreadable`]) is still a container. It is listed and removed by its id,
//! which is the name of its directory, and its files are kept until then. It does not block commands for other
//! containers.
//!
//! The same applies to a container whose record is lost: a directory without `record.json` that contains an upper
//! directory. It is removed without a question only if it also contains `disposable`, which exists in the directory of a
//! build's step and is created before a record is removed.

mod binding;
mod entry;
mod error;
#[cfg(test)]
mod error_tests;
mod files;
mod find;
mod format;
mod health;
pub(crate) mod history;
mod owner;
mod paths;
mod records;
mod refused;
mod state;
mod types;

pub(crate) use binding::InUse;
pub(crate) use entry::{Entry, Launching};
pub(crate) use error::RecordError;
pub(crate) use find::Found;
pub(crate) use health::{Health, HealthResult, HealthStatus};
pub(crate) use owner::Owner;
pub(crate) use paths::{diagnostics, forks_have_ended, is_idle, supervisor_of};
pub(crate) use records::{Records, Unreadable};
pub(crate) use state::{LimitRow, OomRow, Phase, PublishedPort, State, StopLimit, StopReason, Usage};
pub(crate) use types::{Record, Secrets, cgroup_path, short};
