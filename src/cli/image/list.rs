//! `gpurun image ls | inspect | history | df`.

use std::time::{SystemTime, UNIX_EPOCH};

use clap::Args;
use serde_json::{Value, json};

use super::transfer::{PullPolicy, RegistryFlags, provide};
use super::{Usages, ago, names, print, print_json, repository_and_tag, size, table};
use crate::image::{History, ImageDocument};
use crate::names::Digest;
use crate::report::Report;
use crate::store::{Image, Store};

#[derive(Debug, Args)]
pub struct LsArgs {
    /// Show the steps of builds too
    #[arg(short, long)]
    pub all: bool,
    /// Print the ids alone
    #[arg(short, long)]
    pub quiet: bool,
    /// Do not shorten ids
    #[arg(long)]
    pub no_trunc: bool,
    /// Print as JSON
    #[arg(long, conflicts_with = "quiet")]
    pub json: bool,
}

#[derive(Debug, Args)]
pub struct InspectArgs {
    /// Names, ids, or sources as skopeo writes them
    #[arg(required = true, value_name = "IMAGE")]
    pub images: Vec<String>,
    /// It prints JSON in any case; the other commands' flag is understood
    #[arg(long, hide = true)]
    pub json: bool,
    #[command(flatten)]
    pub registry: RegistryFlags,
}

#[derive(Debug, Args)]
pub struct HistoryArgs {
    /// Name or id, or a source as skopeo writes it
    pub image: String,
    /// Do not shorten commands
    #[arg(long)]
    pub no_trunc: bool,
    /// Print as JSON
    #[arg(long)]
    pub json: bool,
    #[command(flatten)]
    pub registry: RegistryFlags,
}

#[derive(Debug, Args)]
pub struct DfArgs {
    /// Show each image, too
    #[arg(short, long)]
    pub images: bool,
    /// Print as JSON, in bytes
    #[arg(long)]
    pub json: bool,
}

pub fn ls(store: &Store, args: &LsArgs) -> Result<(), Report> {
    let mut images = store.list()?;
    images.retain(|image| args.all || !image.intermediate);
    if args.json {
        let list = images.iter().map(|image| {
            json!({"Id": image.id.to_string(), "Names": names(&image.names), "Size": image.size, "Created": image.created,
                "Architecture": image.architecture, "LoadedAt": image.loaded_at})
        });
        return print_json(&Value::Array(list.collect()));
    }
    let id = |image: &Image| if args.no_trunc { image.id.to_string() } else { image.short_id() };
    if args.quiet {
        return print(&images.iter().map(|image| id(image) + "\n").collect::<String>());
    }
    let mut rows = vec![["REPOSITORY".to_string(), "TAG".into(), "IMAGE ID".into(), "LOADED".into(), "SIZE".into()]];
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |now| now.as_secs());
    for image in &images {
        let shown: Vec<(String, String)> = match image.names.as_slice() {
            [] => vec![("<none>".into(), "<none>".into())],
            names => names.iter().map(repository_and_tag).collect(),
        };
        for (repository, tag) in shown {
            let age = ago(now.saturating_sub(image.loaded_at));
            rows.push([repository, tag, id(image), age, size(image.size)]);
        }
    }
    print(&table(&rows))
}

/// All that is known about an image, with docker's keys.
pub fn inspect_json(image: &Image) -> Value {
    json!({
        "Id": image.id.to_string(),
        "RepoTags": names(&image.names),
        "Created": image.created,
        "LoadedAt": image.loaded_at,
        "Architecture": image.architecture,
        "Os": image.os,
        "Size": image.size,
        "ManifestDigest": image.manifest_digest.map(|digest| digest.to_string()),
        "ChainId": image.chain_id.to_string(),
        "Config": image.config,
        "RootFS": {"Type": "layers", "Layers": image.diff_ids.iter().map(ToString::to_string).collect::<Vec<_>>()},
    })
}

pub fn inspect(store: &Store, args: &InspectArgs) -> Result<(), Report> {
    let mut list = Vec::new();
    for name in &args.images {
        let image = store.resolve(&provide(store, name, PullPolicy::Never, &args.registry)?)?;
        list.push(inspect_json(&image));
    }
    print_json(&Value::Array(list))
}

