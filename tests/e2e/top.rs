//! `gpurun top` in a real terminal (tmux), and its single sample for programs.

use std::fs;
use std::path::PathBuf;
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

use crate::host::{Host, answer, eventually};

pub const TESTS: &[(&str, fn())] = &[(SCREEN, screen), (RESTORED, restored), ("one_sample_is_for_programs", once)];

/// The tests that need tmux.
pub const NEED_TMUX: [&str; 2] = [SCREEN, RESTORED];
const SCREEN: &str = "a_live_screen_shows_and_changes_containers";
const RESTORED: &str = "the_terminal_is_restored";
static COUNT: AtomicU32 = AtomicU32::new(0);
const LOOP: &str = "while :; do :; done";

/// A terminal of 80 columns and 24 rows, in which a shell runs `gpurun top`.
struct Terminal {
    socket: PathBuf,
    dir: PathBuf,
}

impl Terminal {
    fn start(host: &Host, variables: &str) -> Self {
        let top = host.command(&["top", "--interval", "0.3"]);
        let words = std::iter::once(top.get_program()).chain(top.get_args()).map(|word| word.to_str().unwrap());
        let environment =
            top.get_envs().filter_map(|(key, value)| Some((key.to_str().unwrap(), value?.to_str().unwrap())));
        let exports: String = environment.map(|(key, value)| format!("export {key}='{value}'\n")).collect();
        let words = words.map(|word| format!("'{word}'")).collect::<Vec<_>>().join(" ");
        let dir = host.dir.clone();
        // A shell with jobs, so that ctrl-z stops only this one. It waits for a line before it continues the job. It sets
        // its own modes meanwhile, as an interactive shell does when a job stops.
        let script = format!(
            "set -m\nexport LC_ALL=C.UTF-8 {variables}\nunset SUDO_UID SUDO_GID GPURUN_KILL_AT\n{exports}cd '{}'\n\
            stty -g >before\necho text of before\nsh -c 'echo $$ >pid; exec \"$@\"' sh {words}\ncode=$?\n\
            while [ $code = 147 ] || [ $code = 148 ]; do echo; echo stopped with $code; read line; stty \"$(cat before)\"; fg; code=$?; done\n\
            echo ended with $code\nstty -g >after.new; mv after.new after\nexec sleep 1000\n",
            dir.display()
        );
        fs::write(dir.join("script"), script).unwrap();
        for file in ["pid", "after"] {
            let _ = fs::remove_file(dir.join(file));
        }
        // A server that ends keeps its socket for a moment.
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let terminal = Self { socket: dir.join(format!("tmux{number}")), dir };
        let script = terminal.dir.join("script");
        terminal.tmux(&["-u", "new-session", "-d", "-x", "80", "-y", "24", "bash", script.to_str().unwrap()]);
        terminal
    }

    fn tmux(&self, args: &[&str]) -> String {
        let mut tmux = Command::new("tmux");
        tmux.arg("-S").arg(&self.socket).args(["-f", "/dev/null"]).args(args);
        let answer = answer(tmux.env("LC_ALL", "C.UTF-8").env_remove("TMUX").output().unwrap());
        assert_eq!(answer.code, 0, "tmux {args:?}: {}", answer.err);
        answer.out
    }

    fn text(&self) -> String {
        self.tmux(&["capture-pane", "-p"])
    }

