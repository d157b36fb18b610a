//! `gpurun image load | pull`, and the implicit pull of `run`.

use std::io::{self, IsTerminal};
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::Args;
use serde_json::{Value, json};

use super::progress::Shown;
use super::text::{names, print, print_json};
use crate::cli::print::say;
use crate::cli::resources::seconds;
use crate::durable::FileLock;
use crate::image::Platform;
use crate::names::Reference;
use crate::report::Report;
use crate::store::{Image, LoadOptions, Loaded, Source, Store};
use crate::sys::tty::Hidden;
use crate::transport::registry::{self, Credentials, Settings};

/// The configuration file that lists mirrors.
const SETTINGS: &str = "/etc/gpurun/registries.json";

#[derive(Debug, Args)]
pub(crate) struct LoadArgs {
    /// Archive (plain, gzip or zstd), OCI layout directory, `-` for standard input, or a source in skopeo's notation: `oci:DIR[:TAG]`,
    /// `oci-archive:FILE[:TAG]`, `docker-archive:FILE[:NAME]`, `docker://NAME`
    #[arg(value_name = "SOURCE")]
    pub source: Option<Source>,
    /// Archive to load: docker's form of SOURCE
    #[arg(short, long, value_name = "FILE", conflicts_with = "source")]
    pub input: Option<PathBuf>,
    /// Additional name of the image
    #[arg(short = 't', long = "name", alias = "tag", value_name = "NAME[:TAG]")]
    pub names: Vec<Reference>,
    /// Ignore the names in the source. The plugin for Slurm uses it.
    #[arg(long, hide = true)]
    pub rename: bool,
    /// Print only IDs
    #[arg(short, long)]
    pub quiet: bool,
    /// Print the result as JSON
    #[arg(long, conflicts_with = "quiet")]
    pub json: bool,
    #[command(flatten)]
    pub registry: RegistryFlags,
}

#[derive(Debug, Args)]
pub(crate) struct PullArgs {
    /// Names of images: `debian:12`, `quay.io/jupyter/base-notebook`, `registry.lab:5000/torch@sha256:…`
    #[arg(required = true, value_name = "NAME[:TAG|@DIGEST]")]
    pub images: Vec<String>,
    /// Pull all tags of the repositories
    #[arg(short, long)]
    pub all_tags: bool,
    /// Maximum number of seconds for the whole pull (default: no limit)
    #[arg(long, value_name = "SECONDS", allow_negative_numbers = true, value_parser = seconds)]
    pub timeout: Option<u64>,
    /// Print only IDs
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
pub(crate) enum Packing {
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
pub(crate) struct RegistryFlags {
    /// Platform of the image: linux/arm64
    #[arg(long, value_name = "OS/ARCH")]
    pub platform: Option<Platform>,
    /// Verify the registry's certificate; `false` also allows plain HTTP
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    pub tls_verify: Option<bool>,
    /// Directory with a CA certificate (`*.crt`) and a client certificate (`*.cert`, `*.key`) [default: /etc/docker/certs.d/HOST]
    #[arg(long, value_name = "DIR")]
    pub cert_dir: Option<PathBuf>,
    /// User and password for the registry; without a password, gpurun prompts for it (default: the login of docker or podman)
    #[arg(long, value_name = "USER[:PASSWORD]")]
    pub creds: Option<String>,
    /// File with logins, as `gpurun login` writes it
    #[arg(long, value_name = "FILE", env = "REGISTRY_AUTH_FILE")]
    pub authfile: Option<PathBuf>,
}

impl RegistryFlags {
    /// Returns the registry options of a command without a progress display.
    pub(crate) fn plain_options(&self) -> Result<registry::Options, Report> {
        self.options(None, None)
    }

