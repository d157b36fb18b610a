//! A minimal HTTP client for the readiness check and for Jupyter's API: one request per connection. The readiness check
//! reads only the head of a response.
//!
//! A client library does not fit. The caller may not start threads, the server is in a container and may send anything
//! for as long as it likes, and the caller must be able to notice while it waits that the container has ended.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use rustls::pki_types::ServerName;
use rustls::{ClientConnection, StreamOwned};

use super::tls::Pinned;

/// tornado's own limit for a response head.
const MAX_HEAD: usize = 64 << 10;
/// Maximum size of a response body that is read.
const MAX_BODY: usize = 1 << 20;
/// Interval between two calls of `interrupted`.
const TICK: Duration = Duration::from_millis(100);

#[derive(Debug, Clone, Copy)]
pub(super) struct Request<'a> {
    pub method: &'a str,
    pub path: &'a str,
    /// Names and values, without line endings.
    pub headers: &'a [(&'a str, String)],
    /// The form, if any.
    pub body: Option<&'a str>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Response {
    pub status: u16,
    headers: Vec<(String, String)>,
}

impl Response {
    pub(super) fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(key, _)| key.eq_ignore_ascii_case(name)).map(|(_, value)| value.as_str())
    }

    /// `name=value` of each Set-Cookie header with a value that is not empty.
    pub(super) fn cookies(&self) -> impl Iterator<Item = (&str, &str)> {
        let set = self.headers.iter().filter(|(key, _)| key.eq_ignore_ascii_case("set-cookie"));
        set.filter_map(|(_, value)| value.split(';').next()?.trim().split_once('='))
            .filter(|(_, value)| !value.is_empty())
    }
}

/// The server to connect to.
#[derive(Debug, Clone, Copy)]
pub(super) struct Server<'a> {
    pub address: SocketAddr,
    /// With HTTPS, the server's certificate.
    pub tls: Option<&'a Pinned>,
}

/// A connection.
enum Stream {
    Plain(TcpStream),
    Tls(Box<StreamOwned<ClientConnection, TcpStream>>),
}

impl Stream {
    /// Connects, and completes the handshake of TLS.
    fn connect(server: Server<'_>, patience: Duration) -> Result<Self, HttpError> {
        let mut stream = TcpStream::connect_timeout(&server.address, patience).map_err(HttpError::Connect)?;
        stream.set_read_timeout(Some(if server.tls.is_some() { patience } else { TICK })).map_err(HttpError::Broken)?;
        stream.set_write_timeout(Some(patience)).map_err(HttpError::Broken)?;
        let Some(pinned) = server.tls else { return Ok(Self::Plain(stream)) };
        let failed = |error: rustls::Error| HttpError::Broken(io::Error::other(error));
        let name = ServerName::from(server.address.ip());
        let mut connection = ClientConnection::new(pinned.config().map_err(failed)?, name).map_err(failed)?;
        while connection.is_handshaking() {
            connection.complete_io(&mut stream).map_err(HttpError::Broken)?;
        }
        stream.set_read_timeout(Some(TICK)).map_err(HttpError::Broken)?;
        Ok(Self::Tls(Box::new(StreamOwned::new(connection, stream))))
    }
}

impl Read for Stream {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Plain(stream) => stream.read(buffer),
            Self::Tls(stream) => stream.read(buffer),
        }
    }
}

impl Write for Stream {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Self::Plain(stream) => stream.write(bytes),
            Self::Tls(stream) => stream.write(bytes),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        match self {
            Self::Plain(stream) => stream.flush(),
            Self::Tls(stream) => stream.flush(),
        }
    }
}

