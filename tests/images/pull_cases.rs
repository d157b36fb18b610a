//! Against Debian's docker-registry, with the tools of others on the other side.

use std::fs;
use std::os::unix::fs::PermissionsExt;

use crate::Test;
use crate::fixture::{Fixture, answer, listing, sh};
use crate::registry::Registry;
use crate::rogue::{Reply, Rogue};
use crate::test_image::{Packing, TestImage};

pub const TESTS: &[Test] = &[
    ("push_and_pull_in_every_packing", &["docker-registry"], every_packing),
    ("all_tags_are_pushed_and_pulled", &["docker-registry"], all_tags),
    ("a_build_is_pushed_under_its_names", &["docker-registry", "skopeo"], built),
    ("what_others_push_and_what_they_pull_of_ours", &["docker-registry", "skopeo", "podman"], others),
    ("a_certificate_must_be_trusted", &["docker-registry", "openssl"], certificates),
    ("trust_in_a_registry_is_not_for_others", &["docker-registry", "openssl"], scope),
    ("logins_from_everywhere", &["docker-registry", "htpasswd"], logins),
    ("a_login_is_checked_and_kept_where_docker_keeps_it", &["docker-registry", "htpasswd"], login_and_logout),
    ("run_pulls_what_is_missing", &["docker-registry", "busybox"], run_pulls),
    ("a_platform_that_the_stored_image_is_not_for", &["docker-registry", "busybox"], platforms),
];

fn every_packing() {
    let fixture = Fixture::new();
    let registry = Registry::start(&fixture.dir, false, false);
    let test_image = TestImage::new(1, 3);
    test_image.layout(&fixture.path("layout"), "localhost/one:1", Packing::Gzip);
    fixture.ok(&["image", "load", "layout"]);
    let before = listing(&fixture.mounted("localhost/one:1"));
    fixture.ok(&["image", "unmount", "--all"]);
    for packing in ["gzip", "zstd", "none"] {
        let name = registry.name(&format!("t/{packing}:1"));
        fixture.ok(&["image", "push", "-q", "--compression", packing, "localhost/one:1", &name]);
    }
    fixture.ok(&["image", "rm", "localhost/one:1"]);
    fixture.assert_whole();
    for packing in ["gzip", "zstd", "none"] {
        let name = registry.name(&format!("t/{packing}:1"));
        let id = fixture.ok(&["image", "pull", "-q", &name]);
        assert_eq!(id, test_image.id(), "{packing}: the config is verbatim, so the id stays");
        assert_eq!(listing(&fixture.mounted(&name)), before, "{packing}");
        fixture.ok(&["image", "unmount", "--all"]);
        // By digest, as inspect tells it; the name is then that.
        let manifest = fixture.json(&["image", "inspect", &name])[0]["ManifestDigest"].as_str().unwrap().to_owned();
        let pinned = registry.name(&format!("t/{packing}@{manifest}"));
        assert_eq!(fixture.ok(&["image", "pull", "-q", &pinned]), id);
        assert!(fixture.names().contains(&pinned), "{:?}", fixture.names());
        // A second push of the same sends nothing: the manifest that it came with still fits.
        let again = fixture.json(&["image", "push", "--json", &name, &registry.name(&format!("u/{packing}:2"))]);
        assert_eq!((again["SentLayers"].as_u64(), again["Digest"].as_str()), (Some(0), Some(manifest.as_str())));
        fixture.ok(&["image", "rm", "-f", &id]);
        fixture.assert_whole();
    }
}

