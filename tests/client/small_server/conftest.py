"""A small server in plain numpy, for what ours does too rarely, or should not do at all.

It keeps a running sum, so it is also a second implementation of the wire contract: what the client sends must make
sense to someone who only read the .proto.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent import futures
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import grpc
import numpy as np
import pytest
from google.rpc import error_details_pb2, status_pb2

from streamcell.client import Client, connect
from streamcell.proto import pb, rpc

SUM = (
    [pb.TensorSpec(name="x", dtype="float32", step_shape=[2])],
    [pb.TensorSpec(name="y", dtype="float32", step_shape=[2], distribution="real")],
)
# Several inputs and outputs, of different dtypes and ranks, one of them a scalar a step.
SEVERAL = (
    [
        pb.TensorSpec(name="image", dtype="uint8", step_shape=[2, 3]),
        pb.TensorSpec(name="gain", dtype="float64"),
    ],
    [
        pb.TensorSpec(name="total", dtype="float64"),
        pb.TensorSpec(name="seen", dtype="int64", step_shape=[2, 3]),
    ],
)
MODELS = {"sum": SUM, "several": SEVERAL, "future": ([pb.TensorSpec(name="x", dtype="float8")], SUM[1])}


@dataclass
class Small(rpc.StreamCellServicer):
    """`odd` may answer a message itself, or raise; `hold` keeps replies back until it is set."""

    odd: Callable[[pb.StreamRequest, grpc.ServicerContext], pb.StreamResponse | None] | None = None
    hold: threading.Event = field(default_factory=threading.Event)
    received: list[pb.StreamRequest] = field(default_factory=list)
    metadata: list[tuple[str, str]] = field(default_factory=list)
    limit: int = 100_000  # what it says of its messages' bytes; an older server says nothing, 0
    leave: bool = False  # end the stream, without an error, in place of an answer
    ended: threading.Event = field(default_factory=threading.Event)
    target: str = ""

    def Stream(  # noqa: N802  # gRPC's name
        self, requests: Iterator[pb.StreamRequest], context: grpc.ServicerContext
    ) -> Iterator[pb.StreamResponse]:
        opening = next(requests).open
        yield pb.StreamResponse(opened=self._opened(opening.model, context))
        sequence = Sequence(opening.model, opening.output_mode)
        for request in requests:
            self._receive(request)
            if self.leave:
                return
            yield (self.odd and self.odd(request, context)) or sequence.answer(request)

    def StreamFrames(  # noqa: N802  # gRPC's name
        self, requests: Iterator[pb.FrameRequest], context: grpc.ServicerContext
    ) -> Iterator[pb.FrameResponse]:
        first = next(requests)
        opened = self._opened(first.open.model, context)
        sequences: dict[int, Sequence] = {}
        yield pb.FrameResponse(opened=opened)
        for frame in requests:
            for handle in np.frombuffer(frame.close, "<u4").tolist():
                del sequences[handle]
            free = (handle for handle in range(1000) if handle not in sequences)
            new = [next(free) for _ in range(frame.open_sessions)]
            sequences |= {handle: Sequence(first.open.model, first.open.output_mode) for handle in new}
            replies = []
            for handle, request in self._rows(frame, opened):
                self._receive(request)
                if self.leave:
                    return
                odd = self.odd and self.odd(request, context)
                replies.append(odd or sequences[handle].answer(request))
            yield pb.FrameResponse(
                handles=np.array(new, "<u4").tobytes(),
                outputs=map(b"".join, zip(*(reply.outputs for reply in replies), strict=True)),
                steps=replies[0].steps if replies else 0,
                step_indices=np.array([reply.step_index for reply in replies], "<u8").tobytes(),
            )

    def _opened(self, model: str, context: grpc.ServicerContext) -> pb.SessionOpened:
        context.add_callback(self.ended.set)
        self.metadata = list(context.invocation_metadata())
        inputs, outputs = MODELS[model]
        return pb.SessionOpened(
            session_id="s1", model=model, version="7", inputs=inputs, outputs=outputs, max_steps_per_message=4,
            idle_timeout_s=60, max_message_bytes=self.limit,
        )  # fmt: skip

    def _receive(self, request: pb.StreamRequest) -> None:
        self.received.append(request)
        self.hold.wait(30)

    @staticmethod
    def _rows(frame: pb.FrameRequest, opened: pb.SessionOpened) -> Iterator[tuple[int, pb.StreamRequest]]:
        """A frame's rows as a session's messages, by handle."""
        handles = np.frombuffer(frame.handles, "<u4").tolist()
        lengths = np.frombuffer(frame.lengths, "<u4").tolist() or [frame.steps] * len(handles)
        begin = 0
        for handle, steps in zip(handles, lengths, strict=True):
            sizes = [np.dtype(spec.dtype).itemsize * int(np.prod(spec.step_shape)) for spec in opened.inputs]
            inputs = [
                data[begin * size : (begin + steps) * size]
                for data, size in zip(frame.inputs, sizes, strict=True)
            ]
            yield handle, pb.StreamRequest(inputs=inputs, steps=steps, output_mode=frame.output_mode)
            begin += steps


class Sequence:
    """One session's running sum, or a model without memory."""

    def __init__(self, model: str, output_mode: pb.OutputMode) -> None:
        self.model = model
        self.output_mode = output_mode
        self.sums: list[np.ndarray[Any, Any]] = []
        self.index = 0

    def answer(self, request: pb.StreamRequest) -> pb.StreamResponse:
        mode = request.output_mode or self.output_mode
        self.index += request.steps
        arrays = [
            np.frombuffer(data, spec.dtype).reshape(request.steps, *spec.step_shape)
            for spec, data in zip(MODELS[self.model][0], request.inputs, strict=True)
        ]
        if self.model == "sum":
            self.sums.extend(arrays[0])
            results = [np.cumsum(self.sums, axis=0, dtype=np.float32)[-request.steps :]]
        else:
            image, gain = arrays
            results = [gain * image.sum((1, 2)), image.astype(np.int64)]
        if mode == pb.OUTPUT_MODE_LAST:
            results = [result[-1:] for result in results]
        shown = [] if mode == pb.OUTPUT_MODE_NONE else [result.tobytes() for result in results]
        steps = 0 if not shown else len(results[0])
        return pb.StreamResponse(outputs=shown, steps=steps, step_index=self.index, tag=request.tag)


