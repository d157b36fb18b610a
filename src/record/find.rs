//! Finding a container by what a person types: a name, an id, or an unambiguous beginning of either.

use super::{Entry, RecordError, Records, short};
use crate::report::{Explain, Report};

#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum FindError {
    #[error("there is no container `{0}`")]
    None(String),
    #[error("`{asked}` is the beginning of {count} containers: {examples}")]
    Ambiguous { asked: String, count: usize, examples: String },
}

impl Explain for FindError {
    fn hint(&self) -> Option<String> {
        Some(match self {
            Self::None(_) => "`gpurun ps -a` lists them all".into(),
            Self::Ambiguous { .. } => "type more of it".into(),
        })
    }
    fn exit_code(&self) -> u8 {
        1
    }
}

impl Records {
    /// A whole name wins over everything, then a whole id, then beginnings of ids, then of names.
    pub fn find(&self, asked: &str) -> Result<Entry, Report> {
        let entries = self.list().map_err(|error: RecordError| Report::from(error))?;
        let index = choose(&entries, asked, |entry| (&entry.record.name, &entry.record.id))?;
        Ok(entries.into_iter().nth(index).expect("choose() returns an index of the list"))
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
                ref several => {
                    let examples: Vec<String> = several
                        .iter()
                        .take(4)
                        .map(|&index| format!("{} ({})", key(&all[index]).0, short(key(&all[index]).1)))
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
        assert_eq!(find("x"), Err(FindError::None("x".into())));
        assert_eq!(find(""), Err(FindError::None(String::new())));
    }
}
