"""Who makes a call. A handler reads it from its call: `calls.Call.caller`, `calls.UnaryCall.caller`."""

from __future__ import annotations

import json
from functools import lru_cache
from typing import NamedTuple


class Identity(NamedTuple):
    """One caller, as the server has identified it; a client cannot change it by its metadata.

    Attributes:
        tenant: whose sessions, sequences and quotas the call uses; empty if the server has no tenants.
        subject: who exactly: a certificate's SAN, a JWT's `sub`, a token's name; empty if nobody was asked.
        operator: whether the caller may see and end what belongs to others, and load and unload models.
    """

    tenant: str
    subject: str
    operator: bool


# The key of the metadata with a client's token.
AUTHORIZATION = "authorization"

# The caller of every call to a server without authentication: whoever reaches it may do everything.
ANYONE = Identity("", "", operator=True)
# The caller of methods that ask nobody, such as health checks.
NOBODY = Identity("", "", operator=False)


@lru_cache(1024)
def pack_identity(identity: Identity) -> bytes:
    """`identity` for another process of this server."""
    return json.dumps(identity).encode()


@lru_cache(1024)
def unpack_identity(packed: bytes) -> Identity:
    """The identity packed by `pack_identity`."""
    tenant, subject, operator = json.loads(packed)
    known = Identity(tenant, subject, operator is True)
    return ANYONE if known == ANYONE else known
