//! Resolves `--user` and an image's `USER` with the image's own /etc/passwd and /etc/group, by docker's rules
//! (moby/sys/user, `GetExecUser`):
//!
//! - `name`, `uid`, `name:group`, `uid:gid` and all mixtures are accepted. A number is always an id, even if it is the
//!   name of a user.
//! - A number that is not in /etc/passwd is used as it is, with group 0 and home `/`.
//! - Supplementary groups come from /etc/group, but only if the user has an entry in /etc/passwd and no group was
//!   requested.
//! - The first line that matches wins.
//!
//! There is one difference. Docker reads an invalid number as 0 (`evil:x:abc:…` becomes root), while gpurun skips the
//! line.
//!
//! The primary group is also the first supplementary group (CVE-2022-2989: otherwise a process can drop the group that
//! denies it access).

use std::os::fd::AsFd;
use std::path::{Path, PathBuf};

use super::root::{RootError, read_file_in_root};
use crate::report::Explain;
use crate::request::UserSpec;

/// The maximum size of either file: far more than any real file (10 000 users are 1 MB), and small enough to read.
const MAX_BYTES: usize = 16 << 20;
/// docker's limits for a number: 0 to 2^31 - 1.
const MAX_ID: u32 = i32::MAX as u32;

/// The user that a container's process runs as.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct User {
    pub uid: u32,
    pub gid: u32,
    /// All of the process's groups, the primary one first.
    pub groups: Vec<u32>,
    pub home: PathBuf,
    /// The name in /etc/passwd, if there is one.
    pub name: Option<String>,
}

#[derive(Debug, thiserror::Error)]
pub(crate) enum LookupError {
    #[error("the image has no user `{user}`")]
    NoUser { user: String },
    #[error("the image has no group `{group}`")]
    NoGroup { group: String },
    #[error("`{id}` is not a user or group ID from 0 to {MAX_ID}")]
    OutOfRange { id: String },
    #[error("cannot look up `{spec}` in the image")]
    Unreadable { spec: String, source: RootError },
}

impl Explain for LookupError {
    fn hint(&self) -> Option<String> {
        match self {
            Self::NoUser { .. } => {
                Some("use a number (`--user 1000:1000`) or a name from the image's /etc/passwd".into())
            }
            Self::NoGroup { .. } => Some("use a number or a name from the image's /etc/group".into()),
            Self::OutOfRange { .. } => None,
            Self::Unreadable { .. } => Some("use numbers, which need no lookup: `--user 0:0`".into()),
        }
    }
}

/// Resolves `spec` in the image at `root`.
pub(crate) fn lookup(root: impl AsFd, spec: &UserSpec) -> Result<User, LookupError> {
    let UserSpec { user, group } = spec;
    let text = spec.to_string();
    let passwd = read(&root, "/etc/passwd", &text, user.is_empty() || number(user).is_some())?;
    // An unreadable group file is an error only if a group name must be looked up.
    let groups = read(&root, "/etc/group", &text, group.is_empty() || number(group).is_some())?;
    select(&passwd, &groups, user, group)
}

/// Like [`lookup`], with the text of the two files.
pub(crate) fn lookup_in(passwd: &str, groups: &str, spec: &UserSpec) -> Result<User, LookupError> {
    select(passwd, groups, &spec.user, &spec.group)
}

/// Resolves a group of `--group-add` to its id.
pub(crate) fn group(root: impl AsFd, group: &str) -> Result<u32, LookupError> {
    if let Some(id) = number(group) {
        return in_range(id, group);
    }
    let file = read(&root, "/etc/group", group, false)?;
    let found = group_lines(&file).find(|line| line.name == group).map(|line| line.gid);
    found.ok_or_else(|| LookupError::NoGroup { group: group.to_owned() })
}

/// Reads a file of the image as text. An unreadable file (a FIFO, a huge file, a loop of links) counts as empty if only
/// numbers are needed.
fn read(root: impl AsFd, path: &str, spec: &str, dispensable: bool) -> Result<String, LookupError> {
    match read_file_in_root(root, Path::new(path), MAX_BYTES) {
        Ok(bytes) => Ok(String::from_utf8_lossy(&bytes.unwrap_or_default()).into_owned()),
        Err(_) if dispensable => Ok(String::new()),
        Err(source) => Err(LookupError::Unreadable { spec: spec.to_owned(), source }),
    }
}

