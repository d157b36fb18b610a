//! `gpurun logs`: prints the output of a container and optionally follows it.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Seek, Write};
use std::os::fd::AsFd;
use std::path::Path;

use clap::Args;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};

use super::view::{Images, View};
use super::{Context, moment, print};
use crate::control::{Connection, FromSupervisor};
use crate::record::{Entry, short};
use crate::report::Report;
use crate::request::LogDriver;
use crate::supervise::log::{Kept, LogRecord, Stream, parse};

#[derive(Debug, Args)]
pub(super) struct LogsArgs {
    /// Follow the output until the container ends
    #[arg(short, long)]
    follow: bool,
    /// Show the time of each line
    #[arg(short, long)]
    timestamps: bool,
    /// Show the labels and variables that `--log-opt labels=` and `env=` named when the container was created
    #[arg(long)]
    details: bool,
    /// Number of lines to show from the end, or `all`
    #[arg(short = 'n', long, value_name = "N", default_value = "all", allow_negative_numbers = true)]
    tail: String,
    /// Show lines from this time on: 10m, 2026-01-31T12:00:00, seconds since 1970
    #[arg(long, value_name = "TIME")]
    since: Option<String>,
    /// Show lines before this time
    #[arg(long, value_name = "TIME")]
    until: Option<String>,
    /// With several containers, begin each line with the container's name instead of its ID
    #[arg(long)]
    names: bool,
    /// Show the log of the newest container
    #[arg(short, long, conflicts_with = "containers")]
    latest: bool,
    /// Names or IDs of containers; the beginning is enough where it is unambiguous
    #[arg(required_unless_present = "latest", value_name = "CONTAINER")]
    containers: Vec<String>,
}

pub(super) fn run(args: &LogsArgs, context: &Context) -> Result<u8, Report> {
    let tail = match args.tail.as_str() {
        "all" => usize::MAX,
        number => number.parse().map_err(|_| {
            Report::usage(format!("`--tail {number}` is not a number of lines"))
                .with_hint("write a number from 0, or `all`")
        })?,
    };
    let time = |flag: &str, text: &Option<String>| text.as_deref().map(|text| moment::parse(flag, text)).transpose();
    let between = Between { since: time("--since", &args.since)?, until: time("--until", &args.until)? };
    let records = context.records()?;
    let entries = match args.latest {
        true => vec![records.find(&super::chosen::newest(&records)?)?],
        false => args.containers.iter().map(|name| records.find(name)).collect::<Result<_, _>>()?,
    };
    let mut logs = Vec::new();
    for entry in entries {
        if entry.record.request.log.driver == LogDriver::None {
            let name = &entry.record.name;
            return Err(Report::new(format!("container `{name}` keeps no log: it has `--log-driver none`"))
                .with_hint(format!("see its output with `gpurun attach {name}`")));
        }
        let details = args.details.then(|| details(&entry, context)).transpose()?;
        logs.push((entry, details));
    }
    if let [(entry, details)] = &logs[..] {
        return shown(entry, show(args, entry, tail, (between, details.clone()), None));
    }
    // As in podman, a line says which container it is of.
    let label = |entry: &Entry| match args.names {
        true => entry.record.name.clone(),
        false => short(&entry.record.id).to_owned(),
    };
    let one = |(entry, details): &(Entry, Option<String>)| {
        shown(entry, show(args, entry, tail, (between, details.clone()), Some(label(entry))))
    };
    if !args.follow {
        return logs.iter().try_fold(0, |code, log| Ok(u8::max(code, one(log)?)));
    }
    let results: Vec<Result<u8, Report>> = std::thread::scope(|scope| {
        let threads: Vec<_> = logs.iter().map(|log| scope.spawn(|| one(log))).collect();
        let failed = |_| Err(Report::new("a thread that shows a log has failed"));
        threads.into_iter().map(|thread| thread.join().unwrap_or_else(failed)).collect()
    });
    results.into_iter().try_fold(0, |code, result| Ok(u8::max(code, result?)))
}

