//! Platforms: their notation, and which of them this machine can run. The rules are those of containerd's `platforms`
//! package.

use std::fmt;
use std::str::FromStr;

use serde::Deserialize;

/// An operating system and an architecture, in Go's terms.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Platform {
    #[serde(default, deserialize_with = "or_empty")]
    pub os: String,
    #[serde(default, deserialize_with = "or_empty")]
    pub architecture: String,
    #[serde(default)]
    pub variant: Option<String>,
}

/// Treats `null` like a missing field.
fn or_empty<'de, D: serde::Deserializer<'de>>(input: D) -> Result<String, D::Error> {
    Ok(Option::deserialize(input)?.unwrap_or_default())
}

/// The architecture of this machine, as images name it.
#[must_use]
pub(crate) fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "x86" => "386",
        "aarch64" => "arm64",
        "powerpc64" if cfg!(target_endian = "little") => "ppc64le",
        "powerpc64" => "ppc64",
        "loongarch64" => "loong64",
        other => other,
    }
}

impl Platform {
    /// Creates a platform in its normal form: `x86_64` and `x86-64` become `amd64`, `aarch64` becomes `arm64`, `armhf`
    /// becomes `arm/v7`. The variant that every processor of an architecture has (`amd64/v1`, `arm64/v8`) is dropped.
    #[must_use]
    pub fn new(os: &str, architecture: &str, variant: Option<&str>) -> Self {
        let os = os.to_ascii_lowercase();
        let (architecture, variant) = normalize(architecture, variant.unwrap_or_default());
        let os = match os.as_str() {
            "" => "linux".into(),
            "macos" => "darwin".into(),
            _ => os,
        };
        Self { os, architecture, variant: (!variant.is_empty()).then_some(variant) }
    }

    #[must_use]
    pub fn normalized(&self) -> Self {
        Self::new(&self.os, &self.architecture, self.variant.as_deref())
    }

    /// The platform of this machine.
    #[must_use]
    pub fn host() -> Self {
        Self::new("linux", architecture(), None)
    }

    /// Whether an image for `self` runs on `host`.
    #[must_use]
    pub fn runs_on(&self, host: &Self) -> bool {
        self.rank(host).is_some()
    }

    /// Ranks how well an image for `self` fits `wanted`: 0 is best, and `None` means that it does not fit. The best
    /// variant is the highest one that is not higher than the wanted one. A wanted `amd64` without a variant means the
    /// highest variant that this processor supports.
    #[must_use]
    pub fn rank(&self, wanted: &Self) -> Option<u32> {
        let (offered, wanted) = (self.normalized(), wanted.normalized());
        if offered.os != wanted.os || offered.architecture != wanted.architecture {
            return None;
        }
        if let "amd64" | "arm" | "arm64" = wanted.architecture.as_str() {
            let most = match (&wanted.variant, wanted.architecture.as_str()) {
                (None, "amd64") => processor_level(),
                _ => wanted.level()?,
            };
            return most.checked_sub(offered.level()?);
        }
        match (&offered.variant, &wanted.variant) {
            (Some(offered), Some(wanted)) if offered != wanted => None,
            (None, Some(_)) => Some(1),
            _ => Some(0),
        }
    }

    /// The number of a variant. A processor of one variant also runs code for lower ones.
    fn level(&self) -> Option<u32> {
        let plain = if self.architecture == "arm64" { 80 } else { 10 };
        let Some(variant) = &self.variant else { return Some(plain) };
        let (whole, part) = variant.strip_prefix('v')?.split_once('.').unwrap_or((&variant[1..], "0"));
        whole.parse::<u32>().ok()?.checked_mul(10)?.checked_add(part.parse::<u32>().ok()?.min(9))
    }
}

/// containerd's `normalizeArch`.
fn normalize(architecture: &str, variant: &str) -> (String, String) {
    let (architecture, variant) = (architecture.to_ascii_lowercase(), variant.to_ascii_lowercase());
    let (architecture, variant) = match (architecture.as_str(), variant.as_str()) {
        ("i386" | "i486" | "i586" | "i686" | "386", _) => ("386", ""),
        ("x86_64" | "x86-64" | "amd64", "v1") => ("amd64", ""),
        ("x86_64" | "x86-64", other) => ("amd64", other),
        ("aarch64" | "arm64", "8" | "v8" | "v8.0") => ("arm64", ""),
        ("aarch64", other) => ("arm64", other),
        ("armhf", _) => ("arm", "v7"),
        ("armel", _) => ("arm", "v6"),
        ("arm", "" | "7") => ("arm", "v7"),
        ("arm", "5") => ("arm", "v5"),
        ("arm", "6") => ("arm", "v6"),
        ("arm", "8") => ("arm", "v8"),
        other => other,
    };
    (architecture.to_owned(), variant.to_owned())
}

/// The level of amd64 (x86-64-v1 to v4 of its ABI) that this processor supports, times ten. On other architectures, the
/// level is that of v1.
fn processor_level() -> u32 {
    #[cfg(target_arch = "x86_64")]
    {
        use std::arch::is_x86_feature_detected as has;
        let v2 =
            has!("cmpxchg16b") && has!("popcnt") && has!("sse3") && has!("ssse3") && has!("sse4.1") && has!("sse4.2");
        let v3 = has!("avx2")
            && has!("bmi1")
            && has!("bmi2")
            && has!("f16c")
            && has!("fma")
            && has!("lzcnt")
            && has!("movbe");
        let v4 = has!("avx512f") && has!("avx512bw") && has!("avx512cd") && has!("avx512dq") && has!("avx512vl");
        match (v2, v3, v4) {
            (true, true, true) => 40,
            (true, true, false) => 30,
            (true, false, _) => 20,
            (false, ..) => 10,
        }
    }
    #[cfg(not(target_arch = "x86_64"))]
    10
}

