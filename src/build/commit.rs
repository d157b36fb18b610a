//! The changes of a container as a layer: `commit`, `diff` and `export`.
//!
//! All three read the container's upper directory by descriptor and leave out the files that gpurun and its hooks put
//! there. The caller may pause a running container for that time. If a container changes a file while it is read, the
//! command fails, so the image is never wrong.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::AsFd;

use super::copy::now;
use super::parse::{Instruction, parse_one};
use super::state::State;
use crate::clock::rfc3339;
use crate::image::{History, ImageDocument};
use crate::launch::{Scaffold, process};
use crate::layer::{Entry as Member, Merger, Scanner, Tree, archive, diff, directory, tar};
use crate::names::{Digest, Reference};
use crate::record::Entry;
use crate::report::Report;
use crate::request::{HealthConfig, Payload};
use crate::store::{Image, Store};

/// The options of `commit`.
#[derive(Debug, Clone, Default)]
pub(crate) struct Commit {
    pub name: Option<Reference>,
    /// Instructions in the syntax of a Containerfile.
    pub changes: Vec<String>,
    pub message: String,
    pub author: String,
    pub clamp: Option<i64>,
}

/// Makes an image of a container: the layers of its image, and one more with the container's changes.
pub(crate) fn commit(store: &Store, entry: &Entry, commit: &Commit) -> Result<Digest, Report> {
    let image = store.image_of(entry.record.image)?;
    if let Some(place) = &image.in_place
        && !store.has_layers(&image)?
    {
        return Err(Report::new(format!("the layers of `{}` are not in the store", place.archive.display()))
            .with_hint(format!(
                "load the image with `gpurun image load {}`, and commit again",
                place.archive.display()
            )));
    }
    let (config, _) = store.documents(&image)?;
    let document = ImageDocument::parse(&config)
        .map_err(|error| Report::from(error).under(format!("cannot use the image of `{}`", entry.record.name)))?;
    let mut state = State::new(document);
    own_config(&mut state, entry);
    for text in &commit.changes {
        change(&mut state, text)?;
    }
    let mut document = state.document;
    let mut draft = store.draft()?;
    let (lower, _) = store.tree_and_sources(&image)?;
    let (layer, summary) = write_changes(entry, &lower, commit.clamp, true, draft.layer()?)?;
    if summary.members > 0 {
        document.diff_ids.push(draft.seal(layer)?);
    }
    let created = rfc3339(u64::try_from(commit.clamp.unwrap_or_else(now)).unwrap_or(0) * 1_000_000_000);
    document.created.clone_from(&created);
    if !commit.author.is_empty() {
        document.author.clone_from(&commit.author);
    }
    document.history.push(History {
        created,
        author: commit.author.clone(),
        created_by: format!("gpurun commit {}", entry.record.name),
        comment: commit.message.clone(),
        empty_layer: summary.members == 0,
    });
    Ok(draft.commit(&document, commit.name.as_slice(), false)?)
}

/// Makes an image of the files in a tar archive, as docker's `import` does. `from` names the archive in the history.
pub(crate) fn import(store: &Store, input: impl Read, from: &str, commit: &Commit) -> Result<Digest, Report> {
    let mut state = State::new(ImageDocument::scratch());
    for text in &commit.changes {
        change(&mut state, text)?;
    }
    let mut document = state.document;
    let mut plain = super::inflated(store, input, from)?;
    let mut draft = store.draft()?;
    let mut layer = draft.layer()?;
    let copied = io::Seek::rewind(&mut plain).and_then(|()| io::copy(&mut plain, &mut layer));
    copied.map_err(|error| Report::new("cannot write the layer").with_cause(error))?;
    document.diff_ids.push(draft.seal(layer)?);
    let created = rfc3339(u64::try_from(commit.clamp.unwrap_or_else(now)).unwrap_or(0) * 1_000_000_000);
    document.created.clone_from(&created);
    let comment = if commit.message.is_empty() { format!("Imported from {from}") } else { commit.message.clone() };
    document.history.push(History { created, comment, ..History::default() });
    Ok(draft.commit(&document, commit.name.as_slice(), false)?)
}

/// Copies the container's command, environment, working directory, user and labels into the config, as docker does.
fn own_config(state: &mut State, entry: &Entry) {
    let request = &entry.record.request;
    let config = &mut state.document.config;
    for (name, value) in &request.env {
        config.env.retain(|entry| entry.split('=').next() != Some(name));
        config.env.push(format!("{name}={value}"));
    }
    if let Some(entrypoint) = &request.entrypoint {
        config.entrypoint.clone_from(entrypoint);
        config.cmd.clear();
    }
    if let Payload::Command(words) = &request.payload
        && !words.is_empty()
    {
        config.cmd.clone_from(words);
    }
    if let Some(workdir) = &request.workdir {
        config.working_dir = process::workdir(Some(workdir), None).display().to_string();
    }
    if let Some(user) = &request.user {
        config.user = user.to_string();
    }
    if let Some(health) = &request.health {
        let health = health.clone().over(HealthConfig::of_image(config.healthcheck.as_ref()));
        config.healthcheck = serde_json::to_value(health).ok();
    }
    config.labels.extend(request.labels.iter().cloned());
}

