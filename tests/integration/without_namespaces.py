"""Runs a program that can't make namespaces, as in a container with the usual seccomp filter.

Run as ``without_namespaces.py COMMAND…``: unshare(2) is answered with EPERM.
"""

from __future__ import annotations

import errno
import os
import platform
import struct
import sys

from sidecar.linux.syscalls import PR_SET_NO_NEW_PRIVS, prctl, set_seccomp_filter

__all__ = ["main"]

# linux/bpf_common.h, linux/seccomp.h
_LOAD, _JUMP_EQUAL, _RETURN = 0x20, 0x15, 0x06
_ALLOW, _ERRNO = 0x7FFF0000, 0x00050000
# asm/unistd.h
_UNSHARE = {"x86_64": 272, "aarch64": 97}


def main() -> None:
    """Become the program."""
    instructions = [
        (_LOAD, 0, 0, 0),
        (_JUMP_EQUAL, 0, 1, _UNSHARE[platform.machine()]),
        (_RETURN, 0, 0, _ERRNO | errno.EPERM),
        (_RETURN, 0, 0, _ALLOW),
    ]
    prctl(PR_SET_NO_NEW_PRIVS, 1)
    set_seccomp_filter(b"".join(struct.pack("=HBBI", *each) for each in instructions))
    os.execvp(sys.argv[1], sys.argv[1:])  # noqa: S606 - what it is for


if __name__ == "__main__":
    main()
