//! `gpurun image load | pull | push`, and the pull that `run` makes.

use std::io::{self, IsTerminal};
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::Args;
use serde_json::{Value, json};

use super::progress::Shown;
use super::{names, print, print_json};
use crate::cli::print::say;
use crate::cli::resources::seconds;
use crate::durable::FileLock;
use crate::image::Platform;
use crate::names::Reference;
use crate::report::Report;
use crate::store::{Image, LoadOptions, Loaded, Source, Store};
use crate::sys::tty::Hidden;
use crate::transport::registry::{self, Credentials, Settings};

/// Where mirrors are listed.
const SETTINGS: &str = "/etc/gpurun/registries.json";

#[derive(Debug, Args)]
pub struct LoadArgs {
    /// A tar (also gzip or zstd packed), an OCI layout directory, `-` for standard input, or a source as skopeo writes it: `oci:DIR[:TAG]`,
    /// `oci-archive:FILE[:TAG]`, `docker-archive:FILE[:NAME]`, `docker://NAME`
    #[arg(value_name = "SOURCE", required_unless_present = "input")]
    pub source: Option<Source>,
    /// The same, as docker writes it
    #[arg(short, long, value_name = "FILE", conflicts_with = "source")]
    pub input: Option<PathBuf>,
    /// Give the image this name, besides those that the file has
    #[arg(short = 't', long = "name", alias = "tag", value_name = "NAME[:TAG]")]
    pub names: Vec<Reference>,
    /// Print the ids alone, and no progress
    #[arg(short, long)]
    pub quiet: bool,
    /// Print the result as JSON
    #[arg(long, conflicts_with = "quiet")]
    pub json: bool,
    #[command(flatten)]
    pub registry: RegistryFlags,
}

#[derive(Debug, Args)]
pub struct PullArgs {
    /// Names with tag or digest: `debian:12`, `quay.io/jupyter/base-notebook`, `registry.lab:5000/torch@sha256:…`
    #[arg(required = true, value_name = "NAME[:TAG|@DIGEST]")]
    pub images: Vec<String>,
    /// Seconds for the whole pull, all waiting included (default: as long as it takes)
    #[arg(long, value_name = "SECONDS", allow_negative_numbers = true, value_parser = seconds)]
    pub timeout: Option<u64>,
    /// Print the ids alone, and no progress
    #[arg(short, long)]
    pub quiet: bool,
    /// Print the result as JSON
    #[arg(long, conflicts_with = "quiet")]
    pub json: bool,
    #[command(flatten)]
    pub registry: RegistryFlags,
}

#[derive(Debug, Args)]
pub struct PushArgs {
    /// Name or id of an image in the store, or a source as skopeo writes it
    #[arg(value_name = "IMAGE")]
    pub image: String,
    /// Where to: a name with its registry (default: IMAGE itself)
    #[arg(value_name = "NAME[:TAG]")]
    pub target: Option<String>,
    /// How layers are packed that the registry has not yet
    #[arg(long, value_name = "gzip|zstd|none", default_value = "gzip")]
    pub compression: Packing,
    /// Seconds for the whole push, all waiting included (default: as long as it takes)
    #[arg(long, value_name = "SECONDS", allow_negative_numbers = true, value_parser = seconds)]
    pub timeout: Option<u64>,
    /// Print the manifest's digest alone, and no progress
    #[arg(short, long)]
    pub quiet: bool,
    /// Print the result as JSON
    #[arg(long, conflicts_with = "quiet")]
    pub json: bool,
    #[command(flatten)]
    pub registry: RegistryFlags,
}

/// How layers are packed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Packing {
    Gzip,
    Zstd,
    None,
}

impl From<Packing> for crate::image::Compression {
    fn from(packing: Packing) -> Self {
        match packing {
            Packing::Gzip => Self::Gzip,
            Packing::Zstd => Self::Zstd,
            Packing::None => Self::None,
        }
    }
}

