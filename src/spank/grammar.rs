//! The values of the options of `srun`, with pyxis' grammar.

use std::path::{Component, Path, PathBuf};
use std::str::FromStr;

use crate::report::Report;

/// One of `--container-mounts`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct MountOption {
    /// `None` for a tmpfs.
    pub source: Option<PathBuf>,
    pub destination: PathBuf,
    pub flags: MountFlags,
}

/// What differs from a private bind mount without setuid programs and devices.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct MountFlags {
    pub read_only: bool,
    pub no_exec: bool,
    pub no_atime: bool,
    pub propagation: Propagation,
    /// The options `size` and `mode` of a tmpfs.
    pub size: Option<String>,
    pub mode: Option<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) enum Propagation {
    #[default]
    Private,
    Slave,
    Unbindable,
}

/// The name of `--container-name`, which becomes a tag.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct ContainerName {
    pub name: String,
    /// The files must be new.
    pub create: bool,
}

const MOUNT_HINT: &str = "use `--container-mounts=SOURCE:DESTINATION[:ro]`, with an absolute DESTINATION";

/// Parses `SRC:DST[:FLAGS][,…]`.
pub(super) fn mounts(text: &str) -> Result<Vec<MountOption>, Report> {
    // Each one is opened by a process.
    if text.split(',').count() > MOST_MOUNTS {
        return Err(Report::usage(format!(
            "cannot use `--container-mounts`: there are more than {MOST_MOUNTS} mounts"
        ))
        .with_hint("mount a directory that contains the others"));
    }
    text.split(',').map(mount).collect()
}

const MOST_MOUNTS: usize = 1000;

fn mount(text: &str) -> Result<MountOption, Report> {
    let wrong = |why: &str| {
        Report::usage(format!("cannot use `{}` of `--container-mounts`: {why}", text.escape_debug()))
            .with_hint(MOUNT_HINT)
    };
    let mut parts = text.splitn(3, ':');
    let source = parts.next().unwrap_or_default();
    let destination = parts.next().unwrap_or(source);
    if source.is_empty() || destination.is_empty() {
        return Err(wrong("a path is empty"));
    }
    if source == "umount" {
        return Err(wrong("a container has no mounts that a user may remove"));
    }
    let is_tmpfs = source == "tmpfs";
    if !is_tmpfs && !source.starts_with(['/', '.']) {
        return Err(wrong("the source must begin with `/` or `.`, or be `tmpfs`"));
    }
    let path = Path::new(destination);
    if !path.is_absolute() {
        return Err(wrong("the destination must be absolute"));
    }
    if path.components().any(|part| part == Component::ParentDir) {
        return Err(wrong("the destination contains `..`"));
    }
    if path == Path::new("/") {
        return Err(wrong("the destination is the container's root"));
    }
    let mut flags = MountFlags::default();
    for flag in parts.next().unwrap_or_default().split('+').filter(|flag| !flag.is_empty()) {
        match flag {
            "ro" => flags.read_only = true,
            "noexec" => flags.no_exec = true,
            "noatime" => flags.no_atime = true,
            "slave" | "rslave" => flags.propagation = Propagation::Slave,
            "unbindable" | "runbindable" => flags.propagation = Propagation::Unbindable,
            // All mounts are bind mounts with those below them, private, and without setuid programs and devices.
            "rw" | "exec" | "bind" | "rbind" | "private" | "rprivate" | "nosuid" | "nodev" | "relatime" => {}
            "x-create=auto" | "x-create=dir" | "x-create=file" => {}
            _ => match flag.split_once('=') {
                Some(("size", size)) if is_tmpfs && is_size(size) => flags.size = Some(size.into()),
                Some(("mode", mode)) if is_tmpfs && is_mode(mode) => flags.mode = Some(mode.into()),
                _ => return Err(wrong(&format!("the flag `{}` is unknown", flag.escape_debug()))),
            },
        }
    }
    let source = (!is_tmpfs).then(|| source.into());
    Ok(MountOption { source, destination: path.into(), flags })
}

