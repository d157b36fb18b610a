//! `srun --container-image` in a real Slurm (tests/slurm/cluster), with the plugin of hooks/slurm and a plain user that each test creates.

use std::fs;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};

use crate::host::{Answer, Host, answer, binary, sh};
use crate::slurm::Cluster;

pub const TESTS: &[(&str, fn())] = &[
    ("a_plain_user_runs_an_image_of_the_node", image),
    ("an_image_comes_from_a_file_of_the_user", archives),
    ("directories_of_the_user_are_mounted", mounts),
    ("the_job_and_the_image_make_the_environment", environment),
    ("files_are_kept_by_name_and_saved", kept),
    ("a_user_reaches_nothing_of_root_through_any_option", hostile),
    ("a_step_has_its_gpus_only", gpus),
    ("an_image_comes_from_a_registry_with_the_users_login", registry),
    ("a_killed_step_leaves_nothing", killed),
    ("tasks_of_a_step_share_one_container", tasks),
    ("mpi_tasks_exchange_messages", mpi),
    ("batch_scripts_arrays_and_allocations", jobs),
];

const SOURCE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/hooks/slurm/build");
static USERS: AtomicU32 = AtomicU32::new(0);

/// A cluster with the plugin, and a user with a home directory.
struct Plugin {
    cluster: Cluster,
    user: String,
    home: PathBuf,
}

impl Plugin {
    fn new(nodes: usize, gpus: usize) -> Self {
        let cluster = Cluster::prepared(nodes, gpus, install);
        let dir = &cluster.host.dir;
        let number = USERS.fetch_add(1, Ordering::Relaxed);
        let user = format!("gpurun-{}-{number}", std::process::id());
        let home = dir.join("home");
        // No user of an image has this number.
        let uid = 100_000 + std::process::id() * 32 + number;
        sh(&format!("useradd --uid {uid} --create-home --home-dir {} {user}", home.display()));
        Self { cluster, user, home }
    }

    /// A line of bash of the user, in the home directory and with a small environment.
    fn command(&self, line: &str) -> Command {
        let mut command =
            self.cluster.host.program("setpriv", &["--reuid", &self.user, "--regid", &self.user, "--init-groups"]);
        command.args(["bash", "-c", line]).current_dir(&self.home).env_clear().env("PATH", "/usr/bin:/bin:/usr/sbin");
        command
            .env("HOME", &self.home)
            .env("SLURM_CONF", self.cluster.dir.join("slurm.conf"))
            .env("NODE", &self.cluster.node);
        command
    }

    fn run(&self, line: &str) -> Answer {
        answer(self.command(line).output().unwrap())
    }

    #[track_caller]
    fn ok(&self, line: &str) -> String {
        let answer = self.run(line);
        assert_eq!(answer.code, 0, "{line}\nstdout: {}\nstderr: {}", answer.out, answer.err);
        answer.out
    }

    /// Runs a line that fails with a code and with these parts in its error.
    #[track_caller]
    fn fails(&self, code: i32, line: &str, parts: &[&str]) -> Answer {
        let answer = self.run(line);
        assert_eq!(answer.code, code, "{line}\nstdout: {}\nstderr: {}", answer.out, answer.err);
        for part in parts {
            assert!(answer.err.contains(part), "{line}: no `{part}` in: {}", answer.err);
        }
        assert!(!answer.err.contains("unexpectedly"), "{line}: {}", answer.err);
        answer
    }

    fn begin(&self, line: &str) -> Child {
        self.command(line).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
    }

    /// Nothing of any step is left: no container, no process, no cgroup.
    #[track_caller]
    fn nothing_is_left(&self) {
        self.cluster.nothing_is_left("none");
        assert_eq!(self.cluster.host.ok(&["ps", "-aq"]), "");
    }
}

/// Builds the plugin, and configures it.
fn install(cluster: &Cluster) {
    fs::create_dir_all(&cluster.dir).unwrap();
    let library = cluster.dir.join("gpurun_spank.so");
    let built = answer(Command::new(SOURCE).arg(&library).output().unwrap());
    assert_eq!(built.code, 0, "{}{}", built.out, built.err);
    let (dir, binary) = (cluster.host.dir.display(), binary());
    let mut line = format!(
        "required {} gpurun={} GPURUN_ROOT={dir}/root GPURUN_RUN={dir}/run",
        library.display(),
        binary.display()
    );
    if let Some(driver) = &cluster.driver {
        line += &format!(" GPURUN_DRIVER_ROOT={}", driver.root.display());
    }
    fs::write(cluster.dir.join("plugstack.conf"), line + "\n").unwrap();
}

impl Drop for Plugin {
    fn drop(&mut self) {
        let _ = Command::new("userdel").args(["--remove", &self.user]).output();
    }
}

