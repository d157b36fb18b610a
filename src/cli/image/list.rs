//! `gpurun image ls | inspect | history`.

use std::collections::BTreeMap;

use clap::Args;
use serde_json::{Value, json};

use super::manage::in_store;
use super::size;
use super::text::{columns, created, names, print, print_json, repository_and_tag, table};
use super::transfer::{PullPolicy, RegistryFlags, provide};
use super::users::Usages;
use crate::cli::filter::Filters;
use crate::cli::format::{self, Format, Titles};
use crate::cli::{moment, view};
use crate::image::{History, ImageDocument, Platform};
use crate::names::{Digest, Reference};
use crate::report::Report;
use crate::store::{Image, Store};
use crate::template;

#[derive(Debug, Args)]
pub(crate) struct LsArgs {
    /// Show the intermediate images of builds too
    #[arg(short, long)]
    pub all: bool,
    /// Print only IDs
    #[arg(short, long)]
    pub quiet: bool,
    /// Do not truncate IDs and digests
    #[arg(long, alias = "notruncate")]
    pub no_trunc: bool,
    /// Show the digests of the manifests
    #[arg(long)]
    pub digests: bool,
    /// Select images: dangling=true, reference=PATTERN, label=KEY[=VALUE], before=IMAGE, since=IMAGE, until=TIME, id=ID
    #[arg(short, long, value_name = "KEY=VALUE")]
    pub filter: Vec<String>,
    /// Print a table of chosen fields (`table {{.ID}}\t{{.Tag}}`), JSON lines (`json`), or a Go template for each image
    #[arg(long, value_name = "FORMAT")]
    pub format: Option<String>,
    /// Print no titles
    #[arg(short = 'n', long)]
    pub noheading: bool,
    /// Sort by created, id, repository, size or tag
    #[arg(long, value_name = "FIELD", hide_possible_values = true)]
    pub sort: Option<Sort>,
    /// Print as JSON
    #[arg(long, conflicts_with = "quiet")]
    pub json: bool,
    /// Show only the images of this repository
    #[arg(value_name = "REPOSITORY[:TAG]")]
    pub repository: Option<String>,
}

/// What `images` is sorted by.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Sort {
    Created,
    Id,
    Repository,
    Size,
    Tag,
}

impl Sort {
    /// Sorts the rows of a table, an image with a name each. The newest and the largest images come first.
    fn apply(self, rows: &mut [(&Image, Vec<&Reference>)]) {
        let name = |row: &(&Image, Vec<&Reference>)| shown(&row.1).next().unwrap_or_default();
        match self {
            Self::Created => rows.sort_by_key(|(image, _)| std::cmp::Reverse(created(image).unwrap_or(0))),
            Self::Id => rows.sort_by_key(|(image, _)| image.id.to_string()),
            Self::Repository => rows.sort_by_key(|row| name(row).0),
            Self::Size => rows.sort_by_key(|(image, _)| std::cmp::Reverse(image.size)),
            Self::Tag => rows.sort_by_key(|row| name(row).1),
        }
    }
}

const FILTERS: [&str; 8] = ["dangling", "reference", "label", "before", "since", "after", "until", "id"];

const TITLES: &Titles = &[
    ("ID", "IMAGE ID"),
    ("Repository", "REPOSITORY"),
    ("Tag", "TAG"),
    ("Digest", "DIGEST"),
    ("CreatedSince", "CREATED"),
    ("CreatedAt", "CREATED AT"),
    ("Size", "SIZE"),
    ("VirtualSize", "SIZE"),
    ("SharedSize", "SHARED SIZE"),
    ("UniqueSize", "UNIQUE SIZE"),
    ("Containers", "CONTAINERS"),
    ("Platform", "PLATFORM"),
];

#[derive(Debug, Args)]
pub(crate) struct InspectArgs {
    /// Names or IDs of images, or sources in skopeo's notation
    #[arg(required = true, value_name = "IMAGE")]
    pub images: Vec<String>,
    /// Print a Go template for each image, or a JSON object per line (`json`)
    #[arg(short, long, value_name = "FORMAT")]
    pub format: Option<String>,
    /// Accepted for symmetry: the output is always JSON
    #[arg(long, hide = true)]
    pub json: bool,
    #[command(flatten)]
    pub registry: RegistryFlags,
}

