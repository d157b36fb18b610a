//! `gpurun shim`, and what gpurun does under docker's names.
//!
//! The shim is two symbolic links to gpurun, `docker` and `docker-compose`, in a directory of PATH. gpurun sees in its
//! `argv[0]` by which name it was called: `docker …` is `gpurun …`, and `docker-compose …` is `gpurun compose …`. The
//! links are the only files of the shim. `install` writes each one with a rename, and takes the first back if the second
//! fails; `remove` removes only links to gpurun.

use std::ffi::{OsStr, OsString};
use std::fs;
use std::io;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use clap::{Args, Subcommand};

use super::own_program::own_program;
use super::print;
use super::versions::{COMPOSE_VERSION, DOCKER_VERSION};
use crate::report::Report;

/// The names of the links.
const NAMES: [&str; 2] = ["docker", "docker-compose"];

#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  gpurun shim install\n  docker run --rm --gpus all jupyter nvidia-smi\n  docker-compose up -d\n\n\
        `install` changes nothing if there is a docker already. docs/docker.md says what differs from docker."
)]
pub(super) struct ShimArgs {
    #[command(subcommand)]
    command: ShimCommand,
}

#[derive(Debug, Subcommand)]
enum ShimCommand {
    /// Make `docker` and `docker-compose` run gpurun, on a host without docker
    Install(PlaceArgs),
    /// Remove `docker` and `docker-compose` if they run gpurun
    Remove(PlaceArgs),
    /// Show what `docker` and `docker-compose` run; exit with 1 if one of them is not gpurun
    Status(PlaceArgs),
}

#[derive(Debug, Args)]
struct PlaceArgs {
    /// Directory of the links
    #[arg(long, value_name = "DIR", default_value = "/usr/local/bin")]
    dir: PathBuf,
}

impl ShimArgs {
    /// Returns whether the command changes nothing, so that every user may run it.
    pub(super) fn reads_only(&self) -> bool {
        matches!(self.command, ShimCommand::Status(_))
    }
}

pub(super) fn run(args: &ShimArgs) -> Result<u8, Report> {
    match &args.command {
        ShimCommand::Install(args) => install(&args.dir),
        ShimCommand::Remove(args) => remove(&args.dir),
        ShimCommand::Status(args) => status(&args.dir),
    }
}

/// What a command line under one of docker's names is.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Called {
    /// A command line of gpurun, without the program name.
    Gpurun(Vec<OsString>),
    /// Docker's answer to a question about its version.
    Version(String),
}

/// Returns docker's name by which this process was called, or `None` for gpurun's own name.
pub(super) fn name() -> Option<&'static str> {
    let called = std::env::args_os().next()?;
    let file = Path::new(&called).file_name()?;
    NAMES.into_iter().find(|name| file == OsStr::new(name))
}

/// Translates a command line under one of docker's names.
pub(super) fn translate(name: &str, args: Vec<OsString>) -> Result<Called, Report> {
    local(std::env::var("DOCKER_HOST").ok().as_deref())?;
    let is_compose = name == NAMES[1];
    let build = format!("build gpurun-{}", env!("CARGO_PKG_VERSION"));
    match args.first().and_then(|first| first.to_str()) {
        Some("-v" | "--version") if is_compose => {
            return Ok(Called::Version(format!("Docker Compose version v{COMPOSE_VERSION}, {build}\n")));
        }
        // gpurun's own `-v` is a volume of a Jupyter launch.
        Some("-v" | "--version") => return Ok(Called::Version(format!("Docker version {DOCKER_VERSION}, {build}\n"))),
        _ => {}
    }
    let prefix: &[&str] = if is_compose { &["compose"] } else { &[] };
    let help: &[&str] = if args.is_empty() { &["--help"] } else { &[] };
    let words = |words: &[&str]| words.iter().map(OsString::from).collect::<Vec<_>>();
    Ok(Called::Gpurun([words(prefix), args, words(help)].concat()))
}

/// Refuses another host's daemon: docker's client would do its work there.
fn local(docker_host: Option<&str>) -> Result<(), Report> {
    match docker_host {
        Some(host) if !host.is_empty() && !host.starts_with("unix://") => Err(Report::usage(format!(
            "cannot use `DOCKER_HOST={host}`: `docker` is gpurun here, which runs containers on this host only"
        ))
        .with_hint("unset DOCKER_HOST, or run the command on the other host: `ssh HOST sudo gpurun ps`")),
        _ => Ok(()),
    }
}

fn install(dir: &Path) -> Result<u8, Report> {
    let program = own_program("install the shim", "as `docker`", "shim install")?;
    if !dir.is_dir() {
        return Err(Report::usage(format!("`{}` is not a directory", dir.display()))
            .with_hint("name a directory of PATH: `gpurun shim install --dir /usr/local/bin`"));
    }
    for name in NAMES {
        if let Some(other) = others(name, dir).first() {
            return Err(Report::new(format!("cannot install the shim: `{}` is {}", other.display(), kind(other)))
                .with_hint(format!(
                    "use `gpurun` beside it, or remove it first and then run `gpurun shim install`: `ls -l {}`",
                    other.display()
                )));
        }
    }
    let mut made = Vec::new();
    for name in NAMES {
        let link = dir.join(name);
        let is_new = fs::symlink_metadata(&link).is_err();
        if let Err(error) = replace(&link, &program) {
            for link in made {
                let _ = fs::remove_file(link);
            }
            return Err(Report::new(format!("cannot write `{}`", link.display())).with_cause(error));
        }
        if is_new {
            made.push(link);
        }
    }
    for name in NAMES {
        print::out(&format!("{} -> {}\n", dir.join(name).display(), program.display()))?;
    }
    if !directories().iter().any(|known| known == dir) {
        print::say(&format!("`{}` is not in PATH: shells do not find `docker` there", dir.display()));
    }
    Ok(0)
}

