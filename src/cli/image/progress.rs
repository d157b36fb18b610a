//! The progress of a load, pull or push on standard error: bars on a terminal, lines in a log, and nothing for short
//! operations.

use std::io::{self, IsTerminal};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget, ProgressStyle};

use super::size;
use crate::cli::print::say;
use crate::names::Digest;
use crate::store::Progress;
use crate::transport::registry::PushProgress;

/// Operations that finish within this time show no progress.
const QUICK: Duration = Duration::from_millis(400);
/// Seconds between two lines of a log.
const LOG_LINE: u64 = 10;

/// A progress display. `doing` is the verb: `loading`, `pulling`, `pushing`.
pub(super) struct Shown {
    doing: &'static str,
    started: Instant,
    bars: Option<MultiProgress>,
    layers: OnceLock<Vec<Layer>>,
    total: OnceLock<ProgressBar>,
    read: AtomicU64,
    done: AtomicUsize,
    /// Number of lines written to a log so far.
    lines: AtomicU64,
}

struct Layer {
    digest: Digest,
    bytes: u64,
    /// Created when the first bytes arrive.
    bar: Mutex<Option<ProgressBar>>,
}

impl Shown {
    pub(super) fn new(doing: &'static str) -> Arc<Self> {
        let bars = io::stderr().is_terminal().then(|| {
            let bars = MultiProgress::new();
            // Becomes visible after `QUICK`.
            bars.set_draw_target(ProgressDrawTarget::hidden());
            bars
        });
        Arc::new(Self {
            doing,
            started: Instant::now(),
            bars,
            layers: OnceLock::new(),
            total: OnceLock::new(),
            read: AtomicU64::new(0),
            done: AtomicUsize::new(0),
            lines: AtomicU64::new(0),
        })
    }

    /// Prints a line above the bars, or on its own.
    pub(super) fn line(&self, text: &str) {
        let text = format!("gpurun: {text}");
        match &self.bars {
            Some(bars) if !bars.is_hidden() => drop(bars.println(text)),
            _ => say(&text),
        }
    }

    /// Returns whether progress should be shown by now. The first time, this makes the bars of a terminal visible.
    fn is_due(&self) -> bool {
        if self.started.elapsed() < QUICK {
            return false;
        }
        if let Some(bars) = self.bars.as_ref().filter(|bars| bars.is_hidden()) {
            bars.set_draw_target(ProgressDrawTarget::stderr_with_hz(10));
        }
        true
    }

    fn begin(&self, layers: &[(Digest, u64)]) {
        let known: Vec<_> = layers
            .iter()
            .map(|(digest, bytes)| Layer { digest: *digest, bytes: *bytes, bar: Mutex::default() })
            .collect();
        let sum = known.iter().map(|layer| layer.bytes).sum();
        let _ = self.layers.set(known);
        if let Some(bars) = &self.bars {
            let bar = bars.add(ProgressBar::new(sum));
            bar.set_style(style("{prefix:12} [{wide_bar}] {bytes}/{total_bytes} {bytes_per_sec} {eta}"));
            bar.set_prefix(self.doing);
            let _ = self.total.set(bar);
        }
    }

    fn moved(&self, layer: usize, bytes: u64) {
        let read = self.read.fetch_add(bytes, Ordering::Relaxed) + bytes;
        let (Some(layers), is_due) = (self.layers.get(), self.is_due()) else { return };
        // Bars count from the first byte, even while they are hidden.
        if let (Some(bars), Some(total), Some(layer)) = (&self.bars, self.total.get(), layers.get(layer)) {
            total.set_position(read);
            let mut bar = layer.bar.lock().unwrap_or_else(PoisonError::into_inner);
            bar.get_or_insert_with(|| {
                let bar = bars.insert_before(total, ProgressBar::new(layer.bytes));
                bar.set_style(style("{prefix:12} [{wide_bar:.dim}] {bytes}/{total_bytes} {bytes_per_sec} {eta}"));
                bar.set_prefix(layer.digest.hex()[..12].to_owned());
                bar
            })
            .inc(bytes);
            return;
        }
        if !is_due {
            return;
        }
        self.log(|| {
            let total: u64 = layers.iter().map(|layer| layer.bytes).sum();
            let rate = read as f64 / self.started.elapsed().as_secs_f64();
            let left = Duration::from_secs_f64(total.saturating_sub(read) as f64 / rate.max(1.0));
            format!("{} of {}, {}/s, {} s left", size(read), size(total), size(rate as u64), left.as_secs())
        });
    }

    /// Prints one line every ten seconds.
    fn log(&self, text: impl FnOnce() -> String) {
        let due = self.started.elapsed().as_secs() / LOG_LINE;
        if self.bars.is_none() && self.lines.fetch_max(due, Ordering::Relaxed) < due {
            say(&format!("gpurun: {}: {}", self.doing, text()));
        }
    }

    fn ended(&self, layer: usize) {
        let done = self.done.fetch_add(1, Ordering::Relaxed) + 1;
        let Some(layers) = self.layers.get() else { return };
        let Some(layer) = layers.get(layer) else { return };
        if let Some(bar) = layer.bar.lock().unwrap_or_else(PoisonError::into_inner).take() {
            bar.finish_and_clear();
        }
        if self.bars.is_none() && self.is_due() {
            let id = &layer.digest.hex()[..12];
            say(&format!(
                "gpurun: {}: layer {id}, {}: done ({done} of {})",
                self.doing,
                size(layer.bytes),
                layers.len()
            ));
        }
    }

    fn over(&self) {
        if let Some(total) = self.total.get() {
            total.finish_and_clear();
        }
    }
}

fn style(template: &str) -> ProgressStyle {
    ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar()).progress_chars("=> ")
}

impl Progress for Shown {
    fn unpack(&self, bytes: u64) {
        let read = self.read.fetch_add(bytes, Ordering::Relaxed) + bytes;
        if !self.is_due() {
            return;
        }
        if let Some(bars) = &self.bars {
            // The length of a pipe is unknown.
            let bar = self.total.get_or_init(|| {
                let bar = bars.add(ProgressBar::no_length());
                bar.set_style(style("{prefix:12} {spinner} {bytes} {bytes_per_sec}"));
                bar.set_prefix("reading");
                bar
            });
            bar.set_position(read);
        }
        self.log(|| format!("{} read", size(read)));
    }

    fn start(&self, layers: &[(Digest, u64)]) {
        if let Some(reading) = self.total.get() {
            reading.finish_and_clear();
        }
        self.read.store(0, Ordering::Relaxed);
        self.begin(layers);
    }

    fn advance(&self, layer: usize, bytes: u64) {
        self.moved(layer, bytes);
    }

    fn done(&self, layer: usize) {
        self.ended(layer);
    }

    fn finish(&self) {
        self.over();
    }
}

impl Shown {
    /// Starts the display of a push, with the tar archives of the layers.
    pub(super) fn begin_push(&self, layers: &[(Digest, u64)]) {
        self.begin(layers);
    }

    fn number(&self, diff_id: &Digest) -> Option<usize> {
        self.layers.get()?.iter().position(|layer| layer.digest == *diff_id)
    }
}

impl PushProgress for Shown {
    fn packed(&self, diff_id: &Digest, bytes: u64) {
        if let Some(layer) = self.number(diff_id) {
            self.moved(layer, bytes);
        }
    }

    fn done(&self, diff_id: &Digest, _sent: bool) {
        if let Some(layer) = self.number(diff_id) {
            self.ended(layer);
        }
    }

    fn finish(&self) {
        self.over();
    }
}
