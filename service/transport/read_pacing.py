"""Paces a stream's reads: with the reply if the client waits for each answer, ahead if it pipelines."""

from __future__ import annotations

from collections import deque

OUTBOX_REPLIES = 32  # unsent replies at which a call is not read
# A handler that replies unasked pauses at the first number of unsent replies and resumes at the second. Both are
# below the bound at which a call is not read, so its client can still send a stop.
PAUSE_REPLIES, WAKE_REPLIES = 16, 4
_PROBE_EVERY = 16  # messages between two looks at whether a waiting client has begun to pipeline
_DRY_SPELLS = 4  # times in a row that nothing of a pipelining client was waiting: it no longer pipelines


class ReadPacing:
    """The reading side of a call: what is in flight, and whether to ask for more. The caller holds the call's lock.

    Which kind a client is shows in whether a message arrives while another is unanswered. For that to be seen,
    every sixteenth message of a waiting client is followed by a read at once.
    """

    __slots__ = (
        "ahead", "delivering", "dry", "half_closed", "looking", "messages", "paused", "reading", "resumed",
        "unanswered",
    )  # fmt: skip

    def __init__(self) -> None:
        self.reading = False  # a receive is in flight
        self.delivering = False  # `on_message` runs: whether there is room will show when it returns
        self.half_closed = False  # no more messages will come
        self.paused = False  # the handler has no room
        self.resumed = False  # it found room before its `on_message` returned
        self.ahead = False  # the client pipelines
        self.looking = False  # the current message is followed by a read at once
        self.messages = self.dry = 0
        self.unanswered: deque[int] = deque()  # bytes of each message that is not answered, oldest first

    def read_on(self) -> None:
        """The current message gets several replies: do not wait for them before reading the next one."""
        self.ahead = True
        self.dry = 0

    def arrived(self, size: int) -> bool:
        """A message of `size` bytes came; whether to read on at once to see if another is waiting."""
        self.messages += 1
        if self.unanswered:
            self.ahead = True
            self.dry = 0
        self.unanswered.append(size)
        self.resumed = False
        self.delivering = True
        self.looking = self.ahead or self.messages % _PROBE_EVERY == 2
        return self.looking

    def answered(self) -> None:
        """Note that a message is being answered."""
        if self.unanswered:
            self.unanswered.popleft()
        if self.ahead and self.reading and not self.unanswered:
            self.dry += 1
            if self.dry >= _DRY_SPELLS:
                self.ahead = False
