//! `gpurun build`: builds an image from a Containerfile.

use std::collections::BTreeMap;
use std::io::{self, IsTerminal, Read};
use std::path::{Path, PathBuf};

use clap::{Args, ValueEnum};

use super::build_output::{Fancy, Plain, Quiet};
use super::build_result::{self, Target};
use super::image::{Packing, PullPolicy, RegistryFlags, provide};
use super::resources::{self, ResourceFlags};
use super::{Context, moment, print};
use crate::build::{self, Containerfile, NamedContext, Options, Output, Piped};
use crate::image::Platform;
use crate::names::Reference;
use crate::report::Report;
use crate::request::{parse_label, parse_shm_size, parse_ulimits};
use crate::store::{Image, Store};
use crate::sys::process::CallerUmask;

/// Maximum size of a secret. Secrets are keys and tokens.
const MAX_SECRET: u64 = 500 << 10;

#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  gpurun build -t jupyter images/jupyter\n  gpurun build -t app --build-arg PYTHON=3.12 --target runtime .\n  gpurun build -t app --secret id=token,src=token.txt --host-ca .\n  git archive HEAD | gpurun build -t app -\n\n\
        A Containerfile has docker build's syntax. An instruction that gpurun does not support is an error with its line. SOURCE_DATE_EPOCH (in the environment or as --build-arg) makes a build reproducible: no time in the image is later."
)]
pub(super) struct BuildArgs {
    /// Name of the image; may be given more than once
    #[arg(short, long = "tag", value_name = "NAME[:TAG]")]
    tag: Vec<Reference>,
    /// Containerfile, or `-` for standard input [default: Containerfile, else Dockerfile, of the context]
    #[arg(short, long, value_name = "FILE")]
    file: Option<PathBuf>,
    /// Set an `ARG`; `KEY` alone passes on the caller's value. Proxy variables need no `ARG` and never reach the image
    #[arg(long, value_name = "KEY[=VALUE]")]
    build_arg: Vec<String>,
    /// Add a context for `FROM`, `COPY --from` and `RUN --mount=…,from=`: a directory or docker-image://IMAGE
    #[arg(long, value_name = "NAME=CONTEXT")]
    build_context: Vec<String>,
    /// Build this stage instead of the last one
    #[arg(long, value_name = "STAGE")]
    target: Option<String>,
    /// Set a label of the image
    #[arg(long, value_name = "KEY[=VALUE]")]
    label: Vec<String>,
    /// Do not use the build cache
    #[arg(long)]
    no_cache: bool,
    /// When to pull base images; `--pull` alone means always
    #[arg(long, value_name = "missing|always|never", num_args = 0..=1, require_equals = true, default_value = "missing", default_missing_value = "always")]
    pull: PullPolicy,
    /// Network mode of `RUN`: bridge, host, none, or default, which is the bridge where one can be made and else the host
    #[arg(long, visible_alias = "net", value_name = "MODE", default_value = "default", hide_default_value = true)]
    network: String,
    /// Add a line to /etc/hosts of every `RUN`
    #[arg(long, value_name = "NAME:IP")]
    add_host: Vec<String>,
    /// Secret for `RUN --mount=type=secret,id=ID`; it is never stored in a layer, the history or the cache
    #[arg(long, value_name = "id=ID[,src=FILE|,env=NAME]")]
    secret: Vec<String>,
    /// Give `RUN` this host's certificates, proxies and pip settings, without storing them in the image
    #[arg(long)]
    host_ca: bool,
    /// Forward an SSH agent to `RUN --mount=type=ssh`: `default` is the one of SSH_AUTH_SOCK
    #[arg(long, value_name = "ID[=SOCKET]")]
    ssh: Vec<String>,
    /// Write the result: a directory or `-` (a tar) for the files of the image, type=oci|docker,dest=FILE for the image, type=image,push=true
    #[arg(short, long, value_name = "OUTPUT")]
    output: Vec<String>,
    /// Push the image under each of its names
    #[arg(long)]
    push: bool,
    /// Keep the image in the store, as every build does
    #[arg(long)]
    load: bool,
    /// Size of /dev/shm of every `RUN` [default: 64m]
    #[arg(long, value_name = "SIZE", allow_negative_numbers = true)]
    shm_size: Option<String>,
    /// Resource limit of the processes of every `RUN`, for example nofile=1024:4096
    #[arg(long, value_name = "NAME=SOFT[:HARD]")]
    ulimit: Vec<String>,
    /// Image to use as a cache; it has no effect, because the cache is in the store
    #[arg(long, value_name = "IMAGE")]
    cache_from: Vec<String>,
    /// File with the patterns of files that the context leaves out [default: .containerignore, else .dockerignore]
    #[arg(long, value_name = "FILE")]
    ignorefile: Option<PathBuf>,
    /// Accepted for compatibility with podman: the same as --pull=never
    #[arg(long, hide = true)]
    pull_never: bool,
    /// Accepted for compatibility: a build leaves no intermediate containers
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true", alias = "force-rm")]
    rm: Option<bool>,
    /// Accepted for compatibility with podman: an image here is saved in any format
    #[arg(long, hide = true, value_parser = ["oci", "docker"])]
    format: Option<String>,
    /// Accepted for compatibility with podman: `false` builds all steps again, as --no-cache does
    #[arg(long, hide = true, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    layers: Option<bool>,
    /// Accepted for compatibility with podman: stages are built one after the other
    #[arg(long, hide = true, value_name = "N")]
    jobs: Option<String>,
    /// Progress output: tty (steps that collapse when they are done), plain (all lines), quiet, or auto, which is tty on a
    /// terminal
    #[arg(long, hide_possible_values = true, value_name = "HOW", default_value = "auto")]
    progress: Progress,
    /// Print only the image's ID
    #[arg(short, long)]
    quiet: bool,
    /// Print the result as JSON
    #[arg(long, conflicts_with = "quiet")]
    json: bool,
    /// Write the image's ID, names and digest to a file, as JSON with buildx's keys
    #[arg(long, value_name = "FILE")]
    metadata_file: Option<PathBuf>,
    /// Write the image's ID to a file
    #[arg(long, value_name = "FILE")]
    iidfile: Option<PathBuf>,
    #[command(flatten)]
    limits: ResourceFlags,
    #[command(flatten)]
    registry: RegistryFlags,
    /// Build context, the directory that `COPY` and `ADD` read from (default with --file: the current directory); `-` reads it from standard input, as a tar archive, or only a Containerfile
    #[arg(value_name = "DIR|-", required_unless_present = "file")]
    context: Option<PathBuf>,
}