/// The size of a tmpfs: a number of bytes with or without a unit, or a percentage of the node's memory.
fn is_size(text: &str) -> bool {
    let number = text.strip_suffix(['k', 'K', 'm', 'M', 'g', 'G', '%']).unwrap_or(text);
    number.len() <= 15 && number.parse::<u64>().is_ok_and(|number| number > 0) && !number.starts_with('+')
}

fn is_mode(text: &str) -> bool {
    (3..=4).contains(&text.len()) && text.chars().all(|c| ('0'..='7').contains(&c))
}

impl FromStr for ContainerName {
    type Err = Report;

    fn from_str(text: &str) -> Result<Self, Report> {
        let wrong = |why: &str| {
            Report::usage(format!("cannot use `--container-name={}`: {why}", text.escape_debug()))
                .with_hint("use letters, digits, `_`, `.` and `-`: `--container-name=train`")
        };
        let (name, flag) = text.split_once(':').unwrap_or((text, "auto"));
        let is_good = |c: char| c.is_ascii_alphanumeric() || "_.-".contains(c);
        if name.is_empty() || name.starts_with(['.', '-']) || name.len() > 64 || !name.chars().all(is_good) {
            return Err(wrong("a name has up to 64 letters, digits, `_`, `.` and `-`"));
        }
        match flag {
            "" | "auto" | "no_exec" | "create" => Ok(Self { name: name.into(), create: flag == "create" }),
            "exec" => Err(wrong("a step does not enter the container of another step")),
            _ => Err(wrong("the flag must be `auto`, `create` or `no_exec`")),
        }
    }
}

/// Parses the value of a variable `PYXIS_CONTAINER_…` for a flag.
pub(super) fn flag(key: &str, text: &str) -> Result<bool, Report> {
    match text {
        "1" | "true" | "yes" | "y" => Ok(true),
        "0" | "false" | "no" | "n" => Ok(false),
        _ => Err(Report::usage(format!(
            "cannot use `{}` for `--container-{key}`: it is neither 1 nor 0",
            text.escape_debug()
        ))
        .with_hint("set the variable `PYXIS_CONTAINER_…` to 1 or 0, or use the option")),
    }
}

/// Parses the value of NVIDIA_VISIBLE_DEVICES, and returns that of `--gpus`.
pub(super) fn gpus(variable: &str, text: &str) -> Result<String, Report> {
    let is_good = |name: &str| !name.is_empty() && name.chars().all(|c| c.is_ascii_alphanumeric() || "-:".contains(c));
    match text.split(',').all(is_good) {
        true => Ok(format!("device={text}")),
        false => {
            Err(Report::usage(format!("cannot use `{variable}={}`: it is not a list of GPUs", text.escape_debug()))
                .with_hint(format!("list indexes or UUIDs: `{variable}=0,1`, or unset it")))
        }
    }
}

/// Parses the names of variables.
pub(super) fn variables(text: &str) -> Result<Vec<String>, Report> {
    let is_good = |name: &str| {
        !name.is_empty()
            && !name.starts_with(|c: char| c.is_ascii_digit())
            && name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_')
    };
    let names: Vec<String> = text.split(',').map(str::to_owned).collect();
    match names.iter().find(|name| !is_good(name)) {
        None => Ok(names),
        Some(name) => Err(Report::usage(format!(
            "cannot use `{}` of `--container-env`: it is not the name of a variable",
            name.escape_debug()
        ))
        .with_hint("use `--container-env=NAME[,NAME…]`")),
    }
}

/// Parses the working directory. As in pyxis, a relative one begins at the container's root.
pub(super) fn workdir(text: &str) -> Result<String, Report> {
    let path = Path::new("/").join(text);
    path.to_str().map(str::to_owned).ok_or_else(|| Report::usage("cannot use `--container-workdir`: it is not UTF-8"))
}

