//! The qualified name of a CDI device: `vendor.com/class=name`.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// `vendor.com/class=name`. Records hold it as text.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub(crate) struct CdiName {
    /// `vendor.com/class`
    pub kind: String,
    pub device: String,
}

#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("`{0}` is not `vendor.com/class=name`")]
pub(crate) struct CdiNameError(String);

impl FromStr for CdiName {
    type Err = CdiNameError;

    fn from_str(text: &str) -> Result<Self, CdiNameError> {
        let parts = text.split_once('=').and_then(|(kind, device)| Some((kind, kind.split_once('/')?, device)));
        match parts {
            Some((kind, (vendor, class), device)) if is_vendor(vendor) && is_class(class) && is_device(device) => {
                Ok(Self { kind: kind.to_owned(), device: device.to_owned() })
            }
            _ => Err(CdiNameError(text.to_owned())),
        }
    }
}

impl TryFrom<String> for CdiName {
    type Error = CdiNameError;

    fn try_from(text: String) -> Result<Self, CdiNameError> {
        text.parse()
    }
}

impl From<CdiName> for String {
    fn from(name: CdiName) -> Self {
        name.to_string()
    }
}

impl fmt::Display for CdiName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}={}", self.kind, self.device)
    }
}

/// Whether a name consists of letters, digits and the characters of `more`, and ends in a letter or digit.
fn is_made_of(name: &str, more: &str) -> bool {
    let good = |c: char| c.is_ascii_alphanumeric() || more.contains(c);
    name.chars().all(good) && name.ends_with(|c: char| c.is_ascii_alphanumeric())
}

pub(crate) fn is_vendor(name: &str) -> bool {
    name.starts_with(|c: char| c.is_ascii_alphabetic()) && is_made_of(name, "_-.")
}

pub(crate) fn is_class(name: &str) -> bool {
    name.starts_with(|c: char| c.is_ascii_alphabetic()) && is_made_of(name, "_-.")
}

pub(crate) fn is_device(name: &str) -> bool {
    name.starts_with(|c: char| c.is_ascii_alphanumeric()) && is_made_of(name, "_-.:")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_qualified() {
        for good in ["nvidia.com/gpu=0", "vendor.com/class=name", "v/c=GPU-1:2_3.4"] {
            assert_eq!(good.parse::<CdiName>().unwrap().to_string(), good);
        }
        for bad in ["", "gpu=0", "a/b", "a/b=", "/b=c", "a/=c", "a/b=-c", "1a/b=c", "a/b=c d"] {
            assert!(bad.parse::<CdiName>().is_err(), "{bad}");
        }
    }
}
