"""`sidecar exec` starts fast: what is imported before the fork, and what isn't at all."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest


def modules_after(program: str) -> set[str]:
    """Which modules a fresh Python has after running a program."""
    text = (
        f"import json, sys; sys.path[:] = {sys.path!r}\n{program}\n"
        "print(json.dumps([name for name, module in sys.modules.items() if module]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", text], check=True, capture_output=True, text=True, timeout=60
    )
    return set(json.loads(done.stdout))


class TestImports:
    @pytest.mark.parametrize("module", ["sidecar.cli.exec", "sidecar.sandbox.inside"])
    def test_light(self, module: str) -> None:
        """Before the fork, and in the set-up process, there is no Twisted and little else."""
        found = modules_after(f"import sidecar.cli, {module}")
        heavy = {"twisted", "zope.interface", "asyncio", "dataclasses", "msgspec", "ssl", "tomllib"}
        assert set() == found & heavy
        assert not {name for name in found if name.startswith(("sidecar.policy", "sidecar.config"))}
        # Nor what only some options need.
        assert "sidecar.sandbox.bridges" not in found

    def test_no_tls(self) -> None:
        """The reactor comes without TLS where nobody speaks it."""
        found = modules_after(
            "from sidecar.cli.exec.importing import import_reactor\n"
            "import_reactor(tls=False)\n"
            "import sidecar.cli.exec.serving\n"
        )
        assert "twisted.internet.reactor" in found
        assert set() == found & {"OpenSSL", "cryptography", "service_identity"}

    def test_no_http(self) -> None:
        """What serves HTTP comes when there is some."""
        found = modules_after(
            "from sidecar.cli.exec.importing import import_reactor\n"
            "import_reactor(tls=False)\n"
            "import sidecar.cli.exec.serving\n"
        )
        assert "sidecar.protocols.http.intercepted" in found
        heavy = {"httptools", "sidecar.protocols.http.by_request", "sidecar.wire.http1.messages"}
        assert set() == found & heavy

    def test_http_alone(self) -> None:
        """It comes without passwords, and without TLS."""
        found = modules_after("import sidecar.protocols.http.by_request")
        assert "httptools" in found
        assert set() == found & {"twisted.cred.checkers", "sidecar.protocols.http.auth", "OpenSSL"}

    def test_no_cookies(self) -> None:
        """Nor does it come with what it only names for others: urllib, http.client, email."""
        found = modules_after(
            "from sidecar.cli.exec.importing import import_reactor\n"
            "import_reactor(tls=False)\n"
            "import sidecar.cli.exec.serving\n"
        )
        assert set() == found & {"http.cookiejar", "urllib.request", "http.client", "email.parser"}

    def test_cookies_afterwards(self) -> None:
        """Who uses them has them."""
        modules_after(
            "from sidecar.cli.exec.importing import import_reactor\n"
            "import_reactor(tls=False)\n"
            "from twisted.python.compat import cookielib\n"
            "assert cookielib.CookieJar().clear() is None\n"
            "import http.cookiejar\n"
            "assert cookielib.CookieJar is http.cookiejar.CookieJar\n"
            "import twisted.web.client\n"
        )

    def test_tls_afterwards(self) -> None:
        """PyOpenSSL was hidden for that moment only."""
        found = modules_after(
            "from sidecar.cli.exec.importing import import_reactor\n"
            "import_reactor(tls=False)\n"
            "import OpenSSL.SSL\n"
        )
        assert "OpenSSL.SSL" in found

    def test_tls(self) -> None:
        """Where we speak it, it is there."""
        found = modules_after(
            "from sidecar.cli.exec.importing import import_reactor\n"
            "import_reactor(tls=True)\n"
            "import sidecar.cli.exec.probing\n"
        )
        assert {"twisted.protocols.tls", "OpenSSL.SSL"} <= found

    def test_late(self) -> None:
        """What is imported once the command runs comes from what was read before."""
        found = modules_after(
            "from sidecar.cli.exec.importing import import_reactor\n"
            "import_reactor(tls=False)\n"
            "from sidecar.cli.exec.sealing import seal\n"
            "from sidecar.cli.exec.serving import kept\n"
            "import sidecar.observe.view, sidecar.cli.exec.plan\n"
            "seal(kept())\n"
            "assert not {'rich.table', 'sidecar.protocols.http.by_request'} & set(sys.modules)\n"
            "import sidecar.protocols.http.by_request\n"
            "from sidecar.observe.styles import Look\n"
            "from sidecar.observe.tables import Tables\n"
            "tables = Tables(Look(color=True, arrows=True, columns=lambda: 80))\n"
            "tables.table([('a', 'b')], ('one', 'two'), styles=('red', ''))\n"
            "assert 'one' in tables.text\n"
        )
        assert {"rich.table", "sidecar.protocols.http.by_request"} <= found

    def test_collecting(self) -> None:
        """Garbage is collected again afterwards, whatever happened."""
        found = modules_after(
            "import gc\n"
            "from sidecar.cli.exec.importing import without_collecting\n"
            "try:\n"
            "    with without_collecting():\n"
            "        assert not gc.isenabled()\n"
            "        raise KeyError\n"
            "except KeyError:\n"
            "    assert gc.isenabled()\n"
        )
        assert "gc" in found
