"""Time to a runnable image: gpurun against podman, docker, ctr, skopeo and umoci; from gzip, zstd and a docker-archive.

    sudo benches/load.py [--rounds N] [--forms gzip,zstd,docker-archive] [--tools gpurun,podman,…] [--keep DIR] [IMAGE]

IMAGE is a docker-archive (`gpurun image save -o IMAGE NAME`), or a number: so many MiB of this host's own /usr in three layers (870 without). gpurun
is target/release/gpurun, or what GPURUN says. --keep: the packed forms of the image are made in DIR and stay there for the next time; with --rounds 0
nothing else happens.

Cold store each time, on a journaled ext4 on a loop device; every tool ended by a syncfs, the tools interleaved, the source in the page cache. A
tool's CPU seconds (its daemons' too), its peak memory (the same) and the disk that it used are reported as well. Tools that are not installed are
skipped. The benchmark starts dockerd and containerd with directories of their own, and waits for them before it measures. `dd` is what the disk alone takes
for the bytes of a docker-archive, past the page cache, 1 MiB at a time.
"""

import argparse
import hashlib
import json
import os
import shutil
import signal
import statistics
import subprocess
import sys
import tarfile
import tempfile
import time

parser = argparse.ArgumentParser()
parser.add_argument("--rounds", type=int, default=3)
parser.add_argument("--forms", default="gzip,zstd,docker-archive")
parser.add_argument("--tools", default="gpurun,podman,docker,ctr,skopeo,umoci,dd")
parser.add_argument("--keep")
parser.add_argument("image", nargs="?", default="870")
args = parser.parse_args()

TARGET = os.environ.get("CARGO_TARGET_DIR", "target")
GPURUN = os.path.abspath(os.environ.get("GPURUN", f"{TARGET}/release/gpurun"))
work = tempfile.mkdtemp(prefix="gpurun-load.", dir="/var/tmp")
forms_dir = args.keep or work
disk = f"{work}/disk"


def call(*words, **more):
    return subprocess.run(words, check=True, capture_output=True, text=True, **more).stdout


