//! Runs a build stage by stage and step by step. Each step is taken from the cache or executed.
//!
//! A lock of the [`Cache`] is held for the length of each step. Every layer that the build uses is pinned until the
//! build ends.

use std::collections::BTreeMap;
use std::fs::File;
use std::rc::Rc;

use nix::sys::signalfd::SignalFd;

use super::budget;
use super::budget::Budget;
use super::cache::{Cache, Key, Made};
use super::context::Context;
use super::copy::now;
use super::options::NamedContext;
use super::parse::{self, Instruction, Line};
use super::run::{interruption, take_interrupt};
use super::stages::{self, Base, Stages};
use super::state::State;
use super::words::Expander;
use super::{Built, Options, Output, Pull, StepName};
use crate::clock::rfc3339;
use crate::durable::FileLock;
use crate::image::{Config, History, ImageDocument, Platform, architecture};
use crate::layer::{Tree, merge};
use crate::names::{Digest, distance};
use crate::record::Records;
use crate::report::Report;
use crate::request::NetworkMode;
use crate::store::{Draft, Pins, Store};

/// The network state of a build.
#[derive(Debug, Default)]
pub(crate) struct Network {
    /// The meaning of the default on this host, set by the first step that uses it.
    pub(super) default: Option<NetworkMode>,
    /// Settings whose address is on the host's loopback, each as `NAME (HOST:PORT)`. They do not work on the bridge.
    pub(super) unreachable: Vec<String>,
}

/// A merged tree and the tars that it refers to.
pub(super) type Merged = (Tree, Rc<Vec<File>>);

const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
/// Number of merged trees to keep in memory. A step needs the tree of its own stage, and often that of a stage or image
/// to copy from.
const TREES: usize = 3;

pub(super) struct Engine<'a> {
    pub options: &'a Options,
    pub store: &'a Store,
    pub records: &'a Records,
    pub cache: Cache,
    pub context: Option<Context>,
    pub signals: Option<&'a SignalFd>,
    pub output: &'a mut dyn Output,
    pub escape: char,
    pull: Pull<'a>,
    /// The finished stages, by index.
    finished: BTreeMap<usize, State>,
    /// The directories that are further contexts, by name.
    pub contexts: BTreeMap<String, State>,
    bases: BTreeMap<String, ImageDocument>,
    /// Pins every layer that the build uses. Pinned layers stay in the store even if their image is removed.
    pins: Rc<Pins<'a>>,
    trees: Vec<(Digest, Rc<Merged>)>,
    pub network: Network,
    pub budget: Budget,
    number: usize,
    total: usize,
    cached: usize,
}

/// Makes a step's layer in the draft, on top of the given layers. Returns `None` if no file changed.
type Make<'a, E> = &'a mut dyn FnMut(&mut E, &mut Draft<'_>, &[Digest]) -> Result<Option<Digest>, Report>;

/// The stage that is being built.
pub(super) struct Current<'s> {
    pub stages: &'s Stages<'s>,
    pub at: usize,
    pub state: State,
}

