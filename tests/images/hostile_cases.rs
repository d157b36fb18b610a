//! Every class of hostile and odd layers that trusted unpackers contain: what it becomes, in all places where it can be seen, or how it is
//! refused.
//!
//! Where a tree is looked at, and what must stay untouched: see `stage`. Streams that lie or never end are in `bomb_cases`; images whose
//! documents are invalid are in `store::tests`; images that attack a launch in the runtime's tests and `rootfs::tests`.

use crate::Test;
use crate::layer::{Head, Layer};
use crate::stage::Umoci::{Differs, Refuses, Same};
use crate::stage::{Stage, Umoci};

pub const TESTS: &[Test] = &[
    ("paths", &["umoci"], paths),
    ("written_through", &["umoci"], written_through),
    ("hard_links", &["umoci"], hard_links),
    ("replacing", &["umoci"], replacing),
    ("metadata", &["umoci"], metadata),
    ("whiteouts", &["umoci"], whiteouts),
    ("whiteouts_that_escape", &["umoci"], whiteouts_that_escape),
    ("the_overlays_own_words", &["umoci"], overlay_words),
    ("tar_streams_that_lie", &[], streams),
];

fn l() -> Layer {
    Layer::new()
}

fn paths() {
    let stage = Stage::new();
    stage.becomes("an absolute name", vec![l().file("/abs", "1")], Same, &["/abs f644 1"]);
    stage.becomes(
        "dots in a name",
        vec![l().file("./a/./b//c", "1").file("x/../y", "1")],
        Same,
        &["/a d755", "/a/b d755", "/a/b/c f644 1", "/y f644 1"],
    );
    stage.becomes("the root", vec![l().file("a", "1").dir_mode("./", 0o1711)], Same, &["/ d1711", "/a f644 1"]);
    let up = "../".repeat(12);
    let file = stage.aim("file");
    for (class, name) in
        [("up", "../x".to_owned()), ("up and down", format!("{up}{}", &file[1..])), ("up again", "/../x".into())]
    {
        stage.refused(class, vec![l().file(&name, "image")], "leads above the root");
    }
    stage.refused("an empty name", vec![l().file("", "1")], "name");
    stage.refused("a file for the root", vec![l().file("./", "1")], "root");
    stage.refused("a link for the root", vec![l().link(".", "/tmp")], "root");
}