#[derive(Debug, Args)]
pub(crate) struct HistoryArgs {
    /// Name or ID of an image, or a source in skopeo's notation
    #[arg(value_name = "IMAGE")]
    pub image: String,
    /// Do not truncate commands
    #[arg(long)]
    pub no_trunc: bool,
    /// Print only IDs
    #[arg(short, long)]
    pub quiet: bool,
    /// Print sizes and times in human-readable form; `false` prints bytes and RFC 3339
    #[arg(short = 'H', long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_value_t = true, default_missing_value = "true", action = clap::ArgAction::Set)]
    pub human: bool,
    /// Print a table of chosen fields (`table {{.CreatedBy}}\t{{.Size}}`), JSON lines (`json`), or a Go template for each step
    #[arg(long, value_name = "FORMAT")]
    pub format: Option<String>,
    /// Print as JSON
    #[arg(long)]
    pub json: bool,
    #[command(flatten)]
    pub registry: RegistryFlags,
}

pub(super) fn ls(store: &Store, args: &LsArgs, users: &Usages<'_>) -> Result<(), Report> {
    let format = Format::of(args.format.as_deref())?;
    let filters = Filters::parse(&args.filter, &FILTERS)?;
    let mut images = store.list()?;
    images.retain(|image| args.all || !image.intermediate);
    let select = Select::new(store, &filters, args.repository.as_deref())?;
    // The names that are shown. An image whose names are all left out is left out itself.
    let mut rows: Vec<(&Image, Vec<&Reference>)> = Vec::new();
    for image in images.iter().filter(|image| select.takes(image)) {
        let names: Vec<&Reference> = image.names.iter().filter(|name| select.takes_name(name)).collect();
        if !names.is_empty() || (image.names.is_empty() && !select.wants_names()) {
            rows.push((image, names));
        }
    }
    if let Some(sort) = args.sort {
        rows = rows
            .into_iter()
            .flat_map(|(image, names)| match names.is_empty() {
                true => vec![(image, names)],
                false => names.into_iter().map(|name| (image, vec![name])).collect(),
            })
            .collect();
        sort.apply(&mut rows);
    }
    if args.json {
        let list = rows.iter().map(|(image, _)| {
            json!({"Id": image.id.to_string(), "Names": names(&image.names), "Size": image.size, "Created": image.created,
                "CreatedAt": image.created, "Digest": image.manifest_digest, "Labels": image.config.labels,
                "Os": image.os, "Architecture": image.architecture, "Variant": image.variant, "LoadedAt": image.loaded_at,
                "ManifestDigest": image.manifest_digest})
        });
        return print_json(&Value::Array(list.collect()));
    }
    let id = |image: &Image| if args.no_trunc { image.id.to_string() } else { image.short_id() };
    if !matches!(format, Format::Table) {
        let mut values = Vec::new();
        for (image, names) in &rows {
            let in_use = format.uses("Containers") && users(&image.id).is_some();
            values.extend(shown(names).map(|name| fields(image, name, id(image), in_use)));
        }
        let no_titles = args.noheading && matches!(format, Format::Columns(..));
        return print(&crate::cli::print::headed(format.text(TITLES, &values)?, no_titles));
    }
    if args.quiet {
        return print(&rows.iter().map(|(image, _)| id(image) + "\n").collect::<String>());
    }
    table_of(&rows, args, id)
}

/// Prints docker's table, with a column for digests if a name has one, and for platforms that this host cannot run.
fn table_of(images: &[(&Image, Vec<&Reference>)], args: &LsArgs, id: impl Fn(&Image) -> String) -> Result<(), Report> {
    let mut rows: Vec<[String; 7]> =
        vec![["REPOSITORY", "TAG", "DIGEST", "IMAGE ID", "PLATFORM", "CREATED", "SIZE"].map(String::from)];
    let mut with_digest = args.digests;
    let mut with_platform = false;
    for (image, names) in images {
        let platform = image.platform();
        with_platform |= platform.as_ref().is_some_and(|platform| !platform.runs_on(&Platform::host()));
        let platform = platform.map_or_else(|| "-".into(), |platform| platform.to_string());
        for (repository, tag, digest) in shown(names) {
            // The digest identifies a row without a tag: the digest in its name, or else the digest of its manifest.
            with_digest |= digest.is_some();
            let digest = digest
                .or(image.manifest_digest)
                .map_or_else(|| "<none>".into(), |digest| shorten(&digest, args.no_trunc));
            rows.push([repository, tag, digest, id(image), platform.clone(), created_ago(image), size(image.size)]);
        }
    }
    let keep = [true, true, with_digest, true, with_platform, true, true];
    print(&crate::cli::print::headed(columns(&rows, keep), args.noheading))
}

