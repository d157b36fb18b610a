//! What others say: docker about what we save, a registry about the tokens that we bring, a terminal about the progress that we show; and
//! every command that takes a source, with every source.

use std::fs;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use serde_json::json;

use crate::Test;
use crate::fixture::{Fixture, answer, listing, sh};
use crate::registry::Registry;
use crate::rogue::{Reply, Request, Rogue};
use crate::test_image::{Packing, TestImage};

pub const TESTS: &[Test] = &[
    ("docker_loads_what_is_saved", &["dockerd", "docker"], docker_loads),
    ("a_registry_takes_our_tokens", &["docker-registry", "openssl"], tokens),
    ("progress_on_a_terminal_and_in_a_log", &["script"], progress),
    ("every_command_takes_every_source", &["docker-registry"], sources),
    ("references_as_docker_resolves_them", &["docker-registry"], references),
];

/// A daemon of its own, without a network.
struct Docker {
    child: Child,
    command: String,
}

impl Docker {
    fn start(fixture: &Fixture) -> Self {
        let dir = fixture.path("docker");
        fs::create_dir_all(&dir).unwrap();
        // A socket's name is short.
        let socket = format!("/run/gpurun-test-docker-{}.sock", std::process::id());
        let log = fs::File::create(dir.join("log")).unwrap();
        let child = Command::new("dockerd")
            .args(["--iptables=false", "--ip6tables=false", "--bridge=none", "--data-root"])
            .arg(dir.join("data"))
            .arg("--exec-root")
            .arg(dir.join("exec"))
            .arg("--pidfile")
            .arg(dir.join("pid"))
            .args(["--host", &format!("unix://{socket}")])
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .spawn()
            .unwrap();
        let docker = Self { child, command: format!("docker -H unix://{socket}") };
        // It answers when it is ready; there is nothing to wait on before.
        let ready = format!(
            "for i in $(seq 150); do {} version >/dev/null 2>&1 && exit 0; sleep 0.2; done; cat {}/log >&2; exit 1",
            docker.command,
            dir.display()
        );
        sh(&ready);
        docker
    }
}

impl Drop for Docker {
    fn drop(&mut self) {
        let _ = nix::sys::signal::kill(
            nix::unistd::Pid::from_raw(self.child.id() as i32),
            nix::sys::signal::Signal::SIGTERM,
        );
        let _ = self.child.wait();
    }
}

fn docker_loads() {
    let fixture = Fixture::new();
    let test_image = TestImage::new(1, 3);
    test_image.layout(&fixture.path("layout"), "localhost/one:1", Packing::Zstd);
    fixture.ok(&["image", "load", "layout"]);
    let files = |text: &str| text.lines().filter(|line| !line.contains(" d ")).map(str::to_owned).collect::<Vec<_>>();
    let ours = files(&listing(&fixture.mounted("localhost/one:1")));
    fixture.ok(&["image", "save", "-o", "saved.tar", "localhost/one:1"]);
    let docker = Docker::start(&fixture);
    let dir = fixture.dir.display();
    sh(&format!("cd {dir} && {} load -q -i saved.tar", docker.command));
    let id = sh(&format!("{} image inspect -f '{{{{.Id}}}}' localhost/one:1", docker.command));
    assert_eq!(id.trim(), test_image.id());
    // What docker adds to a container's files is not the image's.
    sh(&format!(
        "cd {dir} && mkdir theirs && {0} create --name copy --network none localhost/one:1 x >/dev/null && {0} export copy | tar -C theirs -xf - \
         && rm -rf theirs/.dockerenv theirs/dev theirs/proc theirs/sys theirs/etc/hostname theirs/etc/hosts theirs/etc/resolv.conf theirs/etc/mtab",
        docker.command
    ));
    assert_eq!(files(&listing(&fixture.path("theirs"))), ours);
    // And the way back: what docker saves is the same image.
    sh(&format!("cd {dir} && {} save -o back.tar localhost/one:1", docker.command));
    fixture.ok(&["image", "unmount", "--all"]);
    fixture.ok(&["image", "rm", "localhost/one:1"]);
    fixture.ok(&["image", "load", "back.tar"]);
    assert_eq!(fixture.json(&["image", "inspect", "localhost/one:1"])[0]["Id"], test_image.id().as_str());
}

