//! The labels by which a container or a network belongs to a project. They have docker-compose's names.

pub(crate) const PROJECT: &str = "com.docker.compose.project";
pub(crate) const SERVICE: &str = "com.docker.compose.service";
pub(crate) const HASH: &str = "com.docker.compose.config-hash";
pub(crate) const NUMBER: &str = "com.docker.compose.container-number";
pub(crate) const ONEOFF: &str = "com.docker.compose.oneoff";
/// `SERVICE:CONDITION:RESTART`, separated by commas.
pub(crate) const DEPENDS: &str = "com.docker.compose.depends_on";
pub(crate) const DIRECTORY: &str = "com.docker.compose.project.working_dir";
pub(crate) const FILES: &str = "com.docker.compose.project.config_files";
/// The network's name in the compose files.
pub(crate) const NETWORK: &str = "com.docker.compose.network";
pub(crate) const VERSION: &str = "com.docker.compose.version";