/// The rows of an image: one for each name, or one without a name.
pub(super) fn shown<'a>(names: &'a [&'a Reference]) -> impl Iterator<Item = (String, String, Option<Digest>)> + 'a {
    let none = || ("<none>".to_owned(), "<none>".to_owned(), None);
    names.iter().map(|name| row_name(name)).chain(names.is_empty().then(none))
}

fn created_ago(image: &Image) -> String {
    // The steps of a build have no time of their own, so that equal steps give equal images.
    let loaded = || image.intermediate.then_some(image.loaded_at.saturating_mul(1_000_000_000));
    created(image).or_else(loaded).map_or_else(|| "N/A".into(), view::ago)
}

/// The fields of an image for `--format`, with docker's names.
pub(super) fn fields(
    image: &Image,
    name: (String, String, Option<Digest>),
    id: String,
    in_use: bool,
) -> template::Value {
    let (repository, tag, digest) = name;
    let names: Vec<String> = image.names.iter().map(ToString::to_string).collect();
    let digest = digest.or(image.manifest_digest).map_or_else(|| "<none>".to_owned(), |digest| digest.to_string());
    format::row([
        ("ID", id.into()),
        ("Repository", repository.into()),
        ("Tag", tag.into()),
        ("Digest", digest.into()),
        ("CreatedSince", created_ago(image).into()),
        ("CreatedAt", created(image).map_or_else(String::new, view::moment).into()),
        ("Size", size(image.size).into()),
        ("VirtualSize", size(image.size).into()),
        ("SharedSize", "N/A".into()),
        ("UniqueSize", "N/A".into()),
        ("Containers", (if in_use { "1" } else { "N/A" }).into()),
        ("Labels", template::Value::Map(labels(image))),
        ("Names", template::Value::from(names.join(","))),
        ("Platform", image.platform().map_or_else(String::new, |platform| platform.to_string()).into()),
    ])
}

fn labels(image: &Image) -> BTreeMap<String, template::Value> {
    image.config.labels.iter().map(|(key, value)| (key.clone(), value.as_str().into())).collect()
}

/// The images that `--filter` and the repository select.
struct Select<'a> {
    filters: &'a Filters,
    dangling: Option<bool>,
    before: Option<u64>,
    since: Option<u64>,
    until: Option<u64>,
    patterns: Vec<String>,
}

impl<'a> Select<'a> {
    fn new(store: &Store, filters: &'a Filters, repository: Option<&str>) -> Result<Self, Report> {
        let time = |key: &str| -> Result<Option<u64>, Report> {
            let times =
                filters.values(key).map(|name| Ok(created(&store.resolve(name).map_err(in_store)?).unwrap_or(0)));
            Ok(times.collect::<Result<Vec<_>, Report>>()?.into_iter().max())
        };
        let until = filters.values("until").last().map(|text| moment::parse("--filter until", text)).transpose()?;
        let patterns = filters.values("reference").chain(repository).map(str::to_owned).collect();
        Ok(Self {
            filters,
            dangling: filters.truth("dangling")?,
            before: time("before")?,
            // podman's other name for it.
            since: time("since")?.max(time("after")?),
            until,
            patterns,
        })
    }

    fn wants_names(&self) -> bool {
        !self.patterns.is_empty()
    }

    fn takes(&self, image: &Image) -> bool {
        let time = created(image).unwrap_or(0);
        self.dangling.is_none_or(|dangling| dangling == image.names.is_empty())
            && self.filters.any("id", |id| image.id.hex().starts_with(id.trim_start_matches("sha256:")))
            && self.filters.labels(&image.config.labels)
            && self.before.is_none_or(|before| time < before)
            && self.since.is_none_or(|since| time > since)
            && self.until.is_none_or(|until| time < until)
    }

