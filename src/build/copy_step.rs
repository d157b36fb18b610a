//! Executes `COPY` and `ADD`: finds the sources in the context, a stage or an image, fetches URLs, unpacks archives, and
//! plans the layer ([`super::copy`]).

use std::time::Duration;

use super::cache::Key;
use super::context::ContextError;
use super::context::no_context;
use super::copy::{Plan, Target, now};
use super::copy_source::CopyError;
use super::copy_source::{self, CopySource, Selection};
use super::engine::{Current, Engine, Merged};
use super::parse::{Copy, Flag, HereDocument};
use super::state::State;
use super::words::Expander;
use super::{fetch, run};
use crate::report::Report;

/// The expanded flags and arguments of a `COPY` or `ADD`.
pub(super) struct Arguments {
    add: bool,
    sources: Vec<String>,
    /// An absolute path, with a final `/` if it must be a directory.
    destination: String,
    from: Option<String>,
    chown: Option<String>,
    mode: Option<u16>,
    checksum: Option<String>,
    parents: bool,
    exclude: Vec<String>,
}

impl Arguments {
    pub(super) fn read(engine: &Engine<'_>, state: &State, copy: &Copy) -> Result<Self, Report> {
        let expand = |text: &str| engine.expand(state, text);
        let values = |name: &'static str| {
            let flags = copy.flags.iter().filter(move |flag| flag.name == name);
            flags.map(|flag| expand(flag.value.as_deref().unwrap_or(""))).collect::<Result<Vec<_>, Report>>()
        };
        let last = |name| values(name).map(|mut values| values.pop());
        let mut destination = expand(&copy.destination)?;
        let is_directory = destination.ends_with('/') || destination.ends_with("/.") || destination == ".";
        destination = state.path(&destination);
        if is_directory && !destination.ends_with('/') {
            destination.push('/');
        }
        let checksum = last("checksum")?;
        let is_parents = |flag: &Flag| flag.name == "parents" && flag.value.as_deref() != Some("false");
        let arguments = Self {
            add: copy.add,
            destination,
            from: last("from")?,
            chown: last("chown")?,
            mode: last("chmod")?.as_deref().map(octal).transpose()?,
            checksum: checksum.as_deref().map(fetch::checksum).transpose()?.map(str::to_owned),
            parents: copy.flags.iter().any(is_parents),
            exclude: values("exclude")?,
            sources: copy.sources.iter().map(|source| expand(source)).collect::<Result<_, Report>>()?,
        };
        arguments.check(copy)?;
        Ok(arguments)
    }

    /// The stage or image to copy from.
    pub(super) fn from(&self) -> Option<&str> {
        self.from.as_deref()
    }

    /// The sources that must exist in the context. With `--parents`, a part of a source is not a path.
    pub(super) fn of_context(&self) -> impl Iterator<Item = &str> {
        let is_path = |source: &&String| !(self.parents || self.add && fetch::is_url(source));
        self.sources.iter().filter(is_path).map(String::as_str)
    }

    /// Checks the sources before any of them is read.
    fn check(&self, copy: &Copy) -> Result<(), Report> {
        for source in self.sources.iter().filter(|_| self.add) {
            if fetch::is_git(source) {
                return Err(Report::new("`ADD` of a git repository is not supported")
                    .with_hint("clone the repository into the context, or in a `RUN` instruction"));
            }
            if fetch::is_url(source) {
                fetch::check_name(source, &self.destination)?;
            }
        }
        let one_url = self.sources.len() == 1 && copy.documents.is_empty() && fetch::is_url(&self.sources[0]);
        if self.checksum.is_some() && !one_url {
            return Err(Report::new("`ADD --checksum` needs exactly one source, which must be a URL"));
        }
        Ok(())
    }

    /// Adds everything but the contents of the sources.
    fn add_to(&self, key: &mut Key) {
        key.add(if self.add { "ADD" } else { "COPY" }).add(&self.destination);
        key.add(format!("{:?} {:?} {:?}", self.chown, self.mode, self.sources));
        if self.parents || !self.exclude.is_empty() {
            key.add(format!("{} {:?}", self.parents, self.exclude));
        }
    }

    fn select<'a>(&self, source: &'a str) -> Result<Selection<'a>, Report> {
        Selection::new(source, self.parents, &self.exclude)
            .map_err(|error| Report::new("cannot use a pattern of the instruction").with_cause(error))
    }
}

