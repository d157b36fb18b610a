//! The bare launch: `gpurun --image X [flags]` starts Jupyter in a new container and prints a working URL.

use std::io::{IsTerminal, Write};
use std::net::{Ipv4Addr, TcpListener};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use clap::Args;
use nix::sys::signal::Signal;

use super::attach::{self, Interrupt};
use super::containers::stop_session;
use super::detach::DetachKeys;
use super::flags::ContainerFlags;
use super::new_container::check_name;
use super::resources::seconds;
use super::run::{New, start_new};
use super::session::{Event, Keys, Session, attachment, pass_on, take_signals};
use super::{Context, prepare, print};
use crate::control::{FromSupervisor, ToSupervisor};
use crate::jupyter::tls::Pinned;
use crate::jupyter::{self, Algorithm, Announcement, Auth, Host, PasswordSource, Probe};
use crate::record::{Secrets, State, short};
use crate::report::Report;
use crate::request::{JupyterRequest, NetworkMode, Payload, PortSpec, Protocol, Request, TlsRequest};

/// Jupyter's port in the container if `-p` does not specify one.
const PORT: u16 = 8888;
/// Number of host ports to try, from [`PORT`] upwards, if `-p` was not given.
const PORTS_TRIED: u16 = 200;
/// Number of output lines to show if Jupyter did not start.
const LAST_LINES: usize = 20;

#[derive(Debug, Args)]
#[command(next_help_heading = "Jupyter")]
pub(super) struct JupyterArgs {
    /// Start Jupyter in a new container from this image, and print its URL
    #[arg(long, value_name = "IMAGE", required = true)]
    image: Option<String>,
    /// Prompt for a password, instead of using a token
    #[arg(long, group = "auth")]
    password: bool,
    /// Read the password from the first line of a file
    #[arg(long, value_name = "FILE", group = "auth")]
    password_file: Option<PathBuf>,
    /// Read the password from the first line of standard input
    #[arg(long, group = "auth")]
    password_stdin: bool,
    /// Use a hashed password (see `gpurun token`)
    #[arg(long, value_name = "HASH", group = "auth")]
    password_hash: Option<String>,
    /// Seconds to wait until Jupyter answers
    #[arg(long, value_name = "SECONDS", default_value_t = 120, allow_negative_numbers = true, value_parser = seconds)]
    ready_timeout: u64,
    /// Pass an argument to Jupyter
    #[arg(long, value_name = "ARG", allow_hyphen_values = true)]
    jupyter_arg: Vec<String>,
    /// Serve the notebook over HTTPS, with a generated certificate unless --tls-cert names one
    #[arg(long)]
    tls: bool,
    /// Certificate chain for HTTPS, as a PEM file
    #[arg(long, value_name = "FILE", requires = "tls_key")]
    tls_cert: Option<PathBuf>,
    /// Private key of the certificate, as a PEM file
    #[arg(long, value_name = "FILE", requires = "tls_cert")]
    tls_key: Option<PathBuf>,
    #[command(flatten)]
    flags: ContainerFlags,
}

