use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;

use super::super::auth::Secret;
use super::super::password::Algorithm;
use super::super::{Launch, LaunchRequest, Rootfs, plan};
use super::*;
use crate::report::Report;
use crate::spec::Limits;

const LONG: Duration = Duration::from_secs(60);

/// A server that consists of one function: it takes the request's text and returns the response (empty: close the
/// connection without one).
struct Fake {
    address: SocketAddr,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Fake {
    fn new(answer: impl Fn(&str) -> String + Send + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let (address, stop) = (listener.local_addr().unwrap(), Arc::new(AtomicBool::new(false)));
        let stopped = Arc::clone(&stop);
        let thread = std::thread::spawn(move || {
            for stream in listener.incoming() {
                if stopped.load(Ordering::SeqCst) {
                    return;
                }
                serve(stream.unwrap(), &answer);
            }
        });
        Self { address, stop, thread: Some(thread) }
    }
}

fn serve(mut stream: TcpStream, answer: &impl Fn(&str) -> String) {
    let mut bytes = Vec::new();
    let mut buffer = [0; 4096];
    loop {
        let count = stream.read(&mut buffer).unwrap_or(0);
        bytes.extend_from_slice(&buffer[..count]);
        let text = String::from_utf8_lossy(&bytes).into_owned();
        let whole = text.split_once("\r\n\r\n").is_some_and(|(head, body)| {
            let length = head.lines().find_map(|line| line.strip_prefix("Content-Length: ")?.parse().ok());
            body.len() >= length.unwrap_or(0)
        });
        if whole {
            // The client may have closed the connection. That is not an error here.
            let _ = stream.write_all(answer(&text).as_bytes());
            return;
        }
        if count == 0 {
            return;
        }
    }
}

impl Drop for Fake {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
        let _ = TcpStream::connect(self.address);
        self.thread.take().unwrap().join().unwrap();
    }
}

fn status(code: u16, headers: &str) -> String {
    format!("HTTP/1.1 {code} X\r\n{headers}Content-Length: 0\r\n\r\n")
}

fn ask(address: SocketAddr, auth: &Auth, patience: Duration) -> Result<Ready, ReadyError> {
    wait_ready(&Probe { address, base_url: "/", auth, tls: None, mark: "" }, patience, &mut || None)
}

fn token() -> Auth {
    Auth::Token(Secret::new("feedbeef"))
}

/// Behaves like Jupyter: a form with protection against forged requests, and a cookie for a client that knows the
/// password.
fn by_password(request: &str) -> String {
    if request.starts_with("GET /login ") {
        return status(200, "Set-Cookie: _xsrf=2|x; Path=/\r\n");
    }
    if request.starts_with("POST /login ") {
        let allowed =
            request.contains("Cookie: _xsrf=2|x\r\n") && request.ends_with("\r\n\r\n_xsrf=2%7Cx&password=ge%20heim");
        return if allowed { status(302, "Location: /\r\nSet-Cookie: user=me; HttpOnly\r\n") } else { status(401, "") };
    }
    status(if request.contains("user=me") { 200 } else { 403 }, "")
}

#[test]
fn a_server_that_locks_properly_is_ready() {
    let server = Fake::new(by_password);
    let password = |text: &str| Auth::Password(Secret::new(text));
    assert!(ask(server.address, &password("ge heim"), LONG).unwrap().login_proved);
    assert_eq!(
        ask(server.address, &password("other"), LONG),
        Err(ReadyError::RightRefused { address: server.address, what: "password" })
    );
    assert!(!ask(server.address, &Auth::Hash("sha1:a:b".into()), LONG).unwrap().login_proved);
    let server =
        Fake::new(|request| status(if request.contains("Authorization: token feedbeef\r\n") { 200 } else { 403 }, ""));
    assert!(ask(server.address, &token(), LONG).unwrap().login_proved);
}

#[test]
fn an_open_server_is_refused() {
    let server = Fake::new(|_| status(200, ""));
    for auth in [token(), Auth::Hash("sha1:a:b".into()), Auth::Password(Secret::new("x"))] {
        assert_eq!(ask(server.address, &auth, LONG), Err(ReadyError::Open { address: server.address }));
    }
    let server = Fake::new(|request| status(if request.contains("Authorization") { 200 } else { 403 }, ""));
    assert_eq!(
        ask(server.address, &token(), LONG),
        Err(ReadyError::WrongAccepted { address: server.address, what: "token" })
    );
    let server = Fake::new(|request| {
        if request.starts_with("POST") {
            return status(302, "Set-Cookie: user=me\r\n");
        }
        by_password(request)
    });
    let hash = Auth::Hash("sha1:a:b".into());
    assert_eq!(
        ask(server.address, &hash, LONG),
        Err(ReadyError::WrongAccepted { address: server.address, what: "password" })
    );
}