/// The exit status after a log was shown.
fn shown(entry: &Entry, result: io::Result<()>) -> Result<u8, Report> {
    match result {
        // The reader of standard output has closed it. Exit as `docker logs`, `cat` and `tail -f` do.
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(128 + libc::SIGPIPE as u8),
        Err(error) => {
            Err(Report::new(format!("cannot show the log of container `{}`", entry.record.name)).with_cause(error))
        }
        Ok(()) => Ok(0),
    }
}

/// The times of the lines to show, in nanoseconds since 1970.
#[derive(Debug, Clone, Copy, Default)]
struct Between {
    since: Option<u64>,
    until: Option<u64>,
}

impl Between {
    /// Whether the line of a record is shown. A record with an unreadable time is.
    fn holds(self, record: &LogRecord<'_>) -> bool {
        if self.since.is_none() && self.until.is_none() {
            return true;
        }
        let time = chrono::DateTime::parse_from_rfc3339(record.time).ok().and_then(|time| time.timestamp_nanos_opt());
        let Some(time) = time.and_then(|time| u64::try_from(time).ok()) else { return true };
        self.since.is_none_or(|since| time >= since) && self.until.is_none_or(|until| time < until)
    }

    /// The time until no later line can be shown.
    fn left(self) -> PollTimeout {
        let Some(until) = self.until else { return PollTimeout::NONE };
        let millis = until.saturating_sub(crate::clock::now()).div_ceil(1_000_000);
        PollTimeout::try_from(i32::try_from(millis).unwrap_or(i32::MAX)).unwrap_or(PollTimeout::MAX)
    }

    /// Whether no later line can be shown any more.
    fn is_over(self) -> bool {
        self.until.is_some_and(|until| crate::clock::now() >= until)
    }
}

/// docker's details: `KEY=VALUE,…`, encoded as in the query of a URL.
fn details(entry: &Entry, context: &Context) -> Result<String, Report> {
    let (state, images) = (entry.state_shown()?, Images::new(context.store().ok()));
    let view = View::new(entry, &state, &images, &context.root);
    let found = entry.record.request.log.details.of(&view.labels(), &view.env());
    Ok(found.iter().map(|(key, value)| format!("{}={}", encoded(key), encoded(value))).collect::<Vec<_>>().join(","))
}

fn encoded(text: &str) -> String {
    let byte = |byte: u8| match byte {
        b' ' => "+".to_owned(),
        b'-' | b'_' | b'.' | b'~' => char::from(byte).to_string(),
        byte if byte.is_ascii_alphanumeric() => char::from(byte).to_string(),
        byte => format!("%{byte:02X}"),
    };
    text.bytes().map(byte).collect()
}

fn show(
    args: &LogsArgs,
    entry: &Entry,
    tail: usize,
    (between, details): (Between, Option<String>),
    label: Option<String>,
) -> io::Result<()> {
    let path = entry.log();
    // The watch is created before the first read so that no output in between is missed.
    let watch = Inotify::init(InitFlags::IN_CLOEXEC | InitFlags::IN_NONBLOCK)?;
    let what = AddWatchFlags::IN_MODIFY | AddWatchFlags::IN_CREATE | AddWatchFlags::IN_MOVED_TO;
    watch.add_watch(&entry.dir, what)?;
    let mut printer = Printer { label, ..Printer::new(args.timestamps, details, between) };
    let kept = Kept::open_all(&path)?;
    let (first, skip) = tail_start(&kept, tail)?;
    if let Some(oldest) = kept.first().filter(|oldest| oldest.before > 0 && first == 0 && skip.is_none()) {
        let (lines, options) = (oldest.before, &entry.record.request.log);
        let size = crate::units::format_memory(options.max_size);
        print::say(&format!(
            "gpurun: the first {lines} lines were removed: the log keeps {} files of {size} (`--log-opt max-size=`, \
             `max-file=`)",
            options.max_file
        ));
    }
    let mut current: Option<Reader> = None;
    for kept in kept.into_iter().skip(first) {
        let mut next = Reader::new(kept);
        match &current {
            None => next.skip(skip.unwrap_or(0))?,
            Some(before) => printer.gap(before.missed(&next))?,
        }
        next.pass(&mut printer)?;
        current = Some(next);
    }
    if let (true, Some(current)) = (args.follow && !between.is_over(), current) {
        follow(entry, &path, current, &watch, &mut printer)?;
    }
    printer.flush()
}

