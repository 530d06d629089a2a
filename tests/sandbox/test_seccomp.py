"""The filter, run by a small interpreter of classic BPF."""

from __future__ import annotations

import errno
import socket
import struct

import pytest

from sidecar.errors import NamespaceError
from sidecar.sandbox.seccomp import program

ALLOWED = "allowed"

X86_64, I386, AARCH64, ARM = 0xC000003E, 0x40000003, 0xC00000B7, 0x40000028
MACHINE = {X86_64: "x86_64", I386: "x86_64", AARCH64: "aarch64", ARM: "aarch64"}
SOCKET = {X86_64: 41, I386: 359, AARCH64: 198, ARM: 281}
SOCKETPAIR = {X86_64: 53, I386: 360, AARCH64: 199, ARM: 288}
CONNECT = {X86_64: 42, I386: 362, AARCH64: 203, ARM: 283}
KEYS = {
    X86_64: (248, 249, 250),
    I386: (286, 287, 288),
    AARCH64: (217, 218, 219),
    ARM: (309, 310, 311),
}
IOCTL = {X86_64: 16, I386: 54, AARCH64: 29, ARM: 54}
ARCHITECTURES = sorted(MACHINE)


def outcome(architecture: int, number: int, *arguments: int, machine: str | None = None) -> str:
    """What becomes of a system call: "allowed", or the name of an errno."""
    padded = (*arguments, 0, 0, 0, 0, 0, 0)[:6]
    data = struct.pack("=iIQ6Q", number, architecture, 0, *padded)
    steps = list(struct.iter_unpack("=HBBI", program(machine or MACHINE[architecture])))
    accumulator = position = 0
    for _ in steps:
        code, if_true, if_false, value = steps[position]
        position += 1
        if code == 0x20:
            (accumulator,) = struct.unpack_from("=I", data, value)
        elif code == 0x15:
            position += if_true if accumulator == value else if_false
        elif code == 0x45:
            position += if_true if accumulator & value else if_false
        else:
            assert code == 0x06
            if value == 0x7FFF0000:
                return ALLOWED
            assert value & 0xFFFF0000 == 0x00050000
            return errno.errorcode[value & 0xFFFF]
    raise AssertionError("runs off its end")


@pytest.mark.parametrize("architecture", ARCHITECTURES)
class TestEveryWayOfCalling:
    @pytest.mark.parametrize("family", range(50))
    def test_families(self, architecture: int, family: int) -> None:
        """Sockets of four families can be made, single and in pairs."""
        allowed = family in {socket.AF_UNIX, socket.AF_INET, socket.AF_INET6, socket.AF_NETLINK}
        expected = ALLOWED if allowed else "EAFNOSUPPORT"
        assert expected == outcome(architecture, SOCKET[architecture], family, 1)
        assert expected == outcome(architecture, SOCKETPAIR[architecture], family, 1)

    def test_upper_half(self, architecture: int) -> None:
        """The kernel takes a family's lower 32 bits, and so do we."""
        vsock, inet = 40 | 1 << 32, socket.AF_INET | 0xDEAD << 32
        assert "EAFNOSUPPORT" == outcome(architecture, SOCKET[architecture], vsock)
        assert ALLOWED == outcome(architecture, SOCKET[architecture], inet)

    @pytest.mark.parametrize("number", [425, 426, 427])
    def test_io_uring(self, architecture: int, number: int) -> None:
        """io_uring is not there."""
        assert "ENOSYS" == outcome(architecture, number, 8)

    def test_keys(self, architecture: int) -> None:
        """Nor are the keyrings, for whose sake the kernel runs programs outside."""
        for number in KEYS[architecture]:
            assert "ENOSYS" == outcome(architecture, number)

    @pytest.mark.parametrize("request_", [0x5412, 0x541C, 0x5412 | 1 << 32])
    def test_terminal(self, architecture: int, request_: int) -> None:
        """Nothing can be put into a terminal's input."""
        assert "EPERM" == outcome(architecture, IOCTL[architecture], 0, request_)

    def test_other_requests(self, architecture: int) -> None:
        """Other requests of ioctl are let through."""
        assert ALLOWED == outcome(architecture, IOCTL[architecture], 0, 0x5413)

    def test_the_rest(self, architecture: int) -> None:
        """All else is."""
        known = {SOCKET[architecture], SOCKETPAIR[architecture], 425, 426, 427}
        known |= set(KEYS[architecture])
        others = {102} if architecture in {I386, ARM} else set()
        for number in set(range(600)) - known - others:
            assert ALLOWED == outcome(architecture, number, 40, 0)
        assert ALLOWED == outcome(architecture, CONNECT[architecture], 3)


class TestOldWays:
    @pytest.mark.parametrize("architecture", [I386, ARM])
    def test_socketcall(self, architecture: int) -> None:
        """Socketcall makes no sockets; with those that there are it works."""
        made = {1, 8}
        for call in range(1, 21):
            expected = "ENOSYS" if call in made else ALLOWED
            assert expected == outcome(architecture, 102, call)

    def test_x32(self) -> None:
        """x32's numbers, which mean other calls, are none."""
        for number in (41, 0, 512, 425):
            assert "ENOSYS" == outcome(X86_64, 0x40000000 | number, socket.AF_INET)

    @pytest.mark.parametrize("machine", ["x86_64", "aarch64"])
    def test_unknown_architecture(self, machine: str) -> None:
        """A way of calling that the filter doesn't know is refused whole."""
        assert "ENOSYS" == outcome(0xC00000F3, 64, machine=machine)


def test_unknown_machine() -> None:
    """For a machine without a filter there is an error, and no empty filter."""
    with pytest.raises(NamespaceError, match="no system call filter is known for riscv64"):
        program("riscv64")