pub fn history(store: &Store, args: &HistoryArgs) -> Result<(), Report> {
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
    let mut rows = vec![["LAYER".to_string(), "CREATED".into(), "CREATED BY".into(), "SIZE".into(), "COMMENT".into()]];
    for (step, layer) in steps {
        let id = layer.map_or_else(|| "-".into(), |(id, _)| id.hex()[..12].to_owned());
        let command = step.created_by.split_whitespace().collect::<Vec<_>>().join(" ");
        let command = if args.no_trunc || command.chars().count() <= 60 {
            command
        } else {
            command.chars().take(59).chain(['…']).collect()
        };
        let created = step.created.split('.').next().unwrap_or_default().trim_end_matches('Z').replace('T', " ");
        rows.push([id, created, command, size(layer.map_or(0, |(_, size)| size)), step.comment]);
    }
    print(&table(&rows))
}

type Step = (History, Option<(Digest, u64)>);

/// The history's lines with the layers that they made, the youngest first; layers that no line tells of have lines of their own.
fn steps(history: &[History], diff_ids: &[Digest], sizes: &[u64]) -> Vec<Step> {
    let mut layers = diff_ids.iter().copied().zip(sizes.iter().copied());
    let mut steps: Vec<Step> =
        history.iter().map(|step| (step.clone(), if step.empty_layer { None } else { layers.next() })).collect();
    steps.extend(layers.map(|layer| (History::default(), Some(layer))));
    steps.reverse();
    steps
}

pub fn df(store: &Store, args: &DfArgs, users: &Usages<'_>) -> Result<(), Report> {
    let images = store.list()?;
    let used: Vec<&Image> = images.iter().filter(|image| users(&image.id).is_some()).collect();
    // After the look at the containers, which makes their directory where there was none.
    let usage = store.usage()?;
    let reclaimable = usage.only_outside(&used);
    let rows = [
        ("Layers", usage.layer_count, usage.layers, reclaimable),
        ("Indexes", 0, usage.indexes, 0),
        ("Documents", images.len(), usage.documents, 0),
        ("Drawn trees", 0, usage.drawn, 0),
        ("In progress", 0, usage.in_progress, 0),
        ("Containers", 0, usage.containers, 0),
        ("Volumes", 0, usage.volumes, 0),
        ("Other", 0, usage.other, 0),
        ("Total", 0, usage.total(), reclaimable),
    ];
    if args.json {
        let per_image = images.iter().map(|image| {
            let (all, unique) = usage.of_image(image, images.iter());
            json!({"Id": image.id.to_string(), "Names": names(&image.names), "Size": all, "UniqueSize": unique,
                "SharedSize": all - unique, "InUse": users(&image.id).is_some()})
        });
        let rows: serde_json::Map<String, Value> =
            rows.iter().map(|(name, _, bytes, _)| (name.replace(' ', ""), json!(bytes))).collect();
        return print_json(
            &json!({"Bytes": rows, "Reclaimable": reclaimable, "Images": per_image.collect::<Vec<_>>()}),
        );
    }
    let mut text = vec![["TYPE".to_string(), "COUNT".into(), "SIZE".into(), "RECLAIMABLE".into()]];
    let or_dash = |number: u64, shown: String| if number == 0 { "-".into() } else { shown };
    for (name, count, bytes, free) in rows {
        text.push([name.into(), or_dash(count as u64, count.to_string()), size(bytes), or_dash(free, size(free))]);
    }
    let mut out = table(&text);
    if args.images {
        let mut rows = vec![["IMAGE".to_string(), "IMAGE ID".into(), "SIZE".into(), "SHARED".into(), "UNIQUE".into()]];
        for image in &images {
            let (all, unique) = usage.of_image(image, images.iter());
            rows.push([image.label(), image.short_id(), size(all), size(all - unique), size(unique)]);
        }
        out = format!("{out}\n{}", table(&rows));
    }
    print(&out)
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
