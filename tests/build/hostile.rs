//! Contexts and containers that mean no good, and secrets that must be found nowhere.

use std::fs;
use std::io::Write;
use std::path::Path;
use std::process::Command;

use crate::fixture::Fixture;

pub const TESTS: &[(&str, fn())] = &[
    ("hostile::links_that_lead_out_of_the_context", links_out),
    ("hostile::a_containerfile_that_leads_out_of_the_context", containerfile_out),
    ("hostile::an_ignore_file_that_leads_out_of_the_context", ignore_out),
    ("hostile::a_fifo_in_the_context_is_refused_and_never_opened", fifo),
    ("hostile::a_device_in_the_context_is_refused", device),
    ("hostile::an_archive_that_climbs_out_is_refused", climbing_archive),
    ("hostile::archives_that_others_packed", other_packings),
    ("hostile::archives_that_are_none", bad_archives),
    ("hostile::secrets_are_found_nowhere", secrets),
    ("hostile::host_settings_stay_out_of_the_image", host_settings),
    ("hostile::a_container_that_prints_control_sequences", control_sequences),
];

fn links_out() {
    let fixture = Fixture::shared();
    let context =
        fixture.context(&[("up", "->../../../../etc/hostname"), ("abs", "->/etc/hostname"), ("dir/inner", "->/etc")]);
    for name in ["up", "abs", "dir/inner/hostname"] {
        let answer = fixture.build(&context, &format!("FROM box\nCOPY {name} /x\n"), &[]);
        assert_eq!(answer.code, 1, "{name}: {}", answer.err);
        assert!(answer.err.contains(name), "{}", answer.err);
    }
    let id = fixture.build_ok(&context, "FROM box\nCOPY dir /d\n", &[]);
    assert_eq!(fixture.news(&id), ["d 755 0:0 /d", "l - 0:0 /d/inner /etc"], "a link in a directory is copied as one");
}

/// What these files say must not be read, let alone shown.
const SECRET: &str = "root:correct-horse-battery";

fn containerfile_out() {
    let fixture = Fixture::shared();
    let outside = fixture.context(&[("secret", SECRET), ("Dockerfile", "FROM box\nLABEL a=b\n")]);
    let secret = outside.join("secret");
    let up = format!("->../{}/secret", outside.file_name().unwrap().to_str().unwrap());
    let to = |path: &Path| format!("->{}", path.display());
    for name in ["Containerfile", "Dockerfile"] {
        for target in [up.as_str(), &to(&secret), "->/etc/passwd", "->nowhere"] {
            let context = fixture.context(&[(name, target), ("sub/x", ""), ("out", &to(&outside))]);
            let by_name = context.join(name);
            let by_other_name = context.join("sub/..").join(name);
            for flags in [&[][..], &["-f", by_name.to_str().unwrap()], &["-f", by_other_name.to_str().unwrap()]] {
                let mut args = vec!["build"];
                args.extend(flags);
                args.push(context.to_str().unwrap());
                let answer = fixture.run(&args);
                assert_eq!(answer.code, 1, "{args:?}: {}", answer.err);
                let shows = answer.err.contains("root:") || answer.err.contains("unknown instruction");
                assert!(!shows && answer.err.contains("which does not exist inside the context"), "{}", answer.err);
            }
        }
    }
    // A link on the way to the file is a link, too.
    let context = fixture.context(&[("out", &to(&outside))]);
    let answer = fixture.run(&["build", "-f", context.join("out/secret").to_str().unwrap(), context.to_str().unwrap()]);
    assert!(answer.code == 1 && !answer.err.contains("root:"), "{}", answer.err);
    // A link that stays inside, and a file that the caller keeps elsewhere, are read.
    let context = fixture.context(&[("docker/D", "FROM box\nLABEL a=b\n"), ("Dockerfile", "->docker/D")]);
    fixture.ok(&["build", context.to_str().unwrap()]);
    let elsewhere = fixture.context(&[("D", &to(&outside.join("Dockerfile")))]).join("D");
    fixture.ok(&["build", "-f", elsewhere.to_str().unwrap(), context.to_str().unwrap()]);
}

fn ignore_out() {
    let fixture = Fixture::shared();
    // Not a pattern: an error that understood it would quote it.
    let outside = fixture.context(&[("secret", "[root:correct-horse\n")]).join("secret");
    let target = format!("->{}", outside.display());
    for name in ["D.dockerignore", "D.containerignore", ".dockerignore", ".containerignore"] {
        let context = fixture.context(&[("D", "FROM box\n"), (name, &target)]);
        let answer = fixture.run(&["build", "-f", context.join("D").to_str().unwrap(), context.to_str().unwrap()]);
        assert!(answer.code != 0 && answer.err.contains(&format!("`{name}`")), "{}", answer.err);
        assert!(!answer.err.contains("root:"), "{}", answer.err);
        assert!(answer.err.contains("which does not exist inside the context"), "{}", answer.err);
    }
}

