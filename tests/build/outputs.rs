//! What becomes of a built image besides its place in the store, and what a build gives its steps: `--output`, `--push`, `--ssh`,
//! `--shm-size`, `--metadata-file`.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::net::UnixListener;

use crate::fixture::Fixture;

pub const TESTS: &[(&str, fn())] = &[
    ("outputs::the_files_of_an_image_are_written_to_a_directory", directory),
    ("outputs::archives_are_written_to_files_and_pipes", archives),
    ("outputs::the_flags_of_scripts_are_accepted", accepted),
    ("outputs::what_cannot_be_written_is_refused_before_the_build", refused),
    ("outputs::an_agent_is_forwarded_to_the_steps_that_ask", agent),
    ("outputs::a_step_has_the_shared_memory_that_is_given", shared_memory),
];

const NO_NETWORK: [&str; 2] = ["--network", "none"];

fn directory() {
    let fixture = Fixture::with_box();
    let context = fixture.context(&[("sub/file", "new"), ("4755:tool", "x"), ("link", "->/etc/passwd")]);
    let text = "FROM scratch\nCOPY . /\n";
    let out = fixture.dir.join("out");
    fs::create_dir_all(out.join("sub")).unwrap();
    fs::write(out.join("sub/file"), "old").unwrap();
    fs::write(out.join("kept"), "mine").unwrap();
    // A link in the directory is replaced, never followed.
    fs::write(fixture.dir.join("outside"), "safe").unwrap();
    std::os::unix::fs::symlink(fixture.dir.join("outside"), out.join("tool")).unwrap();
    for output in [out.to_str().unwrap().to_owned(), format!("type=local,dest={}", out.display())] {
        fixture.build_ok(&context, text, &["-o", &output]);
        assert_eq!(fs::read_to_string(out.join("sub/file")).unwrap(), "new");
        assert_eq!(fs::read_to_string(out.join("kept")).unwrap(), "mine");
        assert_eq!(fs::read_to_string(fixture.dir.join("outside")).unwrap(), "safe");
        assert_eq!(fs::read_link(out.join("link")).unwrap().to_str(), Some("/etc/passwd"));
        let tool = out.join("tool").symlink_metadata().unwrap();
        assert!(tool.is_file() && tool.permissions().mode() & 0o7777 == 0o755, "no setuid bit: {:o}", tool.mode());
    }
    // The files belong to the caller behind sudo.
    let file = fixture.dir.join("Containerfile");
    fs::write(&file, text).unwrap();
    let mut command =
        fixture.command(&["build", "-o", "sudo", "-f", file.to_str().unwrap(), context.to_str().unwrap()]);
    assert!(command.env("SUDO_UID", "1234").env("SUDO_GID", "1235").output().unwrap().status.success());
    for name in ["sudo", "sudo/sub", "sudo/sub/file", "sudo/tool"] {
        let metadata = fixture.dir.join(name).metadata().unwrap();
        assert_eq!((metadata.uid(), metadata.gid()), (1234, 1235), "{name}");
    }
}

fn archives() {
    let fixture = Fixture::with_box();
    let context = fixture.context(&[("file", "content")]);
    let text = "FROM scratch\nCOPY file /file\n";
    let members = |bytes: &[u8]| {
        let mut archive = tar::Archive::new(bytes);
        let names: Vec<String> =
            archive.entries().unwrap().map(|entry| entry.unwrap().path().unwrap().display().to_string()).collect();
        names
    };
    let built = |args: &[&str]| {
        let file = fixture.dir.join("Containerfile");
        fs::write(&file, text).unwrap();
        let output = fixture
            .command(&[&["build", "-f", file.to_str().unwrap()], args, &[context.to_str().unwrap()]].concat())
            .output()
            .unwrap();
        assert!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
        output.stdout
    };
    assert!(members(&built(&["-o", "-"])).iter().any(|name| name.trim_start_matches("./") == "file"));
    built(&["--output", "type=tar,dest=files.tar"]);
    assert_eq!(members(&fs::read(fixture.dir.join("files.tar")).unwrap()), members(&built(&["-o", "type=tar"])));
    // The other archives are images that load under their name.
    for (output, file) in [("type=docker,dest=docker.tar", "docker.tar"), ("type=oci,dest=oci.tar", "oci.tar")] {
        built(&["-t", "named:1", "-o", output]);
        fixture.ok(&["rmi", "named:1"]);
        assert!(fixture.ok(&["load", "-i", file]).contains("named:1"), "{output}");
    }
    built(&["-t", "named:1", "-o", "type=oci,tar=false,dest=layout"]);
    assert!(fixture.dir.join("layout/oci-layout").exists());
    built(&["-o", "type=image,\"name=more:1,more:2\"", "-t", "more:3"]);
    built(&["-o", "type=cacheonly"]);
    built(&["-o", "type=docker,name=saved:1,dest=saved.tar,compression=gzip"]);
    fixture.ok(&["rmi", "saved:1"]);
    assert!(fixture.ok(&["load", "-i", "saved.tar"]).contains("saved:1"));
    // An image that other builds have named gets none of these names.
    built(&["-o", "type=docker,dest=unnamed.tar"]);
    assert!(fixture.ok(&["load", "-i", "unnamed.tar"]).starts_with("Loaded image ID: sha256:"));
    for name in ["more:1", "more:2", "more:3"] {
        fixture.ok(&["image", "inspect", name]);
    }
}

