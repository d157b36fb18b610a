//! The image of a step.
//!
//! ```text
//! <run dir>/loaded/<key>   the ID of an image that was loaded from a user's archive; the key is the archive's identity
//! ```
//!
//! - A name is a full reference, never a path or an ID. It is pulled if the node's store does not have it, with the user's
//!   own login or without one. root's logins are never used. An image that was pulled with a login is only for that user,
//!   and so is one from a registry on the loopback interface, which any user may have started. Such images, and the files
//!   that steps keep, have names below `localhost/slurm`.
//! - An archive that only root can change is used in place. Another one is copied into the store: containers of several
//!   users may share an image, and none of them may be able to change it afterwards. Its names are ignored.
//! - An OCI layout is read as a tar stream, by a process of the user. Its identity is that of its `index.json`.
//! - A file that root cannot open, on a network file system, is read through the user's descriptor.

use std::fs::{self, File};
use std::io::{self, Read};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};

use nix::fcntl::OFlag;
use sha2::{Digest as _, Sha256};

use super::caller::About;
use super::command::{gpurun, run};
use super::dirs::Dirs;
use super::request::StepRequest;
use super::talk::Sockets;
use super::tasks::{self, Tasks};
use super::{kept, login};
use crate::durable;
use crate::names::{Digest, Reference};
use crate::report::Report;
use crate::store::{Image, LoadOptions, Source, Store};
use crate::sys::mount::fd_path;
use crate::sys::process;

/// The magic number of FUSE (statfs(2)): a file there has whatever owner its user says.
const FUSE: i64 = 0x6573_5546;

/// The image of the step, and its argument for `gpurun run`.
#[derive(Debug)]
pub(super) struct Provided {
    pub image: Image,
    pub argument: String,
}

/// Finds the image, and loads or pulls it if necessary.
pub(super) fn provide(
    dirs: &Dirs,
    request: &StepRequest,
    tasks: &Tasks,
    sockets: &Sockets,
) -> Result<Provided, Report> {
    let store = Store::open(&dirs.root)?;
    if let Some(name) = &request.options.name {
        let known = kept::reference(request, name);
        let scope = if kept::is_global() { "for this user" } else { "in this job" };
        match (store.resolve(&known), name.create, &request.options.image) {
            (Ok(_), true, _) => {
                return Err(Report::new(format!("the container `{}` exists {scope}", name.name))
                    .with_hint("omit `:create`, or choose another name"));
            }
            (Ok(image), false, _) => return Ok(by_id(image)),
            (Err(_), _, Some(_)) => {}
            (Err(_), _, None) => {
                return Err(Report::new(format!("the container `{}` does not exist {scope} on this node", name.name))
                    .with_hint("create it with an image: `srun --container-image=IMAGE --container-name=NAME …`"));
            }
        }
    }
    let text = request.options.image.as_deref().unwrap_or_default();
    if text.starts_with(['/', '.']) {
        return of_path(dirs, &store, request, Path::new(text), tasks);
    }
    let reference = reference(text)?;
    let (name, own) = (reference.to_string(), kept::of_user(request.caller.uid, &reference));
    if let Some(image) = [&name, &own].into_iter().find_map(|name| store.resolve(name).ok()) {
        return Ok(by_id(image));
    }
    sockets.say(&format!("gpurun: pulling {reference}"));
    let (logins, is_private) = login::of_user(request, &reference, tasks);
    let known_as = if is_private || is_loopback(&reference.domain) { &own } else { &name };
    pull(dirs, &reference, known_as, &logins, tasks)?;
    store.resolve(known_as).map(by_id).map_err(Report::from)
}

/// Whether a registry is on this node, where another user may have started it.
fn is_loopback(registry: &str) -> bool {
    let host = registry.rsplit_once(':').map_or(registry, |(host, _)| host);
    host == "localhost" || host.starts_with("127.") || host == "[::1]"
}

fn by_id(image: Image) -> Provided {
    Provided { argument: image.id.to_string(), image }
}

/// Parses the name of an image. pyxis separates the registry from the name by `#`.
fn reference(text: &str) -> Result<Reference, Report> {
    let plain = text.strip_prefix("docker://").unwrap_or(text).replacen('#', "/", 1);
    let reference: Reference = plain.parse().map_err(|error| {
        Report::from(error).under(format!("cannot use `--container-image={}`", text.escape_debug()))
    })?;
    if kept::is_kept(&reference) {
        return Err(Report::usage(format!("cannot use `--container-image={reference}`: these are files of a step"))
            .with_hint("use them in the same job: `--container-name=NAME`"));
    }
    Ok(reference)
}

