//! Finds a container by its name or ID, or by a prefix of one.
//!
//! An exact name has priority, then an exact ID. A prefix of an ID works everywhere, as in docker. A prefix of a name
//! works for commands that only read; a command that changes or removes the container requires the whole name. A prefix
//! that several containers share is an error, and so is one that matches one container's ID and another one's name.

use super::entry::Entry;
use super::error::{FindError, RecordError};
use super::records::{Records, Unreadable};
use super::types::short;
use crate::report::Report;

/// Whether a prefix of a name is enough.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Names {
    Shortened,
    Whole,
}

/// The result of a search.
#[derive(Debug)]
pub(crate) enum Found {
    Whole(Box<Entry>),
    Unreadable(Box<Unreadable>),
}

impl Records {
    /// Finds a container for a read-only command. An unreadable record is an error with its hint.
    pub(crate) fn find(&self, asked: &str) -> Result<Entry, Report> {
        self.snapshot()?.find(asked)
    }

    /// Like [`Self::find`], for a command that changes or ends the container.
    pub(crate) fn find_whole(&self, asked: &str) -> Result<Entry, Report> {
        self.snapshot()?.find_whole(asked)
    }

    /// Reads all containers once, for a command with many names.
    pub(crate) fn snapshot(&self) -> Result<Snapshot, Report> {
        let (entries, unreadable) = self.list_all().map_err(|error: RecordError| Report::from(error))?;
        Ok(Snapshot { entries, unreadable })
    }
}

/// All containers at one moment.
#[derive(Debug)]
pub(crate) struct Snapshot {
    entries: Vec<Entry>,
    unreadable: Vec<Unreadable>,
}

impl Snapshot {
    /// See [`Records::find`].
    pub(crate) fn find(&mut self, asked: &str) -> Result<Entry, Report> {
        readable(self.found(asked, Names::Shortened)?)
    }

    /// See [`Records::find_whole`].
    pub(crate) fn find_whole(&mut self, asked: &str) -> Result<Entry, Report> {
        readable(self.find_any(asked)?)
    }

    /// Like [`Self::find_whole`], for removal, which does not need a record. A container with an unreadable record can
    /// be found only by its ID, and is returned only once.
    pub(crate) fn find_any(&mut self, asked: &str) -> Result<Found, Report> {
        self.found(asked, Names::Whole)
    }

    /// Returns whether no container has this name, or an ID that begins so.
    pub(crate) fn lacks(&self, asked: &str) -> bool {
        matches!(choose(&self.keys(), asked, Names::Whole), Err(FindError::None(_)))
    }

    /// The names (empty if unknown) and IDs of all containers.
    fn keys(&self) -> Vec<(&str, &str)> {
        let readable = self.entries.iter().map(|entry| (entry.record.name.as_str(), entry.record.id.as_str()));
        readable.chain(self.unreadable.iter().map(|container| ("", container.id.as_str()))).collect()
    }

    fn found(&mut self, asked: &str, names: Names) -> Result<Found, Report> {
        let index = choose(&self.keys(), asked, names).inspect_err(|_| {
            // One of the unreadable containers may be the one that the caller means.
            self.unreadable.iter().for_each(|container| tracing::warn!("{}", Report::of(&container.error)));
        })?;
        Ok(match self.entries.get(index) {
            Some(entry) => Found::Whole(Box::new(entry.clone())),
            None => Found::Unreadable(Box::new(self.unreadable.remove(index - self.entries.len()))),
        })
    }

    /// Removes a container from the snapshot.
    pub(crate) fn forget(&mut self, id: &str) {
        self.entries.retain(|entry| entry.record.id != id);
        self.unreadable.retain(|container| container.id != id);
    }
}

fn readable(found: Found) -> Result<Entry, Report> {
    match found {
        Found::Whole(entry) => Ok(*entry),
        Found::Unreadable(container) => Err(container.error.into()),
    }
}