    #[track_caller]
    fn shows(&self, what: &str) {
        let mut text = String::new();
        let found = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            eventually(what, || {
                text = self.text();
                text.contains(what)
            });
        }));
        assert!(found.is_ok(), "no `{what}` on the screen:\n{text}");
    }

    #[track_caller]
    fn hides(&self, what: &str) {
        eventually(&format!("`{what}` is not on the screen any more"), || !self.text().contains(what));
    }

    fn keys(&self, keys: &[&str]) {
        self.tmux(&[&["send-keys"], keys].concat());
    }

    /// Types text, and then Enter.
    fn enter(&self, text: &str) {
        self.tmux(&["send-keys", "-l", "--", text]);
        self.keys(&["Enter"]);
    }

    fn pid(&self) -> Pid {
        let mut pid = None;
        eventually("the screen has started", || {
            pid = fs::read_to_string(self.dir.join("pid")).ok().and_then(|text| text.trim().parse().ok());
            pid.is_some()
        });
        Pid::from_raw(pid.unwrap())
    }

    /// Whether the terminal shows the alternate screen, and the cursor.
    fn modes(&self) -> String {
        self.tmux(&["display-message", "-p", "#{alternate_on} #{cursor_flag}"]).trim().to_owned()
    }

    /// Insists that everything is as before the screen was opened.
    #[track_caller]
    fn is_restored(&self, code: i32) {
        self.shows(&format!("ended with {code}"));
        self.shows("text of before");
        eventually("the shell has read the modes", || self.dir.join("after").exists());
        let mode = |file: &str| fs::read_to_string(self.dir.join(file)).unwrap();
        assert_eq!((mode("after"), self.modes().as_str()), (mode("before"), "0 1"));
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        let _ = Command::new("tmux").arg("-S").arg(&self.socket).arg("kill-server").output();
    }
}

/// Starts a container of the user `daemon`, which a signal ends.
fn start_web(host: &Host) {
    let line = "trap exit TERM; while :; do sleep 0.1; done";
    let mut run = host.command(&["run", "-d", "--name", "web", "--network", "none", "box", "sh", "-c", line]);
    let started = answer(run.env("SUDO_UID", "1").env("SUDO_GID", "1").output().unwrap());
    assert_eq!(started.code, 0, "{}", started.err);
}

fn screen() {
    let host = Host::with_box();
    start_web(&host);
    let flags = ["--name", "busy", "--network", "none", "--cpus", "0.3", "--memory", "64m"];
    host.ok(&[&["run", "-d"], &flags[..], &["box", "sh", "-c", LOOP]].concat());
    let terminal = Terminal::start(&host, "");
    for text in ["busy", "/64.0M", "daemon", "NAME", "THR%", "PSI", "2 containers  every 0.3 s", "k stop"] {
        terminal.shows(text);
    }
    eventually("a sparkline has a bar", || terminal.text().contains(['▁', '▂', '▃', '▄', '▅', '▆', '▇', '█']));
    assert!(terminal.text().lines().all(|line| line.chars().count() <= 80), "{}", terminal.text());

    // Keys sort and filter.
    terminal.keys(&["s", "s", "s"]);
    terminal.shows("sort: name");
    terminal.keys(&["/"]);
    terminal.enter("WEB");
    terminal.hides("busy");
    terminal.shows("filter=WEB");
    terminal.keys(&["Escape"]);
    terminal.shows("busy");
    terminal.keys(&["?"]);
    terminal.shows("any key closes the help");
    terminal.keys(&["x"]);
    terminal.shows("NAME");

    // `p` pauses and resumes the selected container.
    let state = |name: &str| host.inspect(name)["State"]["Status"].as_str().unwrap().to_owned();
    terminal.keys(&["Home"]);
    terminal.shows(">busy");
    terminal.keys(&["p"]);
    terminal.shows("(1 paused)");
    assert_eq!(state("busy"), "paused");
    terminal.keys(&["p"]);
    terminal.hides("(1 paused)");
    assert_eq!(state("busy"), "running");

    // `u` changes limits, and an error stays on one line of the screen.
    terminal.keys(&["u"]);
    terminal.enter("--memory 32m");
    terminal.shows("/32.0M");
    terminal.keys(&["u"]);
    terminal.enter("--memory much");
    terminal.shows("error: ");
    terminal.keys(&["u"]);
    terminal.enter("--cpus 0.2 web");
    terminal.shows("only flags of `gpurun update`");
    assert_eq!(host.inspect("busy")["HostConfig"]["Memory"], 32 << 20);

    // `k` stops after a question.
    terminal.keys(&["Down"]);
    terminal.shows(">web");
    terminal.keys(&["k"]);
    terminal.shows("Stop container `web`? [y/N]");
    terminal.keys(&["Escape"]);
    terminal.hides("Stop container");
    terminal.keys(&["k", "y"]);
    terminal.hides(" daemon");
    terminal.shows("stopped `web`");
    assert_eq!((state("web").as_str(), state("busy").as_str()), ("exited", "running"));

    // Another size, and a stop with ctrl-z.
    terminal.tmux(&["resize-window", "-x", "110", "-y", "12"]);
    terminal.shows("PIDS");
    terminal.tmux(&["resize-window", "-x", "40", "-y", "10"]);
    terminal.hides("PIDS");
    terminal.shows("busy");
    terminal.tmux(&["resize-window", "-x", "80", "-y", "24"]);
    terminal.keys(&["C-z"]);
    terminal.shows("stopped with 148");
    assert_eq!(terminal.modes(), "0 1");
    terminal.keys(&["Enter"]);
    terminal.shows("every 0.3 s");
    assert_eq!(terminal.modes(), "1 0");
    terminal.keys(&["q"]);
    terminal.is_restored(0);
    host.ok(&["rm", "-f", "web", "busy"]);
    assert_eq!(host.leftovers(), "");
}