fn image() {
    let plugin = Plugin::new(1, 0);
    plugin.ok("srun -n1 --container-image=box /bin/true");
    let uid = plugin.ok("id -u");
    let gid = plugin.ok("id -g");
    let script = "id -u; id -g; whoami; grep -E \"^(Cap|NoNew|Seccomp:)\" /proc/self/status; touch /mine; ls /; wc -c /proc/keys";
    let out = plugin.ok(&format!("srun -n1 --container-image=box sh -c '{script}'"));
    assert!(out.starts_with(&format!("{uid}{gid}{}\n", plugin.user)), "{out}");
    for part in [
        "CapEff:\t0000000000000000",
        "CapBnd:\t0000000000000000",
        "NoNewPrivs:\t1",
        "Seccomp:\t2",
        "mine\n",
        "\n0 /proc/keys",
    ] {
        assert!(out.contains(part), "no `{part}` in: {out}");
    }
    plugin.fails(42, "srun -n1 --container-image=box sh -c 'exit 42'", &[]);
    // A job of root has docker's capabilities, and no others.
    let out = plugin.cluster.ok("srun -n1 --container-image=box sh -c 'grep -E \"^(Cap|NoNew)\" /proc/self/status; mount -t tmpfs x /tmp 2>&1'; exit 0");
    for part in ["CapEff:\t00000000a80425fb", "CapBnd:\t00000000a80425fb", "NoNewPrivs:\t1", "permission denied"] {
        assert!(out.contains(part), "no `{part}` in: {out}");
    }
    // Without the option, a task stays outside.
    assert!(plugin.ok("srun -n1 cat /proc/self/status").contains("NoNewPrivs:\t0"));
    plugin.fails(1, "srun -n1 --container-workdir=/ true", &["--container-image or --container-name"]);
    let error = "cannot find the image `nothing`";
    let failed = plugin.run("srun -n1 --container-image=localhost/nothing true");
    assert!(
        failed.code == 125 && failed.err.contains("gpurun: error: ") && failed.err.contains("hint: "),
        "{error}: {}",
        failed.err
    );
    plugin.nothing_is_left();
}

fn archives() {
    let plugin = Plugin::new(1, 0);
    let (host, home) = (&plugin.cluster.host, plugin.home.display());
    host.ok(&["image", "save", "-o", &format!("{home}/box.tar"), "box"]);
    host.ok(&["image", "save", "--format", "oci-dir", "-o", &format!("{home}/layout"), "box"]);
    sh(&format!("chown -R {} {home}; cp {home}/box.tar {}/root.tar", plugin.user, host.dir.display()));
    // The image's names do not come with it: a user does not change another image of the node.
    host.ok(&["tag", "box", "kept"]);
    host.ok(&["rmi", "box"]);
    for image in ["./box.tar", &format!("{home}/layout"), &format!("{}/root.tar", host.dir.display())] {
        for _ in 0..2 {
            assert_eq!(plugin.ok(&format!("srun -n1 --container-image={image} cat /etc/passwd | grep -c root")), "1\n");
        }
    }
    assert!(!host.ok(&["images"]).contains("box "), "the archive has brought its name");
    // A layout is copied once: without its blobs, the store has the image. A changed index is another image.
    plugin.ok("mv layout/blobs gone && srun -n1 --container-image=./layout true && touch layout/index.json");
    plugin.fails(125, "srun -n1 --container-image=./layout true", &["gpurun: error: "]);
    plugin.ok("mv gone layout/blobs && srun -n1 --container-image=./layout true");
    // A file system of the user, which root cannot read.
    plugin.ok("mkdir low up work own && cp box.tar low/ && echo mine >low/file && touch low/box.tar && fuse-overlayfs -o lowerdir=low,upperdir=up,workdir=work own");
    assert!(fs::metadata(plugin.home.join("own/file")).is_err(), "root reads the user's file system");
    assert_eq!(plugin.ok("srun -n1 --container-image=./own/box.tar --container-mounts=./own:/own,./own/file:/x --container-save=./own/saved.tar cat /own/file /x"), "mine\nmine\n");
    plugin.ok("srun -n1 --container-image=./own/saved.tar true");
    // One that does not answer ends with the step.
    plugin.ok("pkill -STOP -u $(id -u) -x fuse-overlayfs");
    let mut job = plugin.begin("srun -n1 --job-name=waits --container-image=kept --container-mounts=./own/new:/x true");
    crate::host::eventually("the plugin waits for the file system", || {
        !sh(&format!("pgrep -u {} -f step-enter; exit 0", plugin.user)).is_empty()
    });
    plugin.ok("scancel --signal=KILL --name=waits; scancel --name=waits");
    job.wait().unwrap();
    plugin.cluster.nothing_is_left("none");
    plugin.ok("pkill -CONT -u $(id -u) -x fuse-overlayfs; fusermount3 -u own");
    // A compressed one, and what is no image.
    plugin.ok("gzip -k box.tar; srun -n1 --container-image=./box.tar.gz true");
    plugin.ok("mkfifo pipe; echo text >text; echo hsqs >squashed; chmod 0 box.tar.gz");
    for (image, part) in [
        ("./text", "`./text` is not a readable tar archive"),
        ("./nothing", "No such file"),
        ("./pipe", "it is neither a file nor a directory"),
        ("./squashed", "it is a squashfs image of enroot"),
        ("/dev/zero", "it is neither a file nor a directory"),
        ("./box.tar.gz", "Permission denied"),
    ] {
        plugin.fails(125, &format!("srun -n1 --container-image={image} true"), &["gpurun: error: ", part, "hint: "]);
    }
    plugin.nothing_is_left();
}

