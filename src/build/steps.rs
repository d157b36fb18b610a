//! The three instructions that change files: `RUN`, `COPY` (and `ADD`), `WORKDIR`.

use std::collections::VecDeque;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::PathBuf;

use super::cache::Key;
use super::copy::{Plan, Target, Thing, now};
use super::engine::{Current, Engine};
use super::mount::{self, Mount, Sharing};
use super::parse::{Command, Copy, Flag, HereDocument};
use super::run::{self, Heard, HostFile, Run};
use super::state::{PREDEFINED, State};
use super::words::Expander;
use super::{fetch, hostca};
use crate::durable::FileLock;
use crate::layer::directory;
use crate::names::Digest;
use crate::report::Report;
use crate::request::{MountRequest, MountSource, NetworkMode};
use crate::rootfs::users;
use crate::store::Draft;

/// How much of a failed command's output an error repeats.
const LAST_LINES: usize = 12;
/// Names and ids of an image's users: no file that says them is larger.
const USERS: u64 = 16 << 20;
/// Where a here-document that names its interpreter is seen.
const SCRIPT: &str = "/run/gpurun-host/script";

/// What a step's mounts need while it runs.
#[derive(Default)]
struct Mounted {
    requests: Vec<MountRequest>,
    files: Vec<HostFile>,
    env: Vec<(String, String)>,
    locks: Vec<FileLock>,
}

