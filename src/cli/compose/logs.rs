//! `gpurun compose logs`, and the foreground of `up`: the output of several containers, line by line.

use std::io::{BufRead, BufReader, IsTerminal, Write};
use std::os::fd::AsFd;
use std::process::Child;
use std::sync::Mutex;

use clap::Args;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signalfd::SignalFd;

use super::super::session::take_signals;
use super::super::{Context, moment, print};
use super::args::{Ansi, ComposeArgs};
use super::containers::{self, Container};
use super::{child, group};
use crate::record::Phase;
use crate::report::Report;

#[derive(Debug, Args)]
pub(super) struct LogsArgs {
    /// Follow the output until the containers end
    #[arg(short, long)]
    follow: bool,
    /// Number of lines to show from the end of each log, or `all`
    #[arg(short = 'n', long, value_name = "N", default_value = "all")]
    tail: String,
    /// Show the lines since a time: 10m, 2026-01-31T12:00:00
    #[arg(long, value_name = "TIME")]
    since: Option<String>,
    /// Show the lines until a time
    #[arg(long, value_name = "TIME")]
    until: Option<String>,
    /// Show the time of each line
    #[arg(short, long)]
    timestamps: bool,
    /// Print lines without color
    #[arg(long)]
    no_color: bool,
    /// Print lines without the name of their container
    #[arg(long)]
    no_log_prefix: bool,
    /// Services (default: all)
    #[arg(value_name = "SERVICE")]
    services: Vec<String>,
}

/// How lines are printed.
#[derive(Debug, Clone, Copy)]
pub(super) struct Style {
    color: bool,
    prefix: bool,
    timestamps: bool,
}

impl Style {
    pub(super) fn new(ansi: Ansi, no_color: bool, no_prefix: bool, timestamps: bool) -> Self {
        let allowed = || std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
        let wanted = match ansi {
            Ansi::Auto => allowed() && std::io::stdout().is_terminal(),
            Ansi::Always => true,
            Ansi::Never => false,
        };
        Self { color: !no_color && wanted, prefix: !no_prefix, timestamps }
    }
}

/// The foreground of `up`.
pub(super) struct Foreground<'a> {
    pub(super) project: &'a str,
    pub(super) services: &'a [String],
    /// The services whose output is shown.
    pub(super) shown: &'a [String],
    pub(super) signals: &'a SignalFd,
    /// Stop all containers when one ends.
    pub(super) abort: bool,
    pub(super) exit_code_from: Option<&'a str>,
    pub(super) timeout: Option<u64>,
    pub(super) style: Style,
    /// Lines before this time belong to earlier runs.
    pub(super) since: u64,
}

/// docker-compose's colors, in its order.
const COLORS: [u8; 10] = [36, 33, 32, 35, 34, 96, 93, 92, 95, 94];

struct Printer {
    style: Style,
    width: usize,
    /// One line at a time reaches the terminal.
    lock: Mutex<()>,
}

impl Printer {
    fn new<'a>(style: Style, names: impl Iterator<Item = &'a str>, project: &str) -> Self {
        let width = names.map(|name| short(name, project).len()).max().unwrap_or(0);
        Self { style, width, lock: Mutex::new(()) }
    }

    fn prefix(&self, index: usize, name: &str) -> String {
        if !self.style.prefix {
            return String::new();
        }
        let text = format!("{name:width$} | ", width = self.width);
        match self.style.color {
            true => format!("\x1b[{}m{text}\x1b[0m", COLORS[index % COLORS.len()]),
            false => text,
        }
    }

    /// Says that a container has ended, as docker does.
    fn ended(&self, index: usize, name: &str, code: u8) {
        let text = format!("{name} exited with code {code}");
        let text = match self.style.color {
            true => format!("\x1b[{}m{text}\x1b[0m\n", COLORS[index % COLORS.len()]),
            false => format!("{text}\n"),
        };
        let _one = self.lock.lock();
        // A closed output is no error of the containers.
        let _ = std::io::stdout().lock().write_all(text.as_bytes());
    }

    /// Prints lines until the end. With `since`, each line begins with its time, and earlier ones are left out. A line is printed as it is: `gpurun logs` does not change the output of a program
    /// either.
    fn lines(&self, prefix: &str, input: impl std::io::Read, since: Option<&str>) {
        let mut input = BufReader::new(input);
        let mut line = Vec::new();
        loop {
            line.clear();
            match std::io::Read::take(&mut input, 1 << 16).read_until(b'\n', &mut line) {
                Ok(0) | Err(_) => return,
                Ok(_) => {}
            }
            if !line.ends_with(b"\n") {
                line.push(b'\n');
            }
            let mut text = &line[..];
            if let Some(since) = since
                && line.first().is_some_and(u8::is_ascii_digit)
                && let Some(blank) = line.iter().position(|byte| *byte == b' ')
            {
                if &line[..blank] < since.as_bytes() {
                    continue;
                }
                if !self.style.timestamps {
                    text = &line[blank + 1..];
                }
            }
            let _one = self.lock.lock();
            let mut out = std::io::stdout().lock();
            if out.write_all(prefix.as_bytes()).and_then(|()| out.write_all(text)).and_then(|()| out.flush()).is_err() {
                return;
            }
        }
    }
}

