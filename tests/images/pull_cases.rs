//! Against Debian's docker-registry, with the tools of others on the other side.

use std::fs;
use std::os::unix::fs::PermissionsExt;

use crate::Test;
use crate::desk::{Desk, answer, listing, sh};
use crate::picture::{Packing, Picture};
use crate::registry::Registry;

pub const TESTS: &[Test] = &[
    ("push_and_pull_in_every_packing", &["docker-registry"], every_packing),
    ("what_others_push_and_what_they_pull_of_ours", &["docker-registry", "skopeo", "podman"], others),
    ("a_certificate_must_be_trusted", &["docker-registry", "openssl"], certificates),
    ("logins_from_everywhere", &["docker-registry", "htpasswd"], logins),
    ("run_pulls_what_is_missing", &["docker-registry", "busybox"], run_pulls),
    ("a_platform_that_the_stored_image_is_not_for", &["docker-registry", "busybox"], platforms),
];

fn every_packing() {
    let desk = Desk::new();
    let registry = Registry::start(&desk.dir, false, false);
    let picture = Picture::new(1, 3);
    picture.layout(&desk.path("layout"), "localhost/one:1", Packing::Gzip);
    desk.ok(&["image", "load", "layout"]);
    let before = listing(&desk.mounted("localhost/one:1"));
    desk.ok(&["image", "unmount", "--all"]);
    for packing in ["gzip", "zstd", "none"] {
        let name = registry.name(&format!("t/{packing}:1"));
        desk.ok(&["image", "push", "-q", "--compression", packing, "localhost/one:1", &name]);
    }
    desk.ok(&["image", "rm", "localhost/one:1"]);
    desk.assert_whole();
    for packing in ["gzip", "zstd", "none"] {
        let name = registry.name(&format!("t/{packing}:1"));
        let id = desk.ok(&["image", "pull", "-q", &name]);
        assert_eq!(id, picture.id(), "{packing}: the config is verbatim, so the id stays");
        assert_eq!(listing(&desk.mounted(&name)), before, "{packing}");
        desk.ok(&["image", "unmount", "--all"]);
        // By digest, as inspect tells it; the name is then that.
        let manifest = desk.json(&["image", "inspect", &name])[0]["ManifestDigest"].as_str().unwrap().to_owned();
        let pinned = registry.name(&format!("t/{packing}@{manifest}"));
        assert_eq!(desk.ok(&["image", "pull", "-q", &pinned]), id);
        assert!(desk.names().contains(&pinned), "{:?}", desk.names());
        // A second push of the same sends nothing: the manifest that it came with still fits.
        let again = desk.json(&["image", "push", "--json", &name, &registry.name(&format!("u/{packing}:2"))]);
        assert_eq!((again["SentLayers"].as_u64(), again["Digest"].as_str()), (Some(0), Some(manifest.as_str())));
        desk.ok(&["image", "rm", "-f", &id]);
        desk.assert_whole();
    }
}

fn others() {
    let desk = Desk::new();
    let registry = Registry::start(&desk.dir, false, false);
    let picture = Picture::new(2, 2);
    picture.layout(&desk.path("layout"), "v1", Packing::Gzip);
    let copy = |from: &str, to: &str, more: &str| {
        sh(&format!("skopeo copy -q --src-tls-verify=false --dest-tls-verify=false {more} {from} {to}"))
    };
    let layout = format!("oci:{}:v1", desk.path("layout").display());
    for (name, format) in [("oci", "--format oci"), ("docker", "--format v2s2")] {
        let name = registry.name(&format!("{name}:1"));
        copy(&layout, &format!("docker://{name}"), format);
        desk.ok(&["image", "pull", &name]);
        let inspected = desk.json(&["image", "inspect", &name]);
        assert_eq!(inspected[0]["RootFS"]["Layers"].as_array().unwrap().len(), 2);
        // A source says the same in skopeo's words.
        desk.ok(&["image", "load", &format!("docker://{name}")]);
    }
    let ours = registry.name("ours:1");
    desk.ok(&["image", "push", &registry.name("oci:1"), &ours]);
    copy(&format!("docker://{ours}"), &format!("oci:{}:back", desk.path("back").display()), "");
    let storage = format!("--root {0}/podman --runroot {0}/podman-run", desk.dir.display());
    sh(&format!("podman {storage} pull -q --tls-verify=false {ours}"));
    desk.ok(&["image", "unpack", &format!("oci:{}:back", desk.path("back").display()), "tree"]);
    let podman = sh(&format!("podman {storage} image mount {ours}"));
    let (theirs, tree) = (listing(podman.trim().as_ref()), listing(&desk.path("tree")));
    sh(&format!(
        "podman {storage} image umount {ours} && podman {storage} rmi -a -f >/dev/null && umount {}/podman/overlay 2>/dev/null || true",
        desk.dir.display()
    ));
    // Directories that no tar names have the time of whoever made them.
    let files = |text: &str| text.lines().filter(|line| !line.contains(" d ")).map(str::to_owned).collect::<Vec<_>>();
    assert_eq!(files(&theirs), files(&tree));
}