    /// Whether a name matches one of the patterns: the whole name, or the repository alone.
    fn takes_name(&self, name: &Reference) -> bool {
        let familiar = name.familiar();
        let (repository, _) = repository_and_tag(name);
        let full = name.to_string();
        let matches = |pattern: &String| {
            [familiar.as_str(), repository.as_str(), full.as_str()].iter().any(|name| glob(pattern, name))
        };
        self.patterns.is_empty() || self.patterns.iter().any(matches)
    }
}

/// Matches a name against a pattern as Go's path.Match does: `*` and `?` do not match `/`.
fn glob(pattern: &str, name: &str) -> bool {
    let mut form = String::from("^");
    for letter in pattern.chars() {
        match letter {
            '*' => form.push_str("[^/]*"),
            '?' => form.push_str("[^/]"),
            '[' | ']' => form.push(letter),
            letter => form.push_str(&regex::escape(&letter.to_string())),
        }
    }
    form.push('$');
    regex::Regex::new(&form).map_or_else(|_| pattern == name, |form| form.is_match(name))
}

fn row_name(name: &Reference) -> (String, String, Option<Digest>) {
    let (repository, tag) = repository_and_tag(name);
    (repository, tag, name.digest)
}

fn shorten(digest: &Digest, no_trunc: bool) -> String {
    if no_trunc { digest.to_string() } else { format!("sha256:{}", &digest.hex()[..12]) }
}

/// Returns all data about an image, with docker's keys.
pub(crate) fn inspect_json(store: &Store, image: &Image) -> Value {
    // Digests that cannot be read are omitted, and all other data is still shown.
    let digests = names(&store.repo_digests_of(&image.id).unwrap_or_default());
    json!({
        "Id": image.id.to_string(),
        "Digest": image.manifest_digest.map(|digest| digest.to_string()),
        "RepoTags": names(&image.names),
        "RepoDigests": digests,
        "Created": image.created,
        "LoadedAt": image.loaded_at,
        "Architecture": image.architecture,
        "Os": image.os,
        "Variant": image.variant,
        "Size": image.size,
        "ManifestDigest": image.manifest_digest.map(|digest| digest.to_string()),
        "ChainId": image.chain_id.to_string(),
        "Config": image.config,
        "RootFS": {"Type": "layers", "Layers": image.diff_ids.iter().map(ToString::to_string).collect::<Vec<_>>()},
    })
}

pub(super) fn inspect(store: &Store, args: &InspectArgs) -> Result<(), Report> {
    let one = |name: &str| -> Result<Value, Report> {
        let image = store.resolve(&provide(store, name, PullPolicy::Never, &args.registry)?)?;
        Ok(inspect_json(store, &image))
    };
    let (mut list, mut first) = (Vec::new(), None);
    for name in &args.images {
        match one(name) {
            Ok(value) => list.push(value),
            Err(report) => drop(first.get_or_insert(report)),
        }
    }
    // As in docker, what was found is printed before the error.
    crate::cli::format::print_all(args.format.as_deref(), &list)?;
    first.map_or(Ok(()), Err)
}

