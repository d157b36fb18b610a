//! Parses `--health-*` and reads an image's health check: docker's grammar, defaults and precedence.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::report::{EXIT_USAGE, Explain};
use crate::units::parse_duration;

/// docker's defaults.
const INTERVAL: Duration = Duration::from_secs(30);
const TIMEOUT: Duration = Duration::from_secs(30);
const START_INTERVAL: Duration = Duration::from_secs(5);
const RETRIES: u32 = 3;
/// An interval that never ends: 292 years.
const NEVER: u64 = i64::MAX as u64;
/// docker's shortest duration, in nanoseconds.
const SHORTEST: u64 = 1_000_000;

/// docker's `Healthcheck` of a container or an image, with durations in nanoseconds. Zero and an empty test stand for
/// the image's value and then for docker's default.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub(crate) struct HealthConfig {
    /// `["NONE"]`, `["CMD", ARG, …]` or `["CMD-SHELL", TEXT]`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub test: Vec<String>,
    #[serde(skip_serializing_if = "is_zero")]
    pub interval: u64,
    #[serde(skip_serializing_if = "is_zero")]
    pub timeout: u64,
    #[serde(skip_serializing_if = "is_zero")]
    pub start_period: u64,
    #[serde(skip_serializing_if = "is_zero")]
    pub start_interval: u64,
    #[serde(skip_serializing_if = "no_retries")]
    pub retries: u32,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde's signature")]
fn is_zero(nanos: &u64) -> bool {
    *nanos == 0
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde's signature")]
fn no_retries(retries: &u32) -> bool {
    *retries == 0
}

/// A health check with all of its values.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct HealthCheck {
    /// The command and its arguments.
    pub args: Vec<String>,
    /// The time from the end of a check to the next one.
    pub interval: Duration,
    /// The time after which a check is killed and counts as failed.
    pub timeout: Duration,
    /// The time after the container's start in which a failure does not count while the container is starting.
    pub start_period: Duration,
    /// The interval in the start period while the container is starting.
    pub start_interval: Duration,
    /// How many failures in a row make the container unhealthy.
    pub retries: u32,
}

/// `--health-on-failure`: what happens to a container that becomes unhealthy, as in podman.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum HealthAction {
    #[default]
    None,
    /// SIGKILL. The restart policy decides what happens then.
    Kill,
    /// A graceful stop, and another start.
    Restart,
    /// A graceful stop.
    Stop,
}

impl HealthAction {
    #[must_use]
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Kill => "kill",
            Self::Restart => "restart",
            Self::Stop => "stop",
        }
    }

    /// Returns the action of this name.
    #[must_use]
    pub(crate) fn parse(name: &str) -> Option<Self> {
        [Self::None, Self::Kill, Self::Restart, Self::Stop].into_iter().find(|action| action.name() == name)
    }

    #[expect(clippy::trivially_copy_pass_by_ref, reason = "serde's signature")]
    pub(crate) fn is_none(&self) -> bool {
        *self == Self::None
    }
}

/// The flags as they were given.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct HealthFlags<'a> {
    pub command: Option<&'a str>,
    pub interval: Option<&'a str>,
    pub timeout: Option<&'a str>,
    pub start_period: Option<&'a str>,
    pub start_interval: Option<&'a str>,
    pub retries: Option<u32>,
    /// `--no-healthcheck`
    pub none: bool,
}

