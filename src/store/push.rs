//! Pushes images from the store to a registry.

use super::staging::Staging;
use super::{Image, Store, StoreError};
use crate::image::Compression;
use crate::names::{Digest, Reference};
use crate::report::Explain;
use crate::transport::registry::{self, PushImage, PushLayer, PushProgress, Pushed, RegistryError};

/// An image that cannot be pushed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum PushError {
    #[error("cannot push to `{target}`")]
    Registry {
        target: Reference,
        #[source]
        cause: Box<RegistryError>,
    },
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl Explain for PushError {
    fn hint(&self) -> Option<String> {
        match self {
            Self::Registry { cause, .. } => match &**cause {
                RegistryError::Pack { layer, .. } => {
                    Some(format!("check the stored layer {} with `gpurun image verify`", &layer.hex()[..12]))
                }
                cause => cause.hint(),
            },
            Self::Store(cause) => cause.hint(),
        }
    }
}

impl Store {
    /// Returns an image's layers with the sizes of their tars, lowest first.
    pub(crate) fn layers(&self, image: &Image) -> Result<Vec<(Digest, u64)>, StoreError> {
        let size = |diff_id: &Digest| {
            let path = self.layer_path(diff_id);
            Ok((*diff_id, path.metadata().map_err(StoreError::io("read", &path))?.len()))
        };
        image.diff_ids.iter().map(size).collect()
    }

    /// Pushes an image to a registry. The layers are pinned with links in a staging directory, so that a concurrent
    /// removal does no harm.
    pub(crate) fn push(
        &self,
        image: &Image,
        target: &Reference,
        packing: Compression,
        options: &registry::Options,
        progress: &dyn PushProgress,
    ) -> Result<Pushed, PushError> {
        let staging = Staging::new(self)?;
        let (config, manifest) = self.documents(image)?;
        let mut layers: Vec<PushLayer> = Vec::new();
        for (diff_id, size) in self.layers(image)? {
            let path = staging.path().join(format!("{}.tar", diff_id.hex()));
            if layers.iter().all(|layer| layer.diff_id != diff_id) {
                std::fs::hard_link(self.layer_path(&diff_id), &path).map_err(StoreError::io("link", &path))?;
            }
            layers.push(PushLayer { diff_id, path, size });
        }
        let same_registry = |name: &&Reference| name.domain == target.domain && name.path != target.path;
        let neighbours = image.names.iter().filter(same_registry).map(|name| name.path.clone()).collect();
        let image = PushImage { config, manifest, layers, packing, neighbours, workplace: staging.path().to_owned() };
        registry::push(target, &image, options, progress)
            .map_err(|cause| PushError::Registry { target: target.clone(), cause: Box::new(cause) })
    }
}
