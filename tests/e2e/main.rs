//! End to end: the real binary, real images, real containers, as root on this host.
//!
//! Every test has a host of its own (store, run directory, network namespace: see `host`). Run one with
//! `cargo test --test e2e -- NAME`.

mod archive;
mod change;
mod crash;
#[path = "../fake-driver/driver.rs"]
mod driver;
mod gpu;
mod gpu_isolation;
mod gpu_matrix;
mod host;
mod isolation;
mod life;
mod limits;
mod network;
mod run;
mod teach;

use libtest_mimic::{Arguments, Failed, Trial};

type Test = (&'static str, fn());

/// The test that wants systemd as pid 1 (tests/vm/suite --systemd).
const NEEDS_SYSTEMD: &str = "a_daemon_reload_changes_nothing";

fn main() {
    let arguments = Arguments::from_args();
    let rooms: [(&str, &[Test]); 11] = [
        ("run", run::TESTS),
        ("life", life::TESTS),
        ("limits", limits::TESTS),
        ("change", change::TESTS),
        ("teach", teach::TESTS),
        ("isolation", isolation::TESTS),
        ("network", network::TESTS),
        ("gpu", gpu::TESTS),
        ("gpu_isolation", gpu_isolation::TESTS),
        ("gpu_matrix", gpu_matrix::TESTS),
        ("crash", crash::TESTS),
    ];
    let root = nix::unistd::geteuid().is_root();
    let systemd = std::path::Path::new("/run/systemd/system").exists();
    let required =
        |what: &str| std::env::var("GPURUN_REQUIRE").is_ok_and(|list| list.split(',').any(|item| item == what));
    let mut trials = Vec::new();
    for (room, tests) in rooms {
        for &(name, test) in tests {
            let trial = Trial::test(format!("{room}::{name}"), move || {
                if !root {
                    return Err(Failed::from("needs root"));
                }
                if name == NEEDS_SYSTEMD && !systemd {
                    return Err(Failed::from("needs systemd as pid 1"));
                }
                test();
                Ok(())
            });
            // A test that cannot run here is counted as ignored, unless this place promised to be able to.
            let unfit = (!root && !required("root")) || (name == NEEDS_SYSTEMD && !systemd && !required("systemd"));
            trials.push(trial.with_ignored_flag(unfit));
        }
    }
    libtest_mimic::run(&arguments, trials).exit();
}
