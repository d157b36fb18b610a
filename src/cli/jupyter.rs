//! The bare launch: `gpurun --image X [flags]` starts a container with Jupyter in it and prints a URL that works.

use std::io::{IsTerminal, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use clap::Args;

use super::attach::{self, Interrupt};
use super::containers::stop_session;
use super::detach::DetachKeys;
use super::flags::ContainerFlags;
use super::resources::seconds;
use super::run::{start_new, wait_running};
use super::session::{Event, Keys, Session, pass_on, take_signals};
use super::{Context, print};
use crate::jupyter::{self, Algorithm, Auth, PasswordSource, Probe};
use crate::net::PortSpec;
use crate::record::{Secrets, State};
use crate::report::Report;
use crate::request::{JupyterRequest, NetworkMode, Payload};
use crate::supervise::protocol::{FromSupervisor, ToSupervisor};

/// Where Jupyter listens in the container unless `-p` says otherwise.
const PORT: u16 = 8888;
/// How many host ports are tried from [`PORT`] upwards where `-p` was not given.
const PORTS_TRIED: u16 = 200;
/// Lines of output shown when Jupyter did not come up.
const LAST_LINES: usize = 20;

#[derive(Debug, Args)]
#[command(next_help_heading = "Jupyter")]
pub struct JupyterArgs {
    /// Start Jupyter in a new container of this image, and print the URL where it answers
    #[arg(long, value_name = "IMAGE", required = true)]
    image: Option<String>,
    /// Ask for a password (without showing it) instead of using a token
    #[arg(long, group = "auth")]
    password: bool,
    /// Read the password from a file's first line
    #[arg(long, value_name = "FILE", group = "auth")]
    password_file: Option<PathBuf>,
    /// Read the password from standard input's first line
    #[arg(long, group = "auth")]
    password_stdin: bool,
    /// Take the password as a hash (see `gpurun token`)
    #[arg(long, value_name = "HASH", group = "auth")]
    password_hash: Option<String>,
    /// Seconds to wait for Jupyter's first answer
    #[arg(long, value_name = "SECONDS", default_value_t = 120, allow_negative_numbers = true, value_parser = seconds)]
    ready_timeout: u64,
    /// A further argument for Jupyter itself
    #[arg(long, value_name = "ARG", allow_hyphen_values = true)]
    jupyter_arg: Vec<String>,
    #[command(flatten)]
    flags: ContainerFlags,
}

pub fn run(args: &JupyterArgs, context: &Context) -> Result<u8, Report> {
    let image_name = args.image.as_deref().ok_or_else(|| {
        Report::usage("no image was named").with_hint(
            "`gpurun --image IMAGE …` starts Jupyter, `gpurun run IMAGE COMMAND` anything else; `gpurun --help`",
        )
    })?;
    let flags = &args.flags;
    if flags.tty || flags.interactive {
        return Err(Report::usage("`-i` and `-t` mean nothing for a Jupyter launch").with_hint(format!(
            "for a shell: `gpurun run --rm -it {image_name} bash`, or `gpurun exec -it CONTAINER bash`"
        )));
    }
    let (publish, port) = ports(flags)?;
    let payload = Payload::Jupyter(JupyterRequest { port, args: args.jupyter_arg.clone() });
    let mut request = super::request::build(flags, image_name, payload)?;
    request.publish = publish;
    if request.network == NetworkMode::None {
        return Err(
            Report::usage("Jupyter cannot be reached with `--network none`").with_hint("use `bridge` or `host`")
        );
    }
    // What is wrong with the flags is said before an image is pulled for them.
    crate::launch::check(&request)?;
    let store = context.store()?;
    // Held until the container is on record: then nobody removes its image.
    let (hold, image) = flags.image.provide(&store, image_name)?;
    request.image_id = image.id.to_string();
    let auth = ask_auth(args)?;
    let detach_keys = DetachKeys::parse(&flags.detach_keys)?;
    let signals = take_signals()?;
    let spawned = start_new(context, flags.name.as_deref(), request, Some(&secrets(&auth)?))?;
    drop(hold);
    let keys = if flags.detach || !std::io::stdin().is_terminal() { Keys::Ignored } else { Keys::DetachOnly };
    let id = spawned.id.clone();
    let mut session = Session::new(spawned, signals, Keys::Ignored, detach_keys.clone());
    session.attach(false)?;
    let state = wait_running(&mut session, context.verbose)?;
    let name = super::attach::name_of(context, &id)?;
    let address = address(&state, port);
    let base_url = jupyter::base_url(&args.jupyter_arg);
    let held = match wait_ready(&mut session, address, &base_url, &auth, Duration::from_secs(args.ready_timeout))? {
        Ok(held) => held,
        Err((report, held)) => {
            let _ = stop_session(&mut session);
            return Err(failed(report, &held, &name, flags.rm));
        }
    };
    let announcement =
        jupyter::announce("Jupyter", published(&state, port), &base_url, &auth, &host_name(), &person(), &name);
    session.send(&ToSupervisor::Ready { url: format!("http://{address}{base_url}") })?;
    // Data on stdout: the URL alone where a program reads it, the whole announcement for a person.
    if std::io::stdout().is_terminal() {
        print::out(&format!("{announcement}\n"))?;
    } else {
        print::say(&announcement.to_string());
        print::out(&format!("{}\n", announcement.url))?;
    }
    if !flags.detach && keys == Keys::DetachOnly {
        print::say(&format!("ctrl-c stops it, {} leaves it running", flags.detach_keys));
    }
    if flags.detach {
        return Ok(0);
    }
    for message in &held {
        let _ = pass_on(message);
    }
    session.set_keys(keys);
    session.begin_keys();
    attach::relay(&mut session, Interrupt::Stop)
}

/// The ports to publish, and where Jupyter listens in the container: the recipe's 8888, or the first port that `-p` names.
fn ports(flags: &ContainerFlags) -> Result<(Vec<String>, u16), Report> {
    let mut specs = Vec::new();
    for text in &flags.network.publish {
        specs.extend(PortSpec::parse(text)?);
    }
    let port = match specs.iter().find(|spec| spec.container_port == PORT).or(specs.first()) {
        Some(spec) => spec.container_port,
        None => PORT,
    };
    match flags.network.network.as_str() {
        "host" => Ok((Vec::new(), free_port()?)),
        _ if specs.is_empty() => Ok((vec![format!("127.0.0.1:{}:{PORT}", free_port()?)], PORT)),
        _ => Ok((flags.network.publish.clone(), port)),
    }
}

/// The first port from 8888 upwards that nobody has on loopback.
fn free_port() -> Result<u16, Report> {
    (PORT..PORT + PORTS_TRIED).find(|&port| TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok()).ok_or_else(|| {
        Report::new(format!("the ports {PORT} to {} are all taken", PORT + PORTS_TRIED - 1))
            .with_hint("publish another one: `-p PORT:8888`")
    })
}

/// Where Jupyter's port is published.
fn published(state: &State, port: u16) -> (IpAddr, u16) {
    let published =
        state.ports.iter().find(|published| published.container_port == port && published.protocol == "tcp");
    match published {
        Some(published) => (published.host_ip.parse().unwrap_or(Ipv4Addr::UNSPECIFIED.into()), published.host_port),
        None => (Ipv4Addr::LOCALHOST.into(), port),
    }
}

/// Where this host reaches Jupyter.
fn address(state: &State, port: u16) -> SocketAddr {
    let (ip, port) = published(state, port);
    SocketAddr::from((if ip.is_unspecified() { Ipv4Addr::LOCALHOST.into() } else { ip }, port))
}

/// The login as the person chose to give it; a fresh token where none was asked for.
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

/// What the supervisor keeps: a password only as hashes, one for every kind of server.
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

/// Output that came meanwhile, to be shown after the URL or with the error.
type Held = Vec<FromSupervisor>;

/// Waits until Jupyter answers over HTTP and lets nobody in who should not be, while the container's messages go on.
fn wait_ready(
    session: &mut Session,
    address: SocketAddr,
    base_url: &str,
    auth: &Auth,
    patience: Duration,
) -> Result<Result<Held, (Report, Held)>, Report> {
    let failed = |error: std::io::Error| Report::new("cannot wait for Jupyter").with_cause(error);
    let (done, mut tell_done) = UnixStream::pair().map_err(failed)?;
    let ended = Arc::new(AtomicBool::new(false));
    let waiting = {
        let (ended, auth, base_url) = (Arc::clone(&ended), auth.clone(), base_url.to_owned());
        std::thread::spawn(move || {
            let probe = Probe { address, base_url: &base_url, auth: &auth };
            let result = jupyter::wait_ready(&probe, patience, &mut || ended.load(Ordering::Relaxed).then_some(1));
            // The byte wakes the poll below; closing would do as well.
            let _ = tell_done.write_all(b"!");
            result
        })
    };
    let mut held = Vec::new();
    let mut exit = None;
    loop {
        match session.next(None, Some(done.as_fd()))? {
            Event::Extra => break,
            Event::Message(message @ (FromSupervisor::Stdout(_) | FromSupervisor::Stderr(_))) => held.push(message),
            Event::Message(FromSupervisor::Exited(state)) => {
                ended.store(true, Ordering::Relaxed);
                exit = Some(*state);
            }
            Event::Message(FromSupervisor::Failed(report)) => {
                ended.store(true, Ordering::Relaxed);
                session.outlive();
                return Ok(Err((report, held)));
            }
            Event::HungUp if exit.is_some() => break,
            Event::HungUp => {
                ended.store(true, Ordering::Relaxed);
                return Err(Report::new("the container's supervisor was killed while Jupyter started"));
            }
            Event::Signal(_) => session.send(&ToSupervisor::Stop { timeout: None })?,
            Event::Message(FromSupervisor::Notice(line)) => print::say(&format!("gpurun: {line}")),
            Event::Message(_) | Event::Detach | Event::TimedOut => {}
        }
    }
    let result = waiting.join().map_err(|_| Report::new("the thread that waits for Jupyter panicked"))?;
    Ok(match (result, exit) {
        (_, Some(state)) => {
            let how = if state.oom_killed { ": the kernel killed it, its memory limit was reached (OOM)" } else { "" };
            let code = state.exit_code.unwrap_or(0);
            let mut report = Report::new(format!("Jupyter ended with status {code} before it answered{how}"));
            if state.oom_killed {
                report = report.with_hint("give it more with `--memory`");
            }
            Err((report, held))
        }
        (Ok(_), None) => Ok(held),
        (Err(error), None) => Err((Report::from(error), held)),
    })
}

/// The error, with the last lines that Jupyter wrote.
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
    if report.hint.is_none() && !removed {
        report.hint = Some(format!("`gpurun logs {name}` shows all that it wrote"));
    }
    report
}

fn host_name() -> String {
    nix::unistd::gethostname().map(|name| name.to_string_lossy().into_owned()).unwrap_or_else(|_| "HOST".into())
}

/// Who logs in to this host.
fn person() -> String {
    std::env::var("SUDO_USER").or_else(|_| std::env::var("USER")).unwrap_or_else(|_| "USER".into())
}
