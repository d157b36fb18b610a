//! A host that images attack, and the places in which a tree is looked at.
//!
//! Four times: in the image's mount, in an overlay over it (what a container sees: its own words must not be taken for the overlay's), unpacked
//! into a directory, and unpacked by umoci, the oracle. The canary lies on the host, is what the escapes aim at, and must stay as it is.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use crate::fixture::{Fixture, listing, sh};
use crate::layer::Layer;
use crate::test_image::{Packing, TestImage};

/// What umoci makes of it.
pub enum Umoci {
    Same,
    /// It refuses.
    Refuses,
    /// Something else, for this reason.
    Differs(&'static str),
}

/// A host whose files the images are after.
pub struct Stage {
    pub fixture: Fixture,
    pub canary: PathBuf,
    before: String,
}

impl Stage {
    pub fn new() -> Self {
        let fixture = Fixture::new();
        let canary = fixture.path("canary");
        fs::create_dir_all(canary.join("dir/full")).unwrap();
        fs::write(canary.join("file"), "host").unwrap();
        fs::write(canary.join("dir/full/x"), "host").unwrap();
        let before = listing(&canary);
        Self { fixture, canary, before }
    }

    /// The canary as an absolute path, for links.
    pub fn aim(&self, below: &str) -> String {
        self.canary.join(below).to_str().unwrap().to_owned()
    }

    pub fn layout(&self, layers: Vec<Layer>) -> String {
        let _ = fs::remove_dir_all(self.fixture.path("layout"));
        let layers = layers.into_iter().map(Layer::end).collect();
        let test_image = TestImage { layers, architecture: crate::test_image::host() };
        test_image.layout(&self.fixture.path("layout"), "v1", Packing::Gzip);
        test_image.id()
    }

    #[track_caller]
    pub fn becomes(&self, class: &str, layers: Vec<Layer>, umoci: Umoci, want: &[&str]) {
        let id = self.layout(layers);
        let fixture = &self.fixture;
        assert_eq!(fixture.ok(&["image", "load", "-q", "oci:layout:v1"]), id, "{class}");
        let mounted = fixture.mounted(&id);
        assert_eq!(show(&mounted), want, "{class}: the image's mount");

        // What a launch does, in a container's own mount namespace.
        let over = fixture.path("over");
        fs::create_dir(&over).unwrap();
        let [upper, work, merged] = ["up", "work", "merged"].map(|name| over.join(name));
        gpurun::testing::rootfs::overlay(&gpurun::testing::rootfs::Overlay {
            lower: &mounted,
            above: None,
            upper: &upper,
            work: &work,
            merged: &merged,
            volatile: false,
        })
        .unwrap();
        assert_eq!(show(&over.join("merged")), want, "{class}: an overlay over it");
        // What is removed there is gone, and nothing of the image takes its place.
        for entry in fs::read_dir(over.join("merged")).unwrap() {
            let path = entry.unwrap().path();
            let is_dir = path.symlink_metadata().unwrap().is_dir();
            if is_dir { fs::remove_dir_all(&path) } else { fs::remove_file(&path) }.unwrap();
        }
        assert_eq!(
            show(&over.join("merged")).len(),
            usize::from(want.first().is_some_and(|line| line.starts_with("/ ")))
        );
        sh(&format!("umount {o}/merged && rm -rf {o}", o = over.display()));
        fixture.ok(&["image", "unmount", "--all"]);

        fixture.ok(&["image", "unpack", &id, "tree"]);
        assert_eq!(show(&fixture.path("tree")), want, "{class}: unpacked");
        fs::remove_dir_all(fixture.path("tree")).unwrap();
        self.umoci(class, umoci, want);
        fixture.ok(&["image", "rm", &id]);
        self.untouched(class);
    }

    fn umoci(&self, class: &str, umoci: Umoci, want: &[&str]) {
        let line =
            format!("cd {} && rm -rf bundle && umoci unpack --image layout:v1 bundle", self.fixture.dir.display());
        let output = std::process::Command::new("sh").args(["-c", &line]).output().unwrap();
        let theirs = match output.status.success() {
            true => show(&self.fixture.path("bundle/rootfs")),
            false => vec![String::from("refused")],
        };
        let ours: Vec<String> = want.iter().map(|line| (*line).to_owned()).collect();
        match umoci {
            Umoci::Same => assert_eq!(theirs, ours, "{class}: umoci"),
            Umoci::Refuses => assert!(!output.status.success(), "{class}: umoci makes {theirs:?}"),
            Umoci::Differs(why) => assert_ne!(theirs, ours, "{class}: umoci does the same now, and not: {why}"),
        }
        let _ = fs::remove_dir_all(self.fixture.path("bundle"));
    }

