//! NVIDIA's `config.toml`: the settings that determine what the prestart hook does with a gpurun container.
//!
//! The hook reads the file itself. gpurun reads it for three reasons: to know in advance whether the hook can work at
//! all, to respect `disable-require`, and to give the hook a copy without the settings that let an image override
//! `--gpus` ([`Config::for_run`]). The parser supports the syntax that the toolkit writes: tables, bare, quoted and
//! dotted keys, strings and booleans. It treats any other value as not set. If the hook then behaves differently, the
//! check of the devices (`opens`) detects it.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use crate::gpu::root::inside;

/// Path of the configuration of a toolkit that was installed from packages.
const FILE: &str = "/etc/nvidia-container-runtime/config.toml";
/// Path of the GPU operator's configuration, below the directory of the hook. The hook's wrapper script names this
/// file.
const BESIDE: &str = ".config/nvidia-container-runtime/config.toml";
/// Larger files are ignored.
const MAX_SIZE: u64 = 1 << 20;

const ACCEPT_ENV: &str = "accept-nvidia-visible-devices-envvar-when-unprivileged";
const ACCEPT_MOUNTS: &str = "accept-nvidia-visible-devices-as-volume-mounts";
const SWARM: &str = "swarm-resource";

/// The host's configuration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Config {
    /// Path on the host, without the driver's root directory.
    pub file: PathBuf,
    text: String,
    /// Values by full key: `nvidia-container-cli.no-cgroups`.
    values: BTreeMap<String, String>,
}

impl Config {
    /// Reads the file that the hook `program` uses. `None` if there is none and the hook uses its defaults.
    pub(super) fn read(root: &Path, program: &Path) -> Option<Self> {
        let beside = program.parent().map(|dir| dir.join(BESIDE));
        beside.into_iter().chain([PathBuf::from(FILE)]).find_map(|file| {
            let path = inside(root, &file);
            let size = std::fs::metadata(&path).ok().filter(std::fs::Metadata::is_file)?.len();
            let text = (size <= MAX_SIZE).then(|| std::fs::read(&path).ok()).flatten()?;
            Some(Self::parse(file, &String::from_utf8_lossy(&text)))
        })
    }

    fn parse(file: PathBuf, text: &str) -> Self {
        let values = lines(text).filter_map(|line| Some((line.key?, value(line.value)?))).collect();
        Self { file, text: text.to_owned(), values }
    }

    fn text_of(&self, key: &str) -> Option<&str> {
        self.values.get(key).map(String::as_str).filter(|text| !text.is_empty())
    }

    fn is(&self, key: &str, wanted: bool) -> bool {
        self.text_of(key) == Some(if wanted { "true" } else { "false" })
    }

    /// The configured mode, if the hook refuses to run in it and refers to NVIDIA's own runtime: any mode but `legacy`
    /// and `auto`.
    pub(super) fn refusing_mode(&self) -> Option<&str> {
        let skips = self.is("nvidia-container-runtime-hook.skip-mode-detection", true);
        let mode = self.text_of("nvidia-container-runtime.mode");
        mode.filter(|mode| !skips && !["legacy", "auto"].contains(mode))
    }

    /// The path of `nvidia-container-cli`, if the file sets it.
    pub(super) fn tool(&self) -> Option<&Path> {
        self.text_of("nvidia-container-cli.path").map(Path::new)
    }

    /// Whether the hook leaves the device filter unchanged.
    pub(super) fn leaves_the_filter(&self) -> bool {
        self.is("nvidia-container-cli.no-cgroups", true)
    }

    /// Whether this host ignores NVIDIA_REQUIRE_*.
    pub(super) fn disables_requirements(&self) -> bool {
        self.is("disable-require", true)
    }

    /// The settings through which something other than NVIDIA_VISIBLE_DEVICES would select the GPUs.
    pub(super) fn diversions(&self) -> Vec<String> {
        let mut all = Vec::new();
        if self.is(ACCEPT_ENV, false) {
            all.push(format!("{ACCEPT_ENV} = false"));
        }
        if self.is(ACCEPT_MOUNTS, true) {
            all.push(format!("{ACCEPT_MOUNTS} = true"));
        }
        all.extend(self.text_of(SWARM).map(|names| format!("{SWARM} = {names:?}")));
        all
    }

    /// Returns a configuration for one run, if the host's own is unsuitable. gpurun has already replaced the image's
    /// NVIDIA_VISIBLE_DEVICES with the GPUs that `--gpus` selected. The copy makes that variable count and nothing
    /// else; a variable that `swarm-resource` names would come from the image.
    pub(super) fn for_run(&self) -> Option<String> {
        if self.diversions().is_empty() {
            return None;
        }
        let mut text = format!("{ACCEPT_ENV} = true\n{ACCEPT_MOUNTS} = false\n");
        for line in lines(&self.text) {
            if !line.key.is_some_and(|key| [ACCEPT_ENV, ACCEPT_MOUNTS, SWARM].contains(&key.as_str())) {
                text.push_str(line.whole);
                text.push('\n');
            }
        }
        Some(text)
    }
}

struct Line<'a> {
    whole: &'a str,
    /// Full key, with the name of its table. `None` if the line sets nothing.
    key: Option<String>,
    value: &'a str,
}