impl Engine<'_> {
    pub fn workdir(&mut self, current: &mut Current<'_>, path: &str) -> Result<(), Report> {
        let path = self.expand(&current.state, path)?;
        let path = current.state.path(&path);
        let state = &mut current.state;
        state.document.config.working_dir.clone_from(&path);
        let user = state.document.config.user.clone();
        let mut key = self.key("WORKDIR", &state.document.diff_ids);
        key.add(&path).add(&user);
        let clamp = self.options.clamp;
        self.step(state, &key, &mut |engine, draft, below| {
            let merged = engine.tree(below)?;
            let owner = if user.is_empty() { None } else { Some(engine.owner(below, &user)?) };
            let mut plan = Plan::default();
            plan.directory(&Target { tree: &merged.0, destination: &path, owner, mode: None, clamp })?;
            engine.write(plan, draft)
        })
    }

    pub fn copy(&mut self, current: &mut Current<'_>, copy: &Copy) -> Result<(), Report> {
        let state = &current.state;
        let mut destination = self.expand(state, &copy.destination)?;
        let is_directory = destination.ends_with('/') || destination.ends_with("/.") || destination == ".";
        destination = state.path(&destination);
        if is_directory && !destination.ends_with('/') {
            destination.push('/');
        }
        let flag = |name: &str| -> Result<Option<String>, Report> {
            let flag = copy.flags.iter().rev().find(|flag| flag.name == name);
            flag.map(|flag| self.expand(state, flag.value.as_deref().unwrap_or(""))).transpose()
        };
        let (from, chown, chmod) = (flag("from")?, flag("chown")?, flag("chmod")?);
        let checksum = flag("checksum")?;
        let mode = chmod.as_deref().map(octal).transpose()?;
        let mut sources = Vec::new();
        for source in &copy.sources {
            sources.push(self.expand(state, source)?);
        }
        let diff_ids = state.document.diff_ids.clone();
        let mut key = self.key("COPY", &diff_ids);
        key.add(if copy.add { "ADD" } else { "COPY" }).add(&destination);
        key.add(format!("{chown:?} {mode:?} {sources:?}"));
        let mut things = self.documents(state, &copy.documents)?;
        let from = match from {
            None => {
                for source in &sources {
                    things.extend(self.source(copy.add, source, checksum.as_deref())?);
                }
                None
            }
            // Layers say what is in them: nothing is read before it is known to be needed.
            Some(name) => {
                let layers = self.layers_from(current, &name)?;
                key.add(crate::layer::merge::chain_id(&layers).hex());
                Some((name, layers))
            }
        };
        things.iter().for_each(|thing| thing.add_to(&mut key));
        let mut things = Some(things);
        let (add, clamp) = (copy.add, self.options.clamp);
        self.step(&mut current.state, &key, &mut |engine, draft, below| {
            let mut things = things.take().unwrap_or_default();
            if let Some((name, layers)) = &from {
                let merged = engine.tree(layers)?;
                for source in &sources {
                    things.extend(from_tree(&merged, source, name)?);
                }
            }
            let owner = chown.as_deref().map(|chown| engine.owner(below, chown)).transpose()?;
            let merged = engine.tree(below)?;
            let target = Target { tree: &merged.0, destination: &destination, owner, mode, clamp };
            let mut plan = Plan::default();
            if add {
                things = engine.unpack(things, &target, &mut plan)?;
            }
            plan.add(things, &target)?;
            engine.write(plan, draft)
        })
    }

    /// A word of `COPY` or `ADD` that names something of the context, or a URL.
    fn source(&mut self, add: bool, source: &str, checksum: Option<&str>) -> Result<Vec<Thing>, Report> {
        if add && fetch::is_url(source) {
            let (file, digest) = fetch::fetch(self.store, source)?;
            let found = format!("sha256:{}", hex::encode(digest));
            if let Some(wanted) = checksum
                && wanted != found
            {
                return Err(Report::new(format!("`{source}` has the digest `{found}`, not `{wanted}`")));
            }
            return Ok(vec![fetch::thing(source, file, digest, self.options.clamp.unwrap_or(0))?]);
        }
        if add && (source.starts_with("git@") || source.starts_with("git://")) {
            return Err(Report::new("`ADD` of a git repository is not supported")
                .with_hint("clone it beside the Containerfile, or in a `RUN`"));
        }
        let context = self.context.as_ref().ok_or_else(no_context)?;
        Ok(context.select(source)?.into_iter().map(Thing::from_context).collect())
    }

    /// Here-documents of a `COPY`, as files.
    fn documents(&self, state: &State, documents: &[HereDocument]) -> Result<Vec<Thing>, Report> {
        let variables = state.variables();
        let expander = Expander { escape: self.escape, variables: &variables };
        let mut things = Vec::new();
        for document in documents {
            let mut text = document.content();
            if document.expand {
                text = expander.expand_body(&text).map_err(|error| Report::new(error.to_string()))?;
            }
            things.push(Thing::from_bytes(&document.name, text.into_bytes(), self.options.clamp.unwrap_or_else(now)));
        }
        Ok(things)
    }

    /// Takes the archives among the things apart: what is in them goes into the destination.
    fn unpack(&mut self, things: Vec<Thing>, target: &Target<'_>, plan: &mut Plan) -> Result<Vec<Thing>, Report> {
        let mut rest = Vec::new();
        for thing in things {
            let Some(file) = thing.file(self.context.as_ref())? else {
                rest.push(thing);
                continue;
            };
            let name = String::from_utf8_lossy(&thing.name).into_owned();
            match fetch::unpack(self.store, file, &name)? {
                None => rest.push(thing),
                Some((tree, tar)) => {
                    let sources = std::rc::Rc::new(vec![tar]);
                    let inside = Thing::from_tree(&tree, &sources, "/", &name)?;
                    plan.add(vec![inside], target)?;
                }
            }
        }
        Ok(rest)
    }

    fn write(&mut self, plan: Plan, draft: &mut Draft<'_>) -> Result<Option<Digest>, Report> {
        if plan.is_empty() {
            return Ok(None);
        }
        let out = plan.write(self.context.as_ref(), draft.layer()?)?;
        Ok(Some(draft.seal(out)?))
    }

    /// `user[:group]` in the image so far. `--chown=1000` means the group 1000 too.
    fn owner(&mut self, below: &[Digest], text: &str) -> Result<(u32, u32), Report> {
        if let Ok(id) = text.parse::<u32>() {
            return Ok((id, id));
        }
        let merged = self.tree(below)?;
        let read = |path: &str| {
            let bytes = merged.0.read_small(&merged.1, path.as_bytes(), USERS);
            bytes.map(|bytes| String::from_utf8_lossy(&bytes.unwrap_or_default()).into_owned())
        };
        let failed = |error| Report::new(format!("cannot look up `{text}` in the image")).with_cause(error);
        let (passwd, groups) = (read("/etc/passwd").map_err(failed)?, read("/etc/group").map_err(failed)?);
        let user = users::lookup_in(&passwd, &groups, text)?;
        Ok((user.uid, user.gid))
    }

    pub fn run(
        &mut self,
        current: &mut Current<'_>,
        flags: &[Flag],
        command: &Command,
        documents: &[HereDocument],
    ) -> Result<(), Report> {
        let state = &current.state;
        let (words, script) = words(state, command, documents);
        let mut mounts = Vec::new();
        let mut network = self.options.network;
        for flag in flags {
            let value = self.expand(state, flag.value.as_deref().unwrap_or(""))?;
            match flag.name.as_str() {
                "mount" => mounts.push(
                    mount::parse(flag, &value, &|path| state.path(path))
                        .map_err(|problem| Report::new(problem.to_string()))?,
                ),
                "network" => network = run_network(&value, network)?,
                _ => return Err(Report::new(format!("`RUN --{}` is not supported", flag.name))),
            }
        }
        let mut env: Vec<(String, String)> = state.args.clone().into_iter().collect();
        env.extend(state.environment());
        let mut key = self.key("RUN", &state.document.diff_ids);
        key.add(format!("{words:?}")).add(script.as_deref().unwrap_or(""));
        key.add(format!("{env:?}")).add(&state.document.config.user).add(state.workdir()).add(format!("{network:?}"));
        self.add_mounts_to(current, &mounts, &mut key)?;
        let script =
            script.map(|text| HostFile { target: SCRIPT.into(), bytes: text.into_bytes(), mode: 0o555, owner: (0, 0) });
        let (user, workdir) = (current.state.document.config.user.clone(), PathBuf::from(current.state.workdir()));
        let mut sources = VecDeque::new();
        for mount in &mounts {
            if let Mount::Bind { from: Some(name), .. } | Mount::Cache { from: Some(name), .. } = mount {
                sources.push_back(self.layers_from(current, name)?);
            }
        }
        self.step(&mut current.state, &key, &mut |engine, draft, below| {
            let mut mounted = engine.mounts(&mounts, sources.clone(), draft)?;
            mounted.files.extend(script.clone());
            let mut env = env.clone();
            env.append(&mut mounted.env);
            engine.host_settings(&mut env, &mut mounted)?;
            let run = Run {
                image_id: engine.anchor(below)?,
                words: words.clone(),
                env,
                user: user.clone(),
                workdir: workdir.clone(),
                network,
                limits: engine.options.limits.clone(),
                add_hosts: engine.options.add_hosts.clone(),
                mounts: mounted.requests,
                files: mounted.files,
            };
            engine.execute(run, draft, below)
        })
    }

    /// Runs the container; what it wrote is the layer.
    fn execute(&mut self, run: Run, draft: &mut Draft<'_>, below: &[Digest]) -> Result<Option<Digest>, Report> {
        let mut tail = Tail::default();
        let (root, records, signals) = (&self.options.root, self.records, self.signals);
        let limits = run.limits.clone();
        let output = &mut *self.output;
        let step = run::run(root, records, run, signals, &mut |heard| match heard {
            Heard::Output(bytes) => {
                tail.add(bytes);
                output.log(bytes);
            }
            Heard::Notice(line) => output.notice(line),
        })?;
        let code = step.state.exit_code.unwrap_or(0);
        if code != 0 {
            let report = failure(code, step.state.oom_killed, &limits, &tail);
            return Err(match step.remove() {
                Ok(()) => report,
                Err(later) => Report { afterwards: vec![later.message], ..report },
            });
        }
        let merged = self.tree(below)?;
        let layer = step.layer(draft, &merged.0, self.options.clamp);
        let removed = step.remove();
        let layer = layer?;
        removed?;
        Ok(layer)
    }

    /// What of the mounts the result depends on: contents of the context and of stages; of caches and secrets the names alone.
    fn add_mounts_to(&mut self, current: &Current<'_>, mounts: &[Mount], key: &mut Key) -> Result<(), Report> {
        for mount in mounts {
            key.add(format!("{mount:?}"));
            match mount {
                Mount::Bind { from: Some(name), .. } => {
                    let layers = self.layers_from(current, name)?;
                    key.add(crate::layer::merge::chain_id(&layers).hex());
                }
                Mount::Bind { from: None, source, .. } => {
                    let context = self.context.as_ref().ok_or_else(no_context)?;
                    for source in context.select(source)? {
                        Thing::from_context(source).add_to(key);
                    }
                }
                _ => {}
            }
        }
        Ok(())
    }

    fn mounts(
        &mut self,
        mounts: &[Mount],
        mut sources: VecDeque<Vec<Digest>>,
        draft: &mut Draft<'_>,
    ) -> Result<Mounted, Report> {
        let mut mounted = Mounted::default();
        for mount in mounts {
            match mount {
                Mount::Tmpfs { target, size } => mounted.requests.push(MountRequest {
                    source: MountSource::Tmpfs { size: *size, mode: None, options: vec!["exec".into()] },
                    destination: target.into(),
                    read_only: false,
                }),
                Mount::Secret { id, target, env, mode, owner, required } => {
                    let Some(bytes) = self.options.secrets.get(id) else {
                        if *required {
                            return Err(Report::new(format!("the secret `{id}` was not given"))
                                .with_hint(format!("`gpurun build --secret id={id},src=FILE …`")));
                        }
                        continue;
                    };
                    if let Some(name) = env {
                        let text = String::from_utf8(bytes.clone())
                            .map_err(|_| Report::new(format!("the secret `{id}` is no text, which `env` needs")))?;
                        mounted.env.push((name.clone(), text));
                    }
                    if let Some(target) = target {
                        let (bytes, mode) = (bytes.clone(), *mode);
                        mounted.files.push(HostFile { target: target.into(), bytes, mode, owner: *owner });
                    }
                }
                Mount::Bind { from, source, target, writable } => {
                    let path = match from {
                        Some(name) => {
                            let layers = sources.pop_front().unwrap_or_default();
                            self.draw(&layers, source, name, draft)?
                        }
                        None => self.context_path(source, *writable, draft)?,
                    };
                    mounted.requests.push(bind(path, target, !writable));
                }
                Mount::Cache { id, target, sharing, mode, owner, from, source, read_only } => {
                    let filling = from.as_ref().map(|name| (sources.pop_front().unwrap_or_default(), source, name));
                    let (path, lock) = self.cache_dir(id, *sharing)?;
                    if !path.exists() {
                        if let Some((layers, source, name)) = filling {
                            let drawn = self.draw(&layers, source, name, draft)?;
                            std::fs::rename(&drawn, &path).map_err(|error| cache_failed(&path, error))?;
                        } else {
                            make_cache(&path, *mode, *owner).map_err(|error| cache_failed(&path, error))?;
                        }
                    }
                    mounted.locks.extend(lock);
                    mounted.requests.push(bind(path, target, *read_only));
                }
            }
        }
        Ok(mounted)
    }

    /// The directory of a cache mount, locked as far as its sharing wants it.
    fn cache_dir(&self, id: &str, sharing: Sharing) -> Result<(PathBuf, Option<FileLock>), Report> {
        let path = self.cache.mount(id);
        let failed = |error| cache_failed(&path, error);
        let lock_path = |path: &PathBuf| path.with_extension("lock");
        match sharing {
            Sharing::Shared => Ok((path, None)),
            Sharing::Locked => {
                let lock = FileLock::exclusive(&lock_path(&path)).map_err(failed)?;
                Ok((path, Some(lock)))
            }
            Sharing::Private => {
                for number in 0.. {
                    let path = if number == 0 { path.clone() } else { self.cache.mount(&format!("{id}\0{number}")) };
                    if let Some(lock) = FileLock::try_exclusive(&lock_path(&path)).map_err(failed)? {
                        return Ok((path, Some(lock)));
                    }
                }
                unreachable!("there is always a number that nobody has taken")
            }
        }
    }

    /// A part of a stage or image, as files of this step alone.
    fn draw(&mut self, layers: &[Digest], source: &str, name: &str, draft: &mut Draft<'_>) -> Result<PathBuf, Report> {
        use std::os::fd::AsFd;
        let merged = self.tree(layers)?;
        let missing = || Report::new(format!("`{name}` has no `{source}`"));
        let id = merged.0.resolve(source.as_bytes(), true).ok().and_then(|place| place.inode).ok_or_else(missing)?;
        let scratch = draft.scratch()?;
        let fd = directory::open_root(&scratch)
            .map_err(|error| Report::new(format!("cannot open `{}`", scratch.display())).with_cause(error))?;
        directory::render(&merged.0.below(id), &merged.1, fd.as_fd())?;
        Ok(if merged.0.children(id).is_some() { scratch } else { scratch.join("file") })
    }

    /// Something of the context: itself, read-only, or a copy that may be written to.
    fn context_path(&self, source: &str, writable: bool, draft: &mut Draft<'_>) -> Result<PathBuf, Report> {
        let context = self.context.as_ref().ok_or_else(no_context)?;
        let found = context.select(source)?;
        let first = found.first().and_then(|source| source.found.first());
        let path = first.map(|found| context.path().join(&found.path)).ok_or_else(no_context)?;
        if !writable {
            return Ok(path);
        }
        let copy = draft.scratch()?.join("context");
        crate::rootfs::copy_tree(&path, &copy)
            .map_err(|error| Report::new(format!("cannot copy `{}`", path.display())).with_cause(error))?;
        Ok(copy)
    }

    /// Proxies, and with `--host-ca` certificates and pip's settings: for this process alone.
    fn host_settings(&mut self, env: &mut Vec<(String, String)>, mounted: &mut Mounted) -> Result<(), Report> {
        let mut more: Vec<(String, String)> = Vec::new();
        if self.options.host_ca {
            let (files, variables) = hostca::collect()?;
            mounted.files.extend(files);
            more.extend(variables);
        }
        for name in PREDEFINED {
            more.extend(self.options.args.get(name).map(|value| (name.to_owned(), value.clone())));
        }
        // What the Containerfile says itself wins.
        more.retain(|(name, _)| !env.iter().any(|(other, _)| other == name));
        env.extend(more);
        Ok(())
    }
}

