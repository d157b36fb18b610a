//! A whole image config in the form that gpurun writes. `commit` and `build` read and write it.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use super::{Config, DocumentError, ImageConfig, architecture};
use crate::names::Digest;

/// One entry of an image's history.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct History {
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub created: String,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub author: String,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub created_by: String,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub comment: String,
    /// Whether the step changed only the config.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub empty_layer: bool,
}

/// An image config with its history, which can be changed and written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ImageDocument {
    pub architecture: String,
    pub os: String,
    pub variant: String,
    /// The time in RFC 3339.
    pub created: String,
    pub author: String,
    pub config: Config,
    pub history: Vec<History>,
    pub diff_ids: Vec<Digest>,
}

impl ImageDocument {
    /// An empty image for this machine.
    #[must_use]
    pub fn scratch() -> Self {
        Self {
            architecture: architecture().into(),
            os: "linux".into(),
            variant: String::new(),
            created: String::new(),
            author: String::new(),
            config: Config::default(),
            history: Vec::new(),
            diff_ids: Vec::new(),
        }
    }

    pub fn parse(bytes: &[u8]) -> Result<Self, DocumentError> {
        #[derive(Deserialize)]
        struct WithHistory {
            #[serde(default)]
            history: Option<Vec<History>>,
        }
        let image = ImageConfig::parse(bytes)?;
        // An unusual history is ignored, because nothing depends on it.
        let history = serde_json::from_slice::<WithHistory>(bytes).ok().and_then(|with| with.history);
        Ok(Self {
            architecture: image.architecture,
            os: image.os,
            variant: image.variant,
            created: image.created,
            author: image.author,
            config: image.config,
            history: history.unwrap_or_default(),
            diff_ids: image.diff_ids,
        })
    }

    /// Serializes the document. The digest of the text is the image's id. Equal documents have equal texts.
    #[must_use]
    pub fn bytes(&self) -> Vec<u8> {
        let mut config = serde_json::to_value(&self.config).unwrap_or_default();
        if let Value::Object(fields) = &mut config {
            // Empty fields are omitted, as other builders do.
            fields.retain(|_, value| !is_empty(value));
        }
        let diff_ids: Vec<String> = self.diff_ids.iter().map(ToString::to_string).collect();
        let mut all = Map::new();
        for (name, value) in [
            ("architecture", json!(self.architecture)),
            ("author", json!(self.author)),
            ("config", config),
            ("created", json!(self.created)),
            ("history", json!(self.history)),
            ("os", json!(self.os)),
            ("rootfs", json!({"type": "layers", "diff_ids": diff_ids})),
            ("variant", json!(self.variant)),
        ] {
            if !is_empty(&value) || name == "config" {
                all.insert(name.into(), value);
            }
        }
        Value::Object(all).to_string().into_bytes()
    }
}

fn is_empty(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::String(text) => text.is_empty(),
        Value::Array(list) => list.is_empty(),
        Value::Object(fields) => fields.is_empty(),
        Value::Bool(_) | Value::Number(_) => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn written_and_read_again() {
        let mut image = ImageDocument::scratch();
        image.config.env = vec!["A=1".into()];
        image.config.on_build = vec!["RUN x".into()];
        image.config.healthcheck = Some(json!({"Test": ["NONE"]}));
        image.config.volumes = vec!["/data".into()];
        image.history.push(History { created_by: "ENV A=1".into(), empty_layer: true, ..History::default() });
        let bytes = image.bytes();
        assert_eq!(ImageDocument::parse(&bytes).expect("read"), image);
        let text = String::from_utf8(bytes).expect("text");
        assert!(text.contains(r#""Volumes":{"/data":{}}"#) && !text.contains("Cmd"), "{text}");
    }
}