/// The registry of Debian with token authentication, and a token service of ours that signs for those who may.
fn tokens() {
    let fixture = Fixture::new();
    let dir = fixture.path("tokens");
    fs::create_dir_all(&dir).unwrap();
    sh(&format!(
        "cd {} && openssl req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=lab -keyout key.pem -out cert.pem 2>&1 \
         && openssl x509 -in cert.pem -outform der -out cert.der",
        dir.display()
    ));
    let certificate = STANDARD.encode(fs::read(dir.join("cert.der")).unwrap());
    let (asked, keys) = (Arc::new(AtomicUsize::new(0)), dir.clone());
    let counter = asked.clone();
    let service = Rogue::new(move |request: &Request| {
        let number = counter.fetch_add(1, Ordering::SeqCst);
        // Without a login, a client may pull from `open/`. `ann` may do everything.
        let ann = request.header("authorization") == "Basic YW5uOnNlY3JldA==";
        if !ann && !request.header("authorization").is_empty() {
            return Reply::Status(401, vec![], Vec::new());
        }
        let scope =
            request.path.split(['?', '&']).find_map(|part| part.strip_prefix("scope=")).unwrap_or_default().to_owned();
        let scope = scope.replace("%3A", ":").replace("%2F", "/").replace("%2C", ",");
        let [_, name, actions] = scope.split(':').collect::<Vec<_>>()[..] else {
            return Reply::Status(400, vec![], Vec::new());
        };
        let granted: Vec<&str> =
            actions.split(',').filter(|action| ann || (*action == "pull" && name.starts_with("open/"))).collect();
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs();
        let head = json!({"typ": "JWT", "alg": "RS256", "x5c": [certificate]}).to_string();
        let claims = json!({"iss": "lab", "sub": "", "aud": "lab", "exp": now + 300, "nbf": now - 10, "iat": now, "jti": number.to_string(),
            "access": [{"type": "repository", "name": name, "actions": granted}]})
        .to_string();
        let text = format!("{}.{}", URL_SAFE_NO_PAD.encode(head), URL_SAFE_NO_PAD.encode(claims));
        let (to_sign, signed) = (keys.join(format!("text.{number}")), keys.join(format!("signed.{number}")));
        fs::write(&to_sign, &text).unwrap();
        sh(&format!(
            "openssl dgst -sha256 -sign {}/key.pem -out {} {}",
            keys.display(),
            signed.display(),
            to_sign.display()
        ));
        let token = format!("{text}.{}", URL_SAFE_NO_PAD.encode(fs::read(signed).unwrap()));
        Reply::Status(200, vec![], json!({"token": token, "expires_in": 300}).to_string().into_bytes())
    });
    let registry =
        Registry::with_tokens(&fixture.dir, &format!("http://127.0.0.1:{}/token", service.port), &dir.join("cert.pem"));
    TestImage::new(1, 2).layout(&fixture.path("layout"), "localhost/t:1", Packing::Gzip);
    fixture.ok(&["image", "load", "layout"]);
    let (open, closed) = (registry.name("open/t:1"), registry.name("closed/t:1"));
    for name in [&open, &closed] {
        let error = fixture.fails(&["image", "push", "localhost/t:1", name]);
        assert!(error.contains("refuses access") && error.contains("gpurun login"), "{error}");
        fixture.ok(&["image", "push", "--creds", "ann:secret", "localhost/t:1", name]);
    }
    let before = asked.load(Ordering::SeqCst);
    fixture.ok(&["image", "pull", &open]);
    assert_eq!(asked.load(Ordering::SeqCst) - before, 1, "one token for a manifest, a config and two layers");
    fixture.fails(&["image", "pull", &closed]);
    let error = fixture.fails(&["image", "pull", "--creds", "ann:wrong", &closed]);
    assert!(error.contains("refuses access") && error.contains("`--creds`") && !error.contains("wrong"), "{error}");
    fixture.ok(&["image", "pull", "--creds", "ann:secret", &closed]);
    fixture.assert_whole();
}

fn progress() {
    let fixture = Fixture::new();
    let rogue = Rogue::new(|request| if request.path.contains("/blobs/") { Reply::Slow } else { Reply::Right });
    // Two layers of a megabyte and a half: three seconds each, side by side.
    let mut test_image = TestImage::new(1, 1);
    test_image.layers.extend(TestImage::new(2, 1).layers);
    let layers = rogue.with("t:1", &test_image, Packing::None);
    let name = rogue.name("t:1");
    let plain = fixture.command(&["image", "pull", &name]);
    let line = format!("stty cols 120; exec {} image pull {name}", plain.get_program().display());
    let mut terminal = Command::new("script");
    terminal.args(["-qec", &line, "/dev/null"]).env("TERM", "xterm").current_dir(&fixture.dir).stdin(Stdio::null());
    for (variable, value) in plain.get_envs() {
        match value {
            Some(value) => terminal.env(variable, value),
            None => terminal.env_remove(variable),
        };
    }
    let shown = answer(terminal.output().unwrap()).out;
    assert!(shown.contains(&format!("Loaded image: {name}")), "{shown}");
    // Bytes of how many, a rate, a time left.
    let reported = |what: &str| {
        let bar = format!(r"{what} +\[[^/]*=>[^/]*\] [\d.]+ [KM]iB/[\d.]+ MiB [\d.]+ [KM]iB/s \d+s");
        regex::Regex::new(&bar).unwrap().is_match(&shown)
    };
    assert!(reported("pulling"), "no bar for all of it: {shown}");
    for layer in layers {
        // Plain tars: a blob's digest is its diff id.
        let id = &layer[7..19];
        assert!(reported(id), "no bar for the layer {id}: {shown}");
    }
    // Not on a terminal: lines, and no escape.
    fixture.ok(&["image", "rm", &name]);
    let log = fixture.run(&["image", "pull", &name]).err;
    assert!(log.contains("done (2 of 2)") && !log.contains('\u{1b}') && !log.contains('\r'), "{log}");
    // Asked to be quiet it is.
    fixture.ok(&["image", "rm", &name]);
    assert_eq!(fixture.run(&["image", "pull", "-q", &name]).err, "");
}

