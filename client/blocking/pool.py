# Made from client/aio/pool.py by client/generate.py: change that file.
"""A pool of sessions over a blocking gRPC stream."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from streamcell.client.protocol.opening import OpenInputs
from streamcell.client.protocol.pool import CHUNK, EITHER, STEP, Ints, Members, PoolExchange
from streamcell.client.protocol.signature import OutputMode

from .stream_base import StreamBase


class Pool(StreamBase[PoolExchange]):
    """Many sessions of one model, stepped together by one message.

    `Client.pool` makes it, for use in a `with` statement.

    Members have numbers, from 0. `step`, `run` and `send` take one row for each member: all open members in ascending
    order, or those that `members` names, each at most once. Otherwise inputs and outputs are as for a session.

    If the server refuses a row (a NaN, an expired session, …), the other rows run: RowsRefused is raised with all
    outputs and the error of each refused row, and the pool stays open. In messages already sent, rows of the same
    member are refused with SEQUENCE_GAP, so no step is applied after a gap. Any other error from the server ends the
    pool.

    With `resume` the pool survives a lost connection: all its members continue together.

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
        """Run one timestep of each member: `x[n, *step_shape]` gives `y[n, *step_shape]`.

        Members in `reset` return to the initial state first; None resets all.
        """
        return self._request(x, members, STEP, output, None, reset)

    def run(
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
        return self._request(x, members, CHUNK, output, lengths, reset)

    def send(
        self,
        x: Any,
        members: Members = None,
        *,
        lengths: Any = None,
        reset: Members = (),
        output: OutputMode | None = None,
    ) -> None:
        """Send a timestep or a chunk of each member without waiting; `receive` returns the outputs."""
        self._ensure_open()
        frame = self._exchange.request(x, members, EITHER, output, lengths, reset)
        self._write(frame)

    def reset(self, members: Members = None) -> None:
        """Reset members, or all if None, to the initial state and to step index 0."""
        self._change(reset=members)

    def close_members(self, members: Members) -> None:
        """End members; `open_members` may reuse their numbers."""
        self._change(close=members)

    def open_members(self, count: int = 1, *, inputs: OpenInputs = None) -> Ints:
        """Open `count` more members, all or none, at the initial state: int64[count], the lowest free numbers.

        `inputs` are what they are given, `[count, *shape]` each, as for `Client.pool`.

        Raises:
            SessionLimit, ServerDraining, InvalidInput: none was opened; the pool stays open.
        """
        opened: Ints = self._change(count=count, inputs=inputs)
        return opened

    def fork(self, members: Members = None) -> Ints:
        """Open a member in the state of each of `members`, or of all: int64[n], their numbers, in that order.

        The server copies the states on the device. A member may occur several times. `step_indices` of a fork is known
        after its first step.

        Raises:
            SessionLimit, SessionNotFound, ServerDraining: none was opened; the pool stays open.
        """
        forked: Ints = self._copy("fork", members=members)
        return forked

    def snapshot(self) -> bytes:
        """The states of all members as bytes, for `restore` or `Client.restore_pool`. As secret as the states are.

        Raises:
            MessageTooLarge: they are larger than a message; the pool stays open.
        """
        snapshot: bytes = self._copy("snapshot")
        return snapshot

    def restore(self, snapshot: bytes) -> None:
        """Restore the pool to a snapshot: its members are then the snapshot's, with the same numbers.

        Raises:
            SnapshotRefused: it is damaged, signed with another key, or of another model; the pool is unchanged.
            SessionLimit, ServerDraining: there is no room for it; the pool is unchanged.
        """
        self._copy("restore", snapshot)

    @property
    def members(self) -> Ints:
        """The open members' numbers, ascending, int64[len(pool)]; expired ones too, until they are closed."""
        self._ensure_open()
        return self._exchange.members

    @property
    def step_indices(self) -> npt.NDArray[np.int64]:
        """Timesteps applied since each member opened or was reset, by member, as of the last reply received."""
        self._ensure_open()
        return self._exchange.step_indices

    def __len__(self) -> int:
        return len(self.members)

    def _request(
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

    def _copy(self, kind: str, snapshot: bytes = b"", members: Members = None) -> Any:
        self._ensure_open()
        self._exchange.expect_idle()
        frame = self._exchange.copying(kind, snapshot, members)
        self._write(frame)
        return self._answer()

    def _change(
        self, *, close: Members = (), reset: Members = (), count: int = 0, inputs: OpenInputs = None
    ) -> Any:
        self._ensure_open()
        self._exchange.expect_idle()
        frame = self._exchange.change(close=close, reset=reset, count=count, inputs=inputs)
        self._write(frame)
        return self._answer()
