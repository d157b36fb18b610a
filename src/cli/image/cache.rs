//! The build cache: the steps of builds, which are images in the store, and the directories of cache mounts.
//!
//! The size of a step is that of the layer that it made. A layer that an image has too belongs to that image: such a
//! step is shared, and its removal frees nothing.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

use super::users::Mounts;
use crate::build;
use crate::cli::{Context, view};
use crate::launch::{self, ImageUsers};
use crate::names::Digest;
use crate::report::Report;
use crate::store::{Image, Store, Usage};

/// A part of the build cache.
#[derive(Debug, Clone)]
pub(crate) struct Part {
    pub(crate) id: String,
    /// docker's name of its kind.
    pub(crate) kind: &'static str,
    /// Bytes that no other part counts.
    pub(crate) size: u64,
    /// Nanoseconds since 1970.
    pub(crate) created: u64,
    pub(crate) used: u64,
    pub(crate) is_shared: bool,
    pub(crate) in_use: bool,
    what: What,
}

#[derive(Debug, Clone)]
enum What {
    /// The layers that only steps have, with their bytes.
    Step {
        image: Digest,
        layers: BTreeMap<Digest, u64>,
    },
    Mount(PathBuf),
}

impl Part {
    /// Whether its removal frees space.
    pub(crate) fn is_reclaimable(&self) -> bool {
        !self.in_use && !self.is_shared
    }
}

/// All parts, the oldest step first.
pub(crate) fn parts(context: &Context) -> Result<Vec<Part>, Report> {
    let store = context.store()?;
    let mounts = Mounts { images: context.run_dir.join("images"), context };
    list(&store, &mounts.users(&store), &store.usage()?)
}

pub(super) fn list(store: &Store, users: &ImageUsers, usage: &Usage) -> Result<Vec<Part>, Report> {
    let cache = build::Cache::open(store.root())?;
    let failed = |error: std::io::Error| Report::new("cannot read the build cache").with_cause(error);
    let used = cache.last_used().map_err(failed)?;
    let (mut steps, images): (Vec<Image>, Vec<Image>) = store.list()?.into_iter().partition(|image| image.intermediate);
    let of_images: BTreeSet<Digest> = images.iter().flat_map(|image| image.diff_ids.iter().copied()).collect();
    steps.sort_by_key(|step| (step.diff_ids.len(), step.loaded_at, step.id));
    let mut counted = BTreeSet::new();
    let mut parts = Vec::new();
    for step in steps {
        let created = step.loaded_at.saturating_mul(1_000_000_000);
        let top = step.diff_ids.last();
        let last = |digest: Option<&Digest>| digest.and_then(|digest| used.get(&digest.to_string())).copied();
        let layers: BTreeMap<Digest, u64> = step
            .diff_ids
            .iter()
            .filter(|id| !of_images.contains(id))
            .map(|id| (*id, usage.by_layer.get(id).copied().unwrap_or(0)))
            .collect();
        let is_shared = top.is_none_or(|top| of_images.contains(top));
        let size = top.filter(|top| !is_shared && counted.insert(**top)).and_then(|top| layers.get(top)).copied();
        parts.push(Part {
            id: step.short_id(),
            kind: "regular",
            size: size.unwrap_or(0),
            created,
            used: last(top).or_else(|| last(Some(&step.id))).unwrap_or(created),
            is_shared,
            in_use: users.of(&step.id).is_some(),
            what: What::Step { image: step.id, layers },
        });
    }
    for (path, changed) in cache.mounts().map_err(failed)? {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        parts.push(Part {
            id: name.chars().take(12).collect(),
            kind: "exec.cachemount",
            size: view::size_of(&path),
            created: changed,
            used: changed,
            is_shared: false,
            in_use: false,
            what: What::Mount(path.clone()),
        });
    }
    Ok(parts)
}

/// Which parts are removed.
#[derive(Debug, Default)]
pub(crate) struct Selection {
    /// Remove steps whose layers an image has, too.
    pub(crate) all: bool,
    /// Remove only what was not used since this time, in nanoseconds since 1970.
    pub(crate) until: Option<u64>,
    /// Keep this many bytes of what was used last.
    pub(crate) keep: u64,
    /// The kinds to remove. None means all.
    pub(crate) kinds: Vec<String>,
}

impl Selection {
    /// Whether the filters select a part.
    pub(crate) fn takes(&self, part: &Part) -> bool {
        self.until.is_none_or(|until| part.used < until)
            && (self.kinds.is_empty() || self.kinds.iter().any(|kind| kind == part.kind))
    }

    /// Returns the parts to remove.
    fn of(&self, mut parts: Vec<Part>) -> Vec<Part> {
        // A step keeps the layers of all steps before it, so the parts that stay are chosen first.
        parts.sort_by_key(|part| std::cmp::Reverse((part.used, part.created)));
        let (mut kept, mut layers_kept) = (0, BTreeSet::new());
        parts.retain(|part| {
            let needed: u64 = match &part.what {
                What::Step { layers, .. } => {
                    layers.iter().filter(|(id, _)| !layers_kept.contains(*id)).map(|(_, bytes)| bytes).sum()
                }
                What::Mount(_) => part.size,
            };
            let stays = self.keep > 0 && kept + needed <= self.keep;
            if stays {
                kept += needed;
                if let What::Step { layers, .. } = &part.what {
                    layers_kept.extend(layers.keys().copied());
                }
            }
            !stays && self.takes(part) && !part.in_use && (self.all || !part.is_shared)
        });
        parts
    }
}

