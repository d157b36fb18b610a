//! The further contexts of a build (`--build-context`): images, and directories of this host.
//!
//! The name of a context stands for it in `FROM`, `COPY --from` and `RUN --mount=…,from=`, also where a stage has the
//! name. A directory becomes a layer, as if a stage had copied it to an empty image, so that everything that reads a stage
//! reads it too. Its `.dockerignore` applies.

use std::path::Path;

use super::Options;
use super::context::{Context, Place};
use super::copy::{Plan, Target};
use super::copy_source::CopySource;
use super::engine::Engine;
use super::ignore::Filter;
use super::options::NamedContext;
use super::stages::{Base, Stages};
use super::state::State;
use crate::image::ImageDocument;
use crate::report::Report;

impl Options {
    /// The context that a name stands for.
    pub(super) fn named(&self, name: &str) -> Option<(&str, &NamedContext)> {
        let found = self.contexts.iter().find(|(known, _)| known.eq_ignore_ascii_case(name));
        found.map(|(name, context)| (name.as_str(), context))
    }

    /// The number of contexts that are directories.
    pub(super) fn directories(&self) -> usize {
        self.contexts.values().filter(|context| matches!(context, NamedContext::Directory(_))).count()
    }
}

impl Stages<'_> {
    /// Lets the names of contexts stand for them.
    pub(super) fn replace(&mut self, options: &Options) {
        let names: Vec<Option<String>> = self.all.iter().map(|stage| stage.name.clone()).collect();
        for stage in &mut self.all {
            let name = match &stage.base {
                Base::Image(name) => Some(name.as_str()),
                Base::Stage(at) => names[*at].as_deref(),
                Base::Scratch | Base::Context(_) => None,
            };
            match name.and_then(|name| options.named(name)) {
                Some((_, NamedContext::Image(image))) => stage.base = Base::Image(image.clone()),
                Some((name, NamedContext::Directory(_))) => stage.base = Base::Context(name.to_owned()),
                None => {}
            }
        }
        self.contexts = options.contexts.keys().map(|name| name.to_ascii_lowercase()).collect();
    }
}

impl Engine<'_> {
    /// Makes layers of the directories that the build may read.
    pub(super) fn load_contexts(&mut self) -> Result<(), Report> {
        let options = self.options;
        for (name, context) in &options.contexts {
            let NamedContext::Directory(path) = context else { continue };
            self.begin_context(name);
            let state =
                self.load(path).map_err(|report| report.under(format!("cannot use the build context `{name}`")))?;
            self.budget.keep(&state)?;
            self.contexts.insert(name.clone(), state);
        }
        Ok(())
    }

    fn load(&mut self, path: &Path) -> Result<State, Report> {
        let context = Context::open(path, &Place::StandardInput)?;
        let sources: Vec<CopySource> =
            context.select("", &Filter::default())?.into_iter().map(CopySource::from_context).collect();
        let mut state = State::new(ImageDocument::scratch());
        let mut key = self.key("CONTEXT", &[]);
        CopySource::add_to(&sources, &mut key);
        let mut sources = Some(sources);
        // The step reads the files from this context.
        let own = self.context.replace(context);
        let done = self.step(&mut state, &key, &mut |engine, draft, below| {
            let merged = engine.tree(below)?;
            let clamp = engine.options.clamp;
            let target = Target { tree: &merged.0, destination: "/", several: false, owner: None, mode: None, clamp };
            let mut plan = Plan::default();
            plan.add(sources.take().unwrap_or_default(), &target)?;
            engine.write(plan, draft)
        });
        self.context = own;
        done.map(|()| state)
    }
}
