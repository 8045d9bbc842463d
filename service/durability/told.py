"""Generations in a journal: each one's request, and the replies that its client has not acknowledged.

A session's latest generation has a record: the number of its message, the timesteps applied before it, and its request.
It is stored before the generation's first commit. The number of answered timesteps is not stored: it is the
timesteps of the row that counts, minus those before the generation. So one store still commits a step.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import TypeAlias

import numpy as np

from .layout import PLACES, Array

HOLD = PLACES - 2  # a step may run while its generation comes to wait, and another one is then told

# How far a client is: it has all replies to so many messages, and so many timesteps of the next one, a generation.
Place: TypeAlias = tuple[int, int]


@dataclass(frozen=True)
class ToldReply:
    """A reply to some timesteps of a generation.

    Attributes:
        number: of the generation's message.
        begin: its timesteps that were answered before.
        end: its timesteps that are answered with this reply included.
        data: its bytes.
    """

    number: int
    begin: int
    end: int
    data: bytes


@dataclass(frozen=True)
class Generations:
    """What a journal has of a session's generations.

    Attributes:
        number: of the latest one's message; 0: there was none.
        base: timesteps applied before it.
        request: the message.
        replies: oldest first, perhaps some of earlier generations among them.
    """

    number: int = 0
    base: int = 0
    request: bytes = b""
    replies: tuple[ToldReply, ...] = field(default=(), compare=False)


NO_GENERATIONS = Generations()


class Told:
    """The generations of one session. It has no lock: it is the session's entry's.

    Attributes:
        most: bytes of the largest reply.
    """

    __slots__ = ("_bytes", "_fields", "_next", "_record", "_request", "_waiting", "most")

    def __init__(self, record: Array, request: Array, fields: Array, data: Array) -> None:
        """Take what belongs to one session of a file's arrays.

        Args:
            record: int64[3]: number, timesteps before, bytes of the request.
            request: uint8[bytes].
            fields: int64[places, 4]: number, begin, end and size of each reply.
            data: uint8[bytes], which the places share.
        """
        self.most = len(data) // len(fields)
        self._record, self._request, self._fields = record, request, fields
        self._bytes = data[: self.most * len(fields)].reshape(len(fields), self.most)
        self._next = 0  # the place of the next reply
        self._waiting: deque[Place] = deque()  # for a client that says that it is here, or further

    # What another process has left

    def found(self, number: int, steps: int) -> Generations:
        """What the file has of a session that has applied so many messages and timesteps, without torn parts."""
        latest, base, size = self._record.tolist()
        goes_on = latest == number + 1
        if not (0 < latest <= number + 1 and 0 <= size <= len(self._request)) or (goes_on and base > steps):
            return Generations()
        told = {number + 1: steps - base} if goes_on else {}
        replies = [
            ToldReply(of, begin, end, self._bytes[place, :length].tobytes())
            for place, (of, begin, end, length) in enumerate(self._fields.tolist())
            if 0 < of <= number + 1 and 0 <= begin < end and 0 <= length <= self.most
            if end <= told.get(of, 0 if of > number else end)
        ]
        replies.sort(key=lambda reply: (reply.number, reply.end))
        return Generations(latest, base, self._request[:size].tobytes(), tuple(replies))

    def enter(self, left: Generations) -> None:
        """Begin with what another process has left."""
        self._record[:] = 0
        self._fields[:] = 0
        # Of a generation that has ended, a store has its replies alone.
        if latest := left.number or max((reply.number for reply in left.replies), default=0):
            self.begin(latest, left.base, left.request)
        for reply in left.replies:
            self.tell(reply)

    # A generation's steps

    def begin(self, number: int, base: int, request: bytes) -> None:
        """Note the generation that message `number` asks for, of a session that has applied `base` timesteps."""
        self._waiting.clear()
        self._record[0] = 0  # until it is whole there is none
        self._request[: len(request)] = np.frombuffer(request, np.uint8)
        self._record[1] = base
        self._record[2] = len(request)
        self._record[0] = number

    def tell(self, reply: ToldReply) -> None:
        """Store a reply in place of the oldest. It counts with the commit.

        Raises:
            ValueError: it is too large; what the caller checked before the generation began.
        """
        size = len(reply.data)
        if size > self.most:
            raise ValueError(f"a reply of {size} bytes; {self.most} can be kept")
        place, self._next = self._next, (self._next + 1) % len(self._fields)
        fields = self._fields[place]
        fields[0] = 0  # until it is whole it has no number
        self._bytes[place, :size] = np.frombuffer(reply.data, np.uint8)
        fields[1:] = (reply.begin, reply.end, size)
        fields[0] = reply.number
        self._waiting.append((reply.number - 1, reply.end))

    @property
    def waiting(self) -> int:
        """Replies to the latest generation that its client has not acknowledged."""
        return len(self._waiting)

    def acknowledge(self, place: Place) -> None:
        """The client has the replies up to `place`."""
        while self._waiting and self._waiting[0] <= place:
            self._waiting.popleft()

    def between(self, number: int, received: int, told: int) -> list[bytes] | None:
        """The replies from `received` timesteps of message `number` to `told`; None if one of them is gone."""
        if told <= received:
            return []
        replies = self._of(number, received, told)
        at = received
        for begin, end, _ in replies:
            if begin > at:
                return None
            at = end
        return [data for _, _, data in replies] if at == told else None

    def _of(self, number: int, received: int, told: int) -> Iterable[tuple[int, int, bytes]]:
        return sorted(
            (begin, end, self._bytes[place, :size].tobytes())
            for place, (of, begin, end, size) in enumerate(self._fields.tolist())
            if of == number and received < end <= told
        )
