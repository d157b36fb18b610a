//! Races, each widened by an injected delay (strace): launches that are killed, files that are swapped, hooks that do not end, and `exec` while it
//! joins a container.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Instant;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::host::{Host, answer, cgroups_of, eventually};

pub const TESTS: &[(&str, fn())] = &[
    ("a_removal_beside_a_killed_launch_leaves_nothing", killed_launches),
    ("a_link_that_appears_below_a_mount_leads_nowhere", swapped_mount_point),
    ("mounts_below_mounts_are_as_asked", nested_mounts),
    ("a_working_directory_changes_no_file_of_the_host", swapped_workdir),
    ("no_process_gets_the_null_device_of_the_host", null_device),
    ("a_process_that_joins_has_its_filter_before_it_can_be_traced", traced_exec),
    ("a_silent_hook_is_named", silent_hooks),
    ("all_processes_of_a_failed_hook_end", failed_hook),
    ("hooks_that_others_can_change_are_refused", open_hooks),
    ("hostile_hooks", hostile_hooks),
    ("a_wait_for_the_network_is_announced", slow_network),
    ("a_container_that_ends_beside_its_stop_is_no_error", ends_beside),
    ("first_users_of_a_volume_share_one_directory", first_users),
    ("a_start_beside_another_command_keeps_its_directory", start_beside),
];

fn process(pid: i32) -> Option<(String, String, i32)> {
    let comm = fs::read_to_string(format!("/proc/{pid}/comm")).ok()?.trim().to_owned();
    let line = String::from_utf8_lossy(&fs::read(format!("/proc/{pid}/cmdline")).ok()?).replace('\0', " ");
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let (_, rest) = stat.rsplit_once(") ")?;
    if rest.starts_with('Z') {
        return None;
    }
    Some((comm, line, rest.split(' ').nth(1)?.parse().ok()?))
}

fn processes() -> Vec<(i32, String, String, i32)> {
    let all = fs::read_dir("/proc").unwrap().flatten();
    let pids = all.filter_map(|entry| entry.file_name().to_string_lossy().parse::<i32>().ok());
    pids.filter_map(|pid| process(pid).map(|(comm, line, parent)| (pid, comm, line, parent))).collect()
}

/// The supervisor of this host's only launch.
fn supervisor(host: &Host) -> Option<(i32, String, i32)> {
    let mark = host.dir.display().to_string();
    let (pid, _, line, parent) = processes()
        .into_iter()
        .find(|(_, comm, line, _)| line.contains(" supervise ") && line.contains(&mark) && comm != "strace")?;
    let id = line.split(' ').find(|word| word.len() == 64)?.to_owned();
    Some((pid, id, parent))
}

/// The system call that is slow, the process that must exist when the supervisor is killed, and how much later that is.
const KILLS: [(&str, &str, u64); 6] = [
    ("unshare:delay_enter=300000", "youki:[1", 0),
    ("unshare:delay_enter=300000", "youki:[1", 500),
    ("mkdirat:delay_enter=150000", "youki:[2", 0),
    ("mkdirat:delay_enter=150000", "youki:[2", 500),
    ("mkdir:delay_enter=50000", "", 100),
    ("mkdir:delay_enter=50000", "", 500),
];

