//! Questions to a running Jupyter: what its kernels do.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::Path;
use std::time::{Duration, Instant};

use serde::Deserialize;

use super::http::{self, Request, Server};
use super::launch::{base_url, certificate, probe_mark};
use crate::record::{Entry, State};
use crate::request::JupyterRequest;

/// How long Jupyter may take to answer.
const PATIENCE: Duration = Duration::from_secs(20);

/// The states of a kernel that runs no code. A kernel that starts uses CPU, and has been active just now. A kernel to
/// which no client has ever connected keeps the state `starting`.
const AT_REST: [&str; 5] = ["idle", "dead", "starting", "restarting", "autorestarting"];

/// The work of a server's kernels.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Kernels {
    /// Whether a kernel runs code.
    pub busy: bool,
    /// When a kernel last did something, in nanoseconds since 1970.
    pub last: Option<u64>,
}

/// One entry of `GET /api/kernels` (Jupyter's REST API).
#[derive(Debug, Deserialize)]
struct Kernel {
    execution_state: Option<String>,
    last_activity: Option<String>,
}

/// Returns the host address and port on which Jupyter's port is published.
pub(crate) fn published(state: &State, port: u16) -> (IpAddr, u16) {
    let published =
        state.ports.iter().find(|published| published.container_port == port && published.protocol == "tcp");
    match published {
        Some(published) => (published.host_ip.parse().unwrap_or(Ipv4Addr::UNSPECIFIED.into()), published.host_port),
        None => (Ipv4Addr::LOCALHOST.into(), port),
    }
}

/// Returns the address at which this host reaches Jupyter.
pub(crate) fn address(state: &State, port: u16) -> SocketAddr {
    let (ip, port) = published(state, port);
    SocketAddr::from((if ip.is_unspecified() { Ipv4Addr::LOCALHOST.into() } else { ip }, port))
}

/// Asks a container's Jupyter for its kernels. Every server accepts a token, which gpurun wrote into its configuration,
/// also if users log in with a password.
pub(crate) fn kernels(entry: &Entry, state: &State, jupyter: &JupyterRequest) -> Result<Kernels, String> {
    let token = token(&entry.run_dir).ok_or("its configuration has no token")?;
    let mark = probe_mark(&entry.run_dir).unwrap_or_default();
    let path = format!("{}api/kernels?gpurun={mark}", base_url(&jupyter.args));
    let headers = [("Authorization", format!("token {token}"))];
    let request = Request { method: "GET", path: &path, headers: &headers, body: None };
    let pinned = certificate(&entry.run_dir);
    let server = Server { address: address(state, jupyter.port), tls: pinned.as_ref() };
    let (response, body) =
        http::fetch(server, &request, Instant::now() + PATIENCE).map_err(|error| error.to_string())?;
    if response.status != 200 {
        return Err(format!("HTTP status {}", response.status));
    }
    parse(&body).ok_or_else(|| "the list of kernels is not JSON".into())
}

/// The token in the configuration that gpurun wrote for a running server.
fn token(run_dir: &Path) -> Option<String> {
    let text = std::fs::read(run_dir.join("jupyter/jupyter_notebook_config.json")).ok()?;
    let config: serde_json::Value = serde_json::from_slice(&text).ok()?;
    config["NotebookApp"]["token"].as_str().filter(|token| !token.is_empty()).map(str::to_owned)
}

fn parse(body: &[u8]) -> Option<Kernels> {
    let all: Vec<Kernel> = serde_json::from_slice(body).ok()?;
    // A server that does not report a state may run code.
    let is_busy = |kernel: &Kernel| kernel.execution_state.as_deref().is_none_or(|state| !AT_REST.contains(&state));
    let busy = all.iter().any(is_busy);
    let nanos = |kernel: &Kernel| {
        let time = chrono::DateTime::parse_from_rfc3339(kernel.last_activity.as_deref()?).ok()?;
        time.timestamp_nanos_opt()?.try_into().ok()
    };
    Some(Kernels { busy, last: all.iter().filter_map(nanos).max() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_of_kernels() {
        let one = |state: &str, time: &str| {
            format!(
                r#"{{"id":"x","name":"python3","last_activity":"{time}","execution_state":"{state}","connections":1}}"#
            )
        };
        let parsed = |list: &[String]| parse(format!("[{}]", list.join(",")).as_bytes()).unwrap();
        assert_eq!(parsed(&[]), Kernels { busy: false, last: None });
        let idle = one("idle", "2026-01-02T03:04:05.000000Z");
        let idle = parsed(&[idle, one("idle", "2026-01-02T03:04:06.000000Z")]);
        assert_eq!(idle, Kernels { busy: false, last: Some(1_767_323_046_000_000_000) });
        assert!(parsed(&[one("idle", "x"), one("busy", "x")]).busy && !parsed(&[one("starting", "x")]).busy);
        assert!(parse(b"[{}]").unwrap().busy && parse(b"<html>").is_none() && parse(b"{}").is_none());
    }
}
