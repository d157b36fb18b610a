//! Applies the instructions that change only the image's config. Pure.

use serde_json::{Value, json};

use super::parse::{Command, Flag, Instruction, Problem};
use super::words::{Expander, Variables, WordError};
use crate::image::ImageDocument;
use crate::request::parse_signal;
use crate::units::parse_duration;

/// The default shell, until `SHELL` replaces it. docker uses the same one.
const SHELL: [&str; 2] = ["/bin/sh", "-c"];
/// Build arguments that need no `ARG`, and that are never stored in the image, its history or a cache key. docker has
/// the same list.
pub(crate) const PREDEFINED: [&str; 10] = [
    "HTTP_PROXY",
    "http_proxy",
    "HTTPS_PROXY",
    "https_proxy",
    "FTP_PROXY",
    "ftp_proxy",
    "NO_PROXY",
    "no_proxy",
    "ALL_PROXY",
    "all_proxy",
];

/// The state of a stage after some of its instructions.
#[derive(Debug, Clone)]
pub(super) struct State {
    pub document: ImageDocument,
    /// The arguments that `ARG` has declared in this stage.
    pub args: Variables,
    /// This stage has a `CMD` of its own, so `ENTRYPOINT` must not clear it.
    own_command: bool,
}

impl State {
    #[must_use]
    pub(super) fn new(document: ImageDocument) -> Self {
        Self { document, args: Variables::new(), own_command: false }
    }

    /// The values of all variables. The environment overrides the arguments.
    #[must_use]
    pub(super) fn variables(&self) -> Variables {
        let mut all = self.args.clone();
        all.extend(self.environment());
        all
    }

    /// The environment of the image.
    #[must_use]
    pub(super) fn environment(&self) -> Variables {
        let pairs = self.document.config.env.iter().filter_map(|entry| entry.split_once('='));
        pairs.map(|(name, value)| (name.to_owned(), value.to_owned())).collect()
    }

    /// The command line of a command: the words themselves, or the shell with the text.
    #[must_use]
    pub(super) fn words(&self, command: &Command) -> Vec<String> {
        match command {
            Command::Exec(words) => words.clone(),
            Command::Shell(text) => {
                let shell = &self.document.config.shell;
                let mut words = if shell.is_empty() { SHELL.map(str::to_owned).to_vec() } else { shell.clone() };
                words.push(text.clone());
                words
            }
        }
    }

    /// The working directory as an absolute path.
    #[must_use]
    pub(super) fn workdir(&self) -> String {
        absolute("/", &self.document.config.working_dir)
    }

    /// Resolves a path relative to the working directory.
    #[must_use]
    pub(super) fn path(&self, path: &str) -> String {
        absolute(&self.workdir(), path)
    }

    /// Declares arguments. `outside` returns the values from outside the stage, which override the defaults.
    pub(super) fn declare(
        &mut self,
        args: &[(String, Option<String>)],
        escape: char,
        outside: &dyn Fn(&str) -> Option<String>,
    ) -> Result<(), WordError> {
        for (name, default) in args {
            let default = match default {
                Some(text) => Some(Expander { escape, variables: &self.variables() }.expand(text)?),
                None => None,
            };
            if let Some(value) = outside(name).or(default) {
                self.args.insert(name.clone(), value);
            }
        }
        Ok(())
    }

