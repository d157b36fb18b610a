//! `gpurun image rm | prune | tag | verify`.

use clap::Args;
use serde_json::{Value, json};

use super::size;
use super::text::{created, names, print, print_json};
use super::transfer::{PullPolicy, RegistryFlags, provide};
use super::users::{Mounts, NewUsages, Usages};
use crate::cli::confirm::confirm;
use crate::cli::filter::Filters;
use crate::cli::moment;
use crate::names::{Digest, Reference};
use crate::report::Report;
use crate::rootfs::images;
use crate::store::{Fault, Image, RemoveError, Removed, Repair, ResolveError, Store};

#[derive(Debug, Args)]
pub(crate) struct RmArgs {
    /// Names or IDs of images
    #[arg(required_unless_present = "all", value_name = "IMAGE")]
    pub images: Vec<String>,
    /// Remove all images with all their names, except those that a container uses
    #[arg(short, long, conflicts_with = "images")]
    pub all: bool,
    /// Remove an image with all its names
    #[arg(short, long)]
    pub force: bool,
    /// Do not fail if an image does not exist
    #[arg(short, long)]
    pub ignore: bool,
    /// Accepted as docker's flag: an image here has no parents that could be removed with it
    #[arg(long, hide = true)]
    pub no_prune: bool,
    /// Print the result as JSON
    #[arg(long)]
    pub json: bool,
}

#[derive(Debug, Args)]
pub(crate) struct PruneArgs {
    /// Remove all images without a container, not only those without a name
    #[arg(short, long)]
    pub all: bool,
    /// Do not prompt for confirmation
    #[arg(short, long)]
    pub force: bool,
    /// Select images: until=TIME, label=KEY[=VALUE], dangling=false (as --all)
    #[arg(long, value_name = "KEY=VALUE")]
    pub filter: Vec<String>,
    /// Print the result as JSON, without a prompt
    #[arg(long)]
    pub json: bool,
}

#[derive(Debug, Args)]
pub(crate) struct TagArgs {
    /// Name or ID of an image, or a source in skopeo's notation
    #[arg(value_name = "IMAGE")]
    pub image: String,
    /// New names of the image; an image that has the name loses it
    #[arg(required = true, value_name = "NAME[:TAG]")]
    pub names: Vec<Reference>,
    #[command(flatten)]
    pub registry: RegistryFlags,
}

#[derive(Debug, Args)]
pub(crate) struct UntagArgs {
    /// Name or ID of an image
    #[arg(value_name = "IMAGE")]
    pub image: String,
    /// Names to remove (default: all names of the image)
    #[arg(value_name = "NAME[:TAG]")]
    pub names: Vec<String>,
}

#[derive(Debug, Args)]
pub(crate) struct VerifyArgs {
    /// Names or IDs of images (default: all)
    #[arg(value_name = "IMAGE")]
    pub images: Vec<String>,
    /// Remove damaged files and recreate them where possible; list the images that must be loaded again
    #[arg(long)]
    pub repair: bool,
    /// Print the result as JSON
    #[arg(long)]
    pub json: bool,
}

/// Unmounts images that have been removed. Their disk space is freed only then.
fn unmount_gone(store: &Store, mounts: &Mounts<'_>, removed: &[Digest]) {
    for chain in removed {
        // A mount that is still in use is removed by a later sweep.
        if let Err(error) = images::sweep_one(&mounts.images, &chain.hex())
            && store.index_path(chain).exists()
        {
            tracing::warn!("cannot unmount the image {chain}: {error}");
        }
    }
}

pub(super) fn rm(store: &Store, args: &RmArgs, mounts: &Mounts<'_>, users: &NewUsages<'_>) -> Result<(), Report> {
    let mut list = Vec::new();
    let mut first: Option<Report> = None;
    let every: Vec<String> = match args.all {
        true => {
            store.list()?.into_iter().filter(|image| !image.intermediate).map(|image| image.id.to_string()).collect()
        }
        false => Vec::new(),
    };
    for image in args.images.iter().chain(&every) {
        let chain = store.resolve(image).ok().map(|image| image.chain_id);
        let removed = match store.remove(image, args.force || args.all, &*users()) {
            Ok(removed) => removed,
            Err(RemoveError::Resolve(ResolveError::NotFound { .. })) if args.ignore => continue,
            Err(error @ RemoveError::Resolve(ResolveError::NotFound { .. })) if args.force => {
                crate::cli::print::say(&format!("gpurun: {error}"));
                continue;
            }
            // As in docker, the others are removed all the same.
            Err(error) => {
                let report = Report::from(error).with_exit_code(1);
                if first.is_some() {
                    crate::cli::print::say(&report.to_string());
                } else {
                    first = Some(report);
                }
                continue;
            }
        };
        if removed.deleted.is_some() {
            unmount_gone(store, mounts, chain.as_slice());
        }
        if args.json {
            list.push(
                json!({"Untagged": names(&removed.untagged), "Deleted": removed.deleted.map(|id| id.to_string()),
                "Freed": removed.freed}),
            );
            continue;
        }
        print(&describe(&removed))?;
    }
    if args.json {
        print_json(&Value::Array(list))?;
    }
    first.map_or(Ok(()), Err)
}