fn mounts() {
    let plugin = Plugin::new(1, 0);
    plugin.ok("mkdir -p data/sub 'a b'; echo text >data/file; echo spaces >'a b/file'; echo in home >file");
    let mounts = "./data:/data,./data/file:/new/deep/file:ro,tmpfs:/scratch,./data:/data/sub,/dev/null:/null,./a b:/c d,/usr/share";
    let script = "cat /data/file /new/deep/file \"/c d/file\"; echo new >/data/new; echo x >/scratch/x; ls /data/sub; test -c /null; ls -d /usr/share/doc; \
        echo no >/new/deep/file; mount | grep -E \" /( |data )\"";
    let out = plugin.ok(&format!("srun -n1 '--container-mounts={mounts}' --container-image=box sh -c '{script}' 2>&1"));
    for part in [
        "text\ntext\nspaces\n",
        "file\nnew\nsub\n",
        "/usr/share/doc\n",
        "Read-only file system",
        "on / type overlay (rw,nosuid,nodev",
    ] {
        assert!(out.contains(part), "no `{part}` in: {out}");
    }
    let written = fs::metadata(plugin.home.join("data/new")).unwrap();
    assert_eq!(std::os::unix::fs::MetadataExt::uid(&written).to_string(), plugin.ok("id -u").trim());
    let mounts = "./data:/data:unbindable+ro,./data:/x:noexec+noatime,tmpfs:/t:size=1M+mode=1777";
    let script = "grep -E \" /(data|x|t) \" /proc/self/mountinfo; ls -ld /t; dd if=/dev/zero of=/t/x bs=64k 2>&1; cp /bin/busybox /x/tool; /x/tool true 2>&1; exit 0";
    let out = plugin.ok(&format!("srun -n1 --container-mounts={mounts} --container-image=box sh -c '{script}'"));
    for part in [
        " /data ro,nosuid,nodev",
        " unbindable - ",
        " /x rw,nosuid,nodev,noexec,noatime",
        "drwxrwxrwt",
        "No space left",
        "Permission denied",
    ] {
        assert!(out.contains(part), "no `{part}` in: {out}");
    }
    let home = plugin.home.display();
    assert_eq!(
        plugin.ok(&format!("srun -n1 --container-image=box --container-mount-home cat {home}/file")),
        "in home\n"
    );
    plugin.fails(
        1,
        &format!("srun -n1 --container-image=box --no-container-mount-home ls {home}/file"),
        &["No such file"],
    );
    // Root creates nothing in a directory of the user.
    plugin.fails(
        125,
        "srun -n1 --container-image=box --container-mounts=./data:/data,./data:/data/missing/x true",
        &["it does not exist", "hint: "],
    );
    assert!(!plugin.home.join("data/missing").exists());
    for (mounts, part) in [
        ("./nothing:/x", "No such file"),
        ("./data:x", "must be absolute"),
        ("./data:/../x", "contains `..`"),
        ("./data:/", "is the container's root"),
        ("devpts:/x", "must begin with"),
        (":", "is empty"),
        ("./data:/x:suid", "the flag `suid` is unknown"),
        ("umount:/tmp", "a user may remove"),
    ] {
        let line = format!("srun -n1 --container-image=box --container-mounts={mounts} true");
        plugin.fails(125, &line, &["gpurun: error: cannot ", part, "hint: "]);
    }
    // The root, writable and read-only.
    plugin.ok("srun -n1 --container-image=box --container-writable touch /new");
    plugin.fails(1, "srun -n1 --container-image=box --container-readonly touch /tmp/new", &["Read-only file system"]);
    plugin.ok("srun -n1 --container-image=box --container-readonly --container-mounts=./data:/data touch /data/more");
    plugin.nothing_is_left();
}

fn environment() {
    let plugin = Plugin::new(1, 0);
    let script = "#!/bin/sh\necho the entrypoint runs\nexport MADE=by-entrypoint\n[ -z \"$ASK\" ] || export ANSWER=$ASK\nexec \"$@\"\n";
    let file = "FROM box\nENV PATH=/opt/tools:/bin OF_IMAGE=image\nWORKDIR /opt/work\nCOPY --chmod=755 start /start\nCOPY --chmod=755 tool /opt/tools/tool\n\
        ENTRYPOINT [\"/start\"]\n";
    let dir = plugin.cluster.host.dir.join("context");
    fs::create_dir(&dir).unwrap();
    for (name, text) in [("start", script), ("tool", "#!/bin/sh\necho tool\n"), ("Containerfile", file)] {
        fs::write(dir.join(name), text).unwrap();
    }
    plugin.cluster.host.ok(&["build", "-q", "-t", "env", dir.to_str().unwrap()]);
    let run = |before: &str, options: &str, script: &str| {
        plugin.ok(&format!("{before} srun -n1 --container-image=env {options} sh -c '{script}'"))
    };
    let show = "echo $OF_IMAGE $MINE $LANG $SLURM_PROCID; pwd";
    let before = "OF_IMAGE=job MINE=mine LANG=de_DE.UTF-8";
    assert_eq!(run(before, "", show), "image mine 0\n/opt/work\n");
    assert_eq!(run(before, "--container-env=OF_IMAGE,LANG,NOT_SET", show), "job mine de_DE.UTF-8 0\n/opt/work\n");
    assert_eq!(run("", "--container-env=OF_IMAGE", "echo $OF_IMAGE"), "image\n");
    // Programs are found in the image, also one that the node has elsewhere or not at all.
    assert_eq!(plugin.ok("srun -n1 --container-image=env tool"), "tool\n");
    for (dir, expected) in [("/tmp", "/tmp\n"), ("../", "/\n")] {
        assert_eq!(plugin.ok(&format!("srun -n1 --container-image=env --container-workdir={dir} pwd")), expected);
    }
    plugin.fails(
        125,
        "srun -n1 --container-image=env --container-workdir=/nothing true",
        &["cannot enter the working directory `/nothing`: No such file"],
    );
    assert_eq!(run("", "", "echo $MADE."), ".\n");
    assert_eq!(run("ASK=asked", "--container-entrypoint", "echo $MADE $ANSWER"), "by-entrypoint\n");
    assert_eq!(
        run("ASK=asked", "--container-entrypoint --container-env=ASK", "echo $MADE $ANSWER"),
        "by-entrypoint asked\n"
    );
    // pyxis' variables are the options that the command line does not have.
    assert_eq!(plugin.ok("PYXIS_CONTAINER_IMAGE=env srun -n1 tool"), "tool\n");
    let line = "PYXIS_CONTAINER_WORKDIR=/tmp PYXIS_CONTAINER_IMAGE=nothing srun -n1 --container-image=box";
    assert_eq!(plugin.ok(&format!("{line} pwd")), "/tmp\n");
    assert_eq!(plugin.ok(&format!("{line} --container-workdir=/bin pwd")), "/bin\n");
    plugin.fails(1, &format!("PYXIS_CONTAINER_READONLY=1 {line} touch /new"), &["Read-only file system"]);
    plugin.fails(1, &format!("PYXIS_CONTAINER_WRITABLE=0 {line} touch /new"), &["Read-only file system"]);
    plugin.ok(&format!("PYXIS_CONTAINER_READONLY=1 {line} --container-writable touch /new"));
    plugin.ok("PYXIS_CONTAINER_MOUNTS=/tmp:/tmp srun -n1 test -e /etc/shadow");
    plugin.fails(
        125,
        &format!("PYXIS_CONTAINER_MOUNT_HOME=maybe {line} true"),
        &["`maybe`", "neither 1 nor 0", "hint: "],
    );
    plugin.fails(125, &format!("PYXIS_CONTAINER_REMAP_ROOT=1 {line} true"), &["user namespace"]);
    let ran = plugin.run("srun -n1 --container-image=env --container-entrypoint --container-entrypoint-log true");
    assert!(ran.code == 0 && ran.err.contains("the entrypoint runs\n"), "{}", ran.err);
    let out = plugin
        .run("script -qec \"srun -n1 --pty --container-image=box sh -c 'tty; test -w \\$(tty); exit 7'\" /dev/null");
    assert!(out.code == 7 && out.out.contains("/dev/pts/"), "{} {}", out.code, out.out);
    plugin.fails(
        125,
        "srun -n1 --container-image=box --container-remap-root true",
        &["--container-remap-root", "user namespace", "hint: omit it"],
    );
    plugin.nothing_is_left();
}

