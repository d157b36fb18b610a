//! `srun --container-image`: the privileged side of the SPANK plugin (`hooks/slurm/gpurun_spank.c`).
//!
//! The plugin starts one `gpurun step-enter` for each step and node, as root and outside of the step's limits. It creates
//! the container with `gpurun run` in the cgroups of the first task, so that everything of a container in a step applies
//! (`cluster/`): libcontainer creates it, its files are removed by the usual rules, and other commands see it. Its process
//! only waits. The tasks are Slurm's, with Slurm's limits, signals and descriptors; each joins the mount namespace.
//!
//! ```text
//! slurmstepd ── request, pids ──> gpurun step-enter ──> gpurun run … gpurun-init     the container
//!   └─ task  <── namespace, filter, settings ──┘
//! ```
//!
//! Everything in the request comes from a user: options, variables, paths and the image. So:
//! - A path of the user is opened by a process with the user's credentials ([`caller`]), which passes the descriptor on.
//!   Links of /proc are not followed. An archive is read, and a file is written, by such a process too.
//! - The image is named by a reference or comes from the user's own file. It is loaded under its digest only, so that it
//!   cannot take the name of another image. A pull has no login.
//! - Mount points are created in the container's root before any directory of the user is mounted there.
//! - No shell is used, and no text of the user becomes a flag.
//!
//! Clean-up rule: this process ends when its socket does. If slurmstepd was killed, it kills the tasks. If this process is
//! killed as well, the container ends with the step, as any other (`launch::step_keeper`). The files that
//! `--container-name` keeps are an image, which the end of the job removes.

mod attach;
mod caller;
mod command;
mod container;
mod dirs;
mod grammar;
mod image;
mod keep;
mod kept;
mod login;
mod request;
mod settings;
mod talk;
mod tasks;

use std::io::Read;
use std::path::PathBuf;

use crate::report::Report;
use container::Container;
use dirs::Dirs;
use request::StepRequest;
use talk::{FromPlugin, Sockets};
use tasks::Tasks;

/// The name of the command.
pub(crate) const STEP_ENTER: &str = "step-enter";
/// The name of the command for the end of a job.
pub(crate) const STEP_CLEAN: &str = "step-clean";
/// The longest request that is read. The kernel limits a process's arguments and environment to less.
const MAX_REQUEST: u64 = 64 << 20;

/// Removes what the steps of a job have kept on this node.
pub(crate) fn step_clean_main(root: PathBuf, run_dir: PathBuf, job: u32) -> Result<(), Report> {
    keep::clean(&Dirs { root, run_dir }, job)
}

/// Serves one step on this node, until the plugin's socket ends.
pub(crate) fn step_enter_main(root: PathBuf, run_dir: PathBuf) -> Result<(), Report> {
    let sockets = Sockets::inherited()?;
    // The working directory is the job's, for relative paths of the user.
    crate::launch::inherit::choose()?;
    let dirs = Dirs { root, run_dir };
    let mut tasks = Tasks::default();
    let mut bytes = Vec::new();
    let request = std::io::stdin()
        .take(MAX_REQUEST)
        .read_to_end(&mut bytes)
        .map_err(|error| Report::new("cannot read the request of the Slurm plugin").with_cause(error))
        .and_then(|_| StepRequest::parse(&bytes));
    let count = request.as_ref().map_or(1, |request| request.tasks);
    while tasks.len() < count {
        match sockets.receive() {
            Some(FromPlugin::Task(pid)) => tasks.add(pid)?,
            Some(FromPlugin::End) => {}
            None => return Ok(()),
        }
    }
    let begun = request.and_then(|request| {
        let container = begin(&dirs, &request, &tasks, &sockets)?;
        Ok((request, container))
    });
    match begun {
        Ok((request, container)) => serve(&dirs, &request, &container, &tasks, &sockets),
        Err(report) => sockets.fail_tasks(&report, count),
    }
    Ok(())
}

/// Creates the container, and sends it to the tasks.
fn begin(dirs: &Dirs, request: &StepRequest, tasks: &Tasks, sockets: &Sockets) -> Result<Container, Report> {
    request.options.check()?;
    if let Some(path) = &request.options.save {
        keep::check_save(&request.caller, path, tasks)?;
    }
    let image = image::provide(dirs, request, tasks, sockets)?;
    let container = Container::start(dirs, request, &image, tasks, sockets)?;
    let prepared = (|| {
        if request.options.entrypoint && request.options.entrypoint_log {
            container.show_log(dirs, tasks, sockets)?;
        }
        attach::attach(request, &container.namespace, tasks)?;
        let settings = settings::settings(request, &container.environment, &image);
        sockets.send_tasks(request.tasks, &container.namespace, &settings::filter(&request.caller)?, &settings)
    })();
    match prepared {
        Ok(()) => Ok(container),
        Err(report) => {
            container.remove(dirs);
            Err(report)
        }
    }
}

/// Waits for the end of the step, keeps its files if the user wants to, and removes the container.
fn serve(dirs: &Dirs, request: &StepRequest, container: &Container, tasks: &Tasks, sockets: &Sockets) {
    let has_ended = loop {
        match sockets.receive() {
            Some(FromPlugin::End) => break true,
            Some(FromPlugin::Task(_)) => {}
            None => break false,
        }
    };
    if has_ended {
        let kept = keep::keep(dirs, request, container, sockets);
        container.remove(dirs);
        match kept {
            Ok(()) => sockets.ready(),
            Err(report) => sockets.fail(&report),
        }
    } else {
        tasks.kill();
        container.remove(dirs);
        tasks.end_step();
    }
}
