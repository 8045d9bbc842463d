"""A session over an asyncio gRPC stream."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from streamcell.client.protocol.generation import Feedback, Generation, Hypothesis
from streamcell.client.protocol.session import CHUNK, EITHER, STEP, SessionExchange
from streamcell.client.protocol.signature import OutputMode
from streamcell.client.protocol.steps import AsyncSteps
from streamcell.client.values import GenerationInfo

from .stream_base import AsyncConversation


class AsyncSession(AsyncConversation[SessionExchange]):
    """One live sequence on one model; use what `AsyncClient.session` gives in an `async with`.

    The server keeps its state between steps. Inputs are numpy arrays of the model's dtype, or of one that numpy casts
    to it safely, or Python numbers in nested lists. A model with several inputs takes a dict by name or a tuple in
    order. Outputs are a numpy array, a dict of arrays by name if the model has several, or None in output mode "none".

    An input that does not fit raises InvalidInput before anything is sent and leaves the session as it was. Any
    error that the server sends ends the session: its state is gone and every later call raises that error again.

    One task at a time, except for `cancel`. A task that is cancelled while it awaits a reply ends the session: whether
    its steps were applied is not known.
    """

    async def step(self, x: Any, *, output: OutputMode | None = None) -> Any:
        """Run one timestep: `x[*step_shape]` gives `y[*step_shape]`."""
        return await self._ask(x, STEP, output)

    async def run(self, x: Any, *, output: OutputMode | None = None) -> Any:
        """Run a chunk of timesteps: `x[T, *step_shape]` gives `y[T, *step_shape]`, or `y[1, …]` in mode "last"."""
        return await self._ask(x, CHUNK, output)

    async def send(self, x: Any, *, output: OutputMode | None = None) -> None:
        """Send one timestep or a chunk without awaiting its reply; waits if the server is not reading."""
        # blocking: self._ensure_open()
        await self._settle()
        request = self._exchange.request(x, EITHER, output)
        await self._write(request)

    def generate(
        self,
        steps: int,
        *,
        first: Any = None,
        feedback: Feedback | None = None,
        temperature: float | None = None,
        top_k: int | None = None,
        seed: int | None = None,
        stop: int | Iterable[int] | None = None,
        from_output: bool = False,
        steps_per_reply: int = 1,
        output: OutputMode | None = None,
    ) -> AsyncSteps:
        """Let the server run up to `steps` steps by itself: each output becomes the next step's input.

        The first input is `first` (`[*step_shape]`, or a token as an int), else the model's start token, else what the
        session's last output gives; with `from_output` always the latter. `step_index` counts generated steps like all
        others. The last output's choice is returned (`Step.chosen`) and not fed, so a further `generate` with
        `from_output` and the same settings continues as if there had been no break.

        Args:
            feedback: "value", the output itself (real heads); "argmax", the default of other heads; "sample".
            temperature, top_k, seed: of samples, and each of them asks for samples. The seed fixes them.
            stop: a class, or classes, that end it instead of the model's own; () for none.
            steps_per_reply: more than 1 saves messages if steps need not come at once.
            output: as for `step`.

        Raises:
            ProtocolMisuse: GENERATION_UNSUPPORTED; the session is as it was.
            InvalidInput: something does not fit. If the session is still alive it is as it was.
        """

        async def start() -> Generation:
            # blocking: self._ensure_open()
            await self._settle()
            self._exchange.expect_idle()
            request = self._exchange.generate(
                steps,
                first,
                output,
                feedback=feedback,
                temperature=temperature,
                top_k=top_k,
                seed=seed,
                stop=stop,
                from_output=from_output,
                steps_per_reply=steps_per_reply,
            )
            generation = self._exchange.generation
            assert generation is not None
            await self._write(request)
            return generation

        return AsyncSteps(self, start)

    async def beam_search(
        self,
        steps: int,
        *,
        width: int = 4,
        results: int | None = None,
        first: Any = None,
        length_power: float = 1.0,
        stop: int | Iterable[int] | None = None,
        from_output: bool = False,
    ) -> list[Hypothesis]:
        """Look for the likeliest sequences of up to `steps` classes, the best first.

        The session's own state and step index stay as they are: to continue from a sequence, `run` it. It begins as
        `generate` does. While it runs it takes `width` of the model's sessions.

        Args:
            width: hypotheses that are followed; 1 is the greedy choice.
            results: how many to give; all if not given.
            length_power: the score is the log-probability over the length to this power.
            stop: as for `generate`.

        Raises:
            SessionLimit: the server has no room for that many hypotheses; the session has ended.
            ProtocolMisuse, InvalidInput: as `generate`.
        """
        # blocking: self._ensure_open()
        await self._settle()
        self._exchange.expect_idle()
        request = self._exchange.beam_search(
            steps,
            first,
            width=width,
            results=results,
            length_power=length_power,
            stop=stop,
            from_output=from_output,
        )
        search = self._exchange.generation
        assert search is not None
        await self._write(request)
        while not search.finished:
            await self._generation_reply(search)
        return search.hypotheses

    @property
    def generation(self) -> GenerationInfo | None:
        """How the model generates; None if it cannot."""
        # blocking: self._ensure_open()
        return self._exchange.info()

    async def close(self) -> None:
        """Stop a generation that is still running, wait for the replies to what was sent, drop them, and end."""
        await self._settle()
        await super().close()

    async def _settle(self) -> None:
        """Stop a generation that was left early, and drop the steps that it still sends."""
        generation = self._exchange.generation
        if generation is not None and self.alive:
            await self._stop_generation(generation)
            while not generation.finished:
                await self._generation_reply(generation)
            generation.drop()

    async def _generation_reply(self, generation: Generation) -> None:
        if self._exchange.error is not None:
            raise self._exchange.error.again()
        await self._answer(lambda reply: self._exchange.generated(reply, generation))

    async def _stop_generation(self, generation: Generation) -> None:
        if (request := self._exchange.stop(generation)) is not None:
            await self._write(request)

    @property
    def step_index(self) -> int:
        """Timesteps applied since the session opened, as of the last reply received."""
        return self._exchange.step_index

    async def _ask(self, x: Any, ranks: tuple[int, ...], output: OutputMode | None) -> Any:
        # blocking: self._ensure_open()
        await self._settle()
        self._exchange.expect_idle()
        request = self._exchange.request(x, ranks, output)
        await self._write(request)
        return await self._answer()
