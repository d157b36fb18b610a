//! `gpurun url CONTAINER`: prints the URL of a running notebook, with its token, as the launch did.

use std::io::IsTerminal;
use std::time::Duration;

use clap::Args;
use serde::Serialize;

use super::resources::seconds;
use super::{Context, jupyter as bare, print};
use crate::jupyter::{self, Announcement, Auth, Probe, Secret};
use crate::record::{Entry, Secrets, State};
use crate::report::Report;
use crate::request::{JupyterRequest, Payload};

/// The exit status that is reported for a container that has ended.
const ENDED: i32 = 1;

#[derive(Debug, Args)]
#[command(
    after_help = "Prints the URL only after Jupyter has answered and refused a wrong login. With a password, the URL contains no login, and gpurun stores only the password's hash."
)]
pub(super) struct UrlArgs {
    /// Seconds to wait until Jupyter answers
    #[arg(long, value_name = "SECONDS", default_value_t = 30, allow_negative_numbers = true, value_parser = seconds)]
    ready_timeout: u64,
    /// Print a JSON object with all URLs
    #[arg(long)]
    json: bool,
    /// Name or ID of the container
    #[arg(value_name = "CONTAINER")]
    container: String,
}

#[derive(Debug, Serialize)]
struct All<'a> {
    #[serde(flatten)]
    announcement: &'a Announcement,
    /// `token` or `password`
    login: &'static str,
}

pub(super) fn run(args: &UrlArgs, context: &Context) -> Result<u8, Report> {
    let entry = context.records()?.find(&args.container)?;
    let name = &entry.record.name;
    let Payload::Jupyter(request) = &entry.record.request.payload else {
        return Err(Report::new(format!("container `{name}` has no Jupyter: it runs a command"))
            .with_hint(format!("start Jupyter with `gpurun --image {}`", entry.record.request.image)));
    };
    if entry.supervisor()?.is_none() {
        return Err(Report::new(format!("container `{name}` is not running"))
            .with_hint(format!("start it with `gpurun start {name}`")));
    }
    let auth = auth(&entry)?;
    let state = wait_ready(&entry, request, &auth, Duration::from_secs(args.ready_timeout))?;
    let pinned = jupyter::certificate(&entry.run_dir);
    let announcement = bare::announcement(&state, request, &auth, name, pinned.as_ref());
    if args.json {
        let login = if matches!(auth, Auth::Token(_)) { "token" } else { "password" };
        print::json(&All { announcement: &announcement, login })?;
    } else if std::io::stdout().is_terminal() {
        print::out(&format!("{announcement}\n"))?;
    } else {
        print::out(&format!("{}\n", announcement.url))?;
        print::say(&announcement.to_string());
    }
    Ok(0)
}

/// The login that the container was started with.
fn auth(entry: &Entry) -> Result<Auth, Report> {
    match entry.secrets()? {
        Some(Secrets::Token(token)) => Ok(Auth::Token(Secret::new(token))),
        Some(Secrets::Hashes(hashes)) if !hashes.is_empty() => Ok(Auth::Hash(hashes[0].clone())),
        _ => Err(Report::new(format!("container `{}` has no login for Jupyter on record", entry.record.name))),
    }
}

/// Waits until Jupyter answers, and returns the container's state, which has the published port.
fn wait_ready(entry: &Entry, request: &JupyterRequest, auth: &Auth, patience: Duration) -> Result<State, Report> {
    let name = &entry.record.name;
    let state = entry.state()?;
    let address = jupyter::address(&state, request.port);
    let base_url = jupyter::base_url(&request.args);
    let mark = jupyter::probe_mark(&entry.run_dir).unwrap_or_default();
    let pinned = jupyter::certificate(&entry.run_dir);
    let probe = Probe { address, base_url: &base_url, auth, tls: pinned.as_ref(), mark: &mark };
    let mut ended = || entry.supervisor().is_ok_and(|pid| pid.is_none()).then_some(ENDED);
    match jupyter::wait_ready(&probe, patience, &mut ended) {
        Ok(_) => Ok(state),
        Err(error) => {
            let report = Report::from(error).under(format!("cannot print the URL of container `{name}`"));
            let reason = if state.paused {
                format!("resume the container: `gpurun resume {name}`")
            } else {
                format!("read its log with `gpurun logs {name}`")
            };
            Err(report.with_hint(reason))
        }
    }
}