impl Engine<'_> {
    pub(super) fn copy(&mut self, current: &mut Current<'_>, copy: &Copy) -> Result<(), Report> {
        let arguments = Arguments::read(self, &current.state, copy)?;
        let mut key = self.key("COPY", &current.state.document.diff_ids);
        arguments.add_to(&mut key);
        let mut sources = self.documents(&current.state, &copy.documents)?;
        let mut layers = None;
        match (&arguments.from, &arguments.checksum) {
            // The chain ID of the layers identifies their contents, so no file is read until the step has to be
            // executed.
            (Some(name), _) => {
                let from = self.layers_from(current, name)?;
                key.add(crate::layer::merge::chain_id(&from).hex());
                layers = Some((name, from));
            }
            // A download with a checksum is fetched only if the step is not in the cache.
            (None, Some(checksum)) => drop(key.add(checksum)),
            (None, None) => {
                for source in &arguments.sources {
                    sources.extend(self.source(&arguments, source)?);
                }
            }
        }
        CopySource::add_to(&sources, &mut key);
        let mut sources = Some(sources);
        // The matches of one wildcard are not several sources: see `Plan::add`.
        let several = arguments.sources.len() + copy.documents.len() > 1;
        self.step(&mut current.state, &key, &mut |engine, draft, below| {
            let mut sources = sources.take().unwrap_or_default();
            if let Some(checksum) = &arguments.checksum {
                sources.push(engine.fetch(&arguments.sources[0], Some(checksum))?);
            }
            if let Some((name, layers)) = &layers {
                let merged = engine.tree(layers)?;
                for source in &arguments.sources {
                    sources.extend(from_tree(&merged, &arguments.select(source)?, name)?);
                }
            }
            let owner = arguments.chown.as_deref().map(|chown| engine.owner(below, chown)).transpose()?;
            let merged = engine.tree(below)?;
            let target = Target {
                tree: &merged.0,
                destination: &arguments.destination,
                several,
                owner,
                mode: arguments.mode,
                clamp: engine.options.clamp,
            };
            let mut plan = Plan::default();
            if arguments.add {
                sources = engine.unpack(sources, &target, &mut plan)?;
            }
            let replaced = plan.add(sources, &target)?;
            if replaced > 0 {
                engine.output.notice(&format!(
                    "this `{}` writes {} files to `{}`, and only the last one remains; end the destination with `/` \
                     to keep all of them",
                    if arguments.add { "ADD" } else { "COPY" },
                    replaced + 1,
                    arguments.destination
                ));
            }
            engine.write(plan, draft)
        })
    }

    /// The sources that an argument of `COPY` or `ADD` names: paths of the context, or a URL.
    fn source(&mut self, arguments: &Arguments, source: &str) -> Result<Vec<CopySource>, Report> {
        if arguments.add && fetch::is_url(source) {
            return Ok(vec![self.fetch(source, None)?]);
        }
        let context = self.context.as_ref().ok_or_else(no_context)?;
        let selection = arguments.select(source)?;
        let found = context.select(selection.base, &selection.filter)?;
        let sources: Vec<CopySource> = found.into_iter().map(CopySource::from_context).collect();
        match selection.missing(&sources) {
            Some(missing) => Err(ContextError::Missing(missing.to_owned()).into()),
            None => Ok(sources),
        }
    }

    fn fetch(&mut self, url: &str, checksum: Option<&str>) -> Result<CopySource, Report> {
        let most = self.budget.download()?;
        let (signals, output) = (self.signals, &mut *self.output);
        let fetched = fetch::fetch(self.store, url, most, &mut |pause, error| {
            if pause >= Duration::from_secs(1) {
                output.notice(&format!("{error}: {}; trying again in {} s", error.cause, pause.as_secs()));
            }
            run::pause(signals, pause)
        })?;
        self.budget.downloaded(fetched.size()?);
        let found = format!("sha256:{}", hex::encode(fetched.digest));
        match checksum {
            Some(wanted) if wanted != found => {
                Err(Report::new(format!("`{url}` has the digest `{found}`, not `{wanted}`")))
            }
            _ => fetch::source(url, fetched),
        }
    }

    /// The here-documents of a `COPY`, as files.
    fn documents(&self, state: &State, documents: &[HereDocument]) -> Result<Vec<CopySource>, Report> {
        let variables = state.variables();
        let expander = Expander { escape: self.escape, variables: &variables };
        let mut sources = Vec::new();
        for document in documents {
            let mut text = document.content();
            if document.expand {
                text = expander.expand_body(&text).map_err(|error| Report::new(error.to_string()))?;
            }
            sources.push(CopySource::from_bytes(
                &document.name,
                text.into_bytes(),
                self.options.clamp.unwrap_or_else(now),
            ));
        }
        Ok(sources)
    }

    /// Unpacks the archives among the sources into the destination and returns the other sources.
    fn unpack(
        &mut self,
        sources: Vec<CopySource>,
        target: &Target<'_>,
        plan: &mut Plan,
    ) -> Result<Vec<CopySource>, Report> {
        let mut rest = Vec::new();
        for source in sources {
            let Some((file, digest)) = source.file(self.context.as_ref())? else {
                rest.push(source);
                continue;
            };
            let name = String::from_utf8_lossy(&source.name).into_owned();
            match fetch::unpack(self.store, &file, &digest, &name)? {
                None => rest.push(source),
                Some(archive) => plan.unpack(archive, target)?,
            }
        }
        Ok(rest)
    }
}

fn from_tree(merged: &Merged, selection: &Selection<'_>, name: &str) -> Result<Vec<CopySource>, Report> {
    let place = format!("`{name}`");
    let mut sources = Vec::new();
    for path in copy_source::matching(&merged.0, selection.base)? {
        sources.push(CopySource::from_tree(&merged.0, &merged.1, &path, &selection.filter, &place)?);
    }
    match selection.missing(&sources) {
        Some(missing) => Err(CopyError::NotThere { path: missing.to_owned(), place }.into()),
        None => Ok(sources),
    }
}

fn octal(text: &str) -> Result<u16, Report> {
    let mode = u16::from_str_radix(text, 8).ok().filter(|mode| *mode <= 0o7777);
    mode.ok_or_else(|| Report::new(format!("invalid `--chmod={text}`: it must be an octal mode such as 755")))
}
