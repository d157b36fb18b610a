//! Lists images, and finds them by name or by the start of an id.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use super::files::{exists, read_optional};
use super::record::ImageRecord;
use super::{Image, ResolveError, Store, StoreError, names};
use crate::image::{ImageConfig, digest_of};
use crate::layer::merge;
use crate::names::{Digest, Reference};

impl Store {
    /// Returns all images: those with names first, sorted by name. Skips damaged ones with a warning.
    pub(crate) fn list(&self) -> Result<Vec<Image>, StoreError> {
        let (images, damaged) = self.list_all()?;
        for error in damaged {
            tracing::warn!("{error}; see `gpurun image verify`");
        }
        Ok(images)
    }

    /// Returns the readable images, and the errors of the others.
    pub(super) fn list_all(&self) -> Result<(Vec<Image>, Vec<StoreError>), StoreError> {
        let names = self.names()?;
        let (mut images, mut damaged) = (Vec::new(), Vec::new());
        for id in self.image_ids()? {
            match self.image(id, &names) {
                Ok(Some(image)) => images.push(image),
                // Removed since the directory was read.
                Ok(None) => {}
                Err(error) if error.is_damage() => damaged.push(error),
                Err(error) => return Err(error),
            }
        }
        images.sort_by_key(|image| (image.names.is_empty(), image.label(), image.id));
        Ok((images, damaged))
    }

    /// Returns the sizes of the layers' tars, as recorded when the layers were loaded.
    pub(super) fn recorded_sizes(&self) -> Result<BTreeMap<Digest, u64>, StoreError> {
        let mut sizes = BTreeMap::new();
        for image in self.list_all()?.0 {
            sizes.extend(image.diff_ids.into_iter().zip(image.layer_sizes));
        }
        Ok(sizes)
    }

    /// Finds an image by id, by name, or by an unambiguous start of its id.
    pub(crate) fn resolve(&self, name: &str) -> Result<Image, ResolveError> {
        let failed = |cause| ResolveError::Store { name: name.into(), cause };
        let names = self.names().map_err(failed)?;
        let id = match self.find(name, &names).map_err(failed)? {
            Found::One(id) => id,
            Found::Several(ids) => {
                let ids = ids.iter().map(|id| id.hex()[..12].to_string()).collect();
                return Err(ResolveError::Ambiguous { prefix: name.into(), ids });
            }
            Found::BadName => return Err(ResolveError::BadName(name.escape_debug().to_string())),
            Found::None => return Err(self.not_found(name)),
        };
        self.image(id, &names).map_err(failed)?.ok_or_else(|| self.not_found(name))
    }

    /// Returns the id that a name refers to, even if the image is damaged. A full id also finds an image that runs from
    /// an archive.
    pub(crate) fn identify(&self, name: &str) -> Result<Digest, ResolveError> {
        let failed = |cause| ResolveError::Store { name: name.into(), cause };
        match self.find(name, &self.names().map_err(failed)?).map_err(failed)? {
            Found::One(id) if exists(&self.image_dir(&id)).map_err(failed)? => Ok(id),
            Found::One(id) if exists(&self.archive_dir(&id)).map_err(failed)? => Ok(id),
            _ => Ok(self.resolve(name)?.id),
        }
    }

    /// Whether `text` is a form of `name`, and not an id.
    pub(crate) fn is_name(&self, text: &str, name: &Reference) -> bool {
        names::candidates(text).contains(name)
    }

    fn not_found(&self, name: &str) -> ResolveError {
        let mut known = self.list().unwrap_or_default();
        known.retain(|image| !image.intermediate);
        let known = known.iter().map(Image::label).collect();
        ResolveError::NotFound { name: name.into(), known }
    }

