//! Containers in the steps of a real Slurm, on this host (tests/slurm/cluster): where they are, what they have, and what is left of them.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use crate::driver::{FakeDriver, uuid};
use crate::host::{Answer, Host, answer, binary, box_archive, eventually};

pub const TESTS: &[(&str, fn())] = &[
    ("a_container_stays_in_its_step", stays),
    ("what_leaves_a_step_is_refused", refusals),
    ("a_job_out_of_memory_is_explained", memory),
    ("jobs_open_their_own_gpus_only", gpus),
    ("scancel_ends_a_container_and_nothing_is_left", cancelled),
    ("nothing_outlives_slurmstepd", daemon_killed),
    ("tasks_share_one_image_and_their_memory", tasks),
    ("a_task_speaks_pmi_with_slurm", pmi),
    ("mpi_tasks_share_their_memory", mpi),
    ("a_task_has_its_environment_terminal_and_exit_code", environment),
    ("two_nodes_meet_through_torchruns_variables", torchrun),
    ("arrays_and_allocations", jobs),
];

/// Whether this host can run the cluster: Slurm's programs, version 1's cgroups, and the script.
pub fn is_possible() -> bool {
    let programs = ["slurmctld", "slurmd", "srun", "munged"].into_iter().all(crate::has_program);
    programs && Path::new("/sys/fs/cgroup/devices").is_dir() && Path::new(SCRIPT).exists()
}

const SCRIPT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/slurm/cluster");

pub struct Cluster {
    pub host: Host,
    pub dir: PathBuf,
    /// The nodes are this and a number.
    pub node: String,
    pub driver: Option<FakeDriver>,
}

impl Cluster {
    /// A cluster whose first node has the GPUs of a stand-in driver, if there are some.
    pub fn new(nodes: usize, gpus: usize) -> Self {
        Self::prepared(nodes, gpus, |_| ())
    }

    /// The same, with something to do before Slurm starts.
    pub fn prepared(nodes: usize, gpus: usize, prepare: impl FnOnce(&Self)) -> Self {
        let host = Host::with_box();
        let driver = (gpus > 0).then(|| FakeDriver::new(&host.dir.join("driver"), gpus));
        let node = host.netns.replace("gpurun-e2e", "g").replace('-', "x") + "n";
        let dir = host.dir.join("slurm");
        let cluster = Self { host, dir, node, driver };
        prepare(&cluster);
        let root = cluster.driver.as_ref().map(|driver| driver.root.clone()).unwrap_or_default();
        let files: Vec<String> =
            (0..gpus).map(|gpu| root.join(format!("dev/nvidia{gpu}")).display().to_string()).collect();
        // With nothing but the loopback interface, glibc finds no address for a name (AI_ADDRCONFIG), not even for 127.0.0.1.
        let address = "ip link add slurm0 type veth peer name slurm1 && ip addr add 10.9.9.1/24 dev slurm0 && \
            ip link set slurm0 up && ip link set slurm1 up";
        let line = format!(
            "{address} && {SCRIPT} start {} {} {nodes} {}",
            cluster.dir.display(),
            cluster.node,
            files.join(" ")
        );
        let started = answer(cluster.host.program("bash", &["-c", &line]).output().unwrap());
        assert_eq!(started.code, 0, "{}", started.err);
        cluster
    }

    /// A line of bash with this cluster and gpurun as `$G`.
    pub fn command(&self, line: &str) -> Command {
        let mut command = self.host.shell(line);
        command.env("SLURM_CONF", self.dir.join("slurm.conf")).env("G", binary()).env("NODE", &self.node);
        if let Some(driver) = &self.driver {
            command.env("GPURUN_DRIVER_ROOT", &driver.root);
        }
        command
    }

    pub fn run(&self, line: &str) -> Answer {
        answer(self.command(line).output().unwrap())
    }

    #[track_caller]
    pub fn ok(&self, line: &str) -> String {
        let answer = self.run(line);
        assert_eq!(answer.code, 0, "{line}\nstdout: {}\nstderr: {}", answer.out, answer.err);
        answer.out
    }

