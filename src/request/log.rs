//! Parses `--log-driver` and `--log-opt`, which limit how much container output is kept, and say what `logs --details`
//! shows with it. The names are docker's.

use std::collections::BTreeMap;

use regex::Regex;

use serde::{Deserialize, Serialize};

use crate::report::{EXIT_USAGE, Explain};
use crate::units::parse_memory;

/// The largest accepted value of `max-file`.
const MAX_FILES: u32 = 1000;

/// Where a container's output is kept. docker's drivers for files on this host all mean gpurun's own log.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum LogDriver {
    #[default]
    JsonFile,
    Local,
    /// Nowhere. Only attached commands see the output.
    None,
}

impl LogDriver {
    #[must_use]
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::JsonFile => "json-file",
            Self::Local => "local",
            Self::None => "none",
        }
    }
}

/// The labels and variables that `logs --details` shows. An expression without text matches none.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct LogDetails {
    pub labels: Vec<String>,
    pub labels_regex: String,
    pub env: Vec<String>,
    pub env_regex: String,
}

impl LogDetails {
    fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// Returns the details of a container, sorted by name.
    pub(crate) fn of(&self, labels: &BTreeMap<String, String>, env: &[String]) -> BTreeMap<String, String> {
        let selects = |names: &[String], pattern: &str| {
            let pattern = Some(pattern).filter(|text| !text.is_empty()).and_then(|text| Regex::new(text).ok());
            let names = names.to_vec();
            move |name: &str| {
                names.iter().any(|one| one == name) || pattern.as_ref().is_some_and(|form| form.is_match(name))
            }
        };
        let is_label = selects(&self.labels, &self.labels_regex);
        let is_variable = selects(&self.env, &self.env_regex);
        let labels = labels.iter().filter(|(name, _)| is_label(name)).map(|(name, value)| (&**name, &**value));
        let variables = env.iter().filter_map(|line| line.split_once('=')).filter(|(name, _)| is_variable(name));
        labels.chain(variables).map(|(name, value)| (name.to_owned(), value.to_owned())).collect()
    }
}

/// The size limit of a log file, the number of files that are kept, and the details of its lines.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct LogOptions {
    #[serde(default)]
    pub driver: LogDriver,
    /// A file is rotated when it reaches this size in bytes.
    pub max_size: u64,
    /// Number of files to keep, including the current one.
    pub max_file: u32,
    #[serde(default, skip_serializing_if = "LogDetails::is_empty")]
    pub details: LogDetails,
}

impl Default for LogOptions {
    fn default() -> Self {
        Self { driver: LogDriver::default(), max_size: 16 << 20, max_file: 2, details: LogDetails::default() }
    }
}

#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub(crate) enum LogError {
    #[error("there is no log driver `{0}`")]
    Driver(String),
    #[error("`--log-opt {0}` cannot be used with `--log-driver none`")]
    NoLog(String),
    #[error("`--log-opt {0}` is not an option of the log")]
    Unknown(String),
    #[error("`--log-opt {0}`: the size is not valid")]
    Size(String),
    #[error("`--log-opt {0}`: the number of files is not valid")]
    Files(String),
    #[error("`--log-opt {0}`: the expression is not valid")]
    Pattern(String),
}

impl Explain for LogError {
    fn hint(&self) -> Option<String> {
        Some(match self {
            Self::Driver(_) => {
                "use `json-file` or `local`, which both mean gpurun's own log, or `none`; `gpurun logs -f NAME` passes \
                 the output on to other programs"
                    .into()
            }
            Self::NoLog(_) => "omit one of them".into(),
            Self::Unknown(_) => {
                "use `max-size=SIZE`, `max-file=N`, or for `gpurun logs --details` `labels=KEYS` or `env=KEYS`".into()
            }
            Self::Pattern(_) => "write a regular expression such as `labels-regex=^com\\.example\\.`".into(),
            Self::Size(_) => "write a size such as `max-size=10m`, or `max-size=-1` for no limit".into(),
            Self::Files(_) => format!("write a number from 1 to {MAX_FILES}, such as `max-file=3`"),
        })
    }
    fn exit_code(&self) -> u8 {
        EXIT_USAGE
    }
}