/// The command that started the launch is killed, too: as long as it lives, its lock keeps the container.
fn killed_launches() {
    let host = Host::with_box();
    for (number, (inject, fork, milliseconds)) in KILLS.into_iter().enumerate() {
        let what = format!("{inject}, {fork} and {milliseconds} ms");
        let call = inject.split(':').next().unwrap();
        let (trace, inject) = (format!("trace={call}"), format!("inject={inject}"));
        let strace = ["strace", "-f", "-qq", "-o", "/dev/null", "-e", &trace, "-e", &inject];
        let args = ["run", "-d", "--name", "victim", "-p", "8080:80", "box", "sleep", "1000"];
        let mut child = host.behind(&strace, &args).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        let mut found = None;
        eventually(&what, || {
            found = supervisor(&host);
            let Some((pid, ..)) = found else { return false };
            let all = processes();
            let below =
                |parent: i32| all.iter().any(|(child, _, _, up)| *child == parent && *up == pid) || parent == pid;
            fork.is_empty() || all.iter().any(|(_, comm, _, parent)| comm.starts_with(fork) && below(*parent))
        });
        std::thread::sleep(std::time::Duration::from_millis(milliseconds));
        let (pid, id, client) = found.unwrap();
        for pid in [client, pid] {
            let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
        }
        // Removed at once, by a slow command, or by a command that only finds it.
        let slow = ["strace", "-qq", "-o", "/dev/null", "-e", "trace=rmdir", "-e", "inject=rmdir:delay_enter=100000"];
        eventually(&what, || {
            let gone = |text: &str| text.contains("there is no container");
            let got = match number % 3 {
                0 => host.run(&["rm", "-f", &id]),
                1 => answer(host.behind(&slow, &["rm", "-f", &id]).output().unwrap()),
                _ => host.run(&["inspect", &id]),
            };
            got.code == 0 || gone(&got.err)
        });
        child.wait().unwrap();
        // What the runtime forked ends without its supervisor.
        eventually(&what, || supervisor(&host).is_none() && !forks_of(&id));
        host.ok(&["ps", "-a"]);
        assert!(cgroups_of(&id).is_empty(), "{what}: {:?}", cgroups_of(&id));
        if number % 3 == 2 {
            host.run(&["rm", "-f", &id]);
        }
        assert_eq!(host.ok(&["ps", "-aq"]), "", "{what}");
        assert_eq!(host.leftovers(), "", "{what}");
        let left: Vec<_> = [host.dir.join("root/containers"), host.dir.join("run")]
            .iter()
            .flat_map(|dir| fs::read_dir(dir).unwrap().flatten())
            .filter(|entry| entry.file_name().to_string_lossy().contains(&id))
            .collect();
        assert!(left.is_empty(), "{what}: {left:?}");
        assert_eq!(host.ok(&["run", "--rm", "-p", "8080:80", "box", "echo", "fine"]), "fine", "{what}");
        // Its supervisor may end after the command, and is not the one of the next launch.
        eventually(&what, || supervisor(&host).is_none());
    }
}

/// Whether a process of the runtime lives that has not executed a program yet, and whose cgroup or command line names the container.
fn forks_of(id: &str) -> bool {
    let names = |pid: i32, file: &str| {
        fs::read(format!("/proc/{pid}/{file}")).is_ok_and(|bytes| String::from_utf8_lossy(&bytes).contains(id))
    };
    processes()
        .iter()
        .any(|(pid, comm, ..)| comm.starts_with("youki") && (names(*pid, "cgroup") || names(*pid, "cmdline")))
}

/// A directory of a user who swaps `sub` in it for a link, and an empty directory of root's that is mounted there.
fn outer_and_inner(host: &Host) -> (PathBuf, PathBuf) {
    let (outer, inner) = (host.dir.join("outer"), host.dir.join("inner"));
    for dir in [&outer, &outer.join("sub"), &inner] {
        fs::create_dir(dir).unwrap();
        chown(dir, Some(1000), Some(1000)).unwrap();
    }
    (outer, inner)
}

fn bundle(host: &Host) -> bool {
    let run = fs::read_dir(host.dir.join("run")).into_iter().flatten().flatten();
    run.into_iter().any(|entry| entry.path().join("config.json").exists())
}

