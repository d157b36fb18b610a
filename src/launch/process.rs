//! The container's process as docker would make it from an image's config and a request: words, environment, directory. Pure.

use std::path::PathBuf;

/// What a container without any PATH gets (docker's).
pub const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// The command line: the entry point, then the command. An entry point of the person's own drops the image's command, as docker does.
#[must_use]
pub fn command(
    image_entrypoint: &[String],
    image_command: &[String],
    entrypoint: Option<&[String]>,
    command: &[String],
) -> Vec<String> {
    let (entry, default_command) = match entrypoint {
        Some(entry) => (entry, [].as_slice()),
        None => (image_entrypoint, image_command),
    };
    let command = if command.is_empty() { default_command } else { command };
    entry.iter().chain(command).cloned().collect()
}

/// The environment, later entries winning over earlier ones of the same name and every name standing once: PATH, HOSTNAME, TERM (with a
/// terminal), the image's, gpurun's own, the person's, and last what must not be overridden. Image entries without a name or with a NUL
/// byte are left out: no process can be given them.
#[must_use]
pub fn environment(
    hostname: &str,
    tty: bool,
    image: &[String],
    ours: &[(String, String)],
    asked: &[(String, String)],
    forced: &[(String, String)],
) -> Vec<String> {
    let mut all: Vec<(String, String)> =
        vec![("PATH".into(), DEFAULT_PATH.into()), ("HOSTNAME".into(), hostname.into())];
    if tty {
        all.push(("TERM".into(), "xterm".into()));
    }
    let image =
        image.iter().filter_map(|entry| entry.split_once('=')).map(|(name, value)| (name.to_owned(), value.to_owned()));
    let layers = image.chain(ours.iter().cloned()).chain(asked.iter().cloned()).chain(forced.iter().cloned());
    for (name, value) in layers {
        if name.is_empty() || name.contains('\0') || value.contains('\0') {
            continue;
        }
        match all.iter_mut().find(|(other, _)| *other == name) {
            Some((_, old)) => *old = value,
            None => all.push((name, value)),
        }
    }
    all.into_iter().map(|(name, value)| format!("{name}={value}")).collect()
}

/// Adds `HOME` where nobody set it: a process without it would look it up by means of the image's own libraries.
pub fn add_home(env: &mut Vec<String>, home: &std::path::Path) {
    if !env.iter().any(|entry| entry.starts_with("HOME=")) {
        env.push(format!("HOME={}", home.display()));
    }
}

/// Whether a name stands in an environment of `NAME=VALUE` texts.
#[must_use]
pub fn has(env: &[String], name: &str) -> bool {
    env.iter().any(|entry| entry.split_once('=').is_some_and(|(other, _)| other == name))
}

/// The working directory: the person's, the image's, or `/`; an image's relative one is taken from `/`, as docker does.
#[must_use]
pub fn workdir(asked: Option<&PathBuf>, image: Option<&str>) -> PathBuf {
    match (asked, image) {
        (Some(dir), _) => dir.clone(),
        (None, Some(dir)) if !dir.is_empty() => PathBuf::from("/").join(dir),
        (None, _) => PathBuf::from("/"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(text: &str) -> Vec<String> {
        text.split_whitespace().map(str::to_owned).collect()
    }

    #[test]
    fn entry_point_and_command_combine_as_docker_does() {
        let case = |entry: Option<&str>, command_: &str| {
            let entry = entry.map(words);
            command(&words("tini --"), &words("bash -l"), entry.as_deref(), &words(command_)).join(" ")
        };
        assert_eq!(case(None, ""), "tini -- bash -l");
        assert_eq!(case(None, "ls /"), "tini -- ls /");
        assert_eq!(case(Some("sh"), ""), "sh");
        assert_eq!(case(Some("sh"), "-c true"), "sh -c true");
        assert_eq!(case(Some(""), "ls"), "ls");
    }

    #[test]
    fn every_name_stands_once_and_the_last_wins() {
        let own = |pairs: &[(&str, &str)]| -> Vec<(String, String)> {
            pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect()
        };
        let image: Vec<String> = ["PATH=/x", "A=1", "NO_VALUE", "=odd", "B=a\0b", "GPU=all"].map(str::to_owned).into();
        let env = environment(
            "h",
            true,
            &image,
            &own(&[("OMP", "2")]),
            &own(&[("A", "2"), ("GPU", "me")]),
            &own(&[("GPU", "void")]),
        );
        assert_eq!(env, ["PATH=/x", "HOSTNAME=h", "TERM=xterm", "A=2", "GPU=void", "OMP=2"]);
    }
}
