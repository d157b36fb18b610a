//! A loaded project: which files it consists of, which services are enabled, and what it looks like.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use super::decode::decode;
use super::dotenv::{self, Environment};
use super::error::{self, ComposeError, Wrong};
use super::load::{Loader, Place, env_files_values, read_text};
use super::normalize::normalize;
use super::schema::{PROJECT, Type};
use super::value::{At, Map, Node, Value};
use super::{check, emit, template};

const FILES: [&str; 4] = ["compose.yaml", "compose.yml", "docker-compose.yml", "docker-compose.yaml"];
const OVERRIDES: [&str; 4] =
    ["compose.override.yml", "compose.override.yaml", "docker-compose.override.yml", "docker-compose.override.yaml"];

/// What the caller says about a project: flags, the environment and the current directory.
#[derive(Debug, Clone, Default)]
pub(crate) struct Source {
    /// `-f`, in order. `-` is standard input.
    pub(crate) files: Vec<PathBuf>,
    /// `--project-directory`
    pub(crate) directory: Option<PathBuf>,
    /// `--env-file`
    pub(crate) env_files: Vec<PathBuf>,
    /// `-p`
    pub(crate) name: Option<String>,
    /// `--profile`
    pub(crate) profiles: Vec<String>,
    /// `config --no-normalize`: add nothing that the files do not say.
    pub(crate) as_written: bool,
    pub(crate) current_directory: PathBuf,
    pub(crate) environment: BTreeMap<String, String>,
}

/// A project: its enabled services and the resources that they use.
#[derive(Debug, Clone)]
pub(crate) struct Project {
    pub(crate) name: String,
    /// The directory that relative paths are below.
    pub(crate) directory: PathBuf,
    pub(crate) files: Vec<PathBuf>,
    /// Messages about the files: unset variables, obsolete keys.
    pub(crate) notices: Vec<String>,
    /// All files that were read. [`At`] points here.
    pub(super) sources: Vec<PathBuf>,
    pub(super) environment: Environment,
    pub(super) services: BTreeMap<String, Node>,
    disabled: BTreeMap<String, Node>,
    /// The resources, and everything else at the top of the files.
    pub(super) rest: Map,
}

/// The files of a project, its directory, its variables and its name.
struct Begun {
    files: Vec<PathBuf>,
    directory: PathBuf,
    environment: Environment,
    name: String,
}

static ROOT: Type = Type::Object(&PROJECT);

fn begin(source: &Source) -> Result<Begun, ComposeError> {
    let (files, directory, mut environment) = find(source)?;
    if let Some(missing) = files.iter().find(|file| file.as_os_str() != "-" && !file.exists()) {
        let hint = "check the path after `-f`, or the variable COMPOSE_FILE";
        return Err(whole(format!("the compose file `{}` does not exist", missing.display())).hinted(hint));
    }
    let (name, fixed) = early_name(source, &environment, &directory)?;
    environment.entry("COMPOSE_PROJECT_NAME".to_owned()).or_insert_with(|| name.clone());
    let named_by_file = if fixed { None } else { name_in_files(&files, &environment) };
    let name = named_by_file.unwrap_or(name);
    if name.is_empty() {
        return Err(whole("the project has no name").hinted("give it one with `-p NAME`"));
    }
    environment.insert("COMPOSE_PROJECT_NAME".to_owned(), name.clone());
    Ok(Begun { files, directory, environment, name })
}

/// Reads and merges the files of a project.
fn tree(loader: &mut Loader, begun: &Begun, raw: bool, as_written: bool) -> Result<Node, ComposeError> {
    let place = Place { directory: &begun.directory, environment: &begun.environment, raw };
    let mut root = loader.project(&begun.files, place)?;
    let Some(map) = root.as_map_mut().filter(|map| !map.is_empty()) else {
        return Err(ComposeError { file: begun.files.first().cloned(), ..whole("the file is empty") });
    };
    let defines_default = map.get("networks").and_then(|networks| networks.get("default")).is_some();
    if !as_written {
        normalize(map, &begun.name, (!raw).then_some(&begun.environment));
    }
    // Other unused resources stay in a tree with variables, and are dropped later from one without.
    if raw && !defines_default && !uses_default(map) {
        map.get_mut("networks").and_then(Node::as_map_mut).map(|networks| networks.remove("default"));
    }
    check::required(&root, &ROOT, "").map_err(|wrong| loader.locate(wrong))?;
    Ok(root)
}

