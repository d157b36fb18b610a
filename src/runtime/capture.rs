//! libcontainer's ERROR events: often the only place where the path that failed stands.
//!
//! Most of them happen in its child processes, whose memory the caller never sees: so every event goes through a pipe that they inherit.
//! The pipe never blocks; an event that finds it full is lost, which can only be one of thousands.

use std::fmt::Write as _;
use std::fs::File;
use std::io::{Read, Write as _};
use std::os::fd::OwnedFd;

use nix::fcntl::OFlag;
use tracing::field::{Field, Visit};
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::Layer;
use tracing_subscriber::layer::{Context, SubscriberExt};

/// linux/limits.h PIPE_BUF: writes up to this size do not mix with those of other processes.
const ATOMIC: usize = 4096;

/// Runs `work` and answers with what was logged as an error meanwhile, in this process and in those that it made.
///
/// For that time the subscriber that prints hears nothing of this thread: libcontainer's words come with the error or not at all.
pub(super) fn capture<T>(work: impl FnOnce() -> T) -> (T, Words) {
    let Ok((read, write)) = nix::unistd::pipe2(OFlag::O_CLOEXEC | OFlag::O_NONBLOCK) else {
        return (work(), Words { pipe: None });
    };
    let subscriber = tracing_subscriber::registry().with(CaptureLayer { pipe: write.into() });
    let result = tracing::subscriber::with_default(subscriber, work);
    (result, Words { pipe: Some(read) })
}

/// A layer that does nothing: what is captured needs no part of the subscriber that prints.
#[must_use]
pub fn capture_errors() -> tracing_subscriber::layer::Identity {
    tracing_subscriber::layer::Identity::new()
}

/// What was said, still in the pipe: pid 1 goes on writing until it executes its program.
#[derive(Debug)]
pub(super) struct Words {
    pipe: Option<OwnedFd>,
}

impl Words {
    /// Everything said so far, each line once.
    pub(super) fn take(&mut self) -> Vec<String> {
        let mut bytes = Vec::new();
        if let Some(pipe) = self.pipe.take() {
            // Ends with EAGAIN while a writer lives: what was read until then is kept.
            let _ = File::from(pipe).read_to_end(&mut bytes);
        }
        let mut lines: Vec<String> = Vec::new();
        for line in String::from_utf8_lossy(&bytes).lines() {
            if !lines.iter().any(|other| other == line) {
                lines.push(line.to_owned());
            }
        }
        lines
    }
}

struct CaptureLayer {
    pipe: File,
}

impl<S: Subscriber> Layer<S> for CaptureLayer {
    fn enabled(&self, metadata: &tracing::Metadata<'_>, _: Context<'_, S>) -> bool {
        *metadata.level() == Level::ERROR
    }

    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
        let mut text = Text::default();
        event.record(&mut text);
        let mut line = (text.message + &text.fields).replace('\n', " ").into_bytes();
        line.truncate(ATOMIC - 1);
        line.push(b'\n');
        let _ = (&self.pipe).write(&line);
    }
}

#[derive(Default)]
struct Text {
    message: String,
    fields: String,
}

impl Visit for Text {
    fn record_debug(&mut self, field: &Field, value: &dyn std::fmt::Debug) {
        let _ = if field.name() == "message" {
            write!(self.message, "{value:?}")
        } else {
            write!(self.fields, " ({}: {value:?})", field.name())
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_are_kept_once_with_their_fields_and_nothing_else_is() {
        let ((), mut words) = capture(|| {
            tracing::error!(path = ?"/a\nb", "cannot mount");
            tracing::error!(path = ?"/a\nb", "cannot mount");
            tracing::warn!("only a warning");
            tracing::error!("{}", "x".repeat(2 * ATOMIC));
        });
        let said = words.take();
        assert_eq!(said.len(), 2, "{said:?}");
        assert_eq!(said[0], r#"cannot mount (path: "/a\nb")"#);
        assert_eq!(said[1].len(), ATOMIC - 1);
        assert!(words.take().is_empty());
    }
}