fn all_tags() {
    let fixture = Fixture::new();
    let registry = Registry::start(&fixture.dir, false, false);
    let (one, two, other) = (registry.name("t:1"), registry.name("t:2"), registry.name("other:1"));
    TestImage::new(1, 2).layout(&fixture.path("layout"), &one, Packing::Gzip);
    fixture.ok(&["image", "load", "layout"]);
    fixture.ok(&["tag", &one, &two]);
    fixture.ok(&["tag", &one, &other]);
    let repository = registry.name("t");
    let pushed = fixture.ok(&["push", "--all-tags", &repository]);
    assert_eq!(
        pushed.lines().map(|line| line.rsplit_once(": sha256:").unwrap().0).collect::<Vec<_>>(),
        [format!("Pushed {one}"), format!("Pushed {two}")]
    );
    fixture.ok(&["image", "rm", &one, &two, &other]);
    let pulled = fixture.ok(&["pull", "-a", &repository]);
    assert_eq!(pulled, format!("Loaded image: {one}\nLoaded image: {two}"));
    assert!(fixture.fails(&["pull", "-a", &registry.name("other")]).contains("has no"));
    for command in ["pull", "push"] {
        let refused = fixture.run(&[command, "-a", &one]);
        assert!(refused.code == 2 && refused.err.contains("it names a tag"), "{}", refused.err);
    }
    assert!(fixture.fails(&["push", "-a", &registry.name("nosuch")]).contains("the store has none"));
    fixture.assert_whole();
}

fn built() {
    let fixture = Fixture::new();
    let registry = Registry::start(&fixture.dir, false, false);
    let (one, two) = (registry.name("built:1"), registry.name("more/built:2"));
    fs::create_dir(fixture.path("context")).unwrap();
    fs::write(fixture.path("context/file"), "content").unwrap();
    fs::write(fixture.path("context/Dockerfile"), "FROM scratch\nLABEL a=b\nCOPY file /\n").unwrap();
    let build = |args: &[&str]| fixture.ok(&[&["build", "-q"], args, &["context"]].concat());
    let inspected = |name: &str| {
        let text = sh(&format!("skopeo inspect --tls-verify=false docker://{name}"));
        serde_json::from_str::<serde_json::Value>(&text).unwrap()
    };
    let metadata = fixture.path("metadata.json");
    build(&["-t", &one, "-t", &two, "--push", "--metadata-file", metadata.to_str().unwrap()]);
    let metadata: serde_json::Value = serde_json::from_str(&fs::read_to_string(metadata).unwrap()).unwrap();
    for name in [&one, &two] {
        let found = inspected(name);
        assert_eq!((&found["Digest"], &found["Labels"]["a"]), (&metadata["containerimage.digest"], &"b".into()));
    }
    // docker's other ways to say so.
    for (output, name) in [
        (format!("type=registry,name={}", registry.name("o:1")), "o:1"),
        (format!("type=image,name={},push=true", registry.name("o:2")), "o:2"),
    ] {
        build(&["--output", &output]);
        assert_eq!(inspected(&registry.name(name))["Labels"]["a"], "b");
    }
    // What was pushed runs from the registry on another host.
    let other = Fixture::new();
    other.ok(&["pull", "-q", &one]);
    assert_eq!(other.json(&["image", "inspect", &one])[0]["Config"]["Labels"]["a"], "b");
    // A name without a registry is that of Docker Hub, and nothing is pushed if the registry is not there.
    let error = fixture.fails(&["build", "-q", "-t", "127.0.0.1:1/x:1", "--push", "context"]);
    assert!(error.contains("127.0.0.1:1"), "{error}");
}