/// Whether a service is on the default network.
fn uses_default(root: &Map) -> bool {
    let services = root.get("services").and_then(Node::as_map).into_iter().flat_map(Map::values);
    services
        .into_iter()
        .any(|service| service.get("networks").is_some_and(|networks| networks.get("default").is_some()))
}

/// Loads a project. If `selected` names services, only these and their dependencies are enabled; that also enables
/// their profiles. `dependencies` is false for `--no-deps`.
pub(crate) fn load(source: &Source, selected: &[String], dependencies: bool) -> Result<Project, ComposeError> {
    let mut loader = Loader::default();
    let project = load_with(&mut loader, source, selected, dependencies);
    project.map_err(|error| ComposeError { notices: loader.notices.into(), ..error })
}

fn load_with(
    loader: &mut Loader,
    source: &Source,
    selected: &[String],
    dependencies: bool,
) -> Result<Project, ComposeError> {
    let begun = begin(source)?;
    let root = tree(loader, &begun, false, source.as_written)?;
    let Begun { files, directory, environment, name } = begun;
    let decoded = decode(root, &ROOT, "", true).map_err(|wrong| loader.locate(wrong))?;
    let Some(Node { value: Value::Map(mut rest), .. }) = decoded else { return Err(whole("there are no services")) };
    rest.remove("name");
    let services = match rest.remove("services").map(|node| node.value) {
        Some(Value::Map(services)) => services,
        _ => Map::new(),
    };
    let mut project = Project {
        name,
        directory,
        files,
        notices: Vec::new(),
        sources: Vec::new(),
        environment,
        services,
        disabled: Map::new(),
        rest,
    };
    let profiles = profiles(source, &project.environment);
    project.enable(&profiles);
    project.enable_selected(selected, &profiles).map_err(|wrong| loader.locate(wrong))?;
    project.check().map_err(|wrong| loader.locate(wrong))?;
    project.resolve_env_files(loader)?;
    project.select(selected, dependencies).map_err(|wrong| loader.locate(wrong))?;
    project.drop_unused();
    project.notices.clone_from(&loader.notices);
    project.sources.clone_from(&loader.files);
    Ok(project)
}

/// Loads the tree of a project without replacing its variables. `selected` names services, or none for all. The second
/// value are the messages about the files.
pub(super) fn raw_tree(source: &Source, selected: &[String]) -> Result<(Node, Vec<String>), ComposeError> {
    let begun = begin(source)?;
    let mut loader = Loader::default();
    let mut root = tree(&mut loader, &begun, true, false)?;
    if let Some(map) = root.as_map_mut() {
        map.insert("name".to_owned(), Node::text(&*begun.name, At::default()));
        if let Some(services) = map.get_mut("services").and_then(Node::as_map_mut)
            && !selected.is_empty()
        {
            if let Some(missing) = selected.iter().find(|name| !services.contains_key(*name)) {
                return Err(whole(format!("there is no service `{missing}`")));
            }
            services.retain(|name, _| selected.contains(name));
        }
    }
    Ok((root, loader.notices))
}

impl Source {
    /// Returns the name of a project without reading its files, if the caller has set it.
    pub(crate) fn fixed_name(&self) -> Result<Option<String>, ComposeError> {
        chosen_name(self, &self.environment)
    }
}

fn whole(reason: impl Into<String>) -> ComposeError {
    ComposeError { file: None, line: 0, key: String::new(), reason: reason.into(), hint: None, notices: Box::default() }
}

impl ComposeError {
    fn hinted(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }
}

