"""The layering check: a module may only import from the rows above its own in the table of ARCHITECTURE.md.

Reads every `crate::MODULE` in src/ (tests beside the code excluded) and fails on any other import that is not in EXCEPTIONS, and on an exception
that no file needs any more: the list may only become shorter. Below a directory of src/, no two files may import each other, directly or
through others, and no file may use what a `mod.rs` above it defines. The table of ARCHITECTURE.md must be that of LAYERS, and the header of src/lib.rs must name every module.
"""

import pathlib
import re
import sys

# From the bottom up. A module may use those of earlier rows, and of its own row those before it.
LAYERS = [
    ["report", "units", "names", "clock", "sys", "durable", "inflate", "template"],
    ["spec", "request"],
    ["image", "layer", "transport", "store", "rootfs", "hook", "gpu", "network", "net", "cgroup", "runtime", "record", "volume", "control", "config"],
    ["cluster", "jupyter", "launch", "supervise", "build", "compose", "sampler", "explain", "lab", "doctor", "spank"],
    ["cli"],
]

# "user -> used": imports against the table that exist today.
EXCEPTIONS = set("""
""".strip().splitlines())


def module_of(path):
    return path.relative_to("src").parts[0].removesuffix(".rs")


def code(path):
    """The file's text without comments and without the tests beside the code."""
    text = re.sub(r"//[^\n]*", "", path.read_text())
    return re.split(r"#\[cfg\(test\)\]\s*(?:pub(?:\([a-z]+\))? )?mod \w+ \{", text)[0]


def imports(text):
    """Modules named as `crate::NAME` or in `use crate::{a, b::c}`."""
    found = set(re.findall(r"\bcrate::([a-z_]+)\b", text))
    for group in re.findall(r"\buse crate::\{([^;]*)\};", text):
        depth = 0
        for piece in re.split(r"([{},])", group):
            if piece == "{":
                depth += 1
            elif piece == "}":
                depth -= 1
            elif depth == 0 and (name := re.match(r"\s*([a-z_]+)", piece)):
                found.add(name.group(1))
    return found


order = {name: (row, place) for row, names in enumerate(LAYERS) for place, name in enumerate(names)}
against = {}
unknown = set()
for path in sorted(pathlib.Path("src").rglob("*.rs")):
    user = module_of(path)
    if user in ("lib", "main", "testing", "fixture", "init") or path.name in ("tests.rs", "testing.rs"):
        continue
    if user not in order:
        unknown.add(user)
        continue
    for used in imports(code(path)) - {user}:
        if used in order and order[used] > order[user]:
            against.setdefault(f"{user} -> {used}", []).append(str(path))

def documents():
    """Differences between LAYERS, the table of ARCHITECTURE.md and the header of src/lib.rs."""
    table = [[] for _ in LAYERS]
    for layer, cell in re.findall(r"^\| (\d) \| ([^|]+) \|", pathlib.Path("ARCHITECTURE.md").read_text(), re.M):
        table[int(layer)] += re.findall(r"`(\w+)/?`", cell)
    for number, (expected, found) in enumerate(zip(LAYERS, table)):
        if expected != found:
            yield f"ARCHITECTURE.md: layer {number} must have the modules {', '.join(expected)}, and it has {', '.join(found)}"
    header = "\n".join(re.findall(r"^//!.*", pathlib.Path("src/lib.rs").read_text(), re.M))
    for name in sorted(set(order) - set(re.findall(r"\[`(\w+)`\]", header))):
        yield f"src/lib.rs: the header does not name the module `{name}`"


def use_leaves(tree, prefix=()):
    """The paths of a `use` tree, each with the name that it gets: `a::{b, c as d}` has (a, b) as `b` and (a, c) as `d`."""
    tree = re.sub(r"\s+", " ", tree).strip()
    if group := re.fullmatch(r"((?:\w+::)*)\{(.*)\}", tree):
        prefix += tuple(group[1].split("::")[:-1])
        depth, start, body = 0, 0, group[2] + ","
        for at, char in enumerate(body):
            depth += {"{": 1, "}": -1}.get(char, 0)
            if char == "," and depth == 0:
                if body[start:at].strip():
                    yield from use_leaves(body[start:at], prefix)
                start = at + 1
    elif path := re.fullmatch(r"((?:\w+::)*\w+)(?: as (\w+))?", tree):
        steps = prefix + tuple(path[1].split("::"))
        steps = steps[:-1] if steps[-1] == "self" else steps
        yield steps, path[2] or steps[-1]


