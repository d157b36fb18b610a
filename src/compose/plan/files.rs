//! The files of a service: volumes, secrets, configs, and the build of its image.

use std::path::{Path, PathBuf};

use super::super::error::{ComposeError, Wrong};
use super::super::project::Project;
use super::super::service::{self, FileMount, Volume};
use super::super::value::{Node, Value};
use super::Content;
use super::maker::{Build, Flags, Maker};

impl Project {
    /// Checks that the files and directories of this host exist which a service mounts, and which nothing creates.
    pub(crate) fn check_files(&self, service: &str) -> Result<(), ComposeError> {
        let Some(service_node) = self.services.get(service) else { return Ok(()) };
        let list = |key: &str| service_node.get(key).and_then(Node::as_list).unwrap_or_default();
        let text = |node: &Node, key: &str| node.get(key).and_then(Node::as_text).map(str::to_owned);
        for kind in ["secrets", "configs"] {
            for mount in list(kind) {
                let Some(name) = text(mount, "source") else { continue };
                let Some(file) = self.rest.get(kind).and_then(|all| all.get(&name)?.get("file")) else { continue };
                if let Some(path) = file.as_text().filter(|path| !Path::new(path).exists()) {
                    let wrong = Wrong::new(file.at, format!("{kind}.{name}.file"), format!("`{path}` does not exist"));
                    return Err(self.placed(wrong.with_hint("create the file, or correct `file`")));
                }
            }
        }
        for (index, mount) in list("volumes").iter().enumerate() {
            let is_created = mount.get("bind").and_then(|bind| bind.get("create_host_path"));
            let is_created = is_created.is_some_and(|node| node.value == Value::Bool(true));
            if is_created || text(mount, "type").as_deref() != Some("bind") {
                continue;
            }
            if let Some(path) = text(mount, "source").filter(|path| !Path::new(path).exists()) {
                let key = format!("services.{service}.volumes[{index}]");
                let wrong = Wrong::new(mount.at, key, format!("`{path}` does not exist"));
                let hint = format!("create it with `mkdir -p {path}`, or write `bind: {{create_host_path: true}}`");
                return Err(self.placed(wrong.with_hint(hint)));
            }
        }
        Ok(())
    }
}