/// The lookup itself, with the text of the two files.
fn select(passwd: &str, groups: &str, user: &str, group: &str) -> Result<User, LookupError> {
    let id = if user.is_empty() { Some(0) } else { number(user) };
    let found = passwd_lines(passwd).find(|line| match id {
        Some(id) => u64::from(line.uid) == id,
        None => line.name == user,
    });
    let mut result = match (found, id) {
        (Some(line), _) => User {
            uid: line.uid,
            gid: line.gid,
            groups: Vec::new(),
            // Callers of getpwnam(3) treat an empty field as `/`.
            home: PathBuf::from(if line.home.is_empty() { "/" } else { line.home }),
            name: Some(line.name.to_owned()),
        },
        (None, Some(id)) => {
            User { uid: in_range(id, user)?, gid: 0, groups: Vec::new(), home: PathBuf::from("/"), name: None }
        }
        (None, None) => return Err(LookupError::NoUser { user: user.to_owned() }),
    };
    let mut supplementary = Vec::new();
    if !group.is_empty() {
        let id = number(group);
        let found = group_lines(groups).find(|line| match id {
            Some(id) => u64::from(line.gid) == id,
            None => line.name == group,
        });
        result.gid = match (found, id) {
            (Some(line), _) => line.gid,
            (None, Some(id)) => in_range(id, group)?,
            (None, None) => return Err(LookupError::NoGroup { group: group.to_owned() }),
        };
    } else if let Some(name) = &result.name {
        supplementary = group_lines(groups)
            .filter(|line| line.members.split(',').any(|m| m == name))
            .map(|line| line.gid)
            .collect();
    }
    result.groups.push(result.gid);
    for gid in supplementary {
        if !result.groups.contains(&gid) {
            result.groups.push(gid);
        }
    }
    Ok(result)
}

/// Parses a non-negative number as Go's `strconv.Atoi` does. A number that is too large becomes `u64::MAX`, which no id
/// reaches.
fn number(text: &str) -> Option<u64> {
    let digits = text.strip_prefix('+').unwrap_or(text);
    (!digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit())).then(|| digits.parse().unwrap_or(u64::MAX))
}

fn in_range(id: u64, text: &str) -> Result<u32, LookupError> {
    u32::try_from(id).ok().filter(|id| *id <= MAX_ID).ok_or_else(|| LookupError::OutOfRange { id: text.to_owned() })
}

struct PasswdLine<'a> {
    name: &'a str,
    uid: u32,
    gid: u32,
    home: &'a str,
}

struct GroupLine<'a> {
    name: &'a str,
    gid: u32,
    members: &'a str,
}

/// passwd(5): `name:password:uid:gid:gecos:home:shell`.
fn passwd_lines(text: &str) -> impl Iterator<Item = PasswdLine<'_>> {
    text.lines().filter_map(|line| {
        let mut fields = line.trim().split(':');
        let (name, _, uid, gid) = (fields.next()?, fields.next()?, fields.next()?, fields.next()?);
        let home = fields.nth(1).unwrap_or("");
        (!name.is_empty()).then_some(())?;
        Some(PasswdLine { name, uid: id_field(uid)?, gid: id_field(gid)?, home })
    })
}

/// group(5): `name:password:gid:members`.
fn group_lines(text: &str) -> impl Iterator<Item = GroupLine<'_>> {
    text.lines().filter_map(|line| {
        let mut fields = line.trim().split(':');
        let (name, _, gid) = (fields.next()?, fields.next()?, fields.next()?);
        (!name.is_empty()).then_some(())?;
        Some(GroupLine { name, gid: id_field(gid)?, members: fields.next().unwrap_or("") })
    })
}

fn id_field(text: &str) -> Option<u32> {
    number(text).and_then(|id| u32::try_from(id).ok()).filter(|id| *id <= MAX_ID)
}

#[cfg(test)]
mod tests {
    use super::*;

    const PASSWD: &str = "root:x:0:0:root:/root:/bin/bash\n\
        evil:x:abc:0::/evil:/bin/sh\n\
        +::::::\n\
        \n\
        jovyan:x:1000:100::/home/jovyan:/bin/bash\n\
        jovyan:x:4242:4242:second line never wins:/x:/bin/sh\n\
        2000:x:3000:3000:a name that looks like a number:/n:/bin/sh\n\
        homeless:x:1001:1001::\n\
        short:x:5\n";
    const GROUP: &str = "root:x:0:root\nusers:x:100:\nvideo:x:44:jovyan,root\nrender:x:107:someone,jovyan\n\
        wheel:x:10:jovyanna\ndup:x:44:jovyan\nbad:x:y:jovyan\n";

