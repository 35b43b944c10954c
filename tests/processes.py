"""What /proc tells about processes below a service."""

from __future__ import annotations

import contextlib
from pathlib import Path


def children_of(pid: int) -> set[int]:
    """The processes below this one, at any depth."""
    parents = {}
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):  # it has ended meanwhile
            parents[int(folder.name)] = int(_stat(int(folder.name))[1])
    found = {pid}
    while more := {child for child, parent in parents.items() if parent in found} - found:
        found |= more
    return found - {pid}


def workers_of(pid: int) -> set[int]:
    """A service's processes that compute: those below the server that they are forked from."""
    servers = [child for child in children_of(pid) if b"forkserver" in Path(f"/proc/{child}/cmdline").read_bytes()]
    return set().union(*(children_of(server) for server in servers))


def is_running(pid: int) -> bool:
    """Whether it is there, and no zombie that waits for init."""
    try:
        return _stat(pid)[0] != "Z"
    except OSError:
        return False


def _stat(pid: int) -> list[str]:
    """State, parent, and so on: what follows the name, which may hold anything."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
