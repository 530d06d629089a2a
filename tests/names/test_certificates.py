from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from sidecar.errors import TrustError
from sidecar.names.certificates import trust

if TYPE_CHECKING:
    from pathlib import Path


class TestTrust:
    def test_missing(self, tmp_path: Path) -> None:
        """A file that isn't there is named."""
        path = str(tmp_path / "missing.pem")
        with pytest.raises(TrustError) as caught:
            trust(path)
        assert f"{path}: can't be read: No such file or directory" == str(caught.value)

    @pytest.mark.parametrize("content", [b"", b"nothing\n", b"-----BEGIN CERTIFICATE-----\nx\n"])
    def test_no_certificate(self, tmp_path: Path, content: bytes) -> None:
        """So is one without a certificate."""
        path = tmp_path / "authorities.pem"
        path.write_bytes(content)
        with pytest.raises(TrustError, match="no certificate"):
            trust(str(path))

    def test_directory(self, tmp_path: Path) -> None:
        """So is what is no file."""
        with pytest.raises(TrustError, match="Is a directory"):
            trust(str(tmp_path))
