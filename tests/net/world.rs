//! A host, another machine on a wire to it, and containers: network namespaces, seen from one process.
//!
//! A socket belongs to the namespace in which it was made, so servers and clients of all of them live side by side here.

use std::fmt::Debug;
use std::io::{self, Read};
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4, TcpListener, TcpStream, UdpSocket};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use gpurun::testing::net::{self, NetError, Network};
use gpurun::testing::request::{Attachment, NetworkMode, PortSpec};
use gpurun::testing::sys::netns;
use tempfile::TempDir;

/// How long a packet that must arrive may take, on a loaded machine. It costs time only when a test fails.
pub const PATIENCE: Duration = Duration::from_secs(60);
/// How long it is looked whether one arrives that must not. Those that may do so within a tenth of this.
pub const SILENCE: Duration = Duration::from_millis(400);

pub const HOST: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);
pub const OUTSIDE: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 2);
pub const LOOPBACK: Ipv4Addr = Ipv4Addr::LOCALHOST;

pub struct World {
    pub dir: TempDir,
    pub outside: OwnedFd,
}

impl World {
    /// The calling process's namespace becomes the host.
    pub fn new() -> Self {
        let outside = netns::create().unwrap();
        sh(
            "ip link set lo up; ip link add wire type veth peer name far; ip addr add 192.0.2.1/24 dev wire; ip link set wire up",
        );
        let fd = std::os::fd::AsRawFd::as_raw_fd(&outside);
        sh(&format!("ip link set far netns /proc/{}/fd/{fd}", std::process::id()));
        within(&outside, || sh("ip addr add 192.0.2.2/24 dev far; ip link set far up"));
        Self { dir: TempDir::new().unwrap(), outside }
    }

    pub fn state_dir(&self) -> PathBuf {
        self.dir.path().join("net")
    }

    pub fn try_container(&self, name: &str, publish: &[&str]) -> Result<Network, NetError> {
        self.try_container_in(&self.state_dir(), name, publish)
    }

    /// A container of this run directory's.
    pub fn try_container_in(&self, state_dir: &Path, name: &str, publish: &[&str]) -> Result<Network, NetError> {
        let ports: Vec<PortSpec> = publish.iter().flat_map(|text| PortSpec::parse(text).unwrap()).collect();
        net::setup(&net::Request {
            id: &id(name),
            name,
            user: "ada",
            hostname: name,
            mode: NetworkMode::Bridge,
            attachments: &[Attachment { network: "bridge".into(), aliases: Vec::new(), ip: None, mac: None }],
            networks: &net::Networks::new(self.dir.path()),
            hosts: &self.dir.path().join("hosts"),
            ports: &ports,
            state_dir,
            subnet: None,
            servers: &[],
        })
    }

    #[track_caller]
    pub fn container(&self, name: &str, publish: &[&str]) -> Container {
        let network = self.try_container(name, publish).unwrap_or_else(|error| panic!("{name}: {}", report(error)));
        Container { ip: network.ip.unwrap(), network }
    }

    pub fn teardown(&self, name: &str) {
        net::teardown(&self.state_dir(), &id(name)).unwrap();
    }

    pub fn reconcile(&self, living: &[&str]) {
        let living: Vec<String> = living.iter().map(|name| id(name)).collect();
        net::reconcile(&self.state_dir(), &living, &[]).unwrap();
    }

    /// Leases, published ports and devices of containers that stand.
    pub fn leftovers(&self) -> Vec<String> {
        let mut found: Vec<String> = std::fs::read_dir(self.state_dir())
            .into_iter()
            .flatten()
            .flatten()
            .map(|entry| entry.file_name().to_string_lossy().into_owned())
            .filter(|name| name.ends_with(".json"))
            .collect();
        found.extend(published());
        found.extend(veths());
        found
    }
}

/// What a person would read.
pub fn report(error: NetError) -> String {
    gpurun::testing::report::Report::from(error).to_string()
}

/// 64 hexadecimal digits that begin with the name's own.
pub fn id(name: &str) -> String {
    let mut id: String = name.bytes().map(|byte| format!("{byte:02x}")).collect();
    id.extend(std::iter::repeat_n('0', 64 - id.len()));
    id
}

/// Lines of published ports in the table.
pub fn published() -> Vec<String> {
    let shown = sh("nft list table inet gpurun 2>/dev/null || true");
    shown.lines().filter(|line| line.contains("gpurun:")).map(|line| line.trim().to_owned()).collect()
}

