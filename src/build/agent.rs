//! Forwards an SSH agent into one `RUN --mount=type=ssh`.
//!
//! The step gets a socket of its own, `/run/gpurun/ID/build/agent-N`, which is removed with the other files of the step.
//! A thread of the build accepts its connections and copies the bytes to the caller's agent and back, without reading
//! them. The agent only sees root, which it accepts; the user of the step needs only access to the step's socket.
//! The step has no path to the agent when it has ended: the socket is closed with its [`Forward`].

use std::io::{self, Write};
use std::net::Shutdown;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{PermissionsExt, chown};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

/// Maximum number of connections at a time. `ssh` and `git` use one each.
const CONNECTIONS: usize = 32;

/// The socket of an agent for a step.
#[derive(Debug, Clone)]
pub(super) struct AgentSocket {
    /// The caller's agent.
    pub agent: PathBuf,
    pub target: PathBuf,
    pub mode: u32,
    pub owner: (u32, u32),
}

/// A socket that forwards until it is dropped.
#[derive(Debug)]
pub(super) struct Forward {
    listener: UnixListener,
    is_over: Arc<AtomicBool>,
}

impl Forward {
    /// Creates the socket `dir/name` and forwards its connections.
    pub(super) fn start(dir: &Path, name: &str, socket: &AgentSocket) -> io::Result<Self> {
        let opened = std::fs::File::open(dir)?;
        // The path of a socket is at most 107 bytes long.
        let path = PathBuf::from(format!("/proc/self/fd/{}/{name}", opened.as_raw_fd()));
        let listener = UnixListener::bind(&path)?;
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(socket.mode))?;
        chown(&path, Some(socket.owner.0), Some(socket.owner.1))?;
        let is_over = Arc::new(AtomicBool::new(false));
        let (accepting, over, agent) = (listener.try_clone()?, is_over.clone(), socket.agent.clone());
        std::thread::Builder::new().name("agent".into()).spawn(move || accept(&accepting, &agent, &over))?;
        Ok(Self { listener, is_over })
    }
}

impl Drop for Forward {
    fn drop(&mut self) {
        self.is_over.store(true, Ordering::Release);
        // Ends the thread's `accept`. It fails only if the socket is closed already.
        let _ = nix::sys::socket::shutdown(self.listener.as_raw_fd(), nix::sys::socket::Shutdown::Both);
    }
}

fn accept(listener: &UnixListener, agent: &Path, is_over: &AtomicBool) {
    let count = Arc::new(AtomicUsize::new(0));
    for connection in listener.incoming() {
        if is_over.load(Ordering::Acquire) {
            return;
        }
        let Ok(connection) = connection else { continue };
        // One that is too many, or that finds no agent, is closed: `ssh` then goes on without an agent.
        if count.load(Ordering::Acquire) >= CONNECTIONS {
            continue;
        }
        let Ok(agent) = UnixStream::connect(agent) else { continue };
        let open = count.clone();
        open.fetch_add(1, Ordering::AcqRel);
        let forwarding = std::thread::Builder::new().name("agent".into()).spawn(move || {
            both_ways(&connection, &agent);
            open.fetch_sub(1, Ordering::AcqRel);
        });
        if forwarding.is_err() {
            count.fetch_sub(1, Ordering::AcqRel);
        }
    }
}

fn both_ways(one: &UnixStream, other: &UnixStream) {
    std::thread::scope(|scope| {
        scope.spawn(|| copy(other, one));
        copy(one, other);
    });
}

/// Copies until the end, and then ends the other direction's wait as well.
fn copy(mut from: &UnixStream, mut to: &UnixStream) {
    let _ = io::copy(&mut from, &mut to);
    let _ = to.flush();
    let _ = to.shutdown(Shutdown::Write);
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use super::*;

    #[test]
    fn bytes_go_to_the_agent_and_back_until_the_step_ends() {
        let dir = tempfile::tempdir().unwrap();
        let agent = dir.path().join("agent");
        let server = UnixListener::bind(&agent).unwrap();
        std::thread::spawn(move || {
            for connection in server.incoming() {
                let mut connection = connection.unwrap();
                let mut bytes = [0; 4];
                connection.read_exact(&mut bytes).unwrap();
                bytes.reverse();
                connection.write_all(&bytes).unwrap();
            }
        });
        let owner = (nix::unistd::geteuid().as_raw(), nix::unistd::getegid().as_raw());
        let socket = AgentSocket { agent, target: "/x".into(), mode: 0o600, owner };
        let forward = Forward::start(dir.path(), "forwarded", &socket).unwrap();
        let path = dir.path().join("forwarded");
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        for _ in 0..2 {
            let mut client = UnixStream::connect(&path).unwrap();
            client.write_all(b"abcd").unwrap();
            let mut answer = String::new();
            client.read_to_string(&mut answer).unwrap();
            assert_eq!(answer, "dcba");
        }
        drop(forward);
        let mut refused = String::new();
        let rest = UnixStream::connect(&path).and_then(|mut client| client.read_to_string(&mut refused));
        assert!(rest.is_err() && refused.is_empty(), "closed");
    }
}