pub(super) fn run(args: &JupyterArgs, context: &Context, remove: prepare::Remove) -> Result<u8, Report> {
    let image_name = args.image.as_deref().ok_or_else(|| {
        Report::usage("no image was specified")
            .with_hint("start Jupyter with `gpurun --image IMAGE`, or any command with `gpurun run IMAGE COMMAND`")
    })?;
    let flags = &args.flags;
    if !flags.attach.is_empty() {
        return Err(Report::usage("`--attach` cannot be used with a Jupyter launch")
            .with_hint("omit it, or run a command with `gpurun run IMAGE COMMAND`"));
    }
    if flags.tty || flags.interactive {
        return Err(Report::usage("`-i` and `-t` cannot be used with a Jupyter launch").with_hint(format!(
            "start a shell with `gpurun run --rm -it {image_name} bash` or `gpurun exec -it CONTAINER bash`"
        )));
    }
    let (publish, port) = ports(flags)?;
    let jupyter = JupyterRequest { port, args: args.jupyter_arg.clone(), tls: tls(args)? };
    let payload = Payload::Jupyter(jupyter.clone());
    let mut request = Request { publish, ..super::request::build(flags, image_name, payload)? };
    if request.network == NetworkMode::None {
        return Err(
            Report::usage("Jupyter cannot be reached with `--network none`").with_hint("use `bridge` or `host`")
        );
    }
    // Report errors in the flags before pulling an image.
    crate::launch::check(&request)?;
    super::network_ids::resolve(&mut request, context)?;
    super::boot_unit::notice(request.restart);
    check_name(flags.name.as_deref())?;
    let detach_keys = DetachKeys::parse(&flags.detach_keys)?;
    let auth = ask_auth(args)?;
    prepare::resolve_others(flags, &mut request, context)?;
    let mut cidfile = prepare::CidFile::create(request.cidfile.as_deref())?;
    let store = context.store()?;
    // Held until the record of the container exists. Until then, the lock prevents the removal of the image.
    let (hold, image) = flags.image.provide(&store, image_name, flags.quiet)?;
    prepare::select_gpus(&mut request, &image.config)?;
    prepare::resolve_images(&mut request, &store)?;
    prepare::replace(flags, context, remove)?;
    let signals = take_signals()?;
    let (secrets, first) = (secrets(&auth)?, attachment(Keys::Ignored, false));
    let new = New { name: flags.name.as_deref(), image: image.id, request, secrets: Some(&secrets), first: &first };
    let (spawned, launch) = start_new(context, new, hold, &signals)?;
    let keys = if flags.detach || !std::io::stdin().is_terminal() { Keys::Ignored } else { Keys::DetachOnly };
    let id = spawned.id.clone();
    if let Some(cidfile) = &mut cidfile {
        cidfile.write(&id)?;
    }
    let mut session = Session::new(spawned, signals, Keys::Ignored, detach_keys.clone());
    let state = launch.wait_running(&mut session)?;
    cidfile.into_iter().for_each(prepare::CidFile::keep);
    if let Some(signal) = session.interrupted() {
        let _ = stop_session(&mut session);
        let name = super::attach::name_of(context, &id).unwrap_or_else(|_| short(&id).to_owned());
        return Err(failed(interruption(signal), &Held::new(), &name, flags.rm));
    }
    let name = super::attach::name_of(context, &id)?;
    let address = jupyter::address(&state, port);
    let base_url = jupyter::base_url(&args.jupyter_arg);
    let run_dir = context.records()?.find(&id)?.run_dir;
    let mark = jupyter::probe_mark(&run_dir).unwrap_or_default();
    let pinned = jupyter::certificate(&run_dir);
    let probe = Probe { address, base_url: &base_url, auth: &auth, tls: pinned.as_ref(), mark: &mark };
    let mut waiting = Waiting::begin(&name);
    let ready = wait_ready(&mut session, &probe, Duration::from_secs(args.ready_timeout), &mut waiting);
    waiting.end();
    let held = match ready? {
        Ok(held) => held,
        Err((report, held)) => {
            let _ = stop_session(&mut session);
            return Err(failed(report, &held, &name, flags.rm));
        }
    };
    let announcement = announcement(&state, &jupyter, &auth, &name, pinned.as_ref());
    let scheme = if pinned.is_some() { "https" } else { "http" };
    session.send(&ToSupervisor::Ready { url: format!("{scheme}://{address}{base_url}") })?;
    // A program that reads standard output gets the URL first. On a terminal, the announcement comes last, below
    // Jupyter's output.
    let terminal = std::io::stdout().is_terminal();
    if !terminal {
        print::out(&format!("{}\n", announcement.url))?;
    }
    for message in held.iter().filter(|_| !flags.detach) {
        let _ = pass_on(message);
    }
    match terminal {
        true => print::out(&format!("{announcement}\n"))?,
        false => print::say(&announcement.to_string()),
    }
    warn_of_clear_text(&state, &jupyter, pinned.as_ref());
    if !flags.detach && keys == Keys::DetachOnly {
        print::say(&format!("ctrl-c stops the container, {} leaves it running", flags.detach_keys));
    }
    if flags.detach {
        return Ok(0);
    }
    session.set_keys(keys);
    session.begin_keys();
    attach::relay(&mut session, Interrupt::Stop)
}

/// Returns the ports to publish, and Jupyter's port in the container: 8888, or the first port that `-p` names.
fn ports(flags: &ContainerFlags) -> Result<(Vec<PortSpec>, u16), Report> {
    let mut ports = PortSpec::parse_all(&flags.network.publish)?;
    let wanted = ports.iter().find(|spec| spec.container_port == PORT).or(ports.first());
    let port = wanted.map_or(PORT, |spec| spec.container_port);
    if flags.network.network.iter().any(|network| network == "host") {
        return Ok((ports, free_port()?));
    }
    if ports.is_empty() {
        ports.push(PortSpec {
            host_ip: Ipv4Addr::LOCALHOST,
            host_port: Some(free_port()?),
            host_last: None,
            container_port: PORT,
            protocol: Protocol::Tcp,
        });
    }
    Ok((ports, port))
}

