//! `gpurun image rm | prune | tag | verify`.

use std::io::{self, IsTerminal, Write};

use clap::Args;
use serde_json::{Value, json};

use super::transfer::{PullPolicy, RegistryFlags, provide};
use super::{Place, Usages, names, print, print_json, size};
use crate::names::{Digest, Reference};
use crate::report::Report;
use crate::rootfs::images;
use crate::store::{Cure, Fault, Removed, Store};

#[derive(Debug, Args)]
pub struct RmArgs {
    /// Names or ids
    #[arg(required = true, value_name = "IMAGE")]
    pub images: Vec<String>,
    /// Remove an image by its id even when it has several names
    #[arg(short, long)]
    pub force: bool,
    /// Print the result as JSON
    #[arg(long)]
    pub json: bool,
}

#[derive(Debug, Args)]
pub struct PruneArgs {
    /// Remove every image that no container uses, not only those without a name
    #[arg(short, long)]
    pub all: bool,
    /// Do not ask
    #[arg(short, long)]
    pub force: bool,
    /// Print the result as JSON (does not ask)
    #[arg(long)]
    pub json: bool,
}

#[derive(Debug, Args)]
pub struct TagArgs {
    /// Name or id, or a source as skopeo writes it
    pub image: String,
    /// The name to give it, too; it then means nothing else
    #[arg(value_name = "NAME[:TAG]")]
    pub name: Reference,
    #[command(flatten)]
    pub registry: RegistryFlags,
}

#[derive(Debug, Args)]
pub struct VerifyArgs {
    /// Names or ids (default: the whole store)
    pub images: Vec<String>,
    /// Take damaged files away and make again what can be made; what must be loaded again is named
    #[arg(long)]
    pub repair: bool,
    /// Print the result as JSON
    #[arg(long)]
    pub json: bool,
}

/// Takes away the mounts of images that are no more: their files' space is free only then.
fn unmount_gone(store: &Store, place: &Place<'_>, removed: &[Digest]) {
    for chain in removed {
        // What somebody still stands in goes with a later sweep.
        if let Err(error) = images::sweep_one(&place.images, &chain.hex())
            && store.index_path(chain).exists()
        {
            tracing::warn!("cannot unmount the image {chain}: {error}");
        }
    }
}

pub fn rm(store: &Store, args: &RmArgs, place: &Place<'_>, users: &Usages<'_>) -> Result<(), Report> {
    let mut list = Vec::new();
    for image in &args.images {
        let chain = store.resolve(image).ok().map(|image| image.chain_id);
        let removed = store.remove(image, args.force, users)?;
        if removed.deleted.is_some() {
            unmount_gone(store, place, chain.as_slice());
        }
        if args.json {
            list.push(
                json!({"Untagged": names(&removed.untagged), "Deleted": removed.deleted.map(|id| id.to_string()),
                "Freed": removed.freed}),
            );
            continue;
        }
        print(&told(&removed))?;
    }
    if args.json { print_json(&Value::Array(list)) } else { Ok(()) }
}

fn told(removed: &Removed) -> String {
    let mut out: String = removed.untagged.iter().map(|name| format!("Untagged: {}\n", name.familiar())).collect();
    if let Some(id) = removed.deleted {
        out.push_str(&format!("Deleted: {id}\n"));
    }
    out
}

pub fn prune(store: &Store, args: &PruneArgs, place: &Place<'_>, users: &Usages<'_>) -> Result<(), Report> {
    if !args.force && !args.json {
        let which = if args.all { "all images that no container uses" } else { "all images without a name" };
        confirm(which)?;
    }
    let chains: Vec<Digest> = store.list()?.iter().map(|image| image.chain_id).collect();
    let unknown = std::cell::RefCell::new(None);
    let told_users = |id: &Digest| {
        let user = users(id);
        if let Some(crate::store::User::Unknown(why)) = &user {
            unknown.borrow_mut().get_or_insert_with(|| why.clone());
        }
        user
    };
    let (removed, freed) = store.prune(args.all, &told_users)?;
    if let Some(why) = unknown.into_inner() {
        tracing::warn!("images stay because it cannot be told who uses them: {why}");
    }
    let kept: Vec<Digest> = store.list()?.iter().map(|image| image.chain_id).collect();
    unmount_gone(store, place, &chains.into_iter().filter(|chain| !kept.contains(chain)).collect::<Vec<_>>());
    if args.json {
        let list = removed.iter().map(|one| json!({"Untagged": names(&one.untagged), "Deleted": one.deleted}));
        return print_json(&json!({"Removed": list.collect::<Vec<_>>(), "Freed": freed}));
    }
    let mut out: String = removed.iter().map(told).collect();
    out.push_str(&format!("Freed: {}\n", size(freed)));
    print(&out)
}