/// Pulls an image with these logins, and no others, under a name of the store.
fn pull(dirs: &Dirs, image: &Reference, name: &str, logins: &str, tasks: &Tasks) -> Result<(), Report> {
    let failed = |error: io::Error| Report::new(format!("cannot pull `{image}`")).with_cause(error);
    let logins = process::memory_file(c"logins", logins.as_bytes()).map_err(failed)?;
    let mut command = gpurun(dirs)?;
    command.args(["image", "load", "--quiet", "--rename", "--name", name, "--authfile"]).arg(fd_path(&logins));
    command.arg(format!("docker://{image}"));
    process::pass_only(&mut command, &[logins.as_raw_fd()]);
    let ran = run(command, tasks)?;
    if ran.code == 0 { Ok(()) } else { Err(ran.report(format!("cannot pull `{image}`"))) }
}

/// Takes the image from a file or a directory of the user.
fn of_path(dirs: &Dirs, store: &Store, request: &StepRequest, path: &Path, tasks: &Tasks) -> Result<Provided, Report> {
    let failed = |error: io::Error| {
        Report::new(format!("cannot read the image `{}`", path.display())).with_cause(error).with_hint(HINT)
    };
    let flags = OFlag::O_RDONLY | OFlag::O_NONBLOCK;
    let (opened, about) = request.caller.open(path, flags, tasks).map_err(failed)?;
    let opened = File::from(opened);
    let is_layout = about.is_dir();
    let about = match is_layout {
        true => request.caller.open(&path.join("index.json"), flags, tasks).map_err(failed)?.1,
        false => about,
    };
    if !about.is_file() {
        return Err(failed(io::Error::other("it is neither a file nor a directory")));
    }
    let mut magic = [0; 4];
    if opened.read_at(&mut magic, 0).is_ok() && &magic == b"hsqs" {
        return Err(Report::new(format!(
            "cannot read the image `{}`: it is a squashfs image of enroot",
            path.display()
        ))
        .with_hint("save the image as an archive: `srun --container-image=NAME --container-save=./image.tar true`"));
    }
    let keeps = request.options.save.is_some() || request.options.name.is_some();
    if !is_layout && is_roots(&opened, &about) && !keeps {
        let path = std::path::absolute(path).map_err(failed)?;
        if let Some(image) = in_place(store, &path, &about, tasks)? {
            return Ok(Provided { image, argument: path.display().to_string() });
        }
    }
    let known = dirs.run_dir.join("loaded").join(key(request.caller.uid, &about));
    let id = fs::read_to_string(&known).ok().and_then(|id| id.parse::<Digest>().ok());
    if let Some(image) = id.and_then(|id| store.resolve(&id.to_string()).ok()) {
        return Ok(by_id(image));
    }
    let opened = OwnedFd::from(opened);
    // The error names the file as the user did.
    let named = |text: String| text.replace(&fd_path(&opened).display().to_string(), &path.display().to_string());
    let provided = load(dirs, store, request, &opened, is_layout, tasks).map_err(|report| Report {
        message: named(report.message),
        causes: report.causes.into_iter().map(named).collect(),
        hint: report.hint.or_else(|| is_layout.then(|| HINT.into())),
        ..report
    })?;
    // It only saves time. An error has no other effect.
    let _ = fs::create_dir_all(dirs.run_dir.join("loaded"));
    let _ = durable::write_atomic_volatile(&known, provided.argument.as_bytes());
    Ok(provided)
}

const HINT: &str = "name a docker-archive, an OCI archive or an OCI layout that you may read on the node";

/// Whether only root can change a file.
fn is_roots(file: &File, about: &About) -> bool {
    let is_fuse = nix::sys::statfs::fstatfs(file).map_or(true, |stat| stat.filesystem_type().0 == FUSE);
    about.uid == 0 && about.mode & 0o022 == 0 && !is_fuse
}

/// The identity of a user's file, in its current state.
fn key(uid: u32, about: &About) -> String {
    hex::encode(Sha256::digest(format!("{:?}", (uid, about.place, about.size, about.times))))
}

/// Prepares an archive to be used in place, if that is possible. Root opens its path again, so it must be the same file.
fn in_place(store: &Store, path: &Path, about: &About, tasks: &Tasks) -> Result<Option<Image>, Report> {
    if File::open(path).is_err() {
        return Ok(None);
    }
    let id = in_child(tasks, None, || {
        let found = store.open_in_place(&Source::path(path), &LoadOptions::default(), true, &())?;
        Ok(found.map_or_else(String::new, |image| image.id.to_string()))
    })?;
    let Ok(id) = id.parse::<Digest>() else { return Ok(None) };
    let image = store.image_of(id)?;
    let Some(place) = &image.in_place else { return Ok(Some(image)) };
    let is_same = |file: &Path| file.metadata().is_ok_and(|other| (other.dev(), other.ino()) == about.place);
    if place.layers.iter().all(|layer| is_same(&layer.path)) && is_same(path) {
        return Ok(Some(image));
    }
    Err(Report::new(format!("the image `{}` was replaced while it was read", path.display())))
}

