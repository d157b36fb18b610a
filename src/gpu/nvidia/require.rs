//! The driver requirements of an image: NVIDIA_REQUIRE_*, and CUDA_VERSION for images that predate these variables.
//!
//! NVIDIA's hook checks them itself, and CDI does not check them at all. gpurun checks them in every mode before it
//! creates anything, and names both versions in the error. The language, including its rules for errors, is that of
//! libnvidia-container (src/cli/dsl.c). Spaces separate alternatives, and commas separate conditions that must all
//! hold; empty ones are skipped. A condition is a key (`cuda`, `driver`, `arch`, `brand`), an operator and a value. A
//! value that is unknown on this host counts as met.

use std::cmp::Ordering;
use std::collections::BTreeSet;

/// The properties of one GPU that a condition can compare.
#[derive(Debug, Clone, Default)]
pub(super) struct Facts {
    pub driver: String,
    /// The newest CUDA version that the driver supports.
    pub cuda: Option<(i32, i32)>,
    /// Compute capability.
    pub arch: Option<(i32, i32)>,
    pub brand: Option<String>,
    /// Whether a value that is unknown counts as unmet. By NVIDIA's rule it counts as met.
    pub strict: bool,
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Unmet {
    #[error("the image needs {needs} (`{variable}`), but this host has {has}")]
    Condition { variable: String, needs: String, has: String },
    #[error("`{variable}` contains `{value}`, which is not a valid requirement")]
    Invalid { variable: String, value: String },
}

/// Operators in the order in which NVIDIA's tool tries them. A run of operator characters is parsed as the first
/// operator that starts with it.
const OPERATORS: [&str; 6] = ["=", "!=", "<", "<=", ">", ">="];
const OPERATOR_CHARACTERS: [char; 4] = ['<', '>', '=', '!'];
const PREFIX: &str = "NVIDIA_REQUIRE_";
/// Applies to NVIDIA's boards with a Tegra processor, and is read by another tool.
const JETPACK: &str = "NVIDIA_REQUIRE_JETPACK";

/// Checks whether GPUs with these facts meet the requirements of a container with this environment.
pub(super) fn check(env: &[(String, String)], facts: &[Facts]) -> Result<(), Unmet> {
    let value = |name: &str| env.iter().rev().find(|(key, _)| key == name).map(|(_, value)| value.as_str());
    if value("NVIDIA_DISABLE_REQUIRE").is_some_and(|value| ["1", "t", "T", "true", "TRUE", "True"].contains(&value)) {
        return Ok(());
    }
    let keys: BTreeSet<&str> = env
        .iter()
        .map(|(key, _)| key.as_str())
        .filter(|key| key.starts_with(PREFIX) && !key.starts_with(JETPACK))
        .collect();
    // If a name is set twice, the last value counts. The caller can drop a requirement by setting it to the empty
    // string.
    let mut all: Vec<(&str, String)> = keys.into_iter().filter_map(|key| Some((key, value(key)?.to_owned()))).collect();
    if value("NVIDIA_REQUIRE_CUDA").unwrap_or_default().is_empty()
        && let Some(text) = value("CUDA_VERSION").filter(|text| !text.is_empty())
    {
        let (major, minor) = major_minor(text)
            .ok_or_else(|| Unmet::Invalid { variable: "CUDA_VERSION".into(), value: text.to_owned() })?;
        all.push(("CUDA_VERSION", format!("cuda>={major}.{minor}")));
    }
    for facts in facts {
        for (variable, text) in &all {
            check_one(variable, text, facts)?;
        }
    }
    Ok(())
}

/// The newest CUDA version that each driver branch supports (release notes of the CUDA toolkit). NVML reports the same.
const CUDA_OF_BRANCH: [(u32, (i32, i32)); 20] = [
    (418, (10, 1)),
    (440, (10, 2)),
    (450, (11, 0)),
    (455, (11, 1)),
    (460, (11, 2)),
    (465, (11, 3)),
    (470, (11, 4)),
    (495, (11, 5)),
    (510, (11, 6)),
    (515, (11, 7)),
    (520, (11, 8)),
    (525, (12, 0)),
    (530, (12, 1)),
    (535, (12, 2)),
    (545, (12, 3)),
    (550, (12, 4)),
    (555, (12, 5)),
    (560, (12, 6)),
    (570, (12, 8)),
    (580, (13, 0)),
];

/// Whether the version of the driver is enough to know that the requirements are met, so that NVML need not be asked.
pub(super) fn is_met_by_driver(env: &[(String, String)], driver: &str) -> bool {
    let branch = driver.split('.').next().and_then(|branch| branch.parse::<u32>().ok());
    let cuda = CUDA_OF_BRANCH.iter().find(|(known, _)| Some(*known) == branch).map(|(_, cuda)| *cuda);
    check(env, &[Facts { driver: driver.to_owned(), cuda, strict: true, ..Facts::default() }]).is_ok()
}

/// `12.4.1` → 12, 4. Also accepts `v12`, and suffixes of a version (`12.4.1-rc.1`).
fn major_minor(text: &str) -> Option<(u32, u32)> {
    let text = text.strip_prefix('v').unwrap_or(text);
    let version = text.split(['-', '+']).next()?;
    let parts: Option<Vec<u32>> = version.split('.').map(|part| part.parse().ok()).collect();
    let parts = parts?;
    Some((*parts.first()?, parts.get(1).copied().unwrap_or(0)))
}

fn check_one(variable: &str, text: &str, facts: &Facts) -> Result<(), Unmet> {
    let mut first = None;
    for alternative in text.split(' ').filter(|part| !part.is_empty()) {
        let conditions = alternative.split(',').filter(|part| !part.is_empty());
        match conditions.map(|condition| hold(variable, condition, facts)).find(Result::is_err) {
            None | Some(Ok(())) => return Ok(()),
            // As in NVIDIA's tool, an invalid condition is an error, unless an earlier alternative holds.
            Some(Err(invalid @ Unmet::Invalid { .. })) => return Err(invalid),
            // Report the first alternative, which is for the usual case. The others are exceptions for certain boards
            // and drivers.
            Some(Err(unmet)) => first = first.or(Some(unmet)),
        }
    }
    first.map_or(Ok(()), Err)
}

fn hold(variable: &str, condition: &str, facts: &Facts) -> Result<(), Unmet> {
    let invalid = || Unmet::Invalid { variable: variable.to_owned(), value: condition.to_owned() };
    let at = condition.find(OPERATOR_CHARACTERS).filter(|at| *at > 0).ok_or_else(invalid)?;
    let (key, rest) = condition.split_at(at);
    let wanted = rest.trim_start_matches(OPERATOR_CHARACTERS);
    let run = &rest[..rest.len() - wanted.len()];
    let operator = *OPERATORS.iter().find(|operator| operator.starts_with(run)).ok_or_else(invalid)?;
    if wanted.is_empty() {
        return Err(invalid());
    }
    let version = |pair: Option<(i32, i32)>| pair.map(|(major, minor)| format!("{major}.{minor}"));
    let key = key.to_ascii_lowercase();
    let (have, noun) = match key.as_str() {
        "cuda" => (version(facts.cuda), "CUDA"),
        "driver" => (Some(facts.driver.clone()), "driver"),
        "arch" => (version(facts.arch), "compute capability"),
        "brand" => (facts.brand.clone(), "brand"),
        _ => return Err(invalid()),
    };
    let needs = format!("{noun} {operator} {wanted}");
    let Some(have) = have else {
        let (variable, has) = (variable.to_owned(), format!("an unknown {noun}"));
        return if facts.strict { Err(Unmet::Condition { variable, needs, has }) } else { Ok(()) };
    };
    let met = match (key.as_str(), operator) {
        ("brand", "=") => have.eq_ignore_ascii_case(wanted),
        ("brand", "!=") => !have.eq_ignore_ascii_case(wanted),
        // Brands have no order.
        ("brand", _) => return Err(invalid()),
        _ if !is_version(wanted) => return Err(invalid()),
        // A driver whose version cannot be parsed is not checked.
        _ if !is_version(&have) => true,
        (_, operator) => {
            let order = compare(&have, wanted);
            match operator {
                ">=" => order.is_ge(),
                "<=" => order.is_le(),
                "!=" => order.is_ne(),
                "<" => order.is_lt(),
                ">" => order.is_gt(),
                _ => order.is_eq(),
            }
        }
    };
    if met {
        return Ok(());
    }
    let has = match key.as_str() {
        "cuda" => format!("a driver ({}) for CUDA up to {have}", facts.driver),
        _ => format!("{noun} {have}"),
    };
    Err(Unmet::Condition { variable: variable.to_owned(), needs, has })
}

/// Numbers separated by dots. Like NVIDIA's tool, treats several dots as one.
fn is_version(text: &str) -> bool {
    let mut parts = text.split('.');
    parts.next().is_some_and(|first| !first.is_empty())
        && text.split('.').all(|part| part.is_empty() || part.parse::<u64>().is_ok())
}

/// Compares versions number by number. Missing parts count as zero.
pub(super) fn compare(one: &str, other: &str) -> Ordering {
    let parts = |text: &str| -> Vec<u64> {
        text.split('.').filter(|part| !part.is_empty()).map(|part| part.parse().unwrap_or(0)).collect()
    };
    let (mut a, mut b) = (parts(one), parts(other));
    let longest = a.len().max(b.len());
    a.resize(longest, 0);
    b.resize(longest, 0);
    a.cmp(&b)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn verdict(env: &[(&str, &str)]) -> String {
        let env: Vec<(String, String)> = env.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
        let facts = Facts {
            driver: "550.54.15".into(),
            cuda: Some((12, 4)),
            arch: Some((8, 0)),
            brand: Some("tesla".into()),
            strict: false,
        };
        check(&env, &[facts]).err().map_or_else(String::new, |unmet| unmet.to_string())
    }

    #[test]
    fn requirements_are_checked_as_nvidia_does() {
        let met: [&[(&str, &str)]; 19] = [
            &[("NVIDIA_REQUIRE_JETPACK_HOST_MOUNTS", ""), ("NVIDIA_REQUIRE_JETPACK", "csv-mounts=all")],
            &[("CUDA_VERSION", "12.4.1"), ("NVIDIA_REQUIRE_CUDA", "")],
            &[("NVIDIA_REQUIRE_CUDA", "cuda>=12.4,")],
            &[("NVIDIA_REQUIRE_CUDA", " ,  cuda>=99,nonsense")],
            &[("NVIDIA_REQUIRE_CUDA", "CUDA>=12.4.0")],
            &[("NVIDIA_REQUIRE_CUDA", "cuda!12.5")],
            &[("NVIDIA_REQUIRE_CUDA", "cuda>=12.4 cuda==1")],
            &[("CUDA_VERSION", "")],
            &[("CUDA_VERSION", "v12.4.1-rc.1")],
            &[("NVIDIA_REQUIRE_CUDA", "cuda>=12.9"), ("NVIDIA_REQUIRE_CUDA", "")],
            &[],
            &[("NVIDIA_REQUIRE_CUDA", "cuda>=12.4")],
            &[("NVIDIA_REQUIRE_CUDA", "cuda>=12.9 brand=tesla,driver>=535,driver<551")],
            &[("NVIDIA_REQUIRE_CUDA", "cuda>=12.9"), ("NVIDIA_DISABLE_REQUIRE", "true")],
            &[("CUDA_VERSION", "12.4.1")],
            &[("CUDA_VERSION", "13.0.0"), ("NVIDIA_REQUIRE_CUDA", "cuda>=9.0")],
            &[("NVIDIA_REQUIRE_ARCH", "arch>=7.5"), ("NVIDIA_REQUIRE_DRIVER", "driver!=550.54.14")],
            &[("NVIDIA_REQUIRE_CUDA", "")],
            &[("NVIDIA_REQUIRE_X", "brand=Tesla")],
        ];
        for env in met {
            assert_eq!(verdict(env), "", "{env:?}");
        }
        assert_eq!(
            verdict(&[("NVIDIA_REQUIRE_CUDA", "cuda>=12.9 brand=tesla,driver>=560,driver<561")]),
            "the image needs CUDA >= 12.9 (`NVIDIA_REQUIRE_CUDA`), but this host has a driver (550.54.15) for CUDA up to 12.4"
        );
        assert_eq!(
            verdict(&[("CUDA_VERSION", "12.10.0")]),
            "the image needs CUDA >= 12.10 (`CUDA_VERSION`), but this host has a driver (550.54.15) for CUDA up to 12.4"
        );
        assert_eq!(
            verdict(&[("NVIDIA_REQUIRE_ARCH", "arch>=9.0")]),
            "the image needs compute capability >= 9.0 (`NVIDIA_REQUIRE_ARCH`), but this host has compute capability 8.0"
        );
        assert_eq!(
            verdict(&[("CUDA_VERSION", "12.9.1"), ("NVIDIA_REQUIRE_CUDA", "")]),
            "the image needs CUDA >= 12.9 (`CUDA_VERSION`), but this host has a driver (550.54.15) for CUDA up to 12.4",
            "an empty requirement makes it a legacy image"
        );
    }

    #[test]
    fn an_error_of_the_tool_is_an_error() {
        for (text, part) in [
            ("gpu>=1", "gpu>=1"),
            ("cuda==12.4", "cuda==12.4"),
            ("cuda<>12.4", "cuda<>12.4"),
            ("brand>=tesla", "brand>=tesla"),
            ("cuda>=", "cuda>="),
            (">=12", ">=12"),
            ("cuda", "cuda"),
            ("cuda>=twelve", "cuda>=twelve"),
            ("cuda>=.1", "cuda>=.1"),
            ("cuda>=12.9 cuda==12.4", "cuda==12.4"),
            ("cuda>=12.4,nonsense cuda>=1", "nonsense"),
        ] {
            let reason = verdict(&[("NVIDIA_REQUIRE_X", text)]);
            assert_eq!(
                reason,
                format!("`NVIDIA_REQUIRE_X` contains `{part}`, which is not a valid requirement"),
                "{text}"
            );
        }
        assert_eq!(
            verdict(&[("CUDA_VERSION", "cu121")]),
            "`CUDA_VERSION` contains `cu121`, which is not a valid requirement"
        );
    }

    #[test]
    fn the_drivers_version_is_enough_for_most_images() {
        let met =
            |text: &str, driver: &str| is_met_by_driver(&[("NVIDIA_REQUIRE_CUDA".to_owned(), text.to_owned())], driver);
        assert!(is_met_by_driver(&[], "550.54.15"));
        for text in ["cuda>=12.4", "cuda>=11.8 brand=tesla,driver>=470,driver<471", "driver>=535", ""] {
            assert!(met(text, "550.54.15"), "{text}");
        }
        for text in
            ["cuda>=12.5", "cuda>=12.9 brand=tesla,driver>=535,driver<551", "arch>=7.5", "brand=tesla", "cuda=="]
        {
            assert!(!met(text, "550.54.15"), "{text}");
        }
        assert!(!met("cuda>=1.0", "999.1"), "an unknown branch: NVML decides");
    }

    #[test]
    fn an_unknown_value_counts_as_met() {
        let env = [("NVIDIA_REQUIRE_CUDA".to_owned(), "cuda>=99.0".to_owned())];
        assert_eq!(check(&env, &[Facts { driver: "550".into(), ..Facts::default() }]), Ok(()));
    }

    proptest::proptest! {
        #[test]
        fn no_requirement_makes_it_panic(text in "[a-z0-9<>=!., ]{0,40}") {
            let _ = check(&[("NVIDIA_REQUIRE_CUDA".into(), text)], &[Facts { driver: "1.2".into(), cuda: Some((1, 2)), ..Facts::default() }]);
        }
    }
}