fn swapped_mount_point() {
    let host = Host::with_box();
    for target in ["/dev", "/etc", "/proc"] {
        let (outer, inner) = outer_and_inner(&host);
        let volumes = [format!("{}:/w", outer.display()), format!("{}:/w/sub", inner.display())];
        let args = ["run", "--rm", "--network", "none", "-v", &volumes[0], "-v", &volumes[1], "box", "true"];
        // The link appears when everything has been checked, and before the runtime has made the mounts.
        let strace =
            ["strace", "-f", "-qq", "-o", "/dev/null", "-e", "trace=fsopen", "-e", "inject=fsopen:delay_enter=200000"];
        let child = host.behind(&strace, &args).stderr(Stdio::piped()).spawn().unwrap();
        eventually("everything is checked", || bundle(&host));
        fs::rename(outer.join("sub"), outer.join("old")).unwrap();
        symlink(target, outer.join("sub")).unwrap();
        let late = answer(child.wait_with_output().unwrap());
        assert!(late.code == 125 && late.err.contains("/w/sub"), "{target}: {} {}", late.code, late.err);
        let inside: Vec<_> = fs::read_dir(&inner).unwrap().flatten().map(|entry| entry.file_name()).collect();
        assert!(inside.is_empty(), "{target}: {inside:?}");
        // It is there from the beginning.
        let said = host.fails(125, &args);
        assert!(said.contains("is a link") && said.contains("hint:"), "{target}: {said}");
        // It comes and goes all the time.
        fs::remove_file(outer.join("sub")).unwrap();
        fs::rename(outer.join("old"), outer.join("sub")).unwrap();
        symlink(target, outer.join("link")).unwrap();
        let going = std::sync::atomic::AtomicBool::new(true);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                while going.load(std::sync::atomic::Ordering::Relaxed) {
                    let (a, b) = (outer.join("sub"), outer.join("link"));
                    let flags = nix::fcntl::RenameFlags::RENAME_EXCHANGE;
                    nix::fcntl::renameat2(nix::fcntl::AT_FDCWD, &a, nix::fcntl::AT_FDCWD, &b, flags).unwrap();
                }
            });
            for _ in 0..12 {
                let got = host.run(&args);
                assert!([0, 125].contains(&got.code) && !got.err.contains("panicked"), "{target}: {}", got.err);
            }
            going.store(false, std::sync::atomic::Ordering::Relaxed);
        });
        let inside: Vec<_> = fs::read_dir(&inner).unwrap().flatten().map(|entry| entry.file_name()).collect();
        assert!(inside.is_empty(), "{target}: {inside:?}");
        assert_eq!(host.leftovers(), "");
        for dir in [&outer, &inner] {
            fs::remove_dir_all(dir).unwrap();
        }
    }
}

/// The mounts that gpurun makes itself have the options that the runtime would have given them.
fn nested_mounts() {
    let host = Host::with_box();
    let (outer, inner) = outer_and_inner(&host);
    for dir in ["ro", "tmp", "deep"] {
        fs::create_dir(outer.join(dir)).unwrap();
    }
    fs::write(inner.join("file"), "inner").unwrap();
    fs::write(outer.join("file"), "outer").unwrap();
    let volume = |source: &Path, rest: &str| format!("{}:{rest}", source.display());
    let file = inner.join("file");
    let volumes = [
        volume(&outer, "/w"),
        volume(&inner, "/w/sub"),
        volume(&inner, "/w/ro:ro"),
        volume(&file, "/w/file:ro"),
        volume(&inner, "/w/tmp/x"),
        volume(&outer, "/locked:ro"),
        volume(&inner, "/locked/sub"),
        "named:/w/deep".to_owned(),
    ];
    let mut args = vec!["run", "-d", "--network", "none", "--name", "one", "--tmpfs", "/w/tmp:size=1m,mode=700"];
    args.extend(volumes.iter().flat_map(|volume| ["-v", volume]));
    args.extend(["box", "sleep", "1000"]);
    host.ok(&args);
    let inside = |script: &str| answer(host.command(&["exec", "one", "sh", "-c", script]).output().unwrap());
    let check = |host: &Host, name: &str| {
        let sh = |script: &str| answer(host.command(&["exec", name, "sh", "-c", script]).output().unwrap());
        assert_eq!(sh("cat /w/file /w/sub/file /w/ro/file").out, "innerinnerinner");
        assert_eq!(
            sh("echo x > /w/new && echo y > /w/sub/new && echo z > /locked/sub/more && cat /w/ro/more").out,
            "z\n"
        );
        for denied in ["/w/ro/x", "/w/file", "/locked/x"] {
            let got = sh(&format!("echo x > {denied}"));
            assert!(got.code != 0 && got.err.contains("Read-only"), "{denied}: {}", got.err);
        }
        assert_eq!(sh("stat -c %a /w/tmp; df -k /w/tmp | tail -1 | awk '{print $2}'").out, "700\n1024\n");
        assert!(sh("grep ' /w/tmp ' /proc/mounts").out.contains("nosuid,nodev,noexec"));
        assert_eq!(sh("cat /w/tmp/x/file; touch /w/deep/kept; ls /w/deep").out, "innerkept\n");
    };
    check(&host, "one");
    // A second run, and one by the restart policy of the same supervisor.
    host.ok(&["restart", "-t", "0", "one"]);
    assert_eq!(inside("ls /w/deep").out, "kept\n");
    check(&host, "one");
    host.ok(&["update", "--restart", "always", "one"]);
    let pid = host.inspect("one")["State"]["Pid"].as_i64().unwrap() as i32;
    kill(Pid::from_raw(pid), Signal::SIGKILL).unwrap();
    eventually("it runs again", || {
        let state = host.inspect("one")["State"].clone();
        state["Running"] == true && state["Pid"].as_i64() != Some(pid.into())
    });
    check(&host, "one");
    host.ok(&["rm", "-f", "one"]);
    assert_eq!(host.leftovers(), "");
    assert_eq!(fs::read_to_string(outer.join("file")).unwrap(), "outer");
    // A mount point that is missing is made: in the directory, or not at all if that is read-only.
    let made = volume(&inner, "/w/a/b");
    host.ok(&["run", "--rm", "--network", "none", "-v", &volumes[0], "-v", &made, "box", "test", "-e", "/w/a/b/file"]);
    let about = fs::metadata(outer.join("a/b")).unwrap();
    assert_eq!((about.uid(), about.mode() & 0o7777), (0, 0o755));
}

