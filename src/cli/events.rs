//! `gpurun events`: prints the events of containers, one per line.
//!
//! There is no daemon that could send events. The command polls the cgroups and states of the containers several times
//! per second and derives the events between two polls from the counters and the exit report.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::{Duration, Instant};

use clap::Args;
use serde::Serialize;
use serde_json::json;

use super::filter::Filters;
use super::format::Format;
use super::{Context, moment, print};
use crate::cgroup::{Cgroup, Host, Stats};
use crate::clock::{now, rfc3339};
use crate::record::history::{self, Removed};
use crate::record::{Entry, HealthStatus, Phase, State};
use crate::report::Report;
use crate::template::Value;

/// The polling interval.
const LOOK: Duration = Duration::from_millis(200);

#[derive(Debug, Args)]
#[command(
    after_help = "Events: create, start, pause, resume, restart, exit, remove; `health_status: healthy` and `health_status: unhealthy`; high (usage above --memory-high), max (usage at the memory limit), oom, oom_kill, throttled (by --cpus), pids (a fork was refused); timeout, idle-timeout, gpu-memory (the container is being stopped at this limit). A count is the number since the last line of this kind. Events that last (throttled, high, max, pids) have a line every ten seconds."
)]
pub(super) struct EventsArgs {
    /// Select events: event=start, container=NAME, image=NAME, label=KEY[=VALUE], type=container
    #[arg(short, long, value_name = "KEY=VALUE")]
    filter: Vec<String>,
    /// First show what is recorded since this time, of the last run of each container: 10m, 2026-01-31T12:00:00
    #[arg(long, value_name = "TIME")]
    since: Option<String>,
    /// End at this time
    #[arg(long, value_name = "TIME")]
    until: Option<String>,
    /// Wait for further events; with `false`, end after those of the past, which are all without --since
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_value_t = true, default_missing_value = "true", action = clap::ArgAction::Set)]
    stream: bool,
    /// Print a Go template for each event, or docker's JSON (`json`, `{{json .}}`)
    #[arg(long, value_name = "FORMAT")]
    format: Option<String>,
    /// Print a JSON object per line, with gpurun's names
    #[arg(long, conflicts_with = "format")]
    json: bool,
    /// Names or IDs of containers (default: all)
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
    /// Nanoseconds since 1970.
    #[serde(skip)]
    nanos: u64,
    /// What only docker's format and filters show.
    #[serde(skip)]
    about: About,
}

#[derive(Debug, Clone, PartialEq, Eq, Default)]
struct About {
    image: String,
    labels: BTreeMap<String, String>,
}

type Counter = fn(&Stats) -> Option<u64>;

/// The data of a container at the last poll.
#[derive(Debug, Clone, Default)]
struct Seen {
    name: String,
    created: u64,
    about: About,
    state: State,
    stats: Stats,
}