    /// Applies an instruction that changes only the config. Returns `false` for all other instructions.
    pub(super) fn apply(&mut self, instruction: &Instruction, escape: char) -> Result<bool, Problem> {
        let variables = self.variables();
        let expander = Expander { escape, variables: &variables };
        let expand = |text: &String| expander.expand(text);
        let config = &mut self.document.config;
        match instruction {
            Instruction::Env(pairs) => {
                // All values are expanded with the variables as they were before the instruction.
                for (name, value) in pairs {
                    let (name, value) = (expand(name)?, expand(value)?);
                    let entry = format!("{name}={value}");
                    match config.env.iter_mut().find(|entry| entry.split('=').next() == Some(&*name)) {
                        Some(old) => *old = entry,
                        None => config.env.push(entry),
                    }
                }
            }
            Instruction::Label(pairs) => {
                for (name, value) in pairs {
                    config.labels.insert(expand(name)?, expand(value)?);
                }
            }
            Instruction::User(user) => config.user = expand(user)?,
            Instruction::StopSignal(signal) => {
                let signal = expand(signal)?;
                if parse_signal(&signal).is_err() {
                    let what = "a signal: a name such as `SIGINT`, or a number from 1 to 64";
                    return Err(Problem::Needs { instruction: "STOPSIGNAL", what });
                }
                config.stop_signal = signal;
            }
            Instruction::Shell(words) => config.shell = words.clone(),
            Instruction::Maintainer(name) => self.document.author = expand(name)?,
            Instruction::Expose(ports) => {
                for port in ports {
                    config.exposed_ports.extend(exposed(&expand(port)?)?);
                }
                config.exposed_ports.sort();
                config.exposed_ports.dedup();
            }
            Instruction::Volume(paths) => {
                for path in paths {
                    let path = expand(path)?;
                    if !config.volumes.contains(&path) {
                        config.volumes.push(path);
                    }
                }
                config.volumes.sort();
            }
            Instruction::OnBuild(text) => config.on_build.push(text.clone()),
            Instruction::Healthcheck { flags, test } => {
                let test = match test {
                    None => json!(["NONE"]),
                    Some(Command::Shell(text)) => json!(["CMD-SHELL", text]),
                    Some(Command::Exec(words)) => {
                        json!(std::iter::once("CMD").chain(words.iter().map(String::as_str)).collect::<Vec<_>>())
                    }
                };
                config.healthcheck = Some(health(flags, test)?);
            }
            Instruction::Cmd(command) => {
                let words = self.words(command);
                self.document.config.cmd = if command == &Command::Shell(String::new()) { Vec::new() } else { words };
                self.own_command = true;
            }
            Instruction::Entrypoint(command) => {
                let words = self.words(command);
                let config = &mut self.document.config;
                config.entrypoint = if command == &Command::Shell(String::new()) { Vec::new() } else { words };
                // The inherited command belongs to the inherited entry point.
                if !self.own_command {
                    config.cmd.clear();
                }
            }
            _ => return Ok(false),
        }
        Ok(true)
    }
}

/// Resolves `path` relative to `from` by name alone. Links are not followed.
fn absolute(from: &str, path: &str) -> String {
    let mut names: Vec<&str> = Vec::new();
    let all = if path.starts_with('/') { path.to_owned() } else { format!("{from}/{path}") };
    for name in all.split('/') {
        match name {
            "" | "." => {}
            ".." => drop(names.pop()),
            name => names.push(name),
        }
    }
    format!("/{}", names.join("/"))
}

/// Parses `8888`, `8888/udp` or `7000-7002/tcp`.
fn exposed(text: &str) -> Result<Vec<String>, Problem> {
    let bad = || Problem::Needs { instruction: "EXPOSE", what: "ports: `PORT`, `PORT/udp` or `FIRST-LAST`" };
    let (ports, protocol) = text.split_once('/').unwrap_or((text, "tcp"));
    let protocol = protocol.to_ascii_lowercase();
    let (first, last) = ports.split_once('-').unwrap_or((ports, ports));
    let (first, last): (u16, u16) = (first.parse().map_err(|_| bad())?, last.parse().map_err(|_| bad())?);
    if first > last || !["tcp", "udp", "sctp"].contains(&protocol.as_str()) {
        return Err(bad());
    }
    Ok((first..=last).map(|port| format!("{port}/{protocol}")).collect())
}