/// Parses the file of `--container-save`.
pub(super) fn save(text: &str) -> Result<PathBuf, Report> {
    if text.ends_with('/') || Path::new(text).file_name().is_none() {
        return Err(Report::usage(format!("cannot use `--container-save={}`: it is a directory", text.escape_debug()))
            .with_hint("name a file: `--container-save=./image.tar`"));
    }
    Ok(text.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mounts_in_all_forms() {
        let one = |source: &str, destination: &str, read_only| MountOption {
            source: (source != "tmpfs").then(|| source.into()),
            destination: destination.into(),
            flags: MountFlags { read_only, ..MountFlags::default() },
        };
        for (text, expected) in [
            ("/a:/b", vec![one("/a", "/b", false)]),
            ("/a", vec![one("/a", "/a", false)]),
            ("./x:/b:ro", vec![one("./x", "/b", true)]),
            ("../x y:/b c:rw", vec![one("../x y", "/b c", false)]),
            ("/a:/b:rbind+ro+rprivate,tmpfs:/t", vec![one("/a", "/b", true), one("tmpfs", "/t", false)]),
        ] {
            assert_eq!(mounts(text).unwrap(), expected, "{text}");
        }
        let many = vec!["/a:/b"; 1001].join(",");
        for wrong in [
            &many,
            "",
            ":",
            "/a:",
            ":/b",
            "/a:b",
            "a:/b",
            "/a:../b",
            "/a:/b/../c",
            "/a:/",
            "/a:/b:suid",
            "/a:/b:size=1G",
            "tmpfs:/b:size=1x",
            "tmpfs:/b:mode=9",
            "tmpfs:/b:size=1G\0,uid=0",
            "/a:/b,",
            "./x",
            "tmpfs",
            "umount:/b",
        ] {
            assert!(mounts(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn flags_of_mounts() {
        let flags = |text: &str| mounts(text).unwrap().remove(0).flags;
        let wanted = MountFlags {
            read_only: true,
            no_exec: true,
            no_atime: true,
            propagation: Propagation::Unbindable,
            ..MountFlags::default()
        };
        assert_eq!(flags("/a:/b:ro+noexec+noatime+runbindable+x-create=dir"), wanted);
        assert_eq!(flags("/a:/b:rslave").propagation, Propagation::Slave);
        let tmpfs = flags("tmpfs:/b:size=10M+mode=1777");
        assert_eq!((tmpfs.size.as_deref(), tmpfs.mode.as_deref()), (Some("10M"), Some("1777")));
        assert_eq!((flag("writable", "yes").unwrap(), flag("writable", "0").unwrap()), (true, false));
        assert!(flag("writable", "maybe").is_err() && flag("writable", "").is_err());
    }

    #[test]
    fn names_are_tags() {
        for (text, name, create) in
            [("train", "train", false), ("A.b-c_1:create", "A.b-c_1", true), ("x:no_exec", "x", false)]
        {
            assert_eq!(text.parse::<ContainerName>().unwrap(), ContainerName { name: name.into(), create }, "{text}");
        }
        let long = "a".repeat(65);
        for wrong in ["", ":exec", "x:exec", "x:what", "/tmp/foo", "../x", ".x", "-x", "a b", "a/b", "a\nb", "ü", &long]
        {
            assert!(wrong.parse::<ContainerName>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn other_values() {
        assert_eq!(variables("A,B_1").unwrap(), ["A", "B_1"]);
        for wrong in ["", "A,", "1A", "A=1", "A B", "A-B"] {
            assert!(variables(wrong).is_err(), "{wrong}");
        }
        assert_eq!((workdir("/a").unwrap(), workdir("../b").unwrap()), ("/a".to_owned(), "/../b".to_owned()));
        assert_eq!(save("./a.tar").unwrap(), Path::new("./a.tar"));
        for wrong in ["/", "/tmp/", "./", ".."] {
            assert!(save(wrong).is_err(), "{wrong}");
        }
    }
}
