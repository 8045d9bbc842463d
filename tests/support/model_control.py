"""Models that come and go: small ones that answer differently, and a server that is told what to serve."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import tritonclient.grpc
from tritonclient.utils import InferenceServerException

from streamcell.client import Client, NotFound, StreamCellError, connect
from streamcell.export import export_model
from streamcell.models import build

CONFIGS: dict[str, dict[str, Any]] = {
    "lstm": {"kind": "lstm", "input_size": 3, "hidden_size": 16, "output_size": 2, "num_layers": 2},
    "mlp": {"kind": "mlp", "input_size": 3, "hidden_sizes": [16, 16], "output_size": 2},
    "wider": {"kind": "mlp", "input_size": 5, "hidden_sizes": [16], "output_size": 4},
}


X = np.linspace(-1, 1, 60, dtype=np.float32).reshape(20, 3)


class Model:
    """A module of a kind with weights of its own, and its .onnx file's bytes."""

    def __init__(self, kind: str, seed: int, folder: Path) -> None:
        torch.manual_seed(seed)
        self.module = build(CONFIGS[kind]).eval()
        path = folder / f"{kind}-{seed}.onnx"
        export_model(self.module, path, name=kind)
        self.data = path.read_bytes()

    def put(self, path: Path) -> None:
        """Put the file at `path` as one should: written elsewhere, renamed in."""
        path.parent.mkdir(parents=True, exist_ok=True)
        aside = path.parent / ".coming"
        aside.write_bytes(self.data)
        os.replace(aside, path)

    def outputs(self, x: np.ndarray) -> np.ndarray:
        """What PyTorch gives for one sequence, float32[steps, outputs]."""
        with torch.no_grad():
            result = self.module(torch.from_numpy(x)[None])
        return (result[0] if isinstance(result, tuple) else result)[0].numpy()

    def gave(self, y: np.ndarray, x: np.ndarray = X) -> bool:
        """Whether `y` are this model's outputs."""
        return bool(np.allclose(y, self.outputs(x)[: len(y)], atol=1e-5))


class Served:
    """A server over a folder of its own, and both clients."""

    def __init__(self, server: Any, folder: Path) -> None:
        self.server = server
        self.folder = folder
        self.client: Client = connect(server.target)
        self.triton = tritonclient.grpc.InferenceServerClient(server.target)

    def index(self) -> dict[tuple[str, str], str]:
        """State by name and version."""
        return {(m.name, m.version): m.state for m in self.triton.get_model_repository_index().models}

    def ready(self, name: str = "lstm") -> bool:
        """Whether the health service says so; it does not know a model that never was served."""
        try:
            return self.client.ready(name)
        except NotFound:
            return False

    def released(self, version: str = "1", name: str = "lstm") -> Callable[[], bool]:
        return lambda: any(
            entry["event"] == "model released" and (entry["model"], entry["version"]) == (name, version)
            for entry in self.server.log
        )

    def close(self) -> None:
        self.client.close()
        self.triton.close()
        assert self.server.stop() == 0


Start = Callable[..., Served]


def reason(call: Callable[[], Any]) -> str:
    """The reason of the typed error that `call` ends with."""
    with pytest.raises(StreamCellError) as caught:
        call()
    return caught.value.reason


def refused(call: Callable[[], Any]) -> tuple[str, str]:
    """Status and text of the error that Triton's client gets."""
    with pytest.raises(InferenceServerException) as caught:
        call()
    return str(caught.value.status()), str(caught.value.message())


def loads(served: Served) -> int:
    return sum(entry["event"] == "model loaded" for entry in served.server.log)
