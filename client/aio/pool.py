"""A pool of sessions over an asyncio gRPC stream."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from streamcell.client.protocol.opening import OpenInputs
from streamcell.client.protocol.pool import CHUNK, EITHER, STEP, Ints, Members, PoolExchange
from streamcell.client.protocol.signature import OutputMode

from .stream_base import AsyncStreamBase


class AsyncPool(AsyncStreamBase[PoolExchange]):
    """Many sessions of one model, stepped together by one message.

    `AsyncClient.pool` makes it, for use in an `async with`.

    Members have numbers, from 0. `step`, `run` and `send` take one row for each member: all open members in ascending
    order, or those that `members` names, each at most once. Otherwise inputs and outputs are as for a session.

    If the server refuses a row (a NaN, an expired session, …), the other rows run: RowsRefused is raised with all
    outputs and the error of each refused row, and the pool stays open. In messages already sent, rows of the same
    member are refused with SEQUENCE_GAP, so no step is applied after a gap. Any other error from the server ends the
    pool.

    With `resume` the pool survives a lost connection: all its members continue together.

    One task at a time, except for `cancel`. A task that is cancelled while it awaits a reply ends the pool: whether
    its steps were applied is not known.
    """

    async def step(
        self,
        x: Any,
        members: Members = None,
        *,
        reset: Members = (),
        output: OutputMode | None = None,
    ) -> Any:
        """Run one timestep of each member: `x[n, *step_shape]` gives `y[n, *step_shape]`.

        Members in `reset` return to the initial state first; None resets all.
        """
        return await self._request(x, members, STEP, output, None, reset)

    async def run(
        self,
        x: Any,
        members: Members = None,
        *,
        lengths: Any = None,
        reset: Members = (),
        output: OutputMode | None = None,
    ) -> Any:
        """Run a chunk of each member: `x[n, T, *step_shape]` gives `y[n, T, *step_shape]`, `y[n, 1, …]` in mode "last".

        If `lengths` is given, row i has only its first `lengths[i]` timesteps; outputs beyond them are zeros.
        """
        return await self._request(x, members, CHUNK, output, lengths, reset)

    async def send(
        self,
        x: Any,
        members: Members = None,
        *,
        lengths: Any = None,
        reset: Members = (),
        output: OutputMode | None = None,
    ) -> None:
        """Send a timestep or a chunk of each member without waiting; `receive` returns the outputs."""
        # blocking: self._ensure_open()
        frame = self._exchange.request(x, members, EITHER, output, lengths, reset)
        await self._write(frame)

    async def reset(self, members: Members = None) -> None:
        """Reset members, or all if None, to the initial state and to step index 0."""
        await self._change(reset=members)

    async def close_members(self, members: Members) -> None:
        """End members; `open_members` may reuse their numbers."""
        await self._change(close=members)

    async def open_members(self, count: int = 1, *, inputs: OpenInputs = None) -> Ints:
        """Open `count` more members, all or none, at the initial state: int64[count], the lowest free numbers.

        `inputs` are what they are given, `[count, *shape]` each, as for `Client.pool`.

        Raises:
            SessionLimit, ServerDraining, InvalidInput: none was opened; the pool stays open.
        """
        opened: Ints = await self._change(count=count, inputs=inputs)
        return opened

    async def fork(self, members: Members = None) -> Ints:
        """Open a member in the state of each of `members`, or of all: int64[n], their numbers, in that order.

        The server copies the states on the device. A member may occur several times. `step_indices` of a fork is known
        after its first step.

        Raises:
            SessionLimit, SessionNotFound, ServerDraining: none was opened; the pool stays open.
        """
        forked: Ints = await self._copy("fork", members=members)
        return forked

    async def snapshot(self) -> bytes:
        """The states of all members as bytes, for `restore` or `Client.restore_pool`. As secret as the states are.

        Raises:
            MessageTooLarge: they are larger than a message; the pool stays open.
        """
        snapshot: bytes = await self._copy("snapshot")
        return snapshot

    async def restore(self, snapshot: bytes) -> None:
        """Restore the pool to a snapshot: its members are then the snapshot's, with the same numbers.

        Raises:
            SnapshotRefused: it is damaged, signed with another key, or of another model; the pool is unchanged.
            SessionLimit, ServerDraining: there is no room for it; the pool is unchanged.
        """
        await self._copy("restore", snapshot)

    @property
    def members(self) -> Ints:
        """The open members' numbers, ascending, int64[len(pool)]; expired ones too, until they are closed."""
        # blocking: self._ensure_open()
        return self._exchange.members

    @property
    def step_indices(self) -> npt.NDArray[np.int64]:
        """Timesteps applied since each member opened or was reset, by member, as of the last reply received."""
        # blocking: self._ensure_open()
        return self._exchange.step_indices

    def __len__(self) -> int:
        return len(self.members)

    async def _request(
        self,
        x: Any,
        members: Members,
        ranks: tuple[int, ...],
        output: OutputMode | None,
        lengths: Any,
        reset: Members,
    ) -> Any:
        # blocking: self._ensure_open()
        self._exchange.expect_idle()
        frame = self._exchange.request(x, members, ranks, output, lengths, reset)
        await self._write(frame)
        return await self._answer()

    async def _copy(self, kind: str, snapshot: bytes = b"", members: Members = None) -> Any:
        # blocking: self._ensure_open()
        self._exchange.expect_idle()
        frame = self._exchange.copying(kind, snapshot, members)
        await self._write(frame)
        return await self._answer()

    async def _change(
        self, *, close: Members = (), reset: Members = (), count: int = 0, inputs: OpenInputs = None
    ) -> Any:
        # blocking: self._ensure_open()
        self._exchange.expect_idle()
        frame = self._exchange.change(close=close, reset=reset, count=count, inputs=inputs)
        await self._write(frame)
        return await self._answer()
