//! `gpurun compose build` and `pull`: the images of services.

use std::collections::BTreeSet;

use clap::Args;

use super::super::{Context, print};
use super::act;
use super::args::ComposeArgs;
use crate::compose::{Build, Plan, Plans, Project};
use crate::report::Report;

#[derive(Debug, Args)]
pub(super) struct BuildArgs {
    /// Do not use the build cache
    #[arg(long)]
    no_cache: bool,
    /// Pull newer base images
    #[arg(long)]
    pull: bool,
    /// Set an `ARG` of all builds
    #[arg(long, value_name = "KEY[=VALUE]")]
    build_arg: Vec<String>,
    /// Print nothing but errors
    #[arg(short, long)]
    quiet: bool,
    /// Also build the services that the named ones depend on
    #[arg(long)]
    with_dependencies: bool,
    /// Use this host's certificates, proxies and pip settings in the builds
    #[arg(long)]
    host_ca: bool,
    /// Services (default: all that have a build)
    #[arg(value_name = "SERVICE")]
    services: Vec<String>,
}

#[derive(Debug, Args)]
pub(super) struct PullArgs {
    /// Also pull the services that the named ones depend on
    #[arg(long)]
    include_deps: bool,
    /// Leave out services that have a build
    #[arg(long)]
    ignore_buildable: bool,
    /// Go on after an image that cannot be pulled
    #[arg(long)]
    ignore_pull_failures: bool,
    /// Print nothing but errors
    #[arg(short, long)]
    quiet: bool,
    /// Services (default: all)
    #[arg(value_name = "SERVICE")]
    services: Vec<String>,
}

pub(super) fn run(args: &BuildArgs, compose: &ComposeArgs, context: &Context) -> Result<u8, Report> {
    let project = compose.project(&args.services, args.with_dependencies)?;
    let plans = compose.plans(&project)?;
    let mut extra = Vec::new();
    let mut switch = |flag: &str, on: bool| extra.extend(on.then(|| flag.to_owned()));
    switch("--no-cache", args.no_cache);
    switch("--pull", args.pull);
    switch("--quiet", args.quiet);
    switch("--host-ca", args.host_ca);
    extra.extend(args.build_arg.iter().map(|text| format!("--build-arg={text}")));
    let mut builder = Builder::new(context, &project, &plans, &extra);
    for service in plans.services.keys() {
        builder.build(service, true)?;
    }
    if builder.done.is_empty() {
        print::say("gpurun: no service has a build");
    }
    Ok(0)
}

/// Builds the images of services, each after those that its build reads.
pub(super) struct Builder<'a> {
    context: &'a Context,
    project: &'a Project,
    plans: &'a Plans,
    /// Further flags of all builds.
    extra: &'a [String],
    done: BTreeSet<String>,
}

impl<'a> Builder<'a> {
    pub(super) fn new(context: &'a Context, project: &'a Project, plans: &'a Plans, extra: &'a [String]) -> Self {
        Self { context, project, plans, extra, done: BTreeSet::new() }
    }

    /// Builds the image of a service, if it has a build and was not built here before. Of the images that the build reads,
    /// those are built that the store does not have, or `all`. They never read each other in a circle.
    pub(super) fn build(&mut self, service: &str, all: bool) -> Result<(), Report> {
        let Some(build) = self.plans.build(service).filter(|_| !self.done.contains(service)) else { return Ok(()) };
        for read in &build.reads {
            if all || self.context.store()?.resolve(&self.project.image(read)).is_err() {
                self.build(read, all)?;
            }
        }
        one(self.context, self.project, service, build, self.extra)?;
        self.done.insert(service.to_owned());
        Ok(())
    }
}

/// Builds the image of one service.
fn one(context: &Context, project: &Project, service: &str, build: &Build, extra: &[String]) -> Result<(), Report> {
    act::announce(context, &format!(" Service {service}  Building"));
    let mut arguments = vec!["build".to_owned()];
    arguments.extend(extra.iter().cloned());
    let (context_directory, flags) =
        build.arguments.split_last().map(|(last, flags)| (last.clone(), flags)).unwrap_or_default();
    // A Containerfile in the compose file itself becomes a file for the time of the build.
    let inline = project.inline_containerfile(service).filter(|_| !context.dry_run);
    let inline = inline.map(|text| Inline::write(context, service, &text)).transpose()?;
    for flag in flags {
        match &inline {
            Some(inline) if flag == "--file=-" => arguments.push(format!("--file={}", inline.path.display())),
            _ => arguments.push(flag.clone()),
        }
    }
    arguments.push(context_directory);
    match act::run_shown(context, &arguments)? {
        0 => Ok(()),
        code => Err(Report::new(format!("cannot build the image of service `{service}`"))
            .with_exit_code(code)
            .with_hint("the message of the build is above")),
    }
}

struct Inline {
    path: std::path::PathBuf,
}

impl Inline {
    fn write(context: &Context, service: &str, text: &str) -> Result<Self, Report> {
        let path = context.run_dir.join(format!("compose-{}-{service}.Containerfile", std::process::id()));
        std::fs::create_dir_all(&context.run_dir)
            .and_then(|()| std::fs::write(&path, text))
            .map_err(|error| Report::new(format!("cannot write `{}`", path.display())).with_cause(error))?;
        Ok(Self { path })
    }
}

impl Drop for Inline {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.path);
    }
}

pub(super) fn pull_command(args: &PullArgs, compose: &ComposeArgs, context: &Context) -> Result<u8, Report> {
    let project = compose.project(&args.services, args.include_deps)?;
    let plans = compose.plans(&project)?;
    let mut first = None;
    for plan in plans.services.values() {
        if plan.build.is_some() && (args.ignore_buildable || !project.has_image(&plan.service)) {
            continue;
        }
        if let Err(report) = pull(context, plan, args.quiet) {
            if args.ignore_pull_failures || plan.build.is_some() {
                print::say(&format!("gpurun: {}", report.message));
            } else {
                let _ = first.get_or_insert(report);
            }
        }
    }
    first.map_or(Ok(0), Err)
}

/// Pulls the image of one service.
pub(super) fn pull(context: &Context, plan: &Plan, quiet: bool) -> Result<(), Report> {
    let mut arguments = ["image", "pull", &plan.image].map(str::to_owned).to_vec();
    match quiet {
        true => arguments.push("--quiet".to_owned()),
        false => act::announce(context, &format!(" Service {}  Pulling {}", plan.service, plan.image)),
    }
    match act::run_shown(context, &arguments)? {
        0 => Ok(()),
        code => Err(Report::new(format!("cannot pull the image `{}` of service `{}`", plan.image, plan.service))
            .with_exit_code(code)
            .with_hint("the message of the pull is above")),
    }
}
