//! From an image's facts, the limits and the login to what is executed: arguments, environment, configuration files.

use std::fs::{DirBuilder, OpenOptions};
use std::io::{self, Write};
use std::net::IpAddr;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, chown, fchown};
use std::path::{Path, PathBuf};

use serde_json::{Map, Value, json};

use super::auth::Auth;
use super::facts::{self, Files, NoJupyter, Server};
use super::password::{self, Algorithm, HashError};
use super::wrapper;
use crate::report::{EXIT_USAGE, Explain};
use crate::spec::Limits;

/// Where the configuration is bound in the container.
pub const CONFIG_DIR: &str = "/run/gpurun/jupyter";

/// What the launch depends on.
#[derive(Clone, Copy)]
pub struct LaunchRequest<'a> {
    /// The image's name, for errors.
    pub image: &'a str,
    pub files: &'a dyn Files,
    /// The image's, or `--entrypoint`.
    pub entrypoint: &'a [String],
    /// The container's environment so far: the image's, and the person's over it.
    pub env: &'a [(String, String)],
    /// uid and gid that Jupyter runs as.
    pub user: (u32, u32),
    /// That user's home directory.
    pub home: &'a str,
    /// What the notebook shows: the first `-v` directory, or the working directory.
    pub notebook_dir: &'a str,
    /// 0.0.0.0 in a network namespace of its own; with the host's network whatever may reach it.
    pub bind: IpAddr,
    /// In the container.
    pub port: u16,
    pub limits: &'a Limits,
    pub auth: &'a Auth,
    /// Further arguments of the person's.
    pub args: &'a [String],
}

/// A file of the configuration directory: mode 0600, the container's user's.
#[derive(Clone, PartialEq, Eq)]
pub struct ConfigFile {
    pub name: &'static str,
    pub content: String,
}

impl std::fmt::Debug for ConfigFile {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // It holds hashes and tokens.
        f.debug_struct("ConfigFile").field("name", &self.name).finish_non_exhaustive()
    }
}

/// How Jupyter is started.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Launch {
    pub server: Server,
    pub argv: Vec<String>,
    /// To be set over the container's environment.
    pub env: Vec<(String, String)>,
    pub cwd: PathBuf,
    pub files: Vec<ConfigFile>,
    /// Whom the files belong to: who Jupyter will be after the image's wrapper.
    pub owner: (u32, u32),
    /// With slashes at both ends.
    pub base_url: String,
}

#[derive(Debug, thiserror::Error)]
pub enum LaunchError {
    #[error(transparent)]
    NoJupyter(#[from] NoJupyter),
    #[error("the image `{image}` has {server}, which cannot check an argon2 hash")]
    NoArgon2 { image: String, server: String },
    #[error("`{argument}`: the login is not set by an argument, which everybody on this machine can read")]
    SecretArgument { argument: String },
    #[error(transparent)]
    Hash(#[from] HashError),
    #[error("cannot write Jupyter's configuration `{}`", .path.display())]
    Write { path: PathBuf, source: io::Error },
}

impl Explain for LaunchError {
    fn hint(&self) -> Option<String> {
        match self {
            Self::NoJupyter(error) => error.hint(),
            Self::NoArgon2 { .. } => Some("make another hash with `gpurun token --algorithm sha512`".into()),
            Self::SecretArgument { .. } => {
                Some("leave it out: gpurun asks for a password, takes `--password-file`, `--password-stdin` or `--password-hash`, or makes a token".into())
            }
            Self::Hash(error) => error.hint(),
            Self::Write { .. } => None,
        }
    }
    fn exit_code(&self) -> u8 {
        match self {
            Self::SecretArgument { .. } => EXIT_USAGE,
            _ => crate::report::EXIT_GPURUN,
        }
    }
}

/// Plans the launch. Looks into the image through `files` only, and writes nothing.
pub fn plan(request: &LaunchRequest<'_>) -> Result<Launch, LaunchError> {
    check_arguments(request.args)?;
    let path = lookup(request.env, "PATH").unwrap_or_default();
    let server = facts::detect(request.files, path, request.image)?;
    let wrapper = wrapper::wrapper(request.entrypoint, request.files, path);
    let mut argv = wrapper.clone();
    argv.extend(arguments(request, &server));
    let files = config_files(request, &server)?;
    let mut env = jupyter_env(request);
    if wrapper::has_tini(&wrapper) {
        // Not process 1 here: then it reaps what it can as a subreaper, and does not complain.
        env.push(("TINI_SUBREAPER".into(), "1".into()));
    }
    env.extend(limit_env(request.limits, request.env));
    let base_url = base_url(request.args);
    let owner = owner(request, &wrapper);
    Ok(Launch { server, argv, env, cwd: request.notebook_dir.into(), files, owner, base_url })
}

fn lookup<'a>(env: &'a [(String, String)], name: &str) -> Option<&'a str> {
    env.iter().rev().find(|(key, _)| key == name).map(|(_, value)| value.as_str())
}

