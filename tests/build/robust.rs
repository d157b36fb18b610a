//! The cache, reproducible layers, builds side by side, and builds that are killed.

use std::fs;
use std::io::{BufRead, BufReader, Lines};
use std::path::PathBuf;
use std::process::{Child, ChildStderr, Command, Stdio};
use std::time::{Duration, Instant};

use crate::fixture::Fixture;

pub const TESTS: &[(&str, fn())] = &[
    ("robust::a_rebuild_without_changes_is_quick_and_the_same", rebuild),
    ("robust::the_cache_knows_contents_not_times", contents),
    ("robust::what_a_step_depends_on_changes_its_key", keys),
    ("robust::the_same_input_twice_is_the_same_image", reproducible),
    ("robust::two_builds_at_once", at_once),
    ("robust::a_name_moves_only_to_a_whole_image", names),
    ("robust::killed_builds_leave_nothing_and_can_be_done_again", killed),
    ("robust::what_is_removed_beside_a_build_is_not_missed", removed_beside),
    ("robust::removals_beside_a_killed_build_leave_nothing", killed_beside),
    ("robust::limits_hold_in_a_build", limits),
    ("robust::a_large_context", large_context),
    ("robust::files_that_change_meanwhile", changing),
    ("robust::cache_mounts_are_kept_and_locked", cache_mounts),
];

const STEPS: &str = "FROM box\nCOPY x /x\nRUN echo one >/one\nWORKDIR /w\nRUN echo two >two\nENV A=1\n";

fn cached(text: &str) -> usize {
    text.lines().filter(|line| line.ends_with(" CACHED")).count()
}

fn rebuild() {
    let fixture = Fixture::shared();
    let context = fixture.context(&[("x", "rebuild")]);
    let began = Instant::now();
    let first = fixture.build_ok(&context, STEPS, &[]);
    let whole = began.elapsed();
    let began = Instant::now();
    let answer = fixture.build(&context, STEPS, &[]);
    // A second, and on a busy machine at least less than the steps themselves take.
    assert!(began.elapsed() < whole.max(Duration::from_secs(1)), "{:?}, and {whole:?} at first", began.elapsed());
    assert_eq!((answer.out.trim(), cached(&answer.err)), (first.as_str(), 4), "{}", answer.err);
    let again = fixture.build(&context, STEPS, &["--no-cache"]);
    assert_eq!((again.code, cached(&again.err)), (0, 0), "{}", again.err);
}

fn contents() {
    let fixture = Fixture::shared();
    let context = fixture.context(&[("x", "contents")]);
    fixture.build_ok(&context, STEPS, &[]);
    let file = fs::File::options().write(true).open(context.join("x")).unwrap();
    file.set_modified(std::time::SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000)).unwrap();
    assert_eq!(cached(&fixture.build(&context, STEPS, &[]).err), 4, "a touched file is the same file");
    fs::write(context.join("x"), "CONTENTS").unwrap();
    assert_eq!(cached(&fixture.build(&context, STEPS, &[]).err), 0, "another content is another file");
}

fn keys() {
    let fixture = Fixture::shared();
    let context = fixture.context(&[("x", "keys")]);
    let text =
        |user: &str, env: &str, command: &str| format!("FROM box\nUSER {user}\nENV E={env}\nRUN {command} # keys\n");
    fixture.build_ok(&context, &text("0", "1", "true"), &[]);
    assert_eq!(cached(&fixture.build(&context, &text("0", "1", "true"), &[]).err), 1);
    for (user, env, command) in [("1", "1", "true"), ("0", "2", "true"), ("0", "1", "true ")] {
        let answer = fixture.build(&context, &text(user, env, &format!("{command}; true")), &[]);
        assert_eq!((answer.code, cached(&answer.err)), (0, 0), "{user} {env} {command}");
    }
    let text = "FROM box\nARG A\nRUN echo $A >/a\n";
    fixture.build_ok(&context, text, &["--build-arg", "A=1"]);
    assert_eq!(cached(&fixture.build(&context, text, &["--build-arg", "A=2"]).err), 0);
    assert_eq!(cached(&fixture.build(&context, text, &["--build-arg", "A=1"]).err), 1);
}

