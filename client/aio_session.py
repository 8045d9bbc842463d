"""A session over an asyncio gRPC stream."""

from __future__ import annotations

from typing import Any

from .aio_conversation import AsyncConversation
from .exchange import CHUNK, EITHER, STEP, SessionExchange
from .signature import OutputMode


class AsyncSession(AsyncConversation[SessionExchange]):
    """One live sequence on one model, on asyncio; use what `AsyncClient.session` gives in an `async with`.

    Inputs, outputs and errors are those of the blocking `Session`. One task at a time, except for `cancel`. A task
    that is cancelled while it awaits a reply ends the session: whether its steps were applied is not known.
    """

    async def step(self, x: Any, *, output: OutputMode | None = None) -> Any:
        """Run one timestep: `x[*step_shape]` gives `y[*step_shape]`."""
        return await self._ask(x, STEP, output)

    async def run(self, x: Any, *, output: OutputMode | None = None) -> Any:
        """Run a chunk of timesteps: `x[T, *step_shape]` gives `y[T, *step_shape]`, or `y[1, …]` in mode "last"."""
        return await self._ask(x, CHUNK, output)

    async def send(self, x: Any, *, output: OutputMode | None = None) -> None:
        """Send one timestep or a chunk without awaiting its reply; waits where the server is not reading."""
        request = self._exchange.request(x, EITHER, output)
        await self._guard(self._call.write(request))

    @property
    def step_index(self) -> int:
        """Timesteps applied since the session opened, as of the last reply received."""
        return self._exchange.step_index

    async def _ask(self, x: Any, ranks: tuple[int, ...], output: OutputMode | None) -> Any:
        self._exchange.expect_idle()
        request = self._exchange.request(x, ranks, output)
        await self._guard(self._call.write(request))
        return await self._answer()