fn written_through() {
    let stage = Stage::new();
    let inside = |below: &str, last: &str| -> Vec<String> {
        // Directories that no layer names, down to where the canary would be in the image.
        let path = stage.aim(below);
        let mut lines = Vec::new();
        for (at, _) in path.match_indices('/').skip(1) {
            lines.push(format!("{} d755", &path[..at]));
        }
        lines.push(format!("{path} d755"));
        lines.push(format!("{path}{last}"));
        lines
    };
    let becomes = |class: &str, layers: Vec<Layer>, umoci: Umoci, first: &[String], below: &str, last: &str| {
        let mut want: Vec<String> = first.to_vec();
        want.extend(inside(below, last));
        want.sort_by(|a, b| a.split(' ').next().cmp(&b.split(' ').next()));
        stage.becomes(class, layers, umoci, &want.iter().map(String::as_str).collect::<Vec<_>>());
    };
    let (dir, file) = (stage.aim("dir"), stage.aim("file"));
    let out = [format!("/out ->{dir}")];
    becomes(
        "a file through a link",
        vec![l().link("out", &dir).file("out/new", "image")],
        Same,
        &out,
        "dir",
        "/new f644 image",
    );
    becomes(
        "a directory through a link",
        vec![l().link("out", &dir).dir_mode("out/new", 0o700)],
        Same,
        &out,
        "dir",
        "/new d700",
    );
    becomes(
        "a device through a link",
        vec![l().link("out", &dir).device(b'3', "out/new", 1, 3)],
        Same,
        &out,
        "dir",
        "/new c644 1:3",
    );
    becomes(
        "a link through a link",
        vec![l().link("out", &dir).link("out/new", "/etc")],
        Same,
        &out,
        "dir",
        "/new ->/etc",
    );
    becomes("a pipe through a link", vec![l().link("out", &dir).fifo("out/new")], Same, &out, "dir", "/new p644");
    becomes(
        "a hard link through a link",
        vec![l().file("a", "1").link("out", &dir).hard("out/new", "a")],
        Same,
        &[format!("/out ->{dir}"), "/a f644 1".into()],
        "dir",
        "/new =/a",
    );
    becomes(
        "through a link, a layer later",
        vec![l().link("out", &dir), l().file("out/new", "image")],
        Same,
        &out,
        "dir",
        "/new f644 image",
    );
    let climb = format!("{}{}", "../".repeat(20), &dir[1..]);
    becomes(
        "through a link that climbs",
        vec![l().dir("d").link("d/out", &climb).file("d/out/new", "image")],
        Same,
        &["/d d755".into(), format!("/d/out ->{climb}")],
        "dir",
        "/new f644 image",
    );
    // The link itself is replaced, and its target is not touched.
    stage.becomes("a file for a link", vec![l().link("x", &file).file("x", "image")], Same, &["/x f644 image"]);
    stage.becomes(
        "a directory for a link",
        vec![l().link("x", &dir), l().dir("x").file("x/y", "1")],
        Same,
        &["/x d755", "/x/y f644 1"],
    );
    becomes(
        "a parent swapped for a link",
        vec![l().dir("d").file("d/a", "1").link("d", &dir).file("d/new", "image")],
        Same,
        &[format!("/d ->{dir}")],
        "dir",
        "/new f644 image",
    );
    becomes(
        "a parent swapped for a link, a layer later",
        vec![l().dir("d").file("d/a", "1"), l().link("d", &dir), l().file("d/new", "image")],
        Same,
        &[format!("/d ->{dir}")],
        "dir",
        "/new f644 image",
    );
    let proc = ["/proc d755", "/proc/self d755"];
    for name in ["root", "cwd"] {
        let target = format!("/proc/self/{name}");
        let (link, dir, file) =
            (format!("/p ->{target}"), format!("{target} d755"), format!("{target}/new f644 image"));
        let want: Vec<&str> =
            [&link].into_iter().map(String::as_str).chain(proc).chain([dir.as_str(), &file]).collect();
        stage.becomes("a magic link", vec![l().link("p", &target).file("p/new", "image")], Same, &want);
    }
    stage.refused("a ring of links", vec![l().link("a", "b").link("b", "a").file("a/x", "1")], "link");
    stage.refused("below a file", vec![l().file("f", "1").file("f/x", "1")], "directory");
    stage.refused("below a device", vec![l().device(b'3', "f", 1, 3), l().file("f/x", "1")], "directory");
}

fn hard_links() {
    let stage = Stage::new();
    let file = stage.aim("file");
    stage.becomes(
        "inside",
        vec![l().file("a", "1").hard("b", "a").hard("d/c", "/a")],
        Same,
        &["/a f644 1", "/b =/a", "/d d755", "/d/c =/a"],
    );
    stage.becomes(
        "into a lower layer, and one name replaced",
        vec![l().file("a", "1"), l().hard("b", "a"), l().file("a", "22")],
        Same,
        &["/a f644 22", "/b f644 1"],
    );
    stage.becomes("to a link", vec![l().link("s", &file).hard("h", "s")], Same, &[&format!("/h ->{file}"), "/s =/h"]);
    stage.refused("to the host", vec![l().hard("h", &file)], "hard link");
    stage.refused(
        "up to the host",
        vec![l().hard("h", &format!("{}{}", "../".repeat(12), &file[1..]))],
        "leads above the root",
    );
    stage.refused("through a link to the host", vec![l().link("s", &stage.aim("")).hard("h", "s/file")], "hard link");
    stage.refused("to a directory", vec![l().dir("d").hard("h", "d")], "directory");
    stage.refused(
        "to what a whiteout took",
        vec![l().file("a", "1"), l().file(".wh.a", "").hard("b", "a")],
        "hard link",
    );
}