fn change(state: &mut State, text: &str) -> Result<(), Report> {
    let failed = |cause: &dyn std::fmt::Display| {
        Report::usage(format!("cannot apply `--change {text}`")).with_cause(cause).with_hint(
            "`--change` accepts CMD, ENTRYPOINT, ENV, EXPOSE, LABEL, USER, VOLUME, WORKDIR, STOPSIGNAL, HEALTHCHECK, SHELL and ONBUILD",
        )
    };
    let instruction = parse_one(text, '\\').map_err(|problem| failed(&problem))?;
    match &instruction {
        Instruction::Workdir(path) => {
            let path = state.path(path);
            state.document.config.working_dir = path;
            Ok(())
        }
        other if state.apply(other, '\\').map_err(|problem| failed(&problem))? => Ok(()),
        _ => Err(failed(&"the instruction changes more than the config")),
    }
}

/// The directory that holds the state of one Jupyter run: its token, the key that signs its cookies, and the keys of
/// its kernels.
const SESSION: &[u8] = b"share/jupyter/runtime";

/// Whether to keep a path of a container in which gpurun started Jupyter. Two containers of a committed image must not
/// share the keys of one Jupyter run.
fn outlives(path: &[u8]) -> diff::Keep {
    let at = path.windows(SESSION.len()).position(|part| part == SESSION);
    match at.map(|at| &path[at + SESSION.len()..]) {
        Some([]) => diff::Keep::IfNotEmpty,
        Some([b'/', ..]) => diff::Keep::No,
        _ => diff::Keep::Yes,
    }
}

/// Writes the container's changes as a layer. Set `to_stay` if other containers will start from this layer.
fn write_changes<W: Write>(
    entry: &Entry,
    lower: &Tree,
    clamp: Option<i64>,
    to_stay: bool,
    out: W,
) -> Result<(W, diff::Summary), Report> {
    let scaffold = Scaffold::of(entry)?;
    let upper = entry.dir.join("upper");
    let failed = |error| Report::new(format!("cannot read `{}`", upper.display())).with_cause(error);
    if !upper.try_exists().map_err(failed)? {
        // The container never ran.
        let out = tar::Writer::new(out).finish();
        let out = out.map_err(|error| Report::new("cannot write the layer").with_cause(error))?;
        return Ok((out, diff::Summary::default()));
    }
    let fd = directory::open_root(&upper)
        .map_err(|error| Report::new(format!("cannot open `{}`", upper.display())).with_cause(error))?;
    let jupyter = to_stay && matches!(entry.record.request.payload, Payload::Jupyter(_));
    let keep = |path: &[u8], stat: &nix::sys::stat::FileStat| match scaffold.keep(path, stat) {
        diff::Keep::Yes if jupyter => outlives(path),
        other => other,
    };
    Ok(diff::write(fd.as_fd(), &diff::Options { lower, clamp, keep: &keep }, out)?)
}

/// The kind of a change.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Change {
    Added,
    Changed,
    Deleted,
}

/// Every path that the container changed, sorted.
pub(crate) fn changes(store: &Store, entry: &Entry) -> Result<BTreeMap<Vec<u8>, Change>, Report> {
    let image = store.image_of(entry.record.image)?;
    let (lower, _) = store.tree_and_sources(&image)?;
    let (scan, _) = write_changes(entry, &lower, None, false, Scan(Scanner::new()))?;
    let members = scan.0.finish().map_err(|error| Report::new("cannot read the changes").with_cause(error))?;
    Ok(classify(&lower, &members))
}

/// Scans a layer without storing it.
struct Scan(Scanner);

