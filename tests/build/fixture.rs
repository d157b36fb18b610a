//! A store, a run directory and contexts; and what an image of that store looks like.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Mutex, OnceLock};

static COUNT: AtomicU32 = AtomicU32::new(0);
static MADE: Mutex<Vec<PathBuf>> = Mutex::new(Vec::new());

pub struct Fixture {
    pub dir: PathBuf,
}

pub struct Answer {
    pub code: i32,
    pub out: String,
    pub err: String,
}

/// What the image `box` is made of: busybox with its links, two users, and a directory for everybody.
const BOX: &str = "FROM scratch\nCOPY busybox /bin/\nRUN [\"/bin/busybox\", \"--install\", \"-s\", \"/bin\"]\nENV PATH=/bin\n\
    COPY <<passwd <<group /etc/\nroot:x:0:0::/root:/bin/sh\nme:x:1000:100::/home/me:/bin/sh\npasswd\nroot:x:0:\nusers:x:100:\nstaff:x:50:me\ngroup\n\
    RUN mkdir -m 1777 /tmp\n";

impl Fixture {
    /// An empty store.
    pub fn new() -> Self {
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let base = std::env::var_os("GPURUN_TEST_DIR").map_or_else(|| PathBuf::from("/var/tmp"), PathBuf::from);
        let dir = base.join(format!("gb-{}-{number}", std::process::id()));
        fs::create_dir_all(&dir).unwrap();
        MADE.lock().unwrap().push(dir.clone());
        Self { dir }
    }

    /// A store of its own, with `box` in it.
    pub fn with_box() -> Self {
        let fixture = Self::new();
        let context = fixture.context(&[]);
        fs::copy("/bin/busybox", context.join("busybox")).unwrap();
        fixture.build_ok(&context, BOX, &["-t", "box"]);
        fixture
    }

    /// The store that the cases share.
    pub fn shared() -> &'static Self {
        static SHARED: OnceLock<Fixture> = OnceLock::new();
        SHARED.get_or_init(Self::with_box)
    }

    /// A directory with these files; a name with a final `/` is a directory, `mode:` before a name sets it, `->` in it makes a link.
    pub fn context(&self, files: &[(&str, &str)]) -> PathBuf {
        let dir = self.dir.join(format!("context-{}", COUNT.fetch_add(1, Ordering::Relaxed)));
        fs::create_dir_all(&dir).unwrap();
        for (name, text) in files {
            let (mode, name) = name.split_once(':').map_or((None, *name), |(mode, name)| (Some(mode), name));
            let path = dir.join(name.trim_end_matches('/'));
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            if let Some(target) = text.strip_prefix("->") {
                std::os::unix::fs::symlink(target, &path).unwrap();
                continue;
            }
            if name.ends_with('/') {
                fs::create_dir_all(&path).unwrap();
            } else {
                fs::write(&path, text).unwrap();
            }
            if let Some(mode) = mode {
                let mode = u32::from_str_radix(mode, 8).unwrap();
                fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(mode)).unwrap();
            }
        }
        dir
    }

    pub fn command(&self, args: &[&str]) -> Command {
        let binary = std::env::var_os("GPURUN_TEST_BINARY").unwrap_or_else(|| env!("CARGO_BIN_EXE_gpurun").into());
        let mut command = Command::new(binary);
        command.args(args).env("GPURUN_ROOT", self.dir.join("root")).env("GPURUN_RUN", self.dir.join("run"));
        for name in ["SOURCE_DATE_EPOCH", "http_proxy", "HTTP_PROXY", "SUDO_UID", "SUDO_GID", "PIP_INDEX_URL"] {
            command.env_remove(name);
        }
        command.current_dir(&self.dir).stdin(Stdio::null());
        command
    }

    pub fn run(&self, args: &[&str]) -> Answer {
        let output = self.command(args).output().unwrap();
        let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
        Answer { code: output.status.code().unwrap_or(-1), out: text(output.stdout), err: text(output.stderr) }
    }

    #[track_caller]
    pub fn ok(&self, args: &[&str]) -> String {
        let answer = self.run(args);
        assert_eq!(answer.code, 0, "gpurun {args:?}\n{}\n{}", answer.out, answer.err);
        answer.out.trim().to_owned()
    }

    /// Builds what the text says.
    pub fn build(&self, context: &Path, text: &str, args: &[&str]) -> Answer {
        let file = context.with_extension(format!("file-{}", COUNT.fetch_add(1, Ordering::Relaxed)));
        fs::write(&file, text).unwrap();
        let mut snippets = vec!["build", "-f", file.to_str().unwrap()];
        snippets.extend(args);
        snippets.push(context.to_str().unwrap());
        self.run(&snippets)
    }

    /// Builds, insists that it works, and answers with the image's id.
    #[track_caller]
    pub fn build_ok(&self, context: &Path, text: &str, args: &[&str]) -> String {
        let answer = self.build(context, text, args);
        assert_eq!(answer.code, 0, "{text}\n{}", answer.err);
        answer.out.trim().to_owned()
    }

    /// Creates a file in every cache mount of this store.
    pub fn in_caches(&self, name: &str) {
        for entry in fs::read_dir(self.dir.join("root/build/mounts")).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                fs::write(path.join(name), "").unwrap();
            }
        }
    }

    /// The image's config, as `image inspect` shows it.
    pub fn config(&self, image: &str) -> serde_json::Value {
        let text = self.ok(&["image", "inspect", image]);
        serde_json::from_str::<serde_json::Value>(&text).unwrap()[0]["Config"].clone()
    }

    /// A line for everything in the image, but for what is in /bin.
    pub fn tree(&self, image: &str) -> BTreeSet<String> {
        let dir = self.dir.join(format!("tree-{}", COUNT.fetch_add(1, Ordering::Relaxed)));
        self.ok(&["image", "unpack", image, dir.to_str().unwrap()]);
        let lines = listing(&dir);
        fs::remove_dir_all(&dir).unwrap();
        lines.into_iter().filter(|line| counts(line)).collect()
    }

    /// What in the image is not as it is in `box`: new or other lines, and `-` before what is gone.
    pub fn news(&self, image: &str) -> Vec<String> {
        static BASE: OnceLock<BTreeSet<String>> = OnceLock::new();
        let base = BASE.get_or_init(|| self.tree("box"));
        let tree = self.tree(image);
        let path = |line: &str| line.split(' ').nth(3).unwrap_or_default().to_owned();
        let paths: BTreeSet<String> = tree.iter().map(|line| path(line)).collect();
        let gone =
            base.iter().map(|line| path(line)).filter(|path| !paths.contains(path)).map(|path| format!("- {path}"));
        let mut news: Vec<String> = tree.difference(base).cloned().chain(gone).collect();
        // By path, whatever became of it.
        news.sort_by_key(|line| line.strip_prefix("- ").or(line.split(' ').nth(3)).unwrap_or_default().to_owned());
        news
    }
}