fn others() {
    let fixture = Fixture::new();
    let registry = Registry::start(&fixture.dir, false, false);
    let test_image = TestImage::new(2, 2);
    test_image.layout(&fixture.path("layout"), "v1", Packing::Gzip);
    let copy = |from: &str, to: &str, more: &str| {
        sh(&format!("skopeo copy -q --src-tls-verify=false --dest-tls-verify=false {more} {from} {to}"))
    };
    let layout = format!("oci:{}:v1", fixture.path("layout").display());
    for (name, format) in [("oci", "--format oci"), ("docker", "--format v2s2")] {
        let name = registry.name(&format!("{name}:1"));
        copy(&layout, &format!("docker://{name}"), format);
        fixture.ok(&["image", "pull", &name]);
        let inspected = fixture.json(&["image", "inspect", &name]);
        assert_eq!(inspected[0]["RootFS"]["Layers"].as_array().unwrap().len(), 2);
        // A source says the same in skopeo's words.
        fixture.ok(&["image", "load", &format!("docker://{name}")]);
    }
    let ours = registry.name("ours:1");
    fixture.ok(&["image", "push", &registry.name("oci:1"), &ours]);
    copy(&format!("docker://{ours}"), &format!("oci:{}:back", fixture.path("back").display()), "");
    let storage = format!("--root {0}/podman --runroot {0}/podman-run", fixture.dir.display());
    sh(&format!("podman {storage} pull -q --tls-verify=false {ours}"));
    fixture.ok(&["image", "unpack", &format!("oci:{}:back", fixture.path("back").display()), "tree"]);
    let podman = sh(&format!("podman {storage} image mount {ours}"));
    let (theirs, tree) = (listing(podman.trim().as_ref()), listing(&fixture.path("tree")));
    sh(&format!(
        "podman {storage} image umount {ours} && podman {storage} rmi -a -f >/dev/null && umount {}/podman/overlay 2>/dev/null || true",
        fixture.dir.display()
    ));
    // Directories that no tar names have the time of their creation.
    let files = |text: &str| text.lines().filter(|line| !line.contains(" d ")).map(str::to_owned).collect::<Vec<_>>();
    assert_eq!(files(&theirs), files(&tree));
}

fn certificates() {
    let fixture = Fixture::new();
    let registry = Registry::start(&fixture.dir, true, false);
    let name = registry.name("t:1");
    let test_image = TestImage::new(3, 1);
    test_image.layout(&fixture.path("layout"), "localhost/t:1", Packing::None);
    fixture.ok(&["image", "load", "layout"]);
    let certs = registry.certs.to_str().unwrap();
    let error = fixture.fails(&["image", "push", "localhost/t:1", &name]);
    assert!(error.contains("cannot verify the certificate") && error.contains("UnknownIssuer"), "{error}");
    assert!(error.contains(&format!("/etc/docker/certs.d/localhost:{}/ca.crt", registry.port)), "{error}");
    fixture.ok(&["image", "push", "--cert-dir", certs, "localhost/t:1", &name]);
    fixture.fails(&["image", "pull", &name]);
    fixture.fails(&["image", "pull", "--tls-verify=true", &name]);
    fixture.ok(&["image", "pull", "--tls-verify=false", &name]);
    fixture.ok(&["image", "pull", "--cert-dir", certs, &name]);
    // By its address too, which the certificate names; with the system's list replaced.
    let by_address = name.replace("localhost", "127.0.0.1");
    let output =
        fixture.command(&["image", "pull", &by_address]).env("SSL_CERT_FILE", format!("{certs}/ca.crt")).output();
    let pulled = answer(output.unwrap());
    assert_eq!(pulled.code, 0, "{}", pulled.err);
    // Not this name: a certificate is valid for certain names.
    let error = fixture.fails(&["image", "pull", "--cert-dir", certs, &name.replace("localhost", "127.0.0.2")]);
    assert!(!error.contains("caused by: caused"), "{error}");
    fixture.assert_whole();
}

/// A registry that is trusted blindly sends its clients elsewhere: there they look at the certificate.
fn scope() {
    let fixture = Fixture::new();
    let registry = Registry::start(&fixture.dir, true, false);
    let (name, certs) = (registry.name("t:1"), registry.certs.to_str().unwrap().to_owned());
    let test_image = TestImage::new(6, 1);
    test_image.layout(&fixture.path("layout"), "localhost/t:1", Packing::None);
    fixture.ok(&["image", "load", "layout"]);
    fixture.ok(&["image", "push", "--cert-dir", &certs, "--compression", "none", "localhost/t:1", &name]);
    fixture.ok(&["image", "rm", "localhost/t:1"]);
    let layer = test_image.blobs(Packing::None).2.remove(0);
    let elsewhere = format!("https://{}/blobs/{layer}", name.replace("/t:1", "/v2/t"));
    let rogue = Rogue::new(move |request| match request.path.ends_with(&layer) {
        true => Reply::Status(302, vec![("Location", elsewhere.clone())], Vec::new()),
        false => Reply::Right,
    });
    rogue.with("t:1", &test_image, Packing::None);
    for flag in ["--tls-verify=false", "--cert-dir"] {
        let more = if flag == "--cert-dir" { vec![flag, &certs] } else { vec![flag] };
        let error = fixture.fails(&[&["image", "pull"], &more[..], &[&rogue.name("t:1")]].concat());
        assert!(
            error.contains(&format!("certificate of the registry `localhost:{}`", registry.port)),
            "{flag}: {error}"
        );
        assert!(error.contains(&format!("certs.d/localhost:{}/ca.crt", registry.port)), "{flag}: {error}");
    }
    // Whom the system trusts is fine.
    let output = fixture
        .command(&["image", "pull", &rogue.name("t:1")])
        .env("SSL_CERT_FILE", format!("{certs}/ca.crt"))
        .output();
    let pulled = answer(output.unwrap());
    assert_eq!(pulled.code, 0, "{}", pulled.err);
    fixture.assert_whole();
}

