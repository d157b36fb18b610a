//! Loads compose files: reads, interpolates, extends, includes and merges them into one tree.
//!
//! The steps and their order are those of compose-go, because they decide what a file means: a document is interpolated
//! and checked, its services are extended, its `!reset` tags are applied to what earlier files said, its includes are
//! added, and then it is merged.

use std::path::{Path, PathBuf};

use super::canonical::{absolute_path, canonical};
use super::check::check;
use super::dotenv::{self, Environment};
use super::error::join;
use super::error::{ComposeError, Wrong};
use super::merge::{deduplicate, merge, remove};
use super::schema::{PROJECT, Type};
use super::template::{Lookup, TemplateError, substitute};
use super::value::{At, Map, Node, Value};
use super::yaml;

/// Largest file that is read.
const MAX_FILE: u64 = 1 << 20;
/// Most files that one project may consist of.
const MAX_FILES: usize = 100;
/// Most values that `extends` may copy.
const MAX_COPIES: usize = 1_000_000;

static ROOT: Type = Type::Object(&PROJECT);

/// The state of a load.
#[derive(Debug, Default)]
pub(super) struct Loader {
    /// All files that were read, in order. [`super::value::At`] points here.
    pub(super) files: Vec<PathBuf>,
    /// Messages for the user.
    pub(super) notices: Vec<String>,
    copies: usize,
}

/// Where a file is, and which variables it sees.
#[derive(Clone, Copy)]
pub(super) struct Place<'a> {
    /// Relative paths are below this directory.
    pub(super) directory: &'a Path,
    pub(super) environment: &'a Environment,
    /// Variables are left as they are written.
    pub(super) raw: bool,
}

/// What a file is read for.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Purpose {
    Project,
    /// The base of an `extends`: the services are needed as they are written.
    Base,
}

impl Loader {
    /// Adds the name of the file to an error.
    pub(super) fn locate(&self, wrong: Wrong) -> ComposeError {
        ComposeError {
            file: (wrong.at.line > 0).then(|| self.files.get(usize::from(wrong.at.file)).cloned()).flatten(),
            line: wrong.at.line,
            key: wrong.key,
            reason: wrong.reason,
            hint: wrong.hint,
            notices: Box::default(),
        }
    }

    pub(super) fn notice(&mut self, text: String) {
        if !self.notices.contains(&text) {
            self.notices.push(text);
        }
    }

    /// Reads a text file with a limit. `-` is standard input.
    pub(super) fn read(&mut self, path: &Path) -> Result<(u16, String), ComposeError> {
        let failed = |reason: String| ComposeError {
            file: Some(path.to_owned()),
            line: 0,
            key: String::new(),
            reason,
            hint: None,
            notices: Box::default(),
        };
        if self.files.len() >= MAX_FILES {
            return Err(failed(format!("the project consists of more than {MAX_FILES} files")));
        }
        let text = read_text(path).map_err(failed)?;
        self.files.push(path.to_owned());
        Ok((u16::try_from(self.files.len() - 1).unwrap_or(u16::MAX), text))
    }

    /// Loads and merges the files of a project.
    pub(super) fn project(&mut self, files: &[PathBuf], place: Place<'_>) -> Result<Node, ComposeError> {
        self.model(files, place, Purpose::Project, &[])
    }

    fn model(
        &mut self,
        files: &[PathBuf],
        place: Place<'_>,
        purpose: Purpose,
        included: &[PathBuf],
    ) -> Result<Node, ComposeError> {
        let mut root = Node::map(Map::new(), At::default());
        for file in files {
            let (index, text) = self.read(file)?;
            let documents = yaml::parse(&text, index).map_err(|error| ComposeError {
                file: Some(file.clone()),
                line: error.line,
                key: String::new(),
                reason: error.reason,
                hint: None,
                notices: Box::default(),
            })?;
            for document in documents {
                let main = files.first().unwrap_or(file);
                root = self.document(root, document, file, place, purpose, (included, main))?;
            }
        }
        canonical(&mut root, place.directory, place.raw).map_err(|wrong| self.locate(wrong))?;
        deduplicate(&mut root, &mut Vec::new());
        if !place.raw {
            resolve_environment(&mut root, place.environment);
        }
        Ok(root)
    }

