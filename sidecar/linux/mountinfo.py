"""Which mounts there are (proc_pid_mountinfo(5))."""

from __future__ import annotations

import re

__all__ = ["mount_points"]

_ESCAPED = re.compile(rb"\\([0-7]{3})")


def mount_points(below: str) -> list[str]:
    """What is mounted at a path and below it, as the calling process sees it.

    Args:
        below: An absolute path, without symbolic links.

    Returns:
        The paths, each once, whatever is mounted there on top of what; sorted, so
        that one comes before those below it.
    """
    found = set()
    with open("/proc/thread-self/mountinfo", "rb") as file:  # noqa: PTH123 - pathlib takes milliseconds
        for line in file:
            raw = _ESCAPED.sub(lambda match: bytes([int(match[1], 8)]), line.split()[4])
            path = raw.decode("utf-8", "surrogateescape")
            if path == below or path.startswith(f"{below}/"):
                found.add(path)
    return sorted(found)
