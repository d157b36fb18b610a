//! Parses `USER[:GROUP]`: the value of `--user`, and the USER of an image.

use std::convert::Infallible;
use std::fmt;
use std::str::FromStr;

use super::text::stored_as_text;

/// A user and a group, as names or numbers. They are resolved in the container's own /etc/passwd and /etc/group.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct UserSpec {
    /// Empty means root.
    pub user: String,
    /// Empty means the user's own group.
    pub group: String,
}

impl UserSpec {
    #[must_use]
    pub(crate) fn of(text: &str) -> Self {
        let (user, group) = text.split_once(':').unwrap_or((text, ""));
        Self { user: user.to_owned(), group: group.to_owned() }
    }
}

impl FromStr for UserSpec {
    type Err = Infallible;

    fn from_str(text: &str) -> Result<Self, Infallible> {
        Ok(Self::of(text))
    }
}

impl fmt::Display for UserSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.user)?;
        if self.group.is_empty() { Ok(()) } else { write!(f, ":{}", self.group) }
    }
}

stored_as_text!(UserSpec);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_user_may_have_a_group() {
        for (text, user, group) in [("", "", ""), ("ann", "ann", ""), ("1000:7", "1000", "7"), (":7", "", "7")] {
            let spec = UserSpec::of(text);
            assert_eq!((&*spec.user, &*spec.group, spec.to_string().as_str()), (user, group, text));
        }
    }
}