fn reproducible() {
    let (one, two) = (Fixture::new(), Fixture::new());
    let text = "FROM scratch\nCOPY busybox /bin/\nRUN [\"/bin/busybox\", \"--install\", \"-s\", \"/bin\"]\nENV PATH=/bin\n\
        WORKDIR /d\nCOPY <<x y\ntext\nx\nRUN echo a >b && mkdir c && ln b c/d && rm y\n";
    let build = |fixture: &Fixture| {
        let context = fixture.context(&[]);
        fs::copy("/bin/busybox", context.join("busybox")).unwrap();
        fixture.build_ok(&context, text, &["--build-arg", "SOURCE_DATE_EPOCH=1600000000", "-t", "r"])
    };
    let first = build(&one);
    assert_eq!(build(&two), first);
    // Both builds may run within one second, so the times of the files are compared separately.
    one.ok(&["image", "unpack", "r", "unpacked"]);
    let unpacked = one.dir.join("unpacked");
    let late = Command::new("find").arg(&unpacked).args(["-newermt", "@1600000000"]).output().unwrap();
    assert!(late.status.success());
    assert_eq!(String::from_utf8_lossy(&late.stdout), "");
    assert!(unpacked.join("d/b").exists() && !unpacked.join("d/y").exists());
    let config = one.dir.join("root/images").join(first.trim_start_matches("sha256:")).join("config.json");
    let config: serde_json::Value = serde_json::from_slice(&fs::read(config).unwrap()).unwrap();
    let steps = config["history"].as_array().unwrap();
    let made =
        |about: &serde_json::Value| about["created"].as_str().unwrap_or_default().starts_with("2020-09-13T12:26:40");
    assert!(steps.len() > 4 && steps.iter().chain([&config]).all(made), "{config}");
}

fn at_once() {
    let fixture = Fixture::with_box();
    let context = fixture.context(&[("x", "at once")]);
    let text = "FROM box\nCOPY x /x\nRUN echo . >>/tmp/runs; sleep 1; echo a >/a\nRUN sleep 0.5; echo b >/b\n";
    let file = context.with_extension("file-once");
    fs::write(&file, text).unwrap();
    let spawn = |name: &str| {
        let args = ["build", "-t", name, "-f", file.to_str().unwrap(), context.to_str().unwrap()];
        fixture.command(&args).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
    };
    let children = [spawn("one"), spawn("two"), spawn("three")];
    let outputs = children.map(|child| child.wait_with_output().unwrap());
    let mut steps_made = 0;
    for output in &outputs {
        let err = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{err}");
        steps_made += 3 - cached(&err);
    }
    assert_eq!(steps_made, 3, "each step was made by one of them");
    assert_eq!(outputs[0].stdout, outputs[1].stdout);
    assert_eq!(fixture.config("two"), fixture.config("three"));
    fixture.ok(&["image", "verify"]);
}

fn names() {
    let fixture = Fixture::shared();
    let context = fixture.context(&[]);
    let first = fixture.build_ok(&context, "FROM box\nRUN echo first >/n\n", &["-t", "moving"]);
    assert_eq!(fixture.build(&context, "FROM box\nRUN echo second >/n && false\n", &["-t", "moving"]).code, 1);
    let id = |name: &str| {
        let text = fixture.ok(&["image", "inspect", name]);
        serde_json::from_str::<serde_json::Value>(&text).unwrap()[0]["Id"].as_str().unwrap().to_owned()
    };
    assert_eq!(id("moving"), first);
    let second = fixture.build_ok(&context, "FROM box\nRUN echo second >/n\n", &["-t", "moving", "-t", "other:1"]);
    assert_eq!((id("moving"), id("other:1")), (second.clone(), second));
}

fn killed() {
    let fixture = Fixture::with_box();
    let context = fixture.context(&[("x", "killed")]);
    const SECRET: &str = "correct-horse-battery-and-a-dozen-staples";
    let elsewhere = tempfile::tempdir().unwrap();
    fs::write(elsewhere.path().join("token"), SECRET).unwrap();
    let secret = format!("id=token,src={}", elsewhere.path().join("token").display());
    let text = "FROM box\nCOPY x /x\nRUN --mount=type=secret,id=token --mount=type=secret,id=token,env=TOKEN dd if=/dev/zero of=/big bs=1M count=8 2>/dev/null; sleep 0.05; echo 1 >/1\nRUN echo 2 >/2; sleep 0.05\nCOPY x /y\nRUN rm /1\n";
    let file = context.with_extension("file-killed");
    fs::write(&file, text).unwrap();
    let args = [
        "build",
        "-t",
        "whole",
        "--secret",
        &secret,
        "--no-cache",
        "-f",
        file.to_str().unwrap(),
        context.to_str().unwrap(),
    ];
    let began = Instant::now();
    fixture.ok(&args);
    let whole = began.elapsed();
    let expected = fixture.tree("whole");
    fixture.ok(&["image", "rm", "whole"]);
    for round in 0..12u32 {
        let mut child = fixture.command(&args).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        // Spread over the length of a build.
        std::thread::sleep(whole * round / 12);
        child.kill().unwrap();
        child.wait().unwrap();
        // The name is given to a whole image in the last moment, or not at all.
        if fixture.run(&["image", "inspect", "whole"]).code == 0 {
            assert_eq!(fixture.tree("whole"), expected, "round {round}");
            fixture.ok(&["image", "rm", "whole"]);
        }
        assert_eq!(fixture.ok(&["ps", "-aq"]), "", "round {round}: no step is a container of anybody's");
    }
    fixture.ok(&["build", "-t", "whole", "--secret", &secret, "-f", file.to_str().unwrap(), context.to_str().unwrap()]);
    assert_eq!(fixture.tree("whole"), expected);
    fixture.ok(&["image", "verify"]);
    // A step's supervisor ends when it sees that its build is gone; then the next command clears the rest away.
    let deadline = Instant::now() + Duration::from_secs(60);
    loop {
        fixture.ok(&["ps", "-a"]);
        let left = |dir: &str| {
            let names = fs::read_dir(fixture.dir.join(dir)).unwrap().flatten().map(|entry| entry.file_name());
            names.filter(|name| name.len() == 64 || dir == "root/tmp").count()
        };
        if left("root/containers") + left("run") + left("root/tmp") == 0 {
            break;
        }
        assert!(Instant::now() < deadline, "something is left in {}", fixture.dir.display());
        std::thread::sleep(Duration::from_millis(50));
    }
    let found = crate::hostile::files_with(&fixture.dir, SECRET.as_bytes());
    assert!(found.is_empty(), "a killed build leaves its secret in {found:?}");
}

