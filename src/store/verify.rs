//! Verifies the store. Layers and configs are checked by their digests. Indexes are rendered again and compared,
//! because the same tree gives the same bytes. Trees that were rendered as directories are compared file by file.
//!
//! For an image that runs from an archive, the store has documents, an index and perhaps a rendered tree, and these are
//! checked. The archive itself belongs to the user. A missing or changed archive is not damage of the store, and files
//! that were created from it cannot be compared with it.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Read};
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use sha2::{Digest as _, Sha256};

use super::Stretch;
use super::files::{exists, make_dir, read_optional};
use super::names::Names;
use super::record::ImageRecord;
use super::staging::Staging;
use super::{Image, Store, StoreError, load};
use crate::image::{ImageConfig, digest_of};
use crate::layer::{Tree, compare, directory, merge};
use crate::names::{Digest, Reference};

/// Damage in the store.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Fault {
    pub path: PathBuf,
    /// The description of the damage.
    pub why: String,
    /// The images that need the file: their names, or ids.
    pub images: Vec<String>,
    pub repair: Repair,
}

/// The remedy for a fault.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Repair {
    /// Render the file again from other files of the store.
    Rebuild(Digest),
    /// Load the image from its source again. The damaged file must be removed first.
    LoadAgain,
    /// Remove the store's record of an archive. It is created again when a container runs from the archive.
    RunAgain,
    /// Remove a tree that was rendered as a directory. It is rendered again when it is needed. A container may be
    /// running from it.
    RemoveTree,
    /// Remove a name that refers to no image.
    Forget,
}

/// The result of a verification.
#[derive(Debug, Default)]
pub(crate) struct Verified {
    pub images: usize,
    pub layers: usize,
    /// Bytes of layers' tars.
    pub bytes: u64,
    pub faults: Vec<Fault>,
}

/// A damaged document, with the description of the damage.
type Damage = (PathBuf, String);

/// An image with readable documents.
struct Readable {
    label: String,
    config: ImageConfig,
    record: ImageRecord,
}

impl Store {
    /// Verifies some images, or all images and the names. `progress` receives the number of bytes of a layer that were
    /// read.
    pub(crate) fn verify(&self, wanted: Option<&[Digest]>, progress: &dyn Fn(u64)) -> Result<Verified, StoreError> {
        // Nothing may be removed in the meantime.
        let _hold = self.hold()?;
        let mut verified = Verified::default();
        let names = match self.names() {
            Err(error) if error.is_damage() => {
                let path = self.root.join("names.json");
                let why = match error {
                    StoreError::Altered { .. } => "its digest does not match its contents".to_owned(),
                    _ => "it is not a list of names".to_owned(),
                };
                verified.faults.push(Fault { path, why, images: vec!["every name".into()], repair: Repair::LoadAgain });
                Names::default()
            }
            other => other?,
        };
        let mut readable = Vec::new();
        for id in self.image_ids()?.into_iter().filter(|id| wanted.is_none_or(|wanted| wanted.contains(id))) {
            verified.images += 1;
            let label = names.of(&id).first().map_or_else(|| id.hex()[..12].to_owned(), Reference::familiar);
            match documents_fault(&self.image_dir(&id), &id)? {
                Ok((config, record)) => readable.push(Readable { label, config, record }),
                Err((path, why)) => {
                    verified.faults.push(Fault { path, why, images: vec![label], repair: Repair::LoadAgain });
                }
            }
        }
        let sound = self.verify_layers(&readable, &mut verified, progress)?;
        for image in &readable {
            if image.config.diff_ids.iter().all(|id| sound.get(id) == Some(&true)) {
                verified.faults.extend(self.index_fault(image)?);
                let chain_id = merge::chain_id(&image.config.diff_ids);
                let path = self.directory_path(&chain_id);
                let tree = || self.tree_of(&image.config.diff_ids);
                verified.faults.extend(self.rendered_fault(path, &image.label, tree)?);
            }
        }
        for id in self.archive_ids()?.into_iter().filter(|id| wanted.is_none_or(|wanted| wanted.contains(id))) {
            verified.images += 1;
            verified.faults.extend(self.archive_fault(id)?);
        }
        if wanted.is_none() {
            for (name, id) in names.all() {
                if !exists(&self.image_dir(&id))? {
                    let why =
                        format!("the name `{name}` refers to the image {}, which does not exist", &id.hex()[..12]);
                    verified.faults.push(Fault {
                        path: self.root.join("names.json"),
                        why,
                        images: vec![name],
                        repair: Repair::Forget,
                    });
                }
            }
        }
        verified.faults.sort();
        verified.faults.dedup();
        Ok(verified)
    }

