//! Seccomp profiles in docker's JSON format.

use std::fmt;
use std::str::FromStr;

use serde::Deserialize;

use super::profile::{Action, Compare, Condition, Profile, Rule};
use crate::report::{EXIT_USAGE, Explain};
use crate::spec::Capabilities;

/// A parsed profile. Which of its rules apply depends on the capabilities of the container.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ProfileDocument {
    text: String,
    default: Action,
    /// The rules that may apply on this architecture.
    rules: Vec<ConditionalRule>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct ConditionalRule {
    rule: Rule,
    /// The rule applies if the container has all of these capabilities,
    includes: Vec<String>,
    /// and none of these.
    excludes: Vec<String>,
}

#[derive(Debug, thiserror::Error)]
pub(crate) enum ProfileError {
    #[error("the seccomp profile is not docker's JSON format")]
    Json(#[source] serde_json::Error),
    #[error("the seccomp profile has the action `{0}`, which gpurun does not know")]
    Action(String),
    #[error("the seccomp profile has the comparison `{0}`, which gpurun does not know")]
    Compare(String),
    #[error("the seccomp profile compares argument {0}: system calls have arguments 0 to 5")]
    Argument(u64),
}

impl Explain for ProfileError {
    fn hint(&self) -> Option<String> {
        Some(
            "docker's default profile is an example of the format; `--security-opt seccomp=unconfined` uses no profile"
                .into(),
        )
    }
    fn exit_code(&self) -> u8 {
        EXIT_USAGE
    }
}

impl FromStr for ProfileDocument {
    type Err = ProfileError;

    fn from_str(text: &str) -> Result<Self, ProfileError> {
        let json: Json = serde_json::from_str(text).map_err(ProfileError::Json)?;
        let default_errno = json.default_errno_ret;
        let mut rules = Vec::new();
        for entry in json.syscalls {
            let is_of_host = |list: &[String]| list.iter().any(|arch| ARCHITECTURES.contains(&arch.as_str()));
            if !entry.includes.arches.is_empty() && !is_of_host(&entry.includes.arches)
                || is_of_host(&entry.excludes.arches)
            {
                continue;
            }
            let conditions = entry.args.unwrap_or_default().into_iter().map(condition).collect::<Result<_, _>>()?;
            let action = action(&entry.action, entry.errno_ret.or(default_errno))?;
            let names = entry.names.into_iter().chain(entry.name).collect();
            let rule = Rule { names, action, conditions };
            rules.push(ConditionalRule { rule, includes: entry.includes.caps, excludes: entry.excludes.caps });
        }
        Ok(Self { text: text.to_owned(), default: action(&json.default_action, default_errno)?, rules })
    }
}

impl fmt::Display for ProfileDocument {
    /// Writes the text of the profile.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl ProfileDocument {
    /// Returns the profile for a container with these capabilities.
    #[must_use]
    pub(crate) fn profile(&self, capabilities: &Capabilities) -> Profile {
        let has = |name: &String| capabilities.has(name);
        let applies = |rule: &&ConditionalRule| rule.includes.iter().all(has) && !rule.excludes.iter().any(has);
        let rules = self.rules.iter().filter(applies).map(|rule| rule.rule.clone()).collect();
        Profile { default: self.default, rules }
    }
}

/// docker's names for the architectures that the kernel of this host supports.
#[cfg(target_arch = "x86_64")]
const ARCHITECTURES: [&str; 3] = ["amd64", "x86", "x32"];
#[cfg(not(target_arch = "x86_64"))]
const ARCHITECTURES: [&str; 2] = ["arm64", "arm"];

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Json {
    default_action: String,
    default_errno_ret: Option<u16>,
    #[serde(default)]
    syscalls: Vec<JsonRule>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct JsonRule {
    #[serde(default)]
    names: Vec<String>,
    name: Option<String>,
    action: String,
    errno_ret: Option<u16>,
    args: Option<Vec<JsonArgument>>,
    #[serde(default)]
    includes: JsonFilter,
    #[serde(default)]
    excludes: JsonFilter,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct JsonFilter {
    caps: Vec<String>,
    arches: Vec<String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct JsonArgument {
    index: u64,
    value: u64,
    #[serde(default)]
    value_two: u64,
    op: String,
}

fn action(name: &str, errno: Option<u16>) -> Result<Action, ProfileError> {
    Ok(match name {
        "SCMP_ACT_ALLOW" => Action::Allow,
        "SCMP_ACT_ERRNO" => Action::Errno(errno.unwrap_or(libc::EPERM as u16)),
        "SCMP_ACT_KILL" | "SCMP_ACT_KILL_THREAD" => Action::KillThread,
        "SCMP_ACT_KILL_PROCESS" => Action::KillProcess,
        "SCMP_ACT_TRAP" => Action::Trap,
        "SCMP_ACT_LOG" => Action::Log,
        other => return Err(ProfileError::Action(other.to_owned())),
    })
}

fn condition(argument: JsonArgument) -> Result<Condition, ProfileError> {
    let value = argument.value;
    let compare = match argument.op.as_str() {
        "SCMP_CMP_EQ" => Compare::Equal(value),
        "SCMP_CMP_NE" => Compare::NotEqual(value),
        "SCMP_CMP_LT" => Compare::Less(value),
        "SCMP_CMP_LE" => Compare::LessOrEqual(value),
        "SCMP_CMP_GT" => Compare::Greater(value),
        "SCMP_CMP_GE" => Compare::GreaterOrEqual(value),
        "SCMP_CMP_MASKED_EQ" => Compare::Masked { mask: value, value: argument.value_two },
        other => return Err(ProfileError::Compare(other.to_owned())),
    };
    let argument =
        u8::try_from(argument.index).ok().filter(|index| *index < 6).ok_or(ProfileError::Argument(argument.index))?;
    Ok(Condition { argument, compare })
}
