//! docker's and podman's commands and flags that gpurun does not have, in ONE table of alternatives, and those that differ.
//!
//! A key is a command (`system df`), or a command and a flag (`run --ipc`). The bare launch and `create` share the flags
//! of `run`. A command or flag that neither table lists means the same as in docker. The tests compare this with the `--help` of every
//! command of docker (tests/docker-help.txt), and docs/docker.md with the tables. A command or flag that is added to
//! gpurun must be removed from the table of alternatives.

/// Returns the alternative to a command, or `None` if the command is not in the table.
pub(super) fn command(names: &[&str]) -> Option<(String, &'static str)> {
    // Try the longest prefix first: `system df` before `system`.
    (1..=names.len().min(2)).rev().find_map(|count| {
        let key = names[..count].join(" ");
        find(COMMANDS, &key).map(|instead| (key, instead))
    })
}

/// Returns the alternative to a flag of a command. The bare launch has an empty command.
pub(super) fn flag(command: &str, flag: &str) -> Option<&'static str> {
    let of_client = || find(FLAGS, &format!("gpurun {flag}")).filter(|_| command.is_empty());
    let command = if ["", "create"].contains(&command) { "run" } else { command };
    find(FLAGS, &format!("{command} {flag}")).or_else(of_client)
}

fn find(table: &'static [(&str, &str)], key: &str) -> Option<&'static str> {
    table.iter().find(|(keys, _)| keys.split('|').any(|one| one == key)).map(|(_, instead)| *instead)
}

const ONE_HOST: &str = "gpurun manages the containers of one host: start each one with `gpurun run -d IMAGE`";
const NO_BUILDER: &str = "gpurun builds without a builder process: use `gpurun build -t NAME DIR`";

const COMMANDS: &[(&str, &str)] = &[
    ("image search", "use `gpurun search TERM`"),
    ("volumes", "use `gpurun volume ls`"),
    ("volume update", "remove the volume and create it again: `gpurun volume rm NAME`"),
    ("containers", "use `gpurun ps`"),
    ("networks", "use `gpurun network ls`"),
    ("network update|network reload", "remove the network and create it again: `gpurun network rm NAME`"),
    (
        "manifest",
        "use `gpurun image pull --platform OS/ARCH NAME` for one platform, and `gpurun image inspect NAME` to see it",
    ),
    ("buildx create|buildx use|buildx ls|buildx inspect|buildx rm|buildx bake|buildx imagetools", NO_BUILDER),
    ("compose push", "name the images: `gpurun push IMAGE`; `gpurun compose config --images` lists them"),
    ("compose events", "use `gpurun events`"),
    ("compose stats", "use `gpurun stats`"),
    ("compose attach", "use `gpurun attach NAME`; `gpurun compose ps` lists the names"),
    ("compose watch", "run `gpurun compose up -d --build` after a change"),
    ("compose scale", "use `gpurun compose up -d --scale SERVICE=N`"),
    ("compose commit|compose export", "use `gpurun commit NAME IMAGE` and `gpurun export NAME`"),
    ("compose volumes", "use `gpurun volume ls`"),
    ("compose publish|compose bridge", "copy the compose files"),
    ("context|contexts", "run gpurun on the other host: `ssh HOST sudo gpurun ps`"),
    ("swarm|node|service|stack|config", ONE_HOST),
    ("pod|kube|generate|machine", ONE_HOST),
    (
        "secret",
        "use `gpurun run --secret id=NAME,src=FILE IMAGE`; for a build, `gpurun build --secret id=ID,src=FILE DIR`",
    ),
    ("plugin|trust|scout|sbom|model|mcp", "use docker's own tool for it: gpurun has no plugins"),
    ("checkpoint", "use `gpurun pause NAME` to freeze a container, or `gpurun commit NAME IMAGE` to keep its files"),
    ("init", "write a Containerfile by starting from one in images/, and run `gpurun build -t NAME DIR`"),
    ("unshare|untar", "use `gpurun image unpack IMAGE DIR` to see an image's files"),
    ("mount", "use `gpurun image mount IMAGE` for an image, `gpurun cp NAME:/PATH .` for a container"),
    ("umount|unmount", "use `gpurun image unmount IMAGE`"),
    ("prune", "use `gpurun system prune`"),
];

const ADDRESS: &str = "omit it: gpurun assigns an IPv4 address, and `gpurun inspect NAME` shows it";
const REAL_TIME: &str = "use `--cpus N` and `--cpu-shares N`: gpurun has no real-time scheduling";
const WINDOWS: &str = "omit it: it is for Windows containers";

const FLAGS: &[(&str, &str)] = &[
    ("run --storage-opt", "omit it: layers are directories of this host; a quota of its file system limits them"),
    (
        "run --link|network connect --link",
        "create a network: `gpurun network create NAME`, and run both containers with `--network NAME`",
    ),
    ("run --cpu-rt-period|run --cpu-rt-runtime|build --cpu-rt-period", REAL_TIME),
    ("run --kernel-memory|update --kernel-memory", "use `--memory SIZE`, which counts the kernel's memory too"),
    ("run --ip6|run --link-local-ip|network connect --ip6|network connect --link-local-ip", ADDRESS),
    ("network connect --driver-opt|network connect --gw-priority", "omit it: gpurun's networks have no options"),
    ("network inspect -v", "omit it: all details are shown"),
    ("network create --ipv6|network create --ipv4", "omit it: networks have IPv4 addresses only"),
    (
        "network create --opt|network create -o|network create --ipam-driver|network create --ipam-opt|\
         network create --scope|network create --ingress|network create --config-only|network create --config-from",
        "omit it: a network is a bridge of this host",
    ),
    (
        "network create --ip-range|network create --aux-address",
        "choose the addresses with `--subnet`, and that of a container with `gpurun run --ip`",
    ),
    ("run --use-api-socket", "omit it: gpurun has no daemon and no API socket"),
    (
        "run --disable-content-trust|build --disable-content-trust|image pull --disable-content-trust|image push --disable-content-trust",
        "omit it: name an image by digest to pin its content",
    ),
    ("run --cpu-count|run --cpu-percent|run --io-maxbandwidth|run --io-maxiops|build --isolation", WINDOWS),
    ("run --retry|run --retry-delay", "omit it: a failed download is tried again"),
    ("run --passwd-entry|run --passwd", "omit it; `--user UID:GID` works without an entry in /etc/passwd"),
    ("run --pod|run --pod-id-file|run --group-entry|run --sdnotify", "omit it: gpurun has no pods and no units"),
    ("rm --link|rm -l", "omit it: gpurun has no links"),
    ("start --checkpoint|start --checkpoint-dir", "omit it: gpurun has no checkpoints"),
    ("stats --all|stats -a", "omit it: `gpurun ps -a` lists containers that do not run"),
    ("build --cgroup-parent", "omit it: a build step has the default"),
    ("build --squash|build --compress", "omit it: each step makes a layer"),
    (
        "build --cache-to|build --no-cache-filter",
        "omit it: steps are cached in the store, and `--no-cache` builds all of them again",
    ),
    (
        "build --provenance|build --sbom|build --attest|build --annotation|build --allow|build --builder|build --call|build --check|build --debug|build -D|build --policy",
        "omit it: gpurun builds without a builder process and without attestations",
    ),
    (
        "build --security-opt|build --userns|build --ipc|build --cap-add|build --device",
        "omit it: a build step has docker's default isolation",
    ),
    (
        "volume create --availability|volume create --group|volume create --limit-bytes|volume create --required-bytes|\
         volume create --scope|volume create --secret|volume create --sharing|volume create --topology-preferred|\
         volume create --topology-required|volume create --type|volume ls --cluster",
        "omit it: it is for the volumes of a swarm",
    ),
    (
        "gpurun --context|gpurun --host|gpurun -H|gpurun --tlscacert|gpurun --tlscert|gpurun --tlskey|gpurun --tlsverify",
        "run gpurun on the other host: `ssh HOST sudo gpurun ps`",
    ),
    ("gpurun --config", "set DOCKER_CONFIG, or use `--authfile FILE`, for the logins of registries"),
    ("gpurun --debug|gpurun -D|gpurun --log-level", "set GPURUN_LOG, for example to `debug`"),
    ("image import --platform", "omit it: the image is for this host's platform"),
    ("image rm --platform", "omit it: an image here is for one platform"),
    ("image ls --tree", "omit it: an image here is for one platform"),
    ("cp --no-dereference", "omit it: links are copied as links unless `-L` is given"),
    ("update --cpu-rt-period|update --cpu-rt-runtime", REAL_TIME),
];

/// What differs from docker.
#[cfg(test)]
const DIFFERENT: &[(&str, &str)] = &[
    (
        "run|create",
        "a host path in `-v` must exist; no-new-privileges is on unless `--security-opt no-new-privileges=false` is given; `-p` publishes on IPv4 addresses only; `--cap-drop` applies to a `--privileged` container too; `--log-driver` is json-file, local or none; `--runtime` names gpurun's own; `--userns` is host; `--link` and `--storage-opt` are refused; when a health check ends, all processes that it has started are killed; `--entrypoint` may be a JSON list, `--health-interval` may be `disable`, and `--health-on-failure` says what happens to an unhealthy container, as in podman",
    ),
    (
        "build",
        "without a builder process; steps have docker's default isolation; `--cache-from` has no effect; the context is a directory of this host or an archive on standard input, not a repository; `--ssh` takes sockets, not keys; `--output` also keeps the image in the store; with `--file`, the directory may be omitted, as in podman",
    ),
    (
        "events",
        "`--stream=false` ends after the past, as in podman; events of containers only, and `--since` shows the last run of each, also of removed ones; a line without `--format` is shorter",
    ),
    ("cp", "also from one container to another, as in podman"),
    ("exec", "the program gets its own pipes or terminal, never the caller's descriptors"),
    (
        "image ls",
        "`--quiet` prints each ID once; foreign images have a column PLATFORM; `--sort`, `--noheading` and the filters `after` and `id`, as in podman",
    ),
    ("image load", "`--quiet` prints the IDs"),
    ("image tag", "several names, as in podman"),
    ("image pull", "`--quiet` prints the ID, as podman does"),
    ("info|version", "client and server are the same program"),
    (
        "inspect",
        "what only gpurun knows is below the key `Gpurun`; `--latest`, and more keys under podman's names, as in podman",
    ),
    ("logs", "several containers, with `--names`, and `--latest`, as in podman"),
    ("login", "other registries than Docker Hub need no prefix; `--password` prints a warning"),
    (
        "ps",
        "a column GPU where a container has GPUs; Jupyter's URL is shown with the ports; the command has no quotation marks; `--sort` and `--noheading`, as in podman",
    ),
    (
        "rm",
        "anonymous volumes are removed with their container, with `--volumes` or without; `--depend` and `--time`, as in podman",
    ),
    ("search", "of other registries than Docker Hub, the list of names is searched"),
    ("stats", "more columns: throttling, pressure, GPUs"),
    (
        "start|stop|restart|kill|pause|unpause|rm",
        "`--all`, `--filter`, `--cidfile`, `--latest` and `--ignore`, as in podman",
    ),
    ("volume rm|image rm", "`--all`, as in podman"),
    ("volume ls|network ls", "`--noheading`, as in podman"),
    ("system df", "`--verbose` shows no number of uses of a part of the build cache"),
    ("top", "without a container, a live screen over all containers"),
    ("volume create", "`local` is the only driver; the image's files are not copied to a volume with options"),
    ("wait", "`--condition` and `--ignore`, as in podman"),
];

#[cfg(test)]
mod tests {
    use clap::Command;

    use super::*;

    /// Written by tests/docker-help.py, from Debian 13's docker-cli (26.1).
    const HELP: &str = include_str!("../../tests/docker-help.txt");

    /// The command of gpurun that a command of docker is.
    fn resolved(command: &str) -> String {
        let args = command.split_whitespace().map(Into::into).collect();
        let root = <super::super::Cli as clap::CommandFactory>::command();
        let args = super::super::command_line::texts(&super::super::synonyms::resolve(&root, args));
        args.into_iter().take_while(|arg| !arg.starts_with('-')).collect::<Vec<_>>().join(" ")
    }

    /// The flags of docker's client itself, which have another meaning as flags of the bare launch.
    const OWN_MEANING: [&str; 4] = ["-c", "-l", "-v", "--tls"];

    #[test]
    fn every_command_and_flag_of_dockers_help_is_the_same_different_or_refused() {
        let root = gpurun();
        let mut missing = Vec::new();
        let mut count = 0;
        for line in HELP.lines() {
            let (words, flags): (Vec<&str>, Vec<&str>) = line.split(' ').partition(|word| !word.starts_with('-'));
            let is_refused = command(&words).is_some();
            count += 1;
            if is_refused {
                continue;
            }
            let name = resolved(&words.join(" "));
            let path: Vec<&str> = name.split_whitespace().collect();
            let Some(known) = at(&root, &path) else {
                missing.push(words.join(" "));
                continue;
            };
            let has = |name: &str| known.find_subcommand(name).is_some();
            for flag in flags {
                // `command_line` knows `-h`, which is the host name and, as the last argument, help.
                let is_host_name = flag == "-h" && ["run", "create"].contains(&name.as_str());
                let is_own = is_host_name || (words.is_empty() && OWN_MEANING.contains(&flag));
                if !is_own && !has(flag) && !has_flag(known, flag) && super::flag(&name, flag).is_none() {
                    missing.push(format!("{name} {flag}"));
                }
            }
        }
        assert_eq!(missing, [""; 0], "neither there nor in the table");
        assert!(count > 1000, "{count}");
    }

    #[test]
    fn what_differs_exists_in_both() {
        let root = gpurun();
        for name in DIFFERENT.iter().flat_map(|(names, _)| names.split('|')) {
            let path: Vec<&str> = name.split(' ').collect();
            assert!(at(&root, &path).is_some() && HELP.lines().any(|line| line == name), "{name}");
        }
    }

    /// The table in docs/docker.md.
    fn documented() -> String {
        // The other lines are flags of a command, or of docker itself.
        let is_command = |line: &&str| !line.contains(" -") && !line.starts_with('-');
        let (mut same, mut text) = (Vec::new(), String::new());
        for name in HELP.lines().filter(is_command) {
            let words: Vec<&str> = name.split(' ').collect();
            let different = DIFFERENT.iter().flat_map(|(names, _)| names.split('|')).any(|one| one == resolved(name));
            let is_group = HELP.lines().filter(is_command).any(|line| line.starts_with(&format!("{name} ")));
            if command(&words).is_none() && !different && !is_group {
                same.push(format!("`{name}`"));
            }
        }
        let wrap = |text: &mut String, line: &str| {
            let mut width = 0;
            let indent = if line.starts_with("- ") { "  " } else { "" };
            for word in super::super::print::pieces(line) {
                let length = word.chars().count();
                if width > 0 && width + 1 + length > 100 {
                    text.push_str(&format!("\n{indent}"));
                    width = indent.len();
                } else if width > 0 {
                    text.push(' ');
                    width += 1;
                }
                text.push_str(word);
                width += length;
            }
            text.push('\n');
        };
        text.push_str("### The same\n\n");
        wrap(&mut text, &format!("{}.", same.join(", ")));
        let quoted = |keys: &str| keys.split('|').map(|key| format!("`{key}`")).collect::<Vec<_>>().join(", ");
        text.push_str("\n### Different\n\n");
        DIFFERENT.iter().for_each(|(keys, how)| wrap(&mut text, &format!("- {}: {how}.", quoted(keys))));
        text.push_str("\n### Commands that gpurun does not have\n\n");
        COMMANDS.iter().for_each(|(keys, hint)| wrap(&mut text, &format!("- {}: {hint}.", quoted(keys))));
        text.push_str("\n### Flags that gpurun does not have\n\n");
        FLAGS.iter().for_each(|(keys, hint)| wrap(&mut text, &format!("- {}: {hint}.", quoted(keys))));
        text
    }

    /// `INSTA_UPDATE=always` writes the table into the page.
    #[test]
    fn the_page_has_the_table() {
        const BEGIN: &str =
            "<!-- The rest is written by `INSTA_UPDATE=always cargo test the_page_has_the_table`. -->\n\n";
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/docker.md");
        let page = std::fs::read_to_string(path).unwrap();
        let (head, table) = page.split_once(BEGIN).expect("the marker");
        if std::env::var("INSTA_UPDATE").is_ok_and(|value| value == "always") {
            std::fs::write(path, format!("{head}{BEGIN}{}", documented())).unwrap();
        } else {
            assert_eq!(table, documented(), "run it with INSTA_UPDATE=always");
        }
    }

    /// From the output of `docker --help` and `docker run --help`, version 29.8.
    const DOCKERS_COMMANDS: &str = "attach build builder checkpoint commit compose container context cp create diff events exec export \
        history image images import info inspect kill load login logout logs manifest network node pause plugin port ps pull push \
        rename restart rm rmi run save search secret service stack start stats stop swarm system tag top trust unpause update version \
        volume wait buildx";
    /// Flags of later releases, from the `--help` of docker 28.2 and 29.8 and of buildx.
    const LATER_FLAGS: &str = "create --use-api-socket|history --platform|image history --platform|image inspect --platform|\
        image load --platform|image ls --tree|image push --platform|image rm --platform|image save --platform|\
        images --tree|load --platform|network connect --gw-priority|network create --ipv4|push --platform|\
        restart --timeout|rmi --platform|run --use-api-socket|save --platform|stop --timeout|container stop --timeout|\
        container restart --timeout|build --add-host|build --allow|build --annotation|build --attest|\
        build --build-arg|build --build-context|build --builder|build --cache-from|build --cache-to|build --call|\
        build --cgroup-parent|build --check|build --debug|build --file|build --iidfile|build --label|build --load|\
        build --metadata-file|build --network|build --no-cache|build --no-cache-filter|build --output|\
        build --platform|build --policy|build --progress|build --provenance|build --pull|build --push|\
        build --quiet|build --sbom|build --secret|build --shm-size|build --ssh|build --tag|build --target|\
        build --ulimit|buildx build --push|buildx build --load";
    const DOCKERS_RUN_FLAGS: &str = "add-host annotation attach blkio-weight blkio-weight-device cap-add cap-drop cgroup-parent cgroupns \
        cidfile cpu-count cpu-percent cpu-period cpu-quota cpu-rt-period cpu-rt-runtime cpu-shares cpus cpuset-cpus cpuset-mems detach \
        detach-keys device device-cgroup-rule device-read-bps device-read-iops device-write-bps device-write-iops \
        disable-content-trust dns dns-option dns-search domainname entrypoint env env-file expose gpus group-add health-cmd \
        health-interval health-retries health-start-interval health-start-period health-timeout hostname init interactive \
        io-maxbandwidth io-maxiops ip ip6 ipc isolation kernel-memory label label-file link link-local-ip log-driver log-opt \
        mac-address memory memory-reservation memory-swap memory-swappiness mount name network network-alias no-healthcheck \
        oom-kill-disable oom-score-adj pid pids-limit platform privileged publish publish-all pull quiet read-only restart rm runtime \
        security-opt shm-size sig-proxy stop-signal stop-timeout storage-opt sysctl tmpfs tty ulimit use-api-socket user userns uts \
        volume volume-driver volumes-from workdir";

    fn gpurun() -> Command {
        let mut command = super::super::complete();
        command.build();
        command
    }

    fn at<'a>(root: &'a Command, names: &[&str]) -> Option<&'a Command> {
        names.iter().try_fold(root, |command, word| command.find_subcommand(word))
    }

    fn has_flag(command: &Command, flag: &str) -> bool {
        command.get_arguments().any(|arg| match flag.strip_prefix("--") {
            Some(long) => arg.get_long() == Some(long) || arg.get_all_aliases().is_some_and(|all| all.contains(&long)),
            None => flag.strip_prefix('-').and_then(|short| short.chars().next()) == arg.get_short(),
        })
    }

    #[test]
    fn each_of_dockers_commands_and_flags_is_there_or_in_the_table() {
        let root = gpurun();
        for word in DOCKERS_COMMANDS.split_whitespace() {
            assert!(root.find_subcommand(word).is_some() || command(&[word]).is_some(), "docker {word}");
        }
        for line in LATER_FLAGS.split('|') {
            let (name, flag) = line.rsplit_once(' ').unwrap();
            let name = resolved(name);
            let known = at(&root, &name.split(' ').collect::<Vec<_>>()).expect(&name);
            assert!(has_flag(known, flag) || super::flag(&name, flag).is_some(), "docker {line}");
        }
        let run = root.find_subcommand("run").unwrap();
        for name in DOCKERS_RUN_FLAGS.split_whitespace().map(|name| format!("--{name}")) {
            assert!(has_flag(run, &name) || flag("run", &name).is_some(), "docker run {name}");
        }
    }

    #[test]
    fn what_gpurun_has_is_not_in_the_table() {
        let root = gpurun();
        for key in COMMANDS.iter().flat_map(|(keys, _)| keys.split('|')) {
            let names: Vec<&str> = key.split(' ').collect();
            let known = at(&root, &names).is_some_and(|command| command.get_name() == *names.last().unwrap());
            assert!(!known, "gpurun has `{key}`");
        }
        for key in FLAGS.iter().flat_map(|(keys, _)| keys.split('|')) {
            let (names, flag) = key.rsplit_once(' ').unwrap();
            let names: Vec<&str> = names.split(' ').collect();
            let names = if names == ["gpurun"] { Vec::new() } else { names };
            let command = at(&root, &names).unwrap_or_else(|| panic!("`{key}` names no command"));
            assert!(!has_flag(command, flag), "gpurun has `{key}`");
        }
    }

    #[test]
    fn no_key_is_there_twice() {
        let mut seen = std::collections::BTreeSet::new();
        for key in COMMANDS.iter().chain(FLAGS).flat_map(|(keys, _)| keys.split('|')) {
            assert!(seen.insert(key), "{key}");
        }
    }

    /// Hints must be valid: every `gpurun …` in backticks is an existing command with existing flags.
    #[test]
    fn hints_name_commands_and_flags_that_exist() {
        let root = gpurun();
        for (keys, hint) in COMMANDS.iter().chain(FLAGS) {
            assert!(!hint.ends_with('.') && hint.matches('`').count() % 2 == 0, "{keys}: {hint}");
            for literal in hint.split('`').skip(1).step_by(2) {
                let mut command = &root;
                let names: Vec<&str> = literal.split(' ').skip_while(|word| *word != "gpurun").skip(1).collect();
                let names: Vec<&str> = names.split(|word| word.starts_with("$(")).next().unwrap_or_default().to_vec();
                for word in &names {
                    if let Some(next) = command.find_subcommand(word) {
                        command = next;
                    } else if word.starts_with('-') {
                        assert!(has_flag(command, word), "{keys}: `{literal}`: {word}");
                    }
                }
                let first =
                    names.first().is_none_or(|word| word.starts_with('-') || root.find_subcommand(word).is_some());
                assert!(first, "{keys}: `{literal}`");
            }
        }
    }
}