impl LogOptions {
    /// Parses `--log-driver` and all `--log-opt KEY=VALUE` arguments. The last value of a key wins.
    pub(crate) fn parse(driver: Option<&str>, texts: &[String]) -> Result<Self, LogError> {
        let driver = match driver.unwrap_or_default() {
            // podman's driver has the format of gpurun's log.
            "" | "json-file" | "k8s-file" => LogDriver::JsonFile,
            "local" => LogDriver::Local,
            "none" => LogDriver::None,
            other => return Err(LogError::Driver(other.to_owned())),
        };
        if let (LogDriver::None, Some(text)) = (driver, texts.first()) {
            return Err(LogError::NoLog(text.clone()));
        }
        let mut options = Self { driver, ..Self::default() };
        for text in texts {
            match text.split_once('=') {
                Some(("max-size", "-1")) => options.max_size = u64::MAX,
                Some(("max-size", size)) => {
                    let parsed = parse_memory(size).ok().filter(|&bytes| bytes > 0);
                    options.max_size = parsed.ok_or_else(|| LogError::Size(text.clone()))?;
                }
                Some(("max-file", number)) => {
                    let parsed = number.parse().ok().filter(|number| (1..=MAX_FILES).contains(number));
                    options.max_file = parsed.ok_or_else(|| LogError::Files(text.clone()))?;
                }
                Some(("labels", names)) => options.details.labels = list(names),
                Some(("env", names)) => options.details.env = list(names),
                Some(("labels-regex", form)) => options.details.labels_regex = expression(form, text)?,
                Some(("env-regex", form)) => options.details.env_regex = expression(form, text)?,
                // This is what gpurun does.
                Some(("compress", "false") | ("mode", "blocking")) => {}
                _ => return Err(LogError::Unknown(text.clone())),
            }
        }
        Ok(options)
    }
}

fn list(names: &str) -> Vec<String> {
    names.split(',').filter(|name| !name.is_empty()).map(str::to_owned).collect()
}

fn expression(form: &str, text: &str) -> Result<String, LogError> {
    Regex::new(form).map(|_| form.to_owned()).map_err(|_| LogError::Pattern(text.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_are_dockers() {
        let parse =
            |texts: &[&str]| LogOptions::parse(None, &texts.iter().map(|text| (*text).to_owned()).collect::<Vec<_>>());
        let of = |max_size, max_file| Ok(LogOptions { max_size, max_file, ..LogOptions::default() });
        assert_eq!(parse(&[]), of(16 << 20, 2));
        assert_eq!(parse(&["max-size=10m", "max-file=3"]), of(10 << 20, 3));
        assert_eq!(parse(&["max-size=-1"]).unwrap().max_size, u64::MAX);
        for wrong in ["max-size=0", "max-size=x", "max-file=0", "max-file=-1", "max-file=1001", "tag=x", "max-size"] {
            assert!(parse(&[wrong]).is_err(), "{wrong}");
        }
    }

    #[test]
    fn details_are_labels_and_variables_by_name_or_expression() {
        let labels = [("a", "1"), ("b.x", "2")].map(|(key, value)| (key.to_owned(), value.to_owned())).into();
        let env = ["A=1=2", "PATH=/bin"].map(str::to_owned);
        let details = |texts: &[&str]| {
            let texts: Vec<String> = texts.iter().map(|text| (*text).to_owned()).collect();
            let found = LogOptions::parse(None, &texts).unwrap().details.of(&labels, &env);
            found.iter().map(|(key, value)| format!("{key}:{value}")).collect::<Vec<_>>().join(" ")
        };
        assert_eq!(details(&[]), "");
        assert_eq!(details(&["labels=a,nosuch", "env=A"]), "A:1=2 a:1");
        assert_eq!(details(&["labels-regex=^b\\.", "env-regex=^P"]), "PATH:/bin b.x:2");
        let wrong = LogOptions::parse(None, &["env-regex=(".to_owned()]);
        assert_eq!(wrong, Err(LogError::Pattern("env-regex=(".into())));
        // A record without details is as in earlier releases.
        let stored = serde_json::to_string(&LogOptions::default()).unwrap();
        assert_eq!(stored, r#"{"driver":"json-file","max_size":16777216,"max_file":2}"#);
    }

    #[test]
    fn drivers_are_files_of_this_host_or_none() {
        let driver = |text: &str| LogOptions::parse(Some(text), &[]).map(|options| options.driver.name());
        for text in ["json-file", "local", "none"] {
            assert_eq!(driver(text), Ok(text));
        }
        assert_eq!(driver("k8s-file"), Ok("json-file"));
        assert!(driver("journald").is_err() && driver("fluentd").is_err());
        assert!(LogOptions::parse(Some("none"), &["max-size=1m".to_owned()]).is_err());
        // The records of earlier releases name no driver.
        let old: LogOptions = serde_json::from_str(r#"{"max_size":1,"max_file":2}"#).unwrap();
        assert_eq!(old.driver, LogDriver::JsonFile);
    }
}