impl Maker<'_> {
    /// Returns the fields of `--mount`.
    pub(super) fn volume(
        &self,
        volume: &Volume,
        index: usize,
        create: &mut Vec<PathBuf>,
        external: &mut Vec<String>,
    ) -> Result<String, Wrong> {
        let key = format!("volumes[{index}]");
        let mut fields = vec![format!("type={}", volume.kind)];
        let source = volume.source.clone().unwrap_or_default();
        match volume.kind.as_str() {
            "bind" => {
                let path = PathBuf::from(&source);
                if volume.bind.create_host_path && !path.exists() {
                    create.push(path);
                }
                fields.push(format!("source={source}"));
                fields.extend(volume.bind.propagation.as_ref().map(|mode| format!("bind-propagation={mode}")));
                fields.extend(volume.bind.recursive.as_ref().map(|mode| format!("bind-recursive={mode}")));
            }
            "volume" if source.is_empty() => {}
            "volume" => {
                let resource = self.project.rest.get("volumes").and_then(|volumes| volumes.get(&source));
                let name = resource.and_then(|node| node.get("name")).and_then(Node::as_text).unwrap_or(&source);
                if resource.and_then(|node| node.get("external")).is_some_and(|node| node.value == Value::Bool(true)) {
                    external.push(name.to_owned());
                }
                fields.push(format!("source={name}"));
            }
            "tmpfs" => {
                fields.extend(volume.tmpfs.size.as_ref().map(|size| format!("tmpfs-size={size}")));
                fields.extend(volume.tmpfs.mode.map(|mode| format!("tmpfs-mode={mode:o}")));
            }
            other => return Err(self.wrong(&key, format!("gpurun has no mounts of the type `{other}`"))),
        }
        if volume.target.is_empty() {
            return Err(self.wrong(&key, "the volume has no `target`"));
        }
        fields.push(format!("target={}", volume.target));
        if volume.read_only {
            fields.push("readonly".to_owned());
        }
        Ok(fields.iter().map(|field| csv(field)).collect::<Vec<_>>().join(","))
    }

    /// Secrets and configs: files of the host are mounted, and other contents are written first.
    pub(super) fn files(&self, flags: &mut Flags, contents: &mut Vec<Content>) -> Result<(), Wrong> {
        for (kind, list) in [("secrets", &self.service.secrets), ("configs", &self.service.configs)] {
            for file in list {
                let target = file.target.clone().unwrap_or_else(|| format!("/{}", file.source));
                let target = match (target.starts_with('/'), kind) {
                    (true, _) => target,
                    (false, "secrets") => format!("/run/secrets/{target}"),
                    (false, _) => format!("/{target}"),
                };
                match self.source(kind, &file.source)? {
                    FileSource::Path(path) => {
                        let fields = [format!("source={path}"), format!("target={target}")];
                        let fields: Vec<String> = fields.iter().map(|field| csv(field)).collect();
                        flags.add("--mount", format!("type=bind,{},readonly", fields.join(",")));
                    }
                    FileSource::Text(text) => contents.push(self.content(file, kind, target, text)?),
                }
            }
        }
        Ok(())
    }

    fn content(&self, file: &FileMount, kind: &str, target: String, text: String) -> Result<Content, Wrong> {
        let id = |value: &Option<String>| {
            let parse = |text: &String| text.parse().map_err(|_| self.wrong(kind, format!("`{text}` is not a number")));
            value.as_ref().map(parse).transpose()
        };
        Ok(Content { target, text, uid: id(&file.uid)?, gid: id(&file.gid)?, mode: file.mode.unwrap_or(0o444) & 0o777 })
    }

    /// Returns where a secret or config comes from.
    fn source(&self, kind: &str, name: &str) -> Result<FileSource, Wrong> {
        let resource = self.project.rest.get(kind).and_then(|all| all.get(name));
        let text = |key: &str| resource.and_then(|node| node.get(key)).and_then(Node::as_text);
        if let Some(path) = text("file") {
            return Ok(FileSource::Path(path.to_owned()));
        }
        if let Some(content) = text("content") {
            return Ok(FileSource::Text(content.to_owned()));
        }
        match text("environment") {
            Some(variable) => match self.project.environment.get(variable) {
                Some(value) => Ok(FileSource::Text(value.clone())),
                None => Err(self
                    .wrong(kind, format!("`{name}` takes its content from `{variable}`, which is not set"))
                    .with_hint(format!("set it: `{variable}=VALUE gpurun compose up`"))),
            },
            None => Err(self.wrong(kind, format!("`{name}` has no `file`, `environment` or `content`"))),
        }
    }

    /// Returns how the image is built.
    pub(super) fn build(&self, build: &service::Build) -> Result<Build, Wrong> {
        if build.context.contains("://")
            || build.context.starts_with("git@")
            || build.context.starts_with("github.com/")
        {
            return Err(self
                .wrong("build", format!("`{}` is not a directory of this host", build.context))
                .with_hint("clone the repository first: `git clone URL DIR`, and write `context: DIR`"));
        }
        let mut flags = Flags::default();
        flags.add("--tag", self.project.image(self.name));
        flags.each("--tag", &build.tags);
        let dockerfile = build.dockerfile.as_deref().unwrap_or("Dockerfile");
        // `Dockerfile` is what the builder looks for by itself, after `Containerfile`.
        if build.dockerfile_inline.is_none() {
            let path = Path::new(&build.context).join(dockerfile);
            if dockerfile != "Dockerfile" || path.exists() {
                flags.add("--file", path.to_string_lossy());
            }
        } else {
            flags.add("--file", "-");
        }
        for (key, value) in &build.args {
            flags.add("--build-arg", value.as_ref().map_or_else(|| key.clone(), |value| format!("{key}={value}")));
        }
        flags.each("--label", build.labels.iter().map(|(key, value)| format!("{key}={value}")));
        flags.each("--add-host", build.extra_hosts.iter().map(|line| line.replacen('=', ":", 1)));
        let mut reads = Vec::new();
        for (name, context) in &build.additional_contexts {
            if let Some(service) = context.strip_prefix("service:") {
                if self.project.any_service(service).is_none() {
                    return Err(self.wrong("build", format!("the context `{name}`: there is no service `{service}`")));
                }
                flags.add("--build-context", format!("{name}=docker-image://{}", self.project.image(service)));
                reads.push(service.to_owned());
                continue;
            }
            if context.contains("://") && !context.starts_with("docker-image://") {
                return Err(self
                    .wrong("build", format!("the context `{name}` is neither a directory of this host nor an image"))
                    .with_hint("name an image that exists with `docker-image://IMAGE`"));
            }
            flags.add("--build-context", format!("{name}={context}"));
        }
        flags.each("--ssh", build.ssh.iter().map(|agent| agent.replacen(": ", "=", 1)));
        flags.option("--shm-size", build.shm_size.as_ref());
        flags.each("--ulimit", build.ulimits.iter().map(|(name, limit)| limit.flag(name)));
        flags.option("--network", build.network.as_ref());
        flags.option("--target", build.target.as_ref());
        flags.switch("--no-cache", build.no_cache);
        flags.switch("--pull", build.pull);
        for secret in &build.secrets {
            let source = match self.source("secrets", &secret.source)? {
                FileSource::Path(path) => format!("src={path}"),
                FileSource::Text(_) => {
                    let resource = self.project.rest.get("secrets").and_then(|all| all.get(&secret.source));
                    match resource.and_then(|node| node.get("environment")).and_then(Node::as_text) {
                        Some(variable) => format!("env={variable}"),
                        None => return Err(self.wrong("build", "a build secret needs `file` or `environment`")),
                    }
                }
            };
            let id = secret.target.as_ref().unwrap_or(&secret.source);
            flags.add("--secret", format!("id={id},{source}"));
        }
        flags.0.push(build.context.clone());
        Ok(Build { arguments: flags.0, reads })
    }
}

enum FileSource {
    Path(String),
    Text(String),
}

/// Quotes a field of `--mount` or `--network` as CSV.
pub(super) fn csv(field: &str) -> String {
    if field.contains([',', '"']) { format!("\"{}\"", field.replace('"', "\"\"")) } else { field.to_owned() }
}
