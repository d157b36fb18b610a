//! Short texts for values, as the screen shows them.

/// Formats bytes in at most five characters: `12.3G`, `512M`.
pub(super) fn size(bytes: u64) -> String {
    let mut value = bytes as f64;
    let mut units = ["B", "K", "M", "G", "T", "P", "E"].into_iter();
    let mut unit = units.next().unwrap_or_default();
    for next in units {
        if value < 1023.5 {
            break;
        }
        (value, unit) = (value / 1024.0, next);
    }
    if unit == "B" || value >= 99.95 { format!("{value:.0}{unit}") } else { format!("{value:.1}{unit}") }
}

/// The same, and `-` for an unknown value.
pub(super) fn size_of(bytes: Option<u64>) -> String {
    bytes.map_or_else(dash, size)
}

/// Formats a percentage of one CPU in at most six characters: `12.3`, `1600`.
pub(super) fn cpu(percent: Option<f64>) -> String {
    match percent {
        Some(percent) if percent < 999.95 => format!("{percent:.1}"),
        Some(percent) => format!("{percent:.0}"),
        None => dash(),
    }
}

/// Formats a percentage without a fraction.
pub(super) fn percent(percent: Option<f64>) -> String {
    percent.map_or_else(dash, |percent| format!("{percent:.0}"))
}

fn dash() -> String {
    "-".into()
}

/// The characters of a sparkline, from nothing to the maximum.
const BARS: [char; 9] = [' ', '▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'];
/// The same for a terminal that may not show Unicode.
const ASCII_BARS: [char; 9] = [' ', '_', '.', ':', '-', '=', '+', '*', '#'];

/// Draws the latest values, the newest one at the right. `most` is the value of a full bar.
pub(super) fn sparkline(values: &[f64], most: f64, width: usize, is_ascii: bool) -> String {
    let bars = if is_ascii { ASCII_BARS } else { BARS };
    let latest = &values[values.len().saturating_sub(width)..];
    let bar = |value: &f64| {
        let part = if most > 0.0 { (value / most).clamp(0.0, 1.0) } else { 0.0 };
        // What is more than nothing is visible.
        let level = (part * 8.0).round() as usize;
        bars[if *value > 0.5 { level.max(1) } else { level }]
    };
    let blanks = " ".repeat(width - latest.len());
    blanks + &latest.iter().map(bar).collect::<String>()
}

/// Draws a gauge: `[|||||     ]`.
pub(super) fn gauge(percent: Option<f64>, width: usize) -> String {
    let inner = width.saturating_sub(2);
    let filled = (percent.unwrap_or(0.0).clamp(0.0, 100.0) / 100.0 * inner as f64).round() as usize;
    format!("[{}{}]", "|".repeat(filled), " ".repeat(inner - filled))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_short() {
        for (bytes, text) in [
            (0, "0B"),
            (1023, "1023B"),
            (1024, "1.0K"),
            (102_348, "99.9K"),
            (102_400, "100K"),
            ((1 << 20) - 1, "1.0M"),
            (1023 << 20, "1023M"),
            (64 << 30, "64.0G"),
            (u64::MAX, "16.0E"),
        ] {
            assert_eq!(size(bytes), text);
            assert!(size(bytes).len() <= 5);
        }
        assert_eq!((size_of(None), cpu(None), percent(None)), ("-".into(), "-".into(), "-".into()));
        assert_eq!(
            (cpu(Some(12.34)), cpu(Some(12800.0)), percent(Some(99.6))),
            ("12.3".into(), "12800".into(), "100".into())
        );
    }

    #[test]
    fn bars_show_parts_of_the_maximum() {
        assert_eq!(sparkline(&[0.0, 1.0, 50.0, 100.0, 250.0], 100.0, 8, false), "    ▁▄██");
        assert_eq!(sparkline(&[0.0, 50.0, 100.0], 100.0, 2, true), "-#");
        assert_eq!(sparkline(&[], 0.0, 3, false), "   ");
        assert_eq!(sparkline(&[3.0], 0.0, 1, false), "▁");
        assert_eq!(gauge(Some(50.0), 12), "[|||||     ]");
        assert_eq!(
            (gauge(None, 4), gauge(Some(1000.0), 4), gauge(Some(1.0), 1)),
            ("[  ]".into(), "[||]".into(), "[]".into())
        );
    }
}
