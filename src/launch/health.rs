//! One run of a container's health check.
//!
//! The supervisor must not wait, so a helper does: `gpurun health-check`, a child of the supervisor. It runs the check
//! in the container like `exec`, reads its output, and answers with one JSON object in a pipe. The answer fits into the
//! pipe, so the helper never waits for the supervisor either. The supervisor sees the end of the helper on a pidfd.
//!
//! The processes of the check are a part of the container's cgroup (`cgroup::Part`). When the check's first process has
//! ended, the helper kills the others, because the next check needs none of them and nothing bounds their number. At the
//! time limit the supervisor kills the part, and later the helper, if that does not answer.
//!
//! The helper dies with the supervisor (PDEATHSIG), and the check dies with the container. When the helper is killed
//! alone, the supervisor kills the part.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::wait::{Id, WaitPidFlag, WaitStatus, waitid, waitpid};
use nix::unistd::Pid;
use serde::{Deserialize, Serialize};

use crate::cgroup::Part;
use crate::report::Report;
use crate::request::HealthCheck;
use crate::runtime::{self, ExecRequest, Stdio};
use crate::spec::Process;
use crate::sys::{exe, process};

/// The name of the helper's subcommand.
pub(crate) const HEALTH_CHECK: &str = "health-check";
/// The name of the part of the container's cgroup.
pub(super) const PART: &str = "gpurun-health";
/// How many bytes of the output are kept (docker's number).
const KEPT: usize = 4096;
/// How many bytes are read after the end of the check. More than this does not fit into its pipe.
const REST: usize = 64 << 10;
/// How long killed processes may take to end.
const DYING: Duration = Duration::from_secs(10);

/// The health check of a container.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Prepared {
    pub check: HealthCheck,
    pub process: Process,
}

/// What the helper answers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Answer {
    /// The check's exit code, or -1 if it could not be run.
    pub exit_code: i32,
    pub output: String,
}

#[derive(Debug, Serialize, Deserialize)]
struct Order {
    process: Process,
    part: Part,
}

/// A running check. Dropping it kills the helper, but not the check.
#[derive(Debug)]
pub(crate) struct Running {
    helper: OwnedFd,
    answer: File,
}

impl Running {
    /// Becomes readable when the helper has ended.
    pub(crate) fn fd(&self) -> BorrowedFd<'_> {
        self.helper.as_fd()
    }

    /// Kills the helper.
    pub(crate) fn kill(&self) {
        // An error means that it has ended.
        let _ = process::signal(&self.helper, libc::SIGKILL);
    }

    /// The answer of a helper that has ended, or `None` if it has not answered.
    pub(crate) fn answer(&mut self) -> Option<Answer> {
        let mut text = Vec::new();
        let _ = (&self.answer).take(REST as u64).read_to_end(&mut text);
        serde_json::from_slice(&text).ok()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.kill();
        process::wait_pidfd(&self.helper, DYING);
        // This fails if the container has reaped it.
        let _ = waitid(Id::PIDFd(self.helper.as_fd()), WaitPidFlag::WEXITED | WaitPidFlag::WNOHANG);
    }
}

/// Starts a check in the container with this pid 1.
pub(super) fn begin(target: &OwnedFd, part: Part, process: &Process) -> io::Result<Running> {
    let (answer, answer_end) = nix::unistd::pipe2(nix::fcntl::OFlag::O_CLOEXEC)?;
    process::set_nonblocking(&answer)?;
    let order = serde_json::to_vec(&Order { process: process.clone(), part })?;
    let order = process::memory_file(c"health-check", &order)?;
    let mut command = exe::sealed_command()?;
    let ends = [order.as_raw_fd(), target.as_raw_fd(), answer_end.as_raw_fd()];
    command.arg(HEALTH_CHECK).args(ends.iter().map(ToString::to_string)).env_clear().current_dir("/");
    let null = std::process::Stdio::null;
    command.stdin(null()).stdout(null()).stderr(null());
    std::os::unix::process::CommandExt::process_group(&mut command, 0);
    process::end_with_parent(&mut command);
    process::pass_only(&mut command, &ends);
    let child = command.spawn()?;
    // The child has not been waited for yet, so its pid cannot have been reused.
    let helper = process::open_pidfd(child.id() as i32).inspect_err(|_| {
        let _ = nix::sys::signal::kill(Pid::from_raw(child.id() as i32), nix::sys::signal::Signal::SIGKILL);
    })?;
    Ok(Running { helper, answer: answer.into() })
}

/// Runs the helper. `numbers` are the numbers of its descriptors.
#[must_use]
pub(crate) fn health_check_main(numbers: &[i32]) -> u8 {
    let ends: Vec<OwnedFd> = numbers.iter().filter_map(|&fd| process::take_inherited_fd(fd)).collect();
    let Ok([order, target, answer]) = <[OwnedFd; 3]>::try_from(ends) else {
        return crate::report::EXIT_USAGE;
    };
    let done = run(order, &target).unwrap_or_else(|report| Answer { exit_code: -1, output: one_line(&report) });
    let written =
        serde_json::to_vec(&done).map_err(io::Error::from).and_then(|text| File::from(answer).write_all(&text));
    u8::from(written.is_err())
}

