//! Questions about a container that may block: to its Jupyter and to the GPU driver. A short-lived process of its own
//! asks them (`gpurun watch-probe`), because the supervisor must neither block nor load the driver's library.

use std::collections::BTreeSet;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use crate::gpu::usage::{self, Usage};
use crate::gpu::{self, lease};
use crate::launch::driver_root;
use crate::record::{Entry, Records, State};
use crate::report::Report;
use crate::request::Payload;
use crate::{clock, jupyter};

/// The internal subcommand.
pub(crate) const SUBCOMMAND: &str = "watch-probe";
/// The driver may take a minute to initialize the GPUs.
const PATIENCE: Duration = Duration::from_secs(90);
/// Maximum size of an answer in bytes.
const MAX: usize = 64 << 10;

/// The answer.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Answer {
    /// Whether a kernel of Jupyter or a GPU works now, as far as it can be found out.
    pub working: bool,
    /// How long ago a kernel last did something, in nanoseconds.
    pub idle_for: Option<u64>,
    /// What could not be found out. The container then counts as working.
    pub unknown: Option<String>,
    /// Bytes of GPU memory that the container's processes use.
    pub gpu_memory: Option<u64>,
}

/// A process that asks.
#[derive(Debug)]
pub(super) struct Probe {
    child: Child,
    text: Vec<u8>,
    deadline: Instant,
}

impl Probe {
    pub(super) fn start(root: &Path, run_dir: &Path, id: &str) -> io::Result<Self> {
        let mut command = Command::new("/proc/self/exe");
        command.arg(SUBCOMMAND).arg("--root").arg(root).arg("--run-dir").arg(run_dir).arg(id).current_dir("/");
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null());
        crate::sys::process::pass_only(&mut command, &[]);
        let child = command.spawn()?;
        if let Some(stdout) = &child.stdout {
            crate::sys::process::set_nonblocking(stdout)?;
        }
        Ok(Self { child, text: Vec::new(), deadline: Instant::now() + PATIENCE })
    }

    pub(super) fn fd(&self) -> Option<BorrowedFd<'_>> {
        self.child.stdout.as_ref().map(AsFd::as_fd)
    }

    pub(super) fn deadline(&self) -> Instant {
        self.deadline
    }

    /// Reads what has arrived. Returns the answer once it is complete.
    pub(super) fn read(&mut self) -> Option<Answer> {
        let mut buffer = [0; 4096];
        loop {
            let stdout = self.child.stdout.as_mut()?;
            match stdout.read(&mut buffer) {
                Ok(0) => break,
                Ok(count) if self.text.len() + count <= MAX => self.text.extend_from_slice(&buffer[..count]),
                Ok(_) => break,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return None,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => break,
            }
        }
        let unknown = || Answer { unknown: Some("the process that asks failed".into()), ..Answer::default() };
        Some(serde_json::from_slice(&self.text).unwrap_or_else(|_| unknown()))
    }
}

impl Drop for Probe {
    fn drop(&mut self) {
        // The supervisor reaps all of its children, so this one may be gone already.
        if let Ok(None) = self.child.try_wait() {
            let _ = self.child.kill();
        }
    }
}

/// The subcommand: writes the answer to standard output as JSON.
pub(crate) fn main(root: &Path, run_dir: &Path, id: &str) -> Result<u8, Report> {
    let records = Records::open(root, run_dir)?;
    let entry = records.get(id)?.ok_or_else(|| Report::new(format!("there is no record of the container {id}")))?;
    let state = entry.state()?;
    let mut answer = Answer::default();
    ask_jupyter(&entry, &state, &mut answer);
    ask_driver(&records, &entry, &state, &mut answer)?;
    let text = serde_json::to_string(&answer).map_err(|error| Report::new("cannot write JSON").with_cause(error))?;
    writeln!(io::stdout(), "{text}").map_err(|error| Report::new("cannot write the answer").with_cause(error))?;
    Ok(0)
}

fn ask_jupyter(entry: &Entry, state: &State, answer: &mut Answer) {
    let Payload::Jupyter(request) = &entry.record.request.payload else { return };
    match jupyter::kernels(entry, state, request) {
        Ok(kernels) => {
            answer.working |= kernels.busy;
            answer.idle_for = kernels.last.map(|last| clock::now().saturating_sub(last));
        }
        Err(why) => answer.unknown = Some(format!("Jupyter does not report its kernels: {why}")),
    }
}

fn ask_driver(records: &Records, entry: &Entry, state: &State, answer: &mut Answer) -> Result<(), Report> {
    if state.gpus.is_empty() {
        return Ok(());
    }
    let inventory = match gpu::inventory(&driver_root()) {
        Ok(inventory) if inventory.unread.is_none() => inventory,
        Ok(inventory) => {
            answer.unknown = inventory.unread.map(|why| format!("the use of the GPUs is unknown: {why}"));
            return Ok(());
        }
        Err(error) => {
            answer.unknown = Some(error.to_string());
            return Ok(());
        }
    };
    let id = &entry.record.id;
    let leases = lease::living(&records.run_dir().join("gpus"))?;
    let all = usage::usage(&inventory, &leases, &BTreeSet::from([id.clone()]), Path::new("/proc"));
    let own: Vec<&Usage> = all.iter().filter(|usage| usage.users.iter().any(|user| is_of(user, id))).collect();
    // A process with a context computes only if the GPU is in use. MIG devices report no utilization.
    answer.working |= own.iter().any(|usage| usage.unit.utilization.is_none_or(|percent| percent > 0));
    let memory = own.iter().flat_map(|usage| &usage.users).filter(|user| is_of(user, id));
    answer.gpu_memory = Some(memory.filter_map(|user| user.memory).sum());
    Ok(())
}

fn is_of(user: &usage::User, id: &str) -> bool {
    user.container.as_deref() == Some(id)
}
