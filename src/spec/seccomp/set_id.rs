//! Extends a profile so that no process can set the setuid or setgid bit, and so cannot create a file that runs with
//! the privileges of its owner or group.
//!
//! Every system call that sets a file mode keeps its rules with an added condition: neither bit is set in the mode.
//! Calls that pass the mode where a filter cannot see it (openat2, io_uring) fail as if the kernel did not have them,
//! and their callers fall back to older calls.

use super::profile::{Action, Compare, Condition, Profile, Rule};

/// S_ISUID | S_ISGID.
const SET_ID: u64 = 0o6000;
/// O_CREAT | __O_TMPFILE. Without one of these flags, open(2) ignores its mode argument, which may then have any value.
const CREATES: u64 = (libc::O_CREAT | libc::O_TMPFILE & !libc::O_DIRECTORY) as u64;

/// The system calls that set a mode: the name, the index of the flags argument (if any), and the index of the mode
/// argument.
const CALLS: [(&str, Option<u8>, u8); 9] = [
    ("chmod", None, 1),
    ("fchmod", None, 1),
    ("fchmodat", None, 2),
    ("fchmodat2", None, 2),
    ("creat", None, 1),
    ("mknod", None, 1),
    ("mknodat", None, 2),
    ("open", Some(1), 2),
    ("openat", Some(2), 3),
];
/// System calls that pass the mode behind a pointer.
const HIDDEN: [&str; 4] = ["openat2", "io_uring_setup", "io_uring_enter", "io_uring_register"];

impl Profile {
    /// Returns the profile with the setuid and setgid bits forbidden.
    #[must_use]
    pub(crate) fn without_set_id(mut self) -> Self {
        let mut guarded = Vec::new();
        for (name, flags, mode) in CALLS {
            let clear = |argument, mask| Condition { argument, compare: Compare::Masked { mask, value: 0 } };
            let harmless = flags.map(|flags| clear(flags, CREATES)).into_iter().chain([clear(mode, SET_ID)]);
            let mut rules: Vec<Rule> =
                self.rules.iter().filter(|rule| rule.names.iter().any(|n| n == name)).cloned().collect();
            if rules.iter().all(|rule| !rule.conditions.is_empty()) {
                rules.push(Rule { names: Vec::new(), action: self.default, conditions: Vec::new() });
            }
            // A rule without conditions takes precedence in the compiler, whatever its position. Here it goes last.
            rules.sort_by_key(|rule| rule.conditions.is_empty());
            for condition in harmless {
                guarded.extend(rules.iter().map(|rule| Rule {
                    names: vec![name.to_owned()],
                    action: rule.action,
                    conditions: rule.conditions.iter().copied().chain([condition]).collect(),
                }));
            }
            // Any other call sets one of the bits. The condition is always true. It is needed because a rule without
            // conditions would take precedence over the others.
            guarded.push(Rule {
                names: vec![name.to_owned()],
                action: Action::Errno(libc::EPERM as u16),
                conditions: vec![Condition { argument: 0, compare: Compare::Masked { mask: 0, value: 0 } }],
            });
        }
        let is_guarded = |name: &String| CALLS.iter().any(|(call, ..)| call == name) || HIDDEN.contains(&name.as_str());
        for rule in &mut self.rules {
            rule.names.retain(|name| !is_guarded(name));
        }
        self.rules.retain(|rule| !rule.names.is_empty());
        self.rules.extend(guarded);
        self.rules.push(Rule {
            names: HIDDEN.map(str::to_owned).into(),
            action: Action::Errno(libc::ENOSYS as u16),
            conditions: Vec::new(),
        });
        self
    }
}
