//! Parses `--volumes-from CONTAINER[:ro|rw]`.

use crate::report::{EXIT_USAGE, Explain};

/// The mounts of another container.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct VolumesFrom {
    /// A name or an ID.
    pub container: String,
    /// `ro` makes all of them read-only, and `rw` leaves them as they are in the other container.
    pub read_only: bool,
}

#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("`--volumes-from {0}` is not `CONTAINER[:ro|rw]`")]
pub(crate) struct VolumesFromError(String);

impl Explain for VolumesFromError {
    fn hint(&self) -> Option<String> {
        Some("for example `--volumes-from data` or `--volumes-from data:ro`".into())
    }
    fn exit_code(&self) -> u8 {
        EXIT_USAGE
    }
}

impl std::str::FromStr for VolumesFrom {
    type Err = VolumesFromError;

    fn from_str(text: &str) -> Result<Self, VolumesFromError> {
        let (container, options) = text.split_once(':').unwrap_or((text, ""));
        let mut mode = None;
        for option in options.split(',').filter(|option| !option.is_empty()) {
            match option {
                "ro" | "rw" if mode.is_none_or(|known| known == option) => mode = Some(option),
                // Labels of SELinux, which gpurun does not set.
                "z" | "Z" => {}
                _ => return Err(VolumesFromError(text.to_owned())),
            }
        }
        if container.is_empty() {
            return Err(VolumesFromError(text.to_owned()));
        }
        Ok(Self { container: container.to_owned(), read_only: mode == Some("ro") })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_container_and_a_mode() {
        let from = |container: &str, read_only| Ok(VolumesFrom { container: container.into(), read_only });
        for (text, expected) in [
            ("a", from("a", false)),
            ("a:ro", from("a", true)),
            ("a:rw", from("a", false)),
            ("a:ro,z", from("a", true)),
        ] {
            assert_eq!(text.parse(), expected, "{text}");
        }
        for wrong in ["", ":ro", "a:x", "a:ro,rw"] {
            assert!(wrong.parse::<VolumesFrom>().is_err(), "{wrong}");
        }
    }
}
