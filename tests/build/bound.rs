//! What `RUN --mount=type=bind` shows of the context, and how much a Containerfile may ask for.

use std::fs;
use std::io::{BufRead, BufReader};
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use nix::fcntl::{Flock, FlockArg};

use crate::fixture::{Fixture, listing};

pub const TESTS: &[(&str, fn())] = &[
    ("bound::a_step_sees_the_context_that_its_key_describes", edited),
    ("bound::a_link_in_the_place_of_a_checked_directory_is_not_followed", swapped),
    ("bound::destinations_that_the_runtime_populates_leave_the_context_alone", populated),
    ("bound::directories_are_0755_under_any_umask", umask),
    ("bound::variables_that_double", doubling),
    ("bound::more_instructions_than_any_image_has", many),
];

fn start(fixture: &Fixture, context: &Path, text: &str) -> Child {
    let file = context.with_extension("file-bound");
    fs::write(&file, text).unwrap();
    let mut command = fixture.command(&["build", "-q", "-f", file.to_str().unwrap(), context.to_str().unwrap()]);
    command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
}

fn edited() {
    let fixture = Fixture::with_box();
    let context = fixture.context(&[("d/x", "original"), ("d/y", "deleted later")]);
    let text = "FROM box\nRUN --mount=type=bind,source=d,target=/m --mount=type=cache,target=/c \
        echo it is $((40+2)); until [ -e /c/go ]; do sleep 0.05; done; cat /m/x >/got; ls /m >/names\n";
    let file = context.with_extension("file-edited");
    fs::write(&file, text).unwrap();
    let mut command =
        fixture.command(&["build", "-t", "edited", "-f", file.to_str().unwrap(), context.to_str().unwrap()]);
    let mut build = command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(build.stderr.take().unwrap()).lines();
    assert!(lines.any(|line| line.unwrap().contains("it is 42")));
    fs::write(context.join("d/x"), "poisoned").unwrap();
    fs::remove_file(context.join("d/y")).unwrap();
    fixture.in_caches("go");
    lines.for_each(drop);
    assert!(build.wait().unwrap().success());
    fs::write(context.join("d/x"), "original").unwrap();
    fs::write(context.join("d/y"), "deleted later").unwrap();
    let seen = ["f 644 0:0 /got original", "f 644 0:0 /names x|y|"];
    assert_eq!(fixture.news("edited"), seen);
    // The same context again: what is in the cache is what it gives.
    let again = fixture.build(&context, text, &[]);
    assert!(again.code == 0 && again.err.contains("CACHED"), "{}", again.err);
    assert_eq!(fixture.news(again.out.trim()), seen);
}

/// Waits until a process waits for a lock.
fn wait_for_lock(child: &Child) {
    let deadline = Instant::now() + Duration::from_secs(60);
    let id = child.id().to_string();
    while !fs::read_to_string("/proc/locks")
        .unwrap()
        .lines()
        .any(|line| line.contains("->") && line.split_whitespace().any(|snippet| snippet == id))
    {
        assert!(Instant::now() < deadline, "the build never waits");
        std::thread::sleep(Duration::from_millis(10));
    }
}

fn swapped() {
    let fixture = Fixture::with_box();
    let secret = fixture.context(&[("x", "a secret of the host")]);
    let context = fixture.context(&[("d/x", "harmless"), ("f", "harmless")]);
    let text = |source: &str| {
        format!(
            "FROM box\nRUN --mount=type=cache,target=/c,sharing=locked --mount=type=bind,source={source},target=/m \
             cat /m/x /m >/got 2>/dev/null; true\n"
        )
    };
    // The first build makes the cache mount.
    fixture.build_ok(&context, &text("d"), &["--no-cache"]);
    let locks = fs::read_dir(fixture.dir.join("root/build/mounts")).unwrap().map(|entry| entry.unwrap().path());
    let lock = locks.into_iter().find(|path| path.extension().is_some_and(|kind| kind == "lock")).unwrap();
    for source in ["d", "f"] {
        // Between the look at the context, which makes the key, and the mount, the build waits for the cache.
        let held = Flock::lock(fs::File::open(&lock).unwrap(), FlockArg::LockExclusive).map_err(|(_, errno)| errno);
        let held = held.unwrap();
        fs::write(context.join("d/x"), format!("harmless beside {source}")).unwrap();
        fs::write(context.join("f"), "harmless now").unwrap();
        let build = start(&fixture, &context, &text(source));
        wait_for_lock(&build);
        fs::rename(context.join(source), context.join("away")).unwrap();
        symlink(if source == "d" { secret.clone() } else { secret.join("x") }, context.join(source)).unwrap();
        drop(held);
        let output = build.wait_with_output().unwrap();
        let err = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{err}");
        assert!(err.contains("it changed during the build"), "{err}");
        fs::remove_file(context.join(source)).unwrap();
        fs::rename(context.join("away"), context.join(source)).unwrap();
    }
    let layers = crate::hostile::files_with(&fixture.dir.join("root"), b"a secret of the host");
    assert!(layers.is_empty(), "{layers:?}");
}

