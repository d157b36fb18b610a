//! Jupyter's half of a bare launch: its configuration beside the record, and the exec beside our init.

use std::net::{IpAddr, Ipv4Addr};
use std::os::fd::OwnedFd;
use std::path::Path;

use super::streams::{Stream, Streams};
use crate::cgroup::Cgroup;
use crate::jupyter::{self, Auth, Launch, LaunchError, LaunchRequest, Rootfs, Secret};
use crate::record::{Entry, Secrets};
use crate::report::Report;
use crate::request::{JupyterRequest, MountSource, NetworkMode};
use crate::rootfs::{self, MountpointKind, users};
use crate::runtime::{self, ExecChild, ExecRequest, Stdio};
use crate::spec::seccomp::Filter;
use crate::spec::{Limits, Mount, Plan, Rlimit};

/// How Jupyter will be started, once the container runs.
#[derive(Debug)]
pub struct Prepared {
    argv: Vec<String>,
    env: Vec<String>,
    cwd: std::path::PathBuf,
    /// What it takes over from the container's own process.
    held: Option<Held>,
}

#[derive(Debug)]
struct Held {
    uid: u32,
    gid: u32,
    groups: Vec<u32>,
    capabilities: u64,
    rlimits: Vec<Rlimit>,
    no_new_privileges: bool,
    filter: Option<Filter>,
    oom_score_adj: Option<i32>,
}

/// Everything about the container that the preparation looks at.
pub struct About<'a> {
    pub entry: &'a Entry,
    pub request: &'a JupyterRequest,
    pub root: &'a OwnedFd,
    pub merged: &'a Path,
    pub entrypoint: &'a [String],
    pub env: &'a [String],
    pub cwd: &'a Path,
    pub limits: &'a Limits,
    pub user: &'a users::User,
}

/// Looks for Jupyter in the image, writes its configuration, and binds it into the container.
pub fn prepare(about: &About<'_>, mounts: &mut Vec<Mount>) -> Result<Prepared, Report> {
    let secrets =
        about.entry.secrets()?.ok_or_else(|| Report::new("the container has no login for Jupyter on record"))?;
    let launch = match secrets {
        Secrets::Token(token) => plan(about, &Auth::Token(Secret::new(token)))?,
        Secrets::Hashes(hashes) => plan_with_hashes(about, &hashes)?,
    };
    let dir = about.entry.run_dir.join("jupyter");
    launch.write_files(&dir)?;
    let destination =
        rootfs::make_mountpoint_in_root(about.root, Path::new(jupyter::CONFIG_DIR), MountpointKind::Directory)?;
    let options = ["bind", "ro", "nosuid", "nodev", "noexec"].map(str::to_owned).into();
    mounts.push(Mount { destination, kind: "bind".into(), source: dir, options });
    let mut env = about.env.to_vec();
    for (name, value) in launch.env {
        env.retain(|entry| entry.split_once('=').is_none_or(|(other, _)| other != name));
        env.push(format!("{name}={value}"));
    }
    Ok(Prepared { argv: launch.argv, env, cwd: launch.cwd, held: None })
}

/// The first hash that the image's Jupyter can check.
fn plan_with_hashes(about: &About<'_>, hashes: &[String]) -> Result<Launch, Report> {
    let mut refused = None;
    for hash in hashes {
        match plan(about, &Auth::Hash(hash.clone())) {
            Err(error @ LaunchError::NoArgon2 { .. }) => drop(refused.get_or_insert(error)),
            other => return Ok(other?),
        }
    }
    Err(refused.map_or_else(|| Report::new("the container has no login for Jupyter on record"), Report::from))
}

fn plan(about: &About<'_>, auth: &Auth) -> Result<Launch, LaunchError> {
    let request = &about.entry.record.request;
    let files = Rootfs::open(about.merged).map_err(|error| LaunchError::Write {
        path: about.merged.to_path_buf(),
        source: std::io::Error::other(error.to_string()),
    })?;
    let pairs: Vec<(String, String)> = about
        .env
        .iter()
        .filter_map(|entry| entry.split_once('='))
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .collect();
    let first_bind = request.mounts.iter().find(|mount| matches!(mount.source, MountSource::Bind { .. }));
    let notebook_dir = first_bind.map_or(about.cwd, |mount| &mount.destination).display().to_string();
    // The host's network would show Jupyter to everybody: loopback there, the tunnel for the rest.
    let bind = if request.network == NetworkMode::Host { Ipv4Addr::LOCALHOST } else { Ipv4Addr::UNSPECIFIED };
    jupyter::plan(&LaunchRequest {
        image: &request.image,
        files: &files,
        entrypoint: about.entrypoint,
        env: &pairs,
        user: (about.user.uid, about.user.gid),
        home: &about.user.home.display().to_string(),
        notebook_dir: &notebook_dir,
        bind: IpAddr::V4(bind),
        port: about.request.port,
        limits: about.limits,
        auth,
        args: &about.request.args,
    })
}

impl Prepared {
    /// Takes over what the container's own process is held by.
    pub fn hold(&mut self, plan: &Plan, filter: Option<&Filter>) {
        self.held = Some(Held {
            uid: plan.uid,
            gid: plan.gid,
            groups: plan.groups.clone(),
            capabilities: plan.capabilities.0,
            rlimits: plan.rlimits.clone(),
            no_new_privileges: plan.no_new_privileges,
            filter: filter.cloned(),
            oom_score_adj: plan.oom_score_adj,
        });
    }
}

/// Starts Jupyter in the running container; its output goes the way of the container's.
pub fn exec(prepared: Prepared, target: &OwnedFd, cgroup: &Cgroup, streams: &mut Streams) -> Result<ExecChild, Report> {
    let failed = |error: std::io::Error| Report::new("cannot make Jupyter's standard streams").with_cause(error);
    let pipe = || nix::unistd::pipe2(nix::fcntl::OFlag::O_CLOEXEC).map_err(|errno| failed(errno.into()));
    let held = prepared.held.ok_or_else(|| Report::new("Jupyter was prepared without its limits"))?;
    let (out_read, stdout) = pipe()?;
    let (error_read, stderr) = pipe()?;
    let child = runtime::exec(&ExecRequest {
        target,
        cgroup_procs: cgroup.procs_files(),
        args: prepared.argv,
        env: prepared.env,
        cwd: prepared.cwd,
        uid: held.uid,
        gid: held.gid,
        groups: held.groups,
        capabilities: held.capabilities,
        rlimits: held.rlimits,
        no_new_privileges: held.no_new_privileges,
        seccomp: held.filter.as_ref(),
        oom_score_adj: held.oom_score_adj,
        stdio: Stdio::Fds { stdin: std::fs::File::open("/dev/null").map_err(failed)?.into(), stdout, stderr },
    })?;
    streams.with_output(out_read, Stream::Stdout).map_err(failed)?;
    streams.with_output(error_read, Stream::Stderr).map_err(failed)?;
    Ok(child)
}
