//! Parses `--device-cgroup-rule`, a rule of the container's device filter: `c 189:* rwm`.

use std::fmt;
use std::str::FromStr;

use super::text::stored_as_text;
use crate::report::{EXIT_USAGE, Explain};
use crate::spec::DeviceRule;

/// A rule that allows devices by number. The kernel's first format (cgroup-v1/devices) is its grammar.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct DeviceCgroupRule(pub DeviceRule);

#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("`--device-cgroup-rule {0}` is not `TYPE MAJOR:MINOR ACCESS`")]
pub(crate) struct DeviceRuleError(String);

impl Explain for DeviceRuleError {
    fn hint(&self) -> Option<String> {
        Some(
            "for example `--device-cgroup-rule \"c 189:* rmw\"`; types: c, b, a; `ls -l /dev/NODE` shows the numbers"
                .into(),
        )
    }
    fn exit_code(&self) -> u8 {
        EXIT_USAGE
    }
}

impl FromStr for DeviceCgroupRule {
    type Err = DeviceRuleError;

    fn from_str(text: &str) -> Result<Self, DeviceRuleError> {
        let parse = || {
            let [kind, numbers, access] = text.split(' ').collect::<Vec<_>>()[..] else { return None };
            let kind = match kind {
                "a" | "b" | "c" => kind.chars().next()?,
                _ => return None,
            };
            let number = |text: &str| match text {
                "*" => Some(None),
                digits => digits.bytes().all(|byte| byte.is_ascii_digit()).then(|| digits.parse().ok().map(Some))?,
            };
            let (major, minor) = numbers.split_once(':')?;
            let (major, minor) = (number(major)?, number(minor)?);
            let good = (1..=3).contains(&access.len()) && access.chars().all(|letter| "rwm".contains(letter));
            // The kernel takes `a` for every device, whatever follows.
            let whole = kind != 'a' || (major.is_none() && minor.is_none() && access.len() == 3);
            (good && whole).then(|| Self(DeviceRule { allow: true, kind, major, minor, access: access.to_owned() }))
        };
        parse().ok_or_else(|| DeviceRuleError(text.to_owned()))
    }
}

impl fmt::Display for DeviceCgroupRule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let number = |number: Option<u32>| number.map_or_else(|| "*".to_owned(), |number| number.to_string());
        let DeviceRule { kind, major, minor, access, .. } = &self.0;
        write!(f, "{kind} {}:{} {access}", number(*major), number(*minor))
    }
}

stored_as_text!(DeviceCgroupRule);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rules_print_as_they_parse() {
        for text in ["c 189:* rmw", "b 8:0 r", "c 1:3 rwm", "a *:* rwm", "c *:* m"] {
            assert_eq!(text.parse::<DeviceCgroupRule>().unwrap().to_string(), text);
        }
        for wrong in
            ["", "c 1:3", "d 1:3 r", "c 1 r", "c 1:3 x", "c 1:3 ", "c -1:3 r", "c 1:3 rwmr", "a 1:3 rwm", "a *:* r"]
        {
            assert!(wrong.parse::<DeviceCgroupRule>().is_err(), "{wrong}");
        }
    }
}