fn swapped_workdir() {
    let host = Host::with_box();
    let (outer, _) = outer_and_inner(&host);
    let precious = host.dir.join("precious");
    fs::write(&precious, "secret").unwrap();
    fs::set_permissions(&precious, fs::Permissions::from_mode(0o600)).unwrap();
    let volume = format!("{}:/w", outer.display());
    let strace = ["strace", "-f", "-qq", "-o", "/dev/null", "-e", "trace=fchmodat,fchownat", "-e"];
    for call in ["fchmodat", "fchownat"] {
        let inject = format!("inject={call}:delay_enter=300000");
        let strace = [&strace[..], &[&inject]].concat();
        let args = ["run", "--rm", "--network", "none", "-v", &volume, "-w", "/w/new", "box", "true"];
        let mut child = host.behind(&strace, &args).stderr(Stdio::null()).spawn().unwrap();
        let new = outer.join("new");
        eventually("the directory is made", || new.symlink_metadata().is_ok_and(|about| about.is_dir()));
        fs::rename(&new, outer.join("old")).unwrap();
        symlink(&precious, &new).unwrap();
        child.wait().unwrap();
        let about = fs::metadata(&precious).unwrap();
        assert_eq!((about.mode() & 0o7777, about.uid()), (0o600, 0), "{call}");
        fs::remove_file(&new).unwrap();
        fs::remove_dir(outer.join("old")).unwrap();
    }
    // Without a race, the directory is root's, as before.
    host.ok(&["run", "--rm", "--network", "none", "-v", &volume, "-w", "/w/new", "box", "true"]);
    let about = fs::metadata(outer.join("new")).unwrap();
    assert_eq!((about.mode() & 0o7777, about.uid()), (0o755, 0));
}

/// A process with the host's node could change its mode and owner through /proc/self/fd.
fn null_device() {
    let host = Host::with_box();
    let of_host = fs::metadata("/dev/null").unwrap();
    let of_host = format!("{}:{}", of_host.dev(), of_host.ino());
    let script =
        "for f in 0 1 2; do stat -L -c '%d:%i %t:%T' /proc/self/fd/$f; done > /tmp/seen; sleep 0.1; touch /tmp/done";
    let check = |what: &str, seen: &str| {
        let same = seen.split_whitespace().any(|word| word == of_host);
        assert!(!seen.is_empty() && !same, "{what}: {seen} and the host has {of_host}");
    };
    host.ok(&["run", "-d", "--network", "none", "--name", "one", "box", "sh", "-c", &format!("{script}; sleep 1000")]);
    for flags in [&[][..], &["exec"], &["exec", "-d"], &["exec", "-t"], &["exec", "-dt"], &["exec", "-u", "1000"]] {
        if let [_, ..] = flags {
            host.ok(&["exec", "one", "rm", "-f", "/tmp/seen", "/tmp/done"]);
            host.ok(&[flags, &["one", "sh", "-c", script]].concat());
        }
        eventually("it has looked", || host.run(&["exec", "one", "test", "-e", "/tmp/done"]).code == 0);
        check(&format!("{flags:?}"), &host.ok(&["exec", "one", "cat", "/tmp/seen"]));
    }
    // It works as a null device, for every user, and can be opened again.
    for user in ["0", "1000"] {
        let script = "read x; echo \"$?\" $x; echo lost > /proc/self/fd/0; wc -c < /proc/self/fd/0";
        assert_eq!(host.ok(&["exec", "-u", user, "one", "sh", "-c", script]), "1\n0", "{user}");
    }
    fs::create_dir(host.dir.join("context")).unwrap();
    let look = "RUN for f in 0 1 2; do stat -L -c 'seen %d:%i' /proc/self/fd/$f; done\n";
    fs::write(host.dir.join("context/Containerfile"), format!("FROM box\n{look}")).unwrap();
    let built = host.run(&["build", "--network", "none", "context"]);
    assert_eq!(built.code, 0, "{}", built.err);
    check("a build step", &format!("{}{}", built.out, built.err));
}