fn kept() {
    let plugin = Plugin::new(1, 0);
    let script = "
srun --container-image=box --container-name=lab:create sh -c 'echo one >/made'
srun --container-name=lab sh -c 'cat /made; echo two >>/made'
srun --container-image=box --container-name=lab cat /made
srun --container-image=box test -e /made || echo not in another
srun --container-name=lab:create true || echo exists
";
    fs::write(plugin.home.join("steps"), script).unwrap();
    let ran = plugin.run("salloc -n1 bash steps");
    assert_eq!(ran.out, "one\none\ntwo\nnot in another\nexists\n", "{}", ran.err);
    assert!(ran.err.contains("the container `lab` exists in this job"), "{}", ran.err);
    // It ends with the job, and another user does not reach it.
    plugin.fails(125, "srun -n1 --container-name=lab true", &["the container `lab` does not exist in this job"]);
    let name = format!("localhost/slurm/job1/uid{}:lab", plugin.ok("id -u").trim());
    plugin.fails(125, &format!("srun -n1 --container-image={name} true"), &["these are files of a step"]);
    crate::host::eventually("the end of the job removes the files", || {
        !plugin.cluster.host.ok(&["images"]).contains("localhost/slurm")
    });
    // With the scope that is pyxis' default, the next job of the same user has them.
    let conf = plugin.cluster.dir.join("plugstack.conf");
    let line = fs::read_to_string(&conf).unwrap();
    fs::write(&conf, format!("{} container_scope=global\n", line.trim())).unwrap();
    plugin.ok("srun -n1 --container-image=box --container-name=lab sh -c 'echo kept >/made'");
    assert_eq!(plugin.ok("srun -n1 --container-name=lab cat /made"), "kept\n");
    let other = plugin.cluster.run("srun -n1 --container-name=lab cat /made");
    assert!(
        other.code == 125 && other.err.contains("the container `lab` does not exist for this user"),
        "{}",
        other.err
    );
    let uid = plugin.ok("id -u");
    plugin.cluster.host.ok(&["rmi", &format!("localhost/slurm/kept/uid{}:lab", uid.trim())]);
    fs::write(&conf, line).unwrap();
    // An archive of the user's own.
    let saved = plugin.run(
        "srun -n1 --container-image=box --container-save=./saved.tar sh -c 'echo kept >/kept; mkdir -m 700 /mine'",
    );
    assert!(saved.code == 0 && saved.err.contains("gpurun: saved the container to ./saved.tar"), "{}", saved.err);
    assert_eq!(plugin.ok("srun -n1 --container-image=./saved.tar cat /kept"), "kept\n");
    assert_eq!(plugin.ok("stat -c %U saved.tar").trim(), plugin.user);
    // Again, over the user's own file.
    plugin.ok("srun -n1 --container-image=./saved.tar --container-save=./saved.tar touch /more; srun -n1 --container-image=./saved.tar ls /kept /more");
    plugin.nothing_is_left();
}

