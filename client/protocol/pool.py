"""A pool's exchange, without transport: makes frames of arrays, and arrays of the replies."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from streamcell.client.errors import InvalidInput, RowsRefused, ServerFault, StreamCellError, from_number
from streamcell.proto import pb

from .frame_resume import FrameResumption
from .opening import OpenInputs, open_inputs
from .session import Exchange
from .signature import output_mode

STEP, CHUNK, EITHER = (1,), (2,), (1, 2)

Ints: TypeAlias = npt.NDArray[np.int64]
# Numbers of members; None for all open members.
Members: TypeAlias = Sequence[int] | npt.NDArray[Any] | None

_AXES = ((), ("members",), ("members", "steps"))


@dataclass(frozen=True, slots=True)
class Sent:
    """A frame without its reply.

    Attributes:
        rows: the member of each row.
        single: True if the rows are single timesteps.
        mask: bool[rows, steps], true for each step that has outputs; None if all rows have the same length.
        kind: of a frame that copies: "snapshot", "fork" or "restore".
    """

    rows: Ints
    single: bool = False
    mask: npt.NDArray[np.bool_] | None = None
    kind: str = ""


class PoolExchange(Exchange[Sent]):
    """A pool's exchange. A member's number is its handle on the wire: the server assigns the lowest free number.

    Attributes:
        members: int64[open members], their numbers, ascending.
        step_indices: int64, by member: timesteps applied since it opened or was reset, as of the last reply; 0 for a
            closed member.
    """

    def __init__(
        self,
        model: str,
        version: str,
        count: int,
        output: str | None,
        inputs: OpenInputs = None,
        snapshot: bytes = b"",
        resumption: FrameResumption | None = None,
    ) -> None:
        super().__init__(resumption)
        self._frames = resumption
        if count < 0:
            raise ValueError(f"members: expected 0 or more, got {count}")
        self._open = pb.OpenFrames(
            model=model, version=version, output_mode=output_mode(output), snapshot=snapshot
        )
        self._all = output in (None, "all")
        self._count = count
        self._inputs = open_inputs(inputs)
        self._replies = 0
        self.members = np.zeros(0, np.int64)
        self._handles = b""
        self.step_indices = np.zeros(0, np.int64)

    def opening(self) -> pb.FrameRequest:
        """The first frame; if the pool can be resumed, members are opened by the next one."""
        if self._frames is not None:
            return pb.FrameRequest(open=self._frames.opening_frames(self._open))
        return pb.FrameRequest(open=self._open, open_sessions=self._count, open_inputs=self._inputs)

    def accept_opening(self, reply: pb.FrameResponse) -> None:
        """Take the reply to the first frame."""
        super().accept_opening(reply)
        self._pending.append(Sent(self.members, kind="restore" if self._open.snapshot else ""))
        self.answer(reply)

    def reopened(self, reply: pb.FrameResponse) -> None:
        """Handle the reply to an opening of a pool that can be resumed."""
        assert self._frames is not None
        self._frames.greeted(reply)
        first = not self.is_open
        super().accept_opening(reply)
        self._frames.reopened(reply.opened)
        if first:
            frame = pb.FrameRequest(open_sessions=self._count, open_inputs=self._inputs)
            self._pending.append(Sent(np.zeros(0, np.int64)))
            self._frames.put(frame)

    @property
    def joining(self) -> bool:
        """True until the first members of a pool that can be resumed are open."""
        return self._frames is not None and not self._replies

    def request(
        self,
        x: Any,
        members: Members,
        ranks: tuple[int, ...],
        output: str | None,
        lengths: Any = None,
        reset: Members = (),
    ) -> pb.FrameRequest:
        """The frame that carries `x`. If this raises InvalidInput, the pool is unchanged."""
        rows = self.members if members is None else self.numbers(members)
        payloads, leading = self._ready().encode(x, ranks, _AXES)
        if leading[0] != len(rows):
            raise InvalidInput(
                f"expected {len(rows)} rows, one for each member, got {leading[0]}", reason="WRONG_SHAPE"
            )
        steps = leading[1] if len(leading) > 1 else 1
        self._check_steps(steps)
        frame = pb.FrameRequest(
            handles=self._handles if members is None else _packed(rows),
            steps=steps,
            output_mode=output_mode(output),
            answered=self._replies,
            reset=_packed(self.members if reset is None else self.numbers(reset)),
        )
        mask = None
        if lengths is not None:
            frame.lengths, mask = _lengths(lengths, leading)
            payloads = [
                np.frombuffer(data, np.uint8).reshape(*mask.shape, -1)[mask].tobytes() for data in payloads
            ]
        frame.inputs.extend(payloads)
        whole = self._all if output is None else output == "all"
        self._pending.append(Sent(rows, len(leading) == 1, mask if whole else None))
        return frame

    def change(
        self, *, close: Members = (), reset: Members = (), count: int = 0, inputs: OpenInputs = None
    ) -> pb.FrameRequest:
        """The frame that closes, resets and opens members."""
        self._ready()
        given = open_inputs(inputs)
        closing, resetting = (self.members if each is None else self.numbers(each) for each in (close, reset))
        self._pending.append(Sent(np.zeros(0, np.int64)))
        self.members = np.setdiff1d(self.members, closing)
        self._handles = _packed(self.members)
        self.step_indices[closing[closing < len(self.step_indices)]] = 0
        return pb.FrameRequest(
            close=_packed(closing),
            reset=_packed(resetting),
            open_sessions=count,
            answered=self._replies,
            open_inputs=given,
        )

    def copying(self, kind: str, snapshot: bytes = b"", members: Members = None) -> pb.FrameRequest:
        """The frame that copies members' states; `kind` as in `Sent`."""
        self._ready()
        forked = self.members if members is None else self.numbers(members)
        self._pending.append(Sent(np.zeros(0, np.int64), kind=kind))
        return pb.FrameRequest(
            snapshot=kind == "snapshot",
            restore=snapshot,
            fork=_packed(forked) if kind == "fork" else b"",
            answered=self._replies,
        )

    @staticmethod
    def numbers(members: Any) -> Ints:
        """Members as int64[n]."""
        numbers = np.asarray(members)
        if numbers.size == 0:
            return np.zeros(0, np.int64)
        if numbers.ndim != 1 or numbers.dtype.kind not in "iu":
            raise InvalidInput(
                f"members: expected a list of whole numbers, got {numbers.dtype}{list(numbers.shape)}",
                reason="WRONG_MEMBER",
            )
        if numbers.min() < 0 or numbers.max() >= 2**32:
            raise InvalidInput(
                f"members: expected numbers from 0 to 4294967295, got {numbers.min()} to {numbers.max()}",
                reason="WRONG_MEMBER",
            )
        return numbers.astype(np.int64)

    def answer(self, reply: pb.FrameResponse) -> Any:
        """The outputs of the oldest unanswered frame, or the members that it opened.

        Raises:
            RowsRefused: some of its rows were refused.
            StreamCellError: another part of the frame was refused.
        """
        if self._codec is None or not self._pending:
            raise ServerFault("the server sent a reply that belongs to no message", reason="MALFORMED_REPLY")
        sent = self._pending.popleft()
        self._replies += 1
        opened = np.frombuffer(reply.handles, "<u4").astype(np.int64)
        if sent.kind:
            return self._copied(sent.kind, opened, reply)
        if len(opened):
            self._add(opened)
        if len(sent.rows):
            self._note(sent, reply)
        result: Any = self._outputs(sent, reply) if len(sent.rows) else opened
        if reply.errors:
            self._raise(sent, reply, result)
        return result

    def _copied(self, kind: str, opened: Ints, reply: pb.FrameResponse) -> Any:
        """The result of a frame that copies: a snapshot, the members that are forks, or the members restored."""
        for each in reply.errors:
            raise from_number(each.code, each.reason, each.text, each.metadata)
        if kind == "snapshot":
            return reply.snapshot
        if kind == "restore":
            if len(reply.step_indices) != 8 * len(opened):
                raise ServerFault(
                    "the reply does not have one step index for each member", reason="MALFORMED_REPLY"
                )
            self.members = np.zeros(0, np.int64)
            self.step_indices[:] = 0
            self._add(opened)
            self.step_indices[opened] = np.frombuffer(reply.step_indices, "<u8")
            return opened
        forked = np.frombuffer(reply.forked, "<u4").astype(np.int64)
        self._add(forked)
        return forked

    def _add(self, opened: Ints) -> None:
        self.members = np.union1d(self.members, opened)
        self._handles = _packed(self.members)
        more = int(opened.max(initial=-1)) + 1 - len(self.step_indices)
        if more > 0:
            self.step_indices = np.concatenate((self.step_indices, np.zeros(more, np.int64)))
        self.step_indices[opened] = 0

    def _note(self, sent: Sent, reply: pb.FrameResponse) -> None:
        if len(reply.step_indices) != 8 * len(sent.rows):
            raise ServerFault("the reply does not have one step index for each row", reason="MALFORMED_REPLY")
        known = sent.rows < len(self.step_indices)
        indices = np.frombuffer(reply.step_indices, "<u8").astype(np.int64)
        self.step_indices[sent.rows[known]] = indices[known]

    def _outputs(self, sent: Sent, reply: pb.FrameResponse) -> Any:
        assert self._codec is not None
        rows = len(sent.rows)
        if sent.mask is None:
            return self._codec.decode(reply.outputs, (rows,) if sent.single else (rows, reply.steps))
        packed = self._codec.decode(reply.outputs, (int(sent.mask.sum()),))
        if isinstance(packed, dict):
            return {name: _padded(array, sent.mask) for name, array in packed.items()}
        return None if packed is None else _padded(packed, sent.mask)

    def _raise(self, sent: Sent, reply: pb.FrameResponse, outputs: Any) -> None:
        errors: dict[int, StreamCellError] = {}
        other: StreamCellError | None = None
        for each in reply.errors:
            error = from_number(each.code, each.reason, each.text, each.metadata)
            if each.part != pb.FRAME_PART_ROW:
                other = other or error
            elif each.index < len(sent.rows):
                errors.setdefault(int(sent.rows[each.index]), error)
        if errors:
            raise RowsRefused(errors, outputs)
        if other is not None:
            raise other


def _packed(numbers: Ints) -> bytes:
    return numbers.astype("<u4").tobytes()


def _lengths(lengths: Any, leading: tuple[int, ...]) -> tuple[bytes, npt.NDArray[np.bool_]]:
    """Lengths in wire format, and bool[rows, steps], true for each step within its row's length."""
    array = np.asarray(lengths)
    if array.dtype.kind not in "iu" or array.shape != leading[:1] or len(leading) != 2:
        raise InvalidInput(
            f"lengths: expected one whole number for each row, [{leading[0]}], for rows of several timesteps, "
            f"got {array.dtype}{list(array.shape)}",
            reason="WRONG_SHAPE",
        )
    if array.min() < 1 or array.max() > leading[1]:
        raise InvalidInput(
            f"lengths: expected 1 to {leading[1]}, got {array.min()} to {array.max()}", reason="WRONG_SHAPE"
        )
    return _packed(array), np.arange(leading[1]) < array[:, None]


def _padded(packed: npt.NDArray[Any], mask: npt.NDArray[np.bool_]) -> npt.NDArray[Any]:
    padded = np.zeros((*mask.shape, *packed.shape[1:]), packed.dtype)
    padded[mask] = packed
    return padded
