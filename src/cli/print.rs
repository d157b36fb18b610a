//! Output formatting: tables, ages, sizes, JSON.

use std::borrow::Cow;
use std::io::{self, Write};

use serde::Serialize;

use crate::report::{self, Report, is_obeyed, printable, printable_line};
pub(crate) use crate::units::table_age as ago;

/// Returns a path as a shell takes it, for commands in hints.
#[must_use]
pub(crate) fn quoted(path: &str) -> Cow<'_, str> {
    let is_plain = !path.is_empty() && path.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"/._-".contains(&byte));
    if is_plain { Cow::Borrowed(path) } else { format!("'{}'", path.replace('\'', r"'\''")).into() }
}

/// Prints a line on standard error and wraps it if standard error is a terminal.
pub(super) fn say(line: &str) {
    match crate::sys::tty::window_size(io::stderr()) {
        Some((_, columns)) if columns > 0 => report::say(&fitted(line, columns.into())),
        _ => report::say(line),
    }
}

/// Wraps text into lines of at most `width` characters. Continuation lines are aligned with the text after `error: ` or
/// `hint: `. A literal in backticks is never split, so that it can be copied. If it is longer than a line, it gets its
/// own line.
fn fitted(text: &str, width: usize) -> String {
    let lines =
        text.split('\n').map(|line| if line.chars().count() <= width { line.to_owned() } else { fold(line, width) });
    lines.collect::<Vec<_>>().join("\n")
}

fn fold(line: &str, width: usize) -> String {
    let blanks = line.len() - line.trim_start().len();
    let label = line.split_once(": ").map_or(0, |(label, _)| label.len() + 2);
    let indent = " ".repeat(if (1..=20).contains(&label) && !line[..label].contains('`') { label } else { blanks });
    let (mut lines, mut current, mut length) = (Vec::new(), " ".repeat(blanks), blanks);
    let mut is_start = true;
    for piece in pieces(line.trim_start()) {
        let count = piece.chars().count();
        if !is_start && length + 1 + count > width {
            lines.push(std::mem::replace(&mut current, indent.clone()));
            (length, is_start) = (indent.len(), true);
        }
        if !is_start {
            current.push(' ');
            length += 1;
        }
        current.push_str(piece);
        (length, is_start) = (length + count, false);
    }
    lines.push(current);
    lines.join("\n")
}

/// Splits text into words. Text in backticks counts as one word.
pub(super) fn pieces(text: &str) -> Vec<&str> {
    let (mut all, mut begin, mut quoted) = (Vec::new(), 0, false);
    for (at, letter) in text.char_indices() {
        match letter {
            '`' => quoted = !quoted,
            ' ' if !quoted => {
                all.push(&text[begin..at]);
                begin = at + 1;
            }
            _ => {}
        }
    }
    all.push(&text[begin..]);
    all.retain(|piece| !piece.is_empty());
    all
}

/// Prints text on standard error without wrapping.
pub(super) fn write_stderr(text: &str) {
    let _ = io::stderr().lock().write_all(text.as_bytes());
}

/// The width of a column with its gap, as docker has it. `longest` is the length of its longest cell.
pub(super) fn column_width(longest: usize) -> usize {
    10.max(longest + 3)
}

/// Formats a table with docker's spacing, without trailing spaces.
pub(super) fn table(titles: &[&str], rows: &[Vec<String>]) -> String {
    spaced(titles, rows, column_width)
}

/// Formats a table whose columns are separated by two spaces, for tables that may be wider than the terminal.
pub(super) fn compact_table(titles: &[&str], rows: &[Vec<String>]) -> String {
    spaced(titles, rows, |longest| longest + 2)
}

