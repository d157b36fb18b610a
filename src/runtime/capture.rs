//! libcontainer's ERROR events: often the only place where the path that failed stands.

use std::cell::RefCell;
use std::fmt::Write;

use tracing::field::{Field, Visit};
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::Layer;
use tracing_subscriber::layer::Context;

thread_local! {
    static CAPTURED: RefCell<Option<Vec<String>>> = const { RefCell::new(None) };
}

/// The tracing layer that captures; to be installed once, beside the one that prints.
#[must_use]
pub fn capture_errors() -> impl Layer<tracing_subscriber::Registry> {
    CaptureLayer
}

struct CaptureLayer;

impl<S: Subscriber> Layer<S> for CaptureLayer {
    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
        let from_below = event.metadata().target().starts_with("libc");
        if *event.metadata().level() != Level::ERROR || !from_below {
            return;
        }
        CAPTURED.with_borrow_mut(|captured| {
            if let Some(lines) = captured {
                let mut text = Text::default();
                event.record(&mut text);
                lines.push(text.message + &text.fields);
            }
        });
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

/// The time between [`Captured::begin`] and [`Captured::end`], in which ERROR events of this thread are kept.
#[derive(Debug)]
pub struct Captured(());

impl Captured {
    #[must_use]
    pub fn begin() -> Self {
        CAPTURED.set(Some(Vec::new()));
        Self(())
    }

    #[must_use]
    pub fn end(self) -> Vec<String> {
        CAPTURED.take().unwrap_or_default()
    }
}