/// The values have no help texts of their own, which would spread the whole `--help` over three lines a flag.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Progress {
    Auto,
    Tty,
    Plain,
    Quiet,
}

pub(super) fn run(args: &BuildArgs, context: &Context) -> Result<u8, Report> {
    let targets = args.output.iter().map(|text| Target::parse(text)).collect::<Result<Vec<_>, _>>()?;
    targets.iter().try_for_each(Target::check)?;
    let (mut options, piped) = options(args, context)?;
    let mut is_pushed = args.push;
    let mut packing = Packing::Gzip;
    for target in &targets {
        options.names.extend(target.names().iter().cloned());
        if let Some(chosen) = target.pushed() {
            (is_pushed, packing) = (true, chosen);
        }
    }
    if is_pushed && options.names.is_empty() {
        return Err(Report::usage("cannot push the image: it has no name")
            .with_hint("name it, with its registry: `gpurun build -t REGISTRY/NAME --push DIR`"));
    }
    // The limits are also checked here because no limit is set if every step is cached.
    crate::launch::check_limits(&options.limits)?;
    let store = context.store()?;
    // Opened once at the beginning: see `build::run`.
    let records = context.records()?;
    let signals = super::session::take_signals()?;
    let fancy = match args.progress {
        Progress::Auto => io::stderr().is_terminal(),
        Progress::Tty => true,
        Progress::Plain | Progress::Quiet => false,
    };
    let quiet = args.quiet || args.progress == Progress::Quiet;
    if !args.cache_from.is_empty() && !quiet {
        print::say("`--cache-from` has no effect: the cache is in the store");
    }
    let mut output: Box<dyn Output> = match (quiet, fancy) {
        (true, _) => Box::new(Quiet),
        (_, true) => Box::new(Fancy::default()),
        _ => Box::new(Plain::default()),
    };
    let pull = |name: &str| base(&store, name, args);
    let built = build::build(&options, &store, &records, &pull, Some(&signals), output.as_mut())?;
    drop((output, piped));
    let names: Vec<String> = options.names.iter().map(Reference::familiar).collect();
    let image = store.image_of(built.id)?;
    for target in &targets {
        target.write(&store, &image, &options.names)?;
    }
    let pushed = match is_pushed {
        true => build_result::push(&store, &image, &options.names, packing, &args.registry, quiet)?,
        false => None,
    };
    if let Some(path) = &args.iidfile {
        write_file(path, &built.id.to_string())?;
    }
    if let Some(path) = &args.metadata_file {
        let mut metadata = serde_json::json!({ "containerimage.config.digest": built.id.to_string() });
        if !names.is_empty() {
            metadata["image.name"] = names.join(",").into();
        }
        if let Some(digest) = pushed {
            metadata["containerimage.digest"] = digest.to_string().into();
        }
        write_file(path, &format!("{metadata:#}\n"))?;
    }
    if targets.iter().any(Target::takes_stdout) {
        return Ok(0);
    }
    if args.json {
        print::json(&serde_json::json!({
            "Id": built.id.to_string(), "Names": names, "Steps": built.steps, "Cached": built.cached,
        }))?;
        return Ok(0);
    }
    if !quiet && !names.is_empty() {
        print::say(&format!("built {}", names.join(", ")));
    }
    print::out(&format!("{}\n", built.id))?;
    Ok(0)
}

