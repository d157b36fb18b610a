//! The progress and the result of a build.

use crate::names::Digest;

/// Receives the progress of the build.
pub(crate) trait Output {
    /// A step begins.
    fn begin(&mut self, step: &StepName<'_>);
    /// The step's command wrote these bytes.
    fn log(&mut self, bytes: &[u8]);
    /// Time has passed without output from the step's command.
    fn tick(&mut self);
    /// The step was found in the cache.
    fn cached(&mut self);
    fn done(&mut self);
    /// A line that belongs to no step.
    fn notice(&mut self, line: &str);
}

/// Identifies a step in the progress output.
#[derive(Debug, Clone, Copy)]
pub(crate) struct StepName<'a> {
    pub number: usize,
    pub total: usize,
    /// Empty if the Containerfile has only one stage.
    pub stage: &'a str,
    pub text: &'a str,
}

/// A finished build.
#[derive(Debug, Clone)]
pub(crate) struct Built {
    pub id: Digest,
    pub steps: usize,
    pub cached: usize,
}

/// Removes control sequences from a line of command output, so that it cannot move the caller's cursor.
#[must_use]
pub(crate) fn printable(line: &str) -> String {
    let (mut out, mut chars) = (String::new(), line.chars().peekable());
    while let Some(next) = chars.next() {
        match next {
            '\x1b' if chars.peek() == Some(&'[') => {
                chars.next();
                while chars.next().is_some_and(|c| !('@'..='~').contains(&c)) {}
            }
            '\t' => out.push_str("    "),
            next if next.is_control() => {}
            next => out.push(next),
        }
    }
    out
}
