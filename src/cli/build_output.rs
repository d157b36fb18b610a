//! Shows the steps of a build: as complete lines in a log, or as collapsing steps on a terminal.

use std::collections::VecDeque;
use std::io::{self, Write};
use std::time::{Duration, Instant};

use super::print;
use crate::build::{Output, StepName, printable};
use crate::sys::tty::window_size;

/// Number of output lines of the running command that a terminal shows.
const WINDOW: usize = 6;
/// Minimum time between two redraws of a terminal.
const FRAME: Duration = Duration::from_millis(80);

/// Splits a stream of bytes into complete lines and escapes control characters.
#[derive(Debug, Default)]
struct Lines {
    open: Vec<u8>,
}

impl Lines {
    fn take(&mut self, bytes: &[u8]) -> Vec<String> {
        self.open.extend_from_slice(bytes);
        let Some(end) = self.open.iter().rposition(|byte| matches!(byte, b'\n' | b'\r')) else {
            // Flush an unterminated line when it becomes long.
            return if self.open.len() > 4096 { self.rest() } else { Vec::new() };
        };
        let rest = self.open.split_off(end + 1);
        let whole = std::mem::replace(&mut self.open, rest);
        let lines = whole.split(|byte| matches!(byte, b'\n' | b'\r')).filter(|line| !line.is_empty());
        lines.map(|line| printable(&String::from_utf8_lossy(line))).collect()
    }

    fn rest(&mut self) -> Vec<String> {
        let open = std::mem::take(&mut self.open);
        if open.is_empty() { Vec::new() } else { vec![printable(&String::from_utf8_lossy(&open))] }
    }
}

fn title(step: &StepName<'_>) -> String {
    let stage = if step.stage.is_empty() { String::new() } else { format!("{} ", step.stage) };
    let parts: Vec<&str> = step.text.split_whitespace().collect();
    format!("[{stage}{}/{}] {}", step.number, step.total, printable(&parts.join(" ")))
}

/// Shows only errors.
#[derive(Debug)]
pub(super) struct Quiet;

impl Output for Quiet {
    fn begin(&mut self, _: &StepName<'_>) {}
    fn log(&mut self, _: &[u8]) {}
    fn tick(&mut self) {}
    fn cached(&mut self) {}
    fn done(&mut self) {}
    fn notice(&mut self, _: &str) {}
}

/// BuildKit's plain format: `#4 [2/5] RUN …`, `#4 0.512 output`, `#4 DONE 1.2s`.
#[derive(Debug, Default)]
pub(super) struct Plain {
    number: usize,
    began: Option<Instant>,
    lines: Lines,
}

impl Plain {
    fn elapsed(&self) -> f64 {
        self.began.map_or(0.0, |began| began.elapsed().as_secs_f64())
    }

    fn say(&self, lines: Vec<String>) {
        for line in lines {
            print::say(&format!("#{} {:.3} {line}", self.number, self.elapsed()));
        }
    }

    fn end(&mut self, how: &str) {
        let rest = self.lines.rest();
        self.say(rest);
        print::say(&format!("#{} {how}", self.number));
        self.began = None;
    }
}

impl Output for Plain {
    fn begin(&mut self, step: &StepName<'_>) {
        self.number = step.number;
        self.began = Some(Instant::now());
        print::say(&format!("#{} {}", step.number, title(step)));
    }

    fn log(&mut self, bytes: &[u8]) {
        let lines = self.lines.take(bytes);
        self.say(lines);
    }

    fn tick(&mut self) {}

    fn cached(&mut self) {
        self.end("CACHED");
    }

    fn done(&mut self) {
        let elapsed = self.elapsed();
        self.end(&format!("DONE {elapsed:.1}s"));
    }