fn sources() {
    let fixture = Fixture::new();
    let registry = Registry::start(&fixture.dir, false, false);
    let test_image = TestImage::new(1, 2);
    test_image.layout(&fixture.path("layout"), "v1", Packing::Gzip);
    fixture.ok(&["image", "load", "oci:layout:v1", "-t", "localhost/s:1"]);
    fixture.ok(&["image", "save", "-o", "docker.tar", "localhost/s:1"]);
    fixture.ok(&["image", "save", "--format", "oci-archive", "-o", "oci.tar", "localhost/s:1"]);
    fixture.ok(&["image", "push", "-q", "localhost/s:1", &registry.name("s:1")]);
    let remote = format!("docker://{}", registry.name("s:1"));
    for (at, source) in ["oci:layout:v1", "oci-archive:oci.tar:1", "docker-archive:docker.tar:localhost/s:1", &remote]
        .into_iter()
        .enumerate()
    {
        let command = |snippets: &[&str]| {
            fixture.run(&["image", "prune", "-a", "-f"]);
            fixture.ok(snippets)
        };
        let (tree, file, tag) = (format!("tree{at}"), format!("saved{at}.tar"), format!("localhost/tag{at}:1"));
        command(&["image", "load", source]);
        command(&["image", "unpack", source, &tree]);
        assert!(fixture.path(&tree).join("etc/1-0").exists(), "{source}");
        assert!(fs::metadata(command(&["image", "mount", source])).unwrap().is_dir());
        fixture.ok(&["image", "unmount", "--all"]);
        command(&["image", "save", "-o", &file, source]);
        assert!(fixture.path(&file).exists(), "{source}");
        command(&["image", "tag", source, &tag]);
        assert!(fixture.names().contains(&tag), "{source}");
        assert!(command(&["image", "inspect", "--json", source]).contains(&test_image.id()), "{source}");
        assert!(command(&["image", "history", source]).contains("COPY"), "{source}");
        command(&["image", "push", "-q", source, &registry.name(&format!("again{at}:1"))]);
    }
    for snippets in [["image", "inspect", "oci:nowhere"], ["image", "history", "oci-archive:nowhere"]] {
        let error = fixture.fails(&snippets);
        assert!(error.contains("cannot read `nowhere`"), "{error}");
    }
}

fn references() {
    let fixture = Fixture::new();
    let registry = Registry::start(&fixture.dir, false, false);
    let test_image = TestImage::new(1, 1);
    test_image.layout(&fixture.path("layout"), "localhost/s:1", Packing::Gzip);
    fixture.ok(&["image", "load", "layout"]);
    // `name` is `name:latest`.
    let bare = registry.name("deep/er/s");
    fixture.ok(&["image", "push", "-q", "localhost/s:1", &bare]);
    fixture.ok(&["image", "rm", "localhost/s:1"]);
    fixture.ok(&["image", "pull", "-q", &bare]);
    assert_eq!(fixture.names(), [format!("{bare}:latest")]);
    let inspected = fixture.json(&["image", "inspect", &bare]);
    let manifest = inspected[0]["ManifestDigest"].as_str().unwrap().to_owned();
    let id = test_image.id();
    let pinned = format!("{bare}@{manifest}");
    for name in [bare.as_str(), &format!("{bare}:latest"), &pinned, &id, &id[7..], &id[7..19], &id[7..10], &id[..20]] {
        assert_eq!(fixture.json(&["image", "inspect", name])[0]["Id"].as_str(), Some(id.as_str()), "{name}");
    }
    // A digest that the image did not come with, and that of another name, do not resolve.
    let other = format!("{bare}@{id}");
    let elsewhere = format!("{}@{manifest}", registry.name("other"));
    for name in [&other, &elsewhere] {
        assert!(fixture.fails(&["image", "inspect", name]).contains("no image"), "{name}");
    }
    fixture.ok(&["image", "pull", "-q", &pinned]);
    assert!(fixture.names().contains(&pinned), "{:?}", fixture.names());
    for name in ["S", "a//b", "x:", "x@sha256:12", ""] {
        let refused = fixture.run(&["image", "pull", name]);
        assert!(refused.code == 2 && refused.err.contains("hint:"), "{name}: {}", refused.err);
    }
}
