"""The wording check: habits of an earlier dialect must not come back in documents, comments and messages.

Reads the Markdown files, the comments of the Rust files, the string literals of src/, and the scripts. A line that needs one of these
words for another reason is listed in ALLOWED.
"""

import pathlib
import re
import subprocess
import sys

# What is rejected, and what to write instead.
HABITS = {
    r"\b(somebody|nobody|whoever)\b": "name the caller, the user or the process",
    r"\bway(s)? out\b": "hint",
    r"\bby hand\b": "manually, or name who does it",
    r"\bin good order\b": "gracefully, correct",
    r"\b(is|are|was|were) told\b": "receives, reads, is given",
    r"\b(lies|lie) (in|at|below|beside|under|there)\b": "is in, is stored in",
    r"\b(takes?|took|taken|clears?|cleared) away\b": "remove, clean up",
    r"\brooms?\b(?! for| left| in the| to| on)": "module",
    r"\bsoften(s|ed)?\b": "clamp",
    r"\bin force\b": "in effect",
    r"\bmended?\b": "repair",
    r"\banew\b": "again",
    r"\bfor himself\b": "exclusive to, reserved for",
}
# What is rejected in messages only.
MESSAGE_HABITS = {
    r"\bleave (it|the \w+|this|`[^`]*`) (out|away)\b": "omit it",
    r"(?<!there )\b(is|are) no (?!longer\b|more\b)\w+": "is not a",
    r"\b(tells?|told)\b": "shows, names, contains",
    r"\blook(s|ed)? at\b": "examine, read, resolve",
    r"\bcut off\b": "truncated",
    r"\b(draw|drawn|undrawn?)\b": "render, unpack",
    r"\bcannot make\b": "cannot create",
    r"\bcannot be (understood|told|had)\b": "cannot parse, cannot find out",
    r"\bbelow zero\b": "negative",
    r"\bgive(s|n)? up\b|\bgave up\b": "failed",
    r"\bholds (a|an|the|`)": "contains, has",
    r"\basked for\b": "request, require",
    r"\bin (all|silence)$": "in total",
    r"\bwhat (is|lies|stands) there\b": "name it",
    r"\bof its own making\b|\ball the same\b": "drop it",
    r", too\b(?! )": "also, before the verb",
}
# File name and a part of the line.
ALLOWED = [
    # The name of a parameter.
    ("src/inflate/tests.rs", "`room`"),
    ("src/store/ingest/unzstd.rs", "`room`"),
]

PATTERNS = [(re.compile(habit, re.I), advice) for habit, advice in HABITS.items()]
IN_MESSAGES = PATTERNS + [(re.compile(habit, re.I), advice) for habit, advice in MESSAGE_HABITS.items()]
# Comments, raw strings, strings, characters, and everything else.
TOKEN = re.compile(
    r"""//[^\n]*|/\*.*?\*/|b?r(\#*)".*?"\1|b?"(?:\\.|[^"\\])*"|b?'(?:\\(?:x[0-9a-fA-F]{2}|u\{[^}]*\}|.)|[^\\'])'|'[a-z_]\w*|\w+|.""",
    re.S,
)
READ = ("*.md", "*.rs", "*.py", "*.sh", "quickstart", "install", "run-tests", "images/*/build")


def prose(path):
    """Line number and text of what people read: all of a Markdown file or a script, the comments of a source file."""
    for number, line in enumerate(path.read_text().splitlines(), 1):
        if path.suffix != ".rs":
            yield number, line
        elif comment := re.search(r"(?:^|\s)//[/!]?\s(.*)", line):
            yield number, comment.group(1)


def messages(path):
    """Line number and text of the string literals outside of tests that are sentences or parts of them."""
    if path.suffix != ".rs" or path.parts[0] != "src" or re.search(r"tests?(ing)?\.rs$", path.name) or "tests" in path.parts:
        return
    text = path.read_text()
    if tests := re.search(r"#\[cfg\(test\)\]\s*(?:pub(?:\([a-z]+\))? )?mod \w+ \{", text):
        text = text[: tests.start()]
    for token in TOKEN.finditer(text):
        literal = re.sub(r"\\\n\s*", "", token.group())
        if '"' in literal[:3] and re.search(r"[a-z]{2} [a-z`]", literal) and not token.group().startswith("/"):
            yield text.count("\n", 0, token.start()) + 1, literal.strip('"')


def allowed(name, text):
    return any(name == file and part in text for file, part in ALLOWED)


problems = []
files = subprocess.run(["git", "ls-files", *READ], capture_output=True, text=True, check=True).stdout.split()
for name in files:
    # This file lists the habits.
    if name == "tests/wording.py":
        continue
    path = pathlib.Path(name)
    for texts, patterns in ((prose(path), PATTERNS), (messages(path), IN_MESSAGES)):
        for number, text in texts:
            for pattern, advice in patterns:
                if (found := pattern.search(text)) and not allowed(name, text):
                    problems.append(f"{name}:{number}: `{found.group()}`: {advice}")
print("\n".join(problems) or f"{len(files)} files keep to the wording")
sys.exit(bool(problems))
