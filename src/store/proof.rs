//! Verifies manifests. The store only keeps a manifest if its claims are true.
//!
//! A manifest names the blob of each layer by the digest of its compressed bytes, while the store knows the digest of
//! the tar. A layer that is read during a load has both digests checked. A layer that is already in the store is not
//! read again, so the manifest of a new image could claim any blob for it, and a later push would repeat the claim.
//! Each claim is therefore checked against the manifests in the store, or by reading the blob if it is a local file. A
//! false claim about a local blob fails the load. If neither check is possible, the manifest is not kept. (Its digest
//! still finds the image, see `digests`, and a push compresses the layers again.)

use std::collections::{BTreeSet, HashSet};
use std::io::Read;

use sha2::{Digest as _, Sha256};

use super::files::{exists, read_optional};
use super::load::LoadError;
use super::{IngestError, Store, StoreError};
use crate::image::Document;
use crate::names::Digest;
use crate::transport::{Blob, SourceImage};

/// Digests of layers and their blobs: the digest of the tar and that of the compressed bytes.
type Pairs = HashSet<(Digest, Digest)>;

impl Store {
    /// Checks the claims of a source's manifests about layers in the store, and drops manifests that cannot be
    /// verified.
    pub(super) fn prove_manifests(&self, images: &mut [SourceImage]) -> Result<(), LoadError> {
        let mut proven = Pairs::new();
        let mut stored: Option<Pairs> = None;
        let mut seen = BTreeSet::new();
        for image in images {
            let mut is_true = true;
            for layer in &image.layers {
                let Some(digest) = layer.digest else { continue };
                let pair = (layer.diff_id, digest);
                // The two digests of an uncompressed layer are equal, and a layer that is not in the store will be
                // read.
                let is_read = seen.insert(layer.diff_id) && !exists(&self.layer_path(&layer.diff_id))?;
                if is_read || layer.diff_id == digest || proven.contains(&pair) {
                    proven.insert(pair);
                    continue;
                }
                let stored = match &stored {
                    Some(stored) => stored,
                    None => stored.insert(self.stored_pairs()?),
                };
                if stored.contains(&pair) {
                    continue;
                }
                if layer.blob.is_remote() {
                    is_true = false;
                    continue;
                }
                let failed = |cause| LoadError::Layer { layer: layer.diff_id, cause };
                let found = digest_of_blob(&layer.blob).map_err(|error| failed(IngestError::Unpack(error)))?;
                if found != digest {
                    return Err(failed(IngestError::Digest { expected: digest, found }));
                }
                proven.insert(pair);
            }
            if !is_true {
                image.manifest_bytes = None;
            }
        }
        Ok(())
    }

    /// Returns the claims of the manifests in the store. Each was verified when it was loaded.
    fn stored_pairs(&self) -> Result<Pairs, StoreError> {
        let mut pairs = Pairs::new();
        for image in self.list_all()?.0 {
            let Some(bytes) = read_optional(&self.image_dir(&image.id).join("manifest.json"))? else { continue };
            let Ok(Document::Manifest(manifest)) = Document::parse(&bytes) else { continue };
            let digests = manifest.layers.iter().map(|layer| layer.digest);
            pairs.extend(image.diff_ids.iter().copied().zip(digests));
        }
        Ok(pairs)
    }
}

fn digest_of_blob(blob: &Blob) -> std::io::Result<Digest> {
    let mut reader = blob.open()?;
    let mut buffer = vec![0; 1 << 20];
    let mut hash = Sha256::new();
    loop {
        match reader.read(&mut buffer)? {
            0 => return Ok(Digest(hash.finalize().into())),
            got => hash.update(&buffer[..got]),
        }
    }
}
