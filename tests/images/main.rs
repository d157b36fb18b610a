//! Images from anywhere to anywhere: real registries, one that misbehaves, the tools of others, SIGKILL, full disks, flipped bits, hostile layers.
//!
//! Every test has a desk of its own (a store and a directory, see `fixture`). Run one with `cargo test --test images -- NAME`;
//! GPURUN_BIG=1 kills a hundred times where a commit's run kills fifteen times.

#[path = "../again/mod.rs"]
mod again;
mod bomb_cases;
mod crash_cases;
mod fault_cases;
mod fixture;
mod fuzz_cases;
mod hostile_cases;
#[path = "../../src/layer/testing.rs"]
mod layer;
mod oracle_cases;
mod parts_cases;
mod pull_cases;
mod registry;
mod rogue;
mod rogue_cases;
mod stage;
mod store_cases;
mod test_image;

use libtest_mimic::{Arguments, Failed, Trial};

/// A test: its name, the programs that it needs, itself.
type Test = (&'static str, &'static [&'static str], fn());

fn main() {
    let arguments = Arguments::from_args();
    // nohup, and a shell's `&`, ignore signals for what they start. Tests send these signals.
    gpurun::testing::sys::process::default_signals();
    gpurun::testing::sys::process::ignore_signal(nix::libc::SIGPIPE);
    let groups: [(&str, &[Test]); 10] = [
        ("pull", pull_cases::TESTS),
        ("rogue", rogue_cases::TESTS),
        ("parts", parts_cases::TESTS),
        ("store", store_cases::TESTS),
        ("crash", crash_cases::TESTS),
        ("fault", fault_cases::TESTS),
        ("hostile", hostile_cases::TESTS),
        ("bomb", bomb_cases::TESTS),
        ("oracle", oracle_cases::TESTS),
        ("fuzz", fuzz_cases::TESTS),
    ];
    let root = nix::unistd::geteuid().is_root();
    let promised =
        |what: &str| std::env::var("GPURUN_REQUIRE").is_ok_and(|list| list.split(',').any(|item| item == what));
    let mut trials = Vec::new();
    for (group, tests) in groups {
        for &(name, programs, test) in tests {
            let missing: Vec<_> = programs.iter().filter(|program| !fixture::is_installed(program)).copied().collect();
            let ready = root && missing.is_empty();
            // A daemon is installed for no test.
            let required = promised(if programs.contains(&"dockerd") { "docker" } else { "root" });
            let name = format!("{group}::{name}");
            let trial = Trial::test(name.clone(), move || {
                if !ready {
                    return Err(Failed::from(format!("needs root and {programs:?}; missing: {missing:?}")));
                }
                again::attempt(&name, || {
                    test();
                    Ok(())
                })
            });
            // A test that cannot run here is counted as ignored, unless this place promised to be able to.
            trials.push(trial.with_ignored_flag(!ready && !required));
        }
    }
    libtest_mimic::run(&arguments, trials).exit();
}
