//! The versions of docker's programs whose command lines gpurun follows.

/// The version of docker whose command line gpurun has (tests/docker-help.txt), and of its plugins. gpurun answers with it
/// under docker's name, to programs that need a certain version.
pub(crate) const DOCKER_VERSION: &str = "26.1.5";

pub(crate) const COMPOSE_VERSION: &str = "2.26.1";
pub(crate) const BUILDX_VERSION: &str = "0.13.1";
