//! As much HTTP as the readiness check needs: one request a connection, the head of the answer.
//!
//! No client library: this runs where no thread may be started, the other side is a container and may send anything for as long as it
//! likes, and whoever waits has to be able to look up and see that the container died.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

/// tornado's own limit for a head.
const MAX_HEAD: usize = 64 << 10;
/// Between two looks at what else happened.
const TICK: Duration = Duration::from_millis(100);

#[derive(Debug, Clone, Copy)]
pub(super) struct Request<'a> {
    pub method: &'a str,
    pub path: &'a str,
    /// Names and values without line ends.
    pub headers: &'a [(&'a str, String)],
    /// A form, if any.
    pub body: Option<&'a str>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Response {
    pub status: u16,
    headers: Vec<(String, String)>,
}

impl Response {
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(key, _)| key.eq_ignore_ascii_case(name)).map(|(_, value)| value.as_str())
    }

    /// `name=value` of each Set-Cookie that sets something.
    pub fn cookies(&self) -> impl Iterator<Item = (&str, &str)> {
        let set = self.headers.iter().filter(|(key, _)| key.eq_ignore_ascii_case("set-cookie"));
        set.filter_map(|(_, value)| value.split(';').next()?.trim().split_once('='))
            .filter(|(_, value)| !value.is_empty())
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
    /// `interrupted` said so.
    #[error("interrupted")]
    Interrupted,
}

/// Sends one request and reads the head of the answer, until `end`; `interrupted` is asked about every tenth of a second.
pub(super) fn exchange(
    address: SocketAddr,
    request: &Request<'_>,
    end: Instant,
    interrupted: &mut dyn FnMut() -> bool,
) -> Result<Response, HttpError> {
    let left = end.saturating_duration_since(Instant::now());
    if left.is_zero() {
        return Err(HttpError::Late);
    }
    let mut stream =
        TcpStream::connect_timeout(&address, left.min(Duration::from_secs(2))).map_err(HttpError::Connect)?;
    stream.set_read_timeout(Some(TICK)).map_err(HttpError::Broken)?;
    stream.set_write_timeout(Some(left.min(Duration::from_secs(2)))).map_err(HttpError::Broken)?;
    stream.write_all(&head(address, request)).map_err(HttpError::Broken)?;
    let mut bytes = Vec::new();
    let mut buffer = [0; 4096];
    loop {
        // The mark may begin in the last three bytes that were there before.
        let unseen = bytes.len().saturating_sub(3);
        match stream.read(&mut buffer) {
            Ok(0) if bytes.is_empty() => return Err(HttpError::Closed),
            Ok(0) => return Err(HttpError::NotHttp),
            Ok(count) => bytes.extend_from_slice(&buffer[..count]),
            Err(error)
                if matches!(
                    error.kind(),
                    io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut | io::ErrorKind::Interrupted
                ) => {}
            Err(error) => return Err(HttpError::Broken(error)),
        }
        if let Some(end) = find(&bytes[unseen..], b"\r\n\r\n") {
            return parse(&bytes[..unseen + end]).ok_or(HttpError::NotHttp);
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
    let mut words = lines.next()?.split(' ');
    words.next().filter(|version| version.starts_with("HTTP/1."))?;
    let status = words.next()?.parse().ok().filter(|status| (100..600).contains(status))?;
    let headers =
        lines.filter_map(|line| line.split_once(':')).map(|(key, value)| (key.trim().into(), value.trim().into()));
    Some(Response { status, headers: headers.collect() })
}

/// A value of an `application/x-www-form-urlencoded` form.
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
