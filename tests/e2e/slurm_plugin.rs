//! `srun --container-image` in a real Slurm (tests/slurm/cluster), with the plugin of hooks/slurm and a plain user that each test creates.

use std::fs;
use std::path::PathBuf;
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};

use crate::host::{Answer, answer, binary, sh};
use crate::slurm::Cluster;

pub const TESTS: &[(&str, fn())] = &[("a_plain_user_runs_an_image_of_the_node", image)];

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
        let cluster = Cluster::new(nodes, gpus);
        let library = cluster.dir.join("gpurun_spank.so");
        let built = answer(Command::new(SOURCE).arg(&library).output().unwrap());
        assert_eq!(built.code, 0, "{}{}", built.out, built.err);
        let dir = &cluster.host.dir;
        let mut line = format!(
            "required {} gpurun={} GPURUN_ROOT={} GPURUN_RUN={}",
            library.display(),
            binary().display(),
            dir.join("root").display(),
            dir.join("run").display()
        );
        if let Some(driver) = &cluster.driver {
            line += &format!(" GPURUN_DRIVER_ROOT={}", driver.root.display());
        }
        fs::write(cluster.dir.join("plugstack.conf"), line + "\n").unwrap();
        let user = format!("gpurun-{}-{}", std::process::id(), USERS.fetch_add(1, Ordering::Relaxed));
        let home = dir.join("home");
        sh(&format!("useradd --create-home --home-dir {} {user}", home.display()));
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
        answer
    }

    /// Nothing of any step is left: no container, no process, no cgroup.
    #[track_caller]
    fn nothing_is_left(&self) {
        self.cluster.nothing_is_left("none");
        assert_eq!(self.cluster.host.ok(&["ps", "-aq"]), "");
    }
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
