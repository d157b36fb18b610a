//! `gpurun image push`, and the push of a build.

use clap::Args;
use serde_json::{Value, json};

use super::progress::Shown;
use super::text::{print, print_json};
use super::transfer::{Packing, PullPolicy, RegistryFlags, provide, reference, repository};
use crate::cli::print::say;
use crate::cli::resources::seconds;
use crate::names::{Digest, Reference};
use crate::report::Report;
use crate::store::{Image, Store};
use crate::transport::registry::Pushed;

#[derive(Debug, Args)]
pub(crate) struct PushArgs {
    /// Name or ID of an image, or a source in skopeo's notation
    #[arg(value_name = "IMAGE")]
    pub image: String,
    /// Destination, a name with its registry (default: IMAGE)
    #[arg(value_name = "NAME[:TAG]")]
    pub target: Option<String>,
    /// Push all tags that the repository has in the store
    #[arg(short, long, conflicts_with = "target")]
    pub all_tags: bool,
    /// Compression of layers that the registry does not have yet
    #[arg(long, value_name = "gzip|zstd|none", default_value = "gzip")]
    pub compression: Packing,
    /// Maximum number of seconds for the whole push (default: no limit)
    #[arg(long, value_name = "SECONDS", allow_negative_numbers = true, value_parser = seconds)]
    pub timeout: Option<u64>,
    /// Print only the manifest's digest
    #[arg(short, long)]
    pub quiet: bool,
    /// Print the result as JSON
    #[arg(long, conflicts_with = "quiet")]
    pub json: bool,
    #[command(flatten)]
    pub registry: RegistryFlags,
}

pub(super) fn push(store: &Store, args: &PushArgs) -> Result<(), Report> {
    if args.all_tags {
        return push_all(store, args);
    }
    let target = reference(args.target.as_deref().unwrap_or(&args.image))?;
    let image = store.resolve(&provide(store, &args.image, PullPolicy::Never, &args.registry)?)?;
    let pushed = send(store, &image, &target, args.compression, args.timeout, &args.registry, args.quiet)?;
    if args.json {
        return print_json(&pushed_json(&target, &pushed));
    }
    print_pushed(&target, &pushed, args.quiet)
}

fn push_all(store: &Store, args: &PushArgs) -> Result<(), Report> {
    let repository = repository(&args.image)?;
    let mut found: Vec<(Reference, Image)> = Vec::new();
    for image in store.list()? {
        let is_tag = |name: &&Reference| {
            name.tag.is_some() && (&name.domain, &name.path) == (&repository.domain, &repository.path)
        };
        found.extend(image.names.iter().filter(is_tag).map(|name| (name.clone(), image.clone())));
    }
    found.sort_by(|(one, _), (other, _)| one.cmp(other));
    if found.is_empty() {
        return Err(Report::new(format!("cannot push all tags of `{}`: the store has none", args.image))
            .with_hint("list the images in the store with `gpurun image ls`"));
    }
    let mut list = Vec::new();
    for (name, image) in &found {
        let pushed = send(store, image, name, args.compression, args.timeout, &args.registry, args.quiet)?;
        match args.json {
            true => list.push(pushed_json(name, &pushed)),
            false => print_pushed(name, &pushed, args.quiet)?,
        }
    }
    if args.json { print_json(&Value::Array(list)) } else { Ok(()) }
}

fn pushed_json(name: &Reference, pushed: &Pushed) -> Value {
    json!({"Name": name.familiar(), "Digest": pushed.manifest_digest, "SentLayers": pushed.sent})
}

fn print_pushed(name: &Reference, pushed: &Pushed, quiet: bool) -> Result<(), Report> {
    let digest = pushed.manifest_digest;
    print(&if quiet { format!("{digest}\n") } else { format!("Pushed {}: {digest}\n", name.familiar()) })
}

fn send(
    store: &Store,
    image: &Image,
    target: &Reference,
    compression: Packing,
    timeout: Option<u64>,
    registry: &RegistryFlags,
    quiet: bool,
) -> Result<Pushed, Report> {
    let shown = (!quiet).then(|| Shown::new("pushing"));
    let options = registry.options(timeout, shown.as_ref())?;
    if !quiet {
        say(&format!("gpurun: pushing {} to {target}", image.short_id()));
    }
    Ok(match &shown {
        Some(shown) => {
            shown.begin_push(&store.layers(image)?);
            store.push(image, target, compression.into(), &options, &**shown)
        }
        None => store.push(image, target, compression.into(), &options, &()),
    }?)
}

/// Pushes an image for another command. Returns the digest of its manifest.
pub(crate) fn push_image(
    store: &Store,
    image: &Image,
    target: &Reference,
    packing: Packing,
    registry: &RegistryFlags,
    quiet: bool,
) -> Result<Digest, Report> {
    Ok(send(store, image, target, packing, None, registry, quiet)?.manifest_digest)
}
