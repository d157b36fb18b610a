//! Against a registry that misbehaves: what may pass is waited for, what lies is refused, and nothing is left of what failed.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant};

use serde_json::json;

use crate::Test;
use crate::desk::{Desk, answer};
use crate::picture::{Packing, Picture, digest, noise};
use crate::rogue::{Reply, Request, Rogue};

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
    let desk = Desk::new();
    // Every answer breaks off after 300 000 bytes.
    let rogue = Rogue::new(|request| if wants_blob(request) { Reply::Cut(300_000) } else { Reply::Right });
    let picture = Picture::new(1, 1);
    let layers = rogue.with("t:1", &picture, Packing::None);
    let id = desk.ok(&["image", "pull", "-q", &rogue.name("t:1")]);
    assert_eq!(id, picture.id());
    desk.assert_whole();
    let asked: Vec<_> = rogue.seen(&layers[0]).iter().map(|request| request.header("range").to_owned()).collect();
    assert_eq!(&asked[..3], ["", "bytes=300000-", "bytes=600000-"]);
    assert_eq!(asked.len(), picture.layers[0].len().div_ceil(300_000), "no byte twice: {asked:?}");
}

fn deaf() {
    let desk = Desk::new();
    let rogue = Rogue::new(|request| match request.nth {
        0 | 1 if wants_blob(request) => Reply::CutDeaf(500_000 * (request.nth + 1)),
        _ if wants_blob(request) => Reply::CutDeaf(usize::MAX),
        _ => Reply::Right,
    });
    rogue.with("t:1", &Picture::new(2, 1), Packing::None);
    desk.ok(&["image", "pull", &rogue.name("t:1")]);
    desk.assert_whole();
}

fn silent() {
    let desk = Desk::new();
    let rogue =
        Rogue::new(|request| if wants_blob(request) && request.nth == 0 { Reply::Silent(1000) } else { Reply::Right });
    let layers = rogue.with("t:1", &Picture::new(3, 1), Packing::None);
    desk.ok(&["image", "pull", &rogue.name("t:1")]);
    assert_eq!(rogue.seen(&layers[0])[1].header("range"), "bytes=1000-");
    desk.assert_whole();
}

fn retry_after() {
    let desk = Desk::new();
    let busy = |seconds: &str| Reply::Status(429, vec![("Retry-After", seconds.into())], Vec::new());
    let rogue = Rogue::new(move |request| match request.nth {
        0 if request.path.contains("/manifests/1") => busy("1"),
        0 if wants_blob(request) => busy("1"),
        _ if request.path.contains("/manifests/later") => busy("3600"),
        _ => Reply::Right,
    });
    rogue.with("t:1", &Picture::new(4, 1), Packing::Gzip);
    rogue.with("t:later", &Picture::new(4, 1), Packing::Gzip);
    let began = Instant::now();
    let pulled = desk.run(&["image", "pull", &rogue.name("t:1")]);
    assert_eq!(pulled.code, 0, "{}", pulled.err);
    assert!(began.elapsed() >= Duration::from_secs(2), "it waited as long as it was asked to, twice");
    assert!(pulled.err.contains("answered 429") && pulled.err.contains("trying again in 1 s"), "{}", pulled.err);
    // What comes after the deadline is not waited for.
    let began = Instant::now();
    let error = desk.fails(&["image", "pull", "--timeout", "20", &rogue.name("t:later")]);
    assert!(error.contains("not done within 20 seconds") && began.elapsed() < Duration::from_secs(10), "{error}");
    // Nor is it a secret what was in the way.
    assert!(error.contains("the registry asks to wait 3600 s") && error.contains("`--timeout 3620`"), "{error}");
    assert!(error.contains("answered 429 for") && error.contains("too many requests"), "{error}");
    // Without a deadline an hour is too long, too.
    let error = desk.fails(&["image", "pull", &rogue.name("t:later")]);
    assert!(error.contains("429") && error.contains("mirror"), "{error}");
    desk.assert_whole();
}

