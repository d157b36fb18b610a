"""Pulling one large layer from a registry that limits every connection: gpurun against an earlier build, podman and skopeo.

    sudo benches/pull.py [--rounds N] [--rate MB/s] [--size MB] [--plain] [--earlier FILE]

The registry is part of this script. It serves ranges, and limits each connection to --rate (40 MB/s), as the storage behind public registries does.
The layer is gzip-compressed data that barely compresses (three quarters of its bytes are noise), or with --plain an uncompressed tar. gpurun is target/release/gpurun, or what GPURUN
names; --earlier names another build to compare with. All tools run in turn, each on an empty store in /var/tmp; the figures are medians.
"""

import argparse
import contextlib
import hashlib
import http.server
import io
import json
import os
import re
import shutil
import socketserver
import statistics
import subprocess
import tarfile
import tempfile
import threading
import time
import zlib

CHUNK = 256 << 10
KIND = "application/vnd.oci.image.manifest.v1+json"


def digest(data):
    return "sha256:" + hashlib.sha256(data).hexdigest()


def packed(data):
    """gzip, level 1, as `gzip -1` writes it."""
    stream = zlib.compressobj(1, zlib.DEFLATED, 31)
    return stream.compress(data) + stream.flush()


def image(size, plain):
    """An image with one layer of about `size` bytes in the registry: its blobs, and the digest of its manifest."""
    tar = io.BytesIO()
    with tarfile.open(fileobj=tar, mode="w") as archive:
        for name in range(max(1, size // (32 << 20 if plain else 24 << 20))):
            data = b"".join(os.urandom(3 << 10) + bytes(1 << 10) for _ in range(8 << 10))
            entry = tarfile.TarInfo(f"data-{name}")
            entry.size = len(data)
            archive.addfile(entry, io.BytesIO(data))
    layer = tar.getvalue() if plain else packed(tar.getvalue())
    config = json.dumps({"architecture": "amd64", "os": "linux", "config": {}, "rootfs": {"type": "layers", "diff_ids": [digest(tar.getvalue())]}}).encode()
    blobs = {digest(data): data for data in (layer, config)}
    manifest = json.dumps({
        "schemaVersion": 2,
        "mediaType": KIND,
        "config": {"mediaType": "application/vnd.oci.image.config.v1+json", "digest": digest(config), "size": len(config)},
        "layers": [{"mediaType": "application/vnd.oci.image.layer.v1.tar" + ("" if plain else "+gzip"), "digest": digest(layer), "size": len(layer)}],
    }).encode()
    blobs[digest(manifest)] = manifest
    return blobs, digest(manifest)


class Handler(http.server.BaseHTTPRequestHandler):
    """A registry for one image, with a limit for each connection."""

    protocol_version = "HTTP/1.1"
    blobs: dict = {}
    manifest = ""
    rate = 0.0

    def log_message(self, *_):
        pass

    def do_HEAD(self):
        self.do_GET()

    def do_GET(self):
        name = self.path.rsplit("/", 1)[-1]
        if name == "":
            return self.answer(200, b"{}", {})
        data = self.blobs.get(name if name.startswith("sha256:") else self.manifest)
        if data is None:
            return self.answer(404, b"{}", {})
        part = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        if not part:
            return self.answer(200, data, {})
        first, last = int(part[1]), min(int(part[2] or len(data)), len(data) - 1)
        self.answer(206, memoryview(data)[first : last + 1], {"Content-Range": f"bytes {first}-{last}/{len(data)}"})

    def answer(self, status, body, headers):
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Content-Type", KIND)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "HEAD":
            return
        began = time.monotonic()
        with contextlib.suppress(ConnectionError):
            for at in range(0, len(body), CHUNK):
                piece = body[at : at + CHUNK]
                self.wfile.write(piece)
                # The time that the bytes so far take at the limit.
                ahead = (at + len(piece)) / self.rate - (time.monotonic() - began)
                if ahead > 0:
                    time.sleep(ahead)


class Registry(socketserver.ThreadingMixIn, http.server.HTTPServer):
    daemon_threads = True


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--rate", type=float, default=40)
    parser.add_argument("--size", type=int, default=400)
    parser.add_argument("--plain", action="store_true")
    parser.add_argument("--earlier")
    args = parser.parse_args()
    Handler.blobs, Handler.manifest = image(args.size * 1_000_000, args.plain)
    Handler.rate = args.rate * 1e6
    size = max(map(len, Handler.blobs.values()))
    server = Registry(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    name = f"127.0.0.1:{server.server_port}/bench:1"
    work = tempfile.mkdtemp(prefix="gpurun-pull.", dir="/var/tmp")
    gpurun = os.path.abspath(os.environ.get("GPURUN", os.environ.get("CARGO_TARGET_DIR", "target") + "/release/gpurun"))
    pull = lambda program: [program, "--root", f"{work}/store", "--run-dir", f"{work}/run", "image", "pull", "-q", name]
    tools = {"gpurun": pull(gpurun)}
    if args.earlier:
        tools["gpurun, earlier"] = pull(os.path.abspath(args.earlier))
    if shutil.which("podman"):
        tools["podman"] = ["podman", "--root", f"{work}/store", "--runroot", f"{work}/run", "pull", "-q", "--tls-verify=false", name]
    if shutil.which("skopeo"):
        tools["skopeo"] = ["skopeo", "copy", "-q", "--src-tls-verify=false", f"docker://{name}", f"dir:{work}/store"]
    times = {tool: [] for tool in tools}
    try:
        for turn in range(args.rounds):
            order = list(tools)
            for tool in order[turn % len(order) :] + order[: turn % len(order)]:
                began = time.monotonic()
                done = subprocess.run(tools[tool], capture_output=True, text=True)
                times[tool].append(time.monotonic() - began)
                if done.returncode != 0:
                    raise SystemExit(f"{tool}: {done.stderr}")
                subprocess.run(["umount", "-q", f"{work}/store/overlay"], capture_output=True)
                shutil.rmtree(f"{work}/store")
                shutil.rmtree(f"{work}/run", ignore_errors=True)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    base = statistics.median(times["gpurun"])
    print(f"one {'uncompressed' if args.plain else 'gzip'} layer of {size / 1e6:.0f} MB, {args.rate:.0f} MB/s for each connection, {args.rounds} interleaved rounds")
    for tool, values in times.items():
        median = statistics.median(values)
        print(f"{tool:16} median {median:6.2f} s  fastest {min(values):6.2f} s  {size / median / 1e6:6.1f} MB/s  {median / base:5.2f} × gpurun's time")


main()
