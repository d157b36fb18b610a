//! Parses `--gpus`, the GPU request. The grammar is docker's (docker/cli opts/gpus.go): one CSV record of `key=value`
//! fields. There are two extensions: the quotes that docker requires around `"device=0,2"` are optional, and `free:2`
//! is an explicit form of `2`, which means two idle GPUs in gpurun.
//!
//! In records, a request is its text, as earlier versions stored it.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::csv;
use crate::report::{EXIT_USAGE, Explain};

/// The requested GPUs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Which {
    All,
    /// A number of idle GPUs, at least one.
    Count(u32),
    /// The same as `Count`, in its explicit form.
    Free(u32),
    /// Indices, UUIDs, bus addresses, MIG names or CDI names: at least one, without duplicates.
    Devices(Vec<String>),
}

/// A parsed `--gpus` value.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct GpuRequest {
    pub which: Which,
    /// Without `gpu`, which every request has. If empty, the image's own or the vendor's defaults apply.
    pub capabilities: Vec<String>,
    /// The vendor, or `cdi` for GPUs that only a CDI file describes.
    pub driver: Option<String>,
    pub options: Vec<(String, String)>,
}

/// The value of `driver=` for GPUs that only a CDI file describes.
pub(crate) const CDI_DRIVER: &str = "cdi";

/// How GPUs are injected into a container (`--gpu-mode`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum GpuMode {
    /// The first mode that works on this host: NVIDIA's hook, then CDI, then native.
    #[default]
    Auto,
    Hook,
    Cdi,
    Native,
}

#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("cannot parse `--gpu-mode {0}`: there is no such mode")]
pub(crate) struct GpuModeError(String);

impl Explain for GpuModeError {
    fn hint(&self) -> Option<String> {
        Some("use `auto`, `hook`, `cdi` or `native`".into())
    }
    fn exit_code(&self) -> u8 {
        EXIT_USAGE
    }
}

impl FromStr for GpuMode {
    type Err = GpuModeError;

    fn from_str(text: &str) -> Result<Self, GpuModeError> {
        Ok(match text {
            "auto" => Self::Auto,
            "hook" => Self::Hook,
            "cdi" => Self::Cdi,
            "native" => Self::Native,
            other => return Err(GpuModeError(other.to_owned())),
        })
    }
}

impl fmt::Display for GpuMode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Auto => "auto",
            Self::Hook => "hook",
            Self::Cdi => "cdi",
            Self::Native => "native",
        })
    }
}

/// Why a `--gpus` value is not a GPU request.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("cannot parse `--gpus {text}`: {reason}")]
pub struct GpuRequestError {
    text: String,
    reason: Reason,
}

#[derive(Debug, thiserror::Error, PartialEq, Eq)]
enum Reason {
    #[error("the value is empty")]
    Empty,
    #[error("the quotes do not match")]
    Quotes,
    #[error("a count and device ids exclude each other")]
    CountAndDevices,
    #[error("`{0}` is given twice")]
    Twice(String),
    #[error(
        "`{0}` is neither `all`, a number, `free[:N]`, nor one of `count=`, `device=`, `capabilities=`, `driver=`, `options=`"
    )]
    Field(String),
    #[error("`{0}` is not a number of GPUs")]
    Count(String),
    #[error("`{0}` is not the index, UUID or bus address of a GPU")]
    Device(String),
    #[error("`{0}` is not a driver capability")]
    Capability(String),
}

impl Explain for GpuRequestError {
    fn hint(&self) -> Option<String> {
        Some(match &self.reason {
            Reason::Device(device) if device.contains('=') => format!("use `--device {device}` for a CDI device"),
            Reason::Capability(_) => format!("the driver capabilities are {}", CAPABILITIES.join(", ")),
            _ => "use for example `--gpus all`, `--gpus 2`, `--gpus free:2`, `--gpus device=0,2` or `--gpus device=GPU-1a2b3c4d`"
                .into(),
        })
    }
    fn exit_code(&self) -> u8 {
        EXIT_USAGE
    }
}

