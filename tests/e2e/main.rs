//! End to end: the real binary, real images, real containers, as root on this host.
//!
//! Every test has a host of its own (store, run directory, network namespace: see `host`). Run one with
//! `cargo test --test e2e -- NAME`.

#[path = "../again/mod.rs"]
mod again;
mod archive;
mod boot;
mod calls;
mod change;
mod cli;
mod compose;
mod compose_gpu;
mod compose_lab;
mod compose_lock;
mod compose_networks;
mod compose_projects;
mod compose_start;
mod crash;
mod docker;
#[path = "../fake-driver/driver.rs"]
mod driver;
mod errors;
mod exit_codes;
mod flags;
mod freeze;
mod gpu;
mod gpu_filter;
mod gpu_layer;
mod gpu_leases;
mod gpu_matrix;
mod gpu_toolkit;
mod health;
mod host;
mod idle;
mod isolation;
mod keep;
mod kills;
mod life;
mod limits;
mod mounts;
mod network;
mod networks;
mod oom;
mod oracle;
mod podman;
mod queue;
mod race;
mod recipe;
mod resolver;
mod run;
mod run_flags;
mod run_shared;
mod sharing;
mod slurm;
mod slurm_plugin;
mod storage;
mod streams;
mod teach;
mod top;
mod trouble;
mod upgrade;

use std::sync::Arc;

use libtest_mimic::{Arguments, Failed, Trial};

type Test = (&'static str, fn());

/// The tests that want systemd as pid 1 (tests/vm/suite --systemd).
const NEEDS_SYSTEMD: [&str; 3] =
    ["a_daemon_reload_changes_nothing", "a_delegated_scope_is_made_room_in", "a_unit_starts_containers_at_boot"];
/// The test that wants swap (tests/vm has some).
const NEEDS_SWAP: &str = "a_container_swaps_what_it_may";

/// What a test needs and this host has not.
fn lacks(test: &str) -> Option<&'static str> {
    let name = test.rsplit(':').next().unwrap_or(test);
    let swap = || std::fs::read_to_string("/proc/swaps").is_ok_and(|text| text.lines().count() > 1);
    if !nix::unistd::geteuid().is_root() {
        return Some("root");
    }
    match name {
        _ if test.starts_with("compose_projects::") && !compose_projects::has_files() => {
            Some("a checkout with its compose files")
        }
        _ if test.starts_with("upgrade::") && upgrade::binary().is_none() => Some("earlier-release"),
        _ if test.starts_with("slurm::") && !slurm::is_possible() => Some("slurm"),
        name if NEEDS_SYSTEMD.contains(&name) && !host::runs_systemd() => Some("systemd"),
        "real_programs_find_containers" if resolver::lacks_programs() => Some("dig, node, skopeo and musl-gcc"),
        NEEDS_SWAP if !swap() => Some("swap"),
        name if top::NEED_TMUX.contains(&name) && !has_program("tmux") => Some("tmux"),
        name if errors::TESTS.iter().any(|(other, _)| *other == name) && !errors::has_snapshots() => {
            Some("a checkout with its snapshots")
        }
        _ => None,
    }
}

fn has_program(name: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).any(|dir| dir.join(name).exists())
}

/// Runs a test on a thread of its own. A test that hangs fails by name, and the run goes on.
fn within_time(test: Arc<dyn Fn() + Send + Sync>) -> Result<(), Failed> {
    let most = std::time::Duration::from_secs(if host::slow() { 3600 } else { 1200 });
    let (sender, receiver) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        let _ = sender.send(std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| test())));
    });
    match receiver.recv_timeout(most) {
        Ok(Ok(())) => Ok(()),
        Ok(Err(panic)) => std::panic::resume_unwind(panic),
        Err(_) => Err(Failed::from(format!("not done after {most:?}"))),
    }
}

