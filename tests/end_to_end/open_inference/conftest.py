"""What the tests of the Open Inference Protocol share: Triton's clients on real servers, and PyTorch's answers."""

from __future__ import annotations

import queue
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
import tritonclient.grpc

Steps = np.ndarray[Any, Any]


def tensor(x: Steps, name: str = "x") -> Any:
    """An input of Triton's client."""
    datatype = {"float32": "FP32", "int64": "INT64"}.get(x.dtype.name, "FP32")
    given = tritonclient.grpc.InferInput(name, list(x.shape), datatype)
    given.set_data_from_numpy(x)
    return given


class Talk:
    """One stream of Triton's blocking client: what is sent, and the answers in the order in which they come."""

    def __init__(self, client: Any, headers: dict[str, str] | None = None) -> None:
        self.client = client
        self.answers: queue.Queue[tuple[Any, Any]] = queue.Queue()
        client.start_stream(lambda result, error: self.answers.put((result, error)), headers=headers)

    def send(self, model: str, x: Steps, **more: Any) -> None:
        """Send one request with the input `x`."""
        self.client.async_stream_infer(model, [tensor(x)], **more)

    def get(self) -> Any:
        """The next answer; an error is raised."""
        result, error = self.answers.get(timeout=60)
        if error is not None:
            raise error
        return result

    def y(self) -> Steps:
        """The next answer's output."""
        found: Steps = self.get().as_numpy("y")
        return found


@pytest.fixture
def triton(served: Any) -> Iterator[Any]:
    """Triton's blocking client on the server that all tests share."""
    with tritonclient.grpc.InferenceServerClient(served.target) as client:
        yield client


@pytest.fixture
def open_talk() -> Iterator[Callable[..., Talk]]:
    """Opens streams, each with a client of its own."""
    clients: list[Any] = []

    def open_(target: str, **more: Any) -> Talk:
        client = tritonclient.grpc.InferenceServerClient(target)
        clients.append(client)
        return Talk(client, **more)

    yield open_
    for client in clients:
        client.stop_stream(cancel_requests=True)
        client.close()


@pytest.fixture
def talk(served: Any, open_talk: Callable[..., Talk]) -> Talk:
    """A stream on the server that all tests share."""
    return open_talk(served.target)


@pytest.fixture(scope="session")
def expected(modules: dict[str, torch.nn.Module]) -> Callable[[str, Steps], Steps]:
    """(model, float32[B, T, I]) → PyTorch's float32[B, T, O]."""

    def answer(model: str, x: Steps) -> Steps:
        with torch.no_grad():
            y: Steps = modules[model](torch.from_numpy(x))[0].numpy()
        return y

    return answer
