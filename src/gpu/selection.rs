//! `--gpus`: docker's grammar (docker/cli opts/gpus.go), one CSV record of `key=value` fields, with two kindnesses: the quotes that docker
//! asks for around `"device=0,2"` may be left out, and `free:2` says plainly what `2` means here: two that are idle.

use std::fmt;
use std::str::FromStr;

use crate::report::{EXIT_USAGE, Explain};

/// Which GPUs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Which {
    All,
    /// At least one; idle ones.
    Count(u32),
    /// The same, by the name that says so.
    Free(u32),
    /// Numbers, UUIDs, bus addresses or MIG names; at least one, none twice.
    Devices(Vec<String>),
}

/// A whole `--gpus`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Selection {
    pub which: Which,
    /// Without `gpu`, which every request has; empty: the image's own, or the hook's default.
    pub capabilities: Vec<String>,
    pub driver: Option<String>,
    pub options: Vec<(String, String)>,
}

#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum SelectionError {
    #[error("`--gpus` has no value")]
    Empty,
    #[error("`--gpus {text}`: the quotes do not match")]
    Quotes { text: String },
    #[error("`--gpus {text}`: cannot set both a count and device ids")]
    CountAndDevices { text: String },
    #[error("`--gpus {text}`: `{key}` is given twice")]
    Twice { text: String, key: String },
    #[error(
        "`--gpus {text}`: `{field}` is neither `all`, a number, `free[:N]`, nor one of `count=`, `device=`, `capabilities=`, `driver=`, `options=`"
    )]
    Field { text: String, field: String },
    #[error("`--gpus {text}`: `{count}` is not a number of GPUs")]
    Count { text: String, count: String },
    #[error("`--gpus {text}`: `{device}` is not a GPU's number, UUID or bus address")]
    Device { text: String, device: String },
    #[error("`--gpus {text}`: `{capability}` is not a driver capability")]
    Capability { text: String, capability: String },
}

impl Explain for SelectionError {
    fn hint(&self) -> Option<String> {
        Some(match self {
            Self::Device { device, .. } if device.contains('=') => format!("CDI devices go by `--device {device}`"),
            Self::Capability { .. } => format!("capabilities: {}", CAPABILITIES.join(", ")),
            _ => "for example `--gpus all`, `--gpus 2`, `--gpus free:2`, `--gpus device=0,2` or `--gpus device=GPU-1a2b3c4d`".into(),
        })
    }
    fn exit_code(&self) -> u8 {
        EXIT_USAGE
    }
}

const CAPABILITIES: [&str; 9] = ["gpu", "compute", "compat32", "graphics", "utility", "video", "display", "ngx", "all"];

impl FromStr for Selection {
    type Err = SelectionError;

    fn from_str(text: &str) -> Result<Self, SelectionError> {
        let named = || text.to_owned();
        let fields = fields(text)?;
        if fields.is_empty() {
            return Err(SelectionError::Empty);
        }
        let mut parts = Parts::default();
        for (key, values) in fields {
            let slot = match key.as_str() {
                "count" => &mut parts.count,
                "device" => &mut parts.devices,
                "capabilities" => &mut parts.capabilities,
                "driver" => &mut parts.driver,
                "options" => &mut parts.options,
                _ => return Err(SelectionError::Field { text: named(), field: key }),
            };
            if slot.replace(values).is_some() {
                return Err(SelectionError::Twice { text: named(), key });
            }
        }
        parts.check(text)
    }
}

/// The values of each key, as they were written.
#[derive(Default)]
struct Parts {
    count: Option<Vec<String>>,
    devices: Option<Vec<String>>,
    capabilities: Option<Vec<String>>,
    driver: Option<Vec<String>>,
    options: Option<Vec<String>>,
}

impl Parts {
    fn check(self, text: &str) -> Result<Selection, SelectionError> {
        let named = || text.to_owned();
        let which = match (self.count, self.devices) {
            (Some(_), Some(_)) => return Err(SelectionError::CountAndDevices { text: named() }),
            (Some(count), None) => parse_count(text, &count.join(","))?,
            (None, Some(devices)) => Which::Devices(parse_devices(text, devices)?),
            // docker: a request of capabilities alone is a request for one GPU
            (None, None) => Which::Count(1),
        };
        let mut capabilities = self.capabilities.unwrap_or_default();
        if let Some(capability) = capabilities.iter().find(|capability| !CAPABILITIES.contains(&capability.as_str())) {
            return Err(SelectionError::Capability { text: named(), capability: capability.clone() });
        }
        capabilities.retain(|capability| capability != "gpu");
        let options = self.options.unwrap_or_default().into_iter();
        let options = options.map(|option| match option.split_once('=') {
            Some((key, value)) => (key.to_owned(), value.to_owned()),
            None => (option, String::new()),
        });
        let driver = self.driver.map(|driver| driver.join(",")).filter(|driver| !driver.is_empty());
        Ok(Selection { which, capabilities, driver, options: options.collect() })
    }
}