fn from_tree(merged: &super::engine::Merged, source: &str, name: &str) -> Result<Vec<Thing>, Report> {
    let place = format!("`{name}`");
    let paths = super::copy::matching(&merged.0, source)?;
    if paths.is_empty() {
        return Err(Report::new(format!("`{source}` is not in {place}")));
    }
    paths.iter().map(|path| Ok(Thing::from_tree(&merged.0, &merged.1, path, &place)?)).collect()
}

fn bind(path: PathBuf, target: &str, read_only: bool) -> MountRequest {
    let source = MountSource::Bind { path, recursive: false, propagation: None };
    MountRequest { source, destination: target.into(), read_only }
}

fn make_cache(path: &std::path::Path, mode: u32, owner: (u32, u32)) -> std::io::Result<()> {
    // Another build may make it at the same moment.
    std::fs::DirBuilder::new().recursive(true).mode(0o700).create(path)?;
    std::os::unix::fs::chown(path, Some(owner.0), Some(owner.1))?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode))
}

fn cache_failed(path: &std::path::Path, error: std::io::Error) -> Report {
    Report::new(format!("cannot use the cache mount `{}`", path.display())).with_cause(error)
}

fn no_context() -> Report {
    Report::new("there is no build context")
        .with_hint("give the directory that the files are taken from: `gpurun build DIR`")
}

