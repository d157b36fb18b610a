//! What a `RUN --mount=…` gives to its command: directories that are kept, parts of the context, of stages and of images, secrets.

use std::collections::VecDeque;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};

use super::cache::Key;
use super::copy::Thing;
use super::engine::{Current, Engine};
use super::mount::{Mount, Sharing};
use super::run::HostFile;
use super::steps::no_context;
use crate::durable::FileLock;
use crate::layer::directory;
use crate::names::Digest;
use crate::report::Report;
use crate::request::{MountRequest, MountSource};
use crate::store::Draft;

/// What a step's mounts need while it runs.
#[derive(Default)]
pub(super) struct Mounted {
    pub requests: Vec<MountRequest>,
    pub files: Vec<HostFile>,
    pub env: Vec<(String, String)>,
    locks: Vec<FileLock>,
}

impl Engine<'_> {
    /// What of the mounts the result depends on: contents of the context and of stages; of caches and secrets the names alone.
    pub(super) fn add_mounts_to(
        &mut self,
        current: &Current<'_>,
        mounts: &[Mount],
        key: &mut Key,
    ) -> Result<(), Report> {
        for mount in mounts {
            key.add(format!("{mount:?}"));
            match mount {
                Mount::Bind { from: Some(name), .. } => {
                    let layers = self.layers_from(current, name)?;
                    key.add(crate::layer::merge::chain_id(&layers).hex());
                }
                Mount::Bind { from: None, source, .. } => {
                    let context = self.context.as_ref().ok_or_else(no_context)?;
                    for source in context.select(source)? {
                        Thing::from_context(source).add_to(key);
                    }
                }
                _ => {}
            }
        }
        Ok(())
    }

    pub(super) fn mounts(
        &mut self,
        mounts: &[Mount],
        mut sources: VecDeque<Vec<Digest>>,
        draft: &mut Draft<'_>,
    ) -> Result<Mounted, Report> {
        let mut mounted = Mounted::default();
        for mount in mounts {
            match mount {
                Mount::Tmpfs { target, size } => mounted.requests.push(MountRequest {
                    source: MountSource::Tmpfs { size: *size, mode: None, options: vec!["exec".into()] },
                    destination: target.into(),
                    read_only: false,
                }),
                Mount::Secret { id, target, env, mode, owner, required } => {
                    let Some(bytes) = self.options.secrets.get(id) else {
                        if *required {
                            return Err(Report::new(format!("the secret `{id}` was not given"))
                                .with_hint(format!("`gpurun build --secret id={id},src=FILE …`")));
                        }
                        continue;
                    };
                    if let Some(name) = env {
                        let text = String::from_utf8(bytes.clone())
                            .map_err(|_| Report::new(format!("the secret `{id}` is no text, which `env` needs")))?;
                        mounted.env.push((name.clone(), text));
                    }
                    if let Some(target) = target {
                        let (bytes, mode) = (bytes.clone(), *mode);
                        mounted.files.push(HostFile { target: target.into(), bytes, mode, owner: *owner });
                    }
                }
                Mount::Bind { from, source, target, writable } => {
                    let path = match from {
                        Some(name) => {
                            let layers = sources.pop_front().unwrap_or_default();
                            self.draw(&layers, source, name, draft)?
                        }
                        None => self.context_path(source, *writable, draft)?,
                    };
                    mounted.requests.push(bind(path, target, !writable));
                }
                Mount::Cache { id, target, sharing, mode, owner, from, source, read_only } => {
                    let filling = from.as_ref().map(|name| (sources.pop_front().unwrap_or_default(), source, name));
                    let (path, lock) = self.cache_dir(id, *sharing)?;
                    if !path.try_exists().map_err(|error| cache_failed(&path, error))? {
                        if let Some((layers, source, name)) = filling {
                            let drawn = self.draw(&layers, source, name, draft)?;
                            match std::fs::rename(&drawn, &path) {
                                // Another build was quicker: a shared cache has no lock.
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

    /// The directory of a cache mount, locked as far as its sharing wants it.
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
                unreachable!("there is always a number that nobody has taken")
            }
        }
    }

    /// A part of a stage or image, as files of this step alone.
    fn draw(&mut self, layers: &[Digest], source: &str, name: &str, draft: &mut Draft<'_>) -> Result<PathBuf, Report> {
        use std::os::fd::AsFd;
        let merged = self.tree(layers)?;
        let missing = || Report::new(format!("`{name}` has no `{source}`"));
        let id = merged.0.resolve(source.as_bytes(), true).ok().and_then(|place| place.inode).ok_or_else(missing)?;
        let scratch = draft.scratch()?;
        let fd = directory::open_root(&scratch)
            .map_err(|error| Report::new(format!("cannot open `{}`", scratch.display())).with_cause(error))?;
        directory::render(&merged.0.below(id), &merged.1, fd.as_fd())?;
        Ok(if merged.0.children(id).is_some() { scratch } else { scratch.join("file") })
    }

    /// Something of the context: itself, read-only, if all of it may be seen; else a copy.
    fn context_path(&self, source: &str, writable: bool, draft: &mut Draft<'_>) -> Result<PathBuf, Report> {
        let context = self.context.as_ref().ok_or_else(no_context)?;
        let found = context.select(source)?;
        let [source] = found.as_slice() else {
            return Err(Report::new(format!("`source={source}` of a mount names {} things", found.len())));
        };
        let first = source.found.first().ok_or_else(no_context)?;
        if !writable && !source.hides {
            return Ok(context.path().join(&first.path));
        }
        let copy = draft.scratch()?.join("context");
        context.copy_out(source, &copy)?;
        Ok(copy)
    }
}

fn bind(path: PathBuf, target: &str, read_only: bool) -> MountRequest {
    let source = MountSource::Bind { path, recursive: false, propagation: None };
    MountRequest { source, destination: target.into(), read_only }
}

fn make_cache(path: &Path, mode: u32, owner: (u32, u32)) -> std::io::Result<()> {
    // Another build may make it at the same moment.
    std::fs::DirBuilder::new().recursive(true).mode(0o700).create(path)?;
    std::os::unix::fs::chown(path, Some(owner.0), Some(owner.1))?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode))
}

fn cache_failed(path: &Path, error: std::io::Error) -> Report {
    Report::new(format!("cannot use the cache mount `{}`", path.display())).with_cause(error)
}
