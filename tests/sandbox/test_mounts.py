"""What the sandbox sees of the file system, in mount namespaces of the tests' own."""

from __future__ import annotations

import subprocess
import sys

import pytest
from identities import needs_root

PRELUDE = f"""
import errno, os, socket, sys
sys.path[:] = {sys.path!r}
from sidecar.linux import syscalls
from sidecar.sandbox.mounts import (
    mask_name_services, mount_proc, protect_kernel_settings, writable_kernel_settings
)
"""


def play(program: str) -> list[str]:
    """Run Python text in new mount and pid namespaces; what it prints."""
    done = subprocess.run(
        ["unshare", "--mount", "--pid", "--fork", sys.executable, "-c", PRELUDE + program],
        check=True,
        capture_output=True,
        text=True,
        timeout=30,
    )
    return done.stdout.splitlines()


@needs_root
class TestMounts:
    def test_name_services(self) -> None:
        """Services that look up names for others are not there, nor after they start anew."""
        found = play(
            "syscalls.mount('none', '/run', 'tmpfs', 0)\n"
            "names = ('nscd/socket', 'systemd/resolve/io.systemd.Resolve', 'other/socket')\n"
            "servers = {}\n"
            "def listen(name):\n"
            "    os.makedirs(os.path.dirname('/run/' + name), exist_ok=True)\n"
            "    if os.path.exists('/run/' + name):\n"
            "        os.unlink('/run/' + name)\n"
            "    servers[name] = socket.socket(socket.AF_UNIX)\n"
            "    servers[name].bind('/run/' + name)\n"
            "    servers[name].listen()\n"
            "for name in names:\n"
            "    listen(name)\n"
            "with open('/run/systemd/resolve/stub-resolv.conf', 'w') as file:\n"
            "    file.write('nameserver 127.0.0.53')\n"
            "reading, writing = os.pipe()\n"
            "back, forth = os.pipe()\n"
            "if os.fork() == 0:\n"
            "    syscalls.unshare(syscalls.CLONE_NEWNS)\n"
            "    mask_name_services()\n"
            "    for _ in 'ab':\n"
            "        for name in names:\n"
            "            number = socket.socket(socket.AF_UNIX).connect_ex('/run/' + name)\n"
            "            print(errno.errorcode.get(number, 'connected'), flush=True)\n"
            "        os.write(writing, b'!')\n"
            "        os.read(back, 1)\n"
            "    print(open('/run/systemd/resolve/stub-resolv.conf').read(), flush=True)\n"
            "    try:\n"
            "        open('/run/nscd/new', 'w')\n"
            "    except OSError as error:\n"
            "        print(errno.errorcode[error.errno], flush=True)\n"
            "    os._exit(0)\n"
            "os.read(reading, 1)\n"
            "for name in names:\n"
            "    listen(name)\n"
            "os.write(forth, b'!!')\n"
            "os.wait()\n"
        )
        expected = ["ENOENT", "ENOENT", "connected"] * 2
        assert [*expected, "nameserver 127.0.0.53", "EROFS"] == found

    def test_proc(self) -> None:
        """/proc shows the processes of the namespace alone."""
        found = play(
            "mask_name_services()\n"
            "mount_proc()\n"
            "print(*(name for name in os.listdir('/proc') if name.isdigit()))\n"
        )
        assert ["1"] == found

    @pytest.mark.parametrize("mount_setattr", [442, 100_000], ids=["new kernel", "old kernel"])
    def test_kernel_settings(self, mount_setattr: int) -> None:
        """They can be read and not written, whatever the kernel has for that."""
        found = play(
            f"syscalls._SYS_MOUNT_SETATTR = {mount_setattr}\n"
            "mask_name_services()\n"
            "mount_proc()\n"
            "protect_kernel_settings()\n"
            "for path in ('/proc/sys/kernel/core_pattern', '/sys/kernel/uevent_seqnum'):\n"
            "    try:\n"
            "        os.close(os.open(path, os.O_WRONLY))\n"
            "        print('opened')\n"
            "    except OSError as error:\n"
            "        print(errno.errorcode[error.errno])\n"
            "print(open('/proc/sys/kernel/ostype').read())\n"
        )
        assert ["EROFS", "EROFS", "Linux", ""] == found

    @pytest.mark.parametrize("mount_setattr", [442, 100_000], ids=["new kernel", "old kernel"])
    def test_settings_of_their_own(self, mount_setattr: int) -> None:
        """What is mounted below is protected as well; what isn't is found."""
        found = play(
            f"syscalls._SYS_MOUNT_SETATTR = {mount_setattr}\n"
            "mask_name_services()\n"
            "mount_proc()\n"
            "syscalls.mount('none', '/sys/kernel', 'tmpfs', 0)\n"
            "os.mkdir('/sys/kernel/a b')\n"
            "syscalls.mount('none', '/sys/kernel/a b', 'tmpfs', syscalls.MS_NOSUID)\n"
            "print(*sorted({'/sys/kernel', '/sys/kernel/a b'} & {*writable_kernel_settings()}))\n"
            "protect_kernel_settings()\n"
            "print(writable_kernel_settings())\n"
            "try:\n"
            "    open('/sys/kernel/a b/new', 'w')\n"
            "except OSError as error:\n"
            "    print(errno.errorcode[error.errno])\n"
            "syscalls.mount('none', '/sys/kernel', 'tmpfs', 0)\n"
            "print(writable_kernel_settings())\n"
        )
        assert ["/sys/kernel /sys/kernel/a b", "[]", "EROFS", "['/sys/kernel']"] == found
