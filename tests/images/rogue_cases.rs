//! Against a registry that misbehaves: what may pass is waited for, what lies is refused, and nothing is left of what failed.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant};

use serde_json::json;

use crate::Test;
use crate::fixture::{Fixture, answer};
use crate::rogue::{Reply, Request, Rogue};
use crate::test_image::{Packing, TestImage, digest, noise};

pub const TESTS: &[Test] = &[
    ("a_broken_layer_goes_on_where_it_broke", &[], resumes),
    ("a_server_without_ranges_is_read_again", &[], deaf),
    ("a_silent_line_is_broken", &[], silent),
    ("retry_after_is_honoured", &[], retry_after),
    ("server_errors_are_tried_again_and_told", &[], server_errors),
    ("the_deadline_bounds_everything", &[], deadline),
    ("a_line_that_trickles_is_broken", &[], trickle),
    ("other_bytes_under_a_digest", &[], other_bytes),
    ("lengths_that_lie", &[], lengths),
    ("a_tag_that_moves", &[], moving_tag),
    ("layers_come_side_by_side", &[], side_by_side),
    ("a_platform_of_an_index", &[], platforms),
    ("tokens_and_their_end", &[], tokens),
    ("redirects_in_circles", &[], circles),
    ("plain_http_that_fails_is_told_as_it_is", &[], plain_http),
    ("a_damaged_blob_is_asked_for_once_more", &[], damaged),
    ("a_wrong_content_digest_is_refused", &[], content_digest),
    ("the_digest_of_an_index_finds_the_image", &[], index_digest),
    ("a_manifest_that_nobody_checked_is_not_kept", &[], unproven),
    ("the_highest_variant_of_an_index", &[], variants),
    ("mirrors", &[], mirrors),
    ("documents_without_end", &[], endless),
];

fn is_layer(request: &Request, layers: &[String]) -> bool {
    layers.iter().any(|digest| request.path.ends_with(digest))
}

/// Requests for blobs that are large: the layers.
fn wants_blob(request: &Request) -> bool {
    request.path.contains("/blobs/")
}

fn resumes() {
    let fixture = Fixture::new();
    // Every answer breaks off after 300 000 bytes.
    let rogue = Rogue::new(|request| if wants_blob(request) { Reply::Cut(300_000) } else { Reply::Right });
    let test_image = TestImage::new(1, 1);
    let layers = rogue.with("t:1", &test_image, Packing::None);
    let id = fixture.ok(&["image", "pull", "-q", &rogue.name("t:1")]);
    assert_eq!(id, test_image.id());
    fixture.assert_whole();
    let asked: Vec<_> = rogue.seen(&layers[0]).iter().map(|request| request.header("range").to_owned()).collect();
    assert_eq!(&asked[..3], ["", "bytes=300000-", "bytes=600000-"]);
    assert_eq!(asked.len(), test_image.layers[0].len().div_ceil(300_000), "no byte twice: {asked:?}");
}

fn deaf() {
    let fixture = Fixture::new();
    let rogue = Rogue::new(|request| match request.nth {
        0 | 1 if wants_blob(request) => Reply::CutDeaf(500_000 * (request.nth + 1)),
        _ if wants_blob(request) => Reply::CutDeaf(usize::MAX),
        _ => Reply::Right,
    });
    rogue.with("t:1", &TestImage::new(2, 1), Packing::None);
    fixture.ok(&["image", "pull", &rogue.name("t:1")]);
    fixture.assert_whole();
}

fn silent() {
    let fixture = Fixture::new();
    let rogue =
        Rogue::new(|request| if wants_blob(request) && request.nth == 0 { Reply::Silent(1000) } else { Reply::Right });
    let layers = rogue.with("t:1", &TestImage::new(3, 1), Packing::None);
    fixture.ok(&["image", "pull", &rogue.name("t:1")]);
    assert_eq!(rogue.seen(&layers[0])[1].header("range"), "bytes=1000-");
    fixture.assert_whole();
}

