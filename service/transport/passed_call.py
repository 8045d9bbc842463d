"""A call that passes everything on to another one: what wraps calls overrides what it watches."""

from __future__ import annotations

from collections.abc import Callable

import grpc

from .calls import Call, Metadata, StreamHandler, Trailing


class PassedCall:
    """A stream that is another one under its own name (a `calls.Call`)."""

    def __init__(self, call: Call) -> None:
        """`call`: the other one."""
        self.peer = call.peer
        self.caller = call.caller
        self.again = call.again
        self._call = call

    @property
    def gone(self) -> str:
        """Why it ended."""
        return self._call.gone

    @gone.setter
    def gone(self, reason: str) -> None:
        self._call.gone = reason

    def metadata(self) -> Metadata:
        """The metadata that the client sent."""
        return self._call.metadata()

    def hand_to(self, handler: StreamHandler) -> None:
        """Let another handler take the later messages and the end."""
        self._call.hand_to(handler)

    def reply(self, data: bytes, *, last: bool = True) -> None:
        """Send one message, in order."""
        self._call.reply(data, last=last)

    def skip(self) -> None:
        """The current message gets no reply."""
        self._call.skip()

    def read_on(self) -> None:
        """Allow reading the next message before the current one is fully answered."""
        self._call.read_on()

    def has_room(self, wake: Callable[[], None]) -> bool:
        """True if a handler that replies unasked may continue; else `wake` is called once it may."""
        return self._call.has_room(wake)

    def resume(self) -> None:
        """Resume reading."""
        self._call.resume()

    def run_after_arrivals(self, callback: Callable[[], None]) -> bool:
        """Call `callback` on the thread that brings messages, once those that have arrived are delivered."""
        return self._call.run_after_arrivals(callback)

    def end(
        self, code: grpc.StatusCode = grpc.StatusCode.OK, details: str = "", trailing: Trailing = ()
    ) -> None:
        """End the call after the replies already given."""
        self._call.end(code, details, trailing)
