"""Messages that a client can send again, with what it was told in reply."""

from __future__ import annotations

from collections import deque
from math import prod
from typing import Any

import numpy as np

from streamcell.client.errors import MessageTooLarge, ServerFault
from streamcell.proto import pb

_CLASS_BYTES = 4


class Held:
    """A message with a number, until the client may forget it.

    Attributes:
        request: the message.
        size: the bytes that count towards `retain_bytes`.
        foreign: it only stands for the message of an earlier process, and cannot be sent to a server that lacks that.
        step_index: of the session, in the last reply to it.
        steps: timesteps of a generation that the caller was told.
    """

    __slots__ = (
        "_chosen",
        "_first",
        "_seed",
        "_stop_reason",
        "foreign",
        "request",
        "size",
        "step_index",
        "steps",
    )

    def __init__(self, request: Any, size: int = 0, *, foreign: bool = False) -> None:
        self.request = request
        self.size = size
        self.foreign = foreign
        self.step_index = 0
        self.steps = 0
        self._chosen = bytearray()
        self._first = b""
        self._seed = 0
        self._stop_reason: pb.StopReason = pb.STOP_REASON_UNSPECIFIED

    def told(self, reply: pb.StreamResponse) -> None:
        """Note what a reply to it says."""
        self.step_index = reply.step_index
        if not reply.HasField("generated"):
            return
        generated = reply.generated
        self.steps += generated.steps
        self._chosen += generated.chosen
        self._first = self._first or generated.first
        self._seed = self._seed or generated.seed
        self._stop_reason = generated.stop_reason

    def finished(self) -> None:
        """Count what it really takes: its last reply has arrived."""
        self.size = self.request.ByteSize() + len(self._chosen) + len(self._first)

    def again(self) -> Any:
        """The message to send to a server that lacks it, or a part of it."""
        if not self.steps and not self._stop_reason:
            return self.request
        request = pb.StreamRequest()
        request.CopyFrom(self.request)
        request.outcome.CopyFrom(
            pb.Outcome(
                steps=self.steps,
                chosen=bytes(self._chosen),
                first=self._first,
                stop_reason=self._stop_reason,
                seed=self._seed,
            )
        )
        return request