@pytest.fixture
def small() -> Iterator[Small]:
    servicer = Small()
    servicer.hold.set()
    server = grpc.server(
        futures.ThreadPoolExecutor(8), options=[("grpc.max_receive_message_length", 100_000)]
    )
    rpc.add_StreamCellServicer_to_server(servicer, server)  # type: ignore[no-untyped-call]
    servicer.target = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    server.start()
    yield servicer
    servicer.hold.set()
    server.stop(0).wait()


@pytest.fixture
def client(small: Small, shared: bool) -> Iterator[Client]:
    with connect(small.target) as client:
        client.session = partial(client.session, multiplex=shared)  # type: ignore[method-assign]
        yield client


@pytest.fixture
def fail() -> Callable[..., Callable[..., None]]:
    """`Small.odd` that ends the stream as the service would."""
    return _fail


def _fail(reason: str, code: grpc.StatusCode, **facts: str) -> Callable[..., None]:
    def odd(request: pb.StreamRequest, context: grpc.ServicerContext) -> None:
        rich = status_pb2.Status(code=code.value[0], message=reason.lower())
        info = error_details_pb2.ErrorInfo(reason=reason, domain="streamcell", metadata=facts)
        rich.details.add().Pack(info)
        context.set_trailing_metadata((("grpc-status-details-bin", rich.SerializeToString()),))
        context.abort(code, reason.lower())

    return odd