/// Follows the log until the supervisor has exited, and continues with the next file after each rotation.
fn follow(entry: &Entry, path: &Path, mut current: Reader, watch: &Inotify, printer: &mut Printer) -> io::Result<()> {
    // The supervisor closes its socket when it exits.
    let mut connection = Connection::connect(&entry.control_socket()).ok();
    loop {
        current.pass(printer)?;
        if let Some(next) = Kept::open_all(path)?.into_iter().find(|kept| kept.number > current.number) {
            // Read the output between the last read and the rotation.
            current.pass(printer)?;
            let next = Reader::new(next);
            printer.gap(current.missed(&next))?;
            current = next;
            continue;
        }
        printer.flush()?;
        let Some(alive) = &connection else { return Ok(()) };
        let stdout = io::stdout();
        // poll reports a closed reader (POLLERR) without being asked, even before the container writes more output.
        let mut fds = [
            PollFd::new(alive.as_fd(), PollFlags::POLLIN),
            PollFd::new(watch.as_fd(), PollFlags::POLLIN),
            PollFd::new(stdout.as_fd(), PollFlags::empty()),
        ];
        match poll(&mut fds, printer.between.left()) {
            Ok(_) | Err(nix::Error::EINTR) => {}
            Err(errno) => return Err(errno.into()),
        }
        if printer.between.is_over() {
            return Ok(());
        }
        if fds[2].revents().is_some_and(|events| events.contains(PollFlags::POLLERR)) {
            return Err(io::ErrorKind::BrokenPipe.into());
        }
        if fds[0].any().unwrap_or(false) && alive.receive::<FromSupervisor>()?.is_none() {
            // One more iteration reads the output that was written before the end.
            connection = None;
        }
        while watch.read_events().is_ok_and(|events| !events.is_empty()) {}
    }
}

/// A log file that is being read.
struct Reader {
    file: BufReader<File>,
    number: i64,
    /// Number of complete lines before this file and in the part that has been read.
    lines: u64,
}

impl Reader {
    fn new(kept: Kept) -> Self {
        Self { file: BufReader::with_capacity(1 << 16, kept.file), number: kept.number, lines: kept.before }
    }

    /// Reads the next complete record. An incomplete record is left for the next call.
    fn next(&mut self, line: &mut Vec<u8>) -> io::Result<bool> {
        line.clear();
        let count = self.file.read_until(b'\n', line)?;
        if line.pop_if(|&mut byte| byte == b'\n').is_none() {
            self.file.seek_relative(-(count as i64))?;
            return Ok(false);
        }
        Ok(true)
    }

    /// Prints everything from the current position to the end.
    fn pass(&mut self, printer: &mut Printer) -> io::Result<()> {
        let mut line = Vec::new();
        while self.next(&mut line)? {
            if let Some(record) = parse(&line) {
                self.lines += u64::from(record.full);
                printer.print(&record)?;
            }
        }
        Ok(())
    }

    /// Skips the given number of complete lines.
    fn skip(&mut self, lines: u64) -> io::Result<()> {
        let (mut line, mut left) = (Vec::new(), lines);
        while left > 0 && self.next(&mut line)? {
            let full = parse(&line).is_some_and(|record| record.full);
            left -= u64::from(full);
            self.lines += u64::from(full);
        }
        Ok(())
    }

    /// Returns the number of complete lines between this file, which has been read to its end, and the next one.
    fn missed(&self, next: &Self) -> u64 {
        // Files of earlier gpurun versions lack this number.
        if next.number == self.number + 1 { 0 } else { next.lines.saturating_sub(self.lines) }
    }
}

