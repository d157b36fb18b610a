//! How things look: tables, ages, sizes, JSON.

use std::io::{self, Write};

use serde::Serialize;

use crate::report::Report;

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

/// "About how long": the largest unit that fits.
pub fn ago(nanos: u64) -> String {
    let seconds = nanos / 1_000_000_000;
    let (count, unit) = match seconds {
        0 => return "less than a second".into(),
        1..60 => (seconds, "second"),
        60..3600 => (seconds / 60, "minute"),
        3600..172_800 => (seconds / 3600, "hour"),
        172_800..1_209_600 => (seconds / 86_400, "day"),
        1_209_600..5_184_000 => (seconds / 604_800, "week"),
        5_184_000..63_072_000 => (seconds / 2_592_000, "month"),
        _ => (seconds / 31_536_000, "year"),
    };
    format!("{count} {unit}{}", if count == 1 { "" } else { "s" })
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

    #[test]
    fn ages_read_well() {
        let seconds = [
            (0, "less than a second"),
            (1, "1 second"),
            (59, "59 seconds"),
            (61, "1 minute"),
            (7200, "2 hours"),
            (200_000, "2 days"),
        ];
        for (seconds, text) in seconds {
            assert_eq!(ago(seconds * 1_000_000_000), text);
        }
    }
}