fn parse_count(text: &str, count: &str) -> Result<Which, SelectionError> {
    match count {
        "all" | "-1" => Ok(Which::All),
        "free" => Ok(Which::Free(1)),
        _ if count.starts_with("free:") => match count["free:".len()..].parse() {
            Ok(number @ 1..) => Ok(Which::Free(number)),
            _ => Err(SelectionError::Count { text: text.to_owned(), count: count.to_owned() }),
        },
        _ => match count.parse() {
            Ok(number @ 1..) => Ok(Which::Count(number)),
            _ => Err(SelectionError::Count { text: text.to_owned(), count: count.to_owned() }),
        },
    }
}

fn parse_devices(text: &str, devices: Vec<String>) -> Result<Vec<String>, SelectionError> {
    let mut seen: Vec<String> = Vec::new();
    for device in devices {
        let plain = !device.is_empty()
            && device.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | ':' | '.' | '/'));
        // what NVIDIA_VISIBLE_DEVICES gives another meaning to
        if !plain || ["all", "none", "void"].contains(&device.as_str()) {
            return Err(SelectionError::Device { text: text.to_owned(), device });
        }
        if !seen.contains(&device) {
            seen.push(device);
        }
    }
    Ok(seen)
}

/// The CSV record as keys with their values. A field without `=` at the beginning is the count; later on, outside quotes, it goes on with
/// the key before it (`device=0,2`), unless it can only be a count.
fn fields(text: &str) -> Result<Vec<(String, Vec<String>)>, SelectionError> {
    let mut fields: Vec<(String, Vec<String>)> = Vec::new();
    for field in csv(text)? {
        let field = field.trim();
        match field.split_once('=') {
            Some((key, values)) => {
                let values = values.split(',').map(|value| value.trim().to_owned()).collect();
                fields.push((key.trim().to_ascii_lowercase(), values));
            }
            None => match fields.last_mut() {
                None if field.is_empty() => return Err(SelectionError::Empty),
                None if is_count(field) => fields.push(("count".into(), vec![field.into()])),
                Some((key, values)) if ["device", "capabilities", "options"].contains(&key.as_str()) => {
                    values.push(field.into())
                }
                _ => return Err(SelectionError::Field { text: text.to_owned(), field: field.to_owned() }),
            },
        }
    }
    Ok(fields)
}

fn is_count(field: &str) -> bool {
    field == "all" || field == "free" || field.starts_with("free:") || field.parse::<i64>().is_ok()
}

/// RFC 4180, one record: a field that begins with `"` goes to the closing `"`, `""` inside is one.
fn csv(text: &str) -> Result<Vec<String>, SelectionError> {
    let bad = || SelectionError::Quotes { text: text.to_owned() };
    let mut fields = Vec::new();
    let mut rest = text.trim();
    loop {
        let Some(quoted) = rest.strip_prefix('"') else {
            let (field, after) = rest.split_once(',').map_or((rest, None), |(field, after)| (field, Some(after)));
            if field.contains('"') {
                return Err(bad());
            }
            fields.push(field.to_owned());
            match after {
                Some(after) => rest = after,
                None => return Ok(fields),
            }
            continue;
        };
        let mut field = String::new();
        let mut inside = quoted;
        let after = loop {
            let (before, after) = inside.split_once('"').ok_or_else(bad)?;
            field.push_str(before);
            match after.strip_prefix('"') {
                Some(more) => {
                    field.push('"');
                    inside = more;
                }
                None => break after,
            }
        };
        fields.push(field);
        match (after.is_empty(), after.strip_prefix(',')) {
            (true, _) => return Ok(fields),
            (false, Some(more)) => rest = more,
            (false, None) => return Err(bad()),
        }
    }
}

impl fmt::Display for Selection {
    /// In the grammar's own words, one way to write each.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.which {
            Which::All => write!(f, "all")?,
            Which::Count(count) => write!(f, "{count}")?,
            Which::Free(count) => write!(f, "free:{count}")?,
            Which::Devices(devices) => write!(f, "device={}", devices.join(","))?,
        }
        if !self.capabilities.is_empty() {
            write!(f, ",capabilities={}", self.capabilities.join(","))?;
        }
        if let Some(driver) = &self.driver {
            write!(f, ",{}", quoted(&format!("driver={driver}")))?;
        }
        if !self.options.is_empty() {
            let options: Vec<String> = self.options.iter().map(|(key, value)| format!("{key}={value}")).collect();
            write!(f, ",{}", quoted(&format!("options={}", options.join(","))))?;
        }
        Ok(())
    }
}

/// A CSV field, in quotes where it needs them.
fn quoted(field: &str) -> String {
    match field.contains([',', '"']) {
        true => format!("\"{}\"", field.replace('"', "\"\"")),
        false => field.to_owned(),
    }
}
