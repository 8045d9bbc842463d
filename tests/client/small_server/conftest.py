"""A small server in plain numpy, for what ours does too rarely, or should not do at all.

It keeps a running sum, so it is also a second implementation of the wire contract: what the client sends must make
sense to someone who only read the .proto.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent import futures
from dataclasses import dataclass, field
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
    leave: bool = False  # end the stream, without an error, in place of an answer
    ended: threading.Event = field(default_factory=threading.Event)
    target: str = ""

    def Stream(  # noqa: N802  # gRPC's name
        self, requests: Iterator[pb.StreamRequest], context: grpc.ServicerContext
    ) -> Iterator[pb.StreamResponse]:
        context.add_callback(self.ended.set)
        self.metadata = list(context.invocation_metadata())
        opening = next(requests).open
        inputs, outputs = MODELS[opening.model]
        opened = pb.SessionOpened(
            session_id="s1", model=opening.model, version="7", inputs=inputs, outputs=outputs,
            max_steps_per_message=4, idle_timeout_s=60,
        )  # fmt: skip
        yield pb.StreamResponse(opened=opened)
        sums: list[np.ndarray[Any, Any]] = []
        index = 0
        for request in requests:
            self.received.append(request)
            self.hold.wait(30)
            if self.leave:
                return
            mode = request.output_mode or opening.output_mode
            if self.odd and (reply := self.odd(request, context)):
                yield reply
                continue
            index += request.steps
            arrays = [
                np.frombuffer(data, spec.dtype).reshape(request.steps, *spec.step_shape)
                for spec, data in zip(inputs, request.inputs, strict=True)
            ]
            if opening.model == "sum":
                sums.extend(arrays[0])
                results = [np.cumsum(sums, axis=0, dtype=np.float32)[-request.steps :]]
            else:
                image, gain = arrays
                results = [gain * image.sum((1, 2)), image.astype(np.int64)]
            if mode == pb.OUTPUT_MODE_LAST:
                results = [result[-1:] for result in results]
            shown = [] if mode == pb.OUTPUT_MODE_NONE else [result.tobytes() for result in results]
            steps = 0 if not shown else len(results[0])
            yield pb.StreamResponse(outputs=shown, steps=steps, step_index=index, tag=request.tag)


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
def client(small: Small) -> Iterator[Client]:
    with connect(small.target) as client:
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
