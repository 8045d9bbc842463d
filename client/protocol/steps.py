"""Iterators over the steps of a generation, blocking and asyncio."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from typing import Any, Protocol

from .generation import Generated, Generation, Step


class _Told:
    """What both iterators report."""

    _generation: Generation | None

    @property
    def stop_reason(self) -> str:
        """Why it ended: "steps", "class", "request" or "non_finite"; "" while it runs."""
        return "" if self._generation is None else self._generation.stop_reason

    @property
    def seed(self) -> int:
        """What samples are drawn with, once the first step is there; 0 if nothing is sampled."""
        return 0 if self._generation is None else self._generation.seed


class _Source(Protocol):
    def _generation_reply(self, generation: Generation) -> None: ...
    def _stop_generation(self, generation: Generation) -> None: ...


class Steps(_Told, Iterator[Step]):
    """The steps of a generation as they come.

    Leaving the loop early leaves the generation running until `stop`, `close`, or the session's next call, which
    stops it. What was applied until then is applied: `Session.step_index` counts it.
    """

    _generation: Generation

    def __init__(self, source: Any, start: Callable[[], Generation]) -> None:
        """`start` sends the request, at once."""
        self._generation = start()
        self._source: _Source = source

    def __iter__(self) -> Steps:
        return self

    def __next__(self) -> Step:
        while (step := self._generation.next()) is None:
            if self._generation.finished:
                raise StopIteration
            self._source._generation_reply(self._generation)
        return step

    def stop(self) -> None:
        """Ask the server to stop; the steps that it has applied by then are still to come."""
        self._source._stop_generation(self._generation)

    def close(self) -> None:
        """Stop, and drop the steps that were not taken."""
        self.stop()
        while not self._generation.finished:
            self._source._generation_reply(self._generation)
        self._generation.drop()

    def all(self) -> Generated:
        """Every step that was not taken yet, as arrays; waits for the end."""
        return self._generation.whole(list(self))


class _AsyncSource(Protocol):
    async def _generation_reply(self, generation: Generation) -> None: ...
    async def _stop_generation(self, generation: Generation) -> None: ...


class AsyncSteps(_Told, AsyncIterator[Step]):
    """As `Steps`, for `async for`. Nothing is sent before the first step is awaited."""

    def __init__(self, source: Any, start: Callable[[], Awaitable[Generation]]) -> None:
        self._generation = None
        self._source: _AsyncSource = source
        self._start = start

    def __aiter__(self) -> AsyncSteps:
        return self

    async def __anext__(self) -> Step:
        if self._generation is None:
            self._generation = await self._start()
        while (step := self._generation.next()) is None:
            if self._generation.finished:
                raise StopAsyncIteration
            await self._source._generation_reply(self._generation)
        return step

    async def stop(self) -> None:
        """Ask the server to stop; the steps that it has applied by then are still to come."""
        if self._generation is not None:
            await self._source._stop_generation(self._generation)

    async def close(self) -> None:
        """Stop, and drop the steps that were not taken."""
        if self._generation is None:
            return
        await self.stop()
        while not self._generation.finished:
            await self._source._generation_reply(self._generation)
        self._generation.drop()

    async def all(self) -> Generated:
        """Every step that was not taken yet, as arrays; waits for the end."""
        steps = [step async for step in self]
        assert self._generation is not None
        return self._generation.whole(steps)
