"""PyTorch's own exports, found in a folder, with a sidecar or read from the graph, against the PyTorch module."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from streamcell.service.graph.pooled import pool_states
from streamcell.service.repository.model_file import discover

Dim = torch.export.Dim


class VoiceDetector(nn.Module):
    """In the shape of a well-known one: 32 samples a step, both states of an LSTM cell in one tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.encode = nn.Linear(32, 8)
        self.cell = nn.LSTMCell(8, 6)
        self.head = nn.Linear(6, 1)

    def forward(self, input: Any, state: Any, sr: Any) -> Any:  # noqa: A002
        h, c = self.cell(torch.relu(self.encode(input)) * (sr / 16000.0), (state[0], state[1]))
        return torch.sigmoid(self.head(h)), torch.stack([h, c])


class Cell(nn.Module):
    """A GRU cell that the exporter takes apart."""

    def __init__(self) -> None:
        super().__init__()
        self.cell = nn.GRUCell(3, 5)
        self.head = nn.Linear(5, 2)

    def forward(self, x: Any, h: Any) -> Any:
        new = self.cell(x, h)
        return self.head(new), new


class Convolution(nn.Module):
    """A causal convolution that keeps its last four inputs."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv1d(3, 4, 5)

    def forward(self, x: Any, cache: Any) -> Any:
        full = torch.cat([cache, x.transpose(1, 2)], 2)
        return self.conv(full).transpose(1, 2), full[:, :, -4:]


@dataclass(frozen=True)
class Case:
    """A module, how it is exported, and the sidecar where one is needed."""

    module: type[nn.Module]
    inputs: dict[str, tuple[int, ...]]
    outputs: list[str]
    axes: dict[str, dict[int, str]]
    states: dict[str, int]
    layout: str
    sidecar: str | None = None


VAD_SIDECAR = """
layout = "batch"
inputs = ["input"]
outputs = ["output"]
states = [{ input = "state", output = "stateN" }]
constants = { sr = 8000 }
"""
CASES = {
    "voice detector": Case(
        VoiceDetector,
        {"input": (2, 32), "state": (2, 2, 6), "sr": ()},
        ["output", "stateN"],
        {"input": {0: "batch"}, "state": {1: "batch"}, "sr": {}},
        {"state": 1},
        "batch",
        VAD_SIDECAR,
    ),
    "cell": Case(
        Cell,
        {"x": (2, 3), "h": (2, 5)},
        ["y", "h_next"],
        {"x": {0: "batch"}, "h": {0: "batch"}},
        {"h": 0},
        "batch",
    ),
    "convolution": Case(
        Convolution,
        {"x": (2, 3, 3), "cache": (2, 3, 4)},
        ["y", "cache_out"],
        {"x": {0: "batch", 1: "time"}, "cache": {0: "batch"}},
        {"cache": 0},
        "batch_time",
    ),
}


def export(case: Case, module: nn.Module, path: Path, *, dynamo: bool) -> None:
    example = tuple(torch.tensor(8000) if not shape else torch.zeros(shape) for shape in case.inputs.values())
    names: dict[str, Any] = {"input_names": list(case.inputs), "output_names": case.outputs}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if dynamo:
            dims = {name: Dim(name) for axes in case.axes.values() for name in axes.values()}
            shapes = tuple({axis: dims[name] for axis, name in axes.items()} for axes in case.axes.values())
            torch.onnx.export(
                module,
                example,
                path,
                dynamic_shapes=shapes,
                dynamo=True,
                external_data=False,
                verbose=False,
                **names,
            )
        else:
            y, new = case.outputs
            first, state = list(case.axes)[:2]
            axes = {**case.axes, y: case.axes[first], new: case.axes[state]}
            torch.onnx.export(
                module, example, path, dynamic_axes=axes, dynamo=False, opset_version=17, **names
            )


@pytest.mark.parametrize("scatter", ["nd", "elements"])
@pytest.mark.parametrize("dynamo", [True, False], ids=["dynamo", "traced"])
@pytest.mark.parametrize("name", CASES)
def test_an_export_of_pytorch_is_served_as_pytorch_computes_it(
    name: str, dynamo: bool, scatter: Any, tmp_path: Path, in_pool: Any
) -> None:
    case = CASES[name]
    torch.manual_seed(3)
    module = case.module().eval()
    export(case, module, tmp_path / "model.onnx", dynamo=dynamo)
    if case.sidecar is not None:
        (tmp_path / "model.toml").write_text(case.sidecar)
    (file,) = discover(tmp_path)
    assert file.signature.layout == case.layout
    ((state, axis),) = case.states.items()
    assert [(s.input, s.batch_axis) for s in file.signature.states] == [(state, axis)]
    pooled = pool_states(file.load(), file.signature, file.constants, scatter=scatter)
    run = in_pool(pooled, file.signature, 6)
    rng = np.random.default_rng(5)
    first = file.signature.inputs[0]
    shape = list(case.inputs[state])
    shape[axis] = 1
    alone = {row: torch.zeros(shape) for row in range(1, 6)}
    extra = [torch.tensor(8000)] if "sr" in case.inputs else []
    seen: set[int] = set()
    for _ in range(6):
        rows = rng.permutation(5)[: rng.integers(1, 6)] + 1
        lead = (len(rows), int(rng.integers(1, 7))) if case.layout == "batch_time" else (len(rows),)
        x = rng.normal(size=(*lead, *first.step_shape)).astype(np.float32)
        given = run.step({first.name: x}, [int(r) if r in seen else 0 for r in rows], rows.tolist())[
            case.outputs[0]
        ]
        seen.update(rows.tolist())
        for index, row in enumerate(rows.tolist()):
            with torch.no_grad():
                y, alone[row] = module(torch.from_numpy(x[index : index + 1]), alone[row], *extra)
            np.testing.assert_allclose(given[index], y[0].numpy(), rtol=1e-5, atol=1e-5)