/// How to talk to a registry: podman's flags.
#[derive(Debug, Clone, Default, Args)]
#[command(next_help_heading = "Registry")]
pub struct RegistryFlags {
    /// Take the image for this platform: linux/arm64
    #[arg(long, value_name = "OS/ARCH")]
    pub platform: Option<Platform>,
    /// `false`: trust any certificate, and speak plain HTTP where there is no TLS
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    pub tls_verify: Option<bool>,
    /// Directory with the registry's authority (`*.crt`) and our certificate (`*.cert`, `*.key`), instead of /etc/docker/certs.d/HOST
    #[arg(long, value_name = "DIR")]
    pub cert_dir: Option<PathBuf>,
    /// Log in as; without a password it is asked for (default: what `docker login` and `podman login` wrote)
    #[arg(long, value_name = "USER[:PASSWORD]")]
    pub creds: Option<String>,
    /// Take logins from this file
    #[arg(long, value_name = "FILE", env = "REGISTRY_AUTH_FILE")]
    pub authfile: Option<PathBuf>,
}

impl RegistryFlags {
    /// The options, with `shown` as the place for notices.
    fn options(
        &self,
        timeout: Option<u64>,
        shown: Option<&std::sync::Arc<Shown>>,
    ) -> Result<registry::Options, Report> {
        let mirrors = std::env::var("GPURUN_MIRRORS").ok();
        let credentials = match self.creds.as_deref().map(|creds| creds.split_once(':').ok_or(creds)) {
            None => None,
            Some(Ok((user, password))) => Some(Credentials::Password { user: user.into(), password: password.into() }),
            Some(Err(user)) => {
                let password = Hidden::open()
                    .and_then(|mut terminal| terminal.ask(&format!("Password for {user}: ")))
                    .map_err(|error| Report::new("cannot ask for the password").with_cause(error))?;
                Some(Credentials::Password { user: user.into(), password })
            }
        };
        let mut options = registry::Options {
            tls_verify: self.tls_verify,
            cert_dir: self.cert_dir.clone(),
            credentials,
            auth_file: self.authfile.clone(),
            timeout: timeout.map(Duration::from_secs),
            settings: Settings::read(Path::new(SETTINGS), mirrors.as_deref())?,
            ..registry::Options::default()
        };
        if let Some(text) = std::env::var_os("GPURUN_STALL_TIMEOUT").filter(|text| !text.is_empty()) {
            let seconds =
                text.to_str().and_then(|text| text.parse().ok()).filter(|seconds| (1..=86_400).contains(seconds));
            let bad = || Report::usage(format!("`GPURUN_STALL_TIMEOUT={}` is no number of seconds", text.display()));
            options.stall = Duration::from_secs(seconds.ok_or_else(bad)?);
        }
        if let Some(shown) = shown.cloned() {
            options.notice = std::sync::Arc::new(move |line| shown.line(line));
        }
        Ok(options)
    }

    fn load_options(
        &self,
        names: &[Reference],
        timeout: Option<u64>,
        shown: Option<&std::sync::Arc<Shown>>,
    ) -> Result<LoadOptions, Report> {
        Ok(LoadOptions {
            names: names.to_vec(),
            platform: self.platform.clone().unwrap_or_else(Platform::host),
            registry: self.options(timeout, shown)?,
        })
    }
}

pub fn load(store: &Store, args: &LoadArgs) -> Result<(), Report> {
    let source = match (&args.source, &args.input) {
        (Some(source), _) => source.clone(),
        (None, Some(path)) if path != Path::new("-") => Source::path(path),
        _ => Source::Stdin,
    };
    if source == Source::Stdin && io::stdin().is_terminal() {
        return Err(Report::usage("cannot load an image from a terminal")
            .with_hint("write `docker save NAME | gpurun image load -`"));
    }
    let loaded = take(store, &source, &args.names, None, &args.registry, args.quiet)?;
    tell(&loaded, args.quiet, args.json)
}

