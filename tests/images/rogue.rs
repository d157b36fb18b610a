//! A registry that a test controls: it answers correctly, or wrongly in any way that the test requests. It counts and records requests.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use crate::test_image::{Blobs, Packing, TestImage};

#[derive(Debug, Clone)]
pub struct Request {
    pub path: String,
    pub headers: BTreeMap<String, String>,
    /// How often this path was asked for before.
    pub nth: usize,
}

impl Request {
    pub fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", String::as_str)
    }
}

/// How to answer.
#[derive(Debug, Clone)]
pub enum Reply {
    /// As a good registry would.
    Right,
    Status(u16, Vec<(&'static str, String)>, Vec<u8>),
    /// The right answer, but the connection is reset after so many bytes of the body.
    Cut(usize),
    /// The same, and it knows no ranges.
    CutDeaf(usize),
    /// A `Content-Range` other than that of the request.
    WrongRange,
    /// The right answer, but only so many bytes of the range that was asked for.
    Short(usize),
    /// So many bytes of the body, then silence until the client goes.
    Silent(usize),
    /// A few bytes at a time, for ever.
    Trickle,
    /// A hundred bytes, and after a moment the rest.
    Hesitant,
    /// Half a megabyte a second.
    Slow,
    /// One bit of what is sent is another one.
    Damaged,
    /// Other bytes under the same name.
    Other(Vec<u8>),
    /// A `Content-Length` that is not true.
    Length(u64),
    /// These bytes, of something that is longer.
    Half(Vec<u8>),
    /// An error whose words trickle.
    Grumble(u16),
}

type Rule = dyn Fn(&Request) -> Reply + Send + Sync;

struct Shared {
    blobs: Mutex<Blobs>,
    /// `name:tag` → manifest digest.
    tags: Mutex<BTreeMap<String, String>>,
    log: Mutex<Vec<Request>>,
    rule: Box<Rule>,
    over: AtomicBool,
}

pub struct Rogue {
    shared: Arc<Shared>,
    pub port: u16,
}

impl Rogue {
    pub fn new(rule: impl Fn(&Request) -> Reply + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let shared = Arc::new(Shared {
            blobs: Mutex::default(),
            tags: Mutex::default(),
            log: Mutex::default(),
            rule: Box::new(rule),
            over: AtomicBool::new(false),
        });
        let accepting = shared.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                if accepting.over.load(Ordering::Relaxed) {
                    return;
                }
                let shared = accepting.clone();
                // A client that goes away is what many tests are about.
                std::thread::spawn(move || drop(answer(&shared, stream)));
            }
        });
        Self { shared, port }
    }

    /// Serves an image under `name:tag`; answers the digests of its layers.
    pub fn with(&self, tag: &str, test_image: &TestImage, packing: Packing) -> Vec<String> {
        let (blobs, manifest, layers) = test_image.blobs(packing);
        self.put(blobs);
        self.tag(tag, &manifest);
        layers
    }

    pub fn put(&self, blobs: Blobs) {
        self.shared.blobs.lock().unwrap().extend(blobs);
    }

    pub fn tag(&self, tag: &str, digest: &str) {
        self.shared.tags.lock().unwrap().insert(tag.into(), digest.into());
    }

    pub fn name(&self, image: &str) -> String {
        format!("127.0.0.1:{}/{image}", self.port)
    }

    /// The requests so far for paths that contain `part`.
    pub fn seen(&self, part: &str) -> Vec<Request> {
        self.shared.log.lock().unwrap().iter().filter(|request| request.path.contains(part)).cloned().collect()
    }
}

impl Drop for Rogue {
    fn drop(&mut self) {
        self.shared.over.store(true, Ordering::Relaxed);
        let _ = TcpStream::connect(("127.0.0.1", self.port));
    }
}

