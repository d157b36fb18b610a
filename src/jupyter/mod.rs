//! Jupyter in a container: which Jupyter the image has, how to start it, how users log in, and when it is ready.
//!
//! The password never appears on a command line or in an environment. The server reads its settings from files of mode
//! 0600 that belong to the container's user. Their directory is bind-mounted read-only into the container and comes
//! first on Jupyter's search path, before any `~/.jupyter` of a bind mount:
//!
//! ```text
//! <container's run directory>/jupyter/            0700, the container's user     →  /run/gpurun/jupyter (read-only)
//!   jupyter_server_config.json                    jupyter_server, JupyterLab ≥ 3, Notebook ≥ 7
//!   jupyter_notebook_config.json                  Notebook ≤ 6 and programs based on it
//!   jupyter_lab_config.json                       present so that no other directory's file takes effect
//!   cert.pem, key.pem                             the certificate of `--tls`
//!   migrated                                      keeps jupyter_core from writing to this directory
//! ```
//! [`Launch::write_files`] writes the files, and they are removed with the run directory. One trap shaped this design:
//! Notebook 6.0 is open to everyone if the token is blank and it does not know the password setting. The token is
//! therefore never blank, and [`wait_ready`] reports a server as ready only after it has refused a request without a
//! login.

mod api;
mod auth;
#[cfg(test)]
mod error_tests;
mod facts;
mod http;
mod launch;
mod owner;
mod password;
mod ready;
mod texts;
pub(crate) mod tls;
mod wrapper;

pub(crate) use api::{address, kernels, published};
pub(crate) use auth::{Auth, PasswordSource, Secret, obtain, read_password};
pub(crate) use facts::Rootfs;
pub(crate) use launch::{
    CONFIG_DIR, Launch, LaunchError, LaunchRequest, base_url, certificate, plan, probe_mark, runs_as,
};
pub(crate) use owner::exchange;
pub(crate) use password::{Algorithm, HashError, hash};
pub(crate) use ready::{Probe, wait_ready};
pub(crate) use texts::{Announcement, Host, announce, host_address};
pub(crate) use wrapper::wrapper;