/// Puts this process, which has one thread so far, into a network of its own: a bridge that builds make is none of the host's.
pub fn own_network() {
    nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET).unwrap();
    assert!(Command::new("ip").args(["link", "set", "lo", "up"]).status().unwrap().success());
}

/// `KIND MODE OWNER PATH CONTENT` for everything below a directory.
pub fn listing(dir: &Path) -> Vec<String> {
    let mut lines = Vec::new();
    let mut todo = vec![dir.to_owned()];
    while let Some(path) = todo.pop() {
        let meta = path.symlink_metadata().unwrap();
        let name = format!("/{}", path.strip_prefix(dir).unwrap().display());
        let head = |kind: &str| format!("{kind} {:o} {}:{} {name}", meta.mode() & 0o7777, meta.uid(), meta.gid());
        lines.push(if meta.is_dir() {
            todo.extend(fs::read_dir(&path).unwrap().map(|entry| entry.unwrap().path()));
            head("d")
        } else if meta.is_symlink() {
            format!("l - {}:{} {name} {}", meta.uid(), meta.gid(), fs::read_link(&path).unwrap().display())
        } else if meta.is_file() {
            let text = fs::read(&path).unwrap();
            format!("{} {}", head("f"), String::from_utf8_lossy(&text[..text.len().min(200)]).replace('\n', "|"))
        } else {
            head("?")
        });
    }
    lines.sort_unstable();
    lines
}

/// Whether a line is about something that a case may have made: the root is there always, and /bin is busybox.
pub fn counts(line: &str) -> bool {
    let path = line.split(' ').nth(3).unwrap_or_default();
    path != "/" && !path.starts_with("/bin/")
}

/// Ends and removes what all places left.
pub fn clear() {
    for dir in MADE.lock().unwrap().drain(..) {
        let table = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
        let points =
            table.lines().filter_map(|line| line.split(' ').nth(4)).filter(|point| Path::new(point).starts_with(&dir));
        for point in points {
            let _ = nix::mount::umount2(point, nix::mount::MntFlags::MNT_DETACH);
        }
        let _ = fs::remove_dir_all(dir);
    }
}