fn answer(shared: &Shared, mut stream: TcpStream) -> std::io::Result<()> {
    let mut first = [0; 1];
    // A TLS handshake: no such thing here.
    if stream.peek(&mut first)? == 0 || first[0] == 0x16 {
        return Ok(());
    }
    let mut reader = BufReader::new(stream.try_clone()?);
    let mut line = String::new();
    reader.read_line(&mut line)?;
    let path = line.split_whitespace().nth(1).unwrap_or_default().to_owned();
    let mut headers = BTreeMap::new();
    loop {
        line.clear();
        reader.read_line(&mut line)?;
        match line.trim_end().split_once(':') {
            Some((name, value)) => headers.insert(name.to_ascii_lowercase(), value.trim().to_owned()),
            None => break,
        };
    }
    let request = {
        let mut log = shared.log.lock().unwrap();
        let nth = log.iter().filter(|known| known.path == path).count();
        let request = Request { path, headers, nth };
        log.push(request.clone());
        request
    };
    let reply = (shared.rule)(&request);
    if let Reply::Status(code, headers, body) = reply {
        let mut head = format!("HTTP/1.1 {code} x\r\nContent-Length: {}\r\nConnection: close\r\n", body.len());
        headers.iter().for_each(|(name, value)| head.push_str(&format!("{name}: {value}\r\n")));
        stream.write_all(format!("{head}\r\n").as_bytes())?;
        return stream.write_all(&body);
    }
    match reply {
        Reply::Half(bytes) => {
            write!(stream, "HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n", bytes.len() + 1)?;
            return stream.write_all(&bytes);
        }
        Reply::Grumble(code) => {
            write!(stream, "HTTP/1.1 {code} x\r\nContent-Length: 10000\r\n\r\n")?;
            return trickle(&mut stream, &[b' '; 10_000]);
        }
        _ => {}
    }
    if request.path == "/v2/" {
        return stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\n{}");
    }
    let Some(body) = content(shared, &request) else {
        let body = r#"{"errors":[{"code":"NAME_UNKNOWN","message":"never heard of it"}]}"#;
        return write!(stream, "HTTP/1.1 404 x\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}", body.len());
    };
    send(stream, &request, body, &reply)
}

fn trickle(stream: &mut TcpStream, body: &[u8]) -> std::io::Result<()> {
    for piece in body.chunks(16) {
        stream.write_all(piece)?;
        std::thread::sleep(Duration::from_millis(50));
    }
    Ok(())
}

fn content(shared: &Shared, request: &Request) -> Option<Vec<u8>> {
    let (front, last) = request.path.rsplit_once('/')?;
    let digest = match last.starts_with("sha256:") {
        true => last.to_owned(),
        false => {
            let name = front.strip_prefix("/v2/")?.strip_suffix("/manifests")?;
            shared.tags.lock().unwrap().get(&format!("{name}:{last}"))?.clone()
        }
    };
    shared.blobs.lock().unwrap().get(&digest).cloned()
}

/// The bytes that a request asks for: `bytes=FIRST-` or `bytes=FIRST-LAST`, of the version that `If-Range` names.
fn range(request: &Request, etag: &str, whole: usize) -> Option<std::ops::Range<usize>> {
    let (first, last) = request.header("range").strip_prefix("bytes=")?.split_once('-')?;
    let end = if last.is_empty() { whole } else { whole.min(last.parse::<usize>().ok()? + 1) };
    let same = matches!(request.header("if-range"), "" | "*") || request.header("if-range") == etag;
    same.then_some(first.parse::<usize>().ok()?.min(end)..end)
}

fn send(mut stream: TcpStream, request: &Request, body: Vec<u8>, reply: &Reply) -> std::io::Result<()> {
    let body = if let Reply::Other(other) = reply { other.clone() } else { body };
    let whole = body.len();
    let etag = format!("\"{}\"", crate::test_image::digest(&body));
    let range = range(request, &etag, whole).filter(|_| !matches!(reply, Reply::CutDeaf(_)));
    let mut sent = range.clone().unwrap_or(0..whole);
    if let Reply::Short(most) = reply {
        sent.end = sent.end.min(sent.start + most);
    }
    let body = &body[sent.clone()];
    let length = if let Reply::Length(length) = reply { *length } else { body.len() as u64 };
    let shift = usize::from(matches!(reply, Reply::WrongRange));
    let head = match range {
        Some(_) => format!(
            "HTTP/1.1 206 x\r\nContent-Range: bytes {}-{}/{whole}\r\n",
            sent.start + shift,
            (sent.end + shift).saturating_sub(1)
        ),
        None => "HTTP/1.1 200 OK\r\n".to_owned(),
    };
    let head = format!("{head}ETag: {etag}\r\n");
    let kind = "application/vnd.oci.image.manifest.v1+json";
    write!(stream, "{head}Content-Type: {kind}\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n")?;
    match reply {
        Reply::Cut(at) | Reply::CutDeaf(at) => stream.write_all(&body[..(*at).min(body.len())]),
        Reply::Silent(at) => {
            stream.write_all(&body[..(*at).min(body.len())])?;
            // Until the client has had enough.
            stream.read(&mut [0]).map(drop)
        }
        Reply::Trickle => trickle(&mut stream, body),
        Reply::Hesitant => {
            stream.write_all(&body[..100])?;
            std::thread::sleep(Duration::from_millis(200));
            stream.write_all(&body[100..])
        }
        Reply::Slow => {
            for piece in body.chunks(64 << 10) {
                stream.write_all(piece)?;
                std::thread::sleep(Duration::from_millis(125));
            }
            Ok(())
        }
        Reply::Damaged => {
            let mut body = body.to_vec();
            body[1] ^= 1;
            stream.write_all(&body)
        }
        _ => stream.write_all(body),
    }
}
