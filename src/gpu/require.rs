//! What an image needs of the driver: NVIDIA_REQUIRE_*, and CUDA_VERSION of images from before there was such a thing.
//!
//! NVIDIA's hook judges this by itself, a CDI specification not at all; here it is judged for every way, before anything is made, with both
//! versions named. The language is libnvidia-container's: blanks separate alternatives, commas conditions that must all hold; a condition is
//! a key (`cuda`, `driver`, `arch`, `brand`), an operator and a value. What this host cannot tell counts as met.

use std::cmp::Ordering;
use std::collections::BTreeSet;

/// What can be compared, of one GPU.
#[derive(Debug, Clone, Default)]
pub struct Facts {
    pub driver: String,
    /// The newest CUDA that the driver supports.
    pub cuda: Option<(i32, i32)>,
    /// Compute capability.
    pub arch: Option<(i32, i32)>,
    pub brand: Option<String>,
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Unmet {
    #[error("the image needs {needs} (`{variable}`), this host has {has}")]
    Condition { variable: String, needs: String, has: String },
    #[error("`{variable}` is `{value}`, which is no requirement that can be understood")]
    Nonsense { variable: String, value: String },
}

const OPERATORS: [&str; 6] = [">=", "<=", "!=", "=", "<", ">"];

/// Whether GPUs with these facts will do for a container with this environment.
pub fn check(env: &[(String, String)], facts: &[Facts]) -> Result<(), Unmet> {
    let value = |name: &str| env.iter().rev().find(|(key, _)| key == name).map(|(_, value)| value.as_str());
    if value("NVIDIA_DISABLE_REQUIRE").is_some_and(|word| ["1", "t", "T", "true", "TRUE", "True"].contains(&word)) {
        return Ok(());
    }
    let keys: BTreeSet<&str> =
        env.iter().map(|(key, _)| key.as_str()).filter(|key| key.starts_with("NVIDIA_REQUIRE_")).collect();
    // Of a name that stands twice the last one counts: what a person sets to nothing is not required any more.
    let mut all: Vec<(&str, String)> =
        keys.into_iter().filter_map(|key| Some((key, value(key)?.trim().to_owned()))).collect();
    if value("NVIDIA_REQUIRE_CUDA").is_none()
        && let Some((major, minor)) = value("CUDA_VERSION").and_then(major_minor)
    {
        all.push(("CUDA_VERSION", format!("cuda>={major}.{minor}")));
    }
    for (variable, text) in &all {
        for facts in facts {
            judge(variable, text, facts)?;
        }
    }
    Ok(())
}

/// `12.4.1` → 12, 4
fn major_minor(text: &str) -> Option<(u32, u32)> {
    let mut parts = text.split('.').map(|part| part.parse().ok());
    Some((parts.next()??, parts.next().flatten().unwrap_or(0)))
}

fn judge(variable: &str, text: &str, facts: &Facts) -> Result<(), Unmet> {
    let mut first = None;
    for alternative in text.split_whitespace() {
        match alternative.split(',').try_for_each(|condition| hold(variable, condition, facts)) {
            Ok(()) => return Ok(()),
            // The first alternative is the one for the usual case; the others are exceptions for certain boards and drivers.
            Err(unmet) => first = first.or(Some(unmet)),
        }
    }
    first.map_or(Ok(()), Err)
}

fn hold(variable: &str, condition: &str, facts: &Facts) -> Result<(), Unmet> {
    let nonsense = || Unmet::Nonsense { variable: variable.to_owned(), value: condition.to_owned() };
    let at = condition.find(['<', '>', '!', '=']).ok_or_else(nonsense)?;
    let (key, rest) = condition.split_at(at);
    let operator = OPERATORS.iter().find(|operator| rest.starts_with(**operator)).ok_or_else(nonsense)?;
    let wanted = rest[operator.len()..].trim_start_matches('=');
    let version = |pair: Option<(i32, i32)>| pair.map(|(major, minor)| format!("{major}.{minor}"));
    let (have, called) = match key.trim() {
        "cuda" => (version(facts.cuda), "CUDA"),
        "driver" => (Some(facts.driver.clone()), "driver"),
        "arch" => (version(facts.arch), "compute capability"),
        "brand" => (facts.brand.clone(), "brand"),
        _ => return Err(nonsense()),
    };
    let Some(have) = have else { return Ok(()) };
    let order = if key.trim() == "brand" {
        if have.eq_ignore_ascii_case(wanted) { Ordering::Equal } else { Ordering::Less }
    } else {
        compare(&have, wanted)
    };
    let met = match *operator {
        ">=" => order.is_ge(),
        "<=" => order.is_le(),
        "!=" => order.is_ne(),
        "<" => order.is_lt(),
        ">" => order.is_gt(),
        _ => order.is_eq(),
    };
    if met {
        return Ok(());
    }
    let has = match key.trim() {
        "cuda" => format!("a driver ({}) for CUDA up to {have}", facts.driver),
        _ => format!("{called} {have}"),
    };
    Err(Unmet::Condition { variable: variable.to_owned(), needs: format!("{called} {operator} {wanted}"), has })
}

/// Versions by their numbers; what is missing is zero.
pub(super) fn compare(one: &str, other: &str) -> Ordering {
    let parts = |text: &str| -> Vec<u64> { text.split('.').map(|part| part.parse().unwrap_or(0)).collect() };
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
        let facts =
            Facts { driver: "550.54.15".into(), cuda: Some((12, 4)), arch: Some((8, 0)), brand: Some("tesla".into()) };
        check(&env, &[facts]).err().map_or_else(String::new, |unmet| unmet.to_string())
    }

    #[test]
    fn requirements_are_judged_as_nvidia_does() {
        let met: [&[(&str, &str)]; 10] = [
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
            "the image needs CUDA >= 12.9 (`NVIDIA_REQUIRE_CUDA`), this host has a driver (550.54.15) for CUDA up to 12.4"
        );
        assert_eq!(
            verdict(&[("CUDA_VERSION", "12.10.0")]),
            "the image needs CUDA >= 12.10 (`CUDA_VERSION`), this host has a driver (550.54.15) for CUDA up to 12.4"
        );
        assert_eq!(
            verdict(&[("NVIDIA_REQUIRE_ARCH", "arch>=9.0")]),
            "the image needs compute capability >= 9.0 (`NVIDIA_REQUIRE_ARCH`), this host has compute capability 8.0"
        );
        let nonsense = verdict(&[("NVIDIA_REQUIRE_CUDA", "gpu>=1")]);
        assert_eq!(nonsense, "`NVIDIA_REQUIRE_CUDA` is `gpu>=1`, which is no requirement that can be understood");
    }

    #[test]
    fn what_cannot_be_told_counts_as_met() {
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
