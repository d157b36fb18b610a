"""Time to a runnable image: gpurun against podman, skopeo and umoci, cold store each time; from gzip, zstd and a docker-archive.

    sudo benches/load.py [ROUNDS [MIB]]         gpurun is target/release/gpurun

On a journaled ext4 on a loop device, every tool ended by a syncfs, the tools interleaved. The image is made of this host's own /usr, three layers.
A tool's CPU seconds, its peak memory and the disk that it used are told too. Tools that are not installed are left out.
"""

import hashlib
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time

ROUNDS = int(sys.argv[1]) if len(sys.argv) > 1 else 3
LIMIT = (int(sys.argv[2]) if len(sys.argv) > 2 else 870) << 20  # bytes of the image, unpacked
TARGET = os.environ.get("CARGO_TARGET_DIR", "target")
GPURUN = os.path.abspath(f"{TARGET}/release/gpurun")
work = tempfile.mkdtemp(prefix="gpurun-bench-load.", dir="/var/tmp")
disk = f"{work}/disk"


def call(*words, **more):
    return subprocess.run(words, check=True, capture_output=True, text=True, **more).stdout


def layers():
    """Paths of /usr in three shares, up to the limit in all."""
    shares, total = [[], [], []], 0
    for directory, names, files in os.walk("/usr"):
        names.sort()
        for name in sorted(files):
            path = os.path.join(directory, name)
            if os.path.islink(path) or not os.path.isfile(path):
                continue
            total += os.path.getsize(path)
            if total > LIMIT:
                return shares
            shares[min(2, total * 3 // LIMIT)].append(path)
    return shares


def blob(directory, path):
    """Moves a file into a layout; answers its descriptor's digest and size."""
    digest = hashlib.file_digest(open(path, "rb"), "sha256").hexdigest()
    os.makedirs(f"{directory}/blobs/sha256", exist_ok=True)
    os.rename(path, f"{directory}/blobs/sha256/{digest}")
    return {"digest": "sha256:" + digest, "size": os.path.getsize(f"{directory}/blobs/sha256/{digest}")}


def layout(tars, packing):
    """An OCI layout of the layers, packed: gzip -6, zstd -3."""
    directory = f"{work}/oci-{packing}"

    def document(value):
        with open(f"{work}/document", "w") as file:
            json.dump(value, file)
        return blob(directory, f"{work}/document")

    tool = {"gzip": ["gzip", "-6"], "zstd": ["zstd", "-q", "-3"]}[packing]
    entries = []
    for tar in tars:
        with open(f"{work}/packed", "wb") as out:
            subprocess.run([*tool, "-c", tar], check=True, stdout=out)
        entries.append({"mediaType": f"application/vnd.oci.image.layer.v1.tar+{packing}"} | blob(directory, f"{work}/packed"))
    diff_ids = ["sha256:" + hashlib.file_digest(open(tar, "rb"), "sha256").hexdigest() for tar in tars]
    machine = {"x86_64": "amd64", "aarch64": "arm64"}.get(os.uname().machine, os.uname().machine)
    config = document({"architecture": machine, "os": "linux", "config": {}, "rootfs": {"type": "layers", "diff_ids": diff_ids}})
    manifest = document({
        "schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": {"mediaType": "application/vnd.oci.image.config.v1+json"} | config, "layers": entries,
    })
    json.dump({"imageLayoutVersion": "1.0.0"}, open(f"{directory}/oci-layout", "w"))
    entry = {"mediaType": "application/vnd.oci.image.manifest.v1+json", "annotations": {"org.opencontainers.image.ref.name": "latest"}} | manifest
    json.dump({"schemaVersion": 2, "manifests": [entry]}, open(f"{directory}/index.json", "w"))
    return directory


def sources():
    """The image in every form: its name, and where it lies."""
    tars = []
    for number, paths in enumerate(layers()):
        tars.append(f"{work}/{number}.tar")
        call("tar", "-cf", tars[-1], "--no-recursion", "-T", "-", input="\n".join(paths))
    forms = {packing: layout(tars, packing) for packing in ("gzip", "zstd")}
    call(GPURUN, "--root", f"{work}/maker", "--run-dir", f"{work}/maker-run", "image", "load", "-q", "-t", "bench", forms["zstd"])
    call(GPURUN, "--root", f"{work}/maker", "image", "save", "-o", f"{work}/archive.tar", "bench")
    shutil.rmtree(f"{work}/maker")
    forms["docker-archive"] = f"{work}/archive.tar"
    return forms


def commands(form, place, store):
    """What each tool does with a form of the image."""
    containers = f"containers-storage:[overlay@{store}+{store}-run]bench"
    theirs = f"docker-archive:{place}" if form == "docker-archive" else f"oci:{place}:latest"
    tools = {
        "gpurun": [GPURUN, "--root", store, "--run-dir", store + "-run", "image", "load", "-q", place],
        "podman": ["podman", "--root", store, "--runroot", store + "-run", "pull", "-q", theirs],
        "skopeo": ["skopeo", "copy", "-q", theirs, containers],
    }
    # umoci 0.4 knows no zstd, and no archives.
    if form == "gzip":
        tools["umoci"] = ["umoci", "unpack", "--image", f"{place}:latest", store]
    return {name: command for name, command in tools.items() if shutil.which(command[0])}


def measure(command, store):
    """Seconds, CPU seconds, peak MiB, MiB on the disk."""
    before = os.statvfs(disk)
    began = time.monotonic()
    child = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    error = child.stderr.read()
    _, status, usage = os.wait4(child.pid, 0)
    if status:
        sys.exit(f"{command[0]}: {error.decode()}")
    call("sync", "-f", disk)
    seconds = time.monotonic() - began
    used = (before.f_bavail - os.statvfs(disk).f_bavail) * before.f_frsize
    for line in open("/proc/self/mountinfo").read().splitlines()[::-1]:
        if line.split()[4].startswith(store):
            subprocess.run(["umount", "-l", line.split()[4]])
    for left in (store, store + "-run"):
        shutil.rmtree(left, ignore_errors=True)
    call("sync", "-f", disk)
    return seconds, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024, used / 2**20


def main():
    forms = sources()
    os.makedirs(disk)
    call("truncate", "-s", f"{max(6, LIMIT * 4 >> 30)}G", f"{work}/disk.img")
    call("mkfs.ext4", "-q", f"{work}/disk.img")
    call("mount", "-o", "loop", f"{work}/disk.img", disk)
    print(f"{LIMIT >> 20} MiB unpacked; {ROUNDS} interleaved rounds, cold stores, journaled loop ext4, syncfs at the end; medians")
    print("form            tool       time      CPU   peak      disk    time ×   CPU ×")
    for form, place in forms.items():
        figures = {}
        for turn in range(ROUNDS):
            for name, command in commands(form, place, f"{disk}/store").items():
                figures.setdefault(name, []).append(measure(command, f"{disk}/store"))
        medians = {name: [statistics.median(column) for column in zip(*rows)] for name, rows in figures.items()}
        base = medians["gpurun"]
        for name, (seconds, cpu, peak, used) in medians.items():
            print(f"{form:15} {name:7} {seconds:6.2f} s {cpu:6.2f} s {peak:4.0f} M {used:7.0f} M {seconds / base[0]:7.2f} {cpu / base[1]:7.2f}", flush=True)


try:
    main()
finally:
    subprocess.run(["umount", disk], capture_output=True)
    shutil.rmtree(work, ignore_errors=True)