/// What a process of the container sees of one that joins: every second line is a file of it.
const WATCH: &str = r#"
while :; do
    for p in /proc/[0-9]*; do
        case $(cat $p/cmdline 2>/dev/null | tr '\0' ' ') in
            sh\ *) continue ;;
            *exec-helper\ *) ;;
            *) continue ;;
        esac
        echo "found"
        grep -E '^(Seccomp|CapEff|CapBnd|NoNewPrivs|Uid):' $p/status
        echo "environ $(cat $p/environ 2>&1 | tr '\0' ' ')"
        for f in $p/fd/*; do echo "fd $(readlink $f)"; done
        sleep 1000
    done
done
"#;

fn traced_exec() {
    let host = Host::with_box();
    for (flags, traces) in [(&["--cap-add", "SYS_PTRACE"][..], true), (&[], false)] {
        host.ok(&[&["run", "-d", "--network", "none", "--name", "one"], flags, &["box", "sh", "-c", WATCH]].concat());
        let own = host.inspect("one")["State"]["Pid"].as_i64().unwrap();
        let own = fs::read_to_string(format!("/proc/{own}/status")).unwrap();
        let line = |text: &str, key: &str| text.lines().find(|line| line.starts_with(key)).map(str::to_owned);
        // Between its birth in the pid namespace and its program.
        let strace =
            ["strace", "-f", "-qq", "-o", "/dev/null", "-e", "trace=setsid", "-e", "inject=setsid:delay_enter=3000000"];
        let mut command = host.behind(&strace, &["exec", "one", "true"]);
        let got = answer(command.env("CALLER_SECRET", "hush").output().unwrap());
        assert_eq!(got.code, 0, "{}", got.err);
        let mut seen = String::new();
        eventually("it was seen", || {
            seen = host.run(&["logs", "one"]).out;
            seen.contains("fd ")
        });
        assert!(seen.contains("found"), "{seen}");
        assert_eq!(line(&seen, "CapEff:"), line(&own, "CapEff:"), "{seen}");
        assert_eq!(line(&seen, "CapBnd:"), line(&own, "CapBnd:"), "{seen}");
        assert_eq!(line(&seen, "NoNewPrivs:"), line(&own, "NoNewPrivs:"), "{seen}");
        let environ = line(&seen, "environ").unwrap();
        assert!(!seen.contains("hush") && !environ.contains('='), "{seen}");
        if traces {
            // It can be traced, so it has its filter.
            assert_eq!(line(&seen, "Seccomp:"), Some("Seccomp:\t2".into()), "{seen}");
            for fd in seen.lines().filter_map(|line| line.strip_prefix("fd ")) {
                assert!(fd.starts_with("pipe:") || fd == "/dev/null" || fd.starts_with("/dev/pts/"), "{seen}");
            }
        } else {
            assert!(environ.contains("denied"), "{seen}");
        }
        host.ok(&["rm", "-f", "one"]);
    }
}

/// A hooks directory with one hook.
fn hook(host: &Host, name: &str, script: &str, rest: &str) -> String {
    let dir = host.dir.join(name);
    fs::create_dir_all(&dir).unwrap();
    let program = host.dir.join(format!("{name}.sh"));
    fs::write(&program, format!("#!/bin/sh\n{script}\n")).unwrap();
    fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
    let json = format!(
        r#"{{"version":"1.0.0","hook":{{"path":"{}","timeout":7}},"when":{{"always":true}},{rest}}}"#,
        program.display()
    );
    fs::write(dir.join(format!("{name}.json")), json).unwrap();
    dir.display().to_string()
}

const PRESTART: &str = r#""stages":["prestart"]"#;

fn silent_hooks() {
    let host = Host::with_box();
    for stage in ["prestart", "createContainer", "poststart"] {
        let hooks = hook(&host, stage, "sleep 1000", &format!(r#""stages":["{stage}"]"#));
        let began = Instant::now();
        let got = host.run(&["run", "--rm", "--network", "none", "--hooks-dir", &hooks, "box", "true"]);
        assert!(began.elapsed().as_secs() < 20);
        let notice = format!("the {stage} hook `{stage}` (`{}.sh`) has not ended yet", host.dir.join(stage).display());
        assert_eq!(got.err.matches(&notice).count(), 1, "{stage}: {}", got.err);
        assert!(got.err.contains("for up to 7 s"), "{}", got.err);
        if stage != "poststart" {
            assert!(got.code == 125 && got.err.contains("did not end within 7 s"), "{}", got.err);
        }
    }
    let hooks = hook(&host, "poststop", "sleep 6", r#""stages":["poststop"]"#);
    host.ok(&["run", "-d", "--name", "one", "--network", "none", "--hooks-dir", &hooks, "box", "sleep", "1000"]);
    let stop = host.run(&["stop", "-t", "0", "one"]);
    assert!(stop.code == 0 && stop.err.contains("the poststop hook `poststop`"), "{} {}", stop.code, stop.err);
    // A hook that ends in time is not mentioned.
    let hooks = hook(&host, "quick", "exit 0", PRESTART);
    let got = host.run(&["run", "--rm", "--network", "none", "--hooks-dir", &hooks, "box", "true"]);
    assert_eq!((got.code, &*got.err), (0, ""));
}

fn failed_hook() {
    let host = Host::with_box();
    let pids = host.dir.join("pids");
    let away = format!(
        "setsid sh -c 'echo $$ >> {0}; sleep 1000' & sh -c 'echo $$ >> {0}; exec sleep 1000' &",
        pids.display()
    );
    for (end, what) in [("sleep 1000", "did not end within"), ("sleep 0.5; exit 3", "exit status 3")] {
        let _ = fs::remove_file(&pids);
        let hooks = hook(&host, "leaver", &format!("{away}\nexec >/dev/null 2>&1\n{end}"), PRESTART);
        let said = host.fails(125, &["run", "--rm", "--network", "none", "--hooks-dir", &hooks, "box", "true"]);
        assert!(said.contains(what), "{said}");
        let left: Vec<i32> = fs::read_to_string(&pids).unwrap().lines().map(|pid| pid.parse().unwrap()).collect();
        assert_eq!(left.len(), 2);
        eventually("they end", || left.iter().all(|pid| process(*pid).is_none()));
    }
}

fn open_hooks() {
    let host = Host::with_box();
    let hooks = hook(&host, "one", "exit 0", PRESTART);
    let (dir, definition, program) = (host.dir.join("one"), host.dir.join("one/one.json"), host.dir.join("one.sh"));
    let args = ["run", "--rm", "--network", "none", "--hooks-dir", &hooks, "box", "true"];
    host.ok(&args);
    let mode = |path: &Path, mode: u32| fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
    for path in [&dir, &definition, &program] {
        for (change, why) in
            [("chmod o+w", "can write to"), ("chgrp 1000", "can write to"), ("chown 1000", "belongs to uid 1000")]
        {
            match change {
                "chmod o+w" => mode(path, 0o757),
                "chgrp 1000" => {
                    chown(path, None, Some(1000)).unwrap();
                    mode(path, 0o775);
                }
                _ => chown(path, Some(1000), None).unwrap(),
            }
            let said = host.fails(125, &args);
            let named = format!("`{}`", path.display());
            assert!(said.contains(why) && said.contains(&named) && said.contains("hint: hooks run as root"), "{said}");
            chown(path, Some(0), Some(0)).unwrap();
            mode(path, 0o755);
            host.ok(&args);
        }
    }
    // A link counts as the file that it leads to.
    let elsewhere = host.dir.join("elsewhere");
    fs::rename(&definition, &elsewhere).unwrap();
    symlink(&elsewhere, &definition).unwrap();
    host.ok(&args);
    chown(&elsewhere, Some(1000), None).unwrap();
    assert!(host.fails(125, &args).contains("belongs to uid 1000"));
}

fn hostile_hooks() {
    let host = Host::with_box();
    let root =
        r#"root=$(sed 's/.*"root":{[^}]*"path":"\([^"]*\)".*/\1/' config.json); [ -x "$root/bin/busybox" ] || exit 9"#;
    // What each hook does, the exit code, and a part of the answer.
    let cases: [(&str, &str, i32, &str); 5] = [
        ("loud", "head -c 200000000 /dev/zero | tr '\\0' x >&2; echo the end >&2; exit 1", 125, "the end"),
        ("daemon", "setsid sleep 3 & exit 0", 0, ""),
        ("deaf", "exec 0<&-; exit 0", 0, ""),
        ("eraser", &format!("{root}; rm -rf \"$root\"/* 2>/dev/null; exit 0"), 125, "cannot create the container"),
        ("parent", "kill -9 $PPID", 125, "killed by a signal"),
    ];
    for (name, script, code, part) in cases {
        let hooks = hook(&host, name, script, PRESTART);
        let got = host.run(&["run", "--rm", "--network", "none", "--hooks-dir", &hooks, "box", "true"]);
        assert!(got.code == code && got.err.contains(part), "{name}: {} {}", got.code, got.err);
        assert!(got.err.len() < 4000, "{name}: {}", got.err.len());
        host.ok(&["ps", "-a"]);
        eventually(name, || host.leftovers().is_empty());
    }
    let mark = host.dir.display().to_string();
    eventually("no hook is left", || !processes().iter().any(|(_, _, line, _)| line.contains(&mark)));
    assert_eq!(host.ok(&["run", "--rm", "--network", "none", "box", "echo", "fine"]), "fine");
}