/// Every option, with what a hostile user would write.
fn hostile() {
    let plugin = Plugin::new(1, 0);
    let secret = plugin.cluster.host.dir.join("secret");
    fs::create_dir(&secret).unwrap();
    plugin.cluster.host.ok(&["image", "save", "-o", secret.join("image.tar").to_str().unwrap(), "box"]);
    fs::write(secret.join("file"), "of root\n").unwrap();
    sh(&format!("chmod -R go= {}", secret.display()));
    let secret = secret.display();
    plugin.ok(&format!("ln -s {secret}/image.tar image; ln -s {secret}/file link; ln -s {secret} dir; ln -s /proc/self/root root; mkdir -p data"));
    let lines = [
        // The image.
        format!("--container-image={secret}/image.tar"),
        "--container-image=./image".into(),
        "--container-image=./dir/image.tar".into(),
        format!("--container-image=./root/{secret}/image.tar"),
        format!("--container-image=/proc/self/root{secret}/image.tar"),
        "--container-image=/proc/1/root/etc/shadow".into(),
        "--container-image=/etc/shadow".into(),
        format!("--container-image=docker-archive:{secret}/image.tar"),
        format!("--container-image=oci:{secret}"),
        "--container-image=--privileged".into(),
        "--container-image=sha256:0".into(),
        // Sources and destinations of mounts.
        format!("--container-image=box --container-mounts={secret}/file:/x"),
        "--container-image=box --container-mounts=./link:/x".into(),
        "--container-image=box --container-mounts=./dir/file:/x".into(),
        "--container-image=box --container-mounts=/proc/self/root:/x".into(),
        "--container-image=box --container-mounts=/proc/1/root:/x".into(),
        "--container-image=box --container-mounts=./root:/x".into(),
        "--container-image=box --container-mounts=./data:/x/../../y".into(),
        "--container-image=box --container-mounts=./data:/proc/1/root/x".into(),
        "--container-image=box --container-mounts=./data:/proc/new".into(),
        "--container-image=box --container-mounts=./data:/sys/new".into(),
        // Files that are written.
        "--container-image=box --container-save=/etc/gpurun-saved".into(),
        "--container-image=box --container-save=./link".into(),
        "--container-image=box --container-save=./dir/new".into(),
        "--container-image=box --container-save=./root/etc/gpurun-saved".into(),
        format!("--container-image=box --container-save={secret}/file"),
        // Names.
        "--container-image=box --container-name=../../x".into(),
        "--container-image=box --container-name=/etc/x".into(),
        "--container-image=box --container-name=a@b".into(),
        "--container-image=box --container-env=A=B".into(),
        "--container-image=box '--container-env=LD_PRELOAD,/x'".into(),
        "--container-image=box --container-workdir=/proc/1/root/root".into(),
    ];
    // One allocation for all of them.
    let script: String =
        lines.iter().map(|line| format!("srun -n1 {line} cat /etc/hostname; echo code $?\n")).collect();
    fs::write(plugin.home.join("lines"), script).unwrap();
    let ran = plugin.run("salloc -n1 bash lines 2>&1");
    let codes: Vec<&str> = ran.out.lines().filter(|line| line.starts_with("code ")).collect();
    assert_eq!(codes.len(), lines.len(), "{}", ran.out);
    for (line, code) in lines.iter().zip(codes) {
        assert_eq!(code, "code 125", "{line}: {}", ran.out);
    }
    assert!(!ran.out.contains("of root") && !std::path::Path::new("/etc/gpurun-saved").exists(), "{}", ran.out);
    assert_eq!(fs::read_to_string(plugin.cluster.host.dir.join("secret/file")).unwrap(), "of root\n");
    // A directory of root may be named, as without a container, but nothing in it is reached.
    plugin.fails(
        1,
        &format!("srun -n1 --container-image=box --container-mounts={secret}:/x cat /x/file"),
        &["Permission denied"],
    );
    plugin.fails(1, "srun -n1 --container-image=box --container-mounts=/etc/shadow:/x cat /x", &["Permission denied"]);
    // A variable of the job reaches neither gpurun nor the dynamic linker of a process of root.
    let line = "LD_PRELOAD=/nothing GPURUN_ROOT=/tmp/x GPURUN_LOG=trace PATH=$PATH srun -n1 --export=ALL --container-image=box true";
    plugin.ok(&line.replace("LD_PRELOAD=/nothing ", ""));
    let pids = plugin.ok("srun -n1 --container-image=box sh -c 'kill -0 1 2>&1; mknod /tmp/disk b 8 0 2>&1; mount -t tmpfs x /tmp 2>&1; exit 0'");
    assert_eq!(
        pids.matches("not permitted").count()
            + pids.matches("Permission denied").count()
            + pids.matches("permission denied").count(),
        3,
        "{pids}"
    );
    plugin.nothing_is_left();
}

