//! The Jupyter part of a bare launch: writes Jupyter's configuration to /run, and starts Jupyter with exec beside
//! gpurun's init.

use std::net::{IpAddr, Ipv4Addr};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::places::Places;
use super::shared::Writer;
use super::streams::{Stream, Streams};
use crate::cgroup::Cgroup;
use crate::jupyter::tls::{self, Pair};
use crate::jupyter::{self, Auth, Launch, LaunchError, LaunchRequest, Rootfs, Secret};
use crate::record::{Entry, Secrets};
use crate::report::Report;
use crate::request::{JupyterRequest, MountSource, NetworkMode, TlsRequest};
use crate::rootfs::{MountpointKind, users};
use crate::runtime::{self, ExecChild, ExecRequest, Stdio};
use crate::spec::{Limits, Mount, Process};

/// A start after this time generates a new certificate, because the old one ends soon.
const RENEWAL: Duration = Duration::from_secs(300 * 86_400);

/// How to start Jupyter in the container. Everything else is as for the container's own process.
#[derive(Debug, Clone)]
pub(super) struct Prepared {
    pub args: Vec<String>,
    pub env: Vec<String>,
    pub cwd: PathBuf,
}

/// The inputs for the preparation.
pub(super) struct About<'a> {
    pub entry: &'a Entry,
    pub request: &'a JupyterRequest,
    pub places: &'a Places<'a>,
    pub merged: &'a Path,
    pub entrypoint: &'a [String],
    pub env: &'a [String],
    /// The start directory of the notebook if no directory is mounted for it.
    pub notebook_dir: &'a Path,
    pub limits: &'a Limits,
    pub user: &'a users::User,
    /// The user's home in the image, which may contain a configuration. `HOME` may name another directory.
    pub config_home: &'a Path,
    /// The owner of the configuration: the user that Jupyter runs as after the image's start script.
    pub owner: (u32, u32),
}

/// Finds Jupyter in the image, writes its configuration, and mounts it in the container.
pub(super) fn prepare(about: &About<'_>, mounts: &mut Vec<Mount>) -> Result<Prepared, Report> {
    let secrets =
        about.entry.secrets()?.ok_or_else(|| Report::new("the container has no login for Jupyter on record"))?;
    let tls = pair(about)?;
    let launch = match secrets {
        Secrets::Token(token) => plan(about, &Auth::Token(Secret::new(token)), tls.as_ref())?,
        Secrets::Hashes(hashes) => plan_with_hashes(about, &hashes, tls.as_ref())?,
    };
    let dir = about.entry.run_dir.join("jupyter");
    launch.write_files(&dir)?;
    let kind = MountpointKind::Directory;
    let destination = about.places.own(Path::new(jupyter::CONFIG_DIR), kind)?;
    let options = ["bind", "ro", "nosuid", "nodev", "noexec"].map(str::to_owned).into();
    mounts.push(Mount { destination, kind: "bind".into(), source: dir, options });
    let mut env = about.env.to_vec();
    for (name, value) in launch.env {
        env.retain(|entry| entry.split_once('=').is_none_or(|(other, _)| other != name));
        env.push(format!("{name}={value}"));
    }
    Ok(Prepared { args: launch.argv, env, cwd: launch.cwd })
}

/// Plans with the first hash that the image's Jupyter can verify.
fn plan_with_hashes(about: &About<'_>, hashes: &[String], tls: Option<&Pair>) -> Result<Launch, Report> {
    let mut refused = None;
    for hash in hashes {
        match plan(about, &Auth::Hash(hash.clone()), tls) {
            Err(error @ LaunchError::NoArgon2 { .. }) => drop(refused.get_or_insert(error)),
            other => return Ok(other?),
        }
    }
    Err(refused.map_or_else(|| Report::new("the container has no login for Jupyter on record"), Report::from))
}