    /// Returns the registry options. Notices are passed to `shown`.
    pub(super) fn options(
        &self,
        timeout: Option<u64>,
        shown: Option<&std::sync::Arc<Shown>>,
    ) -> Result<registry::Options, Report> {
        let mirrors = std::env::var("GPURUN_MIRRORS").ok();
        let mut settings = Settings::read(Path::new(SETTINGS), mirrors.as_deref())?;
        settings.extend(&crate::config::Config::load()?.registries);
        let credentials = match self.creds.as_deref().map(|creds| creds.split_once(':').ok_or(creds)) {
            None => None,
            Some(Ok((user, password))) => Some(Credentials::Password { user: user.into(), password: password.into() }),
            Some(Err(user)) => {
                let password = Hidden::open()
                    .and_then(|mut terminal| terminal.ask(&format!("Password for {user}: ")))
                    .map_err(|error| no_password(user, error))?;
                Some(Credentials::Password { user: user.into(), password })
            }
        };
        let mut options = registry::Options {
            tls_verify: self.tls_verify,
            cert_dir: self.cert_dir.clone(),
            credentials,
            auth_file: self.authfile.clone(),
            timeout: timeout.map(Duration::from_secs),
            settings,
            ..registry::Options::default()
        };
        if let Some(text) = std::env::var_os("GPURUN_STALL_TIMEOUT").filter(|text| !text.is_empty()) {
            let seconds =
                text.to_str().and_then(|text| text.parse().ok()).filter(|seconds| (1..=86_400).contains(seconds));
            let bad = || Report::usage(format!("`GPURUN_STALL_TIMEOUT={}` is not a number of seconds", text.display()));
            options.stall = Duration::from_secs(seconds.ok_or_else(bad)?);
        }
        if let Some(shown) = shown.cloned() {
            options.notice = std::sync::Arc::new(move |line| shown.line(line));
        }
        Ok(options)
    }

