use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use super::shim::{KEPT_STDERR, Shim};
use super::*;
use crate::report::Report;

fn script(dir: &Path, name: &str, body: &str) -> PathBuf {
    let path = dir.join(name);
    std::fs::write(&path, format!("#!/bin/sh\n{body}\n")).unwrap();
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
    path
}

fn shim(path: &Path, timeout: Duration) -> Shim {
    Shim {
        name: "stand-in".into(),
        stage: "prestart".into(),
        timeout,
        report: None,
        path: path.to_owned(),
        args: vec!["stand-in".into(), "prestart".into(), "a b".into()],
    }
}

const LONG: Duration = Duration::from_secs(60);

#[test]
fn a_hook_gets_arguments_state_and_the_bundle() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("out");
    // $0 of a script is its path, so arg0 is read from /proc.
    let hook = script(
        dir.path(),
        "hook",
        &format!("exec > {}; echo \"$#:$1:$2\"; pwd; cat; echo; cut -d' ' -f5 /proc/$$/stat; echo $$", out.display()),
    );
    let state = format!(r#"{{"ociVersion":"1.0.2","id":"x","pid":7,"bundle":"{}"}}"#, dir.path().display());
    let report = shim(&hook, LONG).run(state.as_bytes());
    assert_eq!(report.outcome, Outcome::Exit(0), "{}", report.stderr);
    let text = std::fs::read_to_string(out).unwrap();
    let lines: Vec<_> = text.lines().collect();
    assert_eq!(&lines[..3], ["2:prestart:a b", dir.path().to_str().unwrap(), &state]);
    assert_eq!(lines[3], lines[4], "it leads a process group of its own");
    assert_eq!(report.failure(), None);
}

#[test]
fn outcomes_are_distinguished() {
    let dir = tempfile::tempdir().unwrap();
    let cases = [
        ("ok", "exit 0", Outcome::Exit(0)),
        ("three", "echo first >&2; echo 'last word' >&2; echo >&2; exit 3", Outcome::Exit(3)),
        ("killed", "kill -9 $$", Outcome::Signal(9)),
        ("daemon", "sleep 1000 & echo $! > \"${0%/*}/pid\"; exit 0", Outcome::Exit(0)),
    ];
    for (name, body, expected) in cases {
        let path = script(dir.path(), name, body);
        let started = Instant::now();
        let report = shim(&path, LONG).run(b"{}");
        assert_eq!(report.outcome, expected, "{name}");
        assert!(started.elapsed() < Duration::from_secs(30), "{name} was waited for");
        if name == "three" {
            let failure = report.failure().unwrap();
            let expected =
                format!("the prestart hook `stand-in` (`{}`) failed with exit status 3: last word", path.display());
            assert_eq!(failure.to_string(), expected);
        }
    }
    let gone = shim(&dir.path().join("gone"), LONG).run(b"{}").failure().unwrap();
    assert!(gone.to_string().contains("could not be started: No such file"), "{gone}");
    // A hook that succeeds may leave a daemon that keeps stderr open, and the shim does not wait for it. The test ends
    // its own daemon here.
    let daemon: i32 = std::fs::read_to_string(dir.path().join("pid")).unwrap().trim().parse().unwrap();
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(daemon), nix::sys::signal::Signal::SIGKILL).unwrap();
}

#[test]
fn the_end_of_the_time_takes_the_whole_group() {
    let dir = tempfile::tempdir().unwrap();
    let pids = dir.path().join("pids");
    let hook =
        script(dir.path(), "hang", &format!("echo started >&2; sleep 1000 & echo $! > {}; wait", pids.display()));
    let started = Instant::now();
    let report = shim(&hook, Duration::from_millis(600)).run(b"{}");
    assert_eq!(report.outcome, Outcome::TimedOut(600));
    assert!(started.elapsed() >= Duration::from_millis(600));
    assert_eq!(report.last_line(), "started");
    let child: i32 = std::fs::read_to_string(pids).unwrap().trim().parse().unwrap();
    // The group received SIGKILL. The orphan remains a zombie until the process that adopts it reaps it.
    let end = Instant::now() + LONG;
    loop {
        match std::fs::read_to_string(format!("/proc/{child}/stat")) {
            Err(_) => break,
            Ok(stat) if stat.contains(") Z ") => break,
            Ok(stat) => assert!(Instant::now() < end, "still there: {stat}"),
        }
        std::thread::sleep(Duration::from_millis(2));
    }
    let text = Report::from(report.failure().unwrap()).to_string();
    assert!(text.contains("did not end within 0.6 s and was killed: started"), "{text}");
    assert!(text.contains("hint: raise `timeout`"), "{text}");
}

