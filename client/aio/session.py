"""A session over an asyncio gRPC stream."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from streamcell.client.protocol.durability import Durability, durability_name
from streamcell.client.protocol.generation import Feedback, Generation, Hypothesis
from streamcell.client.protocol.session import CHUNK, EITHER, STEP, SessionExchange
from streamcell.client.protocol.signature import OutputMode
from streamcell.client.protocol.steps import AsyncSteps
from streamcell.client.protocol.ticket import Ticket
from streamcell.client.values import GenerationInfo
from streamcell.proto import pb

from .stream_base import AsyncStreamBase


class AsyncSession(AsyncStreamBase[SessionExchange]):
    """One live sequence on one model. `AsyncClient.session` makes it, for use in an `async with`.

    The server keeps its state between steps. Inputs are numpy arrays of the model's dtype, or of one that numpy casts
    to it safely, or Python numbers in nested lists. A model with several inputs takes a dict by name or a tuple in
    order. Outputs are a numpy array, a dict of arrays by name if the model has several, or None in output mode "none".

    An input that does not fit raises InvalidInput before it is sent, and the session is unchanged. Any error from the
    server ends the session: its state is gone, and every later call raises that error again. With `resume` the session
    survives a lost connection.

    One task at a time, except for `cancel`. A task that is cancelled while it awaits a reply ends the session: whether
    its steps were applied is not known.
    """

    async def step(self, x: Any, *, output: OutputMode | None = None) -> Any:
        """Run one timestep: `x[*step_shape]` gives `y[*step_shape]`."""
        return await self._request(x, STEP, output)

    async def run(self, x: Any, *, output: OutputMode | None = None) -> Any:
        """Run a chunk of timesteps: `x[T, *step_shape]` gives `y[T, *step_shape]`, or `y[1, …]` in mode "last"."""
        return await self._request(x, CHUNK, output)

    async def send(self, x: Any, *, output: OutputMode | None = None) -> None:
        """Send one timestep or a chunk without awaiting its reply; waits if the server is not reading."""
        # blocking: self._ensure_open()
        await self._end_generation()
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
        """Let the server run up to `steps` steps by itself: each output gives the next step's input.

        The first input is `first` (`[*step_shape]`, or a token as an int); if it is None, the model's start token; if
        there is none, what the session's last output gives. With `from_output` it is always the last of these.
        `step_index` counts generated steps like all others. The last output's choice is returned (`Step.chosen`) and
        not fed, so another `generate` with `from_output` and the same arguments continues as if there were no break.

        Args:
            feedback: "value", the output itself (default of real heads); "argmax" (default of other heads); "sample".
            temperature, top_k, seed: how to sample; any of them implies "sample". The seed makes samples repeatable.
            stop: a class, or classes, that end the generation instead of the model's own; () for none.
            steps_per_reply: more than 1 saves messages if steps need not arrive one by one.
            output: as for `step`.

        Raises:
            ProtocolMisuse: GENERATION_UNSUPPORTED; the session is unchanged.
            InvalidInput: an argument does not fit. If the session is still alive, it is unchanged.
        """

        async def start() -> Generation:
            # blocking: self._ensure_open()
            await self._end_generation()
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
        """Search for the most likely sequences of up to `steps` classes; the best comes first.

        The session's own state and step index do not change: to continue from a sequence, `run` it. The first input is
        chosen as in `generate`. A running search counts as `width` sessions of the model.

        Args:
            width: number of hypotheses; 1 is the greedy choice.
            results: number of hypotheses to return; None: all.
            length_power: the score is the log-probability divided by the length to this power.
            stop: as for `generate`.

        Raises:
            SessionLimit: the server has no room for `width` hypotheses; the session has ended.
            ProtocolMisuse, InvalidInput: as for `generate`.
        """
        # blocking: self._ensure_open()
        await self._end_generation()
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
        return self._exchange.generation_info()

    async def close(self) -> None:
        """Stop a running generation, wait for all replies that are due, drop them, and end the session."""
        await self._end_generation()
        await super().close()

    async def _end_generation(self) -> None:
        """Stop a generation whose loop was left early, and drop its remaining steps."""
        generation = self._exchange.generation
        if generation is not None and self.alive:
            if self._exchange.pending > 1:  # replies that another process has not received come first
                self._exchange.expect_idle()
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

    def ticket(self) -> Ticket:
        """What another process needs to go on with this session, with what has been returned so far.

        Take it again after every few replies: the server keeps the last 32. It is also good once the session has ended
        here, as long as the server keeps it. A secret.

        Raises:
            ProtocolMisuse: NOT_RESUMABLE, if the session was opened without `resume`.
        """
        return self._exchange.ticket()

    async def snapshot(self) -> bytes:
        """The session's state as bytes, after all steps so far: for `restore`, here or in a session on another server.

        They hold the state, the step index and the values that the session was given at its opening, so they are as
        secret as these. A server accepts them if it serves the same model file and has the same `--snapshot-key-file`.

        Raises:
            ProtocolMisuse: NOT_RESUMABLE (opened without `resume`), REPLIES_PENDING.
            MessageTooLarge: the state is larger than a message; the session goes on.
        """
        return await self._copy(self._exchange.copying, snapshot=True)

    async def restore(self, snapshot: bytes) -> None:
        """Restore the session to a snapshot of it, or of another one that was given the same values at its opening.

        `step_index` is then the snapshot's.

        Raises:
            SnapshotRefused: it is damaged, signed with another key, or of another model; the session is unchanged.
            ProtocolMisuse: as for `snapshot`.
        """
        await self._copy(self._exchange.copying, restore=snapshot)

    async def fork(self) -> AsyncSession:
        """Another session that begins in this one's state, open. The server copies it on the device.

        It has the same model, the same output mode and its own life: close it, or use it in an `async with`.

        Raises:
            SessionLimit: the server has no room; this session goes on.
            ProtocolMisuse: as for `snapshot`.
        """
        made: list[SessionExchange] = []

        def asked() -> pb.StreamRequest:
            exchange, request = self._exchange.fork()
            made.append(exchange)
            return request

        await self._copy(asked)
        return await self._beside(made[0])

    async def _copy(self, make: Callable[..., pb.StreamRequest], **kind: Any) -> bytes:
        # blocking: self._ensure_open()
        await self._end_generation()
        request = make(**kind)
        await self._write(request)
        copied: bytes = await self._answer(self._exchange.copied)
        return copied

    @property
    def resent(self) -> int:
        """How many messages were answered, and sent again to a server that lacked them; the outputs came once."""
        return 0 if self._exchange.resumption is None else self._exchange.resumption.resent

    @property
    def durability(self) -> Durability | None:
        """What the session survives; None if it was opened without `resume`."""
        return durability_name(self._opened_exchange().opened.durability)

    @property
    def durable(self) -> int:
        """How many of its messages the shared store has; 0 without one. A ticket's `received` counts the same."""
        return 0 if self._exchange.resumption is None else self._exchange.resumption.durable

    @property
    def moves(self) -> int:
        """How often a server gave the session to another one, so far: each time it is resumed there."""
        return 0 if self._exchange.resumption is None else self._exchange.resumption.way.moves

    @property
    def step_index(self) -> int:
        """Timesteps applied since the session opened, as of the last reply received."""
        return self._exchange.step_index

    async def _request(self, x: Any, ranks: tuple[int, ...], output: OutputMode | None) -> Any:
        # blocking: self._ensure_open()
        await self._end_generation()
        self._exchange.expect_idle()
        request = self._exchange.request(x, ranks, output)
        await self._write(request)
        return await self._answer()