fn fifo() {
    let fixture = Fixture::shared();
    let context = fixture.context(&[("d/x", "")]);
    let path = context.join("d/pipe");
    nix::unistd::mkfifo(&path, nix::sys::stat::Mode::from_bits_truncate(0o600)).unwrap();
    // A reader or writer that opened it would wait forever, because the other end is not open.
    let answer = fixture.build(&context, "FROM box\nCOPY d /d\n", &[]);
    assert!(answer.code == 1 && answer.err.contains("`d/pipe`") && answer.err.contains("a FIFO"), "{}", answer.err);
    fixture.build_ok(&context, "FROM box\nCOPY d/x /x\n", &[]);
}

fn device() {
    let fixture = Fixture::shared();
    let context = fixture.context(&[]);
    let (kind, mode) = (nix::sys::stat::SFlag::S_IFCHR, nix::sys::stat::Mode::from_bits_truncate(0o600));
    nix::sys::stat::mknod(&context.join("zero"), kind, mode, nix::sys::stat::makedev(1, 5)).unwrap();
    let answer = fixture.build(&context, "FROM box\nCOPY zero /z\n", &[]);
    assert!(answer.code == 1 && answer.err.contains("a device"), "{}", answer.err);
}

/// A tar with one file of any name.
fn archive(name: &str) -> Vec<u8> {
    let mut header = tar::Header::new_gnu();
    header.as_gnu_mut().unwrap().name[..name.len()].copy_from_slice(name.as_bytes());
    header.set_size(1);
    header.set_mode(0o644);
    header.set_cksum();
    let mut builder = tar::Builder::new(Vec::new());
    builder.append(&header, &b"x"[..]).unwrap();
    builder.into_inner().unwrap()
}

fn climbing_archive() {
    let fixture = Fixture::shared();
    let context = fixture.context(&[]);
    fs::write(context.join("good.tar"), archive("dir/file")).unwrap();
    let id = fixture.build_ok(&context, "FROM box\nADD good.tar /to/\n", &[]);
    assert_eq!(fixture.news(&id), ["d 755 0:0 /to", "d 755 0:0 /to/dir", "f 644 0:0 /to/dir/file x"]);
    fs::write(context.join("bad.tar"), archive("../../evil")).unwrap();
    let answer = fixture.build(&context, "FROM box\nADD bad.tar /to/\n", &[]);
    assert!(answer.code == 1 && answer.err.contains("leads above the root"), "{}", answer.err);
    let mut packed = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    packed.write_all(&archive("in-gzip")).unwrap();
    fs::write(context.join("packed.tgz"), packed.finish().unwrap()).unwrap();
    let id = fixture.build_ok(&context, "FROM box\nADD packed.tgz /\nCOPY packed.tgz /tmp/\n", &[]);
    let news = fixture.news(&id);
    assert!(news.contains(&"f 644 0:0 /in-gzip x".to_owned()) && news.len() == 2, "{news:?}");
}

/// What other programs packed, in one stream and in two, and what only looks like it.
fn other_packings() {
    let fixture = Fixture::shared();
    let context = fixture.context(&[("prose", "BZhere begins a text")]);
    for (module, suffix) in [("lzma", "xz"), ("bz2", "bz2")] {
        fs::write(context.join("plain.tar"), archive(&format!("in-{suffix}"))).unwrap();
        let script = format!(
            "import {module} as m; b = open('plain.tar', 'rb').read(); open('one.{suffix}', 'wb').write(m.compress(b)); \
             open('two.{suffix}', 'wb').write(m.compress(b[:700]) + m.compress(b[700:])); \
             open('cut.{suffix}', 'wb').write(m.compress(b)[:-20]); open('text.{suffix}', 'wb').write(m.compress(b'x' * 2000))"
        );
        let packed = Command::new("python3").args(["-c", &script]).current_dir(&context).status().unwrap();
        assert!(packed.success(), "{module}");
        for name in ["one", "two"] {
            let id = fixture.build_ok(&context, &format!("FROM box\nADD {name}.{suffix} /\n"), &[]);
            assert_eq!(fixture.news(&id), [format!("f 644 0:0 /in-{suffix} x")], "{name}.{suffix}");
        }
        let answer = fixture.build(&context, &format!("FROM box\nADD cut.{suffix} /\n"), &[]);
        assert!(answer.code == 1 && answer.err.contains(&format!("cannot unpack `cut.{suffix}`")), "{}", answer.err);
        // Packed, but no archive: as docker, a file like any other.
        let id = fixture.build_ok(&context, &format!("FROM box\nADD text.{suffix} /x\n"), &[]);
        assert!(fixture.news(&id).len() == 1 && fixture.news(&id)[0].contains(" /x "), "{:?}", fixture.news(&id));
    }
    let id = fixture.build_ok(&context, "FROM box\nADD prose /x\n", &[]);
    assert_eq!(fixture.news(&id), ["f 644 0:0 /x BZhere begins a text"]);
}