pub(super) fn run(args: &EventsArgs, context: &Context) -> Result<u8, Report> {
    let host = Host::probe(Path::new("/"))?;
    let records = context.records()?;
    let named = args.containers.iter().map(|name| Ok(records.find(name)?.record.id));
    let named = named.collect::<Result<Vec<String>, Report>>()?;
    let wanted = |entry: &Entry| named.is_empty() || named.contains(&entry.record.id);
    let look = || -> Result<BTreeMap<String, Seen>, Report> {
        // Unreadable records are skipped. `ps` reports them, and repeating the message on every poll would not help.
        let entries = records.list_all()?.0.into_iter().filter(wanted);
        entries.map(|entry| Ok((entry.record.id.clone(), see(&host, &entry)?))).collect()
    };
    let shown = Shown::new(args)?;
    let until = args.until.as_deref().map(|text| moment::parse("--until", text)).transpose()?;
    let is_over = || until.is_some_and(|until| now() >= until);
    // The time of the last removal that was shown.
    let mut last = now();
    let mut before = look()?;
    let since = args.since.as_deref().map(|text| moment::parse("--since", text)).transpose()?;
    let removed = || {
        let all = history::removed(&context.run_dir).into_iter();
        all.filter(|gone| named.is_empty() || named.contains(&gone.id))
    };
    let mut mark = history::mark(&context.run_dir);
    // As in podman, a command that does not wait shows all that is known.
    if let Some(since) = since.or((!args.stream).then_some(0)) {
        let mut past: Vec<Event> = before.iter().flat_map(|(id, seen)| past(id, seen)).collect();
        for gone in removed().filter(|gone| !before.contains_key(&gone.id)) {
            last = last.max(gone.removed);
            past.extend(whole(&gone));
        }
        past.sort_by_key(|event| event.nanos);
        let is_in = |event: &&Event| event.nanos >= since && until.is_none_or(|until| event.nanos < until);
        past.iter().filter(is_in).try_for_each(|event| shown.show(event))?;
    }
    let mut pace = Pace::default();
    while args.stream && !is_over() {
        std::thread::sleep(LOOK);
        let after = look()?;
        if history::mark(&context.run_dir) != mark {
            mark = history::mark(&context.run_dir);
            for gone in removed().filter(|gone| gone.removed > last).collect::<Vec<_>>() {
                last = last.max(gone.removed);
                // A container that was seen has its removal below.
                let news = match before.get(&gone.id) {
                    None => whole(&gone),
                    Some(seen) => end(seen, &gone).into_iter().collect(),
                };
                for event in news {
                    pace.pass(event, Instant::now()).iter().try_for_each(|event| shown.show(event))?;
                }
            }
        }
        for (id, seen) in &after {
            let earlier = before.get(id).cloned().unwrap_or_default();
            for event in events(id, &earlier, seen) {
                pace.pass(event, Instant::now()).iter().try_for_each(|event| shown.show(event))?;
            }
        }
        pace.due(Instant::now()).iter().try_for_each(|event| shown.show(event))?;
        for (id, gone) in before.iter().filter(|(id, _)| !after.contains_key(*id)) {
            let remove = event(id, gone, "remove");
            pace.pass(remove, Instant::now()).iter().try_for_each(|event| shown.show(event))?;
        }
        before = after;
    }
    Ok(0)
}

/// The events of a container that its record and its last state still tell.
fn past(id: &str, seen: &Seen) -> Vec<Event> {
    let state = &seen.state;
    let mut all = vec![event_at(id, seen, "create", seen.created)];
    all.extend(state.started.map(|time| event_at(id, seen, "start", time)));
    if matches!(state.phase, Phase::Exited | Phase::Restarting) {
        let detail = state.stop_reason.as_ref().map(|reason| reason.detail.clone());
        let ended =
            |time| Event { exit_code: state.exit_code, detail: detail.clone(), ..event_at(id, seen, "exit", time) };
        all.extend(state.finished.map(ended));
    }
    all
}

/// A removed container as it was at its end.
fn seen(gone: &Removed) -> Seen {
    let about = About { image: gone.image.clone(), labels: gone.labels.clone() };
    let phase = if gone.finished.is_some() { Phase::Exited } else { Phase::Created };
    let (started, finished, exit_code) = (gone.started, gone.finished, gone.exit_code);
    let state = State { phase, started, finished, exit_code, ..State::default() };
    Seen { name: gone.name.clone(), created: gone.created, about, state, stats: Stats::default() }
}

/// All events of a removed container that are still known.
fn whole(gone: &Removed) -> Vec<Event> {
    let seen = seen(gone);
    let mut all = past(&gone.id, &seen);
    all.push(event_at(&gone.id, &seen, "remove", gone.removed));
    all
}

/// The end of a container that was removed before its end was seen.
fn end(before: &Seen, gone: &Removed) -> Option<Event> {
    let is_known = before.state.started == gone.started && before.state.phase == Phase::Exited;
    let time = gone.finished.filter(|_| !is_known)?;
    let seen = seen(gone);
    Some(Event { exit_code: gone.exit_code, ..event_at(&gone.id, &seen, "exit", time) })
}

