"""The server's certificate and key: checked before the server starts, and reloaded on request."""

from __future__ import annotations

import ssl
from pathlib import Path

import grpc
import structlog

_log = structlog.get_logger(__name__)


class TlsError(OSError):
    """The certificate or the key cannot be used; the text names the file."""


def read_pair(cert: Path, key: Path) -> tuple[bytes, bytes]:
    """(key, certificate chain), both PEM.

    Raises:
        TlsError: one is not there, not PEM, encrypted, or they do not belong together.
    """
    chain = _read("--tls-cert", cert)
    secret = _read("--tls-key", key)
    if b"-----BEGIN CERTIFICATE-----" not in chain:
        raise TlsError(f"--tls-cert {cert}: no PEM certificate in it")
    if b"PRIVATE KEY-----" not in secret:
        raise TlsError(f"--tls-key {key}: no PEM private key in it")
    if b"ENCRYPTED" in secret:
        raise TlsError(
            f"--tls-key {key}: the key is encrypted; take its passphrase off: openssl pkey -in {key} -out PLAIN"
        )
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(cert, key)
    except ssl.SSLError as error:
        if error.reason == "KEY_VALUES_MISMATCH":
            raise TlsError(f"--tls-key {key}: it is not the key of --tls-cert {cert}") from error
        raise TlsError(
            f"--tls-cert {cert}, --tls-key {key}: cannot be used: {error.reason or error}"
        ) from error
    return secret, chain


def _read(flag: str, path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise TlsError(f"{flag} {path}: {error.strerror}") from error


class Certificates:
    """The certificate for new connections. Live ones keep theirs."""

    def __init__(self, cert: Path, key: Path) -> None:
        """Read both.

        Raises:
            TlsError: they cannot be used.
        """
        self._cert, self._key = cert, key
        self._next: grpc.ServerCertificateConfiguration | None = None
        first = grpc.ssl_server_certificate_configuration([read_pair(cert, key)])
        # grpcio takes None for no change; its types do not say so.
        self.credentials = grpc.dynamic_ssl_server_credentials(first, self._fetch)  # type: ignore[arg-type]

    def _fetch(self) -> grpc.ServerCertificateConfiguration | None:
        """The pair to use from now on, None for no change; grpcio asks at each handshake."""
        following, self._next = self._next, None
        return following

    def reload(self) -> None:
        """Reload both; if they cannot be used, the log says why and the old pair stays."""
        try:
            self._next = grpc.ssl_server_certificate_configuration([read_pair(self._cert, self._key)])
        except TlsError as error:
            _log.error("certificate not reloaded, the previous one stays", error=str(error))
        else:
            _log.info("certificate reloaded", cert=str(self._cert))
