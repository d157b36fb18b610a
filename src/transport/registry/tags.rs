//! The tags of a repository.

use std::collections::BTreeSet;
use std::sync::Arc;

use serde_json::Value;

use super::endpoint::Endpoint;
use super::http::Http;
use super::{Options, RegistryError};
use crate::names::Reference;

/// Tags per request.
const PAGE: usize = 1000;
/// The most requests for one repository.
const PAGES: usize = 100;

/// Returns a name with each tag of a repository, sorted. The registry itself is asked, and no mirror.
pub(crate) fn tags(repository: &Reference, options: &Options) -> Result<Vec<Reference>, RegistryError> {
    let http = Arc::new(Http::new(options));
    let place = options.settings.place(repository);
    let endpoint = Endpoint::open(&place, &http, options)?;
    let nonsense = |why: String| RegistryError::Protocol { host: place.host.clone(), why };
    let mut tags = BTreeSet::new();
    let mut next = Some(format!("tags/list?n={PAGE}"));
    for _ in 0..PAGES {
        let Some(path) = next else { break };
        let (bytes, after) = endpoint.page(&path)?;
        let list: Value = serde_json::from_slice(&bytes).map_err(|error| nonsense(error.to_string()))?;
        // A repository whose last tag was removed has `null`.
        for tag in list["tags"].as_array().into_iter().flatten() {
            let tag =
                tag.as_str().ok_or_else(|| nonsense("its list of tags has a value that is not a string".into()))?;
            let name = format!("{}/{}:{tag}", repository.domain, repository.path);
            tags.insert(name.parse::<Reference>().map_err(|error| nonsense(error.to_string()))?);
        }
        next = after;
    }
    match next {
        Some(_) => Err(nonsense(format!("its list of tags does not end after {PAGES} pages"))),
        None => Ok(tags.into_iter().collect()),
    }
}