    /// Runs a line that fails with a code and with these parts in its error.
    #[track_caller]
    pub fn fails(&self, code: i32, line: &str, parts: &[&str]) {
        let answer = self.run(line);
        assert_eq!(answer.code, code, "{line}\nstdout: {}\nstderr: {}", answer.out, answer.err);
        for part in parts {
            assert!(answer.err.contains(part), "{line}: no `{part}` in: {}", answer.err);
        }
    }

    pub fn begin(&self, line: &str) -> Child {
        self.command(line).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
    }

    /// Waits until a container runs, and returns its id.
    #[track_caller]
    fn container(&self, name: &str) -> String {
        let mut id = String::new();
        eventually("a container in a step runs", || {
            let found = self.host.run(&["inspect", "-f", "{{.Id}} {{.State.Running}}", name]);
            id = found.out.trim().strip_suffix(" true").unwrap_or_default().to_owned();
            !id.is_empty()
        });
        id
    }

    /// Imports the image `mpi`, with Debian's Open MPI and `ping-pong`.
    pub fn import_mpi(&self) {
        let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/slurm/mpi-image");
        self.ok(&format!("{script} mpi.tar && $G import mpi.tar mpi"));
    }

    /// Everything that is left of the jobs: Slurm's and gpurun's cgroups, processes, directories in /run.
    fn leftovers(&self, id: &str) -> Vec<String> {
        let mut found = Vec::new();
        let line = format!(
            "find /sys/fs/cgroup \\( -path '*/slurm_{}*/job_*' -o -name '{id}' \\) -type d; pgrep -af -- '--run-dir {}'; exit 0",
            self.node,
            self.host.dir.join("run").display()
        );
        found.extend(crate::host::sh(&line).lines().filter(|line| !line.contains("pgrep")).map(str::to_owned));
        let dirs = ["run", "root/containers"].map(|dir| self.host.dir.join(dir).join(id));
        found.extend(dirs.iter().filter(|dir| dir.exists()).map(|dir| dir.display().to_string()));
        found
    }

    #[track_caller]
    pub fn nothing_is_left(&self, id: &str) {
        let mut left = Vec::new();
        let begin = std::time::Instant::now();
        while begin.elapsed() < crate::host::PATIENCE {
            left = self.leftovers(id);
            if left.is_empty() {
                return;
            }
            std::thread::sleep(std::time::Duration::from_millis(50));
        }
        panic!("left behind: {left:#?}");
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        let stopped = answer(self.host.program(SCRIPT, &["stop", self.dir.to_str().unwrap()]).output().unwrap());
        if !std::thread::panicking() {
            assert_eq!(stopped.code, 0, "{}", stopped.err);
        }
    }
}