fn octal(text: &str) -> Result<u16, Report> {
    let mode = u16::from_str_radix(text, 8).ok().filter(|mode| *mode <= 0o7777);
    mode.ok_or_else(|| Report::new(format!("`--chmod={text}` is not an octal mode like 755")))
}

fn run_network(value: &str, default: NetworkMode) -> Result<NetworkMode, Report> {
    match value {
        "default" => Ok(default),
        "none" => Ok(NetworkMode::None),
        "host" => Ok(NetworkMode::Host),
        other => Err(Report::new(format!("`RUN --network={other}`: it is default, none or host"))),
    }
}

/// What a `RUN` runs, and the script that it finds in a file.
fn words(state: &State, command: &Command, documents: &[HereDocument]) -> (Vec<String>, Option<String>) {
    let Command::Shell(text) = command else { return (state.words(command), None) };
    let [document] = documents else {
        if documents.is_empty() {
            return (state.words(command), None);
        }
        return (state.words(&Command::Shell(with_documents(text, documents))), None);
    };
    // The here-document alone is the script; beside a command it is the command's input, as in any shell.
    if text.split_whitespace().count() > 1 {
        return (state.words(&Command::Shell(with_documents(text, documents))), None);
    }
    let script = document.content();
    if script.starts_with("#!") {
        (vec![SCRIPT.into()], Some(script))
    } else {
        (state.words(&Command::Shell(script)), None)
    }
}

