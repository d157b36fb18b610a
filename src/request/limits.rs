//! The resource limits of a request: the grammar of the flags, and how an update replaces some of the limits.
//! [`LimitsRequest::resolve`] checks them against a host.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::limits_error::{BLKIO_WEIGHTS, LimitsError};
use super::text::{self, stored_as_text};
use crate::report::Report;
use crate::spec::IoKind;
use crate::units::{CpuSet, Cpus, UnitError, parse_memory};

/// The requested limits. `None` means that a flag was not given. The numbers may be docker's special values (0 and -1).
/// `resolve` knows their meaning.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct LimitsRequest {
    pub memory: Option<Size>,
    pub memory_swap: Option<SwapSize>,
    pub memory_reservation: Option<Size>,
    pub cpus: Option<Cpus>,
    /// An empty text in a record of an earlier release means "not set".
    #[serde(deserialize_with = "text::optional")]
    pub cpuset_cpus: Option<CpuSet>,
    #[serde(deserialize_with = "text::optional")]
    pub cpuset_mems: Option<CpuSet>,
    pub pids_limit: Option<i64>,
    pub memory_high: Option<Size>,
    pub memory_min: Option<Size>,
    pub memory_swappiness: Option<i64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub oom_kill_disable: Option<bool>,
    pub cpu_period: Option<i64>,
    pub cpu_quota: Option<i64>,
    pub cpu_shares: Option<i64>,
    pub blkio_weight: Option<i64>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub device_weights: Vec<WeightOf>,
    pub io: Throttles,
    pub cgroup_conf: Vec<ConfEntry>,
}

/// A size in bytes. It keeps the text that it was parsed from, because messages and records quote what the caller wrote.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Size {
    pub bytes: u64,
    text: String,
}

impl FromStr for Size {
    type Err = UnitError;

    fn from_str(text: &str) -> Result<Self, UnitError> {
        Ok(Self { bytes: parse_memory(text)?, text: text.to_owned() })
    }
}

impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl Size {
    /// The number of bytes. In docker, 0 means "not set".
    #[must_use]
    pub(crate) fn limit(&self) -> Option<u64> {
        Some(self.bytes).filter(|bytes| *bytes > 0)
    }
}

/// `--memory-swap`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum SwapSize {
    /// `-1`
    Unlimited,
    /// Memory and swap together.
    Total(Size),
}

impl FromStr for SwapSize {
    type Err = UnitError;

    fn from_str(text: &str) -> Result<Self, UnitError> {
        if text == "-1" { Ok(Self::Unlimited) } else { text.parse().map(Self::Total) }
    }
}

impl fmt::Display for SwapSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unlimited => f.write_str("-1"),
            Self::Total(size) => size.fmt(f),
        }
    }
}

/// A limit for one block device: `DEVICE:RATE`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Throttle {
    pub kind: IoKind,
    pub device: PathBuf,
    /// Bytes or operations per second.
    pub rate: u64,
    pub text: String,
}

impl Throttle {
    pub(crate) fn parse(kind: IoKind, text: &str) -> Result<Self, Report> {
        let flag = kind.flag();
        let wrong = || LimitsError::DeviceRate { flag, text: text.to_owned() };
        let (device, rate) = text.rsplit_once(':').ok_or_else(wrong)?;
        let rate = match kind {
            IoKind::ReadBps | IoKind::WriteBps => parse_memory(rate)
                .map_err(|error| Report::from(error).under(format!("`{flag} {text}` cannot be used")))?,
            IoKind::ReadIops | IoKind::WriteIops => rate.parse().map_err(|_| wrong())?,
        };
        if rate == 0 {
            return Err(wrong().into());
        }
        if matches!(kind, IoKind::ReadIops | IoKind::WriteIops) && rate > u32::MAX.into() {
            return Err(LimitsError::TooOften { flag, text: text.to_owned() }.into());
        }
        Ok(Self { kind, device: device.into(), rate, text: text.to_owned() })
    }
}

/// The weight of one block device: `DEVICE:WEIGHT`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct WeightOf {
    pub device: PathBuf,
    pub weight: u64,
    pub text: String,
}

impl FromStr for WeightOf {
    type Err = LimitsError;

    fn from_str(text: &str) -> Result<Self, LimitsError> {
        let flag = "--blkio-weight-device";
        let parts = text.rsplit_once(':').and_then(|(device, weight)| Some((device, weight.parse::<i64>().ok()?)));
        let (device, value) = parts.ok_or_else(|| LimitsError::DeviceWeight(text.to_owned()))?;
        let (least, most) = (*BLKIO_WEIGHTS.start(), *BLKIO_WEIGHTS.end());
        match u64::try_from(value) {
            Ok(weight) if BLKIO_WEIGHTS.contains(&value) => {
                Ok(Self { device: device.into(), weight, text: text.to_owned() })
            }
            _ => Err(LimitsError::Range { flag, value, least, most, unit: "" }),
        }
    }
}

