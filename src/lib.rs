//! gpurun: an OCI image as a hard-limited, GPU-equipped, Jupyter-serving container, with no daemon.
//!
//! The rooms, lowest layer first; a room imports only from rooms above it in this list.
//!
//! | layer | rooms |
//! |---|---|
//! | 0 | [`units`], [`names`], [`report`], [`sys`], [`durable`], [`inflate`] |
//! | 1 | [`request`], [`spec`] |
//! | 2 | [`layer`], [`image`], [`store`], [`transport`], [`rootfs`], [`hook`], [`gpu`], [`net`], [`cgroup`], [`runtime`], [`record`] |
//! | 3 | [`launch`], [`supervise`], [`jupyter`], [`build`], [`explain`], [`lab`], [`doctor`] |
//! | 4 | [`cli`] |

#![deny(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "they panic when nobody reads: `report::say`, `cli::print`"
)]

pub mod durable;
pub mod inflate;
pub mod names;
pub mod report;
pub mod sys;
pub mod units;

pub mod request;
pub mod spec;

pub mod cgroup;
pub mod gpu;
pub mod hook;
pub mod image;
pub mod layer;
pub mod net;
pub mod record;
pub mod rootfs;
pub mod runtime;
pub mod store;
pub mod transport;

pub mod build;
pub mod doctor;
pub mod explain;
pub mod jupyter;
pub mod lab;
pub mod launch;
pub mod supervise;

pub mod cli;

#[cfg(test)]
mod testing;
