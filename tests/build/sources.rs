//! Where files come from: URLs, what the ignore files leave of a context, images of other machines. And what a build says meanwhile.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::net::TcpListener;
use std::path::Path;
use std::process::Stdio;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::fixture::Fixture;

pub const TESTS: &[(&str, fn())] = &[
    ("sources::add_fetches_urls", urls),
    ("sources::add_fetches_again_what_may_work_later", later),
    ("sources::a_wait_for_a_server_can_be_interrupted", interrupted),
    ("sources::ignore_files_have_an_order", ignore_files),
    ("sources::an_ignore_file_that_cannot_be_read_is_an_error", unreadable_ignore_file),
    ("sources::a_bind_mount_shows_nothing_that_is_ignored", bound),
    ("sources::other_machines_images_are_no_base", other_machines),
    ("sources::arguments_that_nothing_uses_are_named", unused_arguments),
    ("sources::a_terminal_sees_that_time_goes_by", terminal),
];

/// A server that says the same to everybody, and how often it was asked.
fn server(status: &'static str, headers: &'static str, body: &'static str) -> (String, Arc<AtomicUsize>) {
    let length = body.len();
    answering(move |_| {
        format!("HTTP/1.1 {status}\r\nContent-Length: {length}\r\nConnection: close\r\n{headers}\r\n{body}")
    })
}

/// A server that gives the first, second and each further one who asks the answer for that number.
fn answering(answer: impl Fn(usize) -> String + Send + 'static) -> (String, Arc<AtomicUsize>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let asked = Arc::new(AtomicUsize::new(0));
    let count = asked.clone();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let Ok(mut stream) = stream else { continue };
            let lines = BufReader::new(stream.try_clone().unwrap()).lines();
            lines.map_while(Result::ok).take_while(|line| !line.is_empty()).for_each(drop);
            let _ = stream.write_all(answer(count.fetch_add(1, Ordering::Relaxed)).as_bytes());
        }
    });
    (format!("http://{address}"), asked)
}

fn urls() {
    use std::os::unix::fs::MetadataExt;
    const SHA256: &str = "sha256:2d711642b726b04401627ca9fbac32f5c8530fb1903cc4db02258717921a4881"; // of `x`
    let fixture = Fixture::shared();
    let context = fixture.context(&[]);
    let (url, asked) = server("200 OK", "Last-Modified: Wed, 21 Oct 2015 07:28:00 GMT\r\n", "x");
    let id = fixture.build_ok(&context, &format!("FROM box\nADD {url}/dir/name.txt?v=1 /d/\nADD {url}/a /d/b\n"), &[]);
    assert_eq!(fixture.news(&id), ["d 755 0:0 /d", "f 600 0:0 /d/b x", "f 600 0:0 /d/name.txt x"]);
    let dir = fixture.dir.join("fetched");
    fixture.ok(&["image", "unpack", &id, dir.to_str().unwrap()]);
    assert_eq!(dir.join("d/b").metadata().unwrap().mtime(), 1_445_412_480, "the time that the server tells");

    let text = format!("FROM box\nADD --checksum={SHA256} {url}/x /x\n");
    asked.store(0, Ordering::Relaxed);
    fixture.build_ok(&context, &text, &[]);
    let again = fixture.build(&context, &text, &[]);
    assert!(again.code == 0 && again.err.contains("CACHED"), "{}", again.err);
    assert_eq!(asked.load(Ordering::Relaxed), 1, "what a digest names is fetched once");
    let wrong = SHA256.replace("711", "000");
    let answer = fixture.build(&context, &format!("FROM box\nADD --checksum={wrong} {url}/x /x\n"), &[]);
    assert!(answer.code == 1 && answer.err.contains(SHA256) && answer.err.contains(&wrong), "{}", answer.err);

    let (url, _) = server("404 Not Found", "", "no");
    let answer = fixture.build(&context, &format!("FROM box\nADD {url}/x /x\n"), &[]);
    assert!(answer.code == 1 && answer.err.contains("line 2") && answer.err.contains("404"), "{}", answer.err);
}

