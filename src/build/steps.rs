//! Executes `RUN` and `WORKDIR`. `COPY` and `ADD` are in [`super::copy_step`].

use std::collections::VecDeque;
use std::path::PathBuf;

use super::copy::{Plan, Target};
use super::engine::{Current, Engine};
use super::hostca::HostFile;
use super::mount::{self, Mount};
use super::mounted::Mounted;
use super::parse::{Command, Flag, HereDocument};
use super::run;
use super::run::{Heard, Run};
use super::state::{PREDEFINED, State};
use super::{hostca, network};
use crate::names::Digest;
use crate::report::Report;
use crate::request::{LimitsRequest, NetworkMode, UserSpec};
use crate::rootfs::users::{self, LookupError};
use crate::store::Draft;

/// Number of output lines of a failed command that its error repeats.
const LAST_LINES: usize = 12;
/// The size limit of an image's /etc/passwd and /etc/group, in bytes.
const USERS: u64 = 16 << 20;
/// The path in the container of a here-document that starts with an interpreter line.
const SCRIPT: &str = "/run/gpurun-host/script";

impl Engine<'_> {
    pub(super) fn workdir(&mut self, current: &mut Current<'_>, path: &str) -> Result<(), Report> {
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
            let owner = if user.is_empty() { None } else { Some(engine.workdir_owner(below, &user, &path)?) };
            let mut plan = Plan::default();
            plan.directory(&Target { tree: &merged.0, destination: &path, several: false, owner, mode: None, clamp })?;
            engine.write(plan, draft)
        })
    }

    pub(super) fn write(&mut self, plan: Plan, draft: &mut Draft<'_>) -> Result<Option<Digest>, Report> {
        if plan.is_empty() {
            return Ok(None);
        }
        let out = plan.write(self.context.as_ref(), draft.layer()?)?;
        Ok(Some(draft.seal(out)?))
    }

    /// Looks up `user[:group]` in the image so far. A number alone, as in `--chown=1000`, is also the group.
    pub(super) fn owner(&mut self, below: &[Digest], text: &str) -> Result<(u32, u32), Report> {
        self.find_owner(below, text)?.map_err(|error| with_hint(&error, "--chown=1000:1000", Report::of(&error)))
    }

    /// The owner of a new working directory. As in BuildKit, it is root if the image does not have the user yet: a later
    /// `RUN` may create the user.
    fn workdir_owner(&mut self, below: &[Digest], user: &str, path: &str) -> Result<(u32, u32), Report> {
        match self.find_owner(below, user)? {
            Err(error @ (LookupError::NoUser { .. } | LookupError::NoGroup { .. })) => {
                self.output.notice(&format!("`{path}` belongs to root: {error}"));
                Ok((0, 0))
            }
            found => Ok(found?),
        }
    }

    fn find_owner(&mut self, below: &[Digest], text: &str) -> Result<Result<(u32, u32), LookupError>, Report> {
        if let Ok(id) = text.parse::<u32>() {
            return Ok(Ok((id, id)));
        }
        let merged = self.tree(below)?;
        let read = |path: &str| {
            let bytes = merged.0.read_small(&merged.1, path.as_bytes(), USERS);
            bytes.map(|bytes| String::from_utf8_lossy(&bytes.unwrap_or_default()).into_owned())
        };
        let failed = |error| Report::new(format!("cannot look up `{text}` in the image")).with_cause(error);
        let (passwd, groups) = (read("/etc/passwd").map_err(failed)?, read("/etc/group").map_err(failed)?);
        Ok(users::lookup_in(&passwd, &groups, &UserSpec::of(text)).map(|user| (user.uid, user.gid)))
    }

    /// The mounts and the network that the flags of a `RUN` request.
    pub(super) fn run_flags(&self, state: &State, flags: &[Flag]) -> Result<(Vec<Mount>, Option<NetworkMode>), Report> {
        let mut mounts = Vec::new();
        let mut network = None;
        for flag in flags {
            let value = self.expand(state, flag.value.as_deref().unwrap_or(""))?;
            match flag.name.as_str() {
                "mount" => mounts.push(
                    mount::parse(flag, &value, &|path| state.path(path))
                        .map_err(|problem| Report::new(problem.to_string()))?,
                ),
                "network" => network = Some(value),
                _ => return Err(Report::new(format!("`RUN --{}` is not supported", flag.name))),
            }
        }
        Ok((mounts, network::asked(network.as_deref(), self.options.network)?))
    }

    pub(super) fn run(
        &mut self,
        current: &mut Current<'_>,
        flags: &[Flag],
        command: &Command,
        documents: &[HereDocument],
    ) -> Result<(), Report> {
        let state = &current.state;
        let (words, script) = words(state, command, documents);
        let (mounts, network) = self.run_flags(state, flags)?;
        let mut env: Vec<(String, String)> = state.args.clone().into_iter().collect();
        env.extend(state.environment());
        let mut key = self.key("RUN", &state.document.diff_ids);
        key.add(format!("{words:?}")).add(script.as_deref().unwrap_or(""));
        key.add(format!("{env:?}")).add(&state.document.config.user).add(state.workdir()).add(format!("{network:?}"));
        let shown = self.add_mounts_to(current, &mounts, &mut key)?;
        let script =
            script.map(|text| HostFile { target: SCRIPT.into(), bytes: text.into_bytes(), mode: 0o555, owner: (0, 0) });
        let (user, workdir) = (current.state.document.config.user.clone(), PathBuf::from(current.state.workdir()));
        self.step(&mut current.state, &key, &mut |engine, draft, below| {
            let mut mounted = engine.mounts(&mounts, shown.clone(), draft)?;
            super::point::point("build-mounts");
            mounted.files.extend(script.clone());
            let mut env = env.clone();
            env.append(&mut mounted.env);
            engine.host_settings(&mut env, &mut mounted)?;
            let network = engine.network(network);
            engine.check_reach(network, &env, &mounted.files);
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
                agents: mounted.agents,
                shm_size: engine.options.shm_size,
                ulimits: engine.options.ulimits.clone(),
            };
            engine.execute(run, draft, below)
        })
    }

    /// Runs the container and returns its changes as a layer.
    fn execute(&mut self, run: Run, draft: &mut Draft<'_>, below: &[Digest]) -> Result<Option<Digest>, Report> {
        let mut tail = Tail::default();
        let (root, records, signals) = (&self.options.root, self.records, self.signals);
        let (limits, user) = (run.limits.clone(), run.user.clone());
        let output = &mut *self.output;
        let step = run::run(root, records, run, signals, &mut |heard| match heard {
            Heard::Output(bytes) => {
                tail.add(bytes);
                output.log(bytes);
            }
            Heard::Notice(line) => output.notice(line),
            Heard::Nothing => output.tick(),
        });
        let step = match step {
            Ok(step) => step,
            Err(report) => return Err(self.unknown_user(below, &user, report)),
        };
        let code = step.state.exit_code.unwrap_or(0);
        if code != 0 {
            let mut report = failure(code, step.state.oom_killed, &limits, &tail);
            report.hint = report.hint.or_else(|| self.reach_hint());
            return Err(match step.remove() {
                Ok(()) => report,
                Err(later) => Report { afterwards: vec![later.message], ..report },
            });
        }
        let merged = self.tree(below)?;
        let layer = step.layer(draft, &merged.0, self.options.clamp);
        super::point::point("build-layer");
        let removed = step.remove();
        super::point::point("build-removed");
        let layer = layer?;
        removed?;
        Ok(layer)
    }

    /// Corrects the hint of a step that failed because the image does not have its user: a build has no `--user`.
    fn unknown_user(&mut self, below: &[Digest], user: &str, report: Report) -> Report {
        match self.find_owner(below, user) {
            Ok(Err(error)) if !user.is_empty() => with_hint(&error, "USER 1000:1000", report),
            _ => report,
        }
    }

    /// Adds the proxy arguments and, with `--host-ca`, the host's certificates and pip settings. They apply to this
    /// step only.
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
        // The values of the Containerfile take precedence.
        more.retain(|(name, _)| !env.iter().any(|(other, _)| other == name));
        env.extend(more);
        Ok(())
    }
}