fn retry_after() {
    let fixture = Fixture::new();
    let busy = |seconds: &str| Reply::Status(429, vec![("Retry-After", seconds.into())], Vec::new());
    let rogue = Rogue::new(move |request| match request.nth {
        0 if request.path.contains("/manifests/1") => busy("1"),
        0 if wants_blob(request) => busy("1"),
        _ if request.path.contains("/manifests/later") => busy("3600"),
        _ => Reply::Right,
    });
    rogue.with("t:1", &TestImage::new(4, 1), Packing::Gzip);
    rogue.with("t:later", &TestImage::new(4, 1), Packing::Gzip);
    let began = Instant::now();
    let pulled = fixture.run(&["image", "pull", &rogue.name("t:1")]);
    assert_eq!(pulled.code, 0, "{}", pulled.err);
    assert!(began.elapsed() >= Duration::from_secs(2), "it waited as long as it was asked to, twice");
    assert!(pulled.err.contains("answered 429") && pulled.err.contains("trying again in 1 s"), "{}", pulled.err);
    // What comes after the deadline is not waited for.
    let began = Instant::now();
    let error = fixture.fails(&["image", "pull", "--timeout", "20", &rogue.name("t:later")]);
    assert!(error.contains("not complete after 20 seconds") && began.elapsed() < Duration::from_secs(15), "{error}");
    // Nor is it a secret what was in the way.
    assert!(error.contains("the registry requests a pause of 3600 s") && error.contains("`--timeout 3620`"), "{error}");
    assert!(error.contains("answered 429 for") && error.contains("received too many requests"), "{error}");
    // Without a deadline an hour is too long, too.
    let error = fixture.fails(&["image", "pull", &rogue.name("t:later")]);
    assert!(error.contains("429") && error.contains("mirror"), "{error}");
    assert!(error.contains("requests a pause of 3600 s") && error.contains("`--timeout 3660`"), "{error}");
    fixture.assert_whole();
}

