//! The argument and the exit status of `container exists`, `image exists`, `volume exists` and `network exists`.

use clap::Args;

#[derive(Debug, Args)]
pub(super) struct ExistsArgs {
    /// Name or ID
    #[arg(value_name = "NAME")]
    pub(super) name: String,
}

/// The exit status of `exists`.
pub(super) fn existence(exists: bool) -> u8 {
    u8::from(!exists)
}
