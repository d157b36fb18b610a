//! Names, sizes and tables of images, as docker prints them.

use std::io::{self, Write};

use serde_json::Value;

use crate::cli::print::column_width;
use crate::names::Reference;
use crate::report::{Report, printable_line};
use crate::store::Image;

pub(super) fn names(references: &[Reference]) -> Vec<String> {
    references.iter().map(Reference::familiar).collect()
}

pub(super) fn repository_and_tag(name: &Reference) -> (String, String) {
    let familiar = name.familiar();
    let tag = name.tag.clone().unwrap_or_else(|| "<none>".into());
    let repository = familiar.split('@').next().unwrap_or_default();
    (repository.strip_suffix(&format!(":{tag}")).unwrap_or(repository).to_string(), tag)
}

/// The time of an image's creation, in nanoseconds since 1970.
pub(super) fn created(image: &Image) -> Option<u64> {
    let time = chrono::DateTime::parse_from_rfc3339(&image.created).ok()?;
    u64::try_from(time.timestamp_nanos_opt()?).ok()
}

/// Formats a size in decimal units, as docker does for images.
pub(crate) fn size(bytes: u64) -> String {
    let mut value = bytes as f64;
    for unit in ["B", "kB", "MB", "GB"] {
        if value < 999.5 {
            let digits = if unit == "B" || value >= 99.95 {
                0
            } else if value >= 9.995 {
                1
            } else {
                2
            };
            return format!("{value:.digits$}{unit}");
        }
        value /= 1000.0;
    }
    format!("{value:.2}TB")
}

/// Formats a table with minimum column widths, separated by three spaces.
pub(super) fn table<const N: usize>(rows: &[[String; N]]) -> String {
    columns(rows, [true; N])
}

/// Does the same without the columns that are not wanted.
pub(super) fn columns<const N: usize>(rows: &[[String; N]], wanted: [bool; N]) -> String {
    let printable = |row: &[String; N]| std::array::from_fn(|at| printable_line(&row[at]).into_owned());
    let rows: Vec<[String; N]> = rows.iter().map(printable).collect();
    let widths: Vec<usize> =
        (0..N).map(|at| rows.iter().map(|row| row[at].chars().count()).max().unwrap_or(0)).map(column_width).collect();
    let line = |row: &[String; N]| {
        let cells = (0..N).filter(|at| wanted[*at]).map(|at| format!("{:1$}", row[at], widths[at]));
        cells.collect::<String>().trim_end().to_string() + "\n"
    };
    rows.iter().map(line).collect()
}

pub(super) fn print_json(value: &Value) -> Result<(), Report> {
    raw(&(crate::cli::print::ascii_controls(&format!("{value:#}")) + "\n"))
}

/// Prints on standard output. It is not an error if the reader has closed the pipe (`| head`).
pub(super) fn print(text: &str) -> Result<(), Report> {
    raw(&crate::report::printable(text))
}

pub(super) fn raw(text: &str) -> Result<(), Report> {
    match io::stdout().lock().write_all(text.as_bytes()) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
            Err(Report::new("cannot write to standard output").with_cause(error))
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes() {
        for (bytes, want) in [
            (0, "0B"),
            (999, "999B"),
            (1_000, "1.00kB"),
            (12_345, "12.3kB"),
            (868_000_000, "868MB"),
            (6_480_000_000, "6.48GB"),
            (999_999, "1.00MB"),
        ] {
            assert_eq!(size(bytes), want);
        }
    }

    #[test]
    fn names_fall_into_repository_and_tag() {
        for (name, want) in [
            ("x", ("x", "latest")),
            ("localhost/a/b:1", ("localhost/a/b", "1")),
            ("r.io:5000/x:2", ("r.io:5000/x", "2")),
        ] {
            let (repository, tag) = repository_and_tag(&name.parse().expect("a reference"));
            assert_eq!((repository.as_str(), tag.as_str()), want);
        }
    }

    #[test]
    fn tables_align() {
        let rows = [["A".to_string(), "B".into()], ["long".into(), "x".into()]];
        assert_eq!(table(&rows), "A         B\nlong      x\n");
    }
}