#[test]
fn what_never_answers_properly_is_late() {
    let patience = Duration::from_millis(400);
    type Answer = fn(&str) -> String;
    let cases: [(&str, Answer, &str); 4] = [
        ("closes", |_| String::new(), "closed without an answer"),
        ("is no HTTP server", |_| "SSH-2.0-OpenSSH_9.2\r\n".into(), "the answer is not HTTP"),
        ("is still starting", |_| status(503, ""), "HTTP status 503"),
        ("sends for ever", |_| format!("HTTP/1.1 200 OK\r\nA: {}", "x".repeat(70 << 10)), "the answer is not HTTP"),
    ];
    for (name, answer, expected) in cases {
        let server = Fake::new(answer);
        match ask(server.address, &token(), patience) {
            Err(ReadyError::Late { last, .. }) => assert!(last.contains(expected), "{name}: {last}"),
            other => panic!("{name}: {other:?}"),
        }
    }
    // Accepts the connection and sends nothing.
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let error = ask(silent.local_addr().unwrap(), &token(), patience).unwrap_err();
    let text = Report::from(error).to_string().replace(&silent.local_addr().unwrap().to_string(), "ADDRESS");
    insta::assert_snapshot!(text);
    // No server listens.
    let address = silent.local_addr().unwrap();
    drop(silent);
    assert!(matches!(ask(address, &token(), patience), Err(ReadyError::Late { last, .. }) if last.contains("refused")));
}

#[test]
fn a_server_that_dies_is_noticed_at_once() {
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let auth = token();
    let probe = Probe { address: silent.local_addr().unwrap(), base_url: "/", auth: &auth, tls: None, mark: "" };
    let started = Instant::now();
    let mut looks = 0;
    let result = wait_ready(&probe, LONG, &mut || {
        looks += 1;
        (looks == 3).then_some(137)
    });
    assert_eq!(result, Err(ReadyError::Died { status: 137 }));
    assert!(started.elapsed() < LONG / 2);
}

#[test]
fn a_base_url_is_asked_below() {
    let server = Fake::new(|request| {
        let below = request.split(' ').nth(1).is_some_and(|path| path.starts_with("/u/a/api/"));
        status(
            if !below {
                404
            } else if request.contains("token feedbeef") {
                200
            } else {
                302
            },
            "Location: /u/a/login?next=x\r\n",
        )
    });
    let auth = token();
    let probe = Probe { address: server.address, base_url: "/u/a/", auth: &auth, tls: None, mark: "" };
    assert!(wait_ready(&probe, LONG, &mut || None).is_ok());
}

// ---- with a real server ----

/// A running Jupyter of a virtual environment, with its directories.
struct Real {
    child: Child,
    address: SocketAddr,
    dir: tempfile::TempDir,
}

impl Drop for Real {
    fn drop(&mut self) {
        // Kill the whole group: JupyterLab starts helpers that keep writing to the home directory, which is removed
        // next.
        let group = nix::unistd::Pid::from_raw(i32::try_from(self.child.id()).unwrap());
        let _ = nix::sys::signal::killpg(group, nix::sys::signal::Signal::SIGKILL);
        let _ = self.child.wait();
    }
}

fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

fn launch(venv: &Path, auth: &Auth, port: u16, dir: &Path) -> Launch {
    let path = venv.join("bin").display().to_string();
    plan(&LaunchRequest {
        image: "venv",
        files: &Rootfs::open(Path::new("/")).unwrap(),
        entrypoint: &[],
        env: &[("PATH".into(), path)],
        user: (nix::unistd::getuid().as_raw(), nix::unistd::getgid().as_raw()),
        home: dir.join("home").to_str().unwrap(),
        owner: (0, 0),
        notebook_dir: dir.join("work").to_str().unwrap(),
        bind: "127.0.0.1".parse().unwrap(),
        port,
        limits: &Limits::default(),
        auth,
        tls: None,
        args: &[],
    })
    .unwrap()
}

/// Returns a command that runs its arguments with the configuration mounted read-only, as in the container. Only root
/// can do that.
fn read_only(config: &Path) -> Command {
    if !nix::unistd::geteuid().is_root() {
        return Command::new("env");
    }
    let script = r#"mount --bind "$0" "$0" && mount -o remount,bind,ro "$0" && exec "$@""#;
    let mut command = Command::new("unshare");
    command.args(["--mount", "sh", "-c", script]).arg(config);
    command
}

/// Starts the launch of [`plan`], with our configuration directory at its path in the container. `bend` may break it.
fn start(venv: &Path, auth: &Auth, bend: impl FnOnce(&mut Launch, &Path)) -> Real {
    let (dir, port) = (tempfile::tempdir().unwrap(), free_port());
    for name in ["home", "work"] {
        std::fs::create_dir(dir.path().join(name)).unwrap();
    }
    let mut launch = launch(venv, auth, port, dir.path());
    let config = dir.path().join("config");
    for (_, value) in &mut launch.env {
        *value = value.replace(super::super::CONFIG_DIR, config.to_str().unwrap());
    }
    bend(&mut launch, dir.path());
    launch.write_files(&config).unwrap();
    let log = std::fs::File::create(dir.path().join("log")).unwrap();
    let child = read_only(&config)
        .args(&launch.argv)
        .env_clear()
        .envs([("PATH", format!("{}:/usr/bin:/bin", venv.join("bin").display()))])
        .env("HOME", dir.path().join("home"))
        .envs(launch.env.iter().map(|(key, value)| (key, value)))
        .current_dir(&launch.cwd)
        .process_group(0)
        .stdin(Stdio::null())
        .stdout(log.try_clone().unwrap())
        .stderr(log)
        .spawn()
        .unwrap();
    Real { child, address: SocketAddr::from(([127, 0, 0, 1], port)), dir }
}