fn server_errors() {
    let fixture = Fixture::new();
    let fail =
        |code| Reply::Status(code, vec![], br#"{"errors":[{"code":"UNKNOWN","message":"disk on fire"}]}"#.to_vec());
    let rogue = Rogue::new(move |request| match request.nth {
        0..3 if request.path.ends_with("/manifests/1") => fail(503),
        0..2 if wants_blob(request) => fail(500),
        _ if request.path.ends_with("/manifests/dead") => fail(502),
        _ if request.path.ends_with("/manifests/odd") => fail(418),
        _ => Reply::Right,
    });
    rogue.with("t:1", &TestImage::new(5, 2), Packing::Zstd);
    fixture.ok(&["image", "pull", &rogue.name("t:1")]);
    let error = fixture.fails(&["image", "pull", &rogue.name("t:dead")]);
    assert!(error.contains("answered 502") && error.contains("disk on fire"), "{error}");
    assert_eq!(rogue.seen("/manifests/dead").len(), 6, "tried several times");
    fixture.fails(&["image", "pull", &rogue.name("t:odd")]);
    assert_eq!(rogue.seen("/manifests/odd").len(), 1, "what will not pass is not tried again");
    let error = fixture.fails(&["image", "pull", &rogue.name("nobody:1")]);
    assert!(error.contains("has no image `127.0.0.1:") && !error.contains("trying again"), "{error}");
    fixture.assert_whole();
}

fn deadline() {
    let fixture = Fixture::new();
    let rogue = Rogue::new(|request| if wants_blob(request) { Reply::Trickle } else { Reply::Right });
    rogue.with("t:1", &TestImage::new(6, 1), Packing::None);
    let began = Instant::now();
    let error = fixture.fails(&["image", "pull", "--timeout", "3", &rogue.name("t:1")]);
    assert!(error.contains("not complete after 3 seconds") && error.contains("--timeout"), "{error}");
    assert!(began.elapsed() < Duration::from_secs(20), "{:?}", began.elapsed());
    fixture.assert_whole();
}

fn trickle() {
    let fixture = Fixture::new();
    let rogue = Rogue::new(|request| match request.path.as_str() {
        path if path.ends_with("/manifests/slow") && request.nth == 0 => Reply::Trickle,
        path if path.contains("/hopeless/blobs/") && wants_blob(request) => Reply::Trickle,
        path if path.contains("/grumbling/blobs/") && request.nth == 0 => Reply::Grumble(503),
        path if path.contains("/busy/blobs/") && request.nth == 0 => {
            Reply::Status(429, vec![("Retry-After", "3".into())], Vec::new())
        }
        path if path.contains("/busy/blobs/") => Reply::Hesitant,
        // Layers of several kilobytes a second would be well; these bring 320 bytes, and the first of them is asked for again.
        path if path.contains("/fickle/blobs/") && wants_blob(request) && request.nth == 0 => Reply::Trickle,
        _ => Reply::Right,
    });
    // So many layers that the manifest takes longer than a small document may.
    rogue.with("t:slow", &TestImage::new(6, 14), Packing::None);
    rogue.with("fickle:1", &TestImage::new(7, 1), Packing::None);
    rogue.with("grumbling:1", &TestImage::new(9, 1), Packing::None);
    let busy = rogue.with("busy:1", &TestImage::new(10, 1), Packing::None);
    rogue.with("hopeless:1", &TestImage::new(8, 1), Packing::None);
    let pull = |image: &str| {
        let began = Instant::now();
        let pulled = fixture.command(&["image", "pull", &rogue.name(image)]).env("GPURUN_STALL_TIMEOUT", "1").output();
        (answer(pulled.unwrap()), began.elapsed())
    };
    for image in ["t:slow", "fickle:1", "grumbling:1", "busy:1"] {
        let (pulled, took) = pull(image);
        assert_eq!(pulled.code, 0, "{image}: {}", pulled.err);
        assert!(took < Duration::from_secs(60), "{image}: {took:?}");
    }
    assert_eq!(rogue.seen("/manifests/slow").len(), 2);
    let again: Vec<_> = rogue.seen("/fickle/blobs/").into_iter().filter(|request| request.nth == 1).collect();
    assert!(again.iter().any(|request| request.header("range").starts_with("bytes=")), "{again:?}");
    assert_eq!(rogue.seen(&busy[0]).len(), 2, "the pause that was asked for is not held against the line");
    // Three windows of two seconds, without any deadline.
    let (pulled, took) = pull("hopeless:1");
    assert_eq!(pulled.code, 1, "{}", pulled.err);
    assert!(pulled.err.contains("less than 512 bytes per second"), "{}", pulled.err);
    assert!(took > Duration::from_secs(5) && took < Duration::from_secs(60), "{took:?}");
    fixture.assert_whole();
}

fn other_bytes() {
    let test_image = TestImage::new(7, 2);
    let (blobs, manifest, layers) = test_image.blobs(Packing::Gzip);
    let config = test_image.id();
    for wrong in [&manifest, &config, &layers[0], &layers[1]] {
        let fixture = Fixture::new();
        let mut other = blobs[wrong].clone();
        // Still JSON, still gzip at its beginning: only the digest can tell.
        let at = other.len() - 9;
        other[at] ^= 1;
        let victim = wrong.clone();
        let rogue =
            Rogue::new(
                move |request| if request.path.ends_with(&victim) { Reply::Other(other.clone()) } else { Reply::Right },
            );
        rogue.put(blobs.clone());
        rogue.tag("t:1", &manifest);
        // By digest: with a tag, the manifest is whatever the registry says it is.
        let error = fixture.fails(&["image", "pull", &rogue.name(&format!("t@{manifest}"))]);
        assert!(error.contains("digest") || error.contains("unpacked"), "{wrong}: {error}");
        assert_eq!(fixture.names(), [] as [&str; 0]);
        fixture.assert_whole();
    }
}

fn lengths() {
    let test_image = TestImage::new(8, 1);
    let len = test_image.layers[0].len() as u64;
    for (reply, snippet) in [
        (Reply::Length(len + 1), "were announced"),
        (Reply::Length(len - 1), "were announced"),
        (Reply::Other(noise(1, 10)), "were announced"),
    ] {
        let fixture = Fixture::new();
        let layers: Arc<Mutex<Vec<String>>> = Arc::default();
        let known = layers.clone();
        let rogue = Rogue::new(
            move |request| if is_layer(request, &known.lock().unwrap()) { reply.clone() } else { Reply::Right },
        );
        *layers.lock().unwrap() = rogue.with("t:1", &test_image, Packing::None);
        let error = fixture.fails(&["image", "pull", &rogue.name("t:1")]);
        assert!(error.contains(snippet), "{error}");
        fixture.assert_whole();
    }
    // It always ends early, which is an error in the end.
    let fixture = Fixture::new();
    let rogue = Rogue::new(|request| match (wants_blob(request), request.header("range")) {
        (true, "") => Reply::Cut(1000),
        (true, _) => Reply::Cut(0),
        _ => Reply::Right,
    });
    rogue.with("t:1", &test_image, Packing::None);
    let error = fixture.fails(&["image", "pull", &rogue.name("t:1")]);
    assert!(error.contains("was interrupted"), "{error}");
    fixture.assert_whole();
}

fn moving_tag() {
    let fixture = Fixture::new();
    let (one, two) = (TestImage::new(9, 2), TestImage::new(10, 2));
    let rogue = Arc::new(Rogue::new(|_| Reply::Right));
    rogue.with("t:two", &two, Packing::Gzip);
    rogue.with("t:1", &one, Packing::Gzip);
    assert_eq!(fixture.ok(&["image", "pull", "-q", &rogue.name("t:1")]), one.id());
    let (_, manifest, _) = two.blobs(Packing::Gzip);
    rogue.tag("t:1", &manifest);
    // The name moves with it; the old image stays, without one.
    assert_eq!(fixture.ok(&["image", "pull", "-q", &rogue.name("t:1")]), two.id());
    assert_eq!(fixture.names(), [rogue.name("t:1")]);
    assert_eq!(fixture.json(&["image", "ls", "--json"]).as_array().unwrap().len(), 2);
    assert_eq!(rogue.seen("/manifests/1").len(), 2, "a tag is asked for once a pull");
    fixture.assert_whole();
}

fn side_by_side() {
    let fixture = Fixture::new();
    // No request is answered before four layers are requested.
    let gate = Arc::new((Mutex::new(0_usize), Condvar::new()));
    let layers: Arc<Mutex<Vec<String>>> = Arc::default();
    let (waiting, known) = (gate.clone(), layers.clone());
    let rogue = Rogue::new(move |request| {
        if is_layer(request, &known.lock().unwrap()) {
            let (count, changed) = &*waiting;
            let mut count = count.lock().unwrap();
            *count += 1;
            changed.notify_all();
            let (_count, result) =
                changed.wait_timeout_while(count, Duration::from_secs(20), |count| *count < 4).unwrap();
            if result.timed_out() {
                return Reply::Status(418, vec![], Vec::new());
            }
        }
        Reply::Right
    });
    *layers.lock().unwrap() = rogue.with("t:1", &TestImage::new(11, 5), Packing::Gzip);
    fixture.ok(&["image", "pull", &rogue.name("t:1")]);
    fixture.assert_whole();
}

fn platforms() {
    let fixture = Fixture::new();
    let rogue = Rogue::new(|_| Reply::Right);
    let mut entries = Vec::new();
    let host = crate::test_image::host();
    for (seed, os, architecture, variant) in
        [(20, "linux", "s390x", ""), (21, "linux", "arm", "v6"), (22, "linux", "arm", "v7"), (23, "linux", host, "")]
    {
        let test_image = TestImage { architecture, ..TestImage::new(seed, 1) };
        let (blobs, manifest, _) = test_image.blobs(Packing::Gzip);
        let mut platform = json!({"os": os, "architecture": architecture});
        if !variant.is_empty() {
            platform["variant"] = variant.into();
        }
        entries.push(json!({"mediaType": "application/vnd.oci.image.manifest.v1+json", "digest": manifest, "size": blobs[&manifest].len(), "platform": platform}));
        rogue.put(blobs);
    }
    let index =
        json!({"schemaVersion": 2, "mediaType": "application/vnd.oci.image.index.v1+json", "manifests": entries})
            .to_string()
            .into_bytes();
    rogue.tag("m:1", &digest(&index));
    rogue.put([(digest(&index), index)].into());
    let file = |platform: &[&str]| {
        let name = rogue.name("m:1");
        let args = [&["image", "pull", "-q"], platform, &[name.as_str()]].concat();
        fixture.ok(&args);
        let tree = fixture.mounted(&name);
        let found = (20..24).find(|seed| tree.join(format!("etc/{seed}-0")).exists());
        fixture.ok(&["image", "unmount", &name]);
        found.unwrap()
    };
    assert_eq!(file(&[]), 23);
    assert_eq!(file(&["--platform", "linux/s390x"]), 20);
    assert_eq!(file(&["--platform", "linux/arm/v7"]), 22);
    let error = fixture.fails(&["image", "pull", "--platform", "linux/mips", &rogue.name("m:1")]);
    assert!(error.contains("no image for `linux/mips`") && error.contains("linux/s390x"), "{error}");
    // docker's own words for the same things.
    let (blobs, manifest, _) = TestImage::new(24, 1).schema2();
    rogue.put(blobs);
    rogue.tag("docker:1", &manifest);
    fixture.ok(&["image", "pull", &rogue.name("docker:1")]);
}

fn tokens() {
    let fixture = Fixture::new();
    let issued = Arc::new(AtomicUsize::new(0));
    let (counter, port) = (issued.clone(), Arc::new(AtomicUsize::new(0)));
    let own_port = port.clone();
    let rogue = Rogue::new(move |request| {
        if request.path.starts_with("/token") {
            // Only with the right password, and only for what is asked.
            let basic = request.header("authorization") == "Basic YW5uOnNlY3JldA==";
            assert!(
                request.path.contains("service=lab") && request.path.contains("scope=repository%3At%3Apull"),
                "{}",
                request.path
            );
            if request.nth == 0 {
                return Reply::Half(b"{".to_vec());
            }
            let number = counter.fetch_add(1, Ordering::SeqCst);
            let token = json!({"token": null, "access_token": format!("token-{number}"), "expires_in": null});
            let token = token.to_string().into_bytes();
            return if basic { Reply::Status(200, vec![], token) } else { Reply::Status(401, vec![], Vec::new()) };
        }
        let realm =
            format!("Bearer realm=\"http://127.0.0.1:{}/token\",service=\"lab\"", own_port.load(Ordering::SeqCst));
        let refuse = Reply::Status(401, vec![("WWW-Authenticate", realm)], Vec::new());
        // Blobs want a second token: the first one has ended meanwhile.
        let wanted = if wants_blob(request) { "Bearer token-1" } else { "Bearer token-0" };
        if request.header("authorization") == wanted { Reply::Right } else { refuse }
    });
    port.store(usize::from(rogue.port), Ordering::SeqCst);
    rogue.with("t:1", &TestImage::new(12, 1), Packing::Gzip);
    fixture.ok(&["image", "pull", "--creds", "ann:secret", &rogue.name("t:1")]);
    assert_eq!(issued.load(Ordering::SeqCst), 2, "one token, and one more when it was refused");
    // The first answer broke off, and was asked for again.
    assert_eq!(rogue.seen("/token").len(), 3);
    let error = fixture.fails(&["image", "pull", "--creds", "ann:false", &rogue.name("t:1")]);
    assert!(error.contains("refuses access") && error.contains("`--creds`"), "{error}");
}

fn circles() {
    let fixture = Fixture::new();
    let rogue = Rogue::new(|request| match request.path.as_str() {
        path if path.contains("/blobs/") => Reply::Status(307, vec![("Location", format!("{path}?round"))], Vec::new()),
        _ => Reply::Right,
    });
    rogue.with("t:1", &TestImage::new(15, 1), Packing::None);
    let error = fixture.fails(&["image", "pull", &rogue.name("t:1")]);
    assert!(
        error.contains("sent an invalid answer: too many redirects")
            && error.contains("answered 307")
            && !error.contains("cannot be reached"),
        "{error}"
    );
    assert!(rogue.seen("/blobs/").len() < 30, "it is not tried again: {}", rogue.seen("/blobs/").len());
    fixture.assert_whole();
}

fn mirrors() {
    let fixture = Fixture::new();
    let test_image = TestImage::new(13, 2);
    let dead = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let (empty, full) = (Rogue::new(|_| Reply::Right), Rogue::new(|_| Reply::Right));
    full.with("hub/library/t:1", &test_image, Packing::Gzip);
    // Dead, without the image, and at last with it below a prefix; the registry itself is nowhere.
    let mirrors = format!(
        "docker.io=http://{dead} docker.io=127.0.0.1:{} docker.io=http://127.0.0.1:{}/hub",
        empty.port, full.port
    );
    let pull = |name: &str| {
        answer(fixture.command(&["image", "pull", name]).env("GPURUN_MIRRORS", &mirrors).output().unwrap())
    };
    let pulled = pull("t:1");
    assert_eq!(pulled.code, 0, "{}", pulled.err);
    assert_eq!(pulled.err.matches("skipping the mirror").count(), 2, "{}", pulled.err);
    assert_eq!(fixture.names(), ["t:1"], "the image has the name that was asked for, not the mirror's");
    assert_eq!(empty.seen("/v2/library/t/manifests/1").len(), 1);
    // The registry's own, where no mirror has it.
    let origin = Rogue::new(|_| Reply::Right);
    origin.with("own:1", &test_image, Packing::Zstd);
    let mirrors = format!("127.0.0.1:{}=http://127.0.0.1:{}", origin.port, empty.port);
    let pulled = answer(
        fixture.command(&["image", "pull", &origin.name("own:1")]).env("GPURUN_MIRRORS", mirrors).output().unwrap(),
    );
    assert_eq!(pulled.code, 0, "{}", pulled.err);
    fixture.assert_whole();
}

fn endless() {
    let fixture = Fixture::new();
    let rogue = Rogue::new(|request| match request.path.contains("/manifests/") {
        true => Reply::Other(vec![b' '; 9 << 20]),
        false => Reply::Right,
    });
    rogue.with("t:1", &TestImage::new(14, 1), Packing::None);
    let error = fixture.fails(&["image", "pull", &rogue.name("t:1")]);
    assert!(error.contains("larger than 8388608 bytes"), "{error}");
    fixture.assert_whole();
}

/// No TLS and no success: what it answered is the error, not its certificate.
fn plain_http() {
    let fixture = Fixture::new();
    for (status, snippet) in [(503, "answered 503"), (302, "too many redirects"), (418, "answered 418")] {
        let rogue = Rogue::new(move |_| Reply::Status(status, vec![("Location", "/v2/".into())], Vec::new()));
        let error = fixture.fails(&["image", "pull", &rogue.name("t:1")]);
        assert!(error.contains(snippet), "{error}");
        assert!(!error.contains("trusted") && !error.contains("certs.d"), "{error}");
    }
    // A server that answers a TLS greeting in plain text, where nothing else may be spoken.
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let name = format!("{}/t:1", listener.local_addr().unwrap());
    std::thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            let _ = std::io::Write::write_all(&mut stream, b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n");
        }
    });
    let error = fixture.fails(&["image", "pull", "--tls-verify=true", &name]);
    assert!(error.contains("does not speak TLS") && error.contains("--tls-verify=false"), "{error}");
}