    /// Checks each layer once, two at a time, and returns which are intact.
    fn verify_layers(
        &self,
        images: &[Readable],
        verified: &mut Verified,
        progress: &dyn Fn(u64),
    ) -> Result<BTreeMap<Digest, bool>, StoreError> {
        let mut users: BTreeMap<Digest, Vec<String>> = BTreeMap::new();
        for image in images {
            for id in &image.config.diff_ids {
                let list = users.entry(*id).or_default();
                if !list.contains(&image.label) {
                    list.push(image.label.clone());
                }
            }
        }
        let mut sound = BTreeMap::new();
        for (id, images) in users {
            let path = self.layer_path(&id);
            verified.layers += 1;
            let why = match hash(&path, progress) {
                Ok((found, size)) => {
                    verified.bytes += size;
                    (found != id).then(|| format!("its digest is {found}"))
                }
                Err(error) if error.kind() == io::ErrorKind::NotFound => Some("it is missing".to_owned()),
                Err(error) => Some(format!("it cannot be read: {error}")),
            };
            sound.insert(id, why.is_none());
            verified.faults.extend(why.map(|why| Fault { path, why, images, repair: Repair::LoadAgain }));
        }
        Ok(sound)
    }

    /// Renders the index of an image with intact layers again, and compares.
    fn index_fault(&self, image: &Readable) -> Result<Option<Fault>, StoreError> {
        let chain_id = merge::chain_id(&image.config.diff_ids);
        let fault = |path: &Path, why: &str| {
            Some(Fault {
                path: path.into(),
                why: why.into(),
                images: vec![image.label.clone()],
                repair: Repair::Rebuild(chain_id),
            })
        };
        if image.record.chain_id != chain_id.to_string() {
            return Ok(fault(&self.index_path(&chain_id), "the image's record names another index"));
        }
        let staging = Staging::new_locked(self)?;
        self.rebuild_index(&image.config.diff_ids, &staging)?;
        let differing = differing_index(&load::index_in(&staging, &chain_id), &self.index_path(&chain_id))?;
        Ok(differing.and_then(|(path, why)| fault(&path, &why)))
    }

    /// Compares the rendered directory of an image with intact layers, if it exists.
    fn rendered_fault(
        &self,
        path: PathBuf,
        label: &str,
        tree: impl FnOnce() -> Result<(Tree, Vec<File>), StoreError>,
    ) -> Result<Option<Fault>, StoreError> {
        if !exists(&path)? {
            return Ok(None);
        }
        let (tree, sources) = tree()?;
        let staging = Staging::new_locked(self)?;
        let scratch = staging.path().join("scratch");
        make_dir(&scratch, 0o700)?;
        let open = |path: &Path| directory::open_root(path).map_err(StoreError::io("open", path));
        let fault = |why| Fault { path: path.clone(), why, images: vec![label.to_owned()], repair: Repair::RemoveTree };
        Ok(compare::difference(&tree, &sources, open(&path)?.as_fd(), open(&scratch)?.as_fd()).map(fault))
    }

    /// Returns the first fault in the store's files for an archive.
    fn archive_fault(&self, id: Digest) -> Result<Option<Fault>, StoreError> {
        let dir = self.archive_dir(&id);
        let fault =
            |(path, why)| Fault { path, why, images: vec![id.hex()[..12].to_owned()], repair: Repair::RunAgain };
        if let Err(damage) = documents_fault(&dir, &id)? {
            return Ok(Some(fault(damage)));
        }
        let image = match self.image_in_place(id) {
            Ok(Some(image)) => image,
            Err(StoreError::Archive { .. }) => return Ok(None),
            Ok(None) => return Ok(Some(fault((dir.join("place.json"), "it is missing".into())))),
            Err(StoreError::Json { path, cause }) => return Ok(Some(fault((path, cause.to_string())))),
            Err(StoreError::Altered { path }) => {
                return Ok(Some(fault((path, "its digest does not match its contents".into()))));
            }
            Err(error) => return Err(error),
        };
        let compared = self.archive_index_fault(&image).and_then(|damage| match damage {
            Some(damage) => Ok(Some(fault(damage))),
            None => {
                self.rendered_fault(self.rendered_path(&image), &image.short_id(), || self.tree_and_sources(&image))
            }
        });
        match compared {
            // The archive changed during the check.
            Err(StoreError::Archive { .. }) => Ok(None),
            // The archive belongs to the user, who may repair it. Only its record is removed.
            Err(error @ (StoreError::Scan { .. } | StoreError::Merge(_))) => {
                Ok(Some(fault((dir.join("place.json"), format!("the archive that it refers to is damaged: {error}")))))
            }
            other => other,
        }
    }

