"""TLS of the metrics port: its certificate, and the authorities of its clients' certificates."""

from __future__ import annotations

import ssl
from pathlib import Path

from streamcell.service.settings import Settings


class PortTls:
    """The TLS context for new connections. One thread reads the files again while another uses `context`.

    Attributes:
        paths: the files.
    """

    def __init__(self, settings: Settings, pair: tuple[Path, Path]) -> None:
        """Read the certificate chain and the key, `pair`.

        Raises:
            OSError: they cannot be used; the text says why.
        """
        self._pair = pair
        self._client_ca = None if settings.metrics_open else settings.tls_client_ca
        self.paths = pair if self._client_ca is None else (*pair, self._client_ca)
        self._context = self._read()

    def context(self) -> ssl.SSLContext:
        """For new connections."""
        return self._context

    def reload(self) -> None:
        """Read the files again.

        Raises:
            OSError: they cannot be used; what was read before stays.
        """
        self._context = self._read()

    def _read(self) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        certificate, key = self._pair
        try:
            context.load_cert_chain(certificate, key)
        except OSError as error:
            raise OSError(
                f"metrics port: {_complaint(certificate, key, error)}; metrics_tls_cert and metrics_tls_key "
                "name a PEM certificate chain and its private key"
            ) from error
        if self._client_ca is not None:
            context.verify_mode = ssl.CERT_OPTIONAL  # probes have none
            try:
                context.load_verify_locations(self._client_ca)
            except OSError as error:
                raise OSError(
                    f"metrics port: tls_client_ca {self._client_ca} cannot be used: {error}"
                ) from error
        return context


def _complaint(certificate: Path, key: Path, error: OSError) -> str:
    for path in (certificate, key):
        if not path.is_file():
            return f"no file at {path}"
    if isinstance(error, ssl.SSLError) and error.reason == "KEY_VALUES_MISMATCH":
        return f"{key} is not the key of {certificate}"
    return f"{certificate} and {key} cannot be used: {error}"
