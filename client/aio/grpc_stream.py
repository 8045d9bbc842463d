"""One asyncio gRPC stream, which is read to its end and reports the server's own status."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from contextlib import suppress
from typing import Any, Protocol

import grpc

from streamcell.client.errors import Explain, StreamCellError, from_status

# grpc.aio's text instead of the server's status if the call ends during a write.
_NO_STATUS = "Internal error from Core"
_STATUS_S = 1.0

_Status = tuple[grpc.StatusCode, str, tuple[tuple[str, str | bytes], ...]]


class AsyncSessionStream(Protocol):
    """What carries a session's messages and replies: a gRPC stream of its own, or a part of a shared one."""

    def write_at_once(self, message: Any) -> bool:
        """Send a message if that needs no waiting; False if `write` must do it."""

    async def write(self, message: Any) -> None:
        """Send a message. Does nothing if the stream has ended: `read` reports that."""

    async def done_writing(self) -> None:
        """Tell the server that no further message follows."""

    async def read(self) -> Any:
        """The next reply; None if the stream has ended and all replies were read."""

    async def error(self) -> StreamCellError | None:
        """The error that it ended with; None if there was none."""

    def cancel(self) -> None:
        """End it, unless it has ended; what waits for it is cancelled."""


class AsyncStream:
    """A call of grpc.aio whose end is found by reading.

    If the call ends during a write, grpc.aio replaces the server's status by one of its own and does not read the
    replies that have arrived. Here such a write does nothing, all replies are read, and the server's status is kept
    when it arrives.
    """

    def __init__(self, call: Any, explain: Explain | None = None) -> None:
        """`explain`: as for `from_rpc`."""
        self._call = call
        self._explain = explain
        self._replies = call.__aiter__()
        self._status: _Status | None = None
        self._connected = False
        call.add_done_callback(self._take_down)

    def write_at_once(self, message: Any) -> bool:
        """False: grpc.aio sends in a coroutine."""
        return False

    async def write(self, message: Any) -> None:
        """Send a message. Does nothing if the call has ended: `read` reports that."""
        with suppress(grpc.aio.AioRpcError, asyncio.InvalidStateError):
            if self._connected:
                await self._call.write(message)
            else:
                await self._write_first(message)

    async def _write_first(self, message: Any) -> None:
        """Send the first message, which waits for a connection: grpc.aio would still wait if the call was cancelled."""
        ended = asyncio.Event()
        self._call.add_done_callback(lambda _: ended.set())
        writing, ending = (asyncio.ensure_future(each) for each in (self._call.write(message), ended.wait()))
        try:
            await asyncio.wait((writing, ending), return_when=asyncio.FIRST_COMPLETED)
        finally:
            ending.cancel()
            if not writing.done():
                writing.cancel()
        if writing.done():
            await writing
            self._connected = True

    async def done_writing(self) -> None:
        """Tell the server that no further message follows."""
        with suppress(grpc.aio.InternalError):  # the call has ended
            await self._call.done_writing()

    async def read(self) -> Any:
        """The next reply; None if the call has ended and all replies were read."""
        try:
            return await anext(self._replies)
        except (StopAsyncIteration, grpc.aio.AioRpcError):
            return None

    async def error(self) -> StreamCellError | None:
        """The error that the call ended with; None if it succeeded. Waits for the end."""
        await self._call.code()
        due_s = asyncio.get_running_loop().time() + _STATUS_S
        while self._status is None and asyncio.get_running_loop().time() < due_s:
            await asyncio.sleep(0.001)  # the server's status arrives after the replies that were just read
            self._take_down(self._call)
        code, text, trailing = self._status or (grpc.StatusCode.INTERNAL, _NO_STATUS, ())
        return None if code is grpc.StatusCode.OK else from_status(code, text, trailing, self._explain)

    def cancel(self) -> None:
        """End the call, unless it has ended."""
        if not self._call.done():
            self._call.cancel()

    def _take_down(self, call: Any) -> None:
        text = _at_once(call.details()) or ""
        if self._status is None and text != _NO_STATUS:
            self._status = (_at_once(call.code()), text, tuple(_at_once(call.trailing_metadata()) or ()))


def _at_once(coroutine: Coroutine[Any, Any, Any]) -> Any:
    """Run a coroutine that does not wait, such as a call's status once it is there, and return its result.

    A task would run too late: a failed write may have replaced the status by then.
    """
    try:
        coroutine.send(None)
    except StopIteration as done:
        return done.value
    coroutine.close()
    raise RuntimeError("the call has no status yet")