#[test]
fn stderr_is_bounded_and_its_end_kept() {
    let dir = tempfile::tempdir().unwrap();
    let hook = script(
        dir.path(),
        "loud",
        "i=0; while [ $i -lt 3000 ]; do echo 'a line of sixty characters, more or less, to fill the pipe up' >&2; i=$((i+1)); done; printf 'the \\033[31mend' >&2; exit 1",
    );
    let report = shim(&hook, LONG).run(b"{}");
    assert!(report.stderr.len() <= KEPT_STDERR + 8, "{}", report.stderr.len());
    assert_eq!(report.last_line(), "the [31mend");
}

#[test]
fn a_long_line_is_shortened_and_its_ends_are_kept() {
    let dir = tempfile::tempdir().unwrap();
    let body = "printf 'nvidia-container-cli: initialization error: nvml error: driver/library version mismatch' >&2; i=0; while [ $i -lt 800 ]; do printf '%050d' 0 >&2; i=$((i+1)); done; printf 'the end' >&2; exit 1";
    let hook = script(dir.path(), "long", body);
    let report = shim(&hook, LONG).run(b"{}");
    assert!(report.stderr.len() > 40_000);
    let report = Report::from(report.failure().unwrap());
    assert!(report.message.len() < 2000 && report.message.ends_with("the end"), "{}", report.message);
    assert!(report.message.contains("characters…"), "{}", report.message);
    assert!(report.hint.unwrap().contains("reboot"), "the whole text is searched for what is known");
    assert_eq!(shorten("as it is"), "as it is");
}

#[test]
fn no_timeout_is_too_long() {
    let dir = tempfile::tempdir().unwrap();
    let chosen = Chosen {
        name: "x".into(),
        stage: crate::spec::Stage::Prestart,
        command: Command {
            path: script(dir.path(), "ok", "exit 0"),
            args: vec![],
            env: vec![],
            timeout: Some(u64::MAX),
        },
    };
    let argv = shim::arguments(&chosen, &dir.path().join("report"));
    let shim = shim::parse(argv[2..].iter().map(Into::into)).unwrap();
    assert_eq!(shim.run(b"{}").outcome, Outcome::Exit(0));
}

#[test]
fn a_large_state_does_not_block() {
    let dir = tempfile::tempdir().unwrap();
    let hook = script(dir.path(), "deaf", "exit 0");
    let report = shim(&hook, LONG).run(&vec![b' '; 2 << 20]);
    assert_eq!(report.outcome, Outcome::Exit(0));
}

#[test]
fn a_report_is_kept_and_found_again() {
    let dir = tempfile::tempdir().unwrap();
    let program = script(
        dir.path(),
        "hook",
        "echo 'nvidia-container-cli: initialization error: load library failed: libnvidia-ml.so.1: cannot open shared object file: no such file or directory' >&2; exit 1",
    );
    let chosen = Chosen {
        name: "50-nvidia".into(),
        stage: crate::spec::Stage::Prestart,
        command: Command { path: program, args: vec![], env: vec!["A=1".into()], timeout: Some(9) },
    };
    let entries = spec_entries(std::slice::from_ref(&chosen), Path::new("/proc/self/exe"), dir.path());
    let (stage, entry) = &entries[0];
    assert_eq!((*stage, entry.path.as_path()), (crate::spec::Stage::Prestart, Path::new("/proc/self/exe")));
    assert_eq!(entry.env, ["A=1", DEFAULT_PATH]);
    assert_eq!(entry.args[..2], ["gpurun", "hook-shim"]);
    let shim = shim::parse(entry.args[2..].iter().map(Into::into)).unwrap();
    assert_eq!(shim.timeout, Duration::from_secs(9));
    assert_eq!(shim.args, [chosen.command.path.as_os_str()]);
    let report = shim.run(b"{}");
    shim.keep(&report);
    let found = failures(dir.path());
    assert_eq!(found.len(), 1);
    let text = Report::from(found[0].clone()).to_string();
    insta::assert_snapshot!(text.replace(dir.path().to_str().unwrap(), "DIR"));
}

