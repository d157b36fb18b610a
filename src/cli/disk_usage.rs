//! `gpurun system df`: the disk usage of images, containers, volumes and the build cache.

use std::collections::BTreeMap;

use clap::Args;
use serde_json::json;

use super::format::{self, Format, Titles};
use super::{Context, image, print, ps, view, volume};
use crate::record::Phase;
use crate::report::Report;
use crate::template::Value;

#[derive(Debug, Args)]
#[command(after_help = "`gpurun image df` shows what the image store consists of.")]
pub(super) struct DfArgs {
    /// Show each image, container, volume and part of the build cache
    // The long name is that of a global flag.
    #[arg(short = 'v', conflicts_with = "json")]
    details: bool,
    /// Print a table of chosen fields, JSON lines (`json`), or a Go template for each row
    #[arg(long, value_name = "FORMAT")]
    format: Option<String>,
    /// Print a JSON array, in bytes
    #[arg(long, conflicts_with = "format")]
    json: bool,
}

const TITLES: &Titles = &[
    ("Type", "TYPE"),
    ("TotalCount", "TOTAL"),
    ("Active", "ACTIVE"),
    ("Size", "SIZE"),
    ("Reclaimable", "RECLAIMABLE"),
];

#[derive(Debug, Default)]
struct Row {
    kind: &'static str,
    total: usize,
    active: usize,
    /// Bytes.
    size: u64,
    reclaimable: u64,
}

impl Row {
    fn of(kind: &'static str) -> Self {
        Self { kind, ..Self::default() }
    }

    /// Counts one object.
    fn add(&mut self, size: u64, is_active: bool) {
        self.total += 1;
        self.size += size;
        match is_active {
            true => self.active += 1,
            false => self.reclaimable += size,
        }
    }

    fn reclaimable(&self) -> String {
        let share = (self.size > 0).then(|| format!(" ({}%)", self.reclaimable * 100 / self.size));
        format!("{}{}", image::size(self.reclaimable), share.unwrap_or_default())
    }
}

pub(super) fn df(args: &DfArgs, context: &Context) -> Result<u8, Report> {
    if args.details || context.verbose {
        return verbose(args.format.as_deref(), context);
    }
    let format = Format::of(args.format.as_deref())?;
    let records = context.records()?;
    let mut containers = Row::of("Containers");
    for entry in records.list()? {
        let is_up = matches!(entry.state_shown()?.phase, Phase::Running | Phase::Restarting);
        containers.add(view::size_of(&entry.dir), is_up);
    }
    let mut volumes = Row::of("Local Volumes");
    for (used, size) in volume::sizes(context, &records)? {
        volumes.add(size, used);
    }
    let usage = image::Usage::of(context)?;
    let images = Row {
        kind: "Images",
        total: usage.images.len(),
        active: usage.in_use.iter().filter(|used| **used).count(),
        size: usage.size,
        reclaimable: usage.reclaimable,
    };
    let mut cache = Row::of("Build Cache");
    usage.cache.iter().for_each(|part| cache.add(part.size, part.in_use));
    let rows = [images, containers, volumes, cache];
    if args.json {
        let list = rows.iter().map(|row| {
            json!({ "Type": row.kind, "TotalCount": row.total, "Active": row.active, "Size": row.size, "Reclaimable": row.reclaimable })
        });
        print::json(&list.collect::<Vec<_>>())?;
    } else if matches!(format, Format::Table) {
        let cells: Vec<Vec<String>> = rows
            .iter()
            .map(|row| {
                let (total, active) = (row.total.to_string(), row.active.to_string());
                vec![row.kind.to_owned(), total, active, image::size(row.size), row.reclaimable()]
            })
            .collect();
        print::show_table(&["TYPE", "TOTAL", "ACTIVE", "SIZE", "RECLAIMABLE"], &cells)?;
    } else {
        let values: Vec<Value> = rows
            .iter()
            .map(|row| {
                format::row([
                    ("Type", row.kind.into()),
                    ("TotalCount", row.total.to_string().into()),
                    ("Active", row.active.to_string().into()),
                    ("Size", image::size(row.size).into()),
                    ("Reclaimable", row.reclaimable().into()),
                ])
            })
            .collect();
        format.print(TITLES, &values, false)?;
    }
    Ok(0)
}