fn damaged() {
    let fixture = Fixture::new();
    let test_image = TestImage::new(31, 1);
    for packing in [Packing::None, Packing::Gzip, Packing::Zstd] {
        let (mut blobs, manifest, layers) = test_image.blobs(packing);
        let mut other = blobs[&layers[0]].clone();
        let at = other.len() / 2;
        other[at] ^= 1;
        // The first answer for each document and each layer is damaged.
        let rogue = Rogue::new({
            let (layers, other) = (layers.clone(), other.clone());
            move |request| match request.nth {
                0 if is_layer(request, &layers) => Reply::Other(other.clone()),
                0 if request.path.contains("sha256:") => Reply::Other(b"{}".to_vec()),
                _ => Reply::Right,
            }
        });
        rogue.put(std::mem::take(&mut blobs));
        rogue.tag("t:1", &manifest);
        fixture.ok(&["image", "pull", "-q", &rogue.name("t:1")]);
        assert_eq!(rogue.seen(&layers[0]).len(), 2);
        fixture.assert_whole();
        fixture.ok(&["image", "rm", &rogue.name("t:1")]);
        // Twice is enough, and the registry is named.
        let rogue = Rogue::new({
            let layers = layers.clone();
            move |request| if is_layer(request, &layers) { Reply::Other(other.clone()) } else { Reply::Right }
        });
        rogue.with("t:1", &test_image, packing);
        let error = fixture.fails(&["image", "pull", &rogue.name("t:1")]);
        assert!(error.contains(&format!("the registry `127.0.0.1:{}` sent it damaged, twice", rogue.port)), "{error}");
        assert!(!error.contains("save or copy the image again"), "{error}");
        assert_eq!(rogue.seen(&layers[0]).len(), 2);
        fixture.assert_whole();
    }
}

