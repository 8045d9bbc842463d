"""Modules of a user's own, through PyTorch's exporter, under the same proof."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from torch import Tensor, nn

from streamcell.card import read_card
from streamcell.export import ExportError, ProofError, export_module

X = torch.randn(4, 16, 5, generator=torch.Generator().manual_seed(0))


class Cell(nn.Module):
    """A hand-written cell in a Python loop over time; batch axis 0."""

    state_names = ("h",)

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.out = nn.Linear(5 + 8, 8), nn.Linear(8, 3)

    def initial_state(self, batch: int) -> tuple[Tensor, ...]:
        return (torch.zeros(batch, 8),)

    def forward(self, x: Tensor, h: Tensor) -> tuple[Tensor, ...]:
        ys = []
        for step in x.unbind(1):
            h = torch.tanh(self.inner(torch.cat([step, h], -1)))
            ys.append(self.out(h))
        return torch.stack(ys, 1), h


class CausalConv(nn.Module):
    """A convolution over the past; its state is the last three timesteps, [batch, channels, 3]."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv1d(5, 6, 4)

    def initial_state(self, batch: int) -> tuple[Tensor, ...]:
        return (torch.full((batch, 5, 3), 0.5),)

    def forward(self, x: Tensor, past: Tensor) -> tuple[Tensor, ...]:
        seen = torch.cat([past, x.transpose(1, 2)], 2)
        return torch.relu(self.conv(seen)).transpose(1, 2), seen[:, :, -3:]


class Stacked(nn.Module):
    """torch's own LSTM; the states' batch axis is 1."""

    state_names = ("h", "c")

    def __init__(self, bidirectional: bool = False) -> None:
        super().__init__()
        self.lstm = nn.LSTM(5, 8, 2, batch_first=True, bidirectional=bidirectional)
        self.rows = 4 if bidirectional else 2
        self.out = nn.Linear(16 if bidirectional else 8, 3)

    def initial_state(self, batch: int) -> tuple[Tensor, ...]:
        return torch.zeros(self.rows, batch, 8), torch.zeros(self.rows, batch, 8)

    def forward(self, x: Tensor, h: Tensor, c: Tensor) -> tuple[Tensor, ...]:
        y, (h, c) = self.lstm(x, (h, c))
        return self.out(y), h, c