const CAPABILITIES: [&str; 9] = ["gpu", "compute", "compat32", "graphics", "utility", "video", "display", "ngx", "all"];

impl GpuRequest {
    /// Returns the request that a value of NVIDIA_VISIBLE_DEVICES stands for. `void`, `none` and an empty value select no
    /// GPU.
    pub(crate) fn of_visible_devices(value: &str) -> Result<Option<Self>, GpuRequestError> {
        match value.trim() {
            "" | "void" | "none" => Ok(None),
            "all" => "all".parse().map(Some),
            devices => format!("device={devices}").parse().map(Some),
        }
    }
}

impl FromStr for GpuRequest {
    type Err = GpuRequestError;

    fn from_str(text: &str) -> Result<Self, GpuRequestError> {
        parse(text).map_err(|reason| GpuRequestError { text: text.to_owned(), reason })
    }
}

impl TryFrom<String> for GpuRequest {
    type Error = GpuRequestError;

    fn try_from(text: String) -> Result<Self, GpuRequestError> {
        text.parse()
    }
}

impl From<GpuRequest> for String {
    fn from(request: GpuRequest) -> Self {
        request.to_string()
    }
}

fn parse(text: &str) -> Result<GpuRequest, Reason> {
    let fields = fields(text)?;
    if fields.is_empty() {
        return Err(Reason::Empty);
    }
    let mut parts = Parts::default();
    for (key, values) in fields {
        let slot = match key.as_str() {
            "count" => &mut parts.count,
            "device" => &mut parts.devices,
            "capabilities" => &mut parts.capabilities,
            "driver" => &mut parts.driver,
            "options" => &mut parts.options,
            _ => return Err(Reason::Field(key)),
        };
        if slot.replace(values).is_some() {
            return Err(Reason::Twice(key));
        }
    }
    parts.check()
}

/// The values of each key, as written.
#[derive(Default)]
struct Parts {
    count: Option<Vec<String>>,
    devices: Option<Vec<String>>,
    capabilities: Option<Vec<String>>,
    driver: Option<Vec<String>>,
    options: Option<Vec<String>>,
}

impl Parts {
    fn check(self) -> Result<GpuRequest, Reason> {
        let driver = self.driver.map(|driver| driver.join(",")).filter(|driver| !driver.is_empty());
        let by_cdi = driver.as_deref() == Some(CDI_DRIVER);
        let which = match (self.count, self.devices) {
            (Some(_), Some(_)) => return Err(Reason::CountAndDevices),
            (Some(count), None) => parse_count(&count.join(","))?,
            (None, Some(devices)) => Which::Devices(parse_devices(devices, by_cdi)?),
            // As in docker, a request that only names capabilities is a request for one GPU.
            (None, None) => Which::Count(1),
        };
        let mut capabilities = self.capabilities.unwrap_or_default();
        if let Some(capability) = capabilities.iter().find(|capability| !CAPABILITIES.contains(&capability.as_str())) {
            return Err(Reason::Capability(capability.clone()));
        }
        capabilities.retain(|capability| capability != "gpu");
        let options = self.options.unwrap_or_default().into_iter();
        let options = options.map(|option| match option.split_once('=') {
            Some((key, value)) => (key.to_owned(), value.to_owned()),
            None => (option, String::new()),
        });
        Ok(GpuRequest { which, capabilities, driver, options: options.collect() })
    }
}

fn parse_count(count: &str) -> Result<Which, Reason> {
    let bad = || Reason::Count(count.to_owned());
    match count {
        "all" | "-1" => Ok(Which::All),
        "free" => Ok(Which::Free(1)),
        _ if count.starts_with("free:") => match count["free:".len()..].parse() {
            Ok(number @ 1..) => Ok(Which::Free(number)),
            _ => Err(bad()),
        },
        _ => match count.parse() {
            Ok(number @ 1..) => Ok(Which::Count(number)),
            _ => Err(bad()),
        },
    }
}

