//! Builds the process's arguments, environment and working directory from an image's config and a request, as docker
//! does. All functions are pure.

use std::path::PathBuf;

/// The PATH of a container without any other PATH (docker's default).
pub(crate) const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// The arguments: the entrypoint, then the command. As in docker, an entrypoint from the request drops the image's
/// command.
#[must_use]
pub(crate) fn command(
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

/// The environment, with one entry for each name. Later sources override earlier ones: PATH, HOSTNAME, TERM (with a
/// terminal), the image, gpurun's defaults, the request, and last the variables that must not be overridden. Entries
/// without a name or with a NUL byte are left out, because no process can receive them.
#[must_use]
pub(crate) fn environment(
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

/// The entries of the image's environment with the caller's variables beneath, which the image's override.
#[must_use]
pub(crate) fn beneath(host: &[(String, String)], image: &[String]) -> Vec<String> {
    host.iter().map(|(name, value)| format!("{name}={value}")).chain(image.iter().cloned()).collect()
}

/// Adds `HOME` if it is not set. Without it, a process would look the home up through the image's own libraries.
pub(crate) fn add_home(env: &mut Vec<String>, home: &std::path::Path) {
    if !env.iter().any(|entry| entry.starts_with("HOME=")) {
        env.push(format!("HOME={}", home.display()));
    }
}

/// Whether an environment of `NAME=VALUE` entries contains a name.
#[must_use]
pub(crate) fn has(env: &[String], name: &str) -> bool {
    env.iter().any(|entry| entry.split_once('=').is_some_and(|(other, _)| other == name))
}

/// The working directory: the request's, the image's, or `/`. A relative path in the image starts at `/`, as in docker.
#[must_use]
pub(crate) fn workdir(asked: Option<&PathBuf>, image: Option<&str>) -> PathBuf {
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
