//! Makes a base image from a distribution's packages with mmdebstrap, for hosts that cannot reach a container registry.
//!
//! The image has the same contents as the registries' `debian:SUITE` and `debian:SUITE-slim`: dpkg's essential
//! packages, apt, settings that keep apt's caches out of layers, and a policy that starts no service during an
//! installation. `-slim` leaves out manuals and translations. If the host runs the same release, its apt sources are
//! used. Its proxy is always used. Times are clamped to SOURCE_DATE_EPOCH, which mmdebstrap also honors.

use std::fs;
use std::io::{self, BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use super::copy::now;
use crate::clock::rfc3339;
use crate::image::{History, ImageDocument};
use crate::names::{Digest, Reference};
use crate::report::Report;
use crate::store::Store;

/// Distribution, tag and suite of the releases that have a number.
const RELEASES: [(&str, &str, &str); 8] = [
    ("debian", "11", "bullseye"),
    ("debian", "12", "bookworm"),
    ("debian", "13", "trixie"),
    ("debian", "latest", "bookworm"),
    ("ubuntu", "20.04", "focal"),
    ("ubuntu", "22.04", "jammy"),
    ("ubuntu", "24.04", "noble"),
    ("ubuntu", "latest", "noble"),
];

/// apt settings of the registries' Debian images. They keep packages and package lists from being stored twice in a
/// layer.
const APT: [&str; 6] = [
    "APT::Install-Suggests \"false\"",
    "Acquire::GzipIndexes \"true\"",
    "Acquire::Languages \"none\"",
    "APT::AutoRemove::SuggestsImportant \"false\"",
    "DPkg::Post-Invoke { \"rm -f /var/cache/apt/archives/*.deb /var/cache/apt/archives/partial/*.deb /var/cache/apt/*.bin || true\"; }",
    "Dir::Cache { pkgcache \"\"; srcpkgcache \"\"; }",
];
const SLIM: [&str; 7] = [
    "path-exclude=/usr/share/doc/*",
    "path-include=/usr/share/doc/*/copyright",
    "path-exclude=/usr/share/man/*",
    "path-exclude=/usr/share/groff/*",
    "path-exclude=/usr/share/info/*",
    "path-exclude=/usr/share/locale/*",
    "path-include=/usr/share/locale/locale.alias",
];
/// A hook that runs in the finished tree. It installs a policy that keeps services from starting, and removes caches,
/// logs and the files that mmdebstrap copied from the host.
const TIDY: &str = r#"--customize-hook=printf '#!/bin/sh\nexit 101\n' >"$1/usr/sbin/policy-rc.d" && chmod 755 "$1/usr/sbin/policy-rc.d" && \
rm -rf "$1"/var/lib/apt/lists/* "$1"/var/cache/apt/* "$1"/var/log/apt "$1"/var/log/*.log "$1"/var/cache/ldconfig/aux-cache \
"$1"/etc/hostname "$1"/etc/resolv.conf"#;

/// A base image to make.
#[derive(Debug, Clone)]
pub(crate) struct Bootstrap {
    pub name: Reference,
    /// Packages to install besides the essential ones.
    pub include: Vec<String>,
    /// A mirror to use instead of the host's or the distribution's.
    pub mirror: Option<String>,
    pub clamp: Option<i64>,
}

/// The distribution, suite and variant that an image name stands for.
#[derive(Debug, PartialEq, Eq)]
struct Wanted {
    distribution: String,
    suite: String,
    slim: bool,
}

/// Makes the image and names it. Passes mmdebstrap's warnings to `say`.
pub(crate) fn bootstrap(store: &Store, asked: &Bootstrap, say: &mut dyn FnMut(&str)) -> Result<Digest, Report> {
    let wanted = wanted(&asked.name)?;
    let epoch = asked.clamp.unwrap_or_else(now);
    let mut command = Command::new("mmdebstrap");
    command.args(["--mode=root", "--variant=minbase", "--format=tar", "--skip=output/dev", TIDY]);
    command.args(APT.map(|line| format!("--aptopt={line}")));
    if wanted.slim {
        command.args(SLIM.map(|line| format!("--dpkgopt={line}")));
    }
    // These settings apply to this run only. They do not become part of the image.
    command.args(proxies().into_iter().map(|line| format!("--aptopt={line}")));
    let mut packages = asked.include.clone();
    // The package that merges /usr in old systems depends on all of perl. Where /usr is merged from the beginning,
    // `usr-is-merged` is enough.
    let merged = Path::new("/usr/share/mmdebstrap/hooks/merged-usr");
    if wanted.distribution == "debian" && wanted.suite != "bullseye" && merged.exists() {
        command.arg(format!("--hook-dir={}", merged.display()));
        packages.push("usr-is-merged".into());
    }
    if !packages.is_empty() {
        command.arg(format!("--include={}", packages.join(",")));
    }
    command.arg(&wanted.suite).arg("-");
    let own = asked.mirror.is_none().then(|| host_sources(Path::new("/"), &wanted)).flatten();
    match (&asked.mirror, &own) {
        (Some(mirror), _) => drop(command.arg(mirror)),
        (None, Some(sources)) => drop(command.arg(sources)),
        (None, None) => {}
    }
    command
        .env("SOURCE_DATE_EPOCH", epoch.to_string())
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let mut child = command.spawn().map_err(|error| {
        let report = Report::new("cannot run `mmdebstrap`");
        match error.kind() {
            io::ErrorKind::NotFound => report.with_cause(error).with_hint("install it: `apt-get install mmdebstrap`"),
            _ => report.with_cause(error),
        }
    })?;
    let (Some(mut tar), Some(errors)) = (child.stdout.take(), child.stderr.take()) else {
        return Err(Report::new("cannot read the output of `mmdebstrap`"));
    };
    let mut draft = store.draft()?;
    let mut layer = draft.layer()?;
    // Read stderr in a thread beside the copy, because mmdebstrap would block on a full pipe.
    let listen = move || BufReader::new(errors).lines().map_while(Result::ok).collect::<Vec<_>>();
    let listener = std::thread::Builder::new().spawn(listen).map_err(|error| {
        let _ = child.kill();
        let _ = child.wait();
        Report::new("cannot start a thread").with_cause(error)
    })?;
    let copied = io::copy(&mut tar, &mut layer);
    let lines = listener.join().unwrap_or_default();
    let status = child.wait().map_err(|error| Report::new("cannot wait for `mmdebstrap`").with_cause(error))?;
    if !status.success() {
        let last: Vec<&str> = lines.iter().rev().take(8).rev().map(String::as_str).collect();
        return Err(Report::new(format!("`mmdebstrap {}` failed ({status})", wanted.suite))
            .with_cause(format!("last output:\n    | {}", last.join("\n    | ")))
            .with_hint("check that apt on this host reaches a mirror (`apt-get update`), or name another mirror with `--mirror URL`"));
    }
    copied.map_err(|error| Report::new("cannot write the layer of the base image").with_cause(error))?;
    lines.iter().filter(|line| line.starts_with('W')).for_each(|line| say(line));
    let diff_id = draft.seal(layer)?;
    let created = rfc3339(u64::try_from(epoch).unwrap_or(0) * 1_000_000_000);
    let mut document = ImageDocument::scratch();
    document.config.env = vec!["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin".into()];
    document.config.cmd = vec!["bash".into()];
    document.created.clone_from(&created);
    document.history.push(History {
        created,
        created_by: format!("mmdebstrap --variant=minbase {}", wanted.suite),
        comment: "gpurun image bootstrap".into(),
        ..History::default()
    });
    document.diff_ids.push(diff_id);
    Ok(draft.commit(&document, std::slice::from_ref(&asked.name), false)?)
}

fn wanted(name: &Reference) -> Result<Wanted, Report> {
    let path = name.path.rsplit('/').next().unwrap_or_default();
    let unknown = || {
        Report::usage(format!("cannot bootstrap `{}`: unknown distribution", name.familiar()))
            .with_hint("use a name such as `debian:bookworm-slim`, `debian:13` or `ubuntu:24.04`")
    };
    if !["debian", "ubuntu"].contains(&path) {
        return Err(unknown());
    }
    let tag = name.tag.as_deref().unwrap_or("latest");
    let (release, slim) = match tag.strip_suffix("-slim") {
        Some(release) => (release, true),
        None => (tag, false),
    };
    let known = RELEASES.iter().find(|(distribution, number, _)| *distribution == path && *number == release);
    let suite = known.map_or(release, |(.., suite)| suite);
    let is_name = suite.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'-') && !suite.is_empty();
    if !is_name {
        return Err(unknown());
    }
    Ok(Wanted { distribution: path.into(), suite: suite.into(), slim })
}

/// The host's apt sources, if the host runs the wanted release.
fn host_sources(root: &Path, wanted: &Wanted) -> Option<PathBuf> {
    let release = fs::read_to_string(root.join("etc/os-release")).ok()?;
    let field = |name: &str| {
        let line = release.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix('='))?;
        Some(line.trim_matches('"').to_owned())
    };
    if field("ID")? != wanted.distribution || field("VERSION_CODENAME")? != wanted.suite {
        return None;
    }
    let candidates = [format!("etc/apt/sources.list.d/{}.sources", wanted.distribution), "etc/apt/sources.list".into()];
    let says = |text: &str| text.lines().any(|line| line.starts_with("deb ") || line.starts_with("URIs:"));
    candidates
        .map(|path| root.join(path))
        .into_iter()
        .find(|path| fs::read_to_string(path).is_ok_and(|text| says(&text)))
}

/// The host's apt settings for proxies and certificates, in the syntax of `apt.conf`.
fn proxies() -> Vec<String> {
    let Ok(output) = Command::new("apt-config").args(["dump", "--format", "%f \"%v\"%n"]).output() else {
        return Vec::new();
    };
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let about = |line: &&str| {
        ["Acquire::http::Proxy", "Acquire::https::Proxy", "Acquire::https::CAInfo"]
            .iter()
            .any(|name| line.strip_prefix(name).is_some_and(|rest| rest.starts_with(" \"") && rest.len() > 3))
    };
    text.lines().filter(about).map(str::to_owned).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_say_what_is_wanted() {
        let case = |name: &str| wanted(&name.parse().expect(name)).map(|wanted| (wanted.suite, wanted.slim));
        for (name, suite, slim) in [
            ("debian:bookworm-slim", "bookworm", true),
            ("debian:12", "bookworm", false),
            ("debian:13-slim", "trixie", true),
            ("ubuntu:24.04", "noble", false),
            ("localhost/debian:sid", "sid", false),
        ] {
            assert_eq!(case(name), Ok((suite.to_owned(), slim)), "{name}");
        }
        for name in ["alpine:3", "debian:99", "ubuntu:../x"] {
            if let Ok(name) = name.parse() {
                assert!(wanted(&name).is_err(), "{name}");
            }
        }
    }

    #[test]
    fn the_hosts_sources_serve_its_own_release() {
        let root = tempfile::tempdir().expect("a directory");
        let write = |path: &str, text: &str| {
            let path = root.path().join(path);
            fs::create_dir_all(path.parent().expect("a parent")).expect("made");
            fs::write(path, text).expect("written");
        };
        let debian = |suite: &str| Wanted { distribution: "debian".into(), suite: suite.into(), slim: false };
        write("etc/os-release", "ID=debian\nVERSION_CODENAME=bookworm\n");
        write("etc/apt/sources.list", "# nothing\n");
        assert_eq!(host_sources(root.path(), &debian("bookworm")), None);
        write("etc/apt/sources.list.d/debian.sources", "Types: deb\nURIs: http://mirror\n");
        let found = host_sources(root.path(), &debian("bookworm")).expect("found");
        assert!(found.ends_with("debian.sources"));
        assert_eq!(host_sources(root.path(), &debian("trixie")), None);
    }
}