/// Writes a symbolic link over what is there.
fn replace(link: &Path, target: &Path) -> io::Result<()> {
    let temporary = link.with_extension(format!("{}.new", std::process::id()));
    symlink(target, &temporary)?;
    fs::rename(&temporary, link).inspect_err(|_| drop(fs::remove_file(&temporary)))
}

fn remove(dir: &Path) -> Result<u8, Report> {
    let mut failed = None;
    for link in NAMES.map(|name| dir.join(name)) {
        match fs::symlink_metadata(&link) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            _ if is_own(&link) => match fs::remove_file(&link) {
                Ok(()) => print::out(&format!("removed {}\n", link.display()))?,
                Err(error) => {
                    failed = Some(Report::new(format!("cannot remove `{}`", link.display())).with_cause(error));
                }
            },
            _ => {
                failed = Some(
                    Report::new(format!("cannot remove `{}`: it is {}", link.display(), kind(&link)))
                        .with_hint(format!("see what it is: `ls -l {}`", link.display())),
                );
            }
        }
    }
    failed.map_or(Ok(0), Err)
}

fn status(dir: &Path) -> Result<u8, Report> {
    let mut code = 0;
    for name in NAMES {
        let link = dir.join(name);
        let found = match others(name, dir).into_iter().next() {
            Some(other) => Err(format!("{} is {}", other.display(), kind(&other))),
            None if is_own(&link) => match link.canonicalize() {
                Ok(program) => Ok(format!("{} -> {}", link.display(), program.display())),
                Err(_) => Err(format!("{} is a link to a program that does not exist", link.display())),
            },
            None => Err("not installed".to_owned()),
        };
        code |= u8::from(found.is_err());
        let text = found.unwrap_or_else(|what| what);
        print::out(&format!("{name:<15} {text}\n"))?;
    }
    Ok(code)
}

/// Returns the programs of this name that are not gpurun, in PATH and in a directory.
fn others(name: &str, dir: &Path) -> Vec<PathBuf> {
    let mut all = directories();
    if !all.iter().any(|known| known == dir) {
        all.push(dir.to_owned());
    }
    let candidates = all.into_iter().map(|dir| dir.join(name));
    candidates.filter(|path| fs::symlink_metadata(path).is_ok() && !is_own(path)).collect()
}

fn directories() -> Vec<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).filter(|dir| dir.is_absolute()).collect()
}

/// Whether a path is a link to gpurun: to this one, or to one of another place or release.
fn is_own(path: &Path) -> bool {
    let Ok(target) = fs::read_link(path) else { return false };
    let is_this = || {
        let this = std::env::current_exe().and_then(|path| path.canonicalize());
        this.is_ok_and(|this| path.canonicalize().is_ok_and(|path| path == this))
    };
    target.file_name() == Some(OsStr::new("gpurun")) || is_this()
}

/// Describes a program that is not gpurun.
fn kind(path: &Path) -> &'static str {
    use std::io::Read;
    let mut head = Vec::new();
    let read = fs::File::open(path).and_then(|file| file.take(4096).read_to_end(&mut head));
    let is_podman = || {
        let linked = path.canonicalize().is_ok_and(|path| path.file_name() == Some(OsStr::new("podman")));
        linked || (head.starts_with(b"#!") && String::from_utf8_lossy(&head).contains("podman"))
    };
    match read {
        Err(_) => "another file",
        Ok(_) if is_podman() => "podman under docker's name (podman-docker)",
        Ok(_) => "another program",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn called(name: &str, line: &str) -> String {
        match translate(name, line.split_whitespace().map(OsString::from).collect()).unwrap() {
            Called::Gpurun(args) => super::super::command_line::texts(&args).join(" "),
            Called::Version(text) => text,
        }
    }

    #[test]
    fn dockers_names_are_commands_of_gpurun() {
        for (name, line, want) in [
            ("docker", "run -it box sh", "run -it box sh"),
            ("docker", "compose up -d", "compose up -d"),
            ("docker", "", "--help"),
            ("docker", "run -v /x:/x box", "run -v /x:/x box"),
            ("docker-compose", "up -d", "compose up -d"),
            ("docker-compose", "-f x.yaml ps", "compose -f x.yaml ps"),
            ("docker-compose", "", "compose --help"),
        ] {
            assert_eq!(called(name, line), want, "{name} {line}");
        }
    }

    /// The expressions are of Makefiles and editors.
    #[test]
    fn the_version_is_in_dockers_form() {
        for line in ["-v", "--version"] {
            let text = called("docker", line);
            let version = text.strip_prefix("Docker version ").and_then(|rest| rest.split_once(", build ")).unwrap().0;
            let parts: Vec<u32> = version.split('.').map(|part| part.parse().unwrap()).collect();
            assert_eq!(parts.len(), 3, "{text}");
            let text = called("docker-compose", line);
            assert!(text.starts_with("Docker Compose version v2."), "{text}");
        }
    }

    #[test]
    fn the_daemon_of_another_host_is_refused() {
        for host in [None, Some(""), Some("unix:///var/run/docker.sock")] {
            assert!(local(host).is_ok(), "{host:?}");
        }
        for host in ["ssh://gpu2", "tcp://10.0.0.1:2375"] {
            let error = local(Some(host)).unwrap_err().to_string();
            assert!(error.contains(host) && error.contains("hint: "), "{error}");
        }
    }
}
