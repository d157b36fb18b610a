"""What an image costs once it is there: a second load, a neighbour, a removal, a start from an archive, imports, memory.

    sudo benches/images.py [--import MODULES] [--rounds N] ARCHIVE

ARCHIVE is a docker-archive (`gpurun image save -o ARCHIVE NAME`) whose interpreter is /opt/jupyter/bin/python3 (--python). gpurun is
target/release/gpurun, or what GPURUN says. Everything happens on a journaled ext4 on a loop device. A start is reported as its
median. The results are compared with the targets of docs/speed.md; the last line gives the number of targets that are missed.
"""

import argparse
import hashlib
import io
import json
import os
import shutil
import statistics
import subprocess
import sys
import tarfile
import tempfile
import time

parser = argparse.ArgumentParser()
parser.add_argument("--import", dest="modules", default="numpy, pandas, scipy.stats, matplotlib.pyplot")
parser.add_argument("--python", default="/opt/jupyter/bin/python3")
parser.add_argument("--rounds", type=int, default=7)
parser.add_argument("archive")
args = parser.parse_args()

GPURUN = os.path.abspath(os.environ.get("GPURUN", os.environ.get("CARGO_TARGET_DIR", "target") + "/release/gpurun"))
work = tempfile.mkdtemp(prefix="gpurun-images.", dir="/var/tmp")
disk = f"{work}/disk"
run_dir = f"/run/{os.path.basename(work)}"
missed = 0


def call(*words, **more):
    return subprocess.run(words, check=True, capture_output=True, text=True, **more).stdout


def gpurun(*words):
    return call(GPURUN, "--root", f"{disk}/store", "--run-dir", run_dir, *words)


def timed(*words):
    began = time.monotonic()
    gpurun(*words)
    return time.monotonic() - began


def used():
    call("sync", "-f", disk)
    stat = os.statvfs(disk)
    return (stat.f_blocks - stat.f_bfree) * stat.f_frsize


def tell(what, found, aim, fine):
    global missed
    missed += not fine
    print(f"| {what} | {found} | {aim} | {'yes' if fine else 'no'} |", flush=True)


def neighbour():
    """An archive with the same layers and one small one on top."""
    with tarfile.open(args.archive) as archive:
        item = json.load(archive.extractfile("manifest.json"))[0]
        config = json.load(archive.extractfile(item["Config"]))
        small = io.BytesIO()
        with tarfile.open(fileobj=small, mode="w") as layer:
            member = tarfile.TarInfo("neighbour")
            member.size = 1 << 20
            layer.addfile(member, io.BytesIO(os.urandom(1 << 20)))
        bytes = small.getvalue()
        config["rootfs"]["diff_ids"].append("sha256:" + hashlib.sha256(bytes).hexdigest())
        config.pop("history", None)
        document = json.dumps(config).encode()
        name = hashlib.sha256(document).hexdigest() + ".json"
        manifest = [{"Config": name, "RepoTags": ["neighbour:latest"], "Layers": item["Layers"] + ["top/layer.tar"]}]
        with tarfile.open(f"{work}/neighbour.tar", "w") as out:
            for path, data in ((name, document), ("top/layer.tar", bytes), ("manifest.json", json.dumps(manifest).encode())):
                member = tarfile.TarInfo(path)
                member.size = len(data)
                out.addfile(member, io.BytesIO(data))
            for layer in item["Layers"]:
                out.addfile(archive.getmember(layer), archive.extractfile(layer))


def count_entries():
    """Members of all layers."""
    with tarfile.open(args.archive) as archive:
        layers = json.load(archive.extractfile("manifest.json"))[0]["Layers"]
        count = 0
        for layer in layers:
            with tarfile.open(fileobj=archive.extractfile(layer)) as tar:
                count += sum(1 for _ in tar)
        return count