    fn load_options(
        &self,
        (names, renames): (&[Reference], bool),
        timeout: Option<u64>,
        shown: Option<&std::sync::Arc<Shown>>,
    ) -> Result<LoadOptions, Report> {
        Ok(LoadOptions {
            names: names.to_vec(),
            renames,
            platform: self.platform.clone().unwrap_or_else(Platform::host),
            registry: self.options(timeout, shown)?,
        })
    }
}

/// Returns the error for a password prompt without a terminal, or on a terminal that was closed.
fn no_password(user: &str, error: io::Error) -> Report {
    let no_terminal = matches!(error.raw_os_error(), Some(libc::ENXIO | libc::ENOTTY | libc::EIO | libc::ENOENT));
    let report = Report::new(format!("cannot ask for the password of `{user}`"));
    if !no_terminal {
        return report.with_cause(error);
    }
    report.with_cause("there is no terminal for the question").with_hint(format!(
        "write `--creds {user}:PASSWORD`, or `--authfile FILE` with a file that `gpurun login` wrote"
    ))
}

pub(super) fn load(store: &Store, args: &LoadArgs) -> Result<(), Report> {
    let source = match (&args.source, &args.input) {
        (Some(source), _) => source.clone(),
        (None, Some(path)) if path != Path::new("-") => Source::path(path),
        _ => Source::Stdin,
    };
    if source == Source::Stdin && io::stdin().is_terminal() {
        return Err(Report::usage("cannot load an image from a terminal")
            .with_hint("name the file: `gpurun image load FILE`, or pipe it: `docker save NAME | gpurun image load`"));
    }
    let loaded = take(store, &source, (&args.names, args.rename), None, &args.registry, args.quiet)?;
    report_loaded(&loaded, args.quiet, args.json)
}

fn take(
    store: &Store,
    source: &Source,
    names: (&[Reference], bool),
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

fn report_loaded(loaded: &[Loaded], quiet: bool, json: bool) -> Result<(), Report> {
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

pub(super) fn pull(store: &Store, args: &PullArgs) -> Result<(), Report> {
    let mut loaded = Vec::new();
    for name in &args.images {
        let references = if args.all_tags { tags_of(name, args)? } else { vec![reference(name)?] };
        for reference in references {
            // Show the registry before the pull starts, so that the caller can see which one is trusted.
            if !args.quiet {
                say(&format!("gpurun: pulling {reference}"));
            }
            loaded.extend(take(
                store,
                &Source::Registry(reference),
                (&[], false),
                args.timeout,
                &args.registry,
                args.quiet,
            )?);
        }
    }
    report_loaded(&loaded, args.quiet, args.json)
}

/// Returns the name with each tag that the registry has of it.
fn tags_of(name: &str, args: &PullArgs) -> Result<Vec<Reference>, Report> {
    let repository = repository(name)?;
    let found = registry::tags(&repository, &args.registry.options(args.timeout, None)?)?;
    if found.is_empty() {
        return Err(Report::new(format!("cannot pull all tags of `{name}`: the repository has none")));
    }
    Ok(found)
}

/// Parses the name of a repository for `--all-tags`, which excludes a tag and a digest.
pub(super) fn repository(name: &str) -> Result<Reference, Report> {
    let bare = name.strip_prefix("docker://").unwrap_or(name);
    if bare.contains('@') || bare.rsplit('/').next().is_some_and(|last| last.contains(':')) {
        return Err(Report::usage(format!("cannot use `--all-tags` with `{name}`: it names a tag or a digest"))
            .with_hint("name the repository alone, such as `registry.lab:5000/torch`"));
    }
    reference(name)
}

/// Parses the name of an image in a registry. skopeo's prefix `docker://` is accepted.
pub(super) fn reference(name: &str) -> Result<Reference, Report> {
    Ok(name.strip_prefix("docker://").unwrap_or(name).parse::<Reference>()?)
}

/// When a container's image is taken from its registry: docker's `--pull`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, clap::ValueEnum)]
pub(crate) enum PullPolicy {
    #[default]
    #[value(alias = "false")]
    Missing,
    #[value(alias = "true")]
    Always,
    Never,
}

/// What a container's image needs before it is there.
#[derive(Debug, Clone, Default, Args)]
#[command(next_help_heading = "Image")]
pub(crate) struct ImageFlags {
    /// When to pull the image
    #[arg(long, value_name = "missing|always|never", default_value = "missing")]
    pub pull: PullPolicy,
    /// Run an image file without verifying its digests first
    #[arg(long)]
    pub no_verify: bool,
    #[command(flatten)]
    pub registry: RegistryFlags,
}

impl ImageFlags {
    /// Returns the image to run, and a lock that prevents its removal. An archive or layout with uncompressed layers is
    /// run in place. Any other source that is not a name is loaded first.
    pub(crate) fn provide(&self, store: &Store, name: &str, quiet: bool) -> Result<(FileLock, Image), Report> {
        if let Some(source) = Source::unless_name(name)? {
            let shown = Shown::new("checking");
            let options = self.registry.load_options((&[], false), None, Some(&shown))?;
            let image = store.open_in_place(&source, &options, !self.no_verify, &*shown)?;
            drop(shown);
            if let Some(image) = image {
                let found = (store.hold()?, store.image_of(image.id)?);
                self.warn_of_another_platform(&found.1);
                return Ok(found);
            }
        }
        let name = provide_as(store, name, self.pull, &self.registry, quiet)?;
        let hold = store.hold()?;
        let image = store.resolve(&name)?;
        self.warn_of_another_platform(&image);
        Ok((hold, image))
    }

    /// Prints docker's warning about an image for another platform, which only an emulator can run.
    fn warn_of_another_platform(&self, image: &Image) {
        let host = Platform::host();
        let Some(found) = image.platform().filter(|found| !found.runs_on(&host) && self.registry.platform.is_none())
        else {
            return;
        };
        say(&format!(
            "gpurun: warning: the platform of the image ({found}) is not that of this host ({host}), and no `--platform` was given: it \
             runs only where an emulator is installed"
        ));
    }
}

/// Makes sure that an image is in the store and returns the name for the lookup. The caller must not hold the store's
/// lock.
pub(crate) fn provide(
    store: &Store,
    name: &str,
    policy: PullPolicy,
    registry: &RegistryFlags,
) -> Result<String, Report> {
    provide_as(store, name, policy, registry, false)
}

/// Like [`provide`], and without progress if `quiet`.
fn provide_as(
    store: &Store,
    name: &str,
    policy: PullPolicy,
    registry: &RegistryFlags,
    quiet: bool,
) -> Result<String, Report> {
    if let Some(source) = Source::unless_name(name)? {
        let loaded = take(store, &source, (&[], false), None, registry, quiet)?;
        return match loaded.as_slice() {
            [image] => Ok(image.id.to_string()),
            _ => Err(Report::usage(format!("`{source}` contains {} images", loaded.len()))
                .with_hint(format!("choose one: `docker-archive:{source}:NAME`"))),
        };
    }
    let there = store.contains(name)?;
    let other = Other::find(store, name, registry.platform.as_ref());
    match &other {
        None if policy == PullPolicy::Never || (there && policy == PullPolicy::Missing) => return Ok(name.to_owned()),
        // An id always refers to the same image, so a pull would not help.
        Some(other) if policy == PullPolicy::Never || !other.by_name => return Err(other.refusal(name)),
        _ => {}
    }
    // The lookup reports an error for text that is not a valid name.
    let Ok(reference) = name.parse::<Reference>() else { return Ok(name.to_owned()) };
    let why = match &other {
        Some(other) => format!("in the store for {}, not for {}", other.found, other.wanted),
        None if there => "always pulled".into(),
        None => "not in the store".into(),
    };
    if !quiet {
        say(&format!("gpurun: `{name}` is {why}: pulling {reference}"));
    }
    match take(store, &Source::Registry(reference), (&[], false), None, registry, quiet) {
        Ok(_) => Ok(name.to_owned()),
        Err(report) => Err(match &other {
            Some(other) => report.under(other.message(name)),
            None if there => report,
            None => not_there(store, name, report),
        }),
    }
}

/// An image in the store whose platform differs from the requested one.
struct Other {
    found: Platform,
    wanted: Platform,
    /// Whether the image was requested by a name, which a pull may assign to another image.
    by_name: bool,
}

impl Other {
    fn find(store: &Store, name: &str, wanted: Option<&Platform>) -> Option<Self> {
        let (wanted, image) = (wanted?.clone(), store.resolve(name).ok()?);
        let by_name = image.names.iter().any(|known| store.is_name(name, known));
        // Old images do not specify a platform.
        let found = image.platform()?;
        (!found.runs_on(&wanted)).then_some(Self { found, wanted, by_name })
    }

    fn message(&self, name: &str) -> String {
        format!("the image `{name}` in the store is for {}, not for {}", self.found, self.wanted)
    }

    fn refusal(&self, name: &str) -> Report {
        let hint = if self.by_name {
            format!(
                "`gpurun image pull --platform {} {name}` pulls it, and the name then refers to it; keep a name for \
                 the current image with `gpurun image tag`",
                self.wanted
            )
        } else {
            "omit `--platform`, or name the image to pull".to_owned()
        };
        Report::new(self.message(name)).with_hint(hint)
    }
}

/// Wraps the error of a failed pull in the error of the lookup, because the caller may have mistyped the name of an
/// image in the store.
fn not_there(store: &Store, name: &str, pull: Report) -> Report {
    let Err(missing) = store.resolve(name) else { return pull };
    // A pull has been tried, so that the advice to try one would lead nowhere.
    let hint = match (pull.hint.clone(), missing.hint_in_store()) {
        (Some(pull), Some(missing)) => Some(format!("{pull}; {missing}")),
        (pull, missing) => pull.or(missing),
    };
    Report { hint, ..pull.under(Report::from(missing).message) }
}
