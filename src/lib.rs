//! gpurun: an OCI image as a hard-limited, GPU-equipped, Jupyter-serving container, with no daemon.
//!
//! The rooms, lowest layer first; a room imports only from rooms above it in this list.
//!
//! | layer | rooms |
//! |---|---|
//! | 0 | [`units`], [`names`], [`report`], [`sys`], [`durable`] |
//! | 1 | [`request`], [`spec`] |
//! | 2 | [`layer`], [`image`], [`store`], [`transport`], [`rootfs`], [`hook`], [`gpu`], [`net`], [`cgroup`], [`runtime`], [`record`] |
//! | 3 | [`launch`], [`supervise`], [`jupyter`] |
//! | 4 | [`cli`] |

pub mod units;
pub mod names;
pub mod report;
pub mod sys;
pub mod durable;

pub mod request;
pub mod spec;

pub mod layer;
pub mod image;
pub mod store;
pub mod transport;
pub mod rootfs;
pub mod hook;
pub mod gpu;
pub mod net;
pub mod cgroup;
pub mod runtime;
pub mod record;

pub mod launch;
pub mod supervise;
pub mod jupyter;

pub mod cli;