def load_first():
    """Loads the image; answers the peak memory in MiB."""
    words = [GPURUN, "--root", f"{disk}/store", "--run-dir", run_dir, "image", "load", "-q", "-t", "bench", args.archive]
    child = subprocess.Popen(words, stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(child.pid, 0)
    if status:
        sys.exit("the load failed")
    return usage.ru_maxrss / 1024


def cold():
    call("sync")
    with open("/proc/sys/vm/drop_caches", "w") as file:
        file.write("3")


def imports(tree):
    """Seconds of the import in the container's view of the image and in a plain directory, warm and cold, interleaved: medians."""
    mounted = gpurun("image", "mount", "bench").strip()
    code = f"import time; t = time.monotonic(); import {args.modules}; print(time.monotonic() - t)"
    overlay = f"{disk}/overlay"
    for name in ("upper", "work", "merged"):
        os.makedirs(f"{overlay}/{name}")
    call("mount", "-t", "overlay", "overlay", "-o", f"lowerdir={mounted},upperdir={overlay}/upper,workdir={overlay}/work", f"{overlay}/merged")
    call("mount", "--bind", tree, tree)
    figures = {}
    for kind in ("warm", "cold"):
        for turn in range(args.rounds + 1):
            for name, root in (("image", f"{overlay}/merged"), ("directory", tree)):
                if kind == "cold":
                    cold()
                seconds = float(call("chroot", root, "/usr/bin/env", "HOME=/tmp", "PYTHONDONTWRITEBYTECODE=1", args.python, "-c", code))
                if turn:  # The first round only warms.
                    figures.setdefault((kind, name), []).append(seconds)
    call("umount", f"{overlay}/merged")
    call("umount", tree)
    gpurun("image", "unmount", "bench")
    return {key: statistics.median(rows) for key, rows in figures.items()}


def charge():
    """Bytes that reading a file adds to a container's memory cgroup, for one byte of the file."""
    code = (
        "import os, sys\n"
        "best = max((os.path.join(d, f) for d, _, fs in os.walk('/opt') for f in fs if not os.path.islink(os.path.join(d, f))), key=os.path.getsize)\n"
        "print(best, os.path.getsize(best), flush=True)\n"
        "sys.stdin.readline()\n"
        "data = open(best, 'rb', buffering=0)\n"
        "buffer = bytearray(1 << 20)\n"
        "while data.readinto(buffer): pass\n"
        "print('read', flush=True)\n"
        "sys.stdin.readline()\n"
    )
    cold()
    words = [GPURUN, "--root", f"{disk}/store", "--run-dir", run_dir, "run", "--rm", "-i", "--name", "charge", "--network", "none", "--user", "0", "bench", args.python, "-c", code]
    child = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    size = int(child.stdout.readline().split()[1])
    before = cache_of("charge")
    child.stdin.write("\n")
    child.stdin.flush()
    child.stdout.readline()
    after = cache_of("charge")
    child.stdin.close()
    child.wait()
    return (after - before) / size, size


def cache_of(name):
    """Bytes in the memory cgroup of a container, from the kernel's own file."""
    ident = json.loads(gpurun("inspect", name))[0]["Id"]
    for path in (f"/sys/fs/cgroup/memory/gpurun/{ident}/memory.usage_in_bytes", f"/sys/fs/cgroup/gpurun/{ident}/memory.current"):
        if os.path.exists(path):
            return int(open(path).read())
    sys.exit("no memory cgroup")


def main():
    size = os.path.getsize(args.archive)
    os.makedirs(disk)
    call("truncate", "-s", f"{max(4 << 30, size * 5 // 2)}", f"{work}/disk.img")
    call("mkfs.ext4", "-q", "-E", "lazy_itable_init=0,lazy_journal_init=0", f"{work}/disk.img")
    call("mount", "-o", "loop", f"{work}/disk.img", disk)
    neighbour()
    print("| what | found | aim | met |\n|---|---|---|---|")
    seconds = timed("run", "--rm", "--network", "none", args.archive, "true")
    again = statistics.median(timed("run", "--rm", "--network", "none", args.archive, "true") for _ in range(args.rounds))
    tell("`run ./FILE.tar true`, all digests checked; again", f"{seconds:.2f} s; {again * 1000:.0f} ms", "no copy", used() < size // 10)
    gpurun("image", "prune", "--force")
    empty = used()
    peak, entries = load_first(), count_entries()
    limit = 64 + entries * 200 / 2**20
    tell(f"peak memory of a load ({entries} entries)", f"{peak:.0f} MiB", f"≤ {limit:.0f} MiB", peak <= limit)
    tars = sum(os.path.getsize(f"{disk}/store/layers/{name}") for name in os.listdir(f"{disk}/store/layers"))
    disk_used = used() - empty
    tell("disk, for one byte of the tars", f"{disk_used / tars:.4f}", "≤ 1.01", disk_used <= tars * 1.01)
    seconds = statistics.median(timed("image", "load", "-q", "-t", "bench", args.archive) for _ in range(args.rounds))
    tell("loading what is there", f"{seconds * 1000:.0f} ms", "< 50 ms", seconds < 0.05)
    before = used()
    seconds = timed("image", "load", "-q", "-t", "neighbour", f"{work}/neighbour.tar")
    more = used() - before
    tell("a second image, one layer of 1 MiB more", f"{more / 2**20:.1f} MiB, {seconds * 1000:.0f} ms", "only what is new", more < 16 << 20)
    ratio, read = charge()
    tell(f"memory charged for reading a file of {read >> 20} MiB", f"{ratio:.3f} ×", "≤ 1.05 ×", ratio <= 1.05)
    gpurun("image", "unpack", "bench", f"{disk}/tree")
    found = imports(f"{disk}/tree")
    for kind in ("warm", "cold"):
        ours, theirs = found[kind, "image"], found[kind, "directory"]
        tell(f"import {args.modules}, {kind}: image, plain directory", f"{ours:.2f} s, {theirs:.2f} s ({ours / theirs:.3f} ×)", "≤ 1.05 ×", ours <= theirs * 1.05)
    gpurun("image", "rm", "neighbour")
    call("sync", "-f", disk)
    seconds = timed("image", "rm", "bench")
    tell("`image rm` of it", f"{seconds * 1000:.0f} ms", "< 100 ms", seconds < 0.1)
    print(f"{missed} of the aims are missed")


try:
    main()
finally:
    for line in open("/proc/self/mountinfo").read().splitlines()[::-1]:
        if line.split()[4].startswith((work, run_dir)):
            subprocess.run(["umount", "-l", line.split()[4]], capture_output=True)
    shutil.rmtree(work, ignore_errors=True)
    shutil.rmtree(run_dir, ignore_errors=True)
