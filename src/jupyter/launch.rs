//! Plans the launch from the image's facts, the limits and the login: arguments, environment and configuration files.

use std::fs::{DirBuilder, OpenOptions};
use std::io::{self, Write};
use std::net::IpAddr;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, chown, fchown};
use std::path::{Path, PathBuf};

use serde_json::{Map, Value, json};

use super::auth::Auth;
use super::facts::{self, Files, NoJupyter, Server};
use super::password::{self, Algorithm, HashError};
use super::tls::{Pair, Pinned};
use super::wrapper;
use crate::report::{EXIT_USAGE, Explain};
use crate::spec::Limits;

/// Where the configuration directory is mounted in the container.
pub(crate) const CONFIG_DIR: &str = "/run/gpurun/jupyter";

/// The input of the plan.
#[derive(Clone, Copy)]
pub(crate) struct LaunchRequest<'a> {
    /// The image's name, for error messages.
    pub image: &'a str,
    pub files: &'a dyn Files,
    /// The entrypoint of the image, or of `--entrypoint`.
    pub entrypoint: &'a [String],
    /// The container's environment so far: the image's, overridden by the caller's.
    pub env: &'a [(String, String)],
    /// uid and gid that the container starts with.
    pub user: (u32, u32),
    /// That user's home directory in the image, which may contain a `.jupyter`. `HOME` in `env` is a directory that
    /// Jupyter can write to.
    pub home: &'a str,
    /// The user that Jupyter runs as after the image's wrapper (see [`runs_as`]).
    pub owner: (u32, u32),
    /// The directory that the notebook shows: the first `-v` directory, or the working directory.
    pub notebook_dir: &'a str,
    /// 0.0.0.0 in a separate network namespace. With the host's network, the address that should be reachable.
    pub bind: IpAddr,
    /// Port in the container.
    pub port: u16,
    pub limits: &'a Limits,
    pub auth: &'a Auth,
    /// The certificate for HTTPS.
    pub tls: Option<&'a Pair>,
    /// Further arguments from the caller.
    pub args: &'a [String],
}

/// A file of the configuration directory. It has mode 0600 and belongs to the container's user.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct ConfigFile {
    pub name: &'static str,
    pub content: String,
}

impl std::fmt::Debug for ConfigFile {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // The content has hashes and tokens.
        f.debug_struct("ConfigFile").field("name", &self.name).finish_non_exhaustive()
    }
}

/// How to start Jupyter.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Launch {
    pub server: Server,
    pub argv: Vec<String>,
    /// Variables that override the container's environment.
    pub env: Vec<(String, String)>,
    pub cwd: PathBuf,
    pub files: Vec<ConfigFile>,
    /// Owner of the files: the user that Jupyter runs as after the image's wrapper.
    pub owner: (u32, u32),
    /// Starts and ends with a slash.
    pub base_url: String,
}

