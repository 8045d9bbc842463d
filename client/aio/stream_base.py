"""The common part of sessions and pools over an asyncio gRPC stream."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterable, AsyncIterator, Awaitable, Callable, Iterable
from contextlib import suppress
from types import TracebackType
from typing import Any, Self, TypeVar

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

from .grpc_stream import AsyncSessionStream
from .send_ahead import SendAhead
from .time_limit import TimeLimit

_T = TypeVar("_T")


class AsyncStreamBase(StreamProperties[ExchangeT]):
    """Sends requests, reads their replies in order, and ends once.

    One task at a time, except for `cancel`. A task that is cancelled while it awaits a reply ends the stream: whether
    its steps were applied is not known.
    """

    def __init__(
        self,
        start: Callable[[Way | None], Awaitable[AsyncSessionStream]],
        exchange: ExchangeT,
        timeout_s: float,
    ) -> None:
        """`start` starts a stream, on the way of a session that can be resumed; nothing is sent before `open`."""
        self._start = start
        self._exchange = exchange
        self._limit = TimeLimit(timeout_s, self._stop_call)
        self._call: AsyncSessionStream | None = None
        self._left: AsyncSessionStream | None = (
            None  # told that the session goes on elsewhere, and ends by itself
        )
        # Held to send a message and, while the session is resumed, to send again what was sent before; to read a reply.
        self._writing, self._reading = asyncio.Lock(), asyncio.Lock()

    async def open(self) -> Self:
        """Open the session; `async with` calls this. Further calls do nothing."""
        retries = self._retries(self._limit.timeout_s)
        while self._call is None and self.alive:
            try:
                reply = await self._begin()
                if self._exchange.resumption is None:
                    self._exchange.accept_opening(reply)
                else:
                    self._exchange.reopened(reply)
                    await self._send_due(self._exchange.resumption)
            except StreamCellError as error:
                pause_s = retries.pause_s(error)
                if pause_s is not None:
                    await self._guard(asyncio.sleep(pause_s))
                    self._stop_call()
                    self._call = None
                    continue
                await self._resume(error)
            if self.alive and self._exchange.joining:
                await self._answer()
        return self

    async def _beside(self, exchange: ExchangeT) -> Self:
        """Another one, of `exchange`, open."""
        return await type(self)(self._start, exchange, self._limit.timeout_s).open()

    async def _begin(self) -> Any:
        """Start a stream with its opening, and return the reply."""
        resumption = self._exchange.resumption
        self._call = await self._start(None if resumption is None else resumption.way)
        if self._exchange.error is not None:  # cancelled in between
            self._stop_call()
            raise self._exchange.error.again()
        await self._guard(self._call.write(self._exchange.opening()))
        return await self._next()

    async def send(self, x: Any, *, output: OutputMode | None = None) -> None:
        """Send without awaiting the reply."""
        raise NotImplementedError

    async def receive(self) -> Any:
        """Wait for the outputs of the oldest unanswered message; they have a leading axis if that message had one."""
        self._exchange.expect_pending()
        return await self._answer()

    async def stream(
        self,
        items: AsyncIterable[Any] | Iterable[Any],
        *,
        window: int = 16,
        output: OutputMode | None = None,
    ) -> AsyncIterator[Any]:
        """Send every item as `send` does, and yield the outputs in order, as soon as they arrive.

        At most `window` messages are unanswered at a time. If the loop is left early, no further items are taken.
        """
        if window < 1:
            raise ValueError(f"window: expected at least 1, got {window}")
        self._exchange.expect_idle()
        most = int(min(window, self._exchange.most_pending))
        ahead = SendAhead(items, lambda item: self.send(item, output=output), most)
        try:
            while await ahead.sent():
                yield await self.receive()
                ahead.received()
        finally:
            ahead.stop()
            await self._drain()
            await ahead.stopped()

    async def close(self) -> None:
        """Tell the server that no further message follows, await and drop the replies that are due, and end.

        Raises:
            StreamCellError: a message sent before was not answered.
        """
        if not self.alive:
            return
        try:
            if self._call is not None:
                resumption = self._exchange.resumption
                if resumption is None:
                    await self._guard(self._call.done_writing())
                await self._drain()
                if resumption is None:
                    await self._wait_end()
                else:
                    with suppress(StreamCellError):  # it does not matter: every message was answered
                        await self._say_goodbye(resumption)
        finally:
            self._exchange.end()
            self.cancel()

    def cancel(self) -> None:
        """End at once; replies to unanswered messages are lost."""
        self._exchange.end(Cancelled("the session was cancelled"))
        self._limit.close()
        self._stop_streams()

    async def __aenter__(self) -> Self:
        return await self.open()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None:
            await self.close()
        else:
            self.cancel()

    async def _drain(self) -> None:
        """Receive and drop the replies that are still due."""
        while self.alive and self._exchange.pending:
            with suppress(RowsRefused):
                await self.receive()

    async def _answer(self, take: Callable[[Any], Any] | None = None) -> Any:
        """Read the next reply and return its result: `take(reply)` if given, else the exchange's `answer`."""
        reply = await self._read()
        try:
            return (take or self._exchange.answer)(reply)
        except ServerFault as error:
            if error.reason != "MALFORMED_REPLY":
                raise
            raise self._end_with(error) from None

    async def _read(self) -> Any:
        resumption = self._exchange.resumption
        if resumption is not None:
            await self._take_until(resumption, lambda: bool(resumption.early))
            return resumption.early.popleft()
        try:
            return await self._next()
        except StreamCellError as error:
            raise self._end_with(error) from None

    async def _take_until(self, resumption: Resumption, done: Callable[[], bool]) -> None:
        """Take replies off the wire until `done`: another task may do it, or wait for it too."""
        while not done():
            await self._guard(self._reading.acquire())
            try:
                if not done():
                    await self._take(resumption)
            finally:
                self._reading.release()

    async def _take(self, resumption: Resumption) -> None:
        """Take the next reply off the wire. If the stream breaks, the session is resumed."""
        try:
            resumption.took(await self._next())
        except StreamCellError as error:
            await self._resume(error)
        else:
            if resumption.is_due:
                async with self._writing:
                    await self._send_due(resumption)

    async def _resume(self, error: StreamCellError) -> None:
        """Go on with another stream after `error`, or raise it: then the session is over."""
        resumption = self._exchange.resumption
        while resumption is not None and self.alive:
            pause_s = resumption.pause_s(error)
            if pause_s is None:
                break
            await self._guard(asyncio.sleep(pause_s))
            await self._leave(error)
            try:
                async with self._writing:
                    self._exchange.reopened(await self._begin())
                    await self._send_due(resumption)
            except StreamCellError as latest:
                error = latest
            else:
                return
        raise self._end_with(error) from None

    async def _leave(self, error: StreamCellError) -> None:
        """Leave the stream that has ended with `error`. If the session has moved, its old server ends the stream."""
        if not isinstance(error, SessionMoved) or self._call is None:
            self._stop_call()
            return
        if self._left is not None:
            self._left.cancel()
        self._left = self._call
        await self._guard(self._left.done_writing())

    async def _say_goodbye(self, resumption: Resumption) -> None:
        """Tell the server that the session ends with this stream, because every reply is here, and wait for its end."""
        while True:
            assert self._call is not None
            await self._guard(self._call.write(resumption.goodbye()))
            await self._guard(self._call.done_writing())
            try:
                while (reply := await self._guard(self._call.read())) is not None:
                    resumption.took(reply)
            except SessionMoved as error:  # it ends where it has gone
                await self._resume(error)
            else:
                return

    async def _send_due(self, resumption: Resumption) -> None:
        assert self._call is not None
        for request in resumption.due():
            await self._guard(self._call.write(request))

    async def _next(self) -> Any:
        """The next reply of this stream. Raises the StreamCellError that it ended with; the session goes on."""
        call = self._call
        assert call is not None
        reply = await self._guard(call.read())
        if reply is None:
            error = await self._guard(call.error())
            raise error or Unavailable(
                "the server ended the stream before it answered", reason="STREAM_ENDED"
            )
        return reply

    async def _write(self, request: Any) -> None:
        resumption = self._exchange.resumption
        if resumption is None:
            assert self._call is not None
            if not self._call.write_at_once(request):
                await self._guard(self._call.write(request))
            return
        while True:
            await self._take_until(resumption, lambda: resumption.has_room(request))
            async with self._writing:
                if resumption.has_room(request):  # no other task has taken it
                    resumption.put(request)
                    await self._send_due(resumption)
                    return

    async def _guard(self, operation: Awaitable[_T]) -> _T:
        """Await an operation of the call within the time limit."""
        self._limit.start()
        try:
            return await operation
        except asyncio.CancelledError:
            if self._limit.passed:
                late, resumption = self._late(self._limit.timeout_s), self._exchange.resumption
                if resumption is None or not resumption.way.is_trial:
                    raise self._end_with(late) from None
                self._limit.passed = False
                raise late from None
            if self._exchange.error is not None:  # cancel(), from another task
                raise self._exchange.error.again() from None
            self._end_with(Cancelled("the session was cancelled with the task that awaited its reply"))
            raise
        finally:
            self._limit.stop()

    async def _wait_end(self) -> None:
        assert self._call is not None
        self._limit.start()
        try:
            await self._call.read()  # an error does not matter: every message was answered
        except asyncio.CancelledError:
            if not self._limit.passed:
                raise
        finally:
            self._limit.stop()

    def _end_with(self, error: StreamCellError) -> StreamCellError:
        first = self._exchange.end(error)
        self._limit.close()
        self._stop_streams()
        return error if first is error else first.again()

    def _stop_call(self) -> None:
        if self._call is not None:
            self._call.cancel()

    def _stop_streams(self) -> None:
        self._stop_call()
        if self._left is not None:
            self._left.cancel()