/// Finds the files, the directory and the variables of a project. `.env` may itself set COMPOSE_FILE.
fn find(source: &Source) -> Result<(Vec<PathBuf>, PathBuf, Environment), ComposeError> {
    let mut environment = source.environment.clone();
    let absolute = |path: &PathBuf| {
        if path == Path::new("-") {
            path.clone()
        } else {
            super::canonical::absolute_path(&path.to_string_lossy(), &source.current_directory)
        }
    };
    let files = |environment: &Environment| -> Vec<PathBuf> {
        if !source.files.is_empty() {
            return source.files.iter().map(absolute).collect();
        }
        if let Some(list) = environment.get("COMPOSE_FILE").filter(|list| !list.is_empty()) {
            let separator = environment.get("COMPOSE_PATH_SEPARATOR").filter(|text| !text.is_empty());
            let separator = separator.map_or(":", String::as_str);
            return list.split(separator).map(|path| absolute(&path.into())).collect();
        }
        default_files(source.directory.as_ref().map_or(&source.current_directory, |directory| directory))
    };
    let directory = |files: &[PathBuf]| match (&source.directory, files.iter().find(|path| *path != Path::new("-"))) {
        (Some(directory), _) => absolute(directory),
        (None, Some(file)) => file.parent().unwrap_or(Path::new("/")).to_owned(),
        (None, None) => source.current_directory.clone(),
    };
    let first = directory(&files(&environment));
    let disabled = environment
        .get("COMPOSE_DISABLE_ENV_FILE")
        .is_some_and(|text| ["1", "t", "T", "TRUE", "true", "True"].contains(&text.as_str()));
    let env_files: Vec<PathBuf> = match (&source.env_files[..], environment.get("COMPOSE_ENV_FILES")) {
        ([], Some(list)) if !list.is_empty() => list.split(',').map(|path| absolute(&path.into())).collect(),
        ([], _) if disabled => Vec::new(),
        ([], _) => Some(first.join(".env")).filter(|path| path.is_file()).into_iter().collect(),
        (files, _) => files.iter().map(absolute).collect(),
    };
    for (name, value) in env_files_values(&env_files, &environment)? {
        environment.entry(name).or_insert(value);
    }
    let files = files(&environment);
    if files.is_empty() {
        let at = source.current_directory.display();
        return Err(whole(format!("there is none in `{at}` or above"))
            .hinted("name it with `-f FILE`, or write a file `compose.yaml`"));
    }
    let directory = directory(&files);
    Ok((files, directory, environment))
}

/// Searches the four default names in a directory and those above it.
fn default_files(from: &Path) -> Vec<PathBuf> {
    for directory in from.ancestors() {
        let present = |names: &[&str]| names.iter().map(|name| directory.join(name)).find(|path| path.exists());
        if let Some(file) = present(&FILES) {
            return std::iter::once(file).chain(present(&OVERRIDES)).collect();
        }
    }
    Vec::new()
}

/// Returns a name with what docker allows in it: lower-case letters, digits, `-` and `_`.
fn normal_name(text: &str) -> String {
    let good = |c: &char| c.is_ascii_lowercase() || c.is_ascii_digit() || "_-".contains(*c);
    let name: String = text.to_lowercase().chars().filter(good).collect();
    name.trim_start_matches(['_', '-']).to_owned()
}

/// Returns the project's name as the caller gives it. It becomes part of paths, so it is checked.
fn chosen_name(source: &Source, environment: &Environment) -> Result<Option<String>, ComposeError> {
    let from_environment = || environment.get("COMPOSE_PROJECT_NAME").cloned();
    match source.name.clone().or_else(from_environment).filter(|name| !name.is_empty()) {
        Some(name) if normal_name(&name) != name => {
            let normal = normal_name(&name);
            let example = if normal.is_empty() { String::new() } else { format!(": `-p {normal}`") };
            Err(whole(format!("`{name}` is not a project name"))
                .hinted(format!("use lower-case letters, digits, `-` and `_`{example}")))
        }
        name => Ok(name),
    }
}

/// Returns the project's name as the caller or the directory gives it, and whether it is the caller's.
fn early_name(source: &Source, environment: &Environment, directory: &Path) -> Result<(String, bool), ComposeError> {
    match chosen_name(source, environment)? {
        Some(name) => Ok((name, true)),
        None => {
            let base = directory.file_name().unwrap_or_default().to_string_lossy().into_owned();
            Ok((normal_name(&base), false))
        }
    }
}