/// Removes names of an image. As in podman, the image stays, also without a name.
pub(super) fn untag(store: &Store, args: &UntagArgs) -> Result<(), Report> {
    let image = store.resolve(&args.image).map_err(in_store)?;
    let mut names = Vec::new();
    for text in &args.names {
        let name = image.names.iter().find(|name| store.is_name(text, name)).ok_or_else(|| {
            let known: Vec<String> = image.names.iter().map(|name| format!("`{}`", name.familiar())).collect();
            let hint = match known.is_empty() {
                true => "the image has no names".to_owned(),
                false => format!("its names are {}", known.join(", ")),
            };
            Report::new(format!("the image `{}` has no name `{text}`", image.label())).with_hint(hint)
        })?;
        names.push(name.clone());
    }
    Ok(store.untag(if args.names.is_empty() { &image.names } else { &names })?)
}

fn describe(removed: &Removed) -> String {
    let mut out: String = removed.untagged.iter().map(|name| format!("Untagged: {}\n", name.familiar())).collect();
    if let Some(id) = removed.deleted {
        out.push_str(&format!("Deleted: {id}\n"));
    }
    out
}

/// Which unused images `prune` removes.
pub(super) struct Selection {
    /// Whether images with names are removed too, and the steps of builds.
    all: bool,
    filters: Filters,
    until: Option<u64>,
}

impl Selection {
    pub(super) fn parse(all: bool, filters: &[String]) -> Result<Self, Report> {
        let filters = Filters::parse(filters, &["until", "label", "dangling"])?;
        let until = filters.values("until").last().map(|text| moment::parse("--filter until", text)).transpose()?;
        Ok(Self { all: all || filters.truth("dangling")? == Some(false), filters, until })
    }

    fn takes(&self, image: &Image) -> bool {
        (self.all || image.is_dangling())
            && self.filters.labels(&image.config.labels)
            && self.until.is_none_or(|until| created(image).unwrap_or(0) < until)
    }
}

pub(super) fn prune(store: &Store, args: &PruneArgs, mounts: &Mounts<'_>, users: &Usages<'_>) -> Result<(), Report> {
    let selection = Selection::parse(args.all, &args.filter)?;
    if !args.force && !args.json {
        let which = if selection.all { "all images that no container uses" } else { "all images without a name" };
        confirm(which, "gpurun image prune --force")?;
    }
    let (removed, freed) = remove_selected(store, &|image| selection.takes(image), mounts, users)?;
    if args.json {
        let list = removed.iter().map(|one| json!({"Untagged": names(&one.untagged), "Deleted": one.deleted}));
        return print_json(&json!({"Removed": list.collect::<Vec<_>>(), "Freed": freed}));
    }
    print_removed(&removed)?;
    print(&format!("Total reclaimed space: {}\n", size(freed)))
}

/// Removes unused images for `gpurun system prune`, and prints them. Returns the freed bytes.
pub(super) fn prune_unused(
    store: &Store,
    selection: &Selection,
    mounts: &Mounts<'_>,
    users: &Usages<'_>,
) -> Result<u64, Report> {
    let (removed, freed) = remove_selected(store, &|image| selection.takes(image), mounts, users)?;
    print_removed(&removed)?;
    Ok(freed)
}

fn print_removed(removed: &[Removed]) -> Result<(), Report> {
    if removed.is_empty() {
        return Ok(());
    }
    print(&format!("Deleted Images:\n{}\n", removed.iter().map(describe).collect::<String>()))
}