fn slow_network() {
    let host = Host::with_box();
    host.ok(&["run", "--rm", "box", "true"]);
    let lock = host.dir.join("run/net/.lock");
    let mut holder = Command::new("flock").arg(&lock).args(["sleep", "1000"]).spawn().unwrap();
    eventually("the lock is held", || {
        !Command::new("flock").arg("-n").arg(&lock).arg("true").status().unwrap().success()
    });
    let mut run = host.command(&["run", "--rm", "box", "echo", "fine"]);
    let child = run.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    std::thread::sleep(std::time::Duration::from_secs(7));
    // `flock` has started `sleep`, which holds the lock as well.
    let own = holder.id() as i32;
    for (pid, _, _, parent) in processes() {
        if parent == own {
            kill(Pid::from_raw(pid), Signal::SIGKILL).unwrap();
        }
    }
    holder.wait().unwrap();
    let got = answer(child.wait_with_output().unwrap());
    assert_eq!((got.code, &*got.out), (0, "fine\n"), "{}", got.err);
    assert_eq!(got.err, "gpurun: still waiting: setting up the container's network\n");
}

/// The command has found the container's supervisor, and connects to it after the supervisor has ended.
fn ends_beside() {
    let host = Host::with_box();
    let strace =
        ["strace", "-qq", "-o", "/dev/null", "-e", "trace=connect", "-e", "inject=connect:delay_enter=3000000"];
    for command in [&["stop"][..], &["stop", "--signal", "INT"], &["rm", "-f"]] {
        host.ok(&["run", "-d", "--name", "one", "box", "sh", "-c", "until [ -e /end ]; do sleep 0.01; done"]);
        let mut slow = host.behind(&strace, &[command, &["one"]].concat()).stderr(Stdio::piped()).spawn().unwrap();
        let strace = slow.id() as i32;
        let connects = |pid: i32| {
            let call = fs::read_to_string(format!("/proc/{pid}/syscall")).unwrap_or_default();
            call.starts_with(&format!("{} ", libc::SYS_connect))
        };
        eventually("the connection", || {
            processes().iter().any(|(pid, .., parent)| *parent == strace && connects(*pid))
        });
        // The end of the container kills `touch` too.
        host.run(&["exec", "one", "touch", "/end"]);
        host.ok(&["wait", "one"]);
        let status = slow.wait().unwrap();
        let mut error = String::new();
        std::io::Read::read_to_string(&mut slow.stderr.take().unwrap(), &mut error).unwrap();
        assert_eq!(status.code(), Some(0), "{command:?}: {error}");
        host.run(&["rm", "-f", "one"]);
    }
    assert_eq!(host.leftovers(), "");
}