fn take(
    store: &Store,
    source: &Source,
    names: &[Reference],
    timeout: Option<u64>,
    flags: &RegistryFlags,
    quiet: bool,
) -> Result<Vec<Loaded>, Report> {
    if quiet {
        return Ok(store.load(source, &flags.load_options(names, timeout, None)?, &())?);
    }
    let shown = Shown::new(if matches!(source, Source::Registry(_)) { "pulling" } else { "loading" });
    Ok(store.load(source, &flags.load_options(names, timeout, Some(&shown))?, &*shown)?)
}

fn tell(loaded: &[Loaded], quiet: bool, json: bool) -> Result<(), Report> {
    if json {
        let list = loaded.iter().map(|image| {
            json!({"Id": image.id.to_string(), "Names": names(&image.names), "Layers": image.layers,
                    "SharedLayers": image.shared_layers})
        });
        return print_json(&Value::Array(list.collect()));
    }
    let mut out = String::new();
    for image in loaded {
        if quiet {
            out.push_str(&format!("{}\n", image.id));
        } else if image.names.is_empty() {
            out.push_str(&format!("Loaded image ID: {}\n", image.id));
        }
        for name in image.names.iter().filter(|_| !quiet) {
            out.push_str(&format!("Loaded image: {}\n", name.familiar()));
        }
    }
    print(&out)
}

pub fn pull(store: &Store, args: &PullArgs) -> Result<(), Report> {
    let mut loaded = Vec::new();
    for name in &args.images {
        let reference = reference(name)?;
        // People should see whom they trust before it begins.
        if !args.quiet {
            say(&format!("gpurun: pulling {reference}"));
        }
        loaded.extend(take(store, &Source::Registry(reference), &[], args.timeout, &args.registry, args.quiet)?);
    }
    tell(&loaded, args.quiet, args.json)
}

/// A name in a registry; skopeo's `docker://` in front of it is fine.
fn reference(name: &str) -> Result<Reference, Report> {
    Ok(name.strip_prefix("docker://").unwrap_or(name).parse::<Reference>()?)
}

pub fn push(store: &Store, args: &PushArgs) -> Result<(), Report> {
    let target = reference(args.target.as_deref().unwrap_or(&args.image))?;
    let shown = (!args.quiet).then(|| Shown::new("pushing"));
    let options = args.registry.options(args.timeout, shown.as_ref())?;
    let image = store.resolve(&provide(store, &args.image, PullPolicy::Never, &args.registry)?)?;
    if !args.quiet {
        say(&format!("gpurun: pushing {} to {target}", image.short_id()));
    }
    let pushed = match &shown {
        Some(shown) => {
            shown.begin_push(&store.layers(&image)?);
            store.push(&image, &target, args.compression.into(), &options, &**shown)
        }
        None => store.push(&image, &target, args.compression.into(), &options, &()),
    }?;
    if args.json {
        return print_json(
            &json!({"Name": target.familiar(), "Digest": pushed.manifest_digest, "SentLayers": pushed.sent}),
        );
    }
    let digest = pushed.manifest_digest;
    print(&if args.quiet { format!("{digest}\n") } else { format!("Pushed {}: {digest}\n", target.familiar()) })
}

/// When a container's image is taken from its registry: docker's `--pull`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, clap::ValueEnum)]
pub enum PullPolicy {
    #[default]
    Missing,
    Always,
    Never,
}

/// What a container's image needs before it is there.
#[derive(Debug, Clone, Default, Args)]
#[command(next_help_heading = "Image")]
pub struct ImageFlags {
    /// When to pull the image: if it is missing, always, never
    #[arg(long, value_name = "missing|always|never", default_value = "missing")]
    pub pull: PullPolicy,
    /// Run from a FILE without reading all of it first: its digests are not checked
    #[arg(long)]
    pub no_verify: bool,
    #[command(flatten)]
    pub registry: RegistryFlags,
}