/// Removes the selected images that are not in use. Returns them, and the freed bytes.
pub(super) fn remove_selected(
    store: &Store,
    is_selected: &dyn Fn(&Image) -> bool,
    mounts: &Mounts<'_>,
    users: &Usages<'_>,
) -> Result<(Vec<Removed>, u64), Report> {
    let chains: Vec<Digest> = store.list()?.iter().map(|image| image.chain_id).collect();
    let unknown = std::cell::RefCell::new(None);
    let told_users = |id: &Digest| {
        let user = users(id);
        if let Some(crate::store::User::Unknown(why)) = &user {
            unknown.borrow_mut().get_or_insert_with(|| why.clone());
        }
        user
    };
    let (removed, freed) = store.prune(is_selected, &told_users)?;
    if let Some(why) = unknown.into_inner() {
        tracing::warn!("some images are kept, because gpurun cannot find out whether they are in use: {why}");
    }
    let kept: Vec<Digest> = store.list()?.iter().map(|image| image.chain_id).collect();
    unmount_gone(store, mounts, &chains.into_iter().filter(|chain| !kept.contains(chain)).collect::<Vec<_>>());
    Ok((removed, freed))
}

pub(super) fn tag(store: &Store, args: &TagArgs) -> Result<(), Report> {
    if let Some(name) = args.names.iter().find(|name| name.digest.is_some()) {
        return Err(Report::usage(format!("cannot use `{name}` as a name: it contains a digest")));
    }
    let image = provide(store, &args.image, PullPolicy::Never, &args.registry)?;
    let id = store.resolve(&image)?.id;
    args.names.iter().try_for_each(|name| Ok(store.tag(&id, name)?))
}

/// Converts the error for an unknown name where only an image in the store is valid.
pub(crate) fn in_store(error: ResolveError) -> Report {
    let hint = error.hint_in_store();
    Report { hint, ..Report::from(error) }
}

/// Exit status for a store with damaged files.
const DAMAGED: u8 = 1;

pub(super) fn verify(store: &Store, args: &VerifyArgs, mounts: &Mounts<'_>) -> Result<u8, Report> {
    let mut wanted = Vec::new();
    for name in &args.images {
        wanted.push(store.identify(name).map_err(in_store)?);
    }
    let wanted = (!args.images.is_empty()).then_some(wanted.as_slice());
    let verified = store.verify(wanted, &|_| ())?;
    // An image whose use cannot be determined counts as used.
    let lease_exclusively = |name: &str| images::lease_exclusively(&mounts.images, name).ok().flatten();
    let left = if args.repair { store.repair(&verified.faults, &lease_exclusively)? } else { Vec::new() };
    let repair = |fault: &Fault| match (&fault.repair, args.repair) {
        (Repair::LoadAgain, false) => {
            "remove it with `gpurun image verify --repair`, then load or pull the image again"
        }
        (Repair::LoadAgain, true) => "removed: load or pull the image again",
        (Repair::RunAgain, false) => "remove it with `gpurun image verify --repair`, then run from the archive again",
        (Repair::RunAgain, true) => "removed: run from the archive again",
        (Repair::RemoveTree, true) if left.contains(&fault.path) => {
            "a container runs from it: stop it, then repair again"
        }
        (Repair::RemoveTree, true) => "removed: it is unpacked again when it is needed",
        (Repair::Rebuild(_) | Repair::RemoveTree | Repair::Forget, false) => {
            "repair it with `gpurun image verify \
                                                                              --repair`"
        }
        (Repair::Rebuild(_) | Repair::Forget, true) => "mended",
    };
    if args.json {
        let faults = verified
            .faults
            .iter()
            .map(|fault| json!({"Path": fault.path, "Why": fault.why, "Images": fault.images, "Cure": repair(fault)}));
        print_json(&json!({"Images": verified.images, "Layers": verified.layers, "Bytes": verified.bytes,
            "Faults": Value::Array(faults.collect())}))?;
    } else {
        let mut out = String::new();
        for fault in &verified.faults {
            let images: Vec<String> = fault.images.iter().map(|name| format!("`{name}`")).collect();
            out.push_str(&format!(
                "{}: {}\n  needed by {}; {}\n",
                fault.path.display(),
                fault.why,
                images.join(", "),
                repair(fault)
            ));
        }
        let count = |count: usize, what: &str| format!("{count} {what}{}", if count == 1 { "" } else { "s" });
        out.push_str(&format!(
            "{}, {}, {}: {}\n",
            count(verified.images, "image"),
            count(verified.layers, "layer"),
            size(verified.bytes),
            if verified.faults.is_empty() { "no damage found".into() } else { count(verified.faults.len(), "fault") },
        ));
        print(&out)?;
    }
    Ok(if verified.faults.is_empty() || (args.repair && left.is_empty()) { 0 } else { DAMAGED })
}
