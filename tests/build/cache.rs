//! The build cache on disk: what `builder du` shows, what the prunes remove, and what they keep.

use crate::fixture::Fixture;

pub const TESTS: &[(&str, fn())] = &[
    ("cache::parts_of_the_build_cache_are_shown_and_removed", parts),
    ("cache::the_parts_that_were_used_last_are_kept", keep),
    ("cache::images_are_pruned_by_label_and_time", images),
];

const NO_NETWORK: [&str; 2] = ["--network", "none"];
const TEXT: &str = "FROM box\nRUN dd if=/dev/zero of=/big bs=1M count=2\nRUN --mount=type=cache,target=/c echo 1 >/c/x && touch /end\n";

/// The IDs of a kind of parts whose removal frees space.
fn reclaimable(fixture: &Fixture, kind: &str) -> Vec<String> {
    let table = fixture.ok(&["builder", "du", "--filter", &format!("type={kind}")]);
    assert!(table.starts_with("ID"), "{table}");
    let rows = table.lines().skip(1).map(|line| line.split_whitespace().collect::<Vec<_>>());
    rows.filter(|row| row.get(1) == Some(&"true")).map(|row| row[0].to_owned()).collect()
}

fn cached(fixture: &Fixture, args: &[&str]) -> u64 {
    let context = fixture.context(&[]);
    let answer = fixture.build(&context, TEXT, &[&NO_NETWORK[..], &["--json"], args].concat());
    assert_eq!(answer.code, 0, "{}", answer.err);
    serde_json::from_str::<serde_json::Value>(&answer.out).unwrap()["Cached"].as_u64().unwrap()
}

fn parts() {
    let fixture = Fixture::with_box();
    assert_eq!(cached(&fixture, &["-t", "app"]), 0);
    // The layers of the steps belong to images, so only the cache mount can be removed.
    assert_eq!(reclaimable(&fixture, "regular"), [""; 0]);
    let mount = reclaimable(&fixture, "exec.cachemount");
    assert_eq!(mount.len(), 1);
    let answer = fixture.run(&["builder", "prune"]);
    assert!(answer.code == 2 && answer.err.contains("gpurun builder prune --force"), "{}", answer.err);
    let pruned = fixture.ok(&["builder", "prune", "-f"]);
    assert_eq!(pruned, format!("Deleted build cache objects:\n{}\n\nTotal reclaimed space: 2B", mount[0]));
    assert_eq!(cached(&fixture, &["-t", "app"]), 2);
    // Without the image, the cache still has the steps, until it is pruned.
    fixture.ok(&["rmi", "app"]);
    assert_eq!(cached(&fixture, &["-t", "app"]), 2);
    fixture.ok(&["rmi", "app"]);
    let steps = reclaimable(&fixture, "regular");
    assert_eq!(steps.len(), 2);
    let df = fixture.ok(&["system", "df", "--format", "{{.Type}} {{.Size}}"]);
    assert!(df.contains("Build Cache 2.1"), "{df}");
    assert_eq!(fixture.ok(&["builder", "prune", "-f", "--filter", "until=1h"]), "Total reclaimed space: 0B");
    let pruned = fixture.ok(&["buildx", "prune", "-f"]);
    assert!(steps.iter().all(|id| pruned.contains(id)) && pruned.contains("Total reclaimed space: 2.1"), "{pruned}");
    assert!(fixture.ok(&["builder", "du"]).ends_with("Reclaimable:  0B\nTotal:        0B"));
    assert_eq!(cached(&fixture, &[]), 0);
    fixture.ok(&["image", "verify"]);
    // `--all` removes the steps of images too, which stay whole.
    let pruned = fixture.ok(&["builder", "prune", "-af"]);
    assert!(pruned.lines().count() > 4, "{pruned}");
    assert_eq!(fixture.ok(&["run", "--rm", "--network", "none", "box", "echo", "whole"]), "whole");
    let pruned = fixture.ok(&["system", "prune", "-f"]);
    assert!(pruned.starts_with("Deleted Images:") && !pruned.contains("build cache"), "{pruned}");
    assert_eq!(fixture.ok(&["images", "-aq"]).lines().count(), 1);
}

fn keep() {
    let fixture = Fixture::with_box();
    let context = fixture.context(&[]);
    let build = |name: &str| {
        let text = format!("FROM box\nRUN dd if=/dev/zero of=/{name} bs=1M count=2\n");
        fixture.build_ok(&context, &text, &[&NO_NETWORK[..], &["-t", "app"]].concat());
        fixture.ok(&["rmi", "app"]);
    };
    build("one");
    build("two");
    build("one");
    // The first step was used last, so the second one is removed.
    let pruned = fixture.ok(&["builder", "prune", "-f", "--keep-storage", "3mb"]);
    assert!(pruned.contains("Total reclaimed space: 2.1"), "{pruned}");
    assert_eq!(reclaimable(&fixture, "regular").len(), 1);
    let text = "FROM box\nRUN dd if=/dev/zero of=/one bs=1M count=2\n";
    let answer = fixture.build(&context, text, &[&NO_NETWORK[..], &["--json"]].concat());
    assert_eq!(serde_json::from_str::<serde_json::Value>(&answer.out).unwrap()["Cached"], 1, "{}", answer.err);
    assert!(fixture.run(&["builder", "prune", "-f", "--keep-storage", "much"]).code == 2);
}

fn images() {
    let fixture = Fixture::with_box();
    let context = fixture.context(&[("file", "content")]);
    for label in ["keep=yes", "keep=no"] {
        fixture.build_ok(&context, &format!("FROM scratch\nLABEL {label}\nCOPY file /\n"), &[]);
    }
    let dangling = || fixture.ok(&["images", "-q", "--filter", "dangling=true"]).lines().count();
    assert_eq!(dangling(), 2);
    fixture.ok(&["image", "prune", "-f", "--filter", "until=1h"]);
    assert_eq!(dangling(), 2);
    let pruned = fixture.ok(&["image", "prune", "-f", "--filter", "label!=keep=yes"]);
    assert!(pruned.starts_with("Deleted Images:\nDeleted: sha256:") && dangling() == 1, "{pruned}");
    fixture.ok(&["system", "prune", "-f", "--filter", "label=keep=yes"]);
    assert_eq!(dangling(), 0);
    fixture.ok(&["image", "prune", "-f", "--filter", "dangling=false", "--filter", "label=nosuch"]);
    assert_eq!(fixture.ok(&["images", "--format", "{{.Repository}}"]), "box");
    fixture.ok(&["image", "prune", "-f", "--filter", "dangling=false"]);
    assert_eq!(fixture.ok(&["images", "-aq"]), "");
    let answer = fixture.run(&["system", "prune", "-f", "--volumes", "--filter", "until=1h"]);
    assert!(answer.code == 2 && answer.err.contains("cannot be used together"), "{}", answer.err);
    assert_eq!(fixture.run(&["image", "prune", "-f", "--filter", "size=1"]).code, 2);
}