#[derive(Debug, thiserror::Error)]
pub(crate) enum LaunchError {
    #[error(transparent)]
    NoJupyter(#[from] NoJupyter),
    #[error("the image `{image}` has {server}, which cannot check an argon2 hash")]
    NoArgon2 { image: String, server: String },
    #[error("cannot use `{argument}`: all users of this machine can read the arguments of a process")]
    SecretArgument { argument: String },
    #[error("cannot use `{argument}`: gpurun sets the address of Jupyter and checks over HTTP that it answers")]
    OutOfReach { argument: String },
    #[error(transparent)]
    Hash(#[from] HashError),
    #[error("cannot write Jupyter's configuration `{}`", .path.display())]
    Write { path: PathBuf, source: io::Error },
}

impl Explain for LaunchError {
    fn hint(&self) -> Option<String> {
        match self {
            Self::NoJupyter(error) => error.hint(),
            Self::NoArgon2 { .. } => Some("create another hash with `gpurun token --algorithm sha512`".into()),
            Self::SecretArgument { .. } => Some(
                "omit it; gpurun creates a token, or takes a password with `--password`, `--password-file`, \
                      `--password-stdin` or `--password-hash`"
                    .into(),
            ),
            Self::OutOfReach { .. } => Some("publish the port with `-p`; `--tls` serves it over HTTPS".into()),
            Self::Hash(error) => error.hint(),
            Self::Write { .. } => None,
        }
    }
    fn exit_code(&self) -> u8 {
        match self {
            Self::SecretArgument { .. } | Self::OutOfReach { .. } => EXIT_USAGE,
            _ => crate::report::EXIT_GPURUN,
        }
    }
}

/// Plans the launch. Reads the image only through `files`, and writes nothing.
pub(crate) fn plan(request: &LaunchRequest<'_>) -> Result<Launch, LaunchError> {
    check_arguments(request.args)?;
    let path = lookup(request.env, "PATH").unwrap_or_default();
    let server = facts::detect(request.files, path, request.image)?;
    let wrapper = wrapper::wrapper(request.entrypoint, request.files, path);
    let mut argv = wrapper.clone();
    argv.extend(arguments(request, &server));
    let files = config_files(request, &server)?;
    let mut env = jupyter_env(request);
    if wrapper::has_tini(&wrapper) {
        // tini is not process 1 here. As a subreaper it reaps what it can, and does not print a warning.
        env.push(("TINI_SUBREAPER".into(), "1".into()));
    }
    env.extend(limit_env(request.limits, request.env));
    let base_url = base_url(request.args);
    let owner = request.owner;
    Ok(Launch { server, argv, env, cwd: request.notebook_dir.into(), files, owner, base_url })
}

fn lookup<'a>(env: &'a [(String, String)], name: &str) -> Option<&'a str> {
    env.iter().rev().find(|(key, _)| key == name).map(|(_, value)| value.as_str())
}

/// Arguments that would make the server unreachable. gpurun connects to it over HTTP, on the port that it chose.
const OUT_OF_REACH: [&str; 5] = ["certfile", "keyfile", "sock", "ip", "port"];

/// Rejects arguments that set a login, because `ps` would show it and a blank one would open the server.
fn check_arguments(args: &[String]) -> Result<(), LaunchError> {
    let secret = |argument: &&String| {
        let key = argument.split('=').next().unwrap_or_default().to_ascii_lowercase();
        [".token", ".password", ".hashed_password", ".password_required", "identity_provider_class"]
            .iter()
            .any(|end| key.ends_with(end))
            || matches!(key.as_str(), "--token" | "--password" | "--lab-token")
    };
    if let Some(argument) = args.iter().find(|argument| OUT_OF_REACH.iter().any(|name| sets(argument, name))) {
        let argument = argument.split('=').next().unwrap_or_default().to_owned();
        return Err(LaunchError::OutOfReach { argument });
    }
    match args.iter().find(secret) {
        // Omit the value, because the error may be logged.
        Some(argument) => {
            Err(LaunchError::SecretArgument { argument: argument.split('=').next().unwrap_or_default().to_owned() })
        }
        None => Ok(()),
    }
}

/// Returns the arguments. Flags on the command line override every configuration file of the image.
fn arguments(request: &LaunchRequest<'_>, server: &Server) -> Vec<String> {
    let class = if server.classic() { "NotebookApp" } else { "ServerApp" };
    let directory = if server.classic() { "notebook_dir" } else { "root_dir" };
    let mut argv = vec![
        server.path.clone(),
        "--no-browser".into(),
        format!("--ip={}", request.bind),
        format!("--port={}", request.port),
        // With a retry, the server would use the next port, which is not published. It is better to fail.
        format!("--{class}.port_retries=0"),
    ];
    if !request.args.iter().any(|argument| sets(argument, directory)) {
        argv.push(format!("--{class}.{directory}={}", request.notebook_dir));
    }
    if request.user.0 == 0 {
        argv.push("--allow-root".into());
    }
    argv.extend(fixed(request, server, class));
    argv.extend(request.args.iter().cloned());
    argv
}

