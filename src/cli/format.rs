//! docker's `--format`: a table of chosen fields, JSON, or a Go template for each row.

use crate::report::Report;
use crate::template::{self, Template, Value};

use super::print;

/// The keys of objects with free keys: a missing one is no error in a template.
pub(crate) const MAPS: [&str; 10] = [
    "Labels",
    "Ports",
    "Networks",
    "PortBindings",
    "Sysctls",
    "Volumes",
    "ExposedPorts",
    "Options",
    "Annotations",
    "Tmpfs",
];

/// Prints a JSON array, or a line for each object.
pub(crate) fn print_all(format: Option<&str>, all: &[serde_json::Value]) -> Result<(), Report> {
    match format {
        None => print::json(&all),
        Some(_) => all.iter().try_for_each(|value| print_object(format, value, &MAPS)),
    }
}

/// A parsed `--format`.
#[derive(Debug, Clone)]
pub(super) enum Format {
    /// `table`: the command's own table.
    Table,
    /// `json`: one object per line.
    Json,
    /// `table TEMPLATE`: a line with titles, and aligned columns where the template has tabs.
    Columns(String, Template),
    /// A template for each row.
    Rows(String, Template),
}

/// The fields of a row with their titles in a table.
pub(super) type Titles = [(&'static str, &'static str)];

impl Format {
    /// Parses the value of `--format`. `\t` and `\n` are a tab and a line feed, as in docker.
    pub(super) fn parse(text: &str) -> Result<Self, Report> {
        let read = |template: &str| {
            let template = template.replace("\\t", "\t").replace("\\n", "\n");
            Template::parse(&template).map_err(|error| template::report(text, &error)).map(|parsed| (template, parsed))
        };
        match text.trim_start().strip_prefix("table") {
            Some("") => Ok(Self::Table),
            Some(rest) if rest.starts_with(char::is_whitespace) || rest.starts_with("\\t") => {
                let (source, template) = read(rest.trim_start())?;
                Ok(Self::Columns(source, template))
            }
            _ if text == "json" => Ok(Self::Json),
            _ => read(text).map(|(source, template)| Self::Rows(source, template)),
        }
    }

    /// Parses an optional `--format`. Without one, the command prints its own table.
    pub(super) fn of(text: Option<&str>) -> Result<Self, Report> {
        text.map_or(Ok(Self::Table), Self::parse)
    }

    /// Whether the format needs a field.
    pub(super) fn uses(&self, field: &str) -> bool {
        match self {
            Self::Table | Self::Json => false,
            Self::Columns(_, template) | Self::Rows(_, template) => template.uses(field),
        }
    }

    /// Returns the text for all rows. The caller prints its own table for [`Format::Table`], which has no text here.
    pub(super) fn text(&self, titles: &Titles, rows: &[Value]) -> Result<String, Report> {
        match self {
            Self::Table => Ok(String::new()),
            Self::Json => {
                let lines = rows.iter().map(|row| print::ascii_controls(&row.to_json().to_string()) + "\n");
                Ok(lines.collect())
            }
            Self::Rows(source, template) => lines(source, template, rows).map(|lines| lines.concat()),
            Self::Columns(source, template) => {
                let titles = titles.iter().map(|(field, title)| ((*field).to_owned(), Value::from(*title))).collect();
                let mut all = lines(source, template, &[Value::Fields(titles)]).unwrap_or_default();
                all.extend(lines(source, template, rows)?);
                let cells: Vec<Vec<String>> = all
                    .iter()
                    .map(|line| line.trim_end_matches('\n').split('\t').map(str::to_owned).collect())
                    .collect();
                Ok(aligned(&cells))
            }
        }
    }

    /// Prints all rows, unless the format is the command's own table.
    pub(super) fn print(&self, titles: &Titles, rows: &[Value], noheading: bool) -> Result<(), Report> {
        let text = self.text(titles, rows)?;
        print::out(&print::headed(text, noheading && matches!(self, Self::Columns(..))))
    }
}

fn lines(source: &str, template: &Template, rows: &[Value]) -> Result<Vec<String>, Report> {
    let line = |row| template.render(row).map(|line| line + "\n").map_err(|error| template::report(source, &error));
    rows.iter().map(line).collect()
}

/// Aligns columns with docker's spacing.
fn aligned(rows: &[Vec<String>]) -> String {
    let rows: Vec<Vec<_>> =
        rows.iter().map(|row| row.iter().map(|cell| crate::report::printable_line(cell)).collect()).collect();
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let width = |column: usize| rows.iter().filter_map(|row| row.get(column)).map(|cell| cell.chars().count()).max();
    let widths: Vec<usize> = (0..columns).map(|column| width(column).unwrap_or(0)).collect();
    let mut text = String::new();
    for row in &rows {
        let mut line = String::new();
        for (cell, width) in row.iter().zip(&widths) {
            line.push_str(cell);
            line.extend(std::iter::repeat_n(' ', print::column_width(*width) - cell.chars().count()));
        }
        text.push_str(line.trim_end());
        text.push('\n');
    }
    text
}

/// Builds a row from its fields.
pub(super) fn row<const N: usize>(fields: [(&str, Value); N]) -> Value {
    Value::Fields(fields.into_iter().map(|(name, value)| (name.to_owned(), value)).collect())
}

/// Prints a single object: JSON without a format, or the format's text.
pub(super) fn print_object(format: Option<&str>, value: &serde_json::Value, maps: &[&str]) -> Result<(), Report> {
    match format {
        None => print::json(value),
        Some("json") => print::json_line(value),
        Some(format) => {
            let read = Template::parse(&format.replace("\\t", "\t").replace("\\n", "\n"));
            let said = read.and_then(|template| template.render(&Value::from_json(value, maps)));
            print::out(&(said.map_err(|error| template::report(format, &error))? + "\n"))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TITLES: &Titles = &[("ID", "CONTAINER ID"), ("Names", "NAMES")];

    fn text(format: &str) -> Result<String, String> {
        let rows = [("0123", "lab"), ("4567", "a-longer-name\u{202e}")]
            .map(|(id, name)| row([("ID", id.into()), ("Names", name.into())]));
        let format = Format::parse(format).map_err(|report| report.to_string())?;
        format.text(TITLES, &rows).map_err(|report| report.to_string())
    }

    #[test]
    fn tables_and_rows() {
        insta::assert_snapshot!(text(r"table {{.Names}}\t{{.ID}}").unwrap(), @r"
        NAMES                   CONTAINER ID
        lab                     0123
        a-longer-name\u{202e}   4567
        ");
        assert_eq!(text("{{.ID}}={{upper .Names}}").unwrap(), "0123=LAB\n4567=A-LONGER-NAME\u{202e}\n");
        let json = "{\"ID\":\"0123\",\"Names\":\"lab\"}\n{\"ID\":\"4567\",\"Names\":\"a-longer-name\\u202e\"}\n";
        assert_eq!(text("json").unwrap(), json);
        assert_eq!(text("{{json .}}").unwrap(), json);
        assert_eq!(text("table").unwrap(), "");
        assert_eq!(text("tabled").unwrap(), "tabled\ntabled\n");
        insta::assert_snapshot!(text("{{.Nmes}}").unwrap_err(), @r"
        error: cannot use `--format {{.Nmes}}`: `.Nmes`: there is no field `Nmes`

        hint: list the fields with `--format '{{json .}}'`
        ");
    }
}
