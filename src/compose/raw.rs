//! A project with its variables as the files have them, for `config --no-interpolate`.

use std::collections::{BTreeMap, BTreeSet};

use super::emit;
use super::error::ComposeError;
use super::project::{Source, raw_tree};
use super::template::{self, Variable};
use super::value::{Map, Node, Value};

/// The merged files of a project. Its values are not checked as far as they contain variables.
#[derive(Debug)]
pub(crate) struct Raw {
    root: Node,
    /// Messages about the files.
    pub(crate) notices: Vec<String>,
}

impl Raw {
    /// Loads all services, also those of profiles that are not enabled, or only the named ones.
    pub(crate) fn load(source: &Source, selected: &[String]) -> Result<Self, ComposeError> {
        let (root, notices) = raw_tree(source, selected)?;
        Ok(Self { root, notices })
    }

    pub(crate) fn to_yaml(&self) -> String {
        emit::raw_yaml(&self.root)
    }

    pub(crate) fn to_json(&self) -> String {
        emit::raw_json(&self.root) + "\n"
    }

    fn map(&self, key: &str) -> impl Iterator<Item = (&String, &Node)> {
        let map = self.root.as_map().and_then(|root| root.get(key)).and_then(Node::as_map);
        map.into_iter().flat_map(Map::iter)
    }

    pub(crate) fn service_names(&self) -> impl Iterator<Item = &str> {
        self.map("services").map(|(name, _)| name.as_str())
    }

    pub(crate) fn volume_names(&self) -> impl Iterator<Item = &str> {
        self.map("volumes").map(|(name, _)| name.as_str())
    }

    /// The variables of all values, by name.
    pub(crate) fn variables(&self) -> BTreeMap<String, Variable> {
        let (mut all, mut open) = (BTreeMap::new(), vec![&self.root]);
        while let Some(node) = open.pop() {
            match &node.value {
                Value::Text(text) => template::variables(text, &mut all),
                Value::Map(map) => open.extend(map.values()),
                Value::List(list) => open.extend(list),
                _ => {}
            }
        }
        all
    }

    /// The names of the images of the services that have one.
    pub(crate) fn images(&self) -> impl Iterator<Item = &str> {
        self.map("services").filter_map(|(_, service)| service.get("image").and_then(Node::as_text))
    }

    pub(crate) fn profiles(&self) -> BTreeSet<&str> {
        let lists = self.map("services").filter_map(|(_, service)| service.get("profiles").and_then(Node::as_list));
        lists.flatten().filter_map(Node::as_text).collect()
    }
}
