//! Prepares the mounts of a `RUN --mount=…`: cache directories, parts of the context, of stages and of images, and
//! secrets.
//!
//! A cache mount is locked for the length of the step if its sharing mode is `private` or `locked`. Copies of the
//! context and rendered parts of images are in the draft's scratch directories and are removed with the draft, except
//! that a part rendered to fill a new cache directory is moved there.

use std::collections::VecDeque;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::rc::Rc;

use super::agent::AgentSocket;
use super::cache::Key;
use super::context::Source;
use super::context::no_context;
use super::copy_source::CopySource;
use super::engine::{Current, Engine};
use super::hostca::HostFile;
use super::ignore::Filter;
use super::mount::{Mount, Sharing};
use super::snapshot;
use crate::durable::FileLock;
use crate::layer::directory;
use crate::names::Digest;
use crate::report::Report;
use crate::request::{MountRequest, MountSource};
use crate::store::Draft;

/// The source of a mount.
#[derive(Debug, Clone)]
pub(super) enum Shown {
    /// A part of the context, as it was when the step's key was made.
    Context(Rc<Source>),
    /// The layers of a stage or an image.
    Layers(Vec<Digest>),
}

/// The requests, files, variables and locks that a step's mounts need while it runs.
#[derive(Default)]
pub(super) struct Mounted {
    pub requests: Vec<MountRequest>,
    pub files: Vec<HostFile>,
    pub env: Vec<(String, String)>,
    pub agents: Vec<AgentSocket>,
    locks: Vec<FileLock>,
}

