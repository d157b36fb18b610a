"""Start latency of `true` in a container: gpurun against whatever of podman, docker, crun and runc is installed.

    sudo benches/start.py [ROUNDS] [--crun FILE] [--earlier FILE] [--burst]

gpurun is target/release/gpurun; busybox-static and cc must be installed. `--crun` adds another crun (Debian 13's, with its libraries), `--earlier` another
gpurun. `exec` of gpurun and crun is measured too, and so is the floor: the same namespaces by a program of a few lines (floor.c). `--burst` measures 100
starts and stops at once instead.

One interleaved run: every round runs each tool once, in a random order; the figures are medians, and ratios of medians of the same run.
crun and runc run the very spec that gpurun made (same seccomp profile, same limits) on a plain directory, without network. All of it happens in a
network namespace of its own; where docker is installed and no daemon runs, one is started for the time of the measurement.

On a host with both versions of cgroups crun, runc and podman need version 2 out of their sight. That is prepared once, in a mount namespace in
which they are started, and is not part of any measurement.
"""

import contextlib
import ctypes
import json
import os
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
import time

ARGUMENTS = sys.argv[1:]
CRUN, EARLIER = (ARGUMENTS[ARGUMENTS.index(flag) + 1] if flag in ARGUMENTS else None for flag in ("--crun", "--earlier"))
ROUNDS = int(next((word for word in ARGUMENTS if word.isdigit()), "30"))
TARGET = os.environ.get("CARGO_TARGET_DIR", "target")
GPURUN = os.path.abspath(f"{TARGET}/release/gpurun")
work = tempfile.mkdtemp(prefix="gpurun-bench.", dir="/var/tmp")
# /run is a tmpfs on an installed system, though not in every container and virtual machine.
run_dir = tempfile.mkdtemp(prefix="gpurun-bench.", dir="/dev/shm")
environment = os.environ | {"GPURUN_ROOT": f"{work}/root", "GPURUN_RUN": run_dir}


def call(*words, **more):
    return subprocess.run(words, check=True, capture_output=True, text=True, env=environment, **more).stdout


def image():
    """A docker-archive with busybox, by way of a Containerfile-free tar that every tool can import."""
    root = f"{work}/image"
    os.makedirs(f"{root}/bin")
    os.makedirs(f"{root}/etc")
    shutil.copy("/bin/busybox", f"{root}/bin/busybox")
    os.makedirs(f"{root}/proc")
    for applet in ("true", "sh", "sleep"):
        os.symlink("busybox", f"{root}/bin/{applet}")
    call("tar", "-C", root, "-cf", f"{work}/rootfs.tar", ".")
    sys.path.insert(0, "benches")
    from archive import docker_archive

    docker_archive(f"{work}/rootfs.tar", "bench", f"{work}/bench.tar")


def bundle():
    """gpurun's own spec, for crun and runc."""
    call(GPURUN, "run", "-d", "--name", "spec", "--network", "none", "bench", "sleep", "1000")
    time.sleep(2)  # a supervisor gives the launch's memory back after a second
    spec = json.loads(call(GPURUN, "inspect", "spec"))[0]["Gpurun"]["Spec"]
    pid = json.loads(call(GPURUN, "inspect", "spec"))[0]["State"]["Pid"]
    parent = next(line.split()[1] for line in open(f"/proc/{pid}/status") if line.startswith("PPid"))
    pss = next(line.split()[1] for line in open(f"/proc/{parent}/smaps_rollup") if line.startswith("Pss:"))
    call(GPURUN, "rm", "-f", "spec")
    spec["process"]["args"] = ["/bin/true"]
    spec["root"] = {"path": f"{work}/image"}
    # Under version 1 gpurun binds each controller's directory; crun and runc mount the cgroups by themselves, read-only.
    spec["mounts"] = [mount for mount in spec["mounts"] if mount["type"] != "bind" and mount["destination"] != "/sys/fs/cgroup"]
    spec["mounts"].append({"destination": "/sys/fs/cgroup", "type": "cgroup", "source": "cgroup", "options": ["nosuid", "noexec", "nodev", "relatime", "ro"]})
    spec["linux"]["namespaces"] = [{key: value for key, value in entry.items() if key != "path"} for entry in spec["linux"]["namespaces"]]
    spec.pop("hooks", None)
    # The end of a container removes its cgroup, so each one that waits has another.
    waiting = [(f"waiting-{name}", ["/bin/sleep", "1000"]) for name in ("crun", "other crun")]
    for name, words in [("bundle", ["/bin/true"]), *waiting]:
        spec["process"]["args"] = words
        spec["linux"]["cgroupsPath"] = f"/gpurun-bench-{name.replace(' ', '-')}"
        os.makedirs(f"{work}/{name}")
        json.dump(spec, open(f"{work}/{name}/config.json", "w"))
    return int(pss)