/// `gpurun login` writes what a pull reads, in the form of docker's own client.
fn login_and_logout() {
    let fixture = Fixture::new();
    let registry = Registry::start(&fixture.dir, false, true);
    let (name, host) = (registry.name("t:1"), format!("localhost:{}", registry.port));
    TestImage::new(4, 1).layout(&fixture.path("layout"), "localhost/t:1", Packing::Gzip);
    fixture.ok(&["image", "load", "layout"]);
    let login = |args: &[&str], password: &str| {
        let mut command = fixture.command(&[&["login", "-u", "ann"], args, &[host.as_str()]].concat());
        let piped = std::process::Stdio::piped;
        let mut child = command.stdin(piped()).stdout(piped()).stderr(piped()).spawn().unwrap();
        std::io::Write::write_all(&mut child.stdin.take().unwrap(), password.as_bytes()).unwrap();
        answer(child.wait_with_output().unwrap())
    };
    let config = fixture.path("home/.docker/config.json");
    let refused = login(&["--password-stdin"], "wrong\n");
    assert!(refused.code == 1 && refused.err.contains("it refuses `ann`"), "{} {}", refused.code, refused.err);
    assert!(!refused.err.contains("wrong") && !config.exists());
    assert!(login(&["--password-stdin"], "").err.contains("the password on standard input is empty"));
    let kept = login(&["--password-stdin"], "secret\n");
    assert_eq!((kept.code, kept.out.as_str()), (0, "Login Succeeded\n"), "{}", kept.err);
    assert!(kept.err.contains("not encrypted") && !kept.err.contains("secret"), "{}", kept.err);
    let written: serde_json::Value = serde_json::from_str(&fs::read_to_string(&config).unwrap()).unwrap();
    assert_eq!(written, serde_json::json!({"auths": {host.as_str(): {"auth": "YW5uOnNlY3JldA=="}}}));
    assert_eq!(fs::metadata(&config).unwrap().permissions().mode() & 0o777, 0o600);
    fixture.ok(&["push", "localhost/t:1", &name]);
    assert!(fixture.ok(&["search", &format!("{host}/t")]).contains(&format!("{host}/t")));
    assert_eq!(fixture.ok(&["search", "--format", "{{.Name}}", &format!("{host}/x")]).trim(), "");
    assert_eq!(fixture.ok(&["logout", &host]).trim(), format!("Removing login credentials for {host}"));
    assert_eq!(fixture.ok(&["logout", &host]).trim(), format!("Not logged in to {host}"));
    fixture.fails(&["pull", &name]);
    // Another file, and the password as an argument.
    let kept = login(&["-p", "secret", "--authfile", "auth.json"], "");
    assert!(kept.code == 0 && kept.err.contains("list of processes"), "{}", kept.err);
    fixture.ok(&["pull", "--authfile", "auth.json", &name]);

    // A credential helper keeps the login. It writes down what it is given.
    fs::create_dir_all(fixture.path("bin")).unwrap();
    let (helper, store) = (fixture.path("bin/docker-credential-lab"), fixture.path("store"));
    let text = format!(
        "#!/bin/sh\ncase $1 in store) cat >{0} ;; get) cat >/dev/null; cat {0} ;; erase) cat >/dev/null; rm {0} ;; esac\n",
        store.display()
    );
    fs::write(&helper, text).unwrap();
    fs::set_permissions(&helper, fs::Permissions::from_mode(0o755)).unwrap();
    let path = format!("{}:{}", fixture.path("bin").display(), std::env::var("PATH").unwrap());
    fs::write(&config, r#"{"credsStore":"lab"}"#).unwrap();
    let with_helper = |args: &[&str]| answer(fixture.command(args).env("PATH", &path).output().unwrap());
    let kept = with_helper(&["login", "-u", "ann", "-p", "secret", &host]);
    assert!(kept.code == 0 && !kept.err.contains("not encrypted"), "{}", kept.err);
    let given: serde_json::Value = serde_json::from_str(&fs::read_to_string(&store).unwrap()).unwrap();
    assert_eq!(given, serde_json::json!({"ServerURL": host, "Username": "ann", "Secret": "secret"}));
    assert!(!fs::read_to_string(&config).unwrap().contains("auth"), "it is not in the file");
    assert_eq!(with_helper(&["pull", &name]).code, 0);
    assert_eq!(with_helper(&["logout", &host]).code, 0);
    assert!(!store.exists());
    // Root runs no helper that another user can choose.
    sh(&format!("chmod 666 {}", config.display()));
    let refused = with_helper(&["login", "-u", "ann", "-p", "secret", &host]);
    assert!(refused.code != 0 && refused.err.contains("other users can write to"), "{}", refused.err);
    assert!(!store.exists());
}

fn logins() {
    let fixture = Fixture::new();
    let registry = Registry::start(&fixture.dir, false, true);
    let name = registry.name("t:1");
    TestImage::new(4, 1).layout(&fixture.path("layout"), "localhost/t:1", Packing::Gzip);
    fixture.ok(&["image", "load", "layout"]);
    let error = fixture.fails(&["image", "push", "localhost/t:1", &name]);
    assert!(error.contains("refuses access") && error.contains("gpurun login"), "{error}");
    fixture.ok(&["image", "push", "--creds", "ann:secret", "localhost/t:1", &name]);
    let error = fixture.fails(&["image", "pull", "--creds", "ann:wrong", &name]);
    assert!(error.contains("which came from `--creds`"), "{error}");
    assert!(!error.contains("wrong"), "no password is printed: {error}");

    // docker's file in the home; base64 of ann:secret.
    let host = format!("localhost:{}", registry.port);
    fs::create_dir_all(fixture.path("home/.docker")).unwrap();
    let good = format!(r#"{{"auths":{{"{host}":{{"auth":"YW5uOnNlY3JldA=="}}}}}}"#);
    fs::write(fixture.path("home/.docker/config.json"), &good).unwrap();
    fixture.ok(&["image", "pull", &name]);
    fs::rename(fixture.path("home/.docker/config.json"), fixture.path("auth.json")).unwrap();
    fixture.fails(&["image", "pull", &name]);
    fixture.ok(&["image", "pull", "--authfile", "auth.json", &name]);
    let output =
        fixture.command(&["image", "pull", &name]).env("REGISTRY_AUTH_FILE", fixture.path("auth.json")).output();
    assert_eq!(answer(output.unwrap()).code, 0);
    fs::write(fixture.path("auth.json"), good.replace("YW5uOnNlY3JldA==", "YW5uOmZhbHNl")).unwrap();
    let error = fixture.fails(&["image", "pull", "--authfile", "auth.json", &name]);
    assert!(error.contains("which came from `auth.json`"), "{error}");
    fixture.fails(&["image", "pull", "--authfile", "none.json", &name]);

    // A credential helper; what it is asked, it writes down.
    fs::create_dir_all(fixture.path("bin")).unwrap();
    let helper = fixture.path("bin/docker-credential-lab");
    let asked = fixture.path("asked");
    let text = format!(
        "#!/bin/sh\ncat > {}\necho '{{\"ServerURL\":\"x\",\"Username\":\"ann\",\"Secret\":\"secret\"}}'\n",
        asked.display()
    );
    fs::write(&helper, text).unwrap();
    fs::set_permissions(&helper, fs::Permissions::from_mode(0o755)).unwrap();
    let path = format!("{}:{}", fixture.path("bin").display(), std::env::var("PATH").unwrap());
    for file in [format!(r#"{{"credHelpers":{{"{host}":"lab"}}}}"#), r#"{"credsStore":"lab"}"#.into()] {
        fs::write(fixture.path("home/.docker/config.json"), file).unwrap();
        let pulled = answer(fixture.command(&["image", "pull", &name]).env("PATH", &path).output().unwrap());
        assert_eq!(pulled.code, 0, "{}", pulled.err);
        assert_eq!(fs::read_to_string(&asked).unwrap(), host);
    }
    // Root runs none that a file of another user names, and none that another user can change.
    let config = fixture.path("home/.docker/config.json");
    for (what, make, undo) in [
        (
            "belongs to the user 12345",
            format!("chown 12345 {}", config.display()),
            format!("chown 0 {}", config.display()),
        ),
        (
            "other users can write to",
            format!("chmod 666 {}", config.display()),
            format!("chmod 600 {}", config.display()),
        ),
        (
            "belongs to the user 12345",
            format!("chown 12345 {}", helper.display()),
            format!("chown 0 {}", helper.display()),
        ),
        (
            "other users can write to",
            format!("chmod 777 {0}", fixture.path("bin").display()),
            format!("chmod 755 {}", fixture.path("bin").display()),
        ),
    ] {
        fs::remove_file(&asked).unwrap();
        sh(&make);
        let pulled = answer(fixture.command(&["image", "pull", &name]).env("PATH", &path).output().unwrap());
        assert!(pulled.code == 1 && pulled.err.contains("refuses access"), "{make}: {}", pulled.err);
        assert!(
            pulled.err.contains("cannot run the credential helper `docker-credential-lab`")
                && pulled.err.contains(what),
            "{}",
            pulled.err
        );
        assert!(!asked.exists(), "{make}: it was run");
        sh(&undo);
        let pulled = answer(fixture.command(&["image", "pull", &name]).env("PATH", &path).output().unwrap());
        assert_eq!(pulled.code, 0, "{}", pulled.err);
    }
    // A FIFO in its place does not block.
    fs::rename(&config, fixture.path("saved")).unwrap();
    sh(&format!("mkfifo {}", config.display()));
    let error = fixture.fails(&["image", "pull", &name]);
    assert!(error.contains("not a regular file"), "{error}");
    fs::rename(fixture.path("saved"), &config).unwrap();
    let error = fixture.fails(&["image", "pull", &name]);
    assert!(error.contains("docker-credential-lab") && error.contains("No such file"), "{error}");
    fs::write(&helper, "#!/bin/sh\necho credentials not found in native keychain\nexit 1\n").unwrap();
    let pulled = answer(fixture.command(&["image", "pull", &name]).env("PATH", &path).output().unwrap());
    assert!(pulled.code == 1 && pulled.err.contains("refuses access"), "{}", pulled.err);
}

fn run_pulls() {
    let fixture = Fixture::new();
    let registry = Registry::start(&fixture.dir, false, false);
    let name = registry.name("hello:1");
    TestImage::bootable().layout(&fixture.path("layout"), "localhost/hello:1", Packing::Gzip);
    fixture.ok(&["image", "load", "layout"]);
    fixture.ok(&["image", "push", "localhost/hello:1", &name]);
    fixture.ok(&["image", "rm", "localhost/hello:1"]);
    let run = |pull: &str, image: &str| fixture.run(&["run", "--rm", "--network", "none", "--pull", pull, image]);
    let never = run("never", &name);
    assert!(never.code == 125 && never.err.contains("no image"), "{}", never.err);
    let missing = run("missing", &name);
    assert_eq!((missing.code, missing.out.as_str()), (0, "hi\n"), "{}", missing.err);
    assert!(missing.err.contains(&format!("not in the store: pulling {name}")), "{}", missing.err);
    let there = run("missing", &name);
    assert!(there.code == 0 && !there.err.contains("pulling"), "{}", there.err);
    let always = run("always", &name);
    assert!(always.code == 0 && always.err.contains("pulling"), "{}", always.err);
    // From a file, by skopeo's words or by its path.
    fixture.ok(&["image", "save", "-o", "hello.tar", &name]);
    for source in ["./hello.tar", &format!("docker-archive:hello.tar:{name}"), "oci:layout"] {
        let ran = run("missing", source);
        assert_eq!((ran.code, ran.out.as_str()), (0, "hi\n"), "{source}: {}", ran.err);
    }
    let absent = run("missing", &registry.name("absent:1"));
    assert!(
        absent.code == 125 && absent.err.contains("error: the store has no image") && absent.err.contains("absent:1"),
        "{}",
        absent.err
    );
}

/// The image of the store with that name does not serve a request for another platform.
fn platforms() {
    let fixture = Fixture::new();
    let registry = Registry::start(&fixture.dir, false, false);
    let name = registry.name("hello:1");
    // Both run here; what they are for is what they say.
    let own = TestImage::bootable();
    let other = TestImage { architecture: if own.architecture == "arm64" { "amd64" } else { "arm64" }, ..own.clone() };
    let (here, there) = (format!("linux/{}", own.architecture), format!("linux/{}", other.architecture));
    for (test_image, platform) in [(&other, &there), (&own, &here)] {
        test_image.layout(&fixture.path(test_image.architecture), &name, Packing::Gzip);
        fixture.ok(&["image", "load", "--platform", platform, test_image.architecture]);
        if test_image.architecture == other.architecture {
            fixture.ok(&["image", "push", &name, &name]);
        }
    }
    let of = |name: &str| fixture.json(&["image", "inspect", name])[0]["Architecture"].as_str().unwrap().to_owned();
    let run = |args: &[&str]| fixture.run(&[&["run", "--rm", "--network", "none"], args].concat());
    // The stored one's own platform, or none: nothing is asked for.
    for args in [&[&*name][..], &["--platform", &here, &name]] {
        let ran = run(args);
        assert!(ran.code == 0 && !ran.err.contains("pulling"), "{args:?}: {}", ran.err);
    }
    // With `--pull never`, it is an error with a hint.
    let snippets = format!("the image `{name}` in the store is for {here}, not for {there}");
    let way_out = format!("`gpurun image pull --platform {there} {name}`");
    let refused = run(&["--pull", "never", "--platform", &there, &name]);
    assert!(
        refused.code == 125 && refused.err.contains(&snippets) && refused.err.contains(&way_out),
        "{}",
        refused.err
    );
    let refused = fixture.fails(&["image", "mount", "--platform", &there, &name]);
    assert!(refused.contains(&snippets) && refused.contains(&way_out), "{refused}");
    // An id is this image.
    let refused = run(&["--platform", &there, &own.id()]);
    assert!(refused.code == 125 && refused.err.contains("omit `--platform`"), "{}", refused.err);
    assert_eq!(of(&name), own.architecture, "nothing was changed");
    // A registry that has it not: both are said.
    fixture.ok(&["image", "tag", &name, "127.0.0.1:1/x:1"]);
    let failed = run(&["--platform", &there, "127.0.0.1:1/x:1"]);
    assert!(failed.code == 125 && failed.err.contains("in the store is for"), "{}", failed.err);
    assert!(failed.err.contains("cannot reach the registry `127.0.0.1:1`"), "{}", failed.err);
    // By default the other one is pulled, and the name then means it.
    let ran = run(&["--platform", &there, &name]);
    assert_eq!((ran.code, ran.out.as_str()), (0, "hi\n"), "{}", ran.err);
    let reported = format!("`{name}` is in the store for {here}, not for {there}: pulling {name}");
    assert!(ran.err.contains(&reported), "{}", ran.err);
    assert_eq!(of(&name), other.architecture);
    let again = run(&["--platform", &there, &name]);
    assert!(again.code == 0 && !again.err.contains("pulling"), "{}", again.err);
    assert_eq!(of("127.0.0.1:1/x:1"), own.architecture, "the other name keeps its image");
}
