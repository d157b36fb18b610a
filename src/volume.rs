//! Named volumes: directories that containers share and that outlive them.
//!
//! ```text
//! /var/lib/gpurun/volumes/
//!     NAME              the files of a volume
//!     .NAME.json        the labels of a volume that `gpurun volume create` made with labels, or without a name
//!     .NAME.options     the options of a volume that stands for a file system (`volume create --opt`)
//!     .NAME.kept        a volume whose file system stays mounted without containers (`volume mount`)
//!     .NAME.new         a volume that `gpurun volume create` made and that no container has used: its first use fills
//!                       it with the image's files
//!     .NAME.lock        held while a volume is created, see [`lock`]
//!     .NAME.PID.tmp     a volume that a launch is filling with the image's files, under that lock: while the lock is
//!                       free, its launch is dead
//!     .removed.PID.NAME a volume that is being removed
//! ```
//!
//! Locks: [`Records::lock`](crate::record::Records::lock). A record is created under it, so a caller that holds it and
//! finds no record with a volume can remove the volume, and its lock file: only a launch, which has a record, waits for
//! that. A caller that holds the records' lock never waits for a volume's lock, because a fill may take long. A removal renames the directory first, so that a volume exists
//! as a whole or not at all. [`Volumes::sweep`], which every command that reads records calls, finishes the removals of
//! dead processes, and removes what dead launches have filled.
//!
//! The file system of a volume with options is mounted on its directory by a launch ([`Volumes::mount`]) and unmounted by
//! the first command after its last container has ended ([`Volumes::unmount_unused`]), both under the volume's lock.
//!
//! An anonymous volume of a container is not here. It is a directory of its container, and is removed with it. A volume
//! that `gpurun volume create` made without a name is anonymous too, and is marked with docker's label.

mod driver;

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::time::UNIX_EPOCH;

use crate::durable::{self, FileLock};
use crate::report::{EXIT_USAGE, Explain};

/// The volumes of one root.
#[derive(Debug, Clone)]
pub(crate) struct Volumes {
    dir: PathBuf,
}

/// A named volume.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Volume {
    pub(crate) name: String,
    pub(crate) path: PathBuf,
    /// Nanoseconds since 1970, if the file system knows it.
    pub(crate) created: Option<u64>,
    pub(crate) labels: BTreeMap<String, String>,
    /// The options of the driver. A volume without any is a plain directory.
    pub(crate) options: BTreeMap<String, String>,
}

impl Volume {
    /// Whether `gpurun volume create` made it without a name.
    pub(crate) fn is_unnamed(&self) -> bool {
        self.labels.contains_key(ANONYMOUS)
    }
}

/// The label of a volume without a name, as in docker.
pub(crate) const ANONYMOUS: &str = "com.docker.volume.anonymous";

#[derive(Debug, thiserror::Error)]
pub(crate) enum VolumeError {
    #[error("`{0}` is not a volume's name")]
    Name(String),
    #[error("cannot use the options of the volume `{name}`: {why}")]
    Options { name: String, why: String },
    #[error("there is no volume `{0}`")]
    Missing(String),
    #[error("cannot {action} the volume `{name}`")]
    Io { action: &'static str, name: String, source: io::Error },
    #[error("cannot list `{}`", path.display())]
    List { path: PathBuf, source: io::Error },
}

impl Explain for VolumeError {
    fn hint(&self) -> Option<String> {
        match self {
            Self::Name(_) => Some("use two or more of a-z A-Z 0-9 _ . - and begin with a letter or digit".into()),
            Self::Options { .. } => Some("for example `--opt type=none --opt o=bind --opt device=/DIR`, or `--opt type=tmpfs --opt device=tmpfs --opt o=size=1g`".into()),
            Self::Io { action: "mount", name, .. } => {
                Some(format!("check the options of the volume: `gpurun volume inspect {name}`"))
            }
            Self::Missing(_) => Some("list the volumes with `gpurun volume ls`".into()),
            Self::Io { .. } | Self::List { .. } => None,
        }
    }

    fn exit_code(&self) -> u8 {
        match self {
            Self::Name(_) | Self::Options { .. } => EXIT_USAGE,
            _ => 1,
        }
    }
}

fn is_name(name: &str) -> bool {
    (2..=255).contains(&name.len())
        && name.starts_with(|first: char| first.is_ascii_alphanumeric())
        && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"_.-".contains(&byte))
}

