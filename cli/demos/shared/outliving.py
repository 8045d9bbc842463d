"""Sessions that stream a test part over and over while their servers are killed; the demos that kill share it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from streamcell.client import AsyncClient

    from .prepare import Trained

_RESUME_S = 120.0  # far longer than a restart
_MOST_DIFFERENCE = 1e-4  # of the losses, in nats a timestep


@dataclass
class Streamed:
    """What the sessions have seen.

    Attributes:
        nats: the loss of all outputs.
        nats_torch: the loss of PyTorch's outputs for the same pieces.
        steps: outputs that have arrived.
        lost, doubled: steps that the server has not applied, or applied more than once, by its step index.
        errors: sessions that ended with an error; `error` is the first one's text.
        difference: the largest, from PyTorch's outputs.
        resumes: how often a session was resumed.
        moves: how often, of these, because the server gave it to another one.
        longest_s: the longest time that a step took.
        pieces: pieces streamed to their ends.
    """

    nats: float = 0.0
    nats_torch: float = 0.0
    steps: int = 0
    lost: int = 0
    doubled: int = 0
    errors: int = 0
    error: str = ""
    difference: float = 0.0
    resumes: int = 0
    moves: int = 0
    longest_s: float = 0.0
    pieces: int = 0

    @property
    def loss(self) -> float:
        """The served loss, in nats a timestep."""
        return self.nats / max(self.steps, 1)

    @property
    def loss_torch(self) -> float:
        """PyTorch's."""
        return self.nats_torch / max(self.steps, 1)

    def figures(self) -> dict[str, float]:
        """For the report."""
        return {
            "loss_torch": self.loss_torch,
            "loss_served": self.loss,
            "largest_difference": self.difference,
            "pieces": self.pieces,
            "steps": self.steps,
            "resumes": self.resumes,
            "moves": self.moves,
            "lost": self.lost,
            "doubled": self.doubled,
            "errors": self.errors,
            "longest_pause_s": self.longest_s,
        }

    def rows(self, sessions: int) -> list[tuple[str, str]]:
        """The same for the table: what does not depend on how the servers were killed."""
        return [
            ("loss of these pieces in PyTorch", f"{self.loss_torch:.6f} nats per timestep"),
            ("loss, served", f"{self.loss:.6f} nats per timestep"),
            ("largest difference of an output", f"{self.difference:.1e}"),
            ("sessions, pieces, timesteps", f"{sessions}, {self.pieces}, {self.steps}"),
            ("steps lost, doubled; errors", f"{self.lost}, {self.doubled}; {self.errors}"),
        ]

    def wrong(self) -> list[str]:
        """What must not be: one text each."""
        found = []
        if self.lost or self.doubled:
            found.append(f"{self.lost} steps lost, {self.doubled} doubled")
        if self.errors:
            found.append(f"{self.errors} sessions ended with an error; the first: {self.error}")
        if not abs(self.loss - self.loss_torch) <= _MOST_DIFFERENCE:
            found.append(f"the served loss is {self.loss:.6f}, PyTorch's {self.loss_torch:.6f}")
        return found


class Outliving:
    """Sessions that stream until the demo ends.

    Attributes:
        streamed: what they have seen so far.
    """

    def __init__(self, trained: Trained, sessions: int) -> None:
        self._trained = trained
        self._steps = [0] * sessions
        self._over = False
        self._tasks: list[asyncio.Task[None]] = []
        self._expected = trained.outputs()
        self.streamed = Streamed()

    async def stream(self, target: str, meanwhile: Callable[[Outliving], Awaitable[None]]) -> Streamed:
        """Stream from the server at `target` until `meanwhile` has returned and each begun piece is finished."""
        from streamcell.client import connect_async

        async with connect_async(target) as client:
            self._tasks = [asyncio.create_task(self._session(client, at)) for at in range(len(self._steps))]
            try:
                await meanwhile(self)
                await self.all_go_on()
                self._over = True
                await asyncio.gather(*self._tasks)
            finally:
                for task in self._tasks:
                    task.cancel()
        return self.streamed

    async def all_go_on(self) -> float:
        """Wait until each session has another output; returns how many seconds that took."""
        before, began_s = list(self._steps), time.perf_counter()
        while any(now == was for now, was in zip(self._steps, before, strict=True)):
            for task in self._tasks:
                if task.done():
                    task.result()
            await asyncio.sleep(0.02)
        return time.perf_counter() - began_s

    async def _session(self, client: AsyncClient, at: int) -> None:
        """Stream pieces, each through a session of its own, a step a message."""
        from streamcell.client import StreamCellError

        for index in self._pieces(at):
            try:
                await self._piece(client, at, index)
            except StreamCellError as error:
                self.streamed.errors += 1
                self.streamed.error = self.streamed.error or f"{error.reason}: {error}"
                await asyncio.sleep(0.1)

    async def _piece(self, client: AsyncClient, at: int, index: int) -> None:
        from streamcell.models import bernoulli_nll

        streamed, piece = self.streamed, self._trained.test[index]
        outputs = []
        async with client.session(self._trained.name, resume=True, resume_s=_RESUME_S) as session:
            for x in piece.x:
                began_s = time.perf_counter()
                outputs.append(await session.step(x))
                streamed.longest_s = max(streamed.longest_s, time.perf_counter() - began_s)
                self._steps[at] += 1
            applied, sent = session.step_index, len(piece)
            streamed.resumes += session.resumes
            streamed.moves += session.moves
        served = np.stack(outputs)
        expected = self._expected[index]
        streamed.nats += float(bernoulli_nll(served, piece.y).sum())
        streamed.nats_torch += float(bernoulli_nll(expected, piece.y).sum())
        streamed.steps += len(served)
        streamed.pieces += 1
        streamed.lost += max(0, sent - applied)
        streamed.doubled += max(0, applied - sent)
        streamed.difference = max(streamed.difference, float(np.abs(served - expected).max()))

    def _pieces(self, at: int) -> Iterator[int]:
        pieces = len(self._trained.test)
        while not self._over:
            yield at % pieces
            at += len(self._steps)