/// What unpacks to more than the disk or the memory, what is damaged, and what is an archive by its header's sum alone.
fn bad_archives() {
    let fixture = Fixture::new();
    let root = fixture.dir.join("root");
    fs::create_dir(&root).unwrap();
    let mount =
        Command::new("mount").args(["-t", "tmpfs", "-o", "size=24m,mode=755", "tmpfs"]).arg(&root).status().unwrap();
    assert!(mount.success());
    let context = fixture.context(&[]);
    fs::write(context.join("t.tar"), archive("in")).unwrap();
    let script = r#"
import bz2, gzip, io, lzma, struct, tarfile, zlib
t = open("t.tar", "rb").read()
out = io.BytesIO()
with tarfile.open(fileobj=out, mode="w") as bomb:
    member = tarfile.TarInfo("zeros")
    member.size = 72 << 20
    bomb.addfile(member, io.BytesIO(bytes(member.size)))
for name, module in [("bomb.gz", gzip), ("bomb.bz2", bz2), ("bomb.xz", lzma)]:
    open(name, "wb").write(module.compress(out.getvalue()))
# The dictionary of 4 GiB that a block's header may ask for.
xz = bytearray(lzma.compress(t, check=lzma.CHECK_CRC32))
size = (xz[12] + 1) * 4
header = xz[12:12 + size]
header[header.index(b"\x21\x01") + 2] = 40
header[-4:] = struct.pack("<I", zlib.crc32(bytes(header[:-4])))
xz[12:12 + size] = header
open("window.xz", "wb").write(xz)
for name, module in [("cut.gz", gzip), ("cut.xz", lzma), ("cut.bz2", bz2)]:
    open(name, "wb").write(module.compress(t)[:-30])
v7 = bytearray(t)
v7[257:265] = bytes(8)
v7[148:156] = b" " * 8
v7[148:156] = b"%06o\0 " % sum(v7[:512])
open("v7.tar", "wb").write(v7)
t = bytearray(t)
t[0] ^= 1
open("sum.tar", "wb").write(t)
"#;
    let made = Command::new("python3").args(["-c", script]).current_dir(&context).status().unwrap();
    assert!(made.success());
    for (name, snippets) in [
        ("bomb.gz", ["cannot unpack `bomb.gz`", "No space left"]),
        ("bomb.bz2", ["cannot unpack `bomb.bz2`", "choose another disk with `--root DIR`"]),
        ("bomb.xz", ["it cannot be written to the store", "choose another disk"]),
        ("window.xz", ["cannot unpack `window.xz`", "it needs more than 256 MiB of memory"]),
        ("cut.gz", ["cannot unpack `cut.gz`", "the compressed data is truncated"]),
        ("cut.xz", ["cannot unpack `cut.xz`", "the compressed data is truncated"]),
        ("cut.bz2", ["cannot unpack `cut.bz2`", "the compressed data is truncated"]),
    ] {
        let answer = fixture.build(
            &context,
            &format!(
                "FROM scratch
ADD {name} /
"
            ),
            &[],
        );
        assert_eq!(answer.code, 1, "{name}: {}", answer.err);
        assert!(snippets.iter().all(|snippet| answer.err.contains(snippet)), "{name}: {}", answer.err);
    }
    let id = fixture.build_ok(
        &context,
        "FROM scratch
ADD v7.tar sum.tar /d
",
        &[],
    );
    let tree = fixture.tree(&id);
    assert!(tree.contains("f 644 0:0 /d/in x") && tree.len() == 3, "{tree:?}");
    assert!(tree.iter().any(|line| line.starts_with("f 644 0:0 /d/sum.tar ")), "{tree:?}");
}

