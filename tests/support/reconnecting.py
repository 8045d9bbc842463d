"""Options of clients whose connections break."""

from __future__ import annotations

from .frontends import APART

# No second's pause if the server is not back yet, or a connection breaks before HTTP/2 has begun.
AT_ONCE = [("grpc.initial_reconnect_backoff_ms", 50), ("grpc.min_reconnect_backoff_ms", 50)]
# The same, on connections that no other client of this process shares.
APART_AT_ONCE = [*APART.items(), *AT_ONCE]
