//! A container's root file system: the image's mount, the overlay on it, and safe ways to look and build inside.
//!
//! ```text
//! /run/gpurun/images/.lock          flock, held while a mount there is made or taken away
//!                    <chain>        the image, mounted read-only once per host and shared by its containers (in the host's namespace)
//!                    <chain>.kept   somebody wants the mount without a container (`gpurun image mount`)
//!                    <chain>.lease  flock, shared by every container that uses the mount; its mtime is the last use, in it the path of the index
//! ```
//!
//! Order of a launch: [`stored::lower`] (host's namespace) → [`private_namespace`] → [`overlay`] → [`check_guards`] → mount points
//! and files in the root ([`make_mountpoint_in_root`]) → libcontainer. Nothing but image mounts ever stands in the host's namespace; the overlay goes with the
//! supervisor's. An image mount that nobody leases or keeps may be taken away by anybody ([`images::sweep`]): every command takes those
//! that were idle for a while (until then the next container finds its pages in memory) or whose image is gone, `image rm` the ones it removes.
//!
//! Everything here runs in the single-threaded supervisor: no function starts a thread.
//!
//! An image is hostile: every path inside it is resolved with the image's root as `/` ([`resolve_in_root`]), and never by joining names.

mod copy;
mod guards;
pub mod images;
mod namespace;
mod overlay;
mod root;
pub mod stored;
pub mod users;

#[cfg(test)]
mod difftest;
#[cfg(test)]
pub(crate) mod testing;

pub use copy::copy_tree;
pub use guards::{GuardError, check_guards};
pub use namespace::{HostNamespace, NamespaceError, private_namespace};
pub use overlay::{Overlay, OverlayError, overlay};
pub use root::{
    MountpointKind, RootError, create_dir_in_root, link_in_root, make_mountpoint_in_root, open_root, read_file_in_root,
    replace_file_in_root, resolve_in_root, stat_in_root,
};
