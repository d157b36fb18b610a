"""Compares `gpurun compose config` with Debian 13's `docker-compose config` (2.26), for every directory of tests/compose/files, and
for images/compose.yaml.

    tests/compose/config.py target/debug/gpurun [NAME…]

Needs root and mmdebstrap. The Debian 13 tree is cached in ${XDG_CACHE_HOME:-~/.cache}/gpurun/docker-trixie. Both programs see the same paths and the same
environment. YAML must agree byte for byte, and JSON as values.
"""

import json
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile

PACKAGES = "docker-cli,docker-compose,ca-certificates"
HERE = pathlib.Path(__file__).resolve().parent
ENVIRONMENT = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "HOME": "/root", "LC_ALL": "C.UTF-8"}
# What is not the default: the arguments before `config`.
FLAGS = {
    "12-profiles": [[], ["--profile", "gpu"], ["--profile", "*"]],
    "36-several": [["-f", "base.yaml", "-f", "gpu.yaml"]],
    "images": [[], ["-f", "compose.yaml", "-f", "compose.cpu.yaml"]],
}
VARIABLES = {"12-profiles": {"COMPOSE_PROFILES": "cpu"}, "26-scale": {"COMPOSE_PROJECT_NAME": "named-by-env"}}
KINDS = [[], ["--format", "json"], ["--no-interpolate"]]
# Where the output with variables differs on purpose, or in the form of a list that means the same (docs/compose.md).
RAW_DIFFERS = ["07-variables", "19-build", "32-airflow", "35-passthrough", "39-contexts", "images"]
# The other outputs are compared for some projects, to save time.
LISTS = [["--services"], ["--volumes"], ["--images"], ["--profiles"], ["-q"]]
WITH_LISTS = ["12-profiles", "14-include", "17-volumes", "19-build"]
# The order of these lines is that of a Go map, which is random.
UNORDERED = (["--services"], ["--volumes"], ["--images"])


def tree():
    """The Debian 13 tree, made if it is missing."""
    cache = pathlib.Path(os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache") / "gpurun"
    path = cache / "docker-trixie"
    if not path.exists():
        cache.mkdir(parents=True, exist_ok=True)
        new = tempfile.mkdtemp(prefix="docker-trixie.", dir=cache)
        os.chmod(new, 0o755)
        subprocess.run(["mmdebstrap", "--quiet", "--variant=minbase", f"--include={PACKAGES}", "trixie", new], check=True)
        try:
            os.rename(new, path)
        except OSError:
            # Another test has made it in the meantime.
            shutil.rmtree(new)
    return path


def outcome(command, cwd, name):
    environment = ENVIRONMENT | VARIABLES.get(name, {})
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=60)


def project(directory):
    """The directory with the compose file: the given one, or the only one below it."""
    below = [entry for entry in directory.iterdir() if entry.is_dir()]
    has_file = any(entry.suffix in (".yaml", ".yml") for entry in directory.iterdir())
    return directory if has_file else below[0]


def compare(binary, root, files, name):
    problems = []
    directory = project(files / name)
    for flags in FLAGS.get(name, [[]]):
        for kind in KINDS + (LISTS if name in WITH_LISTS else []):
            if kind == ["--no-interpolate"] and name in RAW_DIFFERS:
                continue
            what = " ".join([name, *flags, "config", *kind])
            docker = outcome(
                ["chroot", str(root), "/usr/bin/env", "-C", str(directory), "docker-compose", *flags, "config", *kind], "/", name
            )
            ours = outcome([binary, "compose", *flags, "config", *kind], directory, name)
            if docker.returncode != 0:
                problems.append(f"{what}: docker-compose refuses the file: {docker.stderr}")
                continue
            if ours.returncode != 0:
                problems.append(f"{what}: gpurun refuses the file: {ours.stderr}")
                continue
            if kind == ["--format", "json"]:
                same = json.loads(docker.stdout) == json.loads(ours.stdout)
            elif kind in UNORDERED:
                same = sorted(docker.stdout.splitlines()) == sorted(ours.stdout.splitlines())
            else:
                same = docker.stdout == ours.stdout
            if not same:
                problems.append(f"{what}:\n{diff(docker.stdout, ours.stdout)}")
    return problems


def diff(docker, ours):
    with tempfile.NamedTemporaryFile("w") as one, tempfile.NamedTemporaryFile("w") as other:
        one.write(docker)
        other.write(ours)
        one.flush()
        other.flush()
        command = ["diff", "-u", "--label", "docker-compose", "--label", "gpurun", one.name, other.name]
        return subprocess.run(command, capture_output=True, text=True).stdout


def main():
    binary = os.path.abspath(sys.argv[1])
    root = tree()
    with tempfile.TemporaryDirectory(prefix="gpurun-compose-") as scratch:
        os.chmod(scratch, 0o755)
        files = pathlib.Path(scratch) / "files"
        inside = root / scratch[1:] / "files"
        try:
            for target in (files, inside):
                shutil.copytree(HERE / "files", target)
                (target / "images").mkdir()
                for file in (HERE.parent.parent / "images").glob("compose*.yaml"):
                    shutil.copy(file, target / "images")
            names = sys.argv[2:] or sorted(entry.name for entry in files.iterdir())
            problems = [problem for name in names for problem in compare(binary, root, files, name)]
        finally:
            shutil.rmtree(root / scratch[1:], ignore_errors=True)
    print("\n".join(problems) or f"{len(names)} projects agree with docker-compose")
    return bool(problems)


sys.exit(main())