pub(super) fn history(store: &Store, args: &HistoryArgs) -> Result<(), Report> {
    let image = store.resolve(&provide(store, &args.image, PullPolicy::Never, &args.registry)?)?;
    let (config, _) = store.documents(&image)?;
    let document = ImageDocument::parse(&config)
        .map_err(|error| Report::new(format!("cannot read the history of `{}`", image.label())).with_cause(error))?;
    let steps = steps(&document.history, &image.diff_ids, &image.layer_sizes);
    if args.json {
        let list = steps.iter().map(|(step, layer)| {
            json!({"Created": step.created, "CreatedBy": step.created_by, "Comment": step.comment,
                "Size": layer.map_or(0, |(_, size)| size), "Layer": layer.map(|(id, _)| id.to_string())})
        });
        return print_json(&Value::Array(list.collect()));
    }
    let format = Format::of(args.format.as_deref())?;
    let time = |step: &History| {
        let time = chrono::DateTime::parse_from_rfc3339(&step.created).ok().and_then(|time| time.timestamp_nanos_opt());
        time.and_then(|time| u64::try_from(time).ok())
    };
    let newest = steps.len();
    let rows: Vec<[String; 5]> = steps
        .iter()
        .enumerate()
        .map(|(at, (step, layer))| {
            // As in docker, only the newest step has the ID of the image. The others are no images.
            let id = match (at, args.no_trunc) {
                (0, true) if newest > 0 => image.id.to_string(),
                (0, false) => image.short_id(),
                _ => "<missing>".into(),
            };
            let bytes = layer.map_or(0, |(_, size)| size);
            let created = match (time(step), args.human) {
                (Some(time), true) => view::ago(time),
                (None, true) => "N/A".into(),
                (Some(time), false) => seconds(time),
                (None, false) => step.created.clone(),
            };
            let command = step.created_by.split_whitespace().collect::<Vec<_>>().join(" ");
            let command = match args.no_trunc || command.chars().count() <= 45 {
                true => command,
                false => command.chars().take(44).chain(['…']).collect(),
            };
            [id, created, command, if args.human { size(bytes) } else { bytes.to_string() }, step.comment.clone()]
        })
        .collect();
    const TITLES: &Titles = &[
        ("ID", "IMAGE"),
        ("CreatedSince", "CREATED"),
        ("Created", "CREATED"),
        ("CreatedAt", "CREATED AT"),
        ("CreatedBy", "CREATED BY"),
        ("Size", "SIZE"),
        ("Comment", "COMMENT"),
    ];
    if !matches!(format, Format::Table) {
        let values = rows.iter().zip(&steps).map(|([id, since, by, size, comment], (step, _))| {
            format::row([
                ("ID", id.as_str().into()),
                ("CreatedSince", since.as_str().into()),
                ("Created", since.as_str().into()),
                ("CreatedAt", time(step).map_or_else(|| step.created.clone(), seconds).into()),
                ("CreatedBy", by.as_str().into()),
                ("Size", size.as_str().into()),
                ("Comment", comment.as_str().into()),
            ])
        });
        return print(&format.text(TITLES, &values.collect::<Vec<_>>())?);
    }
    if args.quiet {
        return print(&rows.iter().map(|[id, ..]| format!("{id}\n")).collect::<String>());
    }
    let titles = ["IMAGE", "CREATED", "CREATED BY", "SIZE", "COMMENT"].map(str::to_owned);
    print(&table(&std::iter::once(titles).chain(rows).collect::<Vec<_>>()))
}

/// A time as docker's history has it: in seconds, in the caller's time zone.
fn seconds(nanos: u64) -> String {
    let time = chrono::DateTime::from_timestamp_nanos(i64::try_from(nanos).unwrap_or(0)).with_timezone(&chrono::Local);
    time.to_rfc3339_opts(chrono::SecondsFormat::Secs, true)
}

type Step = (History, Option<(Digest, u64)>);

/// Returns the history with the layer of each step, newest first. Layers without a history entry get entries of their
/// own.
fn steps(history: &[History], diff_ids: &[Digest], sizes: &[u64]) -> Vec<Step> {
    let mut layers = diff_ids.iter().copied().zip(sizes.iter().copied());
    let mut steps: Vec<Step> =
        history.iter().map(|step| (step.clone(), if step.empty_layer { None } else { layers.next() })).collect();
    steps.extend(layers.map(|layer| (History::default(), Some(layer))));
    steps.reverse();
    steps
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_history_finds_its_layers() {
        let step = |by: &str, empty_layer| History { created_by: by.into(), empty_layer, ..History::default() };
        let ids = [Digest([1; 32]), Digest([2; 32]), Digest([3; 32])];
        let steps = steps(&[step("base", false), step("ENV", true), step("RUN", false)], &ids, &[10, 20, 30]);
        let shown: Vec<_> =
            steps.iter().map(|(step, layer)| (step.created_by.as_str(), layer.map(|(_, size)| size))).collect();
        assert_eq!(shown, [("", Some(30)), ("RUN", Some(20)), ("ENV", None), ("base", Some(10))]);
    }
}
