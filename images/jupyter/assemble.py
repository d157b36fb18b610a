"""Makes a docker-archive of two layers from a root directory: the files of a snapshot, and what came later.

    assemble.py snapshot ROOT BASE.json      remembers which files there are
    assemble.py archive ROOT BASE.json OUT   writes the archive
"""

import hashlib
import io
import json
import os
import sys
import tarfile
import time

# A reproducible time for everything: the same packages give the same image.
EPOCH = int(os.environ.get("SOURCE_DATE_EPOCH", "0"))
CONFIG = {
    "User": "jovyan",
    "Env": ["PATH=/opt/jupyter/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "LANG=C.UTF-8"],
    "Entrypoint": ["/usr/bin/tini", "-s", "--"],
    "Cmd": ["jupyter-lab", "--ip=0.0.0.0", "--no-browser"],
    "WorkingDir": "/work",
    "ExposedPorts": {"8888/tcp": {}},
    "Labels": {"org.opencontainers.image.title": "jupyter"},
}


def walk(root):
    """Every path below the root, relative, directories before what is in them, in a fixed order."""
    for directory, names, files in os.walk(root):
        names.sort()
        for name in sorted(names + files):
            yield os.path.relpath(os.path.join(directory, name), root)


def state(root, path):
    """What makes a file another file."""
    info = os.lstat(os.path.join(root, path))
    return [info.st_mode, info.st_uid, info.st_gid, info.st_size, info.st_mtime_ns if not os.path.isdir(os.path.join(root, path)) else 0]


def layer(root, paths, out):
    """Writes a layer's tar and answers its digest."""
    links = {}
    with tarfile.open(out, "w", format=tarfile.PAX_FORMAT) as tar:
        for path in paths:
            full = os.path.join(root, path)
            info = tar.gettarinfo(full, arcname=path)
            if info is None:
                continue
            info.mtime = EPOCH
            info.uname = info.gname = ""
            inode = os.lstat(full)
            if info.isreg() and inode.st_nlink > 1:
                first = links.setdefault((inode.st_dev, inode.st_ino), path)
                if first != path:
                    info.type, info.linkname, info.size = tarfile.LNKTYPE, first, 0
                else:
                    info.type, info.linkname, info.size = tarfile.REGTYPE, "", inode.st_size
            if info.isreg():
                with open(full, "rb") as data:
                    tar.addfile(info, data)
            else:
                tar.addfile(info)
    digest = hashlib.sha256()
    with open(out, "rb") as data:
        while block := data.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def archive(root, base, out):
    """The docker-archive of both layers."""
    with open(base) as file:
        before = json.load(file)
    paths = list(walk(root))
    first = [path for path in paths if before.get(path) == state(root, path)]
    second = [path for path in paths if before.get(path) != state(root, path)]
    digests = [layer(root, first, out + ".0"), layer(root, second, out + ".1")]
    machine = {"x86_64": "amd64", "aarch64": "arm64"}.get(os.uname().machine, os.uname().machine)
    config = json.dumps({
        "architecture": machine,
        "os": "linux",
        "created": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(EPOCH)),
        "config": CONFIG,
        "rootfs": {"type": "layers", "diff_ids": ["sha256:" + digest for digest in digests]},
    }).encode()
    name = hashlib.sha256(config).hexdigest() + ".json"
    layers = [digest + "/layer.tar" for digest in digests]
    manifest = json.dumps([{"Config": name, "RepoTags": ["jupyter:latest"], "Layers": layers}]).encode()
    with tarfile.open(out, "w") as tar:
        for member, data in [(name, config), ("manifest.json", manifest)]:
            info = tarfile.TarInfo(member)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
        for number, member in enumerate(layers):
            tar.add(f"{out}.{number}", arcname=member)
            os.remove(f"{out}.{number}")


def main():
    if sys.argv[1] == "snapshot":
        root, base = sys.argv[2:]
        with open(base, "w") as file:
            json.dump({path: state(root, path) for path in walk(root)}, file)
    else:
        archive(*sys.argv[2:])


main()