fn server_errors() {
    let desk = Desk::new();
    let fail =
        |code| Reply::Status(code, vec![], br#"{"errors":[{"code":"UNKNOWN","message":"disk on fire"}]}"#.to_vec());
    let rogue = Rogue::new(move |request| match request.nth {
        0..3 if request.path.ends_with("/manifests/1") => fail(503),
        0..2 if wants_blob(request) => fail(500),
        _ if request.path.ends_with("/manifests/dead") => fail(502),
        _ if request.path.ends_with("/manifests/odd") => fail(418),
        _ => Reply::Right,
    });
    rogue.with("t:1", &Picture::new(5, 2), Packing::Zstd);
    desk.ok(&["image", "pull", &rogue.name("t:1")]);
    let error = desk.fails(&["image", "pull", &rogue.name("t:dead")]);
    assert!(error.contains("answered 502") && error.contains("disk on fire"), "{error}");
    assert_eq!(rogue.seen("/manifests/dead").len(), 6, "tried several times");
    desk.fails(&["image", "pull", &rogue.name("t:odd")]);
    assert_eq!(rogue.seen("/manifests/odd").len(), 1, "what will not pass is not tried again");
    let error = desk.fails(&["image", "pull", &rogue.name("nobody:1")]);
    assert!(error.contains("has no image `127.0.0.1:") && !error.contains("trying again"), "{error}");
    desk.assert_whole();
}

fn deadline() {
    let desk = Desk::new();
    let rogue = Rogue::new(|request| if wants_blob(request) { Reply::Trickle } else { Reply::Right });
    rogue.with("t:1", &Picture::new(6, 1), Packing::None);
    let began = Instant::now();
    let error = desk.fails(&["image", "pull", "--timeout", "3", &rogue.name("t:1")]);
    assert!(error.contains("not done within 3 seconds") && error.contains("--timeout"), "{error}");
    assert!(began.elapsed() < Duration::from_secs(8), "{:?}", began.elapsed());
    desk.assert_whole();
}

fn trickle() {
    let desk = Desk::new();
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
    rogue.with("t:slow", &Picture::new(6, 14), Packing::None);
    rogue.with("fickle:1", &Picture::new(7, 1), Packing::None);
    rogue.with("grumbling:1", &Picture::new(9, 1), Packing::None);
    let busy = rogue.with("busy:1", &Picture::new(10, 1), Packing::None);
    rogue.with("hopeless:1", &Picture::new(8, 1), Packing::None);
    let pull = |image: &str| {
        let began = Instant::now();
        let pulled = desk.command(&["image", "pull", &rogue.name(image)]).env("GPURUN_STALL_TIMEOUT", "1").output();
        (answer(pulled.unwrap()), began.elapsed())
    };
    for image in ["t:slow", "fickle:1", "grumbling:1", "busy:1"] {
        let (pulled, took) = pull(image);
        assert_eq!(pulled.code, 0, "{image}: {}", pulled.err);
        assert!(took < Duration::from_secs(20), "{image}: {took:?}");
    }
    assert_eq!(rogue.seen("/manifests/slow").len(), 2);
    let again: Vec<_> = rogue.seen("/fickle/blobs/").into_iter().filter(|request| request.nth == 1).collect();
    assert!(again.iter().any(|request| request.header("range").starts_with("bytes=")), "{again:?}");
    assert_eq!(rogue.seen(&busy[0]).len(), 2, "the pause that was asked for is not held against the line");
    // Three windows of two seconds, without any deadline.
    let (pulled, took) = pull("hopeless:1");
    assert_eq!(pulled.code, 125, "{}", pulled.err);
    assert!(pulled.err.contains("less than 512 bytes a second"), "{}", pulled.err);
    assert!(took > Duration::from_secs(5) && took < Duration::from_secs(20), "{took:?}");
    desk.assert_whole();
}

fn other_bytes() {
    let picture = Picture::new(7, 2);
    let (blobs, manifest, layers) = picture.blobs(Packing::Gzip);
    let config = picture.id();
    for wrong in [&manifest, &config, &layers[0], &layers[1]] {
        let desk = Desk::new();
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
        let error = desk.fails(&["image", "pull", &rogue.name(&format!("t@{manifest}"))]);
        assert!(error.contains("digest") || error.contains("unpacked"), "{wrong}: {error}");
        assert_eq!(desk.names(), [] as [&str; 0]);
        desk.assert_whole();
    }
}

fn lengths() {
    let picture = Picture::new(8, 1);
    let len = picture.layers[0].len() as u64;
    for (reply, word) in [
        (Reply::Length(len + 1), "were announced"),
        (Reply::Length(len - 1), "were announced"),
        (Reply::Other(noise(1, 10)), "were announced"),
    ] {
        let desk = Desk::new();
        let layers: Arc<Mutex<Vec<String>>> = Arc::default();
        let known = layers.clone();
        let rogue = Rogue::new(
            move |request| if is_layer(request, &known.lock().unwrap()) { reply.clone() } else { Reply::Right },
        );
        *layers.lock().unwrap() = rogue.with("t:1", &picture, Packing::None);
        let error = desk.fails(&["image", "pull", &rogue.name("t:1")]);
        assert!(error.contains(word), "{error}");
        desk.assert_whole();
    }
    // It always ends early: in the end that is told.
    let desk = Desk::new();
    let rogue = Rogue::new(|request| match (wants_blob(request), request.header("range")) {
        (true, "") => Reply::Cut(1000),
        (true, _) => Reply::Cut(0),
        _ => Reply::Right,
    });
    rogue.with("t:1", &picture, Packing::None);
    let error = desk.fails(&["image", "pull", &rogue.name("t:1")]);
    assert!(error.contains("broke off"), "{error}");
    desk.assert_whole();
}

fn moving_tag() {
    let desk = Desk::new();
    let (one, two) = (Picture::new(9, 2), Picture::new(10, 2));
    let rogue = Arc::new(Rogue::new(|_| Reply::Right));
    rogue.with("t:two", &two, Packing::Gzip);
    rogue.with("t:1", &one, Packing::Gzip);
    assert_eq!(desk.ok(&["image", "pull", "-q", &rogue.name("t:1")]), one.id());
    let (_, manifest, _) = two.blobs(Packing::Gzip);
    rogue.tag("t:1", &manifest);
    // The name moves with it; the old image stays, without one.
    assert_eq!(desk.ok(&["image", "pull", "-q", &rogue.name("t:1")]), two.id());
    assert_eq!(desk.names(), [rogue.name("t:1")]);
    assert_eq!(desk.json(&["image", "ls", "--json"]).as_array().unwrap().len(), 2);
    assert_eq!(rogue.seen("/manifests/1").len(), 2, "a tag is asked for once a pull");
    desk.assert_whole();
}

fn side_by_side() {
    let desk = Desk::new();
    // Nobody gets a layer before four are asked for.
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
                changed.wait_timeout_while(count, Duration::from_millis(900), |count| *count < 4).unwrap();
            if result.timed_out() {
                return Reply::Status(418, vec![], Vec::new());
            }
        }
        Reply::Right
    });
    *layers.lock().unwrap() = rogue.with("t:1", &Picture::new(11, 5), Packing::Gzip);
    desk.ok(&["image", "pull", &rogue.name("t:1")]);
    desk.assert_whole();
}

