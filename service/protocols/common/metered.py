"""Counts the bytes of a tenant's messages while they are unanswered, around its calls; other calls do not change.

A stream is not read while its tenant is over `max_bytes_in_flight`: each of its streams may have one message more. A
unary call cannot wait, and is refused. A stream on which a generation waits for its client is read on: what lets the
generation go on may stand behind messages that wait for it.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from contextlib import suppress

import grpc

from streamcell.service.access.bytes_in_flight import BytesInFlight
from streamcell.service.access.grant import Grant
from streamcell.service.transport.calls import Call, StreamHandler, Trailing, UnaryCall
from streamcell.service.transport.passed_call import PassedCall


def metered(call: Call, grant: Grant | None, make: Callable[[Call], StreamHandler]) -> StreamHandler:
    """The handler that `make` makes for a stream of the tenant, metered if its bytes are bounded."""
    if grant is None or not grant.in_flight.limited:
        return make(call)
    wrapped = _MeteredCall(call, grant.in_flight)
    return _MeteredHandler(make(wrapped), wrapped)


def metered_once(
    call: UnaryCall, data: bytes, grant: Grant | None, answer: Callable[[UnaryCall], None]
) -> None:
    """Have `answer` answer a unary call of the tenant with the request `data`, metered if its bytes are bounded.

    Raises:
        QuotaExceeded: the tenant has too many bytes unanswered.
    """
    if grant is None or not grant.in_flight.limited:
        answer(call)
        return
    grant.in_flight.take_or_refuse(len(data), grant.tenant)
    wrapped = _MeteredUnary(call, grant.in_flight, len(data))
    try:
        answer(wrapped)
    except BaseException:
        wrapped.give()
        raise


class _MeteredUnary:
    """A unary call whose request counts until its first end."""

    def __init__(self, call: UnaryCall, meter: BytesInFlight, size: int) -> None:
        self.peer = call.peer
        self.caller = call.caller
        self.metadata = call.metadata
        self.run_after_arrivals = call.run_after_arrivals
        self._call = call
        self._meter = meter
        self._left = [size]

    def give(self) -> None:
        """Count the request no more."""
        with suppress(IndexError):
            self._meter.give(self._left.pop())

    def answer(self, data: bytes) -> None:
        self._call.answer(data)
        self.give()

    def fail(self, code: grpc.StatusCode, details: str, trailing: Trailing = ()) -> None:
        self._call.fail(code, details, trailing)
        self.give()

    def on_cancel(self, callback: Callable[[], None]) -> None:
        def gone() -> None:
            self.give()
            callback()

        self._call.on_cancel(gone)


class _MeteredCall(PassedCall):
    """A stream that notes the bytes of each message until its last reply. Messages are answered in order."""

    def __init__(self, call: Call, meter: BytesInFlight) -> None:
        super().__init__(call)
        self._meter = meter
        self._sizes: deque[int] = deque()  # of unanswered messages, oldest first
        self._held_back = False  # by the meter
        self._paused = self._resumed = False  # by the handler; since the current message came
        self._generates = False  # replies to the oldest messages may wait for later ones
        self._over = False
        self._lock = threading.Lock()

    def take(self, data: bytes, handler: StreamHandler) -> bool:
        """Give a message to the handler; True if the stream may be read."""
        with self._lock:
            if not self._over:
                self._meter.take(len(data))
                self._sizes.append(len(data))
            self._resumed = False
        room = handler.on_message(data)
        with self._lock:
            room = room or self._resumed
            self._paused = not room
            asks = not (self._generates or self._held_back or self._over)
            self._held_back |= asks  # before it asks: the meter may wake it at once
        if asks and not self._meter.must_wait(self._go_on):
            with self._lock:
                self._held_back = False
        with self._lock:
            return room and not self._held_back

    def _go_on(self) -> None:
        """The meter lets it be read, and perhaps its handler has room, too."""
        with self._lock:
            self._held_back = False
            resume = not self._paused and not self._over
        if resume:
            self._call.resume()

    def _answered(self, *, newest: bool = False) -> None:
        """The oldest message is answered, or the newest never will be."""
        with self._lock:
            if not self._sizes:
                return
            given = self._sizes.pop() if newest else self._sizes.popleft()
            if not self._sizes:
                self._generates = False
        self._meter.give(given)

    def over(self) -> None:
        """The call has ended: nothing of it counts any more."""
        with self._lock:
            self._over = True
            left = sum(self._sizes)
            self._sizes.clear()
        self._meter.forget(self._go_on)
        self._meter.give(left)

    # As in `calls.Call`

    def hand_to(self, handler: StreamHandler) -> None:
        self._call.hand_to(_MeteredHandler(handler, self))

    def reply(self, data: bytes, *, last: bool = True) -> None:
        self._call.reply(data, last=last)
        if last:
            self._answered()

    def skip(self) -> None:
        self._answered(newest=True)
        self._call.skip()

    def read_on(self) -> None:
        with self._lock:
            self._generates = True
        self._call.read_on()

    def resume(self) -> None:
        with self._lock:
            self._resumed = True
            self._paused = False
            held_back = self._held_back
        if not held_back:
            self._call.resume()


class _MeteredHandler:
    """A handler whose messages are counted."""

    def __init__(self, handler: StreamHandler, call: _MeteredCall) -> None:
        self._handler = handler
        self._call = call
        self.on_half_close = handler.on_half_close
        # Seen by the handler's own wrappers, if there are any.
        self.sends_again = getattr(handler, "sends_again", False)

    def on_message(self, data: bytes) -> bool:
        """Count it, and pass it on."""
        return self._call.take(data, self._handler)

    def on_end(self, cancelled: bool) -> None:
        """Count nothing of it any more, and pass it on."""
        self._call.over()
        self._handler.on_end(cancelled)