fn spaced(titles: &[&str], rows: &[Vec<String>], full_width: impl Fn(usize) -> usize) -> String {
    let rows: Vec<Vec<_>> = rows.iter().map(|row| row.iter().map(|cell| printable_line(cell)).collect()).collect();
    let width = |column: usize| {
        rows.iter().map(|row| row[column].chars().count()).chain([titles[column].chars().count()]).max().unwrap_or(0)
    };
    let widths: Vec<usize> = (0..titles.len()).map(|column| full_width(width(column))).collect();
    let line = |cells: &mut dyn Iterator<Item = &str>| {
        let mut text = String::new();
        for (cell, width) in cells.zip(&widths) {
            text.push_str(cell);
            text.extend(std::iter::repeat_n(' ', width - cell.chars().count()));
        }
        text.truncate(text.trim_end().len());
        text.push('\n');
        text
    };
    let mut text = line(&mut titles.iter().copied());
    for row in &rows {
        text.push_str(&line(&mut row.iter().map(|cell| &**cell)));
    }
    text
}

/// Prints a table on standard output. On a terminal that is narrower than the table, cells continue on additional
/// lines.
pub(super) fn show_table(titles: &[&str], rows: &[Vec<String>]) -> Result<(), Report> {
    show_rows(titles, rows, false)
}

/// Returns a table without the line of its titles if they are not wanted.
pub(super) fn headed(text: String, noheading: bool) -> String {
    match text.split_once('\n') {
        Some((_, rows)) if noheading => rows.to_owned(),
        _ => text,
    }
}

/// The same, without titles if they are not wanted.
pub(super) fn show_rows(titles: &[&str], rows: &[Vec<String>], noheading: bool) -> Result<(), Report> {
    let width =
        crate::sys::tty::window_size(io::stdout()).map(|(_, columns)| usize::from(columns)).filter(|width| *width > 0);
    let text = width.map_or_else(|| table(titles, rows), |width| table_within(titles, rows, width));
    out(&headed(text, noheading))
}

/// The minimum width of a column that is narrowed to fit the terminal. The first column, which names the row, keeps its
/// width.
const NARROWEST: usize = 8;

fn table_within(titles: &[&str], rows: &[Vec<String>], width: usize) -> String {
    let text = table(titles, rows);
    if text.lines().all(|line| line.chars().count() <= width) {
        return text;
    }
    let rows: Vec<Vec<String>> =
        rows.iter().map(|row| row.iter().map(|cell| printable_line(cell).into_owned()).collect()).collect();
    let rows = &rows[..];
    let length = |text: &str| text.chars().count();
    let natural =
        |column: usize| rows.iter().map(|row| length(&row[column])).chain([length(titles[column])]).max().unwrap_or(0);
    let mut widths: Vec<usize> = (0..titles.len()).map(natural).collect();
    // Break between words first, and within words if that is not sufficient.
    let word = |column: usize| {
        let cells = rows.iter().map(|row| row[column].as_str());
        cells.flat_map(|cell| cell.split(' ')).map(length).max().unwrap_or(0).max(length(titles[column]))
    };
    narrow(&mut widths, width, word);
    narrow(&mut widths, width, |column| NARROWEST.max(length(titles[column])));
    let mut lines = Vec::new();
    for row in rows {
        let cells: Vec<Vec<String>> = row.iter().zip(&widths).map(|(cell, width)| cell_lines(cell, *width)).collect();
        let height = cells.iter().map(Vec::len).max().unwrap_or(1);
        lines.extend(
            (0..height).map(|line| cells.iter().map(|cell| cell.get(line).cloned().unwrap_or_default()).collect()),
        );
    }
    compact_table(titles, &lines)
}

/// Narrows the widest columns until all columns fit. No column becomes narrower than its minimum width.
fn narrow(widths: &mut [usize], width: usize, least: impl Fn(usize) -> usize) {
    let gaps = 2 * widths.len().saturating_sub(1);
    while widths.iter().sum::<usize>() + gaps > width {
        let columns = (1..widths.len()).filter(|&column| widths[column] > least(column));
        let Some(widest) = columns.max_by_key(|&column| widths[column]) else { return };
        widths[widest] -= 1;
    }
}

/// Returns the position at which to break a word: after a punctuation mark in the second half of the available width,
/// or at the available width.
fn break_at(word: &[char], space: usize) -> usize {
    if word.len() <= space {
        return word.len();
    }
    let mark = |at: &usize| matches!(word[*at - 1], '-' | '>' | '/' | ':' | ',' | '.' | '_') && word[*at] != '>';
    (space / 2 + 1..=space).rev().find(mark).unwrap_or(space)
}

