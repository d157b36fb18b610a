"""Eight tasks of a Slurm step that start at once, and the first start of a large image on a node.

    sudo benches/slurm.py [ROUNDS] [SIZE_GB]     gpurun is target/release/gpurun; needs Slurm, podman and busybox-static

The cluster is that of tests/slurm/cluster, in network and mount namespaces of its own (cgroup v1).
Each round runs `srun -n8` once with each program, in an order that rotates: `true` of the node,
`gpurun run`, the plugin (`srun --container-image`), and podman. The figures are medians, and ratios
to `srun -n8 true` of the same run. podman runs without cgroups, because it would leave the step's.
A job asks for less than half of the memory of the node, so that it does not wait for the end of the
one before. The large image is a tar of random bytes on a local disk: the node's page cache has it.
"""

import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time

ROUNDS = int(sys.argv[1]) if len(sys.argv) > 1 else 10
SIZE_GB = int(sys.argv[2]) if len(sys.argv) > 2 else 6
TARGET = os.environ.get("CARGO_TARGET_DIR", "target")
GPURUN = os.path.abspath(f"{TARGET}/release/gpurun")
INSIDE = "GPURUN_BENCH_INSIDE"


def call(command, **environment):
    done = subprocess.run(command, shell=True, capture_output=True, text=True, env=os.environ | environment)
    if done.returncode != 0:
        sys.exit(f"{command}: status {done.returncode}\n{done.stderr}")


def seconds(command, **environment):
    begin = time.monotonic()
    call(command, **environment)
    return time.monotonic() - begin


def image(work, name, extra=0):
    """An archive with busybox, and a file of `extra` GB."""
    from archive import docker_archive

    root = f"{work}/{name}"
    os.makedirs(f"{root}/bin")
    shutil.copy("/bin/busybox", f"{root}/bin/busybox")
    for applet in ("true", "sh"):
        os.symlink("busybox", f"{root}/bin/{applet}")
    if extra:
        call(f"head -c {extra}G /dev/urandom > {root}/data")
    call(f"tar -C {root} -cf {work}/{name}.layer .")
    docker_archive(f"{work}/{name}.layer", name, f"{work}/{name}.tar")
    shutil.rmtree(root)
    os.remove(f"{work}/{name}.layer")


def measure(work):
    podman = f"podman --root {work}/podman --runroot {work}/podman-run --cgroup-manager cgroupfs"
    image(work, "bench")
    call(f"{GPURUN} load -q -i {work}/bench.tar")
    call(f"{podman} load -q -i {work}/bench.tar")
    step = "srun -N1 -n8 --mem=3000 --cpu-bind=none"
    programs = {
        "true": f"{step} true",
        "gpurun": f"{step} {GPURUN} run --rm bench true",
        "plugin": f"{step} --container-image=bench true",
        "podman": f"{step} {podman} run --rm --cgroups disabled --ulimit nofile=1024:1024 --ulimit nproc=1024:1024 --network host bench true",
    }
    for command in programs.values():
        call(command)
    times = {name: [] for name in programs}
    names = list(programs)
    for number in range(ROUNDS):
        turn = number % len(names)
        for name in names[turn:] + names[:turn]:
            times[name].append(seconds(programs[name]))
    base = statistics.median(times["true"])
    print(f"eight tasks, {ROUNDS} rounds:")
    for name, values in times.items():
        median = statistics.median(values)
        print(f"  {name:8} {median * 1000:7.0f} ms  {median / base:5.2f}  (fastest {min(values) * 1000:.0f})")
    image(work, "large", SIZE_GB)
    print(f"first start of an image of {SIZE_GB} GB, one task:")
    one = "srun -n1 --mem=3000"
    first = seconds(f"{one} {GPURUN} run --rm {work}/large.tar true", GPURUN_ROOT=f"{work}/in-place")
    print(f"  gpurun, archive in place {first:7.2f} s")
    print(f"  again                    {seconds(f'{one} {GPURUN} run --rm {work}/large.tar true', GPURUN_ROOT=f'{work}/in-place'):7.2f} s")
    shutil.rmtree(f"{work}/in-place", ignore_errors=True)
    loaded = f"{GPURUN} load -q -i {work}/large.tar && {GPURUN} run --rm large true"
    print(f"  gpurun, loaded           {seconds(f'{one} sh -c {chr(34)}{loaded}{chr(34)}', GPURUN_ROOT=f'{work}/loaded'):7.2f} s")
    loaded = f"{podman} load -q -i {work}/large.tar && {podman} run --rm --cgroups disabled --ulimit nofile=1024:1024 --ulimit nproc=1024:1024 --network host large true"
    print(f"  podman, loaded           {seconds(f'{one} sh -c {chr(34)}{loaded}{chr(34)}'):7.2f} s")


def main():
    sys.path.insert(0, "benches")
    if INSIDE not in os.environ:
        hide = "! mountpoint -q /sys/fs/cgroup/unified || umount /sys/fs/cgroup/unified"
        net = "ip link set lo up; ip link add slurm0 type veth peer name slurm1; ip addr add 10.9.9.1/24 dev slurm0; ip link set slurm0 up; ip link set slurm1 up"
        line = f"{hide}; {net}; exec {sys.executable} {' '.join(sys.argv)}"
        os.execvpe("unshare", ["unshare", "--mount", "--net", "bash", "-c", line], os.environ | {INSIDE: "1"})
    work = tempfile.mkdtemp(prefix="gpurun-bench.", dir="/var/tmp")
    run_dir = tempfile.mkdtemp(prefix="gpurun-bench.", dir="/dev/shm")
    os.environ |= {"GPURUN_ROOT": f"{work}/root", "GPURUN_RUN": run_dir, "SLURM_CONF": f"{work}/slurm/slurm.conf"}
    node = f"b{os.getpid()}n"
    try:
        os.makedirs(f"{work}/slurm")
        subprocess.run(["hooks/slurm/build", f"{work}/gpurun_spank.so"], check=True)
        with open(f"{work}/slurm/plugstack.conf", "w") as file:
            file.write(f"required {work}/gpurun_spank.so gpurun={GPURUN} GPURUN_ROOT={work}/root GPURUN_RUN={run_dir}\n")
        # The daemons would keep a pipe of this process open.
        subprocess.run(["tests/slurm/cluster", "start", f"{work}/slurm", node, "1"], check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        measure(work)
    finally:
        subprocess.run(["tests/slurm/cluster", "stop", f"{work}/slurm"])
        for line in reversed(open("/proc/self/mounts").read().splitlines()):
            if work in line or run_dir in line:
                subprocess.run(["umount", "-l", line.split()[1]])
        shutil.rmtree(work, ignore_errors=True)
        shutil.rmtree(run_dir, ignore_errors=True)


main()
