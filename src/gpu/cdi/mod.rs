//! The Container Device Interface: files in which vendors describe the edits for their devices, `--device
//! vendor.com/class=name`.
//!
//! ```text
//! /etc/cdi/*.{json,yaml}          written by an administrator
//! /var/run/cdi/*.{json,yaml}      written by a driver's service; takes precedence
//! ```
//!
//! If two files of the same directory describe a device, a request for it is an error that names both. An invalid file
//! is an error only if a request names a device that it may describe. The paths in a file must exist when it is used. A
//! file from before the last driver upgrade is stale, and the error says so.
//!
//! The format is vendor-neutral. A vendor's [`Facts`] hold the special cases of its files.
//!
//! gpurun has its own reader because the crate (container-device-interface 1.1.1) has several drawbacks. It has 103
//! dependencies, among them an HTTP client, a second TLS library, tokio and a JSON schema engine. It does not detect
//! stale files. It leaves the minor number unset if a file omits it next to a major number. If two files of a directory
//! conflict, it uses the first.

mod error;
mod facts;
mod registry;
mod resolve;
mod spec;

pub(crate) use error::CdiError;
pub(super) use facts::Facts;
pub(crate) use registry::Registry;
pub use spec::Spec;

#[cfg(test)]
mod tests;