fn gpus() {
    let plugin = Plugin::new(1, 4);
    let look = "for gpu in 0 1 2 3; do (: </dev/nvidia$gpu) 2>&1 | grep -q \"such device or address\" && echo open $gpu; done; ls /dev | grep -c \"nvidia[0-9]\"; \
        find / -xdev -name \"libcuda.so*\" | grep -c cuda; echo $CUDA_VISIBLE_DEVICES";
    // Two jobs at once.
    let mut first = plugin.begin("srun -n1 --gres=gpu:1 --container-image=box sh -c 'echo ready; sleep 1000'");
    let mut line = String::new();
    std::io::BufRead::read_line(&mut std::io::BufReader::new(first.stdout.take().unwrap()), &mut line).unwrap();
    assert_eq!(line, "ready\n");
    let out = plugin.ok(&format!("srun -n1 --gres=gpu:2 --container-image=box sh -c '{look}'"));
    assert!(out.starts_with("open 1\nopen 2\n2\n") && out.ends_with("\n0,1\n"), "{out}");
    assert!(!out.contains("\n0\n"), "the driver's files: {out}");
    let out = plugin.ok(&format!("srun -n1 --container-image=box sh -c '{look}'"));
    assert_eq!(out, "0\n0\n\n");
    let out =
        plugin.ok(&format!("NVIDIA_VISIBLE_DEVICES=void srun -n1 --gres=gpu:1 --container-image=box sh -c '{look}'"));
    assert!(out.starts_with("0\n0\n"), "{out}");
    // The user selects from the step's GPUs. A job without GPUs does not care.
    for (visible, expected) in [("GPU-cccccccc-0000-0000-0000-000000000000", "open 2\n1\n"), ("1", "open 1\n1\n")] {
        let out = plugin.ok(&format!(
            "NVIDIA_VISIBLE_DEVICES={visible} srun -n1 --gres=gpu:2 --container-image=box sh -c '{look}'"
        ));
        assert!(out.starts_with(expected), "{visible}: {out}");
    }
    plugin.ok("NVIDIA_VISIBLE_DEVICES=0 srun -n1 --container-image=box true");
    for (visible, parts) in
        [("0", ["does not have the GPU `0`", "hint: "]), ("1,driver=x", ["is not a list of GPUs", "hint: "])]
    {
        plugin.fails(
            125,
            &format!("NVIDIA_VISIBLE_DEVICES={visible} srun -n1 --gres=gpu:2 --container-image=box true"),
            &parts,
        );
    }
    // Each of two tasks in one container opens the GPU that is bound to it.
    let out = plugin.ok(&format!(
        "srun -n2 --label --mem=1000 --gpus-per-task=1 --container-image=box sh -c '{look}' | grep -E \"open|: 0$\" | sort"
    ));
    assert_eq!(out, "0: 0\n0: open 1\n1: 0\n1: open 2\n");
    // The driver's files come through CDI where the node has such a file: libcuda, and none that it does not name.
    plugin.cluster.driver.as_ref().unwrap().cdi("etc/cdi/nvidia.yaml", 4);
    let files = "find / -xdev -name \"libnvidia-encode*\"; ls /usr/bin/nvidia-smi";
    let out = plugin.ok(&format!("srun -n1 --gres=gpu:2 --container-image=box sh -c '{look}; {files}'"));
    assert!(out.starts_with("open 1\nopen 2\n2\n") && out.ends_with("\n0,1\n/usr/bin/nvidia-smi\n"), "{out}");
    // A device that the step does not have is no device of the container, whatever the user mounts.
    let node = format!("{}/dev/nvidia0", plugin.cluster.driver.as_ref().unwrap().root.display());
    let line =
        format!("srun -n1 --gres=gpu:1 --container-image=box --container-mounts={node}:/dev/nvidia0 cat /dev/nvidia0");
    plugin.fails(1, &line, &["Operation not permitted"]);
    // A file that lacks a GPU of the step.
    plugin.cluster.driver.as_ref().unwrap().cdi("etc/cdi/nvidia.yaml", 1);
    let parts = ["no CDI file describes the GPU `GPU-bbbbbbbb", "hint: "];
    plugin.fails(125, "srun -n1 --gres=gpu:2 --container-image=box true", &parts);
    plugin.ok("scancel -u $(id -un)");
    first.wait().unwrap();
    plugin.nothing_is_left();
}

/// A registry on the node's loopback interface, with and without logins.
fn registry() {
    let plugin = Plugin::new(1, 0);
    let host = &plugin.cluster.host;
    let open = Registry::start(host, 5000, false);
    let closed = Registry::start(host, 5001, true);
    for (tag, creds) in [("127.0.0.1:5000/tools:1", ""), ("127.0.0.1:5001/tools:1", "--creds ann:secret")] {
        plugin.cluster.ok(&format!("$G tag box {tag} && $G push -q {creds} {tag} && $G rmi {tag}"));
    }
    // The first step pulls, and the others use the store of the node.
    let image = "127.0.0.1:5000#tools:1";
    let line = format!("srun -n1 --container-image={image} sh -c 'echo $SLURM_STEP_ID'");
    let first = plugin.run(&line);
    assert!(first.code == 0 && first.err.contains("gpurun: pulling 127.0.0.1:5000/tools:1"), "{}", first.err);
    drop(open);
    let second = plugin.run(&line);
    assert!(second.code == 0 && second.out == "0\n" && !second.err.contains("gpurun:"), "{}", second.err);
    // Another user may have started that registry: the image is only this user's.
    let failed = plugin.cluster.run(&line);
    assert!(failed.code == 125 && failed.err.contains("cannot pull `127.0.0.1:5000/tools:1`"), "{}", failed.err);
    // Neither the logins of root nor a program that a file names.
    let line = "srun -n1 --container-image=127.0.0.1:5001#tools:1 echo inside";
    let auth = plugin.cluster.host.dir.join("auth.json");
    plugin.cluster.ok(&format!("$G login --authfile {} -u ann -p secret 127.0.0.1:5001", auth.display()));
    plugin.fails(125, line, &["cannot pull `127.0.0.1:5001/tools:1`", "hint: "]);
    plugin.fails(125, &format!("REGISTRY_AUTH_FILE={} {line}", auth.display()), &["cannot pull"]);
    plugin.ok("mkdir -p .docker; printf '#!/bin/sh\\ntouch /tmp/helper-ran\\n' >docker-credential-x; chmod +x docker-credential-x");
    plugin.ok("echo '{\"credHelpers\":{\"127.0.0.1:5001\":\"x\"},\"credsStore\":\"x\"}' >.docker/config.json");
    plugin.fails(125, &format!("PATH=$HOME:$PATH {line}"), &["cannot pull"]);
    // The user's own login, in the file of docker or of enroot.
    let own = serde_json::json!({"auths": {"127.0.0.1:5001": {"auth": "YW5uOnNlY3JldA=="}}});
    fs::write(plugin.home.join("login"), own.to_string()).unwrap();
    assert_eq!(plugin.ok(&format!("cp login .docker/config.json; {line}")), "inside\n");
    // It stays this user's, also without the login.
    assert_eq!(plugin.ok(&format!("rm .docker/config.json; {line}")), "inside\n");
    let uid = plugin.ok("id -u");
    let name = format!("localhost/slurm/uid{}/127.0.0.1__5001/tools:1", uid.trim());
    plugin.cluster.ok(&format!("$G image inspect {name} && $G rmi {name}"));
    plugin.fails(125, &format!("srun -n1 --container-image={name} true"), &["these are files of a step"]);
    plugin.ok(
        "mkdir -p .config/enroot; echo machine 127.0.0.1:5001 login ann password secret >.config/enroot/.credentials",
    );
    assert_eq!(plugin.ok(line), "inside\n");
    // `gpurun run` in a step of root.
    let line =
        "srun -n2 --cpu-bind=none --mem=1000 $G run --rm --authfile auth.json 127.0.0.1:5001/tools:1 echo inside";
    assert_eq!(plugin.cluster.ok(line), "inside\ninside\n");
    drop(closed);
    assert_eq!(plugin.cluster.ok("srun -n1 $G run --rm 127.0.0.1:5001/tools:1 echo again"), "again\n");
    plugin.nothing_is_left();
}

