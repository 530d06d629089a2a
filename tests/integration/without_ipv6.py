"""Runs a program that can't have IPv6 sockets, as on a kernel booted with ipv6.disable=1.

Run as ``without_ipv6.py COMMAND…``. A seccomp filter answers socket(AF_INET6, …) with
EAFNOSUPPORT, which is what such a kernel says (and systemd's RestrictAddressFamilies=).
"""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import socket
import struct
import sys

__all__ = ["main"]

# linux/prctl.h, linux/seccomp.h
_PR_SET_NO_NEW_PRIVS = 38
_PR_SET_SECCOMP = 22
_SECCOMP_MODE_FILTER = 2
_RET_ALLOW = 0x7FFF0000
_RET_ERRNO = 0x00050000
# linux/bpf_common.h: load a word at an absolute offset; jump if equal; return
_LOAD, _JUMP_EQUAL, _RETURN = 0x20, 0x15, 0x06
# struct seccomp_data: the call's number, and its first argument's low half (little-endian)
_NUMBER, _FIRST_ARGUMENT = 0, 16
_SOCKET_CALL = {"x86_64": 41, "aarch64": 198}  # asm/unistd.h


class _Program(ctypes.Structure):
    """struct sock_fprog, linux/filter.h."""

    _fields_ = (("length", ctypes.c_ushort), ("filter", ctypes.c_char_p))


def _refuse_ipv6() -> None:
    instructions = [
        (_LOAD, 0, 0, _NUMBER),
        (_JUMP_EQUAL, 0, 3, _SOCKET_CALL[platform.machine()]),
        (_LOAD, 0, 0, _FIRST_ARGUMENT),
        (_JUMP_EQUAL, 0, 1, socket.AF_INET6),
        (_RETURN, 0, 0, _RET_ERRNO | errno.EAFNOSUPPORT),
        (_RETURN, 0, 0, _RET_ALLOW),
    ]
    code = b"".join(struct.pack("HBBI", *instruction) for instruction in instructions)
    program = _Program(len(instructions), code)
    libc = ctypes.CDLL(None, use_errno=True)
    for call in (
        (_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0),
        (_PR_SET_SECCOMP, _SECCOMP_MODE_FILTER, ctypes.byref(program), 0, 0),
    ):
        if libc.prctl(*call):
            code_ = ctypes.get_errno()
            raise OSError(code_, os.strerror(code_))


def main() -> None:
    """Become the program."""
    _refuse_ipv6()
    os.execvp(sys.argv[1], sys.argv[1:])  # noqa: S606 - what it is for


if __name__ == "__main__":
    main()
