//! Builds a container's root file system: the image's mount, the overlay on it, and safe functions to read and create
//! files inside.
//!
//! ```text
//! /run/gpurun/images/.lock          flock, held while a mount is made or removed
//!                    <chain>        the image, mounted read-only once per host (in the host's namespace) and shared by
//!                                   its containers
//!                    <chain>.kept   keeps the mount without a container (`gpurun image mount`)
//!                    <chain>.lease  flock, shared by every container that uses the mount; its mtime is the last use,
//!                                   its content the path of the index
//! ```
//!
//! The steps of a launch are: [`stored::lower`] (in the host's namespace) → [`private_namespace`] → [`overlay`] →
//! [`check_guards`] → mount points and files in the root ([`make_mountpoint_in_root`]) → libcontainer. Only image
//! mounts are made in the host's namespace. The overlay disappears with the supervisor's namespace.
//!
//! Any command may remove an image mount that is neither leased nor kept ([`images::sweep`]). Every command removes the
//! mounts that have been idle for a while or whose image is gone. Until then, the next container finds the image's
//! pages in memory. `image rm` removes the mounts of the images that it removes.
//!
//! Everything here runs in the single-threaded supervisor, so no function starts a thread.
//!
//! An image is hostile: every path inside it is resolved with the image's root as `/` ([`resolve_in_root`]), and never
//! by joining names.

mod copy;
pub(crate) mod driver_layer;
#[cfg(test)]
mod error_tests;
mod guards;
pub(crate) mod images;
mod namespace;
mod overlay;
mod root;
pub(crate) mod stored;
pub(crate) mod users;

#[cfg(test)]
mod difftest;
#[cfg(test)]
pub(crate) mod testing;

pub(crate) use copy::copy_tree;
pub(crate) use guards::check_guards;
pub(crate) use namespace::{HostNamespace, private_namespace};
pub use overlay::Overlay;
pub use overlay::overlay;
pub(crate) use overlay::remove_work;
pub(crate) use root::{
    MountpointKind, RootError, create_dir_in_root, link_in_root, make_mountpoint_in_root, open_mountpoint_below,
    open_root, read_file_in_root, replace_file_in_root, resolve_in_root, stat_in_root,
};