fn accepted() {
    let fixture = Fixture::with_box();
    let context = fixture.context(&[]);
    let args = [
        &["--load", "--rm", "--force-rm=true", "--cache-from", "box", "--build-arg", "BUILDKIT_INLINE_CACHE=1"][..],
        &["--progress=quiet", "--metadata-file", "metadata.json", "--iidfile", "id", "-t", "a:1", "-t", "b:1"],
    ]
    .concat();
    let answer = fixture.build(&context, "FROM box\n", &args);
    assert_eq!((answer.code, answer.err.as_str()), (0, ""), "{}", answer.out);
    let metadata: serde_json::Value =
        serde_json::from_str(&fs::read_to_string(fixture.dir.join("metadata.json")).unwrap()).unwrap();
    assert_eq!(metadata["containerimage.config.digest"], answer.out.trim());
    assert_eq!(metadata["image.name"], "a:1,b:1");
    assert_eq!(fs::read_to_string(fixture.dir.join("id")).unwrap(), answer.out.trim());
    // docker's other names for it.
    let file = fixture.dir.join("Containerfile");
    fs::write(&file, "FROM box\n").unwrap();
    let (file, context) = (file.to_str().unwrap(), context.to_str().unwrap());
    assert_eq!(fixture.ok(&["buildx", "build", "-q", "-f", file, context]), answer.out.trim());
}

fn refused() {
    let fixture = Fixture::shared();
    let context = fixture.context(&[]);
    for (args, want) in [
        (&["--push"][..], "cannot push the image: it has no name"),
        (&["-o", "type=registry"], "cannot push the image: it has no name"),
        (&["-o", "type=inline"], "the unknown type `inline`"),
        (&["-o", "/etc/passwd"], "it is not a directory"),
        (&["--ssh", "key=/etc/passwd"], "is not a socket"),
        (&["--shm-size", "much"], "--shm-size"),
    ] {
        let answer = fixture.build(&context, "FROM box\nRUN false\n", args);
        assert!(answer.code == 2 && answer.err.contains(want), "{args:?}: {} {}", answer.code, answer.err);
    }
}

/// What goes through the socket is tested in `build::agent`.
fn agent() {
    let fixture = Fixture::with_box();
    let context = fixture.context(&[]);
    let path = fixture.dir.join("agent");
    let _listener = UnixListener::bind(&path).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
    let text = "FROM box\nRUN --mount=type=ssh test $SSH_AUTH_SOCK = /run/buildkit/ssh_agent.0 && test -S $SSH_AUTH_SOCK && stat -c '%a %u' $SSH_AUTH_SOCK >/mode\n\
         RUN --mount=type=ssh,id=default,target=/agent,mode=0666,uid=1000 test $SSH_AUTH_SOCK = /agent && stat -c '%a %u' /agent >>/mode\n\
         RUN test -z \"$SSH_AUTH_SOCK\" && ! test -e /run/buildkit/ssh_agent.0\n\
         RUN --mount=type=ssh,id=other test -z \"$SSH_AUTH_SOCK\"\n";
    let ssh = format!("default={}", path.display());
    let args = [&NO_NETWORK[..], &["--ssh", &ssh, "-t", "asked"]].concat();
    fixture.build_ok(&context, text, &args);
    assert_eq!(fixture.ok(&["run", "--rm", "--network", "none", "asked", "cat", "/mode"]), "600 0\n666 1000");
    // Nothing of it is in the image, and a build without the agent says what is missing where it is required.
    assert!(!fixture.news("asked").join("\n").contains("ssh_agent"));
    let answer = fixture.build(&context, "FROM box\nRUN --mount=type=ssh,required=true true\n", &NO_NETWORK);
    assert!(answer.code == 1 && answer.err.contains("--ssh default"), "{}", answer.err);
}

fn shared_memory() {
    let fixture = Fixture::with_box();
    let context = fixture.context(&[]);
    let text = "FROM box\nRUN df -k /dev/shm | tail -n 1 | sed 's/  */ /g' | cut -d' ' -f2 >/size\n";
    for (size, want) in [("16m", "16384"), ("0", "65536")] {
        let args = [&NO_NETWORK[..], &["--no-cache", "--shm-size", size, "-t", "shm"]].concat();
        fixture.build_ok(&context, text, &args);
        assert_eq!(fixture.ok(&["run", "--rm", "--network", "none", "shm", "cat", "/size"]), want, "{size}");
    }
}
