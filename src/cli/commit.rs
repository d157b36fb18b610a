//! `gpurun commit | diff | export`: what a container has changed.

use std::io::{self, BufWriter, IsTerminal, Write};
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;

use clap::Args;

use super::{Context, print};
use crate::build::{self, Change, Commit};
use crate::names::Reference;
use crate::record::{Entry, Phase};
use crate::report::Report;
use crate::supervise::protocol::ToSupervisor;

#[derive(Debug, Args)]
#[command(
    after_help = "The image holds what the container changed, without the files that gpurun and GPU hooks put there. Volumes are not in it.\n\n\
    Examples:\n  gpurun commit lab lab:with-pandas\n  gpurun commit --change 'CMD [\"python3\"]' --message 'installed by hand' lab mine"
)]
pub struct CommitArgs {
    /// Apply an instruction to the image's config: CMD, ENV, USER, … (repeatable)
    #[arg(short, long, value_name = "INSTRUCTION")]
    change: Vec<String>,
    /// A word for the image's history
    #[arg(short, long, value_name = "TEXT", default_value = "")]
    message: String,
    /// Who made it
    #[arg(short, long, value_name = "NAME", default_value = "")]
    author: String,
    /// Pause the container while its files are read
    #[arg(short, long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_value_t = true, default_missing_value = "true", action = clap::ArgAction::Set)]
    pause: bool,
    container: String,
    /// Name of the image
    #[arg(value_name = "NAME[:TAG]")]
    name: Option<Reference>,
}

#[derive(Debug, Args)]
pub struct DiffArgs {
    /// Print as JSON
    #[arg(long)]
    json: bool,
    container: String,
}

#[derive(Debug, Args)]
pub struct ExportArgs {
    /// Write to a file instead of standard output
    #[arg(short, long, value_name = "FILE")]
    output: Option<PathBuf>,
    container: String,
}

pub fn commit(args: &CommitArgs, context: &Context) -> Result<u8, Report> {
    let entry = context.records()?.find(&args.container)?;
    let store = context.store()?;
    let commit = Commit {
        name: args.name.clone(),
        changes: args.change.clone(),
        message: args.message.clone(),
        author: args.author.clone(),
        clamp: super::build::source_date_epoch(None)?,
    };
    let paused = if args.pause { Paused::pause(&entry)? } else { None };
    let id = build::commit(&store, &entry, &commit);
    if let Some(paused) = paused {
        paused.resume()?;
    }
    print::out(&format!("{}\n", id?))?;
    Ok(0)
}

/// A running container that stands still for a commit.
struct Paused<'a>(&'a Entry);

impl<'a> Paused<'a> {
    /// One that a person paused, or that does not run, is left as it is.
    fn pause(entry: &'a Entry) -> Result<Option<Self>, Report> {
        if entry.supervisor()?.is_none() || entry.state()?.phase != Phase::Running {
            return Ok(None);
        }
        super::change::ask(entry, &ToSupervisor::Pause { paused: true })?;
        Ok(Some(Self(entry)))
    }

    fn resume(self) -> Result<(), Report> {
        super::change::ask(self.0, &ToSupervisor::Pause { paused: false }).map(drop)
    }
}

pub fn diff(args: &DiffArgs, context: &Context) -> Result<u8, Report> {
    let entry = context.records()?.find(&args.container)?;
    let changes = build::changes(&context.store()?, &entry)?;
    let letter = |change: &Change| match change {
        Change::Added => "A",
        Change::Changed => "C",
        Change::Deleted => "D",
    };
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
        // A name with a line end in it must not look like two.
        let path = std::ffi::OsStr::from_bytes(path).to_string_lossy().replace('\n', "\\n");
        text.push_str(&format!("{} /{path}\n", letter(change)));
    }
    print::out(&text)?;
    Ok(0)
}

pub fn export(args: &ExportArgs, context: &Context) -> Result<u8, Report> {
    let entry = context.records()?.find(&args.container)?;
    let store = context.store()?;
    let Some(path) = &args.output else {
        if io::stdout().is_terminal() {
            return Err(Report::usage("a tar is not for a terminal")
                .with_hint("`gpurun export -o files.tar CONTAINER`, or send it to a pipe"));
        }
        let out = build::export(&store, &entry, BufWriter::with_capacity(1 << 20, io::stdout().lock()))?;
        return finish(out, "standard output");
    };
    let failed = |error: io::Error| Report::new(format!("cannot write `{}`", path.display())).with_cause(error);
    let file = std::fs::File::create(path).map_err(failed)?;
    let written = build::export(&store, &entry, BufWriter::with_capacity(1 << 20, file))
        .and_then(|out| finish(out, &path.display().to_string()));
    if written.is_err() {
        // Half an archive is none.
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
