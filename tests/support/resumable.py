"""A model that shows each lost and each doubled step for ever, and resumable sessions on the wire."""

from __future__ import annotations

import queue
import secrets
from pathlib import Path
from typing import Any

import grpc
import numpy as np
from google.rpc import error_details_pb2, status_pb2

from streamcell.proto import pb, rpc

from .onnx_files import parsed, save

# y is the sum of all inputs so far. A generation feeds y back, so it doubles the sum.
SUM = (
    "(float[b, t, 1] x, float[b, 1] h) => (float[b, t, 1] y, float[b, 1] h_next)"
    "{ one = Constant<value = int64[1] {1}>() axis = Constant<value = int64 {1}>()"
    " last = Constant<value = int64 {-1}>() sum = CumSum(x, axis) before = Unsqueeze(h, one)"
    " y = Add(sum, before) h_next = Gather<axis = 1>(y, last) }"
)
SIDECAR = """
layout = "batch_time"
inputs = ["x"]
outputs = ["y"]
[[states]]
input = "h"
output = "h_next"
[generation]
output = "y"
input = "x"
head = "real"
"""


# Four classes; the state takes in each, and every number is small and exact, so outputs are equal in any batch. A lost,
# doubled or changed choice shows in all that follow.
DICE = (
    "(float[b, 4] x, float[b, 1] h) => (float[b, 4] y, float[b, 1] h_next)"
    "<float[4, 1] digits = {1, 2, 3, 4}, float base = {31}, float most = {65521},"
    " float[4] spread = {3, 5, 7, 11}, float sides = {13}, float fifth = {0.25}>"
    "{ digit = MatMul(x, digits) moved = Mul(h, base) sum = Add(moved, digit) h_next = Mod<fmod = 1>(sum, most)"
    " wide = Mul(h_next, spread) left = Mod<fmod = 1>(wide, sides) y = Mul(left, fifth) }"
)
DICE_SIDECAR = """
layout = "batch"
inputs = ["x"]
outputs = ["y"]
[[states]]
input = "h"
output = "h_next"
[generation]
output = "y"
input = "x"
head = "categorical"
start = 0
"""


def save_dice(folder: Path) -> Path:
    """Save the model as `dice` in `folder`."""
    save(parsed(DICE), folder / "dice.onnx", DICE_SIDECAR)
    return folder


def save_sum(folder: Path) -> Path:
    """Save the model as `sum` in `folder`."""
    save(parsed(SUM), folder / "sum.onnx", SIDECAR)
    return folder


def step(*x: float, **fields: Any) -> pb.StreamRequest:
    """A message of timesteps."""
    return pb.StreamRequest(inputs=[np.array(x, "<f4").tobytes()], **fields)


def sums(reply: pb.StreamResponse | pb.FrameResponse) -> list[float]:
    """The outputs of a reply."""
    found: list[float] = np.frombuffer(b"".join(reply.outputs), "<f4").tolist()
    return found


class Owner:
    """Who has a session's token: makes its openings, each with the next attempt."""

    _request: Any = pb.StreamRequest
    _open: Any = pb.OpenSession

    def __init__(self, window: int = 4, model: str = "sum") -> None:
        self.session, self.token = secrets.token_bytes(16), secrets.token_bytes(32)
        self.attempt = 0
        self.window = window
        self.model = model

    @property
    def id(self) -> str:
        return self.session.hex()

    def opening(self, **fields: Any) -> Any:
        self.attempt += 1
        given = {
            "model": self.model, "session": self.session, "token": self.token, "window": self.window,
            "attempt": self.attempt, **fields,
        }  # fmt: skip
        return self._request(open=self._open(**given))

    def resume(self, received: int, **fields: Any) -> Any:
        return self.opening(resume=True, received=received, **fields)


class Raw:
    """One `Stream` call on a connection of its own."""

    _method = "Stream"

    def __init__(self, target: str, *messages: Any, metadata: Any = ()) -> None:
        self.channel = grpc.insecure_channel(target, options=[("grpc.use_local_subchannel_pool", 1)])
        self._requests: queue.SimpleQueue[Any] = queue.SimpleQueue()
        stub = rpc.StreamCellStub(self.channel)  # type: ignore[no-untyped-call]
        self.call = getattr(stub, self._method)(iter(self._requests.get, None), timeout=60, metadata=metadata)
        self.send(*messages)

    def send(self, *messages: Any) -> None:
        for message in messages:
            self._requests.put(message)

    def reply(self) -> Any:
        return next(self.call)

    def opened(self) -> Any:
        reply = self.reply()
        assert reply.HasField("opened")
        return reply.opened

    def replies(self, count: int) -> list[Any]:
        return [self.reply() for _ in range(count)]

    def error(self) -> tuple[str, dict[str, str], str]:
        """The reason of the error that ends the call, its facts and its text; replies before it are dropped."""
        try:
            for _ in self.call:
                pass
        except grpc.RpcError as error:
            return reason_of(error)
        raise AssertionError("the call ended without an error")

    def close(self, received: int) -> list[Any]:
        """End the session, with so many messages answered."""
        self.send(pb.StreamRequest(received=received))
        return self.half_close()

    def half_close(self) -> list[Any]:
        """Send no more, and read to the end."""
        self._requests.put(None)
        return list(self.call)

    def cut(self) -> None:
        """Break the connection."""
        self._requests.put(None)
        self.channel.close()


def reason_of(error: Any) -> tuple[str, dict[str, str], str]:
    """An error's reason, facts and text."""
    trailing = dict(error.trailing_metadata() or ())
    info = error_details_pb2.ErrorInfo()
    if "grpc-status-details-bin" not in trailing:
        return error.code().name, {}, error.details() or ""
    status = status_pb2.Status.FromString(trailing["grpc-status-details-bin"])
    assert status.details[0].Unpack(info)
    return info.reason, dict(info.metadata), status.message
