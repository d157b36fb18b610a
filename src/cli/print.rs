//! How things look: tables, ages, sizes, JSON.

use std::io::{self, Write};

use serde::Serialize;

use crate::report::Report;
pub use crate::report::say;
pub use crate::units::age as ago;

/// Text for a person, as it is: what [`say`] does for a line.
pub fn tell(text: &str) {
    let _ = io::stderr().lock().write_all(text.as_bytes());
}

/// Columns aligned under their titles, two spaces between them, nothing behind the last one.
pub fn table(titles: &[&str], rows: &[Vec<String>]) -> String {
    let width = |column: usize| {
        rows.iter().map(|row| row[column].chars().count()).chain([titles[column].chars().count()]).max().unwrap_or(0)
    };
    let widths: Vec<usize> = (0..titles.len()).map(width).collect();
    let line = |cells: &mut dyn Iterator<Item = &str>| {
        let mut text = String::new();
        for (cell, width) in cells.zip(&widths) {
            text.push_str(cell);
            text.extend(std::iter::repeat_n(' ', width + 2 - cell.chars().count()));
        }
        text.truncate(text.trim_end().len());
        text.push('\n');
        text
    };
    let mut text = line(&mut titles.iter().copied());
    for row in rows {
        text.push_str(&line(&mut row.iter().map(String::as_str)));
    }
    text
}

/// A paragraph in lines of at most `width` characters, each behind `indent`. A word that is longer stands alone.
pub fn wrapped(text: &str, indent: &str, width: usize) -> String {
    let (mut lines, mut line) = (String::new(), String::new());
    for word in text.split_whitespace() {
        if !line.is_empty() && indent.len() + line.chars().count() + 1 + word.chars().count() > width {
            lines.push_str(&format!("{indent}{line}\n"));
            line.clear();
        }
        if !line.is_empty() {
            line.push(' ');
        }
        line.push_str(word);
    }
    lines + &format!("{indent}{line}\n")
}

/// Writes data to standard output; a reader that went away (`| head`) ends the command quietly.
pub fn out(text: &str) -> Result<(), Report> {
    let mut stdout = io::stdout().lock();
    match stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()) {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        Err(error) => Err(Report::new("cannot write to standard output").with_cause(error)),
        Ok(()) => Ok(()),
    }
}

/// Prints one line of an endless output; a reader that went away ends the command as a pipe does.
pub fn line(text: &str) -> Result<(), Report> {
    let mut stdout = io::stdout().lock();
    match writeln!(stdout, "{text}").and_then(|()| stdout.flush()) {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => std::process::exit(128 + libc::SIGPIPE),
        Err(error) => Err(Report::new("cannot write to standard output").with_cause(error)),
        Ok(()) => Ok(()),
    }
}

/// Prints a value as JSON, readable.
pub fn json(value: &impl Serialize) -> Result<(), Report> {
    let text =
        serde_json::to_string_pretty(value).map_err(|error| Report::new("cannot print as JSON").with_cause(error))?;
    out(&(text + "\n"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables_align() {
        let rows = vec![vec!["a".into(), "bb".into()], vec!["cccc".into(), String::new()]];
        assert_eq!(table(&["X", "Y"], &rows), "X     Y\na     bb\ncccc\n");
    }
}
