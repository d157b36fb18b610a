//! gpurun: an OCI image as a hard-limited, GPU-equipped, Jupyter-serving container, with no daemon.
//!
//! The modules, from the lowest layer to the highest. A module imports only from those before it; `tests/layers.py` checks that.
//!
//! Layer 0, without knowledge of containers:
//! - [`report`]: the error that a user sees: message, causes, hint, exit code
//! - [`units`], [`names`]: sizes, CPUs, image references, digests, IDs
//! - [`clock`]: the time as records and logs keep it
//! - [`sys`]: system calls as safe functions; all of the crate's `unsafe`
//! - [`durable`], [`inflate`]: atomic writes and locks; the gzip decompressor
//! - [`template`]: the Go templates of `--format`
//!
//! Layer 1, pure:
//! - [`spec`]: the plan of a container, and the OCI runtime spec that it becomes
//! - [`request`]: what the caller asked for, validated
//!
//! Layer 2, one resource each:
//! - [`image`]: manifests, indexes, configs, platforms
//! - [`layer`]: tar streams to the merged tree, and the tree to an EROFS index or a directory
//! - [`transport`]: archives, OCI layouts, registries
//! - [`store`]: the image store
//! - [`rootfs`]: image mounts, overlays, safe access to a container's files
//! - [`hook`]: OCI hooks
//! - [`gpu`]: discovery, selection, leases and injection of GPUs
//! - [`network`]: named networks on disk
//! - [`net`]: bridges, addresses, names, published ports
//! - [`cgroup`]: limits, statistics, events, the device filter
//! - [`runtime`]: the only module that uses libcontainer
//! - [`record`]: a container's record and state on disk
//! - [`control`]: the protocol between commands and supervisors
//! - [`volume`]: named volumes
//! - [`config`] reads `/etc/gpurun/config.toml`
//!
//! Layer 3, what is done with them:
//! - [`cluster`]: the Slurm step that gpurun runs in
//! - [`jupyter`]: starting Jupyter, passwords, readiness, owners of files
//! - [`launch`]: from a record to a running container, and the clean-up behind dead supervisors
//! - [`supervise`]: one process per container
//! - [`spank`]: the containers of `srun --container-image`
//! - [`build`]: Containerfiles to images
//! - [`compose`]: compose files to one project, and its services to command lines
//! - [`sampler`]: samples of what running containers use
//! - [`explain`], [`lab`], [`doctor`]: what limits become, experiments, the host's faults
//!
//! Layer 4:
//! - [`cli`]: one file per command
//!
//! A launch runs from [`cli`] through [`request`], [`transport`] and [`store`] to [`record`]; then in a process of its own from [`supervise`]
//! through [`launch`] (which uses [`rootfs`], [`net`], [`gpu`], [`spec`], [`cgroup`]) to [`runtime`]. ARCHITECTURE.md draws it.

#![deny(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "they panic if the reader has closed the pipe: `report::say`, `cli::print`"
)]
#![cfg_attr(
    not(test),
    warn(unreachable_pub, reason = "the compiler finds dead code only where nothing is public without need")
)]
#![allow(rustdoc::private_intra_doc_links, reason = "`cargo doc --document-private-items` is the map for developers")]

mod clock;
mod durable;
mod inflate;
mod names;
mod report;
mod sys;
mod template;
mod units;

mod request;
mod spec;

mod cgroup;
mod config;
mod control;
mod gpu;
mod hook;
mod image;
mod layer;
mod net;
mod network;
mod record;
mod rootfs;
mod runtime;
mod store;
mod transport;
mod volume;

mod build;
mod cluster;
mod compose;
mod doctor;
mod explain;
mod jupyter;
mod lab;
mod launch;
mod sampler;
mod spank;
mod supervise;

mod cli;

pub use cli::main;

#[doc(hidden)]
pub mod testing;

#[cfg(test)]
mod fixture;
