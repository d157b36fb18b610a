//! Captures libcontainer's ERROR events, which are often the only messages that contain the path that failed.
//!
//! Most of these events happen in its child processes, whose memory the caller cannot see. So every event goes through
//! a pipe that the children inherit. The pipe never blocks. If it is full, further events are lost, which happens only
//! after thousands of events.

use std::fmt::Write as _;
use std::fs::File;
use std::io::{Read, Write as _};
use std::os::fd::OwnedFd;

use nix::fcntl::OFlag;
use tracing::field::{Field, Visit};
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::Layer;
use tracing_subscriber::layer::{Context, SubscriberExt};

/// PIPE_BUF of linux/limits.h: writes up to this size are atomic.
const ATOMIC: usize = 4096;

/// Runs `work`, and returns its result with the errors that this process and its children logged during that time.
///
/// In the meantime, the default subscriber does not receive the events of this thread. libcontainer's messages are
/// printed with the error or not at all.
pub(super) fn capture<T>(work: impl FnOnce() -> T) -> (T, CapturedErrors) {
    let Ok((read, write)) = nix::unistd::pipe2(OFlag::O_CLOEXEC | OFlag::O_NONBLOCK) else {
        return (work(), CapturedErrors { pipe: None });
    };
    let subscriber = tracing_subscriber::registry().with(CaptureLayer { pipe: write.into() });
    let result = tracing::subscriber::with_default(subscriber, work);
    (result, CapturedErrors { pipe: Some(read) })
}

/// The captured messages, still in the pipe. pid 1 continues to write until it executes its program.
#[derive(Debug)]
pub(super) struct CapturedErrors {
    pipe: Option<OwnedFd>,
}

impl CapturedErrors {
    /// Returns all messages so far, without duplicates.
    pub(super) fn take(&mut self) -> Vec<String> {
        let mut bytes = Vec::new();
        if let Some(pipe) = self.pipe.take() {
            // While a writer is alive, the read ends with EAGAIN. The bytes read until then are kept.
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
        let ((), mut captured) = capture(|| {
            tracing::error!(path = ?"/a\nb", "cannot mount");
            tracing::error!(path = ?"/a\nb", "cannot mount");
            tracing::warn!("only a warning");
            tracing::error!("{}", "x".repeat(2 * ATOMIC));
        });
        let reason = captured.take();
        assert_eq!(reason.len(), 2, "{reason:?}");
        assert_eq!(reason[0], r#"cannot mount (path: "/a\nb")"#);
        assert_eq!(reason[1].len(), ATOMIC - 1);
        assert!(captured.take().is_empty());
    }
}
