//! A line of text that the user types: the filter, or the flags of an update.

use super::keys::Key;

/// The longest text that can be typed.
const LONGEST: usize = 1000;

/// The text and the position of the cursor, in characters.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub(super) struct Line {
    text: Vec<char>,
    cursor: usize,
}

impl Line {
    /// A line with this text, and the cursor at its end.
    pub(super) fn of(text: &str) -> Self {
        let text: Vec<char> = text.chars().collect();
        Self { cursor: text.len(), text }
    }

    pub(super) fn text(&self) -> String {
        self.text.iter().collect()
    }

    /// The text before the cursor.
    pub(super) fn before_cursor(&self) -> String {
        self.text[..self.cursor].iter().collect()
    }

    /// Edits the line. Keys that do not edit have no effect.
    pub(super) fn edit(&mut self, key: Key) {
        match key {
            Key::Char(c) if self.text.len() < LONGEST => {
                self.text.insert(self.cursor, c);
                self.cursor += 1;
            }
            Key::Backspace if self.cursor > 0 => {
                self.cursor -= 1;
                self.text.remove(self.cursor);
            }
            Key::Delete if self.cursor < self.text.len() => drop(self.text.remove(self.cursor)),
            Key::Left => self.cursor = self.cursor.saturating_sub(1),
            Key::Right => self.cursor = (self.cursor + 1).min(self.text.len()),
            Key::Home => self.cursor = 0,
            Key::End => self.cursor = self.text.len(),
            Key::DeleteLine => *self = Self::default(),
            Key::DeleteWord => {
                let is_space = |at: &usize| self.text[*at - 1] == ' ';
                let word_end = (1..=self.cursor).rev().find(|at| !is_space(at)).unwrap_or(0);
                let start = (1..=word_end).rev().find(is_space).unwrap_or(0);
                self.text.drain(start..self.cursor);
                self.cursor = start;
            }
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_edit_a_line() {
        let mut line = Line::of("--cpus 3");
        for (key, text, cursor) in [
            (Key::Backspace, "--cpus ", 7),
            (Key::Char('ü'), "--cpus ü", 8),
            (Key::Left, "--cpus ü", 7),
            (Key::Char('1'), "--cpus 1ü", 8),
            (Key::Delete, "--cpus 1", 8),
            (Key::Delete, "--cpus 1", 8),
            (Key::Right, "--cpus 1", 8),
            (Key::Home, "--cpus 1", 0),
            (Key::Backspace, "--cpus 1", 0),
            (Key::Left, "--cpus 1", 0),
            (Key::Delete, "-cpus 1", 0),
            (Key::End, "-cpus 1", 7),
            (Key::Char(' '), "-cpus 1 ", 8),
            (Key::DeleteWord, "-cpus ", 6),
            (Key::DeleteWord, "", 0),
            (Key::DeleteWord, "", 0),
            (Key::Char('a'), "a", 1),
            (Key::DeleteLine, "", 0),
        ] {
            line.edit(key);
            assert_eq!((line.text().as_str(), line.before_cursor().chars().count()), (text, cursor), "{key:?}");
        }
        let mut long = Line::of(&"x".repeat(LONGEST));
        long.edit(Key::Char('y'));
        assert_eq!(long.text().len(), LONGEST);
    }
}