impl ImageFlags {
    /// The image to run, which nobody removes while the lock lives. An archive or layout whose layers are not packed is run from where it
    /// lies; what else is no name is loaded first.
    pub fn provide(&self, store: &Store, name: &str) -> Result<(FileLock, Image), Report> {
        if let Some(source) = Source::unless_name(name)? {
            let shown = Shown::new("checking");
            let options = self.registry.load_options(&[], None, Some(&shown))?;
            let image = store.open_in_place(&source, &options, !self.no_verify, &*shown)?;
            drop(shown);
            if let Some(image) = image {
                return Ok((store.hold()?, store.image_of(&image.id.to_string())?));
            }
        }
        let name = provide(store, name, self.pull, &self.registry)?;
        let hold = store.hold()?;
        let image = store.resolve(&name)?;
        Ok((hold, image))
    }
}

/// Sees to it that an image is in the store; answers the name to look it up by. Call it without holding the store.
pub fn provide(store: &Store, name: &str, policy: PullPolicy, registry: &RegistryFlags) -> Result<String, Report> {
    if let Some(source) = Source::unless_name(name)? {
        let loaded = take(store, &source, &[], None, registry, false)?;
        return match loaded.as_slice() {
            [image] => Ok(image.id.to_string()),
            _ => Err(Report::usage(format!("`{source}` holds {} images", loaded.len()))
                .with_hint(format!("say which one: `docker-archive:{source}:NAME`"))),
        };
    }
    let there = store.contains(name)?;
    let other = Other::find(store, name, registry.platform.as_ref());
    match &other {
        None if policy == PullPolicy::Never || (there && policy == PullPolicy::Missing) => return Ok(name.to_owned()),
        // Its id means this image alone.
        Some(other) if policy == PullPolicy::Never || !other.by_name => return Err(other.refusal(name)),
        _ => {}
    }
    // What is no name at all is for the look-up to refuse, in its own words.
    let Ok(reference) = name.parse::<Reference>() else { return Ok(name.to_owned()) };
    let why = match &other {
        Some(other) => format!("in the store for {}, not for {}", other.found, other.wanted),
        None if there => "always pulled".into(),
        None => "not in the store".into(),
    };
    say(&format!("gpurun: `{name}` is {why}: pulling {reference}"));
    match take(store, &Source::Registry(reference), &[], None, registry, false) {
        Ok(_) => Ok(name.to_owned()),
        Err(report) => Err(match &other {
            Some(other) => report.under(other.message(name)),
            None if there => report,
            None => not_there(store, name, report),
        }),
    }
}

/// An image of the store that is for another platform than the one that was asked for.
struct Other {
    found: Platform,
    wanted: Platform,
    /// It was asked for by a name, which may come to mean another image.
    by_name: bool,
}

impl Other {
    fn find(store: &Store, name: &str, wanted: Option<&Platform>) -> Option<Self> {
        let (wanted, image) = (wanted?.clone(), store.resolve(name).ok()?);
        let by_name = image.names.iter().any(|known| store.is_name(name, known));
        // The store does not look at variants.
        let found = Platform { os: image.os, architecture: image.architecture, variant: None };
        // Old images do not say what they are for.
        let fits = found.architecture.is_empty() || found.runs_on(&wanted);
        (!fits).then_some(Self { found, wanted, by_name })
    }

    fn message(&self, name: &str) -> String {
        format!("the image `{name}` in the store is for {}, not for {}", self.found, self.wanted)
    }

    fn refusal(&self, name: &str) -> Report {
        let hint = if self.by_name {
            format!(
                "`gpurun image pull --platform {} {name}` gets that one, and the name then means it; `gpurun image tag` keeps another for \
                 this one",
                self.wanted
            )
        } else {
            "do without `--platform`, or name the image to pull".to_owned()
        };
        Report::new(self.message(name)).with_hint(hint)
    }
}

/// A pull that failed is no news to somebody who meant an image of the store and mistyped it.
fn not_there(store: &Store, name: &str, pull: Report) -> Report {
    let Err(missing) = store.resolve(name) else { return pull };
    let missing = Report::from(missing);
    let hint = match (pull.hint.clone(), missing.hint) {
        (Some(pull), Some(missing)) => Some(format!("{missing}; {pull}")),
        (pull, missing) => missing.or(pull),
    };
    Report { hint, ..pull.under(missing.message) }
}