/// Settings that determine where and how the server answers. A configuration of the image or of a mounted home
/// directory was written for another environment. With its `base_url` or certificate, gpurun could not reach the
/// server, and would print a URL that does not work.
fn fixed(request: &LaunchRequest<'_>, server: &Server, class: &str) -> Vec<String> {
    let own = |name: &str| if request.tls.is_some() { format!("{CONFIG_DIR}/{name}") } else { String::new() };
    let (certificate, key) = (own(CERTIFICATE), own(KEY));
    let mut settings = vec![("base_url", "/"), ("certfile", &*certificate), ("keyfile", &*key), ("client_ca", "")];
    if !server.classic() || server.notebook.as_deref().is_some_and(|version| facts::at_least(version, 6, 2)) {
        settings.push(("sock", ""));
    }
    if request.bind.is_unspecified() {
        settings.push(("allow_remote_access", "True"));
    }
    let given = |name: &str| request.args.iter().any(|argument| sets(argument, name));
    settings.retain(|(name, _)| !given(name));
    settings.iter().map(|(name, value)| format!("--{class}.{name}={value}")).collect()
}

/// Whether an argument sets this trait, by its name or by its alias (`--ServerApp.client_ca=…`, `--client-ca=…`).
fn sets(argument: &str, name: &str) -> bool {
    let key = argument.split('=').next().unwrap_or_default().replace('-', "_");
    key.ends_with(&format!(".{name}")) || key == format!("__{name}")
}

/// Returns the value of the caller's `--ServerApp.base_url=…`, starting and ending with a slash.
#[must_use]
pub(crate) fn base_url(args: &[String]) -> String {
    let given = args.iter().rev().find_map(|argument| {
        let (key, value) = argument.split_once('=')?;
        key.ends_with(".base_url").then_some(value)
    });
    match given.map(|value| value.trim_matches('/')) {
        None | Some("") => "/".into(),
        Some(base) => format!("/{base}/"),
    }
}

/// Returns the variables for Jupyter. gpurun's directory comes first on the search path, then the image's own entries,
/// then the user's directory. The user's directory has a lower rank than by default, so that a `~/.jupyter` of a bind
/// mount cannot disable the login. JUPYTER_CONFIG_DIR is for a jupyter_core that does not support the path.
fn jupyter_env(request: &LaunchRequest<'_>) -> Vec<(String, String)> {
    let own = format!("{}/.jupyter", request.home.trim_end_matches('/'));
    let user_dir = lookup(request.env, "JUPYTER_CONFIG_DIR").unwrap_or(&own);
    let path = [Some(CONFIG_DIR), lookup(request.env, "JUPYTER_CONFIG_PATH"), Some(user_dir)];
    let saved = match lookup(request.env, "HOME") {
        Some(home) if home != request.home => format!("{}/.jupyter", home.trim_end_matches('/')),
        _ => user_dir.to_owned(),
    };
    let path: Vec<&str> = path.into_iter().flatten().filter(|part| !part.is_empty()).collect();
    let mut env = vec![
        ("JUPYTER_CONFIG_DIR".to_owned(), CONFIG_DIR.to_owned()),
        ("JUPYTER_CONFIG_PATH".to_owned(), path.join(":")),
    ];
    // Jupyter itself saves files in these directories, so they must stay writable.
    for (name, below) in
        [("JUPYTERLAB_SETTINGS_DIR", "lab/user-settings"), ("JUPYTERLAB_WORKSPACES_DIR", "lab/workspaces")]
    {
        if lookup(request.env, name).is_none() {
            env.push((name.to_owned(), format!("{saved}/{below}")));
        }
    }
    if lookup(request.env, "JUPYTER_NO_CONFIG").is_some_and(|value| !value.is_empty()) {
        env.push(("JUPYTER_NO_CONFIG".into(), String::new()));
    }
    env
}