fn stays() {
    let cluster = Cluster::new(1, 0);
    let mut job = cluster.begin("srun -n1 --mem=300 $G run --rm --memory 100m --name lab box sleep 1000");
    let id = cluster.container("lab");
    let pid = cluster.host.ok(&["inspect", "-f", "{{.State.Pid}}", "lab"]);
    let list = fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap();
    let step = format!("/slurm_{}1/uid_0/job_1/step_0", cluster.node);
    for controller in ["memory", "devices", "cpuset", "freezer"] {
        let line = list.lines().find(|line| line.contains(&format!(":{controller}:"))).unwrap();
        assert!(line.contains(&step) && line.ends_with(&id), "{line}");
    }
    for controller in ["cpu", "pids"] {
        assert!(list.contains(&format!(":{controller}:/gpurun/{id}\n")), "{list}");
    }
    // Its own limit holds below the step's, which the other commands show as well.
    let own = format!("/sys/fs/cgroup/memory{step}/task_0/{id}/memory.limit_in_bytes");
    assert_eq!(fs::read_to_string(&own).unwrap().trim(), (100 << 20).to_string());
    let inspected = cluster.host.inspect("lab");
    assert_eq!(inspected["ClusterStep"], "Slurm step 1.0");
    assert_eq!(inspected["ClusterCgroups"]["freezer"], format!("{step}/{id}"));
    let limits = inspected["Limits"].as_array().unwrap();
    let cpus = limits.iter().find(|row| row["flag"] == "--cpuset-cpus").unwrap();
    // Slurm 24.11 limits the task's cgroup as well.
    let bounds = ["", "/task_0"].map(|task| format!("/sys/fs/cgroup/cpuset{step}{task}/cpuset.effective_cpus"));
    assert!(bounds.iter().any(|bound| cpus["note"].as_str().unwrap().contains(bound)), "{cpus}");
    let explained = cluster.host.ok(&["explain", "lab"]);
    assert!(explained.contains("memory.limit_in_bytes = 104857600"), "{explained}");
    assert!(bounds.iter().any(|bound| explained.contains(&format!("binding    {bound}"))), "{explained}");
    // A change of the running container has the same bounds, also from outside of the step.
    cluster.host.ok(&["update", "--memory", "200m", "lab"]);
    assert_eq!(fs::read_to_string(&own).unwrap().trim(), (200 << 20).to_string());
    let error = cluster.host.fails(2, &["update", "--memory", "400m", "lab"]);
    assert!(error.contains("cannot set `--memory 400 MiB`: the Slurm step 1.0 has 300 MiB (`/sys/fs"), "{error}");
    let error = cluster.host.fails(2, &["update", "--cpus", "1.5", "lab"]);
    assert!(error.contains("cannot set `--cpus 1.5`: the Slurm step 1.0 has 1 CPU"), "{error}");
    assert_eq!(fs::read_to_string(&own).unwrap().trim(), (200 << 20).to_string());
    // Commands from outside of the step find the container.
    assert_eq!(cluster.host.ok(&["exec", "lab", "echo", "inside"]), "inside");
    assert_eq!(cluster.ok("srun --jobid=1 --overlap -n1 $G exec lab echo again"), "again\n");
    assert!(cluster.host.ok(&["stats", "--no-stream", "lab"]).contains("lab"));
    assert!(cluster.host.ok(&["explain", "--tree", "lab"]).contains("cgroups (v1"));
    cluster.ok("scancel 1");
    job.wait().unwrap();
    cluster.nothing_is_left(&id);
    // Without a limit of its own, the step's is the one that binds.
    let mut job = cluster.begin("srun -n1 --mem=300 $G run --rm --name plain box sleep 1000");
    let id = cluster.container("plain");
    let explained = cluster.host.ok(&["explain", "plain"]);
    let binding =
        format!("binding    /sys/fs/cgroup/memory/slurm_{}1/uid_0/job_2/step_0/memory.limit_in_bytes", cluster.node);
    assert!(explained.contains("effective 314572800 (300 MiB)") && explained.contains(&binding), "{explained}");
    cluster.ok("scancel 2");
    job.wait().unwrap();
    cluster.nothing_is_left(&id);
}

fn refusals() {
    let cluster = Cluster::new(1, 0);
    cluster.host.ok(&["create", "--name", "old", "box", "true"]);
    // One allocation for all of them.
    let all = [
        ("run -d box true", ["`--detach`", "must end with the step"]),
        ("run --restart always box true", ["`--restart`", "must end with the step"]),
        ("run --cgroup-parent /lab box true", ["`--cgroup-parent`", "stays in the step's cgroup"]),
        ("create box true", ["cannot create a container for later", "must end with the step"]),
        ("start old", ["cannot start container `old`", "outside of the step"]),
        ("exec old true", ["cannot execute a command in container `old`", "does not belong to the job"]),
        ("run --memory 400m box true", ["`--memory 400 MiB`", "has 300 MiB (`/sys/fs/cgroup/memory/slurm_"]),
        ("run --cpuset-cpus 0-1 box true", ["`--cpuset-cpus 0-1`", "(`/sys/fs/cgroup/cpuset/slurm_"]),
        ("run --cpus 1.5 box true", ["`--cpus 1.5`", "has 1 CPU (`/sys/fs/cgroup/cpuset/slurm_"]),
    ];
    let lines: Vec<String> = all.iter().map(|(line, _)| format!("$G {line} 2>&1; echo code $?")).collect();
    let out = cluster.ok(&format!("srun -n1 --mem=300 bash -c '{}'", lines.join("; ")));
    let mut rest = out.as_str();
    for (line, parts) in all {
        let (answer, after) = rest.split_once("code ").unwrap();
        assert!(after.starts_with("125\n") || after.starts_with("2\n") || after.starts_with("1\n"), "{line}: {after}");
        assert!(
            answer.contains("Slurm step 1.0") && parts.iter().all(|part| answer.contains(part)),
            "{line}: {answer}"
        );
        assert!(answer.contains("hint: "), "{answer}");
        rest = after;
    }
    cluster.nothing_is_left("none");
    // Variables alone are no step.
    let outside = "SLURM_JOB_ID=1 SLURM_STEP_ID=0 $G run --rm --network none box env";
    assert!(!cluster.ok(outside).contains("SLURM_"));
}