def digest_of(path):
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def layers_of_usr(limit):
    """Tars of /usr in three shares, up to the limit in all."""
    shares, total = [[], [], []], 0
    for directory, names, files in os.walk("/usr"):
        names.sort()
        for name in sorted(files):
            path = os.path.join(directory, name)
            if os.path.islink(path) or not os.path.isfile(path) or total > limit:
                continue
            total += os.path.getsize(path)
            shares[min(2, total * 3 // limit)].append(path)
    tars = []
    for number, paths in enumerate(shares):
        tars.append(f"{forms_dir}/{number}.tar")
        call("tar", "-cf", tars[-1], "--no-recursion", "-T", "-", input="\n".join(paths))
    return tars


def layers_of_archive(path):
    """The tars that a docker-archive holds."""
    tars = []
    with tarfile.open(path) as archive:
        for number, member in enumerate(json.load(archive.extractfile("manifest.json"))[0]["Layers"]):
            tars.append(f"{forms_dir}/{number}.tar")
            with open(tars[-1], "wb") as out:
                shutil.copyfileobj(archive.extractfile(member), out, 1 << 20)
    return tars


def blob(directory, path):
    """Moves a file into a layout; answers its descriptor's digest and size."""
    digest = digest_of(path)
    os.makedirs(f"{directory}/blobs/sha256", exist_ok=True)
    os.rename(path, f"{directory}/blobs/sha256/{digest}")
    return {"digest": "sha256:" + digest, "size": os.path.getsize(f"{directory}/blobs/sha256/{digest}")}


def layout(tars, packing):
    """An OCI layout of the layers, packed: gzip -6, zstd -3; and the same as one tar, for ctr."""
    directory = f"{forms_dir}/oci-{packing}"

    def document(value):
        with open(f"{forms_dir}/document", "w") as file:
            json.dump(value, file)
        return blob(directory, f"{forms_dir}/document")

    tool = {"gzip": ["pigz" if shutil.which("pigz") else "gzip", "-6"], "zstd": ["zstd", "-q", "-3", "-T0"]}[packing]
    entries = []
    for tar in tars:
        with open(f"{forms_dir}/packed", "wb") as out:
            subprocess.run([*tool, "-c", tar], check=True, stdout=out)
        entries.append({"mediaType": f"application/vnd.oci.image.layer.v1.tar+{packing}"} | blob(directory, f"{forms_dir}/packed"))
    diff_ids = ["sha256:" + digest_of(tar) for tar in tars]
    machine = {"x86_64": "amd64", "aarch64": "arm64"}.get(os.uname().machine, os.uname().machine)
    config = document({"architecture": machine, "os": "linux", "config": {}, "rootfs": {"type": "layers", "diff_ids": diff_ids}})
    manifest = document({
        "schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": {"mediaType": "application/vnd.oci.image.config.v1+json"} | config, "layers": entries,
    })
    with open(f"{directory}/oci-layout", "w") as file:
        json.dump({"imageLayoutVersion": "1.0.0"}, file)
    names = {"org.opencontainers.image.ref.name": "latest", "io.containerd.image.name": "docker.io/library/bench:latest"}
    entry = {"mediaType": "application/vnd.oci.image.manifest.v1+json", "annotations": names} | manifest
    with open(f"{directory}/index.json", "w") as file:
        json.dump({"schemaVersion": 2, "manifests": [entry]}, file)
    if "ctr" in args.tools and shutil.which("ctr"):
        call("tar", "-cf", f"{directory}.tar", "-C", directory, "oci-layout", "index.json", "blobs")
    return directory


def sources(forms):
    """The image in every form: its name, and where it lies; and the bytes of its layers."""
    known = f"{forms_dir}/places.json"
    if args.keep and os.path.exists(known):
        with open(known) as file:
            places, size = json.load(file)
        if set(forms) <= set(places):
            return {form: places[form] for form in forms}, size
    os.makedirs(forms_dir, exist_ok=True)
    tars = layers_of_usr(int(args.image) << 20) if args.image.isdigit() else layers_of_archive(args.image)
    size = sum(map(os.path.getsize, tars))
    places = {packing: layout(tars, packing) for packing in ("gzip", "zstd") if packing in forms}
    if "docker-archive" in forms:
        if args.image.isdigit():
            made = places.get("zstd") or layout(tars, "zstd")
            call(GPURUN, "--root", f"{work}/maker", "--run-dir", f"{work}/maker-run", "image", "load", "-q", "-t", "bench", made)
            call(GPURUN, "--root", f"{work}/maker", "image", "save", "-o", f"{forms_dir}/archive.tar", "bench")
            shutil.rmtree(f"{work}/maker")
        places["docker-archive"] = f"{forms_dir}/archive.tar" if args.image.isdigit() else args.image
    for tar in tars:
        os.remove(tar)
    with open(known, "w") as file:
        json.dump((places, size), file)
    return places, size


class Daemon:
    """dockerd or containerd, over a store of its own."""

    def __init__(self, name, store):
        self.run = store + "-run"
        self.socket = f"{self.run}/socket"
        os.makedirs(self.run)
        command = {
            "docker": ["dockerd", "--iptables=false", "--ip6tables=false", "--bridge=none", "--data-root", store, "--exec-root", self.run,
                       "--pidfile", f"{self.run}/pid", "--host", f"unix://{self.socket}", "--storage-driver", "overlay2"],
            "ctr": ["containerd", "--root", store, "--state", f"{self.run}/state", "--address", self.socket],
        }[name]
        self.ask = {"docker": ["docker", "--host", f"unix://{self.socket}", "info"], "ctr": ["ctr", "--address", self.socket, "images", "ls"]}[name]
        self.log = open(f"{self.run}/log", "w+")
        self.child = subprocess.Popen(command, stdout=self.log, stderr=self.log)
        for _ in range(300):
            if subprocess.run(self.ask, capture_output=True).returncode == 0:
                break
            if self.child.poll() is not None:
                sys.exit(f"{command[0]} ended: {open(self.log.name).read()[-2000:]}")
            time.sleep(0.1)

    def family(self):
        """The daemon, and the daemons that it started."""
        parents = {}
        for pid in filter(str.isdigit, os.listdir("/proc")):
            try:
                parents[int(pid)] = int(open(f"/proc/{pid}/stat").read().rpartition(")")[2].split()[1])
            except OSError:
                pass
        members = [self.child.pid]
        for member in members:
            members += [pid for pid, parent in parents.items() if parent == member]
        return members

    def cpu(self):
        """Seconds so far, with those of children that ended."""
        fields = [open(f"/proc/{pid}/stat").read().rpartition(")")[2].split()[11:15] for pid in self.family()]
        return sum(int(field) for row in fields for field in row) / os.sysconf("SC_CLK_TCK")

    def peak(self):
        """MiB."""
        lines = [line for pid in self.family() for line in open(f"/proc/{pid}/status") if line.startswith("VmHWM")]
        return sum(int(line.split()[1]) for line in lines) / 1024

    def end(self):
        self.child.send_signal(signal.SIGTERM)
        self.child.wait(60)
        self.log.close()


def command(tool, form, place, store, daemon):
    """What a tool does with a form of the image; None where it cannot."""
    archive = place if form == "docker-archive" else f"{place}.tar"
    theirs = f"docker-archive:{place}" if form == "docker-archive" else f"oci:{place}:latest"
    return {
        "gpurun": lambda: [GPURUN, "--root", store, "--run-dir", store + "-run", "image", "load", "-q", place],
        "podman": lambda: ["podman", "--root", store, "--runroot", store + "-run", "pull", "-q", theirs],
        "skopeo": lambda: ["skopeo", "copy", "-q", theirs, f"containers-storage:[overlay@{store}+{store}-run]bench"],
        "docker": lambda: ["docker", "--host", f"unix://{daemon.socket}", "load", "-q", "-i", archive] if form == "docker-archive" else None,
        "ctr": lambda: ["ctr", "--address", daemon.socket, "images", "import", archive],
        # umoci 0.4 knows no zstd, and no archives.
        "umoci": lambda: ["umoci", "unpack", "--image", f"{place}:latest", store] if form == "gzip" else None,
        "dd": lambda: ["dd", f"if={place}", f"of={store}", "bs=1M", "oflag=direct", "conv=fsync"] if form == "docker-archive" else None,
    }[tool]()


def warm(place):
    """Reads everything, so that it is in the page cache."""
    files = [place] if os.path.isfile(place) else [os.path.join(at, name) for at, _, names in os.walk(place) for name in names]
    for path in files:
        with open(path, "rb", buffering=0) as file:
            while file.read(1 << 20):
                pass


def measure(tool, form, place, store):
    """Seconds, CPU seconds, peak MiB, MiB on the disk; None where the tool cannot."""
    daemon = Daemon(tool, store) if tool in ("docker", "ctr") else None
    words = command(tool, form, place, store, daemon)
    if words is None:
        if daemon:
            daemon.end()
        return None
    warm(f"{place}.tar" if f"{place}.tar" in words else place)
    call("sync", "-f", disk)
    before, cpu_before = os.statvfs(disk), daemon.cpu() if daemon else 0
    began = time.monotonic()
    child = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    error = child.stderr.read()
    _, status, usage = os.wait4(child.pid, 0)
    if status:
        print(f"{tool}, {form}: {error.decode()[-500:]}", file=sys.stderr)
    call("sync", "-f", disk)
    seconds = time.monotonic() - began
    cpu, peak = usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024
    if daemon:
        cpu, peak = cpu + daemon.cpu() - cpu_before, peak + daemon.peak()
    used = (before.f_bavail - os.statvfs(disk).f_bavail) * before.f_frsize
    if daemon:
        daemon.end()
    for line in open("/proc/self/mountinfo").read().splitlines()[::-1]:
        if line.split()[4].startswith(store):
            subprocess.run(["umount", "-l", line.split()[4]])
    for left in (store, store + "-run"):
        shutil.rmtree(left, ignore_errors=True)
    if os.path.exists(store):
        os.remove(store)
    call("sync", "-f", disk)
    return None if status else (seconds, cpu, peak, used / 2**20)


def main():
    programs = {"gpurun": GPURUN, "docker": "dockerd"}
    tools = [tool for tool in args.tools.split(",") if shutil.which(programs.get(tool, tool))]
    forms, size = sources(args.forms.split(","))
    if not args.rounds:
        return
    os.makedirs(disk)
    # Written once, so that no tool is the one that waits for the host to allocate; and past this host's page cache from then on, which would be
    # filled with a second copy of everything.
    megabytes = max(6 << 30, size * 9 // 4) >> 20
    call("dd", "if=/dev/zero", f"of={work}/disk.img", "bs=1M", f"count={megabytes}", "oflag=direct", "status=none")
    call("mkfs.ext4", "-q", "-E", "lazy_itable_init=0,lazy_journal_init=0", f"{work}/disk.img")
    device = call("losetup", "--find", "--show", "--direct-io=on", f"{work}/disk.img").strip()
    call("mount", device, disk)
    # It goes with the last that uses it.
    call("losetup", "--detach", device)
    print(f"{size >> 20} MiB of layers; {args.rounds} interleaved rounds, cold stores, journaled loop ext4, syncfs at the end; medians")
    print("| form | tool | time | CPU | peak memory | disk | time × | CPU × |\n|---|---|---|---|---|---|---|---|")
    for form, place in forms.items():
        figures = {}
        for turn in range(args.rounds):
            for tool in tools:
                row = measure(tool, form, place, f"{disk}/{form[0]}{turn}{tool}")
                if row:
                    figures.setdefault(tool, []).append(row)
        medians = {tool: [statistics.median(column) for column in zip(*rows)] for tool, rows in figures.items()}
        base = medians["gpurun"]
        for tool, (seconds, cpu, peak, used) in medians.items():
            ratios = f"{seconds / base[0]:.2f} | {cpu / base[1]:.2f}"
            print(f"| {form} | {tool} | {seconds:.2f} s | {cpu:.2f} s | {peak:.0f} MiB | {used:.0f} MiB | {ratios} |", flush=True)


try:
    main()
finally:
    subprocess.run(["umount", disk], capture_output=True)
    shutil.rmtree(work, ignore_errors=True)