/// docker's name of an event.
fn dockers(event: &str) -> &str {
    match event {
        "exit" => "die",
        "remove" => "destroy",
        "resume" => "unpause",
        "oom_kill" => "oom",
        other => other,
    }
}

/// Which events are shown, and how.
struct Shown {
    filters: Filters,
    format: Option<Format>,
    json: bool,
}

impl Shown {
    fn new(args: &EventsArgs) -> Result<Self, Report> {
        // `status` is podman's other name for `event`.
        const FILTERS: [&str; 7] = ["event", "container", "image", "label", "type", "scope", "status"];
        let format = args.format.as_deref().map(Format::parse).transpose()?;
        Ok(Self { filters: Filters::parse(&args.filter, &FILTERS)?, format, json: args.json })
    }

    fn takes(&self, event: &Event) -> bool {
        let filters = &self.filters;
        let image = |wanted: &str| event.about.image == wanted || event.about.image.split(':').next() == Some(wanted);
        let matches = |name: &str| {
            let is_podmans = name == "died" && event.event == "exit";
            name == event.event
                || name == dockers(event.event)
                || is_podmans
                || event.event.split(':').next() == Some(name)
        };
        filters.any("event", matches)
            && filters.any("status", matches)
            && filters.any("container", |name| name == event.name || (name.len() >= 4 && event.id.starts_with(name)))
            && filters.any("image", image)
            && filters.any("type", |kind| kind == "container")
            && filters.any("scope", |scope| scope == "local")
            && filters.labels(&event.about.labels)
    }

    fn show(&self, event: &Event) -> Result<(), Report> {
        match &self.format {
            _ if !self.takes(event) => Ok(()),
            None => show(event, self.json),
            Some(format) => {
                let rows = [Value::from_json(&dockers_json(event), &["Attributes"])];
                print::raw_line(crate::report::printable(format.text(&[], &rows)?.trim_end_matches('\n')).as_ref())
            }
        }
    }
}

/// An event in docker's shape.
fn dockers_json(event: &Event) -> serde_json::Value {
    let mut attributes: BTreeMap<String, String> = event.about.labels.clone();
    attributes.insert("image".into(), event.about.image.clone());
    attributes.insert("name".into(), event.name.clone());
    attributes.extend(event.exit_code.map(|code| ("exitCode".to_owned(), code.to_string())));
    let name = dockers(event.event);
    json!({
        "status": name, "id": event.id, "from": event.about.image, "Type": "container", "Action": name,
        "Actor": { "ID": event.id, "Attributes": attributes }, "scope": "local",
        "time": event.nanos / 1_000_000_000, "timeNano": event.nanos,
    })
}

fn see(host: &Host, entry: &Entry) -> Result<Seen, Report> {
    let stats = Cgroup::open(host, &entry.record.cgroup)?.map(|cgroup| cgroup.stats()).unwrap_or_default();
    let request = &entry.record.request;
    let about = About { image: request.image.clone(), labels: request.labels.iter().cloned().collect() };
    let name = entry.record.name.clone();
    Ok(Seen { name, created: entry.record.created, about, state: entry.state_shown()?, stats })
}

fn event(id: &str, seen: &Seen, event: &'static str) -> Event {
    event_at(id, seen, event, now())
}

fn event_at(id: &str, seen: &Seen, event: &'static str, nanos: u64) -> Event {
    Event {
        time: rfc3339(nanos),
        id: id.to_owned(),
        name: seen.name.clone(),
        event,
        count: None,
        exit_code: None,
        detail: None,
        nanos,
        about: seen.about.clone(),
    }
}

/// Events of these kinds recur on every poll while their cause lasts. Each is shown at most once per interval, with the
/// sum of the counts.
const PACE: Duration = Duration::from_secs(10);
const FREQUENT: [&str; 4] = ["throttled", "high", "max", "pids"];

