"""Sessions that share a stream: what one sends, what it gets, and what the stream keeps of it."""

from __future__ import annotations

import weakref
from collections import deque
from collections.abc import Callable, Sequence
from enum import Enum
from typing import Any, TypeAlias

from streamcell.client.errors import StreamCellError
from streamcell.proto import pb

# Bytes of messages, with their replies, that a session may have sent and not read the replies of; one more may begin.
SESSION_AHEAD_BYTES = 1 << 20
# Live sessions of a model from which on others share a stream. Frames run on the server's engine thread, so a lone
# session's answers take 1.5 times as long; the gain begins between three sessions (asyncio) and five (threads).
FEW = 2
PENDING, NEVER_OPEN = -1, -2  # handles
# Why a session is opened on another stream than the one that it asked first.
STREAM_LEFT = "STREAM_LEFT"
OPEN_ELSEWHERE = frozenset({"MODEL_REPLACED", "SESSION_EXPIRED", "SESSION_CLOSED", STREAM_LEFT})


class FewSessions:
    """The sessions that have streams of their own because there are few. Not thread-safe."""

    def __init__(self) -> None:
        self._exchanges: dict[tuple[str, str], list[weakref.ref[Any]]] = {}

    def take(self, key: tuple[str, str], exchange: Any) -> bool:
        """True if the session of `exchange` is one of the few of this model and version; it is one while it lives."""
        live = [
            each
            for each in self._exchanges.get(key, ())
            if (held := each()) is not None and held.error is None
        ]
        self._exchanges[key] = live
        if len(live) >= FEW:
            return False
        live.append(weakref.ref(exchange))
        return True


class Row:
    """A session's message: what `SessionExchange` makes in place of a `pb.StreamRequest`."""

    __slots__ = ("cost", "inputs", "output_mode", "size", "steps")

    def __init__(self, inputs: Sequence[bytes], steps: int, output_mode: pb.OutputMode) -> None:
        self.inputs = inputs
        self.steps = steps
        self.output_mode = output_mode
        self.size = sum(map(len, inputs))
        self.cost = 0  # bytes of it and of its reply


class RowReply:
    """The reply to one message, with the fields of a `pb.StreamResponse` that an exchange reads."""

    __slots__ = ("cost", "outputs", "step_index", "steps")

    def __init__(self, outputs: list[bytes], steps: int, step_index: int, cost: int) -> None:
        self.outputs = outputs
        self.steps = steps
        self.step_index = step_index
        self.cost = cost


class Wish(Enum):
    """What a session asks of its stream, apart from sending a message."""

    JOIN = "join"
    # No further message follows; those that wait are sent first.
    FINISH = "finish"
    # End at once.
    LEAVE = "leave"
    # Look again for something to send.
    LOOK = "look"


Asked: TypeAlias = "tuple[Member | None, Row | Wish]"


class Member:
    """A session on a shared stream.

    Attributes:
        handle: its number in the stream; negative until it is open.
        error: why it has ended, if not by `FINISH`.
        over: True once it has ended.
        read: bytes of messages whose replies its session has read. Only the session's thread changes it.
        stalled: True if it has sent as much as it may until its session reads.
    """

    __slots__ = (
        "deliver", "done", "error", "generates", "handle", "joined", "mode", "over", "queued", "read", "sent",
        "stalled", "waiting",
    )  # fmt: skip

    def __init__(self, mode: pb.OutputMode, generates: bool, deliver: Callable[[Any], None]) -> None:
        """Make a session that is not open yet.

        Args:
            mode: its output mode, `pb.OUTPUT_MODE_…`.
            generates: True if it must not be on a shared stream if its model can generate.
            deliver: called with each reply, and with None once it has ended.
        """
        self.mode = mode or pb.OUTPUT_MODE_ALL
        self.generates = generates
        self.deliver = deliver
        self.handle = PENDING
        self.error: StreamCellError | None = None
        self.over = self.done = self.joined = self.queued = self.stalled = False
        self.waiting: deque[Row] = deque()
        self.sent = self.read = 0

    def end(self, error: StreamCellError | None) -> None:
        """End it and tell its session. Later calls do nothing."""
        if not self.over:
            self.error = error
            self.over = True
            self.deliver(None)

    @property
    def room(self) -> bool:
        """True if another message may be sent before its session reads."""
        return self.sent - self.read <= SESSION_AHEAD_BYTES