fn replacing() {
    let stage = Stage::new();
    stage.becomes(
        "a file by a directory",
        vec![l().file("a", "1").dir("a").file("a/b", "1")],
        Same,
        &["/a d755", "/a/b f644 1"],
    );
    stage.becomes(
        "a full directory by a file",
        vec![l().dir("a").file("a/b", "1"), l().file("a", "22")],
        Same,
        &["/a f644 22"],
    );
    stage.becomes("a directory by a link", vec![l().dir("a").file("a/b", "1"), l().link("a", "b")], Same, &["/a ->b"]);
    stage.becomes("a pipe by a device", vec![l().fifo("a").device(b'4', "a", 8, 0)], Same, &["/a b644 8:0"]);
    stage.becomes("duplicates: the last wins", vec![l().file("a", "1").file("a", "22")], Same, &["/a f644 22"]);
    let mut again = Head::new(b'5', b"a", b"", 0);
    again.put(100, b"0000700").put(108, b"0001750").put(116, b"0001751").put(136, b"14371573377");
    stage.becomes(
        "a directory listed again keeps its children and has the new metadata",
        vec![l().dir("a").file("a/b", "1"), l().head(again)],
        Same,
        &["/a d700:1000:1001@1676080895.000000000", "/a/b f644 1"],
    );
}