    /// Merges one document into the tree of the documents before it.
    fn document(
        &mut self,
        mut base: Node,
        document: yaml::Document,
        file: &Path,
        place: Place<'_>,
        purpose: Purpose,
        (included, main): (&[PathBuf], &Path),
    ) -> Result<Node, ComposeError> {
        let yaml::Document { mut root, resets } = document;
        if root.is_null() {
            return Ok(base);
        }
        if place.raw {
            // A text with a variable may become anything.
            let mut fixed = root.clone();
            drop_variables(&mut fixed);
            check(&mut fixed, &ROOT, "").map_err(|wrong| self.locate(wrong))?;
        } else {
            self.interpolate(&mut root, place.environment, "")?;
            check(&mut root, &ROOT, "").map_err(|wrong| self.locate(wrong))?;
        }
        if purpose == Purpose::Project {
            let mut extender = Extender { loader: self, file, place, resets: &resets, chain: Vec::new() };
            extender.all(&mut root)?;
        }
        for path in &resets {
            remove(&mut base, path);
        }
        if purpose == Purpose::Project {
            let mut included = included.to_vec();
            included.push(main.to_owned());
            self.include(&mut root, place, &included)?;
        }
        if let Some(map) = root.as_map_mut() {
            map.remove("include");
            if map.remove("version").is_some() {
                self.notice(format!("`version` in `{}` is obsolete and ignored", file.display()));
            }
        }
        let mut merged = merge(base, root, &mut Vec::new()).map_err(|wrong| self.locate(wrong))?;
        deduplicate(&mut merged, &mut Vec::new());
        Ok(merged)
    }

    /// Replaces variables in all text values. Keys are left as they are.
    fn interpolate(&mut self, node: &mut Node, environment: &Environment, path: &str) -> Result<(), ComposeError> {
        let at = node.at;
        match &mut node.value {
            Value::Text(text) if text.contains('$') => {
                let get = |name: &str| environment.get(name).cloned();
                let mut lookup = Lookup { get: &get, missing: Vec::new() };
                let result = substitute(text, &mut lookup);
                for name in lookup.missing {
                    self.notice(format!("the variable `{name}` is not set: an empty string is used"));
                }
                *text = result.map_err(|error| self.locate(template_error(error, at, path)))?;
                Ok(())
            }
            Value::Map(map) => {
                map.iter_mut().try_for_each(|(key, node)| self.interpolate(node, environment, &join(path, key)))
            }
            Value::List(list) => list
                .iter_mut()
                .enumerate()
                .try_for_each(|(index, node)| self.interpolate(node, environment, &format!("{path}[{index}]"))),
            _ => Ok(()),
        }
    }

    /// Adds the resources of included projects.
    fn include(&mut self, root: &mut Node, place: Place<'_>, included: &[PathBuf]) -> Result<(), ComposeError> {
        let Some(Value::List(entries)) = root.get("include").map(|node| node.value.clone()) else { return Ok(()) };
        for entry in entries {
            let texts = |key: &str| -> Vec<String> {
                let node = entry.get(key);
                let list = node.and_then(Node::as_list).map(|list| list.iter().filter_map(Node::as_text));
                let one = node.and_then(Node::as_text).or(if key == "path" { entry.as_text() } else { None });
                list.into_iter().flatten().chain(one).map(str::to_owned).collect()
            };
            let paths: Vec<PathBuf> = texts("path").iter().map(|path| absolute_path(path, place.directory)).collect();
            let Some(first) = paths.first() else {
                return Err(self.locate(Wrong::new(entry.at, "include", "an include needs a `path`")));
            };
            if included.contains(first) {
                let reason = format!("`{}` includes itself", first.display());
                return Err(self.locate(Wrong::new(entry.at, "include", reason)));
            }
            let directory = match entry.get("project_directory").and_then(Node::as_text) {
                Some(directory) => absolute_path(directory, place.directory),
                None => first.parent().unwrap_or(Path::new("/")).to_owned(),
            };
            let mut env_files: Vec<PathBuf> =
                texts("env_file").iter().map(|path| absolute_path(path, place.directory)).collect();
            let default = directory.join(".env");
            if env_files.is_empty() && default.is_file() {
                env_files.push(default);
            }
            let mut environment = place.environment.clone();
            for (name, value) in env_files_values(&env_files, &environment)? {
                environment.entry(name).or_insert(value);
            }
            let place = Place { directory: &directory, environment: &environment, raw: place.raw };
            let imported = self.model(&paths, place, Purpose::Project, included)?;
            self.import(imported, root)?;
        }
        Ok(())
    }

