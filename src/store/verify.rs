//! Is everything what its name says? Layers and configs by their digests, indexes by drawing them again: the same tree gives the same bytes. Trees
//! that were drawn as directories, file by file.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Read};
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use sha2::{Digest as _, Sha256};

use super::Stretch;
use super::names::Names;
use super::{Image, ImageRecord, Staging, Store, StoreError, is_there, load, read_if_there};
use crate::image::{ImageConfig, digest_of};
use crate::layer::{compare, directory, merge};
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
    /// A tree drawn as a directory: without it, it is drawn again when it is needed.
    Undraw(Digest),
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
            match self.documents_fault(&id)? {
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
                verified.faults.extend(self.drawn_fault(image)?);
            }
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

    /// An image's documents, or which of them is damaged and how.
    fn documents_fault(&self, id: &Digest) -> Result<Result<(ImageConfig, ImageRecord), Damage>, StoreError> {
        let dir = self.image_dir(id);
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
        let drawn = load::index_in(&staging, &chain_id);
        for (made, stored) in
            [(drawn.clone(), self.index_path(&chain_id)), (drawn.with_extension("side"), self.side_path(&chain_id))]
        {
            match (is_there(&made)?, is_there(&stored)?) {
                (false, false) => {}
                (true, false) => return Ok(fault(&stored, "it is missing")),
                (false, true) => return Ok(fault(&stored, "nothing needs it")),
                (true, true) if !same_bytes(&made, &stored).map_err(StoreError::io("read", &stored))? => {
                    return Ok(fault(&stored, "it is not what the layers say"));
                }
                (true, true) => {}
            }
        }
        Ok(None)
    }

    /// Compares the directory that an image with sound layers was drawn as, if it was.
    fn drawn_fault(&self, image: &Readable) -> Result<Option<Fault>, StoreError> {
        let chain_id = merge::chain_id(&image.config.diff_ids);
        let path = self.directory_path(&chain_id);
        if !is_there(&path)? {
            return Ok(None);
        }
        let (tree, sources) = self.tree_of(&image.config.diff_ids)?;
        let root = directory::open_root(&path).map_err(StoreError::io("open", &path))?;
        let fault = |why| Fault { path, why, images: vec![image.label.clone()], cure: Cure::Undraw(chain_id) };
        Ok(compare::difference(&tree, &sources, root.as_fd()).map(fault))
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
    /// Files that a running container has mounted stay with it; their names go. A directory that one runs from must stay: `in_use` tells.
    /// Answers how many faults are left for that reason.
    pub fn repair(&self, faults: &[Fault], in_use: &dyn Fn(&Digest) -> bool) -> Result<usize, StoreError> {
        let _lock = self.lock()?;
        let staging = Staging::new_locked(self)?;
        for fault in faults.iter().filter(|fault| fault.cure == Cure::LoadAgain) {
            // Of an image with one damaged document nothing stays: a load writes them all.
            let dir = fault.path.parent().filter(|dir| is_image(dir));
            take_away(dir.unwrap_or(&fault.path), &staging)?;
        }
        let images = self.list()?;
        let mut names = self.names()?;
        let mut left = 0;
        for fault in faults {
            match fault.cure {
                Cure::LoadAgain => {}
                Cure::Undraw(chain_id) if in_use(&chain_id) => left += 1,
                Cure::Undraw(_) => take_away(&fault.path, &staging)?,
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