fn content_digest() {
    let fixture = Fixture::new();
    let test_image = TestImage::new(32, 1);
    let (blobs, manifest, layers) = test_image.blobs(Packing::Gzip);
    let wrong = digest(b"other");
    for part in ["/manifests/1".to_owned(), layers[0].clone()] {
        let body = blobs.get(&part).unwrap_or(&blobs[&manifest]).clone();
        let wrong = wrong.clone();
        let rogue = Rogue::new(move |request| match request.path.ends_with(&part) {
            true => Reply::Status(200, vec![("Docker-Content-Digest", wrong.clone())], body.clone()),
            false => Reply::Right,
        });
        rogue.put(blobs.clone());
        rogue.tag("t:1", &manifest);
        let error = fixture.fails(&["image", "pull", &rogue.name("t:1")]);
        assert!(error.contains("has the digest") && error.contains(&digest(b"other")), "{error}");
    }
    fixture.assert_whole();
}

/// An index of these manifests, each for a platform, under a tag; answers its digest.
fn index(rogue: &Rogue, tag: &str, entries: &[(&str, &TestImage)]) -> String {
    let mut list = Vec::new();
    for (platform, test_image) in entries {
        let (blobs, manifest, _) = test_image.blobs(Packing::Gzip);
        let (os, rest) = platform.split_once('/').unwrap();
        let (architecture, variant) = rest.split_once('/').unwrap_or((rest, ""));
        list.push(json!({"mediaType": "application/vnd.oci.image.manifest.v1+json", "digest": manifest, "size": blobs[&manifest].len(),
            "platform": {"os": os, "architecture": architecture, "variant": variant}}));
        rogue.put(blobs);
    }
    let text = json!({"schemaVersion": 2, "mediaType": "application/vnd.oci.image.index.v1+json", "manifests": list})
        .to_string();
    let digest = digest(text.as_bytes());
    rogue.put([(digest.clone(), text.into_bytes())].into());
    rogue.tag(tag, &digest);
    digest
}

