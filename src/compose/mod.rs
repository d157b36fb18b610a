//! Compose files: reading them, and the services, their order and the requests that they become.
//!
//! [`load`] finds the files of a project, merges them and returns a [`Project`]. What it prints agrees with
//! `docker-compose config`. Nothing here writes to the disk, and there is no state: a project's containers are found by
//! their `com.docker.compose.*` labels.
//!
//! The stages: `yaml` reads a tree with lines, `template` and `dotenv` replace variables, `check` compares it with the
//! table in `schema`, `load` applies `extends`, `include` and `merge`, `canonical` and `normalize` bring it into its
//! long form, `decode` gives values their final form, and `emit` prints them. `plan` turns services into the command lines
//! of `gpurun run` and `gpurun build`. Files are hostile: their size, number,
//! depth and the number of values that aliases and `extends` stand for are bounded.

mod canonical;
mod check;
mod decode;
mod dotenv;
mod emit;
mod error;
mod forms;
pub(crate) mod labels;
mod load;
mod merge;
mod normalize;
mod plan;
mod project;
mod raw;
mod schema;
mod service;
mod template;
#[cfg(test)]
mod tests;
mod value;
mod yaml;

pub(crate) use plan::{Build, Condition, Connection, Plan, Plans, ProjectNetwork, PullPolicy};
pub(crate) use project::{Project, Source, load};
pub(crate) use raw::Raw;
pub(crate) use template::Variable;
