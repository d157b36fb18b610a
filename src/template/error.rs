//! Errors of a template.

use crate::report::Explain;

/// Why a template cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum TemplateError {
    #[error("the template is not complete: {0}")]
    Syntax(String),
    #[error("`{at}`: {why}")]
    Render { at: String, why: String },
}

impl Explain for TemplateError {
    fn hint(&self) -> Option<String> {
        Some(match self {
            Self::Syntax(_) => "templates have the syntax of docker's `--format`: `{{.Name}}`, `{{json .}}`".into(),
            Self::Render { .. } => "list the fields with `--format '{{json .}}'`".into(),
        })
    }

    fn exit_code(&self) -> u8 {
        match self {
            Self::Syntax(_) => crate::report::EXIT_USAGE,
            Self::Render { .. } => 1,
        }
    }
}
