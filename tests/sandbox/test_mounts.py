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
from sidecar.sandbox.mounts import mask_name_services, mount_proc, protect_kernel_settings
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
        """Services that look up names for others are not there; other sockets are."""
        found = play(
            "syscalls.mount('none', '/run', 'tmpfs', 0)\n"
            "for name in ('nscd/socket', 'systemd/resolve/io.systemd.Resolve', 'other/socket'):\n"
            "    os.makedirs(os.path.dirname('/run/' + name), exist_ok=True)\n"
            "    server = socket.socket(socket.AF_UNIX)\n"
            "    server.bind('/run/' + name)\n"
            "    server.listen()\n"
            "    globals()[name] = server\n"
            "mask_name_services()\n"
            "for name in ('nscd/socket', 'systemd/resolve/io.systemd.Resolve', 'other/socket'):\n"
            "    number = socket.socket(socket.AF_UNIX).connect_ex('/run/' + name)\n"
            "    print(errno.errorcode.get(number, 'connected'))\n"
        )
        assert ["ECONNREFUSED", "ECONNREFUSED", "connected"] == found

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
