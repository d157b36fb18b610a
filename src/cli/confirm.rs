//! The question before a removal.

use std::io::{self, IsTerminal, Write};

use super::print;
use crate::report::Report;

/// Asks on the terminal. `without` is the command that does not ask.
pub(crate) fn confirm(what: &str, without: &str) -> Result<(), Report> {
    if !io::stdin().is_terminal() {
        return Err(Report::usage(format!("cannot ask whether to remove {what}: standard input is not a terminal"))
            .with_hint(format!("skip the question with `{without}`")));
    }
    print::write_stderr(&format!("Remove {what}? [y/N] "));
    let mut answer = String::new();
    let read = io::stderr().flush().and_then(|()| io::stdin().read_line(&mut answer));
    read.map_err(|error| Report::new("cannot read the answer").with_cause(error))?;
    match answer.trim() {
        "y" | "Y" | "yes" => Ok(()),
        _ => Err(Report::new("nothing was removed").with_exit_code(1)),
    }
}