fn write_file(path: &Path, text: &str) -> Result<(), Report> {
    let _umask = CallerUmask::enter();
    std::fs::write(path, text)
        .map_err(|error| Report::new(format!("cannot write `{}`", path.display())).with_cause(error))
}

/// The options of the build, and what standard input held. The second value must live as long as the build.
fn options(args: &BuildArgs, context: &Context) -> Result<(Options, Option<Piped>), Report> {
    let directory = args.context.as_deref().unwrap_or(Path::new("."));
    let from_stdin = directory == Path::new("-");
    if from_stdin && args.file.as_deref() == Some(Path::new("-")) {
        return Err(Report::usage(
            "cannot use `-` as the context and as `--file`: standard input can be only one of them",
        ));
    }
    if !from_stdin && !directory.is_dir() {
        let text = directory.to_string_lossy();
        let is_remote = text.contains("://") || text.starts_with("git@");
        return Err(Report::new(format!("the build context `{text}` is not a directory")).with_hint(match is_remote {
            true => "download it first, for example with `git clone URL DIR`, and run `gpurun build -t NAME DIR`",
            false => "name the directory with the files to copy: `gpurun build -t NAME .`",
        }));
    }
    let host = Platform::host();
    if let Some(platform) = args.registry.platform.as_ref().filter(|platform| !platform.runs_on(&host)) {
        return Err(Report::usage(format!("cannot build for `--platform {platform}`: this machine is {host}"))
            .with_hint(
                "build it on a machine of that platform, and push it from there or copy it with `gpurun \
                        image save`",
            ));
    }
    let piped = match from_stdin {
        true => Some(build::piped(&context.store()?, io::stdin().lock(), args.file.as_deref())?),
        false => None,
    };
    let (file, directory) = match &piped {
        Some(piped) => (piped.file.clone(), piped.context()),
        None => (Containerfile::read(directory, args.file.as_deref())?, Some(directory.to_owned())),
    };
    let mut build_args = BTreeMap::new();
    for text in &args.build_arg {
        match text.split_once('=') {
            Some((name, value)) => drop(build_args.insert(name.to_owned(), value.to_owned())),
            None => build_args.extend(std::env::var(text).ok().map(|value| (text.clone(), value))),
        }
    }
    let clamp = moment::source_date_epoch(build_args.get("SOURCE_DATE_EPOCH"))?;
    let options = Options {
        root: context.root.clone(),
        file,
        context: directory,
        contexts: args.build_context.iter().map(|text| NamedContext::parse(text)).collect::<Result<_, _>>()?,
        names: args.tag.clone(),
        args: build_args,
        target: args.target.clone(),
        labels: resources::each(&args.label, parse_label)?,
        no_cache: args.no_cache || args.layers == Some(false),
        ignore_file: args.ignorefile.clone(),
        network: match args.network.as_str() {
            "default" => None,
            mode => Some(mode.parse()?),
        },
        limits: args.limits.limits()?,
        shm_size: args.shm_size.as_deref().map(parse_shm_size).transpose()?.flatten(),
        ulimits: parse_ulimits(&args.ulimit)?,
        add_hosts: resources::each(&args.add_host, str::parse)?,
        secrets: args.secret.iter().map(|text| secret(text)).collect::<Result<_, _>>()?,
        agents: args.ssh.iter().map(|text| build_result::agent(text)).collect::<Result<_, _>>()?,
        host_ca: args.host_ca,
        clamp,
    };
    Ok((options, piped))
}