/// Returns the first port from 8888 upwards that is free on loopback.
fn free_port() -> Result<u16, Report> {
    (PORT..PORT + PORTS_TRIED).find(|&port| TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok()).ok_or_else(|| {
        Report::new(format!("the ports {PORT} to {} are all in use", PORT + PORTS_TRIED - 1))
            .with_hint("publish another port: `-p PORT:8888`")
    })
}

/// Says how to reach a notebook that is ready.
pub(super) fn announcement(
    state: &State,
    request: &JupyterRequest,
    auth: &Auth,
    name: &str,
    tls: Option<&Pinned>,
) -> Announcement {
    let host = Host { name: &host_name(), address: jupyter::host_address(), user: &login_name() };
    let stop = format!("{} stop {name}", program());
    let base_url = jupyter::base_url(&request.args);
    jupyter::announce("Jupyter", jupyter::published(state, request.port), &base_url, auth, &host, &stop, tls)
}

/// Returns the certificate that the caller chose. Its files are read now, so that an error is reported before the launch.
fn tls(args: &JupyterArgs) -> Result<Option<TlsRequest>, Report> {
    let (Some(certificate), Some(key)) = (&args.tls_cert, &args.tls_key) else {
        return Ok(args.tls.then_some(TlsRequest::Generated));
    };
    let absolute = |path: &Path| {
        std::path::absolute(path)
            .map_err(|error| Report::new(format!("cannot use `{}`", path.display())).with_cause(error))
    };
    let (certificate, key) = (absolute(certificate)?, absolute(key)?);
    jupyter::tls::read(&certificate, &key)?;
    Ok(Some(TlsRequest::Files { certificate, key }))
}

/// Prints a notice if the login crosses the network unencrypted.
fn warn_of_clear_text(state: &State, request: &JupyterRequest, tls: Option<&Pinned>) {
    if tls.is_none() && !jupyter::published(state, request.port).0.is_loopback() {
        print::say(
            "gpurun: the login and the notebook cross the network unencrypted: use `--tls`, or publish the port on this host only (`-p 127.0.0.1:PORT:8888`) and use the ssh tunnel",
        );
    }
}

/// Returns the authentication method that the caller chose. The default is a new token.
fn ask_auth(args: &JupyterArgs) -> Result<Auth, Report> {
    let source = match (&args.password_file, &args.password_hash) {
        (Some(path), _) => PasswordSource::File(path.clone()),
        (None, Some(hash)) => PasswordSource::Hash(hash.clone()),
        (None, None) if args.password => PasswordSource::Prompt,
        (None, None) if args.password_stdin => PasswordSource::Stdin,
        (None, None) => PasswordSource::Token,
    };
    Ok(jupyter::obtain(&source)?)
}

/// Returns the secrets that the supervisor stores. A password is stored only as hashes, one for each type of server.
fn secrets(auth: &Auth) -> Result<Secrets, Report> {
    Ok(match auth {
        Auth::Token(token) => Secrets::Token(token.reveal().to_owned()),
        Auth::Hash(hash) => Secrets::Hashes(vec![hash.clone()]),
        Auth::Password(password) => {
            let hash = |algorithm| jupyter::hash(password.reveal(), algorithm);
            Secrets::Hashes(vec![hash(Algorithm::Argon2)?, hash(Algorithm::Sha512)?])
        }
    })
}

/// Output that arrived while waiting. It is shown after the URL or with the error.
type Held = Vec<FromSupervisor>;

