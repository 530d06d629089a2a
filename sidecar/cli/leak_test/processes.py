"""Ways out by other processes, by what they left open, and by what the kernel does for us."""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import stat
import struct
from contextlib import suppress
from fcntl import ioctl
from pathlib import Path

from sidecar.cli.leak_test.attempts import Attempt, Expected, NotHereError, Outside, call, say

__all__ = ["ATTEMPTS", "remember_inherited"]

# linux/ptrace.h
_PTRACE_SEIZE, _PTRACE_DETACH = 0x4206, 17
# asm/unistd.h; the same numbers on every architecture, but for the keyrings'.
_PIDFD_OPEN, _PIDFD_GETFD = 434, 438
_KEYS = {"x86_64": (248, 249, 250), "aarch64": (217, 218, 219)}
_KEYCTL_GET_KEYRING_ID = 0
# linux/if_tun.h
_TUNSETIFF, _IFF_TUN_NO_PI = 0x400454CA, 0x1001
_DEVICES = ("/dev/vhost-vsock", "/dev/vhost-net", "/dev/mem", "/dev/port", "/dev/kmem")
_OWN_DESCRIPTORS = 3

_inherited: list[int] = []


def remember_inherited() -> None:
    """Note which descriptors there are, before there are more."""
    for name in os.listdir("/proc/self/fd"):  # noqa: PTH208 - numbers, no paths
        number = int(name)
        if number >= _OWN_DESCRIPTORS:
            # But for the listing's own, which is gone.
            with suppress(OSError):
                os.fstat(number)
                _inherited.append(number)


def _inherit(outside: Outside) -> str:
    if not _inherited:
        raise OSError(errno.EBADF, "there are none from 3 on")
    kinds = []
    for descriptor in _inherited:
        kinds.append(stat.filemode(os.fstat(descriptor).st_mode)[0])
        with suppress(OSError):
            os.write(descriptor, say(outside))
    return f"found {len(kinds)} of kinds {''.join(kinds)}"


def _targets(outside: Outside) -> list[int]:
    """Processes that are not ours: pid 1 of the sandbox, and two outside."""
    own = {os.getpid(), os.getppid()}
    there = (outside.init, outside.victim, outside.sidecar)
    return [pid for pid in there if pid and pid not in own]


def _trace(outside: Outside) -> str:
    libc = ctypes.CDLL(None, use_errno=True)
    libc.ptrace.argtypes = [ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p]
    problems = set()
    for pid in _targets(outside):
        if libc.ptrace(_PTRACE_SEIZE, pid, None, None) == 0:
            libc.ptrace(_PTRACE_DETACH, pid, None, None)
            return f"traced process {pid}"
        problems.add(os.strerror(ctypes.get_errno()))
    raise OSError(errno.EPERM, ", ".join(sorted(problems)))


def _environment(outside: Outside) -> str:
    problems = set()
    for pid in _targets(outside):
        for name in ("environ", "maps", "auxv"):
            try:
                found = Path(f"/proc/{pid}/{name}").read_bytes()
            except OSError as error:  # noqa: PERF203 - a few
                problems.add(error.strerror or "")
            else:
                if found:
                    return f"read {name} of process {pid}"
    raise OSError(errno.EACCES, ", ".join(sorted(problems)))


def _memory(outside: Outside) -> str:
    problems = set()
    for pid in _targets(outside):
        try:
            os.close(os.open(f"/proc/{pid}/mem", os.O_RDWR | os.O_CLOEXEC))
        except OSError as error:  # noqa: PERF203 - three
            problems.add(error.strerror or "")
        else:
            return f"opened the memory of process {pid}"
    raise OSError(errno.EACCES, ", ".join(sorted(problems)))


def _descriptors(outside: Outside) -> str:
    problems = set()
    for pid in _targets(outside):
        # Their numbers may be listed; what they lead to is what counts.
        for name in ("root", "cwd", "exe", *(f"fd/{number}" for number in range(16))):
            try:
                os.close(os.open(f"/proc/{pid}/{name}", os.O_PATH | os.O_CLOEXEC))
            except OSError as error:  # noqa: PERF203 - a few
                problems.add(error.strerror or "")
            else:
                return f"opened /proc/{pid}/{name}"
    raise OSError(errno.EACCES, ", ".join(sorted(problems)))