fn index_digest() {
    let fixture = Fixture::new();
    let rogue = Rogue::new(|_| Reply::Right);
    let test_image = TestImage::new(33, 1);
    let other = TestImage { architecture: "s390x", ..TestImage::new(34, 1) };
    let host = format!("linux/{}", test_image.architecture);
    let top = index(&rogue, "t:1", &[("linux/s390x", &other), (&host, &test_image)]);
    let id = fixture.ok(&["image", "pull", "-q", &rogue.name("t:1")]);
    let manifest = test_image.blobs(Packing::Gzip).1;
    for digest in [&top, &manifest] {
        let name = rogue.name(&format!("t@{digest}"));
        assert_eq!(fixture.json(&["image", "inspect", &name])[0]["Id"].as_str(), Some(&*id), "{name}");
        assert!(
            fixture.run(&["image", "inspect", &rogue.name(&format!("u@{digest}"))]).code != 0,
            "another repository's"
        );
    }
    let digests = fixture.json(&["image", "inspect", &id])[0]["RepoDigests"].clone();
    assert!(digests.as_array().unwrap().contains(&json!(rogue.name(&format!("t@{top}")))), "{digests}");
    // The same image by way of another index: both mean it, though nothing of it is new.
    let again = index(&rogue, "t:2", &[(&host, &test_image)]);
    fixture.ok(&["image", "pull", &rogue.name("t:2")]);
    assert_eq!(fixture.json(&["image", "inspect", &rogue.name(&format!("t@{again}"))])[0]["Id"].as_str(), Some(&*id));
    fixture.assert_whole();
    fixture.ok(&["image", "rm", "-f", &id]);
    let error = fixture.fails(&["image", "inspect", &rogue.name(&format!("t@{top}"))]);
    assert!(error.contains("no image"), "{error}");
    fixture.assert_whole();
}