/// Returns how a container has ended. `None` if it runs, or has been removed.
fn exit_code(context: &Context, container: &Container) -> Option<u8> {
    let entry = context.records().ok()?.again(&container.entry).ok()?;
    let state = entry.state_shown().ok()?;
    state.exit_code.filter(|_| state.phase == Phase::Exited)
}

/// Returns a container's name without the project's.
fn short<'a>(name: &'a str, project: &str) -> &'a str {
    name.strip_prefix(project).and_then(|rest| rest.strip_prefix('-')).unwrap_or(name)
}

fn arguments(container: &Container, follow: bool, tail: &str, style: Style) -> Vec<String> {
    let mut all = vec!["logs".to_owned(), format!("--tail={tail}")];
    if follow {
        all.push("--follow".to_owned());
    }
    if style.timestamps {
        all.push("--timestamps".to_owned());
    }
    all.push(container.name().to_owned());
    all
}

pub(super) fn run(args: &LogsArgs, compose: &ComposeArgs, context: &Context) -> Result<u8, Report> {
    for (flag, time) in [("--since", &args.since), ("--until", &args.until)] {
        time.as_deref().map(|time| moment::parse(flag, time)).transpose()?;
    }
    let scope = compose.scope(&[])?;
    let mut all = containers::of(context, &scope.name)?;
    containers::select(&mut all, &args.services, &scope.services())?;
    let style = Style::new(compose.ansi, args.no_color, args.no_log_prefix, args.timestamps);
    let printer = Printer::new(style, all.iter().map(Container::name), &scope.name);
    let mut children = Vec::new();
    for container in &all {
        let mut words = arguments(container, args.follow, &args.tail, printer.style);
        let times = [("--since", &args.since), ("--until", &args.until)];
        let times = times.into_iter().filter_map(|(flag, time)| Some(format!("{flag}={}", time.as_ref()?)));
        // Before the name of the container.
        words.splice(1..1, times);
        children.push(child::follow(context, &words)?);
    }
    // Without `--follow`, the logs are printed one after the other.
    let signals = take_signals()?;
    let (done, ended) = std::os::unix::net::UnixStream::pair()
        .map_err(|error| Report::new("cannot wait for the logs").with_cause(error))?;
    std::thread::scope(|scope_| {
        for (index, (container, child)) in all.iter().zip(&mut children).enumerate() {
            let prefix = printer.prefix(index, short(container.name(), &scope.name));
            let (out, err) = (child.stdout.take(), child.stderr.take());
            let printer = &printer;
            let done = done.try_clone();
            let print = move || {
                std::thread::scope(|scope| {
                    scope.spawn(|| err.map(|err| printer.lines(&prefix, err, None)));
                    if let Some(out) = out {
                        printer.lines(&prefix, out, None);
                    }
                });
                drop(done);
            };
            if args.follow {
                scope_.spawn(print);
            } else {
                print();
            }
        }
        drop(done);
        let interrupted = wait_for(&signals, &ended)?;
        for child in &mut children {
            if interrupted {
                let _ = child.kill();
            }
            let _ = child.wait();
        }
        Ok(if interrupted { 130 } else { 0 })
    })
}

/// Waits until all writers of a stream are gone, or a signal arrives. Returns whether it was a signal.
fn wait_for(signals: &SignalFd, ended: &std::os::unix::net::UnixStream) -> Result<bool, Report> {
    loop {
        let mut fds = [PollFd::new(signals.as_fd(), PollFlags::POLLIN), PollFd::new(ended.as_fd(), PollFlags::POLLIN)];
        match poll(&mut fds, PollTimeout::NONE) {
            Ok(_) | Err(nix::Error::EINTR) => {}
            Err(errno) => return Err(Report::new("cannot wait for the containers").with_cause(errno)),
        }
        if fds[1].any().unwrap_or(false) {
            return Ok(false);
        }
        if fds[0].any().unwrap_or(false) && is_asked_to_end(signals) {
            return Ok(true);
        }
    }
}

/// Reads a signal. A new size of the terminal is no request to end.
fn is_asked_to_end(signals: &SignalFd) -> bool {
    signals
        .read_signal()
        .is_ok_and(|info| info.is_some_and(|info| info.ssi_signo != nix::sys::signal::Signal::SIGWINCH as u32))
}