fn memory() {
    let cluster = Cluster::new(1, 0);
    let step = "the Slurm step 1.0 does: `srun --mem=600M`";
    let parts = ["killed `dd`", "the memory limit of 300 MiB of `/slurm_", step];
    cluster.fails(137, "srun -n1 --mem=300 $G run --rm box dd if=/dev/zero of=/dev/null bs=600M count=1", &parts);
    // A tighter limit is the container's own.
    let parts = ["the container's memory limit of 64 MiB was reached"];
    cluster.fails(
        137,
        "srun -n1 --mem=300 $G run --rm --memory 64m box dd if=/dev/zero of=/dev/null bs=200M count=1",
        &parts,
    );
    cluster.nothing_is_left("none");
}

/// What a container can open, and what its GPUs are.
const LOOK: &str = "for gpu in 0 1 2 3; do (: </dev/nvidia$gpu) 2>&1 | grep -q \"such device or address\" && echo open $gpu; done; \
    mknod /other c 195 3 2>/dev/null && (: </other) 2>&1 | grep -q \"such device or address\" && echo other; \
    env | grep -E \"^(CUDA|NVIDIA)_VISIBLE\"; exit 0";

fn gpus() {
    let cluster = Cluster::new(1, 4);
    let look = format!("box sh -c '{LOOK}'");
    // Two jobs at once: the second one's GPUs are not those that CUDA_VISIBLE_DEVICES seems to name.
    let hold = "run --rm --init --gpu-mode native --gpus all --name";
    let mut first = cluster.begin(&format!("srun -n1 --gres=gpu:1 $G {hold} first box sleep 1000"));
    let id = cluster.container("first");
    assert_eq!(cluster.host.inspect("first")["Gpus"][0]["name"], uuid(0));
    let out = cluster.ok(&format!("srun -n1 --gres=gpu:2 $G run --rm {look}"));
    let visible = format!("NVIDIA_VISIBLE_DEVICES={},{}", uuid(1), uuid(2));
    assert!(out.contains("open 1\nopen 2\n") && !out.contains("open 0") && !out.contains("open 3"), "{out}");
    assert!(!out.contains("other") && out.contains("CUDA_VISIBLE_DEVICES=0,1\n"), "{out}");
    assert!(out.contains(&visible) || out.contains("NVIDIA_VISIBLE_DEVICES=void"), "{out}");
    // A part of the step's GPUs.
    let out = cluster.ok(&format!("srun -n1 --gres=gpu:2 $G run --rm --gpus device={} {look}", uuid(2)));
    assert!(out.contains("open 2\n") && !out.contains("open 1") && out.contains("CUDA_VISIBLE_DEVICES=0\n"), "{out}");
    let out = cluster.ok(&format!("srun -n1 --gres=gpu:2 $G run --rm --gpus 1 {look}"));
    assert!(out.contains("open 1\n") && !out.contains("open 2"), "{out}");
    let out = cluster.ok(&format!("srun -n1 --gres=gpu:1 $G run --rm -e NVIDIA_VISIBLE_DEVICES=void {look}"));
    assert!(!out.contains("open"), "a caller may refuse them: {out}");
    // What the step does not have.
    let fails = |options: &str, flags: &str, parts: &[&str]| {
        cluster.fails(125, &format!("srun -n1 {options} $G run --rm {flags} box true"), parts);
    };
    fails("--gres=gpu:1", "--gpus device=0", &["does not have the GPU `0`", &uuid(1), "--gpus all"]);
    fails("--gres=gpu:1", "--gpus 2", &["2 GPUs are requested, but the Slurm step", "has 1", "--gres=gpu:2"]);
    fails("", "--gpus all", &["has no GPU", "--gres=gpu:1"]);
    let node = format!("/dev/{}-gpu", cluster.node);
    crate::host::sh(&format!("mknod -m 666 {node} c 195 0"));
    let line = format!("srun -n1 --gres=gpu:1 $G run --rm --device {node} box true");
    let refused = cluster.run(&line);
    fs::remove_file(&node).unwrap();
    assert!(refused.code == 125 && refused.err.contains("does not have this device"), "{}", refused.err);
    // A GPU for each of two tasks.
    let out = cluster.ok(&format!("srun -n2 --label --mem=1000 --gpus-per-task=1 $G run --rm {look} | sort"));
    for (task, gpu) in [(0, 1), (1, 2)] {
        let lines: Vec<&str> = out.lines().filter(|line| line.starts_with(&format!("{task}: "))).collect();
        let opens: Vec<&&str> = lines.iter().filter(|line| line.contains("open")).collect();
        assert!(
            opens == [&&*format!("{task}: open {gpu}")] && lines.contains(&&*format!("{task}: CUDA_VISIBLE_DEVICES=0")),
            "{out}"
        );
    }
    // CDI's devices are those of the step as well.
    cluster.driver.as_ref().unwrap().cdi("etc/cdi/nvidia.yaml", 4);
    fails(
        "--gres=gpu:1",
        "--device nvidia.com/gpu=0",
        &[
            "`--device nvidia.com/gpu=0`",
            "the Slurm step",
            "does not have this device",
            "hint: request the device from Slurm",
        ],
    );
    let out = cluster.ok(&format!("srun -n1 --gres=gpu:1 $G run --rm --device nvidia.com/gpu=1 {look}"));
    assert!(out.starts_with("open 1\n") && out.matches("open").count() == 1, "{out}");
    // A job without GPUs, also with all rights.
    for flags in ["", "--privileged"] {
        let out = cluster.ok(&format!("srun -n1 $G run --rm {flags} {look}"));
        assert!(!out.contains("open") && !out.contains("other"), "{flags}: {out}");
    }
    cluster.ok("scancel --user root");
    first.wait().unwrap();
    cluster.nothing_is_left(&id);
}