#[test]
fn nvidias_messages_are_recognized() {
    let cases = [
        ("nvidia-container-cli: initialization error: nvml error: driver/library version mismatch", "upgraded"),
        ("nvidia-container-cli: initialization error: load library failed: libnvidia-ml.so.1: x", "not installed"),
        ("nvidia-container-cli: device error: 9: unknown device", "does not exist"),
        (
            "nvidia-container-cli: requirement error: unsatisfied condition: cuda>=12.9, please update your driver",
            "newer CUDA",
        ),
        ("nvidia-container-cli: requirement error: unsatisfied condition: arch>=9.0", "NVIDIA_REQUIRE_"),
        (
            "nvidia-container-cli: mount error: failed to add device rules: unable to generate new device filter program with no existing programs",
            "device filter",
        ),
        (
            "invoking the NVIDIA Container Runtime Hook directly (e.g. specifying the docker --gpus flag) is not supported.",
            "configured for CDI",
        ),
        (
            "nvidia-container-cli: mount error: file creation failed: /x/usr/lib/libcuda.so.1: file exists",
            "contains driver files",
        ),
        ("nvidia-container-cli: detection error: nvml error: unknown error", "no longer responds"),
        ("nvidia-container-cli: container error: cgroup subsystem devices not found", "too old"),
        ("nvidia-container-cli: initialization error: nvml error: driver not loaded", "not loaded"),
        ("nvidia-container-cli: initialization error: nvml error: insufficient permissions", "not allowed"),
        ("nvidia-container-cli: ldcache error: open failed: /sbin/ldconfig.real: no such file", "library cache"),
        ("nvidia: unresolvable CDI devices nvidia.com/gpu=7", "CDI file"),
        // As written by the programs of version 1.20. Messages of the hook itself do not contain its name.
        ("nvidia-container-cli: initialization error: nvml error: unknown error", "no longer responds"),
        ("unsupported capabilities found in 'video' (allowed '')", "does not allow"),
        ("cannot set MIG_CONFIG_DEVICES in non privileged container", "SYS_ADMIN"),
        ("cannot set MIG_MONITOR_DEVICES in non privileged container", "SYS_ADMIN"),
        (
            "nvidia-container-cli: mount error: stat failed: /dev/nvidiactl: no such file or directory",
            "missing on the host",
        ),
        (
            "error getting hook config: failed to load config: couldn't open required configuration file: failed to load specified config file: (3, 1): parsing error: keys cannot contain ] character",
            "configuration file",
        ),
        ("exec failed: no such file or directory", "cannot execute"),
        ("exec failed: permission denied", "cannot execute"),
        (
            "couldn't find binary nvidia-container-cli in PATH: exec: \"nvidia-container-cli\": executable file not found in $PATH",
            "cannot execute",
        ),
        ("nvidia-container-cli: requirement error: invalid expression", "is not valid"),
        ("failed to get requirements failed to get version: invalid CUDA version cu121: x", "is not valid"),
    ];
    let program = Path::new("/usr/bin/nvidia-container-runtime-hook");
    for (line, wanted) in cases {
        let plain = nvidia::explain(program, line).unwrap_or_else(|| panic!("{line}"));
        assert!(plain.message.contains(wanted), "{line}: {plain}");
        assert!(!plain.hint.is_empty());
    }
    assert_eq!(nvidia::explain(Path::new("/opt/myhook"), "myhook: unknown device"), None);
    assert_eq!(nvidia::explain(Path::new("/opt/myhook"), "exec failed: no such file"), None);
    assert_eq!(nvidia::explain(program, "nvidia-container-cli: all is well"), None);
}

