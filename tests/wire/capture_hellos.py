"""What the TLS clients of this machine say first: `python tests/wire/capture_hellos.py`.

Each client is run against a listener on 127.0.0.1 that never answers, and what it sent
is written to hellos/NAME.hex. Names as arguments choose some of them. The expectations
beside each command are what it was told to send, not what was read from its bytes.
"""

from __future__ import annotations

import json
import re
import socket
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

__all__ = ["CLIENTS", "Client", "capture", "load"]

HELLOS = Path(__file__).parent / "hellos"
PATIENCE = 10.0
SILENCE = 0.3
LINE = 96

TLS10, TLS11, TLS12, TLS13 = 0x0301, 0x0302, 0x0303, 0x0304
WEB = ("h2", "http/1.1")
LEGACY = "DEFAULT@SECLEVEL=0"

PYTHON = """
import socket, ssl, sys
context = ssl._create_unverified_context()
name, alpn, version = {name!r}, {alpn!r}, {version!r}
if alpn:
    context.set_alpn_protocols(list(alpn))
if version:
    context.set_ciphers("DEFAULT@SECLEVEL=0")
    context.minimum_version = context.maximum_version = version
connection = socket.create_connection(("127.0.0.1", {{port}}))
context.wrap_socket(connection, server_hostname=name)
"""
PYOPENSSL = """
import socket
from OpenSSL import SSL
connection = SSL.Connection(SSL.Context(SSL.TLS_CLIENT_METHOD), socket.socket())
connection.connect(("127.0.0.1", {port}))
connection.set_tlsext_host_name(b"pq.example.org")
connection.do_handshake()
"""
NODE = """
require("tls").connect({host: "127.0.0.1", port: {port}, servername: "node.example.org",
    ALPNProtocols: ["h2", "http/1.1"]}).on("error", () => {})
"""
JAVA = """
import javax.net.ssl.*;
class Hello {
    public static void main(String[] arguments) throws Exception {
        var factory = (SSLSocketFactory) SSLSocketFactory.getDefault();
        var plain = new java.net.Socket("127.0.0.1", {port});
        var socket = (SSLSocket) factory.createSocket(plain, "java.example.org", {port}, true);
        socket.startHandshake();
    }
}
"""


@dataclass(frozen=True, slots=True)
class Client:
    """A command, and what its hello must say.

    Attributes:
        name: Of the file.
        command: With `{port}` for the port.
        sni, alpn: What it was told to ask for.
        highest: The highest version that it was told to offer.
        only: Whether it was told to offer no other.
        source: What it is given as a file in place of `{file}`, with its suffix.
    """

    name: str
    command: tuple[str, ...]
    sni: str | None
    alpn: tuple[str, ...] = ()
    highest: int = TLS13
    only: bool = False
    source: tuple[str, str] | None = None


def _curl(
    name: str,
    *options: str,
    alpn: tuple[str, ...] = WEB,
    highest: int = TLS13,
    only: bool = False,
) -> Client:
    command = ("curl", "-sk", *options, "--connect-to", "curl.example.org:443:127.0.0.1:{port}")
    url = "https://curl.example.org/"
    return Client(name, (*command, url), "curl.example.org", alpn, highest, only)


def _openssl(
    name: str,
    *options: str,
    sni: str | None = None,
    alpn: tuple[str, ...] = (),
    highest: int = TLS13,
) -> Client:
    named = ("-servername", sni) if sni else ("-noservername",)
    offered = ("-alpn", ",".join(alpn)) if alpn else ()
    legacy = ("-cipher", LEGACY) if highest < TLS13 else ()
    command = ("openssl", "s_client", "-connect", "127.0.0.1:{port}")
    return Client(
        name,
        (*command, *named, *offered, *legacy, *options),
        sni,
        alpn,
        highest,
        only=bool(options),
    )


def _python(
    name: str, sni: str | None, alpn: tuple[str, ...] = (), version: int | None = None
) -> Client:
    script = PYTHON.format(name=sni, alpn=alpn, version=version)
    command = (sys.executable, "-c", script)
    return Client(name, command, sni, alpn, version or TLS13, version is not None)


def _gnutls(name: str, priority: str, *options: str, alpn: tuple[str, ...] = ()) -> Client:
    offered = tuple(f"--alpn={protocol}" for protocol in alpn)
    match = re.search(r"VERS-TLS1\.([0-3])", priority)
    return Client(
        name,
        (
            "gnutls-cli",
            "--insecure",
            f"--priority={priority}",
            "--sni-hostname=gnutls.example.org",
            *offered,
            *options,
            "--port={port}",
            "127.0.0.1",
        ),
        "gnutls.example.org",
        alpn,
        TLS10 + int(match[1]) if match else TLS13,
        match is not None,
    )


