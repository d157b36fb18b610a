"""From `gpurun --image REF` on an empty store to the end of the first cell: the image is pulled from a registry, and a Python program runs.

    sudo benches/first-cell.py [--rounds N] [--rate MBIT/s] [--python PATH] [--code CODE] ARCHIVE

ARCHIVE is a docker-archive (`gpurun image save -o ARCHIVE NAME`). It is pushed to Debian's docker-registry on the loopback interface of a network
namespace of its own; --rate limits that interface with tc (1000: a link of 1 Gbit/s). --code is the first cell (`import torch`), which --python
(/opt/jupyter/bin/python3) executes as the container's command: the time of Jupyter's own start is not part of the figure. podman runs beside gpurun
where it is installed and can run the image. The tools run in turn, each on an empty store in /var/tmp; the figures are medians. gpurun is
target/release/gpurun, or what GPURUN names.
"""

import argparse
import ctypes
import os
import shutil
import socket
import statistics
import subprocess
import tempfile
import time

CLONE_NEWNET = 0x40000000


def call(*words, **more):
    return subprocess.run(words, check=True, capture_output=True, text=True, **more).stdout


def own_network():
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(CLONE_NEWNET) != 0:
        raise OSError(ctypes.get_errno(), "cannot make a network namespace")
    call("ip", "link", "set", "lo", "up")


def limit(rate):
    """Limits the loopback interface, with the packets of a link."""
    call("ip", "link", "set", "lo", "mtu", "1500")
    call("tc", "qdisc", "add", "dev", "lo", "root", "tbf", "rate", f"{rate}mbit", "burst", "256kb", "latency", "50ms")


def registry(work):
    with open(f"{work}/registry.yml", "w") as config:
        config.write(f"version: 0.1\nlog: {{level: error}}\nstorage:\n  filesystem: {{rootdirectory: {work}/registry}}\nhttp:\n  addr: 127.0.0.1:5000\n")
    child = subprocess.Popen(["docker-registry", "serve", f"{work}/registry.yml"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    for _ in range(600):
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", 5000)) == 0:
                return child
        time.sleep(0.1)
    child.kill()
    raise SystemExit("docker-registry does not answer")


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--rate", type=int, help="Mbit/s")
    parser.add_argument("--python", default="/opt/jupyter/bin/python3")
    parser.add_argument("--code", default="import torch")
    parser.add_argument("archive")
    args = parser.parse_args()
    gpurun = os.path.abspath(os.environ.get("GPURUN", os.environ.get("CARGO_TARGET_DIR", "target") + "/release/gpurun"))
    work = tempfile.mkdtemp(prefix="gpurun-first.", dir="/var/tmp")
    name = "127.0.0.1:5000/bench:1"
    store = ["--root", f"{work}/store", "--run-dir", f"/run/{os.path.basename(work)}"]
    own_network()
    server = registry(work)
    try:
        call(gpurun, *store, "image", "load", "-q", "-t", name, os.path.abspath(args.archive))
        call(gpurun, *store, "image", "push", "-q", name, name)
        clean(work)
        if args.rate:
            limit(args.rate)
        cell = [args.python, "-c", args.code]
        tools = {"gpurun": [gpurun, *store, "run", "--rm", "--network", "none", name, *cell]}
        if shutil.which("podman"):
            storage = ["--root", f"{work}/podman", "--runroot", f"{work}/podman-run"]
            # Debian's podman asks for more than some hosts' hard limits allow. Its runtime refuses hosts with both versions of cgroups, so it
            # starts in a mount namespace without version 2.
            with open(f"{work}/containers.conf", "w") as conf:
                conf.write('[containers]\ndefault_ulimits = ["nofile=1024:1024", "nproc=1024:1024"]\n')
            os.environ["CONTAINERS_CONF"] = f"{work}/containers.conf"
            hide = ["unshare", "-m", "sh", "-c", 'umount -q /sys/fs/cgroup/unified; exec "$0" "$@"']
            tools["podman"] = [*hide, "podman", *storage, "run", "--rm", "--network", "none", "--tls-verify=false", name, *cell]
        times = {tool: [] for tool in tools}
        broken = {}
        for turn in range(args.rounds):
            order = list(tools)
            for tool in order[turn % len(order) :] + order[: turn % len(order)]:
                if tool in broken:
                    continue
                began = time.monotonic()
                done = subprocess.run(tools[tool], capture_output=True, text=True)
                times[tool].append(time.monotonic() - began)
                if done.returncode != 0:
                    broken[tool] = (done.stderr.strip().splitlines() or ["?"])[-1]
                clean(work)
    finally:
        server.kill()
        server.wait()
        clean(work)
        shutil.rmtree(work, ignore_errors=True)
    link = f"{args.rate} Mbit/s" if args.rate else "no limit"
    print(f"an empty store to the end of `{args.code}`, {link}, {args.rounds} interleaved rounds")
    for tool, values in times.items():
        if tool in broken:
            print(f"{tool:8} does not run here: {broken[tool]}")
        else:
            print(f"{tool:8} median {statistics.median(values):7.2f} s  fastest {min(values):7.2f} s")


def clean(work):
    """Removes the stores of both tools, with their mounts."""
    own = (f"{work}/", f"/run/{os.path.basename(work)}")
    for line in open("/proc/self/mountinfo").read().splitlines()[::-1]:
        if line.split()[4].startswith(own):
            subprocess.run(["umount", "-l", line.split()[4]], capture_output=True)
    for path in (f"{work}/store", f"/run/{os.path.basename(work)}", f"{work}/podman", f"{work}/podman-run"):
        shutil.rmtree(path, ignore_errors=True)


main()
