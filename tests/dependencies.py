"""The dependency check: licences, bans and sources of everything that Cargo.lock names, against deny.json.

Needs nothing but cargo and Python. Advisories are cargo-audit's business: it is run where it is installed and reaches its database.
"""

import json
import re
import shutil
import subprocess
import sys

rules = json.load(open("deny.json"))
text = subprocess.run(["cargo", "metadata", "--locked", "--format-version", "1"], capture_output=True, text=True, check=True).stdout
packages = json.loads(text)["packages"]
problems = []


def allowed(expression):
    """Whether an SPDX expression can be met with the allowed licences."""
    words = re.findall(r"\(|\)|AND|OR|[^\s()]+(?: WITH [^\s()]+)?", expression.replace("/", " OR "))
    python = " ".join(
        {"AND": "and", "OR": "or", "(": "(", ")": ")"}.get(word, str(word in rules["licences"])) for word in words
    )
    return bool(words) and eval(python, {"__builtins__": {}})  # only True, False, and, or and parentheses are left in it


for package in packages:
    name = f"{package['name']} {package['version']}"
    if package["source"] is None:
        continue
    if package["source"] != "registry+https://github.com/rust-lang/crates.io-index":
        problems.append(f"{name}: comes from {package['source']}, not from crates.io")
    if not allowed(package["license"] or rules["clarified"].get(package["name"], "")):
        problems.append(f"{name}: the licence {package['license']!r} is not among those of deny.json")
    if package["name"] in rules["bans"]:
        problems.append(f"{name}: banned, because it is {rules['bans'][package['name']]}")
if shutil.which("cargo-audit"):
    ignored = [word for advisory in rules["advisories-ignored"] for word in ("--ignore", advisory)]
    audit = subprocess.run(["cargo", "audit", *ignored], capture_output=True, text=True)
    if audit.returncode == 1 and "error: couldn't fetch" not in audit.stderr:
        problems.append(audit.stdout + audit.stderr)
else:
    print("advisories: not checked (cargo-audit is not installed)")
print("\n".join(problems) or f"{len(packages)} packages: licences, bans and sources are in order")
sys.exit(bool(problems))
