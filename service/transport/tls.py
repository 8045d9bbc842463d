"""The server's certificate and key, and the authorities of its clients: checked before the start, and reloaded."""

from __future__ import annotations

import ssl
from pathlib import Path

import grpc


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


def read_authorities(path: Path) -> bytes:
    """The certificates of the authorities that sign clients' certificates, PEM.

    Raises:
        TlsError: they are not there, not PEM, or cannot be used.
    """
    roots = _read("--tls-client-ca", path)
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_verify_locations(cadata=roots.decode("ascii"))
    except (ssl.SSLError, ValueError) as error:
        raise TlsError(f"--tls-client-ca {path}: no PEM certificate in it") from error
    return roots


def _read(flag: str, path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise TlsError(f"{flag} {path}: {error.strerror}") from error


class Certificates:
    """The certificate for new connections, and the authorities of clients. Live ones keep theirs. TLS 1.2 or newer."""

    def __init__(self, cert: Path, key: Path, client_ca: Path | None = None) -> None:
        """Read them. With `client_ca` a client needs a certificate of one of these authorities.

        Raises:
            TlsError: they cannot be used.
        """
        self.paths = (cert, key) if client_ca is None else (cert, key, client_ca)
        self._cert, self._key, self._client_ca = cert, key, client_ca
        self._next: grpc.ServerCertificateConfiguration | None = None
        # grpcio takes None for no change; its types do not say so.
        self.credentials = grpc.dynamic_ssl_server_credentials(
            self._read(),
            self._fetch,  # type: ignore[arg-type]
            require_client_authentication=client_ca is not None,
        )

    def _read(self) -> grpc.ServerCertificateConfiguration:
        roots = None if self._client_ca is None else read_authorities(self._client_ca)
        return grpc.ssl_server_certificate_configuration([read_pair(self._cert, self._key)], roots)

    def _fetch(self) -> grpc.ServerCertificateConfiguration | None:
        """The pair to use from now on, None for no change; grpcio asks at each handshake."""
        following, self._next = self._next, None
        return following

    def reload(self) -> None:
        """Reload them.

        Raises:
            TlsError: they cannot be used; the old ones stay.
        """
        self._next = self._read()
