//! Large layers over several connections, and what makes a pull return to one.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::time::Duration;

use crate::Test;
use crate::fixture::Fixture;
use crate::rogue::{Reply, Request, Rogue};
use crate::test_image::{Packing, TestImage, noise, tar};

pub const TESTS: &[Test] = &[
    ("a_large_layer_comes_over_several_connections", &[], several),
    ("all_layers_share_the_connections", &[], shared),
    ("a_broken_part_resumes", &[], resumes),
    ("one_connection_where_parts_do_not_work", &[], falls_back),
    ("a_registry_without_ranges_is_asked_once", &[], no_ranges),
    ("a_registry_that_limits_requests_is_asked_less", &[], limited),
    ("a_layer_that_changes_during_a_pull", &[], changed),
    ("a_damaged_part_is_asked_for_over_one_connection", &[], damaged),
    ("parts_that_never_arrive_are_an_error", &[], never),
    ("a_redirect_is_remembered_until_it_expires", &[], redirected),
    ("every_packing_in_parts", &[], packings),
];

const PART: usize = 1 << 20;

/// An image with layers of 9 MiB that no packing makes smaller.
fn large(seed: u64, count: u64) -> TestImage {
    let layer = |at| tar(&[(&format!("data-{at}"), &noise(seed * 100 + at, 9 * PART - 10_000))]);
    TestImage { layers: (0..count).map(layer).collect(), architecture: crate::test_image::host() }
}

/// The number of the part that a request asks for, if it asks for the beginning of one.
fn part(request: &Request) -> Option<usize> {
    let (first, last) = request.header("range").strip_prefix("bytes=")?.split_once('-')?;
    let first: usize = first.parse().ok()?;
    (!last.is_empty() && first.is_multiple_of(PART)).then_some(first / PART)
}

/// Whether a request asks for everything from some byte on.
fn is_rest(request: &Request) -> bool {
    request.header("range").is_empty() || request.header("range").ends_with('-')
}

fn ranges(rogue: &Rogue, layer: &str) -> Vec<String> {
    rogue.seen(layer).iter().map(|request| request.header("range").to_owned()).collect()
}

/// Waits until `wanted` requests have arrived at this gate. False if they do not.
fn gate(gate: &(Mutex<usize>, Condvar), wanted: usize) -> bool {
    let (count, changed) = gate;
    let mut count = count.lock().unwrap();
    *count += 1;
    changed.notify_all();
    !changed.wait_timeout_while(count, Duration::from_secs(20), |count| *count < wanted).unwrap().1.timed_out()
}

fn several() {
    let fixture = Fixture::new();
    let arrived = Arc::new((Mutex::new(0), Condvar::new()));
    // After the first part, no request is answered before seven are there.
    let rogue = Rogue::new(move |request| match part(request) {
        Some(1..) if !gate(&arrived, 7) => Reply::Status(418, vec![], Vec::new()),
        _ => Reply::Right,
    });
    let test_image = large(1, 1);
    let layers = rogue.with("t:1", &test_image, Packing::None);
    assert_eq!(fixture.ok(&["image", "pull", "-q", &rogue.name("t:1")]), test_image.id());
    fixture.assert_whole();
    let mut asked = ranges(&rogue, &layers[0]);
    asked.sort();
    let len = test_image.layers[0].len();
    let range = |at: usize| format!("bytes={}-{}", at * PART, ((at + 1) * PART).min(len) - 1);
    let mut want: Vec<_> = (0..len.div_ceil(PART)).map(range).collect();
    want.sort();
    assert_eq!(asked, want, "every part once");
}