/// Debian's docker-registry in the network of a host.
struct Registry(Child);

impl Registry {
    /// With `login`, it wants `ann` with the password `secret`.
    fn start(host: &Host, port: u16, login: bool) -> Self {
        let home = host.dir.join(format!("registry-{port}"));
        fs::create_dir(&home).unwrap();
        let dir = home.display();
        let mut config = format!(
            "version: 0.1\nlog: {{level: warn}}\nstorage: {{filesystem: {{rootdirectory: {dir}/blobs}}}}\nhttp:\n  addr: 127.0.0.1:{port}\n"
        );
        if login {
            sh(&format!("htpasswd -Bbn ann secret >{dir}/users"));
            config += &format!("auth:\n  htpasswd: {{realm: lab, path: {dir}/users}}\n");
        }
        fs::write(home.join("config.yml"), config).unwrap();
        let log = fs::File::create(home.join("log")).unwrap();
        let mut command = host.program("docker-registry", &["serve", &format!("{dir}/config.yml")]);
        let child = command.stdout(log.try_clone().unwrap()).stderr(log).spawn().unwrap();
        let registry = Self(child);
        crate::host::eventually("the registry answers", || {
            host.program("bash", &["-c", &format!(": </dev/tcp/127.0.0.1/{port}")]).output().unwrap().status.success()
        });
        registry
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn killed() {
    let plugin = Plugin::new(1, 0);
    // The program gets TERM, and has the time until KILL.
    let begin = |script: &str| {
        let mut job = plugin.begin(&format!("srun -n1 --container-image=box sh -c '{script}'"));
        let mut out = std::io::BufReader::new(job.stdout.take().unwrap());
        let mut line = String::new();
        std::io::BufRead::read_line(&mut out, &mut line).unwrap();
        let pid: i32 = line.trim().parse().unwrap_or_else(|_| panic!("{line}"));
        (job, out, pid)
    };
    let gone = |pid: i32| {
        crate::host::eventually("the program has ended", || !std::path::Path::new(&format!("/proc/{pid}")).exists())
    };
    let (mut job, mut out, pid) = begin("trap \"echo got it; exit 3\" TERM; echo $$; while :; do sleep 0.1; done");
    plugin.ok("scancel 1");
    let mut rest = String::new();
    std::io::Read::read_to_string(&mut out, &mut rest).unwrap();
    job.wait().unwrap();
    assert_eq!(rest, "got it\n");
    gone(pid);
    plugin.nothing_is_left();
    for (number, line) in [(2, "scancel --signal=KILL 2"), (3, "scancel 3")] {
        let (mut job, _out, pid) = begin("trap \"\" TERM; sleep 1000 & echo $$; sleep 1000");
        plugin.ok(line);
        job.wait().unwrap();
        gone(pid);
        plugin.nothing_is_left();
        assert!(number > 0);
    }
    // A step whose container is not ready yet: a registry that does not answer.
    let mut silent =
        plugin.cluster.host.program("busybox", &["nc", "-l", "-p", "5555"]).stdout(Stdio::null()).spawn().unwrap();
    let mut job = plugin.begin("srun -n2 --mem=1000 --container-image=10.9.9.1:5555#tools true");
    let mut err = std::io::BufReader::new(job.stderr.take().unwrap());
    let mut line = String::new();
    while !line.contains("gpurun: pulling 10.9.9.1:5555/tools:latest") {
        line.clear();
        assert!(std::io::BufRead::read_line(&mut err, &mut line).unwrap() > 0);
    }
    let pulling = || !sh("pgrep -f [d]ocker://10.9.9.1:5555/tools; exit 0").is_empty();
    crate::host::eventually("the registry is asked", pulling);
    plugin.ok("scancel --signal=KILL 4; scancel 4");
    job.wait().unwrap();
    let _ = (silent.kill(), silent.wait());
    plugin.nothing_is_left();
    assert!(!pulling());
    // SIGKILL of slurmstepd, of gpurun's process beside it, and of both at once.
    let parent = |pid: i32| -> i32 {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
        stat.rsplit_once(") ").unwrap().1.split(' ').nth(1).unwrap().parse().unwrap()
    };
    for (number, kills) in [(5, "daemon"), (6, "helper"), (7, "daemon helper")] {
        let (mut job, _out, pid) = begin("trap : TERM; sleep 1000 & echo $$; sleep 1000");
        let daemon = parent(pid);
        let helper = sh(&format!("pgrep -P {daemon} -f step-enter"));
        let pids = kills.replace("daemon", &daemon.to_string()).replace("helper", helper.trim());
        sh(&format!("kill -KILL {pids}"));
        if kills.contains("daemon") {
            gone(pid);
        }
        plugin.ok(&format!("scancel --signal=KILL {number}; scancel {number}; exit 0"));
        job.wait().unwrap();
        gone(pid);
        plugin.nothing_is_left();
    }
}

fn tasks() {
    let plugin = Plugin::new(2, 0);
    // Eight tasks in one mount namespace, with the shared memory of the node.
    let mark = format!("{}-shm", plugin.cluster.node);
    let script = "echo $SLURM_PROCID >/dev/shm/$MARK-$SLURM_PROCID; until [ $(ls /dev/shm | grep -c $MARK) = 8 ]; do sleep 0.1; done; readlink /proc/self/ns/mnt";
    let out = plugin
        .ok(&format!("MARK={mark} srun -N1 -n8 --cpu-bind=none --mem=4000 --container-image=box sh -c '{script}'"));
    sh(&format!("rm -f /dev/shm/{mark}-*"));
    let all: std::collections::BTreeSet<&str> = out.lines().collect();
    assert!(all.len() == 1 && out.lines().count() == 8, "{out}");
    assert_ne!(all.first().copied(), Some(sh("readlink /proc/self/ns/mnt").trim()));
    // Out of memory.
    let killed = plugin.run("srun -n1 --mem=300 --container-image=box dd if=/dev/zero of=/dev/null bs=600M count=1");
    assert!(killed.code != 0 && killed.err.contains("Out Of Memory"), "{}", killed.err);
    // The socket of PMI is alive.
    let script =
        "printf \"cmd=init pmi_version=2 pmi_subversion=0\\n\" >&$PMI_FD; dd bs=1 count=40 <&$PMI_FD 2>/dev/null";
    let out = plugin.ok(&format!("srun -n1 --mpi=pmi2 --container-image=box sh -c '{script}'"));
    assert!(out.starts_with("cmd=response_to_init rc=0"), "{out}");
    // Two nodes: the first task listens, the other one connects.
    let script = "if [ $SLURM_PROCID = 0 ]; then nc -l -p 29999; else until echo hello from $SLURMD_NODENAME | nc 127.0.0.1 29999 2>/dev/null; do sleep 0.1; done; fi";
    let out = plugin.ok(&format!("srun -N2 -n2 --container-image=box sh -c '{script}'"));
    assert_eq!(out, format!("hello from {}2\n", plugin.cluster.node));
    plugin.nothing_is_left();
}

/// Debian's Open MPI, with PMIx.
fn mpi() {
    let plugin = Plugin::new(1, 0);
    plugin.cluster.import_mpi();
    let out = plugin.ok("srun -n2 --cpu-bind=none --mpi=pmix --container-image=mpi ping-pong | sort");
    let line = |rank| format!("rank {rank} of 2: 200 messages of 1048576 bytes, 0 wrong");
    assert_eq!(out.trim_end(), [line(0), line(1)].join("\n"));
    plugin.nothing_is_left();
}

fn jobs() {
    let plugin = Plugin::new(1, 0);
    let script = "#!/bin/sh\n#SBATCH --container-image=box\n#SBATCH --array=1-2 --mem=500 -o out-%a\necho task $SLURM_ARRAY_TASK_ID in $(readlink /proc/self/ns/mnt)\ntouch /mine\n";
    fs::write(plugin.home.join("job"), script).unwrap();
    plugin.ok("sbatch --wait job");
    let own = sh("readlink /proc/self/ns/mnt");
    for number in 1..=2 {
        let out = fs::read_to_string(plugin.home.join(format!("out-{number}"))).unwrap();
        assert!(out.starts_with(&format!("task {number} in mnt:")) && !out.contains(own.trim()), "{out}");
    }
    // The options of an allocation are those of its steps.
    let script = "srun -n1 sh -c 'echo step; touch /mine && ls /mine'\nsrun -n1 sh -c 'exit 5'\n";
    fs::write(plugin.home.join("steps"), script).unwrap();
    let ran = plugin.run("salloc -n1 --container-image=box bash steps");
    assert_eq!((ran.code, ran.out.as_str()), (5, "step\n/mine\n"), "{}", ran.err);
    // A script outside with a step inside.
    let script = "#!/bin/bash\nsrun --container-image=box sh -c 'touch /mine; echo inside $SLURM_STEP_ID'\n";
    fs::write(plugin.home.join("job"), script).unwrap();
    plugin.ok("sbatch --wait -o out job");
    assert_eq!(fs::read_to_string(plugin.home.join("out")).unwrap(), "inside 0\n");
    plugin.nothing_is_left();
}
