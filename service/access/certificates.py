"""Who calls, by the client certificate that TLS has verified."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from .access_errors import NotAuthenticated
from .identity import Identity
from .names import is_name

# grpc's names of the kinds of subject alternative names, the most telling first.
_KINDS = ("peer_uri", "peer_dns", "peer_email")


def of_certificate(peer: Mapping[str, Iterable[bytes]]) -> Identity:
    """The identity in a verified certificate: its first URI, else its first DNS name, else its first e-mail address.

    Its common name does not count (RFC 9525).

    Raises:
        NotAuthenticated: it has none of them.
    """
    for kind in _KINDS:
        for name in peer.get(kind, ()):
            subject = name.decode(errors="replace")
            if is_name(subject):
                return Identity("", subject, operator=False)
    raise NotAuthenticated(
        "the client certificate names nobody: it needs a subject alternative name, a URI, DNS name or e-mail"
    )
