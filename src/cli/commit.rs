//! `gpurun commit | diff | export`: the changes that a container has made to its files.

use std::io::{self, BufWriter, IsTerminal, Write};
use std::path::PathBuf;

use clap::Args;

use super::{Context, print};
use crate::build::{self, Change, Commit};
use crate::control::{Announcement, Connection, ToSupervisor};
use crate::names::Reference;
use crate::record::{Entry, Phase};
use crate::report::Report;
use crate::sys::process::CallerUmask;

#[derive(Debug, Args)]
#[command(
    after_help = "The image contains the container's changes, without the files that gpurun and GPU hooks added. It does not contain volumes.\n\n\
    Examples:\n  gpurun commit notebook notebook:with-pandas\n  gpurun commit --change 'CMD [\"python3\"]' notebook mine"
)]
pub(super) struct CommitArgs {
    /// Apply an instruction to the image's config: CMD, ENV, USER, …
    #[arg(short, long, value_name = "INSTRUCTION")]
    change: Vec<String>,
    /// Comment in the image's history
    #[arg(short, long, value_name = "TEXT", default_value = "")]
    message: String,
    /// Author of the image
    #[arg(short, long, value_name = "NAME", default_value = "")]
    author: String,
    /// Pause the container while its files are read
    #[arg(short, long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_value_t = true, default_missing_value = "true", action = clap::ArgAction::Set)]
    pause: bool,
    /// Accepted for compatibility with podman: only the image's ID is printed
    #[arg(short, long, hide = true)]
    quiet: bool,
    /// Accepted for compatibility with podman: an image here is saved in any format
    #[arg(short, long, hide = true, value_parser = ["oci", "docker"])]
    format: Option<String>,
    /// Name or ID of the container
    #[arg(value_name = "CONTAINER")]
    container: String,
    /// Name of the image (default: none)
    #[arg(value_name = "NAME[:TAG]")]
    name: Option<Reference>,
}

#[derive(Debug, Args)]
pub(super) struct DiffArgs {
    /// Print as JSON
    #[arg(long)]
    json: bool,
    /// Print an object with a list for each kind of change: json
    #[arg(long, value_name = "FORMAT", value_parser = ["json"], hide_possible_values = true, conflicts_with = "json")]
    format: Option<String>,
    /// List the files of the newest container
    #[arg(short, long, conflicts_with = "container")]
    latest: bool,
    /// Name or ID of the container
    #[arg(required_unless_present = "latest", value_name = "CONTAINER")]
    container: Option<String>,
}

#[derive(Debug, Args)]
pub(super) struct ExportArgs {
    /// Write to a file instead of standard output
    #[arg(short, long, value_name = "FILE")]
    output: Option<PathBuf>,
    /// Name or ID of the container
    #[arg(value_name = "CONTAINER")]
    container: String,
}

pub(super) fn commit(args: &CommitArgs, context: &Context) -> Result<u8, Report> {
    let entry = context.records()?.find(&args.container)?;
    let store = context.store()?;
    let commit = Commit {
        name: args.name.clone(),
        changes: args.change.clone(),
        message: args.message.clone(),
        author: args.author.clone(),
        clamp: super::moment::source_date_epoch(None)?,
    };
    let paused = if args.pause { Paused::pause(&entry)? } else { None };
    let id = build::commit(&store, &entry, &commit);
    let resumed = paused.map_or(Ok(()), Paused::resume);
    print::out(&format!("{}\n", id?))?;
    // The image exists now. If the container has exited in the meantime, there is nothing to resume.
    if entry.supervisor()?.is_some() { resumed.map(|()| 0) } else { Ok(0) }
}

/// A running container that is paused for a commit. The freeze belongs to the connection, so the container is thawed
/// when this process ends for any reason.
struct Paused<'a> {
    entry: &'a Entry,
    connection: Connection,
}

