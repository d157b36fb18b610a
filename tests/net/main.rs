//! The network module, on hosts of its own: each case runs in its own process and network namespace, with another machine on a wire.
//!
//! `net::setup` wants a single-threaded process, so a case is this program again, with `--case NAME`; the harness only looks at its end.

#[path = "../again/mod.rs"]
mod again;
mod cases;
mod firewall_cases;
mod world;

use std::process::{Command, ExitCode, Stdio};

use libtest_mimic::{Arguments, Failed, Trial};
use nix::sched::{CloneFlags, unshare};

type Case = (&'static str, fn());

fn main() -> ExitCode {
    let all = || cases::CASES.iter().chain(firewall_cases::CASES);
    let mut snippets = std::env::args().skip(1);
    if snippets.next().as_deref() == Some("--case") {
        let name = snippets.next().unwrap_or_default();
        let Some((_, case)) = all().chain(cases::MEASURES).find(|(other, _)| *other == name) else {
            eprintln!("there is no case `{name}`");
            return ExitCode::from(2);
        };
        unshare(CloneFlags::CLONE_NEWNET).expect("a network namespace needs root");
        case();
        return ExitCode::SUCCESS;
    }
    let arguments = Arguments::from_args();
    let root = nix::unistd::geteuid().is_root();
    let required = std::env::var("GPURUN_REQUIRE").is_ok_and(|list| list.split(',').any(|item| item == "root"));
    let trial = |&(name, _): &Case| {
        // A test that cannot run here is counted as ignored, unless this place promised to be able to.
        Trial::test(name, move || again::attempt(name, || run(name))).with_ignored_flag(!root && !required)
    };
    libtest_mimic::run(&arguments, all().map(trial).collect()).exit_code()
}

fn run(name: &str) -> Result<(), Failed> {
    let output = Command::new(std::env::current_exe()?).args(["--case", name]).stdin(Stdio::null()).output()?;
    match output.status.success() {
        true => Ok(()),
        false => Err(format!("{}: {}", output.status, String::from_utf8_lossy(&output.stderr)).into()),
    }
}
