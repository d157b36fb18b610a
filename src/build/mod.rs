//! From a Containerfile to an image, run by our own runtime.
//!
//! ```text
//! text ─ parse ─→ lines ─ stages ─→ what to do, in which order ─ engine ─→ layers of the store, an image
//!                          words, state, mount, ignore: pure            context, copy, run, fetch, cache: effects
//! ```
//!
//! - A step that changes files makes one layer. Its key in the [`cache`] is a digest of all that it depends on: the layers below, the words
//!   after expansion, environment and user, the contents of what is copied. Steps that change the config alone cost nothing.
//! - `COPY`, `ADD` and `WORKDIR` are decided against the merged tree in memory and written as a tar: nothing is mounted. `RUN` is a container
//!   of our own ([`run`]), its layer the overlay's upper directory without what gpurun itself put there.
//! - Each step ends with an intermediate image in the store: the cache's layers are held by it, and the next `RUN` runs on it. The name is
//!   given to a whole image in the last moment. A build that is killed leaves what any killed launch or load leaves, for the next command
//!   to clear away, and its finished steps to the next build.
//! - Every layer that the build knows is pinned ([`crate::store::Pins`]): images that are removed meanwhile are not missed.
//! - Secrets, host certificates and here-document scripts lie in /run and are bound into one container; keys hold their names alone.
//! - Locks: one flock of the cache around each step (never two at once), the store's own inside it.

mod bootstrap;
mod cache;
mod commit;
mod context;
mod copy;
mod engine;
mod fetch;
mod hostca;
mod ignore;
mod mount;
mod mounted;
mod parse;
mod run;
mod stages;
mod state;
mod steps;
mod words;

use std::collections::BTreeMap;
use std::path::PathBuf;

pub use bootstrap::{Bootstrap, bootstrap};
pub use cache::Cache;
pub use commit::{Change, Commit, changes, commit, export};
pub use engine::build;
pub use fetch::inflated;
pub use state::PREDEFINED;

use crate::names::{Digest, Reference};
use crate::report::Report;
use crate::request::NetworkMode;
use crate::spec::AskedLimits;
use crate::store::Image;

/// Everything about one build that a person chose.
#[derive(Debug, Clone)]
pub struct Options {
    /// The store's root.
    pub root: PathBuf,
    /// The Containerfile: what to call it, its text, and where it lies if it is a file.
    pub file: String,
    pub text: String,
    pub path: Option<PathBuf>,
    /// The context directory; none, if only a Containerfile was given.
    pub context: Option<PathBuf>,
    pub names: Vec<Reference>,
    pub args: BTreeMap<String, String>,
    pub target: Option<String>,
    pub labels: Vec<(String, String)>,
    pub no_cache: bool,
    pub network: NetworkMode,
    pub limits: AskedLimits,
    pub add_hosts: Vec<String>,
    pub secrets: BTreeMap<String, Vec<u8>>,
    pub host_ca: bool,
    /// SOURCE_DATE_EPOCH: no time in the image is later.
    pub clamp: Option<i64>,
}

/// Gets a base image: the store's, or where there is none (or a newer one was asked for) a registry's.
pub type Pull<'a> = &'a dyn Fn(&str) -> Result<Image, Report>;

/// Who is told how the build goes.
pub trait Output {
    /// A step begins: `number` of `total`, the stage's name, the instruction.
    fn begin(&mut self, step: &StepName<'_>);
    /// What its command writes.
    fn log(&mut self, bytes: &[u8]);
    /// Time goes by, and its command is quiet.
    fn tick(&mut self);
    /// It was made before.
    fn cached(&mut self);
    fn done(&mut self);
    /// One line that is no step's.
    fn notice(&mut self, line: &str);
}

/// What a step is called.
#[derive(Debug, Clone, Copy)]
pub struct StepName<'a> {
    pub number: usize,
    pub total: usize,
    /// Empty for the only stage of a file.
    pub stage: &'a str,
    pub text: &'a str,
}

/// An image that was built.
#[derive(Debug, Clone)]
pub struct Built {
    pub id: Digest,
    pub steps: usize,
    pub cached: usize,
}

/// The text without control sequences: what a build's command prints must not move the person's cursor.
#[must_use]
pub fn printable(line: &str) -> String {
    let (mut out, mut chars) = (String::new(), line.chars().peekable());
    while let Some(next) = chars.next() {
        match next {
            '\x1b' if chars.peek() == Some(&'[') => {
                chars.next();
                while chars.next().is_some_and(|c| !('@'..='~').contains(&c)) {}
            }
            '\t' => out.push_str("    "),
            next if next.is_control() => {}
            next => out.push(next),
        }
    }
    out
}
