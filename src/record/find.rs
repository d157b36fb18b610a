//! Finding a container by what a person types: a name, an id, or an unambiguous beginning of either.

use super::{Entry, RecordError, Records, Unreadable, short};
use crate::report::{Explain, Report};

#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum FindError {
    #[error("there is no container `{0}`")]
    None(String),
    #[error("`{asked}` is the beginning of {count} containers: {examples}")]
    Ambiguous { asked: String, count: usize, examples: String },
    /// Two containers can come by one name where the record of one could not be read when the other was made.
    #[error("the name `{name}` belongs to {} containers: {}", ids.len(), ids.join(", "))]
    SameName { name: String, ids: Vec<String> },
}

impl Explain for FindError {
    fn hint(&self) -> Option<String> {
        Some(match self {
            Self::None(_) => "`gpurun ps -a` lists them all".into(),
            Self::Ambiguous { .. } => "type more of it".into(),
            Self::SameName { ids, .. } => format!(
                "say which by its id; `gpurun rename {} NEW-NAME` gives one of them another name",
                ids.last().map_or("ID", String::as_str)
            ),
        })
    }
    fn exit_code(&self) -> u8 {
        1
    }
}

/// A container that was found.
#[derive(Debug)]
pub enum Found {
    Whole(Box<Entry>),
    Unreadable(Box<Unreadable>),
}

impl Records {
    /// A whole name wins over everything, then a whole id, then beginnings of ids, then of names. One with an unreadable record is an error,
    /// with its way out.
    pub fn find(&self, asked: &str) -> Result<Entry, Report> {
        match self.find_any(asked)? {
            Found::Whole(entry) => Ok(*entry),
            Found::Unreadable(container) => Err(container.error.into()),
        }
    }

    /// The same for who can do with less than a record. What cannot be read has no name that it could be found by.
    pub fn find_any(&self, asked: &str) -> Result<Found, Report> {
        let (entries, unreadable) = self.list_all().map_err(|error: RecordError| Report::from(error))?;
        let mut keys: Vec<(&str, &str)> =
            entries.iter().map(|entry| (entry.record.name.as_str(), entry.record.id.as_str())).collect();
        keys.extend(unreadable.iter().map(|container| ("", container.id.as_str())));
        let index = match choose(&keys, asked, |key| *key) {
            Ok(index) => index,
            Err(error) => {
                // It may be the one that is meant.
                unreadable.into_iter().for_each(|container| tracing::warn!("{}", Report::from(container.error)));
                return Err(error.into());
            }
        };
        let whole = entries.len();
        let mut entries = entries.into_iter().map(|entry| Found::Whole(Box::new(entry)));
        let mut unreadable = unreadable.into_iter().map(|container| Found::Unreadable(Box::new(container)));
        let found = if index < whole { entries.nth(index) } else { unreadable.nth(index - whole) };
        Ok(found.expect("choose() returns an index of the list"))
    }
}

fn choose<T>(all: &[T], asked: &str, key: impl Fn(&T) -> (&str, &str)) -> Result<usize, FindError> {
    let matching = |test: &dyn Fn(&str, &str) -> bool| -> Vec<usize> {
        all.iter().enumerate().filter(|(_, item)| test(key(item).0, key(item).1)).map(|(index, _)| index).collect()
    };
    let asked_id = asked.to_ascii_lowercase();
    type Test<'a> = &'a dyn Fn(&str, &str) -> bool;
    let tests: [Test<'_>; 4] =
        [&|name, _| name == asked, &|_, id| id == asked_id, &|_, id| id.starts_with(&asked_id), &|name, _| {
            name.starts_with(asked)
        }];
    if !asked.is_empty() {
        for test in tests {
            match matching(test)[..] {
                [] => {}
                [one] => return Ok(one),
                ref several if several.iter().all(|&index| key(&all[index]).0 == asked) => {
                    let ids = several.iter().map(|&index| short(key(&all[index]).1).to_owned()).collect();
                    return Err(FindError::SameName { name: asked.to_owned(), ids });
                }
                ref several => {
                    let examples: Vec<String> = several
                        .iter()
                        .take(4)
                        .map(|&index| match key(&all[index]) {
                            ("", id) => format!("{} (its record cannot be read)", short(id)),
                            (name, id) => format!("{name} ({})", short(id)),
                        })
                        .collect();
                    return Err(FindError::Ambiguous {
                        asked: asked.to_owned(),
                        count: several.len(),
                        examples: examples.join(", "),
                    });
                }
            }
        }
    }
    Err(FindError::None(asked.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_win_and_beginnings_must_be_unambiguous() {
        let all = [("web", "aaaa11"), ("webber", "aabb22"), ("aa", "cccc33")];
        let find = |asked: &str| choose(&all, asked, |item| (item.0, item.1));
        assert_eq!(find("web"), Ok(0));
        assert_eq!(find("webb"), Ok(1));
        assert_eq!(find("aa"), Ok(2), "a whole name wins over the beginning of an id");
        assert_eq!(find("aaa"), Ok(0));
        assert_eq!(find("CCCC"), Ok(2));
        assert_eq!(
            find("we"),
            Err(FindError::Ambiguous {
                asked: "we".into(),
                count: 2,
                examples: "web (aaaa11), webber (aabb22)".into()
            })
        );
        // One whose record cannot be read has no name; its id is found as any other.
        let all = [("web", "aaaa11"), ("", "aabb22")];
        let find = |asked: &str| choose(&all, asked, |item| (item.0, item.1));
        assert_eq!(find("aabb"), Ok(1));
        let error = find("aa").unwrap_err().to_string();
        assert_eq!(error, "`aa` is the beginning of 2 containers: web (aaaa11), aabb22 (its record cannot be read)");
        assert_eq!(find("x"), Err(FindError::None("x".into())));
        assert_eq!(find(""), Err(FindError::None(String::new())));
    }

    #[test]
    fn a_name_that_two_have_is_said_with_both_ids() {
        let all = [("web", "aaaa11"), ("other", "aabb22"), ("web", "cccc33")];
        let report = Report::from(choose(&all, "web", |item| (item.0, item.1)).unwrap_err());
        assert_eq!(
            report.to_string(),
            "error: the name `web` belongs to 2 containers: aaaa11, cccc33\n\n\
             hint: say which by its id; `gpurun rename cccc33 NEW-NAME` gives one of them another name"
        );
        assert_eq!(report.exit_code, 1);
    }
}