impl Write for Scan {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.feed(bytes).map_err(io::Error::other)?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn classify(lower: &Tree, members: &[Member]) -> BTreeMap<Vec<u8>, Change> {
    let mut all = BTreeMap::new();
    let mut opaque = Vec::new();
    for member in members {
        let path = member.path.strip_suffix(b"/").unwrap_or(&member.path);
        let slash = path.iter().rposition(|byte| *byte == b'/').map_or(0, |slash| slash + 1);
        let (parent, name) = path.split_at(slash);
        match name {
            b"." | b"" => {}
            b".wh..wh..opq" => opaque.push(parent.to_vec()),
            _ => match name.strip_prefix(b".wh.") {
                Some(gone) => drop(all.insert([parent, gone].concat(), Change::Deleted)),
                None if lower.get(path).is_some() => drop(all.insert(path.to_vec(), Change::Changed)),
                None => drop(all.insert(path.to_vec(), Change::Added)),
            },
        }
    }
    for parent in opaque {
        // Everything in an opaque directory of the image is deleted, except for entries that the layer adds again.
        for name in
            lower.get(&parent).and_then(|id| lower.children(id)).into_iter().flat_map(|children| children.keys())
        {
            all.entry([parent.as_slice(), name].concat()).or_insert(Change::Deleted);
        }
    }
    all
}

/// Writes all files of an image as one tar.
pub(crate) fn write_files<W: Write>(store: &Store, image: &Image, out: W) -> Result<W, Report> {
    let (tree, sources) = store.tree_and_sources(image)?;
    archive::write(&tree, &sources, out)
        .map_err(|error| Report::new(format!("cannot write the files of `{}`", image.label())).with_cause(error))
}

/// Writes all files of the container as one tar.
pub(crate) fn export<W: Write>(store: &Store, entry: &Entry, out: W) -> Result<W, Report> {
    let image = store.image_of(entry.record.image)?;
    let (lower, _) = store.tree_and_sources(&image)?;
    let spool = store.nameless_file()?;
    let (spool, summary) = write_changes(entry, &lower, None, false, io::BufWriter::with_capacity(1 << 20, spool))?;
    let failed = |error: &dyn std::fmt::Display| Report::new("cannot export the container").with_cause(error);
    let spool = spool.into_inner().map_err(|error| failed(&error))?;
    let mut files: Vec<(Digest, File)> = Vec::new();
    let mut merger = Merger::new();
    for (diff_id, stretch) in store.stretches(&image)? {
        let file = store.open_stretch(&image, &stretch)?;
        let members = stretch.scan(&file).map_err(|error| failed(&error))?;
        merger.apply(diff_id, members).map_err(|error| failed(&error))?;
        files.push((diff_id, file));
    }
    if summary.members > 0 {
        // This diff ID belongs to no real layer. It stands for the container's own changes.
        let own = Digest([0; 32]);
        let length = spool.metadata().map_err(|error| failed(&error))?.len();
        let members = tar::scan_file(&spool, 0, length).map_err(|error| failed(&error))?;
        merger.apply(own, members).map_err(|error| failed(&error))?;
        files.push((own, spool));
    }
    let tree = merger.finish();
    // A layer that occurs twice in the image is only one source.
    let mut sources: Vec<File> = Vec::new();
    for wanted in &tree.sources {
        let found = files.iter().find(|(diff_id, _)| diff_id == wanted).map(|(_, file)| file.try_clone());
        sources.extend(found.transpose().map_err(|error| failed(&error))?);
    }
    archive::write(&tree, &sources, out).map_err(|error| failed(&error))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::layer::testing::Layer;

    fn members(layer: Layer) -> Vec<Member> {
        let mut scanner = Scanner::new();
        scanner.feed(&layer.end()).expect("scanned");
        scanner.finish().expect("whole")
    }

    #[test]
    fn what_belongs_to_one_jupyter_does_not_outlive_it() {
        for (path, want) in [
            ("home/me/.local/share/jupyter/runtime", diff::Keep::IfNotEmpty),
            ("root/.local/share/jupyter/runtime/jupyter_cookie_secret", diff::Keep::No),
            ("root/.local/share/jupyter/runtimes/x", diff::Keep::Yes),
            ("root/.local/share/jupyter/lab/x", diff::Keep::Yes),
        ] {
            assert_eq!(outlives(path.as_bytes()), want, "{path}");
        }
    }

    #[test]
    fn paths_are_added_changed_or_deleted() {
        let mut merger = Merger::new();
        let below =
            Layer::new().dir("etc").file("etc/old", "x").file("etc/gone", "x").dir("d").file("d/a", "").file("d/b", "");
        merger.apply(Digest([1; 32]), members(below)).expect("merged");
        let upper = Layer::new()
            .dir("etc/")
            .file("etc/old", "y")
            .file("etc/.wh.gone", "")
            .file("etc/new", "")
            .dir("d")
            .file("d/.wh..wh..opq", "")
            .file("d/b", "again");
        let found = classify(&merger.finish(), &members(upper));
        let told: Vec<(String, Change)> =
            found.into_iter().map(|(path, change)| (String::from_utf8_lossy(&path).into_owned(), change)).collect();
        let want = [
            ("d", Change::Changed),
            ("d/a", Change::Deleted),
            ("d/b", Change::Changed),
            ("etc", Change::Changed),
            ("etc/gone", Change::Deleted),
            ("etc/new", Change::Added),
            ("etc/old", Change::Changed),
        ];
        assert_eq!(told, want.map(|(path, change)| (path.to_owned(), change)));
    }

    #[test]
    fn changes_are_instructions_that_touch_no_file() {
        let mut state = State::new(ImageDocument::scratch());
        for text in ["CMD [\"a\"]", "ENV A=1 B=2", "WORKDIR /x", "USER me"] {
            change(&mut state, text).expect(text);
        }
        let config = &state.document.config;
        assert_eq!((config.cmd[0].as_str(), config.working_dir.as_str(), config.env.len()), ("a", "/x", 2));
        for text in ["RUN x", "COPY a b", "FROM x", "FOO", "ENV a"] {
            assert!(change(&mut state, text).is_err(), "{text}");
        }
    }
}