/// Returns the `name` of the last file that has one. A file that cannot be read is reported later.
fn name_in_files(files: &[PathBuf], environment: &Environment) -> Option<String> {
    let mut found = None;
    for file in files.iter().filter(|file| *file != Path::new("-")) {
        let Ok(documents) = read_text(file).map_err(drop).and_then(|text| super::yaml::parse(&text, 0).map_err(drop))
        else {
            continue;
        };
        for document in documents {
            let name = document.root.get("name").and_then(Node::as_text).filter(|name| !name.is_empty());
            found = name.map(str::to_owned).or(found);
        }
    }
    let get = |name: &str| environment.get(name).cloned();
    let mut lookup = template::Lookup { get: &get, missing: Vec::new() };
    let name = template::substitute(&found?, &mut lookup).ok()?;
    Some(normal_name(&name)).filter(|name| !name.is_empty())
}

fn profiles(source: &Source, environment: &Environment) -> Vec<String> {
    if !source.profiles.is_empty() {
        return source.profiles.clone();
    }
    let list = environment.get("COMPOSE_PROFILES").map(String::as_str).unwrap_or_default();
    list.split([',', '\n']).map(|name| name.trim().to_owned()).filter(|name| !name.is_empty()).collect()
}

/// Returns the resources that a service uses, each with its kind.
fn resources_of(service: &Node) -> Vec<(&'static str, String)> {
    let networks = service.get("networks").and_then(Node::as_map).into_iter().flatten();
    let mut used: Vec<(&'static str, String)> = networks.map(|(name, _)| ("networks", name.clone())).collect();
    let build = service.get("build").and_then(|build| build.get("secrets"));
    let lists = [
        ("volumes", service.get("volumes")),
        ("secrets", service.get("secrets")),
        ("secrets", build),
        ("configs", service.get("configs")),
    ];
    for (kind, list) in lists {
        for item in list.and_then(Node::as_list).unwrap_or_default() {
            let volume = kind != "volumes" || item.get("type").and_then(Node::as_text) == Some("volume");
            if volume && let Some(source) = item.get("source").and_then(Node::as_text) {
                used.push((kind, source.to_owned()));
            }
        }
    }
    used
}

fn texts<'a>(node: &'a Node, key: &str) -> Vec<&'a str> {
    node.get(key).and_then(Node::as_list).unwrap_or_default().iter().filter_map(Node::as_text).collect()
}

impl Project {
    /// Whether `up` shows the output of a service: its `attach` says so, or it says nothing.
    pub(crate) fn attaches(&self, service: &str) -> bool {
        let attach = self.services.get(service).and_then(|service| service.get("attach"));
        attach.is_none_or(|node| node.value != Value::Bool(false))
    }

    /// Disables the services that have profiles, none of which is active.
    fn enable(&mut self, profiles: &[String]) {
        let all: Vec<(String, Node)> =
            std::mem::take(&mut self.services).into_iter().chain(std::mem::take(&mut self.disabled)).collect();
        for (name, service) in all {
            let own = texts(&service, "profiles");
            let active = |profile: &String| profile == "*" || own.contains(&profile.as_str());
            let target =
                if own.is_empty() || profiles.iter().any(active) { &mut self.services } else { &mut self.disabled };
            target.insert(name, service);
        }
    }

    /// Enables the profiles of the services that the caller names.
    fn enable_selected(&mut self, selected: &[String], profiles: &[String]) -> Result<(), Wrong> {
        let mut profiles = profiles.to_vec();
        for name in selected {
            if let Some(service) = self.disabled.get(name) {
                profiles.extend(texts(service, "profiles").into_iter().map(str::to_owned));
            } else if !self.services.contains_key(name) {
                return Err(self.no_service(name));
            }
        }
        self.enable(&profiles);
        Ok(())
    }

    fn no_service(&self, name: &str) -> Wrong {
        let all: Vec<&str> = self.services.keys().chain(self.disabled.keys()).map(String::as_str).collect();
        Wrong::new(At::default(), "", format!("there is no service `{name}`"))
            .with_hint(format!("the services are: {}", all.join(", ")))
    }

