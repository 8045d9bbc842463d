# Made from client/aio/pool.py by client/generate.py: change that file.
"""A pool of sessions over a blocking gRPC stream."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from streamcell.client.protocol.pool import CHUNK, EITHER, STEP, Ints, Members, PoolExchange
from streamcell.client.protocol.signature import OutputMode

from .stream_base import Conversation


class Pool(Conversation[PoolExchange]):
    """Many sessions of one model, stepped together by one message.

    Use what `Client.pool` gives in a `with` statement.

    Members go by number, from 0. `step`, `run` and `send` take a row a member: all open ones in ascending order, or
    those that `members` names, each at most once. Inputs and outputs are otherwise as for a session.

    A row that the server refuses (a NaN, an expired session, …) leaves the other rows alone: RowsRefused is raised
    with all outputs and an error a refused row, and the pool lives on. In messages that were on their way then, rows
    of the same member are refused with SEQUENCE_GAP, so that no step is applied behind a gap. Anything else that
    the server sends ends the pool.

    One thread at a time, except for `cancel`. Leaving the `with` block waits for what was sent and closes; leaving
    it with an exception cancels.
    """

    def step(
        self,
        x: Any,
        members: Members = None,
        *,
        reset: Members = (),
        output: OutputMode | None = None,
    ) -> Any:
        """Run one timestep of each: `x[n, *step_shape]` gives `y[n, *step_shape]`.

        Members in `reset` go back to the initial state first; None for all.
        """
        return self._ask(x, members, STEP, output, None, reset)

    def run(
        self,
        x: Any,
        members: Members = None,
        *,
        lengths: Any = None,
        reset: Members = (),
        output: OutputMode | None = None,
    ) -> Any:
        """Run a chunk of each: `x[n, T, *step_shape]` gives `y[n, T, *step_shape]`, or `y[n, 1, …]` in mode "last".

        If `lengths` is given, row i has only its first `lengths[i]` timesteps; the outputs beyond are zeros.
        """
        return self._ask(x, members, CHUNK, output, lengths, reset)

    def send(
        self,
        x: Any,
        members: Members = None,
        *,
        lengths: Any = None,
        reset: Members = (),
        output: OutputMode | None = None,
    ) -> None:
        """Send a timestep or a chunk of each without waiting; `receive` gives the outputs."""
        self._ensure_open()
        frame = self._exchange.request(x, members, EITHER, output, lengths, reset)
        self._write(frame)

    def reset(self, members: Members = None) -> None:
        """Put members, or all, back to the initial state and to step index 0."""
        self._change(reset=members)

    def close_members(self, members: Members) -> None:
        """End members; their numbers are free for `open_members`."""
        self._change(close=members)

    def open_members(self, count: int = 1) -> Ints:
        """Open `count` more, all or none, at the initial state: int64[count], the lowest numbers that are free.

        Raises:
            SessionLimit, ServerDraining: none was opened; the pool lives on.
        """
        opened: Ints = self._change(count=count)
        return opened

    @property
    def members(self) -> Ints:
        """The open members' numbers, ascending, int64[len(pool)]; expired ones too, until they are closed."""
        self._ensure_open()
        return self._exchange.members

    @property
    def step_indices(self) -> npt.NDArray[np.int64]:
        """Timesteps that each has applied since it opened or was reset, by member, as of the last reply received."""
        self._ensure_open()
        return self._exchange.step_indices

    def __len__(self) -> int:
        return len(self.members)

    def _ask(
        self,
        x: Any,
        members: Members,
        ranks: tuple[int, ...],
        output: OutputMode | None,
        lengths: Any,
        reset: Members,
    ) -> Any:
        self._ensure_open()
        self._exchange.expect_idle()
        frame = self._exchange.request(x, members, ranks, output, lengths, reset)
        self._write(frame)
        return self._answer()

    def _change(self, *, close: Members = (), reset: Members = (), count: int = 0) -> Any:
        self._ensure_open()
        self._exchange.expect_idle()
        frame = self._exchange.change(close=close, reset=reset, count=count)
        self._write(frame)
        return self._answer()
