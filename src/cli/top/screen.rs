//! The loop of the live screen: it waits for keys, signals, samples and messages, and draws what has changed.

use std::io;
use std::os::fd::AsFd;
use std::time::Duration;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::Signal;
use nix::sys::signalfd::SignalFd;
use ratatui::crossterm::event;

use super::keys::Key;
use super::model::{Effect, Model};
use super::terminal::{Screen, take_signals};
use super::view::{self, Look};
use super::workers::{Message, Workers};
use crate::cli::Context;
use crate::report::Report;

/// Shows the screen until a key or a signal ends it. Returns the exit code.
pub(super) fn run(context: &Context, interval: Duration) -> Result<u8, Report> {
    // Cleans up after dead supervisors first, as every command does.
    context.records()?;
    let signals = take_signals()?;
    let screen = Screen::open()?;
    let workers = Workers::start(context, interval)?;
    let look = Look {
        is_ascii: !is_utf8(|key| std::env::var(key).ok()),
        interval: interval.as_secs_f64(),
        clock: String::new(),
    };
    Top { screen, workers, signals, look, model: Model::default() }.run()
}

/// Whether the locale's encoding is UTF-8 (locale(7)).
fn is_utf8(variable: impl Fn(&str) -> Option<String>) -> bool {
    let first = ["LC_ALL", "LC_CTYPE", "LANG"].iter().find_map(|key| variable(key).filter(|value| !value.is_empty()));
    first.is_some_and(|value| value.to_ascii_lowercase().replace('-', "").contains("utf8"))
}

struct Top {
    screen: Screen,
    workers: Workers,
    signals: SignalFd,
    look: Look,
    model: Model,
}

/// What can be read without waiting.
#[derive(Debug, Clone, Copy, Default)]
struct Ready {
    keys: bool,
    /// The terminal no longer exists.
    hung_up: bool,
    signals: bool,
    messages: bool,
    notes: bool,
}

impl Top {
    fn run(mut self) -> Result<u8, Report> {
        loop {
            self.draw()?;
            let ready = self.wait()?;
            if ready.signals
                && let Some(code) = self.take_signal()?
            {
                return Ok(code);
            }
            if ready.hung_up {
                return Ok(128 + Signal::SIGHUP as u8);
            }
            if ready.messages {
                self.take_messages()?;
            }
            if ready.notes {
                let text = self.screen.read_notes();
                self.model.say(text);
            }
            if ready.keys && self.take_keys()? {
                return Ok(0);
            }
        }
    }

    fn draw(&mut self) -> Result<(), Report> {
        self.look.clock = chrono::Local::now().format("%H:%M:%S").to_string();
        let (model, look) = (&mut self.model, &self.look);
        let drawn = self.screen.draw(|frame| {
            if let Some(cursor) = view::draw(model, look, frame.buffer_mut()) {
                frame.set_cursor_position(cursor);
            }
        });
        drawn.map_err(|error| Report::new("cannot write to the terminal").with_cause(error))
    }

    /// Waits until there is something to do.
    fn wait(&self) -> Result<Ready, Report> {
        let stdin = io::stdin();
        let readable = |fd| PollFd::new(fd, PollFlags::POLLIN);
        let mut fds =
            vec![readable(stdin.as_fd()), readable(self.signals.as_fd()), readable(self.workers.wake().as_fd())];
        fds.extend(self.screen.notes().map(readable));
        match poll(&mut fds, PollTimeout::NONE) {
            Ok(_) => {}
            Err(nix::Error::EINTR) => return Ok(Ready::default()),
            Err(errno) => return Err(Report::new("cannot wait for keys").with_cause(errno)),
        }
        let events = |at: usize| fds.get(at).and_then(PollFd::revents).unwrap_or(PollFlags::empty());
        Ok(Ready {
            keys: events(0).contains(PollFlags::POLLIN),
            hung_up: events(0).intersects(PollFlags::POLLHUP | PollFlags::POLLERR | PollFlags::POLLNVAL),
            signals: !events(1).is_empty(),
            messages: !events(2).is_empty(),
            notes: events(3).contains(PollFlags::POLLIN),
        })
    }

    /// Handles the signals. Returns the exit code if one of them ends the screen.
    fn take_signal(&mut self) -> Result<Option<u8>, Report> {
        while let Ok(Some(info)) = self.signals.read_signal() {
            match Signal::try_from(info.ssi_signo as i32) {
                // The next frame has the new size.
                Ok(Signal::SIGWINCH) | Err(_) => {}
                Ok(Signal::SIGTSTP) => self.screen.suspend(&self.signals)?,
                // After SIGSTOP, the shell has set its own modes.
                Ok(Signal::SIGCONT) => self.screen.enter_again()?,
                Ok(signal) => return Ok(Some(128 + signal as u8)),
            }
        }
        Ok(None)
    }

    fn take_messages(&mut self) -> Result<(), Report> {
        for message in self.workers.messages() {
            match message {
                Message::Sample(snapshot) => self.model.update(snapshot),
                Message::Failed(report) => self.model.fail(&report),
                Message::Done { id, result } => self.model.finished(&id, result),
                Message::Panicked => {
                    return Err(Report::new("the live screen ended because one of its threads panicked"));
                }
            }
        }
        Ok(())
    }

    /// Handles the keys that have been pressed. Returns whether one of them ends the screen.
    fn take_keys(&mut self) -> Result<bool, Report> {
        let failed = |error: io::Error| Report::new("cannot read the keys").with_cause(error);
        while event::poll(Duration::ZERO).map_err(failed)? {
            let Some(key) = Key::of(&event::read().map_err(failed)?) else { continue };
            match self.model.key(key) {
                None => {}
                Some(Effect::Quit) => return Ok(true),
                Some(Effect::Redraw) => self.screen.clear().map_err(failed)?,
                Some(Effect::Perform(action)) => self.workers.perform(action)?,
            }
        }
        Ok(false)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_locale_says_whether_the_terminal_shows_unicode() {
        for (variables, expected) in [
            (&[("LANG", "en_US.UTF-8")][..], true),
            (&[("LANG", "C.utf8")], true),
            (&[("LANG", "C")], false),
            (&[], false),
            (&[("LC_ALL", "C"), ("LANG", "en_US.UTF-8")], false),
            (&[("LC_ALL", ""), ("LC_CTYPE", "UTF-8"), ("LANG", "C")], true),
        ] {
            let variable =
                |key: &str| variables.iter().find(|(name, _)| *name == key).map(|(_, value)| (*value).to_owned());
            assert_eq!(is_utf8(variable), expected, "{variables:?}");
        }
    }
}