    fn archive_index_fault(&self, image: &Image) -> Result<Option<Damage>, StoreError> {
        let staging = Staging::new_locked(self)?;
        let (tree, sources) = self.tree_and_sources(image)?;
        let open = |wanted: &Digest| match tree.sources.iter().position(|known| known == wanted) {
            Some(at) => sources[at].try_clone().map_err(StoreError::io("open", staging.path())),
            None => Err(StoreError::io("open", staging.path())(io::ErrorKind::NotFound.into())),
        };
        load::write_index(&tree, &image.chain_id, open, &staging)?;
        differing_index(&load::index_in(&staging, &image.chain_id), &self.index_of(image))
    }

    fn rebuild_index(&self, diff_ids: &[Digest], staging: &Staging) -> Result<(), StoreError> {
        let mut paths: Vec<(Digest, Stretch)> = Vec::new();
        for diff_id in diff_ids {
            let path = staging.path().join(format!("{}.tar", diff_id.hex()));
            if paths.iter().all(|(known, _)| known != diff_id) {
                fs::hard_link(self.layer_path(diff_id), &path).map_err(StoreError::io("link", &path))?;
            }
            paths.push((*diff_id, Stretch::whole(path)?));
        }
        let tree = super::scan::tree_of_layers(diff_ids, super::scan::scan_layers(&paths, Stretch::open)?)?;
        load::write_index(&tree, &merge::chain_id(diff_ids), load::staged(staging), staging)
    }

    /// Removes damaged files, and renders again those that can be rendered. A later load of the images that a fault
    /// names restores the rest. Files that a running container has mounted stay with it, and only their names are
    /// removed. A directory that a container runs from must stay: `lease_exclusively` returns an exclusive lease of a rendered
    /// tree, by its name, or `None` if the tree is in use. Returns the paths that are left for this reason.
    pub(crate) fn repair<Lease>(
        &self,
        faults: &[Fault],
        lease_exclusively: &dyn Fn(&str) -> Option<Lease>,
    ) -> Result<Vec<PathBuf>, StoreError> {
        let _lock = self.lock()?;
        let staging = Staging::new_locked(self)?;
        for fault in faults.iter().filter(|fault| matches!(fault.repair, Repair::LoadAgain | Repair::RunAgain)) {
            // If one document of an image is damaged, remove all of them, because a load writes them all.
            let dir = fault.path.parent().filter(|dir| is_image(dir));
            delete(dir.unwrap_or(&fault.path), &staging)?;
        }
        let images = self.list()?;
        let mut names = self.names()?;
        let mut left = Vec::new();
        for fault in faults {
            match fault.repair {
                Repair::LoadAgain | Repair::RunAgain => {}
                // A later container finds that the tree is missing, and renders it.
                Repair::RemoveTree => {
                    match lease_exclusively(&fault.path.file_name().unwrap_or_default().to_string_lossy()) {
                        Some(_lease) => delete(&fault.path, &staging)?,
                        None => left.push(fault.path.clone()),
                    }
                }
                Repair::Forget => {
                    fault.images.iter().filter_map(|name| name.parse().ok()).for_each(|name| names.remove(&name))
                }
                Repair::Rebuild(chain_id) => {
                    delete(&self.index_path(&chain_id), &staging)?;
                    delete(&self.side_path(&chain_id), &staging)?;
                    if let Some(image) = images.iter().find(|image: &&Image| image.chain_id == chain_id) {
                        let fresh = Staging::new_locked(self)?;
                        self.rebuild_index(&image.diff_ids, &fresh)?;
                        self.adopt_index(&fresh, &chain_id)?;
                    }
                }
            }
        }
        self.write_names(&names)?;
        self.sync("images")?;
        self.sync("layers")?;
        Ok(left)
    }
}

