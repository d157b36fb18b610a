//! Go templates (text/template), as far as docker's `--format` uses them.
//!
//! A template is parsed once and rendered for each row. Supported: fields, variables, literals, pipelines and
//! parentheses, `if`, `range`, `with`, `break`, `continue`, comments, trim markers, Go's functions for text and
//! comparison, and docker's own (`json`, `join`, `split`, `lower`, `upper`, `title`, `pad`, `truncate`). Named templates
//! (`define`, `template`, `block`) are refused.
//!
//! The caller writes the template, and containers and images supply the data. Output is text: the printer escapes it.
//! The nesting of a template is limited, so that no template overflows the stack.

mod error;
mod functions;
mod lex;
mod parse;
mod render;
mod value;

#[cfg(test)]
mod tests;

pub(crate) use error::TemplateError;
pub(crate) use value::Value;

use crate::report::{Explain, Report};
use parse::Node;

/// A parsed template.
#[derive(Debug, Clone)]
pub(crate) struct Template {
    nodes: Vec<Node>,
}

impl Template {
    /// Parses a template.
    pub(crate) fn parse(text: &str) -> Result<Self, TemplateError> {
        Ok(Self { nodes: parse::parse(text)? })
    }

    /// Renders the template. `data` is the value of `.` and `$`.
    pub(crate) fn render(&self, data: &Value) -> Result<String, TemplateError> {
        render::render(&self.nodes, data)
    }

    /// Returns whether the template names a field, so that an expensive field is computed only if it is needed. As in
    /// docker, `{{json .}}` names none.
    #[must_use]
    pub(crate) fn uses(&self, field: &str) -> bool {
        parse::uses(&self.nodes, field)
    }
}

/// Returns an error as a report that quotes the template.
#[must_use]
pub(crate) fn report(template: &str, error: &TemplateError) -> Report {
    Report { hint: error.hint(), ..Report::new(format!("cannot use `--format {template}`: {error}")) }
        .with_exit_code(error.exit_code())
}