fn populated() {
    let fixture = Fixture::shared();
    for target in ["/dev", "/dev/pts", "/proc", "/sys", "/proc/sys", "/run", "/etc"] {
        let context = fixture.context(&[("d/x", "x")]);
        let before = listing(&context);
        for flags in ["", ",rw"] {
            let text = format!("FROM box\nRUN --mount=type=bind,source=d,target={target}{flags} true\n");
            let answer = fixture.build(&context, &text, &["--no-cache"]);
            assert_eq!(listing(&context), before, "{target}{flags}");
            let reserved = ["/dev", "/proc", "/sys"].iter().any(|path| target.starts_with(path));
            assert_eq!(answer.code, i32::from(reserved), "{target}{flags}: {}", answer.err);
            assert_eq!(answer.err.contains(&format!("cannot mount on `{target}`")), reserved, "{}", answer.err);
        }
    }
}

fn umask() {
    let fixture = Fixture::shared();
    let context = fixture.context(&[("755:d/", ""), ("644:d/x", "x")]);
    let text = "FROM box\nWORKDIR /w/deep\nCOPY d/x /c/deep/\nADD d/x /a/deep/x\n\
        RUN --mount=type=bind,source=d,target=/m/deep --mount=type=tmpfs,target=/t/deep --mount=type=cache,target=/k/deep \
        stat -c '%a %u %n' / /m /m/deep /m/deep/x /t /k /k/deep >/modes; mkdir /made\n\
        USER me\nRUN --mount=type=bind,source=d,target=/n/deep cat /n/deep/x\n";
    let file = context.with_extension("file-umask");
    fs::write(&file, text).unwrap();
    let args = ["build", "--no-cache", "-q", "-t", "umask", "-f", file.to_str().unwrap(), context.to_str().unwrap()];
    let build = fixture.command(&args);
    let mut shell = std::process::Command::new("sh");
    shell.args(["-c", "umask 077; exec \"$@\"", "sh"]).arg(build.get_program()).args(build.get_args());
    for (name, value) in build.get_envs() {
        match value {
            Some(value) => shell.env(name, value),
            None => shell.env_remove(name),
        };
    }
    let output = shell.output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert_eq!(
        fixture.news("umask"),
        [
            "d 755 0:0 /a",
            "d 755 0:0 /a/deep",
            "f 644 0:0 /a/deep/x x",
            "d 755 0:0 /c",
            "d 755 0:0 /c/deep",
            "f 644 0:0 /c/deep/x x",
            "d 755 0:0 /made",
            "f 644 0:0 /modes 755 0 /|755 0 /m|755 0 /m/deep|644 0 /m/deep/x|755 0 /t|755 0 /k|755 0 /k/deep|",
            "d 755 0:0 /w",
            "d 755 0:0 /w/deep"
        ]
    );
    let unpacked = fixture.dir.join("umask-root");
    fixture.ok(&["image", "unpack", "umask", unpacked.to_str().unwrap()]);
    assert!(listing(&unpacked).iter().any(|line| line == "d 755 0:0 /"), "the root itself");
}

fn doubling() {
    let fixture = Fixture::shared();
    let context = fixture.context(&[]);
    let lines = |first: &str, line: &dyn Fn(usize) -> String| {
        (1..60).fold(format!("FROM box\n{first}\n"), |text, number| format!("{text}{}\n", line(number)))
    };
    let before = |number: usize| number - 1;
    let global =
        (1..60).fold("ARG a0=xxxxxxxx\n".to_owned(), |text, n| format!("{text}ARG a{n}=$a{0}$a{0}\n", before(n)));
    let global = format!("{global}FROM $a59\n");
    for text in [
        lines("ENV a0=xxxxxxxx", &|n| format!("ENV a{n}=$a{0}$a{0}", before(n))),
        lines("ARG a0=xxxxxxxx", &|n| format!("ARG a{n}=$a{0}$a{0}", before(n))),
        lines("ENV a0=xxxxxxxx", &|n| format!("LABEL l{n}=$a0\nENV a{n}=\"${{a{0}:-}}${{a{0}//x/xx}}\"", before(n))),
        global,
    ] {
        let began = Instant::now();
        let answer = fixture.build(&context, &text, &[]);
        assert!(answer.code != 0 && answer.err.contains("a value is longer than"), "{}", answer.err);
        assert!(began.elapsed() < Duration::from_secs(20), "{:?}", began.elapsed());
        assert!(answer.err.len() < 4000, "{}", answer.err.len());
    }
    // Many values that are each short enough.
    let text =
        (0..40).fold(format!("FROM box\nENV a={}\n", "x".repeat(200_000)), |text, n| format!("{text}ENV b{n}=$a\n"));
    let answer = fixture.build(&context, &text, &[]);
    assert!(answer.code == 1 && answer.err.contains("the image's config has more than 4 MiB"), "{}", answer.err);
}

fn many() {
    let fixture = Fixture::shared();
    let context = fixture.context(&[]);
    let answer = fixture.build(&context, &format!("FROM box\n{}", "ENV a=1\n".repeat(10_001)), &[]);
    assert!(answer.code == 1 && answer.err.contains("more than 10000 instructions"), "{}", answer.err);
    let answer = fixture.build(&context, &"FROM box\n".repeat(1_001), &[]);
    assert!(answer.code == 1 && answer.err.contains("more than 1000 stages"), "{}", answer.err);
    // Triggers of a base image count as often as they are carried out.
    let base = format!("FROM box\n{}", "ONBUILD ENV a=1\n".repeat(4_000));
    fixture.build_ok(&context, &base, &["-t", "triggers"]);
    let text = "FROM triggers AS a\nFROM triggers AS b\nFROM triggers\nCOPY --from=a /etc /a\nCOPY --from=b /etc /b\n";
    let answer = fixture.build(&context, text, &[]);
    assert!(answer.code == 1 && answer.err.contains("more than 10000 instructions"), "{}", answer.err);
}
