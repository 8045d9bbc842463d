"""Ends calls that have begun and do not send a message in time."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from itertools import islice
from typing import TypeAlias

import grpc

from streamcell.service.errors import Metadata, NoMessage, ServiceError, as_status

End: TypeAlias = Callable[[grpc.StatusCode, str, Metadata], None]

_SLICE = 64


class FirstMessages:
    """The calls of one lane that must send a message, the oldest first. Thread-safe.

    Calls of `tick` count the time, not a clock: no time passes while the process is stopped or gets no CPU. A late call
    ends only once all that has arrived has been read.
    """

    def __init__(self) -> None:
        self.after_s = 0.0  # 0: no limit
        self.on_error: Callable[[ServiceError], None] = lambda error: None  # for each error sent to a client
        self._now_s = 0.0
        self._watched: dict[Hashable, tuple[float, End]] = {}

    def watch(self, call: Hashable, end: End) -> None:
        """Wait for a message of `call`, which is read; `end` ends it with a status if none arrives in time."""
        self._watched[call] = (self._now_s, end)

    def unwatch(self, call: Hashable) -> None:
        """Stop waiting: a message of `call` has arrived, or the call is over."""
        self._watched.pop(call, None)

    def tick(self, passed_s: float, all_read: Callable[[], bool] = lambda: True) -> int:
        """Let `passed_s` pass and end the late calls; returns the number of calls looked at.

        `all_read`: waits until the calls have all that has arrived; if it returns False, none ends in this pass.
        """
        self._now_s += passed_s
        looked_at, read = 0, False
        while self.after_s:
            # Copied without running Python, so that no other thread can change the dictionary meanwhile.
            oldest = list(islice(self._watched.items(), _SLICE))
            for call, (since_s, end) in oldest:
                looked_at += 1
                if self._now_s - since_s <= self.after_s:
                    return looked_at
                read = read or all_read()
                if not read:
                    return looked_at
                if self._watched.pop(call, None) is not None:
                    self._end(end)
            if len(oldest) < _SLICE:
                break
        return looked_at

    def _end(self, end: End) -> None:
        error = NoMessage(
            f"no message came for {self.after_s:g} s: a call must send its first message within that time, so open "
            "it when there is something to send, or have the server run with a longer --first-message-s",
            first_message_s=self.after_s,
        )
        self.on_error(error)
        end(*as_status(error))

    def __len__(self) -> int:
        return len(self._watched)