/// Parses `linux/amd64`, `linux/arm/v7` or an architecture alone. `linux` alone means this machine's architecture.
impl FromStr for Platform {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let parts: Vec<&str> = text.split('/').collect();
        let plain = |part: &&str| {
            part.starts_with(|first: char| first.is_ascii_alphanumeric())
                && part.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-' | b'.'))
        };
        if !parts.iter().all(plain) {
            return Err(FORM.into());
        }
        Ok(match *parts.as_slice() {
            [os] if os.eq_ignore_ascii_case("linux") => Self::host(),
            [architecture] => Self::new("linux", architecture, None),
            // An architecture and a variant, such as `amd64/v2`: no operating system has the name of an architecture.
            [architecture, variant] if is_architecture(architecture) => Self::new("linux", architecture, Some(variant)),
            [os, architecture] => Self::new(os, architecture, None),
            [os, architecture, variant] => Self::new(os, architecture, Some(variant)),
            _ => return Err(FORM.into()),
        })
    }
}

/// Whether the text names an architecture with variants, in any spelling.
fn is_architecture(text: &str) -> bool {
    matches!(normalize(text, "").0.as_str(), "amd64" | "arm64" | "arm")
}

const FORM: &str = "write `OS/ARCHITECTURE[/VARIANT]`, for example `linux/arm64`";

impl fmt::Display for Platform {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.os, self.architecture)?;
        match &self.variant {
            Some(variant) if !variant.is_empty() => write!(f, "/{variant}"),
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn platform(text: &str) -> Platform {
        text.parse().expect(text)
    }

    #[test]
    fn every_spelling_has_one_normal_form() {
        for (text, want) in [
            ("linux/arm64", "linux/arm64"),
            ("arm64", "linux/arm64"),
            ("linux/x86_64", "linux/amd64"),
            ("x86-64", "linux/amd64"),
            ("Linux/AMD64", "linux/amd64"),
            ("linux/amd64/v1", "linux/amd64"),
            ("linux/x86_64/v2", "linux/amd64/v2"),
            ("linux/aarch64", "linux/arm64"),
            ("linux/arm64/v8", "linux/arm64"),
            ("linux/arm64/8", "linux/arm64"),
            ("amd64/v1", "linux/amd64"),
            ("amd64/v2", "linux/amd64/v2"),
            ("x86_64/v3", "linux/amd64/v3"),
            ("arm/v6", "linux/arm/v6"),
            ("linux/arm64/v9", "linux/arm64/v9"),
            ("armhf", "linux/arm/v7"),
            ("linux/armel", "linux/arm/v6"),
            ("linux/arm", "linux/arm/v7"),
            ("linux/arm/6", "linux/arm/v6"),
            ("linux/arm/v7", "linux/arm/v7"),
            ("i386", "linux/386"),
            ("macos/arm64", "darwin/arm64"),
            ("linux/riscv64", "linux/riscv64"),
        ] {
            assert_eq!(platform(text).to_string(), want, "{text}");
            assert_eq!(platform(text).normalized(), platform(text), "{text}");
        }
        assert_eq!(platform("linux"), Platform::host());
        for text in ["", "/", "linux/", "a/b/c/d", "linux/../x", "linux/a b", "linux/amd64/"] {
            assert!(text.parse::<Platform>().is_err(), "{text}");
        }
    }

    #[test]
    fn the_highest_variant_that_is_not_too_high_fits_best() {
        for (wanted, offered, best) in [
            ("linux/amd64/v3", vec!["amd64", "amd64/v2", "amd64/v4", "amd64/v3"], Some(3)),
            ("linux/amd64/v3", vec!["amd64/v4", "amd64", "amd64/v2"], Some(2)),
            ("linux/amd64/v2", vec!["amd64/v4", "amd64/v3", "amd64/v1"], Some(2)),
            ("linux/amd64/v2", vec!["amd64/v4", "amd64/v3", "arm64", "amd64/strange"], None),
            ("linux/arm/v7", vec!["arm/v8", "arm/v5", "arm/v6"], Some(2)),
            ("linux/arm64", vec!["arm64/v9", "aarch64/v8"], Some(1)),
            ("linux/arm64/v8.2", vec!["arm64", "arm64/v8.2", "arm64/v8.4"], Some(1)),
            ("linux/riscv64", vec!["riscv64/x", "riscv64"], Some(0)),
        ] {
            let rank = |text: &&str| platform(&format!("linux/{text}")).rank(&platform(wanted));
            let found =
                (0..offered.len()).filter(|at| rank(&offered[*at]).is_some()).min_by_key(|at| rank(&offered[*at]));
            assert_eq!(found, best, "{wanted} of {offered:?}");
        }
        assert!(platform("arm64/v8").runs_on(&platform("arm64")) && platform("arm64").runs_on(&platform("arm64/v8")));
        assert!(!platform("windows/amd64").runs_on(&platform("linux/amd64")));
    }

    #[test]
    fn this_processor_runs_its_level_and_no_higher_one() {
        let level = processor_level() / 10;
        assert!((1..=4).contains(&level));
        let host = Platform::new("linux", "amd64", None);
        for number in 1..=9 {
            let offered = Platform::new("linux", "amd64", Some(&format!("v{number}")));
            assert_eq!(offered.runs_on(&host), number <= level, "v{number} on v{level}");
        }
    }
}
