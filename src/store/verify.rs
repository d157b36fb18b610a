//! Is everything what its name says? Layers and configs by their digests, indexes by drawing them again: the same tree gives the same bytes. Trees
//! that were drawn as directories, file by file.
//!
//! Of an image that runs from an archive the store has documents, an index and perhaps a drawn tree: those are looked at. The archive is a person's
//! file; one that is gone or was changed is no damage of the store, and nothing that was made from it can be compared with it.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Read};
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use sha2::{Digest as _, Sha256};

use super::Stretch;
use super::names::Names;
use super::{Image, ImageRecord, Staging, Store, StoreError, is_there, load, make_dir, read_if_there};
use crate::image::{ImageConfig, digest_of};
use crate::layer::{Tree, compare, directory, merge};
use crate::names::{Digest, Reference};

/// Something in the store that is not what it should be.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Fault {
    pub path: PathBuf,
    /// What is wrong with it.
    pub why: String,
    /// The images that need it: their names, or ids.
    pub images: Vec<String>,
    pub cure: Cure,
}

/// What helps.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Cure {
    /// It can be made again from what is there.
    Redraw(Digest),
    /// It must come from its source again; without the damaged file a load brings it.
    LoadAgain,
    /// What the store knows of an archive: without it, the archive is looked at anew when something runs from it.
    RunAgain,
    /// A tree drawn as a directory: without it, it is drawn again when it is needed. A container may run from it.
    Undraw,
    /// A name that means nothing.
    Forget,
}

/// What was looked at.
#[derive(Debug, Default)]
pub struct Verified {
    pub images: usize,
    pub layers: usize,
    /// Of layers' tars.
    pub bytes: u64,
    pub faults: Vec<Fault>,
}

/// A damaged document, and what is wrong with it.
type Damage = (PathBuf, String);

/// An image with readable documents.
struct Readable {
    label: String,
    config: ImageConfig,
    record: ImageRecord,
}