    /// Checks what one key alone cannot show.
    fn check(&self) -> Result<(), Wrong> {
        let mut names: BTreeMap<&str, &str> = BTreeMap::new();
        for (name, service) in &self.services {
            let path = format!("services.{name}");
            let wrong = |key: &str, reason: String| {
                let at = service.get(key).map_or(service.at, |node| node.at);
                Err(Wrong::new(at, error::join(&path, key), reason))
            };
            let text = |key: &str| service.get(key).and_then(Node::as_text);
            let build = service.get("build");
            if build.is_none() && text("image").is_none() {
                return Err(Wrong::new(service.at, &path, "the service has neither `image` nor `build`"));
            }
            if build.is_some_and(|build| build.get("dockerfile").is_some() && build.get("dockerfile_inline").is_some())
            {
                return wrong("build", "`dockerfile` and `dockerfile_inline` exclude each other".into());
            }
            if text("network_mode").is_some() && service.get("networks").is_some() {
                return wrong("network_mode", "`network_mode` and `networks` exclude each other".into());
            }
            if let Some(first) = service.get("healthcheck").and_then(|health| texts(health, "test").first().copied())
                && !["CMD", "CMD-SHELL", "NONE"].contains(&first)
            {
                return wrong("healthcheck", "`test` must begin with CMD, CMD-SHELL or NONE".into());
            }
            if let Some(container) = text("container_name") {
                if let Some(other) = names.insert(container, name) {
                    return wrong("container_name", format!("the service `{other}` has the same container name"));
                }
                if self.scale(name) > 1 {
                    return wrong("container_name", "a service with a container name has one container only".into());
                }
            }
            self.check_references(name, service)?;
        }
        self.check_cycles()
    }

    /// Checks that the services and resources exist that a service names.
    fn check_references(&self, name: &str, service: &Node) -> Result<(), Wrong> {
        let path = format!("services.{name}");
        let missing = |at: At, key: &str, what: &str, name: &str| {
            Err(Wrong::new(at, format!("{path}.{key}"), format!("there is no {what} `{name}`")))
        };
        let resource = |kind: &str, name: &str| self.rest.get(kind).is_some_and(|map| map.get(name).is_some());
        for (network, node) in service.get("networks").and_then(Node::as_map).into_iter().flatten() {
            if !resource("networks", network) {
                return missing(node.at, "networks", "network", network);
            }
        }
        for (other, dependency) in service.get("depends_on").and_then(Node::as_map).into_iter().flatten() {
            let required = dependency.get("required").is_none_or(|node| node.value == Value::Bool(true));
            let known = self.services.contains_key(other);
            if !known && self.disabled.contains_key(other) && required {
                let reason = format!("the service `{other}` is not enabled: its profiles are not active");
                return Err(Wrong::new(dependency.at, format!("{path}.depends_on"), reason));
            }
            if !known && (required || !self.disabled.contains_key(other)) {
                return missing(dependency.at, "depends_on", "service", other);
            }
        }
        for volume in service.get("volumes").and_then(Node::as_list).unwrap_or_default() {
            let source = volume.get("source").and_then(Node::as_text);
            if volume.get("type").and_then(Node::as_text) == Some("volume")
                && let Some(source) = source
                && !resource("volumes", source)
            {
                return missing(volume.at, "volumes", "volume", source).map_err(|wrong: Wrong| {
                    wrong.with_hint(format!("add it to the top-level `volumes`, or write `./{source}` for a directory"))
                });
            }
        }
        for kind in ["secrets", "configs"] {
            let own = service.get(kind).and_then(Node::as_list).unwrap_or_default();
            let build = service.get("build").and_then(|build| build.get(kind)).and_then(Node::as_list);
            for node in own.iter().chain(build.unwrap_or_default()) {
                let source = node.get("source").and_then(Node::as_text).unwrap_or_default();
                if !resource(kind, source) {
                    return missing(node.at, kind, kind.trim_end_matches('s'), source);
                }
            }
        }
        Ok(())
    }