/// A login that is set by an argument would be seen in `ps`, and a blank one would open the server.
fn check_arguments(args: &[String]) -> Result<(), LaunchError> {
    let secret = |argument: &&String| {
        let key = argument.split('=').next().unwrap_or_default().to_ascii_lowercase();
        [".token", ".password", ".hashed_password", ".password_required", "identity_provider_class"]
            .iter()
            .any(|end| key.ends_with(end))
            || matches!(key.as_str(), "--token" | "--password" | "--lab-token")
    };
    match args.iter().find(secret) {
        // Not the value: the error may be logged.
        Some(argument) => {
            Err(LaunchError::SecretArgument { argument: argument.split('=').next().unwrap_or_default().to_owned() })
        }
        None => Ok(()),
    }
}

/// Flags on the command line win over every configuration file of the image.
fn arguments(request: &LaunchRequest<'_>, server: &Server) -> Vec<String> {
    let class = if server.classic() { "NotebookApp" } else { "ServerApp" };
    let directory = if server.classic() { "notebook_dir" } else { "root_dir" };
    let mut argv = vec![
        server.path.clone(),
        "--no-browser".into(),
        format!("--ip={}", request.bind),
        format!("--port={}", request.port),
        // The next port up would be one that is not published: better to fail.
        format!("--{class}.port_retries=0"),
        format!("--{class}.{directory}={}", request.notebook_dir),
    ];
    if request.user.0 == 0 {
        argv.push("--allow-root".into());
    }
    argv.extend(request.args.iter().cloned());
    argv
}

/// The value of a `--ServerApp.base_url=…` of the person's, with slashes at both ends.
#[must_use]
pub fn base_url(args: &[String]) -> String {
    let given = args.iter().rev().find_map(|argument| {
        let (key, value) = argument.split_once('=')?;
        key.ends_with(".base_url").then_some(value)
    });
    match given.map(|value| value.trim_matches('/')) {
        None | Some("") => "/".into(),
        Some(base) => format!("/{base}/"),
    }
}

/// Ours first on the search path, then whatever the image had there, then the user's own directory (of lower rank than by default, so
/// that a `~/.jupyter` of a bind mount cannot take the login away). JUPYTER_CONFIG_DIR is for a jupyter_core that does not know the path.
fn jupyter_env(request: &LaunchRequest<'_>) -> Vec<(String, String)> {
    let own = format!("{}/.jupyter", request.home.trim_end_matches('/'));
    let user_dir = lookup(request.env, "JUPYTER_CONFIG_DIR").unwrap_or(&own);
    let path = [Some(CONFIG_DIR), lookup(request.env, "JUPYTER_CONFIG_PATH"), Some(user_dir)];
    let path: Vec<&str> = path.into_iter().flatten().filter(|part| !part.is_empty()).collect();
    let mut env = vec![
        ("JUPYTER_CONFIG_DIR".to_owned(), CONFIG_DIR.to_owned()),
        ("JUPYTER_CONFIG_PATH".to_owned(), path.join(":")),
    ];
    // What Jupyter itself saves there has to stay writable.
    for (name, below) in
        [("JUPYTERLAB_SETTINGS_DIR", "lab/user-settings"), ("JUPYTERLAB_WORKSPACES_DIR", "lab/workspaces")]
    {
        if lookup(request.env, name).is_none() {
            env.push((name.to_owned(), format!("{user_dir}/{below}")));
        }
    }
    if lookup(request.env, "JUPYTER_NO_CONFIG").is_some_and(|value| !value.is_empty()) {
        env.push(("JUPYTER_NO_CONFIG".into(), String::new()));
    }
    env
}