fn lines(text: &str) -> impl Iterator<Item = Line<'_>> {
    let mut table = String::new();
    text.lines().map(move |whole| {
        let line = without_comment(whole).trim();
        if line.starts_with('[') && line.ends_with(']') {
            table = key(line.trim_matches(['[', ']'])).unwrap_or_default();
            return Line { whole, key: None, value: "" };
        }
        let Some((name, value)) = line.split_once('=') else { return Line { whole, key: None, value: "" } };
        let key = key(name).map(|name| if table.is_empty() { name } else { format!("{table}.{name}") });
        Line { whole, key, value: value.trim() }
    })
}

/// Returns a key without its quotes: `"a".b` → `a.b`. `None` if the text is not a key but part of a value.
fn key(text: &str) -> Option<String> {
    let part = |part: &str| {
        let part = part.trim();
        let quoted = ['"', '\''].into_iter().find_map(|quote| part.strip_prefix(quote)?.strip_suffix(quote));
        let bare = quoted.unwrap_or(part);
        let good = |c: char| c.is_ascii_alphanumeric() || "-_".contains(c);
        (!bare.is_empty() && bare.chars().all(good)).then(|| bare.to_owned())
    };
    let parts: Option<Vec<String>> = text.split('.').map(part).collect();
    parts.map(|parts| parts.join("."))
}

/// Returns a string without its quotes, or a bare value such as `true`.
fn value(text: &str) -> Option<String> {
    let quoted = ['"', '\''].into_iter().find_map(|quote| text.strip_prefix(quote)?.strip_suffix(quote));
    match quoted {
        Some(inner) => Some(inner.to_owned()),
        None => text.chars().all(|c| c.is_ascii_alphanumeric()).then(|| text.to_owned()),
    }
}

fn without_comment(line: &str) -> &str {
    let mut quote = None;
    for (at, c) in line.char_indices() {
        match (quote, c) {
            (None, '#') => return &line[..at],
            (None, '"' | '\'') => quote = Some(c),
            (Some(open), c) if open == c => quote = None,
            _ => {}
        }
    }
    line
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(text: &str) -> Config {
        Config::parse(FILE.into(), text)
    }

    #[test]
    fn a_toolkit_that_is_set_to_cdi_is_not_used() {
        let with = |mode: &str, skip: &str| {
            config(&format!(
                "#mode = \"x\"\n[nvidia-container-cli]\nmode = \"y\"\n[nvidia-container-runtime]\nmode = \"{mode}\" # why\n\n[nvidia-container-runtime-hook]\n{skip}\n"
            ))
        };
        assert_eq!(with("cdi", "").refusing_mode(), Some("cdi"));
        assert_eq!(with("cdi", "skip-mode-detection = true").refusing_mode(), None);
        for mode in ["auto", "legacy", ""] {
            assert_eq!(with(mode, "").refusing_mode(), None, "{mode}");
        }
        assert_eq!(config("").refusing_mode(), None);
        assert_eq!(config("nvidia-container-runtime.mode = 'csv'\n").refusing_mode(), Some("csv"), "a dotted key");
    }

    #[test]
    fn the_settings_of_the_tool_are_read() {
        let text = "disable-require = true\n[nvidia-container-cli]\nenvironment = [\n  \"no-cgroups=false\",\n]\npath = \"/opt/#1/cli\"\nno-cgroups = true\n";
        let config = config(text);
        assert!(config.leaves_the_filter() && config.disables_requirements());
        assert_eq!(config.tool(), Some(Path::new("/opt/#1/cli")));
        let unset =
            Config::parse(FILE.into(), "#no-cgroups = true\n[nvidia-container-cli]\n#path = \"/x\"\npath = \"\"\n");
        assert!(!unset.leaves_the_filter() && unset.tool().is_none());
    }

    #[test]
    fn a_run_gets_a_copy_without_what_diverts_the_hook() {
        for plain in ["", "accept-nvidia-visible-devices-envvar-when-unprivileged = true\nswarm-resource = \"\"\n"] {
            assert_eq!(config(plain).for_run(), None, "the host's own file will do");
        }
        let text = "#swarm-resource = \"A\"\nswarm-resource = \"DOCKER_RESOURCE_GPU\"\n\"accept-nvidia-visible-devices-envvar-when-unprivileged\"=false\n\
            supported-driver-capabilities = \"compute\"\n[nvidia-container-cli]\nswarm-resource = 1\nload-kmods = true\n";
        let copy = config(text).for_run().unwrap();
        assert_eq!(
            copy,
            "accept-nvidia-visible-devices-envvar-when-unprivileged = true\naccept-nvidia-visible-devices-as-volume-mounts = false\n\
             #swarm-resource = \"A\"\nsupported-driver-capabilities = \"compute\"\n[nvidia-container-cli]\nswarm-resource = 1\nload-kmods = true\n"
        );
        assert_eq!(config(&copy).for_run(), None, "nothing is left to divert it");
        assert_eq!(config(text).diversions().len(), 2);
    }

    proptest::proptest! {
        #[test]
        fn no_text_makes_it_panic(text in "[a-z=\\[\\]\"'#. \\n-]{0,80}") {
            let config = config(&text);
            let _ = (config.for_run(), config.refusing_mode());
        }
    }
}
