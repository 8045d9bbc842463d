"""As `kept_stream.py`, for a stream of frames: the stream with its sessions is resumed as one."""

from __future__ import annotations

from typing import Any

from google.protobuf.message import DecodeError

from streamcell.proto import pb

from .kept_stream import KeptStream, Message, names


class KeptFrames(KeptStream):
    """A stream of frames. Each frame has a number and one reply, except frames that only acknowledge replies."""

    def _message(self, data: bytes) -> Message | None:
        try:
            request = pb.FrameRequest.FromString(data)
        except DecodeError:  # the engine process says so
            return Message(self._next, data)
        if request.HasField("received"):
            told = pb.FrameRequest(received=request.received)  # as for other streams, without what fills it
            self._told, self._told_number = told.SerializeToString(), request.received
            return None
        return Message(self._next, data)

    def _named(self) -> Any:
        return pb.OpenFrames(**names(self._asked))

    def _first(self, asked: Any) -> bytes:
        return pb.FrameRequest(open=asked).SerializeToString()

    def _answer(self, data: bytes) -> pb.SessionOpened:
        return pb.FrameResponse.FromString(data).opened

    def _goes_on(self, data: bytes) -> int | None:
        return None