/// Copies an image into the store, without its names.
fn load(
    dirs: &Dirs,
    store: &Store,
    request: &StepRequest,
    opened: &OwnedFd,
    is_layout: bool,
    tasks: &Tasks,
) -> Result<Provided, Report> {
    let failed = |error: io::Error| Report::new("cannot read the image").with_cause(error);
    let (source, input, reader) = if is_layout {
        let (output, input) = nix::unistd::pipe2(OFlag::O_CLOEXEC).map_err(|errno| failed(errno.into()))?;
        let child = request.caller.fork(|| pack(opened, &input)).map_err(failed)?;
        (Source::Stdin, Some(output), Some(child))
    } else if File::open(fd_path(opened)).is_ok() {
        (Source::path(fd_path(opened)), None, None)
    } else {
        (Source::Stdin, Some(opened.try_clone().map_err(failed)?), None)
    };
    let id = in_child(tasks, input.as_ref(), || {
        let options = LoadOptions { renames: true, ..LoadOptions::default() };
        let loaded = Store::open(&dirs.root)?.load(&source, &options, &())?;
        match loaded.as_slice() {
            [image] => Ok(image.id.to_string()),
            images => Err(Report::new(format!("the archive contains {} images", images.len()))
                .with_hint("save the image alone: `gpurun image save -o FILE NAME`")),
        }
    });
    drop(input);
    if let Some(child) = reader {
        // It may have been stopped.
        if let Ok(process) = process::open_pidfd(child.as_raw()) {
            let _ = process::signal(&process, libc::SIGKILL);
            tasks::end_killed(&process, child.as_raw());
        }
    }
    Ok(by_id(store.resolve(&id?)?))
}

/// Writes a directory as a tar stream, as the user.
fn pack(dir: &OwnedFd, out: &OwnedFd) -> io::Result<()> {
    nix::unistd::fchdir(dir)?;
    let mut command = Command::new("tar");
    command.args(["-cf", "-", "."]).env_clear().env("PATH", "/usr/bin:/bin");
    command.stdin(Stdio::null()).stdout(out.try_clone()?).stderr(Stdio::null());
    Err(command.exec())
}

/// Does something in a child, which may have threads, and ends it when the step ends. `input` becomes its standard input.
fn in_child(
    tasks: &Tasks,
    input: Option<&OwnedFd>,
    work: impl FnOnce() -> Result<String, Report>,
) -> Result<String, Report> {
    let failed = |error: io::Error| Report::new("cannot read the image").with_cause(error);
    let answer = process::memory_file(c"answer", b"").map_err(failed)?;
    let child = match process::fork(false).map_err(failed)? {
        process::Fork::Parent(pid) => pid,
        process::Fork::Child => {
            let write = || -> io::Result<()> {
                if let Some(input) = input {
                    nix::unistd::dup2_stdin(input.as_fd())?;
                }
                let result = work();
                serde_json::to_writer(File::from(answer.try_clone()?), &result).map_err(io::Error::other)
            };
            process::exit_now(i32::from(write().is_err()))
        }
    };
    tasks.wait_for(child)?;
    let mut text = String::new();
    io::Seek::rewind(&mut File::from(answer.try_clone().map_err(failed)?)).map_err(failed)?;
    File::from(answer).read_to_string(&mut text).map_err(failed)?;
    serde_json::from_str::<Result<String, Report>>(&text).map_err(|error| failed(error.into()))?
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_names_are_names() {
        for (text, expected) in [
            ("torch", "docker.io/library/torch:latest"),
            ("nvcr.io#nvidia/pytorch:24.01-py3", "nvcr.io/nvidia/pytorch:24.01-py3"),
            ("docker://quay.io/a/b", "quay.io/a/b:latest"),
        ] {
            assert_eq!(reference(text).unwrap().to_string(), expected);
        }
        for wrong in [
            "",
            "-v",
            "--rm",
            "oci:/etc",
            "docker-archive:/etc/shadow",
            "docker://",
            "a b",
            "a\nb",
            "localhost/slurm/job1/uid0:x",
        ] {
            assert!(reference(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_file_of_another_user_is_another_one() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a");
        fs::write(&path, "").unwrap();
        let look = || About::from(nix::sys::stat::stat(&path).unwrap());
        let about = look();
        assert_ne!(key(1, &about), key(2, &about));
        fs::write(&path, "x").unwrap();
        assert_ne!(key(1, &about), key(1, &look()));
    }
}
