from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from OpenSSL import SSL, crypto

from sidecar.errors import TrustError
from sidecar.names.certificates import trust

if TYPE_CHECKING:
    from names.authority import Authority


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

    def test_platform(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, authority: Authority
    ) -> None:
        """The platform's are those that are there at the start; not who comes to be there later."""
        text = Path(authority.cafile).read_bytes()
        certificate = crypto.load_certificate(crypto.FILETYPE_PEM, text)
        monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "missing"))
        monkeypatch.setenv("SSL_CERT_DIR", str(tmp_path))
        before = trust()
        (tmp_path / f"{certificate.subject_name_hash():08x}.0").write_bytes(text)
        (tmp_path / "README").write_text("no certificate")
        after = trust()
        assert [False, True] == [trusts(each, certificate) for each in (before, after)]


def trusts(context: SSL.Context, certificate: crypto.X509) -> bool:
    """Whether a context's authorities have signed a certificate."""
    store = context.get_cert_store()
    assert store is not None
    try:
        crypto.X509StoreContext(store, certificate).verify_certificate()
    except crypto.X509StoreContextError:
        return False
    return True
