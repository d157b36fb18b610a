#!/usr/bin/env python3
"""The commands of a translated page are those of the English page."""
import pathlib
import re
import sys

docs = pathlib.Path(__file__).resolve().parent.parent / "docs"


def commands(text):
    """The code blocks, and what is in backticks outside of them, in order."""
    blocks = re.findall(r"^```\w*\n(.*?)^```$", text, re.S | re.M)
    rows = [line for line in text.splitlines() if line.startswith("| ")]
    return blocks, re.findall(r"`([^`]+)`", "\n".join(rows))


def section(text, begin, end):
    return text.split(f"\n## {begin}\n", 1)[1].split(f"\n## {end}\n", 1)[0]


english = commands(section((docs / "docker.md").read_text(), "The recipe, step by step", "Formats and filters"))
japanese = commands(section((docs / "docker.ja.md").read_text(), "手順", "流れ"))
failed = False
for what, here, there in zip(("code blocks", "commands"), english, japanese):
    if here != there or not here:
        failed = True
        print(f"docs/docker.ja.md: its {what} differ from those of docs/docker.md:", file=sys.stderr)
        for line in sorted(set(here) ^ set(there)):
            print(f"    {line.strip()}", file=sys.stderr)
sys.exit(1 if failed else 0)
