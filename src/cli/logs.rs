//! `gpurun logs`: what a container wrote, and what it goes on writing.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use clap::Args;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};

use super::Context;
use crate::record::Entry;
use crate::report::Report;
use crate::supervise::log::{Stream, parse};
use crate::supervise::protocol::{Connection, FromSupervisor};

#[derive(Debug, Args)]
pub struct LogsArgs {
    /// Go on with what is written from now on, until the container ends
    #[arg(short, long)]
    follow: bool,
    /// Put the time before each line
    #[arg(short, long)]
    timestamps: bool,
    /// Only the last N lines
    #[arg(short = 'n', long, value_name = "N", default_value = "all", allow_negative_numbers = true)]
    tail: String,
    /// The container: name, id, or an unambiguous beginning of one
    container: String,
}

pub fn run(args: &LogsArgs, context: &Context) -> Result<u8, Report> {
    let tail = match args.tail.as_str() {
        "all" => usize::MAX,
        number => number.parse().map_err(|_| {
            Report::usage(format!("`--tail {number}` is not a number of lines"))
                .with_hint("write a number from 0 in digits, or `all`")
        })?,
    };
    let entry = context.records()?.find(&args.container)?;
    match show(args, &entry, tail) {
        // Our own reader went away, and not all is said: as `docker logs`, `cat` and `tail -f` end then.
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(128 + libc::SIGPIPE as u8),
        Err(error) => {
            Err(Report::new(format!("cannot show the log of container `{}`", entry.record.name)).with_cause(error))
        }
        Ok(()) => Ok(0),
    }
}

fn show(args: &LogsArgs, entry: &Entry, tail: usize) -> io::Result<()> {
    let path = entry.log();
    // The watch stands before the first read, so that nothing written in between is missed.
    let watch = Inotify::init(InitFlags::IN_CLOEXEC | InitFlags::IN_NONBLOCK)?;
    let what = AddWatchFlags::IN_MODIFY | AddWatchFlags::IN_CREATE;
    watch.add_watch(&entry.dir, what)?;
    let mut lines = Vec::new();
    if let Some(file) = open_log(&rotated(&path))? {
        read_lines(&mut BufReader::new(file), &mut lines)?;
    }
    let mut current = open_log(&path)?.map(BufReader::new);
    if let Some(file) = &mut current {
        read_lines(file, &mut lines)?;
    }
    let from = tail_start(&lines, tail);
    let mut printer = Printer { timestamps: args.timestamps, mid_line: false };
    lines[from..].iter().try_for_each(|line| printer.print(line))?;
    match (args.follow, current) {
        (true, Some(file)) => follow(entry, &path, file, &watch, &mut printer),
        _ => Ok(()),
    }
}

fn open_log(path: &Path) -> io::Result<Option<File>> {
    match File::open(path) {
        Ok(file) => Ok(Some(file)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// Reads on until the supervisor is gone, moving to the new file when the log is rotated.
fn follow(
    entry: &Entry,
    path: &Path,
    mut file: BufReader<File>,
    watch: &Inotify,
    printer: &mut Printer,
) -> io::Result<()> {
    // The supervisor's socket tells when it is over: it closes.
    let mut connection = Connection::connect(&entry.control_socket()).ok();
    loop {
        let mut lines = Vec::new();
        read_lines(&mut file, &mut lines)?;
        if let Some(new) = open_log(path)?.filter(|new| !same_file(new, file.get_ref())) {
            file = BufReader::new(new);
            read_lines(&mut file, &mut lines)?;
        }
        lines.iter().try_for_each(|line| printer.print(line))?;
        let Some(alive) = &connection else { return Ok(()) };
        let stdout = io::stdout();
        // A reader that goes away shows without being asked for (POLLERR): nobody waits for a container to say something first.
        let mut fds = [
            PollFd::new(alive.as_fd(), PollFlags::POLLIN),
            PollFd::new(watch.as_fd(), PollFlags::POLLIN),
            PollFd::new(stdout.as_fd(), PollFlags::empty()),
        ];
        match poll(&mut fds, PollTimeout::NONE) {
            Ok(_) | Err(nix::Error::EINTR) => {}
            Err(errno) => return Err(errno.into()),
        }
        if fds[2].revents().is_some_and(|events| events.contains(PollFlags::POLLERR)) {
            return Err(io::ErrorKind::BrokenPipe.into());
        }
        if fds[0].any().unwrap_or(false) && alive.receive::<FromSupervisor>()?.is_none() {
            // One more round reads what was written before the end.
            connection = None;
        }
        while watch.read_events().is_ok_and(|events| !events.is_empty()) {}
    }
}

fn same_file(a: &File, b: &File) -> bool {
    matches!((a.metadata(), b.metadata()), (Ok(a), Ok(b)) if (a.dev(), a.ino()) == (b.dev(), b.ino()))
}

fn rotated(path: &Path) -> PathBuf {
    path.with_extension("1")
}

/// Reads whole records; a record that is only half written is left for the next time.
fn read_lines(file: &mut BufReader<File>, lines: &mut Vec<Vec<u8>>) -> io::Result<()> {
    loop {
        let mut line = Vec::new();
        let count = file.read_until(b'\n', &mut line)?;
        if line.pop_if(|&mut byte| byte == b'\n').is_none() {
            file.seek_relative(-(count as i64))?;
            return Ok(());
        }
        lines.push(line);
    }
}

/// Where the last `tail` lines begin: pieces of one line count once.
fn tail_start(lines: &[Vec<u8>], tail: usize) -> usize {
    if tail == 0 {
        return lines.len();
    }
    let mut count = 0;
    for (index, line) in lines.iter().enumerate().rev() {
        let ends_line = parse(line).is_none_or(|record| record.full) || index + 1 == lines.len();
        if ends_line {
            if count == tail {
                return index + 1;
            }
            count += 1;
        }
    }
    0
}

struct Printer {
    timestamps: bool,
    mid_line: bool,
}

impl Printer {
    fn print(&mut self, line: &[u8]) -> io::Result<()> {
        let Some(record) = parse(line) else { return Ok(()) };
        let mut text = Vec::with_capacity(line.len() + 1);
        if self.timestamps && !self.mid_line {
            text.extend_from_slice(record.time.as_bytes());
            text.push(b' ');
        }
        text.extend_from_slice(record.text);
        if record.full {
            text.push(b'\n');
        }
        self.mid_line = !record.full;
        let (written, flushed) = match record.stream {
            Stream::Stdout => {
                let mut out = io::stdout().lock();
                (out.write_all(&text), out.flush())
            }
            Stream::Stderr => {
                let mut out = io::stderr().lock();
                (out.write_all(&text), out.flush())
            }
        };
        written.and(flushed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_tail_counts_lines_not_pieces() {
        let lines: Vec<Vec<u8>> =
            ["t stdout F a", "t stdout P b", "t stdout F c", "t stdout P d"].map(|l| l.as_bytes().to_vec()).into();
        assert_eq!(tail_start(&lines, 0), 4);
        assert_eq!(tail_start(&lines, 1), 3);
        assert_eq!(tail_start(&lines, 2), 1, "`b` and `c` are one line");
        assert_eq!(tail_start(&lines, 3), 0);
        assert_eq!(tail_start(&lines, 99), 0);
    }
}