fn platforms() {
    let desk = Desk::new();
    let rogue = Rogue::new(|_| Reply::Right);
    let mut entries = Vec::new();
    let host = crate::picture::host();
    for (seed, os, architecture, variant) in
        [(20, "linux", "s390x", ""), (21, "linux", "arm", "v6"), (22, "linux", "arm", "v7"), (23, "linux", host, "")]
    {
        let picture = Picture { architecture, ..Picture::new(seed, 1) };
        let (blobs, manifest, _) = picture.blobs(Packing::Gzip);
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
        desk.ok(&args);
        let tree = desk.mounted(&name);
        let found = (20..24).find(|seed| tree.join(format!("etc/{seed}-0")).exists());
        desk.ok(&["image", "unmount", &name]);
        found.unwrap()
    };
    assert_eq!(file(&[]), 23);
    assert_eq!(file(&["--platform", "linux/s390x"]), 20);
    assert_eq!(file(&["--platform", "linux/arm/v7"]), 22);
    let error = desk.fails(&["image", "pull", "--platform", "linux/mips", &rogue.name("m:1")]);
    assert!(error.contains("no image for `linux/mips`") && error.contains("linux/s390x"), "{error}");
    // docker's own words for the same things.
    let (blobs, manifest, _) = Picture::new(24, 1).schema2();
    rogue.put(blobs);
    rogue.tag("docker:1", &manifest);
    desk.ok(&["image", "pull", &rogue.name("docker:1")]);
}