fn definition(when: &str) -> Definition {
    let text = format!(
        r#"{{"version":"1.0.0","hook":{{"path":"/bin/true","args":["true"]}},"when":{when},"stages":["poststop","prestart"]}}"#
    );
    Definition::parse("/etc/x/10-test.json", &text).unwrap()
}

#[test]
fn conditions_are_joined_by_and() {
    let annotations = [("org.gpurun.gpus".to_owned(), "0,2".to_owned())];
    let about = |command, has_bind_mounts| Circumstances { annotations: &annotations, command, has_bind_mounts };
    let cases = [
        (r#"{"always":true}"#, true, true),
        (r#"{"always":false}"#, false, false),
        (r#"{"commands":["^/bin/.*sh$"]}"#, true, true),
        (r#"{"commands":["^python$","^/bin/dash$"]}"#, false, false),
        (r#"{"hasBindMounts":true}"#, true, false),
        (r#"{"annotations":{"^org\\.gpurun\\.gpus$":".+"}}"#, true, true),
        (r#"{"annotations":{"^org\\.gpurun\\.gpus$":"^all$"}}"#, false, false),
        (r#"{"always":true,"hasBindMounts":true}"#, true, false),
        (r#"{"commands":["sh"],"annotations":{"nothing":".*"}}"#, false, false),
    ];
    for (when, with_binds, without) in cases {
        let definition = definition(when);
        assert_eq!(definition.matches(&about("/bin/sh", true)), with_binds, "{when}");
        assert_eq!(definition.matches(&about("/bin/sh", false)), without, "{when}");
    }
    let chosen = matching(&[definition(r#"{"always":true}"#)], &about("x", false)).unwrap();
    let stages: Vec<_> = chosen.iter().map(|hook| (hook.name.as_str(), hook.stage.key())).collect();
    assert_eq!(stages, [("10-test", "prestart"), ("10-test", "poststop")]);
}

#[test]
fn the_older_format_is_read_as_podman_does() {
    let annotations = [("some.key".to_owned(), "gpu-2".to_owned())];
    let about = |command, has_bind_mounts| Circumstances { annotations: &annotations, command, has_bind_mounts };
    let cases = [
        // One condition that holds is enough.
        (r#""cmds":["^python$"],"hasbindmounts":true"#, true, false),
        (r#""cmd":["sh$"],"hasbindmounts":true"#, true, true),
        (r#""annotation":["^none$","^gpu-"],"cmd":["^python$"]"#, true, true),
        (r#""annotations":["^none$"]"#, false, false),
        (r#""hasbindmounts":false"#, false, false),
        (r#""arguments":[]"#, false, false),
    ];
    for (when, with_binds, without) in cases {
        let text = format!(r#"{{"version":"0.1.0","hook":"/bin/true","stage":["prestart"],{when}}}"#);
        let definition = Definition::parse("/etc/x/10-old.json", &text).unwrap();
        assert_eq!(definition.matches(&about("/bin/sh", true)), with_binds, "{when}");
        assert_eq!(definition.matches(&about("/bin/sh", false)), without, "{when}");
    }
    let text = r#"{"version":"0.1.0","hook":"/bin/true","arguments":["-v","x"],"stages":["prestart","poststop"],"cmds":["."]}"#;
    let definition = Definition::parse("old.json", text).unwrap();
    assert_eq!(definition.command.args, ["/bin/true", "-v", "x"]);
    let stages: Vec<_> = definition.stages.iter().map(|stage| stage.key()).collect();
    assert_eq!(stages, ["prestart", "poststop"]);
}

#[test]
fn bad_definitions_name_their_file() {
    let cases = [
        ("{", "is not valid JSON"),
        (r#"{"version":"2.0.0","hook":{"path":"/bin/true"},"stages":["prestart"]}"#, "its version is `2.0.0`"),
        (r#"{"version":"0.1.0","hook":"true","stages":["prestart"]}"#, "is not an absolute path"),
        (r#"{"version":"0.1.0","hook":"/bin/true","cmds":["sh"]}"#, "is not valid JSON"),
        (r#"{"version":"0.1.0","hook":"/bin/true","stage":["prestart"],"stages":["poststop"]}"#, "is not valid JSON"),
        (
            r#"{"version":"1.0.0","hook":{"path":"true"},"when":{"always":true},"stages":["prestart"]}"#,
            "is not an absolute path",
        ),
        (
            r#"{"version":"1.0.0","hook":{"path":"/bin/true"},"when":{"always":true},"stages":["before"]}"#,
            "unknown stage `before`",
        ),
        (r#"{"version":"1.0.0","hook":{"path":"/bin/true"},"when":{"always":true}}"#, "no stage"),
        (r#"{"version":"1.0.0","hook":{"path":"/bin/true"},"stages":["prestart"]}"#, "no condition"),
        (
            r#"{"version":"1.0.0","hook":{"path":"/bin/true"},"when":{"commands":["("]},"stages":["prestart"]}"#,
            "its pattern `(`",
        ),
    ];
    let nul = r#"{"version":"1.0.0","hook":{"path":"/bin/tr\u0000ue"},"when":{"always":true},"stages":["prestart"]}"#;
    let args = r#"{"version":"1.0.0","hook":{"path":"/bin/true","args":["a\u0000"]},"when":{"always":true},"stages":["prestart"]}"#;
    let env =
        r#"{"version":"1.0.0","hook":{"path":"/bin/true","env":["=x"]},"when":{"always":true},"stages":["prestart"]}"#;
    let more = [(nul, "a NUL character"), (args, "a NUL character"), (env, "its environment entry `=x`")];
    for (text, wanted) in cases.into_iter().chain(more) {
        let error = Definition::parse("bad.json", text).unwrap_err().to_string();
        assert!(error.contains(wanted) && error.contains("`bad.json`"), "{error}");
    }
}

#[test]
fn later_directories_win_by_file_name() {
    let (first, second) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let text = |stage: &str| {
        format!(r#"{{"version":"1.0.0","hook":{{"path":"/bin/true"}},"when":{{"always":true}},"stages":["{stage}"]}}"#)
    };
    for (dir, name, text) in [
        (&first, "10-a.json", text("prestart")),
        (&first, "20-b.json", text("prestart")),
        (&first, "README", "not a definition".into()),
        (&second, "20-b.json", text("poststop")),
        (&second, "50-nvidia-prestart.json", String::new()),
    ] {
        std::fs::write(dir.path().join(name), text).unwrap();
    }
    let missing = (first.path().join("none"), true);
    let found = read_dirs(&[(first.path().into(), false), missing.clone(), (second.path().into(), false)]).unwrap();
    let names: Vec<_> = found.iter().map(|found| (found.name.as_str(), found.stages[0].key())).collect();
    assert_eq!(names, [("10-a", "prestart"), ("20-b", "poststop")]);
    assert!(matches!(read_dirs(&[(missing.0, false)]), Err(definition::DefinitionError::Directory { .. })));
}

#[test]
fn a_missing_program_is_reported_only_where_it_is_needed() {
    let mut gone = definition(r#"{"hasBindMounts":true}"#);
    gone.command.path = "/no/such/hook".into();
    let mut about = Circumstances { command: "x", ..Circumstances::default() };
    assert_eq!(matching(std::slice::from_ref(&gone), &about).unwrap(), []);
    about.has_bind_mounts = true;
    assert_eq!(matching(std::slice::from_ref(&gone), &about).unwrap(), [], "a built-in one stands back");
    gone.file = Some("/etc/x/10-test.json".into());
    let error = matching(&[gone], &about).unwrap_err().to_string();
    let wanted = "cannot use the hook definition `/etc/x/10-test.json`: its program `/no/such/hook` does not exist";
    assert_eq!(error, wanted);
}

#[test]
fn the_builtin_definitions_are_the_files_of_the_project() {
    let files = std::fs::read_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/hooks")).unwrap();
    let files = files.map(|file| file.unwrap().file_name().to_string_lossy().into_owned());
    // The Slurm plugin is in a directory beside them.
    let mut names: Vec<_> = files.filter_map(|name| Some(name.strip_suffix(".json")?.to_owned())).collect();
    names.sort();
    let builtin: Vec<_> = builtin().into_iter().map(|definition| definition.name).collect();
    assert_eq!(builtin, names);
}
