"""`gpurun compose up -d` of ten `true` services against ten `gpurun run -d` at the same time.

    sudo benches/compose.py [ROUNDS]        gpurun is $GPURUN_TEST_BINARY or target/release/gpurun; busybox-static must be installed

One interleaved run: every round does both, in an order that alternates. The figures are medians, and the last line is their ratio. The containers are
removed between the measurements. All of it happens in a network namespace of its own.
"""

import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time

ROUNDS = int(sys.argv[1]) if len(sys.argv) > 1 else 10
COUNT = 10
HERE = os.path.dirname(os.path.abspath(__file__))
TARGET = os.environ.get("CARGO_TARGET_DIR", "target")
GPURUN = os.path.abspath(os.environ.get("GPURUN_TEST_BINARY") or f"{TARGET}/release/gpurun")
WORK = tempfile.mkdtemp(prefix="gpurun-bench.", dir="/var/tmp")
ENVIRONMENT = os.environ | {"GPURUN_ROOT": f"{WORK}/root", "GPURUN_RUN": f"{WORK}/run"}


def gpurun(*words):
    return subprocess.run([GPURUN, *words], check=True, capture_output=True, text=True, env=ENVIRONMENT, cwd=f"{WORK}/lab").stdout


def prepare():
    os.makedirs(f"{WORK}/lab")
    os.makedirs(f"{WORK}/image/bin")
    shutil.copy("/bin/busybox", f"{WORK}/image/bin/busybox")
    os.symlink("busybox", f"{WORK}/image/bin/true")
    subprocess.run(["tar", "-C", f"{WORK}/image", "-cf", f"{WORK}/rootfs.tar", "."], check=True)
    sys.path.insert(0, HERE)
    from archive import docker_archive

    docker_archive(f"{WORK}/rootfs.tar", "bench", f"{WORK}/bench.tar")
    gpurun("image", "load", f"{WORK}/bench.tar")
    services = "".join(f"  s{number}: {{image: bench, command: /bin/true}}\n" for number in range(COUNT))
    with open(f"{WORK}/lab/compose.yaml", "w") as file:
        file.write(f"services:\n{services}")


def up():
    gpurun("compose", "up", "-d")


def runs():
    words = lambda number: [GPURUN, "run", "-d", "--name", f"one-{number}", "bench", "/bin/true"]
    children = [subprocess.Popen(words(number), env=ENVIRONMENT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) for number in range(COUNT)]
    if any(child.wait() for child in children):
        sys.exit("a `run` has failed")


def measured(what):
    began = time.monotonic()
    what()
    took = time.monotonic() - began
    gpurun("rm", "-f", *gpurun("ps", "-aq").split())
    return took


def main():
    prepare()
    times = {up: [], runs: []}
    measured(up), measured(runs)
    for number in range(ROUNDS):
        for what in [up, runs] if number % 2 else [runs, up]:
            times[what].append(measured(what))
    medians = {what: statistics.median(list_) for what, list_ in times.items()}
    print(f"compose up -d of {COUNT} services: {1000 * medians[up]:.0f} ms")
    print(f"{COUNT} times run -d at once:      {1000 * medians[runs]:.0f} ms")
    print(f"ratio: {medians[up] / medians[runs]:.2f}")


if os.environ.get("GPURUN_BENCH_INSIDE") != "1":
    inside = ["unshare", "--net", "--mount", "sh", "-c", 'ip link set lo up; exec "$@"', "sh", sys.executable, *sys.argv]
    sys.exit(subprocess.run(inside, env=os.environ | {"GPURUN_BENCH_INSIDE": "1"}).returncode)
try:
    main()
finally:
    shutil.rmtree(WORK, ignore_errors=True)