/// Signals and a panic end the screen.
fn restored() {
    let host = Host::with_box();
    for signal in [Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP, Signal::SIGQUIT] {
        let terminal = Terminal::start(&host, "");
        terminal.shows("no container is running");
        assert_eq!(terminal.modes(), "1 0");
        kill(terminal.pid(), signal).unwrap();
        terminal.is_restored(128 + signal as i32);
    }
    let terminal = Terminal::start(&host, "");
    terminal.shows("no container is running");
    // What SIGSTOP leaves behind is drawn again.
    kill(terminal.pid(), Signal::SIGSTOP).unwrap();
    terminal.shows("stopped with 147");
    terminal.keys(&["Enter"]);
    terminal.hides("stopped with 147");
    // A key that arrives before the screen is back is not its own.
    terminal.shows("no container is running");
    terminal.keys(&["?"]);
    terminal.shows("any key closes the help");
    terminal.keys(&["C-c"]);
    terminal.is_restored(130);
    drop(terminal);
    let terminal = Terminal::start(&host, "RUST_BACKTRACE=0 GPURUN_TOP_PANIC=1");
    terminal.is_restored(1);
    terminal.shows("a test requested this panic");
}

fn once() {
    let host = Host::with_box();
    start_web(&host);
    host.ok(&["run", "-d", "--name", "busy", "--network", "none", "--memory", "64m", "box", "sh", "-c", LOOP]);
    let sample: Value = serde_json::from_str(&host.ok(&["top", "--once", "--json"])).unwrap();
    let (all, machine) = (sample["containers"].as_array().unwrap(), &sample["host"]);
    let one = |name: &str| all.iter().find(|one| one["name"] == name).unwrap_or_else(|| panic!("{sample}"));
    assert_eq!((one("web")["owner"].as_str(), one("busy")["memory_limit"].as_u64()), (Some("daemon"), Some(64 << 20)));
    assert!(one("busy")["cpu_percent"].as_f64().is_some() && one("web")["paused"] == false, "{sample}");
    let total = fs::read_to_string("/proc/meminfo").unwrap();
    let total: u64 = total.lines().next().unwrap().split_whitespace().nth(1).unwrap().parse().unwrap();
    assert_eq!(machine["memory_total"].as_u64(), Some(total << 10));
    assert!(machine["cpu_percent"].as_f64().is_some_and(|part| (0.0..=100.0).contains(&part)), "{machine}");
    let load = &machine["load"];
    assert!(load[0].is_f64() && load[2].is_f64() && machine["cpus"].as_u64().is_some_and(|cpus| cpus > 0), "{machine}");
    // Version 1 has no pressure per cgroup.
    let is_v2 = std::path::Path::new("/sys/fs/cgroup/cgroup.controllers").exists();
    assert_eq!(one("web")["memory_pressure"]["some_avg10"].is_f64(), is_v2, "{sample}");
    let text = host.ok(&["top", "--once"]);
    assert!(text.contains("NAME") && text.contains("busy") && text.contains("/64.0M"), "{text}");
    let error = host.fails(2, &["top"]);
    assert!(error.contains("must be a terminal") && error.contains("gpurun top --once"), "{error}");
    host.fails(2, &["top", "--json"]);
    host.fails(2, &["top", "--once", "web"]);
    host.fails(2, &["top", "--interval", "0"]);
    host.ok(&["rm", "-f", "web", "busy"]);
    assert_eq!(host.leftovers(), "");
}
