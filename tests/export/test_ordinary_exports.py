"""Modules as people write them, exported: the files stream what PyTorch computes when they are called by hand."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from torch import Tensor, nn

from streamcell.card import read_card
from streamcell.export import ExportError, UserCodeError, export_module

from . import ordinary as o

ROWS, TIME = 6, 7
_RNG = torch.Generator().manual_seed(0)
X = torch.randn(ROWS, TIME, 5, generator=_RNG)
TOKENS = torch.randint(0, 11, (ROWS, TIME), generator=_RNG)


def classify(module: Any) -> list[Tensor]:
    """A class for each prefix, from the whole prefix at once."""
    return [torch.stack([module(X[:, : t + 1].transpose(0, 1))[0] for t in range(TIME)], 1)]


def answers(module: Any) -> list[Tensor]:
    answer, _ = module(o.Features(X[..., :3], TOKENS), module.initial_state(ROWS))
    return [answer.logits, answer.value]


def cells(module: Any) -> list[Tensor]:
    state, outputs = module.initial_state(ROWS), []
    for t in range(TIME):
        h, state = module({"audio": X[:, t], "video": X[:, t, :2]}, state)
        outputs.append(h)
    return [torch.stack(outputs, 1)]


def pairs(module: Any) -> list[Tensor]:
    y, value, _ = module(TOKENS, X[..., :3])
    return [y, value]


def whole(module: Any) -> list[Tensor]:
    return [module(X.transpose(0, 1))[0].transpose(0, 1)]


@pytest.mark.parametrize(
    ("module", "inputs", "example", "by_hand"),
    [
        (o.Classifier(batch_first=False), {"x": X}, X, classify),
        (
            o.Dataclasses(),
            {"audio": X[..., :3], "token": TOKENS},
            {"features": o.Features(X[..., :3], TOKENS)},
            answers,
        ),
        (o.DictIn(), {"audio": X, "video": X[..., :2]}, {"batch": {"audio": X, "video": X[..., :2]}}, cells),
        (o.TwoInputs(), {"tokens": TOKENS, "x": X[..., :3]}, {"tokens": TOKENS, "x": X[..., :3]}, pairs),
        (nn.LSTM(5, 8, 2), {"x": X}, X, whole),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, nn.Module) else "",
)
def test_the_file_streams_what_the_module_computes(
    module: nn.Module,
    inputs: dict[str, Tensor],
    example: Any,
    by_hand: Callable[[Any], list[Tensor]],
    tmp_path: Path,
) -> None:
    export_module(module.eval(), tmp_path / "m.onnx", example_x=example)
    card = read_card(onnx.load(tmp_path / "m.onnx"))
    assert card is not None
    assert [tensor.name for tensor in card.signature.inputs] == list(inputs)
    session = ort.InferenceSession(tmp_path / "m.onnx", providers=["CPUExecutionProvider"])
    states = card.signature.states
    feed = {}
    for state in states:
        row = np.full(state.shape, state.initial, state.dtype)
        feed[state.input] = np.stack([row] * ROWS, axis=state.batch_axis)
    names = [t.name for t in card.signature.outputs]
    steps = []
    for t in range(TIME):
        results = session.run(
            [*names, *(state.output for state in states)],
            {**{name: x[:, t].numpy() for name, x in inputs.items()}, **feed},
        )
        feed = {state.input: value for state, value in zip(states, results[len(names) :], strict=True)}
        steps.append(results[: len(names)])
    with torch.no_grad():
        wanted = by_hand(module)
    for y, given in zip(wanted, zip(*steps, strict=True), strict=True):
        np.testing.assert_allclose(np.stack(given, 1), y.numpy(), atol=2e-6, rtol=1e-5)


@pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")
def test_compiled_modules_and_weights_that_cannot_be_copied(tmp_path: Path) -> None:
    class Normed(o.CharCell):
        def __init__(self) -> None:
            super().__init__()
            # The older of PyTorch's two; its weight is computed before each call.
            with pytest.warns(FutureWarning):
                self.i2h = nn.utils.weight_norm(self.i2h)

    module = Normed()
    before = dict(vars(module.i2h))
    card = export_module(torch.compile(module), tmp_path / "m.onnx", example_x=X)  # type: ignore[arg-type]
    assert (card.kind, card.proof["max_error"] <= 1e-5) == ("Normed", True)
    assert vars(module.i2h) == before
    with pytest.raises(ExportError, match="give the module that it was made of"):
        export_module(torch.jit.script(nn.GRU(5, 8)), tmp_path / "s.onnx", example_x=X)


def test_a_recurrent_layer_that_pytorch_fixes_to_a_number_of_timesteps_is_told_the_other_layout(
    tmp_path: Path,
) -> None:
    with pytest.raises(ExportError, match=r"PyTorch .* time .*layout batch$"):
        export_module(o.Hidden(nn.GRU), tmp_path / "m.onnx", example_x=X, layout="batch_time")


class Branching(o.CharCell):
    """Looks at values to decide what to compute."""

    def forward(self, input: Tensor, hidden: Tensor) -> Any:  # noqa: A002  # as in the base
        y, hidden = super().forward(input, hidden)
        if y.abs().max() > 1e9:
            y = y / 2
        return y, hidden


class Unexported(o.CharCell):
    """Fails only when it is exported."""

    def forward(self, input: Tensor, hidden: Tensor) -> Any:  # noqa: A002  # as in the base
        if torch.compiler.is_exporting():
            raise RuntimeError("not for export")
        return super().forward(input, hidden)


@pytest.mark.parametrize(
    ("module", "kind", "texts"),
    [
        (Branching(), ExportError, ["in forward, 'if y.abs().max() > 1e9:': ", "write torch.where for `if`"]),
        (Unexported(), ExportError, ["in forward, 'raise RuntimeError(\"not for export\")': RuntimeError: "]),
    ],
)
def test_what_pytorch_cannot_export_is_told_by_the_line_of_the_module(
    module: nn.Module,
    kind: type[Exception],
    texts: list[str],
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(kind, match="as a step function: ") as told:
        export_module(module, tmp_path / "m.onnx", example_x=X)
    assert [text for text in texts if text not in str(told.value)] == []
    assert len(str(told.value)) < 1000
    assert capfd.readouterr() == ("", "")
    assert not list(tmp_path.iterdir())


def test_a_module_in_float64_is_told_to_be_cast(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    cast = r"rnn\.weight_ih_l0 is float64: cast the module with `\.float\(\)`"
    with pytest.raises(ExportError, match=cast):
        export_module(o.Hidden().double(), tmp_path / "m.onnx", example_x=X.double())
    with pytest.raises(UserCodeError, match=cast):
        export_module(o.Hidden().double(), tmp_path / "m.onnx", example_x=X)
    with pytest.raises(UserCodeError, match=r"x is float64: cast it with `\.float\(\)`"):
        export_module(o.Hidden(), tmp_path / "m.onnx", example_x=X.double())
    assert capfd.readouterr() == ("", "")
    assert not list(tmp_path.iterdir())


def test_a_state_that_changes_its_dtype_is_told_the_cast(tmp_path: Path) -> None:
    class Widening(o.CharCell):
        def forward(self, input: Tensor, hidden: Tensor) -> Any:  # noqa: A002  # as in the base
            y, hidden = super().forward(input, hidden)
            return y, hidden.double()

    with pytest.raises(
        ExportError, match=r"comes out as float64 \[2, 8\]: return hidden\.to\(torch\.float32\)"
    ):
        export_module(Widening(), tmp_path / "m.onnx", example_x=X)
