//! The directories of gpurun.

use std::path::PathBuf;

#[derive(Debug)]
pub(super) struct Dirs {
    pub root: PathBuf,
    pub run_dir: PathBuf,
}