/// Builds the image and names it.
pub(crate) fn build(
    options: &Options,
    store: &Store,
    records: &Records,
    pull: Pull<'_>,
    signals: Option<&SignalFd>,
    output: &mut dyn Output,
) -> Result<Built, Report> {
    let syntax = |error: parse::SyntaxError| {
        // A file that is not a Containerfile may have lines of any length.
        let problem: String = super::printable(&error.problem.to_string()).chars().take(300).collect();
        let report = Report::new(format!("`{}`, line {}: {problem}", options.file.name, error.line)).with_exit_code(1);
        match error.problem.hint() {
            Some(hint) => report.with_hint(hint),
            None => report,
        }
    };
    let file = parse::parse(&options.file.text).map_err(syntax)?;
    let given = |name: &str| options.args.get(name).cloned().or_else(|| platform_arg(name));
    let mut stages = stages::read(&file, &given, &Platform::host()).map_err(syntax)?;
    stages.replace(options);
    let stages = stages;
    let target = match &options.target {
        None => stages.all.len() - 1,
        Some(name) => stages.find(name, stages.all.len()).ok_or_else(|| no_stage(options, name, &stages))?,
    };
    let needed = stages.needed(target);
    let steps = |at: &usize| 1 + stages.all[*at].lines.iter().filter(|line| stages::is_step(&line.instruction)).count();
    let context = match &options.context {
        Some(path) => Some(match &options.ignore_file {
            Some(ignore) => Context::ignoring(path, ignore)?,
            None => Context::open(path, &options.file.place)?,
        }),
        None => None,
    };
    let mut engine = Engine {
        options,
        store,
        records,
        cache: Cache::open(store.root())?,
        context,
        signals,
        output,
        escape: file.escape,
        pull,
        finished: BTreeMap::new(),
        contexts: BTreeMap::new(),
        bases: BTreeMap::new(),
        pins: Rc::new(store.pins()?),
        trees: Vec::new(),
        network: Network::default(),
        budget: Budget::default(),
        number: 0,
        total: needed.iter().map(steps).sum::<usize>() + options.directories(),
        cached: 0,
    };
    engine.check_all(&stages, &needed)?;
    engine.load_contexts()?;
    for at in &needed {
        let state = engine.stage(&stages, *at)?;
        engine.budget.keep(&state)?;
        engine.finished.insert(*at, state);
    }
    let Some(state) = engine.finished.remove(&target) else {
        return Err(Report::new("cannot find the result of the target stage"));
    };
    engine.warn_unused(&file);
    let id = engine.image(state)?;
    Ok(Built { id, steps: engine.number, cached: engine.cached })
}

/// Refuses a base image for another platform. Its commands cannot run here, and the resulting image would mix two
/// platforms.
fn runs_here(name: &str, document: ImageDocument) -> Result<ImageDocument, Report> {
    let platform = Platform::new(&document.os, &document.architecture, Some(&document.variant));
    let host = Platform::host();
    // Old images do not name their platform.
    if document.architecture.is_empty() || platform.runs_on(&host) {
        return Ok(document);
    }
    Err(Report::new(format!("cannot build on the image `{name}`: it is for {platform}, and this machine is {host}"))
        .with_hint(
            "pull the image for this machine with `gpurun build --pull`: builds for other platforms are not supported",
        ))
}

/// Names the stages in the error of an image that cannot be pulled, because its name may be that of a stage with a typing error.
/// The name after `FROM` is that of an image, unless it is similar to that of a stage.
fn mistyped(stages: &Stages<'_>, at: usize, name: &str, is_from: bool, report: Report) -> Report {
    let near = stages.all[..at].iter().filter_map(|stage| stage.name.as_deref());
    let near = near.map(|known| (distance(known, name), known)).min().filter(|(distance, _)| *distance <= 2);
    match stages.before(at) {
        Some(names) if !name.contains(['/', ':', '@']) && report.exit_code != 130 && (near.is_some() || !is_from) => {
            let report =
                report.under(format!("there is no stage or image `{name}`; the stages before this one are {names}"));
            match near {
                Some((_, known)) => report.with_hint(format!("did you mean `{known}`?")),
                None => report,
            }
        }
        _ => report,
    }
}

fn no_stage(options: &Options, name: &str, stages: &Stages<'_>) -> Report {
    let names: Vec<String> = stages.all.iter().map(|stage| format!("`{}`", stage.label)).collect();
    Report::new(format!("`{}` has no stage `{name}`", options.file.name))
        .with_hint(format!("the stages are {}", names.join(", ")))
}

/// BuildKit's predefined platform arguments.
fn platform_arg(name: &str) -> Option<String> {
    match name {
        "TARGETPLATFORM" | "BUILDPLATFORM" => Some(format!("linux/{}", architecture())),
        "TARGETOS" | "BUILDOS" => Some("linux".into()),
        "TARGETARCH" | "BUILDARCH" => Some(architecture().into()),
        "TARGETVARIANT" | "BUILDVARIANT" => Some(String::new()),
        _ => None,
    }
}