class HeldMessages:
    """The messages of one session that may have to be sent again: those without a reply, and those that were answered.

    Attributes:
        sent: those without a last reply, oldest first; None: of an earlier process.
        told: the latest ones that were answered and are not stored, oldest first.
        keeps: a shared store has messages only after their replies, so answered ones are kept, and bytes count.
    """

    def __init__(self, most_bytes: int) -> None:
        """`most_bytes`: the most bytes to keep, outcomes included."""
        self.sent: deque[Held | None] = deque()
        self.told: deque[Held] = deque()
        self.keeps = False
        self.most_bytes = most_bytes
        self._bytes = 0
        self._choice_bytes = _CLASS_BYTES

    def of(self, opened: pb.SessionOpened) -> None:
        """The session is open, and has this level of durability and this model."""
        self.keeps = opened.durability == pb.DURABILITY_STORE_ASYNC
        if opened.generation.head not in ("", "categorical") and opened.inputs:
            fed = opened.inputs[0]
            self._choice_bytes = max(_CLASS_BYTES, prod(fed.step_shape) * np.dtype(fed.dtype).itemsize)

    def lowest(self, received: int) -> int:
        """The lowest number of a message that can still be sent, up to the newest; so many are answered."""
        number = received + len(self.sent) + 1
        for each in reversed((*self.told, *self.sent)):
            if each is None or each.foreign:
                break
            number -= 1
        return number

    def behind(self, lacked: int, applied: int) -> list[Held]:
        """What a server lacks: of those answered the last `lacked`; of the others, all but the first `applied`."""
        every = [*list(self.told)[len(self.told) - lacked :], *list(self.sent)[applied:]]
        return [each for each in every if each is not None]

    def fits(self, request: Any) -> bool:
        """True if there is room to keep a message."""
        return not self.keeps or not self._bytes or self._bytes + self._most(request) <= self.most_bytes

    def check(self, request: Any) -> None:
        """Check that a message may be kept at all.

        Raises:
            MessageTooLarge: it is larger than everything that may be kept.
        """
        if self.keeps and (size := self._most(request)) > self.most_bytes:
            what = (
                "this generation with all that it may choose"
                if request.HasField("generate")
                else "this message"
            )
            raise MessageTooLarge(
                f"{what} takes {size} bytes, and the session keeps at most {self.most_bytes} until its store has them: "
                "send fewer timesteps at once, or open it with larger retain_bytes",
                reason="MESSAGE_TOO_LARGE",
                metadata={"limit": str(self.most_bytes), "got": str(size)},
            )

    def add(self, request: Any) -> None:
        """A message is sent."""
        held = Held(request, self._most(request) if self.keeps else 0)
        self._bytes += held.size
        self.sent.append(held)

    def reply(self, reply: Any) -> None:
        """A reply to the oldest message without one has arrived.

        Raises:
            ServerFault: MALFORMED_REPLY: it has more timesteps than were asked for.
        """
        if not self.keeps or not self.sent or (held := self.sent[0]) is None:
            return
        held.told(reply)
        if held.steps > held.request.generate.steps and not held.foreign:
            raise ServerFault(
                f"{held.request.generate.steps} timesteps were to be generated, the server has told {held.steps}",
                reason="MALFORMED_REPLY",
            )

    def answered(self) -> None:
        """That was its last one."""
        held = self.sent.popleft() if self.sent else None
        if not self.keeps:
            return
        self._bytes -= held.size if held is not None else 0
        if held is None or held.foreign:  # nothing before it could be sent either
            self.forget(0)
            return
        held.finished()
        self._bytes += held.size
        self.told.append(held)

    def forget(self, kept: int) -> None:
        """Drop the answered messages but for the last `kept`."""
        while len(self.told) > kept:
            self._bytes -= self.told.popleft().size

    def _most(self, request: Any) -> int:
        """The most bytes that a message takes with its outcome."""
        size: int = request.ByteSize()
        if request.HasField("generate") and not request.generate.HasField("beam"):
            size += (request.generate.steps + 1) * self._choice_bytes
        return size


def is_beside(request: Any) -> bool:
    """True if a message gets no reply, and so takes no place in the window."""
    stops = isinstance(request, pb.StreamRequest) and request.HasField("stop_generation")
    return stops or request.HasField("received")


def is_copy(request: Any) -> bool:
    """True if a message asks for a snapshot, a fork or a restore."""
    return isinstance(request, pb.StreamRequest) and request.HasField("copy")


def is_numbered(request: Any) -> bool:
    """True if a message has a number: its reply is kept, and it must not be lost."""
    if isinstance(request, pb.FrameRequest):
        return not request.HasField("received")
    return not (is_copy(request) and not request.copy.HasField("restore")) and not is_beside(request)


def without(reply: pb.StreamResponse, known: int) -> pb.StreamResponse:
    """A reply to a generation without its first `known` timesteps, which the caller was told before.

    Raises:
        ServerFault: MALFORMED_REPLY: its parts are not as long as its number of steps says.
    """
    rest = pb.StreamResponse()
    rest.CopyFrom(reply)
    generated, steps = rest.generated, reply.generated.steps
    left = steps - known
    generated.steps, generated.first = left, b""
    generated.chosen = _tail(generated.chosen, steps, left)
    if rest.steps > left:
        del rest.outputs[:]
        rest.outputs.extend(_tail(output, reply.steps, left) for output in reply.outputs)
        rest.steps = left
    return rest


def _tail(data: bytes, steps: int, left: int) -> bytes:
    """The part of the last `left` of `steps` timesteps."""
    if len(data) % steps:
        raise ServerFault(
            f"{len(data)} bytes are no {steps} timesteps of a generation", reason="MALFORMED_REPLY"
        )
    return data[len(data) - len(data) // steps * left :]
