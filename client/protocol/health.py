"""The standard health check, `grpc.health.v1.Health/Check`, without a dependency for its two one-field messages."""

from __future__ import annotations

from streamcell.client.errors import InvalidInput

CHECK = "/grpc.health.v1.Health/Check"

_SERVICE_FIELD = b"\x0a"  # field 1, a string
_SERVING = b"\x08\x01"  # field 1, an enum: SERVING
_LONGEST = 127  # a length of one byte


def check_request(service: str) -> bytes:
    """A serialised `HealthCheckRequest` for `service`; empty for the server as a whole."""
    name = service.encode()
    if len(name) > _LONGEST:
        raise InvalidInput(
            f"expected a name of at most {_LONGEST} bytes, got {len(name)}", reason="WRONG_NAME"
        )
    return _SERVICE_FIELD + bytes((len(name),)) + name if name else b""


def is_serving(reply: bytes) -> bool:
    """True if a serialised `HealthCheckResponse` says SERVING."""
    return reply == _SERVING
