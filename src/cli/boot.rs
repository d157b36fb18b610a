//! `gpurun boot`: starts containers when the host boots, through one systemd unit.
//!
//! ```text
//! /etc/systemd/system/gpurun-boot.service     created by `enable`, removed by `disable`
//! ```
//!
//! The unit runs `gpurun boot start` at boot, and `gpurun boot stop` when the host shuts down, while the network and the
//! file systems are still there. It is not a daemon: between the two, no process belongs to it. The supervisors leave its
//! cgroup (`Host::leave_login`), so that containers do not depend on the state of the unit.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use clap::{Args, Subcommand};
use serde_json::json;

use super::boot_unit::{UNIT, UNIT_DIR, has_systemd, is_enabled};
use super::own_program::own_program;
use super::{Context, containers, print};
use crate::launch;
use crate::record::{Entry, Records};
use crate::report::Report;
use crate::request::RestartPolicy;
use crate::sys::process;

/// How long containers wait for the driver of their GPUs.
const GPUS: Duration = Duration::from_secs(120);
const LOOK: Duration = Duration::from_millis(500);
/// How long a container may need for its end beyond its stop timeout.
const ENDING: Duration = Duration::from_secs(20);

#[derive(Debug, Args)]
pub(super) struct BootArgs {
    #[command(subcommand)]
    command: BootCommand,
}

#[derive(Debug, Subcommand)]
enum BootCommand {
    /// Start containers with `--restart always` or `unless-stopped` when this host boots
    Enable,
    /// Do not start containers at boot any more
    Disable,
    /// Show whether containers start at boot, and which
    Status(StatusArgs),
    /// Start the containers that start at boot; the systemd unit runs this
    Start,
    /// Stop all containers, and start those with a restart policy again at the next boot; the systemd unit runs this
    Stop(StopArgs),
}

#[derive(Debug, Args)]
struct StatusArgs {
    /// Print JSON
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Args)]
struct StopArgs {
    /// Do nothing unless systemd is shutting this host down
    #[arg(long)]
    at_shutdown: bool,
}

pub(super) fn run(args: &BootArgs, context: &Context) -> Result<u8, Report> {
    match &args.command {
        BootCommand::Enable => enable(context),
        BootCommand::Disable => disable(),
        BootCommand::Status(args) => status(args, context),
        BootCommand::Start => start(context),
        BootCommand::Stop(args) => stop(args, context),
    }
}

fn unit_path() -> PathBuf {
    Path::new(UNIT_DIR).join(UNIT)
}

/// The line that a host without systemd can run at boot.
fn command_line(program: &Path, context: &Context) -> Vec<String> {
    let mut words = vec![program.display().to_string()];
    for (flag, dir, usual) in
        [("--root", &context.root, "/var/lib/gpurun"), ("--run-dir", &context.run_dir, "/run/gpurun")]
    {
        if dir != Path::new(usual) {
            words.extend([flag.to_owned(), dir.display().to_string()]);
        }
    }
    words.push("boot".to_owned());
    words
}

fn need_systemd(context: &Context, what: &str) -> Result<(), Report> {
    if has_systemd() {
        return Ok(());
    }
    let program =
        std::env::current_exe().map_err(|error| Report::new("cannot find gpurun's own path").with_cause(error))?;
    let line = command_line(&program, context).join(" ");
    Err(Report::new(format!("cannot {what}: systemd does not run on this host"))
        .with_hint(format!("run `{line} start` at boot, for example through root's crontab: `@reboot {line} start`")))
}

fn enable(context: &Context) -> Result<u8, Report> {
    need_systemd(context, "enable the start at boot")?;
    let program = own_program("enable the start at boot", "at every boot", "boot enable")?;
    let path = unit_path();
    let text = unit(&command_line(&program, context), &context.root);
    crate::durable::write_atomic(&path, text.as_bytes())
        .and_then(|()| std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o644)))
        .map_err(|error| Report::new(format!("cannot write `{}`", path.display())).with_cause(error))?;
    systemctl(&["daemon-reload"])?;
    systemctl(&["enable", "--quiet", UNIT])?;
    // Started now, the unit is active and stops containers at the shutdown. No container starts: their boot is this one.
    systemctl(&["start", UNIT])?;
    print::out("containers with `--restart always` or `unless-stopped` start at boot\n")?;
    Ok(0)
}

fn disable() -> Result<u8, Report> {
    let path = unit_path();
    if path.symlink_metadata().is_ok() {
        if has_systemd() {
            systemctl(&["disable", "--now", "--quiet", UNIT])?;
        }
        std::fs::remove_file(&path)
            .map_err(|error| Report::new(format!("cannot remove `{}`", path.display())).with_cause(error))?;
        if has_systemd() {
            systemctl(&["daemon-reload"])?;
        }
    }
    print::out("no containers start at boot\n")?;
    Ok(0)
}

fn systemctl(args: &[&str]) -> Result<(), Report> {
    let output = Command::new("systemctl")
        .args(args)
        .stdin(Stdio::null())
        .output()
        .map_err(|error| Report::new("cannot run `systemctl`").with_cause(error))?;
    if output.status.success() {
        return Ok(());
    }
    Err(Report::new(format!("`systemctl {}` failed", args.join(" ")))
        .with_cause(String::from_utf8_lossy(&output.stderr).trim()))
}

