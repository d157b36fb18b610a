//! docker's `--filter KEY=VALUE`.

use std::collections::BTreeMap;

use crate::report::Report;

/// The filters of a command line. Values of one key are alternatives, and different keys must all match. Every label
/// must match, as in docker.
#[derive(Debug, Clone, Default)]
pub(super) struct Filters(Vec<(String, String)>);

impl Filters {
    /// Parses the filters. Only the keys in `known` are accepted.
    pub(super) fn parse(texts: &[String], known: &[&str]) -> Result<Self, Report> {
        let one = |text: &String| {
            let hint = format!("the filters are {}", known.join(", "));
            let Some((key, value)) = text.split_once('=') else {
                return Err(Report::usage(format!("`--filter {text}` is not `KEY=VALUE`")).with_hint(hint));
            };
            let key = key.trim().to_ascii_lowercase();
            if !known.contains(&key.trim_end_matches('!')) {
                return Err(Report::usage(format!("there is no filter `{key}`")).with_hint(hint));
            }
            Ok((key, value.trim().to_owned()))
        };
        texts.iter().map(one).collect::<Result<_, _>>().map(Self)
    }

    /// Refuses values of a key other than `known`.
    pub(super) fn only(&self, key: &str, known: &[&str]) -> Result<(), Report> {
        match self.values(key).find(|value| !known.contains(value)) {
            None => Ok(()),
            Some(value) => Err(Report::usage(format!("`--filter {key}={value}` never matches"))
                .with_hint(format!("use one of: {}", known.join(", ")))),
        }
    }

    /// The values of a key.
    pub(super) fn values<'a>(&'a self, key: &'a str) -> impl Iterator<Item = &'a str> {
        self.0.iter().filter(move |(known, _)| known == key).map(|(_, value)| value.as_str())
    }

    pub(super) fn has(&self, key: &str) -> bool {
        self.values(key).next().is_some()
    }

    /// Whether one of the values of a key matches, or there is no such filter.
    pub(super) fn any(&self, key: &str, matches: impl Fn(&str) -> bool) -> bool {
        !self.has(key) || self.values(key).any(matches)
    }

    /// Whether a name matches one of the patterns of `--filter name=`, which are regular expressions, as in docker.
    pub(super) fn name(&self, name: &str) -> bool {
        self.any("name", |pattern| {
            regex::Regex::new(pattern).map_or_else(|_| name.contains(pattern), |form| form.is_match(name))
        })
    }

    /// Whether all labels that are asked for are there: `KEY` or `KEY=VALUE`, and none of `label!`.
    pub(super) fn labels(&self, labels: &BTreeMap<String, String>) -> bool {
        let has = |wanted: &str| match wanted.split_once('=') {
            Some((key, value)) => labels.get(key).is_some_and(|found| found == value),
            None => labels.contains_key(wanted),
        };
        self.values("label").all(has) && !self.values("label!").any(has)
    }

    /// The value of a filter that is true or false.
    pub(super) fn truth(&self, key: &str) -> Result<Option<bool>, Report> {
        let Some(value) = self.values(key).last() else { return Ok(None) };
        match value {
            "true" | "1" | "t" | "T" | "True" | "TRUE" => Ok(Some(true)),
            "false" | "0" | "f" | "F" | "False" | "FALSE" => Ok(Some(false)),
            other => Err(Report::usage(format!("`--filter {key}={other}` is neither true nor false"))
                .with_hint(format!("write `--filter {key}=true` or `--filter {key}=false`"))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(texts: &[&str]) -> Result<Filters, String> {
        let texts: Vec<String> = texts.iter().map(ToString::to_string).collect();
        Filters::parse(&texts, &["label", "status", "dangling"]).map_err(|report| report.to_string())
    }

    #[test]
    fn values_of_a_key_are_alternatives_and_labels_are_not() {
        let labels: BTreeMap<String, String> =
            [("a", "1"), ("b", "")].map(|(key, value)| (key.to_owned(), value.to_owned())).into();
        let filters = parsed(&["status=exited", "status=created", "label=a=1", "label=b"]).unwrap();
        assert!(
            filters.any("status", |value| value == "created") && !filters.any("status", |value| value == "running")
        );
        assert!(filters.any("name", |_| false), "no such filter");
        assert!(filters.labels(&labels));
        assert!(!parsed(&["label=a=1", "label=c"]).unwrap().labels(&labels));
        assert!(!parsed(&["label=a=2"]).unwrap().labels(&labels));
        assert!(!parsed(&["label!=a"]).unwrap().labels(&labels) && parsed(&["label!=a=2"]).unwrap().labels(&labels));
        assert_eq!(parsed(&["dangling=1"]).unwrap().truth("dangling").unwrap(), Some(true));
        insta::assert_snapshot!(parsed(&["nam=x"]).unwrap_err(), @r"
        error: there is no filter `nam`

        hint: the filters are label, status, dangling
        ");
        insta::assert_snapshot!(parsed(&["status=up"]).unwrap().only("status", &["created", "running"]).unwrap_err(), @r"
        error: `--filter status=up` never matches

        hint: use one of: created, running
        ");
        assert_eq!(filters.only("status", &["created", "exited"]), Ok(()));
        assert!(parsed(&["label"]).unwrap_err().contains("`--filter label` is not `KEY=VALUE`"));
        assert!(parsed(&["dangling=x"]).unwrap().truth("dangling").is_err());
    }
}