fn confirm(what: &str) -> Result<(), Report> {
    if !io::stdin().is_terminal() {
        return Err(Report::usage(format!("nobody is there to ask whether to remove {what}"))
            .with_hint("do not ask: `gpurun image prune --force`"));
    }
    crate::cli::print::tell(&format!("Remove {what}? [y/N] "));
    let mut answer = String::new();
    let read = io::stderr().flush().and_then(|()| io::stdin().read_line(&mut answer));
    read.map_err(|error| Report::new("cannot read the answer").with_cause(error))?;
    match answer.trim() {
        "y" | "Y" | "yes" => Ok(()),
        _ => Err(Report::new("nothing was removed").with_exit_code(1)),
    }
}

pub fn tag(store: &Store, args: &TagArgs) -> Result<(), Report> {
    if args.name.digest.is_some() {
        return Err(Report::usage(format!("`{}` has a digest: that is no name to give", args.name)));
    }
    let image = provide(store, &args.image, PullPolicy::Never, &args.registry)?;
    Ok(store.tag(&store.resolve(&image)?.id, &args.name)?)
}

/// Exit status for a store in which something is damaged.
const DAMAGED: u8 = 1;

pub fn verify(store: &Store, args: &VerifyArgs, place: &Place<'_>) -> Result<u8, Report> {
    let mut wanted = Vec::new();
    for name in &args.images {
        wanted.push(store.identify(name)?);
    }
    let wanted = (!args.images.is_empty()).then_some(wanted.as_slice());
    let verified = store.verify(wanted, &|_| ())?;
    // What cannot be told counts as used.
    let alone = |name: &str| images::alone(&place.images, name).ok().flatten();
    let left = if args.repair { store.repair(&verified.faults, &alone)? } else { Vec::new() };
    let cure = |fault: &Fault| match (&fault.cure, args.repair) {
        (Cure::LoadAgain, false) => "to take it away: gpurun image verify --repair; then load or pull the image again",
        (Cure::LoadAgain, true) => "taken away: load or pull the image again",
        (Cure::RunAgain, false) => "to take it away: gpurun image verify --repair; then run from the archive again",
        (Cure::RunAgain, true) => "taken away: run from the archive again",
        (Cure::Undraw, true) if left.contains(&fault.path) => "a container runs from it: stop it, then repair again",
        (Cure::Undraw, true) => "taken away: it is drawn again when it is needed",
        (Cure::Redraw(_) | Cure::Undraw | Cure::Forget, false) => "to mend it: gpurun image verify --repair",
        (Cure::Redraw(_) | Cure::Forget, true) => "mended",
    };
    if args.json {
        let faults = verified
            .faults
            .iter()
            .map(|fault| json!({"Path": fault.path, "Why": fault.why, "Images": fault.images, "Cure": cure(fault)}));
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
                cure(fault)
            ));
        }
        let count = |count: usize, what: &str| format!("{count} {what}{}", if count == 1 { "" } else { "s" });
        out.push_str(&format!(
            "{}, {}, {}: {}\n",
            count(verified.images, "image"),
            count(verified.layers, "layer"),
            size(verified.bytes),
            if verified.faults.is_empty() { "all whole".into() } else { count(verified.faults.len(), "fault") },
        ));
        print(&out)?;
    }
    Ok(if verified.faults.is_empty() || (args.repair && left.is_empty()) { 0 } else { DAMAGED })
}