#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub(crate) enum HealthError {
    #[error("`--{flag} {text}` is not a duration")]
    Duration { flag: &'static str, text: String },
    #[error("`--{flag} {text}` is less than 1 ms")]
    Short { flag: &'static str, text: String },
    #[error("`--no-healthcheck` and `--health-*` cannot be used together")]
    Conflict,
}

impl Explain for HealthError {
    fn hint(&self) -> Option<String> {
        Some(match self {
            Self::Duration { .. } | Self::Short { .. } => {
                "write a number with a unit: `500ms`, `30s`, `1m30s` (units: ms s m h)".into()
            }
            Self::Conflict => "omit one of them".into(),
        })
    }
    fn exit_code(&self) -> u8 {
        EXIT_USAGE
    }
}

/// Returns the test of a command: text for a shell or, as in podman, a JSON list that begins with its kind.
fn test(text: &str) -> Vec<String> {
    match serde_json::from_str::<Vec<String>>(text) {
        Ok(list) if list.first().is_some_and(|kind| ["CMD", "CMD-SHELL", "NONE"].contains(&kind.as_str())) => list,
        _ => vec!["CMD-SHELL".to_owned(), text.to_owned()],
    }
}

impl HealthConfig {
    /// The config that turns the image's health check off.
    #[must_use]
    pub(crate) fn none() -> Self {
        Self { test: vec!["NONE".to_owned()], ..Self::default() }
    }

    /// Parses the flags. Returns `None` if there are none, so that the image's health check applies.
    pub(crate) fn parse(flags: HealthFlags<'_>) -> Result<Option<Self>, HealthError> {
        let config = Self {
            // As in docker, an empty command is the image's.
            test: flags.command.filter(|text| !text.is_empty()).map_or_else(Vec::new, test),
            interval: duration("health-interval", flags.interval)?,
            timeout: duration("health-timeout", flags.timeout)?,
            start_period: duration("health-start-period", flags.start_period)?,
            start_interval: duration("health-start-interval", flags.start_interval)?,
            retries: flags.retries.unwrap_or(0),
        };
        let is_empty = config == Self::default();
        match flags.none {
            true if is_empty => Ok(Some(Self::none())),
            true => Err(HealthError::Conflict),
            false => Ok((!is_empty).then_some(config)),
        }
    }

    /// Reads the health check of an image's config, which may contain anything. A malformed one counts as none.
    #[must_use]
    pub(crate) fn of_image(value: Option<&serde_json::Value>) -> Self {
        value.and_then(|value| Self::deserialize(value).ok()).unwrap_or_default()
    }

    /// Adds the image's values where this config has none, as docker does.
    #[must_use]
    pub(crate) fn over(self, image: Self) -> Self {
        let or = |own: u64, other: u64| if own == 0 { other } else { own };
        Self {
            test: if self.test.is_empty() { image.test } else { self.test },
            interval: or(self.interval, image.interval),
            timeout: or(self.timeout, image.timeout),
            start_period: or(self.start_period, image.start_period),
            start_interval: or(self.start_interval, image.start_interval),
            retries: if self.retries == 0 { image.retries } else { self.retries },
        }
    }

    /// The check to run, if there is one. `shell` is the image's shell, which `CMD-SHELL` uses.
    #[must_use]
    pub(crate) fn check(&self, shell: &[String]) -> Option<HealthCheck> {
        let args: Vec<String> = match (self.test.first()?.as_str(), &self.test[1..]) {
            ("CMD", args) if !args.is_empty() => args.to_vec(),
            ("CMD-SHELL", [text]) if shell.is_empty() => vec!["/bin/sh".into(), "-c".into(), text.clone()],
            ("CMD-SHELL", [text]) => shell.iter().chain([text]).cloned().collect(),
            // `NONE`, and what docker does not know either.
            _ => return None,
        };
        let or = |nanos: u64, default| if nanos == 0 { default } else { Duration::from_nanos(nanos) };
        Some(HealthCheck {
            args,
            interval: or(self.interval, INTERVAL),
            timeout: or(self.timeout, TIMEOUT),
            start_period: Duration::from_nanos(self.start_period),
            start_interval: or(self.start_interval, START_INTERVAL),
            retries: if self.retries == 0 { RETRIES } else { self.retries },
        })
    }
}

fn duration(flag: &'static str, text: Option<&str>) -> Result<u64, HealthError> {
    let Some(text) = text else { return Ok(0) };
    // As in podman: no check runs by itself. `gpurun healthcheck run` runs one.
    if (flag, text) == ("health-interval", "disable") {
        return Ok(NEVER);
    }
    let wrong = || HealthError::Duration { flag, text: text.to_owned() };
    match parse_duration(text).ok_or_else(wrong)? {
        1..SHORTEST => Err(HealthError::Short { flag, text: text.to_owned() }),
        nanos => Ok(nanos),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn words(text: &str) -> Vec<String> {
        text.split(' ').map(str::to_owned).collect()
    }

    #[test]
    fn flags_make_dockers_config() {
        let none = HealthFlags::default();
        assert_eq!(HealthConfig::parse(none), Ok(None));
        assert_eq!(HealthConfig::parse(HealthFlags { command: Some(""), ..none }), Ok(None));
        let config = HealthConfig::parse(HealthFlags { none: true, ..none }).unwrap().unwrap();
        assert_eq!(serde_json::to_value(&config).unwrap(), json!({ "Test": ["NONE"] }));
        assert_eq!(config.check(&[]), None);
        let all = HealthFlags {
            command: Some("curl -f x || exit 1"),
            interval: Some("1m30s"),
            timeout: Some("500ms"),
            start_period: Some("0s"),
            start_interval: Some("1ms"),
            retries: Some(2),
            none: false,
        };
        let config = HealthConfig::parse(all).unwrap().unwrap();
        let stored = serde_json::to_value(&config).unwrap();
        assert_eq!(
            stored,
            json!({ "Test": ["CMD-SHELL", "curl -f x || exit 1"], "Interval": 90_000_000_000u64,
                "Timeout": 500_000_000, "StartInterval": 1_000_000, "Retries": 2 })
        );
        assert_eq!(serde_json::from_value::<HealthConfig>(stored).unwrap(), config);
        assert_eq!(HealthConfig::parse(HealthFlags { none: true, ..all }), Err(HealthError::Conflict));
        for wrong in ["5", "-5s", "soon", "", "999us"] {
            assert!(HealthConfig::parse(HealthFlags { timeout: Some(wrong), ..none }).is_err(), "{wrong}");
        }
    }

    #[test]
    fn flags_complete_the_images_check() {
        let image = json!({ "Test": ["CMD", "check", "-q"], "Interval": 5_000_000_000u64, "Retries": 7 });
        let image = HealthConfig::of_image(Some(&image));
        let flags = HealthConfig { timeout: 1_000_000_000, retries: 2, ..HealthConfig::default() };
        let check = flags.over(image.clone()).check(&[]).unwrap();
        let seconds = Duration::from_secs;
        assert_eq!(
            check,
            HealthCheck {
                args: words("check -q"),
                interval: seconds(5),
                timeout: seconds(1),
                start_period: seconds(0),
                start_interval: seconds(5),
                retries: 2
            }
        );
        let shell = HealthConfig { test: vec!["CMD-SHELL".into(), "a b".into()], ..HealthConfig::default() };
        let check = shell.clone().over(image).check(&words("/bin/bash -ec")).unwrap();
        assert_eq!((check.args.join("|").as_str(), check.retries), ("/bin/bash|-ec|a b", 7));
        let defaults = shell.check(&[]).unwrap();
        assert_eq!((defaults.args.join("|").as_str(), defaults.retries), ("/bin/sh|-c|a b", 3));
        assert_eq!(
            (defaults.interval, defaults.timeout, defaults.start_period),
            (seconds(30), seconds(30), seconds(0))
        );
    }

    #[test]
    fn a_malformed_check_of_an_image_is_none() {
        for value in [
            json!(null),
            json!("true"),
            json!({ "Test": "true" }),
            json!({ "Test": [] }),
            json!({ "Test": ["CMD"] }),
            json!({ "Test": ["CMD-SHELL"] }),
            json!({ "Test": ["curl", "x"] }),
            json!({ "Test": ["NONE"] }),
            json!({ "Test": ["CMD", "true"], "Interval": -1 }),
        ] {
            assert_eq!(HealthConfig::of_image(Some(&value)).check(&[]), None, "{value}");
        }
        assert_eq!(HealthConfig::of_image(None).check(&[]), None);
    }
}