def _take_descriptor(outside: Outside) -> str:
    problems = set()
    for pid in _targets(outside):
        try:
            process = call(_PIDFD_OPEN, pid, 0)
        except OSError as error:
            problems.add(error.strerror)
            continue
        for number in range(16):
            try:
                taken = call(_PIDFD_GETFD, process, number, 0)
            except OSError as error:  # noqa: PERF203 - a few
                problems.add(error.strerror)
            else:
                os.close(taken)
                return f"took descriptor {number} of process {pid}"
    raise OSError(errno.EPERM, ", ".join(sorted(filter(None, problems))))


def _signal(outside: Outside) -> str:
    """Whether processes outside may be signalled; nothing is sent."""
    problems = set()
    for pid in _targets(outside):
        if pid == outside.init:
            # The sandbox's own, whom the kernel protects from those inside.
            continue
        try:
            os.kill(pid, 0)
        except OSError as error:
            problems.add(error.strerror)
        else:
            return f"process {pid} may be signalled"
    raise OSError(errno.ESRCH, ", ".join(sorted(filter(None, problems))))


def _keys(_: Outside) -> str:
    if platform.machine() not in _KEYS:
        raise NotHereError("x86_64 and aarch64 only")
    add, request, control = _KEYS[platform.machine()]
    reached = []
    problems = set()
    for name, number, arguments in (
        # Without what would have the kernel run /sbin/request-key, outside.
        ("request_key", request, (b"dns_resolver\0", b"leak.invalid\0", None, 0)),
        ("add_key", add, (b"user\0", None, None, 0, -3)),
        ("keyctl", control, (_KEYCTL_GET_KEYRING_ID, -3, 0)),
    ):
        try:
            call(number, *arguments)
        except OSError as error:
            if error.errno in {errno.ENOSYS, errno.EPERM}:
                problems.add(error.strerror)
                continue
        reached.append(name)
    if reached:
        return f"may be called: {', '.join(reached)}"
    raise OSError(errno.ENOSYS, ", ".join(sorted(filter(None, problems))))


def _tunnel(_: Outside) -> str:
    device = "/dev/net/tun"
    if not os.path.exists(device):  # noqa: PTH110 - light
        raise NotHereError(f"no {device}")
    descriptor = os.open(device, os.O_RDWR | os.O_CLOEXEC)
    try:
        ioctl(descriptor, _TUNSETIFF, struct.pack("16sH22x", b"leak0", _IFF_TUN_NO_PI))
    finally:
        os.close(descriptor)
    return "made an interface"


def _devices(_: Outside) -> str:
    there = [path for path in _DEVICES if os.path.exists(path)]  # noqa: PTH110 - light
    if not there:
        raise NotHereError("no such device")
    problems = set()
    for path in there:
        try:
            os.close(os.open(path, os.O_RDWR | os.O_CLOEXEC))
        except OSError as error:  # noqa: PERF203 - a few
            problems.add(error.strerror or "")
        else:
            return f"opened {path}"
    raise OSError(errno.EACCES, ", ".join(sorted(problems)))


def _privileges(_: Outside) -> str:
    lines = Path("/proc/self/status").read_text(encoding="ascii", errors="replace").splitlines()
    found = dict(line.split(":\t", 1) for line in lines if ":\t" in line)
    kept = [
        name
        for name in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb")
        if int(found.get(name, "1"), 16)
    ]
    if kept or found.get("NoNewPrivs") != "1" or found.get("Seccomp") != "2":
        return f"has {', '.join(kept) or 'no capabilities'}, or may get some"
    raise OSError(errno.EPERM, "no capabilities, no way to any, calls filtered")


ATTEMPTS = (
    Attempt(
        "privileges", "capabilities, or programs that give some", _privileges, Expected.REFUSED
    ),
    Attempt("inherited", "descriptors that were left open", _inherit, Expected.REFUSED, False),
    Attempt("ptrace", "tracing sidecar or others", _trace, Expected.REFUSED, False),
    Attempt("environ", "environments of processes outside", _environment, Expected.REFUSED),
    Attempt("memory", "memory of processes outside", _memory, Expected.REFUSED),
    Attempt("descriptors", "files of processes outside", _descriptors, Expected.REFUSED),
    Attempt("pidfd", "descriptors of processes outside", _take_descriptor, Expected.REFUSED),
    Attempt("signal", "signals to processes outside", _signal, Expected.REFUSED),
    Attempt("keyrings", "the kernel's keyrings, shared with outside", _keys, Expected.REFUSED),
    Attempt("tunnel", "a network interface by /dev/net/tun", _tunnel, Expected.REFUSED, False),
    Attempt("devices", "devices that lead out", _devices, Expected.REFUSED, False),
)