fn metadata() {
    let stage = Stage::new();
    let mut modes = l();
    for (name, mode) in [("setuid", b"0004755"), ("setgid", b"0002755"), ("nothing", b"0000000")] {
        let mut head = Head::new(b'0', name.as_bytes(), b"", 0);
        head.put(100, mode);
        modes = modes.head(head);
    }
    stage.becomes(
        "modes",
        vec![modes.dir_mode("sticky", 0o1777)],
        Same,
        &["/nothing f0 ", "/setgid f2755 ", "/setuid f4755 ", "/sticky d1777"],
    );
    // Base 256 for an id beyond 2^21; a PAX record for one beyond 2^31.
    let mut large = Head::new(b'0', b"base256", b"", 0);
    large.put(108, &[0x80, 0, 0, 0, 0x77, 0x35, 0x94, 0]).put(116, &[0x80, 0, 0, 0, 0, 0x98, 0x96, 0x80]);
    stage.becomes(
        "owners",
        vec![l().head(large).pax(&[("uid", b"4000000000"), ("gid", b"7")]).file("pax", "")],
        Same,
        &["/base256 f644:2000000000:10000000 ", "/pax f644:4000000000:7 "],
    );
    stage.becomes(
        "times: nanoseconds, before 1970, a directory's after its children",
        vec![
            l().pax(&[("mtime", b"1600000000.123456789")])
                .dir("d")
                .file("d/x", "1")
                .pax(&[("mtime", b"-1.5")])
                .file("old", "1"),
        ],
        Same,
        &["/d d755@1600000000.123456789", "/d/x f644 1", "/old f644@-2.500000000 1"],
    );
    let long = "l/".repeat(100) + "x";
    let mut want: Vec<String> = (1..=100).map(|depth| format!("{} d755", "/l".repeat(depth))).collect();
    want.push(format!("/{long} f644 1"));
    let lines: Vec<&str> = want.iter().map(String::as_str).collect();
    stage.becomes("PAX long names", vec![l().pax(&[("path", long.as_bytes())]).file("short", "1")], Same, &lines);
    stage.becomes(
        "GNU long names",
        vec![l().special(b'L', format!("{long}\0").as_bytes()).file("short", "1")],
        Same,
        &lines,
    );
    let target = "t".repeat(300);
    let link = format!("/s ->{target}");
    stage.becomes("PAX long links", vec![l().pax(&[("linkpath", target.as_bytes())]).link("s", "x")], Same, &[&link]);
    stage.becomes(
        "GNU long links",
        vec![l().special(b'K', format!("{target}\0").as_bytes()).link("s", "x")],
        Same,
        &[&link],
    );
    stage.becomes(
        "a PAX size over the header's",
        vec![l().pax(&[("size", b"3")]).head(Head::new(b'0', b"f", b"", 0)).data(b"abc").file("g", "1")],
        Same,
        &["/f f644 abc", "/g f644 1"],
    );
    stage.becomes(
        "nodes",
        vec![l().device(b'3', "char", 1, 3).device(b'4', "block", 8, 1).fifo("pipe")],
        Same,
        &["/block b644 8:1", "/char c644 1:3", "/pipe p644"],
    );
    let capability = [1, 0, 0, 2, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    let mut owned = Head::new(b'0', b"ping", b"", 1);
    owned.put(100, b"0000755").put(108, b"0001750");
    stage.becomes(
        "attributes, after the owner",
        vec![
            l().pax(&[("SCHILY.xattr.security.capability", &capability), ("SCHILY.xattr.user.k", b"v\0=\n")])
                .head(owned)
                .data(b"1"),
        ],
        Same,
        &[r"/ping f755:1000:0 security.capability=\x01\x00\x00\x02\x00\x04\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00 user.k=v\x00=\n 1"],
    );
    let mut old = Head::new(b'S', b"gnu", b"", 1024);
    old.put(257, b"ustar  \0").put(386, b"00000000000\0").put(398, b"00000001000\0");
    old.put(410, b"00000010000\0").put(422, b"00000001000\0").put(483, b"00000020000\0");
    let mut data = vec![0; 1024];
    (data[0], data[512]) = (b'a', b'b');
    stage.becomes("sparse, GNU", vec![l().head(old).data(&data)], Refuses, &["/gnu f644 8192B 0:a 4096:b"]);
    let records: [(&str, &[u8]); 2] = [("GNU.sparse.size", b"100000"), ("GNU.sparse.map", b"0,2,50000,3")];
    stage.becomes(
        "sparse, PAX 0.1",
        vec![l().pax(&records).head(Head::new(b'0', b"pax", b"", 5)).data(b"aabbb")],
        Refuses,
        &["/pax f644 100000B 0:aa 50000:bbb"],
    );
    let records: [(&str, &[u8]); 4] = [
        ("GNU.sparse.major", b"1"),
        ("GNU.sparse.minor", b"0"),
        ("GNU.sparse.name", b"real"),
        ("GNU.sparse.realsize", b"200"),
    ];
    let stored = l().pax(&records).head(Head::new(b'0', b"GNUSparseFile.0/real", b"", 512 + 15));
    stage.becomes(
        "sparse, PAX 1.0",
        vec![stored.data(b"2\n0\n10\n100\n5\n").data(&[b'1'; 15])],
        Same,
        &["/real f644 200B 0:1111111111 100:11111"],
    );
}

fn whiteouts() {
    let stage = Stage::new();
    let base = || l().dir("d").file("d/a", "1").file("d/b", "1").dir("d/s").file("d/s/x", "1").file("f", "1");
    stage.becomes(
        "a file and a directory",
        vec![base(), l().file(".wh.f", "").file("d/.wh.s", "")],
        Same,
        &["/d d755", "/d/a f644 1", "/d/b f644 1"],
    );
    stage.becomes(
        "of what is not there",
        vec![base(), l().file("d/.wh.none", "").file(".wh.d", "")],
        Same,
        &["/f f644 1"],
    );
    for (class, layer) in [
        ("opaque, first", l().dir("d").file("d/.wh..wh..opq", "").file("d/n", "1")),
        ("opaque, last", l().dir("d").file("d/n", "1").file("d/.wh..wh..opq", "")),
    ] {
        stage.becomes(class, vec![base(), layer], Same, &["/d d755", "/d/n f644 1", "/f f644 1"]);
    }
    stage.becomes("opaque, the root", vec![base(), l().file("n", "1").file(".wh..wh..opq", "")], Same, &["/n f644 1"]);
    for (class, layer) in [
        ("of what the layer adds too, before", l().file(".wh.f", "").file("f", "22")),
        ("of what the layer adds too, after", l().file("f", "22").file(".wh.f", "")),
    ] {
        stage.becomes(class, vec![l().file("f", "1"), layer], Same, &["/f f644 22"]);
    }
    stage.becomes(
        "and back again",
        vec![l().file("f", "1"), l().file(".wh.f", ""), l().file("f", "333")],
        Same,
        &["/f f644 333"],
    );
}

fn whiteouts_that_escape() {
    let stage = Stage::new();
    let dir = stage.aim("dir");
    for name in [".wh.", "d/.wh.", ".wh..", ".wh...", "d/.wh..."] {
        stage.refused(name, vec![l().dir("d").file("x", "1"), l().file(name, "")], "whiteout");
    }
    stage.refused("up", vec![l().file("../.wh.x", "")], "leads above the root");
    stage.becomes(
        "through a link to the host",
        vec![l().link("out", &dir).file("x", "1"), l().file("out/.wh.full", "")],
        Same,
        &[&format!("/out ->{dir}"), "/x f644 1"],
    );
    stage.becomes(
        "opaque, through a link to the host",
        vec![l().link("out", &dir).file("x", "1"), l().file("out/.wh..wh..opq", "")],
        Same,
        &[&format!("/out ->{dir}"), "/x f644 1"],
    );
    stage.becomes(
        "through a link inside",
        vec![l().dir("etc").file("etc/passwd", "1").link("e", "/etc"), l().file("e/.wh.passwd", "")],
        Same,
        &["/e ->/etc", "/etc d755"],
    );
    stage.becomes("of a link", vec![l().dir("etc").link("e", "/etc"), l().file(".wh.e", "")], Same, &["/etc d755"]);
}

fn overlay_words() {
    let stage = Stage::new();
    let snippets: [(&str, &[u8]); 3] = [
        ("SCHILY.xattr.trusted.overlay.opaque", b"y"),
        ("SCHILY.xattr.trusted.overlay.redirect", b"/etc"),
        ("SCHILY.xattr.user.k", b"v"),
    ];
    stage.becomes(
        "attributes",
        vec![l().dir("etc").file("etc/x", "1"), l().pax(&snippets).dir("d").file("d/y", "1")],
        Same,
        &["/d d755 user.k=v", "/d/y f644 1", "/etc d755", "/etc/x f644 1"],
    );
    let snippets: [(&str, &[u8]); 2] =
        [("SCHILY.xattr.trusted.overlay.whiteout", b""), ("SCHILY.xattr.trusted.overlay.metacopy", b"")];
    stage.becomes("a whiteout by attribute", vec![l().pax(&snippets).file("f", "")], Same, &["/f f644 "]);
    stage.becomes(
        "a device 0:0 is no whiteout",
        vec![l().file("f", "1"), l().device(b'3', "f", 0, 0).device(b'3', "g", 0, 0)],
        Differs("no overlay will lie over what it unpacks"),
        &["/f c644 0:1", "/g c644 0:1"],
    );
}

fn streams() {
    let stage = Stage::new();
    for (class, at, bytes, snippet) in [
        ("a negative size", 124, &[0xff; 12][..], "size"),
        ("a size beyond everything", 124, &[0x80, 0, 0, 0, 0x7f, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff], "size"),
        ("a size that is no number", 124, b"0000000000x", "size"),
        ("a negative owner", 108, &[0xff; 8], "uid"),
        ("a type that nobody knows", 156, b"Z", "type"),
    ] {
        let mut head = Head::new(b'0', b"f", b"", 0);
        head.put(at, bytes);
        stage.refused(class, vec![l().head(head)], snippet);
    }
    let mut checksum = Head::new(b'0', b"f", b"", 0).sealed();
    checksum[0] ^= 1;
    stage.refused("a checksum that is wrong", vec![l().raw(&checksum)], "checksum");
    stage.refused(
        "a PAX length beyond its record",
        vec![l().special(b'x', b"999999999999 a=b\n").file("f", "")],
        "PAX",
    );
    stage.refused("a PAX header of 2 MiB", vec![l().special(b'x', &[b'1'; 2 << 20]).file("f", "")], "larger");
    stage.refused("a long name for nobody", vec![l().special(b'L', b"name\0")], "no member after it");
    let records: [(&str, &[u8]); 2] = [("GNU.sparse.size", b"100"), ("GNU.sparse.map", b"50,3,0,2")];
    stage.refused(
        "a sparse map that runs back",
        vec![l().pax(&records).head(Head::new(b'0', b"s", b"", 5)).data(b"aabbb")],
        "sparse",
    );
}
