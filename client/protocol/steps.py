"""Iterators over the steps of a generation, blocking and for asyncio."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from typing import Any, Protocol

from .generation import Generated, Generation, Step


class _GenerationProperties:
    """The properties of both iterators."""

    _generation: Generation | None

    @property
    def stop_reason(self) -> str:
        """Why the generation ended: "steps", "class", "request" or "non_finite"; "" while it runs."""
        return "" if self._generation is None else self._generation.stop_reason

    @property
    def seed(self) -> int:
        """The seed of the samples, once the first step has arrived; 0 if nothing is sampled."""
        return 0 if self._generation is None else self._generation.seed


class _Source(Protocol):
    def _generation_reply(self, generation: Generation) -> None: ...
    def _stop_generation(self, generation: Generation) -> None: ...


class Steps(_GenerationProperties, Iterator[Step]):
    """The steps of a generation, as they arrive.

    If the loop is left early, the generation runs until `stop`, `close` or the session's next call stops it. The steps
    until then are applied, and `Session.step_index` counts them.
    """

    _generation: Generation

    def __init__(self, source: Any, start: Callable[[], Generation]) -> None:
        """`start` sends the request; it is called at once."""
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
        """Ask the server to stop; the steps applied until it stops still arrive."""
        self._source._stop_generation(self._generation)

    def close(self) -> None:
        """Stop, and drop the steps that were not taken."""
        self.stop()
        while not self._generation.finished:
            self._source._generation_reply(self._generation)
        self._generation.drop()

    def all(self) -> Generated:
        """Wait for the end; return all steps that were not taken yet, as arrays."""
        return self._generation.whole(list(self))


class _AsyncSource(Protocol):
    async def _generation_reply(self, generation: Generation) -> None: ...
    async def _stop_generation(self, generation: Generation) -> None: ...


class AsyncSteps(_GenerationProperties, AsyncIterator[Step]):
    """Like `Steps`, for `async for`. Nothing is sent before the first step is awaited."""

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
        """Ask the server to stop; the steps applied until it stops still arrive."""
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
        """Wait for the end; return all steps that were not taken yet, as arrays."""
        steps = [step async for step in self]
        assert self._generation is not None
        return self._generation.whole(steps)