fn with_documents(text: &str, documents: &[HereDocument]) -> String {
    documents.iter().fold(text.to_owned(), |all, document| format!("{all}\n{}{}", document.text, document.name))
}

/// The last lines of a command's output.
#[derive(Default)]
struct Tail {
    lines: VecDeque<Vec<u8>>,
    open: bool,
}

impl Tail {
    fn add(&mut self, bytes: &[u8]) {
        for piece in bytes.split_inclusive(|byte| *byte == b'\n') {
            match self.lines.back_mut().filter(|_| self.open) {
                Some(line) if line.len() < 4096 => line.extend_from_slice(piece),
                Some(_) => {}
                None => self.lines.push_back(piece.to_vec()),
            }
            self.open = !piece.ends_with(b"\n");
            if self.lines.len() > LAST_LINES {
                self.lines.pop_front();
            }
        }
    }

    fn text(&self) -> String {
        let lines =
            self.lines.iter().map(|line| super::printable(&String::from_utf8_lossy(line)).trim_end().to_owned());
        lines.fold(String::new(), |text, line| format!("{text}\n    | {line}"))
    }
}

fn failure(code: u8, oom: bool, limits: &crate::spec::AskedLimits, tail: &Tail) -> Report {
    let last = tail.text();
    let report = Report::new(format!("the command ended with exit status {code}")).with_exit_code(1);
    let report = if last.is_empty() { report } else { report.with_cause(format!("it said last:{last}")) };
    match (oom, &limits.memory) {
        (true, Some(memory)) => report
            .with_cause("the kernel killed it for want of memory")
            .with_hint(format!("give it more than `--memory {memory}`")),
        (true, None) => report.with_cause("the kernel killed it for want of memory"),
        _ => report,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_tail_keeps_the_last_lines() {
        let mut tail = Tail::default();
        for number in 0..100 {
            tail.add(format!("line {number}\nhalf").as_bytes());
            tail.add(b" and half\n");
        }
        tail.add(b"open");
        let text = tail.text();
        assert_eq!(text.lines().count(), LAST_LINES + 1);
        assert!(text.ends_with("    | line 99\n    | half and half\n    | open"), "{text}");
    }

    #[test]
    fn here_documents_become_scripts_or_input() {
        let state = State::new(crate::image::ImageDocument::scratch());
        let document = |text: &str| HereDocument { name: "EOF".into(), text: text.into(), expand: true, chomp: false };
        let case = |command: &str, text: &str| words(&state, &Command::Shell(command.into()), &[document(text)]);
        assert_eq!(case("<<EOF", "a\nb\n").0, ["/bin/sh", "-c", "a\nb\n"]);
        assert_eq!(case("<<EOF", "#!/bin/x\n"), (vec![SCRIPT.to_owned()], Some("#!/bin/x\n".into())));
        assert_eq!(case("python3 <<EOF", "print(1)\n").0[2], "python3 <<EOF\nprint(1)\nEOF");
    }
}
