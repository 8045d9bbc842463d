"""A client's connection to the server's own port."""

from __future__ import annotations

from pathlib import Path

import grpc
from cryptography import x509

from streamcell.service.addresses import joined
from streamcell.service.settings import Settings
from streamcell.service.transport.tls import TlsError, read_pair

_REACHED = {"0.0.0.0": "127.0.0.1", "::": "::1"}
# Its own connection each: bounds of a connection, such as on memory, concern one client.
_OPTIONS = (
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.enable_http_proxy", 0),
    ("grpc.enable_retries", 0),
    ("grpc.max_receive_message_length", -1),  # the server bounds both
    ("grpc.max_send_message_length", -1),
)


class OwnPort:
    """Makes channels. With TLS they trust the server's certificate, and no other."""

    def __init__(self, settings: Settings) -> None:
        """Read the certificate.

        Raises:
            TlsError: it cannot be used, or names nothing.
        """
        self._host = _REACHED.get(settings.host, settings.host)
        self._pair: tuple[Path, Path] | None = None
        self._leaves: tuple[bytes, ...] = ()
        self._name = ""
        self.port = 0
        if settings.tls_cert is not None and settings.tls_key is not None:
            self._pair = settings.tls_cert, settings.tls_key
            self.reload()

    def reload(self) -> None:
        """Read the certificate again. The previous one stays valid: the server may still show it.

        Raises:
            TlsError: it cannot be used.
        """
        if self._pair is None:
            return
        _, chain = read_pair(*self._pair)
        leaf = chain[: chain.index(b"-----END CERTIFICATE-----")] + b"-----END CERTIFICATE-----\n"
        self._name = _name(leaf, self._pair[0])
        self._leaves = (*self._leaves[-1:], leaf)

    def channel(self) -> grpc.aio.Channel:
        """A new connection. Call on the event loop."""
        target = joined(self._host, self.port)
        if self._pair is None:
            return grpc.aio.insecure_channel(target, options=_OPTIONS)
        options = (*_OPTIONS, ("grpc.ssl_target_name_override", self._name))
        return grpc.aio.secure_channel(
            target, grpc.ssl_channel_credentials(b"".join(self._leaves)), options=options
        )


def _name(leaf: bytes, path: Path) -> str:
    """A name that the certificate is for."""
    certificate = x509.load_pem_x509_certificate(leaf)
    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        names = x509.SubjectAlternativeName([])
    for name in names.get_values_for_type(x509.DNSName):
        return name.replace("*", "streamcell")
    for address in names.get_values_for_type(x509.IPAddress):
        return str(address)
    raise TlsError(
        f"--tls-cert {path}: --websocket-port needs a certificate with a subject alternative name, a DNS name or an "
        "address"
    )
