"""Time to a runnable image from an OCI layout with gzip layers: gpurun against podman and docker, cold store each time.

    sudo benches/load.py [ROUNDS]         gpurun is target/release/gpurun

On a journaled ext4 on a loop device, every tool ended by a syncfs. The image is made of this host's own /usr, three gzip layers.
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
LIMIT = 870 << 20  # bytes of the image, unpacked
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


def layout():
    """The OCI layout, its layers gzip -6."""
    blobs = f"{work}/oci/blobs/sha256"
    os.makedirs(blobs)

    def blob(path):
        digest = hashlib.file_digest(open(path, "rb"), "sha256").hexdigest()
        os.rename(path, f"{blobs}/{digest}")
        return {"digest": "sha256:" + digest, "size": os.path.getsize(f"{blobs}/{digest}")}

    def document(value):
        path = f"{work}/document"
        with open(path, "w") as file:
            json.dump(value, file)
        return blob(path)

    diff_ids, entries = [], []
    for number, paths in enumerate(layers()):
        tar = f"{work}/{number}.tar"
        call("tar", "-cf", tar, "--no-recursion", "-T", "-", input="\n".join(paths))
        diff_ids.append("sha256:" + hashlib.file_digest(open(tar, "rb"), "sha256").hexdigest())
        call("gzip", "-6", tar)
        entries.append({"mediaType": "application/vnd.oci.image.layer.v1.tar+gzip"} | blob(tar + ".gz"))
    machine = {"x86_64": "amd64", "aarch64": "arm64"}.get(os.uname().machine, os.uname().machine)
    config = document({"architecture": machine, "os": "linux", "config": {}, "rootfs": {"type": "layers", "diff_ids": diff_ids}})
    manifest = document({
        "schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": {"mediaType": "application/vnd.oci.image.config.v1+json"} | config, "layers": entries,
    })
    json.dump({"imageLayoutVersion": "1.0.0"}, open(f"{work}/oci/oci-layout", "w"))
    entry = {"mediaType": "application/vnd.oci.image.manifest.v1+json", "annotations": {"org.opencontainers.image.ref.name": "bench:latest"}} | manifest
    json.dump({"schemaVersion": 2, "manifests": [entry]}, open(f"{work}/oci/index.json", "w"))


def main():
    layout()
    os.makedirs(disk)
    call("truncate", "-s", "12G", f"{work}/disk.img")
    call("mkfs.ext4", "-q", f"{work}/disk.img")
    call("mount", "-o", "loop", f"{work}/disk.img", disk)
    tools = {"gpurun": lambda store: [GPURUN, "--root", store, "--run-dir", store + "-run", "image", "load", "-q", f"{work}/oci"]}
    if shutil.which("podman"):
        tools["podman"] = lambda store: ["podman", "--root", store, "--runroot", store + "-run", "pull", "-q", f"oci:{work}/oci"]
    if shutil.which("skopeo"):
        tools["skopeo"] = lambda store: ["skopeo", "copy", "-q", f"oci:{work}/oci", f"containers-storage:[overlay@{store}+{store}-run]bench"]
    times = {name: [] for name in tools}
    cpu = {name: [] for name in tools}
    for turn in range(ROUNDS):
        for name, command in tools.items():
            store = f"{disk}/{name}-{turn}"
            before = os.times()
            began = time.monotonic()
            subprocess.run(command(store), check=True, capture_output=True)
            fd = os.open(disk, os.O_RDONLY)
            call("sync", "-f", disk)
            os.close(fd)
            times[name].append(time.monotonic() - began)
            after = os.times()
            cpu[name].append(after.children_user + after.children_system - before.children_user - before.children_system)
            for line in open("/proc/self/mountinfo").read().splitlines()[::-1]:
                if line.split()[4].startswith(store):
                    subprocess.run(["umount", "-l", line.split()[4]])
            shutil.rmtree(store, ignore_errors=True)
            call("sync", "-f", disk)
    base = statistics.median(times["gpurun"])
    size = sum(os.path.getsize(f"{work}/oci/blobs/sha256/{name}") for name in os.listdir(f"{work}/oci/blobs/sha256"))
    print(f"{LIMIT >> 20} MiB unpacked, {size >> 20} MiB as gzip; {ROUNDS} interleaved rounds, cold stores, journaled loop ext4, syncfs at the end")
    for name, values in times.items():
        print(f"{name:8} {statistics.median(values):6.2f} s   CPU {statistics.median(cpu[name]):6.2f} s   ratio {statistics.median(values) / base:5.2f}")


try:
    main()
finally:
    subprocess.run(["umount", disk], capture_output=True)
    shutil.rmtree(work, ignore_errors=True)