def burst():
    """100 starts at once, and 100 stops."""
    count = 100
    programs = {"gpurun": GPURUN} | ({"gpurun, earlier": EARLIER} if EARLIER else {})
    times = {name: ([], []) for name in programs}
    for turn in range(ROUNDS):
        for name in list(programs)[:: 1 if turn % 2 else -1]:
            at_once = lambda words: [subprocess.Popen([programs[name], *words(number)], stdout=subprocess.DEVNULL, env=environment) for number in range(count)]
            phases = [
                lambda number: ["run", "-d", "--name", f"burst-{number}", "--network", "none", "bench", "sleep", "1000"],
                lambda number: ["stop", "-t", "0", f"burst-{number}"],
            ]
            for phase, words in enumerate(phases):
                began = time.monotonic()
                if any([child.wait() for child in at_once(words)]):
                    sys.exit("a command has failed")
                times[name][phase].append(time.monotonic() - began)
            call(programs[name], "rm", *(f"burst-{number}" for number in range(count)))
    for name, phases in times.items():
        for what, values in zip(("starts", "stops"), phases):
            print(f"{name:22} {count} {what} at once: median {statistics.median(values):5.2f} s, fastest {min(values):5.2f} s")


LIBC = ctypes.CDLL(None, use_errno=True)
CLONE_NEWNS, CLONE_NEWNET = 0x20000, 0x40000000
HOME = open("/proc/self/ns/mnt")


def enter(namespace):
    """This process, and what it starts, into a mount namespace."""
    if LIBC.setns(namespace.fileno(), CLONE_NEWNS) != 0:
        raise OSError(ctypes.get_errno(), "cannot enter a mount namespace")


def own_network():
    if LIBC.unshare(CLONE_NEWNET) != 0:
        raise OSError(ctypes.get_errno(), "cannot make a network namespace")
    call("ip", "link", "set", "lo", "up")


@contextlib.contextmanager
def version_2_hidden():
    """A mount namespace without /sys/fs/cgroup/unified; None where there is nothing to hide."""
    if not os.path.ismount("/sys/fs/cgroup/unified"):
        yield None
        return
    script = "umount /sys/fs/cgroup/unified && echo ready && exec sleep infinity"
    with subprocess.Popen(["unshare", "-m", "sh", "-c", script], stdout=subprocess.PIPE, text=True) as holder:
        try:
            if holder.stdout.readline() != "ready\n":
                raise RuntimeError("cannot hide version 2 of cgroups")
            with open(f"/proc/{holder.pid}/ns/mnt") as namespace:
                yield namespace
        finally:
            holder.kill()


@contextlib.contextmanager
def inside(namespace):
    """For the time of a block in another mount namespace; None: in this one."""
    if namespace:
        enter(namespace)
    try:
        yield
    finally:
        if namespace:
            enter(HOME)


@contextlib.contextmanager
def dockerd():
    """The words that a docker command begins with, or None: the daemon that runs, or one of our own in its own directories."""
    if not shutil.which("docker"):
        yield None
        return
    if subprocess.run(["docker", "info"], capture_output=True).returncode == 0:
        yield ["docker"]
        return
    if not shutil.which("dockerd"):
        yield None
        return
    address = f"unix://{work}/docker.sock"
    words = ["dockerd", "-H", address, "--data-root", f"{work}/docker", "--exec-root", f"{work}/docker-run", "--pidfile", f"{work}/docker.pid"]
    words += ["--iptables=false", "--ip6tables=false", "--bridge=none"]
    with open(f"{work}/docker.log", "w") as log, subprocess.Popen(words, stdout=log, stderr=log) as daemon:
        try:
            for _ in range(300):
                if daemon.poll() is not None:
                    break
                if subprocess.run(["docker", "-H", address, "info"], capture_output=True).returncode == 0:
                    break
                time.sleep(0.1)
            yield ["docker", "-H", address] if daemon.poll() is None else None
        finally:
            daemon.terminate()


def main():
    own_network()
    image()
    call(GPURUN, "image", "load", f"{work}/bench.tar")
    if "--burst" in ARGUMENTS:
        burst()
        return
    with version_2_hidden() as hidden, dockerd() as docker:
        measure(bundle(), hidden, docker)


