//! The keys of the live screen, as crossterm reads them from the terminal.

use ratatui::crossterm::event::{Event, KeyCode, KeyEvent, KeyEventKind, KeyModifiers};

/// A key that means something here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Key {
    Char(char),
    Enter,
    Escape,
    Backspace,
    Delete,
    Left,
    Right,
    Up,
    Down,
    PageUp,
    PageDown,
    Home,
    End,
    /// Ctrl-u
    DeleteLine,
    /// Ctrl-w
    DeleteWord,
    /// Ctrl-l
    Redraw,
}

impl Key {
    /// Returns the key of an event. `None` for a key without a meaning, and for events that are not keys.
    pub(super) fn of(event: &Event) -> Option<Self> {
        let Event::Key(KeyEvent { code, modifiers, kind: KeyEventKind::Press | KeyEventKind::Repeat, .. }) = event
        else {
            return None;
        };
        if modifiers.intersects(KeyModifiers::ALT | KeyModifiers::SUPER | KeyModifiers::META) {
            return None;
        }
        Some(match code {
            // A terminal that is not in raw mode sends ctrl-j for Enter.
            KeyCode::Char('j') if modifiers.contains(KeyModifiers::CONTROL) => Self::Enter,
            KeyCode::Char('u') if modifiers.contains(KeyModifiers::CONTROL) => Self::DeleteLine,
            KeyCode::Char('w') if modifiers.contains(KeyModifiers::CONTROL) => Self::DeleteWord,
            KeyCode::Char('l') if modifiers.contains(KeyModifiers::CONTROL) => Self::Redraw,
            KeyCode::Char('h') if modifiers.contains(KeyModifiers::CONTROL) => Self::Backspace,
            KeyCode::Char(_) if modifiers.contains(KeyModifiers::CONTROL) => return None,
            KeyCode::Char(c) if !c.is_control() => Self::Char(*c),
            KeyCode::Enter => Self::Enter,
            KeyCode::Esc => Self::Escape,
            KeyCode::Backspace => Self::Backspace,
            KeyCode::Delete => Self::Delete,
            KeyCode::Left => Self::Left,
            KeyCode::Right => Self::Right,
            KeyCode::Up => Self::Up,
            KeyCode::Down => Self::Down,
            KeyCode::PageUp => Self::PageUp,
            KeyCode::PageDown => Self::PageDown,
            KeyCode::Home => Self::Home,
            KeyCode::End => Self::End,
            _ => return None,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_become_keys() {
        let control = KeyModifiers::CONTROL;
        for (code, modifiers, expected) in [
            (KeyCode::Char('k'), KeyModifiers::NONE, Some(Key::Char('k'))),
            (KeyCode::Char('K'), KeyModifiers::SHIFT, Some(Key::Char('K'))),
            (KeyCode::Char('\u{9b}'), KeyModifiers::NONE, None),
            (KeyCode::Char('k'), KeyModifiers::ALT, None),
            (KeyCode::Char('k'), control, None),
            (KeyCode::Char('j'), control, Some(Key::Enter)),
            (KeyCode::Char('u'), control, Some(Key::DeleteLine)),
            (KeyCode::Char('w'), control, Some(Key::DeleteWord)),
            (KeyCode::Esc, KeyModifiers::NONE, Some(Key::Escape)),
            (KeyCode::F(1), KeyModifiers::NONE, None),
        ] {
            assert_eq!(Key::of(&Event::Key(KeyEvent::new(code, modifiers))), expected, "{code:?} {modifiers:?}");
        }
        assert_eq!(Key::of(&Event::Resize(80, 24)), None);
        let release = KeyEvent { kind: KeyEventKind::Release, ..KeyEvent::from(KeyCode::Enter) };
        assert_eq!(Key::of(&Event::Key(release)), None);
    }
}