impl Engine<'_> {
    fn stage(&mut self, stages: &Stages<'_>, at: usize) -> Result<State, Report> {
        let stage = &stages.all[at];
        let name = stage.name.as_ref().map(|name| format!(" AS {name}")).unwrap_or_default();
        let base = match &stage.base {
            Base::Scratch => "scratch",
            Base::Stage(base) => &stages.all[*base].label,
            Base::Image(name) | Base::Context(name) => name,
        };
        self.begin(stages, at, &format!("FROM {base}{name}"));
        let document = match &stage.base {
            Base::Scratch => from_scratch(),
            Base::Stage(base) => self.finished[base].document.clone(),
            Base::Context(name) => self.contexts[name].document.clone(),
            Base::Image(name) => {
                let document = self.base(name).map_err(|report| mistyped(stages, at, name, true, report));
                let document = document.and_then(|document| runs_here(name, document));
                document.map_err(|report| self.failed(stage.from, report))?
            }
        };
        self.output.done();
        let mut current = Current { stages, at, state: State::new(with_path(document)) };
        // As in BuildKit, a stage has the arguments of the stage that it is based on.
        if let Base::Stage(base) = &stage.base {
            current.state.args.clone_from(&self.finished[base].args);
        }
        // The base image's `ONBUILD` instructions come first.
        let triggers = std::mem::take(&mut current.state.document.config.on_build).into_iter().map(|text| {
            let instruction = self.trigger(stage.from, &text)?;
            Ok(Line { number: stage.from.number, text, instruction })
        });
        let triggers: Vec<Line> = triggers.collect::<Result<_, Report>>()?;
        self.check_stage(&current, &triggers)?;
        for line in &triggers {
            self.total += usize::from(stages::is_step(&line.instruction));
            self.line(&mut current, line)?;
        }
        for line in stage.lines {
            self.line(&mut current, line)?;
        }
        Ok(current.state)
    }

    fn trigger(&self, from: &Line, text: &str) -> Result<Instruction, Report> {
        parse::parse_one(text, '\\').map_err(|problem| {
            self.failed(from, Report::new(format!("cannot execute the image's `ONBUILD {text}`")).with_cause(problem))
        })
    }

    /// The config of a base image. A name refers to the same image for the whole build.
    fn base(&mut self, name: &str) -> Result<ImageDocument, Report> {
        if let Some(document) = self.bases.get(name) {
            return Ok(document.clone());
        }
        self.budget.image()?;
        let config = loop {
            // If the image is removed before it is pinned, pull again: a registry may still have it.
            if let Some(config) = self.pins.image(&(self.pull)(name)?)? {
                break config;
            }
        };
        let document = ImageDocument::parse(&config)
            .map_err(|error| Report::from(error).under(format!("cannot build on the image `{name}`")))?;
        self.bases.insert(name.to_owned(), document.clone());
        Ok(document)
    }

    fn line(&mut self, current: &mut Current<'_>, line: &Line) -> Result<(), Report> {
        if self.signals.is_some_and(take_interrupt) {
            return Err(interruption());
        }
        self.budget.instruction().map_err(|report| self.failed(line, report))?;
        let before = current.state.document.diff_ids.len();
        if stages::is_step(&line.instruction) {
            self.begin(current.stages, current.at, &line.text);
        }
        let done = match &line.instruction {
            Instruction::Arg(args) => self.declare(current, args),
            Instruction::Run { flags, command, documents } => self.run(current, flags, command, documents),
            Instruction::Copy(copy) => self.copy(current, copy),
            Instruction::Workdir(path) => self.workdir(current, path),
            other => match current.state.apply(other, self.escape) {
                Ok(_) => Ok(()),
                Err(problem) => Err(Report::new(problem.to_string())),
            },
        };
        done.map_err(|report| self.failed(line, report))?;
        let document = &mut current.state.document;
        document.history.push(History {
            created_by: line.text.clone(),
            comment: "gpurun".into(),
            empty_layer: document.diff_ids.len() == before,
            ..History::default()
        });
        budget::check(&current.state).map_err(|report| self.failed(line, report))
    }

    /// Executes an `ARG`.
    pub(super) fn declare(&self, current: &mut Current<'_>, args: &[(String, Option<String>)]) -> Result<(), Report> {
        let outside = |name: &str| {
            let given = self.options.args.get(name).cloned().or_else(|| platform_arg(name));
            // An `ARG NAME` without a default also takes the value declared before the first stage.
            let bare = args.iter().any(|(arg, default)| arg == name && default.is_none());
            given.or_else(|| current.stages.globals.get(name).filter(|_| bare).cloned())
        };
        current.state.declare(args, self.escape, &outside).map_err(|error| Report::new(error.to_string()))
    }

    /// Adds the file, line and instruction to an error.
    pub(super) fn failed(&self, line: &Line, report: Report) -> Report {
        if report.exit_code == 130 {
            return report;
        }
        let parts: Vec<&str> = line.text.split_whitespace().collect();
        let text: String = super::printable(&parts.join(" ")).chars().take(200).collect();
        let place = format!("`{}`, line {}: `{text}`", self.options.file.name, line.number);
        report.under(place).with_exit_code(1)
    }

    /// Begins the step that loads a further context.
    pub(super) fn begin_context(&mut self, name: &str) {
        self.number += 1;
        let text = format!("context {name}");
        self.output.begin(&StepName { number: self.number, total: self.total, stage: "", text: &text });
    }

    fn begin(&mut self, stages: &Stages<'_>, at: usize, text: &str) {
        self.number += 1;
        let stage = if stages.all.len() > 1 { stages.all[at].label.as_str() } else { "" };
        self.output.begin(&StepName { number: self.number, total: self.total, stage, text });
    }

    /// Runs one step that may make a layer, or takes its result from the cache.
    pub(super) fn step(&mut self, state: &mut State, key: &Key, make: Make<'_, Self>) -> Result<(), Report> {
        let key = key.digest();
        let _lock = self.cache.lock(&key)?;
        let below = &mut state.document.diff_ids;
        let known = if self.options.no_cache { None } else { self.cache.find(&key) };
        match known {
            Some(Made::Nothing) => {
                self.cached += 1;
                self.output.cached();
                return Ok(());
            }
            Some(Made::Layer(layer)) => {
                if let Ok(layer) = layer.parse::<Digest>() {
                    below.push(layer);
                    if self.pins.chain(below)? {
                        self.cached += 1;
                        self.output.cached();
                        return Ok(());
                    }
                    below.pop();
                }
            }
            _ => {}
        }
        super::point::point("build-locked");
        let mut draft = self.pins.draft()?;
        let layer = make(self, &mut draft, below)?;
        super::point::point("build-made");
        let made = match layer {
            None => Made::Nothing,
            Some(layer) => {
                below.push(layer);
                draft.commit(&anchor(below), &[], true)?;
                Made::Layer(layer.to_string())
            }
        };
        super::point::point("build-committed");
        self.cache.remember(&key, &made)?;
        super::point::point("build-remembered");
        self.output.done();
        Ok(())
    }

    /// The start of a cache key for a step on these layers.
    pub(super) fn key(&self, what: &str, diff_ids: &[Digest]) -> Key {
        let mut key = Key::new(what);
        key.add(merge::chain_id(diff_ids).hex()).add(format!("{:?}", self.options.clamp));
        key
    }

    /// An image with exactly these layers and an empty config, for a `RUN` to run on. It cannot be removed while the
    /// returned lock is held.
    pub(super) fn anchor(&self, diff_ids: &[Digest]) -> Result<(Digest, FileLock), Report> {
        let document = anchor(diff_ids);
        let id = crate::image::digest_of(&document.bytes());
        loop {
            let hold = self.store.hold()?;
            if self.store.contains(&id.to_string())? {
                return Ok((id, hold));
            }
            drop(hold);
            self.pins.draft()?.commit(&document, &[], true)?;
        }
    }

    /// The merged tree of these layers.
    pub(super) fn tree(&mut self, diff_ids: &[Digest]) -> Result<Rc<Merged>, Report> {
        let chain = merge::chain_id(diff_ids);
        if let Some((_, tree)) = self.trees.iter().find(|(known, _)| *known == chain) {
            return Ok(tree.clone());
        }
        let (tree, sources) = self.pins.tree(diff_ids)?;
        let tree = Rc::new((tree, Rc::new(sources)));
        if self.trees.len() >= TREES {
            self.trees.remove(0);
        }
        self.trees.push((chain, tree.clone()));
        Ok(tree)
    }

    /// The layers of the stage or image that `--from` names.
    pub(super) fn layers_from(&mut self, current: &Current<'_>, name: &str) -> Result<Vec<Digest>, Report> {
        if let Some(stage) = current.stages.find(name, current.at) {
            return Ok(self.finished[&stage].document.diff_ids.clone());
        }
        let image = match self.options.named(name) {
            Some((name, NamedContext::Directory(_))) => return Ok(self.contexts[name].document.diff_ids.clone()),
            Some((_, NamedContext::Image(image))) => image,
            None => name,
        };
        Ok(self.base(image).map_err(|report| mistyped(current.stages, current.at, image, false, report))?.diff_ids)
    }

    pub(super) fn expand(&self, state: &State, text: &str) -> Result<String, Report> {
        let variables = state.variables();
        let expander = Expander { escape: self.escape, variables: &variables };
        expander.expand(text).map_err(|error| Report::new(error.to_string()))
    }

    /// Stores the finished image, or returns the existing one if nothing has changed.
    fn image(&mut self, state: State) -> Result<Digest, Report> {
        let mut document = state.document;
        for (name, value) in &self.options.labels {
            document.config.labels.insert(name.clone(), value.clone());
        }
        document.created = String::new();
        let mut key = Key::new("IMAGE");
        key.add(document.bytes()).add(format!("{:?}", self.options.clamp));
        let key = key.digest();
        let _lock = self.cache.lock(&key)?;
        if !self.options.no_cache
            && let Some(Made::Image(id)) = self.cache.find(&key)
            && let Ok(id) = id.parse::<Digest>()
            && self.store.contains(&id.to_string())?
        {
            // The names may point to another image by now, so set them again.
            for name in &self.options.names {
                self.store.tag(&id, name)?;
            }
            return Ok(id);
        }
        let seconds = self.options.clamp.unwrap_or_else(now);
        let created = rfc3339(u64::try_from(seconds).unwrap_or(0) * 1_000_000_000);
        document.created.clone_from(&created);
        for history in document.history.iter_mut().filter(|history| history.created.is_empty()) {
            history.created.clone_from(&created);
        }
        super::point::point("build-image");
        let id = self.pins.draft()?.commit(&document, &self.options.names, false)?;
        super::point::point("build-named");
        self.cache.remember(&key, &Made::Image(id.to_string()))?;
        Ok(id)
    }

    /// Warns about each `--build-arg` that no `ARG` declares. It is usually a typing error.
    fn warn_unused(&mut self, file: &parse::File) {
        let declared = |name: &str| {
            file.lines.iter().any(
                |line| matches!(&line.instruction, Instruction::Arg(args) if args.iter().any(|(arg, _)| arg == name)),
            )
        };
        for name in self.options.args.keys() {
            // `BUILDKIT_…` is for the builder itself.
            let known = name == "SOURCE_DATE_EPOCH"
                || name.starts_with("BUILDKIT_")
                || super::PREDEFINED.contains(&name.as_str());
            if !declared(name) && platform_arg(name).is_none() && !known {
                self.output
                    .notice(&format!("`--build-arg {name}` has no effect: the Containerfile has no `ARG {name}`"));
            }
        }
    }
}

/// The config of a stage `FROM scratch`: the working directory is `/`, as in BuildKit.
pub(super) fn from_scratch() -> ImageDocument {
    let mut document = ImageDocument::scratch();
    document.config.working_dir = "/".into();
    document
}

/// Sets a PATH if the image has none, as BuildKit does. Programs copied into an image from scratch are then found by
/// name.
pub(super) fn with_path(mut document: ImageDocument) -> ImageDocument {
    let env = &mut document.config.env;
    if !env.iter().any(|entry| entry.starts_with("PATH=")) {
        env.push(format!("PATH={DEFAULT_PATH}"));
    }
    document
}

fn anchor(diff_ids: &[Digest]) -> ImageDocument {
    ImageDocument { diff_ids: diff_ids.to_vec(), config: Config::default(), ..ImageDocument::scratch() }
}
