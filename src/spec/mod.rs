//! Plan → OCI runtime spec. Pure: no disk, no libcontainer.

mod limits;

pub use limits::{Limits, Swap};
