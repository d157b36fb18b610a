//! Checks instructions before the first step is executed, as BuildKit does: their values and flags, the stages and the files
//! of the context that they name. An error in the last line then does not take the time of all steps before it.
//!
//! The variables of a base image are known only when the image is here. Until then, an error that a variable may cause is left
//! for the second check, which is made when the stage begins.

use std::collections::{BTreeMap, BTreeSet};

use super::budget;
use super::copy_step::Arguments;
use super::engine::{Current, Engine, from_scratch, with_path};
use super::mount::Mount;
use super::parse::{Instruction, Line};
use super::stages::{Base, Stages};
use super::state::State;
use crate::image::ImageDocument;
use crate::report::Report;

impl Engine<'_> {
    /// Checks the stages that will be built, before any image is pulled.
    pub(super) fn check_all(&self, stages: &Stages<'_>, needed: &BTreeSet<usize>) -> Result<(), Report> {
        let mut states: BTreeMap<usize, (State, bool)> = BTreeMap::new();
        for at in needed {
            let (state, is_known) = match &stages.all[*at].base {
                Base::Scratch => (State::new(with_path(from_scratch())), true),
                Base::Stage(base) => states[base].clone(),
                Base::Context(_) => (State::new(with_path(ImageDocument::scratch())), true),
                Base::Image(_) => (State::new(with_path(ImageDocument::scratch())), false),
            };
            let mut current = Current { stages, at: *at, state };
            for line in stages.all[*at].lines {
                self.check_line(&mut current, line, is_known)?;
            }
            states.insert(*at, (current.state, is_known));
        }
        Ok(())
    }

    /// Checks the lines of a stage, whose variables are known now.
    pub(super) fn check_stage(&self, current: &Current<'_>, triggers: &[Line]) -> Result<(), Report> {
        let mut current = Current { stages: current.stages, at: current.at, state: current.state.clone() };
        let lines = current.stages.all[current.at].lines;
        triggers.iter().chain(lines).try_for_each(|line| self.check_line(&mut current, line, true))
    }

    fn check_line(&self, current: &mut Current<'_>, line: &Line, is_known: bool) -> Result<(), Report> {
        let checked = self.check_instruction(current, &line.instruction).and_then(|()| budget::check(&current.state));
        match checked {
            Err(_) if !is_known && line.text.contains('$') => Ok(()),
            checked => checked.map_err(|report| self.failed(line, report)),
        }
    }

    fn check_instruction(&self, current: &mut Current<'_>, instruction: &Instruction) -> Result<(), Report> {
        let state = &current.state;
        match instruction {
            Instruction::Arg(args) => self.declare(current, args),
            Instruction::Run { flags, .. } => {
                let (mounts, _) = self.run_flags(state, flags)?;
                mounts.iter().try_for_each(|mount| match mount {
                    Mount::Bind { from: Some(name), .. } | Mount::Cache { from: Some(name), .. } => {
                        self.check_from(current, name)
                    }
                    Mount::Bind { from: None, source, .. } => self.check_source(source),
                    _ => Ok(()),
                })
            }
            Instruction::Copy(copy) => {
                let arguments = Arguments::read(self, state, copy)?;
                match arguments.from() {
                    Some(name) => self.check_from(current, name),
                    None => arguments.of_context().try_for_each(|source| self.check_source(source)),
                }
            }
            Instruction::Workdir(path) => {
                let path = self.expand(state, path)?;
                current.state.document.config.working_dir = state.path(&path);
                Ok(())
            }
            other => current.state.apply(other, self.escape).map(drop).map_err(|error| Report::new(error.to_string())),
        }
    }

    /// Checks that a source of the context exists.
    fn check_source(&self, source: &str) -> Result<(), Report> {
        self.context.as_ref().map_or(Ok(()), |context| Ok(context.check(source)?))
    }

    /// Checks the stage or image that `--from` names.
    fn check_from(&self, current: &Current<'_>, name: &str) -> Result<(), Report> {
        if current.stages.find(name, current.at).is_some() || self.options.named(name).is_some() {
            return Ok(());
        }
        let own = &current.stages.all[current.at];
        if current.stages.find(name, current.at + 1).is_some() {
            let report = Report::new(format!("the stage `{}` copies from itself", own.label));
            return Err(match current.stages.before(current.at) {
                Some(names) => report.with_hint(format!("name an earlier stage: {names}, or an image")),
                None => report.with_hint("name an image, or a stage that comes earlier in the file"),
            });
        }
        // A number always means a stage. An image with such a name could come from any registry.
        if !name.is_empty() && name.len() < 6 && name.bytes().all(|byte| byte.is_ascii_digit()) {
            return Err(Report::new(format!("cannot find stage {name} before this one: the first stage is 0")));
        }
        Ok(())
    }
}