/// Checks and deduplicates the names. With `driver=cdi`, a name may be a qualified CDI name.
fn parse_devices(devices: Vec<String>, by_cdi: bool) -> Result<Vec<String>, Reason> {
    let mut seen: Vec<String> = Vec::new();
    for device in devices {
        let good = |c: char| {
            c.is_ascii_alphanumeric() || matches!(c, '-' | ':' | '.' | '/') || (by_cdi && matches!(c, '=' | '_'))
        };
        let plain = !device.is_empty() && device.chars().all(good);
        // These values have a special meaning in NVIDIA_VISIBLE_DEVICES.
        if !plain || ["all", "none", "void"].contains(&device.as_str()) {
            return Err(Reason::Device(device));
        }
        if !seen.contains(&device) {
            seen.push(device);
        }
    }
    Ok(seen)
}

/// Splits the CSV record into keys and their values. A first field without `=` is the count. A later field without `=`
/// is a further value of the key before it (`device=0,2`), even without quotes.
fn fields(text: &str) -> Result<Vec<(String, Vec<String>)>, Reason> {
    let mut fields: Vec<(String, Vec<String>)> = Vec::new();
    for field in csv::fields(text.trim()).map_err(|_| Reason::Quotes)? {
        let field = field.trim();
        match field.split_once('=') {
            Some((key, values)) => {
                let values = values.split(',').map(|value| value.trim().to_owned()).collect();
                fields.push((key.trim().to_ascii_lowercase(), values));
            }
            None => match fields.last_mut() {
                None if field.is_empty() => return Err(Reason::Empty),
                None if is_count(field) => fields.push(("count".into(), vec![field.into()])),
                Some((key, values)) if ["device", "capabilities", "options"].contains(&key.as_str()) => {
                    values.push(field.into())
                }
                _ => return Err(Reason::Field(field.to_owned())),
            },
        }
    }
    Ok(fields)
}

fn is_count(field: &str) -> bool {
    field == "all" || field == "free" || field.starts_with("free:") || field.parse::<i64>().is_ok()
}