/// Chooses from a list of names (empty if unknown) and IDs. Returns the index of the match.
fn choose(all: &[(&str, &str)], asked: &str, names: Names) -> Result<usize, FindError> {
    let matching = |test: &dyn Fn(&str, &str) -> bool| -> Vec<usize> {
        (0..all.len()).filter(|&index| test(all[index].0, all[index].1)).collect()
    };
    // docker shows names with a slash in front, and takes them so.
    let asked = asked.strip_prefix('/').unwrap_or(asked);
    if asked.is_empty() {
        return Err(FindError::None(String::new()));
    }
    let asked_id = asked.to_ascii_lowercase();
    match matching(&|name, _| name == asked)[..] {
        [] => {}
        [one] => return Ok(one),
        ref several => {
            let ids = several.iter().map(|&index| short(all[index].1).to_owned()).collect();
            return Err(FindError::SameName { name: asked.to_owned(), ids });
        }
    }
    if let [one] = matching(&|_, id| id == asked_id)[..] {
        return Ok(one);
    }
    let by_id = matching(&|_, id| id.starts_with(&asked_id));
    match matching(&|name, id| id.starts_with(&asked_id) || name.starts_with(asked))[..] {
        [] => Err(FindError::None(asked.to_owned())),
        [one] if names == Names::Shortened || by_id == [one] => Ok(one),
        [one] => Err(FindError::WholeNames { asked: asked.to_owned(), name: all[one].0.to_owned() }),
        ref several => {
            let example = |&index: &usize| match all[index] {
                ("", id) => format!("{} (its record cannot be read)", short(id)),
                (name, id) => format!("{name} ({})", short(id)),
            };
            let examples: Vec<String> = several.iter().take(4).map(example).collect();
            Err(FindError::Ambiguous { asked: asked.to_owned(), count: several.len(), examples: examples.join(", ") })
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_win_and_beginnings_must_be_unambiguous() {
        let all = [("web", "aaaa11"), ("webber", "aabb22"), ("aa", "cccc33")];
        for names in [Names::Shortened, Names::Whole] {
            let find = |asked: &str| choose(&all, asked, names);
            assert_eq!(find("web"), Ok(0));
            assert_eq!(find("aa"), Ok(2), "a whole name wins over the beginning of an ID");
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
            assert_eq!(find(""), Err(FindError::None(String::new())));
        }
        // A container with an unreadable record has no name, but its ID is found as usual.
        let all = [("web", "aaaa11"), ("", "aabb22")];
        let find = |asked: &str| choose(&all, asked, Names::Shortened);
        assert_eq!(find("aabb"), Ok(1));
        let error = find("aa").unwrap_err().to_string();
        assert_eq!(error, "`aa` is the beginning of 2 containers: web (aaaa11), aabb22 (its record cannot be read)");
        assert_eq!(find("x"), Err(FindError::None("x".into())));
    }

    #[test]
    fn the_beginning_of_a_name_is_not_enough_to_change_a_container() {
        let all = [("web-prod", "aaaa11"), ("batch", "cccc33")];
        assert_eq!(choose(&all, "web", Names::Shortened), Ok(0));
        let report = Report::from(choose(&all, "web", Names::Whole).unwrap_err());
        insta::assert_snapshot!(report.to_string(), @r"
        error: there is no container `web`

        hint: give the whole name, `web-prod`: a command that changes a container takes no shortened names
        ");
        assert_eq!((choose(&all, "aa", Names::Whole), choose(&all, "batch", Names::Whole)), (Ok(0), Ok(1)));
    }

    #[test]
    fn the_beginning_of_an_id_and_of_another_name_is_ambiguous() {
        let all = [("batch", "aaaa11"), ("web", "bbbb22")];
        let said = |names| Report::from(choose(&all, "b", names).unwrap_err()).to_string();
        assert_eq!(said(Names::Shortened), said(Names::Whole));
        insta::assert_snapshot!(said(Names::Whole), @r"
        error: `b` is the beginning of 2 containers: batch (aaaa11), web (bbbb22)

        hint: give the whole name, or more of the ID
        ");
        // A match of both the name and the ID of the same container is not ambiguous.
        assert_eq!(choose(&[("beta", "bbbb22"), ("web", "aaaa11")], "b", Names::Whole), Ok(0));
    }

    #[test]
    fn a_name_that_two_have_is_an_error_with_both_ids() {
        let all = [("web", "aaaa11"), ("other", "aabb22"), ("web", "cccc33")];
        let report = Report::from(choose(&all, "web", Names::Whole).unwrap_err());
        assert_eq!(
            report.to_string(),
            "error: the name `web` belongs to 2 containers: aaaa11, cccc33\n\n\
             hint: give the ID instead; `gpurun rename cccc33 NEW-NAME` gives one of them another name"
        );
        assert_eq!(report.exit_code, 1);
    }
}
