"""Certificate authorities and certificates, made by openssl as an operator makes them."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import grpc


def _openssl(*arguments: Any) -> None:
    subprocess.run(["openssl", *map(str, arguments)], check=True, capture_output=True)


# A new key, with a request for a certificate of it, or with `-x509` the certificate.
_NEW = ("req", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256")


def self_signed(
    folder: Path, name: str = "localhost", san: str = "DNS:localhost", *, password: str = ""
) -> tuple[Path, Path]:
    """(certificate, key) that no authority has signed; the key can be read with `password`, if there is one."""
    cert, key = folder / f"{name}.pem", folder / f"{name}.key"
    _openssl(
        *_NEW, "-x509", "-days", "2", "-subj", f"/CN={name}", "-addext", f"subjectAltName={san}", "-keyout", key,
        "-out", cert, *(("-passout", f"pass:{password}") if password else ("-nodes",)),
    )  # fmt: skip
    return cert, key


class Authority:
    """An authority with a folder of its own; `cert` is what those trust who trust it."""

    def __init__(self, folder: Path, name: str) -> None:
        self.folder = folder / name
        self.folder.mkdir(parents=True)
        self.cert, self._key = self.folder / "ca.pem", self.folder / "ca.key"
        _openssl(
            *_NEW, "-x509", "-nodes", "-days", "2", "-subj", f"/CN={name}", "-keyout", self._key, "-out", self.cert,
        )  # fmt: skip

    def issue(self, name: str, san: str = "DNS:localhost", *, expired: bool = False) -> tuple[Path, Path]:
        """(certificate, key) with these subject alternative names; with none if `san` is empty."""
        key, request, cert = (self.folder / f"{name}.{end}" for end in ("key", "csr", "pem"))
        extensions = self.folder / f"{name}.ext"
        extensions.write_text(f"subjectAltName={san}\n" if san else "basicConstraints=CA:FALSE\n")
        _openssl(*_NEW, "-nodes", "-subj", f"/CN={name}", "-keyout", key, "-out", request)
        days = ("-days", "-1" if expired else "2")
        _openssl(
            "x509", "-req", "-in", request, "-CA", self.cert, "-CAkey", self._key, "-CAcreateserial",
            "-extfile", extensions, "-out", cert, *days,
        )  # fmt: skip
        return cert, key


def trusting(authority: Authority, pair: tuple[Path, Path] | None = None) -> grpc.ChannelCredentials:
    """Credentials of a client that trusts `authority`, and has `pair` to show."""
    cert, key = pair or (None, None)
    return grpc.ssl_channel_credentials(
        authority.cert.read_bytes(),
        None if key is None else key.read_bytes(),
        None if cert is None else cert.read_bytes(),
    )