/// Returns the settings under every name that one of the server stacks reads. Each stack takes its own names and
/// ignores the others (measured with jupyter_server 2.21, Notebook 6.5 and 6.0). jupyter_server 2 logs two of the names
/// as deprecated, but they are still necessary: it copies old names to the new ones, so that an old name in a
/// `~/.jupyter` would override a new one of gpurun.
///
/// In addition to a password, there is always a random token that is not revealed. Without it, a server that ignores
/// the password setting, or an image that blanks its token, would be open.
fn config_files(request: &LaunchRequest<'_>, server: &Server) -> Result<Vec<ConfigFile>, LaunchError> {
    let (token, hash) = match request.auth {
        Auth::Token(token) => (token.reveal().to_owned(), None),
        Auth::Password(plain) => {
            let algorithm = if server.argon2() { Algorithm::Argon2 } else { Algorithm::Sha512 };
            (unknown_token()?, Some(password::hash(plain.reveal(), algorithm)?))
        }
        Auth::Hash(hash) => {
            if hash.starts_with("argon2:") && !server.argon2() {
                return Err(LaunchError::NoArgon2 { image: request.image.to_owned(), server: server.label() });
            }
            (unknown_token()?, Some(hash.clone()))
        }
    };
    let login = |password_key: &str| {
        let mut settings = Map::new();
        settings.insert("token".into(), json!(token));
        settings.insert("allow_password_change".into(), json!(false));
        // Blank if there is no password: if a token was requested, an image's own password must not open the server.
        settings.insert(password_key.into(), json!(hash.as_deref().unwrap_or_default()));
        Value::from(settings)
    };
    let notebook = json!({ "NotebookApp": login("password") });
    let mut provider = login("hashed_password");
    provider["password_required"] = json!(hash.is_some());
    let mut identity = Map::new();
    identity.insert("token".into(), json!(token));
    let mut server_app = login("password");
    // jupyter_server 2 moved this setting and logs a warning on every start. jupyter_server 1.x reads it in both
    // places.
    if let Some(settings) = server_app.as_object_mut() {
        settings.remove("allow_password_change");
    }
    let modern = json!({ "ServerApp": server_app, "PasswordIdentityProvider": provider, "IdentityProvider": identity });
    // The mark must be secret: a client that knows it can keep its requests out of the log.
    let mark = unknown_token()?;
    let quiet = QUIET.replace("MARK", &mark);
    let file = |name, value: &Value| ConfigFile { name, content: format!("{value:#}\n") };
    let mut files = vec![
        file("jupyter_server_config.json", &modern),
        file("jupyter_lab_config.json", &modern),
        file("jupyter_notebook_config.json", &notebook),
        ConfigFile { name: "migrated", content: "by gpurun\n".into() },
        ConfigFile { name: "jupyter_server_config.py", content: quiet.clone() },
        ConfigFile { name: "jupyter_notebook_config.py", content: quiet },
        ConfigFile { name: MARK, content: mark },
    ];
    if let Some(pair) = request.tls {
        files.push(ConfigFile { name: CERTIFICATE, content: pair.certificate.clone() });
        files.push(ConfigFile { name: KEY, content: pair.key.clone() });
    }
    Ok(files)
}

/// The files with the certificate and the key of `--tls`.
const CERTIFICATE: &str = "cert.pem";
const KEY: &str = "key.pem";

/// Returns the certificate with which a running Jupyter serves HTTPS, if it does. Read from the container's run
/// directory.
#[must_use]
pub(crate) fn certificate(run_dir: &Path) -> Option<Pinned> {
    Pinned::from_pem(&std::fs::read(run_dir.join("jupyter").join(CERTIFICATE)).ok()?)
}

/// The file that holds the mark of gpurun's own requests.
const MARK: &str = "probe";

/// A log filter that runs in the server. It drops gpurun's own requests and the URL of the container's own network.
const QUIET: &str = include_str!("quiet.py");

/// Returns the mark of the readiness check's requests, which keeps them out of the server's log. It is read from the
/// run directory of a running container.
#[must_use]
pub(crate) fn probe_mark(run_dir: &Path) -> Option<String> {
    std::fs::read_to_string(run_dir.join("jupyter").join(MARK)).ok()
}