/// A container whose image has files for the volume is slow to create it, and one without such files is fast.
fn first_users() {
    let host = Host::with_box();
    let archive = host.dir.join("full.tar");
    let mut full = crate::archive::busybox();
    full.name = "full".into();
    full.layer(crate::archive::Layer::default().file("data/file", 0o644, b"of the image")).write(&archive);
    host.ok(&["image", "load", archive.to_str().unwrap()]);
    host.ok(&["volume", "create", "made"]);
    for volume in ["fresh", "made"] {
        let dir = host.dir.join("root/volumes").join(volume);
        let (slow, fast, mount) = (format!("{volume}-slow"), format!("{volume}-fast"), format!("{volume}:/data"));
        let run =
            |name, image| ["run", "-d", "--network", "none", "--name", name, "-v", &mount, image, "sleep", "1000"];
        let path = dir.to_str().unwrap();
        // glibc's renameat2 without flags is renameat.
        let inject = ["-e", "trace=?renameat,renameat2", "-e", "inject=?renameat,renameat2:delay_enter=1500000"];
        let strace = [&["strace", "-f", "-qq", "-o", "/dev/null", "-P", path][..], &inject].concat();
        let mut child = host.behind(&strace, &run(&slow, "full")).stdout(Stdio::null()).spawn().unwrap();
        eventually("the copy is made", || {
            let all = fs::read_dir(dir.parent().unwrap()).into_iter().flatten().flatten();
            all.into_iter().any(|entry| {
                entry.file_name().to_string_lossy().starts_with(&format!(".{volume}."))
                    && entry.path().join("file").exists()
            })
        });
        host.ok(&run(&fast, "box"));
        eventually("the slow one runs", || host.inspect(&slow)["State"]["Running"] == true);
        let sh = |name: &str, script: &str| host.ok(&["exec", name, "sh", "-c", script]);
        for name in [&slow, &fast] {
            assert_eq!(
                sh(name, "cat /data/file; grep -c deleted /proc/self/mountinfo || true"),
                "of the image0",
                "{name}"
            );
        }
        sh(&fast, "echo shared > /data/new");
        assert_eq!(sh(&slow, "cat /data/new"), "shared");
        host.ok(&["rm", "-f", &slow, &fast]);
        // strace ends with the container.
        child.wait().unwrap();
        host.ok(&["volume", "rm", volume]);
    }
    assert_eq!(host.leftovers(), "");
    let left: Vec<_> = fs::read_dir(host.dir.join("root/volumes")).unwrap().flatten().map(|e| e.file_name()).collect();
    assert!(left.is_empty(), "{left:?}");
}

fn start_beside() {
    let host = Host::with_box();
    let id = host.ok(&["create", "--name", "one", "--network", "none", "box", "true"]);
    let run_dir = host.dir.join("run").join(&id);
    assert!(!run_dir.exists());
    // The directory is there, and nothing locks it yet.
    let path = run_dir.display().to_string();
    let strace =
        ["strace", "-f", "-qq", "-o", "/dev/null", "-P", &path, "-e", "inject=mkdir,mkdirat:delay_exit=500000:when=1"];
    let child = host.behind(&strace, &["start", "one"]).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    eventually("the directory", || run_dir.exists());
    host.ok(&["ps"]);
    let started = answer(child.wait_with_output().unwrap());
    assert_eq!((started.code, &*started.out), (0, "one\n"), "{}", started.err);
    host.ok(&["wait", "one"]);
    host.ok(&["rm", "one"]);
    assert_eq!(host.leftovers(), "");
}
