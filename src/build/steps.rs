//! The three instructions that change files: `RUN`, `COPY` (and `ADD`), `WORKDIR`.

use std::collections::VecDeque;
use std::path::PathBuf;
use std::time::Duration;

use super::copy::{Plan, Target, Thing, now};
use super::engine::{Current, Engine};
use super::mount::{self, Mount};
use super::mounted::Mounted;
use super::parse::{Command, Copy, Flag, HereDocument};
use super::run::{self, Heard, HostFile, Run};
use super::state::{PREDEFINED, State};
use super::words::Expander;
use super::{fetch, hostca};
use crate::names::Digest;
use crate::report::Report;
use crate::request::NetworkMode;
use crate::rootfs::users;
use crate::store::Draft;

/// How much of a failed command's output an error repeats.
const LAST_LINES: usize = 12;
/// Names and ids of an image's users: no file that says them is larger.
const USERS: u64 = 16 << 20;
/// Where a here-document that names its interpreter is seen.
const SCRIPT: &str = "/run/gpurun-host/script";

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
            plan.directory(&Target { tree: &merged.0, destination: &path, several: false, owner, mode: None, clamp })?;
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
        let checksum = checksum.as_deref().map(fetch::checksum).transpose()?;
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
        check_sources(copy, &sources, &destination, checksum)?;
        // What a digest names is fetched only where it is not in the cache.
        let pinned = checksum.map(|checksum| (sources[0].clone(), checksum.to_owned()));
        let from = match from {
            None if pinned.is_some() => {
                key.add(checksum.unwrap_or_default());
                None
            }
            None => {
                for source in &sources {
                    things.extend(self.source(copy.add, source)?);
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
            if let Some((url, checksum)) = &pinned {
                things.push(engine.fetch(url, Some(checksum))?);
            }
            if let Some((name, layers)) = &from {
                let merged = engine.tree(layers)?;
                for source in &sources {
                    things.extend(from_tree(&merged, source, name)?);
                }
            }
            let owner = chown.as_deref().map(|chown| engine.owner(below, chown)).transpose()?;
            let merged = engine.tree(below)?;
            let several = things.len() > 1;
            let target = Target { tree: &merged.0, destination: &destination, several, owner, mode, clamp };
            let mut plan = Plan::default();
            if add {
                things = engine.unpack(things, &target, &mut plan)?;
            }
            plan.add(things, &target)?;
            engine.write(plan, draft)
        })
    }

    /// A word of `COPY` or `ADD` that names something of the context, or a URL.
    fn source(&mut self, add: bool, source: &str) -> Result<Vec<Thing>, Report> {
        if add && fetch::is_url(source) {
            return Ok(vec![self.fetch(source, None)?]);
        }
        let context = self.context.as_ref().ok_or_else(no_context)?;
        Ok(context.select(source)?.into_iter().map(Thing::from_context).collect())
    }

    fn fetch(&mut self, url: &str, checksum: Option<&str>) -> Result<Thing, Report> {
        let (signals, output) = (self.signals, &mut *self.output);
        let fetched = fetch::fetch(self.store, url, &mut |pause, error| {
            if pause >= Duration::from_secs(1) {
                output.notice(&format!("{error}: {}; trying again in {} s", error.cause, pause.as_secs()));
            }
            run::pause(signals, pause)
        })?;
        let found = format!("sha256:{}", hex::encode(fetched.digest));
        match checksum {
            Some(wanted) if wanted != found => {
                Err(Report::new(format!("`{url}` has the digest `{found}`, not `{wanted}`")))
            }
            _ => fetch::thing(url, fetched),
        }
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
            let Some((file, digest)) = thing.file(self.context.as_ref())? else {
                rest.push(thing);
                continue;
            };
            let name = String::from_utf8_lossy(&thing.name).into_owned();
            match fetch::unpack(self.store, &file, &digest, &name)? {
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
            let (image_id, hold) = engine.anchor(below)?;
            let run = Run {
                image_id,
                hold,
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
            Heard::Nothing => output.tick(),
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

/// What can be said of a `COPY`'s sources before any is looked at.
fn check_sources(copy: &Copy, sources: &[String], destination: &str, checksum: Option<&str>) -> Result<(), Report> {
    for source in sources.iter().filter(|_| copy.add) {
        if fetch::is_git(source) {
            return Err(Report::new("`ADD` of a git repository is not supported")
                .with_hint("clone it beside the Containerfile, or in a `RUN`"));
        }
        if fetch::is_url(source) {
            fetch::check_name(source, destination)?;
        }
    }
    let one_url = sources.len() == 1 && copy.documents.is_empty() && fetch::is_url(&sources[0]);
    if checksum.is_some() && !one_url {
        return Err(Report::new("`ADD --checksum` is the digest of one URL, and of nothing else"));
    }
    Ok(())
}

fn from_tree(merged: &super::engine::Merged, source: &str, name: &str) -> Result<Vec<Thing>, Report> {
    let place = format!("`{name}`");
    let paths = super::copy::matching(&merged.0, source)?;
    if paths.is_empty() {
        return Err(Report::new(format!("`{source}` is not in {place}")));
    }
    paths.iter().map(|path| Ok(Thing::from_tree(&merged.0, &merged.1, path, &place)?)).collect()
}

pub(super) fn no_context() -> Report {
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