    pub(super) fn find(&self, name: &str, names: &names::Names) -> Result<Found, StoreError> {
        if let Ok(id) = name.parse::<Digest>() {
            return Ok(Found::One(id));
        }
        let references = names::candidates(name);
        if let Some(id) = references.iter().find_map(|reference| names.get(reference)) {
            return Ok(Found::One(id));
        }
        if let Some(id) = self.by_manifest(&references, names)? {
            return Ok(Found::One(id));
        }
        let prefix = name.strip_prefix("sha256:").unwrap_or(name);
        if !prefix.is_empty()
            && prefix.len() <= 64
            && prefix.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
        {
            let mut ids = self.image_ids()?;
            ids.retain(|id| id.hex().starts_with(prefix));
            match ids.as_slice() {
                [] => {}
                [id] => return Ok(Found::One(*id)),
                _ => return Ok(Found::Several(ids)),
            }
        }
        Ok(if references.is_empty() { Found::BadName } else { Found::None })
    }

    /// Resolves `name@digest` to an image of that name that has that manifest, under any tag, as docker's repository
    /// digests do.
    fn by_manifest(&self, references: &[Reference], names: &names::Names) -> Result<Option<Digest>, StoreError> {
        let Some((reference, digest)) = references.iter().find_map(|one| Some((one, one.digest?))) else {
            return Ok(None);
        };
        let is_meant = |name: &Reference| (&name.domain, &name.path) == (&reference.domain, &reference.path);
        let pulled = self.repo_digests()?.get(reference, &digest);
        if let Some(id) = pulled.filter(|id| names.of(id).iter().any(is_meant)) {
            return Ok(Some(id));
        }
        let (images, _) = self.list_all()?;
        let mut images = images.into_iter().filter(|image| image.manifest_digest == Some(digest));
        Ok(images.find(|image| names.of(&image.id).iter().any(is_meant)).map(|image| image.id))
    }

    pub(super) fn image_ids(&self) -> Result<Vec<Digest>, StoreError> {
        let path = self.root.join("images");
        let mut ids = Vec::new();
        for entry in fs::read_dir(&path).map_err(StoreError::io("read", &path))? {
            let entry = entry.map_err(StoreError::io("read", &path))?;
            ids.extend(entry.file_name().to_str().and_then(parse_hex));
        }
        ids.sort();
        Ok(ids)
    }

    /// Reads one image. `None` if it does not exist.
    pub(super) fn image(&self, id: Digest, names: &names::Names) -> Result<Option<Image>, StoreError> {
        self.image_in(&self.image_dir(&id), id, names)
    }

    pub(super) fn image_in(&self, dir: &Path, id: Digest, names: &names::Names) -> Result<Option<Image>, StoreError> {
        // Both files appear and disappear with their directory, in one rename. If one is missing, the image was
        // removed, perhaps between the two reads.
        let Some(bytes) = read_optional(&dir.join("config.json"))? else { return Ok(None) };
        if digest_of(&bytes) != id {
            return Err(StoreError::Changed { path: dir.join("config.json") });
        }
        let config = ImageConfig::parse(&bytes).map_err(|cause| StoreError::Damaged { id: id.to_string(), cause })?;
        let path = dir.join("image.json");
        let Some(bytes) = read_optional(&path)? else { return Ok(None) };
        let record = ImageRecord::parse(&bytes, &path)?;
        Ok(Some(Image {
            id,
            names: names.of(&id),
            chain_id: merge::chain_id(&config.diff_ids),
            config: config.config,
            architecture: config.architecture,
            os: config.os,
            variant: config.variant,
            created: config.created,
            diff_ids: config.diff_ids,
            size: record.layer_sizes.iter().sum(),
            layer_sizes: record.layer_sizes,
            loaded_at: record.loaded_at,
            intermediate: record.intermediate && names.of(&id).is_empty(),
            in_place: None,
            manifest_digest: record.manifest_digest.and_then(|digest| digest.parse().ok()),
        }))
    }
}

pub(super) enum Found {
    One(Digest),
    Several(Vec<Digest>),
    None,
    BadName,
}

pub(super) fn parse_hex(hex: &str) -> Option<Digest> {
    format!("sha256:{hex}").parse().ok()
}
