//! What remains of a step's container: the files of `--container-name`, and the archive of `--container-save`.

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::process::{Command, Stdio};

use nix::fcntl::OFlag;

use super::caller::Caller;
use super::command::{Ran, gpurun};
use super::container::Container;
use super::dirs::Dirs;
use super::kept;
use super::request::StepRequest;
use super::talk::Sockets;
use super::tasks::Tasks;
use crate::report::Report;
use crate::store::Store;

/// Reports an error before the step runs for hours.
pub(super) fn check_save(caller: &Caller, path: &Path, tasks: &Tasks) -> Result<(), Report> {
    caller.check_writable(path, tasks).map_err(|error| unwritable(path, error))
}

fn unwritable(path: &Path, error: io::Error) -> Report {
    Report::new(format!("cannot save the container to `{}`", path.display()))
        .with_cause(error)
        .with_hint("name a new file, or one of your own, in a directory that you may write to on the node")
}

/// Keeps what the user wants to keep.
pub(super) fn keep(dirs: &Dirs, request: &StepRequest, container: &Container, sockets: &Sockets) -> Result<(), Report> {
    let options = &request.options;
    if options.name.is_none() && options.save.is_none() {
        return Ok(());
    }
    let mut commit = gpurun(dirs)?;
    commit.args(["commit", "--pause=false", &container.id]);
    commit.args(options.name.as_ref().map(|name| kept::reference(request, name)));
    let committed = output(commit, "keep the container's files")?;
    let Some(path) = &options.save else { return Ok(()) };
    let saved = save(dirs, &request.caller, committed.out.trim(), path);
    if options.name.is_none() {
        let mut remove = gpurun(dirs)?;
        remove.args(["image", "rm", committed.out.trim()]);
        let _ = output(remove, "remove the saved image");
    }
    saved?;
    sockets.tell(&format!("gpurun: saved the container to {}", path.display()));
    Ok(())
}

fn output(mut command: Command, what: &str) -> Result<Ran, Report> {
    let output = command
        .stdin(Stdio::null())
        .output()
        .map_err(|error| Report::new(format!("cannot {what}")).with_cause(error))?;
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let ran = Ran { code: output.status.code().unwrap_or(-1), out: text(&output.stdout), err: text(&output.stderr) };
    if ran.code == 0 { Ok(ran) } else { Err(ran.report(format!("cannot {what}"))) }
}

/// Writes an image as an archive. Root reads the store, and the user writes the file.
fn save(dirs: &Dirs, caller: &Caller, image: &str, path: &Path) -> Result<(), Report> {
    let failed = |error: io::Error| unwritable(path, error);
    let (reading, writing): (OwnedFd, OwnedFd) =
        nix::unistd::pipe2(OFlag::O_CLOEXEC).map_err(|errno| failed(errno.into()))?;
    let mut command = gpurun(dirs)?;
    command.args(["image", "save", image]).stdin(Stdio::null()).stdout(writing).stderr(Stdio::null());
    let mut child = command.spawn().map_err(failed)?;
    // The command keeps its end of the pipe open.
    drop(command);
    let written = caller.write(path, File::from(reading));
    let status = child.wait().map_err(failed)?;
    written.map_err(failed)?;
    if status.success() { Ok(()) } else { Err(failed(io::Error::other("the image could not be read"))) }
}

/// Removes the files that the steps of a job have kept.
pub(super) fn clean(dirs: &Dirs, job: u32) -> Result<(), Report> {
    // Most jobs keep nothing, on a node that may not have a store yet.
    if !dirs.root.join("names.json").exists() {
        return Ok(());
    }
    for image in Store::open(&dirs.root)?.list()? {
        for name in image.names.iter().filter(|name| kept::is_of_job(name, job)) {
            let mut remove = gpurun(dirs)?;
            remove.args(["image", "rm"]).arg(name.to_string());
            output(remove, "remove the files of a job")?;
        }
    }
    Ok(())
}
