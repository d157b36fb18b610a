//! Builds an image from a Containerfile and runs its `RUN` steps in gpurun's own runtime.
//!
//! ```text
//! text ─ parse ─→ lines ─ stages ─→ stages in build order ─ engine ─→ layers in the store, an image
//!                          words, state, mount, ignore: pure           context, copy, run, fetch, cache: effects
//! ```
//!
//! - Layers: each step that changes files makes one layer. Its key in the [`cache`] is a digest of everything that the
//!   step depends on: the lower layers, the words after expansion, the environment, the user, and the contents of the
//!   copied files. Steps that change only the config make no layer.
//! - `COPY`, `ADD` and `WORKDIR` are planned in memory against the merged tree and written as a tar. Nothing is
//!   mounted.
//! - `RUN` starts a container ([`run`]). Its layer is the overlay's upper directory without the files that gpurun
//!   itself put there.
//! - Intermediate images: each step ends with an intermediate image in the store. It holds the layers of the cache, and
//!   the next `RUN` runs on it.
//! - Clean-up: the image gets its name last, when it is complete. A killed build leaves the same files behind as a
//!   killed launch or load. The next command removes them, and the next build reuses the finished steps.
//! - Pins: the build pins every layer that it uses ([`crate::store::Pins`]), so it still works when their images are
//!   removed meanwhile.
//! - Secrets, host certificates and here-document scripts are stored in /run and bound into one container. Cache keys
//!   hold only their names. An SSH agent is forwarded to the steps that ask for it, and to no other ([`agent`]).
//! - Locks: the build takes one flock of the cache around each step, and never two at once. The store takes its own
//!   locks inside it.

mod agent;
mod bootstrap;
mod budget;
mod cache;
mod check;
mod commit;
mod containerfile;
mod context;
mod copy;
mod copy_source;
mod copy_step;
mod engine;
#[cfg(test)]
mod error_tests;
mod fetch;
mod hostca;
mod ignore;
mod limits;
mod mount;
mod mounted;
mod named;
mod network;
mod options;
mod output;
mod parse;
mod piped;
mod point;
mod run;
mod snapshot;
mod stages;
mod state;
mod steps;
mod words;

pub(crate) use bootstrap::{Bootstrap, bootstrap};
pub(crate) use cache::Cache;
pub(crate) use commit::{Change, Commit, changes, commit, export, import, write_files};
pub(crate) use containerfile::Containerfile;
pub(crate) use engine::build;
pub(crate) use fetch::inflated;
pub(crate) use hostca::find as host_ca;
pub(crate) use options::{NamedContext, Options, Pull};
pub(crate) use output::{Built, Output, StepName, printable};
pub(crate) use piped::{Piped, piped};
pub(crate) use state::PREDEFINED;