/// The host's ends of containers' legs.
pub fn veths() -> Vec<String> {
    sh("ip -o link show type veth").lines().filter(|line| line.contains(": gp")).map(str::to_owned).collect()
}

pub struct Container {
    pub network: Network,
    pub ip: Ipv4Addr,
}

impl Container {
    pub fn ns(&self) -> &OwnedFd {
        self.network.namespace.as_ref().unwrap()
    }

    pub fn tcp(&self, port: u16) -> TcpListener {
        within(self.ns(), || TcpListener::bind((Ipv4Addr::UNSPECIFIED, port)).unwrap())
    }

    pub fn udp(&self, port: u16) -> UdpSocket {
        let socket = within(self.ns(), || UdpSocket::bind((Ipv4Addr::UNSPECIFIED, port)).unwrap());
        socket.set_read_timeout(Some(SILENCE)).unwrap();
        socket
    }

    pub fn gateway(&self) -> Ipv4Addr {
        self.network.gateway.unwrap()
    }
}

#[track_caller]
pub fn within<T>(namespace: &OwnedFd, run: impl FnOnce() -> T) -> T {
    netns::inside(namespace, run).unwrap()
}

/// Connects from a namespace (`None`: the host) and insists that it is this server that accepts; answers with whom the server saw.
#[track_caller]
pub fn reach(from: Option<&OwnedFd>, to: (Ipv4Addr, u16), server: &TcpListener) -> Ipv4Addr {
    let client = connect(from, to, PATIENCE).unwrap_or_else(|error| panic!("{to:?}: {error}"));
    server.set_nonblocking(true).unwrap();
    let (mut stream, peer) = eventually("the connection arrives at the server", || server.accept().ok());
    // A word, to be sure that it is the same connection, and that packets pass both ways.
    io::Write::write_all(&mut { &client }, b"hello").unwrap();
    stream.set_nonblocking(false).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    let mut snippet = [0; 5];
    stream.read_exact(&mut snippet).unwrap();
    assert_eq!(&snippet, b"hello");
    match peer {
        SocketAddr::V4(peer) => *peer.ip(),
        SocketAddr::V6(peer) => panic!("{peer}"),
    }
}

/// Checks that a connection is not answered, or refused.
#[track_caller]
pub fn cannot_reach(from: Option<&OwnedFd>, to: (Ipv4Addr, u16)) {
    assert!(connect(from, to, SILENCE).is_err(), "{to:?} can be reached");
}

pub fn connect(from: Option<&OwnedFd>, to: (Ipv4Addr, u16), time: Duration) -> io::Result<TcpStream> {
    let to = SocketAddr::V4(SocketAddrV4::new(to.0, to.1));
    match from {
        Some(namespace) => within(namespace, || TcpStream::connect_timeout(&to, time)),
        None => TcpStream::connect_timeout(&to, time),
    }
}

pub fn udp_client(from: Option<&OwnedFd>) -> UdpSocket {
    let bind = || UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).unwrap();
    let socket = match from {
        Some(namespace) => within(namespace, bind),
        None => bind(),
    };
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    socket
}

/// Sends a word to a server and insists on an answer from where the word was sent to.
#[track_caller]
pub fn echo(client: &UdpSocket, to: (Ipv4Addr, u16), server: &UdpSocket) {
    client.send_to(b"ping", to).unwrap();
    let mut buffer = [0; 16];
    server.set_read_timeout(Some(PATIENCE)).unwrap();
    let (length, peer) = server.recv_from(&mut buffer).unwrap_or_else(|error| panic!("to {to:?}: {error}"));
    server.send_to(&buffer[..length], peer).unwrap();
    let (length, from) = client.recv_from(&mut buffer).unwrap_or_else(|error| panic!("back from {to:?}: {error}"));
    assert_eq!((&buffer[..length], from), (&b"ping"[..], SocketAddr::from(to)));
}

#[track_caller]
pub fn eventually<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(Instant::now() < deadline, "not in time: {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Runs shell commands that must all work, in the namespace that the process is in.
#[track_caller]
pub fn sh(line: &str) -> String {
    let output = Command::new("sh").args(["-ec", line]).stdin(Stdio::null()).output().unwrap();
    assert!(output.status.success(), "{line}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

#[track_caller]
pub fn says<T: Debug>(result: Result<T, NetError>, parts: &[&str]) {
    let text = report(result.expect_err("an error"));
    for part in parts {
        assert!(text.contains(part), "`{part}` is not in: {text}");
    }
}