/// Returns a base image from the store or, depending on `--pull`, from a registry.
fn base(store: &Store, name: &str, args: &BuildArgs) -> Result<Image, Report> {
    let pull = if args.pull_never { PullPolicy::Never } else { args.pull };
    let found = provide(store, name, pull, &args.registry).and_then(|name| Ok(store.resolve(&name)?));
    found.map_err(|report| {
        let distribution = ["debian:", "ubuntu:"].iter().any(|prefix| name.starts_with(prefix));
        if !distribution {
            return report;
        }
        report.with_hint(format!("create it from the distribution's packages with `gpurun image bootstrap {name}`"))
    })
}

/// Parses `id=ID,src=FILE`, `id=ID,env=NAME`, or `id=ID` (a variable or a file of that name).
fn secret(text: &str) -> Result<(String, Vec<u8>), Report> {
    let usage = |what: &str| {
        Report::usage(format!("cannot use `--secret {text}`: it {what}"))
            .with_hint("write `--secret id=ID,src=FILE` or `--secret id=ID,env=NAME`")
    };
    let (mut id, mut source, mut variable, mut is_variable) = (None, None, None, false);
    for field in text.split(',') {
        match field.split_once('=') {
            Some(("id", value)) => id = Some(value),
            Some(("src" | "source", value)) => source = Some(value),
            Some(("env", value)) => variable = Some(value),
            Some(("type", "file")) => {}
            Some(("type", "env")) => is_variable = true,
            _ => return Err(usage(&format!("has the unknown field `{field}`"))),
        }
    }
    let id = id.filter(|id| !id.is_empty()).ok_or_else(|| usage("has no id"))?;
    if source.is_some() && variable.is_some() {
        return Err(usage("names both a file and a variable"));
    }
    // As in docker, `src` then names a variable. Without `src`, the id does.
    if is_variable && variable.is_none() {
        variable = Some(source.take().unwrap_or(id));
    }
    let from_env = |name: &str| std::env::var(name).map(String::into_bytes).ok();
    let bytes = match (source, variable) {
        (None, Some(name)) => from_env(name).ok_or_else(|| usage(&format!("names `{name}`, which is not set")))?,
        (None, None) if from_env(id).is_some() => from_env(id).unwrap_or_default(),
        (source, _) => {
            let path = Path::new(source.unwrap_or(id));
            let failed = |error: io::Error| {
                Report::new(format!("cannot read the secret `{}`", path.display())).with_cause(error)
            };
            let mut bytes = Vec::new();
            std::fs::File::open(path)
                .and_then(|file| file.take(MAX_SECRET + 1).read_to_end(&mut bytes))
                .map_err(failed)?;
            if bytes.len() as u64 > MAX_SECRET {
                return Err(Report::new(format!("the secret `{}` is larger than 500 KiB", path.display())));
            }
            bytes
        }
    };
    Ok((id.to_owned(), bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secrets_come_from_files_and_variables() {
        let path = std::env::var("PATH").expect("a PATH").into_bytes();
        for text in ["id=PATH", "id=x,env=PATH", "id=x,type=env,src=PATH", "id=PATH,type=env"] {
            assert_eq!(secret(text).expect(text).1, path, "{text}");
        }
        let file = tempfile::NamedTempFile::new().expect("a file");
        std::fs::write(file.path(), "inside").expect("written");
        let text = format!("type=file,id=x,src={}", file.path().display());
        assert_eq!(secret(&text).expect("read"), ("x".to_owned(), b"inside".to_vec()));
        for (text, want) in [
            ("src=x", "has no id"),
            ("id=x,env=GPURUN_NOT_SET", "is not set"),
            ("id=x,type=env,src=GPURUN_NOT_SET", "is not set"),
            ("id=x,src=/etc/hosts,env=PATH", "names both a file and a variable"),
            ("id=x,type=ssh", "has the unknown field `type=ssh`"),
            ("id=x,src=/nosuch", "cannot read the secret `/nosuch`"),
        ] {
            let error = secret(text).expect_err(text).to_string();
            assert!(error.contains(want), "{text}: {error}");
        }
    }
}