/// A build in the middle of a `RUN` that waits for the file `go` in a cache mount; before it and after it, it needs images that nothing else uses.
struct Waiting {
    fixture: Fixture,
    build: Child,
    lines: Lines<BufReader<ChildStderr>>,
}

impl Waiting {
    fn new() -> Self {
        let fixture = Fixture::with_box();
        fixture.build_ok(&fixture.context(&[]), "FROM box\nRUN echo other >/other\n", &["-t", "other"]);
        let context = fixture.context(&[]);
        let file = context.with_extension("file-waits");
        let text = "FROM other AS tools\nRUN echo tool >/tool\nFROM box\nCOPY --from=other /other /first\n\
            RUN --mount=type=cache,target=/m echo it is $((40+2)); until [ -e /m/go ]; do sleep 0.05; done; mkdir /ran\n\
            COPY --from=tools /tool /tool\nCOPY --from=other /other /second\nRUN cat /tool /second >/all\n";
        fs::write(&file, text).unwrap();
        let mut build =
            fixture.command(&["build", "-t", "made", "-f", file.to_str().unwrap(), context.to_str().unwrap()]);
        let mut build = build.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
        let mut lines = BufReader::new(build.stderr.take().unwrap()).lines();
        assert!(lines.any(|line| line.unwrap().contains("it is 42")));
        Self { fixture, build, lines }
    }

    /// The ids of steps' images.
    fn steps(&self) -> Vec<String> {
        let images = fs::read_dir(self.fixture.dir.join("root/images")).unwrap().flatten().map(|entry| entry.path());
        let is_step = |path: &PathBuf| {
            let record = fs::read_to_string(path.join("image.json")).unwrap_or_default();
            record.contains("\"intermediate\": true")
        };
        images.filter(is_step).map(|path| path.file_name().unwrap().to_string_lossy().into_owned()).collect()
    }

    /// When nothing is in the store, nothing is left of it, and no mount.
    #[track_caller]
    fn assert_empty(&self) {
        for dir in ["root/layers", "root/dirs", "root/images"] {
            let left: Vec<_> = fs::read_dir(self.fixture.dir.join(dir)).unwrap().collect();
            assert!(left.is_empty(), "{dir}: {left:?}");
        }
        self.assert_no_mount();
    }

    #[track_caller]
    fn assert_no_mount(&self) {
        let mounts = fs::read_to_string("/proc/self/mounts").unwrap();
        let images = self.fixture.dir.join("run/images");
        let ours: Vec<_> = mounts.lines().filter(|line| line.contains(images.to_str().unwrap())).collect();
        assert!(ours.is_empty(), "{ours:?}");
    }
}

fn removed_beside() {
    let mut waiting = Waiting::new();
    let fixture = &waiting.fixture;
    // The image of the running step is in use, and the message says so; the others are not in use.
    let refused: Vec<_> =
        waiting.steps().iter().map(|id| fixture.run(&["image", "rm", id])).filter(|rm| rm.code != 0).collect();
    assert_eq!(refused.len(), 1);
    assert!(refused[0].code == 1 && refused[0].err.contains("a build uses it"), "{}", refused[0].err);
    fixture.ok(&["image", "rm", "box", "other"]);
    fixture.ok(&["image", "prune", "--all", "--force"]);
    assert_eq!((fixture.ok(&["image", "ls", "-q"]), waiting.steps().len()), (String::new(), 1));
    waiting.fixture.in_caches("go");
    let rest: Vec<String> = waiting.lines.by_ref().map_while(Result::ok).collect();
    assert!(waiting.build.wait().unwrap().success(), "{rest:#?}");
    let tree = waiting.fixture.tree("made");
    for line in ["f 644 0:0 /first other|", "f 644 0:0 /second other|", "f 644 0:0 /all tool|other|", "d 755 0:0 /ran"]
    {
        assert!(tree.contains(line), "{line}: {tree:#?}");
    }
    waiting.fixture.ok(&["image", "verify"]);
    waiting.fixture.ok(&["image", "rm", "made"]);
    waiting.fixture.ok(&["image", "prune", "--all", "--force"]);
    waiting.assert_empty();
}

