//! How many system calls a start takes. No load on the machine changes this number.

use std::collections::BTreeMap;

use crate::host::{self, Host};

pub const TESTS: &[(&str, fn())] = &[("a_start_takes_few_system_calls", few)];

/// The most calls of `run --rm --network none IMAGE true`, of all its processes. It is about 3500 now, and the aim is 1800
/// (docs/speed.md).
const MOST: u64 = 4000;

/// The calls by name, as `strace -c` counts them.
fn counted(host: &Host, args: &[&str]) -> BTreeMap<String, u64> {
    let trace = host.dir.join("calls").display().to_string();
    let output = host.behind(&["strace", "-f", "-c", "-U", "calls,name", "-o", &trace], args).output().unwrap();
    let answer = host::answer(output);
    assert_eq!(answer.code, 0, "{args:?}: {}", answer.err);
    let text = std::fs::read_to_string(trace).unwrap();
    let line = |line: &str| {
        let (calls, name) = line.trim().split_once(' ')?;
        Some((name.trim().to_owned(), calls.parse().ok()?))
    };
    text.lines().filter_map(line).collect()
}

fn few() {
    let host = Host::with_box();
    let start = ["run", "--rm", "--network", "none", "box", "true"];
    // The first one mounts the image.
    host.ok(&start);
    let mut calls = counted(&host, &start);
    calls.remove("total");
    // A debug build checks every descriptor before it closes it.
    calls.remove("fcntl");
    let sum: u64 = calls.values().sum();
    println!("{sum} system calls");
    assert!(sum > 300 && sum <= MOST, "{sum} calls: {calls:?}");
}