/// Finds the start of the last `tail` lines: the file, and the number of lines to skip in it. `None` means that the
/// whole log is shown. The pieces of a split line count as one line.
fn tail_start(kept: &[Kept], tail: usize) -> io::Result<(usize, Option<u64>)> {
    if tail == usize::MAX {
        return Ok((0, None));
    }
    let mut wanted = tail as u64;
    for (index, file) in kept.iter().enumerate().rev() {
        let (mut ends, mut open) = (0, false);
        let mut reader = Reader::new(Kept { file: file.file.try_clone()?, ..*file });
        let mut line = Vec::new();
        while reader.next(&mut line)? {
            if let Some(record) = parse(&line) {
                ends += u64::from(record.full);
                open = !record.full;
            }
        }
        // The clone shares its file offset with the original.
        (&file.file).rewind()?;
        let lines = ends + u64::from(open && index + 1 == kept.len());
        if wanted <= lines {
            return Ok((index, Some(lines - wanted)));
        }
        wanted -= lines;
    }
    Ok((0, None))
}

/// Number of bytes to collect before writing them.
const BATCH: usize = 1 << 16;

struct Printer {
    /// The container's name or ID at the beginning of each line.
    label: Option<String>,
    timestamps: bool,
    details: Option<String>,
    between: Between,
    mid_line: bool,
    stream: Stream,
    waiting: Vec<u8>,
}

impl Printer {
    fn new(timestamps: bool, details: Option<String>, between: Between) -> Self {
        let waiting = Vec::with_capacity(BATCH);
        Self { label: None, timestamps, details, between, mid_line: false, stream: Stream::Stdout, waiting }
    }

    fn print(&mut self, record: &LogRecord<'_>) -> io::Result<()> {
        if !self.between.holds(record) {
            return Ok(());
        }
        if record.stream != self.stream || self.waiting.len() >= BATCH {
            self.flush()?;
            self.stream = record.stream;
        }
        if let Some(label) = self.label.as_ref().filter(|_| !self.mid_line) {
            self.waiting.extend_from_slice(label.as_bytes());
            self.waiting.push(b' ');
        }
        if self.timestamps && !self.mid_line {
            self.waiting.extend_from_slice(record.time.as_bytes());
            self.waiting.push(b' ');
        }
        if let Some(details) = self.details.as_ref().filter(|_| !self.mid_line) {
            self.waiting.extend_from_slice(details.as_bytes());
            self.waiting.push(b' ');
        }
        self.waiting.extend_from_slice(record.text);
        if record.full {
            self.waiting.push(b'\n');
        }
        self.mid_line = !record.full;
        Ok(())
    }

    /// Prints a notice that lines are missing, after completing the current line.
    fn gap(&mut self, lines: u64) -> io::Result<()> {
        if lines == 0 {
            return Ok(());
        }
        if std::mem::take(&mut self.mid_line) {
            self.waiting.push(b'\n');
        }
        self.flush()?;
        print::say(&format!("gpurun: {lines} lines were lost: the log was rotated before they were read"));
        Ok(())
    }

    fn flush(&mut self) -> io::Result<()> {
        let waiting = std::mem::take(&mut self.waiting);
        let (written, flushed) = match self.stream {
            Stream::Stdout => {
                let mut out = io::stdout().lock();
                (out.write_all(&waiting), out.flush())
            }
            Stream::Stderr => {
                let mut out = io::stderr().lock();
                (out.write_all(&waiting), out.flush())
            }
        };
        self.waiting = waiting;
        self.waiting.clear();
        written.and(flushed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_tail_counts_lines_not_pieces() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        std::fs::write(path.with_extension("1"), "t stdout F x\nt stdout F y\n").unwrap();
        std::fs::write(&path, "t stdout F a\nt stdout P b\nt stdout F c\nt stdout P d\n").unwrap();
        let start = |tail| tail_start(&Kept::open_all(&path).unwrap(), tail).unwrap();
        assert_eq!(start(0), (1, Some(3)));
        assert_eq!(start(1), (1, Some(2)));
        assert_eq!(start(2), (1, Some(1)), "`b` and `c` are one line");
        assert_eq!(start(3), (1, Some(0)));
        assert_eq!(start(4), (0, Some(1)));
        assert_eq!(start(5), (0, Some(0)));
        assert_eq!(start(99), (0, None));
    }
}
