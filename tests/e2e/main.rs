//! End to end: the real binary, real images, real containers, as root on this host.
//!
//! Every test has a host of its own (store, run directory, network namespace: see `host`). Run one with
//! `cargo test --test e2e -- NAME`.

mod archive;
mod change;
mod crash;
#[path = "../fake-driver/driver.rs"]
mod driver;
mod flags;
mod gpu;
mod gpu_filter;
mod gpu_matrix;
mod host;
mod isolation;
mod life;
mod limits;
mod network;
mod oom;
mod run;
mod teach;

use libtest_mimic::{Arguments, Failed, Trial};

type Test = (&'static str, fn());

/// The tests that want systemd as pid 1 (tests/vm/suite --systemd).
const NEEDS_SYSTEMD: [&str; 2] = ["a_daemon_reload_changes_nothing", "a_delegated_scope_is_made_room_in"];
/// The test that wants swap (tests/vm has some).
const NEEDS_SWAP: &str = "a_container_swaps_what_it_may";

/// What a test needs and this host has not.
fn lacks(name: &str) -> Option<&'static str> {
    let swap = || std::fs::read_to_string("/proc/swaps").is_ok_and(|text| text.lines().count() > 1);
    if !nix::unistd::geteuid().is_root() {
        return Some("root");
    }
    match name {
        name if NEEDS_SYSTEMD.contains(&name) && !std::path::Path::new("/run/systemd/system").exists() => {
            Some("systemd")
        }
        NEEDS_SWAP if !swap() => Some("swap"),
        _ => None,
    }
}

fn main() {
    let arguments = Arguments::from_args();
    let rooms: [(&str, &[Test]); 13] = [
        ("run", run::TESTS),
        ("life", life::TESTS),
        ("flags", flags::TESTS),
        ("limits", limits::TESTS),
        ("oom", oom::TESTS),
        ("change", change::TESTS),
        ("teach", teach::TESTS),
        ("isolation", isolation::TESTS),
        ("network", network::TESTS),
        ("gpu", gpu::TESTS),
        ("gpu_filter", gpu_filter::TESTS),
        ("gpu_matrix", gpu_matrix::TESTS),
        ("crash", crash::TESTS),
    ];
    let required =
        |what: &str| std::env::var("GPURUN_REQUIRE").is_ok_and(|list| list.split(',').any(|item| item == what));
    let mut trials = Vec::new();
    for (room, tests) in rooms {
        for &(name, test) in tests {
            let lacks = lacks(name);
            let trial = Trial::test(format!("{room}::{name}"), move || {
                if let Some(what) = lacks {
                    return Err(Failed::from(format!("needs {what}")));
                }
                let began = std::time::Instant::now();
                test();
                if std::env::var_os("GPURUN_TEST_TIMES").is_some_and(|value| !value.is_empty()) {
                    println!("{:7.1} s  {room}::{name}", began.elapsed().as_secs_f64());
                }
                Ok(())
            });
            // A test that cannot run here is counted as ignored, unless this place promised to be able to.
            trials.push(trial.with_ignored_flag(lacks.is_some_and(|what| !required(what))));
        }
    }
    // A test that fails panics in its trial: this is reached all the same.
    let conclusion = libtest_mimic::run(&arguments, trials);
    host::remove_box();
    conclusion.exit();
}
