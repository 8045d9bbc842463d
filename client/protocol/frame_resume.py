"""How a stream of frames outlives its calls. Without transport."""

from __future__ import annotations

from streamcell.proto import pb

from .resume import Resumption

_WINDOW = 8  # frames without a reply: one may have a thousand rows, and the server keeps so many replies


class FrameResumption(Resumption):
    """A resumption of a stream of frames: its frames are the messages."""

    def __init__(self, resume_s: float) -> None:
        """`resume_s`: how long to go on trying without any reply."""
        super().__init__(resume_s, window=_WINDOW)

    def opening_frames(self, asked: pb.OpenFrames) -> pb.OpenFrames:
        """`asked` as the next opening of this stream."""
        opening = pb.OpenFrames(**self._identity())
        opening.MergeFrom(asked)
        return opening

    def check(self, request: pb.FrameRequest) -> None:
        """Frames are in no shared store: any may be kept."""

    def took(self, reply: pb.FrameResponse) -> None:
        """Count a reply that has arrived, and put it into `early`."""
        self._tries.answered()
        self.early.append(reply)
        self._took_last()

    def _check_moved(self, reply: pb.FrameResponse) -> None:
        """A stream of frames does not move."""

    def goodbye(self) -> pb.FrameRequest:
        """Says that every reply has arrived: the stream ends with this call."""
        return pb.FrameRequest(received=self.received)