fn cancelled() {
    let cluster = Cluster::new(1, 0);
    // The program gets TERM, and has the time until KILL.
    let trap = "trap \"echo got it; exit 3\" TERM; echo ready; while :; do sleep 0.1; done";
    let job = cluster.begin(&format!("srun -n1 $G run --rm --name polite box sh -c '{trap}'"));
    let id = cluster.container("polite");
    eventually("the trap is set", || cluster.host.run(&["logs", "polite"]).out.contains("ready"));
    cluster.ok("scancel 1");
    let ended = answer(job.wait_with_output().unwrap());
    assert_eq!((ended.code, ended.out.as_str()), (3, "ready\ngot it\n"), "{}", ended.err);
    cluster.nothing_is_left(&id);
    // A program that sets no trap ends at TERM, as it does without a container.
    let job = cluster.begin("srun -n1 $G run --rm --name plain box sleep 1000");
    let id = cluster.container("plain");
    cluster.ok("scancel 2");
    let ended = answer(job.wait_with_output().unwrap());
    assert_eq!(ended.code, 143, "{}", ended.err);
    cluster.nothing_is_left(&id);
    // One that ignores it is killed with all the rest.
    for (number, signal) in [(3, "--signal=KILL"), (4, "")] {
        let line = "trap \"\" TERM; sleep 1000 & sleep 1000";
        let mut job = cluster.begin(&format!("srun -n1 $G run --name stubborn{number} box sh -c '{line}'"));
        let id = cluster.container(&format!("stubborn{number}"));
        let pid: i32 = cluster.host.ok(&["inspect", "-f", "{{.State.Pid}}", &id]).parse().unwrap();
        cluster.ok(&format!("scancel {signal} {number}"));
        job.wait().unwrap();
        eventually("the container is gone", || !Path::new(&format!("/proc/{pid}")).exists());
        // Without `--rm`, its record stays. Nothing else does, before any other command.
        let remaining = || -> Vec<String> {
            cluster.leftovers(&id).into_iter().filter(|path| !path.contains("root/containers")).collect()
        };
        let began = std::time::Instant::now();
        while !remaining().is_empty() {
            assert!(began.elapsed().as_secs() < 60, "left: {:#?}", remaining());
            std::thread::sleep(std::time::Duration::from_millis(50));
        }
        assert_eq!(cluster.host.ok(&["inspect", "-f", "{{.State.Status}} {{.State.ExitCode}}", &id]), "exited 137");
        let refused = cluster.host.run(&["start", &id]);
        assert!(
            refused.code != 0 && refused.err.contains(&format!("belongs to the Slurm step {number}.0")),
            "{}",
            refused.err
        );
    }
}