/// Does something in another thread, and reacts to signals meanwhile. Returns whether there was one.
pub(super) fn interruptible<T: Send>(
    signals: &SignalFd,
    react: impl Fn(),
    work: impl FnOnce() -> Result<T, Report> + Send,
) -> (Result<T, Report>, bool) {
    std::thread::scope(|scope| {
        let work = scope.spawn(work);
        let mut interrupted = false;
        while !work.is_finished() {
            let mut fds = [PollFd::new(signals.as_fd(), PollFlags::POLLIN)];
            if poll(&mut fds, 50u16).is_ok_and(|count| count > 0) && is_asked_to_end(signals) {
                interrupted = true;
                react();
            }
        }
        (work.join().unwrap_or_else(|_| Err(Report::new("a thread of `compose` has failed"))), interrupted)
    })
}

/// Stops the containers of the foreground. A signal meanwhile kills them.
pub(super) fn stop_all(context: &Context, options: &Foreground<'_>) -> Result<(), Report> {
    let ours = || -> Result<Vec<Container>, Report> {
        let mut all = containers::of(context, options.project)?;
        all.retain(|container| options.services.contains(&container.service));
        Ok(all)
    };
    let kill = || {
        for container in ours().into_iter().flatten().filter(Container::is_running) {
            let _ = child::run(context, &["kill".to_owned(), container.name().to_owned()]);
        }
    };
    print::say("Gracefully stopping... (press ctrl-c again to force)");
    interruptible(options.signals, kill, || group::stop(context, ours()?, options.timeout)).0
}

/// Shows the output of a project's containers until all have ended or a signal stops them.
pub(super) fn foreground(context: &Context, options: &Foreground<'_>) -> Result<u8, Report> {
    let (project, services, signals) = (options.project, options.services, options.signals);
    let mut all = containers::of(context, project)?;
    all.retain(|container| services.contains(&container.service));
    let is_shown = |container: &Container| options.shown.contains(&container.service);
    let names = all.iter().filter(|container| is_shown(container)).map(|container| container.name());
    let printer = Printer::new(options.style, names, project);
    let mut children: Vec<Child> = Vec::new();
    for container in &all {
        // The end of a log is the end of its container.
        let tail = if is_shown(container) { "all" } else { "0" };
        let style = Style { timestamps: true, ..options.style };
        children.push(child::follow(context, &arguments(container, true, tail, style))?);
    }
    let failed = |error: std::io::Error| Report::new("cannot wait for the containers").with_cause(error);
    let (done, ended) = std::os::unix::net::UnixStream::pair().map_err(failed)?;
    let first: Mutex<Option<String>> = Mutex::new(None);
    let since = crate::clock::rfc3339(options.since);
    let (printer, first, since) = (&printer, &first, since.as_str());
    let result = std::thread::scope(|scope| {
        for (index, (container, child)) in all.iter().zip(&mut children).enumerate() {
            let prefix = printer.prefix(index, short(container.name(), project));
            let (out, err) = (child.stdout.take(), child.stderr.take());
            let (name, abort) = (container.name().to_owned(), options.abort);
            let mut done = done.try_clone().ok();
            let is_shown = is_shown(container);
            scope.spawn(move || {
                let pass = |stream: &mut dyn std::io::Read| match is_shown {
                    true => printer.lines(&prefix, stream, Some(since)),
                    false => drop(std::io::copy(stream, &mut std::io::sink())),
                };
                std::thread::scope(|scope| {
                    scope.spawn(|| err.map(|mut err| pass(&mut err)));
                    if let Some(mut out) = out {
                        pass(&mut out);
                    }
                });
                if is_shown && let Some(code) = exit_code(context, container) {
                    printer.ended(index, short(&name, project), code);
                }
                if let Ok(mut first) = first.lock() {
                    first.get_or_insert(name);
                }
                if abort && let Some(done) = &mut done {
                    let _ = done.write_all(b"x");
                }
            });
        }
        drop(done);
        let interrupted = wait_for(signals, &ended)?;
        let stopped = if interrupted || options.abort { stop_all(context, options) } else { Ok(()) };
        stopped.map(|()| interrupted)
    });
    for child in &mut children {
        let _ = child.wait();
    }
    let interrupted = result?;
    let states = containers::of(context, project)?;
    let code = |matches: &dyn Fn(&Container) -> bool| {
        states.iter().find(|container| matches(container)).and_then(|container| container.state.exit_code).unwrap_or(0)
    };
    if let Some(service) = options.exit_code_from {
        return Ok(code(&|container| container.service == service));
    }
    if interrupted {
        return Ok(130);
    }
    let name = first.lock().ok().and_then(|first| first.clone());
    Ok(match name {
        Some(name) if options.abort => code(&|container| container.name() == name),
        _ => 0,
    })
}
