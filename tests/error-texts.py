"""The catalogue of error texts: tests/error-texts.txt has every message and hint of gpurun, as the source has them.

    python3 tests/error-texts.py             compares the catalogue with the source, and checks each text's form
    python3 tests/error-texts.py --update    writes the catalogue

The snapshots of the unit and end-to-end tests show errors with their values. Many errors, such as those of a failing disk, cannot be
provoked there. With this file, no text changes or appears without a line in the diff that its reviewer reads.
"""

import difflib
import pathlib
import re
import sys

ROOT = pathlib.Path(__file__).resolve().parent.parent
CATALOGUE = ROOT / "tests/error-texts.txt"
# Comments, raw strings, strings, characters, names with a macro's `!`, and everything else.
TOKEN = re.compile(
    r"""//[^\n]*|/\*.*?\*/|b?r(?P<hashes>\#*)".*?"(?P=hashes)|b?"(?:\\.|[^"\\])*"|b?'(?:\\(?:x[0-9a-fA-F]{2}|u\{[^}]*\}|.)|[^\\'])'|'[a-z_]\w*|\w+!?|\s+|.""",
    re.S,
)
# What is called with a text, and what the text is.
CALLS = {
    ("Report", "new"): "error",
    ("Report", "usage"): "error",
    ("under",): "error",
    ("with_hint",): "hint",
    ("with_cause",): "cause",
}
OPEN, CLOSE = "([{", ")]}"


def text_of(literal):
    """The text of a string literal, or None for other tokens."""
    if re.match(r'r#*"', literal):
        return literal[literal.index('"') + 1 : literal.rindex('"')]
    if not literal.startswith('"'):
        return None
    return re.sub(r"\\\n\s*", "", literal[1:-1]).replace('\\"', '"').replace("\\\\", "\\")


def product_code(source):
    """The source without its test modules, which stand at the end."""
    cut = re.search(r"^#\[cfg\(test\)\]\n(pub(\(crate\))? )?mod \w+ \{", source, re.M)
    return source[: cut.start()] if cut else source


def texts(source):
    """Yields (kind, text) of one file, in order."""
    tokens = [m.group() for m in TOKEN.finditer(source)]
    tokens = [t for t in tokens if not t.isspace() and not t.startswith(("//", "/*"))]
    # The kinds of the enclosing brackets: None where nothing is collected.
    around, pending = [], None
    for at, token in enumerate(tokens):
        if token in OPEN:
            kind = around[-1] if around else None
            if token == "(":
                before = tokens[max(0, at - 4) : at]
                if before[-1:] == ["error"] and before[-2:-1] == ["["]:
                    kind = "error"
                elif before[-1:] and (before[-1],) in CALLS:
                    kind = CALLS[(before[-1],)]
                elif before[-3:-1] == [":", ":"] and (before[0], before[-1]) in CALLS:
                    kind = CALLS[(before[0], before[-1])]
            elif token == "{" and pending:
                kind, pending = pending, None
            around.append(kind)
        elif token in CLOSE:
            if around:
                around.pop()
        elif token == "fn" and tokens[at + 1] == "hint":
            pending = "hint"
        elif token == ";":
            pending = None
        elif around and around[-1]:
            text = text_of(token)
            # Arguments such as "s" or "," are parts of the text before them.
            if text is not None and (" " in text or kind_needs(around[-1], text)):
                yield around[-1], text


def kind_needs(kind, text):
    return kind == "error" and len(text) > 3


def faults(kind, text):
    """What is wrong with a text's form (STYLE: lower case, no full stop, no exclamation)."""
    if re.match(r"(?!Jupyter )[A-Z][a-z]+ ", text):
        yield "starts with a capital letter"
    if re.search(r"[^.]\.$", text):
        yield "ends with a full stop"
    if "!" in re.sub(r"`[^`]*`", "", text) and kind == "error":
        yield "has an exclamation mark"
    if re.search(r"\b(please|sorry|oops|failed to|unable to)\b", text, re.I):
        yield "uses a filler (write `cannot …`)"


def main():
    lines, wrong = [], []
    for path in sorted((ROOT / "src").rglob("*.rs")):
        name = path.relative_to(ROOT).as_posix()
        if path.stem.endswith("tests") or path.stem in ("testing", "fixture"):
            continue
        found = list(texts(product_code(path.read_text())))
        if not found:
            continue
        lines.append(name)
        for kind, text in found:
            shown = text.replace("\n", "\\n")
            lines.append(f"    {shown}" if kind == "error" else f"        {kind}: {shown}")
            wrong += [f"{name}: `{shown}` {fault}" for fault in faults(kind, text)]
    catalogue = "\n".join(lines) + "\n"
    if "--update" in sys.argv[1:]:
        CATALOGUE.write_text(catalogue)
    old = CATALOGUE.read_text() if CATALOGUE.exists() else ""
    changes = list(difflib.unified_diff(old.splitlines(), catalogue.splitlines(), "catalogue", "source", n=1, lineterm=""))
    print(*changes, *wrong, sep="\n", end="\n" if changes or wrong else "")
    if changes:
        print("\nhint: read the difference, then run `python3 tests/error-texts.py --update`")
    if changes or wrong:
        sys.exit(1)
    errors = sum(line.startswith("    ") and line[4] != " " for line in lines)
    print(f"{errors} error texts are in the catalogue")


main()
