"""The common part of sessions and pools over a blocking gRPC stream."""

from __future__ import annotations

import math
import threading
import time
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from types import TracebackType
from typing import Any, Self

from streamcell.client.errors import (
    Cancelled,
    RowsRefused,
    ServerFault,
    SessionMoved,
    StreamCellError,
    Unavailable,
)
from streamcell.client.protocol.properties import ExchangeT, StreamProperties
from streamcell.client.protocol.resume import Resumption
from streamcell.client.protocol.signature import OutputMode
from streamcell.client.protocol.way import Way

from .grpc_stream import SessionStream
from .watchdog import Watchdog


class StreamBase(StreamProperties[ExchangeT]):
    """Sends requests, reads their replies in order, and ends once.

    One thread at a time, except for `cancel`. Leaving the `with` block waits for all replies and closes; leaving it
    with an exception cancels.
    """

    def __init__(
        self,
        start: Callable[[Way | None], SessionStream],
        exchange: ExchangeT,
        watchdog: Watchdog,
        timeout_s: float,
        lazy: bool,
    ) -> None:
        """`start` starts a stream, on the way of a session that can be resumed. Blocks until open unless `lazy`."""
        self._start = start
        self._exchange = exchange
        self._watchdog = watchdog
        self._timeout_s = timeout_s
        self._timed_out = False
        self.due_s = math.inf
        self._cancelled = threading.Event() if exchange.resumption is not None else None
        self._left: SessionStream | None = None  # told that the session goes on elsewhere, and ends by itself
        self._begin()
        if math.isfinite(timeout_s):
            watchdog.add(self)
        if not lazy:
            self._ensure_open()

    def _beside(self, exchange: ExchangeT) -> Self:
        """Another one, of `exchange`, open."""
        return type(self)(self._start, exchange, self._watchdog, self._timeout_s, lazy=False)

    def _begin(self) -> None:
        """Start a stream with its opening."""
        resumption = self._exchange.resumption
        self._timed_out = False
        self._stream = self._start(None if resumption is None else resumption.way)
        self._stream.write(self._exchange.opening())
        if resumption is None:
            self._write = self._stream.write  # type: ignore[assignment,method-assign]

    def send(self, x: Any, *, output: OutputMode | None = None) -> None:
        """Send without waiting; `receive` the reply."""
        raise NotImplementedError

    def receive(self) -> Any:
        """Wait for the outputs of the oldest unanswered message; they have a leading axis if that message had one."""
        self._exchange.expect_pending()
        return self._answer()

    def stream(
        self, items: Iterable[Any], *, window: int = 16, output: OutputMode | None = None
    ) -> Iterator[Any]:
        """Send every item as `send` does, and yield the outputs in order.

        At most `window` messages are unanswered at a time, so an item's outputs are yielded after `window - 1` further
        items were taken from `items`, or after its end. An exception of `items`, or an item that does not fit, is
        raised after the outputs of the items before it. Use a window of 1 if `items` is live: if the next item may
        depend on the last output, or may take long to arrive.
        """
        if window < 1:
            raise ValueError(f"window: expected at least 1, got {window}")
        self._exchange.expect_idle()
        most = min(window, self._exchange.most_pending)
        source = iter(items)
        failure: Exception | None = None
        try:
            while True:
                try:
                    self.send(next(source), output=output)
                except StopIteration:
                    break
                except Exception as error:  # of the source or the item: first yield the outputs before it
                    failure = error
                    break
                if self._exchange.pending >= most:
                    yield self.receive()
            while self._exchange.pending:
                yield self.receive()
            if failure is not None:
                raise failure
        finally:  # if the loop was left early: the next call must not read these replies
            self._drain()

    def close(self) -> None:
        """Tell the server that no further message follows, await and drop the replies that are due, and end.

        Raises:
            StreamCellError: a message sent before was not answered.
        """
        if not self.alive:
            return
        resumption = self._exchange.resumption
        if resumption is None:
            self._stream.done_writing()
        try:
            self._ensure_open()
            self._drain()
            if resumption is None:
                self._wait_end()
            else:
                with suppress(StreamCellError):  # it does not matter: every message was answered
                    self._say_goodbye(resumption)
        finally:
            self._exchange.end()
            self.cancel()

    def cancel(self) -> None:
        """End at once; replies to unanswered messages are lost. Any thread may call it."""
        self._exchange.end(Cancelled("the session was cancelled"))
        if self._cancelled is not None:
            self._cancelled.set()
        self._stop_streams()

    def time_out(self) -> None:
        """Cancel the call because a reply took too long. The watchdog calls it."""
        self._timed_out = True
        self._stream.cancel()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None:
            self.close()
        else:
            self.cancel()

    def __del__(self) -> None:
        if hasattr(self, "_stream") and self.alive:
            warnings.warn(
                f"unclosed session {self._exchange.opened.session_id}", ResourceWarning, stacklevel=2
            )
            self.cancel()

    def _drain(self) -> None:
        """Receive and drop the replies that are still due."""
        while self.alive and self._exchange.pending:
            with suppress(RowsRefused):
                self.receive()

    def _answer(self, take: Callable[[Any], Any] | None = None) -> Any:
        """Read the next reply and return its result: `take(reply)` if given, else the exchange's `answer`."""
        reply = self._read()
        try:
            return (take or self._exchange.answer)(reply)
        except ServerFault as error:
            if error.reason != "MALFORMED_REPLY":
                raise
            raise self._end_with(error) from None

    def _opened_exchange(self) -> ExchangeT:
        self._ensure_open()
        return self._exchange

    def _ensure_open(self) -> None:
        if self._exchange.is_open:
            return
        if self._exchange.error is not None:
            raise self._exchange.error.again()
        retries = self._retries(self._timeout_s)
        while True:
            try:
                reply = self._next()
                if self._exchange.resumption is None:
                    self._exchange.accept_opening(reply)
                else:
                    self._exchange.reopened(reply)
                    self._send_due(self._exchange.resumption)
            except StreamCellError as error:
                # What was sent behind the opening is not sent again.
                pause_s = None if self._exchange.pending else retries.pause_s(error)
                if pause_s is None:
                    self._resume(error)
                    break
                time.sleep(pause_s)
                if self._exchange.error is not None:  # cancelled in between
                    raise self._exchange.error.again() from None
                self._stream.cancel()
                self._begin()
            else:
                break
        if self._exchange.joining:
            self._answer()

    def _read(self) -> Any:
        resumption = self._exchange.resumption
        if resumption is not None:
            while not resumption.early:
                self._take(resumption)
            return resumption.early.popleft()
        try:
            return self._next()
        except StreamCellError as error:
            raise self._end_with(error) from None

    def _take(self, resumption: Resumption) -> None:
        """Take the next reply off the wire. If the stream breaks, the session is resumed."""
        try:
            resumption.took(self._next())
        except StreamCellError as error:
            self._resume(error)
        else:
            self._send_due(resumption)

    def _write(self, request: Any) -> None:
        """Send a message of a session that can be resumed, once there is room for it."""
        resumption = self._exchange.resumption
        assert resumption is not None
        while not resumption.has_room(request):
            self._take(resumption)
        resumption.put(request)
        self._send_due(resumption)

    def _send_due(self, resumption: Resumption) -> None:
        for request in resumption.due():
            self._stream.write(request)

    def _resume(self, error: StreamCellError) -> None:
        """Go on with another stream after `error`, or raise it: then the session is over."""
        resumption = self._exchange.resumption
        while resumption is not None and self.alive:
            pause_s = resumption.pause_s(error)
            assert self._cancelled is not None
            if pause_s is None or self._cancelled.wait(pause_s):
                break
            self._leave(error)
            self._begin()
            try:
                self._exchange.reopened(self._next())
            except StreamCellError as latest:
                error = latest
            else:
                self._send_due(resumption)
                return
        raise self._end_with(error) from None

    def _leave(self, error: StreamCellError) -> None:
        """Leave the stream that has ended with `error`. If the session has moved, its old server ends the stream."""
        if not isinstance(error, SessionMoved):
            self._stream.cancel()
            return
        if self._left is not None:
            self._left.cancel()
        self._left = self._stream
        self._left.done_writing()

    def _say_goodbye(self, resumption: Resumption) -> None:
        """Tell the server that the session ends with this stream, because every reply is here, and wait for its end."""
        while True:
            self._stream.write(resumption.goodbye())
            self._stream.done_writing()
            self._watchdog.arm(self, time.monotonic() + self._timeout_s)
            try:
                while (reply := self._stream.read()) is not None:
                    resumption.took(reply)
            except SessionMoved as error:  # it ends where it has gone
                self._resume(error)
            else:
                return
            finally:
                self.due_s = math.inf

    def _next(self) -> Any:
        """The next reply of this stream. Raises the StreamCellError that it ended with; the session goes on."""
        self._watchdog.arm(self, time.monotonic() + self._timeout_s)
        try:
            reply = self._stream.read()
        finally:
            self.due_s = math.inf
        if reply is None:
            raise self._ending()
        return reply

    def _wait_end(self) -> None:
        self._watchdog.arm(self, time.monotonic() + self._timeout_s)
        try:
            self._stream.read()  # an error does not matter: every message was answered
        finally:
            self.due_s = math.inf

    def _ending(self) -> StreamCellError:
        """The error of a stream that has ended."""
        if self._timed_out:
            return self._late(self._timeout_s)
        return self._stream.error() or Unavailable(
            "the server ended the stream before it answered", reason="STREAM_ENDED"
        )

    def _end_with(self, error: StreamCellError) -> StreamCellError:
        first = self._exchange.end(error)
        self._stop_streams()
        return error if first is error else first.again()

    def _stop_streams(self) -> None:
        self._stream.cancel()
        if self._left is not None:
            self._left.cancel()