impl Volumes {
    pub(crate) fn new(root: &Path) -> Self {
        Self { dir: root.join("volumes") }
    }

    /// All named volumes, sorted by name.
    pub(crate) fn list(&self) -> Result<Vec<Volume>, VolumeError> {
        let failed = |source| VolumeError::List { path: self.dir.clone(), source };
        let entries = match fs::read_dir(&self.dir) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            entries => entries.map_err(failed)?,
        };
        let mut all = Vec::new();
        for entry in entries {
            let name = entry.map_err(failed)?.file_name();
            if let Some(name) = name.to_str().filter(|name| is_name(name)) {
                all.extend(self.find(name)?);
            }
        }
        all.sort_by(|one, other| one.name.cmp(&other.name));
        Ok(all)
    }

    /// Finds a volume by its name.
    pub(crate) fn get(&self, name: &str) -> Result<Volume, VolumeError> {
        let missing = || VolumeError::Missing(name.to_owned());
        if !is_name(name) {
            return Err(missing());
        }
        self.find(name)?.ok_or_else(missing)
    }

    fn find(&self, name: &str) -> Result<Option<Volume>, VolumeError> {
        let path = self.dir.join(name);
        let failed = |source| VolumeError::Io { action: "read", name: name.to_owned(), source };
        let metadata = match fs::symlink_metadata(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            metadata => metadata.map_err(failed)?,
        };
        if !metadata.is_dir() {
            return Ok(None);
        }
        let time = metadata.created().or_else(|_| metadata.modified()).ok();
        let created = time.and_then(|time| u64::try_from(time.duration_since(UNIX_EPOCH).ok()?.as_nanos()).ok());
        // Labels that cannot be read are none: they only select volumes.
        let labels = fs::read(self.labels(name)).ok().and_then(|bytes| serde_json::from_slice(&bytes).ok());
        let options = match fs::read(self.options(name)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => BTreeMap::new(),
            // Without its options, a volume would be another one.
            bytes => serde_json::from_slice(&bytes.map_err(failed)?).map_err(|error| failed(error.into()))?,
        };
        Ok(Some(Volume { name: name.to_owned(), path, created, labels: labels.unwrap_or_default(), options }))
    }

    fn labels(&self, name: &str) -> PathBuf {
        self.dir.join(format!(".{name}.json"))
    }

    fn options(&self, name: &str) -> PathBuf {
        self.dir.join(format!(".{name}{OPTIONS}"))
    }

    /// Creates a volume that stands for a file system. A volume that exists must have the same options. The caller holds
    /// the records' lock.
    pub(crate) fn create_with(
        &self,
        name: &str,
        labels: &BTreeMap<String, String>,
        options: &BTreeMap<String, String>,
    ) -> Result<(), VolumeError> {
        let wrong = |why: String| VolumeError::Options { name: name.to_owned(), why };
        driver::check(options).map_err(wrong)?;
        match self.find(name)? {
            Some(volume) if volume.options == *options => return Ok(()),
            Some(_) => return Err(wrong("the volume exists with other options".to_owned())),
            None => {}
        }
        if !is_name(name) {
            return Err(VolumeError::Name(name.to_owned()));
        }
        let failed = |source| VolumeError::Io { action: "create", name: name.to_owned(), source };
        fs::DirBuilder::new().recursive(true).mode(0o700).create(&self.dir).map_err(failed)?;
        let text = serde_json::to_vec(options).map_err(|error| failed(error.into()))?;
        durable::write_atomic(&self.options(name), &text).map_err(failed)?;
        self.create(name, labels)?;
        // Its files are those of the file system, and not the image's.
        self.note_use(name)
    }

    /// Marks a volume as used, so that its first container does not fill it with the image's files.
    pub(crate) fn note_use(&self, name: &str) -> Result<(), VolumeError> {
        match fs::remove_file(new_mark(&self.dir.join(name))) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(VolumeError::Io { action: "change", name: name.to_owned(), source: error })
            }
            _ => Ok(()),
        }
    }

    /// Mounts the file system of a volume with options, unless it is mounted. The caller has a record with the volume,
    /// and it is not unmounted while the caller holds the lock that is returned, or the lock of a launch. A volume that
    /// does not exist is not an error: it is created later, and has no options.
    pub(crate) fn mount(&self, name: &str) -> Result<Option<FileLock>, VolumeError> {
        let Some(volume) = self.find(name)?.filter(|volume| !volume.options.is_empty()) else { return Ok(None) };
        let failed = |source| VolumeError::Io { action: "mount", name: name.to_owned(), source };
        let lock = lock(&volume.path).map_err(failed)?;
        if !is_mounted(&volume.path).map_err(failed)? {
            driver::mount(&volume.options, &volume.path).map_err(failed)?;
        }
        Ok(Some(lock))
    }

    /// Mounts the file system of a volume, so that it stays mounted until [`Volumes::release`]. A volume without options
    /// needs no mount.
    pub(crate) fn keep(&self, name: &str) -> Result<(), VolumeError> {
        self.note_use(name)?;
        if let Some(_lock) = self.mount(name)? {
            let failed = |source| VolumeError::Io { action: "mount", name: name.to_owned(), source };
            fs::write(self.kept(name), "").map_err(failed)?;
        }
        Ok(())
    }

    /// Ends [`Volumes::keep`]: from now on, the file system is unmounted when no container uses it.
    pub(crate) fn release(&self, name: &str) -> Result<(), VolumeError> {
        match fs::remove_file(self.kept(name)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(VolumeError::Io { action: "unmount", name: name.to_owned(), source: error })
            }
            _ => Ok(()),
        }
    }

    fn kept(&self, name: &str) -> PathBuf {
        beside(&self.dir.join(name), "kept")
    }

    /// Unmounts the file systems of the volumes that are not used. `is_used` is called under the volume's lock.
    pub(crate) fn unmount_unused(&self, is_used: &dyn Fn(&str) -> bool) {
        let mounted = match self.mounted() {
            Ok(mounted) => mounted,
            Err(error) => return tracing::warn!("cannot list the mounted volumes: {error}"),
        };
        for name in mounted {
            let path = self.dir.join(&name);
            // A command that has the lock is mounting it.
            let Ok(Some(_lock)) = FileLock::try_exclusive(&lock_path(&path)) else { continue };
            if !self.kept(&name).exists()
                && !is_used(&name)
                && let Err(error) = unmount(&path)
            {
                tracing::warn!("cannot unmount the volume `{name}`: {error}");
            }
        }
    }

    /// The volumes whose file systems are mounted.
    fn mounted(&self) -> io::Result<Vec<String>> {
        let entries = match fs::read_dir(&self.dir) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            entries => entries?,
        };
        let with_options = entries.flatten().filter_map(|entry| {
            let file = entry.file_name();
            Some(file.to_str()?.strip_prefix('.')?.strip_suffix(OPTIONS)?.to_owned())
        });
        let names: Vec<String> = with_options.collect();
        if names.is_empty() {
            return Ok(names);
        }
        let points = crate::sys::mount::points_below(&real(&self.dir))?;
        let is_mounted = |name: &String| points.contains(&real(&self.dir).join(name));
        Ok(names.into_iter().filter(is_mounted).collect())
    }

    /// Creates an empty volume. A volume that exists is left as it is, with its labels, as in docker. The caller holds
    /// the records' lock.
    pub(crate) fn create(&self, name: &str, labels: &BTreeMap<String, String>) -> Result<(), VolumeError> {
        if !is_name(name) {
            return Err(VolumeError::Name(name.to_owned()));
        }
        let failed = |source| VolumeError::Io { action: "create", name: name.to_owned(), source };
        if self.find(name)?.is_some() {
            return Ok(());
        }
        fs::DirBuilder::new().recursive(true).mode(0o700).create(&self.dir).map_err(failed)?;
        if !labels.is_empty() {
            let text = serde_json::to_vec(labels).map_err(|error| failed(error.into()))?;
            durable::write_atomic(&self.labels(name), &text).map_err(failed)?;
        }
        // A launch that has the lock is creating the volume.
        let lock = FileLock::try_exclusive(&lock_path(&self.dir.join(name))).map_err(failed)?;
        if lock.is_none() || self.find(name)?.is_some() {
            return Ok(());
        }
        // The mark comes first: a volume without it counts as used.
        fs::write(new_mark(&self.dir.join(name)), "").map_err(failed)?;
        match fs::DirBuilder::new().mode(0o755).create(self.dir.join(name)) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => Err(failed(error)),
            _ => durable::sync_dir(&self.dir).map_err(failed),
        }
    }

    /// Removes a volume with its files. The caller holds the records' lock, and no record uses the volume.
    pub(crate) fn remove(&self, name: &str) -> Result<Removal, VolumeError> {
        let volume = self.get(name)?;
        let failed = |source| VolumeError::Io { action: "remove", name: name.to_owned(), source };
        // What is mounted is not the volume's own, and is not removed.
        unmount(&volume.path).map_err(failed)?;
        let aside = self.dir.join(format!("{REMOVED}{}.{name}", std::process::id()));
        fs::rename(&volume.path, &aside).map_err(failed)?;
        for beside in
            [self.labels(name), self.options(name), self.kept(name), new_mark(&volume.path), lock_path(&volume.path)]
        {
            match fs::remove_file(beside) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(failed(error)),
                _ => {}
            }
        }
        durable::sync_dir(&self.dir).map_err(failed)?;
        Ok(Removal { name: name.to_owned(), path: aside })
    }

    /// Finishes the removals of processes that were killed, and removes the copies of launches that were killed.
    pub(crate) fn sweep(&self) {
        for entry in fs::read_dir(&self.dir).into_iter().flatten().flatten() {
            let file_name = entry.file_name();
            let Some(name) = file_name.to_str() else { continue };
            let pid = name.strip_prefix(REMOVED).and_then(|rest| rest.split('.').next()?.parse::<u32>().ok());
            let dead = match pid {
                Some(pid) if !Path::new(&format!("/proc/{pid}")).exists() => Some(entry.path()),
                Some(_) => None,
                None => filled_volume(name).and_then(|volume| self.abandoned(&entry.path(), volume)),
            };
            if let Some(Err(error)) = dead.map(|path| crate::sys::tree::remove(&path)) {
                tracing::warn!("cannot remove `{}`: {error}", entry.path().display());
            }
        }
    }

    /// Moves a copy aside whose launch is dead, so that its removal needs no lock. Returns the new path.
    fn abandoned(&self, copy: &Path, volume: &str) -> Option<PathBuf> {
        let _lock = FileLock::try_exclusive(&lock_path(&self.dir.join(volume))).ok()??;
        let aside = self.dir.join(format!("{REMOVED}{}.{volume}.tmp", std::process::id()));
        fs::rename(copy, &aside).ok()?;
        Some(aside)
    }
}