fn later() {
    let fixture = Fixture::shared();
    let context = fixture.context(&[]);
    let head = |status: &str, more: &str| format!("HTTP/1.1 {status}\r\nConnection: close\r\n{more}\r\n\r\n");
    let (url, asked) = answering(move |nth| match nth {
        0 => head("503 Service Unavailable", "Retry-After: 1\r\nContent-Length: 0"),
        // It breaks off: asked for again, from the beginning.
        1 => head("200 OK", "Content-Length: 9") + "half",
        2 => String::new(),
        _ => head("200 OK", "Content-Length: 9") + "the whole",
    });
    let answer = fixture.build(&context, &format!("FROM box\nADD {url}/a /d/b\n"), &[]);
    assert_eq!((answer.code, asked.load(Ordering::Relaxed)), (0, 4), "{}", answer.err);
    assert_eq!(fixture.news(answer.out.trim()), ["d 755 0:0 /d", "f 600 0:0 /d/b the whole"]);
    let reported = format!(
        "cannot fetch `{url}/a`: the server answered 503 Service Unavailable and requests a pause of 1 s; trying again in 1 s"
    );
    assert!(answer.err.contains(&reported), "{}", answer.err);

    // An end there is, and what will not pass is not asked for again.
    for (status, more, times, snippets) in [
        ("500 Internal Server Error", "", 6, "hint: try again later; several attempts failed"),
        (
            "429 Too Many Requests",
            "Retry-After: 3600\r\n",
            1,
            "answered 429 Too Many Requests and requests a pause of 3600 s",
        ),
        ("410 Gone", "", 1, "answered 410 Gone"),
    ] {
        let (url, asked) = answering(move |_| head(status, &format!("{more}Content-Length: 0")));
        let answer = fixture.build(&context, &format!("FROM box\nADD {url}/a /d/b\n"), &[]);
        assert_eq!((answer.code, asked.load(Ordering::Relaxed)), (1, times), "{status}: {}", answer.err);
        assert!(
            answer.err.contains(snippets) && answer.err.contains(&format!("cannot fetch `{url}/a`")),
            "{}",
            answer.err
        );
    }
    // No server listens there, and the error says so.
    let nobody = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let answer = fixture.build(&context, &format!("FROM box\nADD http://{nobody}/a /d/b\n"), &[]);
    assert!(answer.code == 1 && !answer.err.contains("several attempts"), "{}", answer.err);
    assert!(answer.err.contains("refused"), "{}", answer.err);
}

fn interrupted() {
    let fixture = Fixture::shared();
    let context = fixture.context(&[]);
    let (url, _) = server("503 Service Unavailable", "Retry-After: 200\r\n", "");
    let file = context.with_extension("file-waits");
    fs::write(&file, format!("FROM box\nADD {url}/a /d/b\n")).unwrap();
    let mut build = fixture.command(&["build", "-f", file.to_str().unwrap(), context.to_str().unwrap()]);
    let mut build = build.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(build.stderr.take().unwrap()).lines().map_while(Result::ok);
    assert!(lines.any(|line| line.contains("trying again in 200 s")));
    let began = Instant::now();
    kill(Pid::from_raw(build.id() as i32), Signal::SIGINT).unwrap();
    let last = lines.last();
    assert_eq!(build.wait().unwrap().code(), Some(130), "{last:?}");
    assert!(last.is_some_and(|line| line.contains("interrupted")) && began.elapsed() < Duration::from_secs(20));
}

fn ignore_files() {
    let fixture = Fixture::shared();
    let context = fixture.context(&[("a", ""), ("b", ""), ("c", ""), ("d", "")]);
    let file = context.with_extension("file-own");
    fs::write(&file, "FROM box\nCOPY [abcd] /t/\n").unwrap();
    let build = || {
        let id = fixture.ok(&["build", "-f", file.to_str().unwrap(), context.to_str().unwrap()]);
        let names: Vec<String> =
            fixture.news(&id).iter().filter_map(|line| Some(line.trim().rsplit_once('/')?.1.to_owned())).collect();
        names[1..].concat()
    };
    assert_eq!(build(), "abcd");
    let own = |kind: &str| format!("{}.{kind}", file.display());
    for (path, ignored, left) in [
        (context.join(".dockerignore").display().to_string(), "a", "bcd"),
        (context.join(".containerignore").display().to_string(), "b", "acd"),
        (own("dockerignore"), "c", "abd"),
        (own("containerignore"), "d", "abc"),
    ] {
        fs::write(&path, ignored).unwrap();
        assert_eq!(build(), left, "{path} wins");
        // The hint names the file that counts.
        let text = format!("FROM box\nCOPY {ignored} /x\n");
        fs::write(&file, text).unwrap();
        let answer = fixture.run(&["build", "-f", file.to_str().unwrap(), context.to_str().unwrap()]);
        let name = Path::new(&path).strip_prefix(&context).unwrap_or(Path::new(&path)).display().to_string();
        let excluded = format!("`{ignored}` of the build context is excluded by `{name}`");
        assert!(answer.code == 1 && answer.err.contains(&excluded), "{}", answer.err);
        assert!(answer.err.contains(&format!("add the line `!{ignored}` at the end of `{name}`")), "{}", answer.err);
        fs::write(&file, "FROM box\nCOPY [abcd] /t/\n").unwrap();
    }
}