impl Real {
    fn ready(&mut self, auth: &Auth) -> Result<Ready, ReadyError> {
        let child = &mut self.child;
        let probe = Probe { address: self.address, base_url: "/", auth, tls: None, mark: "" };
        wait_ready(&probe, LONG, &mut || child.try_wait().unwrap().map(|status| status.code().unwrap_or(-1)))
    }

    fn log(&self) -> String {
        std::fs::read_to_string(self.dir.path().join("log")).unwrap()
    }
}

/// The virtual environments to test, from `GPURUN_TEST_JUPYTER=DIR[:DIR…]`.
fn venvs() -> Vec<std::path::PathBuf> {
    let list = std::env::var("GPURUN_TEST_JUPYTER").expect("GPURUN_TEST_JUPYTER names the environments");
    list.split(':').map(Into::into).collect()
}

#[test]
#[ignore = "needs real Jupyters: GPURUN_TEST_JUPYTER=VENV[:VENV…]"]
fn real_servers_admit_only_their_owner() {
    let password = Auth::Password(Secret::new("höllisch & geheim"));
    for venv in venvs() {
        let token = Auth::new_token().unwrap();
        let hash = Auth::Hash(password::hash("geheim", Algorithm::Sha512).unwrap());
        for auth in [&password, &token, &hash] {
            let mut server = start(&venv, auth, |_, _| {});
            let ready =
                server.ready(auth).unwrap_or_else(|error| panic!("{}: {error}\n{}", venv.display(), server.log()));
            eprintln!("{}: {auth:?}: {ready:?}", venv.display());
            assert_eq!(ready.login_proved, !matches!(auth, Auth::Hash(_)));
            let other = match auth {
                Auth::Token(_) => Auth::new_token().unwrap(),
                _ => Auth::Password(Secret::new("something else")),
            };
            assert!(matches!(server.ready(&other), Err(ReadyError::RightRefused { .. })));
            if matches!(auth, Auth::Hash(_)) {
                assert!(server.ready(&Auth::Password(Secret::new("geheim"))).unwrap().login_proved);
            }
            let log = server.log();
            for secret in ["geheim", "argon2:", "sha512:"] {
                assert!(!log.contains(secret), "{log}");
            }
            assert!(!log.contains("Traceback") && !log.contains("Read-only"), "{log}");
        }
    }
}

#[test]
#[ignore = "needs real Jupyters: GPURUN_TEST_JUPYTER=VENV[:VENV…]"]
fn a_home_directory_cannot_take_the_login_away() {
    let password = Auth::Password(Secret::new("geheim"));
    for venv in venvs() {
        let mut server = start(&venv, &password, |launch, dir| {
            let own = dir.join("home/.jupyter");
            std::fs::create_dir(&own).unwrap();
            let open = r#"{"NotebookApp":{"token":"","password":""},"ServerApp":{"token":"","password":""},"IdentityProvider":{"token":""},"PasswordIdentityProvider":{"token":"","hashed_password":""}}"#;
            for name in [
                "jupyter_server_config.json",
                "jupyter_notebook_config.json",
                "jupyter_lab_config.json",
                "jupyter_config.json",
            ] {
                std::fs::write(own.join(name), open).unwrap();
            }
            launch.env.push(("JUPYTER_TOKEN".into(), "known-to-all".into()));
        });
        server.ready(&password).unwrap_or_else(|error| panic!("{}: {error}\n{}", venv.display(), server.log()));
        let known = Auth::Token(Secret::new("known-to-all"));
        assert!(matches!(server.ready(&known), Err(ReadyError::RightRefused { .. })), "{}", venv.display());
    }
}

#[test]
#[ignore = "needs real Jupyters: GPURUN_TEST_JUPYTER=VENV[:VENV…]"]
fn a_real_server_left_open_is_refused_and_one_that_dies_is_reported() {
    let password = Auth::Password(Secret::new("geheim"));
    for venv in venvs() {
        let mut server = start(&venv, &password, |launch, _| {
            // The trap: a password setting that this server does not read, and a blank token.
            launch.files.retain(|file| file.name == "migrated");
            let class = if launch.server.classic() { "NotebookApp" } else { "IdentityProvider" };
            launch.argv.push(format!("--{class}.token="));
        });
        let address = server.address;
        assert_eq!(server.ready(&password), Err(ReadyError::Open { address }), "{}", server.log());

        let mut dying = start(&venv, &password, |launch, _| {
            let port = launch.argv.iter_mut().find(|argument| argument.starts_with("--port=")).unwrap();
            *port = "--port=none".into();
        });
        assert!(matches!(dying.ready(&password), Err(ReadyError::Died { status: 1.. })), "{}", dying.log());
    }
}
