//! What a command changes. With `--dry-run`, it is printed and not done.

use super::super::{Context, print};
use super::child::{self, Done};
use crate::report::Report;

/// Says what has happened, or what would happen.
pub(super) fn announce(context: &Context, text: &str) {
    match context.dry_run {
        true => print::say(&format!("DRY-RUN MODE - {text}")),
        false => print::say(text),
    }
}

/// Runs a command that changes something, and collects its output.
pub(super) fn run(context: &Context, arguments: &[String]) -> Result<Done, Report> {
    match context.dry_run {
        true => Ok(Done { code: 0, out: String::new(), err: String::new() }),
        false => child::run(context, arguments),
    }
}

/// Runs a command that changes something, and whose messages and progress the caller sees.
pub(super) fn run_shown(context: &Context, arguments: &[String]) -> Result<u8, Report> {
    if context.dry_run { Ok(0) } else { child::run_shown(context, arguments) }
}
