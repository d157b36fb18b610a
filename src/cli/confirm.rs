//! The question before a removal.

use std::io::{self, BufRead, IsTerminal, Read, Write};

use super::print;
use crate::report::Report;

/// The longest answer that is read, in bytes.
const LONGEST: u64 = 1024;

/// Asks on the terminal, or reads the answer from a pipe. `without` is the command that does not ask.
pub(crate) fn confirm(what: &str, without: &str) -> Result<(), Report> {
    let is_terminal = io::stdin().is_terminal();
    if is_terminal {
        print::write_stderr(&format!("Remove {what}? [y/N] "));
    }
    let mut answer = String::new();
    let read = io::stderr().flush().and_then(|()| io::stdin().lock().take(LONGEST).read_line(&mut answer));
    read.map_err(|error| Report::new("cannot read the answer").with_cause(error))?;
    if answer.is_empty() && !is_terminal {
        return Err(Report::usage(format!("cannot ask whether to remove {what}: standard input is not a terminal"))
            .with_hint(format!("skip the question with `{without}`")));
    }
    match answer.trim() {
        "y" | "Y" | "yes" => Ok(()),
        _ => Err(Report::new("nothing was removed").with_exit_code(1)),
    }
}