impl fmt::Display for WeightOf {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

/// The limits for block devices. A record stores them as one list of texts for each kind, in the order of
/// [`IoKind::ALL`].
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(into = "[Vec<String>; 4]", try_from = "[Vec<String>; 4]")]
pub(crate) struct Throttles(pub Vec<Throttle>);

impl Throttles {
    /// Parses the flags of each kind, in the order of [`IoKind::ALL`].
    pub(crate) fn parse(texts: [&[String]; 4]) -> Result<Self, Report> {
        let kinds = IoKind::ALL.into_iter().zip(texts);
        let all = kinds.flat_map(|(kind, texts)| texts.iter().map(move |text| Throttle::parse(kind, text)));
        all.collect::<Result<_, _>>().map(Self)
    }
}

impl From<Throttles> for [Vec<String>; 4] {
    fn from(throttles: Throttles) -> Self {
        let of = |kind| throttles.0.iter().filter(|one| one.kind == kind).map(|one| one.text.clone()).collect();
        IoKind::ALL.map(of)
    }
}

impl TryFrom<[Vec<String>; 4]> for Throttles {
    type Error = Report;

    fn try_from(texts: [Vec<String>; 4]) -> Result<Self, Report> {
        Self::parse(texts.each_ref().map(Vec::as_slice))
    }
}

/// `--cgroup-conf FILE=VALUE`: a file of the container's cgroup and the value to write to it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ConfEntry {
    pub file: String,
    pub value: String,
}

impl FromStr for ConfEntry {
    type Err = LimitsError;

    /// Refuses files that move processes or change the type of a cgroup.
    fn from_str(text: &str) -> Result<Self, LimitsError> {
        let wrong = |why| LimitsError::Conf { text: text.to_owned(), why };
        let (file, value) = text.split_once('=').ok_or_else(|| wrong("is not `FILE=VALUE`"))?;
        let name = |byte: u8| byte.is_ascii_alphanumeric() || b"._-".contains(&byte);
        if file.is_empty()
            || !file.bytes().all(name)
            || !file.contains('.')
            || file.starts_with('.')
            || value.is_empty()
        {
            return Err(wrong("names no file of a cgroup"));
        }
        if file.starts_with("cgroup.") && !["cgroup.max.depth", "cgroup.max.descendants"].contains(&file) {
            return Err(wrong("would change what the cgroup is, not what it may use"));
        }
        if file.starts_with("devices.") {
            return Err(wrong("would go past the device filter"));
        }
        Ok(Self { file: file.to_owned(), value: value.to_owned() })
    }
}

impl fmt::Display for ConfEntry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}={}", self.file, self.value)
    }
}

stored_as_text!(Size, SwapSize, Cpus, CpuSet, ConfEntry, WeightOf);

impl LimitsRequest {
    /// Returns these limits with every limit that `update` sets replaced. A device throttle replaces the one for the
    /// same device, and a `--cgroup-conf` entry replaces the one for the same file.
    #[must_use]
    pub(crate) fn updated_by(&self, update: &Self) -> Self {
        let mut merged = self.clone();
        if update.cpus.is_some() {
            (merged.cpu_period, merged.cpu_quota) = (None, None);
        }
        // The total of memory and swap depends on the memory limit and is removed together with it.
        if update.memory.as_ref().is_some_and(|size| size.bytes == 0) {
            merged.memory_swap = None;
        }
        if update.cpu_period.is_some() || update.cpu_quota.is_some() {
            merged.cpus = None;
        }
        replace(&mut merged.memory, &update.memory);
        replace(&mut merged.memory_swap, &update.memory_swap);
        replace(&mut merged.memory_reservation, &update.memory_reservation);
        replace(&mut merged.memory_high, &update.memory_high);
        replace(&mut merged.memory_min, &update.memory_min);
        replace(&mut merged.cpus, &update.cpus);
        replace(&mut merged.cpuset_cpus, &update.cpuset_cpus);
        replace(&mut merged.cpuset_mems, &update.cpuset_mems);
        replace(&mut merged.pids_limit, &update.pids_limit);
        replace(&mut merged.memory_swappiness, &update.memory_swappiness);
        replace(&mut merged.cpu_period, &update.cpu_period);
        replace(&mut merged.cpu_quota, &update.cpu_quota);
        replace(&mut merged.cpu_shares, &update.cpu_shares);
        replace(&mut merged.blkio_weight, &update.blkio_weight);
        replace(&mut merged.oom_kill_disable, &update.oom_kill_disable);
        for new in &update.device_weights {
            merged.device_weights.retain(|old| old.device != new.device);
            merged.device_weights.push(new.clone());
        }
        for new in &update.io.0 {
            merged.io.0.retain(|old| (old.kind, &old.device) != (new.kind, &new.device));
            merged.io.0.push(new.clone());
        }
        for new in &update.cgroup_conf {
            merged.cgroup_conf.retain(|old| old.file != new.file);
            merged.cgroup_conf.push(new.clone());
        }
        merged
    }
}