fn unreadable_ignore_file() {
    let fixture = Fixture::shared();
    let context = fixture.context(&[("a", "")]);
    let file = context.with_extension("file-unreadable");
    fs::write(&file, "FROM box\nCOPY a /a\n").unwrap();
    let ignore = format!("{}.dockerignore", file.display());
    fs::create_dir(&ignore).unwrap();
    let answer = fixture.run(&["build", "-f", file.to_str().unwrap(), context.to_str().unwrap()]);
    assert!(answer.code != 0 && answer.err.contains(&ignore), "{}", answer.err);
}

fn bound() {
    let fixture = Fixture::shared();
    let files = [("d/seen", "s"), ("d/.env", "password"), ("d/deep/key.pem", "key"), ("750:d/deep/tool", "t")];
    let context = fixture.context(&[&files[..], &[(".dockerignore", "**/.env\n**/*.pem\n")]].concat());
    let text = |flags: &str| format!("FROM box\nRUN --mount=target=/m{flags} cp -r /m/d /got && ! touch /m/new\n");
    let seen = ["d 755 0:0 /got", "d 755 0:0 /got/deep", "f 750 0:0 /got/deep/tool t", "f 644 0:0 /got/seen s"];
    assert_eq!(fixture.news(&fixture.build_ok(&context, &text(""), &[])), seen);
    // What cannot be seen is no part of the key either.
    fs::write(context.join("d/.env"), "another").unwrap();
    assert!(fixture.build(&context, &text(""), &[]).err.contains("CACHED"));
    let id = fixture.build_ok(&context, &text(",rw").replace("! touch", "touch"), &[]);
    assert_eq!(fixture.news(&id), seen);
    assert!(!context.join("new").exists(), "what is written to it is thrown away");
}

fn other_machines() {
    let fixture = Fixture::shared();
    let context = fixture.context(&[]);
    let mut archive = tar::Builder::new(Vec::new());
    let layer = [0; 1024];
    let digest = "5f70bf18a086007016e948b04aed3b82103a36bea41755b6cddfaf10ace3c6ef"; // of two empty blocks
    let config = format!(
        "{{\"architecture\":\"s390x\",\"os\":\"linux\",\"config\":{{}},\"rootfs\":{{\"type\":\"layers\",\"diff_ids\":[\"sha256:{digest}\"]}}}}"
    );
    let manifest = "[{\"Config\":\"config.json\",\"RepoTags\":[\"mainframe:1\"],\"Layers\":[\"layer.tar\"]}]";
    for (name, bytes) in
        [("manifest.json", manifest.as_bytes()), ("config.json", config.as_bytes()), ("layer.tar", &layer[..])]
    {
        let mut header = tar::Header::new_gnu();
        header.set_size(bytes.len() as u64);
        archive.append_data(&mut header, name, bytes).unwrap();
    }
    let path = context.with_extension("tar");
    fs::write(&path, archive.into_inner().unwrap()).unwrap();
    fixture.ok(&["image", "load", "--platform", "linux/s390x", path.to_str().unwrap()]);
    let answer = fixture.build(&context, "FROM mainframe:1\nRUN true\n", &[]);
    assert!(answer.code == 1 && answer.err.contains("line 1") && answer.err.contains("linux/s390x"), "{}", answer.err);
    let answer = fixture.build(&context, "FROM box\n", &["--platform", "linux/s390x"]);
    assert!(answer.code == 2 && answer.err.contains("--platform linux/s390x"), "{}", answer.err);
}

fn unused_arguments() {
    let fixture = Fixture::shared();
    let args = ["SOURCE_DATE_EPOCH=1600000000", "https_proxy=http://proxy.invalid", "TYPO=1", "USED=1"];
    let args: Vec<&str> = args.iter().flat_map(|arg| ["--build-arg", arg]).collect();
    let answer = fixture.build(&fixture.context(&[]), "FROM box\nARG USED\n", &args);
    let notices: Vec<&str> = answer.err.lines().filter(|line| line.contains("--build-arg")).collect();
    assert_eq!(
        notices,
        ["gpurun: `--build-arg TYPO` has no effect: the Containerfile has no `ARG TYPO`"],
        "{}",
        answer.err
    );
}

fn terminal() {
    let fixture = Fixture::shared();
    let answer =
        fixture.build(&fixture.context(&[]), "FROM box\nRUN sleep 1; echo end\n", &["--progress", "tty", "--no-cache"]);
    assert_eq!(answer.code, 0, "{}", answer.err);
    let frames: Vec<&str> = answer.err.split("=> [2/2] RUN").collect();
    assert!(frames.len() > 4, "a command that says nothing for a second is drawn anew: {:?}", answer.err);
    // Of two steps each drawing but the first goes over the one before.
    assert_eq!(answer.err.matches("\x1b[J").count(), frames.len() - 1, "{:?}", answer.err);
}