fn daemon_killed() {
    let cluster = Cluster::new(1, 0);
    let mut job = cluster
        .begin("srun -n1 bash -c '$G run --rm --name lab box sh -c \"trap : TERM; sleep 1000; sleep 1000\"; true'");
    let id = cluster.container("lab");
    let pid = cluster.host.ok(&["inspect", "-f", "{{.State.Pid}}", "lab"]);
    // Its name says which step it runs, and so does that of another cluster's: its parents tell them apart.
    let mut parent: i32 = pid.parse().unwrap();
    let stat = |pid: i32| fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    while !stat(parent).contains("(slurmstepd)") {
        parent = stat(parent).rsplit_once(") ").unwrap().1.split(' ').nth(1).unwrap().parse().unwrap();
    }
    crate::host::sh(&format!("kill -KILL {parent}"));
    eventually("the container is gone", || !Path::new(&format!("/proc/{pid}")).exists());
    cluster.ok("scancel 1");
    job.wait().unwrap();
    cluster.nothing_is_left(&id);
}

fn tasks() {
    let cluster = Cluster::new(1, 0);
    fs::copy(box_archive(), cluster.host.dir.join("box.tar")).unwrap();
    // A store that nothing is in. Each task runs the archive in place; all have the shared memory of the host.
    let line = "echo $SLURM_PROCID >/dev/shm/$MARK-$SLURM_PROCID; \
        until [ $(ls /dev/shm/ | grep -c $MARK) = 8 ]; do sleep 0.1; done; cat /dev/shm/$MARK-* | tr \"\\n\" \" \"; hostname";
    let mark = format!("{}-shm", cluster.node);
    let run = "srun -N1 -n8 --cpu-bind=none --mem=4000 $G run --rm --ipc host -e MARK";
    let out = cluster.ok(&format!("export MARK={mark} GPURUN_ROOT=$PWD/cold; {run} ./box.tar sh -c '{line}'"));
    crate::host::sh(&format!("rm -f /dev/shm/{mark}-*"));
    let host = crate::host::sh("hostname");
    // The same name for all tasks becomes one name for each. A single task keeps it.
    let named = "srun -N1 -n2 --cpu-bind=none $G run --name train box true; srun -n1 $G run --name train box true";
    let list = "$G ps -a --format '{{.Names}}' | sort | tr '\\n' ' '; $G rm train train-0 train-1 >/dev/null";
    let names = cluster.ok(&format!("export GPURUN_ROOT=$PWD/cold; $G load -q box.tar >/dev/null; {named}; {list}"));
    assert_eq!(names, "train train-0 train-1 ");
    assert_eq!(out, format!("0 1 2 3 4 5 6 7 {host}").repeat(8));
    cluster.nothing_is_left("none");
}