/// Removes parts of the build cache. Returns the IDs of what was removed, and the freed bytes.
pub(crate) fn prune(context: &Context, selection: &Selection) -> Result<(Vec<String>, u64), Report> {
    let store = context.store()?;
    let mounts = Mounts { images: context.run_dir.join("images"), context };
    launch::sweep_images(&context.run_dir);
    let selected = selection.of(list(&store, &mounts.users(&store), &store.usage()?)?);
    let step = |part: &Part| match part.what {
        What::Step { image, .. } => Some(image),
        What::Mount(_) => None,
    };
    let steps: BTreeSet<Digest> = selected.iter().filter_map(step).collect();
    // A build may begin to use a step in the meantime, so the users are read again, under the store's lock.
    let users = std::cell::OnceCell::new();
    let in_use = |id: &Digest| users.get_or_init(|| mounts.users(&store)).of(id);
    let is_step = |image: &Image| image.intermediate && steps.contains(&image.id);
    let (removed, mut freed) = super::manage::remove_selected(&store, &is_step, &mounts, &in_use)?;
    let removed: BTreeSet<Digest> = removed.into_iter().filter_map(|one| one.deleted).collect();
    let mut ids: Vec<String> = selected
        .iter()
        .filter(|part| step(part).is_some_and(|id| removed.contains(&id)))
        .map(|part| part.id.clone())
        .collect();
    let cache = build::Cache::open(store.root())?;
    let failed = |error: std::io::Error| Report::new("cannot remove a part of the build cache").with_cause(error);
    let left: BTreeSet<String> = store
        .list()?
        .iter()
        .flat_map(|image| image.diff_ids.iter().map(ToString::to_string).chain([image.id.to_string()]))
        .collect();
    cache.forget(&|digest| left.contains(digest)).map_err(failed)?;
    let dirs: Vec<(&Part, &std::path::Path)> = selected
        .iter()
        .filter_map(|part| match &part.what {
            What::Mount(path) => Some((part, path.as_path())),
            What::Step { .. } => None,
        })
        .collect();
    let paths: Vec<&std::path::Path> = dirs.iter().map(|(_, path)| *path).collect();
    if !paths.is_empty() && !cache.remove_mounts(&paths).map_err(failed)? {
        crate::cli::print::say("gpurun: the cache mounts are kept, because a build uses one of them");
        return Ok((ids, freed));
    }
    for (part, _) in dirs {
        ids.push(part.id.clone());
        freed += part.size;
    }
    Ok((ids, freed))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(number: u8) -> Digest {
        Digest([number; 32])
    }

    /// A step whose layers have these numbers and ten bytes each.
    fn step(number: u8, used: u64, layers: &[u8]) -> Part {
        let layers = layers.iter().map(|layer| (id(*layer), 10)).collect();
        Part {
            id: number.to_string(),
            kind: "regular",
            size: 10,
            created: 0,
            used,
            is_shared: false,
            in_use: false,
            what: What::Step { image: id(number), layers },
        }
    }

    fn selected(selection: &Selection, parts: &[Part]) -> String {
        let mut ids: Vec<String> = selection.of(parts.to_vec()).into_iter().map(|part| part.id).collect();
        ids.sort();
        ids.join(" ")
    }

    #[test]
    fn the_parts_that_were_used_last_are_kept() {
        let mount = Part { id: "m".into(), kind: "exec.cachemount", what: What::Mount("/m".into()), ..step(9, 5, &[]) };
        let parts = [step(1, 1, &[1]), step(2, 2, &[1, 2]), step(3, 3, &[3]), mount];
        assert_eq!(selected(&Selection::default(), &parts), "1 2 3 m");
        assert_eq!(selected(&Selection { until: Some(3), ..Selection::default() }, &parts), "1 2");
        assert_eq!(selected(&Selection { keep: 10, ..Selection::default() }, &parts), "1 2 3");
        // The second step needs the layer of the first one.
        assert_eq!(selected(&Selection { keep: 29, ..Selection::default() }, &parts), "1 2");
        assert_eq!(selected(&Selection { keep: 39, ..Selection::default() }, &parts), "2");
        assert_eq!(selected(&Selection { keep: 40, ..Selection::default() }, &parts), "");
        assert_eq!(selected(&Selection { kinds: vec!["regular".into()], ..Selection::default() }, &parts), "1 2 3");
    }

    #[test]
    fn steps_that_an_image_shares_are_removed_on_request_and_used_ones_never() {
        let parts = [Part { is_shared: true, ..step(1, 1, &[]) }, Part { in_use: true, ..step(2, 1, &[2]) }];
        assert_eq!(selected(&Selection::default(), &parts), "");
        assert_eq!(selected(&Selection { all: true, ..Selection::default() }, &parts), "1");
    }
}
