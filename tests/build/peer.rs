//! buildah's result for the same Containerfiles, where it can read them: the same tree, the same config.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use serde_json::Value;

use crate::fixture::{Fixture, counts, listing};

pub struct Peer {
    pub name: &'static str,
    /// The context; see [`Fixture::context`].
    files: &'static [(&'static str, &'static str)],
    text: &'static str,
    args: &'static [&'static str],
}

// Left out, because buildah does what BuildKit does not, or cannot: stages named in another case or by a variable, `SHELL` for an `ENTRYPOINT`, ranges of ports, here-documents (1.28), `ONBUILD` (making
// a container of such an image runs it), the escape character inside words, files written to a `VOLUME`. Its driver here copies files: a hard
// link of a lower layer stays one when it is changed, which no overlay has.

/// What buildah makes besides: mount points that it leaves behind, and the directory of a `VOLUME`, which gpurun leaves to the launch.
const THEIRS: [&str; 11] = [
    "/dev",
    "/etc/hostname",
    "/etc/hosts",
    "/etc/resolv.conf",
    "/proc",
    "/run",
    "/run/.containerenv",
    "/run/secrets",
    "/sys",
    "/v",
    "/v2",
];

pub fn is_there() -> bool {
    has_program("buildah")
}

pub fn has_program(name: &str) -> bool {
    Command::new(name).arg("--version").output().is_ok_and(|output| output.status.success())
}

/// A store of buildah's, with our `box` in it.
struct Store {
    dir: PathBuf,
}

impl Store {
    fn shared() -> &'static Self {
        static SHARED: OnceLock<Store> = OnceLock::new();
        SHARED.get_or_init(|| {
            let fixture = Fixture::shared();
            let store = Self { dir: fixture.dir.join("buildah") };
            let archive = fixture.dir.join("box.tar");
            fixture.ok(&["image", "save", "-o", archive.to_str().unwrap(), "box"]);
            let id = store.buildah(&["pull", "-q", &format!("docker-archive:{}", archive.display())]);
            store.buildah(&["tag", &id, "localhost/box:latest"]);
            store
        })
    }

    #[track_caller]
    fn buildah(&self, args: &[&str]) -> String {
        let mut command = Command::new("buildah");
        command.arg("--root").arg(self.dir.join("root")).arg("--runroot").arg(self.dir.join("run"));
        command.args(["--storage-driver", "vfs"]).args(args);
        let output = command.current_dir(self.dir.parent().unwrap()).output().unwrap();
        assert!(output.status.success(), "buildah {args:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8_lossy(&output.stdout).trim().to_owned()
    }
}

pub fn compare(peer: &Peer) {
    let (fixture, store) = (Fixture::shared(), Store::shared());
    let context = fixture.context(peer.files);
    archives(&context);
    fs::write(context.with_extension("secret"), "hush").unwrap();
    let secret = format!("id=s,src={}", context.with_extension("secret").display());
    let mut args = vec!["--secret", &secret];
    args.extend(peer.args);
    let ours = fixture.build_ok(&context, peer.text, &args);

    let file = context.with_extension("file-peer");
    fs::write(&file, peer.text).unwrap();
    let mut snippets = vec!["build", "--isolation", "chroot", "--network", "host", "--format", "docker", "-q"];
    snippets.extend(&args);
    snippets.extend(["-f", file.to_str().unwrap(), context.to_str().unwrap()]);
    let theirs = store.buildah(&snippets);
    let container = store.buildah(&["from", &theirs]);
    let mounted = store.buildah(&["mount", &container]);
    let tree: BTreeSet<String> = listing(Path::new(&mounted)).into_iter().filter(|line| counts(line)).collect();
    let is_theirs = |line: &String| THEIRS.contains(&line.split(' ').nth(3).unwrap_or_default());
    let missing = |has: &BTreeSet<String>, of: &BTreeSet<String>| -> Vec<String> {
        of.iter().filter(|line| !has.contains(*line) && !is_theirs(line)).cloned().collect()
    };
    let own = fixture.tree(&ours);
    let difference = (missing(&tree, &own), missing(&own, &tree));
    assert_eq!(difference, (Vec::new(), Vec::new()), "only in ours, only in theirs");
    store.buildah(&["umount", &container]);

    let inspected: Value = serde_json::from_str(&store.buildah(&["inspect", "--type", "image", &theirs])).unwrap();
    let (mut their_config, config) = (inspected["Docker"]["config"].clone(), fixture.config(&ours));
    if let Some(labels) = their_config["Labels"].as_object_mut() {
        labels.remove("io.buildah.version");
    }
    for key in [
        "Env",
        "Cmd",
        "Entrypoint",
        "User",
        "WorkingDir",
        "ExposedPorts",
        "Volumes",
        "StopSignal",
        "Labels",
        "Shell",
        "OnBuild",
        "Healthcheck",
    ] {
        assert_eq!(reported(&config[key]), reported(&their_config[key]), "{key}");
    }
}