#[derive(Debug, thiserror::Error)]
pub(super) enum HttpError {
    #[error("no connection")]
    Connect(#[source] io::Error),
    #[error("the connection broke")]
    Broken(#[source] io::Error),
    #[error("the connection was closed without an answer")]
    Closed,
    #[error("no answer in time")]
    Late,
    #[error("the answer is not HTTP")]
    NotHttp,
    /// `interrupted` returned true.
    #[error("interrupted")]
    Interrupted,
}

/// Sends one request and reads the head of the response, until `end`. Calls `interrupted` about ten times per second.
pub(super) fn exchange(
    server: Server<'_>,
    request: &Request<'_>,
    end: Instant,
    interrupted: &mut dyn FnMut() -> bool,
) -> Result<Response, HttpError> {
    talk(server, request, end, interrupted).map(|(response, ..)| response)
}

/// Sends one request and reads the whole response, whose end is the end of the connection.
pub(super) fn fetch(server: Server<'_>, request: &Request<'_>, end: Instant) -> Result<(Response, Vec<u8>), HttpError> {
    let (response, mut body, mut stream) = talk(server, request, end, &mut || false)?;
    if response.header("transfer-encoding").is_some() {
        return Err(HttpError::NotHttp);
    }
    let length = response.header("content-length").and_then(|text| text.parse::<usize>().ok());
    let mut buffer = [0; 4096];
    while body.len() <= MAX_BODY {
        if length.is_some_and(|length| body.len() >= length) {
            return Ok((response, body));
        }
        match stream.read(&mut buffer) {
            Ok(0) => return Ok((response, body)),
            Ok(count) => body.extend_from_slice(&buffer[..count]),
            Err(error) if is_pause(&error) => {}
            Err(error) => return Err(HttpError::Broken(error)),
        }
        if Instant::now() >= end {
            return Err(HttpError::Late);
        }
    }
    Err(HttpError::NotHttp)
}

/// Whether a read has only reached its time limit.
fn is_pause(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut | io::ErrorKind::Interrupted)
}

/// Returns the head of the response, the beginning of its body, and the connection.
fn talk(
    server: Server<'_>,
    request: &Request<'_>,
    end: Instant,
    interrupted: &mut dyn FnMut() -> bool,
) -> Result<(Response, Vec<u8>, Stream), HttpError> {
    let left = end.saturating_duration_since(Instant::now());
    if left.is_zero() {
        return Err(HttpError::Late);
    }
    let mut stream = Stream::connect(server, left.min(Duration::from_secs(2)))?;
    stream.write_all(&head(server.address, request)).map_err(HttpError::Broken)?;
    let mut bytes = Vec::new();
    let mut buffer = [0; 4096];
    loop {
        // The end mark may start in the last three bytes of the data so far.
        let unseen = bytes.len().saturating_sub(3);
        match stream.read(&mut buffer) {
            Ok(0) if bytes.is_empty() => return Err(HttpError::Closed),
            Ok(0) => return Err(HttpError::NotHttp),
            Ok(count) => bytes.extend_from_slice(&buffer[..count]),
            Err(error) if is_pause(&error) => {}
            Err(error) => return Err(HttpError::Broken(error)),
        }
        if let Some(end) = find(&bytes[unseen..], b"\r\n\r\n") {
            let head = unseen + end;
            let response = parse(&bytes[..head]).ok_or(HttpError::NotHttp)?;
            return Ok((response, bytes.split_off(head + b"\r\n\r\n".len()), stream));
        }
        if bytes.len() > MAX_HEAD || !b"HTTP/1".starts_with(&bytes[..bytes.len().min(6)]) {
            return Err(HttpError::NotHttp);
        }
        if interrupted() {
            return Err(HttpError::Interrupted);
        }
        if Instant::now() >= end {
            return Err(HttpError::Late);
        }
    }
}

fn find(bytes: &[u8], mark: &[u8]) -> Option<usize> {
    bytes.windows(mark.len()).position(|window| window == mark)
}

fn head(address: SocketAddr, request: &Request<'_>) -> Vec<u8> {
    let mut text = format!("{} {} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n", request.method, request.path);
    for (name, value) in request.headers {
        text.push_str(&format!("{name}: {value}\r\n"));
    }
    if let Some(body) = request.body {
        text.push_str(&format!(
            "Content-Type: application/x-www-form-urlencoded\r\nContent-Length: {}\r\n",
            body.len()
        ));
    }
    text.push_str("\r\n");
    text.push_str(request.body.unwrap_or_default());
    text.into_bytes()
}

fn parse(head: &[u8]) -> Option<Response> {
    let text = String::from_utf8_lossy(head);
    let mut lines = text.split("\r\n");
    let mut fields = lines.next()?.split(' ');
    fields.next().filter(|version| version.starts_with("HTTP/1."))?;
    let status = fields.next()?.parse().ok().filter(|status| (100..600).contains(status))?;
    let headers =
        lines.filter_map(|line| line.split_once(':')).map(|(key, value)| (key.trim().into(), value.trim().into()));
    Some(Response { status, headers: headers.collect() })
}

/// Encodes a value of an `application/x-www-form-urlencoded` form.
pub(super) fn encode(text: &str) -> String {
    let mut encoded = String::new();
    for byte in text.bytes() {
        match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => encoded.push(char::from(byte)),
            _ => encoded.push_str(&format!("%{byte:02X}")),
        }
    }
    encoded
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn heads() {
        let text = b"HTTP/1.1 302 Found\r\nLocation: /lab\r\nset-cookie: _xsrf=2|a|b; Path=/\r\nSet-Cookie: gone=; expires=x\r\nSet-Cookie: u=\"1:2=\"; HttpOnly";
        let response = parse(text).unwrap();
        assert_eq!((response.status, response.header("LOCATION")), (302, Some("/lab")));
        assert_eq!(response.cookies().collect::<Vec<_>>(), [("_xsrf", "2|a|b"), ("u", "\"1:2=\"")]);
        for bad in ["", "HTTP/1.1", "HTTP/1.1 x", "HTTP/2 200 OK", "HTTP/1.1 99 x", "SSH-2.0-x 200 y"] {
            assert_eq!(parse(bad.as_bytes()), None, "{bad}");
        }
    }

    #[test]
    fn forms() {
        assert_eq!(encode("hö &=+%"), "h%C3%B6%20%26%3D%2B%25");
    }
}