impl<'a> Paused<'a> {
    /// Pauses the container. Returns `None` if it is not running. A container that the user has paused remains paused
    /// afterwards.
    fn pause(entry: &'a Entry) -> Result<Option<Self>, Report> {
        if entry.supervisor()?.is_none() || entry.state()?.phase != Phase::Running {
            return Ok(None);
        }
        let connection = super::attach::connect(entry, &ToSupervisor::Pause { paused: true, held: true })?;
        if !Announcement::read(&entry.run_dir).is_ok_and(|peer| peer.releases_freezes()) {
            let name = &entry.record.name;
            print::say(&format!(
                "gpurun: `{name}` was started by an earlier gpurun: if this command is killed, `gpurun resume {name}`"
            ));
        }
        let paused = Self { entry, connection };
        paused.ask(true)?;
        Ok(Some(paused))
    }

    fn resume(self) -> Result<(), Report> {
        self.ask(false)
    }

    fn ask(&self, paused: bool) -> Result<(), Report> {
        let message = ToSupervisor::Pause { paused, held: true };
        super::change::ask_on(&self.connection, self.entry, &message).map(drop)
    }
}

pub(super) fn diff(args: &DiffArgs, context: &Context) -> Result<u8, Report> {
    let records = context.records()?;
    let entry = match &args.container {
        Some(name) => records.find(name)?,
        None => records.find(&super::chosen::newest(&records)?)?,
    };
    let changes = build::changes(&context.store()?, &entry)?;
    let letter = |change: &Change| match change {
        Change::Added => "A",
        Change::Changed => "C",
        Change::Deleted => "D",
    };
    let path = |path: &[u8]| format!("/{}", String::from_utf8_lossy(path));
    if args.format.is_some() {
        // podman's shape.
        let of = |kind: &str| -> Vec<String> {
            changes.iter().filter(|(_, change)| letter(change) == kind).map(|(name, _)| path(name)).collect()
        };
        let all = [("added", of("A")), ("changed", of("C")), ("deleted", of("D"))];
        let all: serde_json::Map<String, serde_json::Value> = all
            .into_iter()
            .filter(|(_, names)| !names.is_empty())
            .map(|(kind, names)| (kind.to_owned(), names.into()))
            .collect();
        print::json(&all)?;
        return Ok(0);
    }
    if args.json {
        let all: Vec<_> = changes
            .iter()
            .map(|(path, change)| {
                serde_json::json!({ "Kind": letter(change), "Path": format!("/{}", String::from_utf8_lossy(path)) })
            })
            .collect();
        print::json(&all)?;
        return Ok(0);
    }
    let mut text = String::new();
    for (path, change) in &changes {
        // A line feed in a name must not make it look like two names.
        let path = String::from_utf8_lossy(path);
        let path = crate::report::printable_line(&path);
        text.push_str(&format!("{} /{path}\n", letter(change)));
    }
    print::out(&text)?;
    Ok(0)
}

pub(super) fn export(args: &ExportArgs, context: &Context) -> Result<u8, Report> {
    let entry = context.records()?.find(&args.container)?;
    let store = context.store()?;
    let Some(path) = &args.output else {
        if io::stdout().is_terminal() {
            return Err(Report::usage("cannot write a tar archive to a terminal")
                .with_hint(format!("write it to a file: `gpurun export -o files.tar {}`", args.container)));
        }
        let out = build::export(&store, &entry, BufWriter::with_capacity(1 << 20, io::stdout().lock()))?;
        return finish(out, "standard output");
    };
    let failed = |error: io::Error| Report::new(format!("cannot write `{}`", path.display())).with_cause(error);
    let file = {
        let _umask = CallerUmask::enter();
        std::fs::File::create(path).map_err(failed)?
    };
    let written = build::export(&store, &entry, BufWriter::with_capacity(1 << 20, file))
        .and_then(|out| finish(out, &path.display().to_string()));
    if written.is_err() {
        // Remove an incomplete archive.
        let _ = std::fs::remove_file(path);
    }
    written
}

fn finish(mut out: impl Write, name: &str) -> Result<u8, Report> {
    match out.flush() {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
            Err(Report::new(format!("cannot write to {name}")).with_cause(error))
        }
        _ => Ok(0),
    }
}