    fn notice(&mut self, line: &str) {
        print::say(&format!("gpurun: {line}"));
    }
}

impl Drop for Plain {
    fn drop(&mut self) {
        // The last output line of a failed step may be unterminated.
        if self.began.is_some() {
            let rest = self.lines.rest();
            self.say(rest);
        }
    }
}

/// The terminal format: one line per step, and the most recent output lines of the running command below it.
#[derive(Debug, Default)]
pub(super) struct Fancy {
    title: String,
    began: Option<Instant>,
    lines: Lines,
    window: VecDeque<String>,
    /// Number of lines on the screen to overwrite with the next frame.
    drawn: usize,
    at: Option<Instant>,
}

impl Fancy {
    fn draw(&mut self, how: Option<&str>) {
        let width = window_size(io::stderr()).map_or(80, |(_, columns)| usize::from(columns)).max(20);
        // Disable line wrap, because the number of lines to overwrite is counted and characters may be wider than one
        // column.
        let mut text = String::from("\x1b[?7l");
        if self.drawn > 0 {
            text.push_str(&format!("\x1b[{}A\x1b[J", self.drawn));
        }
        let elapsed = self.began.map_or(0.0, |began| began.elapsed().as_secs_f64());
        let right = how.map_or_else(|| format!("{elapsed:.1}s"), str::to_owned);
        let space = width.saturating_sub(right.len() + 5);
        let title: String = self.title.chars().take(space).collect();
        text.push_str(&format!("=> {title:space$} {right}\n"));
        self.drawn = 1;
        if how.is_none() {
            for line in &self.window {
                let line: String = line.chars().take(width - 6).collect();
                text.push_str(&format!("\x1b[2m   # {line}\x1b[0m\n"));
                self.drawn += 1;
            }
        } else {
            self.drawn = 0;
        }
        text.push_str("\x1b[?7h");
        let mut out = io::stderr().lock();
        // A closed terminal does not stop the build.
        let _ = out.write_all(text.as_bytes()).and_then(|()| out.flush());
        self.at = Some(Instant::now());
    }

    fn end(&mut self, how: &str) {
        self.draw(Some(how));
        self.window.clear();
        self.lines.rest();
        self.began = None;
    }
}

impl Output for Fancy {
    fn begin(&mut self, step: &StepName<'_>) {
        self.title = title(step);
        self.began = Some(Instant::now());
        self.draw(None);
    }

    fn log(&mut self, bytes: &[u8]) {
        for line in self.lines.take(bytes) {
            self.window.push_back(line);
            if self.window.len() > WINDOW {
                self.window.pop_front();
            }
        }
        if self.at.is_none_or(|at| at.elapsed() >= FRAME) {
            self.draw(None);
        }
    }

    fn tick(&mut self) {
        self.draw(None);
    }

    fn cached(&mut self) {
        self.end("CACHED");
    }

    fn done(&mut self) {
        let elapsed = self.began.map_or(0.0, |began| began.elapsed().as_secs_f64());
        self.end(&format!("{elapsed:.1}s"));
    }

    fn notice(&mut self, line: &str) {
        let running = self.began.is_some();
        if running && self.drawn > 0 {
            print::write_stderr(&format!("\x1b[{}A\x1b[J", self.drawn));
            self.drawn = 0;
        }
        print::say(&format!("gpurun: {line}"));
        if running {
            self.draw(None);
        }
    }
}

impl Drop for Fancy {
    fn drop(&mut self) {
        if self.began.is_some() {
            self.end("ERROR");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_come_whole_and_without_control() {
        let mut lines = Lines::default();
        assert_eq!(lines.take(b"one\ntw"), ["one"]);
        assert_eq!(lines.take(b"o\r\n\x1b[31mred\x1b[0m\x07\n  3%\r100%\n"), ["two", "red", "  3%", "100%"]);
        assert_eq!(lines.take("\u{fc}\t".as_bytes()), Vec::<String>::new());
        assert_eq!(lines.rest(), ["\u{fc}    "]);
        assert_eq!(lines.rest(), Vec::<String>::new());
    }
}
