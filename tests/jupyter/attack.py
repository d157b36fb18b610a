"""Tries, inside a container, to leave something in a directory of the host that gives anybody rights there. Every attempt may fail."""

import contextlib
import os
import struct
import sys

directory = sys.argv[1]
os.umask(0)
# Group and owner are tried before the mode, and after it: a chown clears the bits.
IDS = [0, 1, 33, 100, 1000, 1001, 1234, 1235, 1500, 65534]
CAPABILITIES = struct.pack("<IIIII", 0x0200_0001, 0xFFFF_FFFF, 0, 0xFFFF_FFFF, 0)


def attempt(function, *arguments):
    with contextlib.suppress(OSError):
        return function(*arguments)


for mode in (0o4755, 0o2755, 0o6777):
    for number in IDS:
        path = f"{directory}/mode-{mode:o}-{number}"
        attempt(lambda: open(path, "w").close())
        attempt(os.chown, path, number, number)
        attempt(os.chown, path, number, -1)
        attempt(os.chown, path, -1, number)
        attempt(os.chmod, path, mode)
        attempt(os.chmod, os.open(path, os.O_RDONLY) if os.path.exists(path) else -1, mode)
    attempt(os.open, f"{directory}/open-{mode:o}", os.O_CREAT | os.O_WRONLY, mode)
    attempt(os.mknod, f"{directory}/mknod-{mode:o}", 0o100000 | mode)
for kind, name in ((0o60000, "block"), (0o20000, "character")):
    attempt(os.mknod, f"{directory}/{name}", kind | 0o666, os.makedev(1, 3))
attempt(lambda: open(f"{directory}/capable", "w").close())
attempt(os.setxattr, f"{directory}/capable", "security.capability", CAPABILITIES)
# What is there already: a program of the caller's with the bit keeps its content, or loses the bit.
attempt(lambda: open(f"{directory}/existing", "a").write("changed"))
print("done")