class Averager(nn.Module):
    """Integer input, an integer state beside a float one, initial values that differ by place."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(11, 4)

    def initial_state(self, batch: int) -> tuple[Tensor, ...]:
        return torch.arange(4.0).expand(batch, 4), torch.ones(batch, dtype=torch.int64)

    def forward(self, x: Tensor, total: Tensor, seen: Tensor) -> tuple[Tensor, ...]:
        ys = []
        for step in x.unbind(1):
            total, seen = total + self.embed(step), seen + 1
            ys.append(total / seen[:, None])
        return torch.stack(ys, 1), total, seen


class StepOnly(nn.Module):
    """One timestep, no time axis; y is the state itself."""

    def __init__(self) -> None:
        super().__init__()
        self.cell = nn.GRUCell(5, 8)

    def initial_state(self, batch: int) -> tuple[Tensor, ...]:
        return (torch.zeros(batch, 8),)

    def forward(self, x: Tensor, h: Tensor) -> tuple[Tensor, ...]:
        h = self.cell(x, h)
        return h, h


def export(module: nn.Module, path: Path, **settings: Any) -> Any:
    torch.manual_seed(1)
    return export_module(module, path, **{"example_x": X, **settings})


def stream(path: Path, x: np.ndarray, states: tuple[Tensor, ...]) -> tuple[np.ndarray, list[np.ndarray]]:
    """Step by step in plain ONNX Runtime, by the card."""
    card = read_card(onnx.load(path))
    assert card is not None
    session = ort.InferenceSession(path, providers=["CPUExecutionProvider"])
    feed = {s.input: t.numpy() for s, t in zip(card.signature.states, states, strict=True)}
    outputs = []
    for t in range(x.shape[1]):
        names = ["y", *(s.output for s in card.signature.states)]
        y, *after = session.run(names, {"x": x[:, t], **feed})
        feed = {s.input: value for s, value in zip(card.signature.states, after, strict=True)}
        outputs.append(y)
    return np.stack(outputs, 1), list(feed.values())


@pytest.mark.parametrize(
    ("module", "names", "shapes", "axes"),
    [
        (Cell, ("h",), ((8,),), (0,)),
        (CausalConv, ("past",), ((5, 3),), (0,)),
        (Stacked, ("h", "c"), ((2, 8), (2, 8)), (1, 1)),
    ],
)
def test_a_module_streams_as_it_runs_in_pytorch(
    module: type[nn.Module],
    names: tuple[str, ...],
    shapes: tuple[tuple[int, ...], ...],
    axes: tuple[int, ...],
    tmp_path: Path,
) -> None:
    torch.manual_seed(4)
    mine = module().eval()
    card = export(mine, tmp_path / "m.onnx")
    assert (card.kind, card.signature.layout) == (module.__name__, "batch")
    assert tuple(state.input for state in card.signature.states) == names
    assert tuple(state.shape for state in card.signature.states) == shapes
    assert tuple(state.batch_axis for state in card.signature.states) == axes
    assert card.proof["max_error"] <= 1e-5
    x = torch.randn(6, 9, 5)
    states = mine.initial_state(6)  # type: ignore[operator]
    with torch.no_grad():
        y, *last = mine(x, *states)
    given, after = stream(tmp_path / "m.onnx", x.numpy(), states)
    np.testing.assert_allclose(given, y.numpy(), atol=2e-6, rtol=1e-5)
    for a, b in zip(after, last, strict=True):
        np.testing.assert_allclose(a, b.numpy(), atol=2e-6, rtol=1e-5)


def test_initial_values_dtypes_and_integer_inputs(tmp_path: Path) -> None:
    x = torch.randint(0, 11, (4, 16), generator=torch.Generator().manual_seed(0))
    card = export(Averager(), tmp_path / "m.onnx", example_x=x, state_names=["total", "seen"])
    assert (card.signature.inputs[0].dtype, card.signature.inputs[0].step_shape) == ("int64", ())
    total, seen = card.signature.states
    assert (total.initial, total.dtype) == ((0.0, 1.0, 2.0, 3.0), "float32")
    assert (seen.initial, seen.dtype, seen.shape) == (1.0, "int64", ())


def test_a_module_of_one_timestep_whose_output_is_its_state(tmp_path: Path) -> None:
    card = export(StepOnly(), tmp_path / "m.onnx", example_x=X[:, 0], time_axis=False)
    assert card.signature.outputs[0].step_shape == (8,)
    assert [state.output for state in card.signature.states] == ["h_next"]


def test_a_stateless_module_and_a_scalar_output_shape(tmp_path: Path) -> None:
    card = export(nn.Sequential(nn.Linear(5, 4), nn.GELU(), nn.Linear(4, 1)), tmp_path / "m.onnx")
    assert card.signature.states == ()
    assert card.signature.outputs[0].step_shape == (1,)


def test_a_module_generic_in_time_keeps_its_time_axis(tmp_path: Path) -> None:
    card = export(CausalConv(), tmp_path / "m.onnx", layout="batch_time")
    assert card.signature.layout == "batch_time"
    assert {"sequence", "chunks", "steps"} <= card.proof["errors"].keys()
    graph = onnx.load(tmp_path / "m.onnx").graph
    dims = [d.dim_param or d.dim_value for d in graph.input[0].type.tensor_type.shape.dim]
    assert dims == ["batch", "time", 5]


def test_a_loop_over_time_cannot_keep_its_time_axis(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="with a dynamic time axis"):
        export(Cell(), tmp_path / "m.onnx", layout="batch_time")
    assert not list(tmp_path.iterdir())


def test_the_file_says_nothing_of_where_it_was_made(tmp_path: Path) -> None:
    export(Cell(), tmp_path / "m.onnx")
    data = (tmp_path / "m.onnx").read_bytes()
    assert b".py" not in data
    assert str(Path(__file__).parent).encode() not in data


@pytest.mark.parametrize("stored", ["fp16", "int8"])
def test_precision_of_a_users_module(stored: str, tmp_path: Path) -> None:
    card = export(Cell(), tmp_path / "m.onnx", precision=stored)
    assert 1e-6 < card.proof["max_error"] < 5e-2
    kinds = {i.data_type for i in onnx.load(tmp_path / "m.onnx").graph.initializer}
    assert {"fp16": onnx.TensorProto.FLOAT16, "int8": onnx.TensorProto.INT8}[stored] in kinds


def test_the_module_given_is_left_alone(tmp_path: Path) -> None:
    module = Cell().train()
    export(module, tmp_path / "m.onnx", initial_state=module.initial_state)
    assert module.training


def test_a_module_that_looks_ahead_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ProofError, match="in PyTorch itself, Stacked gives other outputs step by step"):
        export(Stacked(bidirectional=True), tmp_path / "m.onnx")
    assert not list(tmp_path.iterdir())


class Wrong(Cell):
    """`Cell` with one thing wrong at a time."""

    def __init__(self, states: Any = None, result: Any = None) -> None:
        super().__init__()
        self.states, self.result = states, result

    def initial_state(self, batch: int) -> Any:
        return super().initial_state(batch) if self.states is None else self.states(batch)

    def forward(self, x: Tensor, h: Tensor) -> Any:
        y, h = super().forward(x, h)
        return (y, h) if self.result is None else self.result(y, h)


@pytest.mark.parametrize(
    ("wrong", "text"),
    [
        (
            {"states": lambda b: object()},
            "got a object; expected tensors, or tuples, lists, dicts and dataclasses",
        ),
        ({"states": lambda b: (torch.zeros(4, 8),)}, "no axis changes with the batch size"),
        ({"states": lambda b: (torch.zeros(b, b),)}, "no axis changes with the batch size"),
        ({"states": lambda b: (torch.zeros(2 * b, 8),)}, "no axis changes with the batch size"),
        ({"states": lambda b: (torch.randn(b, 8),)}, "same values for every row and at every call"),
        ({"states": lambda b: (torch.arange(8.0 * b).reshape(b, 8),)}, "the same values for every row"),
        ({"states": lambda b: (torch.full((b, 8), -torch.inf),)}, "not all finite"),
        ({"states": lambda b: (torch.zeros(b, 8, dtype=torch.bfloat16),)}, "is bfloat16; supported are"),
        ({"states": lambda b: (torch.zeros(b, 8), torch.zeros(b, 8))}, r"1 names \(h\) for 2 states"),
        ({"states": lambda b: (torch.zeros(b, 7),)}, "does not run on x and its 1 states"),
        ({"result": lambda y, h: {"y": y}}, "took 1 states and returned 0"),
        ({"result": lambda y, h: (y,)}, "took 1 states and returned 0"),
        ({"result": lambda y, h: (y, h[:, :4])}, "and comes out as"),
        ({"result": lambda y, h: (y[0], h)}, r"y must be \[batch, time"),
    ],
)
def test_what_breaks_the_convention_is_named(wrong: dict[str, Any], text: str, tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=text):
        export(Wrong(**wrong), tmp_path / "m.onnx")
    assert not list(tmp_path.iterdir())


def test_a_batch_that_is_fixed_in_the_module_is_refused(tmp_path: Path) -> None:
    class Fixed(Cell):
        def forward(self, x: Tensor, h: Tensor) -> tuple[Tensor, ...]:
            return super().forward(x, h.reshape(3, 8) if len(h) == 3 else h)

    with pytest.raises(ExportError, match="static shape of 3"):
        export(Fixed(), tmp_path / "m.onnx")


def test_a_state_may_not_take_the_name_of_the_input(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="named more than once: x"):
        export(Cell(), tmp_path / "m.onnx", state_names=["x"])
