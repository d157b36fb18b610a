//! `gpurun build`, `commit`, `cp`, `diff` and `export` with nothing but busybox: no network, no registry.
//!
//! The instruction cases share one store; what looks into a whole store, or kills, has a place of its own.

#[path = "../again/mod.rs"]
mod again;
mod bound;
mod cache;
mod cases;
mod container;
mod copies;
mod ended;
mod fixture;
mod hostile;
mod network;
mod outputs;
mod peer;
mod robust;
mod sources;

use std::process::ExitCode;

use libtest_mimic::{Arguments, Failed, Trial};

fn main() -> ExitCode {
    let arguments = Arguments::from_args();
    // nohup, and a shell's `&`, ignore signals for what they start. Tests send these signals.
    gpurun::testing::sys::process::default_signals();
    gpurun::testing::sys::process::ignore_signal(nix::libc::SIGPIPE);
    let root = nix::unistd::geteuid().is_root();
    if root {
        fixture::own_network();
    }
    let required =
        |what: &str| std::env::var("GPURUN_REQUIRE").is_ok_and(|list| list.split(',').any(|item| item == what));
    let ignored = !root && !required("root");
    // A failed assertion tells where it stands; the harness catches it as any test's.
    let trial = |name: String, run: Box<dyn Fn() + Send>| {
        Trial::test(name.clone(), move || {
            again::attempt(&name, || {
                run();
                Ok::<(), Failed>(())
            })
        })
        .with_ignored_flag(ignored)
    };
    let mut trials: Vec<Trial> = cases::CASES
        .iter()
        .map(|case| trial(format!("instruction::{}", case.name), Box::new(|| cases::check(case))))
        .collect();
    for (name, run) in hostile::TESTS
        .iter()
        .chain(robust::TESTS)
        .chain(sources::TESTS)
        .chain(container::TESTS)
        .chain(copies::TESTS)
        .chain(bound::TESTS)
        .chain(cache::TESTS)
        .chain(network::TESTS)
        .chain(outputs::TESTS)
        .chain(ended::TESTS)
    {
        trials.push(trial((*name).to_owned(), Box::new(run)));
    }
    let no_strace = ignored || (!peer::has_program("strace") && !required("strace"));
    for (name, run) in ended::TRACED {
        trials.push(trial((*name).to_owned(), Box::new(run)).with_ignored_flag(no_strace));
    }
    // A test that is required and cannot run fails.
    let no_peer = ignored || (!peer::is_there() && !required("buildah"));
    for peer in peer::PEERS {
        let compared = trial(format!("peer::{}", peer.name), Box::new(|| peer::compare(peer)));
        trials.push(compared.with_ignored_flag(no_peer));
    }
    let conclusion = libtest_mimic::run(&arguments, trials);
    fixture::clear();
    conclusion.exit_code()
}
