//! Stopping and removing groups of containers, those of a group at the same time.

use super::super::{Context, print};
use super::act;
use super::child::Done;
use super::containers::{Container, stop_order};
use crate::report::Report;

/// Returns the arguments of a command.
pub(super) fn words(words: &[&str]) -> Vec<String> {
    words.iter().map(|word| (*word).to_owned()).collect()
}

pub(super) fn stop_one(context: &Context, name: &str, timeout: Option<u64>) -> Result<(), Report> {
    let mut arguments = words(&["stop"]);
    arguments.extend(timeout.map(|seconds| format!("--time={seconds}")));
    arguments.push(name.to_owned());
    unless_gone(context, name, act::run(context, &arguments)?.check())
}

pub(super) fn rm_one(context: &Context, name: &str) -> Result<(), Report> {
    unless_gone(context, name, act::run(context, &words(&["rm", "--force", name]))?.check())
}

/// A container that another command has removed in the meantime is stopped and removed.
fn unless_gone(context: &Context, name: &str, done: Result<Done, Report>) -> Result<(), Report> {
    match done {
        Err(_) if context.records()?.snapshot()?.lacks(name) => Ok(()),
        done => done.map(drop),
    }
}

/// Does something with all containers of a group at the same time.
pub(super) fn parallel(
    group: &[Container],
    each: impl Fn(&Container) -> Result<(), Report> + Sync,
) -> Result<(), Report> {
    let done: Vec<Result<(), Report>> = std::thread::scope(|scope| {
        let threads: Vec<_> = group.iter().map(|container| scope.spawn(|| each(container))).collect();
        let ended = threads.into_iter().map(|thread| {
            thread.join().unwrap_or_else(|_| Err(Report::new("a thread that handles a container has failed")))
        });
        ended.collect()
    });
    let mut failed = done.into_iter().filter_map(Result::err);
    match failed.next() {
        Some(first) => {
            failed.for_each(|report| print::say(&report.to_string()));
            Err(first)
        }
        None => Ok(()),
    }
}

/// Stops containers, those that depend on others first.
pub(super) fn stop(context: &Context, containers: Vec<Container>, timeout: Option<u64>) -> Result<(), Report> {
    let running: Vec<Container> = containers.into_iter().filter(Container::is_running).collect();
    stop_order(running).iter().try_for_each(|group| {
        parallel(group, |container| {
            stop_one(context, container.name(), timeout)?;
            act::announce(context, &format!(" Container {}  Stopped", container.name()));
            Ok(())
        })
    })
}

/// Stops and removes containers, those that depend on others first.
pub(super) fn remove(
    context: &Context,
    containers: Vec<Container>,
    timeout: Option<u64>,
    kill: bool,
) -> Result<(), Report> {
    stop_order(containers).iter().try_for_each(|group| {
        parallel(group, |container| {
            if container.is_running() && !kill {
                stop_one(context, container.name(), timeout)?;
            }
            rm_one(context, container.name())?;
            act::announce(context, &format!(" Container {}  Removed", container.name()));
            Ok(())
        })
    })
}