    #[test]
    fn follows_dockers_rules() {
        // (spec, uid, gid, groups, home)
        let cases: &[(&str, u32, u32, &[u32], &str)] = &[
            ("", 0, 0, &[0, 44], "/root"),
            ("root", 0, 0, &[0, 44], "/root"),
            ("0", 0, 0, &[0, 44], "/root"),
            ("jovyan", 1000, 100, &[100, 44, 107], "/home/jovyan"),
            ("1000", 1000, 100, &[100, 44, 107], "/home/jovyan"),
            ("jovyan:", 1000, 100, &[100, 44, 107], "/home/jovyan"),
            ("jovyan:video", 1000, 44, &[44], "/home/jovyan"),
            ("jovyan:12345", 1000, 12345, &[12345], "/home/jovyan"),
            ("5555", 5555, 0, &[0], "/"),
            ("5555:wheel", 5555, 10, &[10], "/"),
            ("2000", 2000, 0, &[0], "/"),
            ("3000", 3000, 3000, &[3000], "/n"),
            ("homeless", 1001, 1001, &[1001], "/"),
            (":video", 0, 44, &[44], "/root"),
            ("2147483647", i32::MAX as u32, 0, &[0], "/"),
        ];
        for &(spec, uid, gid, groups, home) in cases {
            let (user, group) = spec.split_once(':').unwrap_or((spec, ""));
            let found = select(PASSWD, GROUP, user, group).unwrap();
            assert_eq!((found.uid, found.gid, &*found.groups), (uid, gid, groups), "{spec}");
            assert_eq!(found.home, Path::new(home), "{spec}");
        }
    }

    #[test]
    fn refuses_the_unknown_and_the_absurd() {
        for (user, group, expected) in [
            ("nobody", "", "the image has no user `nobody`"),
            ("evil", "", "the image has no user `evil`"),
            ("short", "", "the image has no user `short`"),
            ("-1", "", "the image has no user `-1`"),
            ("jovyan", "nogroup", "the image has no group `nogroup`"),
            ("4294967295", "", "`4294967295` is not a user or group ID from 0 to 2147483647"),
            ("2147483648", "", "`2147483648` is not a user or group ID from 0 to 2147483647"),
            ("0", "99999999999999999999", "`99999999999999999999` is not a user or group ID from 0 to 2147483647"),
        ] {
            assert_eq!(select(PASSWD, GROUP, user, group).unwrap_err().to_string(), expected);
        }
    }

    #[test]
    fn an_image_without_files_knows_numbers_only() {
        let root = tempfile::tempdir().unwrap();
        let fd = crate::rootfs::open_root(root.path()).unwrap();
        assert_eq!(lookup(&fd, &UserSpec::of("7:8")).unwrap().groups, [8]);
        assert!(matches!(lookup(&fd, &UserSpec::of("jovyan")), Err(LookupError::NoUser { .. })));
        assert_eq!(lookup(&fd, &UserSpec::of("")).unwrap().uid, 0);
        assert_eq!(group(&fd, "44").unwrap(), 44);
        assert!(matches!(group(&fd, "video"), Err(LookupError::NoGroup { .. })));
    }

    #[test]
    fn a_fifo_or_gigabytes_for_passwd_stop_names_but_not_numbers() {
        let root = tempfile::tempdir().unwrap();
        let passwd = root.path().join("etc/passwd");
        std::fs::create_dir(root.path().join("etc")).unwrap();
        let fd = crate::rootfs::open_root(root.path()).unwrap();
        let check = |what: &str| {
            assert_eq!(lookup(&fd, &UserSpec::of("7")).unwrap().uid, 7, "{what}");
            assert!(matches!(lookup(&fd, &UserSpec::of("jovyan")), Err(LookupError::Unreadable { .. })), "{what}");
        };
        nix::unistd::mkfifo(&passwd, nix::sys::stat::Mode::from_bits_truncate(0o644)).unwrap();
        check("FIFO");
        std::fs::remove_file(&passwd).unwrap();
        std::fs::File::create(&passwd).unwrap().set_len(5 << 30).unwrap();
        check("5 GiB");
        std::fs::remove_file(&passwd).unwrap();
        std::os::unix::fs::symlink("passwd", &passwd).unwrap();
        check("a link to itself");
    }

    #[test]
    fn a_link_out_of_the_image_reads_the_images_own_file() {
        let base = tempfile::tempdir().unwrap();
        let etc = base.path().join("root/etc");
        std::fs::create_dir_all(&etc).unwrap();
        std::fs::write(base.path().join("outside"), "jovyan:x:1:1::/:\n").unwrap();
        std::os::unix::fs::symlink("../../outside", etc.join("passwd")).unwrap();
        let fd = crate::rootfs::open_root(&base.path().join("root")).unwrap();
        assert!(matches!(lookup(&fd, &UserSpec::of("jovyan")), Err(LookupError::NoUser { .. })));
        std::fs::write(base.path().join("root/outside"), "jovyan:x:2:2::/:\n").unwrap();
        assert_eq!(lookup(&fd, &UserSpec::of("jovyan")).unwrap().uid, 2);
    }

    proptest::proptest! {
        #[test]
        fn no_text_makes_a_named_user_root_unless_a_line_says_so(passwd in "([a-z:0-9x]{0,20}\n){0,6}") {
            if let Ok(found) = select(&passwd, "", "zz", "") {
                let line = passwd.lines().find(|line| line.starts_with("zz:")).unwrap();
                proptest::prop_assert!(found.uid != 0 || line.split(':').nth(2).unwrap().bytes().all(|b| b == b'0'));
            }
        }
    }
}