    fn check_cycles(&self) -> Result<(), Wrong> {
        // Remove services without open dependencies until none is left.
        let mut open: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
        for (name, service) in &self.services {
            let on = service.get("depends_on").and_then(Node::as_map).into_iter().flatten().map(|(on, _)| on.as_str());
            open.insert(name, on.filter(|on| self.services.contains_key(*on)).collect());
        }
        loop {
            let free: Vec<&str> = open.iter().filter(|(_, on)| on.is_empty()).map(|(name, _)| *name).collect();
            if free.is_empty() {
                break;
            }
            for name in free {
                open.remove(name);
                open.values_mut().for_each(|on| on.retain(|other| *other != name));
            }
        }
        match open.keys().next() {
            None => Ok(()),
            Some(name) => {
                let all: Vec<&str> = open.keys().copied().collect();
                let at = self.services.get(*name).map_or_else(At::default, |node| node.at);
                let reason = format!("services depend on each other in a circle: {}", all.join(", "));
                Err(Wrong::new(at, format!("services.{name}.depends_on"), reason)
                    .with_hint("remove one of the dependencies from its `depends_on`"))
            }
        }
    }

    /// Adds the variables of `env_file` to the environment of each enabled service.
    fn resolve_env_files(&mut self, loader: &Loader) -> Result<(), ComposeError> {
        for (name, service) in &mut self.services {
            let Some(map) = service.as_map_mut() else { continue };
            let Some(Node { value: Value::List(files), at }) = map.remove("env_file") else { continue };
            let mut found = Environment::new();
            for file in &files {
                let path = PathBuf::from(file.get("path").and_then(Node::as_text).unwrap_or_default());
                let required = file.get("required").is_none_or(|node| node.value == Value::Bool(true));
                if !required && !path.exists() {
                    continue;
                }
                let wrong = |reason: String| {
                    let wrong = Wrong::new(file.at, format!("services.{name}.env_file"), reason);
                    loader.locate(wrong)
                };
                let text = read_text(&path).map_err(|reason| {
                    wrong(format!("cannot read `{}`: {reason}", path.display()))
                        .hinted("create the file, or write `required: false` beside its `path`")
                })?;
                let lookup = |name: &str| found.get(name).or_else(|| self.environment.get(name)).cloned();
                let values = dotenv::parse(&text, &lookup)
                    .map_err(|error| wrong(format!("`{}`, line {}: {}", path.display(), error.line, error.reason)))?;
                found.extend(values);
            }
            let own = map.entry("environment".to_owned()).or_insert_with(|| Node::map(Map::new(), at));
            if let Some(own) = own.as_map_mut() {
                for (key, value) in found {
                    own.entry(key).or_insert_with(|| Node::text(value, at));
                }
            }
            if map.get("environment").and_then(Node::as_map).is_some_and(Map::is_empty) {
                map.remove("environment");
            }
        }
        Ok(())
    }

    /// Restricts the project to the named services and what they depend on.
    fn select(&mut self, names: &[String], dependencies: bool) -> Result<(), Wrong> {
        if names.is_empty() {
            return Ok(());
        }
        let mut wanted: BTreeSet<String> = BTreeSet::new();
        let mut todo: Vec<String> = names.to_vec();
        while let Some(name) = todo.pop() {
            let Some(service) = self.services.get(&name) else {
                // A dependency that is not required may be disabled.
                if names.contains(&name) { return Err(self.no_service(&name)) } else { continue }
            };
            if wanted.insert(name) && dependencies {
                let on = service.get("depends_on").and_then(Node::as_map).into_iter().flatten();
                todo.extend(on.map(|(on, _)| on.clone()));
            }
        }
        let all = std::mem::take(&mut self.services);
        for (name, mut service) in all {
            if !wanted.contains(&name) {
                self.disabled.insert(name, service);
                continue;
            }
            if let Some(map) = service.as_map_mut()
                && let Some(on) = map.get_mut("depends_on").and_then(Node::as_map_mut)
            {
                on.retain(|name, _| wanted.contains(name));
                if on.is_empty() {
                    map.remove("depends_on");
                }
            }
            self.services.insert(name, service);
        }
        Ok(())
    }