def measure(pss, hidden, docker):
    tools = {
        "gpurun, no network": [GPURUN, "run", "--rm", "--network", "none", "bench", "/bin/true"],
        "gpurun, bridge": [GPURUN, "run", "--rm", "bench", "/bin/true"],
    }
    if EARLIER:
        tools["gpurun, earlier"] = [EARLIER, *tools["gpurun, no network"][1:]]
    call("cc", "-O1", "-o", f"{work}/floor", os.path.join(os.path.dirname(os.path.abspath(__file__)), "floor.c"))
    tools["floor"] = [f"{work}/floor", f"{work}/image", "/bin/true"]
    apart = set()
    runtimes = {name: name for name in ("crun", "runc") if shutil.which(name)} | ({"other crun": CRUN} if CRUN else {})
    for name, runtime in runtimes.items():
        tools[name] = [runtime, "--root", f"{work}/{name}", "run", "-b", f"{work}/bundle", "bench"]
        apart.add(name)
    call(GPURUN, "run", "-d", "--name", "waiting", "--network", "none", "bench", "sleep", "1000")
    tools["gpurun exec"] = [GPURUN, "exec", "waiting", "/bin/true"]
    for name in set(runtimes) - {"runc"}:
        with inside(hidden):
            # The container keeps its standard streams.
            words = [runtimes[name], "--root", f"{work}/{name}", "run", "-d", "-b", f"{work}/waiting-{name}", f"waiting-{len(name)}"]
            subprocess.run(words, check=True, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        tools[f"{name} exec"] = [runtimes[name], "--root", f"{work}/{name}", "exec", f"waiting-{len(name)}", "/bin/true"]
        apart.add(f"{name} exec")
    if shutil.which("podman"):
        # Debian's podman asks for more than this host's hard limits allow.
        with open(f"{work}/containers.conf", "w") as conf:
            conf.write('[containers]\ndefault_ulimits = ["nofile=1024:1024", "nproc=1024:1024"]\n')
        environment["CONTAINERS_CONF"] = f"{work}/containers.conf"
        podman = ["podman", "--root", f"{work}/podman", "--runroot", f"{work}/podman-run"]
        with inside(hidden):
            call(*podman, "load", "-i", f"{work}/bench.tar")
        for network in ("none", "bridge"):
            name = "podman, no network" if network == "none" else "podman, bridge"
            tools[name] = [*podman, "run", "--rm", "--network", network, "localhost/bench:latest", "/bin/true"]
            apart.add(name)
    if docker:
        call(*docker, "load", "-i", f"{work}/bench.tar")
        tools["docker, no network"] = [*docker, "run", "--rm", "--network", "none", "bench", "/bin/true"]
    times = {name: [] for name in tools}
    broken = {}
    for name, words in tools.items():
        with inside(hidden if name in apart else None):
            subprocess.run(words, capture_output=True, env=environment)
    for _ in range(ROUNDS):
        # In another order each time, and with a pause: the kernel lets a process into a cgroup at once while the wait of another one has only just
        # ended, so a tool would profit from the one before it.
        names = list(tools)
        random.shuffle(names)
        for name in names:
            if name in broken:
                continue
            time.sleep(0.05)
            with inside(hidden if name in apart else None):
                began = time.monotonic()
                done = subprocess.run(tools[name], capture_output=True, text=True, env=environment)
                times[name].append((time.monotonic() - began) * 1000)
            if done.returncode != 0:
                broken[name] = (done.stderr.strip().splitlines() or ["?"])[-1]
    call(GPURUN, "rm", "-f", "waiting")
    for name in set(runtimes) - {"runc"}:
        with inside(hidden):
            call(runtimes[name], "--root", f"{work}/{name}", "delete", "-f", f"waiting-{len(name)}")
    base = statistics.median(times["gpurun, no network"])
    print(f"{ROUNDS} interleaved rounds of `/bin/true`; median, fastest, slowest in ms; ratio to gpurun without network")
    for name, values in times.items():
        if name in broken:
            print(f"{name:22} does not run here: {broken[name]}")
        else:
            print(f"{name:22} {statistics.median(values):7.1f} {min(values):7.1f} {max(values):7.1f}   {statistics.median(values) / base:5.2f}")
    print(f"one supervisor: {pss} kB PSS")


try:
    main()
finally:
    for tool in ("podman",):
        if os.path.exists(f"{work}/{tool}"):
            subprocess.run([tool, "--root", f"{work}/{tool}", "--runroot", f"{work}/{tool}-run", "system", "reset", "-f"], capture_output=True)
    for line in open("/proc/self/mountinfo").read().splitlines()[::-1]:
        point = line.split()[4]
        if point.startswith((work, run_dir)):
            subprocess.run(["umount", "-l", point])
    shutil.rmtree(work, ignore_errors=True)
    shutil.rmtree(run_dir, ignore_errors=True)
