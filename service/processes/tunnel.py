"""The message format of calls that a front end passes on, unparsed, to the engine process.

`processes/frontend/tunnel_calls.py` is the front end's side, `processes/engine/tunnel_calls.py` and
`processes/engine/tunnel_lane.py` the engine process's.
"""

from __future__ import annotations

from collections.abc import Sequence

import grpc

from streamcell.service.transport.calls import Metadata, Trailing

from .pipe import pack, unpack

# Kinds of messages in a pipe. The `number` of these is the call's. To the engine process:
BEGIN, REQUEST, MESSAGE, HALF_CLOSE, GONE, READ = range(10, 16)
BEGIN_AGAIN = 16  # as BEGIN, of a call that an earlier engine process has had
# From it:
REPLY, REPLY_ON, STATUS, ANSWER, ACCEPTED, SKIP = range(20, 26)
# The `number` of all others is no call's. Metrics that only the front end knows: its lane; and counts, in `number`, of
# ended sessions, errors sent to clients, and failed requests.
LANE, ENDED, ERROR, FAILED = range(30, 34)
LINES_LOST = 35  # `number` log lines were not written
SERVED = 34  # the named model became available (number 1) or unavailable (0)
STALLED = 36  # in both directions: the named thread makes no progress (number 1), or does again (0)
# The engine process asks, and the front end answers once it has passed on all that its sockets held.
READ_ALL, ALL_READ = 37, 38
PAUSED = 29  # the clients of `number` streams, which a front end has kept open, went on after a pause
IN_FLIGHT = 39  # a front end's bytes of clients in memory and its connections held back, 8 bytes each

WINDOW = 8  # maximum messages of a call that its handler has not taken yet
ROOM = 32  # maximum replies of a call that its client has not read yet

_CODES = {code.value[0]: code for code in grpc.StatusCode}


def pack_pairs(pairs: Metadata) -> list[bytes]:
    """Metadata as byte strings."""
    return [
        part if isinstance(part, bytes) else part.encode() for pair in pairs for part in (pair[0], pair[1])
    ]


def unpack_pairs(parts: Sequence[bytes]) -> Metadata:
    """The metadata packed by `pack_pairs`; a value is text unless its key ends in -bin."""
    pairs = zip(parts[::2], parts[1::2], strict=True)
    return tuple((key.decode(), value if key.endswith(b"-bin") else value.decode()) for key, value in pairs)


def pack_status(code: grpc.StatusCode, details: str, trailing: Trailing) -> bytes:
    """A call's status as bytes."""
    return pack(code.value[0].to_bytes(4, "little"), details.encode(), *pack_pairs(trailing))


def unpack_status(body: bytes) -> tuple[grpc.StatusCode, str, Trailing]:
    """The status packed by `pack_status`."""
    code, details, *rest = unpack(body)
    return _CODES[int.from_bytes(code, "little")], details.decode(), unpack_pairs(rest)
