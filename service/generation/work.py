"""One `generate` message at work: what it asks for, how far it is, and what its next reply says."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

from streamcell.proto import pb
from streamcell.service.protocols.native.wire import stream_response, varint
from streamcell.service.sessions.session import Output, Work

from .sampling import Recipe

_GENERATED_TAG = b"\x32"  # StreamResponse.generated: 6, length-delimited

STEPS, CLASS, REQUEST, NON_FINITE = (
    pb.STOP_REASON_STEPS,
    pb.STOP_REASON_CLASS,
    pb.STOP_REASON_REQUEST,
    pb.STOP_REASON_NON_FINITE,
)


class Listener(Protocol):
    """Whom a generation tells of itself."""

    def generated(self, reply: bytes, *, last: bool) -> None:
        """Send one reply, a serialised StreamResponse."""

    def has_room(self, wake: Callable[[], None]) -> bool:
        """As `Call.has_room`."""


class Generating(Work):
    """Steps of one session that the server feeds by itself, to the batcher one step of work after another.

    `payloads` is the next step's input, and empty before a first step whose input the last output gives.
    """

    __slots__ = (
        "_chosen", "_first", "_outputs", "_steps", "_tells", "applied", "listener", "per_reply", "reason", "recipe",
        "stop", "stopped", "wanted",
    )  # fmt: skip

    generates = True

    def __init__(
        self,
        listener: Listener,
        payloads: tuple[bytes, ...],
        *,
        steps: int,
        recipe: Recipe,
        stop: frozenset[int],
        per_reply: int,
        output: Output,
        tells: bool,
        tag: int,
        arrived_s: float,
    ) -> None:
        """Nothing has run.

        Args:
            listener: gets the replies.
            payloads: the first input, or () for what the session's last output gives.
            steps: to run at most.
            recipe: how inputs are chosen.
            stop: classes that end it.
            per_reply: steps a reply.
            output: of which steps the outputs are told.
            tells: whether what is chosen is told: where it is not the output itself.
            tag, arrived_s: as for all work.
        """
        super().__init__(payloads, 1, output, tag, arrived_s)
        self.listener = listener
        self.wanted = steps
        self.recipe = recipe
        self.stop = stop
        self.per_reply = per_reply
        self.applied = 0
        self.stopped = False  # by `stop_generation`: noticed before its next step
        self.reason = pb.STOP_REASON_UNSPECIFIED  # why it has ended, once it has
        self._tells = tells
        self._steps = 0  # applied since the last reply
        self._chosen: list[bytes] = []
        self._outputs: list[list[bytes]] = []
        self._first = pb.Generated(seed=recipe.seed)

    def begin(self, first: bytes, payload: bytes) -> None:
        """The last output gives the first input: `first` as it is told, `payload` as it is fed."""
        self._first.first = first
        self.payloads = (payload,)

    def took(self, outputs: Sequence[bytes], chosen: bytes) -> None:
        """One step was applied: `outputs` is a step of each, `chosen` what they give, as it is told."""
        self.done = 0
        self.applied += 1
        self._steps += 1
        if self.output is Output.LAST:
            self._outputs.clear()
        if self.output is not Output.NONE:
            self._outputs.append(list(outputs))
        if self._tells:
            self._chosen.append(chosen)

    @property
    def due(self) -> bool:
        """Whether a reply is due."""
        return self._steps >= self.per_reply or self.reason != pb.STOP_REASON_UNSPECIFIED

    @property
    def replied(self) -> bool:
        """Whether one has been given."""
        return self.applied > self._steps

    def reply(self, step_index: int) -> bytes:
        """What is to be told since the last reply, as a serialised StreamResponse."""
        generated = pb.Generated() if self.replied else self._first
        generated.steps = self._steps
        generated.chosen = b"".join(self._chosen)
        generated.stop_reason = self.reason
        outputs: list[bytes] = []
        told = 0
        if self.output is not Output.LAST or self.reason != pb.STOP_REASON_UNSPECIFIED:
            outputs = [b"".join(steps) for steps in zip(*self._outputs, strict=True)]
            told = len(self._outputs)
            self._outputs.clear()
        self._chosen.clear()
        self._steps = 0
        return generated_response(generated, outputs, told, step_index, self.tag)


def generated_response(
    generated: pb.Generated, outputs: Sequence[bytes], steps: int, step_index: int, tag: int
) -> bytes:
    """A serialised StreamResponse with `generated` and outputs of `steps` timesteps."""
    data = generated.SerializeToString()
    response = stream_response(outputs, steps, step_index, tag)
    return b"".join((response, _GENERATED_TAG, varint(len(data)), data))
