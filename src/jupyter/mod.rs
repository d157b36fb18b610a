//! Jupyter in a container: which one is there, how it is started, who may log in, and when it is ready.
//!
//! The password never stands on a command line or in an environment. What the server has to know lies in files of mode 0600 that belong
//! to the container's user, in a directory that is bound read-only into the container and named first on Jupyter's search path, before
//! any `~/.jupyter` that a bind mount may bring:
//!
//! ```text
//! <container's run directory>/jupyter/            0700, the container's user     →  /run/gpurun/jupyter (read-only)
//!   jupyter_server_config.json                    jupyter_server, JupyterLab ≥ 3, Notebook ≥ 7
//!   jupyter_notebook_config.json                  Notebook ≤ 6 and what runs on it
//!   jupyter_lab_config.json                       so that no other directory's can come in between
//!   migrated                                      stops jupyter_core from wanting to write here
//! ```
//! The files are written by [`Launch::write_files`] and go with the run directory. Trap that shaped this: Notebook 6.0 with a blank token
//! and a password setting that it does not know is open to everybody. No token is ever blanked, and [`wait_ready`] calls a server ready
//! only after it refused a visitor without a login.

mod auth;
mod facts;
mod http;
mod launch;
mod owner;
mod password;
mod ready;
mod texts;
mod wrapper;

pub use auth::{Auth, AuthError, PasswordSource, Secret, obtain, read_password};
pub use facts::{FileKind, Files, NoJupyter, Program, Rootfs, Server, detect};
pub use launch::{CONFIG_DIR, ConfigFile, Launch, LaunchError, LaunchRequest, base_url, limit_env, plan};
pub use owner::exchange;
pub use password::{Algorithm, HashError, check_hash, hash, verify};
pub use ready::{Probe, Ready, ReadyError, wait_ready};
pub use texts::{Announcement, announce, url};
pub use wrapper::wrapper;