fn pmi() {
    let cluster = Cluster::new(1, 0);
    let script = "
fd=$PMI_FD
ask() { printf '%6d%s' ${#1} \"$1\" >&$fd; }
hear() { size=$(dd bs=1 count=6 <&$fd 2>/dev/null); dd bs=1 count=$((size)) <&$fd 2>/dev/null; echo; }
printf 'cmd=init pmi_version=2 pmi_subversion=0\\n' >&$fd
while c=$(dd bs=1 count=1 <&$fd 2>/dev/null); [ -n \"$c\" ]; do printf '%s' \"$c\"; done
echo
ask \"cmd=fullinit;pmijobid=$PMI_JOBID;pmirank=$PMI_RANK;threaded=FALSE;\"
hear
ask 'cmd=finalize;'
hear
";
    fs::write(cluster.host.dir.join("pmi"), script).unwrap();
    let out = cluster.ok("srun -n2 --mpi=pmi2 --cpu-bind=none --label $G run --rm -v $PWD/pmi:/pmi box sh /pmi");
    for task in 0..2 {
        let lines: Vec<&str> = out.lines().filter_map(|line| line.strip_prefix(&format!("{task}: "))).collect();
        assert!(lines[0].contains("cmd=response_to_init rc=0 pmi_version=2 pmi_subversion=0"), "{out}");
        let full = lines.iter().find(|line| line.contains("fullinit-response")).unwrap_or_else(|| panic!("{out}"));
        assert!(full.contains(&format!("rank={task};size=2;")), "{out}");
        assert!(lines.iter().any(|line| line.contains("finalize-response")), "{out}");
    }
    // The socket is the only descriptor beyond the standard streams. A number without a socket gives none.
    let list = "box sh -c \"exec ls -l /proc/self/fd\"";
    let out = cluster.ok(&format!("srun -n1 --mpi=pmi2 $G run --rm {list}"));
    assert_eq!((out.matches("socket:").count(), out.matches(" -> ").count()), (1, 4), "{out}");
    let out = cluster
        .ok(&format!("srun -n1 bash -c 'PMI_FD=9 $G run --rm {}'", list.replace('"', "\\\"").replace("\\\"", "\"")));
    assert_eq!(out.matches("socket:").count(), 0, "{out}");
}

/// Debian's Open MPI in an image, with PMIx. It copies from task to task by PID, so the tasks of a node share their namespaces.
fn mpi() {
    let cluster = Cluster::new(1, 0);
    cluster.import_mpi();
    let run = "srun -n2 --cpu-bind=none";
    let out = cluster.ok(&format!("{run} --mpi=pmix $G run --rm mpi ping-pong | sort"));
    let line = |rank| format!("rank {rank} of 2: 200 messages of 1048576 bytes, 0 wrong");
    assert_eq!(out.trim_end(), [line(0), line(1)].join("\n"));
    // The namespaces are the node's for the tasks of an MPI program, unless flags say otherwise.
    let host = ["pid", "ipc"].map(|kind| crate::host::sh(&format!("readlink /proc/self/ns/{kind}")).trim().to_owned());
    let shared = |srun: &str, flags: &str| {
        let links = "sh -c 'readlink /proc/self/ns/pid; readlink /proc/self/ns/ipc'";
        let out = cluster.ok(&format!("{srun} $G run --rm {flags} box {links}"));
        [0, 1].map(|kind| out.lines().any(|line| line == host[kind]))
    };
    for (srun, flags, expected) in [
        (&*format!("{run} --mpi=pmi2"), "", [true, true]),
        (&format!("{run} --mpi=pmi2"), "--pid private", [false, true]),
        (&format!("{run} --mpi=pmi2"), "--ipc private", [false, false]),
        (&format!("{run} --mpi=pmi2"), "--shm-size 1m", [false, false]),
        (run, "", [false, false]),
        (run, "--ipc host", [true, true]),
        ("srun -n1 --mpi=pmi2", "", [false, false]),
    ] {
        assert_eq!(shared(srun, flags), expected, "{srun} {flags}");
    }
    cluster.nothing_is_left("none");
}

fn environment() {
    let cluster = Cluster::new(1, 0);
    // Slurm sleeps for a second if it finds a process in the step when a task has ended: the command ends after its supervisor.
    let script = "$G run --rm --name lab box sleep 1000 & command=$!
until [ \"$($G inspect -f '{{.State.Running}}' lab 2>/dev/null)\" = true ]; do kill -0 $command || exit; sleep 0.1; done
pid=$(pgrep -o -f \"[s]upervise .*--run-dir $RUN\")
strace -qq -o /dev/null -p $pid -e trace=exit_group -e inject=exit_group:delay_enter=700000 &
until grep -q 'TracerPid:.[1-9]' /proc/$pid/status; do kill -0 $! || exit; sleep 0.1; done
$G kill lab >/dev/null
wait $command
[ -e /proc/$pid/exe ] && echo alive || echo gone
wait";
    fs::write(cluster.host.dir.join("ends"), script).unwrap();
    let run = cluster.host.dir.join("run");
    assert_eq!(cluster.ok(&format!("RUN={} srun -n1 bash ./ends", run.display())), "gone\n");
    let out = cluster.ok("srun -n1 env SLURM_JWT=secret MINE=1 $G run --rm -e SLURM_JOB_NAME=mine box env");
    let has = |line: &str| out.lines().any(|other| other == line);
    assert!(has("SLURM_PROCID=0") && has(&format!("SLURMD_NODENAME={}1", cluster.node)), "{out}");
    assert!(has("SLURM_JOB_NAME=mine") && !out.contains("secret") && !out.contains("MINE"), "{out}");
    // Patterns work everywhere.
    let out = cluster.ok("A_1=x A_2=y B_1=z $G run --rm --network none -e 'A_*' -e 'B*1' box env");
    assert!(["A_1=x", "A_2=y", "B_1=z"].iter().all(|line| out.contains(line)), "{out}");
    cluster.fails(42, "srun -n1 $G run --rm box sh -c 'exit 42'", &[]);
    cluster.fails(127, "srun -n1 $G run --rm box nothing-of-this-name", &["nothing-of-this-name"]);
    let out = cluster.run("script -qec \"srun -n1 --pty $G run --rm -it box sh -c 'tty; exit 7'\" /dev/null");
    assert!(out.code == 7 && out.out.contains("/dev/pts/0"), "{} {}", out.code, out.out);
    cluster.nothing_is_left("none");
}

fn torchrun() {
    let cluster = Cluster::new(2, 0);
    // As PyTorch's processes do: the first one listens, and the others connect to it.
    let script = "
echo $RANK/$WORLD_SIZE $LOCAL_RANK $MASTER_PORT >&2
if [ $RANK = 0 ]; then
    echo \"rank 1 says: $(nc -l -p $MASTER_PORT)\"
else
    until echo hello from $SLURMD_NODENAME | nc $MASTER_ADDR $MASTER_PORT 2>/dev/null; do sleep 0.1; done
fi
";
    fs::write(cluster.host.dir.join("train"), script).unwrap();
    let hosts = "--add-host ${NODE}1:127.0.0.1 --add-host ${NODE}2:127.0.0.1";
    let line = format!("srun -N2 -n2 --label $G run --rm --torchrun-env {hosts} -v $PWD/train:/train box sh /train");
    let ran = cluster.run(&line);
    assert_eq!(ran.code, 0, "{}{}", ran.out, ran.err);
    assert_eq!(ran.out, format!("0: rank 1 says: hello from {}2\n", cluster.node), "{}", ran.err);
    for task in 0..2 {
        assert!(ran.err.contains(&format!("{task}: {task}/2 0 61001\n")), "{}", ran.err);
    }
    cluster.fails(125, "$G run --rm --torchrun-env box true", &["`SLURM_STEP_NODELIST`", "srun gpurun run"]);
    cluster.nothing_is_left("none");
}

fn jobs() {
    let cluster = Cluster::new(1, 0);
    let script = "#!/bin/bash\nsrun $G run --rm box sh -c 'echo task $SLURM_ARRAY_TASK_ID of $SLURM_JOB_ID'\n\
        $G run --rm box sh -c 'echo batch $SLURM_ARRAY_TASK_ID'\n";
    fs::write(cluster.host.dir.join("job"), script).unwrap();
    cluster.ok("sbatch --wait --array=1-2 --mem=500 -o $PWD/out-%a job");
    for number in 1..=2 {
        let out = fs::read_to_string(cluster.host.dir.join(format!("out-{number}"))).unwrap();
        assert!(out.contains(&format!("task {number} of ")) && out.contains(&format!("batch {number}\n")), "{out}");
    }
    // The batch script itself is in a step as well.
    let script = "#!/bin/bash\n$G run --rm box dd if=/dev/zero of=/dev/null bs=600M count=1\n";
    fs::write(cluster.host.dir.join("job"), script).unwrap();
    let ended = cluster.run("sbatch --wait --mem=300 -o $PWD/out job");
    let out = fs::read_to_string(cluster.host.dir.join("out")).unwrap();
    assert!(ended.code != 0 && out.contains("killed `dd`") && out.contains(".batch does: `srun --mem=600M`"), "{out}");
    // Several steps in one allocation.
    let out = cluster.ok("salloc -n1 --mem=500 bash -c 'for i in 1 2; do srun $G run --rm box sh -c \"echo step \\$SLURM_STEP_ID\"; done'");
    assert_eq!(out, "step 0\nstep 1\n");
    cluster.nothing_is_left("none");
}
