"""Calls that a front end passes on whole: their messages travel as they came, and the engine's process answers them.

What travels is here; `processes/frontend/tunnel_calls.py` is the front end's side,
`processes/engine/tunnel_calls.py` and `processes/engine/tunnel_lane.py` the engine's.
"""

from __future__ import annotations

from collections.abc import Sequence

import grpc

from streamcell.service.transport.calls import Metadata, Trailing

from .pipe import pack, unpack

# Messages of a pipe; their number is the call's. To the engine:
BEGIN, REQUEST, MESSAGE, HALF_CLOSE, GONE, READ = range(10, 16)
# From it:
REPLY, REPLY_ON, STATUS, ANSWER, ACCEPTED, SKIP = range(20, 26)
# Not of a call but figures that only a front end has: its lane; and, as many as the number says, ended sessions, errors
# that clients were sent, and failed requests.
LANE, ENDED, ERROR, FAILED = range(30, 34)
LINES_LOST = 35  # as many log lines as the number says were not written
# Nor is this: the model of that name is served from now on (number 1), or no longer (0).
SERVED = 34
# Nor is this, either way: the sender's thread of that name makes no progress (number 1), or does again (0).
STALLED = 36
# And these: a question of the engine's, and its answer, given once the front end has passed on what had
# come to its sockets.
READ_ALL, ALL_READ = 37, 38
IN_FLIGHT = 39  # a front end's bytes of clients in memory and its connections held back, 8 bytes each

WINDOW = 8  # messages of a call that may be on their way to its handler
ROOM = 32  # replies of a call that may be on their way to its client

_CODES = {code.value[0]: code for code in grpc.StatusCode}


def pack_pairs(pairs: Metadata) -> list[bytes]:
    """Metadata as byte strings."""
    return [
        part if isinstance(part, bytes) else part.encode() for pair in pairs for part in (pair[0], pair[1])
    ]


def unpack_pairs(parts: Sequence[bytes]) -> Metadata:
    """What `pack_pairs` made byte strings of; a value is text unless its key ends in -bin."""
    pairs = zip(parts[::2], parts[1::2], strict=True)
    return tuple((key.decode(), value if key.endswith(b"-bin") else value.decode()) for key, value in pairs)


def pack_status(code: grpc.StatusCode, details: str, trailing: Trailing) -> bytes:
    """The end of a call."""
    return pack(code.value[0].to_bytes(4, "little"), details.encode(), *pack_pairs(trailing))


def unpack_status(body: bytes) -> tuple[grpc.StatusCode, str, Trailing]:
    """What `pack_status` put together."""
    code, details, *rest = unpack(body)
    return _CODES[int.from_bytes(code, "little")], details.decode(), unpack_pairs(rest)