    /// Removes the resources that no enabled service uses.
    fn drop_unused(&mut self) {
        let used: BTreeSet<(&'static str, String)> = self.services.values().flat_map(resources_of).collect();
        for kind in ["networks", "volumes", "secrets", "configs"] {
            let Some(map) = self.rest.get_mut(kind).and_then(Node::as_map_mut) else { continue };
            map.retain(|name, _| used.contains(&(kind, name.clone())));
            if map.is_empty() {
                self.rest.remove(kind);
            }
        }
    }

    /// Returns how many containers a service has.
    pub(crate) fn scale(&self, service: &str) -> i64 {
        let Some(service) = self.services.get(service) else { return 0 };
        let number = |node: Option<&Node>| match node.map(|node| &node.value) {
            Some(Value::Int(number)) => Some(*number),
            _ => None,
        };
        let replicas = service.get("deploy").and_then(|deploy| deploy.get("replicas"));
        number(service.get("scale")).or_else(|| number(replicas)).unwrap_or(1)
    }

    fn tree(&self) -> Node {
        let mut map = self.rest.clone();
        let at = At::default();
        map.insert("name".to_owned(), Node::text(self.name.clone(), at));
        map.insert("services".to_owned(), Node::map(self.services.clone(), at));
        Node::map(map, at)
    }

    /// Returns the project as `docker-compose config` prints it.
    pub(crate) fn to_yaml(&self) -> String {
        emit::yaml(&self.tree())
    }

    pub(crate) fn to_json(&self) -> String {
        emit::json(&self.tree())
    }

    /// Returns the names of the enabled services.
    pub(crate) fn service_names(&self) -> impl Iterator<Item = &str> {
        self.services.keys().map(String::as_str)
    }

    /// Returns the names of all services, enabled or not.
    pub(crate) fn all_service_names(&self) -> Vec<String> {
        self.every_service().map(|(name, _)| name.to_owned()).collect()
    }

    /// Returns all services, enabled or not.
    pub(super) fn every_service(&self) -> impl Iterator<Item = (&str, &Node)> {
        self.services.iter().chain(&self.disabled).map(|(name, node)| (name.as_str(), node))
    }

    /// Returns a service, enabled or not.
    pub(super) fn any_service(&self, name: &str) -> Option<&Node> {
        self.services.get(name).or_else(|| self.disabled.get(name))
    }

    /// Returns whether a service names its image.
    pub(crate) fn has_image(&self, service: &str) -> bool {
        self.services.get(service).is_some_and(|node| node.get("image").is_some())
    }

    pub(crate) fn volume_names(&self) -> Vec<String> {
        self.rest.get("volumes").and_then(Node::as_map).map(|map| map.keys().cloned().collect()).unwrap_or_default()
    }

    /// Returns the profiles of all services, enabled or not.
    pub(crate) fn profiles(&self) -> BTreeSet<String> {
        let all = self.services.values().chain(self.disabled.values());
        all.flat_map(|service| texts(service, "profiles")).map(str::to_owned).collect()
    }

    /// Returns the image of a service. A service that is built without a name for its image has `PROJECT-SERVICE`.
    pub(crate) fn image(&self, service: &str) -> String {
        let own = self.any_service(service).and_then(|node| node.get("image")).and_then(Node::as_text);
        own.map_or_else(|| format!("{}-{service}", self.name), str::to_owned)
    }

    /// Returns the hash of what a service's containers are made from. Equal services have equal hashes, whatever the
    /// order of their keys in the files and whichever services a command names. What `up` itself does with a service
    /// does not count: its build, its number of containers, the services that it waits for.
    pub(crate) fn hash(&self, service: &str) -> String {
        use sha2::Digest;
        let mut node = self.services.get(service).cloned().unwrap_or_else(|| Node::map(Map::new(), At::default()));
        if let Some(map) = node.as_map_mut() {
            for key in ["build", "pull_policy", "scale", "depends_on", "profiles", "develop", "attach"] {
                map.remove(key);
            }
            if let Some(deploy) = map.get_mut("deploy").and_then(Node::as_map_mut) {
                deploy.remove("replicas");
            }
        }
        let mut text = emit::service_json(&node);
        // Where the resources come from. The contents of files do not count, and nor do the values of secrets.
        for (kind, name) in resources_of(&node) {
            let resource = self.rest.get(kind).and_then(|all| all.get(&name));
            for key in ["name", "file", "environment", "content"] {
                let value = resource.and_then(|node| node.get(key)).and_then(Node::as_text);
                text.extend(value.map(|value| format!("\n{kind}.{name}.{key}={value}")));
            }
        }
        text.extend(self.links_to(service).iter().map(|(alias, _)| format!("\nalias={alias}")));
        hex::encode(sha2::Sha256::digest(text))
    }
}