/// Returns an image's documents, or the one that is damaged.
fn documents_fault(dir: &Path, id: &Digest) -> Result<Result<(ImageConfig, ImageRecord), Damage>, StoreError> {
    let (config_path, record_path, manifest_path) =
        (dir.join("config.json"), dir.join("image.json"), dir.join("manifest.json"));
    let missing = || "it is missing".to_owned();
    let Some(config) = read_optional(&config_path)? else { return Ok(Err((config_path, missing()))) };
    let found = digest_of(&config);
    if found != *id {
        return Ok(Err((config_path, format!("its digest is {found}"))));
    }
    let config = match ImageConfig::parse(&config) {
        Ok(config) => config,
        Err(error) => return Ok(Err((config_path, error.to_string()))),
    };
    let Some(record) = read_optional(&record_path)? else { return Ok(Err((record_path, missing()))) };
    let record = match ImageRecord::parse(&record, &record_path) {
        Ok(record) => record,
        Err(StoreError::Json { cause, .. }) => return Ok(Err((record_path, cause.to_string()))),
        Err(_) => return Ok(Err((record_path, "its digest does not match its contents".into()))),
    };
    let manifest = read_optional(&manifest_path)?.map(|bytes| digest_of(&bytes).to_string());
    if manifest != record.manifest_digest {
        let why = manifest.map_or_else(missing, |found| format!("its digest is {found}"));
        return Ok(Err((manifest_path, why)));
    }
    Ok(Ok((config, record)))
}

/// Returns the file of a stored index that differs from the index that was just rendered.
fn differing_index(rendered: &Path, stored: &Path) -> Result<Option<Damage>, StoreError> {
    for (made, stored) in
        [(rendered.to_owned(), stored.to_owned()), (rendered.with_extension("side"), stored.with_extension("side"))]
    {
        let why = match (exists(&made)?, exists(&stored)?) {
            (false, false) => continue,
            (true, false) => "it is missing",
            (false, true) => "nothing needs it",
            (true, true) if same_bytes(&made, &stored).map_err(StoreError::io("read", &stored))? => continue,
            (true, true) => "it does not match the layers",
        };
        return Ok(Some((stored, why.into())));
    }
    Ok(None)
}

fn is_image(dir: &Path) -> bool {
    dir.file_name().and_then(|name| name.to_str()).and_then(super::find::parse_hex).is_some()
}

/// Moves a damaged file to the staging directory, with which it is removed.
fn delete(path: &Path, staging: &Staging) -> Result<(), StoreError> {
    let to = staging.path().join(format!("damaged.{}", path.file_name().unwrap_or_default().to_string_lossy()));
    match fs::rename(path, to) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(StoreError::io("remove", path)(error)),
        _ => Ok(()),
    }
}

fn hash(path: &Path, progress: &dyn Fn(u64)) -> io::Result<(Digest, u64)> {
    let mut file = File::open(path)?;
    let mut buffer = vec![0; 1 << 20];
    let (mut hash, mut size) = (Sha256::new(), 0);
    loop {
        match file.read(&mut buffer)? {
            0 => return Ok((Digest(hash.finalize().into()), size)),
            got => {
                hash.update(&buffer[..got]);
                size += got as u64;
                progress(got as u64);
            }
        }
    }
}

fn same_bytes(one: &Path, other: &Path) -> io::Result<bool> {
    let (one, other) = (File::open(one)?, File::open(other)?);
    let len = one.metadata()?.len();
    if other.metadata()?.len() != len {
        return Ok(false);
    }
    let (mut left, mut right) = (vec![0; 256 << 10], vec![0; 256 << 10]);
    let mut at = 0;
    while at < len {
        let want = (len - at).min(left.len() as u64) as usize;
        one.read_exact_at(&mut left[..want], at)?;
        other.read_exact_at(&mut right[..want], at)?;
        if left[..want] != right[..want] {
            return Ok(false);
        }
        at += want as u64;
    }
    Ok(true)
}
