//! The checks that `restart` makes before it stops a running container. They look for everything that would make the
//! next start fail, as far as it can be checked while the container runs. The container's ports, address and GPUs are
//! not checked, because it holds them until it stops.

use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use super::{acquire, check, hooks, process};
use crate::hook;
use crate::record::{Entry, State};
use crate::report::Report;
use crate::request::Payload;
use crate::rootfs::{self, users};
use crate::store::Store;
use crate::sys;

/// Checks whether a running container could be started again now.
pub(crate) fn check_restart(root: &Path, entry: &Entry, state: &State) -> Result<(), Report> {
    let request = &entry.record.request;
    check::check(request)?;
    hook::read_dirs(&hooks::dirs(request))?;
    let image = Store::open(root)?.image_of(entry.record.image)?;
    let Some(pid) = state.pid.filter(|pid| sys::process::start_time(*pid) == state.pid_start) else { return Ok(()) };
    let inside = rootfs::open_root(Path::new(&format!("/proc/{pid}/root")))?;
    users::lookup(&inside, &acquire::user_of(request, &image.config))?;
    for group in &request.group_add {
        users::group(&inside, group)?;
    }
    let Payload::Command(words) = &request.payload else { return Ok(()) };
    let args = process::command(&image.config.entrypoint, &image.config.cmd, request.entrypoint.as_deref(), words);
    let Some(program) = args.first() else { return Ok(()) };
    let env = process::environment("", false, &image.config.env, &[], &request.env, &[]);
    let cwd = process::workdir(request.workdir.as_ref(), Some(&image.config.working_dir));
    match missing(&inside, program, &env, &cwd) {
        Some(why) => Err(Report::new(format!("cannot execute `{program}`: {why}"))),
        None => Ok(()),
    }
}

/// Why the launch would not find the program in the container's root. Follows the rules of `runtime`, which looks for
/// it when the container is created. A path that cannot be looked at from outside (in /proc, for example) counts as
/// found.
fn missing(root: &OwnedFd, program: &str, env: &[String], cwd: &Path) -> Option<&'static str> {
    let search = env.iter().find_map(|entry| entry.strip_prefix("PATH=")).unwrap_or_default();
    let candidates: Vec<PathBuf> = match program.contains('/') {
        true => vec![cwd.join(program)],
        false => search.split(':').map(|dir| cwd.join(dir).join(program)).collect(),
    };
    let mut there = false;
    for path in candidates {
        match rootfs::stat_in_root(root, &path) {
            Ok(None) => {}
            Ok(Some(stat)) => {
                if stat.st_mode & libc::S_IFMT != libc::S_IFDIR && stat.st_mode & 0o111 != 0 {
                    return None;
                }
                there = true;
            }
            Err(_) => return None,
        }
    }
    Some(match (there, program.contains('/')) {
        (true, _) => "it is not an executable file any more",
        (false, true) => "the container has no such file any more",
        (false, false) => "there is no such program in the container's PATH any more",
    })
}