/// Every file below a directory that holds the word.
pub fn files_with(dir: &Path, snippet: &[u8]) -> Vec<String> {
    let (mut found, mut todo) = (Vec::new(), vec![dir.to_owned()]);
    while let Some(path) = todo.pop() {
        let Ok(meta) = path.symlink_metadata() else { continue };
        if meta.is_dir() {
            todo.extend(fs::read_dir(&path).into_iter().flatten().flatten().map(|entry| entry.path()));
        } else if meta.is_file()
            && fs::read(&path).is_ok_and(|bytes| bytes.windows(snippet.len()).any(|part| part == snippet))
        {
            found.push(path.display().to_string());
        }
    }
    found
}

fn secrets() {
    const SECRET: &str = "tr0ub4dor-and-3-more-words";
    let fixture = Fixture::with_box();
    let context = fixture.context(&[]);
    let elsewhere = tempfile::tempdir().unwrap();
    let file = elsewhere.path().join("token");
    fs::write(&file, SECRET).unwrap();
    let source = format!("id=token,src={}", file.display());
    let text = format!(
        "FROM box\nRUN --mount=type=secret,id=token --mount=type=secret,id=token,target=/here,mode=0444,uid=1000 \\\n  \
         --mount=type=secret,id=token,env=TOKEN test \"$(cat /run/secrets/token)\" = \"$TOKEN\" && wc -c </here >/length\n\
         RUN test ! -e /run/secrets/token && test ! -e /here && test -z \"$TOKEN\"\nENV LENGTH={}\n",
        SECRET.len()
    );
    let answer = fixture.build(&context, &text, &["-t", "secret", "--secret", &source]);
    assert_eq!(answer.code, 0, "{}", answer.err);
    assert!(!answer.err.contains(SECRET) && !answer.out.contains(SECRET));
    assert_eq!(fixture.news("secret"), [format!("f 644 0:0 /length {}|", SECRET.len())]);
    assert_eq!(files_with(&fixture.dir, SECRET.as_bytes()), Vec::<String>::new());
    // The same when the command with the secret fails.
    let answer = fixture.build(
        &context,
        "FROM box\nRUN --mount=type=secret,id=token,env=TOKEN cp /run/secrets/token /tmp/copy && false\n",
        &["--secret", &source],
    );
    assert_eq!(answer.code, 1);
    assert_eq!(files_with(&fixture.dir, SECRET.as_bytes()), Vec::<String>::new());
}

fn host_settings() {
    let fixture = Fixture::shared();
    let context = fixture.context(&[]);
    let text =
        "FROM box\nRUN test \"$http_proxy\" = http://proxy.invalid:3128 && test -z \"$NOT_SET\" && echo ok >/ok\n";
    let id = fixture.build_ok(&context, text, &["--build-arg", "http_proxy=http://proxy.invalid:3128"]);
    assert_eq!(fixture.news(&id), ["f 644 0:0 /ok ok|"]);
    assert!(!fixture.config(&id).to_string().contains("proxy.invalid"));
    // Another proxy is no other step.
    let answer = fixture.build(&context, text, &["--build-arg", "http_proxy=http://other.invalid"]);
    assert!(answer.code == 0 && answer.err.contains("CACHED"), "{}", answer.err);

    let bundle = context.with_extension("pem");
    fs::write(&bundle, "not really a certificate\n").unwrap();
    let text = "FROM box\nRUN grep -q certificate $SSL_CERT_FILE && test -f $PIP_CONFIG_FILE && echo ca >/ca\nRUN env >/tmp/env\n";
    let file = context.with_extension("file-ca");
    fs::write(&file, text).unwrap();
    let mut command = fixture.command(&["build", "--host-ca", "-f", file.to_str().unwrap(), context.to_str().unwrap()]);
    let output = command.env("SSL_CERT_FILE", &bundle).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let id = String::from_utf8_lossy(&output.stdout).trim().to_owned();
    let news = fixture.news(&id);
    assert!(news.contains(&"f 644 0:0 /ca ca|".to_owned()), "{news:?}");
    assert!(!news.iter().any(|line| line.split(' ').nth(3).is_some_and(|path| path.starts_with("/run"))), "{news:?}");
    assert!(!fixture.config(&id).to_string().contains("gpurun-host"));
}

fn control_sequences() {
    let fixture = Fixture::shared();
    let answer =
        fixture.build(&fixture.context(&[]), "FROM box\nRUN printf 'a\\033[2J\\033]0;title\\007b\\n'; false\n", &[]);
    assert!(!answer.err.contains('\x1b'), "{:?}", answer.err);
}
