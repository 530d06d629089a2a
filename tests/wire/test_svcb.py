from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sidecar.wire.svcb import ECH, IPV4HINT, IPV6HINT, SvcbError, read_svcb

HEAD = b"\x00\x01\x03svc\x07example\x00"


def parameter(key: int, value: bytes) -> bytes:
    return key.to_bytes(2, "big") + len(value).to_bytes(2, "big") + value


ALPN = parameter(1, b"\x02h2")
V4 = parameter(IPV4HINT, bytes([1, 2, 3, 4, 5, 6, 7, 8]))
E = parameter(ECH, b"config")
V6 = parameter(IPV6HINT, bytes(16))
WHOLE = HEAD + ALPN + V4 + E + V6


def test_read() -> None:
    """A record is taken apart, and put together again as it was."""
    found = read_svcb(WHOLE)
    assert (HEAD, [1, 4, 5, 6]) == (found.head, list(found.parameters))
    assert WHOLE == found.encode()
    assert (b"\x00\x00\x00", {}) == (
        read_svcb(b"\x00\x00\x00").head,
        read_svcb(b"\x00\x00\x00").parameters,
    )


def test_without() -> None:
    """Parameters can be left out, or have another value."""
    found = read_svcb(WHOLE)
    less = found.without({ECH, IPV6HINT, 99})
    assert less is not None
    assert HEAD + ALPN + V4 == less.encode()
    assert HEAD + ALPN + parameter(IPV4HINT, b"1234") == less.having(IPV4HINT, b"1234").encode()


def test_mandatory() -> None:
    """A record that can't be used without a parameter isn't used without it."""
    found = read_svcb(HEAD + parameter(0, b"\x00\x01\x00\x05") + ALPN + E)
    assert None is found.without({ECH})
    assert found == found.without({IPV4HINT})


@pytest.mark.parametrize(
    "data",
    [
        *(
            WHOLE[:end]
            for end in range(len(WHOLE))
            if end
            not in {len(HEAD), len(HEAD + ALPN), len(HEAD + ALPN + V4), len(HEAD + ALPN + V4 + E)}
        ),
        HEAD + V4 + ALPN,
        HEAD + ALPN + ALPN,
        HEAD + parameter(IPV4HINT, b""),
        HEAD + parameter(IPV4HINT, b"123"),
        HEAD + parameter(IPV6HINT, bytes(17)),
        HEAD + parameter(0, b"\x00"),
        b"\x00\x01\xc0\x0c",
        b"\x00\x01\x40" + b"a" * 64 + b"\x00",
        b"\x00\x01" + b"\x01a" * 200 + b"\x00",
    ],
)
def test_malformed(data: bytes) -> None:
    """What ends too soon, is out of order or has impossible lengths is refused."""
    with pytest.raises(SvcbError):
        read_svcb(data)


@given(st.binary(max_size=200))
def test_any_bytes(data: bytes) -> None:
    """Whatever comes, it is the same again or refused."""
    try:
        found = read_svcb(data)
    except SvcbError:
        return
    assert data == found.encode()