/// For each container and kind of event: the time of the last shown event, and the event held back since.
#[derive(Debug, Default)]
struct Pace(BTreeMap<(String, &'static str), (Instant, Option<Event>)>);

impl Pace {
    /// Returns the events to show. An event of another kind is preceded by the events held back for its container.
    fn pass(&mut self, event: Event, now: Instant) -> Vec<Event> {
        if !FREQUENT.contains(&event.event) {
            let mut all = self.take(|id, _| *id == event.id);
            all.push(event);
            return all;
        }
        match self.0.get_mut(&(event.id.clone(), event.event)) {
            Some((shown, held)) if now.saturating_duration_since(*shown) < PACE => {
                let count = held.as_ref().and_then(|held| held.count).unwrap_or(0) + event.count.unwrap_or(0);
                *held = Some(Event { count: Some(count), ..event });
                Vec::new()
            }
            _ => {
                let mut all = self.take(|id, name| *id == event.id && name == event.event);
                self.0.insert((event.id.clone(), event.event), (now, None));
                if let Some(held) = all.pop().and_then(|held| held.count) {
                    return vec![Event { count: event.count.map(|count| count + held), ..event }];
                }
                vec![event]
            }
        }
    }

    /// Returns the events that have been held back for a full interval.
    fn due(&mut self, now: Instant) -> Vec<Event> {
        let due = self.0.iter_mut().filter(|(_, (shown, _))| now.saturating_duration_since(*shown) >= PACE);
        due.filter_map(|(_, (shown, held))| {
            *shown = now;
            held.take()
        })
        .collect()
    }

    fn take(&mut self, which: impl Fn(&String, &str) -> bool) -> Vec<Event> {
        let matching = self.0.iter_mut().filter(|((id, name), _)| which(id, name));
        matching.filter_map(|(_, (_, held))| held.take()).collect()
    }
}

/// Derives the events between two polls, in their probable order.
fn events(id: &str, before: &Seen, after: &Seen) -> Vec<Event> {
    let mut events = Vec::new();
    let plain = |name| event(id, after, name);
    let (old, new) = (&before.state, &after.state);
    let same_run = old.started == new.started;
    if before.name.is_empty() {
        events.push(event_at(id, after, "create", after.created));
    }
    if !same_run && new.started.is_some() {
        events.push(plain(if new.restarts > old.restarts { "restart" } else { "start" }));
    }
    let reason = |state: &State| state.stop_reason.clone();
    if let Some(reached) = reason(new).filter(|_| !same_run || reason(old).is_none()) {
        events.push(Event { detail: Some(reached.detail), ..plain(reached.limit.name()) });
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
    let status = |state: &State| state.health.as_ref().map(|health| health.status);
    let before_health = status(old).filter(|_| same_run).unwrap_or_default();
    if let Some(status) = status(new).filter(|status| *status != before_health && new.phase == Phase::Running) {
        events.push(plain(match status {
            HealthStatus::Starting => "health_status: starting",
            HealthStatus::Healthy => "health_status: healthy",
            HealthStatus::Unhealthy => "health_status: unhealthy",
        }));
    }
    let ended = |state: &State| matches!(state.phase, Phase::Exited | Phase::Restarting);
    if ended(new) && (!ended(old) || !same_run) {
        // The cgroup no longer exists. The exit report contains its counters.
        let seen = if same_run { before.stats.events.oom_kill.unwrap_or(0) } else { 0 };
        let kills = (new.ooms.len() as u64).max(u64::from(new.oom_killed)).saturating_sub(seen);
        if kills > 0 {
            let detail =
                new.ooms.last().filter(|oom| oom.pid > 0).map(|oom| format!("{} (pid {})", oom.process, oom.pid));
            events.push(Event { count: Some(kills), detail, ..plain("oom_kill") });
        }
        let detail = new.stop_reason.as_ref().map(|reason| reason.detail.clone());
        events.push(Event { exit_code: new.exit_code, detail, ..plain("exit") });
    }
    events
}

/// Formats a time for display: local time without fractions of a second.
fn clock(rfc3339: &str) -> String {
    let time = chrono::DateTime::parse_from_rfc3339(rfc3339);
    time.map_or_else(
        |_| rfc3339.to_owned(),
        |time| time.with_timezone(&chrono::Local).format("%Y-%m-%d %H:%M:%S").to_string(),
    )
}

fn show(event: &Event, json: bool) -> Result<(), Report> {
    if json {
        return print::json_line(event);
    }
    let mut text = format!("{}  {:<9}  {}", clock(&event.time), event.event, event.name);
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
        Seen { name: "lab".into(), state: State { phase, started, ..State::default() }, ..Seen::default() }
    }

    fn names(before: &Seen, after: &Seen) -> Vec<(&'static str, Option<u64>)> {
        events("id", before, after).into_iter().map(|event| (event.event, event.count)).collect()
    }

    #[test]
    fn a_life_in_events() {
        let running = seen(Phase::Running, Some(1));
        assert_eq!(names(&Seen::default(), &running), [("create", None), ("start", None)]);
        let mut busy = running.clone();
        busy.stats.events.memory_max = Some(3);
        busy.stats.cpu_throttled_periods = Some(2);
        assert_eq!(names(&running, &busy), [("throttled", Some(2)), ("max", Some(3))]);
        assert_eq!(names(&busy, &busy), []);
        let mut paused = busy.clone();
        paused.state.paused = true;
        assert_eq!(names(&busy, &paused), [("pause", None)]);
        assert_eq!(names(&paused, &busy), [("resume", None)]);
        let with_health = |status| {
            let mut seen = busy.clone();
            seen.state.health = Some(crate::record::Health { status, ..Default::default() });
            seen
        };
        let [starting, healthy, unhealthy] =
            [HealthStatus::Starting, HealthStatus::Healthy, HealthStatus::Unhealthy].map(with_health);
        assert_eq!(names(&busy, &starting), []);
        assert_eq!(names(&starting, &healthy), [("health_status: healthy", None)]);
        assert_eq!(names(&healthy, &unhealthy), [("health_status: unhealthy", None)]);
        let mut ended = seen(Phase::Exited, Some(1));
        (ended.state.exit_code, ended.state.oom_killed) = (Some(137), true);
        assert_eq!(names(&busy, &ended), [("oom_kill", Some(1)), ("exit", None)]);
        assert_eq!(names(&ended, &seen(Phase::Running, Some(2))), [("start", None)]);
    }

    #[test]
    fn frequent_events_are_shown_once_in_ten_seconds_with_their_sum() {
        let (begin, mut pace) = (Instant::now(), Pace::default());
        let at = |tenths: u64| begin + Duration::from_millis(100 * tenths);
        let counted = |name, count| Event { count: Some(count), ..event("id", &Seen::default(), name) };
        let shown = |events: Vec<Event>| -> Vec<_> { events.into_iter().map(|one| (one.event, one.count)).collect() };
        assert_eq!(shown(pace.pass(counted("throttled", 2), at(0))), [("throttled", Some(2))]);
        for tenth in (2..100).step_by(2) {
            assert_eq!(shown(pace.pass(counted("throttled", 2), at(tenth))), []);
            assert_eq!(shown(pace.due(at(tenth))), []);
        }
        assert_eq!(shown(pace.pass(counted("max", 1), at(99))), [("max", Some(1))], "each for itself");
        assert_eq!(shown(pace.due(at(100))), [("throttled", Some(98))], "and nothing is lost");
        assert_eq!(shown(pace.pass(counted("throttled", 5), at(101))), []);
        let exit = event("id", &Seen::default(), "exit");
        assert_eq!(shown(pace.pass(exit, at(102))), [("throttled", Some(5)), ("exit", None)]);
        assert_eq!(shown(pace.due(at(1000))), []);
    }

    #[test]
    fn a_moment_has_no_fractions() {
        let text = clock("2026-01-02T03:04:05.678901234Z");
        assert!(text.len() == 19 && text.ends_with(":04:05"), "{text}");
    }

    #[test]
    fn a_container_that_came_and_went_between_two_looks() {
        assert_eq!(
            names(&Seen::default(), &seen(Phase::Exited, Some(1))),
            [("create", None), ("start", None), ("exit", None)]
        );
    }
}
