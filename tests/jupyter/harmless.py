"""Checks on the host that a directory holds nothing that attack.py wanted to leave: harmless.py DIRECTORY OWNER:GROUP"""

import os
import stat
import sys

directory, owner = sys.argv[1:]
uid, gid = map(int, owner.split(":"))
wrong, own = [], 0
for name in sorted(os.listdir(directory)):
    path = os.path.join(directory, name)
    meta = os.lstat(path)
    if 0 in (meta.st_uid, meta.st_gid):
        wrong.append(f"{name} belongs to root ({meta.st_uid}:{meta.st_gid})")
    if meta.st_mode & (stat.S_ISUID | stat.S_ISGID):
        wrong.append(f"{name} has the mode {meta.st_mode:o} and belongs to {meta.st_uid}:{meta.st_gid}")
    if stat.S_ISBLK(meta.st_mode) or stat.S_ISCHR(meta.st_mode):
        wrong.append(f"{name} is a device")
    if "security.capability" in os.listxattr(path):
        wrong.append(f"{name} has capabilities")
    own += (meta.st_uid, meta.st_gid) == (uid, gid)
print("; ".join(wrong) or ("harmless" if own else f"there is no file of {owner}"))
