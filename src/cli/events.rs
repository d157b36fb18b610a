//! `gpurun events`: what happens to containers, a line each, by looking at their cgroups and states a few times a second.
//!
//! There is no daemon that could tell: what came and went between two looks is told from the counters and from the exit report.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use clap::Args;
use serde::Serialize;

use super::{Context, print};
use crate::cgroup::{Cgroup, Host, Stats};
use crate::launch;
use crate::record::{Entry, Phase, State};
use crate::report::Report;
use crate::supervise::log::{now, rfc3339};

/// How far apart the looks are.
const LOOK: Duration = Duration::from_millis(200);

#[derive(Debug, Args)]
#[command(
    after_help = "Events: start, pause, resume, high (memory.high passed), max (the memory limit met), oom and oom_kill, throttled (--cpus held it back),\n\
    pids (a fork refused), restart, exit, remove. A count says how often since the line before."
)]
pub struct EventsArgs {
    /// A JSON object a line
    #[arg(long)]
    json: bool,
    /// Only these
    #[arg(value_name = "CONTAINER")]
    containers: Vec<String>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
struct Event {
    time: String,
    id: String,
    name: String,
    event: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    count: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    exit_code: Option<u8>,
    #[serde(skip_serializing_if = "Option::is_none")]
    detail: Option<String>,
}

type Counter = fn(&Stats) -> Option<u64>;

/// What was seen of a container at the last look.
#[derive(Debug, Clone, Default)]
struct Seen {
    name: String,
    state: State,
    stats: Stats,
}

pub fn run(args: &EventsArgs, context: &Context) -> Result<u8, Report> {
    let host = Host::probe(Path::new("/"))?;
    let records = context.records()?;
    for name in &args.containers {
        records.find(name)?;
    }
    let wanted = |entry: &Entry| {
        args.containers.is_empty()
            || args
                .containers
                .iter()
                .any(|name| entry.record.name == *name || entry.record.id.starts_with(name.as_str()))
    };
    let look = || -> Result<BTreeMap<String, Seen>, Report> {
        // `ps` tells of those that cannot be read, once and not with every look.
        let entries = records.list_all()?.0.into_iter().filter(wanted);
        entries.map(|entry| Ok((entry.record.id.clone(), see(&host, &entry)?))).collect()
    };
    let mut before = look()?;
    loop {
        std::thread::sleep(LOOK);
        let after = look()?;
        for (id, seen) in &after {
            let earlier = before.get(id).cloned().unwrap_or_default();
            for event in events(id, &earlier, seen) {
                show(&event, args.json)?;
            }
        }
        for (id, gone) in before.iter().filter(|(id, _)| !after.contains_key(*id)) {
            // With --rm the exit report went with the container.
            show(&event(id, gone, "remove"), args.json)?;
        }
        before = after;
    }
}

fn see(host: &Host, entry: &Entry) -> Result<Seen, Report> {
    let path = launch::cgroup_path(entry.record.request.cgroup_parent.as_deref(), &entry.record.id);
    let stats = Cgroup::open(host, &path)?.map(|cgroup| cgroup.stats()).unwrap_or_default();
    Ok(Seen { name: entry.record.name.clone(), state: entry.state_shown()?, stats })
}

fn event(id: &str, seen: &Seen, event: &'static str) -> Event {
    Event {
        time: rfc3339(now()),
        id: id.to_owned(),
        name: seen.name.clone(),
        event,
        count: None,
        exit_code: None,
        detail: None,
    }
}

/// What must have happened between two looks, in the order in which it may have.
fn events(id: &str, before: &Seen, after: &Seen) -> Vec<Event> {
    let mut events = Vec::new();
    let plain = |name| event(id, after, name);
    let (old, new) = (&before.state, &after.state);
    let same_run = old.started == new.started;
    if !same_run && new.started.is_some() {
        events.push(plain(if new.restarts > old.restarts { "restart" } else { "start" }));
    }
    let counters: [(&'static str, Counter); 6] = [
        ("throttled", |stats| stats.cpu_throttled_periods),
        ("high", |stats| stats.events.memory_high),
        ("max", |stats| stats.events.memory_max),
        ("pids", |stats| stats.events.pids_max),
        ("oom", |stats| stats.events.oom),
        ("oom_kill", |stats| stats.events.oom_kill),
    ];
    for (name, of) in counters {
        let earlier = if same_run { of(&before.stats).unwrap_or(0) } else { 0 };
        let count = of(&after.stats).unwrap_or(0).saturating_sub(earlier);
        if count > 0 {
            events.push(Event { count: Some(count), ..plain(name) });
        }
    }
    match (old.paused, new.paused) {
        (false, true) => events.push(plain("pause")),
        (true, false) if new.phase == Phase::Running => events.push(plain("resume")),
        _ => {}
    }
    let ended = |state: &State| matches!(state.phase, Phase::Exited | Phase::Restarting);
    if ended(new) && (!ended(old) || !same_run) {
        // The cgroup has gone: what it counted is in the report.
        let seen = if same_run { before.stats.events.oom_kill.unwrap_or(0) } else { 0 };
        let kills = (new.ooms.len() as u64).max(u64::from(new.oom_killed)).saturating_sub(seen);
        if kills > 0 {
            let detail =
                new.ooms.last().filter(|oom| oom.pid > 0).map(|oom| format!("{} (pid {})", oom.process, oom.pid));
            events.push(Event { count: Some(kills), detail, ..plain("oom_kill") });
        }
        events.push(Event { exit_code: new.exit_code, ..plain("exit") });
    }
    events
}

fn show(event: &Event, json: bool) -> Result<(), Report> {
    if json {
        let text =
            serde_json::to_string(event).map_err(|error| Report::new("cannot print as JSON").with_cause(error))?;
        return print::line(&text);
    }
    let mut text = format!("{}  {:<9}  {}", event.time, event.event, event.name);
    if let Some(count) = event.count {
        text.push_str(&format!("  ×{count}"));
    }
    if let Some(code) = event.exit_code {
        text.push_str(&format!("  status {code}"));
    }
    if let Some(detail) = &event.detail {
        text.push_str(&format!("  {detail}"));
    }
    print::line(&text)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seen(phase: Phase, started: Option<u64>) -> Seen {
        Seen { name: "lab".into(), state: State { phase, started, ..State::default() }, stats: Stats::default() }
    }

    fn names(before: &Seen, after: &Seen) -> Vec<(&'static str, Option<u64>)> {
        events("id", before, after).into_iter().map(|event| (event.event, event.count)).collect()
    }

    #[test]
    fn a_life_in_events() {
        let running = seen(Phase::Running, Some(1));
        assert_eq!(names(&Seen::default(), &running), [("start", None)]);
        let mut busy = running.clone();
        busy.stats.events.memory_max = Some(3);
        busy.stats.cpu_throttled_periods = Some(2);
        assert_eq!(names(&running, &busy), [("throttled", Some(2)), ("max", Some(3))]);
        assert_eq!(names(&busy, &busy), []);
        let mut paused = busy.clone();
        paused.state.paused = true;
        assert_eq!(names(&busy, &paused), [("pause", None)]);
        assert_eq!(names(&paused, &busy), [("resume", None)]);
        let mut ended = seen(Phase::Exited, Some(1));
        (ended.state.exit_code, ended.state.oom_killed) = (Some(137), true);
        assert_eq!(names(&busy, &ended), [("oom_kill", Some(1)), ("exit", None)]);
        assert_eq!(names(&ended, &seen(Phase::Running, Some(2))), [("start", None)]);
    }

    #[test]
    fn a_container_that_came_and_went_between_two_looks() {
        assert_eq!(names(&Seen::default(), &seen(Phase::Exited, Some(1))), [("start", None), ("exit", None)]);
    }
}