/// A section of the verbose output: its key in a template, its heading, and its columns.
struct Section {
    key: &'static str,
    heading: String,
    columns: &'static Titles,
    rows: Vec<Value>,
}

/// Prints docker's sections, or one object with all of them for `--format`.
fn verbose(format: Option<&str>, context: &Context) -> Result<u8, Report> {
    let sections = sections(context)?;
    if let Some(text) = format.filter(|text| *text != "table") {
        let all = sections.into_iter().map(|section| (section.key.to_owned(), Value::List(section.rows)));
        let all = Value::Fields(all.collect());
        let format = Format::parse(text)?;
        format.print(&[], &[all], false)?;
        return Ok(0);
    }
    let mut parts = Vec::new();
    for section in &sections {
        let fields: Vec<String> = section.columns.iter().map(|(field, _)| format!("{{{{.{field}}}}}")).collect();
        let table = Format::parse(&format!("table {}", fields.join("\t")))?;
        parts.push(format!("{}\n\n{}", section.heading, table.text(section.columns, &section.rows)?));
    }
    print::out(&parts.join("\n"))?;
    Ok(0)
}

fn sections(context: &Context) -> Result<[Section; 4], Report> {
    let records = context.records()?;
    let mut containers = BTreeMap::new();
    for entry in records.list()? {
        *containers.entry(entry.record.image).or_insert(0) += 1;
    }
    let usage = image::Usage::of(context)?;
    let cache_size = usage.cache.iter().map(|part| part.size).sum();
    Ok([
        Section {
            key: "Images",
            heading: "Images space usage:".into(),
            columns: &[
                ("Repository", "REPOSITORY"),
                ("Tag", "TAG"),
                ("ID", "IMAGE ID"),
                ("CreatedSince", "CREATED"),
                ("Size", "SIZE"),
                ("SharedSize", "SHARED SIZE"),
                ("UniqueSize", "UNIQUE SIZE"),
                ("Containers", "CONTAINERS"),
            ],
            rows: usage.rows(&containers),
        },
        Section {
            key: "Containers",
            heading: "Containers space usage:".into(),
            columns: &[
                ("ID", "CONTAINER ID"),
                ("Image", "IMAGE"),
                ("Command", "COMMAND"),
                ("LocalVolumes", "LOCAL VOLUMES"),
                ("Size", "SIZE"),
                ("RunningFor", "CREATED"),
                ("Status", "STATUS"),
                ("Names", "NAMES"),
            ],
            rows: ps::usage_rows(context)?,
        },
        Section {
            key: "Volumes",
            heading: "Local Volumes space usage:".into(),
            columns: &[("Name", "VOLUME NAME"), ("Links", "LINKS"), ("Size", "SIZE")],
            rows: volume::usage_rows(context, &records)?,
        },
        Section {
            key: "BuildCache",
            heading: format!("Build cache usage: {}", image::size(cache_size)),
            columns: &[
                ("ID", "CACHE ID"),
                ("CacheType", "CACHE TYPE"),
                ("Size", "SIZE"),
                ("CreatedSince", "CREATED"),
                ("LastUsedSince", "LAST USED"),
                ("Shared", "SHARED"),
            ],
            rows: usage.cache.iter().map(part).collect(),
        },
    ])
}

fn part(part: &image::CachePart) -> Value {
    format::row([
        ("ID", part.id.as_str().into()),
        ("CacheType", part.kind.into()),
        ("Size", image::size(part.size).into()),
        ("CreatedSince", view::ago(part.created).into()),
        ("LastUsedSince", view::ago(part.used).into()),
        ("InUse", part.in_use.to_string().into()),
        ("Shared", part.is_shared.to_string().into()),
    ])
}