    fn import(&self, imported: Node, root: &mut Node) -> Result<(), ComposeError> {
        let (Value::Map(mut imported), Some(root)) = (imported.value, root.as_map_mut()) else { return Ok(()) };
        for kind in ["services", "volumes", "networks", "secrets", "configs"] {
            let Some(Node { value: Value::Map(resources), at }) = imported.remove(kind) else { continue };
            let target = root.entry(kind.to_owned()).or_insert_with(|| Node::map(Map::new(), at));
            let Some(target) = target.as_map_mut() else { continue };
            for (name, node) in resources {
                match target.get(&name) {
                    Some(other) if *other != node => {
                        let reason = "the including file has a different one of this name".to_owned();
                        return Err(self.locate(Wrong::new(node.at, format!("{kind}.{name}"), reason)));
                    }
                    _ => drop(target.insert(name, node)),
                }
            }
        }
        Ok(())
    }
}

/// Removes the values that contain variables.
fn drop_variables(node: &mut Node) {
    let is_fixed = |node: &Node| !node.as_text().is_some_and(|text| text.contains('$'));
    match &mut node.value {
        Value::Map(map) => {
            map.retain(|_, node| is_fixed(node));
            map.values_mut().for_each(drop_variables);
        }
        Value::List(list) => {
            list.retain(is_fixed);
            list.iter_mut().for_each(drop_variables);
        }
        _ => {}
    }
}

fn template_error(error: TemplateError, at: At, path: &str) -> Wrong {
    match error {
        TemplateError::Invalid => Wrong::new(at, path, "this is not a valid template")
            .with_hint("write `$$` for a dollar sign, and `${NAME}` for a variable"),
        TemplateError::Required { name, reason } => {
            let reason = if reason.is_empty() { String::new() } else { format!(": {reason}") };
            Wrong::new(at, path, format!("the required variable `{name}` is not set{reason}"))
                .with_hint(format!("set it in the environment or in the file `.env`: `{name}=VALUE`"))
        }
        TemplateError::TooLarge => Wrong::new(at, path, "its variables are nested too deeply"),
    }
}

/// Gives variables of `environment: [NAME]` their values from the variables that the file sees. An included file may
/// see others than the project.
fn resolve_environment(root: &mut Node, environment: &Environment) {
    let services = root.as_map_mut().and_then(|map| map.get_mut("services")).and_then(Node::as_map_mut);
    for service in services.into_iter().flat_map(Map::values_mut) {
        let Some(Value::List(list)) =
            service.as_map_mut().and_then(|map| map.get_mut("environment")).map(|node| &mut node.value)
        else {
            continue;
        };
        for node in list {
            if let Value::Text(text) = &mut node.value
                && let Some(value) = environment.get(text.as_str())
            {
                *text = format!("{text}={value}");
            }
        }
    }
}

/// Reads a text file with a limit. `-` is standard input.
pub(super) fn read_text(path: &Path) -> Result<String, String> {
    use std::io::Read;
    let mut text = String::new();
    let read = if path == Path::new("-") {
        std::io::stdin().take(MAX_FILE + 1).read_to_string(&mut text)
    } else {
        std::fs::File::open(path).and_then(|file| {
            // A FIFO or a device would block or never end.
            if !file.metadata()?.is_file() {
                return Err(std::io::Error::other("it is not a regular file"));
            }
            file.take(MAX_FILE + 1).read_to_string(&mut text)
        })
    };
    read.map_err(|error| error.to_string())?;
    if text.len() as u64 > MAX_FILE {
        return Err(format!("it is longer than {MAX_FILE} bytes"));
    }
    Ok(text)
}