/// Gives an error about a user or group that the image does not have a hint for Containerfiles. `form` is what can be written
/// instead.
fn with_hint(error: &LookupError, form: &str, report: Report) -> Report {
    match error {
        LookupError::NoUser { user } => {
            report.with_hint(format!("create it with `RUN useradd {user}`, or write `{form}`"))
        }
        LookupError::NoGroup { group } => {
            report.with_hint(format!("create it with `RUN groupadd {group}`, or write `{form}`"))
        }
        _ => report,
    }
}

/// The command line of a `RUN`, and the script to mount for it, if there is one.
fn words(state: &State, command: &Command, documents: &[HereDocument]) -> (Vec<String>, Option<String>) {
    let Command::Shell(text) = command else { return (state.words(command), None) };
    let [document] = documents else {
        if documents.is_empty() {
            return (state.words(command), None);
        }
        return (state.words(&Command::Shell(with_documents(text, documents))), None);
    };
    // A here-document without a command is the script. With a command it is the command's input, as in any shell.
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

fn failure(code: u8, oom: bool, limits: &LimitsRequest, tail: &Tail) -> Report {
    let last = tail.text();
    let report = Report::new(format!("the command ended with exit status {code}")).with_exit_code(1);
    let report = if last.is_empty() { report } else { report.with_cause(format!("last output:{last}")) };
    match (oom, &limits.memory) {
        (true, Some(memory)) => report
            .with_cause("the kernel's OOM killer ended it")
            .with_hint(format!("raise the limit `--memory {memory}`")),
        (true, None) => report.with_cause("the kernel's OOM killer ended it"),
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
