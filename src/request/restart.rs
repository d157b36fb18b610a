//! Parses and applies `--restart`, which decides whether a container is started again when its process exits.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::report::{EXIT_USAGE, Explain};

/// docker's restart policies. The supervisor applies them while the container exists, and `gpurun boot start` after a
/// reboot.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub enum RestartPolicy {
    #[default]
    No,
    Always,
    UnlessStopped,
    OnFailure {
        /// Maximum number of consecutive restarts.
        max: Option<u32>,
    },
}

impl RestartPolicy {
    /// Returns whether a container that exited with `code` is started again after `count` consecutive restarts.
    #[must_use]
    pub fn restarts(self, code: u8, count: u32) -> bool {
        match self {
            Self::No => false,
            Self::Always | Self::UnlessStopped => true,
            Self::OnFailure { max } => code != 0 && max.is_none_or(|max| count < max),
        }
    }
}

#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("`--restart {0}` is not a restart policy")]
pub struct RestartError(String);

impl Explain for RestartError {
    fn hint(&self) -> Option<String> {
        Some("use `no`, `always`, `unless-stopped`, `on-failure` or `on-failure:N` (N restarts at most)".into())
    }
    fn exit_code(&self) -> u8 {
        EXIT_USAGE
    }
}

impl FromStr for RestartPolicy {
    type Err = RestartError;

    fn from_str(text: &str) -> Result<Self, RestartError> {
        let wrong = || RestartError(text.to_owned());
        match text.split_once(':') {
            None => match text {
                "no" | "" => Ok(Self::No),
                "always" => Ok(Self::Always),
                "unless-stopped" => Ok(Self::UnlessStopped),
                "on-failure" => Ok(Self::OnFailure { max: None }),
                _ => Err(wrong()),
            },
            Some(("on-failure", count)) => {
                // In docker, 0 means "no limit".
                let max: u32 = count.parse().map_err(|_| wrong())?;
                Ok(Self::OnFailure { max: (max > 0).then_some(max) })
            }
            Some(_) => Err(wrong()),
        }
    }
}

impl fmt::Display for RestartPolicy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::No => f.write_str("no"),
            Self::Always => f.write_str("always"),
            Self::UnlessStopped => f.write_str("unless-stopped"),
            Self::OnFailure { max: None } => f.write_str("on-failure"),
            Self::OnFailure { max: Some(max) } => write!(f, "on-failure:{max}"),
        }
    }
}

impl From<RestartPolicy> for String {
    fn from(policy: RestartPolicy) -> Self {
        policy.to_string()
    }
}

impl TryFrom<String> for RestartPolicy {
    type Error = RestartError;

    fn try_from(text: String) -> Result<Self, RestartError> {
        text.parse()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn policies_print_as_they_parse() {
        for text in ["no", "always", "unless-stopped", "on-failure", "on-failure:3"] {
            assert_eq!(text.parse::<RestartPolicy>().unwrap().to_string(), text);
        }
        for text in ["never", "on-failure:", "on-failure:x", "on-failure:-1", "always:3", "Always"] {
            assert!(text.parse::<RestartPolicy>().is_err(), "{text}");
        }
    }

    #[test]
    fn on_failure_counts_and_looks_at_the_status() {
        let twice = RestartPolicy::OnFailure { max: Some(2) };
        assert!(twice.restarts(1, 0) && twice.restarts(1, 1));
        assert!(!twice.restarts(1, 2) && !twice.restarts(0, 0));
        assert!(RestartPolicy::Always.restarts(0, 1000));
        assert!(!RestartPolicy::No.restarts(1, 0));
    }
}
