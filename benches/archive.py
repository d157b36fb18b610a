"""A docker-archive with one layer, from a tar of a root directory."""

import hashlib
import io
import json
import os
import tarfile


def docker_archive(layer, name, out):
    digest = hashlib.sha256(open(layer, "rb").read()).hexdigest()
    machine = {"x86_64": "amd64", "aarch64": "arm64"}.get(os.uname().machine, os.uname().machine)
    config = json.dumps({
        "architecture": machine, "os": "linux", "config": {"Env": ["PATH=/bin"], "Cmd": ["sh"]},
        "rootfs": {"type": "layers", "diff_ids": ["sha256:" + digest]},
    }).encode()
    config_name = hashlib.sha256(config).hexdigest() + ".json"
    manifest = json.dumps([{"Config": config_name, "RepoTags": [name + ":latest"], "Layers": [digest + "/layer.tar"]}]).encode()
    with tarfile.open(out, "w") as tar:
        for member, data in ((config_name, config), ("manifest.json", manifest)):
            info = tarfile.TarInfo(member)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
        tar.add(layer, arcname=digest + "/layer.tar")