/// Nothing has many forms in an image's config.
fn reported(value: &Value) -> Value {
    match value {
        Value::Object(map) if map.is_empty() => Value::Null,
        Value::Array(all) if all.is_empty() => Value::Null,
        Value::String(text) if text.is_empty() => Value::Null,
        other => other.clone(),
    }
}

/// `plain.tar` and `packed.tar.gz` for contexts with a directory `tar`.
fn archives(context: &Path) {
    if !context.join("tar").exists() {
        return;
    }
    for (name, flag) in [("plain.tar", "-cf"), ("packed.tar.gz", "-czf")] {
        let status =
            Command::new("tar").arg(flag).arg(context.join(name)).arg("-C").arg(context.join("tar")).arg(".").status();
        assert!(status.unwrap().success());
    }
}

const PEER: Peer = Peer { name: "", files: &[], text: "", args: &[] };

pub const PEERS: &[Peer] = &[
    Peer {
        name: "everything_once",
        files: &[("dir/keep", "k"), ("dir/drop", "d"), ("700:dir/sub/", ""), ("a.txt", "a"), ("b.txt", "b")],
        text: "FROM box\nENV A=1\nARG WHO=me\nLABEL a=\"b c\"\nWORKDIR /work\nCOPY --chown=5:6 dir /data\nCOPY *.txt ./\n\
            RUN echo \"$WHO $A\" >out && rm /data/drop && ln out hard\nRUN echo x >/tmp/x && chown 7:8 /tmp/x\nADD a.txt /added/\n\
            USER 5:6\nEXPOSE 80 90/udp\nVOLUME /v\nCMD [\"sh\"]\nENTRYPOINT [\"a\"]\nCMD b $c\nSTOPSIGNAL SIGINT\n",
        ..PEER
    },
    Peer {
        name: "copies",
        files: &[
            ("600:f", "f"),
            ("d/x", "x"),
            ("d/s/y", "y"),
            ("711:d/closed/", ""),
            ("d/link", "->x"),
            ("d/dangling", "->nowhere"),
            ("a1", "1"),
            ("a2", "2"),
        ],
        text: "FROM box\nCOPY f /new/name\nCOPY f /new/dir/\nCOPY f /tmp\nCOPY d /d1\nCOPY d/ /d2/\nCOPY d /tmp\nCOPY d/x f /many/\n\
            COPY a? /q/\nCOPY [\"a1\", \"/with blank/a1\"]\nCOPY --chmod=640 f /mode\nCOPY --chown=me:staff d /owned\n\
            COPY --chown=me f /home/me/f\nWORKDIR /w/x\nCOPY f .\nCOPY f ..\nCOPY d/s/ sub/\nCOPY d/link /followed\n",
        ..PEER
    },
    Peer {
        name: "copies_into_links",
        files: &[("f", "f"), ("d/x", "x")],
        text: "FROM box\nRUN mkdir -p /real/deep && ln -s real /alias && ln -s /real/deep /tmp/abs && ln -s ../../.. /real/up\n\
            COPY f /alias/\nCOPY d /alias/d\nCOPY f /tmp/abs/g\nCOPY d /real/up/real/h\n",
        ..PEER
    },
    Peer {
        name: "stages",
        files: &[("f", "f")],
        text: "FROM box AS one\nRUN mkdir /d && echo 1 >/d/one && ln -s one /d/l && chown 3:4 /d/one\nCOPY f /d/f\n\
            FROM one AS two\nRUN echo 2 >/d/two\nFROM box AS unused\nRUN false\nFROM scratch AS small\nCOPY f /only\n\
            FROM box\nCOPY --from=one /d /one\nCOPY --from=two /d/two /d/f /two/\nCOPY --from=0 /d/one /zero\nCOPY --from=small / /s/\n",
        ..PEER
    },
    Peer {
        name: "a_target",
        text: "FROM box AS a\nRUN echo a >/a\nLABEL x=a\nFROM box\nRUN false\n",
        args: &["--target", "a"],
        ..PEER
    },
    Peer {
        name: "arguments_and_words",
        text: "ARG V=1\nFROM box\nARG V\nARG W=${V}w X\nENV A=$W B=\"q $X\" C='$W' D=a\\ b E=${N:-dflt} F=${X:+yes} G=\nENV H old $V form\n\
            ENV A=again I=$A\nRUN echo \"$V|$W|$X|$A|$B|$C|$D|$E|$F|$G|$H|$I\" >/words\nLABEL l.$V=$A \"m n\"=\"o\\\"p\" q=\n\
            ENV LONG=one\\\n-two\nUSER $V:2\nWORKDIR /$V/${W}\nEXPOSE ${V}00\n",
        args: &["--build-arg", "X=x", "--build-arg", "V=7"],
        ..PEER
    },
    Peer {
        name: "archives",
        files: &[("tar/a", "a"), ("tar/d/b", "b"), ("750:tar/d/e/", ""), ("tar/l", "->a"), ("f", "f")],
        text: "FROM box\nADD plain.tar /p/\nADD packed.tar.gz /g\nCOPY plain.tar /c/\nADD f /f\nADD tar/d /t/\nADD plain.tar f /both/\n",
        ..PEER
    },
    Peer {
        name: "what_commands_do_to_files",
        text: "FROM box\nRUN mkdir -p /d/a/b /k && echo 1 >/d/a/b/c && echo 2 >/d/two && ln /d/two /d/hard && echo l >/d/l && ln -s two /d/soft && mkfifo -m 600 /d/fifo\n\
            RUN rm -r /d/a && mkdir /d/a && echo new >/d/a/new\nRUN mv /d/two /d/moved && chown 9:10 /d/l && chmod 4755 /d/l\n\
            RUN rm /etc/group && rm -r /k && echo file >/k\nRUN rm /d/soft && mkdir /d/soft && touch /d/soft/x\nRUN chmod 700 /d && chown -h 5:5 /tmp\n\
            RUN dd if=/dev/zero of=/sparse bs=1 count=1 seek=100000 2>/dev/null\nRUN echo more >>/k\n",
        ..PEER
    },
    Peer {
        name: "mounts",
        files: &[("m/x", "x"), ("m/y", "y")],
        text: "FROM box AS other\nRUN echo o >/o\nFROM box\nRUN --mount=type=bind,source=m,target=/m cp /m/x /m/y /tmp/\n\
            RUN --mount=type=bind,from=other,source=/,target=/other cp /other/o /o\nRUN --mount=type=tmpfs,target=/scratch echo s >/scratch/s\n\
            RUN --mount=type=cache,target=/cache echo c >/cache/c && cp /cache/c /c\n\
            RUN --mount=type=secret,id=s cat /run/secrets/s | wc -c >/length\n",
        ..PEER
    },
    Peer {
        name: "config",
        text: "FROM box\nMAINTAINER nobody\nENTRYPOINT exec top -b\nEXPOSE 80 81/tcp 82/udp\nVOLUME [\"/v\", \"/v2\"]\nSHELL [\"/bin/ash\", \"-ec\"]\n\
            RUN echo $- >/flags\nCMD echo $HOME\nHEALTHCHECK --interval=5s --timeout=1m30s --retries=2 CMD wget -q x || exit 1\n\
            STOPSIGNAL 9\nCMD [\"a\", \"b c\"]\n",
        ..PEER
    },
    Peer {
        name: "an_entrypoint_and_the_command_below",
        text: "FROM box AS a\nENTRYPOINT [\"x\"]\nCMD [\"y\"]\nFROM a\nENTRYPOINT [\"z\"]\n",
        ..PEER
    },
    Peer {
        name: "users_and_directories",
        text: "FROM box\nUSER me\nWORKDIR /made/by\nRUN id -u >/tmp/id && id -G >>/tmp/id && pwd >>/tmp/id && umask >>/tmp/id\nUSER 7\n\
            RUN id -u >/tmp/seven && id -g >>/tmp/seven\nUSER root\nWORKDIR ../rel\nRUN pwd >here && echo $HOME >>here\n",
        ..PEER
    },
    Peer {
        name: "lines",
        text: "# escape=`\n# a comment\nfrom box\n\nRun echo one `\n\n  # inside\n  && echo two >/two`\n   && echo \"a # no comment\" >/three\n\
            run echo $((1<<2)) 'it'\"'\"'s' \"a\tb\" >/four # the shell's comment\n",
        ..PEER
    },
    Peer {
        name: "what_is_ignored",
        files: &[
            (
                ".dockerignore",
                "# a comment\n*.log\n**/tmp\n/root-only\nkeep/*\n!keep/this\n!**/important.log\n./cleaned/../d/gone\nd?/x\n",
            ),
            ("a.log", ""),
            ("d/b.log", ""),
            ("d/important.log", ""),
            ("d/tmp/x", ""),
            ("tmp/x", ""),
            ("root-only", ""),
            ("d/root-only", ""),
            ("keep/this", ""),
            ("keep/that", ""),
            ("d/gone", ""),
            ("d1/x", ""),
            ("d1/y", ""),
        ],
        text: "FROM box\nCOPY . /all/\nCOPY d* /some/\n",
        ..PEER
    },
];