/// Builds docker's JSON of a health check. Durations are in nanoseconds.
fn health(flags: &[Flag], test: Value) -> Result<Value, Problem> {
    let mut all = json!({ "Test": test });
    for flag in flags {
        let value = flag.value.clone().unwrap_or_default();
        let bad =
            |what: &str| Problem::FlagValue { instruction: "HEALTHCHECK", flag: flag.name.clone(), what: what.into() };
        let (key, value) = match flag.name.as_str() {
            "interval" => {
                ("Interval", json!(parse_duration(&value).ok_or_else(|| bad("needs a duration such as `30s`"))?))
            }
            "timeout" => {
                ("Timeout", json!(parse_duration(&value).ok_or_else(|| bad("needs a duration such as `30s`"))?))
            }
            "start-period" => {
                ("StartPeriod", json!(parse_duration(&value).ok_or_else(|| bad("needs a duration such as `30s`"))?))
            }
            "start-interval" => {
                ("StartInterval", json!(parse_duration(&value).ok_or_else(|| bad("needs a duration such as `30s`"))?))
            }
            "retries" => ("Retries", json!(value.parse::<u32>().map_err(|_| bad("needs a number"))?)),
            _ => return Err(Problem::Flag { instruction: "HEALTHCHECK", flag: flag.name.clone() }),
        };
        all[key] = value;
    }
    Ok(all)
}

#[cfg(test)]
mod tests {
    use super::super::parse::parse_one;
    use super::*;

    /// The state after some instructions.
    fn after(lines: &[&str]) -> State {
        let mut state = State::new(ImageDocument::scratch());
        state.document.config.cmd = vec!["below".into()];
        for line in lines {
            let instruction = parse_one(line, '\\').expect(line);
            match &instruction {
                Instruction::Arg(args) => state.declare(args, '\\', &|_| None).expect(line),
                other => assert!(state.apply(other, '\\').expect(line), "{line}"),
            }
        }
        state
    }

    #[test]
    fn environment_and_arguments() {
        let state =
            after(&["ARG V=1 W=$V", "ENV A=$V B=\"x $A\" PATH=/x:$PATH", "ENV A=2", "ENV old is $A", "ARG A=3"]);
        assert_eq!(state.document.config.env, ["A=2", "B=x ", "PATH=/x:", "old=is 2"]);
        assert_eq!(state.variables()["A"], "2", "the environment wins");
        assert_eq!(state.args["W"], "1");
    }

    #[test]
    fn commands_and_their_shell() {
        let state = after(&["SHELL [\"/bin/bash\", \"-ec\"]", "CMD echo $A", "ENTRYPOINT [\"tini\", \"--\"]"]);
        assert_eq!(state.document.config.cmd, ["/bin/bash", "-ec", "echo $A"]);
        assert_eq!(state.document.config.entrypoint, ["tini", "--"]);
        assert!(
            after(&["ENTRYPOINT x"]).document.config.cmd.is_empty(),
            "the command below is not for this entry point"
        );
        assert_eq!(after(&["ENTRYPOINT []"]).document.config.entrypoint.len(), 0);
    }

    #[test]
    fn the_rest_of_the_config() {
        let state = after(&[
            "EXPOSE 8888 7000-7001/udp",
            "VOLUME /b /a",
            "VOLUME [\"/c d\"]",
            "LABEL a=\"b c\" \"d e\"=f",
            "USER 1000:100",
            "STOPSIGNAL SIGINT",
            "HEALTHCHECK --interval=1m30s --retries=3 CMD curl -f x",
            "ONBUILD RUN echo $HOME",
            "MAINTAINER me",
        ]);
        let config = &state.document.config;
        assert_eq!(config.exposed_ports, ["7000/udp", "7001/udp", "8888/tcp"]);
        assert_eq!(config.volumes, ["/a", "/b", "/c d"]);
        assert_eq!((config.labels["a"].as_str(), config.labels["d e"].as_str()), ("b c", "f"));
        assert_eq!((config.user.as_str(), config.stop_signal.as_str()), ("1000:100", "SIGINT"));
        let health = config.healthcheck.as_ref().expect("a health check");
        assert_eq!(health, &json!({"Test": ["CMD-SHELL", "curl -f x"], "Interval": 90_000_000_000u64, "Retries": 3}));
        assert_eq!(config.on_build, ["RUN echo $HOME"]);
        assert_eq!(state.document.author, "me");
    }

    #[test]
    fn paths_are_taken_from_the_working_directory() {
        let mut state = State::new(ImageDocument::scratch());
        state.document.config.working_dir = "/work/dir".into();
        for (path, want) in [("x", "/work/dir/x"), ("/x/../y/", "/y"), ("../../../z", "/z"), (".", "/work/dir")] {
            assert_eq!(state.path(path), want);
        }
    }
}