/// A report as docker's log of health checks has it.
fn one_line(report: &Report) -> String {
    std::iter::once(&report.message).chain(&report.causes).cloned().collect::<Vec<_>>().join(": ")
}

fn run(order: OwnedFd, target: &OwnedFd) -> Result<Answer, Report> {
    let failed = |what: &'static str| {
        move |error: io::Error| Report::new(format!("cannot {what} of the health check")).with_cause(error)
    };
    let mut text = Vec::new();
    File::from(order).read_to_end(&mut text).map_err(failed("read the order"))?;
    let Order { process, part } = serde_json::from_slice(&text).map_err(|e| failed("read the order")(e.into()))?;
    let streams = || -> io::Result<(File, Stdio)> {
        let (output, end) = nix::unistd::pipe2(nix::fcntl::OFlag::O_CLOEXEC)?;
        process::set_nonblocking(&output)?;
        let stdin = File::open("/dev/null")?.into();
        Ok((output.into(), Stdio::Fds { stdin, stdout: end.try_clone()?, stderr: end }))
    };
    let (output, stdio) = streams().map_err(failed("create the streams"))?;
    let request = ExecRequest { target, cgroup_procs: part.entry_files.clone(), process, stdio };
    let child = runtime::exec(&request)?;
    // From here on, only the check holds the other end of its output.
    drop(request);
    let mut kept = Kept::default();
    follow(&output, &child.pidfd, &mut kept).map_err(failed("read the output"))?;
    let exit_code = match waitpid(Pid::from_raw(child.pid), None) {
        Ok(WaitStatus::Exited(_, code)) => code,
        Ok(WaitStatus::Signaled(_, signal, _)) => 128 + signal as i32,
        _ => -1,
    };
    let end = Instant::now() + DYING;
    while !part.kill() && Instant::now() < end {
        std::thread::sleep(Duration::from_millis(1));
    }
    let _ = kept.read(&output, REST);
    Ok(Answer { exit_code, output: kept.text() })
}

/// Reads the output until the process has ended.
fn follow(output: &File, pidfd: &OwnedFd, kept: &mut Kept) -> io::Result<()> {
    let mut open = true;
    loop {
        let mut fds = vec![PollFd::new(pidfd.as_fd(), PollFlags::POLLIN)];
        if open {
            fds.push(PollFd::new(output.as_fd(), PollFlags::POLLIN));
        }
        match poll(&mut fds, PollTimeout::NONE) {
            Err(nix::Error::EINTR) => continue,
            result => result?,
        };
        let ready: Vec<bool> = fds.iter().map(|fd| fd.any().unwrap_or(false)).collect();
        if ready[0] {
            return Ok(());
        }
        if ready.get(1) == Some(&true) {
            open = kept.read(output, REST)?;
        }
    }
}

/// The beginning of the output.
#[derive(Debug, Default)]
struct Kept {
    bytes: Vec<u8>,
    is_cut: bool,
}

impl Kept {
    /// Reads what is there, up to about `most` bytes. Returns whether more may come.
    fn read(&mut self, mut output: &File, most: usize) -> io::Result<bool> {
        let mut buffer = [0; 16 << 10];
        let mut total = 0;
        while total < most {
            match output.read(&mut buffer) {
                Ok(0) => return Ok(false),
                Ok(count) => {
                    let room = (KEPT - self.bytes.len()).min(count);
                    self.bytes.extend_from_slice(&buffer[..room]);
                    self.is_cut |= room < count;
                    total += count;
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(true),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(true)
    }

    fn text(&self) -> String {
        let text = String::from_utf8_lossy(&self.bytes);
        // As in docker.
        if self.is_cut { format!("{text}...") } else { text.into_owned() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn output_is_kept_up_to_a_limit() {
        let (read, write) = nix::unistd::pipe2(nix::fcntl::OFlag::O_CLOEXEC).unwrap();
        process::set_nonblocking(&read).unwrap();
        let (read, mut write) = (File::from(read), File::from(write));
        let mut kept = Kept::default();
        assert!(kept.read(&read, REST).unwrap(), "nothing yet");
        write.write_all(b"one\xff").unwrap();
        assert!(kept.read(&read, REST).unwrap());
        assert_eq!(kept.text(), "one\u{fffd}");
        write.write_all(&[b'x'; 8000]).unwrap();
        drop(write);
        assert!(!kept.read(&read, REST).unwrap());
        let text = kept.text();
        assert!(kept.bytes.len() == KEPT && text.starts_with("one\u{fffd}xxx") && text.ends_with("xxx..."), "{text}");
    }
}