impl Engine<'_> {
    /// Adds everything that the step depends on to the key: the contents of the context and of stages, but only the
    /// names of caches and secrets. Returns the sources of the mounts, in the order of the mounts that have one.
    pub(super) fn add_mounts_to(
        &mut self,
        current: &Current<'_>,
        mounts: &[Mount],
        key: &mut Key,
    ) -> Result<VecDeque<Shown>, Report> {
        let mut shown = VecDeque::new();
        for mount in mounts {
            key.add(format!("{mount:?}"));
            match mount {
                Mount::Bind { from: Some(name), .. } => {
                    let layers = self.layers_from(current, name)?;
                    key.add(crate::layer::merge::chain_id(&layers).hex());
                    shown.push_back(Shown::Layers(layers));
                }
                Mount::Bind { from: None, source, .. } => {
                    let context = self.context.as_ref().ok_or_else(no_context)?;
                    let mut found = context.select(source, &Filter::default())?;
                    let count = found.len();
                    let (1, Some(found)) = (count, found.pop()) else {
                        return Err(Report::new(format!(
                            "cannot mount `source={source}`: it matches {count} files instead of one"
                        )));
                    };
                    CopySource::add_to(&[CopySource::from_context(found.clone())], key);
                    shown.push_back(Shown::Context(Rc::new(found)));
                }
                Mount::Cache { from: Some(name), .. } => {
                    shown.push_back(Shown::Layers(self.layers_from(current, name)?));
                }
                _ => {}
            }
        }
        Ok(shown)
    }

    pub(super) fn mounts(
        &mut self,
        mounts: &[Mount],
        mut shown: VecDeque<Shown>,
        draft: &mut Draft<'_>,
    ) -> Result<Mounted, Report> {
        let mut mounted = Mounted::default();
        if mounts.iter().any(|mount| matches!(mount, Mount::Cache { .. })) {
            let failed = |error| Report::new("cannot lock the cache mounts").with_cause(error);
            mounted.locks.push(self.cache.share_mounts().map_err(failed)?);
        }
        for mount in mounts {
            match mount {
                Mount::Tmpfs { target, size } => mounted.requests.push(MountRequest {
                    source: MountSource::Tmpfs { size: *size, mode: None, options: vec!["exec".into()] },
                    destination: target.into(),
                    read_only: false,
                    chown: false,
                }),
                Mount::Secret { id, target, env, mode, owner, required } => {
                    let Some(bytes) = self.options.secrets.get(id) else {
                        if *required {
                            return Err(Report::new(format!(
                                "cannot mount the secret `{id}`: the build has no such secret"
                            ))
                            .with_hint(format!("pass it with `gpurun build --secret id={id},src=FILE …`")));
                        }
                        continue;
                    };
                    if let Some(name) = env {
                        let text = String::from_utf8(bytes.clone()).map_err(|_| {
                            Report::new(format!("cannot pass the secret `{id}` in a variable: it is not UTF-8 text"))
                        })?;
                        mounted.env.push((name.clone(), text));
                    }
                    if let Some(target) = target {
                        let (bytes, mode) = (bytes.clone(), *mode);
                        mounted.files.push(HostFile { target: target.into(), bytes, mode, owner: *owner });
                    }
                }
                Mount::Ssh { id, target, mode, owner, required } => {
                    let Some(agent) = self.options.agents.get(id) else {
                        if *required {
                            return Err(Report::new(format!(
                                "cannot mount the SSH agent `{id}`: the build has no such agent"
                            ))
                            .with_hint(format!("pass it with `gpurun build --ssh {id} …`")));
                        }
                        continue;
                    };
                    let number = mounted.agents.len();
                    let target = target.clone().unwrap_or_else(|| format!("/run/buildkit/ssh_agent.{number}"));
                    if number == 0 {
                        mounted.env.push(("SSH_AUTH_SOCK".into(), target.clone()));
                    }
                    let (agent, target) = (agent.clone(), target.into());
                    mounted.agents.push(AgentSocket { agent, target, mode: *mode, owner: *owner });
                }
                Mount::Bind { from, source, target, writable } => {
                    let path = match shown.pop_front() {
                        Some(Shown::Context(found)) => self.snapshot(&found, draft)?,
                        Some(Shown::Layers(layers)) => {
                            self.render(&layers, source, from.as_deref().unwrap_or_default(), draft)?
                        }
                        None => return Err(no_context()),
                    };
                    mounted.requests.push(bind(path, target, !writable));
                }
                Mount::Cache { id, target, sharing, mode, owner, from, source, read_only } => {
                    let filling = match (from, from.as_ref().and_then(|_| shown.pop_front())) {
                        (Some(name), Some(Shown::Layers(layers))) => Some((layers, source, name)),
                        _ => None,
                    };
                    let (path, lock) = self.cache_dir(id, *sharing)?;
                    if !path.try_exists().map_err(|error| cache_failed(&path, error))? {
                        if let Some((layers, source, name)) = filling {
                            let rendered = self.render(&layers, source, name, draft)?;
                            match std::fs::rename(&rendered, &path) {
                                // Another build has created the directory in the meantime. A shared cache has no lock.
                                Err(error) if error.kind() == std::io::ErrorKind::DirectoryNotEmpty => {}
                                other => other.map_err(|error| cache_failed(&path, error))?,
                            }
                        } else {
                            make_cache(&path, *mode, *owner).map_err(|error| cache_failed(&path, error))?;
                        }
                    }
                    mounted.locks.extend(lock);
                    mounted.requests.push(bind(path, target, *read_only));
                }
            }
        }
        Ok(mounted)
    }

    /// The directory of a cache mount, locked as its sharing mode requires.
    fn cache_dir(&self, id: &str, sharing: Sharing) -> Result<(PathBuf, Option<FileLock>), Report> {
        let path = self.cache.mount(id);
        let failed = |error| cache_failed(&path, error);
        let lock_path = |path: &PathBuf| path.with_extension("lock");
        match sharing {
            Sharing::Shared => Ok((path, None)),
            Sharing::Locked => {
                let lock = FileLock::exclusive(&lock_path(&path)).map_err(failed)?;
                Ok((path, Some(lock)))
            }
            Sharing::Private => {
                for number in 0.. {
                    let path = if number == 0 { path.clone() } else { self.cache.mount(&format!("{id}\0{number}")) };
                    if let Some(lock) = FileLock::try_exclusive(&lock_path(&path)).map_err(failed)? {
                        return Ok((path, Some(lock)));
                    }
                }
                unreachable!("some number is always free")
            }
        }
    }

    /// Renders a part of a stage or image into a directory for this step.
    fn render(
        &mut self,
        layers: &[Digest],
        source: &str,
        name: &str,
        draft: &mut Draft<'_>,
    ) -> Result<PathBuf, Report> {
        use std::os::fd::AsFd;
        let merged = self.tree(layers)?;
        let missing = || Report::new(format!("cannot mount `{source}`: it does not exist in `{name}`"));
        let id = merged.0.resolve(source.as_bytes(), true).ok().and_then(|place| place.inode).ok_or_else(missing)?;
        let scratch = draft.scratch()?;
        let fd = directory::open_root(&scratch)
            .map_err(|error| Report::new(format!("cannot open `{}`", scratch.display())).with_cause(error))?;
        directory::render(&merged.0.below(id), &merged.1, fd.as_fd())?;
        Ok(if merged.0.children(id).is_some() { scratch } else { scratch.join("file") })
    }

    /// Copies the part of the context that the key was made from. It is an error if the context has changed since then.
    fn snapshot(&self, found: &Source, draft: &mut Draft<'_>) -> Result<PathBuf, Report> {
        let context = self.context.as_ref().ok_or_else(no_context)?;
        let copy = draft.scratch()?.join("context");
        snapshot::write(context, found, &copy)?;
        Ok(copy)
    }
}

fn bind(path: PathBuf, target: &str, read_only: bool) -> MountRequest {
    let source = MountSource::Bind { path, recursive: false, propagation: None };
    MountRequest { source, destination: target.into(), read_only, chown: false }
}

fn make_cache(path: &Path, mode: u32, owner: (u32, u32)) -> std::io::Result<()> {
    // Another build may create the directory at the same time.
    std::fs::DirBuilder::new().recursive(true).mode(0o700).create(path)?;
    std::os::unix::fs::chown(path, Some(owner.0), Some(owner.1))?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode))
}

fn cache_failed(path: &Path, error: std::io::Error) -> Report {
    Report::new(format!("cannot use the cache mount `{}`", path.display())).with_cause(error)
}
