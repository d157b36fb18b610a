//! Parses `--ulimit name=soft[:hard]`.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::report::{EXIT_USAGE, Explain};

/// One resource limit. `u64::MAX` means "unlimited".
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Ulimit {
    /// docker's name, such as `nofile` or `memlock`.
    pub name: String,
    pub soft: u64,
    pub hard: u64,
}

impl fmt::Display for Ulimit {
    /// Formats the limit in the syntax of the flag.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}={}:{}", self.name, shown(self.soft), shown(self.hard))
    }
}

fn shown(value: u64) -> String {
    if value == u64::MAX { "-1".to_owned() } else { value.to_string() }
}

/// docker's names, in the order of `getrlimit(2)`.
const NAMES: [&str; 15] = [
    "core",
    "cpu",
    "data",
    "fsize",
    "locks",
    "memlock",
    "msgqueue",
    "nice",
    "nofile",
    "nproc",
    "rss",
    "rtprio",
    "rttime",
    "sigpending",
    "stack",
];

#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub(crate) enum UlimitError {
    #[error("`--ulimit {0}` is not `name=soft[:hard]`")]
    Shape(String),
    #[error("`--ulimit {text}`: there is no resource limit `{name}`")]
    Name { text: String, name: String },
    #[error("`--ulimit {text}`: the soft limit {} is above the hard limit {}", shown(*.soft), shown(*.hard))]
    Order { text: String, soft: u64, hard: u64 },
}

impl Explain for UlimitError {
    fn hint(&self) -> Option<String> {
        Some(match self {
            Self::Name { .. } => format!("the names are {}", NAMES.join(", ")),
            _ => "for example `--ulimit nofile=1024:4096` or `--ulimit memlock=-1` (-1: unlimited)".into(),
        })
    }
    fn exit_code(&self) -> u8 {
        EXIT_USAGE
    }
}

/// Parses docker's form. A single number sets both limits.
pub(crate) fn parse_ulimit(text: &str) -> Result<Ulimit, UlimitError> {
    let shape = || UlimitError::Shape(text.to_owned());
    let (name, limits) = text.split_once('=').ok_or_else(shape)?;
    if !NAMES.contains(&name) {
        return Err(UlimitError::Name { text: text.to_owned(), name: name.to_owned() });
    }
    let number = |digits: &str| match digits {
        "-1" | "unlimited" => Ok(u64::MAX),
        digits => digits.parse::<u64>().map_err(|_| shape()),
    };
    let (soft, hard) = match limits.split_once(':') {
        Some((soft, hard)) => (number(soft)?, number(hard)?),
        None => (number(limits)?, number(limits)?),
    };
    if soft > hard {
        return Err(UlimitError::Order { text: text.to_owned(), soft, hard });
    }
    Ok(Ulimit { name: name.to_owned(), soft, hard })
}

/// Parses all `--ulimit` flags. The last one for a resource wins, as in docker.
pub(crate) fn parse_ulimits(texts: &[String]) -> Result<Vec<Ulimit>, UlimitError> {
    let mut all: Vec<Ulimit> = Vec::new();
    for text in texts {
        let ulimit = parse_ulimit(text)?;
        all.retain(|other| other.name != ulimit.name);
        all.push(ulimit);
    }
    Ok(all)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ulimits_parse_as_docker_does() {
        let both = |name: &str, soft, hard| Ok(Ulimit { name: name.into(), soft, hard });
        assert_eq!(parse_ulimit("nofile=1024:2048"), both("nofile", 1024, 2048));
        assert_eq!(parse_ulimit("nofile=1024"), both("nofile", 1024, 1024));
        assert_eq!(parse_ulimit("memlock=-1"), both("memlock", u64::MAX, u64::MAX));
        assert_eq!(parse_ulimit("core=0:-1"), both("core", 0, u64::MAX));
        for text in ["nofile=1024:2048", "memlock=-1:-1", "core=0:-1"] {
            assert_eq!(parse_ulimit(text).expect(text).to_string(), text);
        }
        let all = parse_ulimits(&["nofile=1", "core=0", "nofile=2"].map(str::to_owned)).unwrap();
        assert_eq!(all.iter().map(ToString::to_string).collect::<Vec<_>>(), ["core=0:0", "nofile=2:2"]);
        let error = parse_ulimit("nofile=-1:5").expect_err("wrong way round").to_string();
        assert!(error.ends_with("the soft limit -1 is above the hard limit 5"), "{error}");
        for wrong in
            ["nofile", "nofile=", "nofile=a", "nofile=1:2:3", "files=1", "nofile=3:2", "nofile=-2", "nofile=-1:5"]
        {
            assert!(parse_ulimit(wrong).is_err(), "{wrong}");
        }
    }
}
