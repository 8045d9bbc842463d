"""Which messages of sessions on a shared stream make up the rows of one frame."""

from __future__ import annotations

import numpy as np

from streamcell.proto import pb

from .members import Member, Row

# Bytes of the messages, and of these with their outputs, in a frame with more than one row.
_FRAME_BYTES = 1 << 20
_ROW_BYTES, _HEAD_BYTES, _INPUT_BYTES = 8, 128, 16  # what the wire adds at most


def alone_bytes(message: Row) -> int:
    """Bytes of a frame with this message alone, at most."""
    return message.size + _HEAD_BYTES + _INPUT_BYTES * len(message.inputs)


def most_handles(message_bytes: int) -> int:
    """How many handles a frame of so many bytes may close."""
    return (message_bytes - _HEAD_BYTES) // 4


class FrameRows:
    """The rows of one frame: one message of each session, of one output mode, none over twice as long as the first.

    The server answers a frame when its last row is done, so a short message does not wait for a long one's.

    Attributes:
        members: the session of each row.
        messages: the message of each row.
        mode: the output mode of all, `pb.OUTPUT_MODE_…`.
    """

    __slots__ = ("_left", "_left_with_outputs", "_longest", "_shortest", "members", "messages", "mode")

    def __init__(self, message_bytes: int, closing: int) -> None:
        """`message_bytes`: what the server takes; `closing`: how many sessions the frame closes."""
        self.members: list[Member] = []
        self.messages: list[Row] = []
        self.mode = pb.OUTPUT_MODE_ALL
        # A message alone may be larger than `_FRAME_BYTES`, but not together with sessions to close.
        self._left = (min(message_bytes, _FRAME_BYTES) - 4 * closing) if closing else message_bytes
        self._left_with_outputs = _FRAME_BYTES
        self._shortest = self._longest = 0

    def add(self, member: Member) -> bool:
        """Take the next message of `member`; False if it must wait for another frame."""
        message = member.waiting[0]
        mode, steps = message.output_mode or member.mode, message.steps
        if mode == pb.OUTPUT_MODE_LAST and steps == 1:
            mode = pb.OUTPUT_MODE_ALL
        if not self.members:
            size = alone_bytes(message)
            if size > self._left:
                return False
            self.mode, self._shortest, self._longest = mode, (steps + 1) // 2, 2 * steps
            self._left = min(self._left, _FRAME_BYTES) - size
        else:
            size = message.size + _ROW_BYTES
            if mode != self.mode or not self._shortest <= steps <= self._longest:
                return False
            if size > self._left or message.cost > self._left_with_outputs:
                return False
            self._left -= size
        self._left_with_outputs -= message.cost
        member.waiting.popleft()
        member.sent += message.cost
        self.members.append(member)
        self.messages.append(message)
        return True

    def counts(self) -> list[int]:
        """The timesteps of each row's outputs."""
        if self.mode == pb.OUTPUT_MODE_ALL:
            return [message.steps for message in self.messages]
        return [int(self.mode == pb.OUTPUT_MODE_LAST)] * len(self.messages)

    def write(self, frame: pb.FrameRequest) -> None:
        """Put the rows into `frame`."""
        frame.handles = np.array([member.handle for member in self.members], "<u4").tobytes()
        lengths = [message.steps for message in self.messages]
        if lengths.count(lengths[0]) == len(lengths):
            frame.steps = lengths[0]
        else:
            frame.lengths = np.array(lengths, "<u4").tobytes()
        frame.output_mode = self.mode
        frame.inputs.extend(map(b"".join, zip(*(message.inputs for message in self.messages), strict=True)))
