"""Which system calls the sandboxed programs don't get: those that make other sockets.

A program of classic BPF that the kernel runs at every system call (seccomp(2),
linux/seccomp.h). It refuses

- sockets of every family but unix, inet, inet6 and netlink (packet, vsock, bluetooth,
  alg, xdp, …), with EAFNOSUPPORT, as a kernel without them does;
- io_uring, whose requests no filter sees, with ENOSYS, as an older kernel does;
- the kernel's keyrings, likewise: looking for a key, the kernel runs /sbin/request-key
  outside, which asks the host's DNS for what it was asked (keyutils' key.dns_resolver);
- on 32-bit x86 and ARM, the older ``socketcall`` for making sockets, whose family is
  not in a register;
- x32's way of calling, whose numbers are others;
- putting words into the terminal's input (TIOCSTI, TIOCLINUX), which the shell that
  started us would read.

Everything else is let through: what else may be done is the namespaces' affair.
"""

from __future__ import annotations

import errno
import platform
import socket
import struct

from sidecar.errors import NamespaceError

__all__ = ["program"]

# linux/bpf_common.h: load a word, jump if equal (or all bits set), return.
_LD, _JEQ, _JSET, _RET = 0x20, 0x15, 0x45, 0x06
_STEP = struct.Struct("=HBBI")
# Offsets in struct seccomp_data. Arguments are 64 bits; families and ioctl requests are
# ints, of which the kernel looks at the lower 32, so nor do we at more.
_NUMBER, _ARCHITECTURE, _FIRST_ARGUMENT, _SECOND_ARGUMENT = 0, 4, 16, 24
# linux/seccomp.h
_ALLOW = 0x7FFF0000
_ERRNO = 0x00050000
# asm-generic/ioctls.h
_TIOCSTI, _TIOCLINUX = 0x5412, 0x541C
# linux/net.h: what socketcall is to do.
_SYS_SOCKET, _SYS_SOCKETPAIR = 1, 8
_X32 = 0x40000000
# The same on every architecture: io_uring_setup, io_uring_enter, io_uring_register.
_IO_URING = (425, 426, 427)

_FAMILIES = (socket.AF_UNIX, socket.AF_INET, socket.AF_INET6, socket.AF_NETLINK)

_REFUSE_FAMILY = _ERRNO | errno.EAFNOSUPPORT
_REFUSE_CALL = _ERRNO | errno.ENOSYS
_REFUSE_REQUEST = _ERRNO | errno.EPERM


class _Architecture:
    """The numbers of one way of calling the kernel.

    Args:
        audit: AUDIT_ARCH_… (linux/audit.h).
        sockets: socket and socketpair.
        ioctl: ioctl.
        keys: add_key, request_key and keyctl.
        socketcall: socketcall; None where there is none.
        x32: Whether x32's calls have the same AUDIT_ARCH.
    """

    def __init__(
        self,
        audit: int,
        sockets: tuple[int, int],
        ioctl: int,
        keys: tuple[int, int, int],
        socketcall: int | None = None,
        *,
        x32: bool = False,
    ) -> None:
        self.audit = audit
        self.sockets = sockets
        self.ioctl = ioctl
        self.keys = keys
        self.socketcall = socketcall
        self.x32 = x32


# By machine: its own way of calling, then the 32-bit one that its kernel has as well.
_ARCHITECTURES = {
    "x86_64": (
        _Architecture(0xC000003E, (41, 53), 16, (248, 249, 250), x32=True),
        _Architecture(0x40000003, (359, 360), 54, (286, 287, 288), 102),
    ),
    "aarch64": (
        _Architecture(0xC00000B7, (198, 199), 29, (217, 218, 219)),
        _Architecture(0x40000028, (281, 288), 54, (309, 310, 311), 102),
    ),
}


def program(machine: str | None = None) -> bytes:
    """The filter for a machine.

    Args:
        machine: As uname(1) has it; None for this one.

    Returns:
        Instructions (struct sock_filter), 8 octets each.

    Raises:
        NamespaceError: No filter is known for it; nothing may run without.
    """
    name = machine or platform.machine()
    if name not in _ARCHITECTURES:
        raise NamespaceError(f"no system call filter is known for {name}", "use x86_64 or aarch64")
    blocks = [_block(each) for each in _ARCHITECTURES[name]]
    steps: list[bytes] = [_step(_LD, _ARCHITECTURE)]
    for architecture, block in zip(_ARCHITECTURES[name], blocks, strict=True):
        steps += [_step(_JEQ, architecture.audit, 0, len(block)), *block]
    # A way of calling that was not known when this was written.
    return b"".join([*steps, _step(_RET, _REFUSE_CALL)])


def _block(architecture: _Architecture) -> list[bytes]:
    """What is done with the calls of one architecture; ends in a verdict whatever happens."""
    steps = [_step(_LD, _NUMBER)]
    if architecture.x32:
        steps += [_step(_JSET, _X32, 0, 1), _step(_RET, _REFUSE_CALL)]
    families = _allowed_only(_FIRST_ARGUMENT, tuple(map(int, _FAMILIES)), _REFUSE_FAMILY)
    for number in architecture.sockets:
        steps += [_step(_JEQ, number, 0, len(families)), *families]
    requests = _refused(_SECOND_ARGUMENT, (_TIOCSTI, _TIOCLINUX), _REFUSE_REQUEST)
    steps += [_step(_JEQ, architecture.ioctl, 0, len(requests)), *requests]
    if architecture.socketcall is not None:
        calls = _refused(_FIRST_ARGUMENT, (_SYS_SOCKET, _SYS_SOCKETPAIR), _REFUSE_CALL)
        steps += [_step(_JEQ, architecture.socketcall, 0, len(calls)), *calls]
    for number in (*_IO_URING, *architecture.keys):
        steps += [_step(_JEQ, number, 0, 1), _step(_RET, _REFUSE_CALL)]
    return [*steps, _step(_RET, _ALLOW)]


def _allowed_only(offset: int, values: tuple[int, ...], otherwise: int) -> list[bytes]:
    tests = [_step(_JEQ, value, len(values) - number, 0) for number, value in enumerate(values)]
    return [_step(_LD, offset), *tests, _step(_RET, otherwise), _step(_RET, _ALLOW)]


def _refused(offset: int, values: tuple[int, ...], verdict: int) -> list[bytes]:
    tests = [_step(_JEQ, value, len(values) - number, 0) for number, value in enumerate(values)]
    return [_step(_LD, offset), *tests, _step(_RET, _ALLOW), _step(_RET, verdict)]


def _step(code: int, value: int, if_true: int = 0, if_false: int = 0) -> bytes:
    return _STEP.pack(code, if_true, if_false, value)
