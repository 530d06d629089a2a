from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sidecar.wire.http1.fields import split_fields, split_fields_alone

token = st.text("!#$%&'*+-.^_`|~09azAZ", min_size=1, max_size=8).map(str.encode)
name = token | st.sampled_from(
    [b"Host", b"Connection", b"Upgrade", b"Content-Length", b"Transfer-Encoding", b"TE"]
)
value = st.binary(max_size=12).map(
    lambda data: bytes(byte for byte in data if byte == 9 or (byte >= 32 and byte != 127))
) | st.sampled_from([b"close", b"upgrade", b"chunked", b"5", b"keep-alive", b"5 ", b"\t"])
sections = st.lists(st.tuples(name, value), max_size=6).map(
    lambda fields: b"".join(b"%b: %b\r\n" % field for field in fields)
)


class TestSplit:
    @given(section=sections)
    def test_two_parsers(self, section: bytes) -> None:
        """What llhttp doesn't refuse it reads as we would."""
        assert split_fields(section) in (None, split_fields_alone(section))

    @pytest.mark.parametrize(
        "section",
        [
            b"",
            b"Connection: close\r\n",
            b"Content-Length: 5\r\n",
            b"Content-Length: 18446744073709551615\r\n",
            b"Transfer-Encoding: chunked\r\n",
            b"Transfer-Encoding: gzip\r\n",
            b"Connection: upgrade\r\nUpgrade: x\r\n",
            b"Connection: upgrade\r\nUpgrade: x\r\nContent-Length: 5\r\n",
            b"Proxy-Connection: close\r\n",
        ],
    )
    def test_again(self, section: bytes) -> None:
        """What one head says has no effect on the next one."""
        for _ in range(3):
            assert split_fields_alone(section) == split_fields(section)
            assert [(b"A", b"b")] == split_fields(b"A: b\r\n")

    @pytest.mark.parametrize(
        "section",
        [
            b"Content-Length: 5\r\nContent-Length: 5\r\n",
            b"Content-Length: x\r\n",
            b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n",
            # Screening lets none of these through.
            b"X : y\r\n",
            b": y\r\n",
            b"X: y\n",
            b"X: y\r\n z\r\n",
            b"X: \x00\r\n",
            b"X: y\r\n\r\nZ: a\r\n",
        ],
    )
    def test_refused(self, section: bytes) -> None:
        """There are two opinions, and nothing is kept of what llhttp refused."""
        for _ in range(3):
            assert split_fields(section) is None
            assert [(b"A", b"b")] == split_fields(b"A: b\r\n")