fn certificates() {
    let desk = Desk::new();
    let registry = Registry::start(&desk.dir, true, false);
    let name = registry.name("t:1");
    let picture = Picture::new(3, 1);
    picture.layout(&desk.path("layout"), "localhost/t:1", Packing::None);
    desk.ok(&["image", "load", "layout"]);
    let certs = registry.certs.to_str().unwrap();
    let error = desk.fails(&["image", "push", "localhost/t:1", &name]);
    assert!(error.contains("is not trusted") && error.contains("UnknownIssuer"), "{error}");
    assert!(error.contains(&format!("/etc/docker/certs.d/localhost:{}/ca.crt", registry.port)), "{error}");
    desk.ok(&["image", "push", "--cert-dir", certs, "localhost/t:1", &name]);
    desk.fails(&["image", "pull", &name]);
    desk.fails(&["image", "pull", "--tls-verify=true", &name]);
    desk.ok(&["image", "pull", "--tls-verify=false", &name]);
    desk.ok(&["image", "pull", "--cert-dir", certs, &name]);
    // By its address too, which the certificate names; with the system's list replaced.
    let by_address = name.replace("localhost", "127.0.0.1");
    let output = desk.command(&["image", "pull", &by_address]).env("SSL_CERT_FILE", format!("{certs}/ca.crt")).output();
    let pulled = answer(output.unwrap());
    assert_eq!(pulled.code, 0, "{}", pulled.err);
    // Not this name: a certificate is for somebody.
    let error = desk.fails(&["image", "pull", "--cert-dir", certs, &name.replace("localhost", "127.0.0.2")]);
    assert!(!error.contains("caused by: caused"), "{error}");
    desk.assert_whole();
}

