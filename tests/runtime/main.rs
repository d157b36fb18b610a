//! The module `runtime` on real containers.
//!
//! libcontainer needs a single-threaded process and the test harness is none: every case runs in a process of its own (this program again,
//! with `--case NAME`), in a private mount namespace, on a root file system made of one static busybox. What has no root is counted as
//! ignored; with `GPURUN_REQUIRE=root` it fails.

#[path = "../again/mod.rs"]
mod again;
mod cases;
mod exec_cases;
mod fixture;
mod start_cases;

use std::process::{Command, ExitCode};

use libtest_mimic::{Arguments, Failed, Trial};

fn main() -> ExitCode {
    let mut snippets = std::env::args().skip(1);
    match snippets.next().as_deref() {
        // The helper is this program again, as it is gpurun again for gpurun.
        Some(gpurun::testing::runtime::EXEC_HELPER) => {
            let fds: Vec<i32> = snippets.filter_map(|snippet| snippet.parse().ok()).collect();
            return ExitCode::from(gpurun::testing::runtime::exec_helper_main(&fds));
        }
        Some("--case") => return run_here(&snippets.next().unwrap_or_default()),
        Some("--measure") => return fixture::measure::main(snippets.next().and_then(|n| n.parse().ok()).unwrap_or(40)),
        _ => {}
    }
    let arguments = Arguments::from_args();
    let required = std::env::var("GPURUN_REQUIRE").is_ok_and(|list| list.split(',').any(|name| name == "root"));
    let able = nix::unistd::geteuid().is_root() && fixture::busybox().is_some();
    let trials: Vec<Trial> = all()
        .map(|(name, _)| {
            Trial::test(name, move || again::attempt(name, || run_apart(name))).with_ignored_flag(!able && !required)
        })
        .collect();
    // libcgroups fails where two make one directory at the same time under version 2 (it looks, then makes); gpurun makes its own beforehand.
    if able && !arguments.list {
        fixture::cgroup_parents().into_iter().for_each(|path| drop(std::fs::create_dir(path)));
    }
    let conclusion = libtest_mimic::run(&arguments, trials);
    // Only empty ones go, so another run at the same time is not disturbed.
    fixture::cgroup_parents().into_iter().for_each(|path| drop(std::fs::remove_dir(path)));
    conclusion.exit_code()
}

fn all() -> impl Iterator<Item = (&'static str, fn())> {
    start_cases::CASES.iter().chain(exec_cases::CASES).chain(cases::CASES).copied()
}

fn run_apart(name: &str) -> Result<(), Failed> {
    let own = std::env::current_exe()?;
    let output = Command::new(own).args(["--case", name]).env("RUST_BACKTRACE", "0").output()?;
    if output.status.success() {
        return Ok(());
    }
    let printed = String::from_utf8_lossy(&output.stderr);
    Err(format!("{}\n{printed}", output.status).into())
}

fn run_here(name: &str) -> ExitCode {
    let Some((_, case)) = all().find(|(other, _)| *other == name) else {
        eprintln!("there is no case `{name}`");
        return ExitCode::FAILURE;
    };
    // The one case in which it matters enters a namespace by itself.
    if std::env::var_os("SEAL").is_none() {
        fixture::private_mounts();
    }
    match std::panic::catch_unwind(case) {
        Ok(()) => ExitCode::SUCCESS,
        Err(_) => ExitCode::FAILURE,
    }
}
