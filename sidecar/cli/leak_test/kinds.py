"""Ways out by other kinds of sockets, and by other ways to call the kernel."""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
import platform
import pty
import signal
import socket
import struct
import termios
from fcntl import ioctl

from sidecar.cli.leak_test.attempts import Attempt, Expected, NotHereError, Outside, call, say

__all__ = ["ATTEMPTS"]

_COMMON = (socket.AF_UNIX, socket.AF_INET, socket.AF_INET6, socket.AF_NETLINK)
_KINDS = (socket.SOCK_STREAM, socket.SOCK_DGRAM, socket.SOCK_RAW, socket.SOCK_SEQPACKET)
# linux/socket.h: AF_MAX is 46 in Linux 6.18; some room for later ones.
_FAMILIES = range(1, 64)
_AF_VSOCK = 40
# linux/netlink.h
_NETLINK_USERSOCK = 2
# asm/unistd.h: the same numbers on every architecture.
_IO_URING_SETUP, _IO_URING_ENTER, _IO_URING_REGISTER = 425, 426, 427
_IO_URING_PARAMETERS_OCTETS = 120
# asm-generic/ioctls.h
_TIOCSTI = 0x5412
# asm/unistd_32.h, linux/net.h
_I386_SOCKET, _I386_SOCKETCALL, _I386_IO_URING_SETUP = 359, 102, 425
_SYS_SOCKET = 1
_X32 = 0x40000000
_X86_64_SOCKET = 41


def _families(_: Outside) -> str:
    made = []
    for family in _FAMILIES:
        if family in _COMMON or family == _AF_VSOCK:
            continue
        for kind in _KINDS:
            try:
                socket.socket(family, kind).close()
            except OSError:
                continue
            made.append(family)
            break
    if made:
        return f"made sockets of families {', '.join(map(str, made))}"
    count = len(_FAMILIES) - len(_COMMON) - 1
    raise OSError(errno.EAFNOSUPPORT, f"all {count} of them")


def _vsock(_: Outside) -> str:
    # Not connected: the hypervisor would hear of it.
    socket.socket(_AF_VSOCK, socket.SOCK_STREAM).close()
    return "made a socket"


def _io_uring(_: Outside) -> str:
    parameters = ctypes.create_string_buffer(_IO_URING_PARAMETERS_OCTETS)
    descriptor = call(_IO_URING_SETUP, 8, ctypes.addressof(parameters))
    os.close(descriptor)
    return "made a ring, whose requests no filter sees"


def _machine_code(code: bytes) -> int:
    """Have the processor do something; it returns what the kernel said."""
    if platform.machine() != "x86_64":
        raise NotHereError("x86_64 only")
    memory = mmap.mmap(-1, mmap.PAGESIZE, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
    memory.write(code)
    address = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    result: int = ctypes.CFUNCTYPE(ctypes.c_long)(address)()
    return ctypes.c_int32(result & 0xFFFFFFFF).value


def _judged(result: int) -> str:
    if result < 0:
        raise OSError(-result, os.strerror(-result))
    return f"the kernel answered {result}"


def _int80(number: int, first: int, second: int, third: int = 0) -> str:
    """Call as 32-bit programs do: mov eax, ebx, ecx, edx; int 0x80; ret."""
    registers = struct.pack("<BiBiBiBi", 0xB8, number, 0xBB, first, 0xB9, second, 0xBA, third)
    # rbx is the caller's: push and pop.
    return _judged(_machine_code(b"\x53" + registers + b"\xcd\x80\x5b\xc3"))


def _call_32_bit(_: Outside) -> str:
    return _int80(_I386_SOCKET, socket.AF_PACKET, socket.SOCK_RAW)


def _socketcall(_: Outside) -> str:
    # Its arguments lie in memory that 32 bits can point to (MAP_32BIT).
    libc = ctypes.CDLL(None, use_errno=True)
    libc.mmap.restype = ctypes.c_void_p
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | 0x40
    address = libc.mmap(None, mmap.PAGESIZE, mmap.PROT_READ | mmap.PROT_WRITE, flags, -1, 0)
    ctypes.memmove(address, struct.pack("=3i", socket.AF_PACKET, socket.SOCK_RAW, 0), 12)
    return _int80(_I386_SOCKETCALL, _SYS_SOCKET, address)


def _io_uring_32_bit(_: Outside) -> str:
    return _int80(_I386_IO_URING_SETUP, 8, 0)


def _x32(_: Outside) -> str:
    """Call as x32 programs do: mov eax; mov edi, esi, edx; syscall; ret."""
    number = _X32 | _X86_64_SOCKET
    registers = struct.pack(
        "<BiBiBiBi", 0xB8, number, 0xBF, socket.AF_PACKET, 0xBE, socket.SOCK_RAW, 0xBA, 0
    )
    return _judged(_machine_code(registers + b"\x0f\x05\xc3"))


def _terminal_input(_: Outside) -> str:
    master, slave = pty.openpty()
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    os.setsid()
    ioctl(slave, termios.TIOCSCTTY, 0)
    try:
        ioctl(slave, _TIOCSTI, b"x")
    finally:
        os.close(master)
        os.close(slave)
    return "put a letter into a terminal's input"


def _abstract(outside: Outside) -> str:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
        sock.connect(f"\0{outside.abstract}")
        sock.sendall(say(outside))
    return "connected"


def _abstract_datagram(outside: Outside) -> str:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.sendto(say(outside), f"\0{outside.abstract}-datagram")
    return "sent"


def _netlink(outside: Outside) -> str:
    with socket.socket(socket.AF_NETLINK, socket.SOCK_DGRAM, _NETLINK_USERSOCK) as sock:
        sock.sendto(say(outside), (outside.netlink, 0))
    return "sent"


def _path(outside: Outside) -> str:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
        sock.connect(outside.path)
        sock.sendall(say(outside))
    return "connected"


ATTEMPTS = (
    Attempt("families", "sockets of all other families", _families, Expected.REFUSED),
    Attempt("vsock", "a socket to the hypervisor (vsock)", _vsock, Expected.REFUSED),
    Attempt("io_uring", "sockets by io_uring", _io_uring, Expected.REFUSED),
    Attempt("int80", "a packet socket by a 32-bit call", _call_32_bit, Expected.REFUSED),
    Attempt("socketcall", "a packet socket by socketcall", _socketcall, Expected.REFUSED),
    Attempt("int80_io_uring", "io_uring by a 32-bit call", _io_uring_32_bit, Expected.REFUSED),
    Attempt("x32", "a packet socket by an x32 call", _x32, Expected.REFUSED),
    Attempt("terminal", "words into a terminal's input", _terminal_input, Expected.REFUSED),
    Attempt("abstract", "an abstract unix socket outside", _abstract),
    Attempt("abstract_datagram", "the same, with datagrams", _abstract_datagram),
    Attempt("netlink", "a netlink socket of a program outside", _netlink),
    Attempt("path", "a unix socket by its path", _path, Expected.UNPROTECTED),
)