/// Returns the certificate of `--tls`. A generated one is kept with the container, so that its fingerprint stays the same
/// after a restart.
fn pair(about: &About<'_>) -> Result<Option<Pair>, Report> {
    match &about.request.tls {
        None => Ok(None),
        Some(TlsRequest::Files { certificate, key }) => Ok(Some(tls::read(certificate, key)?)),
        Some(TlsRequest::Generated) => {
            let (certificate, key) = (about.entry.dir.join("tls-cert.pem"), about.entry.dir.join("tls-key.pem"));
            let is_fresh = |path: &Path| {
                let age = std::fs::metadata(path).and_then(|about| about.modified()).ok()?.elapsed().ok()?;
                (age < RENEWAL).then_some(())
            };
            if is_fresh(&key).is_some()
                && let Ok(pair) = tls::read(&certificate, &key)
            {
                return Ok(Some(pair));
            }
            let host = nix::unistd::gethostname().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
            let (names, addresses) = tls::subjects(&host);
            let pair = tls::generate(&names, &addresses)?;
            for (path, text) in [(&certificate, &pair.certificate), (&key, &pair.key)] {
                crate::durable::write_atomic(path, text.as_bytes())
                    .map_err(|error| Report::new(format!("cannot write `{}`", path.display())).with_cause(error))?;
            }
            Ok(Some(pair))
        }
    }
}

fn plan(about: &About<'_>, auth: &Auth, tls: Option<&Pair>) -> Result<Launch, LaunchError> {
    let request = &about.entry.record.request;
    let files = Rootfs::open(about.merged).map_err(|error| LaunchError::Write {
        path: about.merged.to_path_buf(),
        source: std::io::Error::other(error.to_string()),
    })?;
    let pairs = pairs(about.env);
    let first_bind = request.mounts.iter().find(|mount| matches!(mount.source, MountSource::Bind { .. }));
    let notebook_dir = first_bind.map_or(about.notebook_dir, |mount| &mount.destination).display().to_string();
    // On the host's network Jupyter would be reachable from everywhere, so it listens on loopback only. Remote users
    // connect through a tunnel.
    let bind = if request.network == NetworkMode::Host { Ipv4Addr::LOCALHOST } else { Ipv4Addr::UNSPECIFIED };
    jupyter::plan(&LaunchRequest {
        image: &request.image,
        files: &files,
        entrypoint: about.entrypoint,
        env: &pairs,
        user: (about.user.uid, about.user.gid),
        home: &about.config_home.display().to_string(),
        owner: about.owner,
        notebook_dir: &notebook_dir,
        bind: IpAddr::V4(bind),
        port: about.request.port,
        limits: about.limits,
        auth,
        tls,
        args: &about.request.args,
    })
}

fn pairs(env: &[String]) -> Vec<(String, String)> {
    let split = env.iter().filter_map(|entry| entry.split_once('='));
    split.map(|(name, value)| (name.to_owned(), value.to_owned())).collect()
}

/// The user that writes the notebook's files. The image's start script may change to another user.
pub(super) fn writer(
    entry: &Entry,
    config: &crate::image::Config,
    merged: &Path,
    env: &[String],
    user: &users::User,
    groups: &[u32],
) -> Result<Writer, Report> {
    let entrypoint = entry.record.request.entrypoint.as_deref().unwrap_or(&config.entrypoint);
    let (uid, gid) = jupyter::runs_as(entrypoint, &Rootfs::open(merged)?, &pairs(env), (user.uid, user.gid));
    let groups = if uid == user.uid { groups.to_vec() } else { vec![gid] };
    Ok(Writer { uid, gid, groups, owner: entry.record.owner.unprivileged() })
}

/// Starts Jupyter in the running container. Its output joins the container's output.
pub(super) fn exec(
    process: Process,
    target: &OwnedFd,
    cgroup: &Cgroup,
    streams: &mut Streams,
) -> Result<ExecChild, Report> {
    let failed = |error: std::io::Error| Report::new("cannot create Jupyter's standard streams").with_cause(error);
    let pipe = || nix::unistd::pipe2(nix::fcntl::OFlag::O_CLOEXEC).map_err(|errno| failed(errno.into()));
    let (out_read, stdout) = pipe()?;
    let (error_read, stderr) = pipe()?;
    let stdin = std::fs::File::open("/dev/null").map_err(failed)?.into();
    let stdio = Stdio::Fds { stdin, stdout, stderr };
    let child = runtime::exec(&ExecRequest { target, cgroup_procs: cgroup.entry_files(), process, stdio })?;
    streams.with_output(out_read, Stream::Stdout).map_err(failed)?;
    streams.with_output(error_read, Stream::Stderr).map_err(failed)?;
    Ok(child)
}
