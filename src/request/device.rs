//! Parses `--device`: a device node of the host in docker's syntax, or the qualified name of a CDI device.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::CdiName;
use crate::report::{EXIT_USAGE, Explain};

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) enum DeviceRequest {
    /// `/dev/fuse[:/dev/other][:rwm]`
    Node { host: PathBuf, container: PathBuf, access: String },
    /// `vendor.com/class=name`
    Cdi(CdiName),
}

#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("`--device {0}` is neither `/dev/NODE[:/dev/NODE][:rwm]` nor `vendor.com/class=name`")]
pub(crate) struct DeviceError(String);

impl Explain for DeviceError {
    fn hint(&self) -> Option<String> {
        Some("for example `--device /dev/fuse`, `--device /dev/sda:/dev/xvda:r` or `--device nvidia.com/gpu=0`".into())
    }
    fn exit_code(&self) -> u8 {
        EXIT_USAGE
    }
}

/// Parses docker's forms of the flag.
pub(crate) fn parse_device(text: &str) -> Result<DeviceRequest, DeviceError> {
    let wrong = || DeviceError(text.to_owned());
    if !text.starts_with('/') {
        return text.parse().map(DeviceRequest::Cdi).map_err(|_| wrong());
    }
    let parts: Vec<&str> = text.split(':').collect();
    let is_access = |text: &str| !text.is_empty() && text.chars().all(|c| "rwm".contains(c));
    let (container, access) = match parts[1..] {
        [] => (parts[0], "rwm"),
        [access] if is_access(access) => (parts[0], access),
        [container] => (container, "rwm"),
        [container, access] if is_access(access) => (container, access),
        _ => return Err(wrong()),
    };
    let container = PathBuf::from(container);
    // A node outside /dev would be created among the image's files.
    if !container.starts_with("/dev") || container.components().any(|part| part.as_os_str() == "..") {
        return Err(wrong());
    }
    Ok(DeviceRequest::Node { host: parts[0].into(), container, access: access.to_owned() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dockers_forms_and_cdi_names() {
        let node = |host: &str, container: &str, access: &str| {
            Ok(DeviceRequest::Node { host: host.into(), container: container.into(), access: access.into() })
        };
        assert_eq!(parse_device("/dev/fuse"), node("/dev/fuse", "/dev/fuse", "rwm"));
        assert_eq!(parse_device("/dev/fuse:r"), node("/dev/fuse", "/dev/fuse", "r"));
        assert_eq!(parse_device("/dev/sda:/dev/xvda"), node("/dev/sda", "/dev/xvda", "rwm"));
        assert_eq!(parse_device("/dev/sda:/dev/xvda:rw"), node("/dev/sda", "/dev/xvda", "rw"));
        assert_eq!(parse_device("nvidia.com/gpu=0"), Ok(DeviceRequest::Cdi("nvidia.com/gpu=0".parse().unwrap())));
        for wrong in
            ["", "fuse", "/dev/a:/etc/b", "/dev/a:/dev/../etc/b", "/dev/a:/dev/b:x", "/dev/a:/dev/b:r:w", "a=b"]
        {
            assert!(parse_device(wrong).is_err(), "{wrong}");
        }
    }
}