CLIENTS = (
    _curl("curl"),
    _curl("curl-http1", "--http1.1", alpn=("http/1.1",)),
    _curl("curl-no-alpn", "--no-alpn", alpn=()),
    _curl("curl-tls10", "--tlsv1.0", "--tls-max", "1.0", "--ciphers", LEGACY, highest=TLS10),
    _curl("curl-tls12", "--tls-max", "1.2", highest=TLS12),
    Client("curl-address", ("curl", "-sk", "https://127.0.0.1:{port}/"), None, WEB),
    Client("wget", ("wget", "-qO-", "--tries=1", "https://localhost:{port}/"), "localhost"),
    Client(
        "wget-tls12",
        ("wget", "-qO-", "--tries=1", "--secure-protocol=TLSv1_2", "https://localhost:{port}/"),
        "localhost",
    ),
    _openssl("openssl", sni="openssl.example.org", alpn=WEB),
    _openssl("openssl-bare"),
    _openssl("openssl-tls10", "-tls1", sni="openssl.example.org", highest=TLS10),
    _openssl("openssl-tls11", "-tls1_1", alpn=("http/1.1",), highest=TLS11),
    _openssl("openssl-tls12", "-tls1_2", sni="openssl.example.org", alpn=WEB, highest=TLS12),
    _openssl("openssl-tls13", "-tls1_3", sni="openssl.example.org"),
    _python("python", "python.example.org", WEB),
    _python("python-tls11", "python.example.org", version=TLS11),
    _python("python-tls12", None, ("imap",), TLS12),
    _gnutls("gnutls", "NORMAL", alpn=WEB),
    _gnutls("gnutls-tls10", "NORMAL:-VERS-ALL:+VERS-TLS1.0:%COMPAT"),
    _gnutls("gnutls-tls11", "NORMAL:-VERS-ALL:+VERS-TLS1.1", alpn=("h2",)),
    _gnutls("gnutls-tls12", "NORMAL:-VERS-ALL:+VERS-TLS1.2"),
    _gnutls("gnutls-tls13", "NORMAL:-VERS-ALL:+VERS-TLS1.3"),
    Client("node", ("node", "-e", NODE), "node.example.org", WEB),
    Client("pyopenssl-mlkem", (sys.executable, "-c", PYOPENSSL), "pq.example.org"),
    Client("java", ("java", "{file}"), "java.example.org", source=(".java", JAVA)),
)


def capture(client: Client, directory: Path) -> bytes:
    """Run a client, and return all that it says to a server that says nothing.

    Args:
        client: Which.
        directory: For its source file.

    Raises:
        OSError: It isn't installed, or did not connect within 10 s.
    """
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(PATIENCE)
        port = str(listener.getsockname()[1])
        file = directory / f"Hello{client.source[0]}" if client.source else directory
        if client.source:
            file.write_text(client.source[1].replace("{port}", port), encoding="ascii")
        command = [
            word.replace("{port}", port).replace("{file}", str(file)) for word in client.command
        ]
        with subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        ) as process:
            try:
                connection, _ = listener.accept()
                with connection:
                    return _read(connection)
            finally:
                process.kill()


def _read(connection: socket.socket) -> bytes:
    connection.settimeout(PATIENCE)
    said = bytearray(connection.recv(65536))
    connection.settimeout(SILENCE)
    try:
        while more := connection.recv(65536):
            said += more
    except TimeoutError:
        pass
    return bytes(said)


def load(name: str) -> bytes:
    """Return what a client once said.

    Args:
        name: The client's.
    """
    return bytes.fromhex((HELLOS / f"{name}.hex").read_text(encoding="ascii"))


def main(names: list[str]) -> None:
    """Capture some clients, or all."""
    import tempfile

    for client in CLIENTS:
        if names and client.name not in names:
            continue
        try:
            with tempfile.TemporaryDirectory() as directory:
                said = capture(client, Path(directory))
        except OSError as error:
            print(f"without {client.name}: {error}")
            continue
        text = said.hex()
        lines = [text[at : at + LINE] for at in range(0, len(text), LINE)]
        (HELLOS / f"{client.name}.hex").write_text("\n".join(lines) + "\n", encoding="ascii")
        print(json.dumps({"client": client.name, "bytes": len(said)}))


if __name__ == "__main__":
    main(sys.argv[1:])