/// A layer that is there is not read: what a manifest says of its packed bytes is true, or it is not kept.
fn unproven() {
    let fixture = Fixture::new();
    let rogue = Rogue::new(|_| Reply::Right);
    let test_image = TestImage::new(35, 1);
    rogue.with("t:1", &test_image, Packing::Gzip);
    fixture.ok(&["image", "pull", &rogue.name("t:1")]);
    // The same layer in another image, with a claim about its blob.
    let (blobs, _, layers) = test_image.blobs(Packing::Gzip);
    let config = String::from_utf8(test_image.config()).unwrap().replacen('{', r#"{"author":"x","#, 1);
    let claim = |rogue: &Rogue, tag: &str, blob: &str, size: usize| {
        let kind = "application/vnd.oci.image.layer.v1.tar+gzip";
        let text = json!({"schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "config": {"mediaType": "application/vnd.oci.image.config.v1+json", "digest": digest(config.as_bytes()), "size": config.len()},
            "layers": [{"mediaType": kind, "digest": blob, "size": size}]}).to_string();
        rogue.put(
            [
                (digest(text.as_bytes()), text.clone().into_bytes()),
                (digest(config.as_bytes()), config.clone().into_bytes()),
            ]
            .into(),
        );
        rogue.tag(tag, &digest(text.as_bytes()));
        digest(text.as_bytes())
    };
    let lie = claim(&rogue, "t:2", &digest(b"never checked"), 7);
    let id = fixture.ok(&["image", "pull", "-q", &rogue.name("t:2")]);
    assert_eq!(fixture.json(&["image", "inspect", &id])[0]["ManifestDigest"], serde_json::Value::Null);
    assert_eq!(fixture.json(&["image", "inspect", &rogue.name(&format!("t@{lie}"))])[0]["Id"].as_str(), Some(&*id));
    fixture.assert_whole();
    fixture.ok(&["image", "rm", &id]);
    // A true claim that the store knows is kept.
    let truth = claim(&rogue, "t:3", &layers[0], blobs[&layers[0]].len());
    let id = fixture.ok(&["image", "pull", "-q", &rogue.name("t:3")]);
    assert_eq!(fixture.json(&["image", "inspect", &id])[0]["ManifestDigest"].as_str(), Some(&*truth));
    fixture.assert_whole();
}

/// What this processor has, as the kernel says; the highest of the variants that it runs is taken, wherever it stands.
fn variants() {
    if crate::test_image::host() != "amd64" {
        return;
    }
    let flags = std::fs::read_to_string("/proc/cpuinfo").unwrap();
    let has = |names: &str| names.split(' ').all(|name| flags.split_whitespace().any(|flag| flag == name));
    let levels = [
        "cx16 popcnt pni ssse3 sse4_1 sse4_2",
        "avx2 bmi1 bmi2 f16c fma abm movbe",
        "avx512f avx512bw avx512cd avx512dq avx512vl",
    ];
    let level = 1 + levels.iter().take_while(|names| has(names)).count();
    let fixture = Fixture::new();
    let rogue = Rogue::new(|_| Reply::Right);
    let pictures: Vec<TestImage> = (0..5).map(|at| TestImage::new(40 + at, 1)).collect();
    let entry = |at: usize| {
        (["linux/amd64/v4", "linux/amd64/v9", "linux/amd64/v3", "linux/x86_64", "linux/amd64/v2"][at], &pictures[at])
    };
    let best = [3, 3, 4, 2, 0][level];
    index(&rogue, "t:1", &(0..5).map(entry).collect::<Vec<_>>());
    assert_eq!(fixture.ok(&["image", "pull", "-q", &rogue.name("t:1")]), pictures[best].id(), "of level {level}");
    for platform in ["linux/amd64/v2", "linux/x86-64/v2"] {
        let id = fixture.ok(&["image", "pull", "-q", "--platform", platform, &rogue.name("t:1")]);
        assert_eq!(id, pictures[4].id(), "{platform}");
    }
    // Nothing but higher ones: there is none.
    index(&rogue, "t:2", &[entry(1)]);
    let error = fixture.fails(&["image", "pull", &rogue.name("t:2")]);
    assert!(error.contains("it has: linux/amd64/v9"), "{error}");
}