    #[track_caller]
    pub fn refused(&self, class: &str, layers: Vec<Layer>, snippet: &str) {
        self.layout(layers);
        let error = self.fixture.fails(&["image", "load", "layout"]);
        assert!(error.contains(snippet) && error.contains("caused by:"), "{class}: {error}");
        assert_eq!(self.fixture.json(&["image", "ls", "--json"]), serde_json::json!([]), "{class}");
        self.fixture.assert_whole();
        self.untouched(class);
    }

    #[track_caller]
    pub fn untouched(&self, class: &str) {
        assert_eq!(listing(&self.canary), self.before, "{class}: the host was touched");
    }
}

/// One line per name: `path kind mode [:uid:gid] [@time] detail`. `f644 text` is a file with that text (of a longer one its length and the
/// runs of bytes that are not zero), `=path` another name of one before. Times are shown that a layer set on purpose: those after 1970.
fn show(dir: &Path) -> Vec<String> {
    let mut lines = Vec::new();
    // The root only where a layer says something about it.
    if dir.metadata().unwrap().mode() & 0o7777 == 0o1711 {
        lines.push(line("/", dir, &mut BTreeMap::new()));
    }
    walk(dir, "", &mut BTreeMap::new(), &mut lines);
    lines
}

type Seen = BTreeMap<(u64, u64), String>;

fn walk(dir: &Path, above: &str, seen: &mut Seen, lines: &mut Vec<String>) {
    let mut names: Vec<_> = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    names.sort();
    for name in names {
        let path = dir.join(&name);
        let shown = format!("{above}/{}", name.as_bytes().escape_ascii());
        lines.push(line(&shown, &path, seen));
        if path.symlink_metadata().unwrap().is_dir() {
            walk(&path, &shown, seen, lines);
        }
    }
}

fn line(shown: &str, path: &Path, seen: &mut Seen) -> String {
    let meta = path.symlink_metadata().unwrap();
    let kind = meta.file_type();
    if !kind.is_dir()
        && let Some(first) = seen.insert((meta.dev(), meta.ino()), shown.to_owned())
    {
        seen.insert((meta.dev(), meta.ino()), first.clone());
        return format!("{shown} ={first}");
    }
    let mut more = String::new();
    if (meta.uid(), meta.gid()) != (0, 0) {
        more.push_str(&format!(":{}:{}", meta.uid(), meta.gid()));
    }
    let day = 86_400;
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs() as i64;
    if !(0..=1).contains(&meta.mtime()) && meta.mtime() < now - day {
        more.push_str(&format!("@{}.{:09}", meta.mtime(), meta.mtime_nsec()));
    }
    for (name, value) in gpurun::testing::sys::xattr_read::all(path).unwrap() {
        if !name.starts_with(b"system.") {
            more.push_str(&format!(" {}={}", name.escape_ascii(), value.escape_ascii()));
        }
    }
    let mode = meta.mode() & 0o7777;
    let device = || format!("{}:{}", nix::sys::stat::major(meta.rdev()), nix::sys::stat::minor(meta.rdev()));
    match () {
        () if kind.is_dir() => format!("{shown} d{mode:o}{more}"),
        () if kind.is_symlink() => {
            format!("{shown} ->{}{more}", fs::read_link(path).unwrap().as_os_str().as_bytes().escape_ascii())
        }
        () if kind.is_fifo() => format!("{shown} p{mode:o}{more}"),
        () if kind.is_char_device() => format!("{shown} c{mode:o}{more} {}", device()),
        () if kind.is_block_device() => format!("{shown} b{mode:o}{more} {}", device()),
        () => format!("{shown} f{mode:o}{more} {}", text(&fs::read(path).unwrap())),
    }
}

fn text(bytes: &[u8]) -> String {
    if bytes.len() <= 32 {
        return bytes.escape_ascii().to_string();
    }
    let mut text = format!("{}B", bytes.len());
    let mut at = 0;
    while let Some(start) = bytes[at..].iter().position(|byte| *byte != 0) {
        let start = at + start;
        at = bytes[start..].iter().position(|byte| *byte == 0).map_or(bytes.len(), |end| start + end);
        text.push_str(&format!(" {start}:{}", bytes[start..at].escape_ascii()));
    }
    text
}