/// The settings under every name that one of the stacks reads: each takes its own and passes over the others (measured with jupyter_server
/// 2.21, Notebook 6.5 and 6.0). jupyter_server 2 calls two of the names deprecated in its log, and still they have to stand here: it
/// carries old names over to the new ones, so that an old name in a `~/.jupyter` would win over a new one of ours.
///
/// Besides a password there is always a token that nobody knows: a server that ignored the password setting, or an image that blanks its
/// token, is closed and not open.
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
        // Blank where there is none: an image's own password must not open what a token was asked for.
        settings.insert(password_key.into(), json!(hash.as_deref().unwrap_or_default()));
        Value::from(settings)
    };
    let notebook = json!({ "NotebookApp": login("password") });
    let mut provider = login("hashed_password");
    provider["password_required"] = json!(hash.is_some());
    let mut identity = Map::new();
    identity.insert("token".into(), json!(token));
    let mut server_app = login("password");
    // jupyter_server 2 moved this one and says so on every start; 1.x has it in both
    if let Some(settings) = server_app.as_object_mut() {
        settings.remove("allow_password_change");
    }
    let modern = json!({ "ServerApp": server_app, "PasswordIdentityProvider": provider, "IdentityProvider": identity });
    let file = |name, value: &Value| ConfigFile { name, content: format!("{value:#}\n") };
    Ok(vec![
        file("jupyter_server_config.json", &modern),
        file("jupyter_lab_config.json", &modern),
        file("jupyter_notebook_config.json", &notebook),
        ConfigFile { name: "migrated", content: "by gpurun\n".into() },
    ])
}

fn unknown_token() -> Result<String, HashError> {
    Ok(hex::encode(password::random::<24>()?))
}

/// jupyter/docker-stacks' start.sh, run as root, becomes NB_USER before it runs the command.
fn owner(request: &LaunchRequest<'_>, wrapper: &[String]) -> (u32, u32) {
    let number = |name| lookup(request.env, name).and_then(|value| value.parse().ok());
    let becomes_another = request.user.0 == 0
        && wrapper.iter().any(|word| word == "start.sh" || word.ends_with("/start.sh"))
        && lookup(request.env, "NB_USER").is_some_and(|user| user != "root");
    match (becomes_another, number("NB_UID")) {
        (true, Some(uid)) => (uid, number("NB_GID").unwrap_or(100)),
        _ => request.user,
    }
}

/// MEM_LIMIT (bytes) and CPU_LIMIT (cores), which JupyterHub's spawners set and jupyter-resource-usage shows, and the thread counts of the
/// numerical libraries: they count the machine's CPUs, not the quota, and would fight over it. What is set already stays.
#[must_use]
pub fn limit_env(limits: &Limits, env: &[(String, String)]) -> Vec<(String, String)> {
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
    // A CPU set is seen by every library (sched_getaffinity): only a quota has to be told.
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
    /// Writes the configuration into `dir`, which is to be bound read-only at [`CONFIG_DIR`]: the directory 0700 and the files 0600, all the
    /// owner's. Files of an earlier start are replaced. Only who may chown can do it for somebody else.
    pub fn write_files(&self, dir: &Path) -> Result<(), LaunchError> {
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