impl fmt::Display for GpuRequest {
    /// Writes the canonical form of the option.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.which {
            Which::All => write!(f, "all")?,
            Which::Count(count) => write!(f, "{count}")?,
            Which::Free(count) => write!(f, "free:{count}")?,
            Which::Devices(devices) if devices.iter().any(|device| device.contains('=')) => {
                write!(f, "{}", quoted(&format!("device={}", devices.join(","))))?
            }
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

/// Quotes a CSV field if necessary.
fn quoted(field: &str) -> String {
    match field.contains([',', '"']) {
        true => format!("\"{}\"", field.replace('"', "\"\"")),
        false => field.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::Report;

    fn devices(list: &[&str]) -> Which {
        Which::Devices(list.iter().map(|&device| device.to_owned()).collect())
    }

    #[test]
    fn dockers_grammar() {
        let cases: [(&str, Which, &[&str]); 21] = [
            ("all", Which::All, &[]),
            ("-1", Which::All, &[]),
            ("2", Which::Count(2), &[]),
            ("count=2", Which::Count(2), &[]),
            ("count=all", Which::All, &[]),
            ("free", Which::Free(1), &[]),
            ("free:3", Which::Free(3), &[]),
            ("free:2,capabilities=compute", Which::Free(2), &["compute"]),
            ("device=0", devices(&["0"]), &[]),
            ("device=0,2", devices(&["0", "2"]), &[]),
            ("\"device=0,2\"", devices(&["0", "2"]), &[]),
            ("device=0,2,0", devices(&["0", "2"]), &[]),
            (
                "device=GPU-3a23c669-1f69-c64e-cf85-44e9b07e7a2a",
                devices(&["GPU-3a23c669-1f69-c64e-cf85-44e9b07e7a2a"]),
                &[],
            ),
            ("device=MIG-1,0:1", devices(&["MIG-1", "0:1"]), &[]),
            ("all,capabilities=utility", Which::All, &["utility"]),
            ("all,\"capabilities=compute,utility\"", Which::All, &["compute", "utility"]),
            ("all,capabilities=compute,utility", Which::All, &["compute", "utility"]),
            ("\"device=0,1\",\"capabilities=gpu,video\",driver=nvidia", devices(&["0", "1"]), &["video"]),
            ("capabilities=gpu", Which::Count(1), &[]),
            ("device=amd.com/gpu=0,driver=cdi", devices(&["amd.com/gpu=0"]), &[]),
            ("\"device=amd.com/gpu=0,amd.com/gpu=1\",driver=cdi", devices(&["amd.com/gpu=0", "amd.com/gpu=1"]), &[]),
        ];
        for (text, which, capabilities) in cases {
            let request: GpuRequest = text.parse().unwrap_or_else(|error| panic!("{text}: {error}"));
            assert_eq!(request.which, which, "{text}");
            assert_eq!(request.capabilities, capabilities, "{text}");
            assert_eq!(request.to_string().parse(), Ok(request), "{text}");
        }
    }

    #[test]
    fn values_that_docker_refuses_are_refused() {
        let cases = [
            ("", "the value is empty"),
            ("0", "`0` is not a number of GPUs"),
            ("-2", "`-2` is not a number"),
            ("free:0", "`free:0` is not a number"),
            ("free:x", "`free:x` is not a number"),
            ("two", "`two` is neither"),
            ("2,device=0", "a count and device ids exclude each other"),
            ("free,device=0", "a count and device ids exclude each other"),
            ("all,all", "`all` is neither"),
            ("device=0,device=1", "`device` is given twice"),
            ("device=", "`` is not the index"),
            ("device=all", "`all` is not the index"),
            ("device=0 1", "`0 1` is not"),
            ("device=amd.com/gpu=0", "`amd.com/gpu=0` is not the index"),
            ("\"device=0,2", "quotes do not match"),
            ("gpu=1", "`gpu` is neither"),
            ("all,capabilities=cuda", "`cuda` is not a driver capability"),
        ];
        for (text, expected) in cases {
            let error = text.parse::<GpuRequest>().unwrap_err();
            assert!(error.to_string().contains(expected), "{text}: {error}");
            assert_eq!(Report::from(error).exit_code, 2);
        }
    }

    #[test]
    fn a_record_holds_the_text() {
        let request: GpuRequest = serde_json::from_str("\"\\\"device=0,2\\\"\"").unwrap();
        assert_eq!(request.which, devices(&["0", "2"]));
        assert_eq!(serde_json::to_string(&request).unwrap(), "\"device=0,2\"");
        assert_eq!(serde_json::from_str::<GpuMode>("\"cdi\"").unwrap(), GpuMode::Cdi);
    }

    proptest::proptest! {
        #[test]
        fn no_text_makes_the_parser_panic(text in "[a-z0-9=,\" :/-]{0,30}") {
            if let Ok(request) = text.parse::<GpuRequest>() {
                proptest::prop_assert_eq!(request.to_string().parse::<GpuRequest>(), Ok(request));
            }
        }

        #[test]
        fn every_request_is_read_as_it_is_written(
            count in 0_u32..9,
            list in proptest::collection::vec("([0-9]|GPU-[0-9a-f]{8}|MIG-[0-9a-f]{8}|[0-9]:[0-9])", 1..4),
            capabilities in proptest::sample::subsequence(vec!["compute", "utility", "video"], 0..3),
            quoted in proptest::bool::ANY,
        ) {
            let which = if count == 0 { format!("device={}", list.join(",")) } else { count.to_string() };
            let which = if quoted { format!("\"{which}\"") } else { which };
            let capabilities = if capabilities.is_empty() { String::new() } else { format!(",\"capabilities={}\"", capabilities.join(",")) };
            let request: GpuRequest = format!("{which}{capabilities}").parse().unwrap();
            proptest::prop_assert_eq!(request.to_string().parse::<GpuRequest>(), Ok(request));
        }
    }
}
