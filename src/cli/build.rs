//! `gpurun build`: a Containerfile becomes an image.

use std::collections::BTreeMap;
use std::io::{self, IsTerminal, Read};
use std::path::{Path, PathBuf};

use clap::{Args, ValueEnum};

use super::build_output::{Fancy, Plain, Quiet};
use super::image::{PullPolicy, RegistryFlags, provide};
use super::resources::ResourceFlags;
use super::{Context, print, request};
use crate::build::{self, Options, Output};
use crate::image::Platform;
use crate::names::Reference;
use crate::report::Report;
use crate::store::{Image, Store};

/// The longest Containerfile that is read.
const MAX_FILE: u64 = 16 << 20;
/// Secrets are keys and tokens.
const MAX_SECRET: u64 = 500 << 10;

#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  gpurun build -t jupyter images/jupyter\n  gpurun build -t app --build-arg PYTHON=3.12 --target runtime .\n  gpurun build -t app --secret id=token,src=token.txt --host-ca .\n\n\
        The file is read as docker build reads it; what gpurun does not support is refused by name and line.\n\
        SOURCE_DATE_EPOCH (environment or --build-arg) makes a build reproducible: no time in the image is later."
)]
pub struct BuildArgs {
    /// Name of the image (repeatable)
    #[arg(short, long = "tag", value_name = "NAME[:TAG]")]
    tag: Vec<Reference>,
    /// The Containerfile [default: DIR/Containerfile, else DIR/Dockerfile]; `-` is standard input
    #[arg(short, long, value_name = "FILE")]
    file: Option<PathBuf>,
    /// Set an `ARG`; `KEY` alone passes your environment's on. Proxy variables need no `ARG` and never reach the image
    #[arg(long, value_name = "KEY[=VALUE]")]
    build_arg: Vec<String>,
    /// Build this stage instead of the last
    #[arg(long, value_name = "STAGE")]
    target: Option<String>,
    /// Add a label to the image
    #[arg(long, value_name = "KEY[=VALUE]")]
    label: Vec<String>,
    /// Make every step again
    #[arg(long)]
    no_cache: bool,
    /// When to pull base images: if they are missing; `--pull` alone means always
    #[arg(long, value_name = "missing|always|never", num_args = 0..=1, require_equals = true, default_value = "missing", default_missing_value = "always")]
    pull: PullPolicy,
    /// Network of `RUN`: host, bridge or none
    #[arg(long, visible_alias = "net", value_name = "MODE", default_value = "host")]
    network: String,
    /// A line for /etc/hosts of every `RUN`
    #[arg(long, value_name = "NAME:IP")]
    add_host: Vec<String>,
    /// A secret for `RUN --mount=type=secret,id=ID`: it reaches no layer, no history and no cache
    #[arg(long, value_name = "id=ID[,src=FILE|,env=NAME]")]
    secret: Vec<String>,
    /// Let `RUN` see this host's certificates, proxies and pip settings; nothing of them stays in the image
    #[arg(long)]
    host_ca: bool,
    /// How to show progress
    #[arg(long, value_name = "HOW", default_value = "auto")]
    progress: Progress,
    /// Print the image's id alone, and no progress
    #[arg(short, long)]
    quiet: bool,
    /// Print the result as JSON
    #[arg(long, conflicts_with = "quiet")]
    json: bool,
    /// Write the image's id to a file
    #[arg(long, value_name = "FILE")]
    iidfile: Option<PathBuf>,
    #[command(flatten)]
    limits: ResourceFlags,
    #[command(flatten)]
    registry: RegistryFlags,
    /// The directory that `COPY` and `ADD` take files from; `-` reads a Containerfile from standard input and has none
    #[arg(value_name = "DIR|-")]
    context: PathBuf,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Progress {
    /// `tty` on a terminal, else `plain`
    Auto,
    /// Steps that fold up when they are done
    Tty,
    /// Every line, for a log
    Plain,
}

pub fn run(args: &BuildArgs, context: &Context) -> Result<u8, Report> {
    let options = options(args, context)?;
    // Here, too, where every step is in the cache and no limit is ever set.
    crate::launch::check_limits(&args.limits.asked())?;
    let store = context.store()?;
    // Once, at the beginning: see `build::run`.
    let records = context.records()?;
    let signals = super::session::take_signals()?;
    let fancy = match args.progress {
        Progress::Auto => io::stderr().is_terminal(),
        Progress::Tty => true,
        Progress::Plain => false,
    };
    let mut output: Box<dyn Output> = match (args.quiet, fancy) {
        (true, _) => Box::new(Quiet),
        (_, true) => Box::new(Fancy::default()),
        _ => Box::new(Plain::default()),
    };
    let pull = |name: &str| base(&store, name, args);
    let built = build::build(&options, &store, &records, &pull, Some(&signals), output.as_mut())?;
    drop(output);
    if let Some(path) = &args.iidfile {
        std::fs::write(path, built.id.to_string())
            .map_err(|error| Report::new(format!("cannot write `{}`", path.display())).with_cause(error))?;
    }
    let names: Vec<String> = options.names.iter().map(Reference::familiar).collect();
    if args.json {
        print::json(&serde_json::json!({
            "Id": built.id.to_string(), "Names": names, "Steps": built.steps, "Cached": built.cached,
        }))?;
        return Ok(0);
    }
    if !args.quiet && !names.is_empty() {
        print::say(&format!("built {}", names.join(", ")));
    }
    print::out(&format!("{}\n", built.id))?;
    Ok(0)
}

fn options(args: &BuildArgs, context: &Context) -> Result<Options, Report> {
    let from_stdin = args.context == Path::new("-");
    if from_stdin && args.file.is_some() {
        return Err(Report::usage("`-` takes the Containerfile from standard input: `--file` contradicts it"));
    }
    if !from_stdin && !args.context.is_dir() {
        return Err(Report::usage(format!("the build context `{}` is no directory", args.context.display()))
            .with_hint("name the directory that holds the files to copy: `gpurun build -t NAME .`"));
    }
    let host = Platform::host();
    if let Some(platform) = args.registry.platform.as_ref().filter(|platform| !platform.runs_on(&host)) {
        return Err(Report::usage(format!("`--platform {platform}`: this machine is {host}, and builds for no other"))
            .with_hint("build it on such a machine, then `gpurun image save` or push it from there"));
    }
    let path = match &args.file {
        Some(path) if path == Path::new("-") => None,
        Some(path) => Some(path.clone()),
        None if from_stdin => None,
        None => Some(containerfile(&args.context)?),
    };
    let text = read_text(path.as_deref())?;
    let mut build_args = BTreeMap::new();
    for text in &args.build_arg {
        match text.split_once('=') {
            Some((name, value)) => drop(build_args.insert(name.to_owned(), value.to_owned())),
            None => build_args.extend(std::env::var(text).ok().map(|value| (text.clone(), value))),
        }
    }
    let clamp = source_date_epoch(build_args.get("SOURCE_DATE_EPOCH"))?;
    Ok(Options {
        root: context.root.clone(),
        file: path.as_ref().map_or_else(|| "-".to_owned(), |path| path.display().to_string()),
        text,
        path,
        context: (!from_stdin).then(|| args.context.clone()),
        names: args.tag.clone(),
        args: build_args,
        target: args.target.clone(),
        labels: args.label.iter().map(|text| request::label(text)).collect::<Result<_, _>>()?,
        no_cache: args.no_cache,
        network: request::network_mode(&args.network)?,
        limits: args.limits.asked(),
        add_hosts: args.add_host.iter().map(|line| request::host_line(line)).collect::<Result<_, _>>()?,
        secrets: args.secret.iter().map(|text| secret(text)).collect::<Result<_, _>>()?,
        host_ca: args.host_ca,
        clamp,
    })
}

/// A base image: the store's, or as `--pull` says a registry's.
fn base(store: &Store, name: &str, args: &BuildArgs) -> Result<Image, Report> {
    let found = provide(store, name, args.pull, &args.registry).and_then(|name| Ok(store.resolve(&name)?));
    found.map_err(|report| {
        let distribution = ["debian:", "ubuntu:"].iter().any(|prefix| name.starts_with(prefix));
        if !distribution {
            return report;
        }
        report.with_hint(format!("make it from the distribution's own packages: `gpurun image bootstrap {name}`"))
    })
}

/// SOURCE_DATE_EPOCH, of the build arguments or the environment.
pub fn source_date_epoch(argument: Option<&String>) -> Result<Option<i64>, Report> {
    let text = argument.cloned().or_else(|| std::env::var("SOURCE_DATE_EPOCH").ok()).filter(|text| !text.is_empty());
    let Some(text) = text else { return Ok(None) };
    match text.parse::<i64>() {
        Ok(seconds) if seconds >= 0 => Ok(Some(seconds)),
        _ => Err(Report::usage(format!("`SOURCE_DATE_EPOCH={text}` is no number of seconds"))
            .with_hint("`date +%s` prints one")),
    }
}

fn containerfile(context: &Path) -> Result<PathBuf, Report> {
    let found = ["Containerfile", "Dockerfile"].map(|name| context.join(name)).into_iter().find(|path| path.exists());
    found.ok_or_else(|| {
        Report::new(format!("there is no Containerfile or Dockerfile in `{}`", context.display()))
            .with_hint("name it with `--file FILE`")
            .with_exit_code(1)
    })
}

fn read_text(path: Option<&Path>) -> Result<String, Report> {
    let Some(path) = path else {
        let mut text = String::new();
        return match io::stdin().lock().take(MAX_FILE + 1).read_to_string(&mut text) {
            Ok(read) if read as u64 > MAX_FILE => {
                Err(Report::new(format!("the Containerfile on standard input is larger than {} MiB", MAX_FILE >> 20)))
            }
            Ok(_) => Ok(text),
            Err(error) => Err(Report::new("cannot read the Containerfile from standard input").with_cause(error)),
        };
    };
    request::read_small_text(path, MAX_FILE)
}

/// `id=ID,src=FILE`, `id=ID,env=NAME`, `id=ID` (a variable or file of that name).
fn secret(text: &str) -> Result<(String, Vec<u8>), Report> {
    let usage = |what: &str| {
        Report::usage(format!("`--secret {text}` {what}"))
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
            _ => return Err(usage(&format!("has `{field}`, which means nothing"))),
        }
    }
    let id = id.filter(|id| !id.is_empty()).ok_or_else(|| usage("has no id"))?;
    if source.is_some() && variable.is_some() {
        return Err(usage("names a file and a variable"));
    }
    // docker's: what `src` names is a variable then, as the id is without it.
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
            ("id=x,src=/etc/hosts,env=PATH", "names a file and a variable"),
            ("id=x,type=ssh", "has `type=ssh`"),
            ("id=x,src=/nosuch", "cannot read the secret `/nosuch`"),
        ] {
            let error = secret(text).expect_err(text).to_string();
            assert!(error.contains(want), "{text}: {error}");
        }
    }
}