/// Four large layers at a time: each has one part, and all of them together seven more.
fn shared() {
    let fixture = Fixture::new();
    let (now, most) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let arrived = Arc::new((Mutex::new(0), Condvar::new()));
    let seen = most.clone();
    let rogue = Rogue::new(move |request| {
        if request.path.contains("/blobs/") && part(request).is_some() {
            most.fetch_max(now.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
            // All first parts, and seven others.
            if !gate(&arrived, 11) {
                return Reply::Status(418, vec![], Vec::new());
            }
            now.fetch_sub(1, Ordering::SeqCst);
        }
        Reply::Right
    });
    let test_image = large(2, 4);
    rogue.with("t:1", &test_image, Packing::Gzip);
    assert_eq!(fixture.ok(&["image", "pull", "-q", &rogue.name("t:1")]), test_image.id());
    fixture.assert_whole();
    assert!(seen.load(Ordering::SeqCst) <= 11, "{seen:?}");
}

/// A part that breaks goes on where it broke, and the others stay parts.
fn resumes() {
    let busy = Reply::Status(503, vec![], Vec::new());
    let test_image = large(3, 1);
    for (name, reply, resumed) in [
        ("truncated", Reply::Cut(1000), 1000),
        ("shorter than asked for", Reply::Short(1000), 1000),
        ("silent", Reply::Silent(1000), 1000),
        ("empty", Reply::Cut(0), 0),
        ("busy", busy, 0),
    ] {
        for at in [0, 3] {
            let fixture = Fixture::new();
            let broken = AtomicUsize::new(0);
            let reply = reply.clone();
            let rogue = Rogue::new(move |request| match part(request) {
                Some(asked) if asked == at && broken.fetch_add(1, Ordering::SeqCst) == 0 => reply.clone(),
                _ => Reply::Right,
            });
            let layers = rogue.with("t:1", &test_image, Packing::None);
            assert_eq!(fixture.ok(&["image", "pull", "-q", &rogue.name("t:1")]), test_image.id(), "{name}");
            fixture.assert_whole();
            let asked = ranges(&rogue, &layers[0]);
            let again = format!("bytes={}-{}", at * PART + resumed, (at + 1) * PART - 1);
            assert!(asked.contains(&again), "{name}: {asked:?}");
            assert!(!rogue.seen(&layers[0]).iter().any(is_rest), "{name}: {asked:?}");
        }
    }
}

fn falls_back() {
    let test_image = large(4, 1);
    let wait = |seconds: &str| Reply::Status(503, vec![("Retry-After", seconds.into())], Vec::new());
    for (name, reply) in [
        ("another range", Reply::WrongRange),
        ("the whole layer", Reply::CutDeaf(usize::MAX)),
        ("range not satisfiable", Reply::Status(416, vec![], Vec::new())),
        ("forbidden", Reply::Status(403, vec![], Vec::new())),
        ("a requested pause", wait("1")),
        ("a length that is not the range's", Reply::Length(PART as u64 + 1)),
    ] {
        for at in [0, 8] {
            let fixture = Fixture::new();
            let reply = reply.clone();
            let rogue = Rogue::new(move |request| if part(request) == Some(at) { reply.clone() } else { Reply::Right });
            let layers = rogue.with("t:1", &test_image, Packing::None);
            let pulled = fixture.run(&["image", "pull", "-q", &rogue.name("t:1")]);
            assert_eq!((pulled.code, pulled.out.trim()), (0, &*test_image.id()), "{name}, {at}: {}", pulled.err);
            fixture.assert_whole();
            let requests = rogue.seen(&layers[0]);
            // A first answer with the whole layer is used as it is.
            let rest = usize::from((name, at) != ("the whole layer", 0));
            assert_eq!(requests.iter().filter(|request| is_rest(request)).count(), rest, "{name}, {at}: {requests:?}");
        }
    }
}

fn no_ranges() {
    let fixture = Fixture::new();
    let rogue = Rogue::new(|request| match request.path.contains("/blobs/") {
        true => Reply::CutDeaf(usize::MAX),
        false => Reply::Right,
    });
    let layers = rogue.with("t:1", &large(5, 1), Packing::Gzip);
    fixture.ok(&["image", "pull", "-q", &rogue.name("t:1")]);
    fixture.assert_whole();
    assert_eq!(rogue.seen(&layers[0]).len(), 1);
}

fn limited() {
    let fixture = Fixture::new();
    // Four requests for parts are answered, and no more.
    let asked = AtomicUsize::new(0);
    let rogue = Rogue::new(move |request| match part(request) {
        Some(_) if asked.fetch_add(1, Ordering::SeqCst) >= 4 => {
            Reply::Status(429, vec![("Retry-After", "1".into())], Vec::new())
        }
        _ => Reply::Right,
    });
    let test_image = large(6, 6);
    rogue.with("t:1", &test_image, Packing::None);
    let pulled = fixture.run(&["image", "pull", &rogue.name("t:1")]);
    assert_eq!(pulled.code, 0, "{}", pulled.err);
    fixture.assert_whole();
    assert!(pulled.err.contains("answered 429") && pulled.err.contains("trying again in 1 s"), "{}", pulled.err);
    // Four layers began in parts. The two that come later do not.
    let refused = rogue.seen("/blobs/").into_iter().filter(|request| part(request).is_some()).count();
    assert!(refused <= 4 + 4 + 7, "{refused}");
    assert_eq!(rogue.seen("/blobs/").iter().filter(|request| request.header("range").is_empty()).count(), 1 + 2);
}

fn changed() {
    let test_image = large(7, 1);
    let (blobs, manifest, layers) = test_image.blobs(Packing::Gzip);
    let mut other = blobs[&layers[0]].clone();
    let at = other.len() - 9;
    other[at] ^= 1;
    for lasts in [false, true] {
        let fixture = Fixture::new();
        let (other, lasting) = (other.clone(), lasts);
        let rogue = Rogue::new(move |request| match part(request) {
            Some(5..) => Reply::Other(other.clone()),
            None if lasting && request.header("range").starts_with("bytes=") => Reply::Other(other.clone()),
            _ => Reply::Right,
        });
        rogue.put(blobs.clone());
        rogue.tag("t:1", &manifest);
        // The validator tells that it is another one; the rest is then read at once, and the digest decides.
        assert_eq!(fixture.ok(&["image", "pull", "-q", &rogue.name("t:1")]), test_image.id());
        fixture.assert_whole();
        let asked = rogue.seen(&layers[0]);
        assert!(asked.iter().any(|request| !request.header("if-range").is_empty()), "{asked:?}");
        let whole = asked.iter().filter(|request| request.header("range").is_empty()).count();
        assert_eq!(whole, usize::from(lasts), "{asked:?}");
    }
}

/// A cache that returns damaged bytes under the right validator.
fn damaged() {
    let fixture = Fixture::new();
    let rogue = Rogue::new(|request| match part(request) {
        Some(4) => Reply::Damaged,
        _ => Reply::Right,
    });
    let test_image = large(8, 1);
    let layers = rogue.with("t:1", &test_image, Packing::Zstd);
    assert_eq!(fixture.ok(&["image", "pull", "-q", &rogue.name("t:1")]), test_image.id());
    fixture.assert_whole();
    assert_eq!(rogue.seen(&layers[0]).last().unwrap().header("range"), "", "the second time over one connection");
}

fn never() {
    let fixture = Fixture::new();
    let rogue = Rogue::new(|request| match (request.path.contains("/blobs/"), part(request)) {
        (true, Some(0..3)) => Reply::Right,
        (true, _) if !request.header("range").is_empty() => Reply::Cut(0),
        _ => Reply::Right,
    });
    rogue.with("t:1", &large(9, 1), Packing::None);
    let error = fixture.fails(&["image", "pull", &rogue.name("t:1")]);
    assert!(error.contains("was interrupted"), "{error}");
    assert_eq!(fixture.names(), [] as [&str; 0]);
    fixture.assert_whole();
}

fn redirected() {
    let fixture = Fixture::new();
    let expired = AtomicUsize::new(0);
    let rogue = Rogue::new(move |request| {
        let name = request.path.rsplit('/').next().unwrap_or_default();
        if request.path.starts_with("/v2/") && request.path.contains("/blobs/") {
            return Reply::Status(307, vec![("Location", format!("/signed/{}/{name}", request.nth))], Vec::new());
        }
        // The first URL is valid for two parts only.
        if request.path.starts_with("/signed/0/")
            && part(request).is_some()
            && expired.fetch_add(1, Ordering::SeqCst) > 1
        {
            return Reply::Status(403, vec![], Vec::new());
        }
        Reply::Right
    });
    let test_image = large(10, 1);
    let layers = rogue.with("t:1", &test_image, Packing::None);
    assert_eq!(fixture.ok(&["image", "pull", "-q", &rogue.name("t:1")]), test_image.id());
    fixture.assert_whole();
    let asked = rogue.seen(&format!("/v2/t/blobs/{}", layers[0])).len();
    assert!((2..=8).contains(&asked), "once, and again when it had expired: {asked}");
    assert!(!rogue.seen(&layers[0]).iter().any(is_rest), "all in parts");
}

fn packings() {
    for packing in [Packing::None, Packing::Gzip, Packing::Zstd] {
        let fixture = Fixture::new();
        let rogue = Rogue::new(|_| Reply::Right);
        let test_image = large(11, 2);
        let layers = rogue.with("t:1", &test_image, packing);
        assert_eq!(fixture.ok(&["image", "pull", "-q", &rogue.name("t:1")]), test_image.id(), "{packing:?}");
        fixture.assert_whole();
        assert!(layers.iter().all(|layer| !rogue.seen(layer).iter().any(is_rest)), "{packing:?}");
    }
}