/// The unit. Quotes and escapes are those of systemd.syntax(7).
fn unit(command: &[String], root: &Path) -> String {
    let quoted = |word: &str| {
        let word = word.replace('\\', "\\\\").replace('"', "\\\"").replace('%', "%%").replace('$', "$$");
        format!("\"{word}\"")
    };
    let command = command.iter().map(|word| quoted(word)).collect::<Vec<_>>().join(" ");
    let root = quoted(&root.display().to_string()).replace("$$", "$");
    format!(
        "# Written by `gpurun boot enable`; `gpurun boot disable` removes it.
[Unit]
Description=Containers of gpurun that start at boot
Wants=network-online.target
After=local-fs.target network-online.target nftables.service firewalld.service
After=nvidia-persistenced.service nvidia-cdi-refresh.service
RequiresMountsFor={root}

[Service]
Type=oneshot
RemainAfterExit=yes
ExecStart={command} start
ExecStop={command} stop --at-shutdown
TimeoutStartSec=infinity
TimeoutStopSec=300

[Install]
WantedBy=multi-user.target
"
    )
}

/// The containers that start at the next boot, if nothing changes until then.
fn candidates(records: &Records) -> Result<Vec<(Entry, RestartPolicy)>, Report> {
    let mut all = Vec::new();
    for entry in records.list()? {
        let (policy, state) = (entry.record.request.restart, entry.state_shown()?);
        if launch::starts_at_boot(&entry.record, &state, Some("the next boot")) {
            all.push((entry, policy));
        }
    }
    Ok(all)
}

fn status(args: &StatusArgs, context: &Context) -> Result<u8, Report> {
    let all = candidates(&context.records()?)?;
    if args.json {
        let names: Vec<&str> = all.iter().map(|(entry, _)| entry.record.name.as_str()).collect();
        print::json(&json!({ "Available": has_systemd(), "Enabled": is_enabled(), "Containers": names }))?;
        return Ok(0);
    }
    let how = match (has_systemd(), is_enabled()) {
        (false, _) => "not available: systemd does not run on this host".to_owned(),
        (true, true) => format!("enabled ({UNIT})"),
        (true, false) => "disabled; `gpurun boot enable` enables it".to_owned(),
    };
    print::out(&format!("start at boot: {how}\n"))?;
    for (entry, policy) in all {
        print::out(&format!("{}  {policy}\n", entry.record.name))?;
    }
    Ok(0)
}

/// Starts the containers, the oldest first, and prints their names. Those with GPUs come last, because they may have to
/// wait for the driver. A failure does not keep the others from starting.
fn start(context: &Context) -> Result<u8, Report> {
    let boot = process::boot_id();
    let mut all = Vec::new();
    for entry in context.records()?.list()? {
        let state = entry.state_shown()?;
        if entry.supervisor()?.is_none() && launch::starts_at_boot(&entry.record, &state, boot.as_deref()) {
            all.push(entry);
        }
    }
    all.sort_by_key(|entry| (entry.record.request.gpus.is_some(), entry.record.created));
    let deadline = Instant::now() + GPUS;
    let mut failed = 0;
    for entry in &all {
        let name = &entry.record.name;
        wait_for_gpus(entry, context, deadline);
        match containers::start_one(entry, context) {
            Ok(()) => print::out(&format!("{name}\n"))?,
            Err(report) => {
                print::say(&report.under(format!("cannot start container `{name}` at boot")).to_string());
                failed += 1;
            }
        }
    }
    match failed {
        0 => Ok(0),
        count => Err(Report::new(format!("{count} of {} containers did not start at boot", all.len()))
            .with_hint("start them with `gpurun start NAME`; `gpurun ps -a` lists them")),
    }
}

/// Waits until the driver of the GPUs that a container requests is loaded, but not beyond the deadline.
fn wait_for_gpus(entry: &Entry, context: &Context, deadline: Instant) {
    let mut told = false;
    while !launch::gpus_are_ready(&context.run_dir, &entry.record.request) && Instant::now() < deadline {
        if !told {
            print::say(&format!(
                "gpurun: container `{}` waits up to {} s for the driver of its GPUs",
                entry.record.name,
                GPUS.as_secs()
            ));
            told = true;
        }
        std::thread::sleep(LOOK);
    }
}

/// Ends all containers like a shutdown: their supervisors get SIGTERM and stop them. No container counts as stopped by a
/// user.
fn stop(args: &StopArgs, context: &Context) -> Result<u8, Report> {
    if args.at_shutdown && !is_shutting_down() {
        print::say("gpurun: the containers keep running; `gpurun stop --all` stops them");
        return Ok(0);
    }
    let mut ending = Vec::new();
    for entry in context.records()?.list()? {
        let Some(pid) = entry.supervisor()? else { continue };
        let Ok(supervisor) = process::open_pidfd(pid) else { continue };
        // The pid may have been reused before the descriptor was open.
        if entry.supervisor()? == Some(pid) && process::signal(&supervisor, libc::SIGTERM).is_ok() {
            ending.push((supervisor, entry.record.request.stop_timeout));
        }
    }
    let began = Instant::now();
    for (supervisor, timeout) in ending {
        let patience = Duration::from_secs(timeout).saturating_add(ENDING);
        process::wait_pidfd(&supervisor, patience.saturating_sub(began.elapsed()));
    }
    Ok(0)
}

fn is_shutting_down() -> bool {
    let output = Command::new("systemctl").arg("is-system-running").stdin(Stdio::null()).output();
    output.is_ok_and(|output| output.stdout.trim_ascii() == b"stopping")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_unit_quotes_its_command() {
        let words = ["/opt/a b/gpurun", "--root", "/data/50%$x", "boot"].map(str::to_owned);
        let unit = unit(&words, Path::new("/data/50%$x"));
        assert!(
            unit.contains("\nExecStart=\"/opt/a b/gpurun\" \"--root\" \"/data/50%%$$x\" \"boot\" start\n"),
            "{unit}"
        );
        assert!(unit.contains("\nRequiresMountsFor=\"/data/50%%$x\"\n"), "{unit}");
    }
}
