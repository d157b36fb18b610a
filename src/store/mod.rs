//! The image store: layers as their original tar streams, and images as small files that refer to them.
//!
//! ```text
//! <root>/format                    version of this layout, see [`FORMAT`]
//! <root>/lock                      flock: exclusive to commit, remove and sweep; shared to keep images in the store
//! <root>/names.json                full reference → image id
//! <root>/digests.json              repository digest → image id, see `digests`
//! <root>/layers/<diff id>.tar      a layer's tar stream, byte for byte; its sha256 is its name
//! <root>/images/<id>/config.json   verbatim; its sha256 is the image's id
//! <root>/images/<id>/manifest.json verbatim, if the source had one
//! <root>/images/<id>/image.json    further data of this store: chain ID, layer sizes, time of the load
//! <root>/images/<chain id>.erofs   metadata of the merged tree; file data points into the layers (see `layer::erofs`)
//! <root>/images/<chain id>.side    file data that is not an aligned run of a layer's tar (rare)
//! <root>/archives/<id>/            images that run directly from an archive (see `in_place`)
//! <root>/dirs/<chain id>/          the merged tree as plain files, if the index cannot be mounted (see `rootfs`)
//! <root>/tmp/<random>/             staging directory of a load or build; its owner holds an flock on its `lock`
//! <root>/tmp/removed.<id>/         an image that is being removed, until its layers and names are gone too
//! <root>/tmp/names.<pid>           a list of names being written
//! ```
//!
//! Clean-up rule: everything is created in a staging directory, synced, and renamed into place under the lock, in this
//! order: layers, index, image directory, names. A listed image is therefore complete, even after a power failure. A
//! killed process leaves its staging directory, whose lock is free, and perhaps layers that no image uses.
//! [`Store::open`] finds the staging directory and then removes both. A load pins a layer that already exists with a
//! hard link in its staging directory, and a build pins all layers that it reads, so that a concurrent removal does no
//! harm.

mod digests;
mod draft;
mod error;
#[cfg(test)]
mod error_tests;
mod files;
mod find;
mod image;
mod in_place;
mod ingest;
mod limits;
mod load;
mod located;
mod names;
mod pins;
mod progress;
mod proof;
mod push;
mod record;
mod remove;
mod root;
mod save;
mod scan;
mod staging;
#[cfg(test)]
mod testing;
#[cfg(test)]
mod tests;
mod usage;
mod verify;

pub(crate) use crate::transport::Source;
pub(crate) use draft::Draft;
pub(crate) use error::{ResolveError, StoreError};
pub(crate) use image::Image;
pub(crate) use ingest::IngestError;
pub(crate) use load::{LoadOptions, Loaded};
pub(crate) use located::Stretch;
pub(crate) use pins::Pins;
pub(crate) use progress::Progress;
pub(crate) use remove::{RemoveError, Removed, User};
pub(crate) use root::Store;
pub(crate) use save::{Format, Sink, ToSave};
pub(crate) use staging::Staging;
pub(crate) use usage::Usage;
pub(crate) use verify::{Fault, Repair};