/// Splits the text of a cell into lines of at most `width` characters, at spaces or within words that are too long.
fn cell_lines(text: &str, width: usize) -> Vec<String> {
    let mut lines = vec![String::new()];
    for word in text.split(' ') {
        let mut rest: Vec<char> = word.chars().collect();
        let line = lines.last_mut().expect("it begins with one");
        let used = line.chars().count();
        if used > 0 && used + 1 + rest.len() <= width {
            line.push(' ');
        } else if used > 0 {
            lines.push(String::new());
        }
        loop {
            let line = lines.last_mut().expect("it begins with one");
            let space = width.saturating_sub(line.chars().count()).max(1);
            let next = rest.split_off(break_at(&rest, space));
            line.extend(&rest);
            if next.is_empty() {
                break;
            }
            rest = next;
            lines.push(String::new());
        }
    }
    lines
}

/// The text width without a terminal, in columns.
pub(super) const WIDTH: usize = 80;

/// Returns the width of the terminal on standard output or standard error, or else the value of COLUMNS. Returns `None`
/// if neither is available.
pub(super) fn width() -> Option<usize> {
    let terminal = crate::sys::tty::window_size(io::stdout()).or_else(|| crate::sys::tty::window_size(io::stderr()));
    let columns = || std::env::var("COLUMNS").ok()?.parse().ok();
    terminal.map(|(_, columns)| usize::from(columns)).or_else(columns).filter(|columns| *columns > 0)
}

/// Wraps a paragraph into lines of at most `width` characters, each starting with `indent`. A word that is too long
/// gets its own line.
pub(super) fn wrapped(text: &str, indent: &str, width: usize) -> String {
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

/// Writes text for users to standard output and escapes terminal control characters.
pub(super) fn out(text: &str) -> Result<(), Report> {
    raw(&printable(text))
}

const BOLD: &str = "\x1b[1m";
const PLAIN: &str = "\x1b[0m";

/// Returns bold text, for [`styled`].
#[must_use]
pub(super) fn bold(text: &str) -> String {
    format!("{BOLD}{text}{PLAIN}")
}

/// Does the same as [`out`] for text that contains [`bold`] parts.
pub(super) fn styled(text: &str) -> Result<(), Report> {
    let plain = |part: &str| part.split(PLAIN).map(|part| printable(part).into_owned()).collect::<Vec<_>>().join(PLAIN);
    raw(&text.split(BOLD).map(plain).collect::<Vec<_>>().join(BOLD))
}

/// Writes data to standard output unchanged. If the reader has closed the pipe (`| head`), the command ends without an
/// error.
pub(super) fn raw(text: &str) -> Result<(), Report> {
    let mut stdout = io::stdout().lock();
    match stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()) {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        Err(error) => Err(Report::new("cannot write to standard output").with_cause(error)),
        Ok(()) => Ok(()),
    }
}

/// Prints one line of an endless output. If the reader has closed the pipe, the command exits as if by SIGPIPE.
pub(super) fn line(text: &str) -> Result<(), Report> {
    raw_line(&printable_line(text))
}

/// Prints a JSON value on one line.
pub(super) fn json_line(value: &impl Serialize) -> Result<(), Report> {
    let text = serde_json::to_string(value).map_err(|error| Report::new("cannot print as JSON").with_cause(error))?;
    raw_line(&ascii_controls(&text))
}

/// Does the same as [`line`] for text that contains terminal control sequences.
pub(super) fn raw_line(text: &str) -> Result<(), Report> {
    let mut stdout = io::stdout().lock();
    match writeln!(stdout, "{text}").and_then(|()| stdout.flush()) {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => std::process::exit(128 + libc::SIGPIPE),
        Err(error) => Err(Report::new("cannot write to standard output").with_cause(error)),
        Ok(()) => Ok(()),
    }
}

