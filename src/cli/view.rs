//! A container as docker's commands show it: its command, labels, mounts and networks, from the record and the image.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::rc::Rc;

use super::print;
use crate::image::Config;
use crate::launch;
use crate::record::{Entry, Phase, State, short};
use crate::request::{MountRequest, MountSource, NetworkMode, Payload};
use crate::store::{Image, Store};

/// The images of containers, each read once.
pub(super) struct Images {
    store: Option<Store>,
    known: RefCell<BTreeMap<String, Option<Rc<Image>>>>,
}

impl Images {
    /// A store that cannot be opened has no images. The containers are shown without what only the image knows.
    pub(super) fn new(store: Option<Store>) -> Self {
        Self { store, known: RefCell::default() }
    }

    pub(super) fn of(&self, entry: &Entry) -> Option<Rc<Image>> {
        let id = entry.record.image.to_string();
        let mut known = self.known.borrow_mut();
        let find = || self.store.as_ref()?.image_of(entry.record.image).ok().map(Rc::new);
        known.entry(id.clone()).or_insert_with(find).clone()
    }
}

/// One container.
pub(super) struct View<'a> {
    pub(super) entry: &'a Entry,
    pub(super) state: &'a State,
    pub(super) image: Option<Rc<Image>>,
    root: PathBuf,
}

/// A mount, with docker's words.
pub(super) struct Shown {
    pub(super) kind: &'static str,
    /// The name of a volume.
    pub(super) name: Option<String>,
    pub(super) source: Option<PathBuf>,
    pub(super) destination: PathBuf,
    pub(super) read_only: bool,
    pub(super) propagation: String,
    pub(super) is_anonymous: bool,
}

impl<'a> View<'a> {
    pub(super) fn new(entry: &'a Entry, state: &'a State, images: &Images, root: &Path) -> Self {
        Self { entry, state, image: images.of(entry), root: root.to_owned() }
    }

    pub(super) fn config(&self) -> Config {
        self.image.as_ref().map(|image| image.config.clone()).unwrap_or_default()
    }

    /// The command with its arguments. `None` if only the image, which is gone, knows it.
    pub(super) fn command(&self) -> Option<Vec<String>> {
        let request = &self.entry.record.request;
        let Payload::Command(words) = &request.payload else { return Some(vec!["(jupyter)".into()]) };
        if self.image.is_none() && (words.is_empty() || request.entrypoint.is_none()) {
            return (!words.is_empty()).then(|| words.clone());
        }
        let config = self.config();
        Some(launch::process::command(&config.entrypoint, &config.cmd, request.entrypoint.as_deref(), words))
    }

    /// The labels of the image and of the container, which win.
    pub(super) fn labels(&self) -> BTreeMap<String, String> {
        let mut labels = self.image.as_ref().map(|image| image.config.labels.clone()).unwrap_or_default();
        labels.extend(self.entry.record.request.labels.iter().cloned());
        labels
    }

    /// The variables of the image and of the container, which win, as `KEY=VALUE`.
    pub(super) fn env(&self) -> Vec<String> {
        let mut env = self.config().env;
        for (name, value) in &self.entry.record.request.env {
            env.retain(|line| line.split('=').next() != Some(name));
            env.push(format!("{name}={value}"));
        }
        env
    }

    /// docker's `NetworkMode`: the first network.
    pub(super) fn network(&self) -> String {
        let request = &self.entry.record.request;
        match (&request.network_container, request.network) {
            (Some(id), _) => format!("container:{id}"),
            (None, NetworkMode::Bridge) => self.networks().into_iter().next().unwrap_or_default(),
            (None, mode) => mode.to_string(),
        }
    }

    /// The names of the container's networks.
    pub(super) fn networks(&self) -> Vec<String> {
        let request = &self.entry.record.request;
        match request.network {
            _ if request.network_container.is_some() => Vec::new(),
            NetworkMode::Bridge => request.attachments().into_iter().map(|one| one.network).collect(),
            mode => vec![mode.to_string()],
        }
    }

