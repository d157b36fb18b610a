#!/usr/bin/env python3
"""docker's commands and flags, as Debian 13's docker-cli prints them.

    tests/docker-help.py            writes tests/docker-help.txt
    tests/docker-help.py --check    fails if the file says something else

The file has a line for each command (`container ls`), and one for each of its flags (`container ls --all -a`).
src/cli/docker_hints.rs checks gpurun's table against it. The client needs no daemon for `--help`. It runs in a directory
that mmdebstrap makes once (45 MB), in ${XDG_CACHE_HOME:-~/.cache}/gpurun.
"""

import os
import pathlib
import re
import shutil
import subprocess
import sys

FILE = pathlib.Path(__file__).with_name("docker-help.txt")
RELEASE = "trixie"


def root():
    cache = pathlib.Path(os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache") / "gpurun"
    tree = cache / f"docker-cli-{RELEASE}"
    if not tree.exists():
        cache.mkdir(parents=True, exist_ok=True)
        made = cache / f"docker-cli-{RELEASE}.{os.getpid()}"
        command = ["mmdebstrap", "--quiet", "--mode=root", "--variant=extract", "--include=docker-cli", RELEASE, made]
        try:
            subprocess.run(command, check=True)
            # What the packages' scripts would make.
            for name in ["bin", "lib", "lib64", "sbin"]:
                if not (made / name).exists():
                    (made / name).symlink_to(f"usr/{name}")
            made.rename(tree)
        finally:
            shutil.rmtree(made, ignore_errors=True)
    return tree


def help_of(tree, words):
    command = [shutil.which("chroot", path="/usr/sbin:/sbin:/usr/bin:/bin"), tree, "/usr/bin/docker", *words, "--help"]
    return subprocess.run(command, check=True, capture_output=True, text=True, env={"HOME": "/", "PATH": "/usr/bin"}).stdout


def walk(tree, words):
    """Lines for a command's flags, and for all commands below it."""
    section, below = "", []
    for line in help_of(tree, words).splitlines():
        if line and not line.startswith(" "):
            section = line.rstrip(":")
        elif "Commands" in section and (command := re.match(r"  (\S+?)\*?\s", line)):
            below.append(command[1])
        elif section.endswith("Options") and (flag := re.match(r"  (?:-(\S), |    )--(\S+)", line)):
            short = f" -{flag[1]}" if flag[1] else ""
            yield " ".join([*words, f"--{flag[2]}"]).strip() + short
    for command in sorted(set(below)):
        yield " ".join([*words, command])
        yield from walk(tree, [*words, command])


def main():
    text = "".join(f"{line}\n" for line in walk(root(), []))
    if "--check" not in sys.argv[1:]:
        FILE.write_text(text)
    elif text != FILE.read_text():
        sys.exit(f"{FILE}: docker-cli of {RELEASE} says something else: run tests/docker-help.py, and read the diff")


main()