/// Prints a value as indented JSON.
pub(super) fn json(value: &impl Serialize) -> Result<(), Report> {
    let text =
        serde_json::to_string_pretty(value).map_err(|error| Report::new("cannot print as JSON").with_cause(error))?;
    raw(&(ascii_controls(&text) + "\n"))
}

/// Escapes the control characters that serde_json does not escape (DEL, C1, bidirectional controls). They occur only in
/// strings, where `\uXXXX` is equivalent.
pub(super) fn ascii_controls(json: &str) -> String {
    let mut out = String::with_capacity(json.len());
    for c in json.chars() {
        match c {
            '\n' => out.push(c),
            c if is_obeyed(c) => out.push_str(&format!("\\u{:04x}", c as u32)),
            c => out.push(c),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_are_wrapped_to_the_terminal_and_literals_stay_whole() {
        let text = "error: cannot enforce `--memory`: the cgroup controller `memory` is not available below this \
                    cgroup\n  caused by: there is no file with that name in the directory that was looked \
                    at\n\nhint: free the cgroup with `echo '+memory' > /sys/fs/cgroup/cgroup.subtree_control`, or \
                    leave the limit out";
        insta::assert_snapshot!(fitted(text, 60), @r"
        error: cannot enforce `--memory`: the cgroup controller
               `memory` is not available below this cgroup
          caused by: there is no file with that name in the
                     directory that was looked at

        hint: free the cgroup with
              `echo '+memory' > /sys/fs/cgroup/cgroup.subtree_control`,
              or leave the limit out
        ");
        assert!(fitted(text, 60).contains("`echo '+memory' > /sys/fs/cgroup/cgroup.subtree_control`"));
        assert_eq!(fitted(text, 200), text);
    }

    #[test]
    fn a_wide_table_continues_in_its_cells() {
        let row = |name: &str, ports: &str| {
            vec!["0123456789ab".into(), name.to_owned(), "Up 2 minutes".into(), ports.to_owned()]
        };
        let rows = [row("lab", "0.0.0.0:18000-18005->18000-18005/tcp, 0.0.0.0:19000->80/tcp"), row("x", "")];
        let text = table_within(&["ID", "NAME", "STATUS", "PORTS"], &rows, 60);
        assert!(text.lines().all(|line| line.chars().count() <= 60), "{text}");
        insta::assert_snapshot!(text, @r"
        ID            NAME  STATUS   PORTS
        0123456789ab  lab   Up 2     0.0.0.0:18000-18005->18000-
                            minutes  18005/tcp,
                                     0.0.0.0:19000->80/tcp
        0123456789ab  x     Up 2
                            minutes
        ");
        assert_eq!(
            table_within(&["ID", "NAME", "STATUS", "PORTS"], &rows, 120),
            table(&["ID", "NAME", "STATUS", "PORTS"], &rows)
        );
        assert_eq!(cell_lines("aaaa bb cccccccc", 5), ["aaaa", "bb", "ccccc", "ccc"]);
        assert_eq!(cell_lines("", 5), [""]);
    }

    #[test]
    fn tables_align() {
        let rows = vec![vec!["a".into(), "bb".into()], vec!["cccc".into(), String::new()]];
        assert_eq!(table(&["X", "Y"], &rows), "X         Y\na         bb\ncccc\n");
        assert_eq!(compact_table(&["X", "Y"], &rows), "X     Y\na     bb\ncccc\n");
        let hostile = vec![vec!["a\n\x1b[2J".into(), "b".into()]];
        assert_eq!(table(&["X", "Y"], &hostile), "X            Y\na\\n\\x1b[2J   b\n");
    }

    #[test]
    fn json_says_the_same_without_controls() {
        let value = serde_json::json!({ "a\u{9b}\u{7f}": "\x1b\u{202e}ü\n" });
        let text = ascii_controls(&serde_json::to_string_pretty(&value).unwrap());
        assert!(!text.contains(|c: char| c != '\n' && is_obeyed(c)), "{text:?}");
        assert_eq!(serde_json::from_str::<serde_json::Value>(&text).unwrap(), value);
    }
}
