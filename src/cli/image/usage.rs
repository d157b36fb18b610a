//! `gpurun image df`, and the images in `gpurun system df`.

use std::collections::{BTreeMap, HashSet};

use clap::Args;
use serde_json::{Value, json};

use super::cache::{self, Part};
use super::list::{fields, shown};
use super::size;
use super::text::{names, print, print_json, table};
use super::users::{Mounts, Usages};
use crate::cli::Context;
use crate::names::{Digest, Reference};
use crate::report::Report;
use crate::store::{Image, Store};
use crate::template;

#[derive(Debug, Args)]
pub(crate) struct DfArgs {
    /// Show each image too
    #[arg(short, long)]
    pub images: bool,
    /// Print as JSON, in bytes
    #[arg(long)]
    pub json: bool,
}

pub(super) fn df(store: &Store, args: &DfArgs, users: &Usages<'_>) -> Result<(), Report> {
    let images = store.list()?;
    // Look up the users of each image once.
    let in_use: Vec<bool> = images.iter().map(|image| users(&image.id).is_some()).collect();
    let used: Vec<&Image> = images.iter().zip(&in_use).filter(|(_, used)| **used).map(|(image, _)| image).collect();
    // Must follow the lookup of containers, which creates their directory if it does not exist.
    let usage = store.usage()?;
    let reclaimable = usage.only_outside(&used);
    let rows = [
        ("Layers", usage.layer_count, usage.layers, reclaimable),
        ("Indexes", 0, usage.indexes, 0),
        ("Documents", images.len(), usage.documents, 0),
        ("Unpacked trees", 0, usage.rendered, 0),
        ("In progress", 0, usage.in_progress, 0),
        ("Containers", 0, usage.containers, 0),
        ("Volumes", 0, usage.volumes, 0),
        ("Other", 0, usage.other, 0),
        ("Total", 0, usage.total(), reclaimable),
    ];
    if args.json {
        let per_image =
            images.iter().zip(usage.of_images(&images)).zip(&in_use).map(|((image, (all, unique)), used)| {
                json!({"Id": image.id.to_string(), "Names": names(&image.names), "Size": all, "UniqueSize": unique,
                "SharedSize": all - unique, "InUse": used})
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
        for (image, (all, unique)) in images.iter().zip(usage.of_images(&images)) {
            rows.push([image.label(), image.short_id(), size(all), size(all - unique), size(unique)]);
        }
        out = format!("{out}\n{}", table(&rows));
    }
    print(&out)
}

/// What `gpurun system df` shows of the store.
pub(crate) struct Usage {
    /// All images, without the steps of builds.
    pub(crate) images: Vec<Image>,
    /// Whether each image is in use.
    pub(crate) in_use: Vec<bool>,
    /// Bytes of all images.
    pub(crate) size: u64,
    /// Bytes of layers that only unused images have.
    pub(crate) reclaimable: u64,
    /// Bytes of each image's layers, and of those that no other image has.
    sizes: Vec<(u64, u64)>,
    pub(crate) cache: Vec<Part>,
}

impl Usage {
    pub(crate) fn of(context: &Context) -> Result<Self, Report> {
        let store = context.store()?;
        let mounts = Mounts { images: context.run_dir.join("images"), context };
        let users = mounts.users(&store);
        let mut images = store.list()?;
        let usage = store.usage()?;
        let cache = cache::list(&store, &users, &usage)?;
        images.retain(|image| !image.intermediate);
        let in_use: Vec<bool> = images.iter().map(|image| users.of(&image.id).is_some()).collect();
        let layers = |is_wanted: &dyn Fn(bool) -> bool| -> HashSet<Digest> {
            let wanted = images.iter().zip(&in_use).filter(|(_, used)| is_wanted(**used));
            wanted.flat_map(|(image, _)| image.diff_ids.iter().copied()).collect()
        };
        let (of_images, of_used) = (layers(&|_| true), layers(&|used| used));
        let bytes = |id: &Digest| usage.by_layer.get(id).copied().unwrap_or(0);
        let size: u64 = of_images.iter().map(bytes).sum();
        Ok(Self {
            reclaimable: of_images.difference(&of_used).map(bytes).sum(),
            size: size + usage.indexes + usage.documents + usage.rendered,
            sizes: usage.of_images(&images),
            images,
            in_use,
            cache,
        })
    }

    /// The fields of each image for `system df --verbose`. `containers` counts the containers of each image.
    pub(crate) fn rows(&self, containers: &BTreeMap<Digest, usize>) -> Vec<template::Value> {
        let each = self.images.iter().zip(&self.sizes).zip(&self.in_use);
        let row = |((image, (all, unique)), in_use): ((&Image, &(u64, u64)), &bool)| {
            let known: Vec<&Reference> = image.names.iter().take(1).collect();
            let name = shown(&known).next().unwrap_or_default();
            let mut row = fields(image, name, image.short_id(), *in_use);
            if let template::Value::Fields(fields) = &mut row {
                let count = containers.get(&image.id).copied().unwrap_or(0);
                let changed = [
                    ("Size", size(*all)),
                    ("VirtualSize", size(*all)),
                    ("SharedSize", size(all - unique)),
                    ("UniqueSize", size(*unique)),
                    ("Containers", count.to_string()),
                ];
                fields.extend(changed.map(|(key, value)| (key.to_owned(), value.into())));
            }
            row
        };
        each.map(row).collect()
    }
}
