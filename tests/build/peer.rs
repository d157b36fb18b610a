//! buildah's result for the same Containerfile: the same tree, the same config.

use std::fs;
use std::process::Command;

use crate::place::{Place, counts, listing};

const TEXT: &str = "FROM scratch AS base\nCOPY busybox /bin/\nRUN [\"/bin/busybox\", \"--install\", \"-s\", \"/bin\"]\nENV PATH=/bin A=1\n\
    FROM base\nARG WHO=me\nLABEL a=\"b c\"\nWORKDIR /work\nCOPY --chown=5:6 dir /data\nCOPY *.txt ./\nRUN echo \"$WHO $A\" >out && rm /data/drop && ln out hard\n\
    RUN mkdir -m 1777 /tmp && echo x >/tmp/x && chown 7:8 /tmp/x\nADD a.txt /added/\nUSER 5:6\nEXPOSE 80 90/udp\nVOLUME /v\nCMD [\"sh\"]\nENTRYPOINT [\"a\"]\nCMD b $c\nSTOPSIGNAL SIGINT\n";

pub fn is_there() -> bool {
    Command::new("buildah").arg("--version").output().is_ok_and(|output| output.status.success())
}

pub fn compare() {
    let place = Place::new();
    let context =
        place.context(&[("dir/keep", "k"), ("dir/drop", "d"), ("700:dir/sub/", ""), ("a.txt", "a"), ("b.txt", "b")]);
    fs::copy("/bin/busybox", context.join("busybox")).unwrap();
    place.build_ok(&context, TEXT, &["-t", "ours"]);
    let ours = place.tree("ours");
    let config = place.config("ours");

    let file = context.with_extension("file-peer");
    fs::write(&file, TEXT).unwrap();
    let store = place.dir.join("buildah");
    let buildah = |args: &[&str]| {
        let mut command = Command::new("buildah");
        command.arg("--root").arg(store.join("root")).arg("--runroot").arg(store.join("run"));
        let output = command.args(["--storage-driver", "vfs"]).args(args).current_dir(&place.dir).output().unwrap();
        assert!(output.status.success(), "buildah {args:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8_lossy(&output.stdout).trim().to_owned()
    };
    buildah(&[
        "build",
        "--isolation",
        "chroot",
        "--network",
        "host",
        "-q",
        "-t",
        "theirs",
        "-f",
        file.to_str().unwrap(),
        context.to_str().unwrap(),
    ]);
    let container = buildah(&["from", "theirs"]);
    let mounted = buildah(&["mount", &container]);
    let theirs: std::collections::BTreeSet<String> = listing(std::path::Path::new(&mounted))
        .into_iter()
        .filter(|line| counts(line))
        // buildah leaves its own mount points behind, and makes the directory of a VOLUME; we leave both to whoever runs it.
        .filter(|line| {
            ![
                "/etc",
                "/etc/hosts",
                "/etc/hostname",
                "/etc/resolv.conf",
                "/proc",
                "/sys",
                "/dev",
                "/run",
                "/run/.containerenv",
                "/v",
            ]
            .contains(&line.split(' ').nth(3).unwrap_or_default())
        })
        .collect();
    assert_eq!(ours, theirs);
    let inspected: serde_json::Value =
        serde_json::from_str(&buildah(&["inspect", "--type", "image", "theirs"])).unwrap();
    let their_config = &inspected["Docker"]["config"];
    for key in ["Env", "Cmd", "Entrypoint", "User", "WorkingDir", "ExposedPorts", "Volumes", "StopSignal"] {
        assert_eq!(config[key], their_config[key], "{key}");
    }
    assert_eq!(config["Labels"]["a"], their_config["Labels"]["a"]);
    buildah(&["umount", &container]);
}