fn unknown_token() -> Result<String, HashError> {
    Ok(hex::encode(password::random::<24>()?))
}

/// Returns the user that Jupyter runs as. If start.sh of jupyter/docker-stacks runs as root, it switches to NB_USER
/// before it runs the command.
#[must_use]
pub(crate) fn runs_as(
    entrypoint: &[String],
    files: &dyn Files,
    env: &[(String, String)],
    user: (u32, u32),
) -> (u32, u32) {
    let wrapper = wrapper::wrapper(entrypoint, files, lookup(env, "PATH").unwrap_or_default());
    let number = |name| lookup(env, name).and_then(|value| value.parse().ok());
    let becomes_another = user.0 == 0
        && wrapper.iter().any(|word| word == "start.sh" || word.ends_with("/start.sh"))
        && lookup(env, "NB_USER").is_some_and(|user| user != "root");
    match (becomes_another, number("NB_UID")) {
        (true, Some(uid)) => (uid, number("NB_GID").unwrap_or(100)),
        _ => user,
    }
}

/// Returns MEM_LIMIT (bytes) and CPU_LIMIT (cores), which JupyterHub's spawners set and jupyter-resource-usage shows,
/// and the thread counts of the numerical libraries. These libraries count the machine's CPUs and not the quota, so
/// they would start too many threads for it. Variables that are already set are not changed.
#[must_use]
pub(crate) fn limit_env(limits: &Limits, env: &[(String, String)]) -> Vec<(String, String)> {
    let mut variables = Vec::new();
    if let Some(memory) = limits.memory {
        variables.push(("MEM_LIMIT", memory.to_string()));
    }
    let of_set = limits.cpuset_cpus.as_ref().map(|set| set.0.len() as u64).filter(|count| *count > 0);
    let quota = limits.cpu_quota_us.zip(limits.cpu_period_us.filter(|period| *period > 0));
    let cores = quota.map(|(quota, period)| quota as f64 / period as f64);
    let least = match (cores, of_set) {
        (Some(cores), Some(count)) => Some(cores.min(count as f64)),
        (cores, count) => cores.or(count.map(|count| count as f64)),
    };
    if let Some(cores) = least {
        variables.push(("CPU_LIMIT", cores.to_string()));
    }
    // Every library sees a CPU set (sched_getaffinity). Only a quota needs variables.
    if let Some((quota, period)) = quota {
        let threads = quota.div_ceil(period).max(1).min(of_set.unwrap_or(u64::MAX)).to_string();
        for name in
            ["OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMEXPR_NUM_THREADS", "PYTHON_CPU_COUNT"]
        {
            variables.push((name, threads.clone()));
        }
    }
    variables.retain(|(name, _)| lookup(env, name).is_none());
    variables.into_iter().map(|(name, value)| (name.to_owned(), value)).collect()
}

impl Launch {
    /// Writes the configuration into `dir`, which is to be bind-mounted read-only at [`CONFIG_DIR`]. The directory has
    /// mode 0700, the files have mode 0600, and all belong to the owner. Replaces the files of an earlier start.
    /// Writing for another user requires the right to chown.
    pub(crate) fn write_files(&self, dir: &Path) -> Result<(), LaunchError> {
        let fail = |path: &Path| {
            let path = path.to_owned();
            move |source| LaunchError::Write { path, source }
        };
        let (uid, gid) = (Some(self.owner.0), Some(self.owner.1));
        match DirBuilder::new().mode(0o700).create(dir) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            other => other.map_err(fail(dir))?,
        }
        chown(dir, uid, gid).map_err(fail(dir))?;
        for file in &self.files {
            let path = dir.join(file.name);
            match std::fs::remove_file(&path) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(fail(&path)(error)),
                _ => {}
            }
            let mut out =
                OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path).map_err(fail(&path))?;
            out.write_all(file.content.as_bytes()).and_then(|()| fchown(&out, uid, gid)).map_err(fail(&path))?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