impl Store {
    /// Checks some images, or all with the names too. `told` hears of each layer's bytes as they are read.
    pub fn verify(&self, wanted: Option<&[Digest]>, told: &dyn Fn(u64)) -> Result<Verified, StoreError> {
        // Nothing is removed meanwhile.
        let _hold = self.hold()?;
        let mut verified = Verified::default();
        let names = match self.names() {
            Err(error) if error.is_damage() => {
                let path = self.root.join("names.json");
                let why = match error {
                    StoreError::Altered { .. } => "its digest is not the one that it tells".to_owned(),
                    _ => "it is no list of names".to_owned(),
                };
                verified.faults.push(Fault { path, why, images: vec!["every name".into()], cure: Cure::LoadAgain });
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
                    verified.faults.push(Fault { path, why, images: vec![label], cure: Cure::LoadAgain });
                }
            }
        }
        let sound = self.verify_layers(&readable, &mut verified, told)?;
        for image in &readable {
            if image.config.diff_ids.iter().all(|id| sound.get(id) == Some(&true)) {
                verified.faults.extend(self.index_fault(image)?);
                let chain_id = merge::chain_id(&image.config.diff_ids);
                let path = self.directory_path(&chain_id);
                let tree = || self.tree_of(&image.config.diff_ids);
                verified.faults.extend(self.drawn_fault(path, &image.label, tree)?);
            }
        }
        for id in self.archive_ids()?.into_iter().filter(|id| wanted.is_none_or(|wanted| wanted.contains(id))) {
            verified.images += 1;
            verified.faults.extend(self.archive_fault(id)?);
        }
        if wanted.is_none() {
            for (name, id) in names.all() {
                if !is_there(&self.image_dir(&id))? {
                    let why = format!("the name `{name}` means the image {}, which is not there", &id.hex()[..12]);
                    verified.faults.push(Fault {
                        path: self.root.join("names.json"),
                        why,
                        images: vec![name],
                        cure: Cure::Forget,
                    });
                }
            }
        }
        verified.faults.sort();
        verified.faults.dedup();
        Ok(verified)
    }

    /// Which layers are sound; two at a time, each once.
    fn verify_layers(
        &self,
        images: &[Readable],
        verified: &mut Verified,
        told: &dyn Fn(u64),
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
            let why = match hash(&path, told) {
                Ok((found, size)) => {
                    verified.bytes += size;
                    (found != id).then(|| format!("its digest is {found}"))
                }
                Err(error) if error.kind() == io::ErrorKind::NotFound => Some("it is missing".to_owned()),
                Err(error) => Some(format!("it cannot be read: {error}")),
            };
            sound.insert(id, why.is_none());
            verified.faults.extend(why.map(|why| Fault { path, why, images, cure: Cure::LoadAgain }));
        }
        Ok(sound)
    }

    /// Draws the index of an image with sound layers again, and compares.
    fn index_fault(&self, image: &Readable) -> Result<Option<Fault>, StoreError> {
        let chain_id = merge::chain_id(&image.config.diff_ids);
        let fault = |path: &Path, why: &str| {
            Some(Fault {
                path: path.into(),
                why: why.into(),
                images: vec![image.label.clone()],
                cure: Cure::Redraw(chain_id),
            })
        };
        if image.record.chain_id != chain_id.to_string() {
            return Ok(fault(&self.index_path(&chain_id), "the image's record names another index"));
        }
        let staging = Staging::new_locked(self)?;
        self.draw_again(&image.config.diff_ids, &staging)?;
        let differing = differing_index(&load::index_in(&staging, &chain_id), &self.index_path(&chain_id))?;
        Ok(differing.and_then(|(path, why)| fault(&path, &why)))
    }

    /// Compares the directory that an image with sound layers was drawn as, if it was.
    fn drawn_fault(
        &self,
        path: PathBuf,
        label: &str,
        tree: impl FnOnce() -> Result<(Tree, Vec<File>), StoreError>,
    ) -> Result<Option<Fault>, StoreError> {
        if !is_there(&path)? {
            return Ok(None);
        }
        let (tree, sources) = tree()?;
        let staging = Staging::new_locked(self)?;
        let scratch = staging.path().join("scratch");
        make_dir(&scratch, 0o700)?;
        let open = |path: &Path| directory::open_root(path).map_err(StoreError::io("open", path));
        let fault = |why| Fault { path: path.clone(), why, images: vec![label.to_owned()], cure: Cure::Undraw };
        Ok(compare::difference(&tree, &sources, open(&path)?.as_fd(), open(&scratch)?.as_fd()).map(fault))
    }

    /// The first thing that is wrong with what the store has of an archive.
    fn archive_fault(&self, id: Digest) -> Result<Option<Fault>, StoreError> {
        let dir = self.archive_dir(&id);
        let fault = |(path, why)| Fault { path, why, images: vec![id.hex()[..12].to_owned()], cure: Cure::RunAgain };
        if let Err(damage) = documents_fault(&dir, &id)? {
            return Ok(Some(fault(damage)));
        }
        let image = match self.image_in_place(id) {
            Ok(Some(image)) => image,
            Err(StoreError::Archive { .. }) => return Ok(None),
            Ok(None) => return Ok(Some(fault((dir.join("place.json"), "it is missing".into())))),
            Err(StoreError::Json { path, cause }) => return Ok(Some(fault((path, cause.to_string())))),
            Err(StoreError::Altered { path }) => {
                return Ok(Some(fault((path, "its digest is not the one that it tells".into()))));
            }
            Err(error) => return Err(error),
        };
        let compared = self.archive_index_fault(&image).and_then(|damage| match damage {
            Some(damage) => Ok(Some(fault(damage))),
            None => self.drawn_fault(self.drawn_path(&image), &image.short_id(), || self.tree_and_sources(&image)),
        });
        match compared {
            // Changed while this looked at it.
            Err(StoreError::Archive { .. }) => Ok(None),
            // The file is a person's, to mend or not: only what is known of it goes.
            Err(error @ (StoreError::Scan { .. } | StoreError::Merge(_))) => {
                Ok(Some(fault((dir.join("place.json"), format!("the archive that it means is damaged: {error}")))))
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

    fn draw_again(&self, diff_ids: &[Digest], staging: &Staging) -> Result<(), StoreError> {
        let mut paths: Vec<(Digest, Stretch)> = Vec::new();
        for diff_id in diff_ids {
            let path = staging.path().join(format!("{}.tar", diff_id.hex()));
            if paths.iter().all(|(known, _)| known != diff_id) {
                fs::hard_link(self.layer_path(diff_id), &path).map_err(StoreError::io("link", &path))?;
            }
            paths.push((*diff_id, Stretch::whole(path)?));
        }
        let layers = super::scan_layers(&paths, Stretch::open)?;
        let tree = super::merge_layers(diff_ids.iter().copied().zip(layers))?;
        load::write_index(&tree, &merge::chain_id(diff_ids), load::staged(staging), staging)
    }

    /// Takes away what is damaged, and makes again what can be made: afterwards a load of the images that a fault names brings the rest.
    /// Files that a running container has mounted stay with it; their names go. A directory that one runs from must stay: `alone` answers with
    /// the lease of a drawn tree, by its name, for nobody else to have until it is dropped; nothing where somebody has it. Answers with the
    /// paths that are left for that reason.
    pub fn repair<Lease>(
        &self,
        faults: &[Fault],
        alone: &dyn Fn(&str) -> Option<Lease>,
    ) -> Result<Vec<PathBuf>, StoreError> {
        let _lock = self.lock()?;
        let staging = Staging::new_locked(self)?;
        for fault in faults.iter().filter(|fault| matches!(fault.cure, Cure::LoadAgain | Cure::RunAgain)) {
            // Of an image with one damaged document nothing stays: a load writes them all.
            let dir = fault.path.parent().filter(|dir| is_image(dir));
            take_away(dir.unwrap_or(&fault.path), &staging)?;
        }
        let images = self.list()?;
        let mut names = self.names()?;
        let mut left = Vec::new();
        for fault in faults {
            match fault.cure {
                Cure::LoadAgain | Cure::RunAgain => {}
                // A container that comes later finds nothing there, and draws it.
                Cure::Undraw => match alone(&fault.path.file_name().unwrap_or_default().to_string_lossy()) {
                    Some(_lease) => take_away(&fault.path, &staging)?,
                    None => left.push(fault.path.clone()),
                },
                Cure::Forget => {
                    fault.images.iter().filter_map(|name| name.parse().ok()).for_each(|name| names.remove(&name))
                }
                Cure::Redraw(chain_id) => {
                    take_away(&self.index_path(&chain_id), &staging)?;
                    take_away(&self.side_path(&chain_id), &staging)?;
                    if let Some(image) = images.iter().find(|image: &&Image| image.chain_id == chain_id) {
                        let fresh = Staging::new_locked(self)?;
                        self.draw_again(&image.diff_ids, &fresh)?;
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

/// An image's documents, or which of them is damaged and how.
fn documents_fault(dir: &Path, id: &Digest) -> Result<Result<(ImageConfig, ImageRecord), Damage>, StoreError> {
    let (config_path, record_path, manifest_path) =
        (dir.join("config.json"), dir.join("image.json"), dir.join("manifest.json"));
    let missing = || "it is missing".to_owned();
    let Some(config) = read_if_there(&config_path)? else { return Ok(Err((config_path, missing()))) };
    let found = digest_of(&config);
    if found != *id {
        return Ok(Err((config_path, format!("its digest is {found}"))));
    }
    let config = match ImageConfig::parse(&config) {
        Ok(config) => config,
        Err(error) => return Ok(Err((config_path, error.to_string()))),
    };
    let Some(record) = read_if_there(&record_path)? else { return Ok(Err((record_path, missing()))) };
    let record = match ImageRecord::parse(&record, &record_path) {
        Ok(record) => record,
        Err(StoreError::Json { cause, .. }) => return Ok(Err((record_path, cause.to_string()))),
        Err(_) => return Ok(Err((record_path, "its digest is not the one that it tells".into()))),
    };
    let manifest = read_if_there(&manifest_path)?.map(|bytes| digest_of(&bytes).to_string());
    if manifest != record.manifest_digest {
        let why = manifest.map_or_else(missing, |found| format!("its digest is {found}"));
        return Ok(Err((manifest_path, why)));
    }
    Ok(Ok((config, record)))
}

/// Which file of a stored index is not as it was drawn just now.
fn differing_index(drawn: &Path, stored: &Path) -> Result<Option<Damage>, StoreError> {
    for (made, stored) in
        [(drawn.to_owned(), stored.to_owned()), (drawn.with_extension("side"), stored.with_extension("side"))]
    {
        let why = match (is_there(&made)?, is_there(&stored)?) {
            (false, false) => continue,
            (true, false) => "it is missing",
            (false, true) => "nothing needs it",
            (true, true) if same_bytes(&made, &stored).map_err(StoreError::io("read", &stored))? => continue,
            (true, true) => "it is not what the layers say",
        };
        return Ok(Some((stored, why.into())));
    }
    Ok(None)
}

fn is_image(dir: &Path) -> bool {
    dir.file_name().and_then(|name| name.to_str()).and_then(super::parse_hex).is_some()
}

/// Moves a damaged file into the workplace, with which it goes.
fn take_away(path: &Path, staging: &Staging) -> Result<(), StoreError> {
    let to = staging.path().join(format!("damaged.{}", path.file_name().unwrap_or_default().to_string_lossy()));
    match fs::rename(path, to) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(StoreError::io("remove", path)(error)),
        _ => Ok(()),
    }
}

fn hash(path: &Path, told: &dyn Fn(u64)) -> io::Result<(Digest, u64)> {
    let mut file = File::open(path)?;
    let mut buffer = vec![0; 1 << 20];
    let (mut hash, mut size) = (Sha256::new(), 0);
    loop {
        match file.read(&mut buffer)? {
            0 => return Ok((Digest(hash.finalize().into()), size)),
            got => {
                hash.update(&buffer[..got]);
                size += got as u64;
                told(got as u64);
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