/// The path of the copy that this process makes of an image's files for a volume.
pub(crate) fn copy_path(volume: &Path) -> PathBuf {
    beside(volume, &format!("{}.tmp", std::process::id()))
}

/// The name of the volume that a copy was made for.
fn filled_volume(name: &str) -> Option<&str> {
    let (volume, pid) = name.strip_prefix('.')?.strip_suffix(".tmp")?.rsplit_once('.')?;
    (is_name(volume) && pid.parse::<u32>().is_ok()).then_some(volume)
}

/// The path of the mark of a volume that no container has used.
pub(crate) fn new_mark(volume: &Path) -> PathBuf {
    beside(volume, "new")
}

/// Waits for the lock under which a volume is created and filled. The volume need not exist, but its directory must.
pub(crate) fn lock(volume: &Path) -> io::Result<FileLock> {
    FileLock::exclusive(&lock_path(volume))
}

fn lock_path(volume: &Path) -> PathBuf {
    beside(volume, "lock")
}

fn beside(volume: &Path, what: &str) -> PathBuf {
    volume.with_file_name(format!(".{}.{what}", volume.file_name().unwrap_or_default().to_string_lossy()))
}

const REMOVED: &str = ".removed.";
const OPTIONS: &str = ".options";

/// A path as the table of mounts has it.
fn real(path: &Path) -> PathBuf {
    fs::canonicalize(path).unwrap_or_else(|_| path.to_owned())
}