fn killed_beside() {
    let mut waiting = Waiting::new();
    waiting.fixture.ok(&["image", "rm", "box", "other"]);
    waiting.build.kill().unwrap();
    waiting.build.wait().unwrap();
    // The step's supervisor ends when it sees that its build is gone; until then its image is in use, and leased.
    let deadline = Instant::now() + Duration::from_secs(60);
    while !waiting.steps().is_empty() {
        waiting.fixture.ok(&["image", "prune", "--all", "--force"]);
        assert!(Instant::now() < deadline, "{:?} stay", waiting.steps());
    }
    // What its lease had kept from the removal goes with the next command, whichever that is.
    while fs::read_dir(waiting.fixture.dir.join("root/tmp")).unwrap().next().is_some()
        || fs::read_to_string("/proc/self/mounts")
            .unwrap()
            .contains(waiting.fixture.dir.join("run/images").to_str().unwrap())
    {
        waiting.fixture.ok(&["image", "ls"]);
        assert!(Instant::now() < deadline, "workplaces or mounts stay");
    }
    waiting.assert_empty();
}

fn limits() {
    let fixture = Fixture::shared();
    let text = "FROM box\nRUN x=$(dd if=/dev/zero bs=1M count=200 2>/dev/null | tr '\\0' a); echo done >/done\n";
    let answer = fixture.build(&fixture.context(&[]), text, &["--memory", "32m", "--memory-swap", "32m"]);
    assert!(
        answer.code == 1 && answer.err.contains("OOM killer") && answer.err.contains("--memory 32m"),
        "{}",
        answer.err
    );
}

fn large_context() {
    let fixture = Fixture::shared();
    let context = fixture.context(&[]);
    for dir in 0..100 {
        let dir = context.join(format!("d{dir}"));
        fs::create_dir(&dir).unwrap();
        (0..1000).for_each(|file| fs::write(dir.join(format!("f{file}")), format!("{file}")).unwrap());
    }
    let id = fixture.build_ok(&context, "FROM box\nCOPY . /big\n", &[]);
    let dir = fixture.dir.join("unpacked-large");
    fixture.ok(&["image", "unpack", &id, dir.to_str().unwrap()]);
    let output = Command::new("diff").arg("-r").arg(&context).arg(dir.join("big")).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
}

fn changing() {
    let fixture = Fixture::shared();
    let context = fixture.context(&[("f", "")]);
    let stop = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut round = 0u64;
            while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                round += 1;
                let _ = fs::write(context.join("f"), format!("{round}\n").repeat((round % 40_000) as usize));
            }
        });
        for _ in 0..8 {
            let answer = fixture.build(&context, "FROM box\nCOPY f /f\n", &[]);
            // Either the file as it was at one moment, or an error that says so: never a mixture.
            if answer.code == 0 {
                let dir = fixture.dir.join("changing");
                fixture.ok(&["image", "unpack", answer.out.trim(), dir.to_str().unwrap()]);
                let text = fs::read_to_string(dir.join("f")).unwrap();
                let mut lines: Vec<&str> = text.lines().collect();
                lines.dedup();
                assert!(lines.len() <= 1 || !text.ends_with('\n'), "two contents in one file");
                fs::remove_dir_all(dir).unwrap();
            } else {
                assert!(answer.err.contains("it changed during the build"), "{}", answer.err);
            }
        }
        stop.store(true, std::sync::atomic::Ordering::Relaxed);
    });
}

fn cache_mounts() {
    let fixture = Fixture::with_box();
    let context = fixture.context(&[]);
    let text = |n: u32| {
        format!(
            "FROM box\nRUN --mount=type=cache,target=/c,sharing=locked,mode=0700,uid=5 echo {n} >>/c/log && cp /c/log /log && ls -ldn /c >/dir\n"
        )
    };
    fixture.build_ok(&context, &text(1), &["-t", "m"]);
    fixture.build_ok(&context, &text(2), &["-t", "m"]);
    let news = fixture.news("m");
    assert!(news.contains(&"f 644 0:0 /log 1|2|".to_owned()), "{news:?}");
    assert!(news.iter().any(|line| line.contains("/dir drwx------") && line.contains(" 5 ")), "{news:?}");
}