def file_graph():
    """For each file, the files below the same directory of src/ that define what it uses. A re-export is followed to the file behind it, so a
    `mod.rs` that declares and re-exports its files does not depend on them."""
    texts = {}
    for path in pathlib.Path("src").rglob("*.rs"):
        parts = path.relative_to("src").with_suffix("").parts
        texts[parts[:-1] if parts[-1] == "mod" else parts] = code(path)
    for name, text in list(texts.items()):
        for tests in re.findall(r"#\[cfg\(test\)\]\s*(?:pub(?:\([a-z]+\))? )?mod (\w+);", text):
            texts.pop(name + (tests,), None)
    use = re.compile(r"^ *((?:pub(?:\([^)]*\))? )?)use ([^;]*);", re.M)

    def absolute(name, steps):
        """A path as seen from the root of the crate, or None if it begins with another crate."""
        if steps[0] not in ("crate", "super", "self"):
            return name + tuple(steps) if name + (steps[0],) in texts else None
        target = name
        while steps and steps[0] in ("crate", "super", "self"):
            target = {"crate": (), "super": target[:-1], "self": target}[steps[0]]
            steps = steps[1:]
        return target + tuple(steps)

    imported, exported = {}, {}
    for name, text in texts.items():
        found = [(public, as_name, absolute(name, steps)) for public, tree in use.findall(text) for steps, as_name in use_leaves(tree)]
        imported[name] = {as_name: path for _, as_name, path in found if path}
        exported[name] = {as_name: path for public, as_name, path in found if path and public}

    def definer(path, depth=0):
        """The file that defines an item, and whether the path goes on behind the file."""
        length = 0
        while length < len(path) and path[: length + 1] in texts:
            length += 1
        file, rest = path[:length], path[length:]
        if rest and rest[0] in exported.get(file, {}) and depth < 10:
            return definer(exported[file][rest[0]] + rest[1:], depth + 1)
        return file, bool(rest)

    def used_by(name, text):
        paths = list(imported[name].items())
        for path in re.findall(r"(?<![:\w])((?:\w+::)+\w+)", use.sub("", text)):
            steps = tuple(path.split("::"))
            begin = imported[name].get(steps[0])
            paths.append((None, begin + steps[1:] if begin else absolute(name, steps)))
        for as_name, path in paths:
            if path and not (as_name in exported[name] and path[: len(name)] == name):
                file, is_item = definer(path)
                if is_item and file and file != name and file[0] == name[0]:
                    yield file

    return {name: set(used_by(name, text)) for name, text in texts.items() if name[0] not in ("lib", "main", "testing", "fixture", "init")}


def cycles(graph):
    """Chains of files that use each other. A file that uses what a file above it defines is one, too, because that file declares it."""
    found, done = [], set()

    def visit(name, chain):
        if name in chain:
            found.append(" -> ".join("/".join(one) for one in [*chain[chain.index(name) :], name]))
        elif name not in done:
            for used in sorted(graph.get(name, ())):
                visit(used, [*chain, name])
            done.add(name)

    for name in sorted(graph):
        visit(name, [])
        found += [f"{'/'.join(name)} -> {'/'.join(used)}" for used in sorted(graph[name]) if name[: len(used)] == used]
    return found


problems = list(documents())
problems += [f"src/{name} is not in the table of tests/layers.py" for name in sorted(unknown)]
problems += [f"src/{chain}: files that import each other" for chain in cycles(file_graph())]
for edge in sorted(set(against) - EXCEPTIONS):
    problems.append(f"{edge}: an import against the table, in {', '.join(against[edge])}")
for edge in sorted(EXCEPTIONS - set(against)):
    problems.append(f"{edge}: no file needs this exception any more: remove it from tests/layers.py")
print("\n".join(problems) or f"imports keep to the table, with {len(EXCEPTIONS)} exceptions")
sys.exit(bool(problems))