fn logins() {
    let desk = Desk::new();
    let registry = Registry::start(&desk.dir, false, true);
    let name = registry.name("t:1");
    Picture::new(4, 1).layout(&desk.path("layout"), "localhost/t:1", Packing::Gzip);
    desk.ok(&["image", "load", "layout"]);
    let error = desk.fails(&["image", "push", "localhost/t:1", &name]);
    assert!(error.contains("refuses access") && error.contains("podman login"), "{error}");
    desk.ok(&["image", "push", "--creds", "ann:secret", "localhost/t:1", &name]);
    let error = desk.fails(&["image", "pull", "--creds", "ann:wrong", &name]);
    assert!(error.contains("the credentials from `--creds` were used"), "{error}");
    assert!(!error.contains("wrong"), "no password is printed: {error}");

    // docker's file in the home; base64 of ann:secret.
    let host = format!("localhost:{}", registry.port);
    fs::create_dir_all(desk.path("home/.docker")).unwrap();
    let good = format!(r#"{{"auths":{{"{host}":{{"auth":"YW5uOnNlY3JldA=="}}}}}}"#);
    fs::write(desk.path("home/.docker/config.json"), &good).unwrap();
    desk.ok(&["image", "pull", &name]);
    fs::rename(desk.path("home/.docker/config.json"), desk.path("auth.json")).unwrap();
    desk.fails(&["image", "pull", &name]);
    desk.ok(&["image", "pull", "--authfile", "auth.json", &name]);
    let output = desk.command(&["image", "pull", &name]).env("REGISTRY_AUTH_FILE", desk.path("auth.json")).output();
    assert_eq!(answer(output.unwrap()).code, 0);
    fs::write(desk.path("auth.json"), good.replace("YW5uOnNlY3JldA==", "YW5uOmZhbHNl")).unwrap();
    let error = desk.fails(&["image", "pull", "--authfile", "auth.json", &name]);
    assert!(error.contains("the credentials from `auth.json` were used"), "{error}");
    desk.fails(&["image", "pull", "--authfile", "none.json", &name]);

    // A credential helper; what it is asked, it writes down.
    fs::create_dir_all(desk.path("bin")).unwrap();
    let helper = desk.path("bin/docker-credential-lab");
    let asked = desk.path("asked");
    let text = format!(
        "#!/bin/sh\ncat > {}\necho '{{\"ServerURL\":\"x\",\"Username\":\"ann\",\"Secret\":\"secret\"}}'\n",
        asked.display()
    );
    fs::write(&helper, text).unwrap();
    fs::set_permissions(&helper, fs::Permissions::from_mode(0o755)).unwrap();
    let path = format!("{}:{}", desk.path("bin").display(), std::env::var("PATH").unwrap());
    for file in [format!(r#"{{"credHelpers":{{"{host}":"lab"}}}}"#), r#"{"credsStore":"lab"}"#.into()] {
        fs::write(desk.path("home/.docker/config.json"), file).unwrap();
        let pulled = answer(desk.command(&["image", "pull", &name]).env("PATH", &path).output().unwrap());
        assert_eq!(pulled.code, 0, "{}", pulled.err);
        assert_eq!(fs::read_to_string(&asked).unwrap(), host);
    }
    let error = desk.fails(&["image", "pull", &name]);
    assert!(error.contains("docker-credential-lab") && error.contains("No such file"), "{error}");
    fs::write(&helper, "#!/bin/sh\necho credentials not found in native keychain\nexit 1\n").unwrap();
    let pulled = answer(desk.command(&["image", "pull", &name]).env("PATH", &path).output().unwrap());
    assert!(pulled.code == 125 && pulled.err.contains("refuses access"), "{}", pulled.err);
}

fn run_pulls() {
    let desk = Desk::new();
    let registry = Registry::start(&desk.dir, false, false);
    let name = registry.name("hello:1");
    Picture::bootable().layout(&desk.path("layout"), "localhost/hello:1", Packing::Gzip);
    desk.ok(&["image", "load", "layout"]);
    desk.ok(&["image", "push", "localhost/hello:1", &name]);
    desk.ok(&["image", "rm", "localhost/hello:1"]);
    let run = |pull: &str, image: &str| desk.run(&["run", "--rm", "--network", "none", "--pull", pull, image]);
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
    desk.ok(&["image", "save", "-o", "hello.tar", &name]);
    for source in ["./hello.tar", &format!("docker-archive:hello.tar:{name}"), "oci:layout"] {
        let ran = run("missing", source);
        assert_eq!((ran.code, ran.out.as_str()), (0, "hi\n"), "{source}: {}", ran.err);
    }
    let absent = run("missing", &registry.name("absent:1"));
    assert!(
        absent.code == 125 && absent.err.contains("error: no image") && absent.err.contains("absent:1"),
        "{}",
        absent.err
    );
}

/// What is in the store under the name is no answer to whoever asks for another platform.
fn platforms() {
    let desk = Desk::new();
    let registry = Registry::start(&desk.dir, false, false);
    let name = registry.name("hello:1");
    // Both run here; what they are for is what they say.
    let own = Picture::bootable();
    let other = Picture { architecture: if own.architecture == "arm64" { "amd64" } else { "arm64" }, ..own.clone() };
    let (here, there) = (format!("linux/{}", own.architecture), format!("linux/{}", other.architecture));
    for (picture, platform) in [(&other, &there), (&own, &here)] {
        picture.layout(&desk.path(picture.architecture), &name, Packing::Gzip);
        desk.ok(&["image", "load", "--platform", platform, picture.architecture]);
        if picture.architecture == other.architecture {
            desk.ok(&["image", "push", &name, &name]);
        }
    }
    let of = |name: &str| desk.json(&["image", "inspect", name])[0]["Architecture"].as_str().unwrap().to_owned();
    let run = |args: &[&str]| desk.run(&[&["run", "--rm", "--network", "none"], args].concat());
    // The stored one's own platform, or none: nothing is asked for.
    for args in [&[&*name][..], &["--platform", &here, &name]] {
        let ran = run(args);
        assert!(ran.code == 0 && !ran.err.contains("pulling"), "{args:?}: {}", ran.err);
    }
    // Nothing may be pulled: said, with a way out.
    let words = format!("the image `{name}` in the store is for {here}, not for {there}");
    let way_out = format!("`gpurun image pull --platform {there} {name}`");
    let refused = run(&["--pull", "never", "--platform", &there, &name]);
    assert!(refused.code == 125 && refused.err.contains(&words) && refused.err.contains(&way_out), "{}", refused.err);
    let refused = desk.fails(&["image", "mount", "--platform", &there, &name]);
    assert!(refused.contains(&words) && refused.contains(&way_out), "{refused}");
    // An id is this image.
    let refused = run(&["--platform", &there, &own.id()]);
    assert!(refused.code == 125 && refused.err.contains("do without `--platform`"), "{}", refused.err);
    assert_eq!(of(&name), own.architecture, "nothing was changed");
    // A registry that has it not: both are said.
    desk.ok(&["image", "tag", &name, "127.0.0.1:1/x:1"]);
    let failed = run(&["--platform", &there, "127.0.0.1:1/x:1"]);
    assert!(failed.code == 125 && failed.err.contains("in the store is for"), "{}", failed.err);
    assert!(failed.err.contains("the registry `127.0.0.1:1` cannot be reached"), "{}", failed.err);
    // By default the other one is pulled, and the name then means it.
    let ran = run(&["--platform", &there, &name]);
    assert_eq!((ran.code, ran.out.as_str()), (0, "hi\n"), "{}", ran.err);
    let told = format!("`{name}` is in the store for {here}, not for {there}: pulling {name}");
    assert!(ran.err.contains(&told), "{}", ran.err);
    assert_eq!(of(&name), other.architecture);
    let again = run(&["--platform", &there, &name]);
    assert!(again.code == 0 && !again.err.contains("pulling"), "{}", again.err);
    assert_eq!(of("127.0.0.1:1/x:1"), own.architecture, "the other name keeps its image");
}