fn replace<T: Clone>(old: &mut Option<T>, new: &Option<T>) {
    if new.is_some() {
        old.clone_from(new);
    }
}

/// Parses `--shm-size`. In docker, 0 means "not set".
pub(crate) fn parse_shm_size(text: &str) -> Result<Option<u64>, Report> {
    text::flag_value::<Size>("--shm-size", text).map(|size| size.limit())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn limits(json: &str) -> LimitsRequest {
        serde_json::from_str(json).unwrap()
    }

    #[test]
    fn a_record_keeps_the_texts_of_the_flags() {
        let json = r#"{"memory":"1.5g","memory_swap":"-1","cpus":"1.5","cpuset_cpus":"0-2,7","device_weights":["/dev/sda:300"],"io":[["/dev/sda:10mb"],[],[],["/dev/sda:7"]],"cgroup_conf":["memory.oom.group=1"]}"#;
        let limits = limits(json);
        assert_eq!(limits.memory.as_ref().unwrap().bytes, 3 << 29);
        assert_eq!(limits.io.0.iter().map(|one| one.rate).collect::<Vec<_>>(), [10 << 20, 7]);
        let stored: serde_json::Value = serde_json::to_value(&limits).unwrap();
        for (key, value) in serde_json::from_str::<serde_json::Map<_, _>>(json).unwrap() {
            assert_eq!(stored[&key], value, "{key}");
        }
        let damaged = serde_json::from_str::<LimitsRequest>(r#"{"memory":"much"}"#).unwrap_err();
        assert!(damaged.to_string().contains("`much` is not a size"), "{damaged}");
    }

    #[test]
    fn an_empty_set_of_an_earlier_release_is_none() {
        assert_eq!(limits(r#"{"cpuset_cpus":"","cpuset_mems":null}"#), LimitsRequest::default());
    }

    #[test]
    fn an_update_replaces_what_it_names() {
        let before = limits(
            r#"{"memory":"1g","memory_swap":"2g","cpus":"2","io":[["/dev/a:1m","/dev/b:1m"],["/dev/a:1m"],[],[]],"cgroup_conf":["a.b=1","a.c=1"]}"#,
        );
        let update = limits(r#"{"memory":"0","cpu_quota":1000,"io":[["/dev/a:2m"],[],[],[]],"cgroup_conf":["a.b=2"]}"#);
        let after = limits(
            r#"{"memory":"0","cpu_quota":1000,"io":[["/dev/b:1m","/dev/a:2m"],["/dev/a:1m"],[],[]],"cgroup_conf":["a.c=1","a.b=2"]}"#,
        );
        let merged = before.updated_by(&update);
        assert_eq!(serde_json::to_value(&merged).unwrap(), serde_json::to_value(&after).unwrap());
        assert_eq!(before.updated_by(&LimitsRequest::default()), before);
    }

    #[test]
    fn a_weight_of_a_device_is_in_dockers_range() {
        let weight = |text: &str| text.parse::<WeightOf>().map(|one| (one.device.display().to_string(), one.weight));
        assert_eq!(weight("/dev/sda:300"), Ok(("/dev/sda".into(), 300)));
        assert_eq!(weight("/dev/disk/by-path/pci-0000:00:1:10"), Ok(("/dev/disk/by-path/pci-0000:00:1".into(), 10)));
        for wrong in ["/dev/sda", "/dev/sda:", "/dev/sda:x", "/dev/sda:9", "/dev/sda:1001", "/dev/sda:-1"] {
            assert!(weight(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn files_that_are_no_limits_are_refused() {
        for wrong in ["memory.max", "=1", "x=1", ".a=1", "a.b=", "cgroup.procs=1", "devices.allow=a", "../a.b=1"] {
            assert!(wrong.parse::<ConfEntry>().is_err(), "{wrong}");
        }
        assert_eq!("cgroup.max.depth=1".parse::<ConfEntry>().unwrap().to_string(), "cgroup.max.depth=1");
    }
}