fn is_mounted(volume: &Path) -> io::Result<bool> {
    let volume = real(volume);
    Ok(crate::sys::mount::points_below(&volume)?.contains(&volume))
}

/// Unmounts everything that is mounted on a volume.
fn unmount(volume: &Path) -> io::Result<()> {
    while is_mounted(volume)? {
        crate::sys::mount::detach(volume)?;
    }
    Ok(())
}

/// A volume that has lost its name. Its files are removed without the lock, because that may take long.
#[derive(Debug)]
#[must_use]
pub(crate) struct Removal {
    name: String,
    path: PathBuf,
}

impl Removal {
    pub(crate) fn finish(self) -> Result<(), VolumeError> {
        let failed = |source| VolumeError::Io { action: "remove", name: self.name.clone(), source };
        crate::sys::tree::remove(&self.path).map_err(failed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(volumes: &Volumes) -> Vec<String> {
        volumes.list().unwrap().into_iter().map(|volume| volume.name).collect()
    }

    #[test]
    fn a_volume_is_made_found_and_removed() {
        let root = tempfile::tempdir().unwrap();
        let volumes = Volumes::new(root.path());
        assert_eq!(names(&volumes), [""; 0]);
        let labels: BTreeMap<String, String> = [("course".to_owned(), "cgroups".to_owned())].into();
        volumes.create("data", &labels).unwrap();
        volumes.create("more", &BTreeMap::new()).unwrap();
        // It stays as it is.
        fs::write(volumes.get("data").unwrap().path.join("file"), "x").unwrap();
        volumes.create("data", &BTreeMap::new()).unwrap();
        assert_eq!(
            (names(&volumes), volumes.get("data").unwrap().labels),
            (vec!["data".into(), "more".into()], labels)
        );
        assert!(volumes.get("data").unwrap().created.is_some());
        volumes.remove("data").unwrap().finish().unwrap();
        assert_eq!(names(&volumes), ["more"]);
        let files = fs::read_dir(root.path().join("volumes")).unwrap().map(|entry| entry.unwrap().file_name());
        let files: Vec<_> =
            files.map(|name| name.into_string().unwrap()).filter(|name| name.contains("data")).collect();
        assert_eq!(files, [""; 0], "nothing is left");
        assert!(matches!(volumes.get("data"), Err(VolumeError::Missing(_))));
        for name in ["", "x", "../more", ".more.json", "a b", "-x", &"x".repeat(256)] {
            assert!(matches!(volumes.create(name, &BTreeMap::new()), Err(VolumeError::Name(_))), "{name}");
            assert!(matches!(volumes.remove(name), Err(VolumeError::Missing(_))), "{name}");
        }
    }

    #[test]
    fn a_removal_that_was_killed_is_finished() {
        let root = tempfile::tempdir().unwrap();
        let volumes = Volumes::new(root.path());
        volumes.create("data", &BTreeMap::new()).unwrap();
        let removal = volumes.remove("data").unwrap();
        volumes.sweep();
        assert!(removal.path.exists(), "its process lives");
        let dead = root.path().join("volumes/.removed.4194305.data");
        fs::rename(&removal.path, &dead).unwrap();
        volumes.sweep();
        assert!(!dead.exists());
    }

    #[test]
    fn a_copy_is_removed_when_its_launch_is_dead() {
        let root = tempfile::tempdir().unwrap();
        let volumes = Volumes::new(root.path());
        volumes.create("data", &BTreeMap::new()).unwrap();
        let dir = root.path().join("volumes");
        // Neither the number of a living process nor a dot in the name of the volume matters: the lock decides.
        let copies = [".data.4194305.tmp", ".da.ta.1.tmp", ".data.x.tmp", ".-data.1.tmp"].map(|name| dir.join(name));
        copies.iter().for_each(|copy| fs::create_dir_all(copy.join("files")).unwrap());
        let held = ["data", "da.ta"].map(|name| lock(&dir.join(name)).unwrap());
        volumes.sweep();
        assert!(copies.iter().all(|copy| copy.exists()), "their launches live");
        drop(held);
        volumes.sweep();
        let left: Vec<bool> = copies.iter().map(|copy| copy.exists()).collect();
        assert_eq!(left, [false, false, true, true], "files with other names are not ours");
        let aside = fs::read_dir(&dir)
            .unwrap()
            .filter(|entry| entry.as_ref().unwrap().file_name().to_string_lossy().starts_with(REMOVED));
        assert_eq!(aside.count(), 0);
        assert_eq!(names(&volumes), ["data"]);
    }
}