fn tokens() {
    let desk = Desk::new();
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
    rogue.with("t:1", &Picture::new(12, 1), Packing::Gzip);
    desk.ok(&["image", "pull", "--creds", "ann:secret", &rogue.name("t:1")]);
    assert_eq!(issued.load(Ordering::SeqCst), 2, "one token, and one more when it was refused");
    // The first answer broke off, and was asked for again.
    assert_eq!(rogue.seen("/token").len(), 3);
    let error = desk.fails(&["image", "pull", "--creds", "ann:false", &rogue.name("t:1")]);
    assert!(error.contains("refuses access") && error.contains("`--creds`"), "{error}");
}

fn circles() {
    let desk = Desk::new();
    let rogue = Rogue::new(|request| match request.path.as_str() {
        path if path.contains("/blobs/") => Reply::Status(307, vec![("Location", format!("{path}?round"))], Vec::new()),
        _ => Reply::Right,
    });
    rogue.with("t:1", &Picture::new(15, 1), Packing::None);
    let error = desk.fails(&["image", "pull", &rogue.name("t:1")]);
    assert!(error.contains("makes no sense: too many redirects") && !error.contains("cannot be reached"), "{error}");
    assert!(rogue.seen("/blobs/").len() < 30, "it is not tried again: {}", rogue.seen("/blobs/").len());
    desk.assert_whole();
}

fn mirrors() {
    let desk = Desk::new();
    let picture = Picture::new(13, 2);
    let dead = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let (empty, full) = (Rogue::new(|_| Reply::Right), Rogue::new(|_| Reply::Right));
    full.with("hub/library/t:1", &picture, Packing::Gzip);
    // Dead, without the image, and at last with it below a prefix; the registry itself is nowhere.
    let mirrors = format!(
        "docker.io=http://{dead} docker.io=127.0.0.1:{} docker.io=http://127.0.0.1:{}/hub",
        empty.port, full.port
    );
    let pull =
        |name: &str| answer(desk.command(&["image", "pull", name]).env("GPURUN_MIRRORS", &mirrors).output().unwrap());
    let pulled = pull("t:1");
    assert_eq!(pulled.code, 0, "{}", pulled.err);
    assert_eq!(pulled.err.matches("is passed over").count(), 2, "{}", pulled.err);
    assert_eq!(desk.names(), ["t:1"], "the image has the name that was asked for, not the mirror's");
    assert_eq!(empty.seen("/v2/library/t/manifests/1").len(), 1);
    // The registry's own, where no mirror has it.
    let origin = Rogue::new(|_| Reply::Right);
    origin.with("own:1", &picture, Packing::Zstd);
    let mirrors = format!("127.0.0.1:{}=http://127.0.0.1:{}", origin.port, empty.port);
    let pulled = answer(
        desk.command(&["image", "pull", &origin.name("own:1")]).env("GPURUN_MIRRORS", mirrors).output().unwrap(),
    );
    assert_eq!(pulled.code, 0, "{}", pulled.err);
    desk.assert_whole();
}

fn endless() {
    let desk = Desk::new();
    let rogue = Rogue::new(|request| match request.path.contains("/manifests/") {
        true => Reply::Other(vec![b' '; 9 << 20]),
        false => Reply::Right,
    });
    rogue.with("t:1", &Picture::new(14, 1), Packing::None);
    let error = desk.fails(&["image", "pull", &rogue.name("t:1")]);
    assert!(error.contains("larger than 8388608 bytes"), "{error}");
    desk.assert_whole();
}