    pub(super) fn mounts(&self) -> Vec<Shown> {
        let volumes = self.image.as_ref().map(|image| image.config.volumes.clone()).unwrap_or_default();
        let all = launch::listed_mounts(&self.root, self.entry, &volumes).into_iter().enumerate();
        all.map(|(number, (request, source))| shown(&self.entry.record.id, number, &request, source)).collect()
    }

    /// docker's word for the state.
    pub(super) fn status(&self) -> &'static str {
        match self.state.phase {
            _ if self.state.paused => "paused",
            Phase::Created => "created",
            Phase::Running => "running",
            Phase::Restarting => "restarting",
            Phase::Exited => "exited",
        }
    }

    /// Bytes that the container has written, and the size of its image.
    pub(super) fn size(&self) -> (u64, u64) {
        (size_of(&self.entry.dir.join("upper")), self.image.as_ref().map_or(0, |image| image.size))
    }

    /// The ports that the image and the request expose, such as `8888/tcp`.
    pub(super) fn exposed(&self) -> Vec<String> {
        let with_protocol = |port: &String| if port.contains('/') { port.clone() } else { format!("{port}/tcp") };
        let image = self.image.iter().flat_map(|image| image.config.exposed_ports.iter().map(with_protocol));
        let mut all: Vec<String> = image.collect();
        for port in &self.entry.record.request.expose {
            if !all.contains(&port.to_string()) {
                all.push(port.to_string());
            }
        }
        all
    }
}

/// The name of an anonymous volume, which is the container's ID and the position of its directory.
pub(super) fn anonymous_name(id: &str, number: usize) -> String {
    format!("{}.{number}", short(id))
}

fn shown(id: &str, number: usize, request: &MountRequest, source: Option<PathBuf>) -> Shown {
    let (kind, name, propagation) = match &request.source {
        MountSource::Bind { propagation, .. } => {
            ("bind", None, propagation.clone().unwrap_or_else(|| "rprivate".into()))
        }
        MountSource::Volume { name: Some(name), .. } => ("volume", Some(name.clone()), String::new()),
        MountSource::Volume { name: None, .. } => ("volume", Some(anonymous_name(id, number)), String::new()),
        MountSource::VolumeOf { container, number } => {
            ("volume", Some(anonymous_name(container, *number)), String::new())
        }
        MountSource::Image { name, .. } => ("image", Some(name.clone()), String::new()),
        MountSource::Tmpfs { .. } => ("tmpfs", None, String::new()),
    };
    Shown {
        kind,
        name,
        source,
        destination: request.destination.clone(),
        read_only: request.read_only,
        propagation,
        is_anonymous: matches!(request.source, MountSource::Volume { name: None, .. } | MountSource::VolumeOf { .. }),
    }
}

/// The sizes of all files below a directory, in bytes. A file that cannot be read counts as empty.
pub(super) fn size_of(dir: &Path) -> u64 {
    let mut total = 0;
    let mut open = vec![dir.to_owned()];
    while let Some(dir) = open.pop() {
        for entry in std::fs::read_dir(&dir).into_iter().flatten().flatten() {
            let Ok(metadata) = entry.metadata() else { continue };
            if metadata.is_dir() {
                open.push(entry.path());
            } else if metadata.is_file() {
                total += metadata.len();
            }
        }
    }
    total
}

/// Formats a time as docker's tables do: `2026-01-31 12:00:00 +0100 +01:00`.
pub(super) fn moment(nanos: u64) -> String {
    let time = chrono::DateTime::from_timestamp_nanos(i64::try_from(nanos).unwrap_or(0)).with_timezone(&chrono::Local);
    let zone = if time.offset().local_minus_utc() == 0 { "UTC".to_owned() } else { time.format("%z").to_string() };
    format!("{} {zone}", time.format("%Y-%m-%d %H:%M:%S %z"))
}

/// Formats how long ago a time was.
pub(super) fn ago(nanos: u64) -> String {
    format!("{} ago", print::ago(crate::clock::now().saturating_sub(nanos)))
}
