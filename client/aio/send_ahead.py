"""Sends the items of a pipelined asyncio stream in its own task, so that a slow source does not delay outputs."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterable, AsyncIterator, Awaitable, Callable, Iterable
from typing import Any


class SendAhead:
    """Sends every item of `items`, at most `window` ahead of `received`."""

    def __init__(
        self,
        items: AsyncIterable[Any] | Iterable[Any],
        send: Callable[[Any], Awaitable[None]],
        window: int,
    ) -> None:
        self._send = send
        self._room = asyncio.Semaphore(window)
        self._sent = asyncio.Semaphore(0)
        self._sending = self._stopping = False
        self._unanswered = 0
        self._task = asyncio.create_task(self._run(items), name="streamcell-feed")

    async def sent(self) -> bool:
        """Wait for the next item to be sent; False after the last. Raises what the source or `send` raised."""
        await self._sent.acquire()
        if self._unanswered:
            return True
        await self._task
        return False

    def received(self) -> None:
        """Note that the oldest sent item was answered."""
        self._unanswered -= 1
        self._room.release()

    def stop(self) -> None:
        """Stop taking items. A send in progress continues: cancelling it would end the session."""
        self._stopping = True
        if not self._sending:
            self._task.cancel()

    async def stopped(self) -> None:
        """Wait until no send is in progress."""
        await asyncio.wait((self._task,))
        if not self._task.cancelled():
            self._task.exception()  # marks it as retrieved: `sent` has raised it, or the loop was left early

    async def _run(self, items: AsyncIterable[Any] | Iterable[Any]) -> None:
        try:
            async for item in _each(items):
                await self._room.acquire()
                if self._stopping:
                    return
                self._sending = True
                try:
                    await self._send(item)
                finally:
                    self._sending = False
                self._unanswered += 1
                self._sent.release()
                if self._stopping:
                    return
        finally:
            self._sent.release()  # wakes `sent` after the last item


async def _each(items: AsyncIterable[Any] | Iterable[Any]) -> AsyncIterator[Any]:
    if isinstance(items, AsyncIterable):
        async for item in items:
            yield item
    else:
        for item in items:
            yield item