/// Waits until Jupyter answers over HTTP and rejects unauthenticated requests. Messages of the container are processed
/// meanwhile.
fn wait_ready(
    session: &mut Session,
    probe: &Probe<'_>,
    patience: Duration,
    progress: &mut Waiting,
) -> Result<Result<Held, (Report, Held)>, Report> {
    let failed = |error: std::io::Error| Report::new("cannot wait for Jupyter").with_cause(error);
    let (done, mut tell_done) = UnixStream::pair().map_err(failed)?;
    let ended = Arc::new(AtomicBool::new(false));
    let waiting = {
        let (ended, address) = (Arc::clone(&ended), probe.address);
        let (auth, base_url, mark) = (probe.auth.clone(), probe.base_url.to_owned(), probe.mark.to_owned());
        let tls = probe.tls.cloned();
        let wait = move || {
            let probe = Probe { address, base_url: &base_url, auth: &auth, tls: tls.as_ref(), mark: &mark };
            let result = jupyter::wait_ready(&probe, patience, &mut || ended.load(Ordering::Relaxed).then_some(1));
            // The byte wakes the poll below. Closing the descriptor would also do.
            let _ = tell_done.write_all(b"!");
            result
        };
        std::thread::Builder::new().spawn(wait).map_err(failed)?
    };
    let mut held = Vec::new();
    let mut exit = None;
    loop {
        match session.next(progress.next_look(), Some(done.as_fd()))? {
            Event::Extra => break,
            Event::InputEnded => {}
            Event::TimedOut => progress.look(),
            Event::Message(message @ (FromSupervisor::Stdout(_) | FromSupervisor::Stderr(_))) => held.push(message),
            Event::Message(FromSupervisor::Exited(state)) => {
                ended.store(true, Ordering::Relaxed);
                exit = Some(*state);
            }
            Event::Message(FromSupervisor::Failed(report)) => {
                ended.store(true, Ordering::Relaxed);
                session.discard();
                return Ok(Err((report, held)));
            }
            Event::HungUp if exit.is_some() => break,
            Event::HungUp => {
                ended.store(true, Ordering::Relaxed);
                return Err(session.killed("the container's supervisor was killed while Jupyter started"));
            }
            Event::Signal(_) => session.send(&ToSupervisor::Stop { timeout: None })?,
            Event::Message(FromSupervisor::Notice(line)) => print::say(&format!("gpurun: {line}")),
            Event::Message(_) | Event::Detach => {}
        }
    }
    let result = waiting.join().map_err(|_| Report::new("the thread that waits for Jupyter panicked"))?;
    if let (Some(signal), Some(_)) = (session.interrupted(), &exit) {
        // What Jupyter printed is not the reason.
        return Ok(Err((interruption(signal), Held::new())));
    }
    Ok(match (result, exit) {
        (_, Some(state)) => {
            let how =
                if state.oom_killed { ": the kernel killed it because its memory limit was reached (OOM)" } else { "" };
            let code = state.exit_code.unwrap_or(0);
            let mut report = Report::new(format!("Jupyter ended with status {code} before it answered{how}"));
            if state.oom_killed {
                report = report.with_hint("raise the limit with `--memory SIZE`");
            }
            Err((report, held))
        }
        (Ok(_), None) => Ok(held),
        (Err(error), None) => Err((Report::from(error), held)),
    })
}

fn interruption(signal: Signal) -> Report {
    Report::new("the launch was interrupted before Jupyter answered").with_exit_code(128 + signal as u8)
}

/// Prints the last output lines of Jupyter, and says in the hint what is left of the launch.
fn failed(mut report: Report, held: &Held, name: &str, removed: bool) -> Report {
    let mut output = Vec::new();
    for message in held {
        if let FromSupervisor::Stdout(bytes) | FromSupervisor::Stderr(bytes) = message {
            output.extend_from_slice(bytes);
        }
    }
    let text = String::from_utf8_lossy(&output);
    let lines: Vec<&str> = text.lines().collect();
    for line in &lines[lines.len().saturating_sub(LAST_LINES)..] {
        print::say(&format!("  {line}"));
    }
    if !removed {
        let left =
            format!("`gpurun logs {name}` shows all of its output, and `gpurun rm {name}` removes the container");
        report.hint = Some(report.hint.map_or_else(|| left.clone(), |hint| format!("{hint}; {left}")));
    }
    report
}

/// The progress line while Jupyter starts. On a terminal it includes the elapsed seconds.
struct Waiting {
    name: String,
    began: Instant,
    terminal: bool,
    looks: u32,
}

impl Waiting {
    fn begin(name: &str) -> Self {
        let terminal = std::io::stderr().is_terminal();
        let waiting = Self { name: name.to_owned(), began: Instant::now(), terminal, looks: 0 };
        match terminal {
            true => waiting.show(),
            false => print::say(&format!("gpurun: `{name}` is running; waiting for Jupyter to answer")),
        }
        waiting
    }

    fn next_look(&self) -> Option<Instant> {
        self.terminal.then(|| self.began + Duration::from_secs(1) * (self.looks + 1))
    }

    fn look(&mut self) {
        self.looks += 1;
        self.show();
    }

    fn show(&self) {
        let seconds = if self.looks > 0 { format!(" ({} s)", self.looks) } else { String::new() };
        print::write_stderr(&format!("\rgpurun: `{}` is running; waiting for Jupyter to answer{seconds}", self.name));
    }

    fn end(self) {
        if self.terminal {
            print::write_stderr("\r\x1b[K");
        }
    }
}

fn host_name() -> String {
    nix::unistd::gethostname().map(|name| name.to_string_lossy().into_owned()).unwrap_or_else(|_| "HOST".into())
}

/// Returns the name by which the caller ran this program: its path if it was not found in `PATH`.
fn program() -> String {
    std::env::args().next().filter(|path| path.contains('/')).unwrap_or_else(|| "gpurun".into())
}

/// Returns the caller's user name on this host.
fn login_name() -> String {
    std::env::var("SUDO_USER").or_else(|_| std::env::var("USER")).unwrap_or_else(|_| "USER".into())
}