fn main() {
    let arguments = Arguments::from_args();
    // nohup, and a shell's `&`, ignore signals for what they start. Tests send these signals.
    gpurun::testing::sys::process::default_signals();
    gpurun::testing::sys::process::ignore_signal(nix::libc::SIGPIPE);
    let groups: &[(&str, &[Test])] = &[
        ("run", run::TESTS),
        ("sharing", sharing::TESTS),
        ("slurm", slurm::TESTS),
        ("slurm::plugin", slurm_plugin::TESTS),
        ("life", life::TESTS),
        ("streams", streams::TESTS),
        ("keep", keep::TESTS),
        ("kills", kills::TESTS),
        ("trouble", trouble::TESTS),
        ("queue", queue::TESTS),
        ("race", race::TESTS),
        ("storage", storage::TESTS),
        ("freeze", freeze::TESTS),
        ("flags", flags::TESTS),
        ("run_flags", run_flags::TESTS),
        ("run_shared", run_shared::TESTS),
        ("limits", limits::TESTS),
        ("oom", oom::TESTS),
        ("oracle", oracle::TESTS),
        ("change", change::TESTS),
        ("cli", cli::TESTS),
        ("errors", errors::TESTS),
        ("exit_codes", exit_codes::TESTS),
        ("compose", compose::TESTS),
        ("compose_start", compose_start::TESTS),
        ("compose_gpu", compose_gpu::TESTS),
        ("compose_lab", compose_lab::TESTS),
        ("compose_lock", compose_lock::TESTS),
        ("compose_networks", compose_networks::TESTS),
        ("compose_projects", compose_projects::TESTS),
        ("docker", docker::TESTS),
        ("podman", podman::TESTS),
        ("health", health::TESTS),
        ("recipe", recipe::TESTS),
        ("boot", boot::TESTS),
        ("teach", teach::TESTS),
        ("top", top::TESTS),
        ("idle", idle::TESTS),
        ("isolation", isolation::TESTS),
        ("calls", calls::TESTS),
        ("mounts", mounts::TESTS),
        ("network", network::TESTS),
        ("networks", networks::TESTS),
        ("resolver", resolver::TESTS),
        ("gpu", gpu::TESTS),
        ("gpu_leases", gpu_leases::TESTS),
        ("gpu_filter", gpu_filter::TESTS),
        ("gpu_layer", gpu_layer::TESTS),
        ("gpu_matrix", gpu_matrix::TESTS),
        ("gpu_toolkit", gpu_toolkit::TESTS),
        ("crash", crash::TESTS),
        ("upgrade", upgrade::TESTS),
    ];
    let required =
        |what: &str| std::env::var("GPURUN_REQUIRE").is_ok_and(|list| list.split(',').any(|item| item == what));
    let mut tests: Vec<(String, Arc<dyn Fn() + Send + Sync>)> = Vec::new();
    for &(group, table) in groups {
        for &(name, test) in table {
            tests.push((format!("{group}::{name}"), Arc::new(test)));
        }
    }
    for (name, case) in kills::by_name() {
        tests.push((format!("kills::{name}"), Arc::new(|| kills::check(case))));
    }
    let mut trials = Vec::new();
    for (name, test) in tests {
        let lacks = lacks(&name);
        let trial = Trial::test(name.clone(), move || {
            if let Some(what) = lacks {
                return Err(Failed::from(format!("needs {what}")));
            }
            let began = std::time::Instant::now();
            again::attempt(&name, || within_time(Arc::clone(&test)))?;
            if std::env::var_os("GPURUN_TEST_TIMES").is_some_and(|value| !value.is_empty()) {
                println!("{:7.1} s  {name}", began.elapsed().as_secs_f64());
            }
            Ok(())
        });
        // A test that cannot run here is counted as ignored, unless this place promised to be able to.
        trials.push(trial.with_ignored_flag(lacks.is_some_and(|what| !required(what))));
    }
    // A test that fails panics in its trial: this is reached all the same.
    let conclusion = libtest_mimic::run(&arguments, trials);
    host::remove_box();
    conclusion.exit();
}