/// Reads `.env` files. `environment` comes before variables that an earlier file sets.
pub(super) fn env_files_values(files: &[PathBuf], environment: &Environment) -> Result<Environment, ComposeError> {
    let mut found = Environment::new();
    for file in files {
        let error = |line: usize, reason: String| ComposeError {
            file: Some(file.clone()),
            line: u32::try_from(line).unwrap_or(u32::MAX),
            key: String::new(),
            reason,
            hint: None,
            notices: Box::default(),
        };
        let text = read_text(file).map_err(|reason| ComposeError {
            hint: (!file.exists()).then(|| "create the file, or correct its path".to_owned()),
            ..error(0, reason)
        })?;
        let lookup = |name: &str| environment.get(name).or_else(|| found.get(name)).cloned();
        let values = dotenv::parse(&text, &lookup).map_err(|wrong| error(wrong.line, wrong.reason))?;
        found.extend(values);
    }
    Ok(found)
}

/// Applies `extends` to the services of one document.
struct Extender<'a> {
    loader: &'a mut Loader,
    file: &'a Path,
    place: Place<'a>,
    resets: &'a [Vec<String>],
    /// The services that are being extended, to find cycles.
    chain: Vec<(PathBuf, String)>,
}

impl Extender<'_> {
    fn all(&mut self, root: &mut Node) -> Result<(), ComposeError> {
        let Some(services) = root.as_map_mut().and_then(|map| map.get_mut("services")).and_then(Node::as_map_mut)
        else {
            return Ok(());
        };
        let names: Vec<String> = services.keys().cloned().collect();
        let (file, directory) = (self.file.to_owned(), self.place.directory.to_owned());
        names.iter().try_for_each(|name| self.one(name, services, &file, &directory))
    }

    /// Extends one service in place, after its base.
    fn one(&mut self, name: &str, services: &mut Map, file: &Path, directory: &Path) -> Result<(), ComposeError> {
        let Some(extends) = services.get(name).and_then(|service| service.get("extends")).cloned() else {
            return Ok(());
        };
        let wrong = |reason: String| Wrong::new(extends.at, format!("services.{name}.extends"), reason);
        let base_name = extends.get("service").unwrap_or(&extends).as_text().unwrap_or_default().to_owned();
        let base_file = extends.get("file").and_then(Node::as_text).map(|file| absolute_path(file, directory));
        let link = (file.to_owned(), name.to_owned());
        if self.chain.contains(&link) || self.chain.len() > 100 {
            return Err(self.loader.locate(wrong(format!("the service `{name}` extends itself"))));
        }
        self.chain.push(link);
        let base = match base_file {
            Some(path) => {
                let parent = path.parent().unwrap_or(Path::new("/")).to_owned();
                let place = Place { directory: &parent, ..self.place };
                let mut root = self.loader.model(std::slice::from_ref(&path), place, Purpose::Base, &[])?;
                let mut empty = Map::new();
                let found = root.as_map_mut().and_then(|map| map.get_mut("services")).and_then(Node::as_map_mut);
                let found = found.unwrap_or(&mut empty);
                if found.contains_key(&base_name) {
                    self.one(&base_name, found, &path, &parent)?;
                }
                found.remove(&base_name)
            }
            None => {
                self.one(&base_name, services, file, directory)?;
                services.get(&base_name).cloned()
            }
        };
        self.chain.pop();
        let Some(mut base) = base else {
            return Err(self.loader.locate(wrong(format!("there is no service `{base_name}`"))));
        };
        self.loader.copies += base.size();
        if self.loader.copies > MAX_COPIES {
            return Err(self.loader.locate(wrong(format!("`extends` copies more than {MAX_COPIES} values"))));
        }
        for path in self.resets {
            if let [first, service, rest @ ..] = &path[..]
                && first == "services"
                && service == name
            {
                remove(&mut base, rest);
            }
        }
        let Some(service) = services.remove(name) else { return Ok(()) };
        let mut merged = if base.is_null() {
            service
        } else {
            merge(base, service, &mut vec!["services".to_owned(), name.to_owned()])
                .map_err(|wrong| self.loader.locate(wrong))?
        };
        if let Some(map) = merged.as_map_mut() {
            map.remove("extends");
        }
        services.insert(name.to_owned(), merged);
        Ok(())
    }
}
